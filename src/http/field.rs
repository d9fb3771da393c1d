//! Header fields as they lie in the buffer, each with its kind. `head` fills them in; routing,
//! forwarding and the writer of the outgoing head read them. Never copies a name or a value.

/// What a field is to a proxy. Found once per field, so that nobody compares names again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FieldKind {
    /// Nothing that we look at: passed on.
    Other,
    /// `Host`.
    Host,
    /// `Content-Length`: framing, always rewritten.
    ContentLength,
    /// `Transfer-Encoding`: framing, always rewritten.
    TransferEncoding,
    /// `Connection`: hop-by-hop.
    Connection,
    /// `Keep-Alive`: hop-by-hop.
    KeepAlive,
    /// `Proxy-Connection`: hop-by-hop, and never in a standard.
    ProxyConnection,
    /// `TE`: hop-by-hop, except its member `trailers`.
    Te,
    /// `Upgrade`: hop-by-hop, unless the connection becomes a tunnel.
    Upgrade,
    /// `HTTP2-Settings`: hop-by-hop.
    Http2Settings,
    /// `Trailer`: announces trailer fields.
    Trailer,
    /// `Expect`.
    Expect,
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `X-Forwarded-Proto`.
    XForwardedProto,
    /// `X-Forwarded-Host`.
    XForwardedHost,
    /// `X-Request-Id`.
    XRequestId,
    /// `Via`.
    Via,
    /// `Max-Forwards`.
    MaxForwards,
    /// `Forwarded`.
    Forwarded,
    /// `Server`.
    Server,
    /// `Date`.
    Date,
    /// `Age`: how old a kept answer is.
    Age,
    /// `User-Agent`: the access log wants it.
    UserAgent,
    /// `Referer`: the access log wants it.
    Referer,
    /// `Cookie`: balancing may hash one.
    Cookie,
    /// `X-Request-Deadline`: what the caller's time is.
    RequestDeadline,
    /// `X-Envoy-Expected-Rq-Timeout-Ms`: the same.
    ExpectedTimeout,
    /// Named by `Connection`, so hop-by-hop: removed, and believed by nobody.
    ConnectionNamed,
}

impl FieldKind {
    /// The kind of the field called `name`, in any case. `name` must be a token, as the parser
    /// guarantees: only then does setting bit 5 fold case and nothing else.
    #[inline]
    pub fn of(name: &[u8]) -> FieldKind {
        use FieldKind::*;
        let Some(first) = name.first() else { return Other };
        // Length and first letter leave one name to compare with.
        match (name.len(), first | 0x20) {
            (2, b't') if is(name, b"te") => Te,
            (3, b'a') if is(name, b"age") => Age,
            (3, b'v') if is(name, b"via") => Via,
            (4, b'h') if is(name, b"host") => Host,
            (4, b'd') if is(name, b"date") => Date,
            (6, b'c') if is(name, b"cookie") => Cookie,
            (6, b'e') if is(name, b"expect") => Expect,
            (6, b's') if is(name, b"server") => Server,
            (7, b'r') if is(name, b"referer") => Referer,
            (7, b'u') if is(name, b"upgrade") => Upgrade,
            (7, b't') if is(name, b"trailer") => Trailer,
            (9, b'f') if is(name, b"forwarded") => Forwarded,
            (10, b'c') if is(name, b"connection") => Connection,
            (10, b'u') if is(name, b"user-agent") => UserAgent,
            (10, b'k') if is(name, b"keep-alive") => KeepAlive,
            (12, b'x') if is(name, b"x-request-id") => XRequestId,
            (12, b'm') if is(name, b"max-forwards") => MaxForwards,
            (14, b'c') if is(name, b"content-length") => ContentLength,
            (14, b'h') if is(name, b"http2-settings") => Http2Settings,
            (15, b'x') if is(name, b"x-forwarded-for") => XForwardedFor,
            (16, b'x') if is(name, b"x-forwarded-host") => XForwardedHost,
            (16, b'p') if is(name, b"proxy-connection") => ProxyConnection,
            (17, b'x') if is(name, b"x-forwarded-proto") => XForwardedProto,
            (17, b't') if is(name, b"transfer-encoding") => TransferEncoding,
            (18, b'x') if is(name, b"x-request-deadline") => RequestDeadline,
            (30, b'x') if is(name, b"x-envoy-expected-rq-timeout-ms") => ExpectedTimeout,
            _ => Other,
        }
    }

    /// Whether `Connection` may take the field out of the message. The fields that frame and
    /// address it stay what they are, and those that are hop-by-hop anyway keep their kind.
    pub(super) const fn removable(self) -> bool {
        use FieldKind::*;
        match self {
            Host | ContentLength | TransferEncoding | Connection | KeepAlive | ProxyConnection
            | Te | Upgrade | Http2Settings => false,
            Other | Trailer | Expect | XForwardedFor | XForwardedProto | XForwardedHost
            | XRequestId | Via | MaxForwards | Forwarded | Server | Date | Age | UserAgent
            | Referer | Cookie | RequestDeadline | ExpectedTimeout | ConnectionNamed => true,
        }
    }
}

