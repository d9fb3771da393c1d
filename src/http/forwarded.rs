//! Who the client is, and what we tell the origin of it: `X-Forwarded-For`, `-Proto`, `-Host`,
//! `X-Request-Id`, `Via`, and the count of `Max-Forwards`. Pure: the session asks before routing
//! ([`Forwarding::client`]), the writer of the outgoing head asks which lines to drop
//! ([`Forwarding::drops`]) and has ours appended ([`Forwarding::write`]). Never allocates, but for
//! growth of the buffer that it writes to.
//!
//! # Whom we believe
//!
//! A *trusted* peer is one of our own proxies; what it forwards is believed. Everybody else's
//! forwarded fields are claims, and by default they are replaced. (Envoy's edge mode differs in
//! one point: it appends to a stranger's `X-Forwarded-For`, so origins that read its first entry
//! are fooled.) [`Trusted`] says who is trusted, by address, by number, or by both.
//!
//! # What becomes of a field
//!
//! | | peer is trusted | peer is not |
//! |---|---|---|
//! | `append`, `X-Forwarded-For` | what was received, and the peer's address | the peer's address |
//! | `append`, the others | what was received, or ours if nothing was | ours |
//! | `set` | ours | ours |
//! | `leave` | what was received, or nothing | what was received, or nothing |
//! | `remove` | nothing | nothing |
//!
//! Ours are: the peer's address; `http` or `https`, as the request reached us; the request's host;
//! a new UUIDv4. Several lines of one field become one. `Forwarded` (RFC 7239) is never written; a
//! stranger's is dropped, unless `X-Forwarded-For` is left alone, because an origin that
//! understands it prefers it to what we say.

use std::io::Write as _;
use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;

use super::head::{FieldKind, Fields, Method, Version};
use crate::rng::Rng;

/// Bytes of a UUID as text.
pub const REQUEST_ID_BYTES: usize = 36;

/// An address with brackets, a port and room to spare; longer text is not an address.
const ADDRESS_BYTES_MAX: usize = 64;

/// What we do with one forwarded field; the module's table says it in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Treatment {
    /// Go on from what a trusted peer sent. The default.
    #[default]
    Append,
    /// Always ours.
    Set,
    /// Pass on what was received, from whomever.
    Leave,
    /// Never send it.
    Remove,
}

/// How a listener treats forwarded fields, and whom it believes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forwarding {
    /// `X-Forwarded-For`.
    pub for_: Treatment,
    /// `X-Forwarded-Proto`.
    pub proto: Treatment,
    /// `X-Forwarded-Host`.
    pub host: Treatment,
    /// `X-Request-Id`.
    pub request_id: Treatment,
    /// Adds `Via: 1.1 NAME` (RFC 9110, 7.6.3) after what was received. A token.
    pub via: Option<String>,
    /// Whose forwarded fields are believed.
    pub trusted: Trusted,
}

/// Which proxies in front of us are our own. Nobody by default.
///
/// The peer is at distance 0, the last address of `X-Forwarded-For` at distance 1, and so on. The
/// client is the first address, going outwards, that is not a trusted proxy's.
///
/// - `cidrs`: an address within one of them is a trusted proxy's. If all are, the client is the
///   farthest; if an entry is no address, the client is the last address before it.
/// - `hops` (Envoy's `xff_num_trusted_hops`): so many proxies stand in front of us, whatever their
///   addresses, so the client is entry number `hops` from the right. With fewer entries the
///   request did not come through them all: nothing is believed, and the client is the peer. Only
///   for listeners that nobody can reach but through those proxies.
/// - Both: within the ranges, and at most so many.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trusted {
    /// Ranges of addresses.
    pub cidrs: Vec<IpNet>,
    /// How many proxies; 0 means that they are not counted.
    pub hops: u8,
}

/// Where a request comes from, as far as it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// For hashing, rules and logs. IPv4 in IPv6 is shown as IPv4.
    pub address: IpAddr,
    /// Whether the peer's forwarded fields are believed.
    pub trusted_peer: bool,
}

/// What the connection and the request line say of a request.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The other end of the client's connection.
    pub peer: IpAddr,
    /// Whether that connection is encrypted.
    pub tls: bool,
    /// The request's authority, as received; may be empty.
    pub host: &'a [u8],
    /// The request's version, for `Via`.
    pub version: Version,
}

