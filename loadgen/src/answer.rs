//! Bytes -> answers: one connection's reader. Pure; keeps no byte of a body.
//!
//! Load repeats itself: an answer whose head equals the last one to the same request, byte for
//! byte, is not parsed again.

use std::mem::MaybeUninit;

use xxhash_rust::xxh64::Xxh64;

use crate::http::{Chunks, FIELDS_MAX, Framing, Said};

/// One whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The final status; 1xx are passed over.
    pub status: u16,
    /// Body bytes, without chunk framing.
    pub body_bytes: u64,
    /// xxh64 of the body, where it was asked for.
    pub hash: Option<u64>,
    /// Whether the connection may carry another.
    pub keep_alive: bool,
}

/// What is not HTTP/1.x, or ends in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The last head that a request was answered with, and what it meant.
#[derive(Debug, Default)]
pub struct HeadCache {
    bytes: Vec<u8>,
    head: Option<Head>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    status: u16,
    framing: Framing,
    keep_alive: bool,
}

/// Reads answers one after another.
#[derive(Default)]
pub struct Reader {
    /// `None` between answers.
    head: Option<Head>,
    /// With a length: bytes left.
    left: u64,
    chunks: Chunks,
    body_bytes: u64,
    hash: Option<Xxh64>,
}

impl Reader {
    /// Takes a prefix of `bytes`. Returns how much, and the answer if one ended there. A head is
    /// taken whole or not at all, so the caller keeps what was not taken.
    ///
    /// # Errors
    /// When the bytes are no answer.
    pub fn read(
        &mut self,
        bytes: &[u8],
        head_only: bool,
        hashed: bool,
        cache: &mut HeadCache,
    ) -> Result<(usize, Option<Answer>), Malformed> {
        let mut taken = 0;
        let head = match self.head {
            Some(head) => head,
            None => loop {
                let Some((head, len)) = parse(&bytes[taken..], head_only, cache)? else {
                    return Ok((taken, None));
                };
                taken += len;
                if head.status >= 200 {
                    self.begin(head, hashed);
                    break head;
                }
                if head.status == 101 {
                    return Err(Malformed); // Nobody asked for an upgrade.
                }
            },
        };
        let rest = &bytes[taken..];
        let hash = &mut self.hash;
        let ended = match head.framing {
            Framing::Length(_) => {
                let piece = self.left.min(rest.len() as u64) as usize;
                if let Some(hash) = hash {
                    hash.update(&rest[..piece]);
                }
                taken += piece;
                self.left -= piece as u64;
                self.body_bytes += piece as u64;
                self.left == 0
            }
            Framing::Chunked => {
                let body_bytes = &mut self.body_bytes;
                let skipped = self.chunks.skip(rest, |data| {
                    *body_bytes += data.len() as u64;
                    if let Some(hash) = hash {
                        hash.update(data);
                    }
                });
                taken += skipped.map_err(|_| Malformed)?;
                self.chunks.done()
            }
            Framing::UntilClose => {
                if let Some(hash) = hash {
                    hash.update(rest);
                }
                taken += rest.len();
                self.body_bytes += rest.len() as u64;
                false
            }
        };
        Ok((taken, ended.then(|| self.end(head))))
    }

    /// The connection ended. That ends an answer without a length, and breaks every other.
    ///
    /// # Errors
    /// When an answer was cut short.
    pub fn close(&mut self) -> Result<Option<Answer>, Malformed> {
        match self.head {
            None => Ok(None),
            Some(head) if head.framing == Framing::UntilClose => Ok(Some(self.end(head))),
            Some(_) => Err(Malformed),
        }
    }

    /// Bytes of the body that nobody needs to see: the kernel may drop them.
    pub fn droppable(&self) -> u64 {
        match self.head {
            Some(Head { framing: Framing::Length(_), .. }) if self.hash.is_none() => self.left,
            _ => 0,
        }
    }

    /// The kernel dropped `n` of them.
    pub fn dropped(&mut self, n: u64) -> Option<Answer> {
        self.left -= n;
        self.body_bytes += n;
        self.head.filter(|_| self.left == 0).map(|head| self.end(head))
    }

    fn begin(&mut self, head: Head, hashed: bool) {
        self.head = Some(head);
        self.left = match head.framing {
            Framing::Length(len) => len,
            _ => 0,
        };
        if head.framing == Framing::Chunked {
            self.chunks = Chunks::default();
        }
        self.body_bytes = 0;
        self.hash = hashed.then(|| Xxh64::new(0));
    }

