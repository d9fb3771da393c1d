//! `Expect: 100-continue`, and other interim answers.

use crate::support::{End, Origin, Proxy};

const HEAD: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[test]
fn continue_comes_from_the_origin() {
    let origin = Origin::start(|peer| {
        let mut request = peer.request_head();
        assert_eq!(request.get("expect"), Some("100-continue"));
        peer.send("HTTP/1.1 100 Continue\r\n\r\n");
        peer.try_body(&mut request).expect("a body");
        peer.answer(&String::from_utf8(request.body).unwrap());
        peer.request();
        peer.answer("behind");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(HEAD);
    assert_eq!(client.answer().status(), 100);
    client.send("hello");
    assert_eq!(client.answer().text(), "hello");
    assert_eq!(client.get("/").text(), "behind");
}

#[test]
fn a_client_need_not_wait_for_it() {
    let origin = Origin::start(|peer| {
        let request = peer.request();
        peer.send("HTTP/1.1 100 Continue\r\n\r\n");
        peer.answer(&String::from_utf8(request.body).unwrap());
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(format!("{HEAD}hello"));
    assert_eq!(client.answer().status(), 100);
    assert_eq!(client.answer().text(), "hello");
}

#[test]
fn an_origin_may_refuse_instead() {
    let origin = Origin::start(|peer| {
        peer.request_head();
        peer.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno");
        let (bytes, _) = peer.rest();
        assert_eq!(bytes, b"", "the body was never asked for");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(HEAD);
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text()), (417, "no"));
    // Nobody knows whether the body still comes: the connection ends (RFC 9110, 10.1.1).
    client.assert_closed();
}

#[test]
fn an_old_client_waits_for_nothing() {
    let origin = Origin::start(|peer| {
        let request = peer.request();
        assert!(!request.has("expect"), "RFC 9110, 10.1.1: {request:?}");
        peer.send("HTTP/1.1 100 Continue\r\n\r\n");
        peer.answer("done");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(HEAD.replace("HTTP/1.1", "HTTP/1.0") + "hello");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text()), (200, "done"));
}

#[test]
fn early_hints_pass_before_the_answer() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
        crate::support::pause(50);
        peer.send("HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\nConnection: x\r\nX: y\r\n\r\n");
        peer.answer("page");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let first = client.get("/");
    assert_eq!((first.status(), first.get("link")), (103, Some("</a.css>")));
    let second = client.answer();
    assert_eq!((second.status(), second.get("link")), (103, Some("</b.css>")));
    assert!(!second.has("x"), "named by Connection: {second:?}");
    assert_eq!(client.answer().text(), "page");
}

/// RFC 9110, 15.2.
#[test]
fn an_old_client_never_sees_them() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
        crate::support::pause(50);
        peer.answer("page");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let answer = client.ask("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((answer.status(), answer.text()), (200, "page"));
    client.assert_closed();
}

#[test]
fn endless_interim_answers_are_a_bad_answer() {
    let origin = Origin::start(|peer| {
        peer.request();
        while peer.try_send("HTTP/1.1 102 Processing\r\n\r\n").is_ok() {}
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(crate::support::GET);
    let mut interim = 0;
    let last = loop {
        match client.try_answer() {
            Ok(answer) if answer.status() == 102 => interim += 1,
            Ok(answer) => break Some(answer.status()),
            Err(_) => break None,
        }
    };
    assert!(interim < 1000, "{interim} interim answers were passed on");
    assert_eq!(last, Some(502));
}

#[test]
fn interim_answers_are_not_all() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 100);
    assert_eq!(client.answer().status(), 502);
}

/// An early final answer ends the upload: it is relayed, and both connections are closed.
#[test]
fn an_early_refusal_stops_the_upload() {
    for status in ["413 Content Too Large", "401 Unauthorized", "500 Internal Server Error"] {
        for framing in ["Content-Length: 100000000", "Transfer-Encoding: chunked"] {
            let origin = Origin::start(move |peer| {
                peer.request_head();
                peer.send(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno"));
                let (body, _) = peer.rest(); // Until the proxy closes.
                assert!(body.len() < 50_000_000, "the upload went on: {}", body.len());
            });
            let proxy = Proxy::before(&origin);
            let mut client = proxy.client();
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n4\r\nabcd\r\n"));
            let answer = client.answer();
            assert_eq!(
                (answer.start.as_str(), answer.text()),
                (&*format!("HTTP/1.1 {status}"), "no")
            );
            assert!(answer.connection("close"), "RFC 9112, 9.6: {answer:?}");
            let (rest, end) = client.rest();
            assert_eq!((rest.as_slice(), end), (&b""[..], End::Closed), "{framing}");
            crate::support::eventually("the origin's connection is closed", || origin.ended() == 1);
        }
    }
}

/// The same while the client is still sending: it must get the answer, not a reset.
#[test]
fn an_early_refusal_reaches_a_client_that_sends_on() {
    let origin = Origin::start(|peer| {
        peer.request_head();
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
        peer.rest();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    for _ in 0..20 {
        client.send([b'x'; 10_000]);
        crate::support::pause(5);
    }
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text()), (413, "no"));
}

/// An answer that is no refusal may come while the request is still under way.
#[test]
fn an_early_success_lets_the_upload_go_on() {
    let origin = Origin::start(|peer| {
        let mut request = peer.request_head();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
        peer.try_body(&mut request).expect("a body");
        assert_eq!(request.body, b"hello");
        peer.send("3\r\ntwo\r\n0\r\n\r\n");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel");
    let mut answer = client.answer_head();
    assert_eq!(answer.status(), 200);
    assert_eq!(client.read_until("one\r\n"), b"3\r\none\r\n");
    client.send("lo");
    client.try_body(&mut answer).expect("the rest of the answer");
    assert_eq!(answer.text(), "two");
}
