//! What must hold for any input. The fuzz targets call it with what they invent, `tests/corpus.rs`
//! with what is kept in `corpus/`. A check panics.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

use outrigger::config::{self, Format};
use outrigger::http::body::{Chunked, LAST_CHUNK, Piece, chunk_header};
use outrigger::http::head::{
    AnswerHead, Fields, Framing, HeadLimits, Method, Parsed, RequestHead, Scratch, Target, Version,
    parse_answer, parse_request,
};
use outrigger::http::path::{Encoded, Fragment, Normal, PathPolicy, normalise};
use outrigger::reason::Reason;

/// Small limits are reached by small inputs.
const LIMITS: [HeadLimits; 3] = [
    HeadLimits {
        uri_bytes_max: 8 << 10,
        head_bytes_max: 60 << 10,
        fields_max: 100,
        lenient_line_ends: false,
    },
    HeadLimits { uri_bytes_max: 16, head_bytes_max: 128, fields_max: 4, lenient_line_ends: false },
    HeadLimits { uri_bytes_max: 32, head_bytes_max: 256, fields_max: 8, lenient_line_ends: true },
];

/// Prefixes of an input that are tried; beyond it, only the shortest.
const PREFIXES_MAX: usize = 300;

/// `bytes` as the head of a request and of an answer.
pub fn head(bytes: &[u8]) {
    for limits in LIMITS {
        let whole = request(bytes, &limits);
        for end in 0..bytes.len().min(PREFIXES_MAX) {
            let part = request(&bytes[..end], &limits);
            assert!(part == Ok(None) || part == whole, "{end} bytes: {part:?}, all: {whole:?}");
        }
        for method in [Method::Get, Method::Head] {
            let whole = answer(bytes, &limits, method);
            for end in 0..bytes.len().min(PREFIXES_MAX) {
                let part = answer(&bytes[..end], &limits, method);
                assert!(part == Ok(None) || part == whole, "{end} bytes: {part:?}, all: {whole:?}");
            }
        }
    }
    path(bytes);
}

/// `bytes`, but for the first, as a chunked body; the first says in what parts it comes.
pub fn chunked(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let (lenient, size) = (first & 1 == 1, usize::from(first >> 1) + 1);
    let whole = decode(bytes, lenient, usize::MAX);
    assert_eq!(decode(bytes, lenient, size), whole);
    assert_eq!(decode(bytes, lenient, 1), whole);
    if let Ok(Some(body)) = &whole {
        let mut again = Vec::new();
        if !body.data.is_empty() {
            again.extend(chunk_header(body.data.len(), &mut [0; 18]));
            again.extend(&body.data);
            again.extend(b"\r\n");
        }
        again.extend(&LAST_CHUNK[..3]);
        for (name, value) in &body.trailers {
            again.extend([name, &b": "[..], value, b"\r\n"].concat());
        }
        again.extend(b"\r\n");
        let expected = Body { rest: Vec::new(), ..body.clone() };
        assert_eq!(decode(&again, false, size), Ok(Some(expected)), "framed anew");
    }
}

/// `bytes` as a configuration. It is refused with places that can be shown, or it holds, and then it can
/// be written out and read again.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for format in [Format::Yaml, Format::Toml] {
        let config = match config::parse(text, format, "fuzz") {
            Err(errors) => {
                assert!(errors.count() > 0 && !errors.to_string().is_empty());
                continue;
            }
            Ok(config) => config,
        };
        let written = config::to_yaml(&config);
        match config::parse(&written, Format::Yaml, "written") {
            Err(errors) => panic!("{errors}"),
            Ok(again) => assert_eq!(config::to_yaml(&again), written),
        }
    }
}

/// What is said of a head, and whether it holds by itself.
fn request(bytes: &[u8], limits: &HeadLimits) -> Result<Option<String>, Reason> {
    use Reason::*;
    let mut scratch = Scratch::new();
    match parse_request(bytes, limits, &mut scratch) {
        Err(reason) => {
            assert!(matches!(
                reason,
                BadHead | AmbiguousFraming | UnknownCoding | BadVersion | UriTooLong | HeadTooLarge
            ));
            Err(reason)
        }
        Ok(Parsed::Partial) => {
            assert!(bytes.len() < limits.head_bytes_max);
            Ok(None)
        }
        Ok(Parsed::Complete(head)) => {
            check_request(bytes, &head, limits);
            Ok(Some(format!("{head:?}")))
        }
    }
}