/// Where in the buffer the values lie that the access log wants; empty where we wrote none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// The value of `X-Forwarded-For`.
    pub forwarded_for: Range<usize>,
    /// The value of `X-Request-Id`.
    pub request_id: Range<usize>,
}

impl Forwarding {
    /// Who the client is, and whether the peer is believed.
    pub fn client(&self, peer: IpAddr, fields: &Fields<'_, '_>) -> Client {
        let peer = peer.to_canonical();
        let stranger = Client { address: peer, trusted_peer: false };
        let Trusted { cidrs, hops } = &self.trusted;
        if cidrs.is_empty() {
            if *hops == 0 {
                return stranger;
            }
            return match entries(fields).nth(usize::from(*hops) - 1) {
                Some(entry) => {
                    Client { address: address(entry).unwrap_or(peer), trusted_peer: true }
                }
                None => stranger,
            };
        }
        let within = |address: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(address));
        if !within(&peer) {
            return stranger;
        }
        let distance_max = if *hops == 0 { usize::MAX } else { usize::from(*hops) };
        let mut farthest = peer;
        for entry in entries(fields).take(distance_max) {
            let Some(next) = address(entry) else { break };
            farthest = next;
            if !within(&next) {
                break;
            }
        }
        Client { address: farthest, trusted_peer: true }
    }

    /// Whether a received field of this kind stays behind, because [`Forwarding::write`] writes it
    /// anew, or because nobody shall see it.
    #[inline]
    pub fn drops(&self, kind: FieldKind, client: &Client) -> bool {
        let treatment = match kind {
            FieldKind::XForwardedFor => self.for_,
            FieldKind::XForwardedProto => self.proto,
            FieldKind::XForwardedHost => self.host,
            FieldKind::XRequestId => self.request_id,
            FieldKind::Forwarded => return self.for_ != Treatment::Leave && !client.trusted_peer,
            _ => return false,
        };
        treatment != Treatment::Leave
    }

    /// Appends our lines, each with its CRLF. `fields` are the received ones, `client` is what
    /// [`Forwarding::client`] made of them. A field of which `ruled` says so is left to the route's
    /// header rules.
    pub fn write(
        &self,
        client: &Client,
        arrival: &Arrival<'_>,
        fields: &Fields<'_, '_>,
        ids: &mut RequestIds,
        ruled: impl Fn(&[u8]) -> bool,
        out: &mut Vec<u8>,
    ) -> Written {
        let mut written = Written::default();
        // What is kept of a field, or `None` for ours; an empty value says nothing.
        let kept = |treatment, kind| match treatment {
            Treatment::Append if client.trusted_peer => {
                fields.first(kind).filter(|value: &&[u8]| !value.is_empty())
            }
            _ => None,
        };
        if ours(self.for_) && !ruled(b"x-forwarded-for") {
            out.extend_from_slice(b"X-Forwarded-For: ");
            let start = out.len();
            if self.for_ == Treatment::Append && client.trusted_peer {
                for (kind, _, value) in fields.iter() {
                    if kind == FieldKind::XForwardedFor && !value.is_empty() {
                        out.extend_from_slice(value);
                        out.extend_from_slice(b", ");
                    }
                }
            }
            write_address(arrival.peer.to_canonical(), out);
            written.forwarded_for = start..out.len();
            out.extend_from_slice(b"\r\n");
        }
        if ours(self.proto) && !ruled(b"x-forwarded-proto") {
            out.extend_from_slice(b"X-Forwarded-Proto: ");
            let scheme: &[u8] = if arrival.tls { b"https" } else { b"http" };
            out.extend_from_slice(kept(self.proto, FieldKind::XForwardedProto).unwrap_or(scheme));
            out.extend_from_slice(b"\r\n");
        }
        if ours(self.host) && !ruled(b"x-forwarded-host") {
            let host = kept(self.host, FieldKind::XForwardedHost).unwrap_or(arrival.host);
            if !host.is_empty() {
                out.extend_from_slice(b"X-Forwarded-Host: ");
                out.extend_from_slice(host);
                out.extend_from_slice(b"\r\n");
            }
        }
        if ours(self.request_id) && !ruled(b"x-request-id") {
            out.extend_from_slice(b"X-Request-Id: ");
            let start = out.len();
            match kept(self.request_id, FieldKind::XRequestId) {
                Some(id) => out.extend_from_slice(id),
                None => out.extend_from_slice(&ids.draw()),
            }
            written.request_id = start..out.len();
            out.extend_from_slice(b"\r\n");
        }
        if !ruled(b"via") {
            self.write_via(arrival.version, out);
        }
        written
    }

    /// Appends our `Via` line, if there shall be one; for answers, too. What was received stays in
    /// its own lines before it. `version` is the one that the message came in.
    pub fn write_via(&self, version: Version, out: &mut Vec<u8>) {
        if let Some(name) = &self.via {
            out.extend_from_slice(match version {
                Version::Http10 => b"Via: 1.0 ",
                Version::Http11 => b"Via: 1.1 ",
            });
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn ours(treatment: Treatment) -> bool {
    matches!(treatment, Treatment::Append | Treatment::Set)
}

/// The entries of all `X-Forwarded-For` lines, the last first; empty ones do not count (RFC 9110,
/// 5.6.1.2).
fn entries<'b>(fields: &Fields<'b, '_>) -> impl Iterator<Item = &'b [u8]> {
    fields
        .iter()
        .rev()
        .filter(|(kind, _, _)| *kind == FieldKind::XForwardedFor)
        .flat_map(|(_, _, value)| value.rsplit(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|entry| !entry.is_empty())
}

/// Reads `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]`, and the first and last of these with a port,
/// which some balancers add.
fn address(entry: &[u8]) -> Option<IpAddr> {
    if entry.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(entry).ok()?;
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, port) = rest.split_once(']')?;
        if !port.is_empty() {
            port.strip_prefix(':')?.parse::<u16>().ok()?;
        }
        return Some(IpAddr::V6(inside.parse().ok()?).to_canonical());
    }
    let v4 = match entry.iter().filter(|byte| **byte == b':').count() {
        0 => text,
        1 => {
            let (host, port) = text.split_once(':')?;
            port.parse::<u16>().ok()?;
            host
        }
        _ => return Some(IpAddr::V6(text.parse().ok()?).to_canonical()),
    };
    Some(IpAddr::V4(v4.parse().ok()?))
}

fn write_address(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            let mut text = [0; "255.255.255.255.".len() + 1];
            let mut end = 0;
            for octet in address.octets() {
                let (digits, count) = OCTETS[usize::from(octet)];
                text[end..end + 4].copy_from_slice(&digits);
                end += count + 1;
            }
            out.extend_from_slice(&text[..end - 1]);
        }
        IpAddr::V6(address) => {
            write!(out, "{address}").expect("a vector takes every byte");
        }
    }
}

