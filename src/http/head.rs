//! Heads of requests and answers: bytes in, slices of them out, or the reason to refuse them. The
//! session calls it for clients, the upstream side for origins. Never allocates, never reads a
//! socket, and never guesses: where two parsers could disagree, it refuses.
//!
//! ```text
//! bytes -> httparse (lines, tokens, controls) -> target -> survey of the fields -> framing
//! ```
//!
//! What is parsed depends on the bytes alone, not on how they arrived: any split of the input ends
//! with the same head or the same reason.

use std::mem::MaybeUninit;

use httparse::{Error, Header, Request, Response, Status};

pub use super::field::{FieldKind, Fields};
pub use super::target::Target;

use super::field::{is_token, members, trim};
use super::target::{self, Parts};
use crate::reason::Reason;

/// Fields, the hard cap for [`HeadLimits::fields_max`]: what [`Scratch`] has room for.
pub const FIELDS_MAX: usize = 256;

/// Bytes of a method. The longest registered one has 17 (RFC 4437).
pub const METHOD_BYTES_MAX: usize = 32;

/// Empty lines in front of a request line that are skipped, for old clients that send one after a
/// body (RFC 9112, 2.2).
pub const EMPTY_LINES_MAX: usize = 4;

/// Options in `Connection`, all lines together. Each is looked for among all fields.
pub const CONNECTION_OPTIONS_MAX: usize = 32;

/// How large a head may be, and how exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the request target. Above it: 414.
    pub uri_bytes_max: usize,
    /// Bytes of the whole head, its last line end included. Above it: 431.
    pub head_bytes_max: usize,
    /// Fields, at most [`FIELDS_MAX`]. Above it: 431.
    pub fields_max: usize,
    /// Take a bare LF for a line end, in heads and chunk lines.
    pub lenient_line_ends: bool,
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits {
            uri_bytes_max: 8 << 10,
            head_bytes_max: 60 << 10,
            fields_max: 100,
            lenient_line_ends: false,
        }
    }
}

/// The protocol version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// A request method as far as a proxy cares. Methods are case-sensitive (RFC 9110, 9.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// CONNECT.
    Connect,
    /// OPTIONS.
    Options,
    /// TRACE.
    Trace,
    /// PATCH.
    Patch,
    /// Any other token.
    Other,
}

impl Method {
    /// The method called `name`.
    #[inline]
    pub fn of(name: &[u8]) -> Method {
        match name {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"CONNECT" => Method::Connect,
            b"OPTIONS" => Method::Options,
            b"TRACE" => Method::Trace,
            b"PATCH" => Method::Patch,
            _ => Method::Other,
        }
    }

    /// Asks for nothing to be changed (RFC 9110, 9.2.1).
    pub const fn safe(self) -> bool {
        matches!(self, Method::Get | Method::Head | Method::Options | Method::Trace)
    }

    /// Sent twice, it does what it does once (RFC 9110, 9.2.2). Unknown methods are not.
    pub const fn idempotent(self) -> bool {
        self.safe() || matches!(self, Method::Put | Method::Delete)
    }
}

/// How the end of a body is found (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks, then trailers; see [`Chunked`](super::body::Chunked).
    Chunked,
    /// All until the sender closes. Answers only.
    UntilClose,
}

/// A head, or the wish for more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<T> {
    /// Ask again with more bytes behind these.
    Partial,
    /// All of it.
    Complete(T),
}

/// Room for the fields of one head, kept by the caller while it looks at the head. It is large, so
/// it belongs into a synchronous function, not into a future.
pub struct Scratch<'b> {
    headers: [MaybeUninit<Header<'b>>; FIELDS_MAX],
    kinds: [FieldKind; FIELDS_MAX],
}

impl Scratch<'_> {
    /// Leaves the 8 KiB for the fields uninitialised; only their kinds, 256 bytes, are written.
    #[inline(always)]
    #[expect(clippy::new_without_default, reason = "8 KiB should not be created in passing")]
    pub fn new() -> Self {
        Scratch {
            headers: [const { MaybeUninit::uninit() }; FIELDS_MAX],
            kinds: [FieldKind::Other; FIELDS_MAX],
        }
    }
}