/// Compares a token with a lower-case name of known length; a few vector instructions.
#[inline(always)]
fn is<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let mut different = 0;
    for index in 0..N {
        different |= (name[index] | 0x20) ^ lower[index];
    }
    different == 0
}

/// The fields of one head, in the order of their arrival.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'b, 'h> {
    headers: &'h [httparse::Header<'b>],
    kinds: &'h [FieldKind],
}

impl<'b, 'h> Fields<'b, 'h> {
    /// One kind for each header.
    pub(super) fn new(headers: &'h [httparse::Header<'b>], kinds: &'h [FieldKind]) -> Self {
        debug_assert_eq!(headers.len(), kinds.len());
        Fields { headers, kinds }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.headers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Kind, name (a token, in the sender's case) and value (without white space around it).
    #[inline]
    pub fn iter(
        &self,
    ) -> impl DoubleEndedIterator<Item = (FieldKind, &'b [u8], &'b [u8])> + ExactSizeIterator + 'h
    where
        'b: 'h,
    {
        let pairs = self.headers.iter().zip(self.kinds);
        pairs.map(|(header, kind)| (*kind, header.name.as_bytes(), header.value))
    }

    /// The value of the first field of that kind.
    #[inline]
    pub fn first(&self, kind: FieldKind) -> Option<&'b [u8]> {
        let index = self.kinds.iter().position(|other| *other == kind)?;
        Some(self.headers[index].value)
    }

    /// The value of the first field of that name, in any case; none that `Connection` names.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&'b [u8]> {
        let name = name.as_ref();
        let found = self.headers.iter().zip(self.kinds).find(|(header, kind)| {
            header.name.as_bytes().eq_ignore_ascii_case(name)
                && **kind != FieldKind::ConnectionNamed
        });
        found.map(|(header, _)| header.value)
    }
}

/// The members of a comma-separated list (RFC 9110, 5.6.1), without the white space around them.
/// Empty members are kept: some callers refuse them.
pub(super) fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim)
}

/// Without the spaces and tabs at both ends (OWS; RFC 9110, 5.6.3).
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether `bytes` is a token (RFC 9110, 5.6.2): one or more of its characters, nothing else.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

/// Whether `byte` may stand in a token (RFC 9110, 5.6.2).
pub(super) const fn is_token_byte(byte: u8) -> bool {
    matches!(byte,
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9'
        | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_'
        | b'`' | b'|' | b'~')
}

/// Whether `byte` may stand in a field value (RFC 9110, 5.5): no control but the tab.
pub(super) const fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: [(&str, FieldKind); 25] = [
        ("Host", FieldKind::Host),
        ("Content-Length", FieldKind::ContentLength),
        ("Transfer-Encoding", FieldKind::TransferEncoding),
        ("Connection", FieldKind::Connection),
        ("Keep-Alive", FieldKind::KeepAlive),
        ("Proxy-Connection", FieldKind::ProxyConnection),
        ("TE", FieldKind::Te),
        ("Upgrade", FieldKind::Upgrade),
        ("HTTP2-Settings", FieldKind::Http2Settings),
        ("Trailer", FieldKind::Trailer),
        ("Expect", FieldKind::Expect),
        ("X-Forwarded-For", FieldKind::XForwardedFor),
        ("X-Forwarded-Proto", FieldKind::XForwardedProto),
        ("X-Forwarded-Host", FieldKind::XForwardedHost),
        ("X-Request-Id", FieldKind::XRequestId),
        ("Via", FieldKind::Via),
        ("Max-Forwards", FieldKind::MaxForwards),
        ("Forwarded", FieldKind::Forwarded),
        ("Server", FieldKind::Server),
        ("Date", FieldKind::Date),
        ("Age", FieldKind::Age),
        ("User-Agent", FieldKind::UserAgent),
        ("Referer", FieldKind::Referer),
        ("Cookie", FieldKind::Cookie),
        ("X-Anything", FieldKind::Other),
    ];

    #[test]
    fn kinds_are_found_in_any_case() {
        for (name, kind) in NAMED {
            assert_eq!(FieldKind::of(name.as_bytes()), kind, "{name}");
            assert_eq!(FieldKind::of(name.to_ascii_lowercase().as_bytes()), kind, "{name}");
            assert_eq!(FieldKind::of(name.to_ascii_uppercase().as_bytes()), kind, "{name}");
        }
    }

    /// One byte changed to any other token byte, the name is another field's.
    #[test]
    fn near_misses_are_other() {
        for (name, _) in NAMED {
            for index in 0..name.len() {
                for byte in (0..=u8::MAX).filter(|byte| is_token_byte(*byte)) {
                    let mut near = name.as_bytes().to_vec();
                    if near[index].eq_ignore_ascii_case(&byte) {
                        continue;
                    }
                    near[index] = byte;
                    let near_kind = FieldKind::of(&near);
                    assert_eq!(near_kind, FieldKind::Other, "{}", near.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn members_are_trimmed_and_empty_ones_kept() {
        let list: Vec<_> = members(b" a,b\t , ,c d").collect();
        assert_eq!(list, [&b"a"[..], b"b", b"", b"c d"]);
    }
}