fn answer(bytes: &[u8], limits: &HeadLimits, method: Method) -> Result<Option<String>, Reason> {
    let mut scratch = Scratch::new();
    match parse_answer(bytes, limits, method, &mut scratch) {
        Err(reason) => {
            assert_eq!(reason, Reason::BadAnswer);
            Err(reason)
        }
        Ok(Parsed::Partial) => {
            assert!(bytes.len() < limits.head_bytes_max);
            Ok(None)
        }
        Ok(Parsed::Complete(head)) => {
            check_answer(bytes, &head, limits, method);
            Ok(Some(format!("{head:?}")))
        }
    }
}

fn check_request(bytes: &[u8], head: &RequestHead<'_, '_>, limits: &HeadLimits) {
    let lines = lines(&bytes[..head.len], limits);
    let lines: Vec<_> = lines.into_iter().skip_while(|line| line.is_empty()).collect();
    let words: Vec<_> = lines[0].split(|byte| *byte == b' ').collect();
    assert_eq!(words.len(), 3);
    assert_eq!(words[0], head.method_bytes);
    assert!(words[1].len() <= limits.uri_bytes_max && words[1].iter().all(u8::is_ascii_graphic));
    assert_eq!(words[2], version(head.version));
    check_fields(&lines[1..], &head.fields, limits);

    let hosts = values(&lines, "host");
    assert!(hosts.len() == 1 || hosts.is_empty() && head.version == Version::Http10);
    match head.target {
        Target::Absolute { authority, .. } | Target::Authority(authority) => {
            assert_eq!(head.host, authority);
        }
        Target::Asterisk if words[1] != b"*" => assert!(words[1].ends_with(head.host)),
        _ => assert_eq!(head.host, hosts.first().copied().unwrap_or_default()),
    }
    assert!(head.version == Version::Http10 || !head.host.is_empty());
    assert!(!head.host.iter().any(|byte| b" \t/@?#\\%".contains(byte)));
    assert_ne!(head.framing, Framing::UntilClose);
    check_framing(&lines, head.framing, head.version);
    if let Some(path) = head.target.path() {
        assert!(path.starts_with(b"/") && !path.contains(&b'#') && !path.contains(&b'?'));
    }

    // What was read, written again, reads the same.
    if !limits.lenient_line_ends {
        let again = [&lines.join(&b"\r\n"[..])[..], b"\r\n"].concat();
        let mut scratch = Scratch::new();
        let Ok(Parsed::Complete(same)) = parse_request(&again, limits, &mut scratch) else {
            panic!("refused when written again: {}", again.escape_ascii());
        };
        assert_eq!(
            format!("{:?}", (head.target, head.framing, head.host)),
            format!("{:?}", (same.target, same.framing, same.host))
        );
    }
}

fn check_answer(bytes: &[u8], head: &AnswerHead<'_, '_>, limits: &HeadLimits, method: Method) {
    let lines = lines(&bytes[..head.len], limits);
    assert!(lines[0].starts_with(version(head.version)));
    assert_eq!(&lines[0][8..12], format!(" {}", head.status).as_bytes());
    assert!(head.status >= 100);
    assert_eq!(lines[0][12..].strip_prefix(b" ").unwrap_or_default(), head.reason_phrase);
    check_fields(&lines[1..], &head.fields, limits);
    let bodiless = method == Method::Head || matches!(head.status, 100..=199 | 204 | 304);
    if bodiless {
        assert_eq!(head.framing, Framing::None);
    } else if head.framing == Framing::UntilClose {
        assert!(!head.keep_alive);
        check_framing(&lines, Framing::None, head.version);
    } else {
        check_framing(&lines, head.framing, head.version);
    }
    assert!(head.status != 101 || head.upgrade.is_some() && !head.keep_alive);
}

/// The lines of a head, split the slow way. No CR or LF may be left in them, nor NUL.
fn lines<'b>(head: &'b [u8], limits: &HeadLimits) -> Vec<&'b [u8]> {
    assert!(head.len() <= limits.head_bytes_max);
    let mut lines: Vec<&[u8]> = Vec::new();
    for line in head.strip_suffix(b"\n").expect("ends with LF").split(|byte| *byte == b'\n') {
        let exact = line.strip_suffix(b"\r");
        assert!(exact.is_some() || limits.lenient_line_ends, "bare LF");
        lines.push(exact.unwrap_or(line));
    }
    for line in &lines {
        assert!(!line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0 | 0x7f)));
    }
    assert_eq!(lines.last(), Some(&&b""[..]));
    lines
}

