//! Every way in which a head may be wrong, or read in two ways, in tables.

use proptest::prelude::*;

use super::*;

const LIMITS: HeadLimits =
    HeadLimits { uri_bytes_max: 64, head_bytes_max: 1024, fields_max: 8, lenient_line_ends: false };

const LENIENT: HeadLimits = HeadLimits { lenient_line_ends: true, ..LIMITS };

/// All that is to be said of a request, to compare it and to read it in a failure.
fn request(bytes: &[u8], limits: &HeadLimits) -> Result<Option<String>, Reason> {
    let mut scratch = Scratch::new();
    let head = match parse_request(bytes, limits, &mut scratch)? {
        Parsed::Partial => return Ok(None),
        Parsed::Complete(head) => head,
    };
    assert!(head.len <= bytes.len());
    Ok(Some(format!("{head:?}")))
}

fn answer(bytes: &[u8], method: Method) -> Result<Option<String>, Reason> {
    let mut scratch = Scratch::new();
    match parse_answer(bytes, &LIMITS, method, &mut scratch)? {
        Parsed::Partial => Ok(None),
        Parsed::Complete(head) => Ok(Some(format!("{head:?}"))),
    }
}

/// Calls `look` with the head of a good request.
fn with_request<T>(bytes: &[u8], look: impl FnOnce(&RequestHead<'_, '_>) -> T) -> T {
    let mut scratch = Scratch::new();
    match parse_request(bytes, &LIMITS, &mut scratch) {
        Ok(Parsed::Complete(head)) => look(&head),
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

fn with_answer<T>(bytes: &[u8], method: Method, look: impl FnOnce(&AnswerHead<'_, '_>) -> T) -> T {
    let mut scratch = Scratch::new();
    match parse_answer(bytes, &LIMITS, method, &mut scratch) {
        Ok(Parsed::Complete(head)) => look(&head),
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

/// Refused in any split, for the same reason, and never taken for complete on the way.
#[track_caller]
fn refused(bytes: &[u8], reason: Reason) {
    let shown = bytes.escape_ascii();
    assert_eq!(request(bytes, &LIMITS), Err(reason), "{shown}");
    for end in 0..bytes.len() {
        match request(&bytes[..end], &LIMITS) {
            Ok(None) => {}
            Err(early) => assert_eq!(early, reason, "{shown}, {end} bytes of it"),
            Ok(Some(head)) => panic!("{shown}, {end} bytes of it: {head}"),
        }
    }
}

/// Request heads that must not pass, each with its reason.
#[test]
fn bad_requests_are_refused() {
    use Reason::*;
    let cases: &[(&[u8], Reason)] = &[
        // The request line (RFC 9112, 3).
        (b"GET /\r\n\r\n", BadHead), // HTTP/0.9
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", BadHead),
        (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"/ HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"G\0T / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"G\xc3\xa9T / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"AMETHODOFMORETHANTHIRTYTWOLETTERS / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET /?\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", BadHead), // TLS
        // Versions (RFC 9110, 2.5).
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadVersion),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", BadVersion),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", BadVersion),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", BadVersion),
        (b"GET / HTTP/9.9\r\n", BadVersion),
        (b"GET / HTTP/1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/2\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/11.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1,1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTQ/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP /1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / ICAP/1.0\r\nHost: a\r\n\r\n", BadHead),
        // Targets (RFC 9112, 3.2).
        (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET http://a:x/ HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", BadHead),
        (b"GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n", BadHead),
        (b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        // Line ends (RFC 9112, 2.2).
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a \t\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX:\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nX: y\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.0\n\n", BadHead),
        (b"GET / HTTP/1.0\r\n\n", BadHead),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\rHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\rX", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX:\rY: z\r\n\r\n", BadHead),
        // Fields (RFC 9112, 5; RFC 9110, 5.5).
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n \r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX[]: y\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\"X\": y\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\xc3\xa9: y\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\x0bz\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\x1b\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\x7fz\r\n\r\n", BadHead),
        // Host (RFC 9112, 3.2).
        (b"GET / HTTP/1.1\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: \t\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", BadHead),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: http://a\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nHost: %61\r\n\r\n", BadHead),
        (b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", BadHead),
        (b"GET / HTTP/1.1\r\nConnection: Host\r\n\r\n", BadHead),
        // Content-Length (RFC 9112, 6.3).
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5;a\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1e1\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,6\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5,\r\n\r\n", AmbiguousFraming),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: y\r\ncontent-length: 5\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.0\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            AmbiguousFraming,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \xd9\xa5\r\n\r\n", AmbiguousFraming),
        // Both (RFC 9112, 6.1).
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nContent-Length: 5\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\nContent-Length: 5\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            AmbiguousFraming,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            AmbiguousFraming,
        ),
        // Transfer-Encoding (RFC 9112, 6.1 and 7).
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: gzip\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", AmbiguousFraming),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            AmbiguousFraming,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked ;\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chu nked\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\xa0\r\n\r\n", AmbiguousFraming),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", BadHead),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", BadHead),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\r\n : chunked\r\n\r\n", BadHead),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n", BadHead),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", UnknownCoding),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunke\r\n\r\n", UnknownCoding),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", UnknownCoding),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", UnknownCoding),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", UnknownCoding),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", UnknownCoding),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x;q=1, chunked\r\n\r\n", UnknownCoding),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n",
            UnknownCoding,
        ),
        // Limits.
        (b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nHost: a\r\n\r\n", UriTooLong),
        (b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\0", UriTooLong),
        (b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/3.0\r\n", UriTooLong),
        (b"GET / HTTP/1.1\r\nHost: a\r\n1:\r\n2:\r\n3:\r\n4:\r\n5:\r\n6:\r\n7:\r\n8:\r\n\r\n", HeadTooLarge),
    ];
    for (bytes, reason) in cases {
        refused(bytes, *reason);
    }
}

/// No control byte passes in a value, a name, a method or a target, wherever it stands: the tokeniser
/// looks at 8, 16 or 32 bytes at once.
#[test]
fn controls_are_refused_at_every_offset() {
    for byte in (0..=b' ').chain([0x7f]) {
        for before in 0..70 {
            let fill = "a".repeat(before);
            let mut value =
                format!("GET / HTTP/1.1\r\nHost: a\r\nX: {fill}?{fill}\r\n\r\n").into_bytes();
            let at = value.iter().position(|byte| *byte == b'?').unwrap();
            value[at] = byte;
            let legal = matches!(byte, b'\t' | b' ');
            assert_eq!(request(&value, &LIMITS).is_ok(), legal, "{}", value.escape_ascii());

            for pattern in
                ["GET / HTTP/1.1\r\nHost: a\r\nX@?@: y\r\n\r\n", "GET /@?@ HTTP/1.0\r\n\r\n"]
            {
                let mut head = pattern.replace('@', &fill).into_bytes();
                let at = head.iter().position(|byte| *byte == b'?').unwrap();
                head[at] = byte;
                let limits = HeadLimits { uri_bytes_max: 1000, ..LIMITS };
                assert_eq!(
                    request(&head, &limits),
                    Err(Reason::BadHead),
                    "{}",
                    head.escape_ascii()
                );
            }
        }
    }
}

#[test]
fn a_request_is_read() {
    let bytes = b"POST /a/b?c=d HTTP/1.1\r\nHost: example.com:8080\r\nContent-Length: 007\r\n\
        User-Agent: x\r\nX-Thing:  two words \t\r\nX-Empty:\r\n\r\nthe body";
    with_request(bytes, |head| {
        assert_eq!((head.method, head.method_bytes), (Method::Post, &b"POST"[..]));
        assert_eq!(head.target, Target::Origin { path: b"/a/b", query: Some(b"c=d") });
        assert_eq!((head.version, head.host), (Version::Http11, &b"example.com:8080"[..]));
        assert_eq!(head.framing, Framing::Length(7));
        assert!(head.keep_alive && !head.fragment && !head.connection_tokens);
        assert!(!head.expect_continue && !head.te_trailers && head.upgrade.is_none());
        assert_eq!(&bytes[head.len..], b"the body");
        let fields: Vec<_> = head.fields.iter().collect();
        assert_eq!(fields.len(), head.fields.len());
        assert_eq!(fields[0], (FieldKind::Host, &b"Host"[..], &b"example.com:8080"[..]));
        assert_eq!(fields[2], (FieldKind::UserAgent, &b"User-Agent"[..], &b"x"[..]));
        assert_eq!(fields[3], (FieldKind::Other, &b"X-Thing"[..], &b"two words"[..]));
        assert_eq!(fields[4], (FieldKind::Other, &b"X-Empty"[..], &b""[..]));
        assert_eq!(head.fields.get("x-thing"), Some(&b"two words"[..]));
        assert_eq!(head.fields.get("x-nothing"), None);
        assert_eq!(head.fields.first(FieldKind::ContentLength), Some(&b"007"[..]));
    });
}

#[test]
fn framing_of_requests() {
    let cases: &[(&str, Framing)] = &[
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::None),
        ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::None),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", Framing::Length(3)),
        ("POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n", Framing::Length(0)),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n",
            Framing::Length(u64::MAX),
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Framing::Chunked),
        ("POST / HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING:\t CHUNKED \r\n\r\n", Framing::Chunked),
        // Another field, whatever it looks like; it goes on as it is.
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n", Framing::None),
    ];
    for (bytes, framing) in cases {
        with_request(bytes.as_bytes(), |head| assert_eq!(head.framing, *framing, "{bytes}"));
    }
}

