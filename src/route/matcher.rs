//! What a rule asks of a request. [`Router`](super::Router) finds hosts and paths by look-up; what
//! is left is judged here, one condition after the other. Pure; judging never allocates.

use memchr::memmem;

use crate::http::head::{FieldKind, Fields};

/// What routing sees of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// As received; methods count in their case (RFC 9110, 9.1).
    pub method: &'a [u8],
    /// The authority, as received, with or without a port.
    pub host: &'a [u8],
    /// Normalised; `*` in asterisk-form.
    pub path: &'a [u8],
    /// As received, without its question mark.
    pub query: Option<&'a [u8]>,
    /// As received. Fields that `Connection` names match nothing.
    pub fields: &'a Fields<'a, 'a>,
    /// The plan's index of the listener that it came in by.
    pub listener: usize,
}

/// The conditions of one rule; all must hold. The default holds for every request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matcher {
    /// The plan's indices of listeners; empty means all.
    pub listeners: Vec<usize>,
    /// The request's host.
    pub host: HostMatch,
    /// The request's path.
    pub path: PathMatch,
    /// One of these; empty means all. `GET` does not include `HEAD`.
    pub methods: Vec<String>,
    /// All of these.
    pub headers: Vec<FieldMatch>,
    /// All of these, of parameters in the query. Names and values are compared decoded: `%41` is
    /// `A`, `+` is a space.
    pub query: Vec<FieldMatch>,
}

/// Which hosts. In any case, without a port, and with or without the root's dot at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HostMatch {
    /// Every host, and none.
    #[default]
    Any,
    /// This host.
    Exact(String),
    /// Every host below this one, at any depth, but not this one. With or without `*.` before it.
    Suffix(String),
}

impl HostMatch {
    /// Reads the configuration's form: `*`, `*.example.com`, or a host.
    pub fn parse(text: &str) -> HostMatch {
        match text.strip_prefix("*.") {
            _ if text == "*" => HostMatch::Any,
            Some(suffix) => HostMatch::Suffix(suffix.to_owned()),
            None => HostMatch::Exact(text.to_owned()),
        }
    }
}

/// Which paths. In their case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PathMatch {
    /// Every path, and `*`.
    #[default]
    Any,
    /// This path and what lies below it: `/api` matches `/api` and `/api/x`, not `/apix`. A slash
    /// at its end says nothing more, so `/` is [`PathMatch::Any`].
    Prefix(String),
    /// This path.
    Exact(String),
}

/// What a header field or a query parameter must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldMatch {
    /// A header's in any case, a parameter's in its case.
    pub name: String,
    /// What to compare, in its case. Of several fields of the name, one must match.
    pub value: ValueMatch,
    /// Holds if it otherwise would not.
    pub invert: bool,
}

/// How a value is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValueMatch {
    /// The whole value.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// Any part of it.
    Contains(String),
    /// There is one, empty or not.
    Present,
    /// There is none.
    Absent,
}

impl Matcher {
    /// Whether anything but host and path is asked.
    pub(super) fn is_conditional(&self) -> bool {
        !(self.listeners.is_empty()
            && self.methods.is_empty()
            && self.headers.is_empty()
            && self.query.is_empty())
    }

    /// Whether all but host and path holds.
    pub(super) fn holds(&self, view: &RequestView<'_>) -> bool {
        (self.listeners.is_empty() || self.listeners.contains(&view.listener))
            && (self.methods.is_empty()
                || self.methods.iter().any(|method| method.as_bytes() == view.method))
            && self.headers.iter().all(|header| header.holds_for_header(view.fields))
            && self.query.iter().all(|parameter| parameter.holds_for_query(view.query))
    }
}