/// The lines behind the first one, against what was made of them.
fn check_fields(lines: &[&[u8]], fields: &Fields<'_, '_>, limits: &HeadLimits) {
    assert_eq!(lines.len(), fields.len() + 1);
    assert!(fields.len() <= limits.fields_max);
    for (line, (_, name, value)) in lines.iter().zip(fields.iter()) {
        let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
        assert_eq!(&line[..colon], name);
        assert_eq!(line[colon + 1..].trim_ascii(), value);
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        assert!(!name.is_empty() && name.iter().all(token));
    }
}

/// At most one of the two fields that frame, and it says what was made of it.
fn check_framing(lines: &[&[u8]], framing: Framing, version: Version) {
    let (lengths, codings) = (values(lines, "content-length"), values(lines, "transfer-encoding"));
    match framing {
        Framing::Length(length) => {
            assert!(lengths.len() == 1 && codings.is_empty());
            let text = std::str::from_utf8(lengths[0]).expect("digits");
            assert!(text.bytes().all(|byte| byte.is_ascii_digit()));
            assert_eq!(text.parse(), Ok(length));
        }
        Framing::Chunked => {
            assert!(lengths.is_empty() && codings.len() == 1 && version == Version::Http11);
            assert!(codings[0].eq_ignore_ascii_case(b"chunked"));
        }
        Framing::None | Framing::UntilClose => assert!(lengths.is_empty() && codings.is_empty()),
    }
}

/// The values of all fields called `name`.
fn values<'b>(lines: &[&'b [u8]], name: &str) -> Vec<&'b [u8]> {
    let mut values = Vec::new();
    for line in &lines[1..] {
        if let Some(colon) = line.iter().position(|byte| *byte == b':')
            && line[..colon].eq_ignore_ascii_case(name.as_bytes())
        {
            values.push(line[colon + 1..].trim_ascii());
        }
    }
    values
}

fn version(version: Version) -> &'static [u8] {
    match version {
        Version::Http10 => b"HTTP/1.0",
        Version::Http11 => b"HTTP/1.1",
    }
}

/// `bytes` as a path, under each policy: what comes out is safe, and normal.
fn path(bytes: &[u8]) {
    for policy in [Encoded::Refuse, Encoded::Keep, Encoded::Decode] {
        for merge_slashes in [false, true] {
            let policy = PathPolicy {
                slash: policy,
                backslash: policy,
                nul: policy,
                fragment: Fragment::Strip,
                merge_slashes,
            };
            let mut out = Vec::new();
            let normal = match normalise(bytes, &policy, &mut out) {
                Err(reason) => {
                    assert_eq!(reason, Reason::BadPath);
                    continue;
                }
                Ok(Normal::Same(path)) => path.to_vec(),
                Ok(Normal::Written) => out,
            };
            assert!(normal.starts_with(b"/"));
            assert!(normal.iter().all(|byte| byte.is_ascii_graphic() && !b"?#\\".contains(byte)));
            for segment in normal.split(|byte| *byte == b'/') {
                assert!(segment != b"." && segment != b"..");
            }
            assert!(!merge_slashes || !normal.windows(2).any(|two| two == b"//"));
            let again = normalise(&normal, &policy, &mut Vec::new())
                .map(|same| same == Normal::Same(&normal));
            assert_eq!(again, Ok(true), "{} is not normal", normal.escape_ascii());
        }
    }
}

/// A decoded body, and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
    rest: Vec<u8>,
}

/// Decodes `bytes`, which come in parts of `size`, as the relay does. None: more are needed.
fn decode(bytes: &[u8], lenient: bool, size: usize) -> Result<Option<Body>, Reason> {
    let mut chunked = Chunked::new(lenient);
    let (mut data, mut trailers) = (Vec::new(), Vec::new());
    let (mut start, mut end) = (0, 0);
    while end < bytes.len() {
        end = bytes.len().min(end.saturating_add(size));
        loop {
            let (consumed, piece) = match chunked.step(&bytes[start..end]) {
                Ok(step) => step,
                Err(reason) => {
                    assert_eq!(reason, Reason::BadBody);
                    return Err(reason);
                }
            };
            start += consumed;
            match piece {
                Piece::NeedMore => break,
                Piece::Data(piece) => {
                    assert!(!piece.is_empty());
                    data.extend(piece);
                }
                Piece::Trailer { name, value } => trailers.push((name.to_vec(), value.to_vec())),
                Piece::End => {
                    let rest = bytes[start..].to_vec();
                    return Ok(Some(Body { data, trailers, rest }));
                }
            }
        }
    }
    Ok(None)
}
