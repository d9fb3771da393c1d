//! The control thread feeds tables and metrics. That it stands still changes no bound. What becomes
//! of a shard that does is for those to say who ask it.

use std::time::{Duration, Instant};

use crate::support::{
    Client, Crowd, GET, Gate, Hammer, Proxy, Setup, eventually, pause, with_shards,
};

/// How long it stands still.
const STALL: Duration = Duration::from_secs(10);

/// A thread of a process, held by its collar until this is dropped. Only the thread that took it may
/// let it go.
pub struct Stalled {
    thread: libc::pid_t,
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Stalled {
    #[track_caller]
    fn control_thread_of(proxy: &Proxy) -> Stalled {
        // It is the first thread of the process; the shards have names of their own.
        let thread = proxy.pid();
        let name = name_of(proxy, thread);
        assert!(!name.starts_with("shard-"), "{name}");
        Stalled::thread(thread)
    }

    /// The thread of one shard.
    #[track_caller]
    pub fn shard_of(proxy: &Proxy, shard: usize) -> Stalled {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
        let mut threads =
            tasks.map(|it| it.unwrap().file_name().to_str().unwrap().parse().unwrap());
        let name = format!("shard-{shard}");
        Stalled::thread(
            threads.find(|it| name_of(proxy, *it) == name).expect("a thread of its own"),
        )
    }

    /// Stops this thread of a process, and no other (ptrace(2)).
    #[track_caller]
    fn thread(thread: libc::pid_t) -> Stalled {
        let ask = |request| {
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: neither request reads or writes memory of ours.
            let result = unsafe { libc::ptrace(request, thread, none, none) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        };
        ask(libc::PTRACE_SEIZE);
        ask(libc::PTRACE_INTERRUPT);
        let mut status = 0;
        // SAFETY: `status` is written by the call, and outlives it.
        let waited = unsafe { libc::waitpid(thread, &mut status, libc::__WALL) };
        assert!(waited == thread && libc::WIFSTOPPED(status), "{waited} {status:x}");
        Stalled { thread, _not_send: std::marker::PhantomData }
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: it reads and writes no memory of ours. If the process has ended, nothing is left
        // to detach from.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.thread, none, none) };
    }
}

fn name_of(proxy: &Proxy, thread: libc::pid_t) -> String {
    let path = format!("/proc/{}/task/{thread}/comm", proxy.pid());
    std::fs::read_to_string(path).unwrap().trim_end().to_owned()
}

#[test]
fn a_control_thread_that_stands_still_changes_no_bound() {
    with_shards(&[1, 2, 8], |shards| {
        let (limited, failing) = (Gate::new(), Gate::new());
        let breaker = "breaker: {open_time: 300ms, max_open_time: 300ms, ramp: 0s}";
        let setup = Setup::new(limited.origin())
            .listener("reason_header: true")
            .shards(&format!("count: {shards}"))
            .cluster("limits: {max_requests: 7, pending_timeout: 60s}")
            .and_cluster_text(&format!(
                "name: failing, endpoints: ['{}'], limits: {{pending_timeout: 60s}}, {breaker}",
                failing.origin().address()
            ))
            .and_listener("name: second, reason_header: true")
            .and_route("listeners: [second], cluster: failing");
        let proxy = setup.clone().start();
        let stalled = Stalled::control_thread_of(&proxy);
        let began = Instant::now();
        let mut admin = Client::connect(proxy.admin_address());
        admin.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut others =
            Crowd((0..3 * shards).map(|_| Client::connect(proxy.address_of("second"))).collect());
        let hammer = Hammer::start(proxy.address_of("second"), 2 * shards);
        eventually("all goes well", || hammer.answers().of("200") > 10);
        let mut crowd = Crowd::connect(&proxy, 60);
        let mut periods = 0;
        limited.take(5);
        while began.elapsed() < STALL {
            // The limit is exact.
            limited.shut();
            crowd.send(GET);
            eventually("the limit is reached", || limited.inside() == 7);
            limited.open();
            crowd.answers().assert_all("200");
            assert_eq!(limited.peak(), 7, "{shards} shards");
            // A trip reaches all shards, a probe is one probe, and a success lets all in again.
            failing.fail();
            eventually("every shard refuses", || {
                others.ask().of("503 breaker-open") == others.0.len()
            });
            failing.shut();
            eventually("only a probe is there", || failing.inside() == 1);
            let arrived = failing.arrived();
            pause(50);
            assert_eq!((failing.inside(), failing.arrived()), (1, arrived));
            failing.heal();
            failing.open();
            eventually("every shard sends", || others.ask().of("200") == others.0.len());
            periods += 1;
        }
        admin.assert_quiet(1);
        drop(stalled);
        assert!(periods > 3, "{periods}");
        assert_eq!(admin.answer().status(), 200, "it goes on where it was");
        hammer.stop();
        proxy.reload(&setup.route("response_headers: {set: {x-plan: two}}"));
        assert_eq!(proxy.get("/").get("x-plan"), Some("two"));
    });
}
