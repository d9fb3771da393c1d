//! What is written down about a request at its end.

use std::hint::black_box;
use std::time::{Duration, UNIX_EPOCH};

use outrigger::access_log::line::{self, LINE_BYTES_MAX, Stamp};
use outrigger::access_log::{Format, Record};
use outrigger::metrics::ShardCounters;

use crate::{Step, Work};

pub const STEPS: &[Step] = &[
    Step { name: "record: counters", prepare: counters },
    Step { name: "record: access log, json", prepare: || log(Format::Json) },
    Step { name: "record: access log, combined", prepare: || log(Format::Combined) },
    Step { name: "record: access log, envoy", prepare: || log(Format::Envoy) },
];

fn counters() -> Work {
    let counters = Box::new(ShardCounters::default());
    Box::new(move || counters.answered(black_box(200), black_box(123_456)))
}

fn log(format: Format) -> Work {
    let record = Record {
        start: UNIX_EPOCH + Duration::from_millis(1_795_178_096_789),
        client: [192, 0, 2, 7].into(),
        method: b"GET",
        target: b"/shop/items/42?ref=front&page=3",
        protocol: "HTTP/1.1",
        status: 200,
        reason: None,
        body_bytes_received: 0,
        body_bytes_sent: 5_120,
        duration_ns: 1_234_567,
        upstream_duration_ns: None,
        host: Some(b"www.example.org"),
        user_agent: Some(
            b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
            Chrome/128.0.0.0 Safari/537.36",
        ),
        referer: Some(b"https://www.example.org/shop/"),
        request_id: Some(b"9b2f6f3e-7c58-4c5e-9d3a-2f1e0d9c8b7a"),
        forwarded_for: Some(b"192.0.2.7"),
        upstream: Some(([10, 0, 0, 1], 80).into()),
        attempts: 1,
        listener: "web",
        route: Some("shop"),
        cluster: Some("shop"),
    };
    let (mut stamp, mut out) = (Stamp::default(), Vec::with_capacity(2 * LINE_BYTES_MAX));
    Box::new(move || {
        out.clear();
        line::write(format, black_box(&record), &mut stamp, &mut out);
        black_box(&out);
    })
}
