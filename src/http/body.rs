//! Chunked bodies (RFC 9112, 7.1): checked where they lie, never copied. The relay calls it for both
//! directions; it says which bytes are data, and the relay frames them anew.
//!
//! ```text
//!  Size --;--> Extension          +--------------- Data <-+
//!   |  \___________|              v                       |
//!   +---CR----> SizeLf --LF--> size > 0 ------------------+      (Data --CR--> DataLf --LF--> Size)
//!                         `--> size = 0: Trailers --CR--> EndLf --LF--> End
//! ```

use super::field::{is_token, is_token_byte, is_value_byte, trim};
use crate::reason::Reason;

/// Largest chunk, in bytes: what signed 64 bits hold, since somebody behind us may count with them.
pub const CHUNK_BYTES_MAX: u64 = i64::MAX as u64;

/// Digits of a chunk size, leading zeros included.
pub const SIZE_DIGITS_MAX: u8 = 16;

/// Bytes of the extensions of one chunk.
pub const EXTENSION_BYTES_MAX: u32 = 4 << 10;

/// Bytes of all extensions of a body: they cost us, and no body limit counts them.
pub const EXTENSIONS_BYTES_MAX: u32 = 64 << 10;

/// Bytes of the trailer section. A buffer must hold as much, for a line comes whole.
pub const TRAILER_BYTES_MAX: u32 = 8 << 10;

/// Fields in the trailer section, those counted that are dropped.
pub const TRAILER_FIELDS_MAX: u32 = 64;

/// Ends a body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Where we are in a chunked body. Small and `Copy`.
#[derive(Debug, Clone, Copy)]
pub struct Chunked {
    state: State,
    lenient: bool,
    /// Digits of the chunk size seen.
    digits: u8,
    /// The chunk size so far, then bytes of the chunk still to come.
    left: u64,
    extension_bytes: u32,
    extensions_bytes: u32,
    trailer_bytes: u32,
    trailer_fields: u32,
}

/// What is expected next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first digit of a size, or another.
    Size,
    /// White space behind a size or an extension; only `;` can follow.
    BeforeExtension,
    Extension(Extension),
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// A trailer field, or the empty line.
    Trailers,
    EndLf,
    End,
}

/// Where in `;name=value` (RFC 9112, 7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    BeforeName,
    Name,
    BehindName,
    BeforeValue,
    Value,
    Quoted,
    Escaped,
    BehindQuoted,
}

/// Name and value of a trailer field.
type NameValue<'b> = (&'b [u8], &'b [u8]);

/// A part of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'b> {
    /// All that is consumable is consumed. What is left, part of a trailer line, must be given again
    /// with more bytes behind it.
    NeedMore,
    /// Bytes of the content, never empty. One chunk may come in several pieces.
    Data(&'b [u8]),
    /// One trailer field. Those that must not come as trailers are dropped, see
    /// [`Chunked::step`].
    Trailer {
        /// A token.
        name: &'b [u8],
        /// Without white space around it.
        value: &'b [u8],
    },
    /// The body is complete; what follows belongs to the next message.
    End,
}

impl Chunked {
    /// At the beginning of a body. `lenient_line_ends` takes a bare LF for a line end.
    pub fn new(lenient_line_ends: bool) -> Self {
        Chunked {
            state: State::Size,
            lenient: lenient_line_ends,
            digits: 0,
            left: 0,
            extension_bytes: 0,
            extensions_bytes: 0,
            trailer_bytes: 0,
            trailer_fields: 0,
        }
    }

