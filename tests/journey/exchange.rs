//! Plain exchanges: keep-alive, pipelining, methods and statuses without bodies, target forms.

use crate::support::{Client, GET, OK, Origin, Peer, Proxy, Setup, patterned};

#[test]
fn a_connection_carries_many_requests() {
    let origin = Origin::echoing();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for path in ["/one", "/two", "/three"] {
        let answer = client.get(path);
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.text(), format!("GET {path} HTTP/1.1"));
        assert!(!answer.has("connection"), "nothing need be said: {answer:?}");
        assert!(answer.has("date"), "RFC 9110, 6.6.1: {answer:?}");
    }
    assert_eq!(origin.connections(), 1, "the origin's connection is kept, too");
}

#[test]
fn a_client_that_says_close_is_closed() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let answer = client.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status(), 200);
    assert!(answer.connection("close"));
    client.assert_closed();
    assert!(!origin.request().connection("close"), "its close is not the origin's");
}

#[test]
fn a_client_may_half_close_behind_its_request() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(GET);
    client.shutdown_write();
    // If it takes long, an end is taken for a client that has left, as nginx and Envoy do.
    assert_eq!(client.answer().text(), "ok");
    client.assert_closed();
}

/// The same with an answer that takes a while, though less than the time after which clients are
/// watched, and with the end in the segment of the request. Once in many times is enough: a slow
/// machine may take too long.
#[test]
fn a_client_that_has_half_closed_may_wait_for_a_while() {
    for one_segment in [false, true] {
        let origin = Origin::start(|peer| {
            while peer.try_request().is_ok() {
                crate::support::pause(10);
                if peer.try_send(OK).is_err() {
                    return;
                }
            }
        });
        let proxy = Proxy::before(&origin);
        let answered = (0..10).any(|_| {
            let mut client = proxy.client();
            if one_segment {
                client.send_and_end(GET);
            } else {
                client.send(GET);
                client.shutdown_write();
            }
            client.try_answer().is_ok_and(|answer| answer.text() == "ok")
        });
        assert!(answered, "in one segment: {one_segment}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::echoing();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let mut requests = String::new();
    for number in 0..50 {
        requests += &match number % 3 {
            0 => format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!("PUT /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nGET"),
            _ => format!(
                "POST /{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n0\r\n\r\n"
            ),
        };
    }
    client.send(&requests);
    for number in 0..50 {
        let answer = client.answer();
        assert!(answer.text().contains(&format!(" /{number} ")), "{number}: {}", answer.text());
    }
    assert_eq!(origin.requests()[1].body, b"GET");
    assert_eq!(origin.requests()[2].body, b"abc");
}

#[test]
fn a_pipelined_request_waits_for_a_slow_answer_before_it() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            if request.target() == "/slow" {
                crate::support::pause(300); // Longer than the time after which clients are watched.
            }
            peer.answer(request.target());
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    crate::support::pause(150);
    client.send("GET /fast HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().text(), "/slow");
    assert_eq!(client.answer().text(), "/fast");
}

#[test]
fn a_request_may_come_in_any_pieces() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send_slowly(
        "POST /a?b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n\
         3;x=\"y\"\r\nabc\r\n2\r\nde\r\n0\r\nSum: 1\r\n\r\n",
    );
    assert_eq!(client.answer().text(), "ok");
    let request = origin.request();
    assert_eq!(
        (request.start.as_str(), request.body.as_slice()),
        ("POST /a?b HTTP/1.1", &b"abcde"[..])
    );
    assert_eq!(request.trailers, [("Sum".into(), "1".into())]);
}

/// Each byte of these could be the last of a head.
#[test]
fn heads_may_trickle_in_behind_each_other() {
    let origin = Origin::echoing();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let head = |number| format!("GET /{number} HTTP/1.1\r\nHost: a\r\nX: {number}\r\n\r\n");
    client.send_slowly(head(1));
    assert!(client.answer().text().contains("/1"));
    // A whole one and the beginning of the next, cut at each place in turn.
    for cut in 1..head(3).len() {
        let (begin, end) = (&head(3)[..cut], &head(3)[cut..]);
        client.send(head(2) + begin);
        assert!(client.answer().text().contains("/2"), "cut at {cut}");
        client.send(end);
        assert!(client.answer().text().contains("/3"), "cut at {cut}");
    }
}

#[test]
fn an_answer_may_come_in_any_pieces() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send_slowly(
            "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n\
             3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nSum: 1\r\n\r\n",
        );
        peer.request();
        peer.send_slowly("HTTP/1.1 200 Fine\r\nContent-Length: 5\r\n\r\nabcde");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let answer = client.get("/");
    assert_eq!((answer.start.as_str(), answer.text()), ("HTTP/1.1 200 Fine", "abcde"));
    assert_eq!(answer.trailers, [("Sum".into(), "1".into())]);
    assert_eq!(answer.get("x"), Some("y"));
    assert_eq!(client.get("/").text(), "abcde");
}

#[test]
fn empty_lines_before_a_request_are_forgiven() {
    let origin = Origin::echoing();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.answer().text().contains("/1"));
    // Old browsers send them behind the body of a POST.
    client.send("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx\r\n");
    assert!(client.answer().text().contains("/2"));
    assert!(client.get("/3").text().contains("/3"));
}

