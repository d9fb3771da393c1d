//! Active checks, panic and slow start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};

use crate::support::gate::HELD;
use crate::support::{Crowd, GET, Gate, Origin, Proxy, Setup, eventually, pause, with_shards};

/// Looks often, and believes at once.
pub const QUICK: &str = "interval: 20ms, fast_interval: 20ms, rise: 1, fall: 1";

/// An origin that answers checks as the test says.
pub struct Patient {
    pub origin: Origin,
    status: Arc<AtomicU16>,
    checks: Arc<AtomicUsize>,
}

impl Patient {
    pub fn new(name: &'static str) -> Patient {
        let (status, checks) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let (ours, counted) = (status.clone(), checks.clone());
        let origin = Origin::start(move |peer| {
            while let Ok(request) = peer.try_request() {
                if request.target() != "/health" {
                    peer.answer(name);
                    continue;
                }
                counted.fetch_add(1, SeqCst);
                let status = ours.load(SeqCst);
                let _ =
                    peer.try_send(format!("HTTP/1.1 {status} Told\r\nContent-Length: 0\r\n\r\n"));
            }
        });
        Patient { origin, status, checks }
    }

    pub fn say(&self, status: u16) {
        self.status.store(status, SeqCst);
    }

    /// Requests of clients.
    pub fn served(&self) -> usize {
        self.origin.requests().iter().filter(|request| request.target() != "/health").count()
    }
}

pub fn setup(patients: &[&Patient], check: &str) -> Setup {
    let origins: Vec<&Origin> = patients.iter().map(|patient| &patient.origin).collect();
    Setup::to(&origins)
        .listener("reason_header: true")
        .cluster(&format!("health_check: {{path: /health, {check}}}"))
}

/// 1: up; 0: down; none: nobody knows.
fn up(proxy: &Proxy, patient: &Patient) -> Option<f64> {
    let endpoint = patient.origin.address().to_string();
    let labels = format!("{{cluster=\"app\",endpoint=\"{endpoint}\"}} ");
    let page = proxy.admin("/metrics");
    let line = page.text().lines().find_map(|line| {
        line.strip_prefix("outrigger_endpoint_up")?.strip_prefix(labels.as_str()).map(str::to_owned)
    });
    line.map(|value| value.parse().unwrap())
}

#[track_caller]
pub fn await_state(proxy: &Proxy, patient: &Patient, state: f64) {
    eventually("the check finds it", || up(proxy, patient) == Some(state));
}

#[test]
fn who_is_down_gets_no_request() {
    with_shards(&[1, 4], |shards| {
        let (a, b, c) = (Patient::new("a"), Patient::new("b"), Patient::new("c"));
        let proxy = setup(&[&a, &b, &c], QUICK).shards(&format!("count: {shards}")).start();
        b.say(503);
        await_state(&proxy, &b, 0.0);
        let before = b.served();
        for _ in 0..30 {
            assert_eq!(proxy.get("/").status(), 200);
        }
        assert_eq!(b.served(), before);
        b.say(200);
        await_state(&proxy, &b, 1.0);
        let mut client = proxy.client();
        eventually("it is used again", || {
            client.get("/");
            b.served() > before
        });
    });
}

#[test]
fn the_first_result_counts_then_several_in_a_row() {
    let (a, b) = (Patient::new("a"), Patient::new("b"));
    b.say(500);
    let slowly = "interval: 20ms, fast_interval: 20ms, rise: 3, fall: 3";
    let proxy = setup(&[&a, &b], slowly).start();
    await_state(&proxy, &b, 0.0);
    let checks = b.checks.load(SeqCst);
    b.say(200);
    await_state(&proxy, &b, 1.0);
    assert!(b.checks.load(SeqCst) >= checks + 3);
}

#[test]
fn statuses_that_are_good() {
    let (a, b) = (Patient::new("a"), Patient::new("b"));
    a.say(404);
    b.say(302);
    let proxy = setup(&[&a, &b], &format!("{QUICK}, statuses: [200-299, 302]")).start();
    await_state(&proxy, &a, 0.0);
    await_state(&proxy, &b, 1.0);
}

/// What answers no request may still take connections.
#[test]
fn a_connection_is_enough_without_a_path() {
    let mute = Origin::start(|peer| {
        let _ = peer.rest();
    });
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    let proxy =
        Setup::at(&[mute.address(), gone]).cluster(&format!("health_check: {{{QUICK}}}")).start();
    let of = |address: std::net::SocketAddr| {
        proxy.metric("outrigger_endpoint_up", &[&format!("endpoint=\"{address}\"")])
    };
    eventually("both are known", || {
        let page = proxy.admin("/metrics");
        page.text().matches("outrigger_endpoint_up{").count() == 2
    });
    assert_eq!((of(mute.address()), of(gone)), (1.0, 0.0));
}

/// Rather all of them than none; or not, where the operator says so.
#[test]
fn in_panic_all_are_used() {
    for (threshold, status, reason) in [("0.5", 200, None), ("0", 503, Some("no-endpoint"))] {
        let (a, b) = (Patient::new("a"), Patient::new("b"));
        a.say(500);
        b.say(500);
        let proxy =
            setup(&[&a, &b], QUICK).cluster(&format!("panic_threshold: {threshold}")).start();
        await_state(&proxy, &a, 0.0);
        await_state(&proxy, &b, 0.0);
        let answer = proxy.get("/");
        assert_eq!((answer.status(), answer.get("x-outrigger-reason")), (status, reason));
        let panic = proxy.metric("outrigger_cluster_panic", &[]);
        assert_eq!(panic, f64::from(u8::from(threshold == "0.5")));
    }
}

