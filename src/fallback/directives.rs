//! What messages say of being kept and given again: `Cache-Control` (RFC 9111, 5.2) and
//! `stale-if-error` (RFC 5861). Pure. Where a message contradicts itself, or makes no sense, the
//! stricter reading holds (RFC 9111, 4.2.1).

use std::time::Duration;

use crate::http::field::Fields;

/// Seconds that are as good as for ever (RFC 9111, 1.2.2).
const SECONDS_MAX: u64 = 1 << 31;

/// What a request says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OfRequest {
    /// Nothing of it is kept.
    pub no_store: bool,
    /// It wants no answer that was kept.
    pub no_cache: bool,
}

impl OfRequest {
    /// From its head.
    pub fn of(fields: &Fields<'_, '_>) -> OfRequest {
        let mut said = OfRequest::default();
        each(fields, |name, _| match name {
            b"no-store" => said.no_store = true,
            b"no-cache" => said.no_cache = true,
            _ => {}
        });
        said
    }
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OfAnswer {
    /// `no-store`, `private` or `no-cache`: it is for this request only. The forms of the latter two
    /// that name fields are read as those that do not.
    pub only_once: bool,
    /// `public`, or `s-maxage`: for whoever asks, with credentials or without.
    pub is_shared: bool,
    /// `must-revalidate`, `proxy-revalidate` or `s-maxage`: not when it is stale (RFC 9111, 4.2.4).
    pub only_fresh: bool,
    /// How long it is fresh, by `s-maxage`.
    pub shared_max_age: Option<Duration>,
    /// The same by `max-age`.
    pub max_age: Option<Duration>,
    /// How long it is good beyond that where there is no better one.
    pub stale_if_error: Option<Duration>,
}

impl OfAnswer {
    /// From its head.
    pub fn of(fields: &Fields<'_, '_>) -> OfAnswer {
        let mut said = OfAnswer::default();
        let lesser = |before: Option<Duration>, value: &[u8]| {
            let time = seconds(value).unwrap_or_default();
            Some(before.map_or(time, |before| before.min(time)))
        };
        each(fields, |name, value| match name {
            b"no-store" | b"private" | b"no-cache" => said.only_once = true,
            b"public" => said.is_shared = true,
            b"must-revalidate" | b"proxy-revalidate" => said.only_fresh = true,
            b"max-age" => said.max_age = lesser(said.max_age, value),
            b"stale-if-error" => said.stale_if_error = lesser(said.stale_if_error, value),
            b"s-maxage" => {
                said.shared_max_age = lesser(said.shared_max_age, value);
                (said.is_shared, said.only_fresh) = (true, true);
            }
            _ => {}
        });
        said
    }

    /// At which age it may no more be given in place of a failure. `expires`: how long it is fresh
    /// by that field; `age_max`: what the configuration allows, and what holds where the origin says
    /// nothing.
    pub fn usable_for(&self, expires: Option<Duration>, age_max: Duration) -> Duration {
        let fresh = self.shared_max_age.or(self.max_age).or(expires).unwrap_or_default();
        let usable = match (self.only_fresh, self.stale_if_error) {
            (true, _) => fresh,
            (false, Some(more)) => fresh + more,
            (false, None) => Duration::MAX,
        };
        usable.min(age_max)
    }
}

/// So many seconds, or as many as make no difference.
pub fn seconds(value: &[u8]) -> Option<Duration> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(value).ok()?.parse().unwrap_or(SECONDS_MAX);
    Some(Duration::from_secs(number.min(SECONDS_MAX)))
}

/// Each directive of all `Cache-Control` fields: its name in lower case, and its value without
/// quotes. Fields that `Connection` names were meant, too.
fn each(fields: &Fields<'_, '_>, mut tell: impl FnMut(&[u8], &[u8])) {
    for (_, field, value) in fields.iter() {
        if !field.eq_ignore_ascii_case(b"cache-control") {
            continue;
        }
        let mut rest = value;
        while !rest.is_empty() {
            let (directive, behind) = rest.split_at(end_of_member(rest));
            rest = behind.get(1..).unwrap_or_default();
            let equals = directive.iter().position(|byte| *byte == b'=');
            let (name, value) = directive.split_at(equals.unwrap_or(directive.len()));
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            tell(&name.trim_ascii().to_ascii_lowercase(), quoted.unwrap_or(value));
        }
    }
}

