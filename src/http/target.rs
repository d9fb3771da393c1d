//! What a request is for: its target (RFC 9112, 3.2) and its authority (RFC 3986, 3.2). Called by
//! `head` with the bytes of the request line and of `Host`. Never normalises: `path` does.

use std::net::Ipv6Addr;

use memchr::{memchr, memchr2};

use super::head::Method;

/// A request target, in one of its four forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'b> {
    /// `/path?query`.
    Origin {
        /// Begins with `/`. Raw.
        path: &'b [u8],
        /// What stands behind the `?`, without it.
        query: Option<&'b [u8]>,
    },
    /// `http://authority/path?query`, as clients send it to proxies.
    Absolute {
        /// `http` or `https`, in the sender's case.
        scheme: &'b [u8],
        /// Host and port; it outranks the field `Host`.
        authority: &'b [u8],
        /// Begins with `/`; `/` where the target had none. Raw.
        path: &'b [u8],
        /// What stands behind the `?`, without it.
        query: Option<&'b [u8]>,
    },
    /// `*`: the server as a whole. OPTIONS only.
    Asterisk,
    /// `host:port`. CONNECT only.
    Authority(&'b [u8]),
}

impl<'b> Target<'b> {
    /// The raw path, to be normalised before anybody looks at it; none in the other two forms.
    pub fn path(&self) -> Option<&'b [u8]> {
        match self {
            Target::Origin { path, .. } | Target::Absolute { path, .. } => Some(path),
            Target::Asterisk | Target::Authority(_) => None,
        }
    }

    /// What stands behind the `?`, without it.
    pub fn query(&self) -> Option<&'b [u8]> {
        match self {
            Target::Origin { query, .. } | Target::Absolute { query, .. } => *query,
            Target::Asterisk | Target::Authority(_) => None,
        }
    }

    /// The target in the one form that `method` allows, or none: 400.
    ///
    /// Any visible ASCII byte may stand in a path or query: browsers leave `|`, `{` and others bare,
    /// whatever RFC 3986 says, and no two parsers disagree about them.
    #[inline]
    pub(super) fn parse(method: Method, bytes: &'b [u8]) -> Option<Parts<'b>> {
        match bytes {
            _ if method == Method::Connect => Self::parse_authority_form(bytes),
            [b'/', ..] => {
                let Split { path, query, fragment } = Split::of(bytes)?;
                Some(Parts { target: Target::Origin { path, query }, authority: None, fragment })
            }
            b"*" if method == Method::Options => {
                Some(Parts { target: Target::Asterisk, authority: None, fragment: false })
            }
            _ => Self::parse_absolute_form(method, bytes),
        }
    }

    fn parse_authority_form(bytes: &'b [u8]) -> Option<Parts<'b>> {
        // The port must be there (RFC 9110, 9.3.6).
        let ported = bytes.last().is_some_and(u8::is_ascii_digit) && bytes.contains(&b':');
        let valid = ported && is_authority(bytes);
        let target = Target::Authority(bytes);
        valid.then_some(Parts { target, authority: Some(bytes), fragment: false })
    }

    #[cold]
    fn parse_absolute_form(method: Method, bytes: &'b [u8]) -> Option<Parts<'b>> {
        let scheme = ["http", "https"].into_iter().find(|scheme| {
            bytes.len() > scheme.len() + 3
                && bytes[..scheme.len()].eq_ignore_ascii_case(scheme.as_bytes())
                && bytes[scheme.len()..].starts_with(b"://")
        })?;
        let (scheme, rest) = (&bytes[..scheme.len()], &bytes[scheme.len() + 3..]);
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
        let (authority, rest) = rest.split_at(end.unwrap_or(rest.len()));
        if authority.is_empty() || !is_authority(authority) {
            return None;
        }
        let authority_only = Some(authority);
        if method == Method::Options && rest.is_empty() {
            // The last proxy asks for the server as a whole (RFC 9112, 3.2.4).
            let target = Target::Asterisk;
            return Some(Parts { target, authority: authority_only, fragment: false });
        }
        let Split { path, query, fragment } = Split::of(rest)?;
        let path = if path.is_empty() { b"/" } else { path };
        let target = Target::Absolute { scheme, authority, path, query };
        Some(Parts { target, authority: authority_only, fragment })
    }
}

/// A target, with what else was found in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts<'b> {
    pub target: Target<'b>,
    /// In absolute-form and authority-form.
    pub authority: Option<&'b [u8]>,
    /// A fragment was cut off. It has no place in a request.
    pub fragment: bool,
}

/// What stands behind the authority.
struct Split<'b> {
    path: &'b [u8],
    query: Option<&'b [u8]>,
    /// Whether a fragment followed.
    fragment: bool,
}

impl<'b> Split<'b> {
    /// None if a byte is not visible ASCII.
    #[inline]
    fn of(bytes: &'b [u8]) -> Option<Self> {
        // The tokeniser lets UTF-8 through, but no controls and no space.
        if !bytes.is_ascii() {
            return None;
        }
        let Some(end) = memchr2(b'?', b'#', bytes) else {
            return Some(Split { path: bytes, query: None, fragment: false });
        };
        let (path, rest) = bytes.split_at(end);
        if rest[0] == b'#' {
            return Some(Split { path, query: None, fragment: true });
        }
        let (query, fragment) = match memchr(b'#', rest) {
            None => (&rest[1..], false),
            Some(end) => (&rest[1..end], true),
        };
        Some(Split { path, query: Some(query), fragment })
    }
}

