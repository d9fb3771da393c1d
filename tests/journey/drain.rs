//! The orderly end, and the other ones: signals and exit codes.

use std::sync::mpsc::Sender;

use rustix::process::Signal;

use crate::support::{Client, GET, OK, Origin, Proxy, Setup, eventually};

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
