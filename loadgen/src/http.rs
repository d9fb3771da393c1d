//! The little of HTTP/1.1 that both ends need: framing, and reading past a chunked body. Pure.
//!
//! `origin` reads requests with it, `answer` answers. It is exact about framing and lenient about
//! the rest: a load generator must measure what it meets, not judge it.

use httparse::Header;

/// Header fields that one head may have.
pub const FIELDS_MAX: usize = 128;

/// How the end of a body is found (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Content-Length bytes follow; zero when there is no body.
    Length(u64),
    /// Chunks follow.
    Chunked,
    /// All until the connection closes. Answers only.
    UntilClose,
}

/// What the fields of a head say about framing and the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Said {
    /// The value of Content-Length.
    pub length: Option<u64>,
    /// Transfer-Encoding is `chunked`.
    pub chunked: bool,
    /// `Connection: close`.
    pub close: bool,
    /// `Connection: keep-alive`, which HTTP/1.0 needs.
    pub keep_alive: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
}

impl Said {
    /// Reads the fields. `None` when the framing is ambiguous or malformed.
    pub fn read(fields: &[Header]) -> Option<Self> {
        let mut said = Self::default();
        for field in fields {
            // By length first: most fields are none of ours.
            match field.name.len() {
                14 if field.name.eq_ignore_ascii_case("content-length") => {
                    let length = number(field.value)?;
                    if said.length.is_some_and(|before| before != length) {
                        return None;
                    }
                    said.length = Some(length);
                }
                17 if field.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if said.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return None;
                    }
                    said.chunked = true;
                }
                10 if field.name.eq_ignore_ascii_case("connection") => {
                    for token in field.value.split(|&byte| byte == b',') {
                        let token = token.trim_ascii();
                        said.close |= token.eq_ignore_ascii_case(b"close");
                        said.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                6 if field.name.eq_ignore_ascii_case("expect") => {
                    said.expects_continue |= field.value.eq_ignore_ascii_case(b"100-continue");
                }
                _ => {}
            }
        }
        if said.chunked && said.length.is_some() { None } else { Some(said) }
    }

    /// Whether the connection outlives this message; `version` is the minor one.
    pub fn keeps_alive(&self, version: u8) -> bool {
        if version == 0 { self.keep_alive && !self.close } else { !self.close }
    }
}

/// A decimal number of digits alone, within a `u64`.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Reads past a chunked body, fed in any pieces (RFC 9112, 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    at: At,
    /// Of the size line: the value so far. Of data: bytes left.
    left: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the digits of a size; whether one was seen.
    Size { digits: bool },
    /// Between the size and the end of its line.
    Extension,
    /// In the data.
    Data,
    /// In the line end after the data.
    DataEnd,
    /// At the start of a trailer line, or of the empty line that ends it all.
    TrailerStart,
    /// In a trailer line.
    Trailer,
    /// After the last line feed.
    Done,
}

/// A chunked body that breaks the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChunk;

impl Default for Chunks {
    fn default() -> Self {
        Self { at: At::Size { digits: false }, left: 0 }
    }
}

impl Chunks {
    /// Takes a prefix of `bytes`, hands each piece of data to `data`, and returns how much it
    /// took: all of it, or what came before the end.
    ///
    /// # Errors
    /// A size that is not one, or data that does not end where its size says.
    pub fn skip(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, BadChunk> {
        let mut taken = 0;
        while taken < bytes.len() && self.at != At::Done {
            if self.at == At::Data {
                let piece = self.left.min((bytes.len() - taken) as u64) as usize;
                data(&bytes[taken..taken + piece]);
                taken += piece;
                self.left -= piece as u64;
                if self.left == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            let byte = bytes[taken];
            taken += 1;
            self.at = match (self.at, byte) {
                (At::Size { .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                    let digit = u64::from((byte as char).to_digit(16).unwrap_or(0));
                    self.left = self.left.checked_mul(16).ok_or(BadChunk)? + digit;
                    At::Size { digits: true }
                }
                (At::Size { digits: true }, b'\n') => self.after_size(),
                (At::Size { digits: true }, b'\r' | b';' | b' ' | b'\t') => At::Extension,
                (At::Size { .. }, _) => return Err(BadChunk),
                (At::Extension, b'\n') => self.after_size(),
                (At::Extension, _) => At::Extension,
                (At::DataEnd, b'\r') => At::DataEnd,
                (At::DataEnd, b'\n') => At::Size { digits: false },
                (At::DataEnd, _) => return Err(BadChunk),
                (At::TrailerStart, b'\r') => At::TrailerStart,
                (At::TrailerStart, b'\n') => At::Done,
                (At::Trailer, b'\n') => At::TrailerStart,
                (At::TrailerStart | At::Trailer, _) => At::Trailer,
                (At::Data | At::Done, _) => unreachable!("handled above"),
            };
        }
        Ok(taken)
    }

    /// Whether the body has ended.
    pub fn done(&self) -> bool {
        self.at == At::Done
    }

    fn after_size(&self) -> At {
        if self.left == 0 { At::TrailerStart } else { At::Data }
    }
}

/// The reason phrase of a status that the origin may send.
pub fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] =
        b"4\r\nWiki\r\n6;x=\"y\"\r\npedia \r\nB\r\nin\r\nchunks.\r\n0\r\nA: b\r\n\r\nNEXT";

    fn skipped(pieces: &[&[u8]]) -> (usize, Vec<u8>, bool) {
        let (mut chunks, mut taken, mut data) = (Chunks::default(), 0, Vec::new());
        for piece in pieces {
            taken += chunks.skip(piece, |bytes| data.extend_from_slice(bytes)).unwrap();
        }
        (taken, data, chunks.done())
    }

    /// However the bytes are split, the same data and the same end are found.
    #[test]
    fn any_split_reads_the_same() {
        let whole = skipped(&[BODY]);
        assert_eq!(whole, (BODY.len() - 4, b"Wikipedia in\r\nchunks.".to_vec(), true));
        for at in 0..BODY.len() {
            assert_eq!(skipped(&[&BODY[..at], &BODY[at..]]), whole, "split at {at}");
        }
    }

    #[test]
    fn bad_chunks_are_refused() {
        for body in ["x\r\n", "\r\n", ";a\r\n", "1\r\nab", "fffffffffffffffff\r\n"] {
            assert_eq!(Chunks::default().skip(body.as_bytes(), |_| {}), Err(BadChunk), "{body:?}");
        }
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let field = |name, value: &'static str| Header { name, value: value.as_bytes() };
        let read = |fields: &[Header]| Said::read(fields);
        assert_eq!(read(&[field("Content-Length", "5")]).unwrap().length, Some(5));
        assert!(read(&[field("Transfer-Encoding", "Chunked")]).unwrap().chunked);
        assert!(read(&[field("Content-Length", "5"), field("content-length", "6")]).is_none());
        assert!(read(&[field("Content-Length", "+5")]).is_none());
        assert!(read(&[field("Content-Length", "99999999999999999999")]).is_none());
        assert!(read(&[field("Transfer-Encoding", "gzip")]).is_none());
        assert!(
            read(&[field("Content-Length", "5"), field("Transfer-Encoding", "chunked")]).is_none()
        );
    }
}
