//! What is asked: method, URL and headers, as curl takes them, to the bytes that a client would
//! send.

use std::net::IpAddr;

/// A request, in the words of a command line.
#[derive(Debug, Clone)]
pub struct Ask {
    /// As curl's `-X`.
    pub method: String,
    /// `http://host:port/path?query`; scheme, or scheme and host, may be missing.
    pub url: String,
    /// As curl's `-H`: `name: value`, or `name;` for one without a value.
    pub headers: Vec<String>,
    /// Who asks: the other end of the connection.
    pub client: IpAddr,
    /// The listener, by its name. Else the one on the URL's port, else the first.
    pub listener: Option<String>,
}

/// A request as a client would send it.
pub(super) struct Written {
    pub head: Vec<u8>,
    /// The port that the client would connect to, as far as the URL says.
    pub port: Option<u16>,
}

impl Ask {
    /// # Errors
    /// Why this is no request that a client could send, with a second line: what to do.
    pub(super) fn write(&self) -> Result<Written, String> {
        let Url { authority, target, port } = Url::read(&self.url)?;
        let given = self.headers.iter().map(|text| header(text));
        let given = given.collect::<Result<Vec<_>, _>>()?;
        if has_line_end(&self.method) {
            return Err(format!("{:?} has a line end\na method is a word: -X GET", self.method));
        }
        let says_host = given.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
        let target = match self.method.as_str() {
            "CONNECT" => authority,
            _ => target,
        };
        // What has no path has the root (RFC 9112, 3.2.1).
        let root = if target.is_empty() || target.starts_with('?') { "/" } else { "" };
        let mut head = format!("{} {root}{target} HTTP/1.1\r\n", self.method);
        if !says_host {
            head.push_str(&format!("Host: {authority}\r\n"));
        }
        for (name, value) in &given {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Ok(Written { head: head.into_bytes(), port })
    }
}

struct Url<'a> {
    authority: &'a str,
    target: &'a str,
    port: Option<u16>,
}

impl<'a> Url<'a> {
    fn read(text: &'a str) -> Result<Url<'a>, String> {
        if text.is_empty() || has_line_end(text) {
            return Err(format!("{text:?} is no URL\nwrite http://host/path"));
        }
        // A fragment stays with the client (RFC 9110, 4.1).
        let text = text.split('#').next().unwrap_or_default();
        if text.starts_with('/') || text == "*" {
            return Ok(Url { authority: "localhost", target: text, port: None });
        }
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
                return Err("no listener speaks TLS\nwrite http://; where a proxy in front ends \
                    TLS, with -H 'X-Forwarded-Proto: https'"
                    .to_owned());
            }
            Some((scheme, _)) => {
                return Err(format!("'{scheme}' is no scheme of HTTP\nwrite http://host/path"));
            }
            None => text,
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.is_empty() {
            return Err("the URL has no host\nwrite http://host/path".to_owned());
        }
        if authority.contains('@') {
            let hint = "write it without them, with -H 'Authorization: Basic ...'";
            return Err(format!("the URL has user and password\n{hint}"));
        }
        Ok(Url { authority, target, port: port(authority) })
    }
}

/// `name: value`, or `name;`.
fn header(text: &str) -> Result<(&str, &str), String> {
    if has_line_end(text) {
        return Err(format!("header {text:?} has a line end\nwrite one -H for each line"));
    }
    match text.split_once(':') {
        Some((name, value)) => Ok((name, value.trim_matches([' ', '\t']))),
        None => match text.strip_suffix(';') {
            Some(name) => Ok((name, "")),
            None => Err(format!("header '{text}' has no colon\nwrite -H 'name: value'")),
        },
    }
}

fn has_line_end(text: &str) -> bool {
    text.contains(['\r', '\n', '\0'])
}

fn port(authority: &str) -> Option<u16> {
    let behind_address = authority.rsplit_once(']').map_or(authority, |(_, port)| port);
    match behind_address.rsplit_once(':') {
        Some((_, port)) => port.parse().ok(),
        None => Some(80),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, url: &str, headers: &[&str]) -> Ask {
        let headers = headers.iter().map(|&text| text.to_owned()).collect();
        let client = [127, 0, 0, 1].into();
        Ask { method: method.into(), url: url.into(), headers, client, listener: None }
    }

    fn written(method: &str, url: &str, headers: &[&str]) -> (String, Option<u16>) {
        let Ok(Written { head, port }) = ask(method, url, headers).write() else {
            panic!("{method} {url} {headers:?} is refused")
        };
        (String::from_utf8(head).unwrap(), port)
    }

    #[test]
    fn a_request_is_what_a_client_would_send() {
        let (head, port) = written("GET", "http://a.example:81/x?y#z", &["A: 1", "b:  2 ", "c;"]);
        let expected = "GET /x?y HTTP/1.1\r\nHost: a.example:81\r\nA: 1\r\nb: 2\r\nc: \r\n\r\n";
        assert_eq!((head.as_str(), port), (expected, Some(81)));
        let line = |method: &str, url: &str| {
            let (head, port) = written(method, url, &[]);
            (head.lines().take(2).collect::<Vec<_>>().join(", "), port)
        };
        assert_eq!(line("GET", "a"), ("GET / HTTP/1.1, Host: a".into(), Some(80)));
        assert_eq!(line("GET", "a?b"), ("GET /?b HTTP/1.1, Host: a".into(), Some(80)));
        assert_eq!(line("GET", "/x"), ("GET /x HTTP/1.1, Host: localhost".into(), None));
        assert_eq!(line("HEAD", "[::1]:9/"), ("HEAD / HTTP/1.1, Host: [::1]:9".into(), Some(9)));
        assert_eq!(line("CONNECT", "a:9"), ("CONNECT a:9 HTTP/1.1, Host: a:9".into(), Some(9)));
        assert_eq!(line("OPTIONS", "*"), ("OPTIONS * HTTP/1.1, Host: localhost".into(), None));
        assert!(written("GET", "a", &["host: b"]).0.ends_with("1.1\r\nhost: b\r\n\r\n"));
    }

    #[test]
    fn what_no_client_sends_is_refused_with_advice() {
        for (url, header) in [
            ("", "a: b"),
            ("https://a/", "a: b"),
            ("ftp://a/", "a: b"),
            ("http:///x", "a: b"),
            ("http://me:secret@a/", "a: b"),
            ("http://a/\r\nx: y", "a: b"),
            ("a", "no colon"),
            ("a", "a: b\r\nc: d"),
        ] {
            let error = ask("GET", url, &[header]).write().err();
            let error = error.unwrap_or_else(|| panic!("{url:?} {header:?} is taken"));
            assert_eq!(error.lines().count(), 2, "{error}");
        }
        assert!(ask("A\nB", "a", &[]).write().is_err());
    }
}