impl FieldMatch {
    fn holds_for_header(&self, fields: &Fields<'_, '_>) -> bool {
        let values = fields.iter().filter_map(|(kind, name, value)| {
            let named = name.eq_ignore_ascii_case(self.name.as_bytes());
            (named && kind != FieldKind::ConnectionNamed).then_some(value)
        });
        self.holds(values, |value, wanted| match wanted {
            ValueMatch::Exact(text) => value == text.as_bytes(),
            ValueMatch::Prefix(text) => value.starts_with(text.as_bytes()),
            ValueMatch::Suffix(text) => value.ends_with(text.as_bytes()),
            ValueMatch::Contains(text) => memmem::find(value, text.as_bytes()).is_some(),
            ValueMatch::Present | ValueMatch::Absent => true,
        })
    }

    fn holds_for_query(&self, query: Option<&[u8]>) -> bool {
        let pairs = query.into_iter().flat_map(|query| query.split(|byte| *byte == b'&'));
        let values = pairs.filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let name_end = memchr::memchr(b'=', pair).unwrap_or(pair.len());
            let named = Decoded(&pair[..name_end]).eq(self.name.bytes());
            named.then(|| Decoded(pair.get(name_end + 1..).unwrap_or_default()))
        });
        self.holds(values, |value, wanted| match wanted {
            ValueMatch::Exact(text) => value.eq(text.bytes()),
            ValueMatch::Prefix(text) => value.starts_with(text),
            ValueMatch::Suffix(text) => {
                let skipped = value.clone().count().checked_sub(text.len());
                skipped.is_some_and(|skipped| value.skip(skipped).eq(text.bytes()))
            }
            ValueMatch::Contains(text) => value.contains(text),
            ValueMatch::Present | ValueMatch::Absent => true,
        })
    }

    fn holds<V>(
        &self,
        mut values: impl Iterator<Item = V>,
        matches: impl Fn(V, &ValueMatch) -> bool,
    ) -> bool {
        let found = values.any(|value| matches(value, &self.value));
        (found != (self.value == ValueMatch::Absent)) != self.invert
    }
}

/// The bytes of a query's name or value, decoded one by one. An escape without two digits stands
/// for itself.
#[derive(Clone)]
struct Decoded<'a>(&'a [u8]);

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let digit = |byte: u8| (byte as char).to_digit(16);
        let (byte, rest) = match *self.0 {
            [] => return None,
            [b'+', ref rest @ ..] => (b' ', rest),
            [b'%', high, low, ref rest @ ..] => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => ((high * 16 + low) as u8, rest),
                _ => (b'%', &self.0[1..]),
            },
            [byte, ref rest @ ..] => (byte, rest),
        };
        self.0 = rest;
        Some(byte)
    }
}

