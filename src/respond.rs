//! Answers of our own: refusals, redirects, and what a route says itself.

use crate::http::encode::{Persistence, content_length, line};
use crate::plan::Listener;
use crate::reason::Reason;

/// An answer that no origin gave.
pub struct Own<'a> {
    /// The status.
    pub status: u16,
    /// What becomes of the client's connection.
    pub persistence: Persistence,
    /// The current `Date`.
    pub date: &'a [u8],
    /// Named in `x-outrigger-reason`, where the listener wants that.
    pub reason: Option<Reason>,
    /// The media type of the body; empty for none.
    pub content_type: &'a [u8],
    /// The body.
    pub body: &'a [u8],
    /// The request was HEAD: the head of the answer says what it would have been, and that is all.
    pub head_only: bool,
}

impl Own<'_> {
    /// Writes the whole answer. `add` writes further field lines.
    pub fn write(&self, add: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(itoa::Buffer::new().format(self.status).as_bytes());
        out.push(b' ');
        out.extend_from_slice(phrase(self.status).as_bytes());
        out.extend_from_slice(b"\r\n");
        line(b"Date", self.date, out);
        add(out);
        if let Some(reason) = self.reason {
            line(b"x-outrigger-reason", reason.name().as_bytes(), out);
        }
        if !matches!(self.status, 204 | 304) {
            if !self.body.is_empty() && !self.content_type.is_empty() {
                line(b"Content-Type", self.content_type, out);
            }
            content_length(self.body.len() as u64, out);
        }
        self.persistence.write(out);
        out.extend_from_slice(b"\r\n");
        if !self.head_only && !matches!(self.status, 204 | 304) {
            out.extend_from_slice(self.body);
        }
    }
}

/// Writes the whole answer for a refusal.
pub fn refusal(
    reason: Reason,
    listener: &Listener,
    persistence: Persistence,
    head_only: bool,
    date: &[u8],
    out: &mut Vec<u8>,
) {
    refusal_with(reason, listener, persistence, head_only, date, |_| {}, out);
}

/// The same, with further field lines, which `add` writes.
pub fn refusal_with(
    reason: Reason,
    listener: &Listener,
    persistence: Persistence,
    head_only: bool,
    date: &[u8],
    add: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    let status = reason.status();
    let own = Own {
        status,
        persistence,
        date,
        reason: listener.reason_header.then_some(reason),
        content_type: b"text/plain",
        body: phrase(status).as_bytes(),
        head_only,
    };
    let add = |out: &mut Vec<u8>| {
        if reason.sheds() {
            // So that neither Envoys nor others try again at once.
            line(b"Retry-After", b"1", out);
            line(b"x-envoy-overloaded", b"true", out);
        }
        if status == 405 {
            // RFC 9110, 15.5.6 asks for it: whatever a route might take, not CONNECT.
            line(b"Allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH", out);
        }
        add(out);
    };
    own.write(add, out);
}

/// Bytes of the body that [`refusal`] writes.
pub fn body_bytes(reason: Reason) -> usize {
    phrase(reason.status()).len()
}

/// The reason phrase of RFC 9110, 15; `Status` for what is not listed there.
pub fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        418 => "I'm a Teapot",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(status: u16, body: &[u8], head_only: bool) -> String {
        let mut out = Vec::new();
        let own = Own {
            status,
            persistence: Persistence::Close,
            date: b"Thu, 01 Jan 1970 00:00:00 GMT",
            reason: Some(Reason::NoRoute),
            content_type: b"text/plain",
            body,
            head_only,
        };
        own.write(|_| {}, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_is_complete() {
        assert_eq!(
            own(404, b"no\n", false),
            "HTTP/1.1 404 Not Found\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
             x-outrigger-reason: no-route\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\
             Connection: close\r\n\r\nno\n"
        );
    }

    #[test]
    fn head_gets_the_length_but_no_body() {
        let answer = own(404, b"no\n", true);
        assert!(answer.contains("Content-Length: 3\r\n") && answer.ends_with("\r\n\r\n"));
    }

    #[test]
    fn no_content_has_neither_body_nor_length() {
        let answer = own(204, b"ignored", false);
        assert!(!answer.contains("Content-Length") && answer.ends_with("\r\n\r\n"));
    }
}
