//! Heads as they leave: built in one pass from the slices of the head that arrived.
//!
//! Lines that stay are copied in runs, as they stand in the buffer. Framing is never among them: it
//! is written anew from what was understood, so what one side sends decides nothing about how the
//! other side reads. Hop-by-hop lines, and every line that `Connection` names, are left out
//! (RFC 9110, 7.6.1); what we add comes last, so nobody can have it removed.

use super::head::{AnswerHead, FieldKind, Fields, Framing, RequestHead, Version};
use crate::route::HeaderRules;

/// A set of [`FieldKind`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KindSet(u64);

impl KindSet {
    /// The set of these kinds.
    pub const fn of(kinds: &[FieldKind]) -> KindSet {
        let mut bits = 0;
        let mut index = 0;
        while index < kinds.len() {
            bits |= 1 << kinds[index] as u64;
            index += 1;
        }
        KindSet(bits)
    }

    /// This set and one more kind.
    pub const fn with(self, kind: FieldKind) -> KindSet {
        KindSet(self.0 | 1 << kind as u64)
    }

    /// Both sets.
    pub const fn and(self, other: KindSet) -> KindSet {
        KindSet(self.0 | other.0)
    }

    /// Whether a kind is in the set.
    pub const fn contains(self, kind: FieldKind) -> bool {
        self.0 & (1 << kind as u64) != 0
    }
}

/// What no head hands on: framing, and what holds for one connection only.
const HOP_BY_HOP: KindSet = KindSet::of(&[
    FieldKind::ContentLength,
    FieldKind::TransferEncoding,
    FieldKind::Connection,
    FieldKind::ConnectionNamed,
    FieldKind::KeepAlive,
    FieldKind::ProxyConnection,
    FieldKind::Te,
    FieldKind::Upgrade,
    FieldKind::Http2Settings,
]);

/// How a request leaves, beside what its head says.
pub struct RequestEdits<'a> {
    /// Path as it goes upstream; `*` for asterisk-form.
    pub path: &'a [u8],
    /// Query without its question mark.
    pub query: Option<&'a [u8]>,
    /// The authority to send.
    pub host: &'a [u8],
    /// How the body leaves.
    pub framing: Framing,
    /// The protocol to upgrade to, if the client asks and we take part.
    pub upgrade: Option<&'a [u8]>,
    /// Lines to leave out beside the hop-by-hop ones: those that we write anew.
    pub dropped: KindSet,
    /// The route's rules.
    pub rules: &'a HeaderRules,
}

/// Writes a request head. `received` is the buffer that `head` was parsed from; `add` writes the
/// lines that we add, complete with their ends.
pub fn request(
    received: &[u8],
    head: &RequestHead<'_, '_>,
    edits: &RequestEdits<'_>,
    add: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(head.method_bytes);
    out.push(b' ');
    out.extend_from_slice(edits.path);
    if let Some(query) = edits.query {
        out.push(b'?');
        out.extend_from_slice(query);
    }
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(edits.host);
    out.extend_from_slice(b"\r\n");
    let dropped = HOP_BY_HOP.and(edits.dropped).with(FieldKind::Host);
    kept_lines(received, &head.fields, dropped, edits.rules, out);
    add(out);
    edits.rules.write(out);
    framing_lines(edits.framing, out);
    match (edits.upgrade, head.te_trailers) {
        (Some(protocol), _) => {
            out.extend_from_slice(b"Connection: upgrade\r\n");
            line(b"Upgrade", protocol, out);
        }
        (None, true) => out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n"),
        (None, false) => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// What the client is told about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// HTTP/1.1 and staying open: nothing need be said.
    Implied,
    /// HTTP/1.0 and staying open: `keep-alive`.
    KeepAlive,
    /// It ends with this answer: `close`.
    Close,
    /// It becomes a tunnel: `upgrade`.
    Upgrade,
}

impl Persistence {
    /// For a client of this version whose connection stays open, or does not.
    pub fn of(version: Version, stays: bool) -> Persistence {
        match (version, stays) {
            (_, false) => Persistence::Close,
            (Version::Http11, true) => Persistence::Implied,
            (Version::Http10, true) => Persistence::KeepAlive,
        }
    }

    /// Writes the line, if one is needed.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self {
            Persistence::Implied => b"".as_slice(),
            Persistence::KeepAlive => b"Connection: keep-alive\r\n",
            Persistence::Close => b"Connection: close\r\n",
            Persistence::Upgrade => b"Connection: upgrade\r\n",
        });
    }
}

