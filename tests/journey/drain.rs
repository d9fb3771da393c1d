//! The orderly end, and the other ones: signals and exit codes.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::proxy::OUTRIGGER;
use crate::support::{Client, End, GET, OK, Origin, PATIENCE, Proxy, Setup, eventually, pause};

/// An origin whose answers wait until they are let go.
fn waiting() -> (Origin, Sender<()>) {
    let (let_go, go) = std::sync::mpsc::channel();
    let go = std::sync::Mutex::new(go);
    let origin = Origin::start(move |peer| {
        while peer.try_request().is_ok() {
            if go.lock().unwrap().recv().is_err() || peer.try_send(OK).is_err() {
                return;
            }
        }
    });
    (origin, let_go)
}

fn refuses_connections(proxy: &Proxy) -> bool {
    std::net::TcpStream::connect(proxy.address()).is_err()
}

/// A client whose request the origin has.
fn in_flight(proxy: &Proxy, origin: &Origin) -> Client {
    let before = origin.requests().len();
    let mut client = proxy.client();
    client.send(GET);
    eventually("the origin has it", || origin.requests().len() > before);
    client
}

#[test]
fn termination_finishes_what_is_running() {
    for signal in [Signal::TERM, Signal::QUIT] {
        let (origin, let_go) = waiting();
        let mut proxy = Proxy::before(&origin);
        let mut client = in_flight(&proxy, &origin);
        proxy.signal(signal);
        eventually("the listeners are closed", || refuses_connections(&proxy));
        assert!(proxy.is_running(), "it waits for the request");
        let_go.send(()).unwrap();
        let answer = client.answer();
        assert_eq!(answer.text(), "ok");
        assert!(answer.connection("close"), "{answer:?}");
        client.assert_closed();
        assert_eq!(proxy.exit().code(), Some(0));
    }
}

#[test]
fn idle_connections_do_not_hold_it_up() {
    let origin = Origin::answering(OK);
    let mut proxy = Proxy::before(&origin);
    let mut fresh = proxy.client();
    let mut kept = proxy.client();
    assert_eq!(kept.get("/").status(), 200);
    let mut parked = proxy.client();
    assert_eq!(parked.get("/").status(), 200);
    crate::support::pause(800);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit().code(), Some(0));
    for client in [&mut fresh, &mut kept, &mut parked] {
        client.assert_ended();
    }
}

#[test]
fn a_download_is_finished() {
    let (let_go, go) = std::sync::mpsc::channel();
    let go = std::sync::Mutex::new(go);
    let origin = Origin::start(move |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        go.lock().unwrap().recv().unwrap();
        peer.send("world");
    });
    let mut proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(GET);
    let mut answer = client.answer_head();
    proxy.signal(Signal::TERM);
    eventually("the listeners are closed", || refuses_connections(&proxy));
    let_go.send(()).unwrap();
    client.try_body(&mut answer).expect("the whole body");
    assert_eq!(answer.text(), "helloworld");
    client.assert_closed();
    assert_eq!(proxy.exit().code(), Some(0));
}

/// While others learn that it ends, it goes on accepting, and says close.
#[test]
fn a_delay_comes_first() {
    let origin = Origin::answering(OK);
    let mut proxy =
        Setup::new(&origin).section("shutdown: {drain_delay: 1500ms, drain_timeout: 30s}").start();
    let mut kept = proxy.client();
    assert_eq!(kept.get("/").status(), 200);
    assert_eq!(proxy.admin("/ready").status(), 200);
    proxy.signal(Signal::TERM);
    eventually("it says that it drains", || proxy.admin("/ready").status() == 503);
    assert_eq!(proxy.admin("/healthz").status(), 200, "it is alive");
    let mut late = proxy.client();
    for client in [&mut late, &mut kept] {
        let answer = client.get("/");
        assert_eq!(answer.status(), 200);
        assert!(answer.connection("close"), "{answer:?}");
        client.assert_closed();
    }
    eventually("then the listeners are closed", || refuses_connections(&proxy));
    assert_eq!(proxy.exit().code(), Some(0));
}

/// Closing a SO_REUSEPORT socket resets what still queues in it; so the queues are emptied first.
/// The proxy is stopped meanwhile, so that there is something in them.
#[test]
fn queued_connections_are_served() {
    let origin = Origin::answering(OK);
    let mut proxy = Proxy::before(&origin);
    proxy.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..100)
        .map(|_| {
            let mut client = Client::connect(proxy.address());
            client.send(GET);
            client
        })
        .collect();
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.answer().text(), "ok");
    }
    assert_eq!(proxy.exit().code(), Some(0));
}

