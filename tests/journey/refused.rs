//! What is refused, and never reaches the origin: whatever two parsers could read differently.

use crate::support::wire::show;
use crate::support::{Client, End, GET, Message, OK, Origin, Proxy, Setup};

/// Sends each request on a connection of its own; it must be answered with its status, the
/// connection closed, and the origin left alone.
#[track_caller]
fn assert_refused(proxy: &Proxy, origin: &Origin, cases: &[(&str, u16, Vec<u8>)]) {
    let mut wrong = Vec::new();
    for (what, status, request) in cases {
        let mut client = proxy.client();
        client.send(request);
        // Behind it, what a smuggler would want to be a request.
        let _ = client.try_send("GET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n");
        let seen = outcome(&mut client);
        if seen != format!("{status} close, closed") {
            wrong.push(format!("{what}: {seen}, not {status}; sent {}", show(request)));
        }
        let received = origin.received();
        if !received.is_empty() {
            wrong.push(format!("{what}: the origin got {}", show(&received)));
            break;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(proxy.ask(GET).status(), 200, "and it still serves");
    assert_eq!(origin.requests().len(), 1);
}

fn outcome(client: &mut Client) -> String {
    let answer: Message = match client.try_answer() {
        Ok(answer) => answer,
        Err(broken) => return format!("{:?} without an answer", broken.end),
    };
    let status = answer.status();
    let close = if answer.connection("close") { " close" } else { "" };
    match client.rest() {
        (rest, _) if !rest.is_empty() => format!("{status}{close}, then {}", show(&rest)),
        (_, End::Closed) => format!("{status}{close}, closed"),
        (_, End::Reset) => format!("{status}{close}, reset"),
    }
}

/// A request with these lines behind its first.
fn with(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\n{lines}\r\n\r\n").into_bytes()
}

/// A request with these lines behind its first and its Host.
fn and(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: example.org\r\n{lines}\r\n\r\n").into_bytes()
}

fn line(first: &str) -> Vec<u8> {
    format!("{first}\r\nHost: example.org\r\n\r\n").into_bytes()
}

#[track_caller]
fn refuse(cases: &[(&str, u16, Vec<u8>)]) {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    assert_refused(&proxy, &origin, cases);
}

#[test]
fn lengths_and_codings() {
    let chunks = "0";
    refuse(&[
        (
            "both",
            400,
            and(&format!("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")),
        ),
        ("both, other order", 400, and("Transfer-Encoding: chunked\r\nContent-Length: 3")),
        ("both, odd spelling", 400, and("transfer-encoding: CHUNKED\r\ncontent-length: 3")),
        ("differing lengths", 400, and("Content-Length: 3\r\nContent-Length: 4")),
        ("differing lengths in a list", 400, and("Content-Length: 3, 4")),
        ("a list of one length", 400, and("Content-Length: 3, 3")),
        ("plus", 400, and("Content-Length: +3")),
        ("minus", 400, and("Content-Length: -3")),
        ("hexadecimal", 400, and("Content-Length: 0x3")),
        ("letters", 400, and("Content-Length: 3a")),
        ("empty", 400, and("Content-Length:")),
        ("blanks inside", 400, and("Content-Length: 3 3")),
        ("a comma", 400, and("Content-Length: 3,")),
        ("a fraction", 400, and("Content-Length: 3.0")),
        ("overflow", 400, and("Content-Length: 18446744073709551616")),
        ("great overflow", 400, and("Content-Length: 99999999999999999999999999")),
        ("high bytes", 400, and("Content-Length: \u{661}")),
        ("gzip", 501, and("Transfer-Encoding: gzip")),
        ("gzip, chunked", 501, and("Transfer-Encoding: gzip, chunked")),
        ("gzip and chunked", 501, and("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked")),
        ("identity", 501, and("Transfer-Encoding: identity")),
        ("xchunked", 501, and("Transfer-Encoding: xchunked")),
        ("chunked twice", 400, and("Transfer-Encoding: chunked, chunked")),
        ("two lines", 400, and("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
        ("a parameter", 400, and("Transfer-Encoding: chunked;a=b")),
        ("nothing", 400, and("Transfer-Encoding:")),
        ("quoted", 400, and("Transfer-Encoding: \"chunked\"")),
        ("a vertical tab", 400, and("Transfer-Encoding: \u{b}chunked")),
        (
            "a coding in HTTP/1.0",
            400,
            b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        ),
        (
            "a coding in HTTP/1.0, kept alive",
            400,
            b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
                .to_vec(),
        ),
    ]);
}

#[test]
fn line_ends() {
    refuse(&[
        ("obs-fold, blank", 400, and("X: a\r\n b")),
        ("obs-fold, tab", 400, and("X: a\r\n\tb")),
        ("a folded first field", 400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_vec()),
        ("a bare CR in a value", 400, and("X: a\rb")),
        ("a bare CR at a value's end", 400, and("X: a\r\r\nY: b")),
        ("a bare CR in a name", 400, and("X\rY: a")),
        ("a bare CR in the request line", 400, line("GET /\r HTTP/1.1")),
        ("a bare CR for a line end", 400, b"GET / HTTP/1.1\rHost: a\r\r".to_vec()),
        ("a bare LF behind the request line", 400, b"GET / HTTP/1.1\nHost: a\r\n\r\n".to_vec()),
        ("a bare LF behind a field", 400, b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n".to_vec()),
        ("a bare LF behind an empty field", 400, b"GET / HTTP/1.1\r\nHost: a\r\nX:\n\r\n".to_vec()),
        ("a bare LF behind blanks", 400, b"GET / HTTP/1.1\r\nHost: a\r\nX: y \n\r\n".to_vec()),
        ("a bare LF for the empty line", 400, b"GET / HTTP/1.1\r\nHost: a\r\n\n".to_vec()),
        ("bare LFs all over", 400, b"GET / HTTP/1.1\nHost: a\n\n".to_vec()),
        ("a bare LF before the request", 400, b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        (
            "many empty lines",
            400,
            b"\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        ),
    ]);
}

#[test]
fn names_and_values() {
    refuse(&[
        ("NUL in a value", 400, and("X: a\0b")),
        ("a control byte in a value", 400, and("X: a\u{1}b")),
        ("DEL in a value", 400, and("X: a\u{7f}b")),
        ("ESC in a value", 400, and("X: \u{1b}[31m")),
        ("a blank before the colon", 400, and("X : a")),
        ("a tab before the colon", 400, and("X\t: a")),
        ("a blank before Content-Length's colon", 400, and("Content-Length : 3")),
        ("an empty name", 400, and(": a")),
        ("no colon", 400, and("X")),
        ("a blank in a name", 400, and("X Y: a")),
        ("a bracket in a name", 400, and("X(Y): a")),
        ("NUL in a name", 400, and("X\0: a")),
        ("a high byte in a name", 400, and("X\u{e9}: a")),
        ("a slash in a name", 400, and("X/Y: a")),
        ("a blank before a name", 400, and(" X: a")),
    ]);
}

#[test]
fn hosts() {
    refuse(&[
        ("none", 400, with("X: y")),
        ("nothing in it", 400, with("Host:")),
        ("two", 400, with("Host: a\r\nHost: b")),
        ("the same twice", 400, with("Host: a\r\nhost: a")),
        ("a list", 400, with("Host: a, b")),
        ("a blank", 400, with("Host: a b")),
        ("a slash", 400, with("Host: a/b")),
        ("a user", 400, with("Host: user@a")),
        ("a bad port", 400, with("Host: a:b")),
        ("a great port", 400, with("Host: a:65536")),
        ("two ports", 400, with("Host: a:1:2")),
        ("an open bracket", 400, with("Host: [::1")),
        ("a scheme", 400, with("Host: http://a")),
        ("a question", 400, with("Host: a?b")),
        ("a backslash", 400, with("Host: a\\b")),
        ("escaped", 400, with("Host: a%2fb")),
        ("high bytes", 400, with("Host: \u{e9}.fr")),
        (
            "one beside absolute-form, bad",
            400,
            b"GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n".to_vec(),
        ),
        ("none beside absolute-form", 400, b"GET http://a/ HTTP/1.1\r\n\r\n".to_vec()),
        ("a bad one in HTTP/1.0", 400, b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n".to_vec()),
        ("two in HTTP/1.0", 400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".to_vec()),
    ]);
}

#[test]
fn request_lines() {
    let long = "A".repeat(100);
    refuse(&[
        ("a bracket in the method", 400, line("G(T / HTTP/1.1")),
        ("a colon in the method", 400, line("GET: / HTTP/1.1")),
        ("no method", 400, line(" / HTTP/1.1")),
        ("a long method", 400, line(&format!("{long} / HTTP/1.1"))),
        ("a tab", 400, line("GET\t/ HTTP/1.1")),
        ("two blanks", 400, line("GET  / HTTP/1.1")),
        ("two blanks behind the target", 400, line("GET /  HTTP/1.1")),
        ("a blank in the target", 400, line("GET /a b HTTP/1.1")),
        ("a blank behind the version", 400, line("GET / HTTP/1.1 ")),
        ("no target", 400, line("GET HTTP/1.1")),
        ("no version", 400, b"GET /\r\n\r\n".to_vec()),
        ("a version in small letters", 400, line("GET / http/1.1")),
        ("a version without a point", 400, line("GET / HTTP/11")),
        ("half a version", 400, line("GET / HTTP/1.")),
        ("another protocol", 400, line("GET / SPDY/1.1")),
        ("HTTP/1.2", 505, line("GET / HTTP/1.2")),
        ("HTTP/2.0", 505, line("GET / HTTP/2.0")),
        ("HTTP/0.9", 505, line("GET / HTTP/0.9")),
        ("HTTP/3.0", 505, line("GET / HTTP/3.0")),
        ("a relative target", 400, line("GET index.html HTTP/1.1")),
        ("an asterisk for GET", 400, line("GET * HTTP/1.1")),
        ("an authority for GET", 400, line("GET example.org:80 HTTP/1.1")),
        ("a user in the target", 400, line("GET http://user@a/ HTTP/1.1")),
        ("an empty authority", 400, line("GET http:///x HTTP/1.1")),
        ("another scheme", 400, line("GET ftp://a/ HTTP/1.1")),
        ("NUL in the target", 400, line("GET /\0 HTTP/1.1")),
        ("a control byte in the target", 400, line("GET /\u{1} HTTP/1.1")),
        ("high bytes in the target", 400, line("GET /\u{e9} HTTP/1.1")),
        ("CONNECT to a path", 400, line("CONNECT / HTTP/1.1")),
        ("nonsense", 400, b"\x00\x01\x02\x03\r\n\r\n".to_vec()),
        ("a TLS hello", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh".to_vec()),
    ]);
}

/// RFC 9113, 3.4. Without HTTP/2 it is a version like another that we do not speak.
#[test]
fn the_preface_of_http2() {
    refuse(&[("the preface", 505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec())]);
}

fn chunks(body: &str) -> Vec<u8> {
    and(&format!("Transfer-Encoding: chunked\r\n\r\n{body}"))
        .strip_suffix(b"\r\n\r\n")
        .unwrap()
        .to_vec()
}

fn bad_chunks() -> Vec<(&'static str, String)> {
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(20_000));
    let trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(20_000));
    let cases = [
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("letters", "xyz\r\nhello\r\n0\r\n\r\n"),
        ("plus", "+5\r\nhello\r\n0\r\n\r\n"),
        ("minus", "-5\r\nhello\r\n0\r\n\r\n"),
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a blank first", " 5\r\nhello\r\n0\r\n\r\n"),
        ("an underscore", "1_0\r\nhello\r\n0\r\n\r\n"),
        ("overflow", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("a negative size in 64 bits", "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n"),
        ("a hundred digits", &format!("{:0>100}\r\nhello\r\n0\r\n\r\n", 5)),
        ("a bare LF behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("a bare CR behind the size", "5\rhello\r\n0\r\n\r\n"),
        ("a bare LF behind an extension", "5;x\nhello\r\n0\r\n\r\n"),
        ("a CR in an extension", "5;x\ry\r\nhello\r\n0\r\n\r\n"),
        ("a control byte in an extension", "5;x=\"\u{1}\"\r\nhello\r\n0\r\n\r\n"),
        ("an open quote", "5;x=\"\r\nhello\r\n0\r\n\r\n"),
        ("data too long", "5\r\nhelloo\r\n0\r\n\r\n"),
        ("data too short", "6\r\nhello\r\n0\r\n\r\n"),
        ("a bare LF behind data", "5\r\nhello\n0\r\n\r\n"),
        ("a bare LF behind the last size", "5\r\nhello\r\n0\n\r\n"),
        ("a bare LF at the end", "5\r\nhello\r\n0\r\n\n"),
        ("no colon in a trailer", "0\r\nX\r\n\r\n"),
        ("a blank before a trailer's colon", "0\r\nX : y\r\n\r\n"),
        ("an empty trailer name", "0\r\n: y\r\n\r\n"),
        ("a folded trailer", "0\r\nX: y\r\n z\r\n\r\n"),
        ("NUL in a trailer", "0\r\nX: \0\r\n\r\n"),
        ("a bare LF behind a trailer", "0\r\nX: y\n\r\n"),
        ("a bare CR in a trailer", "0\r\nX: y\rz\r\n\r\n"),
        ("a long extension", &long),
        ("many trailers", &trailers),
    ];
    cases.into_iter().map(|(what, body)| (what, body.to_owned())).collect()
}

/// All of it at hand at once: the origin hears nothing of it.
#[test]
fn bad_chunks_that_come_with_the_head() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut wrong = Vec::new();
    for (what, body) in bad_chunks() {
        let mut client = proxy.client();
        client.send(chunks(&body));
        let seen = outcome(&mut client);
        if seen != "400 close, closed" {
            wrong.push(format!("{what}: {seen}"));
        }
        if !origin.requests().is_empty() {
            wrong.push(format!("{what}: the origin took it for a request"));
            break;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A good chunk first, which the origin has by then; it must never see an end.
#[test]
fn bad_chunks_that_come_later() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut wrong = Vec::new();
    for (what, body) in bad_chunks() {
        let before = origin.received().len();
        let mut client = proxy.client();
        client.send(chunks("3\r\nabc\r\n"));
        crate::support::eventually("the origin has the first chunk", || {
            origin.received()[before..].ends_with(b"abc\r\n")
        });
        let _ = client.try_send(body);
        let seen = outcome(&mut client);
        if seen != "400 close, closed" {
            wrong.push(format!("{what}: {seen}"));
        }
        if !origin.requests().is_empty() {
            wrong.push(format!("{what}: the origin took it for a request"));
            break;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A body that ends before its length is no request.
#[test]
fn a_truncated_request_never_looks_complete() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    for request in [and("Content-Length: 10\r\n\r\nhello"), chunks("5\r\nhello\r\n")] {
        let request = request.strip_suffix(b"\r\n\r\n").unwrap_or(&request).to_vec();
        let mut client = proxy.client();
        client.send(request);
        client.shutdown_write();
        let (_, _) = client.rest();
    }
    crate::support::eventually("the origin's connections end", || {
        origin.ended() == origin.connections()
    });
    assert!(origin.requests().is_empty(), "{:?}", origin.requests());
}

#[test]
fn lenient_line_ends_forgive_bare_lf_only() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("lenient_line_ends: true").start();
    assert_refused(
        &proxy,
        &origin,
        &[
            ("a bare CR in a value", 400, b"GET / HTTP/1.1\nHost: a\nX: a\rb\n\n".to_vec()),
            ("obs-fold", 400, b"GET / HTTP/1.1\nHost: a\nX: a\n b\n\n".to_vec()),
            ("NUL", 400, b"GET / HTTP/1.1\nHost: a\nX: \0\n\n".to_vec()),
            (
                "both framings",
                400,
                b"GET / HTTP/1.1\nHost: a\nContent-Length: 1\nTransfer-Encoding: chunked\n\n"
                    .to_vec(),
            ),
        ],
    );
    let answer = proxy.ask("GET /lf HTTP/1.1\nHost: a\nX: y\nY:\n\n");
    assert_eq!(answer.status(), 200);
    let request = origin.last_request(); // Read strictly: what leaves has CRLF.
    assert_eq!((request.target(), request.get("x")), ("/lf", Some("y")));
}

/// Refusals are the same however the bytes arrive.
#[test]
fn refusals_do_not_depend_on_segments() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    for request in [
        and("Content-Length: 3\r\nTransfer-Encoding: chunked"),
        and("X: a\r\n b"),
        line("GET / HTTP/1.1\nX: y"),
        with("X: y"),
    ] {
        let mut client = proxy.client();
        for byte in &request {
            if client.try_send([*byte]).is_err() {
                break;
            }
            crate::support::pause(1);
        }
        assert_eq!(outcome(&mut client), "400 close, closed", "{}", show(&request));
    }
    assert!(origin.received().is_empty());
}

#[test]
fn refusals_are_told_in_the_header_where_that_is_wanted() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("reason_header: true").start();
    for (request, reason) in [
        (with("X: y"), "bad-head"),
        (and("Content-Length: 3\r\nTransfer-Encoding: chunked"), "ambiguous-framing"),
        (and("Transfer-Encoding: gzip"), "unknown-coding"),
        (line("GET / HTTP/1.2"), "bad-version"),
        (line("GET /%2f HTTP/1.1"), "bad-path"),
        (line("CONNECT a:1 HTTP/1.1"), "connect-refused"),
    ] {
        assert_eq!(proxy.ask(&request).get("x-outrigger-reason"), Some(reason));
        crate::support::eventually("it is counted", || proxy.refusals(reason) == 1.0);
    }
}

#[test]
fn reasons_are_not_told_at_the_edge() {
    let origin = Origin::answering("HTTP/1.1 nonsense\r\n\r\n");
    let proxy = Proxy::before(&origin);
    assert!(!proxy.ask(with("X: y")).has("x-outrigger-reason"));
    let answer = proxy.get("/");
    assert_eq!(answer.status(), 502);
    assert!(!answer.has("x-outrigger-reason"));
    let origin = Origin::answering("HTTP/1.1 nonsense\r\n\r\n");
    let proxy = Setup::new(&origin).listener("mode: sidecar").start();
    assert_eq!(proxy.get("/").get("x-outrigger-reason"), Some("bad-answer"));
}