/// Whether `bytes` is `host [":" port]`, without user information. Nothing at all
/// counts as one, a port alone does not.
///
/// Narrower than RFC 3986 in two points, as names in HTTP are DNS names or addresses: no percent-
/// encoding (routing and origin could decode differently), and no address literals other than IPv6.
#[inline]
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let rest = if let [b'[', ..] = bytes {
        let Some(rest) = after_literal(bytes) else { return false };
        rest
    } else {
        let end = bytes.iter().position(|byte| !HOST_BYTES[*byte as usize]);
        &bytes[end.unwrap_or(bytes.len())..]
    };
    match rest {
        [] => true,
        [b':', port @ ..] => rest.len() < bytes.len() && is_port(port),
        _ => false,
    }
}

/// What follows an IPv6 literal in brackets.
#[cold]
fn after_literal(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == b']')?;
    let literal = std::str::from_utf8(&bytes[1..end]).ok()?;
    literal.parse::<Ipv6Addr>().ok()?;
    Some(&bytes[end + 1..])
}

/// Digits up to 65535; none is allowed (RFC 3986, 3.2.3).
fn is_port(digits: &[u8]) -> bool {
    let number = digits.iter().try_fold(0_u16, |number, byte| {
        let digit = u16::from(byte.is_ascii_digit().then(|| byte - b'0')?);
        number.checked_mul(10)?.checked_add(digit)
    });
    number.is_some()
}

/// Unreserved characters and sub-delims (RFC 3986, 2.2 and 2.3).
static HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(byte as u8,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~'
            | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for good in [
            "",
            "a",
            "example.com",
            "example.com:80",
            "example.com:",
            "a_b.c~d:65535",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8080",
            "[2001:db8::7]:",
            "[::ffff:127.0.0.1]",
            "x:0",
            "x:00080",
        ] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "a b",
            "a@b",
            "user:pw@b",
            "a:b",
            "a:65536",
            "a:-1",
            "a:+1",
            "a:1:2",
            "a:80 ",
            "a/b",
            "a\\b",
            "a?b",
            "a#b",
            "a%62",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[v1.a]",
            "[fe80::1%25eth0]",
            "[]",
            ":",
            ":80",
            "[1.2.3.4]",
            "a[b]",
            "a\"b",
            "a<b",
            "\u{e9}.fr",
            "a\tb",
            "a\0b",
            "a|b",
            "a:99999999999999999999",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    /// A target as the tests write it: form, authority, path, query, fragment.
    fn seen(method: Method, target: &str) -> Option<String> {
        let parts = Target::parse(method, target.as_bytes())?;
        let text = |bytes: Option<&[u8]>| match bytes {
            Some(bytes) => bytes.escape_ascii().to_string(),
            None => "-".into(),
        };
        let form = match parts.target {
            Target::Origin { .. } => "origin",
            Target::Absolute { .. } => "absolute",
            Target::Asterisk => "asterisk",
            Target::Authority(_) => "authority",
        };
        let (path, query) = (text(parts.target.path()), text(parts.target.query()));
        Some(format!("{form} {} {path} {query} {}", text(parts.authority), parts.fragment))
    }

    #[test]
    fn targets() {
        use Method::*;
        let cases: &[(Method, &str, Option<&str>)] = &[
            (Get, "/", Some("origin - / - false")),
            (Get, "/a/b?c=d?e", Some("origin - /a/b c=d?e false")),
            (Get, "/a?", Some("origin - /a  false")),
            (Get, "//host/a", Some("origin - //host/a - false")),
            (Get, "/a#b?c", Some("origin - /a - true")),
            (Get, "/a?b#c", Some("origin - /a b true")),
            (Get, "/a?b#", Some("origin - /a b true")),
            (Get, "/a|{}<>^`", Some("origin - /a|{}<>^` - false")),
            (Get, "/caf\u{e9}", None),
            (Get, "a", None),
            (Get, "?a", None),
            (Get, "#a", None),
            (Get, "example.com", None),
            (Get, "example.com:80", None),
            (Get, "*", None),
            (Get, "**", None),
            (Options, "*", Some("asterisk - - - false")),
            (Options, "*/", None),
            (Options, "/", Some("origin - / - false")),
            (Options, "http://a", Some("asterisk a - - false")),
            (Options, "http://a/", Some("absolute a / - false")),
            (Options, "http://a?b", Some("absolute a / b false")),
            (Get, "http://a", Some("absolute a / - false")),
            (Get, "HTTPS://a:443/b?c", Some("absolute a:443 /b c false")),
            (Get, "http://a?b/c", Some("absolute a / b/c false")),
            (Get, "http://a#b", Some("absolute a / - true")),
            (Get, "http://[::1]:80/", Some("absolute [::1]:80 / - false")),
            (Get, "http://u@a/", None),
            (Get, "http://u:p@a/", None),
            (Get, "http:///", None),
            (Get, "http://", None),
            (Get, "http://:80/", None),
            (Get, "http://a:b/", None),
            (Get, "http:/a", None),
            (Get, "http:a", None),
            (Get, "ftp://a/", None),
            (Get, "ws://a/", None),
            (Get, "httpss://a/", None),
            (Connect, "a:443", Some("authority a:443 - - false")),
            (Connect, "[::1]:443", Some("authority [::1]:443 - - false")),
            (Connect, "a", None),
            (Connect, "a:", None),
            (Connect, "[::1]", None),
            (Connect, ":443", None),
            (Connect, "/", None),
            (Connect, "*", None),
            (Connect, "http://a:443", None),
            (Connect, "a:443/", None),
            (Connect, "u@a:443", None),
            (Connect, "1a", None),
        ];
        for (method, target, expected) in cases {
            assert_eq!(seen(*method, target).as_deref(), *expected, "{method:?} {target}");
        }
    }
}