/// Each octet in decimal with a dot behind it, and how many digits it has.
const OCTETS: [([u8; 4], usize); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let count = if octet > 99 {
            3
        } else if octet > 9 {
            2
        } else {
            1
        };
        let mut index = 0;
        while index < count {
            octets[octet].0[index] = b'0' + digits[3 - count + index] as u8;
            index += 1;
        }
        octets[octet].0[count] = b'.';
        octets[octet].1 = count;
        octet += 1;
    }
    octets
};

/// Whether the client's own connection was encrypted, as far as a trusted peer says so. Ours never
/// is, as yet.
pub fn arrived_encrypted(client: &Client, fields: &Fields<'_, '_>) -> bool {
    let said = fields.first(FieldKind::XForwardedProto).filter(|_| client.trusted_peer);
    said.is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https"))
}

/// One shard's source of request ids.
#[derive(Debug)]
pub struct RequestIds {
    rng: Rng,
}

impl RequestIds {
    /// Shards and processes need different seeds, from the system's random source.
    pub fn new(seed: u64) -> RequestIds {
        RequestIds { rng: Rng::new(seed) }
    }

    /// A UUID of version 4 (RFC 9562, 5.4) in lower case. Unique, but not secret.
    #[inline]
    pub fn draw(&mut self) -> [u8; REQUEST_ID_BYTES] {
        let drawn = (u128::from(self.rng.bits()) << 64) | u128::from(self.rng.bits());
        uuid(drawn)
    }
}