/// The head of a request: slices of the buffer that it was parsed from.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'b, 'h> {
    /// The method.
    pub method: Method,
    /// The method as sent.
    pub method_bytes: &'b [u8],
    /// Path and query are raw: `path` normalises them before anybody looks at them.
    pub target: Target<'b>,
    /// The target carried a fragment. It is cut off already; the path policy may refuse it.
    pub fragment: bool,
    /// The client's version.
    pub version: Version,
    /// Host and port, raw: the target's authority if it has one, else the field `Host` (RFC 9112,
    /// 3.2.2). Empty in HTTP/1.0 only.
    pub host: &'b [u8],
    /// The fields in order.
    pub fields: Fields<'b, 'h>,
    /// Never [`Framing::UntilClose`].
    pub framing: Framing,
    /// The client would send another request on this connection.
    pub keep_alive: bool,
    /// The value of `Upgrade`, if `Connection` names it and the version is 1.1. None if it offers
    /// `h2c`: that upgrade was taken back (RFC 9113, 3.1), and a tunnel for it would bypass every rule.
    pub upgrade: Option<&'b [u8]>,
    /// The client waits for a 100 (Continue); never in HTTP/1.0.
    pub expect_continue: bool,
    /// `TE` has the member `trailers`.
    pub te_trailers: bool,
    /// `Connection` named fields of this head: they are [`FieldKind::ConnectionNamed`].
    pub connection_tokens: bool,
    /// Bytes of the head in the buffer: from its first byte, skipped empty lines included, to its
    /// last line end.
    pub len: usize,
}

/// The head of an answer: slices of the buffer that it was parsed from.
#[derive(Debug, Clone, Copy)]
pub struct AnswerHead<'b, 'h> {
    /// 100 to 999.
    pub status: u16,
    /// As sent, perhaps empty.
    pub reason_phrase: &'b [u8],
    /// The origin's version.
    pub version: Version,
    /// The fields in order.
    pub fields: Fields<'b, 'h>,
    /// Of this answer to this request: [`Framing::None`] for HEAD, 1xx, 204 and 304.
    pub framing: Framing,
    /// What `Content-Length` said, also where the answer has no body (HEAD, 304).
    pub content_length: Option<u64>,
    /// The connection can be used again behind this answer.
    pub keep_alive: bool,
    /// The value of `Upgrade`, if `Connection` names it; always there in a 101.
    pub upgrade: Option<&'b [u8]>,
    /// `Connection` named fields of this head: they are [`FieldKind::ConnectionNamed`].
    pub connection_tokens: bool,
    /// Bytes of the head in the buffer.
    pub len: usize,
}

/// Parses the head of a request at the beginning of `bytes`; what follows it is ignored.
///
/// # Errors
///
/// `BadHead`, `AmbiguousFraming`, `UnknownCoding`, `BadVersion`, `UriTooLong` or `HeadTooLarge`, as soon
/// as the bytes can become nothing else: the connection is of no more use.
pub fn parse_request<'b, 'h>(
    bytes: &'b [u8],
    limits: &HeadLimits,
    scratch: &'h mut Scratch<'b>,
) -> Result<Parsed<RequestHead<'b, 'h>>, Reason> {
    let lenient = limits.lenient_line_ends;
    let skipped = empty_lines(bytes, lenient)?;
    // Nothing behind the limit is looked at, or the reason would depend on how much is there.
    let window = &bytes[..bytes.len().min(limits.head_bytes_max)];
    let window = window.get(skipped..).unwrap_or_default();

    let fields_max = limits.fields_max.min(FIELDS_MAX);
    let mut request = Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(window, &mut scratch.headers[..fields_max]);
    let (Ok(Status::Complete(len)), Some(method_str), Some(target_str), Some(minor)) =
        (parsed, request.method, request.path, request.version)
    else {
        let full = bytes.len() >= limits.head_bytes_max;
        return unfinished(parsed, request.method, request.path, window, full, limits);
    };
    let (method_bytes, target_bytes) = (method_str.as_bytes(), target_str.as_bytes());
    check_line(method_bytes, target_bytes, limits)?;
    let line_end = method_bytes.len() + target_bytes.len() + " ".len() + " HTTP/1.1".len();
    if !lenient && (window[line_end] != b'\r' || window[len - 2] != b'\r') {
        return Err(Reason::BadHead);
    }

    let method = Method::of(method_bytes);
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let Parts { target, authority, fragment } =
        Target::parse(method, target_bytes).ok_or(Reason::BadHead)?;

    let headers: &'h [Header<'b>] = request.headers;
    let kinds = &mut scratch.kinds[..headers.len()];
    let survey = Survey::of(window, headers, kinds, lenient)?;
    let host = match (survey.host, version) {
        (Some(b"") | None, Version::Http11) => return Err(Reason::BadHead),
        (Some(host), _) if !target::is_authority(host) => return Err(Reason::BadHead),
        (Some(host), _) => host,
        (None, Version::Http10) => b"",
    };
    let framing = survey.framing(version)?.unwrap_or(Framing::None);
    let upgrade = survey.upgrade().filter(|value| {
        version == Version::Http11 && !members(value).any(|one| one.eq_ignore_ascii_case(b"h2c"))
    });

    Ok(Parsed::Complete(RequestHead {
        method,
        method_bytes,
        target,
        fragment,
        version,
        host: authority.unwrap_or(host),
        fields: Fields::new(headers, kinds),
        framing,
        keep_alive: survey.keep_alive(version),
        upgrade,
        expect_continue: survey.expect_continue && version == Version::Http11,
        te_trailers: survey.te_trailers,
        connection_tokens: survey.names_fields,
        len: skipped + len,
    }))
}