/// RFC 9112, 9.3.
#[test]
fn persistence() {
    let cases: &[(&str, &str, bool)] = &[
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: CLOSE\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.1", "Connection: ,, close ,\r\n", false),
        ("1.1", "Connection: closed\r\n", true),
        ("1.1", "Proxy-Connection: close\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
        ("1.0", "Proxy-Connection: keep-alive\r\n", false),
    ];
    for (version, line, keep) in cases {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{line}\r\n");
        with_request(bytes.as_bytes(), |head| assert_eq!(head.keep_alive, *keep, "{bytes}"));
        let bytes = format!("HTTP/{version} 200 OK\r\nContent-Length: 1\r\n{line}\r\n");
        with_answer(bytes.as_bytes(), Method::Get, |head| {
            assert_eq!(head.keep_alive, *keep, "{bytes}");
        });
    }
}

/// RFC 9110, 7.6.1: the fields that `Connection` names are marked; never those that frame and address.
#[test]
fn connection_names_fields() {
    let bytes = b"GET / HTTP/1.1\r\nX-A: 1\r\nHost: a\r\nContent-Length: 0\r\nConnection: x-a, \
        Host,content-length , X-FORWARDED-FOR,,te\r\nX-Forwarded-For: b\r\nx-A: 2\r\nTE: trailers\r\n\
        X-B: 3\r\n\r\n";
    with_request(bytes, |head| {
        use FieldKind::*;
        let kinds: Vec<_> = head.fields.iter().map(|(kind, ..)| kind).collect();
        assert_eq!(
            kinds,
            [
                ConnectionNamed,
                Host,
                ContentLength,
                Connection,
                ConnectionNamed,
                ConnectionNamed,
                Te,
                Other
            ]
        );
        assert!(head.connection_tokens && head.te_trailers);
        assert_eq!(head.fields.get("x-a"), None);
        assert_eq!(head.fields.get("x-b"), Some(&b"3"[..]));
        assert_eq!(head.fields.first(XForwardedFor), None);
    });
    for (line, tokens) in [("", false), ("close, keep-alive, TE, Upgrade", false), ("x", true)] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {line}\r\n\r\n");
        with_request(bytes.as_bytes(), |head| assert_eq!(head.connection_tokens, tokens, "{line}"));
    }
    let many = vec!["x"; CONNECTION_OPTIONS_MAX].join(",");
    let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {many}\r\n\r\n");
    with_request(bytes.as_bytes(), |head| assert!(head.connection_tokens));
    refused(bytes.replace("x\r\n", "x,x\r\n").as_bytes(), Reason::BadHead);
}