#[test]
fn what_takes_too_long_is_cut_off() {
    let (origin, _let_go) = waiting();
    let mut proxy = Setup::new(&origin).section("shutdown: {drain_timeout: 500ms}").start();
    let mut client = in_flight(&proxy, &origin);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit().code(), Some(0));
    match client.try_answer() {
        Ok(answer) => assert_eq!(answer.status(), 503, "{answer:?}"),
        Err(broken) => assert_eq!(broken.received, b""),
    }
}

/// Ctrl-C: two seconds, whatever is configured.
#[test]
fn an_interrupt_does_not_wait_for_long() {
    let (origin, _let_go) = waiting();
    let mut proxy = Setup::new(&origin).section("shutdown: {drain_timeout: 1h}").start();
    let _client = in_flight(&proxy, &origin);
    proxy.signal(Signal::INT);
    assert_eq!(proxy.exit().code(), Some(0));
}

#[test]
fn an_interrupt_finishes_what_is_quick() {
    let (origin, let_go) = waiting();
    let mut proxy = Proxy::before(&origin);
    let mut client = in_flight(&proxy, &origin);
    proxy.signal(Signal::INT);
    eventually("the listeners are closed", || refuses_connections(&proxy));
    let_go.send(()).unwrap();
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(proxy.exit().code(), Some(0));
}

#[test]
fn a_second_interrupt_stops_at_once() {
    let (origin, _let_go) = waiting();
    let mut proxy =
        Setup::new(&origin).section("shutdown: {drain_delay: 1h, drain_timeout: 1h}").start();
    let mut client = in_flight(&proxy, &origin);
    proxy.signal(Signal::INT);
    eventually("it drains", || proxy.admin("/ready").status() == 503);
    proxy.signal(Signal::INT);
    proxy.exit();
    assert!(client.try_answer().is_err());
}

/// SIGTERM has no such shortcut.
#[test]
fn a_second_termination_changes_nothing() {
    let (origin, let_go) = waiting();
    let mut proxy = Proxy::before(&origin);
    let mut client = in_flight(&proxy, &origin);
    proxy.signal(Signal::TERM);
    eventually("the listeners are closed", || refuses_connections(&proxy));
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::QUIT);
    crate::support::pause(200);
    let_go.send(()).unwrap();
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(proxy.exit().code(), Some(0));
}

/// A tunnel has no end of its own: it is cut when time is up.
#[test]
fn a_tunnel_is_cut_off() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
        let _ = peer.rest();
    });
    let mut proxy = Setup::new(&origin).section("shutdown: {drain_timeout: 500ms}").start();
    let mut client = proxy.client();
    let answer =
        client.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(answer.status(), 101);
    proxy.signal(Signal::TERM);
    let (bytes, end) = client.rest();
    assert!(bytes.is_empty(), "{end:?}");
    assert_eq!(proxy.exit().code(), Some(0));
}

/// The access log is written to its end.
#[test]
fn nothing_of_the_log_is_lost() {
    let origin = Origin::answering(OK);
    let mut proxy = Setup::new(&origin).listener("access_log: {path: '{dir}/access'}").start();
    let mut client = proxy.client();
    for _ in 0..100 {
        client.get("/");
    }
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit().code(), Some(0));
    let log = std::fs::read_to_string(proxy.path("access")).unwrap();
    assert_eq!(log.lines().count(), 100);
}

