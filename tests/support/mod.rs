//! What the black-box tests are made of: the real binary ([`Proxy`]), an origin that follows a
//! script ([`Origin`]), and a client that sees every byte ([`Client`]). All three are strict: what
//! breaks RFC 9112 on its way out of the proxy fails the test, whatever the test is about.
//!
//! Nothing here measures time. [`PATIENCE`] only turns a hang into a failure.

pub mod client;

pub mod crowd;

pub mod gate;

pub mod message;

pub mod origin;

pub mod proxy;

pub mod wire;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

pub use client::Client;
pub use crowd::{Crowd, Hammer, by_shard, with_shards};
pub use gate::{Census, Gate};
pub use message::Message;
pub use origin::{Origin, Peer};
pub use proxy::{Proxy, Setup};
pub use wire::{End, Wire};

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A plain answer.
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A plain request.
pub const GET: &str = "GET / HTTP/1.1\r\nHost: example.org\r\n\r\n";

/// Waits until something becomes true.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets some time pass, where the test is about time.
pub fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Period of the long bodies: no buffer size divides it.
const PERIOD: usize = 251;

static PATTERN: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..PERIOD * 1024).map(|index| (index % PERIOD) as u8).collect());

/// So many bytes of a long body, from `offset`.
pub fn patterned(offset: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        let pattern = pattern(offset + bytes.len() as u64);
        bytes.extend_from_slice(&pattern[..pattern.len().min(count - bytes.len())]);
    }
    bytes
}

/// Some of them, at least one.
pub fn pattern(offset: u64) -> &'static [u8] {
    &PATTERN[(offset % PERIOD as u64) as usize..]
}
