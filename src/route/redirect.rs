//! Redirects: the `Location` that a request is sent to. Pure.
//!
//! The parts of the request's URI that are not replaced are kept. The port is kept only with the
//! request's own scheme and host: another scheme or another host means that one's default port,
//! unless a port is given. A default port is not written.

use super::rewrite::{self, escape, is_uri_byte};

/// Where a request is sent to instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308 (RFC 9110, 15.4).
    pub status: u16,
    /// `http` or `https`, in place of the request's.
    pub scheme: Option<String>,
    /// In place of the request's; without a port.
    pub host: Option<String>,
    /// In place of the request's.
    pub port: Option<u16>,
    /// In place of the request's path, or of its matched prefix.
    pub path: Option<RedirectPath>,
    /// Leaves the request's query out.
    pub strip_query: bool,
}

/// How a redirect changes the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPath {
    /// This path, whatever was asked for. If it has a query, that replaces the request's.
    Whole(String),
    /// This in place of the route's prefix or exact path.
    Prefix(String),
}

/// What of the request a redirect may keep.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Whether the client speaks `https`, as far as we believe it.
    pub https: bool,
    /// The authority, as received; may be empty.
    pub host: &'a [u8],
    /// Normalised.
    pub path: &'a [u8],
    /// Without its question mark.
    pub query: Option<&'a [u8]>,
    /// The route's `prefix_bytes`.
    pub prefix_bytes: usize,
}

impl Redirect {
    /// Appends the value of `Location`. Whatever was asked for, it has no byte that has no place
    /// in a URI, so no line end either; and a path never turns into another host. Without a host
    /// to name, it is relative to the client's own (RFC 9110, 10.2.2).
    pub fn write_location(&self, asked: &Asked<'_>, out: &mut Vec<u8>) {
        let (asked_name, asked_port) = split_port(asked.host);
        let name = self.host.as_deref().map_or(asked_name, str::as_bytes);
        if !name.is_empty() {
            let asked_scheme = if asked.https { "https" } else { "http" };
            let scheme = self.scheme.as_deref().unwrap_or(asked_scheme);
            out.extend_from_slice(scheme.as_bytes());
            out.extend_from_slice(b"://");
            escape(name, is_host_byte, out);
            let kept = self.scheme.is_none() && self.host.is_none();
            let port = self.port.or(asked_port.filter(|_| kept));
            let default = if scheme == "https" { 443 } else { 80 };
            if let Some(port) = port.filter(|port| *port != default) {
                out.push(b':');
                out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
            }
        }
        let query_replaced = self.write_path(asked, name.is_empty(), out);
        if let Some(query) = asked.query.filter(|_| !self.strip_query && !query_replaced) {
            out.push(b'?');
            escape(query, is_uri_byte, out);
        }
    }

    /// Returns whether it wrote a query as well.
    fn write_path(&self, asked: &Asked<'_>, relative: bool, out: &mut Vec<u8>) -> bool {
        let [mut head, mut tail] = match &self.path {
            Some(RedirectPath::Whole(whole)) => [whole.as_bytes(), b""],
            Some(RedirectPath::Prefix(prefix)) => {
                rewrite::prefix(prefix, asked.prefix_bytes, asked.path)
            }
            None => [asked.path, b""],
        };
        if head.is_empty() {
            (head, tail) = (tail, b"");
        }
        out.push(b'/');
        head = head.strip_prefix(b"/").unwrap_or(head);
        if relative {
            // Two slashes would begin a host (RFC 3986, 4.2).
            head = without_slashes(head);
            if head.is_empty() {
                tail = without_slashes(tail);
            }
        }
        let whole = matches!(self.path, Some(RedirectPath::Whole(_)));
        for part in [head, tail] {
            escape(part, |byte| is_uri_byte(byte) && (byte != b'?' || whole), out);
        }
        whole && head.contains(&b'?')
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if !matches!(self.status, 301 | 302 | 303 | 307 | 308) {
            return Err("a redirect has status 301, 302, 303, 307 or 308");
        }
        if self.scheme.as_deref().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
            return Err("a redirect's scheme is http or https");
        }
        let host_fits = |host: &str| {
            let (name, port) = split_port(host.as_bytes());
            !name.is_empty()
                && port.is_none()
                && name.len() == host.len()
                && host.bytes().all(is_host_byte)
        };
        if self.host.as_deref().is_some_and(|host| !host_fits(host)) {
            return Err("a redirect's host is a host name; its port stands apart");
        }
        if self.port == Some(0) {
            return Err("a redirect's port is from 1 to 65535");
        }
        let fits = match &self.path {
            Some(RedirectPath::Whole(path)) => {
                path.starts_with('/') && path.bytes().all(is_uri_byte)
            }
            Some(RedirectPath::Prefix(path)) => rewrite::is_path(path),
            None => true,
        };
        if !fits {
            return Err("a redirect's path begins with '/' and has no '#' or space");
        }
        let keeps_all = self.scheme.is_none()
            && self.host.is_none()
            && self.port.is_none()
            && self.path.is_none()
            && !self.strip_query;
        if keeps_all {
            return Err("a redirect that changes nothing leads back to itself");
        }
        Ok(())
    }
}

