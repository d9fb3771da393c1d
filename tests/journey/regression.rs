//! One test for each mended fault, with its story.

use crate::support::{End, GET, OK, Origin, Proxy, Setup, eventually, pause};

/// Once a pipeline had filled a large buffer to its last byte, a head that began in there was
/// refused with 431, although most of the buffer had been dealt with.
#[test]
fn a_deep_pipeline_is_not_a_large_head() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "p".repeat(500));
    let pipeline = request.repeat(1_500);
    let mut sent = 0;
    let mut answers = 0;
    while answers < 1_500 {
        sent += client.send_some(&pipeline.as_bytes()[sent..]);
        let head = client.read_until("\r\n\r\n");
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        assert_eq!(client.read(2), b"ok");
        answers += 1;
    }
}

/// An answer that was complete before the upload ended the exchange: the origin got a part of the
/// body, and the client's next request went unanswered.
#[test]
fn an_early_complete_success_does_not_cut_the_upload() {
    let origin = Origin::start(|peer| {
        let mut request = peer.request_head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        peer.try_body(&mut request).expect("the whole body");
        assert_eq!(request.body, b"hello");
        peer.request();
        peer.answer("next");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe");
    assert_eq!(client.answer().text(), "ok");
    pause(100);
    client.send("llo");
    assert_eq!(client.get("/").text(), "next");
}

/// The origin's time was counted from the first byte of the head, so a slow client got a 504.
#[test]
fn the_answers_time_begins_with_the_whole_request() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).route("timeouts: {answer: 400ms}").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\n");
    pause(800);
    client.send("Host: a\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
}

/// A request without a host went upstream with an empty one, which real servers refuse.
#[test]
fn an_old_client_without_a_host_gets_one() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    assert_eq!(client.ask("GET / HTTP/1.0\r\n\r\n").status(), 200);
    let host = origin.address().to_string();
    assert_eq!(origin.request().get("host"), Some(&*host));
}

/// Bytes that a hasty client sends behind a CONNECT may be somebody else's: they were served.
#[test]
fn nothing_is_served_behind_a_connect() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(format!("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n{GET}"));
    let answer = client.answer_to("CONNECT");
    assert_eq!(answer.status(), 405);
    assert!(answer.connection("close"));
    client.assert_ended();
    assert!(origin.requests().is_empty());
}

/// A cut drain ended a body that only the connection delimits as if it were whole.
#[test]
fn a_cut_drain_resets_what_is_not_whole() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n\r\nhalf");
        pause(5_000);
    });
    let mut proxy = Setup::new(&origin).section("shutdown: {drain_timeout: 300ms}").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    client.read_until("half");
    proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(proxy.exit().code(), Some(0));
    let (rest, end) = client.rest();
    assert!(rest.is_empty() && end == End::Reset, "{end:?}");
}

/// The bytes of an upload that came to nothing were counted nowhere.
#[test]
fn an_upload_that_fails_is_counted() {
    const SENT: usize = 100_000;
    let origin = Origin::start(|peer| {
        peer.request_head();
        let _ = peer.rest();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    client.send(vec![b'x'; SENT]);
    client.shutdown_write();
    client.rest();
    eventually("it is counted", || {
        proxy.metric("outrigger_received_bytes_total", &[]) >= SENT as f64
    });
}
