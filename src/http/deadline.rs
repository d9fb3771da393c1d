//! The time that a caller still has for a request, as it says itself: `X-Request-Deadline` and
//! Envoy's `X-Envoy-Expected-Rq-Timeout-Ms`, in whole milliseconds from when the request arrives.
//! (A span, and no point in time: clocks of different hosts differ.) Believed from trusted peers
//! only. What is left is told to the origin under both names, and told anew before each try. Pure.

use std::time::Duration;

use super::head::{FieldKind, Fields};
use crate::time::Nanos;

/// Both names, as they are written.
const NAMES: [&[u8]; 2] = [b"X-Request-Deadline: ", b"X-Envoy-Expected-Rq-Timeout-Ms: "];

/// The kinds that say it: never passed on as they are.
pub const KINDS: [FieldKind; 2] = [FieldKind::RequestDeadline, FieldKind::ExpectedTimeout];

/// Longer is no deadline: a day.
const LEFT_MAX: Duration = Duration::from_secs(24 * 3600);

/// A caller's deadline, and where an outgoing head tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// When its time is up.
    pub at: Nanos,
    /// Where the two values stand in the head, 0 where it does not tell; and how many bytes there
    /// are for each.
    places: [u32; 2],
    digits: u8,
}

/// How long the caller still has; of several, the shortest. What is no number says nothing.
pub fn left(fields: &Fields<'_, '_>) -> Option<Duration> {
    let of_kind = fields.iter().filter(|(kind, ..)| KINDS.contains(kind));
    let spans = of_kind.filter_map(|(_, _, value)| {
        let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let value = std::str::from_utf8(value).ok().filter(|_| is_number)?;
        Some(Duration::from_millis(value.parse().unwrap_or(u64::MAX)))
    });
    spans.min().filter(|span| *span <= LEFT_MAX)
}

impl Deadline {
    /// Appends both lines to a head, but for those that `is_ruled`: `left` from `now` on.
    pub fn write(
        left: Duration,
        now: Nanos,
        is_ruled: impl Fn(&[u8]) -> bool,
        out: &mut Vec<u8>,
    ) -> Deadline {
        let mut number = itoa::Buffer::new();
        let digits = number.format(left.as_millis() as u64).as_bytes();
        let places = NAMES.map(|name| {
            if is_ruled(&name.to_ascii_lowercase()[..name.len() - 2]) {
                return 0;
            }
            out.extend_from_slice(name);
            let place = out.len() as u32;
            out.extend_from_slice(digits);
            out.extend_from_slice(b"\r\n");
            place
        });
        Deadline { at: now + left, places, digits: digits.len() as u8 }
    }

    /// Tells what is left until `until` in the head that it was written to; no more than was left
    /// at first.
    pub fn tell(&self, until: Nanos, now: Nanos, head: &mut [u8]) {
        let mut number = itoa::Buffer::new();
        let left = self.at.min(until).since(now);
        let digits = number.format(left.as_millis() as u64).as_bytes();
        for place in self.places.into_iter().filter(|place| *place > 0) {
            let value = &mut head[place as usize..][..usize::from(self.digits)];
            // It is no longer than before; spaces behind a value mean nothing (RFC 9110, 5.5).
            value.fill(b' ');
            let length = digits.len().min(value.len());
            value[..length].copy_from_slice(&digits[..length]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::{HeadLimits, Parsed, Scratch, parse_request};

    fn left_of(lines: &str) -> Option<u64> {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let mut scratch = Scratch::new();
        let parsed = parse_request(head.as_bytes(), &HeadLimits::default(), &mut scratch);
        let Ok(Parsed::Complete(head)) = parsed else { panic!("not a head: {head}") };
        left(&head.fields).map(|left| left.as_millis() as u64)
    }

    #[test]
    fn the_shortest_counts() {
        assert_eq!(left_of(""), None);
        assert_eq!(left_of("x-request-deadline: 250\r\n"), Some(250));
        assert_eq!(left_of("X-Envoy-Expected-Rq-Timeout-Ms: 0\r\n"), Some(0));
        let both = "x-request-deadline: 250\r\nx-envoy-expected-rq-timeout-ms: 100\r\n";
        assert_eq!(left_of(both), Some(100));
        for nonsense in ["", "1s", "-1", "1.5", "+7", "99999999999999999999999"] {
            assert_eq!(left_of(&format!("x-request-deadline: {nonsense}\r\n")), None, "{nonsense}");
        }
    }

    #[test]
    fn what_is_left_is_told_in_place() {
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        let now = Nanos(7_000_000);
        let deadline = Deadline::write(Duration::from_millis(1500), now, |_| false, &mut head);
        head.extend_from_slice(b"\r\n");
        let told = |head: &[u8], value: &str| {
            let expected = format!(
                "GET / HTTP/1.1\r\nX-Request-Deadline: {value}\r\n\
                 X-Envoy-Expected-Rq-Timeout-Ms: {value}\r\n\r\n"
            );
            assert_eq!(std::str::from_utf8(head), Ok(expected.as_str()));
        };
        told(&head, "1500");
        deadline.tell(Nanos::NEVER, now + Duration::from_millis(501), &mut head);
        told(&head, "999 ");
        deadline.tell(Nanos::NEVER, now + Duration::from_secs(9), &mut head);
        told(&head, "0   ");
        // Somebody else's limit may be shorter.
        deadline.tell(now + Duration::from_millis(40), now, &mut head);
        told(&head, "40  ");
    }

    #[test]
    fn what_a_rule_says_is_left_to_it() {
        let mut head = b"GET / HTTP/1.1\r\n".to_vec();
        let is_ruled = |name: &[u8]| name == b"x-request-deadline";
        let now = Nanos(7_000_000);
        let deadline = Deadline::write(Duration::from_millis(20), now, is_ruled, &mut head);
        deadline.tell(Nanos::NEVER, now + Duration::from_millis(5), &mut head);
        assert_eq!(head, b"GET / HTTP/1.1\r\nX-Envoy-Expected-Rq-Timeout-Ms: 15\r\n");
    }
}