fn without_slashes(mut path: &[u8]) -> &[u8] {
    while let [b'/', rest @ ..] = path {
        path = rest;
    }
    path
}

/// Whether `byte` may stand in a host with a port (RFC 3986, 3.2), in brackets or not. Percent
/// signs may: reg-names have escapes.
pub(super) fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(&byte)
}

/// Name and port of an authority. An empty or impossible port counts as none.
fn split_port(host: &[u8]) -> (&[u8], Option<u16>) {
    let name = without_port(host);
    let digits = host[name.len()..].strip_prefix(b":");
    let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let port = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    (name, port)
}

/// The name of an authority; an IPv6 address with its brackets.
#[inline]
pub(super) fn without_port(host: &[u8]) -> &[u8] {
    let name_end = match host.first() {
        Some(b'[') => memchr::memchr(b']', host).map(|end| end + 1),
        _ => memchr::memchr(b':', host),
    };
    name_end.map_or(host, |end| &host[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Redirect = Redirect {
        status: 301,
        scheme: None,
        host: None,
        port: None,
        path: None,
        strip_query: false,
    };

    fn asked<'a>(host: &'a str, path: &'a str, query: Option<&'a str>) -> Asked<'a> {
        Asked {
            https: false,
            host: host.as_bytes(),
            path: path.as_bytes(),
            query: query.map(str::as_bytes),
            prefix_bytes: 0,
        }
    }

    fn location(redirect: &Redirect, asked: &Asked<'_>) -> String {
        let mut out = Vec::new();
        redirect.write_location(asked, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn keeps_what_is_not_replaced() {
        let from = asked("a.example:8080", "/x", Some("q=1"));
        let to = |change: fn(&mut Redirect)| {
            let mut redirect = KEEP;
            change(&mut redirect);
            location(&redirect, &from)
        };
        assert_eq!(to(|to| to.strip_query = true), "http://a.example:8080/x");
        assert_eq!(to(|to| to.scheme = Some("https".into())), "https://a.example/x?q=1");
        assert_eq!(to(|to| to.host = Some("b.example".into())), "http://b.example/x?q=1");
        assert_eq!(to(|to| to.port = Some(81)), "http://a.example:81/x?q=1");
        assert_eq!(to(|to| to.port = Some(80)), "http://a.example/x?q=1");
        assert_eq!(
            to(|to| (to.scheme, to.port) = (Some("https".into()), Some(8443))),
            "https://a.example:8443/x?q=1"
        );
        assert_eq!(
            to(|to| (to.scheme, to.port) = (Some("https".into()), Some(443))),
            "https://a.example/x?q=1"
        );
        assert_eq!(
            to(|to| to.path = Some(RedirectPath::Whole("/y".into()))),
            "http://a.example:8080/y?q=1"
        );
        assert_eq!(
            to(|to| to.path = Some(RedirectPath::Whole("/y?z".into()))),
            "http://a.example:8080/y?z"
        );
    }

    #[test]
    fn default_ports_are_not_written() {
        let redirect = Redirect { path: Some(RedirectPath::Whole("/".into())), ..KEEP };
        assert_eq!(location(&redirect, &asked("a.example:80", "/x", None)), "http://a.example/");
        let https = Asked { https: true, ..asked("[::1]:443", "/x", None) };
        assert_eq!(location(&redirect, &https), "https://[::1]/");
        assert_eq!(location(&redirect, &asked("[::1]:443", "/x", None)), "http://[::1]:443/");
    }

    #[test]
    fn prefixes_are_replaced() {
        let redirect = Redirect { path: Some(RedirectPath::Prefix("/new".into())), ..KEEP };
        let of = |path| Asked { prefix_bytes: "/old".len(), ..asked("a.example", path, None) };
        assert_eq!(location(&redirect, &of("/old/x")), "http://a.example/new/x");
        assert_eq!(location(&redirect, &of("/old")), "http://a.example/new");
    }

    #[test]
    fn a_path_never_becomes_a_host() {
        let redirect = Redirect { strip_query: true, ..KEEP };
        assert_eq!(location(&redirect, &asked("", "//evil.example", None)), "/evil.example");
        assert_eq!(location(&redirect, &asked("", "/\\evil.example", None)), "/%5Cevil.example");
        assert_eq!(location(&redirect, &asked("", "*", None)), "/*");
        assert_eq!(
            location(&redirect, &asked("a@evil.example", "/", None)),
            "http://a%40evil.example/"
        );
        let prefix = Redirect { path: Some(RedirectPath::Prefix("/".into())), ..KEEP };
        let from = Asked { prefix_bytes: "/old".len(), ..asked("", "/old//evil.example", None) };
        assert_eq!(location(&prefix, &from), "/evil.example");
        let root = Redirect { path: Some(RedirectPath::Whole("//evil.example".into())), ..KEEP };
        assert_eq!(location(&root, &asked("", "/", None)), "/evil.example");
        let slashes = Redirect { path: Some(RedirectPath::Prefix("///".into())), ..KEEP };
        assert_eq!(location(&slashes, &from), "/evil.example");
    }

    #[test]
    fn impossible_redirects_are_refused() {
        let fits = |change: fn(&mut Redirect)| {
            let mut redirect = Redirect { strip_query: true, ..KEEP };
            change(&mut redirect);
            redirect.check().is_ok()
        };
        assert!(fits(|_| ()) && fits(|to| to.host = Some("[::1]".into())));
        assert!(!fits(|to| to.strip_query = false));
        assert!(!fits(|to| to.status = 304));
        assert!(!fits(|to| to.scheme = Some("ftp".into())));
        assert!(!fits(|to| to.host = Some("a.example:81".into())));
        assert!(!fits(|to| to.host = Some("a.example/x".into())));
        assert!(!fits(|to| to.host = Some("a\r\n".into())));
        assert!(!fits(|to| to.port = Some(0)));
        assert!(!fits(|to| to.path = Some(RedirectPath::Whole("x".into()))));
        assert!(!fits(|to| to.path = Some(RedirectPath::Prefix("/x?y".into()))));
    }

    proptest! {
        /// Whatever bytes are asked for, the value is one line of a URI's bytes.
        #[test]
        fn a_location_is_a_uri(
            host in prop::collection::vec(any::<u8>(), 0..20),
            path in prop::collection::vec(any::<u8>(), 0..40),
            query in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
            prefix_bytes in 0usize..50,
            prefix: bool,
        ) {
            let path_rule = prefix.then(|| RedirectPath::Prefix("/p".into()));
            let redirect = Redirect { path: path_rule, ..KEEP };
            let asked = Asked { https: false, host: &host, path: &path, query: query.as_deref(), prefix_bytes };
            let mut out = Vec::new();
            redirect.write_location(&asked, &mut out);
            prop_assert!(out.iter().all(|byte| is_uri_byte(*byte)), "{}", out.escape_ascii());
            prop_assert!(!out.starts_with(b"//"));
        }
    }
}