/// How an answer leaves, beside what its head says.
pub struct AnswerEdits<'a> {
    /// How the body leaves.
    pub framing: Framing,
    /// A length to state without a body: HEAD and 304.
    pub stated_length: Option<u64>,
    /// What becomes of the client's connection.
    pub persistence: Persistence,
    /// Lines to leave out beside the hop-by-hop ones.
    pub dropped: KindSet,
    /// The route's rules.
    pub rules: &'a HeaderRules,
    /// A `Date` line to add where the answer has none (RFC 9110, 6.6.1).
    pub date: &'a [u8],
}

/// Writes the head of an answer. `received` is the buffer that `head` was parsed from; `add` writes
/// the lines that we add.
pub fn answer(
    received: &[u8],
    head: &AnswerHead<'_, '_>,
    edits: &AnswerEdits<'_>,
    add: impl FnOnce(&mut Vec<u8>),
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.reason_phrase);
    out.extend_from_slice(b"\r\n");
    let dropped = HOP_BY_HOP.and(edits.dropped);
    let seen = kept_lines(received, &head.fields, dropped, edits.rules, out);
    if !seen.contains(FieldKind::Date) && head.status >= 200 {
        line(b"Date", edits.date, out);
    }
    add(out);
    edits.rules.write(out);
    framing_lines(edits.framing, out);
    if let Some(length) = edits.stated_length {
        content_length(length, out);
    }
    edits.persistence.write(out);
    if edits.persistence == Persistence::Upgrade
        && let Some(protocol) = head.upgrade
    {
        line(b"Upgrade", protocol, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes one field line.
pub fn line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes a `Content-Length` line.
pub fn content_length(length: u64, out: &mut Vec<u8>) {
    line(b"Content-Length", itoa::Buffer::new().format(length).as_bytes(), out);
}

/// Copies the lines that stay, in runs, and tells which kinds there were.
fn kept_lines(
    received: &[u8],
    fields: &Fields<'_, '_>,
    dropped: KindSet,
    rules: &HeaderRules,
    out: &mut Vec<u8>,
) -> KindSet {
    let mut seen = KindSet::default();
    let plain = rules.is_empty();
    let mut run = 0..0;
    for (kind, name, value) in fields.iter() {
        seen = seen.with(kind);
        if dropped.contains(kind) || (!plain && rules.drops(name)) {
            continue;
        }
        // `Name: value\r\n` with single spacing is what nearly every line looks like; such a line
        // is copied together with its neighbours. Any other is written anew.
        let start = name.as_ptr() as usize - received.as_ptr() as usize;
        let end = start + name.len() + 2 + value.len() + 2;
        let regular = value.as_ptr() as usize == name.as_ptr() as usize + name.len() + 2
            && received.get(end - 2..end) == Some(b"\r\n");
        if regular && run.end == start {
            run.end = end;
            continue;
        }
        out.extend_from_slice(&received[run]);
        run = 0..0;
        if regular {
            run = start..end;
        } else {
            line(name, value, out);
        }
    }
    out.extend_from_slice(&received[run]);
    seen
}

/// Writes the lines of a body's framing.
fn framing_lines(framing: Framing, out: &mut Vec<u8>) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(length) => content_length(length, out),
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}