/// Bits 76 to 79 are the version, bits 62 and 63 the variant, whatever was drawn for them.
fn uuid(drawn: u128) -> [u8; REQUEST_ID_BYTES] {
    const DIGITS: [[u8; 2]; 256] = {
        let hex = b"0123456789abcdef";
        let mut digits = [[0; 2]; 256];
        let mut byte = 0;
        while byte < 256 {
            digits[byte] = [hex[byte >> 4], hex[byte & 15]];
            byte += 1;
        }
        digits
    };
    /// Where each byte's digits begin; hyphens stand at 8, 13, 18 and 23.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let bits = (drawn & !(0xf << 76) & !(0b11 << 62)) | (0x4 << 76) | (0b10 << 62);
    let mut text = [b'-'; REQUEST_ID_BYTES];
    for (byte, place) in bits.to_be_bytes().into_iter().zip(PLACES) {
        text[place..place + 2].copy_from_slice(&DIGITS[usize::from(byte)]);
    }
    text
}

/// What `Max-Forwards` asks of us (RFC 9110, 7.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxForwards {
    /// Nothing: the field is not there, or the method is not OPTIONS or TRACE.
    Absent,
    /// It has run out: we answer as the final recipient.
    Answer,
    /// Forward with this value in place of the received one.
    Forward(u64),
    /// Malformed or repeated: 400.
    Bad,
}

