//! Heads as they arrive.

use std::sync::LazyLock;

use outrigger::http::head::{
    AnswerHead, HeadLimits, Method, Parsed, RequestHead, Scratch, parse_answer, parse_request,
};

/// What wrk sends: one field.
pub const GET_WRK: &[u8] = b"GET /100 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";

/// What curl sends: three fields.
pub const GET_CURL: &[u8] = b"GET /api/items/42?full=1 HTTP/1.1\r\nHost: www.example.org\r\n\
    User-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";

/// What a browser sends: fifteen fields, 0.9 KiB.
pub const GET_BROWSER: &[u8] = b"GET /shop/items/42?ref=front&page=3 HTTP/1.1\r\n\
    Host: www.example.org\r\n\
    Connection: keep-alive\r\n\
    sec-ch-ua: \"Chromium\";v=\"128\", \"Not;A=Brand\";v=\"24\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
    Chrome/128.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Dest: document\r\n\
    Referer: https://www.example.org/shop/\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
    Cookie: session=1f8e5b0c9a7d4e62b3f1c0a9d8e7f6a5; theme=dark; consent=yes; \
    visits=17; lastseen=1795178096\r\n\r\n";

/// Thirty fields, 2 KiB, as in bench/scenarios/headers.toml.
pub static GET_30_FIELDS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut head = String::from("GET /100 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n");
    for number in 0..29 {
        head.push_str(&format!("X-Field-{number:02}: {}\r\n", "abcdefg".repeat(8)));
    }
    (head + "\r\n").into_bytes()
});

/// As [`GET_CURL`], with a body of 4 KiB to come.
pub const POST_LENGTH: &[u8] = b"POST /api/items/42?full=1 HTTP/1.1\r\nHost: www.example.org\r\n\
    User-Agent: curl/8.5.0\r\nAccept: */*\r\nContent-Length: 4096\r\n\r\n";

/// As [`GET_CURL`], with a body in chunks to come.
pub const POST_CHUNKED: &[u8] = b"POST /api/items/42?full=1 HTTP/1.1\r\nHost: www.example.org\r\n\
    User-Agent: curl/8.5.0\r\nAccept: */*\r\nTransfer-Encoding: chunked\r\n\r\n";

/// From another proxy, which has told of the client.
pub const GET_FORWARDED: &[u8] = b"GET /api/items/42?full=1 HTTP/1.1\r\nHost: www.example.org\r\n\
    User-Agent: curl/8.5.0\r\nAccept: */*\r\nX-Forwarded-For: 203.0.113.9, 10.0.0.7\r\n\
    X-Forwarded-Proto: https\r\nX-Request-Id: 9b2f6f3e-7c58-4c5e-9d3a-2f1e0d9c8b7a\r\n\r\n";

/// nginx's, five fields.
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\
    Date: Fri, 20 Nov 2026 12:34:56 GMT\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\
    Connection: keep-alive\r\n\r\n";

/// The same in chunks.
pub const ANSWER_CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\
    Date: Fri, 20 Nov 2026 12:34:56 GMT\r\nContent-Type: text/plain\r\n\
    Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n";

/// An application's, sixteen fields.
pub const ANSWER_16_FIELDS: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Date: Fri, 20 Nov 2026 12:34:56 GMT\r\n\
    Content-Type: application/json; charset=utf-8\r\n\
    Content-Length: 5120\r\n\
    Connection: keep-alive\r\n\
    Cache-Control: private, max-age=0, must-revalidate\r\n\
    ETag: W/\"1400-Xf0zq3Rk0YVb2c1b8JmTq9Qe3uA\"\r\n\
    Last-Modified: Fri, 20 Nov 2026 11:00:00 GMT\r\n\
    Vary: Accept-Encoding, Origin\r\n\
    X-Frame-Options: SAMEORIGIN\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Referrer-Policy: strict-origin-when-cross-origin\r\n\
    Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n\
    Content-Security-Policy: default-src 'self'; img-src 'self' data:; object-src 'none'\r\n\
    Set-Cookie: session=1f8e5b0c9a7d4e62b3f1c0a9d8e7f6a5; Path=/; HttpOnly; Secure; SameSite=Lax\r\n\
    X-Response-Time: 12ms\r\n\
    Access-Control-Allow-Origin: https://www.example.org\r\n\r\n";

/// The head of a request, parsed once and for all.
pub fn request(bytes: &'static [u8]) -> RequestHead<'static, 'static> {
    match parse_request(bytes, &HeadLimits::default(), Box::leak(Box::new(Scratch::new()))) {
        Ok(Parsed::Complete(head)) => head,
        other => panic!("not a request: {other:?}"),
    }
}

/// The head of an answer to a GET, parsed once and for all.
pub fn answer(bytes: &'static [u8]) -> AnswerHead<'static, 'static> {
    let scratch = Box::leak(Box::new(Scratch::new()));
    match parse_answer(bytes, &HeadLimits::default(), Method::Get, scratch) {
        Ok(Parsed::Complete(head)) => head,
        other => panic!("not an answer: {other:?}"),
    }
}