/// RFC 9110, 7.8 and 10.1.1; RFC 9113, 3.1.
#[test]
fn upgrade_and_expect() {
    let cases: &[(&str, &str, Option<&[u8]>)] = &[
        ("1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", Some(b"websocket")),
        ("1.1", "Connection: keep-alive, uPGRADE\r\nUpgrade: WebSocket\r\n", Some(b"WebSocket")),
        ("1.1", "Upgrade: a/1, b\r\nConnection: upgrade\r\n", Some(b"a/1, b")),
        ("1.1", "Upgrade: websocket\r\n", None),
        ("1.1", "Connection: upgrade\r\n", None),
        ("1.1", "Connection: upgrade\r\nUpgrade:\r\n", None),
        ("1.1", "Connection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n", None),
        ("1.1", "Connection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\nUpgrade: c\r\n", None),
        ("1.1", "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\n", None),
        ("1.1", "Connection: upgrade\r\nUpgrade: websocket, H2C\r\n", None),
        ("1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n", None),
    ];
    for (version, lines, upgrade) in cases {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        with_request(bytes.as_bytes(), |head| assert_eq!(head.upgrade, *upgrade, "{bytes}"));
    }
    for (version, value, expect) in [
        ("1.1", "100-continue", true),
        ("1.1", "100-Continue", true),
        ("1.0", "100-continue", false),
        ("1.1", "x", false),
    ] {
        let bytes = format!("POST / HTTP/{version}\r\nHost: a\r\nExpect: {value}\r\n\r\n");
        with_request(bytes.as_bytes(), |head| assert_eq!(head.expect_continue, expect, "{bytes}"));
    }
    for (value, trailers) in
        [("trailers", true), ("gzip;q=0.5, Trailers", true), ("trailersx", false), ("", false)]
    {
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\nTE: {value}\r\n\r\n");
        with_request(bytes.as_bytes(), |head| assert_eq!(head.te_trailers, trailers, "{bytes}"));
    }
}