/// Where the first comma is that stands in no quotes.
fn end_of_member(bytes: &[u8]) -> usize {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let ends = bytes.iter().position(|byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            b',' => return !is_quoted,
            _ => {}
        }
        false
    });
    ends.unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::{HeadLimits, Method, Parsed, Scratch, parse_answer, parse_request};

    const HOUR: Duration = Duration::from_secs(3600);

    fn answer(lines: &str) -> OfAnswer {
        let head = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
        let mut scratch = Scratch::new();
        let limits = HeadLimits::default();
        match parse_answer(head.as_bytes(), &limits, Method::Get, &mut scratch) {
            Ok(Parsed::Complete(head)) => OfAnswer::of(&head.fields),
            other => panic!("{other:?}"),
        }
    }

    fn usable(value: &str) -> Option<u64> {
        let said = answer(&format!("Cache-Control: {value}\r\n"));
        (!said.only_once).then(|| said.usable_for(None, HOUR).as_secs())
    }

    #[test]
    fn how_long_an_answer_may_be_given() {
        for (value, expected) in [
            ("", Some(3600)),
            ("public", Some(3600)),
            ("max-age=60", Some(3600)),
            ("max-age=60, stale-if-error=30", Some(90)),
            ("stale-if-error=30", Some(30)),
            ("stale-if-error=0", Some(0)),
            ("stale-if-error=86400", Some(3600)),
            ("max-age=60, must-revalidate", Some(60)),
            ("MAX-AGE=60 , Must-Revalidate", Some(60)),
            ("max-age=60, proxy-revalidate, stale-if-error=30", Some(60)),
            ("must-revalidate", Some(0)),
            ("max-age=60, s-maxage=5, stale-if-error=30", Some(5)),
            ("s-maxage=\"5\"", Some(5)),
            ("max-age=60, max-age=5, must-revalidate", Some(5)),
            ("max-age=soon, must-revalidate", Some(0)),
            ("max-age=99999999999999999999, must-revalidate", Some(3600)),
            ("x=\"no-store, private\", y=\"\\\", no-store\"", Some(3600)),
            ("no-store", None),
            ("private", None),
            ("private=\"x-user\", max-age=60", None),
            ("public,no-cache", None),
            ("no-cache=\"set-cookie\"", None),
            (",,no-store", None),
        ] {
            assert_eq!(usable(value), expected, "{value}");
        }
    }

    #[test]
    fn all_fields_count_and_expires_comes_last() {
        let said = answer("cache-control: max-age=60\r\nCACHE-CONTROL: must-revalidate\r\n");
        assert_eq!(said.usable_for(Some(HOUR), HOUR), Duration::from_secs(60));
        let said = answer("cache-control: must-revalidate\r\n");
        assert_eq!(said.usable_for(Some(HOUR / 2), HOUR), HOUR / 2);
        assert!(answer("cache-control: s-maxage=1\r\n").is_shared);
        assert!(!answer("cache-control: max-age=1\r\n").is_shared);
    }

    #[test]
    fn what_requests_say() {
        let request = |value: &str| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nCache-Control: {value}\r\n\r\n");
            let mut scratch = Scratch::new();
            match parse_request(head.as_bytes(), &HeadLimits::default(), &mut scratch) {
                Ok(Parsed::Complete(head)) => OfRequest::of(&head.fields),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(request("max-age=0"), OfRequest::default());
        assert_eq!(request("No-Store"), OfRequest { no_store: true, no_cache: false });
        assert_eq!(request("a, no-cache"), OfRequest { no_store: false, no_cache: true });
    }
}