/// Parses the head of an answer at the beginning of `bytes`; what follows it is ignored.
/// `request_method` is that of the request which it answers.
///
/// # Errors
///
/// Always `BadAnswer`, also where it is larger than `limits` allow.
pub fn parse_answer<'b, 'h>(
    bytes: &'b [u8],
    limits: &HeadLimits,
    request_method: Method,
    scratch: &'h mut Scratch<'b>,
) -> Result<Parsed<AnswerHead<'b, 'h>>, Reason> {
    let lenient = limits.lenient_line_ends;
    let window = &bytes[..bytes.len().min(limits.head_bytes_max)];
    if window.first().is_some_and(|byte| *byte != b'H') {
        return Err(Reason::BadAnswer); // The tokeniser would skip empty lines.
    }

    let fields_max = limits.fields_max.min(FIELDS_MAX);
    let mut response = Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(
        &mut response,
        window,
        &mut scratch.headers[..fields_max],
    );
    let (Ok(Status::Complete(len)), Some(status @ 100..), Some(minor)) =
        (parsed, response.code, response.version)
    else {
        let more = parsed == Ok(Status::Partial) && bytes.len() < limits.head_bytes_max;
        return if more { Ok(Parsed::Partial) } else { Err(Reason::BadAnswer) };
    };
    let (reason_phrase, line_exact) = reason_phrase(window);
    if !lenient && (!line_exact || window[len - 2] != b'\r') {
        return Err(Reason::BadAnswer);
    }

    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let headers: &'h [Header<'b>] = response.headers;
    let kinds = &mut scratch.kinds[..headers.len()];
    let survey = Survey::of(window, headers, kinds, lenient).map_err(|_| Reason::BadAnswer)?;
    let announced = survey.framing(version).map_err(|_| Reason::BadAnswer)?;
    let body = !matches!(announced, None | Some(Framing::Length(0)));
    let upgrade = survey.upgrade();
    let (framing, reusable) = match status {
        // These end with their head, and nothing may say otherwise (RFC 9112, 6.1; RFC 9110, 8.6).
        100..=199 if body => return Err(Reason::BadAnswer),
        101 if upgrade.is_none() => return Err(Reason::BadAnswer),
        101 => (Framing::None, false),
        100..=199 => (Framing::None, true),
        // So does this, but origins that announce a body here are many; some of them send it.
        204 => (Framing::None, !body),
        304 => (Framing::None, true),
        _ if request_method == Method::Head => (Framing::None, true),
        200..=299 if request_method == Method::Connect => (Framing::None, false),
        _ => match announced {
            None => (Framing::UntilClose, false),
            Some(framing) => (framing, true),
        },
    };

    Ok(Parsed::Complete(AnswerHead {
        status,
        reason_phrase,
        version,
        fields: Fields::new(headers, kinds),
        framing,
        content_length: survey.content_length,
        keep_alive: reusable && survey.keep_alive(version),
        upgrade,
        connection_tokens: survey.names_fields,
        len,
    }))
}

/// Bytes of the empty lines in front of a request.
#[inline]
fn empty_lines(bytes: &[u8], lenient: bool) -> Result<usize, Reason> {
    let mut skipped = 0;
    for _ in 0..EMPTY_LINES_MAX {
        match &bytes[skipped..] {
            [b'\r', b'\n', ..] => skipped += 2,
            [b'\n', ..] if lenient => skipped += 1,
            _ => break,
        }
    }
    match &bytes[skipped..] {
        [b'\n', ..] | [b'\r', b'\n', ..] => Err(Reason::BadHead),
        _ => Ok(skipped),
    }
}