/// RFC 9112, 3.2.2: what the target says outranks `Host`.
#[test]
fn the_effective_host() {
    let cases: &[(&str, &[u8])] = &[
        ("GET / HTTP/1.1\r\nHost: a:80\r\n\r\n", b"a:80"),
        ("GET http://b:81/ HTTP/1.1\r\nHost: a\r\n\r\n", b"b:81"),
        ("GET http://b/ HTTP/1.0\r\n\r\n", b"b"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"a"),
        ("OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", b"b"),
        ("CONNECT b:443 HTTP/1.1\r\nHost: a\r\n\r\n", b"b:443"),
        ("GET / HTTP/1.0\r\n\r\n", b""),
        ("GET / HTTP/1.0\r\nHost:\r\n\r\n", b""),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"[::1]:80"),
    ];
    for (bytes, host) in cases {
        with_request(bytes.as_bytes(), |head| assert_eq!(head.host, *host, "{bytes}"));
    }
}

#[test]
fn empty_lines_in_front_are_skipped() {
    for lines in 0..=EMPTY_LINES_MAX {
        let bytes = format!("{}GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n".repeat(lines));
        with_request(bytes.as_bytes(), |head| assert_eq!(head.len, bytes.len()));
        assert_eq!(request("\r\n".repeat(lines).as_bytes(), &LIMITS), Ok(None));
    }
    assert_eq!(request(b"", &LIMITS), Ok(None));
    assert_eq!(request(b"\r", &LIMITS), Ok(None));
}

