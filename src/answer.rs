//! The head of an origin's answer: what it means for both connections, and how it is handed on.
//! Pure; `session` reads the bytes and sends what is written here.

use crate::admit::Order;
use crate::fallback::{self, Kind};
use crate::http::encode::{self, AnswerEdits, KindSet, Persistence};
use crate::http::head::{Framing, HeadLimits, Method, Parsed, Scratch, Version, parse_answer};
use crate::reason::Reason;
use crate::relay::Outgoing;
use crate::route::HeaderRules;
use crate::shard::buffers::HEAD_BYTES_MAX;

/// What was found at the beginning of the received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Not yet a whole head.
    Partial,
    /// A 1xx of so many bytes; what the client should see of it was written.
    Interim(usize),
    /// The answer. Its head was written.
    Final(Answered),
}

/// An answer whose head was read and written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// Its status.
    pub status: u16,
    /// How its body arrives.
    pub framing: Framing,
    /// How its body leaves.
    pub outgoing: Outgoing,
    /// What the client was told of its connection.
    pub persistence: Persistence,
    /// The origin's connection can be used again behind it.
    pub reusable: bool,
    /// The origin answered in HTTP/1.0.
    pub http10: bool,
    /// Bytes of the head.
    pub head_bytes: usize,
    /// For how long the origin asks to be spared (RFC 9110, 10.2.3), in whole seconds; only looked
    /// for in a 429 or a 503.
    pub retry_after: Option<u32>,
}

/// Room for an answer's head, before it is refused. Origins are trusted further than clients.
pub(crate) const LIMITS: HeadLimits = HeadLimits {
    uri_bytes_max: 8 * 1024,
    head_bytes_max: HEAD_BYTES_MAX,
    fields_max: crate::http::head::FIELDS_MAX,
    lenient_line_ends: false,
};

/// What surrounds an answer.
pub struct Context<'a> {
    /// The route's rules for its fields.
    pub rules: &'a HeaderRules,
    /// Whether the client's connection may stay open behind it.
    pub stays: bool,
    /// Whether the request's body is still arriving. A refusal then ends the connection.
    pub uploading: bool,
    /// The current date.
    pub date: &'a [u8],
}

/// Looks for a head in `bytes`, and writes it to `reply` as it leaves.
///
/// # Errors
/// [`Reason::BadAnswer`] for a head that breaks RFC 9112, or an upgrade that nobody asked for.
pub fn take(
    bytes: &[u8],
    order: &Order,
    context: &Context<'_>,
    reply: &mut Vec<u8>,
) -> Result<Taken, Reason> {
    let mut scratch = Scratch::new();
    let parsed = parse_answer(bytes, &LIMITS, order.method, &mut scratch);
    let head = match parsed.map_err(|_| Reason::BadAnswer)? {
        Parsed::Complete(head) => head,
        Parsed::Partial => return Ok(Taken::Partial),
    };
    let switches = head.status == 101;
    if switches && !order.upgrade {
        return Err(Reason::BadAnswer);
    }
    let interim = head.status < 200 && !switches;
    if interim && order.version == Version::Http10 {
        return Ok(Taken::Interim(head.len)); // RFC 9110, 15.2: never to an HTTP/1.0 client.
    }
    let (framing, outgoing) = match (head.framing, order.version) {
        (Framing::None, _) => (Framing::None, Outgoing::Identity),
        (Framing::Length(length), _) => (Framing::Length(length), Outgoing::Identity),
        (Framing::Chunked | Framing::UntilClose, Version::Http11) => {
            (Framing::Chunked, Outgoing::Chunked)
        }
        (Framing::Chunked | Framing::UntilClose, Version::Http10) => {
            (Framing::UntilClose, Outgoing::Identity)
        }
    };
    let stays = context.stays && !(context.uploading && head.status >= 300);
    let persistence = match () {
        () if switches => Persistence::Upgrade,
        () if interim => Persistence::Implied,
        () => Persistence::of(order.version, stays && framing != Framing::UntilClose),
    };
    // A length without a body is stated where it tells what a GET would bring.
    let states_length = head.framing == Framing::None
        && (order.method == Method::Head || head.status == 304)
        && head.status >= 200
        && head.status != 204;
    let no_rules = HeaderRules::default();
    let edits = AnswerEdits {
        framing,
        stated_length: head.content_length.filter(|_| states_length),
        persistence,
        dropped: KindSet::default(),
        rules: if interim { &no_rules } else { context.rules },
        date: context.date,
    };
    let via = |out: &mut Vec<u8>| {
        if !interim && !edits.rules.drops(b"via") {
            order.listener().forwarding.write_via(head.version, out);
        }
        if !interim && order.falling.is_some() && !edits.rules.drops(fallback::FIELD) {
            encode::line(fallback::FIELD, Kind::Cluster.name().as_bytes(), out);
        }
    };
    encode::answer(bytes, &head, &edits, via, reply);
    if interim {
        return Ok(Taken::Interim(head.len));
    }
    Ok(Taken::Final(Answered {
        status: head.status,
        framing: head.framing,
        outgoing,
        persistence,
        reusable: head.keep_alive && head.framing != Framing::UntilClose && !switches,
        http10: head.version == Version::Http10,
        head_bytes: head.len,
        retry_after: match head.status {
            429 | 503 => {
                let value = head.fields.get(b"retry-after");
                value.and_then(|value| retry_after(value, context.date))
            }
            _ => None,
        },
    }))
}

/// Seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(value: &[u8], date: &[u8]) -> Option<u32> {
    let value = std::str::from_utf8(value).ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(value.parse().unwrap_or(u32::MAX));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = httpdate::parse_http_date(std::str::from_utf8(date).ok()?).ok()?;
    let left = until.duration_since(now).unwrap_or_default();
    Some(u32::try_from(left.as_secs()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let now = b"Mon, 23 Nov 2026 05:00:00 GMT";
        let seconds = |value: &str| retry_after(value.as_bytes(), now);
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds(" 120 "), Some(120));
        assert_eq!(seconds("99999999999999999999"), Some(u32::MAX));
        assert_eq!(seconds("Mon, 23 Nov 2026 05:00:07 GMT"), Some(7));
        assert_eq!(seconds("Mon, 23 Nov 2026 04:59:00 GMT"), Some(0));
        for nonsense in ["", "-1", "1.5", "soon", "1 2", "\u{e9}"] {
            assert_eq!(seconds(nonsense), None, "{nonsense}");
        }
    }
}