    /// Consumes a prefix of `bytes` and returns its length, with the piece that it ends with. Extensions
    /// are checked and dropped: they are hop-by-hop. Trailers that would frame, route, authenticate or
    /// otherwise steer a message are dropped too (RFC 9110, 6.5.1).
    ///
    /// # Errors
    ///
    /// `BadBody`: malformed, or beyond a bound of this module.
    pub fn step<'b>(&mut self, bytes: &'b [u8]) -> Result<(usize, Piece<'b>), Reason> {
        let mut at = 0;
        loop {
            match self.state {
                State::Data => {
                    let data = self.take(&bytes[at..]);
                    if data.is_empty() {
                        return Ok((at, Piece::NeedMore));
                    }
                    return Ok((at + data.len(), Piece::Data(data)));
                }
                State::Trailers if !matches!(bytes.get(at), None | Some(b'\r' | b'\n')) => {
                    let Some((len, trailer)) = self.trailer(&bytes[at..])? else {
                        return Ok((at, Piece::NeedMore));
                    };
                    at += len;
                    if let Some((name, value)) = trailer {
                        return Ok((at, Piece::Trailer { name, value }));
                    }
                }
                State::End => return Ok((at, Piece::End)),
                _ => {
                    let Some(&byte) = bytes.get(at) else {
                        return Ok((at, Piece::NeedMore));
                    };
                    at += 1;
                    self.state = self.next(byte)?;
                }
            }
        }
    }

    /// The part of the chunk's data that is there.
    #[inline]
    fn take<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let len = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        self.left -= len as u64;
        if self.left == 0 {
            self.state = State::DataCr;
        }
        &bytes[..len]
    }

    /// The state behind `byte`, where neither data nor a trailer stands.
    fn next(&mut self, byte: u8) -> Result<State, Reason> {
        use State::*;
        let lf_for_crlf = byte == b'\n' && self.lenient;
        Ok(match self.state {
            Size => match byte {
                b'\r' if self.digits > 0 => SizeLf,
                _ if lf_for_crlf && self.digits > 0 => self.line_ended(),
                b';' if self.digits > 0 => Extension(self::Extension::BeforeName),
                b' ' | b'\t' if self.digits > 0 => self.extended(BeforeExtension)?,
                _ => self.digit(byte)?,
            },
            BeforeExtension => match byte {
                b' ' | b'\t' => self.extended(BeforeExtension)?,
                b';' => self.extended(Extension(self::Extension::BeforeName))?,
                _ => return Err(Reason::BadBody),
            },
            Extension(part) => match (part.next(byte), part.may_end()) {
                (Some(state), _) => self.extended(state)?,
                (None, true) if byte == b'\r' => SizeLf,
                (None, true) if lf_for_crlf => self.line_ended(),
                (None, _) => return Err(Reason::BadBody),
            },
            SizeLf if byte == b'\n' => self.line_ended(),
            DataCr if byte == b'\r' => DataLf,
            DataCr if lf_for_crlf => self.chunk_ended(),
            DataLf if byte == b'\n' => self.chunk_ended(),
            Trailers if byte == b'\r' => EndLf,
            Trailers if lf_for_crlf => End,
            EndLf if byte == b'\n' => End,
            SizeLf | Data | DataCr | DataLf | Trailers | EndLf | End => {
                return Err(Reason::BadBody);
            }
        })
    }

    fn digit(&mut self, byte: u8) -> Result<State, Reason> {
        let digit = hex(byte).ok_or(Reason::BadBody)?;
        if self.digits == SIZE_DIGITS_MAX || self.left > CHUNK_BYTES_MAX >> 4 {
            return Err(Reason::BadBody);
        }
        self.digits += 1;
        self.left = self.left << 4 | u64::from(digit);
        Ok(State::Size)
    }

    /// Counts a byte of an extension.
    fn extended(&mut self, state: State) -> Result<State, Reason> {
        self.extension_bytes += 1;
        self.extensions_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX
            || self.extensions_bytes > EXTENSIONS_BYTES_MAX
        {
            return Err(Reason::BadBody);
        }
        Ok(state)
    }

    fn line_ended(&mut self) -> State {
        self.extension_bytes = 0;
        if self.left == 0 { State::Trailers } else { State::Data }
    }

    fn chunk_ended(&mut self) -> State {
        self.digits = 0;
        State::Size
    }

    /// One trailer line: its length, and the field unless it is dropped. None: it is not all there.
    #[cold]
    fn trailer<'b>(
        &mut self,
        bytes: &'b [u8],
    ) -> Result<Option<(usize, Option<NameValue<'b>>)>, Reason> {
        let room = (TRAILER_BYTES_MAX - self.trailer_bytes) as usize;
        let window = &bytes[..bytes.len().min(room)];
        let Some(end) = memchr::memchr(b'\n', window) else {
            let more = bytes.len() < room;
            return if more { Ok(None) } else { Err(Reason::BadBody) };
        };
        let line = match &window[..end] {
            [line @ .., b'\r'] => line,
            line if self.lenient => line,
            _ => return Err(Reason::BadBody),
        };
        self.trailer_bytes += end as u32 + 1;
        self.trailer_fields += 1;
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Reason::BadBody)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        let valid = is_token(name) && value.iter().all(|byte| is_value_byte(*byte));
        if !valid || self.trailer_fields > TRAILER_FIELDS_MAX {
            return Err(Reason::BadBody);
        }
        Ok(Some((end + 1, (!is_dropped(name)).then_some((name, value)))))
    }
}