#[test]
fn bare_lf_where_it_is_allowed() {
    for bytes in [
        &b"GET / HTTP/1.1\nHost: a\n\n"[..],
        b"\nGET / HTTP/1.1\r\nHost: a \nX:\n\r\n",
        b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\n",
    ] {
        let shown = bytes.escape_ascii();
        assert!(matches!(request(bytes, &LENIENT), Ok(Some(_))), "{shown}");
        assert_eq!(request(bytes, &LIMITS), Err(Reason::BadHead), "{shown}");
    }
    let many = "\n".repeat(EMPTY_LINES_MAX + 1) + "GET / HTTP/1.1\nHost: a\n\n";
    assert_eq!(request(many.as_bytes(), &LENIENT), Err(Reason::BadHead));
    assert!(matches!(request(&many.as_bytes()[1..], &LENIENT), Ok(Some(_))));
    // Nothing else is let through with it.
    for bytes in [&b"GET / HTTP/1.1\nHost: a\n b\n\n"[..], b"GET / HTTP/1.1\rHost: a\n\n"] {
        assert_eq!(request(bytes, &LENIENT), Err(Reason::BadHead), "{}", bytes.escape_ascii());
    }
    let mut scratch = Scratch::new();
    let bytes = b"HTTP/1.1 200 OK\nContent-Length: 0\n\n";
    let parsed = parse_answer(bytes, &LENIENT, Method::Get, &mut scratch);
    let Ok(Parsed::Complete(head)) = parsed else { panic!("{parsed:?}") };
    assert_eq!(head.reason_phrase, b"OK");
}

/// Exactly at each limit a head passes, one above it does not.
#[test]
fn limits_are_exact() {
    let uri = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(bytes - 1));
    with_request(uri(64).as_bytes(), |_| ());
    refused(uri(65).as_bytes(), Reason::UriTooLong);

    let head = |bytes: usize| {
        let fixed = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(bytes - fixed))
    };
    with_request(head(1024).as_bytes(), |head| assert_eq!(head.len, 1024));
    with_request((head(1024) + "body").as_bytes(), |head| assert_eq!(head.len, 1024));
    refused(head(1025).as_bytes(), Reason::HeadTooLarge);
    refused((head(1025) + "body").as_bytes(), Reason::HeadTooLarge);
    assert_eq!(request(&head(1025).as_bytes()[..1023], &LIMITS), Ok(None));
    assert_eq!(request(&head(1025).as_bytes()[..1024], &LIMITS), Err(Reason::HeadTooLarge));

    let fields =
        |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X:\r\n".repeat(count - 1));
    with_request(fields(8).as_bytes(), |head| assert_eq!(head.fields.len(), 8));
    refused(fields(9).as_bytes(), Reason::HeadTooLarge);

    let most = HeadLimits { fields_max: usize::MAX, head_bytes_max: usize::MAX, ..LIMITS };
    assert!(matches!(request(fields(FIELDS_MAX).as_bytes(), &most), Ok(Some(_))));
    assert_eq!(request(fields(FIELDS_MAX + 1).as_bytes(), &most), Err(Reason::HeadTooLarge));
}

/// Nothing under the sun is parsed if nothing may be.
#[test]
fn tiny_limits() {
    let bytes = b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for head_bytes_max in 0..bytes.len() {
        let limits = HeadLimits { head_bytes_max, ..LIMITS };
        assert_eq!(request(bytes, &limits), Err(Reason::HeadTooLarge), "{head_bytes_max}");
    }
}

/// Answers that must not pass: 502.
#[test]
fn bad_answers_are_refused() {
    let cases: &[&[u8]] = &[
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"\nHTTP/1.1 200 OK\r\n\r\n",
        b" HTTP/1.1 200 OK\r\n\r\n",
        b"hello, world",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1\t200 OK\r\n\r\n",
        b"HTTP/1.1200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 2xx OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"HTTP/1.1 200 O\x07K\r\n\r\n",
        b"HTTP/1.1 200 O\rK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\r\n\r\n",
        b"HTTP/1.1 200 OK\n\r\n",
        b"HTTP/1.1 200\n\r\n",
        b"HTTP/1.1 200 \xff\n\r\n",
        b"HTTP/1.1 200 OK\r\n\n",
        b"HTTP/1.1 200 OK\r\nX: y\n\r\n",
        b"HTTP/1.1 200 OK\r\n X: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 304 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n1:\r\n2:\r\n3:\r\n4:\r\n5:\r\n6:\r\n7:\r\n8:\r\n9:\r\n\r\n",
    ];
    for bytes in cases {
        let shown = bytes.escape_ascii();
        for method in [Method::Get, Method::Head] {
            assert_eq!(answer(bytes, method), Err(Reason::BadAnswer), "{shown}");
        }
        for end in 0..bytes.len() {
            let early = answer(&bytes[..end], Method::Get);
            assert!(
                matches!(early, Ok(None) | Err(Reason::BadAnswer)),
                "{shown}, {end} bytes of it"
            );
        }
    }
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(1024));
    assert_eq!(answer(long.as_bytes(), Method::Get), Err(Reason::BadAnswer));
    assert_eq!(answer(&long.as_bytes()[..1024], Method::Get), Err(Reason::BadAnswer));
    assert_eq!(answer(&long.as_bytes()[..1023], Method::Get), Ok(None));
}

