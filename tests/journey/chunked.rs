//! Chunked bodies in both directions: what is between the chunks is ours, never the sender's.

use crate::support::{OK, Origin, Proxy, Setup, patterned};

#[test]
fn a_chunked_upload_is_framed_anew() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let answer = proxy.ask(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n\
         5;name=value;quoted=\"a;\\\"b\"\r\nhello\r\n\
         0000A ; x\r\n, trailers\r\n\
         000;last\r\nX-Sum: 42\r\nContent-Length: 7\r\nHost: evil\r\n\r\n",
    );
    assert_eq!(answer.status(), 200);
    let request = origin.request();
    assert_eq!(request.all("transfer-encoding"), ["chunked"]);
    assert!(!request.has("content-length"));
    assert_eq!(request.body, b"hello, trailers");
    // Framing and routing in trailers are dropped (RFC 9110, 6.5.1).
    assert_eq!(request.trailers, [("X-Sum".into(), "42".into())]);
}

#[test]
fn a_chunked_answer_is_framed_anew() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n\
         5;name=value\r\nhello\r\n0A;x=\"\\\"\"\r\n, trailers\r\n\
         0\r\nX-Sum: 42\r\nSet-Cookie: a=b\r\nTransfer-Encoding: gzip\r\n\r\n",
    );
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..3 {
        let answer = client.get("/");
        assert_eq!(answer.text(), "hello, trailers");
        assert_eq!(answer.all("transfer-encoding"), ["chunked"]);
        assert_eq!(answer.trailers, [("X-Sum".into(), "42".into())]);
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_pipelined_request_behind_chunks_is_not_a_part_of_them() {
    let origin = Origin::echoing();
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(
        "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(client.answer().text(), "POST /1 HTTP/1.1");
    assert_eq!(client.answer().text(), "GET /2 HTTP/1.1");
}

/// Chunks of one byte, more than one write or one buffer takes.
#[test]
fn many_tiny_chunks_pass() {
    let origin = Origin::start(|peer| {
        let request = peer.request();
        assert!(request.body == patterned(0, 20_000));
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut chunks = Vec::new();
        for byte in patterned(0, 20_000) {
            chunks.extend_from_slice(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']);
        }
        peer.send(chunks);
        peer.send("0\r\n\r\n");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut chunks = Vec::new();
    for byte in patterned(0, 20_000) {
        chunks.extend_from_slice(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']);
    }
    client.send(chunks);
    client.send("0\r\n\r\n");
    assert!(client.answer().body == patterned(0, 20_000));
}

#[test]
fn large_chunks_pass() {
    let origin = Origin::start(|peer| {
        let request = peer.request();
        assert!(request.body == patterned(0, 2_000_000));
        peer.send(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            2_000_000
        ));
        peer.send(patterned(0, 2_000_000));
        peer.send("\r\n0\r\n\r\n");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(format!("{:X}\r\n", 2_000_000));
    client.send(patterned(0, 2_000_000));
    client.send("\r\n0\r\n\r\n");
    assert!(client.answer().body == patterned(0, 2_000_000));
}

/// What has arrived of a chunk goes on at once: streams of events live on that.
#[test]
fn parts_of_a_stream_do_not_wait_for_the_rest() {
    let (go_on, gone_on) = std::sync::mpsc::channel();
    let gone_on = std::sync::Mutex::new(gone_on);
    let origin = Origin::start(move |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        peer.send("a\r\nfirst");
        gone_on.lock().unwrap().recv().unwrap();
        peer.send("last!\r\n0\r\n\r\n");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(crate::support::GET);
    let mut answer = client.answer_head();
    client.read_until("first\r\n");
    go_on.send(()).unwrap();
    client.try_body(&mut answer).unwrap();
    assert_eq!(answer.text(), "last!");
}

/// A head is passed on before there is a body, too.
#[test]
fn a_head_does_not_wait_for_its_body() {
    let (go_on, gone_on) = std::sync::mpsc::channel();
    let gone_on = std::sync::Mutex::new(gone_on);
    let origin = Origin::start(move |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
        gone_on.lock().unwrap().recv().unwrap();
        peer.send("body");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(crate::support::GET);
    let mut answer = client.answer_head();
    go_on.send(()).unwrap();
    client.try_body(&mut answer).unwrap();
    assert_eq!(answer.text(), "body");
}

#[test]
fn lenient_line_ends_hold_for_chunks() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("lenient_line_ends: true").start();
    let answer = proxy
        .ask("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n5\nhello\n0\nX-Sum: 1\n\n");
    assert_eq!(answer.status(), 200);
    let request = origin.request();
    assert_eq!(request.body, b"hello");
    assert_eq!(request.trailers, [("X-Sum".into(), "1".into())]);
}