impl Decoded<'_> {
    fn starts_with(mut self, text: &str) -> bool {
        text.bytes().all(|byte| self.next() == Some(byte))
    }

    fn contains(mut self, text: &str) -> bool {
        loop {
            if self.clone().starts_with(text) {
                return true;
            }
            if self.next().is_none() {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::head::{HeadLimits, Parsed, Scratch, parse_request};

    fn asking(value: ValueMatch) -> FieldMatch {
        FieldMatch { name: "Name".into(), value, invert: false }
    }

    fn header_holds(wanted: &FieldMatch, lines: &str) -> bool {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let mut scratch = Scratch::new();
        match parse_request(head.as_bytes(), &HeadLimits::default(), &mut scratch) {
            Ok(Parsed::Complete(head)) => wanted.holds_for_header(&head.fields),
            _ => panic!("not a head: {head}"),
        }
    }

    fn every_value(text: &str) -> [ValueMatch; 6] {
        use ValueMatch::*;
        let text = || text.to_owned();
        [Exact(text()), Prefix(text()), Suffix(text()), Contains(text()), Present, Absent]
    }

    #[test]
    fn headers_are_compared() {
        let holds = |lines| every_value("ab").map(|value| header_holds(&asking(value), lines));
        assert_eq!(holds("name: ab\r\n"), [true, true, true, true, true, false]);
        assert_eq!(holds("NAME: abc\r\n"), [false, true, false, true, true, false]);
        assert_eq!(holds("name: cab\r\n"), [false, false, true, true, true, false]);
        assert_eq!(holds("name: cabc\r\n"), [false, false, false, true, true, false]);
        assert_eq!(holds("name:\r\n"), [false, false, false, false, true, false]);
        assert_eq!(holds("name: AB\r\n"), [false, false, false, false, true, false]);
        assert_eq!(holds("names: ab\r\n"), [false, false, false, false, false, true]);
        assert_eq!(holds("name: x\r\nname: ab\r\n"), [true, true, true, true, true, false]);
        assert_eq!(
            holds("Connection: name\r\nname: ab\r\n"),
            [false, false, false, false, false, true]
        );
    }

    #[test]
    fn queries_are_compared_decoded() {
        let holds = |query| {
            let values = every_value("a b");
            values.map(|value| u8::from(asking(value).holds_for_query(query)))
        };
        assert_eq!(holds(Some(b"Name=a+b")), [1, 1, 1, 1, 1, 0]);
        assert_eq!(holds(Some(b"x=1&N%61me=%61%20b&y")), [1, 1, 1, 1, 1, 0]);
        assert_eq!(holds(Some(b"Name=a+bc")), [0, 1, 0, 1, 1, 0]);
        assert_eq!(holds(Some(b"Name=aa+b")), [0, 0, 1, 1, 1, 0]);
        assert_eq!(holds(Some(b"Name=aa%20bb")), [0, 0, 0, 1, 1, 0]);
        assert_eq!(holds(Some(b"Name")), [0, 0, 0, 0, 1, 0]);
        assert_eq!(holds(Some(b"name=a+b")), [0, 0, 0, 0, 0, 1]);
        assert_eq!(holds(Some(b"")), [0, 0, 0, 0, 0, 1]);
        assert_eq!(holds(None), [0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn broken_escapes_stand_for_themselves() {
        let decoded = |text: &str| String::from_utf8(Decoded(text.as_bytes()).collect()).unwrap();
        assert_eq!(decoded("%41%4"), "A%4");
        assert_eq!(decoded("%%41%zz%"), "%A%zz%");
    }

    #[test]
    fn inverted_is_the_opposite() {
        for value in every_value("ab") {
            for lines in ["name: ab\r\n", "name: x\r\n", ""] {
                let inverted = FieldMatch { invert: true, ..asking(value.clone()) };
                assert_ne!(
                    header_holds(&asking(value.clone()), lines),
                    header_holds(&inverted, lines)
                );
            }
        }
    }

    #[test]
    fn hosts_are_read() {
        assert_eq!(HostMatch::parse("*"), HostMatch::Any);
        assert_eq!(HostMatch::parse("*.a.example"), HostMatch::Suffix("a.example".into()));
        assert_eq!(HostMatch::parse("a.example"), HostMatch::Exact("a.example".into()));
    }

    proptest! {
        /// Against a decoder that allocates.
        #[test]
        fn query_values_match_like_strings(value in "[ab%+4]{0,8}", text in "[ab A]{0,3}") {
            let mut decoded = Vec::new();
            let mut rest = value.as_bytes();
            while let [first, after @ ..] = rest {
                let escape = value_of(after.get(..2));
                decoded.push(match (*first, escape) {
                    (b'+', _) => b' ',
                    (b'%', Some(byte)) => byte,
                    (byte, _) => byte,
                });
                rest = if *first == b'%' && escape.is_some() { &after[2..] } else { after };
            }
            let decoded = String::from_utf8_lossy(&decoded).into_owned();
            prop_assume!(!decoded.contains('\u{fffd}'));
            let query = format!("Name={value}");
            let [exact, prefix, suffix, contains, ..] =
                every_value(&text).map(|wanted| asking(wanted).holds_for_query(Some(query.as_bytes())));
            prop_assert_eq!(exact, decoded == text);
            prop_assert_eq!(prefix, decoded.starts_with(&text));
            prop_assert_eq!(suffix, decoded.ends_with(&text));
            prop_assert_eq!(contains, decoded.contains(&text));
        }
    }

    fn value_of(digits: Option<&[u8]>) -> Option<u8> {
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }
}