/// RFC 9112, 6.3, and which connections can be used again.
#[test]
fn framing_of_answers() {
    use Framing::*;
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    const FIVE: &str = "Content-Length: 5\r\n";
    const ZERO: &str = "Content-Length: 0\r\n";
    let cases: &[(Method, &str, &str, Framing, bool)] = &[
        (Method::Get, "1.1 200 OK", FIVE, Length(5), true),
        (Method::Get, "1.1 200 OK", ZERO, Length(0), true),
        (Method::Get, "1.1 200 OK", CHUNKED, Chunked, true),
        (Method::Get, "1.1 200 OK", "", UntilClose, false),
        (Method::Get, "1.1 200 OK", "Connection: keep-alive\r\n", UntilClose, false),
        (Method::Get, "1.0 200 OK", "", UntilClose, false),
        (Method::Get, "1.0 200 OK", FIVE, Length(5), false),
        (
            Method::Get,
            "1.0 200 OK",
            "Connection: keep-alive\r\nContent-Length: 5\r\n",
            Length(5),
            true,
        ),
        (Method::Post, "1.1 500 Oh", FIVE, Length(5), true),
        (Method::Get, "1.1 999 Oh", FIVE, Length(5), true),
        (Method::Head, "1.1 200 OK", FIVE, None, true),
        (Method::Head, "1.1 200 OK", CHUNKED, None, true),
        (Method::Head, "1.1 200 OK", "", None, true),
        (Method::Head, "1.1 200 OK", "Connection: close\r\n", None, false),
        (Method::Get, "1.1 304 Same", FIVE, None, true),
        (Method::Get, "1.1 304 Same", "", None, true),
        (Method::Get, "1.1 204 Nothing", "", None, true),
        (Method::Get, "1.1 204 Nothing", ZERO, None, true),
        (Method::Get, "1.1 204 Nothing", FIVE, None, false),
        (Method::Get, "1.1 204 Nothing", CHUNKED, None, false),
        (Method::Get, "1.1 205 Reset", ZERO, Length(0), true),
        (Method::Get, "1.1 100 Continue", "", None, true),
        (Method::Get, "1.1 103 Early Hints", "Link: x\r\n", None, true),
        (Method::Get, "1.1 101 Go", "Upgrade: websocket\r\nConnection: Upgrade\r\n", None, false),
        (Method::Connect, "1.1 200 OK", FIVE, None, false),
        (Method::Connect, "1.1 400 No", FIVE, Length(5), true),
    ];
    for (method, line, fields, framing, keep_alive) in cases {
        let bytes = format!("HTTP/{line}\r\n{fields}\r\n");
        with_answer(bytes.as_bytes(), *method, |head| {
            assert_eq!(head.framing, *framing, "{bytes}");
            assert_eq!(head.keep_alive, *keep_alive, "{bytes}");
            let length = fields.contains(FIVE).then_some(5).or(fields.contains(ZERO).then_some(0));
            assert_eq!(head.content_length, length, "{bytes}");
        });
    }
}