/// Whatever is cut off when time is up has its line, and its client can tell: a reset, never an
/// end that could be taken for one.
#[test]
fn what_is_cut_off_is_logged_and_reset() {
    let origin = Origin::start(|peer| {
        let target = peer.request_head().target().to_owned();
        peer.send(match target.as_str() {
            "/tunnel" => {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhalf"
            }
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf",
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "/until-close" => "HTTP/1.1 200 OK\r\n\r\nhalf",
            _ => "",
        });
        let _ = peer.rest();
    });
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let post =
        |path: &str, framing: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
    let cases = [
        ("/quiet", 503, get("/quiet")),
        ("/length", 200, get("/length")),
        ("/chunked", 200, get("/chunked")),
        ("/until-close", 200, get("/until-close")),
        ("/upload", 503, post("/upload", "Content-Length: 9")),
        ("/chunks", 503, post("/chunks", "Transfer-Encoding: chunked")),
        (
            "/tunnel",
            101,
            "GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n".into(),
        ),
    ];
    let mut proxy = Setup::new(&origin)
        .section("shutdown: {drain_timeout: 500ms}")
        .listener("access_log: {path: '{dir}/access'}")
        .start();
    let mut clients: Vec<_> = cases
        .iter()
        .map(|(path, status, request)| {
            let mut client = proxy.client();
            client.send(request);
            if *status < 300 {
                client.read_until("half");
            }
            eventually("the origin has it", || {
                origin.received().windows(path.len()).any(|it| it == path.as_bytes())
            });
            (path, client)
        })
        .collect();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit().code(), Some(0));
    for (path, client) in &mut clients {
        let (_, end) = client.rest();
        assert_eq!(end, End::Reset, "{path}");
    }
    let log = std::fs::read_to_string(proxy.path("access")).unwrap();
    assert_eq!(log.lines().count(), cases.len(), "{log}");
    for (path, status, _) in cases {
        let mut lines = log.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let line: serde_json::Value =
            lines.find(|line: &serde_json::Value| line["url.original"] == path).expect(path);
        assert_eq!(line["http.response.status_code"], status, "{line}");
        assert_eq!(line["outrigger.reason"], "drain-timeout", "{line}");
    }
}

/// Where standard error of a process goes that has little to say.
enum Stderr {
    File,
    /// Every write fails.
    Full,
    /// Every write would block for ever.
    Unread,
}

/// With so many descriptors, two shards cannot start.
const FILES_TOO_FEW: u32 = 20;

/// A shard that panics takes the process with it, whether or not anybody hears why: it never
/// serves half-dead. Where descriptors run out while the shards start, some of them panic; with
/// less the process says that it cannot start, with more it serves.
#[test]
fn a_panic_ends_the_process() {
    for stderr in [Stderr::File, Stderr::Full, Stderr::Unread] {
        // Where a limit strikes is a race between the threads.
        let met = (0..10).any(|_| (13..31).any(|files| panics_with(files, &stderr)));
        assert!(met, "no shard ran out of descriptors at the right moment");
    }
}

/// Starts a proxy that may open so many descriptors; tells whether a shard panicked.
#[track_caller]
fn panics_with(files: u32, stderr: &Stderr) -> bool {
    let origin = SocketAddr::from(([127, 0, 0, 1], 9));
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("config"), Setup::at(&[origin]).yaml()).unwrap();
    let (unread, full_pipe) = std::io::pipe().unwrap();
    let output: Stdio = match stderr {
        Stderr::File => std::fs::File::create(path("stderr")).unwrap().into(),
        Stderr::Full => std::fs::File::create("/dev/full").unwrap().into(),
        Stderr::Unread => {
            let room = rustix::pipe::fcntl_getpipe_size(&full_pipe).unwrap();
            (&full_pipe).write_all(&vec![b'.'; room]).unwrap();
            full_pipe.into()
        }
    };
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\""), OUTRIGGER])
        .args(["run", "-c"])
        .arg(path("config"))
        .stdout(Stdio::null())
        .stderr(output)
        .spawn()
        .unwrap();
    let heard = || std::fs::read_to_string(path("stderr")).unwrap_or_default();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        // One that goes on has started; but it must not have panicked, nor have so few.
        let must_end = files <= FILES_TOO_FEW || heard().contains("panicked");
        let patience = if must_end { PATIENCE } else { Duration::from_secs(2) };
        if begun.elapsed() > patience {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        crate::support::pause(5);
    };
    drop(unread);
    let heard = heard();
    match status.map(|status| status.code()) {
        None => {
            let may_live = files > FILES_TOO_FEW && !heard.contains("panicked");
            assert!(may_live, "it lives on with {files} descriptors: {heard}");
            false
        }
        Some(Some(75)) => false,
        Some(code) => {
            assert_eq!(code, Some(70), "with {files} descriptors: {heard}");
            match stderr {
                Stderr::File => heard.contains("thread shard-"),
                _ => true,
            }
        }
    }
}

/// A client that has just connected may be about to send.
#[test]
fn a_new_connection_has_its_grace() {
    let origin = Origin::answering(OK);
    let mut proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    eventually("it is accepted", || proxy.metric("outrigger_connections_open", &[]) == 1.0);
    proxy.signal(Signal::TERM);
    pause(700);
    assert_eq!(client.get("/").status(), 200);
    assert!(proxy.exit().success());
}
