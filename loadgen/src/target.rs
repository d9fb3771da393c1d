//! URLs and their requests: text -> bytes ready to send. Resolves names once, before a run.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

/// Bytes in one chunk of a chunked upload.
const CHUNK_BYTES: usize = 16 * 1024;

/// What to send, before it is bytes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Request {
    /// `http://host[:port]/path?query`.
    pub url: String,
    /// How often it is picked, against the others' weights.
    pub weight: u32,
    /// GET where empty and there is no body, else POST.
    pub method: Option<String>,
    /// Added to, or replacing, the fields that we send.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// Send the body in chunks instead of with a length.
    pub chunked: bool,
    /// What a right answer looks like.
    pub expect: Expect,
}

/// What makes an answer right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expect {
    /// This status; without it, any below 400.
    pub status: Option<u16>,
    /// Body bytes.
    pub length: Option<u64>,
    /// The body's hash.
    pub hash: Option<HashWanted>,
}

/// How the right hash is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashWanted {
    /// As the first answer that each worker sees.
    First,
    /// This xxh64.
    Exactly(u64),
}

/// A request, ready.
#[derive(Debug, Clone)]
pub struct Target {
    /// As the user wrote it.
    pub url: String,
    /// Where it goes.
    pub address: SocketAddr,
    /// At least 1.
    pub weight: u32,
    /// The whole request.
    pub bytes: Arc<[u8]>,
    /// HEAD: the answer has no body.
    pub head_only: bool,
    /// What a right answer looks like.
    pub expect: Expect,
}

/// The parts of a URL that a request needs.
#[derive(Debug, PartialEq, Eq)]
struct Url<'a> {
    host: &'a str,
    port: u16,
    authority: &'a str,
    path: &'a str,
}