/// Reads the received `Max-Forwards`. A number beyond 64 bits counts as the greatest we support.
pub fn max_forwards(method: Method, fields: &Fields<'_, '_>) -> MaxForwards {
    if !matches!(method, Method::Options | Method::Trace) {
        return MaxForwards::Absent;
    }
    let mut values = fields.iter().filter(|(kind, _, _)| *kind == FieldKind::MaxForwards);
    let Some((_, _, value)) = values.next() else { return MaxForwards::Absent };
    if values.next().is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return MaxForwards::Bad;
    }
    let received = value.iter().fold(0u64, |number, digit| {
        number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    });
    match received.checked_sub(1) {
        Some(left) => MaxForwards::Forward(left),
        None => MaxForwards::Answer,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::head::{HeadLimits, Parsed, Scratch, parse_request};
    use super::*;

    /// Calls `then` with the fields of a request with these lines.
    fn with_fields<T>(lines: &str, then: impl FnOnce(&Fields<'_, '_>) -> T) -> T {
        let head = format!("GET / HTTP/1.1\r\nHost: example.com\r\n{lines}\r\n");
        let mut scratch = Scratch::new();
        let limits = HeadLimits { fields_max: 200, ..HeadLimits::default() };
        match parse_request(head.as_bytes(), &limits, &mut scratch) {
            Ok(Parsed::Complete(head)) => then(&head.fields),
            _ => panic!("not a head: {head}"),
        }
    }

    fn trusting(cidrs: &[&str], hops: u8) -> Forwarding {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        Forwarding { trusted: Trusted { cidrs, hops }, ..Forwarding::default() }
    }

    fn client(forwarding: &Forwarding, peer: &str, received: &str) -> (String, bool) {
        let client =
            with_fields(received, |fields| forwarding.client(peer.parse().unwrap(), fields));
        (client.address.to_string(), client.trusted_peer)
    }

    /// What is written for a plain request from `peer`.
    fn written(forwarding: &Forwarding, peer: &str, received: &str) -> (String, Written) {
        let mut out = b"GET / HTTP/1.1\r\n".to_vec();
        let start = out.len();
        let arrival = Arrival {
            peer: peer.parse().unwrap(),
            tls: false,
            host: b"example.com:81",
            version: Version::Http11,
        };
        let written = with_fields(received, |fields| {
            let client = forwarding.client(arrival.peer, fields);
            forwarding.write(
                &client,
                &arrival,
                fields,
                &mut RequestIds::new(1),
                |_| false,
                &mut out,
            )
        });
        for range in [&written.forwarded_for, &written.request_id] {
            assert!(
                range.is_empty() || range.start > start && out[range.end..].starts_with(b"\r\n")
            );
        }
        (String::from_utf8(out.split_off(start)).unwrap(), written)
    }

    #[test]
    fn addresses_are_written_as_everybody_writes_them() {
        for octet in 0..=u8::MAX {
            for address in [[octet, 0, 10, 255], [1, octet, octet, octet]] {
                let mut out = Vec::new();
                write_address(address.into(), &mut out);
                assert_eq!(out, IpAddr::from(address).to_string().as_bytes());
            }
        }
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        let edge = Forwarding::default();
        assert_eq!(
            client(&edge, "192.0.2.1", "X-Forwarded-For: 1.1.1.1\r\n"),
            ("192.0.2.1".into(), false)
        );
        assert_eq!(client(&edge, "::ffff:192.0.2.1", ""), ("192.0.2.1".into(), false));
    }

    #[test]
    fn ranges_are_walked_from_the_right() {
        let inside = trusting(&["10.0.0.0/8", "fd00::/8"], 0);
        let of = |peer, list: &str| client(&inside, peer, &format!("X-Forwarded-For: {list}\r\n"));
        assert_eq!(of("192.0.2.1", "1.1.1.1"), ("192.0.2.1".into(), false));
        assert_eq!(of("10.0.0.1", "6.6.6.6, 1.1.1.1"), ("1.1.1.1".into(), true));
        assert_eq!(of("10.0.0.1", "6.6.6.6, 1.1.1.1 , 10.9.9.9,fd00::1"), ("1.1.1.1".into(), true));
        assert_eq!(
            of("10.0.0.1", "1.1.1.1:99, [fd00::1]:443, [fd00::2]"),
            ("1.1.1.1".into(), true)
        );
        assert_eq!(of("10.0.0.1", "10.0.0.3, 10.0.0.2"), ("10.0.0.3".into(), true));
        assert_eq!(of("10.0.0.1", "1.1.1.1, unknown, 10.0.0.2"), ("10.0.0.2".into(), true));
        assert_eq!(of("10.0.0.1", ", ,"), ("10.0.0.1".into(), true));
        assert_eq!(of("::ffff:10.0.0.1", "::ffff:1.1.1.1"), ("1.1.1.1".into(), true));
        let two = "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 1.1.1.1, 10.0.0.2\r\n";
        assert_eq!(client(&inside, "10.0.0.1", two), ("1.1.1.1".into(), true));
        assert_eq!(client(&inside, "10.0.0.1", ""), ("10.0.0.1".into(), true));
    }

    /// A field that `Connection` names is believed by nobody.
    #[test]
    fn hop_by_hop_claims_do_not_count() {
        let lines = "Connection: x-forwarded-for\r\nX-Forwarded-For: 1.1.1.1\r\n";
        assert_eq!(
            client(&trusting(&["10.0.0.0/8"], 0), "10.0.0.1", lines),
            ("10.0.0.1".into(), true)
        );
    }

    #[test]
    fn hops_are_counted_from_the_right() {
        let of = |hops, list: &str| {
            client(&trusting(&[], hops), "192.0.2.1", &format!("X-Forwarded-For: {list}\r\n"))
        };
        assert_eq!(of(1, "6.6.6.6, 1.1.1.1"), ("1.1.1.1".into(), true));
        assert_eq!(of(2, "6.6.6.6, 1.1.1.1, 2.2.2.2"), ("1.1.1.1".into(), true));
        assert_eq!(of(2, "6.6.6.6, 1.1.1.1, who"), ("1.1.1.1".into(), true));
        assert_eq!(of(2, "1.1.1.1"), ("192.0.2.1".into(), false));
        assert_eq!(of(1, "unknown"), ("192.0.2.1".into(), true));
    }

    #[test]
    fn ranges_and_hops_hold_together() {
        let both = trusting(&["10.0.0.0/8"], 1);
        let lines = "X-Forwarded-For: 1.1.1.1, 10.0.0.3\r\n";
        assert_eq!(client(&both, "10.0.0.1", lines), ("10.0.0.3".into(), true));
        assert_eq!(client(&both, "192.0.2.1", lines), ("192.0.2.1".into(), false));
    }

    #[test]
    fn addresses_are_read_strictly() {
        let read = |entry: &str| address(entry.as_bytes()).map(|address| address.to_string());
        assert_eq!(read("1.2.3.4:80"), Some("1.2.3.4".into()));
        assert_eq!(read("2001:db8::1"), Some("2001:db8::1".into()));
        for bad in [
            "",
            "1.2.3",
            "1.2.3.4:",
            "1.2.3.4:x",
            "1.2.3.4:99999",
            "[1.2.3.4]",
            "[::1",
            "[::1]x",
            "[::1]:",
            "::1]",
            "fe80::1%eth0",
            "a.example",
            "\"1.2.3.4\"",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(read(&"1".repeat(5_000)), None);
    }

    const RECEIVED: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
        X-Forwarded-Host: a.example\r\nX-Request-Id: seven\r\nX-Forwarded-For: 1.1.1.1\r\n";

    #[test]
    fn a_strangers_claims_are_replaced() {
        let (lines, ranges) = written(&Forwarding::default(), "192.0.2.1", RECEIVED);
        assert_eq!(ranges.request_id.len(), REQUEST_ID_BYTES);
        let id = String::from_utf8(RequestIds::new(1).draw().to_vec()).unwrap();
        assert_eq!(
            lines,
            format!(
                "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\n\
                 X-Forwarded-Host: example.com:81\r\nX-Request-Id: {id}\r\n"
            )
        );
    }

    #[test]
    fn a_trusted_peers_word_is_continued() {
        let (lines, ranges) = written(&trusting(&["10.0.0.0/8"], 0), "10.0.0.1", RECEIVED);
        assert_eq!(
            lines,
            "X-Forwarded-For: 6.6.6.6, 1.1.1.1, 10.0.0.1\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-Host: a.example\r\nX-Request-Id: seven\r\n"
        );
        assert_eq!(ranges.request_id.len(), "seven".len());
        assert_eq!(ranges.forwarded_for.len(), "6.6.6.6, 1.1.1.1, 10.0.0.1".len());
        // Nothing, or nothing but emptiness, was said: ours.
        let (lines, _) = written(
            &trusting(&["fd00::/8"], 0),
            "fd00::1",
            "X-Forwarded-Proto:\r\nX-Forwarded-For: \r\n",
        );
        assert!(
            lines.starts_with("X-Forwarded-For: fd00::1\r\nX-Forwarded-Proto: http\r\n"),
            "{lines}"
        );
    }

    /// Every treatment of every field, trusted or not: what is written, and what is dropped.
    #[test]
    fn treatments_do_what_the_table_says() {
        for treatment in [Treatment::Append, Treatment::Set, Treatment::Leave, Treatment::Remove] {
            let forwarding = Forwarding {
                for_: treatment,
                proto: treatment,
                host: treatment,
                request_id: treatment,
                ..trusting(&["10.0.0.0/8"], 0)
            };
            for peer in ["10.0.0.1", "192.0.2.1"] {
                let (lines, _) = written(&forwarding, peer, RECEIVED);
                let expected = match treatment {
                    Treatment::Append | Treatment::Set => 4,
                    Treatment::Leave | Treatment::Remove => 0,
                };
                assert_eq!(lines.matches("\r\n").count(), expected);
                let believed = treatment == Treatment::Append && peer == "10.0.0.1";
                assert_eq!(lines.contains("6.6.6.6"), believed);
                assert_eq!(lines.contains("seven"), believed);
                let client =
                    Client { address: peer.parse().unwrap(), trusted_peer: peer == "10.0.0.1" };
                for kind in [
                    FieldKind::XForwardedFor,
                    FieldKind::XForwardedProto,
                    FieldKind::XForwardedHost,
                    FieldKind::XRequestId,
                ] {
                    assert_eq!(forwarding.drops(kind, &client), treatment != Treatment::Leave);
                }
                let left = treatment == Treatment::Leave || client.trusted_peer;
                assert_eq!(forwarding.drops(FieldKind::Forwarded, &client), !left);
                assert!(!forwarding.drops(FieldKind::Via, &client));
                assert!(!forwarding.drops(FieldKind::Other, &client));
            }
        }
    }

    #[test]
    fn via_names_us_and_the_version() {
        let forwarding = Forwarding { via: Some("edge".into()), ..Forwarding::default() };
        let mut out = Vec::new();
        forwarding.write_via(Version::Http10, &mut out);
        forwarding.write_via(Version::Http11, &mut out);
        Forwarding::default().write_via(Version::Http11, &mut out);
        assert_eq!(out, b"Via: 1.0 edge\r\nVia: 1.1 edge\r\n");
    }

    #[test]
    fn an_empty_host_is_not_forwarded() {
        let arrival =
            Arrival { peer: [127, 0, 0, 1].into(), tls: true, host: b"", version: Version::Http10 };
        let client = Client { address: arrival.peer, trusted_peer: false };
        let mut out = Vec::new();
        with_fields("", |fields| {
            Forwarding::default().write(
                &client,
                &arrival,
                fields,
                &mut RequestIds::new(1),
                |_| false,
                &mut out,
            )
        });
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("X-Forwarded-Proto: https\r\n") && !text.contains("-Host"), "{text}");
    }

    #[test]
    fn rules_go_before() {
        let arrival = Arrival {
            peer: [127, 0, 0, 1].into(),
            tls: true,
            host: b"a",
            version: Version::Http11,
        };
        let client = Client { address: arrival.peer, trusted_peer: false };
        let forwarding = Forwarding { via: Some("edge".into()), ..Forwarding::default() };
        for ruled in
            ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "via"]
        {
            let mut out = Vec::new();
            with_fields("", |fields| {
                let ids = &mut RequestIds::new(1);
                forwarding.write(
                    &client,
                    &arrival,
                    fields,
                    ids,
                    |name| name == ruled.as_bytes(),
                    &mut out,
                )
            });
            let text = String::from_utf8(out).unwrap().to_ascii_lowercase();
            assert!(!text.contains(ruled) && text.matches("\r\n").count() == 4, "{text}");
        }
    }

    #[test]
    fn uuids_have_their_form() {
        assert_eq!(&uuid(0), b"00000000-0000-4000-8000-000000000000");
        assert_eq!(&uuid(u128::MAX), b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            &uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            b"01234567-89ab-4def-8123-456789abcdef"
        );
        let mut ids = RequestIds::new(1);
        assert_ne!(ids.draw(), ids.draw());
    }

    #[test]
    fn max_forwards_counts_down() {
        let read = |method, lines: &str| with_fields(lines, |fields| max_forwards(method, fields));
        use MaxForwards::*;
        assert_eq!(read(Method::Options, ""), Absent);
        assert_eq!(read(Method::Get, "Max-Forwards: 0\r\n"), Absent);
        assert_eq!(read(Method::Options, "Max-Forwards: 0\r\n"), Answer);
        assert_eq!(read(Method::Trace, "max-forwards: 00\r\n"), Answer);
        assert_eq!(read(Method::Trace, "Max-Forwards: 10\r\n"), Forward(9));
        let beyond = format!("Max-Forwards: {}\r\n", "9".repeat(40));
        assert_eq!(read(Method::Options, &beyond), Forward(u64::MAX - 1));
        for bad in ["-1", "+1", "1, 1", "x", "", "1.0"] {
            assert_eq!(read(Method::Options, &format!("Max-Forwards: {bad}\r\n")), Bad, "{bad}");
        }
        assert_eq!(read(Method::Options, "Max-Forwards: 1\r\nMax-Forwards: 1\r\n"), Bad);
    }

    proptest! {
        /// Against the definition: all entries in a row, judged from the right.
        #[test]
        fn the_client_is_the_first_stranger(
            lines in prop::collection::vec(prop::collection::vec(
                prop_oneof![
                    (0u8..4).prop_map(|last| format!("10.0.0.{last}")),
                    (0u8..4).prop_map(|last| format!("192.0.2.{last}")),
                    Just("unknown".to_owned()),
                    Just(String::new()),
                ], 0..6), 0..4),
            hops in 0u8..5,
            peer_inside: bool,
            ranges: bool,
        ) {
            let text: String =
                lines.iter().map(|line| format!("X-Forwarded-For: {}\r\n", line.join(", "))).collect();
            let peer = if peer_inside { "10.0.0.9" } else { "192.0.2.9" };
            let forwarding = trusting(if ranges { &["10.0.0.0/8"] } else { &[] }, hops);
            let mut chain: Vec<&str> =
                lines.iter().flatten().map(String::as_str).filter(|entry| !entry.is_empty()).collect();
            chain.push(peer);
            chain.reverse();
            let trusted = |distance: usize| {
                (ranges || hops > 0)
                    && (!ranges || chain[distance].starts_with("10."))
                    && (hops == 0 || distance < usize::from(hops))
            };
            let strangers = (0..chain.len()).find(|distance| !trusted(*distance));
            let expected = if !ranges {
                match strangers {
                    Some(0) | None => (peer, false),
                    Some(distance) if chain[distance] == "unknown" => (peer, true),
                    Some(distance) => (chain[distance], true),
                }
            } else {
                match strangers {
                    Some(0) => (peer, false),
                    Some(distance) if chain[distance] == "unknown" => (chain[distance - 1], true),
                    Some(distance) => (chain[distance], true),
                    None => (chain[chain.len() - 1], true),
                }
            };
            prop_assert_eq!(client(&forwarding, peer, &text), (expected.0.to_owned(), expected.1));
        }
    }
}
