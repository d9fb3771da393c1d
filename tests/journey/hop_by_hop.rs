//! What holds for one connection only stays there (RFC 9110, 7.6.1).

use crate::support::{OK, Origin, Proxy, Setup};

#[test]
fn a_request_loses_what_is_not_for_the_origin() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("forwarded: {via: edge}").start();
    let mut client = proxy.client();
    let answer = client.ask(
        "POST / HTTP/1.1\r\nHost: example.org\r\nContent-Length: 5\r\n\
         Connection: keep-alive, X-Secret, host, Content-Length, X-Forwarded-For\r\n\
         connection: X-Request-Id,x-other, , via, X-Forwarded-Proto, X-Forwarded-Host\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip;q=0.5\r\n\
         HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nUpgrade: h2c\r\n\
         x-secret: 1\r\nX-Other: 2\r\nX-Secret: 3\r\nX-Kept: 4\r\n\r\nhello",
    );
    assert_eq!(answer.status(), 200);
    let request = origin.request();
    for gone in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "http2-settings",
        "upgrade",
        "x-secret",
        "x-other",
        "transfer-encoding",
    ] {
        assert!(!request.has(gone), "{gone}: {request:#?}");
    }
    // Named, but not theirs to remove: the first two are the message, the others are ours.
    assert_eq!(request.get("host"), Some("example.org"));
    assert_eq!(request.get("content-length"), Some("5"));
    assert_eq!(request.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.get("x-forwarded-proto"), Some("http"));
    assert_eq!(request.get("x-forwarded-host"), Some("example.org"));
    assert!(request.get("x-request-id").is_some_and(|id| id.len() == 36));
    assert_eq!(request.get("via"), Some("1.1 edge"));
    assert_eq!(request.get("x-kept"), Some("4"));
    assert_eq!(request.body, b"hello");
}

/// `TE: trailers` is the only part of TE that can be promised for every client of ours.
#[test]
fn te_trailers_passes() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.ask("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers, deflate\r\nConnection: TE\r\n\r\n");
    let request = origin.last_request();
    assert_eq!(request.get("te"), Some("trailers"));
    assert!(request.connection("te"), "{request:?}");
    client.ask("GET / HTTP/1.1\r\nHost: a\r\nTE: deflate\r\nConnection: TE\r\n\r\n");
    assert!(!origin.last_request().has("te"));
}

#[test]
fn an_answer_loses_what_is_not_for_the_client() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: it\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
         Connection: X-Secret, content-length, Keep-Alive\r\nconnection: x-other\r\n\
         Keep-Alive: timeout=5, max=100\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c, websocket\r\n\
         X-Secret: 1\r\nx-other: 2\r\nX-Kept: 3\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\r\nok",
    );
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = client.get("/");
        for gone in
            ["connection", "keep-alive", "proxy-connection", "upgrade", "x-secret", "x-other"]
        {
            assert!(!answer.has(gone), "{gone}: {answer:#?}");
        }
        assert_eq!(answer.get("content-length"), Some("2"));
        assert_eq!(answer.get("x-kept"), Some("3"));
        assert_eq!(answer.get("server"), Some("it"));
        assert_eq!(answer.get("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"), "its own Date stays");
        assert_eq!(answer.all("set-cookie"), ["a=b", "c=d"], "in their order");
        assert_eq!(answer.text(), "ok");
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn an_origin_that_says_close_is_closed_and_the_client_is_not() {
    let origin = Origin::closing_after(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    );
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..3 {
        let answer = client.get("/");
        assert_eq!(answer.text(), "ok");
        assert!(!answer.has("connection"));
    }
    assert_eq!(origin.connections(), 3);
}

/// Spelling, order and repetition of what is passed on stay as they are.
#[test]
fn what_is_passed_on_stays_as_it_is() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    proxy.ask(
        "GET / HTTP/1.1\r\nHost: a\r\nAccept:*/*\r\nCookie: a=b\r\nX-eMPTY:\r\nCookie: c=d\r\n\
         X-Tab:\t x\ty \r\nAuthorization: Basic x\r\nX-High: \u{e9}\r\n\r\n",
    );
    let request = origin.request();
    assert_eq!(request.get("accept"), Some("*/*"));
    assert_eq!(request.all("cookie"), ["a=b", "c=d"]);
    assert_eq!(request.get("x-tab"), Some("x\ty"));
    assert_eq!(request.get("x-high"), Some("\u{e9}"));
    assert_eq!(request.get("authorization"), Some("Basic x"));
    assert!(request.fields.contains(&("X-eMPTY".into(), String::new())), "{request:?}");
}
