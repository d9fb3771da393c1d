//! Chunked bodies (RFC 9112, 7.1): checked where they lie, never copied. The relay calls it for both
//! directions; it says which bytes are data, and the relay frames them anew, or passes on as they are
//! what is framed as we would do it.
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
    /// [`Chunked::skim`] has passed the header of this chunk.
    raw: bool,
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

/// What [`Chunked::skim`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skim {
    /// So many bytes can be passed on as they are. Part of a line may be left: give it again with
    /// more bytes behind it.
    pub consumed: usize,
    /// So many of them are content.
    pub data_bytes: u64,
    /// The body is complete.
    pub ended: bool,
    /// At a chunk's beginning stands what is not passed on as it is (an extension, trailers, an odd size,
    /// or nonsense): [`Chunked::step`] takes it from here.
    pub rewrite: bool,
}

impl Chunked {
    /// At the beginning of a body. `lenient_line_ends` takes a bare LF for a line end.
    pub fn new(lenient_line_ends: bool) -> Self {
        Chunked {
            state: State::Size,
            lenient: lenient_line_ends,
            raw: false,
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
                    debug_assert!(!self.raw, "the header of this chunk was passed on as it was");
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

    /// Consumes the longest prefix of `bytes` that is framed as we would do it, in whole lines. The
    /// fast path: nothing is rewritten, nothing but the lines between chunks is looked at.
    ///
    /// It can follow [`Chunked::step`] only where a chunk begins; elsewhere it consumes nothing and asks
    /// for `step`.
    ///
    /// # Errors
    ///
    /// `BadBody`: a chunk does not end where it should.
    pub fn skim(&mut self, bytes: &[u8]) -> Result<Skim, Reason> {
        let mut skim = Skim { consumed: 0, data_bytes: 0, ended: false, rewrite: false };
        loop {
            let rest = &bytes[skim.consumed..];
            match (self.state, rest) {
                (State::End, _) => {
                    skim.ended = true;
                    return Ok(skim);
                }
                (State::Size, _) if self.digits == 0 && !self.lenient => match plain_size(rest) {
                    PlainSize::Partial => return Ok(skim),
                    PlainSize::Odd => {
                        skim.rewrite = true;
                        return Ok(skim);
                    }
                    PlainSize::Last => {
                        skim.consumed += LAST_CHUNK.len();
                        self.state = State::End;
                    }
                    PlainSize::Size { size, len } => {
                        skim.consumed += len;
                        self.left = size;
                        self.raw = true;
                        self.state = State::Data;
                    }
                },
                (State::Data, _) if self.raw => {
                    let data = self.take(rest);
                    if data.is_empty() {
                        return Ok(skim);
                    }
                    skim.consumed += data.len();
                    skim.data_bytes += data.len() as u64;
                }
                (State::DataCr | State::DataLf, _) if self.raw => {
                    let Some(&byte) = rest.first() else { return Ok(skim) };
                    skim.consumed += 1;
                    self.state = self.next(byte)?;
                }
                _ => {
                    skim.rewrite = true;
                    return Ok(skim);
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
        self.raw = false;
        if self.left == 0 { State::Trailers } else { State::Data }
    }

    fn chunk_ended(&mut self) -> State {
        self.digits = 0;
        State::Size
    }

    /// One trailer line: its length, and the field unless it is dropped. None: it is not all there.
    #[cold]
    #[expect(clippy::type_complexity, reason = "read once, above")]
    fn trailer<'b>(
        &mut self,
        bytes: &'b [u8],
    ) -> Result<Option<(usize, Option<(&'b [u8], &'b [u8])>)>, Reason> {
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

/// A size line as we would write it, but for the case of its digits.
enum PlainSize {
    Partial,
    /// Anything else.
    Odd,
    /// [`LAST_CHUNK`].
    Last,
    Size {
        size: u64,
        len: usize,
    },
}

#[inline]
fn plain_size(bytes: &[u8]) -> PlainSize {
    if bytes.first() == Some(&b'0') {
        return match bytes.len().min(LAST_CHUNK.len()) {
            len if bytes[..len] != LAST_CHUNK[..len] => PlainSize::Odd,
            len if len < LAST_CHUNK.len() => PlainSize::Partial,
            _ => PlainSize::Last,
        };
    }
    let mut size = 0;
    for (index, byte) in bytes.iter().enumerate() {
        match hex(*byte) {
            Some(_) if size > CHUNK_BYTES_MAX >> 4 => return PlainSize::Odd,
            Some(digit) => size = size << 4 | u64::from(digit),
            None if index == 0 || *byte != b'\r' => return PlainSize::Odd,
            None => {
                return match bytes.get(index + 1) {
                    None => PlainSize::Partial,
                    Some(b'\n') => PlainSize::Size { size, len: index + 2 },
                    Some(_) => PlainSize::Odd,
                };
            }
        }
    }
    PlainSize::Partial
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
