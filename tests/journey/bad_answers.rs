//! Answers that break RFC 9112: a 502, and not a byte of them.

use crate::support::{OK, Origin, Proxy, Setup};

#[track_caller]
fn assert_bad(cases: &[(&str, Vec<u8>)]) {
    let mut wrong = Vec::new();
    for (what, answer) in cases {
        let answer = answer.clone();
        let origin = Origin::start(move |peer| {
            if peer.try_request().is_ok() {
                let _ = peer.try_send(&answer);
                peer.shutdown_write();
                let _ = peer.rest();
            }
        });
        let proxy = Setup::new(&origin).one_shard().listener("reason_header: true").start();
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        match client.try_answer() {
            Ok(answer) => {
                let reason = answer.get("x-outrigger-reason").unwrap_or("-");
                let seen = (answer.status(), reason);
                if seen != (502, "bad-answer") {
                    wrong.push(format!("{what}: {seen:?}"));
                }
                if answer.has("x-leaked") {
                    wrong.push(format!("{what}: was passed on: {answer:?}"));
                }
            }
            Err(broken) => wrong.push(format!("{what}: {broken:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn head(line: &str, fields: &str) -> Vec<u8> {
    format!("{line}\r\nX-Leaked: 1\r\n{fields}\r\n").into_bytes()
}

fn fields(fields: &str) -> Vec<u8> {
    head("HTTP/1.1 200 OK", &format!("{fields}\r\n"))
}

#[test]
fn status_lines() {
    assert_bad(&[
        ("nonsense", b"nonsense\r\n\r\n".to_vec()),
        ("an empty line first", b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("HTTP/2.0", head("HTTP/2.0 200 OK", "Content-Length: 0\r\n")),
        ("HTTP/1.2", head("HTTP/1.2 200 OK", "Content-Length: 0\r\n")),
        ("small letters", head("http/1.1 200 OK", "Content-Length: 0\r\n")),
        ("two digits", head("HTTP/1.1 20 OK", "Content-Length: 0\r\n")),
        ("four digits", head("HTTP/1.1 2000 OK", "Content-Length: 0\r\n")),
        ("below 100", head("HTTP/1.1 099 OK", "Content-Length: 0\r\n")),
        ("no status", head("HTTP/1.1 OK", "Content-Length: 0\r\n")),
        ("two blanks", head("HTTP/1.1  200 OK", "Content-Length: 0\r\n")),
        ("NUL in the phrase", head("HTTP/1.1 200 O\0K", "Content-Length: 0\r\n")),
        ("a bare CR in the phrase", head("HTTP/1.1 200 O\rK", "Content-Length: 0\r\n")),
        (
            "an unasked upgrade",
            head("HTTP/1.1 101 Switching Protocols", "Connection: upgrade\r\nUpgrade: x\r\n"),
        ),
        ("a request", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
    ]);
}

#[test]
fn framings() {
    assert_bad(&[
        ("both", fields("Content-Length: 2\r\nTransfer-Encoding: chunked")),
        ("differing lengths", fields("Content-Length: 2\r\nContent-Length: 3")),
        ("a list", fields("Content-Length: 2, 3")),
        ("plus", fields("Content-Length: +2")),
        ("letters", fields("Content-Length: 2a")),
        ("empty", fields("Content-Length:")),
        ("overflow", fields("Content-Length: 18446744073709551616")),
        ("gzip", fields("Transfer-Encoding: gzip")),
        ("gzip, chunked", fields("Transfer-Encoding: gzip, chunked")),
        ("chunked twice", fields("Transfer-Encoding: chunked, chunked")),
        ("a coding in HTTP/1.0", head("HTTP/1.0 200 OK", "Transfer-Encoding: chunked\r\n")),
        (
            "an interim answer with a body",
            head("HTTP/1.1 103 Early Hints", "Content-Length: 2\r\n"),
        ),
    ]);
}

#[test]
fn field_lines() {
    let long = format!("X: {}", "x".repeat(200_000));
    let many = (0..1000).map(|n| format!("X-{n}: y")).collect::<Vec<_>>().join("\r\n");
    assert_bad(&[
        ("obs-fold", fields("Content-Length: 0\r\nX: a\r\n b")),
        ("a bare CR", fields("Content-Length: 0\r\nX: a\rb")),
        ("a bare LF", fields("Content-Length: 0\r\nX: a\nY: b")),
        (
            "a bare LF behind the status line",
            b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n".to_vec(),
        ),
        ("a bare LF for the empty line", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n".to_vec()),
        ("NUL", fields("Content-Length: 0\r\nX: \0")),
        ("a control byte", fields("Content-Length: 0\r\nX: \u{1}")),
        ("a blank before the colon", fields("Content-Length : 0")),
        ("an empty name", fields("Content-Length: 0\r\n: x")),
        ("no token", fields("Content-Length: 0\r\nX(: x")),
        ("no colon", fields("Content-Length: 0\r\nX")),
        ("too long", fields(&long)),
        ("too many", fields(&many)),
    ]);
}

/// A body is already under way when it turns out to be malformed: it must not look complete.
#[test]
fn bad_chunks_never_look_complete() {
    let bad = [
        "xyz\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\nX: \0\r\n\r\n",
        "0\n\r\n",
    ];
    for later in [false, true] {
        for chunks in bad {
            let origin = Origin::start(move |peer| {
                peer.request();
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                if later {
                    peer.send(format!("{head}3\r\nabc\r\n"));
                    crate::support::pause(50);
                    peer.send(chunks);
                } else {
                    peer.send(format!("{head}{chunks}"));
                }
                let _ = peer.rest();
            });
            let proxy = Setup::new(&origin).one_shard().start();
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                let mut client = proxy.client();
                client.send(format!("GET / {version}\r\nHost: a\r\n\r\n"));
                match client.try_answer() {
                    Ok(answer) => assert_eq!(answer.status(), 502, "{version} {chunks:?} {later}"),
                    Err(broken) => {
                        let text = String::from_utf8_lossy(&broken.received).into_owned();
                        assert!(!text.ends_with("0\r\n\r\n"), "{chunks:?}: {text:?}");
                    }
                }
            }
        }
    }
}

/// The connection that brought nonsense is not used again.
#[test]
fn a_bad_answer_condemns_its_connection() {
    let origin = Origin::start(|peer| {
        let number = peer.number;
        while peer.try_request().is_ok() {
            let answer = if number == 0 { "HTTP/1.1 2 OK\r\n\r\n" } else { OK };
            if peer.try_send(answer).is_err() {
                return;
            }
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    let answer = client.get("/");
    assert_eq!(answer.status(), 502);
    assert!(!answer.has("connection"), "the client's connection goes on: {answer:?}");
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(origin.connections(), 2);
}