/// Once for the process, however many shards there are.
#[test]
fn endpoints_are_checked_once() {
    with_shards(&[1, 8], |shards| {
        let a = Patient::new("a");
        let proxy = setup(&[&a], "interval: 100ms").shards(&format!("count: {shards}")).start();
        await_state(&proxy, &a, 1.0);
        let before = a.checks.load(SeqCst);
        pause(1000);
        let checks = a.checks.load(SeqCst) - before;
        // Nine tenths of the interval apart at least.
        assert!((1..=12).contains(&checks), "{checks}");
    });
}

/// It stays out whatever the breaker would say, and comes back with the breaker as it was.
#[test]
fn up_closes_no_breaker() {
    let (a, b) = (Patient::new("a"), Patient::new("b"));
    let failing = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            let status = if request.target() == "/health" { "200 Fine" } else { "500 Oh" };
            if peer.try_send(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")).is_err() {
                return;
            }
        }
    });
    let proxy = Setup::to(&[&a.origin, &b.origin, &failing])
        .cluster(&format!("health_check: {{path: /health, {QUICK}}}"))
        .cluster("breaker: {consecutive_failures: 1, open_time: 1h, max_open_time: 1h}")
        .one_shard()
        .start();
    let mut client = proxy.client();
    let asked = || failing.requests().iter().filter(|it| it.target() == "/").count();
    eventually("it trips", || {
        client.get("/");
        asked() == 1
    });
    let checks = failing.requests().len();
    eventually("it is found up again and again", || failing.requests().len() > checks + 5);
    for _ in 0..20 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert_eq!(asked(), 1);
}

#[test]
fn who_comes_back_starts_slowly() {
    for balance in ["least_request", "round_robin", "random"] {
        let (a, b) = (Patient::new("a"), Patient::new("b"));
        b.say(500);
        let proxy = setup(&[&a, &b], QUICK)
            .cluster(&format!("slow_start: 60s, balance: {balance}"))
            .one_shard()
            .start();
        await_state(&proxy, &b, 0.0);
        b.say(200);
        await_state(&proxy, &b, 1.0);
        let mut client = proxy.client();
        for _ in 0..200 {
            assert_eq!(client.get("/").status(), 200);
        }
        assert!(b.served() < 40, "{balance}: {}", b.served());
        // Nobody waits for it.
        a.say(500);
        await_state(&proxy, &a, 0.0);
        let before = b.served();
        for _ in 0..20 {
            assert_eq!(client.get("/").text(), "b");
        }
        assert_eq!(b.served(), before + 20);
    }
}

/// A reload forgets nothing: who is down stays down, without a gap.
#[test]
fn a_reload_keeps_what_is_known() {
    let (a, b, c) = (Patient::new("a"), Patient::new("b"), Patient::new("c"));
    b.say(500);
    let setup = setup(&[&a, &b, &c], QUICK);
    let proxy = setup.clone().start();
    await_state(&proxy, &b, 0.0);
    let before = b.served();
    let changed = setup.route("request_headers: {set: {x-generation: two}}");
    proxy.reload(&changed);
    for _ in 0..30 {
        assert_eq!(proxy.get("/").status(), 200);
    }
    assert_eq!(b.served(), before);
    // Nor does one with other checks.
    proxy.reload(&changed.cluster("slow_start: 1s"));
    for _ in 0..30 {
        assert_eq!(proxy.get("/").status(), 200);
    }
    assert_eq!(b.served(), before);
}

/// Nobody would ever find that it is up again.
#[test]
fn who_is_not_checked_any_more_is_not_down() {
    let (a, b) = (Patient::new("a"), Patient::new("b"));
    b.say(500);
    let proxy = setup(&[&a, &b], QUICK).start();
    await_state(&proxy, &b, 0.0);
    proxy.reload(&Setup::to(&[&a.origin, &b.origin]));
    let served = b.served();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").status(), 200);
    }
    assert!(b.served() > served);
    assert_eq!(up(&proxy, &b), None);
}

/// Those in its queue would wait for what may never answer.
#[test]
fn nobody_waits_for_a_place_at_who_is_down() {
    let gates = [Gate::new(), Gate::new()];
    let proxy = Setup::to(&[gates[0].origin(), gates[1].origin()])
        .listener("reason_header: true, timeouts: {header: 0s, idle: 0s}")
        .cluster(&format!("health_check: {{path: /health, {QUICK}}}"))
        .cluster("limits: {pending_timeout: 60s, per_endpoint: {max_requests: 1}}")
        .one_shard()
        .start();
    let is = |gate: &Gate, state: u32| {
        let endpoint = gate.origin().address();
        let line =
            format!("outrigger_endpoint_up{{cluster=\"app\",endpoint=\"{endpoint}\"}} {state}\n");
        proxy.admin("/metrics").text().contains(&line)
    };
    eventually("both are up", || gates.iter().all(|gate| is(gate, 1)));
    // Each is busy with one that takes its time.
    let held = format!("GET {HELD} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut busy = Crowd::connect(&proxy, 2);
    busy.send(&held);
    eventually("both are busy", || proxy.metric("outrigger_requests_in_flight", &[]) == 2.0);
    let mut waiting = Crowd::connect(&proxy, 8);
    waiting.send(GET);
    eventually("all wait", || proxy.metric("outrigger_requests_in_flight", &[]) == 10.0);
    gates[0].fail();
    eventually("one is down", || is(&gates[0], 0));
    gates[1].let_held_go(1);
    waiting.answers().assert_all("200");
    gates[0].let_held_go(1);
    busy.answers();
}
