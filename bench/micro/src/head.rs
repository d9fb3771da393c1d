//! Heads: bytes to slices, with all checks. What tells how a body is framed is part of it.

use std::hint::black_box;

use outrigger::http::head::{HeadLimits, Method, Parsed, Scratch, parse_answer, parse_request};

use crate::messages::{
    ANSWER, ANSWER_16_FIELDS, ANSWER_CHUNKED, GET_30_FIELDS, GET_BROWSER, GET_CURL, GET_FORWARDED,
    GET_WRK, POST_CHUNKED, POST_LENGTH,
};
use crate::{Step, Work};

pub const STEPS: &[Step] = &[
    Step { name: "head: request, 1 field", prepare: || request(GET_WRK) },
    Step { name: "head: request, 3 fields", prepare: || request(GET_CURL) },
    Step { name: "head: request, 3 fields and Content-Length", prepare: || request(POST_LENGTH) },
    Step { name: "head: request, 3 fields and chunked", prepare: || request(POST_CHUNKED) },
    Step { name: "head: request, 6 fields, forwarded", prepare: || request(GET_FORWARDED) },
    Step { name: "head: request, 15 fields, browser", prepare: || request(GET_BROWSER) },
    Step { name: "head: request, 30 fields, 2 KiB", prepare: || request(&GET_30_FIELDS) },
    Step { name: "head: request, 15 fields, half of it", prepare: || part(GET_BROWSER) },
    Step { name: "head: answer, 5 fields", prepare: || answer(ANSWER) },
    Step { name: "head: answer, 5 fields, chunked", prepare: || answer(ANSWER_CHUNKED) },
    Step { name: "head: answer, 16 fields", prepare: || answer(ANSWER_16_FIELDS) },
];

fn request(bytes: &'static [u8]) -> Work {
    crate::messages::request(bytes);
    parse(bytes)
}

/// More is to come; all of it is looked at again then.
fn part(bytes: &'static [u8]) -> Work {
    let part = &bytes[..bytes.len() / 2];
    let parsed = parse_request(part, &HeadLimits::default(), &mut Scratch::new())
        .is_ok_and(|parsed| matches!(parsed, Parsed::Partial));
    assert!(parsed);
    parse(part)
}

fn parse(bytes: &'static [u8]) -> Work {
    let limits = HeadLimits::default();
    Box::new(move || {
        let mut scratch = Scratch::new();
        _ = black_box(&parse_request(black_box(bytes), &limits, &mut scratch));
    })
}

fn answer(bytes: &'static [u8]) -> Work {
    crate::messages::answer(bytes);
    let limits = HeadLimits::default();
    Box::new(move || {
        let mut scratch = Scratch::new();
        let method = black_box(Method::Get);
        _ = black_box(&parse_answer(black_box(bytes), &limits, method, &mut scratch));
    })
}
