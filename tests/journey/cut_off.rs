//! Answers that end too early: the client must not take a part for the whole.

use crate::support::{End, GET, OK, Origin, Proxy, Setup};

/// Sends these bytes, and closes or resets.
fn cutting(bytes: &'static str, end: End) -> Origin {
    Origin::start(move |peer| {
        if peer.try_request().is_err() {
            return;
        }
        peer.send(bytes);
        crate::support::pause(50);
        if end == End::Reset {
            peer.reset();
        }
    })
}

#[test]
fn a_truncated_body_never_looks_complete() {
    let cases = [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n",
    ];
    for bytes in cases {
        for end in [End::Closed, End::Reset] {
            let origin = cutting(bytes, end);
            let proxy = Setup::new(&origin).one_shard().start();
            let mut client = proxy.client();
            client.send(GET);
            match client.try_answer() {
                Ok(answer) => assert_eq!(answer.status(), 502, "{bytes:?}: {answer:?}"),
                Err(broken) => assert!(broken.received.len() < 10, "{bytes:?}: {broken:?}"),
            }
            crate::support::eventually("it is counted", || {
                proxy.refusals("answer-truncated") == 1.0
            });
        }
    }
}

/// A body that ends with its connection is whole if that ends in order, and only then.
#[test]
fn a_reset_never_looks_like_an_end() {
    let origin = cutting("HTTP/1.1 200 OK\r\n\r\nhello", End::Reset);
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    client.send(GET);
    match client.try_answer() {
        Ok(answer) => panic!("it looks complete: {answer:?}"),
        Err(broken) => assert!(!broken.received.ends_with(b"0\r\n\r\n"), "{broken:?}"),
    }
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert!(client.try_answer().is_err(), "an old client, too");
}

#[test]
fn no_answer_at_all_is_a_502() {
    for end in [End::Closed, End::Reset] {
        for sent in ["", "HTTP/1.1 200 OK\r\nContent-Le"] {
            let origin = cutting(sent, end);
            let proxy = Setup::new(&origin).one_shard().listener("reason_header: true").start();
            let answer = proxy.ask(GET);
            assert_eq!(answer.status(), 502, "{end:?} {sent:?}");
            assert_eq!(answer.get("x-outrigger-reason"), Some("upstream-reset"));
        }
    }
}

/// An upload whose origin closes in the middle.
#[test]
fn an_origin_that_leaves_an_upload_is_a_502() {
    for end in [End::Closed, End::Reset] {
        let origin = Origin::start(move |peer| {
            peer.request_head();
            peer.read(1000);
            if end == End::Reset {
                peer.reset();
            }
        });
        let proxy = Setup::new(&origin).one_shard().listener("reason_header: true").start();
        let mut client = proxy.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
        for _ in 0..50 {
            if client.try_send([b'x'; 10_000]).is_err() {
                break;
            }
            crate::support::pause(2);
        }
        let answer = client.answer();
        assert_eq!(answer.status(), 502, "{end:?}");
        assert_eq!(answer.get("x-outrigger-reason"), Some("upstream-reset"));
        assert!(answer.connection("close"), "the upload is not read to its end: {answer:?}");
    }
}

/// An origin may answer and close without reading everything; the answer counts.
#[test]
fn an_answer_before_a_close_is_an_answer() {
    let origin = Origin::start(|peer| {
        peer.request_head();
        peer.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text()), (403, "no"));
}

#[test]
fn a_client_that_leaves_ends_its_exchange() {
    let origin = Origin::start(|peer| {
        peer.request();
        let (bytes, _) = peer.rest(); // The end comes from the proxy.
        assert_eq!(bytes, b"");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(GET);
    crate::support::eventually("the request is there", || origin.requests().len() == 1);
    client.into_wire().reset();
    crate::support::eventually("its exchange is ended", || origin.ended() == 1);
    crate::support::eventually("it is counted", || proxy.refusals("client-gone") == 1.0);
}

#[test]
fn a_client_that_leaves_a_download_ends_it() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while peer.try_send([b'x'; 65_536]).is_ok() {}
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(GET);
    client.read(100_000);
    drop(client);
    crate::support::eventually("the origin is let go", || origin.ended() == 1);
    crate::support::eventually("nothing is open", || {
        proxy.metric("outrigger_connections_open", &[]) == 0.0
            && proxy.metric("outrigger_requests_in_flight", &[]) == 0.0
    });
}

#[test]
fn a_failed_exchange_leaves_the_connection_usable() {
    let origin = Origin::start(|peer| {
        let number = peer.number;
        if peer.try_request().is_ok() && number > 0 {
            peer.send(OK);
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 502);
    assert_eq!(client.get("/").status(), 200);
}