impl<'a> Url<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let bad = |why: &str| format!("'{text}' is no usable URL: {why}");
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(bad("it has no scheme, such as http://"));
        };
        match scheme {
            "http" => {}
            "https" => return Err(bad("TLS is not supported yet")),
            _ => return Err(bad("the scheme is not http")),
        }
        if text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(bad("it has a space or a control character"));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if authority.contains('@') {
            return Err(bad("put credentials in an Authorization header, with -H"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or_else(|| bad("no ']'"))?;
                match (after, after.strip_prefix(':')) {
                    ("", _) => (host, None),
                    (_, Some(port)) => (host, Some(port)),
                    _ => return Err(bad("only a port may follow ']'")),
                }
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        let port = match port {
            None => 80,
            Some(port) => match port.parse::<u16>() {
                Ok(port) if port > 0 => port,
                _ => return Err(bad("the port is not 1 to 65535")),
            },
        };
        Ok(Self { host, port, authority, path })
    }
}

/// Splits `9@http://…` into its weight and its URL; the weight is 1 where none is given.
///
/// # Errors
/// When the weight is no number of at least 1.
pub fn weighted(text: &str) -> Result<(u32, &str), String> {
    match text.split_once('@') {
        Some((weight, url)) if !weight.contains('/') => match weight.parse::<u32>() {
            Ok(weight) if weight > 0 => Ok((weight, url)),
            _ => Err(format!("'{weight}' in '{text}' is no weight of at least 1")),
        },
        _ => Ok((1, text)),
    }
}

/// Splits `Name: value`.
///
/// # Errors
/// When it is no header field.
pub fn header(text: &str) -> Result<(String, String), String> {
    let bad = || format!("'{text}' is no header such as 'Name: value'");
    let (name, value) = text.split_once(':').ok_or_else(bad)?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let value = value.trim_matches([' ', '\t']);
    if name.is_empty()
        || !name.bytes().all(token)
        || value.bytes().any(|byte| byte < b' ' && byte != b'\t')
    {
        return Err(bad());
    }
    Ok((name.to_owned(), value.to_owned()))
}

impl Target {
    /// Resolves the host and writes the request.
    ///
    /// # Errors
    /// One line: a bad URL or method, or a name that does not resolve.
    pub fn new(request: &Request, keep_alive: bool) -> Result<Self, String> {
        let url = Url::parse(&request.url)?;
        let address = (url.host, url.port)
            .to_socket_addrs()
            .map_err(|error| format!("cannot resolve '{}': {error}", url.host))?
            .next()
            .ok_or_else(|| format!("'{}' has no address", url.host))?;
        let default = if request.body.is_empty() { "GET" } else { "POST" };
        let method = request.method.as_deref().unwrap_or(default);
        if method.is_empty()
            || !method.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-')
        {
            return Err(format!("'{method}' is no method"));
        }
        Ok(Self {
            url: request.url.clone(),
            address,
            weight: request.weight.max(1),
            bytes: write(request, &url, method, keep_alive).into(),
            head_only: method == "HEAD",
            expect: request.expect,
        })
    }
}

fn write(request: &Request, url: &Url, method: &str, keep_alive: bool) -> Vec<u8> {
    let given =
        |name: &str| request.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    let slash = if url.path.starts_with('/') { "" } else { "/" };
    let mut head = format!("{method} {slash}{} HTTP/1.1\r\n", url.path);
    // As few as wrk sends: what the target parses is what the user asked for.
    if !given("host") {
        head += &format!("Host: {}\r\n", url.authority);
    }
    for (name, value) in &request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !keep_alive && !given("connection") {
        head += "Connection: close\r\n";
    }
    let bodied = !request.body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH");
    if request.chunked {
        head += "Transfer-Encoding: chunked\r\n";
    } else if bodied && !given("content-length") {
        head += &format!("Content-Length: {}\r\n", request.body.len());
    }
    head += "\r\n";
    let mut bytes = head.into_bytes();
    if request.chunked {
        for chunk in request.body.chunks(CHUNK_BYTES) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
    } else {
        bytes.extend_from_slice(&request.body);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(request: &Request, keep_alive: bool) -> String {
        String::from_utf8(Target::new(request, keep_alive).unwrap().bytes.to_vec()).unwrap()
    }

    #[test]
    fn urls() {
        let url = Url::parse("http://127.0.0.1:8080/a?b=c#d").unwrap();
        assert_eq!((url.host, url.port, url.path), ("127.0.0.1", 8080, "/a?b=c"));
        let url = Url::parse("http://[::1]:81").unwrap();
        assert_eq!((url.host, url.port, url.authority, url.path), ("::1", 81, "[::1]:81", "/"));
        assert_eq!(Url::parse("http://a?x").unwrap().path, "?x");
        for bad in [
            "",
            "a",
            "localhost:80",
            "ftp://a",
            "https://a",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:99999",
            "http://a:x",
            "http://[::1",
            "http://[::1]x",
            "http://a/ b",
            "http://u:p@a",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_are_as_small_as_can_be() {
        let get = Request { url: "http://127.0.0.1:80/x".into(), ..Request::default() };
        assert_eq!(text(&get, true), "GET /x HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n");
        assert!(text(&get, false).contains("\r\nConnection: close\r\n"));
        let query = Request { url: "http://127.0.0.1?q".into(), ..get.clone() };
        assert!(text(&query, true).starts_with("GET /?q HTTP/1.1\r\n"));
        let post = Request {
            body: b"hi".to_vec(),
            headers: vec![("host".into(), "b".into())],
            ..get.clone()
        };
        assert_eq!(text(&post, true), "POST /x HTTP/1.1\r\nhost: b\r\nContent-Length: 2\r\n\r\nhi");
        let chunked = Request { chunked: true, body: vec![b'x'; CHUNK_BYTES + 1], ..get };
        let text = text(&chunked, true);
        assert!(text.contains("Transfer-Encoding: chunked\r\n\r\n4000\r\nxxx"), "{text}");
        assert!(text.ends_with("x\r\n1\r\nx\r\n0\r\n\r\n"), "{text}");
    }

    #[test]
    fn weights_and_headers() {
        assert_eq!(weighted("9@http://a/@b"), Ok((9, "http://a/@b")));
        assert_eq!(weighted("http://a/@b"), Ok((1, "http://a/@b")));
        assert!(weighted("0@http://a").is_err());
        assert!(weighted("x@http://a").is_err());
        assert_eq!(header("A-b:  c: d "), Ok(("A-b".into(), "c: d".into())));
        for bad in ["", "a", ": b", "a b: c", "a: \r\nb: c"] {
            assert!(header(bad).is_err(), "{bad:?}");
        }
    }
}