impl Extension {
    /// The state behind `byte`; none if `byte` cannot follow, or ends the line.
    fn next(self, byte: u8) -> Option<State> {
        use Extension::*;
        let blank = matches!(byte, b' ' | b'\t');
        let part = match self {
            BeforeName if blank => BeforeName,
            BeforeName | Name if is_token_byte(byte) => Name,
            Name | BehindName if byte == b'=' => BeforeValue,
            Name | Value | BehindName | BehindQuoted if byte == b';' => BeforeName,
            Name | BehindName if blank => BehindName,
            BeforeValue if blank => BeforeValue,
            BeforeValue if byte == b'"' => Quoted,
            BeforeValue | Value if is_token_byte(byte) => Value,
            Value | BehindQuoted if blank => return Some(State::BeforeExtension),
            Quoted if byte == b'"' => BehindQuoted,
            Quoted if byte == b'\\' => Escaped,
            Quoted | Escaped if is_value_byte(byte) => Quoted,
            _ => return None,
        };
        Some(State::Extension(part))
    }

    /// Whether the line may end here.
    fn may_end(self) -> bool {
        matches!(self, Extension::Name | Extension::Value | Extension::BehindQuoted)
    }
}

/// Writes the line in front of `len` bytes of data; CRLF must follow them. Not for `len` 0, which
/// would end the body: see [`LAST_CHUNK`].
pub fn chunk_header(len: usize, line: &mut [u8; 18]) -> &[u8] {
    debug_assert!(len > 0, "an empty chunk ends the body");
    let mut start = line.len() - 2;
    line[start..].copy_from_slice(b"\r\n");
    let mut rest = len;
    loop {
        start -= 1;
        line[start] = b"0123456789abcdef"[rest & 0xf];
        rest >>= 4;
        if rest == 0 {
            return &line[start..];
        }
    }
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Whether the trailer field called `name` would steer the message if somebody merged it into the
/// head: framing, routing, conditions, authentication, how the content is read (RFC 9110, 6.5.1), or
/// what we alone say about the connection and the client.
fn is_dropped(name: &[u8]) -> bool {
    const DROPPED: [&str; 45] = [
        "age",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "http2-settings",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "retry-after",
        "server",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
    ];
    DROPPED.iter().any(|dropped| name.eq_ignore_ascii_case(dropped.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a body decodes to: data, trailers, and what follows the body.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Decoded {
        data: Vec<u8>,
        trailers: Vec<(Vec<u8>, Vec<u8>)>,
        rest: Vec<u8>,
    }

    /// Feeds `bytes` in parts of the given sizes (the last for ever), and keeps what is not consumed,
    /// as the relay does. None: more bytes are needed.
    fn decode(bytes: &[u8], lenient: bool, sizes: &[usize]) -> Result<Option<Decoded>, Reason> {
        let mut chunked = Chunked::new(lenient);
        let mut decoded = Decoded::default();
        let (mut kept, mut fed) = (Vec::new(), 0);
        for size in sizes.iter().chain(std::iter::repeat(sizes.last().unwrap_or(&1))) {
            let end = bytes.len().min(fed + size);
            kept.extend_from_slice(&bytes[fed..end]);
            fed = end;
            loop {
                let (consumed, piece) = chunked.step(&kept)?;
                match piece {
                    Piece::Data(data) => {
                        assert!(!data.is_empty());
                        decoded.data.extend(data);
                    }
                    Piece::Trailer { name, value } => {
                        decoded.trailers.push((name.to_vec(), value.to_vec()))
                    }
                    Piece::End => {
                        decoded.rest = [&kept[consumed..], &bytes[fed..]].concat();
                        return Ok(Some(decoded));
                    }
                    Piece::NeedMore => {
                        kept.drain(..consumed);
                        break;
                    }
                }
                kept.drain(..consumed);
            }
            if fed == bytes.len() {
                return Ok(None);
            }
        }
        unreachable!("the sizes never end")
    }

    /// The same by regular means: slow, whole, obvious. RFC 9112, 7.1, without extensions' details.
    fn model(bytes: &[u8]) -> Result<Option<Decoded>, ()> {
        let mut decoded = Decoded::default();
        let mut rest = bytes;
        loop {
            let Some((line, behind)) = line(rest)? else { return Ok(None) };
            let size = std::str::from_utf8(line).map_err(drop)?;
            let size = match size.split_once(';') {
                Some((size, _)) => size.trim_end_matches([' ', '\t']),
                None => size,
            };
            let digits = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
            let size = u64::from_str_radix(size, 16).ok().filter(|_| digits).ok_or(())?;
            rest = behind;
            if size == 0 {
                break;
            }
            if size > CHUNK_BYTES_MAX {
                return Err(());
            }
            let end = usize::try_from(size).map_or(rest.len(), |size| size.min(rest.len()));
            decoded.data.extend(&rest[..end]);
            rest = &rest[end..];
            if rest.is_empty() || rest == b"\r" {
                return Ok(None);
            }
            rest = rest.strip_prefix(b"\r\n").ok_or(())?;
        }
        loop {
            let Some((line, behind)) = line(rest)? else { return Ok(None) };
            rest = behind;
            if line.is_empty() {
                decoded.rest = rest.to_vec();
                return Ok(Some(decoded));
            }
            let text = std::str::from_utf8(line).map_err(drop)?;
            let (name, value) = text.split_once(':').ok_or(())?;
            if name.is_empty() || !name.bytes().all(is_token_byte) {
                return Err(());
            }
            if !is_dropped(name.as_bytes()) {
                decoded.trailers.push((name.into(), value.trim_matches([' ', '\t']).into()));
            }
        }
    }

    type LineAndRest<'b> = (&'b [u8], &'b [u8]);

    /// Up to CRLF; none if it is not there.
    fn line(bytes: &[u8]) -> Result<Option<LineAndRest<'_>>, ()> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line = bytes[..end].strip_suffix(b"\r").ok_or(())?;
        if line.contains(&b'\r') { Err(()) } else { Ok(Some((line, &bytes[end + 1..]))) }
    }

    #[track_caller]
    fn good(bytes: &str, data: &str, trailers: &[(&str, &str)], rest: &str) {
        for size in [1, 2, 3, 7, 1000] {
            let decoded = decode(bytes.as_bytes(), false, &[size]);
            let Ok(Some(decoded)) = decoded else { panic!("{bytes:?}: {decoded:?}") };
            assert_eq!(decoded.data, data.as_bytes(), "{bytes:?}");
            let expected: Vec<(Vec<u8>, Vec<u8>)> =
                trailers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            assert_eq!(decoded.trailers, expected, "{bytes:?}");
            assert_eq!(decoded.rest, rest.as_bytes(), "{bytes:?}");
        }
    }

    #[test]
    fn bodies_are_decoded() {
        good("0\r\n\r\n", "", &[], "");
        good("5\r\nhello\r\n0\r\n\r\nGET", "hello", &[], "GET");
        good("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world", &[], "");
        good("00005\r\nhello\r\n0000\r\n\r\n", "hello", &[], "");
        good("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", &[], "");
        good("2\r\n\r\n\r\n0\r\n\r\n", "\r\n", &[], "");
        good("1;a\r\nx\r\n0;b=c\r\n\r\n", "x", &[], "");
        good("1 ; a = b ;c=\"d;\\\"\t\\\\\" ;e\r\nx\r\n0\t;f\r\n\r\n", "x", &[], "");
        good("1;a=\"\u{e9}\"\r\nx\r\n0\r\n\r\n", "x", &[], "");
        good(
            "0\r\nA: b\r\nC:\r\nd: \t e f \t\r\n\r\nG",
            "",
            &[("A", "b"), ("C", ""), ("d", "e f")],
            "G",
        );
    }

    #[test]
    fn steering_trailers_are_dropped() {
        good(
            "1\r\nx\r\n0\r\nContent-Length: 5\r\ngrpc-status: 0\r\nTRANSFER-ENCODING: chunked\r\nhost: a\r\n\
             authorization: b\r\nX-Forwarded-For: c\r\nDigest: d\r\nconnection: e\r\n\r\n",
            "x",
            &[("grpc-status", "0"), ("Digest", "d")],
            "",
        );
    }

    /// Bodies that must not pass, in any split.
    #[test]
    fn bad_bodies_are_refused() {
        let cases: &[&[u8]] = &[
            b"\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1 \r\n",
            b"1\t\r\n",
            b"1 1\r\n",
            b"1,1\r\n",
            b"1.\r\n",
            b"1_0\r\n",
            b";a\r\n",
            b"\n",
            b"1\n",
            b"1\rx\r\n",
            b"1\r\r\n",
            b"1\x00\r\n",
            b"\xef\xbc\x91\r\n",
            // Sizes (RFC 9112, 7.1: "potentially large").
            b"8000000000000000\r\n",
            b"ffffffffffffffff\r\n",
            b"10000000000000000\r\n",
            b"00000000000000001\r\n",
            b"fffffffffffffffff\r\n",
            // Extensions (RFC 9112, 7.1.1).
            b"1;\r\n",
            b"1;;\r\n",
            b"1;a;\r\n",
            b"1;a=\r\n",
            b"1;=b\r\n",
            b"1;a b\r\n",
            b"1;a \r\n",
            b"1;a=b \r\n",
            b"1;a=b c\r\n",
            b"1;a=b=c\r\n",
            b"1;a=\"b\r\n",
            b"1;a=\"b\\\r\n",
            b"1;a=\"b\"c\r\n",
            b"1;a=\"b\" \r\n",
            b"1;a=\"\0\"\r\n",
            b"1;a=\"\x7f\"\r\n",
            b"1;a=\"\n\"\r\n",
            b"1;a=\"\r\n\"\r\n",
            b"1;a\n",
            b"1;a=b\n",
            b"1;a\rb\r\n",
            b"1;a\x01\r\n",
            b"1;\xff\r\n",
            b"1 x\r\n",
            // Data that is longer or shorter than its size says.
            b"1\r\nxy\r\n",
            b"1\r\nx\n0\r\n\r\n",
            b"1\r\nx\ry",
            b"1\r\nx0\r\n\r\n",
            b"3\r\nx\r\n0\r\n\r\n",
            // Trailers (RFC 9112, 7.1.2).
            b"0\r\n\n",
            b"0\r\n\rx",
            b"0\r\nx\r\n",
            b"0\r\n: x\r\n",
            b"0\r\na : x\r\n",
            b"0\r\n a: x\r\n",
            b"0\r\na: x\r\n y\r\n",
            b"0\r\na: x\n\r\n",
            b"0\r\na: x\ry\r\n",
            b"0\r\na: \0\r\n",
            b"0\r\na: \x7f\r\n",
            b"0\r\na\xff: x\r\n",
            b"0\r\nGET / HTTP/1.1\r\n",
        ];
        for bytes in cases {
            for size in [1, 2, 3, 1000] {
                let decoded = decode(bytes, false, &[size]);
                assert_eq!(decoded, Err(Reason::BadBody), "{}", bytes.escape_ascii());
            }
        }
    }

    #[test]
    fn the_largest_sizes_pass() {
        for size in ["7fffffffffffffff", "0000000000000001", "7FFFFFFFFFFFFFFF"] {
            let bytes = format!("{size}\r\nx");
            assert_eq!(Chunked::new(false).step(bytes.as_bytes()), Ok((19, Piece::Data(b"x"))));
        }
    }

    #[test]
    fn bounds_are_exact() {
        let extended = |bytes: u32| format!("1;{}\r\nx\r\n", "a".repeat(bytes as usize));
        let most = extended(EXTENSION_BYTES_MAX);
        assert_eq!(decode(most.as_bytes(), false, &[100]), Ok(None));
        let more = extended(EXTENSION_BYTES_MAX + 1);
        assert_eq!(decode(more.as_bytes(), false, &[100]), Err(Reason::BadBody));

        let lines = (EXTENSIONS_BYTES_MAX / EXTENSION_BYTES_MAX) as usize;
        assert_eq!(decode(most.repeat(lines).as_bytes(), false, &[1000]), Ok(None));
        let more = most.repeat(lines) + "1;a\r\n";
        assert_eq!(decode(more.as_bytes(), false, &[1000]), Err(Reason::BadBody));

        let trailer = |bytes: usize| format!("0\r\na:{}\r\n\r\n", "x".repeat(bytes - 4));
        let most = trailer(TRAILER_BYTES_MAX as usize);
        assert!(matches!(decode(most.as_bytes(), false, &[100]), Ok(Some(_))));
        let more = trailer(TRAILER_BYTES_MAX as usize + 1);
        assert_eq!(decode(more.as_bytes(), false, &[100]), Err(Reason::BadBody));
        assert_eq!(decode(&more.as_bytes()[..more.len() - 3], false, &[100]), Err(Reason::BadBody));

        let fields = |count: u32| format!("0\r\n{}\r\n", "te:\r\n".repeat(count as usize));
        assert!(matches!(decode(fields(TRAILER_FIELDS_MAX).as_bytes(), false, &[9]), Ok(Some(_))));
        let more = fields(TRAILER_FIELDS_MAX + 1);
        assert_eq!(decode(more.as_bytes(), false, &[9]), Err(Reason::BadBody));
    }

    #[test]
    fn bare_lf_where_it_is_allowed() {
        let bytes = b"5\nhello\n1;a\nx\r\n1;b=c\ny\n0\nA: b\n\nGET";
        let decoded = decode(bytes, true, &[1]).unwrap().unwrap();
        assert_eq!((&decoded.data[..], &decoded.rest[..]), (&b"helloxy"[..], &b"GET"[..]));
        assert_eq!(decoded.trailers, [(b"A".to_vec(), b"b".to_vec())]);
        assert_eq!(decode(bytes, false, &[1]), Err(Reason::BadBody));
        for bytes in [&b"1\r\rx"[..], b"1;\"\n", b"1\nxy\n", b"\n", b"0\na: \r\r\n"] {
            assert_eq!(decode(bytes, true, &[1]), Err(Reason::BadBody), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn chunk_headers() {
        let mut line = [0; 18];
        for len in [1, 9, 10, 15, 16, 255, 256, 65_536, usize::MAX] {
            assert_eq!(chunk_header(len, &mut line), format!("{len:x}\r\n").as_bytes());
        }
    }

    /// Chunked bodies, and what looks like them.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "1\r\nx\r\n",
            "1\r\nx\r\n",
            "3\r\nabc\r\n",
            "a\r\n\r\n01234567\r\n",
            "2;a=b\r\nyz\r\n",
            "02\r\nyz\r\n",
            "0\r\n",
            "0\r\n\r\n",
            "\r\n",
            "A: b\r\n",
            "te: x\r\n",
            "\r",
            "\n",
            "1",
            "f",
            ";",
            "x",
            " ",
            "7fffffffffffffff\r\n",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn any_split_decodes_alike(bytes in bodies(), sizes in prop::collection::vec(1_usize..9, 1..20), lenient: bool) {
            prop_assert_eq!(decode(&bytes, lenient, &sizes), decode(&bytes, lenient, &[usize::MAX >> 1]));
        }

        /// What the model takes, we take as it does, or refuse for its extensions; what it refuses, we
        /// refuse, perhaps later: the model sees no error before a line is there.
        #[test]
        fn decodes_as_the_model_does(bytes in bodies()) {
            match (decode(&bytes, false, &[1]), model(&bytes)) {
                (Ok(Some(ours)), Ok(Some(theirs))) => prop_assert_eq!(ours, theirs),
                (Ok(None), Ok(None)) | (Err(_), Err(())) => {}
                (Err(_), Ok(None)) => {} // Refused before its line was there.
                (Err(_), Ok(Some(_))) => prop_assert!(bytes.contains(&b';')),
                (ours, theirs) => prop_assert!(false, "{:?}, the model: {:?}", ours, theirs),
            }
        }

        #[test]
        fn encoded_and_decoded_again(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..9)) {
            let mut encoded = Vec::new();
            for part in &parts {
                encoded.extend(chunk_header(part.len(), &mut [0; 18]));
                encoded.extend(part);
                encoded.extend(b"\r\n");
            }
            encoded.extend(LAST_CHUNK);
            let decoded = decode(&encoded, false, &[3]).unwrap().unwrap();
            prop_assert_eq!(&decoded.data, &parts.concat());
        }

        #[test]
        fn anything_is_taken_without_a_panic(bytes: Vec<u8>, lenient: bool) {
            let _ = decode(&bytes, lenient, &[3]);
        }
    }
}
