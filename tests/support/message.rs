//! A request or an answer as it stood on the wire, read strictly.

use super::wire::show;

/// A message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Request line or status line.
    pub start: String,
    /// In their order, as written.
    pub fields: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
    /// Behind a chunked body.
    pub trailers: Vec<(String, String)>,
    /// Chunks that the body came in, the last one not counted.
    pub chunks: usize,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

impl Message {
    /// Of a head with its empty line.
    #[track_caller]
    pub fn parse(head: &[u8]) -> Message {
        let text = head.strip_suffix(b"\r\n\r\n").expect("a whole head");
        let mut lines = text.split(|byte| *byte == b'\n');
        let start = lines.next().expect("a first line");
        let start = start.strip_suffix(b"\r").unwrap_or(start);
        check(start, head);
        let fields = lines.map(|line| field(line.strip_suffix(b"\r").unwrap_or(line))).collect();
        let crs = text.iter().filter(|byte| **byte == b'\r').count();
        let lfs = text.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(crs, lfs, "every line ends with CRLF: {}", show(head));
        Message {
            start: String::from_utf8(start.to_vec()).expect("a readable first line"),
            fields,
            body: Vec::new(),
            trailers: Vec::new(),
            chunks: 0,
        }
    }

    /// Of an answer.
    #[track_caller]
    pub fn status(&self) -> u16 {
        assert!(self.start.starts_with("HTTP/1.1 "), "we answer in HTTP/1.1: {}", self.start);
        assert_eq!(self.start.as_bytes().get(12), Some(&b' '), "{}", self.start);
        self.start[9..12].parse().expect("a status")
    }

    /// Of a request.
    pub fn method(&self) -> &str {
        self.start.split(' ').next().expect("a method")
    }

    /// Of a request.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).expect("a target")
    }

    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that is there at most once.
    #[track_caller]
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} is there {} times: {self:#?}", all.len());
        all.first().copied()
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a readable body")
    }

    /// Whether `Connection` has this option.
    pub fn connection(&self, option: &str) -> bool {
        let mut options = self.all("connection").into_iter().flat_map(|value| value.split(','));
        options.any(|one| one.trim().eq_ignore_ascii_case(option))
    }

    /// RFC 9112, 6.3; a request without a body and an answer without framing are told apart by
    /// the first line.
    #[track_caller]
    pub fn framing(&self) -> Framing {
        match (self.get("content-length"), self.get("transfer-encoding")) {
            (Some(_), Some(_)) => panic!("two framings: {self:#?}"),
            (Some(length), None) => Framing::Length(length.parse().expect("a length")),
            (None, Some(coding)) => {
                assert_eq!(coding, "chunked");
                Framing::Chunked
            }
            (None, None) if self.start.starts_with("HTTP/") => Framing::UntilClose,
            (None, None) => Framing::None,
        }
    }
}

/// Of a line without its end.
#[track_caller]
pub fn field(line: &[u8]) -> (String, String) {
    check(line, line);
    let text = String::from_utf8_lossy(line).into_owned();
    let (name, value) = text.split_once(':').unwrap_or_else(|| panic!("no field: {text:?}"));
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    assert!(!name.is_empty() && name.bytes().all(token), "no token: {text:?}");
    (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
}

#[track_caller]
fn check(line: &[u8], whole: &[u8]) {
    let allowed = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    assert!(line.iter().all(allowed), "a control character: {}", show(whole));
}