/// Method and target, against their limits.
#[inline]
fn check_line(method: &[u8], target: &[u8], limits: &HeadLimits) -> Result<(), Reason> {
    if method.len() > METHOD_BYTES_MAX {
        return Err(Reason::BadHead);
    }
    if target.len() > limits.uri_bytes_max {
        return Err(Reason::UriTooLong);
    }
    Ok(())
}

/// What to say of a request whose head the tokeniser did not finish: more, or why not.
#[cold]
fn unfinished<T>(
    parsed: httparse::Result<usize>,
    method: Option<&str>,
    target: Option<&str>,
    window: &[u8],
    full: bool,
    limits: &HeadLimits,
) -> Result<Parsed<T>, Reason> {
    let method = match method {
        Some(method) => method.as_bytes(),
        None => window, // So far.
    };
    let rest = window.get(method.len() + 1..).unwrap_or_default();
    let target = match target {
        Some(target) => target.as_bytes(),
        None => {
            let end = rest.iter().position(|byte| matches!(byte, 0..=b' ' | 0x7f));
            &rest[..end.unwrap_or(rest.len())]
        }
    };
    check_line(method, target, limits)?;
    match parsed {
        Ok(_) => {}
        Err(Error::TooManyHeaders) => return Err(Reason::HeadTooLarge),
        Err(Error::Version) => {
            let version = rest.get(target.len() + 1..).unwrap_or_default();
            let mut pairs = b"HTTP/d.d".iter().zip(version);
            if !pairs.all(|(a, b)| a == b || *a == b'd' && b.is_ascii_digit()) {
                return Err(Reason::BadHead);
            }
            if version.len() >= 8 {
                return Err(Reason::BadVersion);
            }
            // The next bytes say whether it is a version at all.
        }
        Err(_) => return Err(Reason::BadHead),
    }
    if full { Err(Reason::HeadTooLarge) } else { Ok(Parsed::Partial) }
}

/// The reason phrase of a status line that the tokeniser has seen, and whether the line ends with
/// CRLF. (The tokeniser hides phrases beyond ASCII.)
#[inline]
fn reason_phrase(window: &[u8]) -> (&[u8], bool) {
    let rest = &window["HTTP/1.1 200".len()..];
    let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
    let (phrase, exact) = match &rest[..end] {
        [phrase @ .., b'\r'] => (phrase, true),
        phrase => (phrase, false),
    };
    (phrase.strip_prefix(b" ").unwrap_or(phrase), exact)
}

/// What the fields of a head say together.
#[derive(Default)]
struct Survey<'b> {
    host: Option<&'b [u8]>,
    content_length: Option<u64>,
    codings: Codings,
    close: bool,
    keep: bool,
    upgrade_named: bool,
    upgrade_value: Option<&'b [u8]>,
    expect_continue: bool,
    te_trailers: bool,
    names_fields: bool,
}

/// The members of all `Transfer-Encoding` lines.
#[derive(Default)]
struct Codings {
    present: bool,
    chunked: u32,
    unknown: bool,
    malformed: bool,
}