#[test]
fn an_answer_is_read() {
    let cases: &[(&str, u16, &[u8])] = &[
        ("200 OK", 200, b"OK"),
        ("200 ", 200, b""),
        ("200", 200, b""),
        ("404 Not  Found\t", 404, b"Not  Found\t"),
        ("200 \u{e9}", 200, b"\xc3\xa9"),
    ];
    for (line, status, phrase) in cases {
        let bytes = format!("HTTP/1.1 {line}\r\nContent-Length: 2\r\nServer: x\r\n\r\nhi");
        with_answer(bytes.as_bytes(), Method::Get, |head| {
            assert_eq!((head.status, head.reason_phrase), (*status, *phrase));
            assert_eq!(head.fields.first(FieldKind::Server), Some(&b"x"[..]));
            assert_eq!(&bytes[head.len..], "hi");
        });
    }
    let bytes = b"HTTP/1.1 101 Go\r\nConnection: upgrade, x\r\nUpgrade: websocket\r\nX: y\r\n\r\n";
    with_answer(bytes, Method::Get, |head| {
        assert_eq!(head.upgrade, Some(&b"websocket"[..]));
        assert!(head.connection_tokens);
        assert_eq!(head.fields.get("x"), None);
    });
}

#[test]
fn methods() {
    for (name, method, safe, idempotent) in [
        ("GET", Method::Get, true, true),
        ("HEAD", Method::Head, true, true),
        ("OPTIONS", Method::Options, true, true),
        ("TRACE", Method::Trace, true, true),
        ("PUT", Method::Put, false, true),
        ("DELETE", Method::Delete, false, true),
        ("POST", Method::Post, false, false),
        ("PATCH", Method::Patch, false, false),
        ("CONNECT", Method::Connect, false, false),
        ("get", Method::Other, false, false),
        ("M-SEARCH", Method::Other, false, false),
    ] {
        assert_eq!(Method::of(name.as_bytes()), method);
        assert_eq!((method.safe(), method.idempotent()), (safe, idempotent), "{name}");
    }
}

/// Heads made of what matters, most of them wrong.
fn heads() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\n",
        "POST /a?b#c HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT a:1 HTTP/1.1\r\n",
        "GET http://b/c HTTP/1.1\r\n",
        "GET / HTTP/2.0\r\n",
        "GET / HTTP/1.1\n",
        "\r\nGET / HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 101 Go\r\n",
        "HTTP/1.0 304 \r\n",
        "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HTTP/1.1\r\n",
    ]);
    let field = prop::sample::select(vec![
        "Host: a\r\n",
        "Host: a\r\n",
        "Host: a\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close, x\r\n",
        "Connection: upgrade\r\n",
        "Upgrade: w\r\n",
        "X: y \t\r\n",
        "X:\r\n",
        "x: \u{ff}\r\n",
        "X: y\n",
        "X : y\r\n",
        " y\r\n",
        "X: y\rz\r\n",
        "X: \0\r\n",
        "X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Host: b c\r\n",
        "\r\n",
    ]);
    let end = prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\n", "", "\r", "\r\nbody"]);
    (line, prop::collection::vec(field, 0..10), end)
        .prop_map(|(line, fields, end)| [line, &fields.concat(), end].concat().into_bytes())
}

proptest! {
    /// Whatever arrives first, the end is the same: a prefix of the input is incomplete, or refused for
    /// the same reason, or it holds the whole head.
    #[test]
    fn any_split_parses_alike(bytes in heads(), lenient: bool, head_bytes_max in 20_usize..200) {
        let limits = HeadLimits { head_bytes_max, lenient_line_ends: lenient, ..LIMITS };
        let whole = request(&bytes, &limits);
        for end in 0..bytes.len() {
            match request(&bytes[..end], &limits) {
                Ok(None) => {}
                settled => prop_assert_eq!(&settled, &whole, "{} bytes of it", end),
            }
        }
        let whole = answer(&bytes, Method::Get);
        for end in 0..bytes.len() {
            match answer(&bytes[..end], Method::Get) {
                Ok(None) => {}
                settled => prop_assert_eq!(&settled, &whole, "{} bytes of it", end),
            }
        }
    }

    #[test]
    fn anything_is_taken_without_a_panic(bytes: Vec<u8>) {
        let _ = request(&bytes, &LIMITS);
        let _ = answer(&bytes, Method::Get);
    }
}