    fn end(&mut self, head: Head) -> Answer {
        self.head = None;
        Answer {
            status: head.status,
            body_bytes: self.body_bytes,
            hash: self.hash.take().map(|hash| hash.digest()),
            keep_alive: head.keep_alive,
        }
    }
}

fn parse(
    bytes: &[u8],
    head_only: bool,
    cache: &mut HeadCache,
) -> Result<Option<(Head, usize)>, Malformed> {
    if let Some(head) = cache.head
        && bytes.starts_with(&cache.bytes)
    {
        return Ok(Some((head, cache.bytes.len())));
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut answer = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let len = match config.parse_response_with_uninit_headers(&mut answer, bytes, &mut fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed),
    };
    let said = Said::read(answer.headers).ok_or(Malformed)?;
    let (Some(status), Some(version)) = (answer.code, answer.version) else {
        return Err(Malformed);
    };
    let framing = match said {
        _ if head_only || status < 200 || matches!(status, 204 | 304) => Framing::Length(0),
        Said { chunked: true, .. } => Framing::Chunked,
        Said { length: Some(length), .. } => Framing::Length(length),
        _ => Framing::UntilClose,
    };
    let keep_alive = said.keeps_alive(version) && framing != Framing::UntilClose;
    let head = Head { status, framing, keep_alive };
    cache.bytes.clear();
    cache.bytes.extend_from_slice(&bytes[..len]);
    cache.head = Some(head);
    Ok(Some((head, len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` cut at `cuts`, carrying what is not taken; returns all answers.
    fn answers(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Answer>, Malformed> {
        let (mut reader, mut cache) = (Reader::default(), HeadCache::default());
        let (mut answers, mut carry) = (Vec::new(), Vec::new());
        let mut ends: Vec<usize> = cuts.to_vec();
        ends.push(bytes.len());
        let mut from = 0;
        for to in ends {
            carry.extend_from_slice(&bytes[from..to]);
            from = to;
            let mut at = 0;
            loop {
                let (taken, answer) = reader.read(&carry[at..], false, true, &mut cache)?;
                at += taken;
                let more = answer.is_some();
                answers.extend(answer);
                if !more || at == carry.len() {
                    break;
                }
            }
            carry.drain(..at);
        }
        answers.extend(reader.close()?);
        Ok(answers)
    }

    const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
        HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
        HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n\
        HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n\
        HTTP/1.0 200 OK\r\n\r\nto the end";

    #[test]
    fn any_split_reads_the_same() {
        let whole = answers(STREAM, &[]).unwrap();
        let seen: Vec<_> = whole
            .iter()
            .map(|answer| (answer.status, answer.body_bytes, answer.keep_alive))
            .collect();
        assert_eq!(
            seen,
            [(200, 5, true), (200, 5, true), (204, 0, true), (404, 5, true), (200, 10, false)]
        );
        assert_eq!(whole[0].hash, Some(xxhash_rust::xxh64::xxh64(b"hello", 0)));
        assert_eq!(whole[3].hash, Some(xxhash_rust::xxh64::xxh64(b"abcde", 0)));
        for first in 0..STREAM.len() {
            assert_eq!(answers(STREAM, &[first]).unwrap(), whole, "cut at {first}");
            let second = first + (STREAM.len() - first) / 2;
            assert_eq!(answers(STREAM, &[first, second]).unwrap(), whole, "{first} {second}");
        }
    }

    #[test]
    fn what_is_cut_short_never_looks_whole() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell";
        assert_eq!(answers(bytes, &[]), Err(Malformed));
        let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        assert_eq!(answers(bytes, &[]), Err(Malformed));
        assert_eq!(answers(b"SSH-2.0-OpenSSH\r\n\r\n", &[]), Err(Malformed));
    }

    #[test]
    fn the_kernel_may_drop_a_body() {
        let (mut reader, mut cache) = (Reader::default(), HeadCache::default());
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nabc";
        let (taken, answer) = reader.read(bytes, false, false, &mut cache).unwrap();
        assert_eq!((taken, answer), (bytes.len(), None));
        assert_eq!(reader.droppable(), 99_997);
        assert_eq!(reader.dropped(99_000), None);
        assert_eq!(reader.dropped(997).unwrap().body_bytes, 100_000);
        assert_eq!(reader.droppable(), 0);
    }
}