impl<'b> Survey<'b> {
    /// Classifies all fields in one pass, and checks their line ends.
    #[inline]
    fn of(
        window: &'b [u8],
        headers: &[Header<'b>],
        kinds: &mut [FieldKind],
        lenient: bool,
    ) -> Result<Self, Reason> {
        let mut survey = Survey::default();
        for (header, kind_slot) in headers.iter().zip(kinds.iter_mut()) {
            let value = header.value;
            if !lenient && !ends_with_cr(window, value) {
                return Err(Reason::BadHead);
            }
            let kind = FieldKind::of(header.name.as_bytes());
            *kind_slot = kind;
            match kind {
                FieldKind::Host => survey.add_host(value)?,
                FieldKind::ContentLength => survey.add_length(value)?,
                FieldKind::TransferEncoding => survey.codings.add(value),
                FieldKind::Connection => survey.add_connection(value),
                FieldKind::Upgrade => {
                    // A list over two lines is legal, but no upgrade that we would make.
                    let repeated = survey.upgrade_value.is_some();
                    survey.upgrade_value = Some(if repeated { b"" } else { value });
                }
                FieldKind::Expect => {
                    survey.expect_continue |= value.eq_ignore_ascii_case(b"100-continue");
                }
                FieldKind::Te => {
                    let mut list = members(value);
                    survey.te_trailers |= list.any(|one| one.eq_ignore_ascii_case(b"trailers"));
                }
                _ => {}
            }
        }
        if survey.names_fields {
            mark_named(headers, kinds)?;
        }
        Ok(survey)
    }

    #[inline]
    fn add_host(&mut self, value: &'b [u8]) -> Result<(), Reason> {
        match self.host.replace(value) {
            None => Ok(()),
            Some(_) => Err(Reason::BadHead),
        }
    }

    /// Repetitions and lists of one value could be collapsed (RFC 9110, 8.6), but nobody sound sends
    /// them: they are refused like differing ones.
    #[inline]
    fn add_length(&mut self, value: &[u8]) -> Result<(), Reason> {
        let length = content_length(value).ok_or(Reason::AmbiguousFraming)?;
        match self.content_length.replace(length) {
            None => Ok(()),
            Some(_) => Err(Reason::AmbiguousFraming),
        }
    }

    fn add_connection(&mut self, value: &[u8]) {
        for option in members(value) {
            match option {
                b"" => {}
                _ if option.eq_ignore_ascii_case(b"keep-alive") => self.keep = true,
                _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
                _ if option.eq_ignore_ascii_case(b"upgrade") => self.upgrade_named = true,
                _ if option.eq_ignore_ascii_case(b"te") => {}
                _ => self.names_fields = true,
            }
        }
    }

    /// RFC 9112, 6.3, but what is doubtful is refused instead of repaired. None: nothing is said.
    #[inline]
    fn framing(&self, version: Version) -> Result<Option<Framing>, Reason> {
        let codings = &self.codings;
        if !codings.present {
            return Ok(self.content_length.map(Framing::Length));
        }
        if codings.malformed || self.content_length.is_some() || version == Version::Http10 {
            return Err(Reason::AmbiguousFraming);
        }
        if codings.unknown {
            return Err(Reason::UnknownCoding);
        }
        if codings.chunked != 1 {
            return Err(Reason::AmbiguousFraming);
        }
        Ok(Some(Framing::Chunked))
    }

    /// RFC 9112, 9.3.
    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep)
    }

    /// RFC 9110, 7.8.
    fn upgrade(&self) -> Option<&'b [u8]> {
        self.upgrade_value.filter(|value| self.upgrade_named && !value.is_empty())
    }
}

impl Codings {
    #[cold]
    fn add(&mut self, value: &[u8]) {
        self.present = true;
        for coding in members(value) {
            let name = coding.split(|byte| *byte == b';').next().unwrap_or_default();
            if coding.eq_ignore_ascii_case(b"chunked") {
                self.chunked += 1;
            } else if !is_token(trim(name)) || trim(name).eq_ignore_ascii_case(b"chunked") {
                self.malformed = true;
            } else {
                self.unknown = true;
            }
        }
    }
}

/// Whether the line of `value`, a slice of `window`, ends with CRLF. The tokeniser saw to it that
/// behind the white space stands CRLF or LF.
#[inline]
fn ends_with_cr(window: &[u8], value: &[u8]) -> bool {
    let mut index = value.as_ptr().addr() - window.as_ptr().addr() + value.len();
    loop {
        match window[index] {
            b'\r' => return true,
            b' ' | b'\t' => index += 1,
            _ => return false,
        }
    }
}

/// Digits, at least one, that fit into 64 bits (RFC 9110, 8.6).
fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = u64::from(byte.is_ascii_digit().then(|| byte - b'0')?);
        length.checked_mul(10)?.checked_add(digit)
    })
}

/// Marks the fields that `Connection` names (RFC 9110, 7.6.1).
#[cold]
fn mark_named(headers: &[Header<'_>], kinds: &mut [FieldKind]) -> Result<(), Reason> {
    let mut options = 0;
    for index in 0..headers.len() {
        if kinds[index] != FieldKind::Connection {
            continue;
        }
        for option in members(headers[index].value).filter(|option| !option.is_empty()) {
            options += 1;
            if options > CONNECTION_OPTIONS_MAX {
                return Err(Reason::BadHead);
            }
            for (header, kind) in headers.iter().zip(kinds.iter_mut()) {
                if kind.removable() && header.name.as_bytes().eq_ignore_ascii_case(option) {
                    *kind = FieldKind::ConnectionNamed;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
