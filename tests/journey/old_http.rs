//! HTTP/1.0 on either side: no transfer codings, and the end of the connection may end the body.

use crate::support::{End, OK, Origin, Proxy};

#[test]
fn an_old_client_gets_one_answer() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let answer = client.ask("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(answer.text(), "ok");
    assert!(answer.connection("close"));
    client.assert_closed();
}

#[test]
fn an_old_client_may_ask_for_more() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..3 {
        let answer = client.ask("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(answer.text(), "ok");
        assert!(answer.connection("keep-alive"), "{answer:?}");
    }
    assert_eq!(client.ask("GET / HTTP/1.0\r\n\r\n").text(), "ok");
    client.assert_closed();
}

#[test]
fn an_old_client_gets_no_chunks() {
    for keep in ["", "Connection: keep-alive\r\n"] {
        let origin = Origin::answering(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        );
        let proxy = Proxy::before(&origin);
        let mut client = proxy.client();
        let answer = client.ask(format!("GET / HTTP/1.0\r\n{keep}\r\n"));
        assert!(!answer.has("transfer-encoding"), "{answer:?}");
        assert!(answer.connection("close"), "only its end ends the body: {answer:?}");
        assert_eq!(answer.text(), "hello");
    }
}

#[test]
fn an_old_upload_has_a_length() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    assert_eq!(proxy.ask("POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello").status(), 200);
    let request = origin.request();
    assert_eq!(request.body, b"hello");
    assert_eq!(request.get("content-length"), Some("5"));
}

#[test]
fn an_old_origin_ends_its_body_by_closing() {
    for version in ["HTTP/1.0", "HTTP/1.1"] {
        let origin = Origin::closing_after(format!("{version} 200 OK\r\nX: y\r\n\r\nhello"));
        let proxy = Proxy::before(&origin);
        let mut client = proxy.client();
        for _ in 0..2 {
            let answer = client.get("/");
            assert_eq!(answer.get("transfer-encoding"), Some("chunked"));
            assert_eq!((answer.text(), answer.get("x")), ("hello", Some("y")));
        }
        assert_eq!(origin.connections(), 2);
        let old = client.ask("GET / HTTP/1.0\r\n\r\n");
        assert!(!old.has("transfer-encoding"));
        assert_eq!(old.text(), "hello");
    }
}

#[test]
fn an_old_origin_is_kept_only_if_it_says_so() {
    let origin = Origin::answering("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "ok");
    }
    assert_eq!(origin.connections(), 3);

    let origin = Origin::answering(
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok",
    );
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..3 {
        let answer = client.get("/");
        assert_eq!(answer.text(), "ok");
        assert!(!answer.has("connection"), "its connection is not ours: {answer:?}");
    }
    assert_eq!(origin.connections(), 1);
}

/// RFC 9112, 6.1: never a transfer coding to a server that is not known to speak HTTP/1.1.
#[test]
fn an_old_origin_gets_no_chunks() {
    let origin = Origin::answering("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    assert_eq!(client.get("/").text(), "ok");
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    let status = client.answer().status();
    for request in origin.requests() {
        assert!(!request.has("transfer-encoding"), "{request:?}");
    }
    let delivered = origin.requests().iter().any(|request| request.body == b"hello");
    assert!(status == 411 || status == 200 && delivered, "{status}");
}

/// To an old client a reset is the only way to say that a body is not whole.
#[test]
fn an_old_client_learns_that_a_body_is_not_whole() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        crate::support::pause(50);
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let answer = client.answer_head();
    assert!(!answer.has("content-length"));
    assert_eq!(client.rest().1, End::Reset);
}
