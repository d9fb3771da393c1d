//! How much a client may send, each limit with a status of its own.

use crate::support::{Client, End, OK, Origin, Setup};

/// Reads the refusal and the end.
#[track_caller]
fn assert_refused(client: &mut Client, status: u16) {
    let answer = client.answer();
    assert_eq!(answer.status(), status);
    assert!(answer.connection("close"), "{answer:?}");
    let (rest, end) = client.rest();
    assert_eq!((rest.as_slice(), end), (&b""[..], End::Closed));
}

#[test]
fn the_target() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("limits: {uri_bytes_max: 300}").start();
    let path = |bytes: usize| format!("/{}", "a".repeat(bytes - 1));
    assert_eq!(proxy.get(&path(300)).status(), 200);
    let mut client = proxy.client();
    client.send(format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", path(301)));
    assert_refused(&mut client, 414);
    let mut client = proxy.client();
    client.send(format!("GET {}", path(5_000))); // And no end of it.
    assert_refused(&mut client, 414);
    assert_eq!(origin.requests().len(), 1);
    crate::support::eventually("it is counted", || proxy.refusals("uri-too-long") == 2.0);
}

#[test]
fn the_default_target() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).start();
    assert_eq!(proxy.get(&format!("/{}", "a".repeat(8_000))).status(), 200);
    let mut client = proxy.client();
    client.send(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(9_000)));
    assert_refused(&mut client, 414);
}

/// A target that comes in pieces and never ends, be they single bytes, is refused before it has
/// grown to twice what is allowed.
#[test]
fn a_target_that_grows() {
    for (uri_bytes_max, piece_bytes) in [(300_usize, 1), (300, 70), (8_192, 1_000)] {
        let origin = Origin::answering(OK);
        let proxy = Setup::new(&origin)
            .listener(&format!("limits: {{uri_bytes_max: {uri_bytes_max}}}"))
            .start();
        let mut client = proxy.client();
        client.send("GET /");
        let piece = "a".repeat(piece_bytes);
        for _ in 0..(2 * uri_bytes_max).div_ceil(piece_bytes) {
            let _ = client.try_send(&piece);
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
        assert_refused(&mut client, 414);
        assert_eq!(proxy.refusals("uri-too-long"), 1.0);
    }
}

#[test]
fn the_heads_bytes() {
    let origin = Origin::answering(OK);
    let proxy =
        Setup::new(&origin).listener("limits: {uri_bytes_max: 300, head_bytes_max: 1000}").start();
    let head = |bytes: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(bytes - frame))
    };
    assert_eq!(proxy.ask(head(1000)).status(), 200);
    for bytes in [1001, 100_000] {
        let mut client = proxy.client();
        client.send(head(bytes));
        assert_refused(&mut client, 431);
    }
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n");
    for _ in 0..1000 {
        if client.try_send("X: y\r\n").is_err() {
            break;
        }
    }
    assert_refused(&mut client, 431);
    assert_eq!(origin.requests().len(), 1);
}

#[test]
fn the_default_heads_bytes() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).start();
    let head =
        |bytes| format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "x".repeat(bytes));
    assert_eq!(proxy.ask(head(59_000)).status(), 200);
    assert_eq!(origin.request().get("cookie").map(str::len), Some(59_000));
    let mut client = proxy.client();
    client.send(head(62_000));
    assert_refused(&mut client, 431);
}

#[test]
fn the_number_of_fields() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("limits: {fields_max: 10}").start();
    let head = |fields: usize| {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(fields - 1))
    };
    assert_eq!(proxy.ask(head(10)).status(), 200);
    let mut client = proxy.client();
    client.send(head(11));
    assert_refused(&mut client, 431);
}

#[test]
fn an_announced_body() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("limits: {body_bytes_max: 1000}").start();
    let body = "x".repeat(1000);
    assert_eq!(proxy.client().post("/", &body).status(), 200);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\nx");
    assert_refused(&mut client, 413);
    let mut client = proxy.client();
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n");
    assert_refused(&mut client, 413);
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(origin.connections(), 1, "the origin never hears of it");
}

#[test]
fn a_chunked_body() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("limits: {body_bytes_max: 1000}").start();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("64\r\n{}\r\n", "x".repeat(100));
    let whole = format!("{head}{}0\r\n\r\n", chunk.repeat(10));
    assert_eq!(proxy.ask(&whole).status(), 200);
    // At once, and in pieces.
    let mut client = proxy.client();
    client.send(format!("{head}{}0\r\n\r\n", chunk.repeat(11)));
    assert_refused(&mut client, 413);
    let mut client = proxy.client();
    client.send(head);
    for _ in 0..11 {
        if client.try_send(&chunk).is_err() {
            break;
        }
        crate::support::pause(5);
    }
    assert_refused(&mut client, 413);
    crate::support::eventually("the origin's connections end", || {
        proxy.metric("outrigger_requests_in_flight", &[]) == 0.0
    });
    assert_eq!(origin.requests().len(), 1, "a part never looks like a whole");
}

#[test]
fn a_route_may_allow_more_or_less() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin)
        .listener("limits: {body_bytes_max: 100}")
        .and_route("match: {prefix: /upload}, cluster: app, body_bytes_max: 1000")
        .and_route("match: {prefix: /small}, cluster: app, body_bytes_max: 10")
        .start();
    let body = "x".repeat(50);
    assert_eq!(proxy.client().post("/", &body).status(), 200);
    assert_eq!(proxy.client().post("/small", &body).status(), 413);
    assert_eq!(proxy.client().post("/upload", &body.repeat(20)).status(), 200);
    assert_eq!(proxy.client().post("/", &body.repeat(20)).status(), 413);
}