#[test]
fn bodies_of_every_size_arrive_whole() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            let length = request.body.len();
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            peer.send(&request.body);
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for size in [0, 1, 100, 4_000, 16_383, 65_535, 65_536, 65_537, 200_000, 3_000_000] {
        let body = patterned(0, size);
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
        std::thread::scope(|scope| {
            let mut request = head.into_bytes();
            request.extend_from_slice(&body);
            let (sent, answer) = std::sync::mpsc::channel();
            scope.spawn(move || sent.send(request));
            client.send(answer.recv().unwrap());
        });
        assert!(client.answer().body == body, "{size} bytes come back");
    }
}

/// RFC 9110, 9.3.2: what a GET would bring, without the body.
#[test]
fn head_has_a_length_and_no_body() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\n\r\n");
        peer.request();
        peer.answer("behind");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(client.ask(head).get("content-length"), Some("10"));
    let chunked = client.ask(head);
    assert!(!chunked.has("content-length"), "{chunked:?}");
    assert!(!client.ask(head).has("content-length"));
    assert_eq!(client.get("/").text(), "behind", "the connection goes on");
    assert_eq!(origin.connections(), 1);
}

#[test]
fn answers_without_bodies_end_with_their_heads() {
    let answers = [
        ("204 No Content", ""),
        ("304 Not Modified", ""),
        ("304 Not Modified", "Content-Length: 10\r\n"),
        ("304 Not Modified", "Transfer-Encoding: chunked\r\n"),
    ];
    for (line, fields) in answers {
        let head = format!("HTTP/1.1 {line}\r\nETag: \"x\"\r\n{fields}\r\n");
        let origin = Origin::answering(head);
        let proxy = Proxy::before(&origin);
        let mut client = proxy.client();
        for _ in 0..2 {
            let answer = client.get("/");
            assert_eq!(answer.start, format!("HTTP/1.1 {line}"));
            assert_eq!(answer.get("etag"), Some("\"x\""));
            let stated = fields.contains("10").then_some("10");
            assert_eq!(answer.get("content-length"), stated, "{line} {fields}");
        }
    }
}

/// An answer's 204 never has a length (RFC 9110, 8.6), whatever the origin says.
#[test]
fn no_content_has_no_length() {
    let origin = Origin::answering("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..2 {
        assert!(!client.get("/").has("content-length"));
    }
}

#[test]
fn every_method_passes() {
    let origin = Origin::echoing();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get"] {
        let answer = client.ask(format!("{method} /x HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.text(), format!("{method} /x HTTP/1.1"));
    }
}

#[test]
fn connect_is_refused() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let answer = proxy.ask("CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n");
    assert_eq!(answer.status(), 405);
    assert!(answer.has("allow"), "RFC 9110, 15.5.6: {answer:?}");
    assert!(origin.received().is_empty());
}

/// RFC 9112, 3.2.2: the target's authority replaces the Host that was received.
#[test]
fn absolute_form_goes_upstream_as_origin_form() {
    let cases = [
        ("GET http://other.example/x?y HTTP/1.1", "GET /x?y HTTP/1.1", "other.example"),
        ("GET HTTP://other.example:81 HTTP/1.1", "GET / HTTP/1.1", "other.example:81"),
        ("GET https://other.example?q HTTP/1.1", "GET /?q HTTP/1.1", "other.example"),
        ("OPTIONS http://other.example HTTP/1.1", "OPTIONS * HTTP/1.1", "other.example"),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1", "received.example"),
    ];
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for (sent, expected, host) in cases {
        let answer = client.ask(format!("{sent}\r\nHost: received.example\r\n\r\n"));
        assert_eq!(answer.status(), 200, "{sent}");
        let request = origin.last_request();
        assert_eq!(request.start, expected);
        assert_eq!(request.get("host"), Some(host), "{sent}");
    }
}

/// RFC 9110, 7.6.2.
#[test]
fn max_forwards_counts_down() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let mut ask = |method: &str, value: &str| {
        client.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {value}\r\n\r\n"))
    };
    assert_eq!(ask("OPTIONS", "0").status(), 200);
    assert_eq!(ask("TRACE", "0").status() / 100, 4, "a TRACE is not reflected");
    assert!(origin.received().is_empty(), "we were the last recipient");
    for (method, sent, seen) in
        [("OPTIONS", "5", "4"), ("TRACE", "1", "0"), ("GET", "0", "0"), ("GET", "7", "7")]
    {
        assert_eq!(ask(method, sent).status(), 200);
        assert_eq!(origin.last_request().get("max-forwards"), Some(seen), "{method} {sent}");
    }
}

#[test]
fn an_interrupted_client_does_not_hurt_others() {
    let origin = Origin::start(|peer: &mut Peer| {
        while peer.try_request().is_ok() {
            crate::support::pause(50);
            if peer.try_send(OK).is_err() {
                return;
            }
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    for _ in 0..20 {
        let mut client = Client::connect(proxy.address());
        client.send(GET);
        client.into_wire().reset();
    }
    assert_eq!(proxy.get("/").text(), "ok");
}
