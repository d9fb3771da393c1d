//! A line for each request, written by another thread.
//!
//! A shard formats lines into its own buffers ([`ShardLog`]) and hands whole buffers to the one
//! writer thread ([`AccessLogs`]), which gives them back empty. The shard never waits and, once
//! its buffers exist, never allocates: where none is free, the line is dropped and counted
//! (`ShardCounters::access_log_dropped`). What a client sent is escaped, see [`line`].
//!
//! ```text
//! shard 0: [line line li|   ] --\                         /--> access.log
//!            ^ empty buffer      >--> writer thread -----<
//! shard 1: [line        |   ] --/                         \--> standard output
//! ```

pub mod line;

mod shard_log;

mod writer;

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use crate::fallback;
use crate::reason::Reason;

pub use shard_log::{ShardLog, SinkIndex};
pub use writer::{AccessLogs, probe};

#[cfg(test)]
pub(crate) use line::tests::record as line_record;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// One JSON object with flat keys, named as the Elastic Common Schema does where it has one.
    #[default]
    Json,
    /// nginx's and Apache's `combined`.
    Combined,
    /// Envoy's default format.
    Envoy,
}

/// What there is to say about one request. Borrowed: it lives until the line is formatted.
///
/// Bytes are as received and may hold anything. `None` means that there was none.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// When the request's first byte arrived.
    pub start: SystemTime,
    /// The client, as the listener's rules for forwarded addresses see it.
    pub client: IpAddr,
    /// Empty if no head could be read.
    pub method: &'a [u8],
    /// The target as received, with its query; empty if no head could be read.
    pub target: &'a [u8],
    /// `HTTP/1.1`; empty if no head could be read.
    pub protocol: &'static str,
    /// Of the final answer; 499 where nobody was left to answer.
    pub status: u16,
    /// Why it was not (only) the origin's answer.
    pub reason: Option<Reason>,
    /// Of the request's body.
    pub body_bytes_received: u64,
    /// Of the answer's body.
    pub body_bytes_sent: u64,
    /// From the request's first byte to the answer's last, in nanoseconds.
    pub duration_ns: u64,
    /// From the request's last byte sent to the head of the endpoint's answer, in nanoseconds.
    pub upstream_duration_ns: Option<u64>,
    /// `Host`, or the target's authority.
    pub host: Option<&'a [u8]>,
    /// `User-Agent`.
    pub user_agent: Option<&'a [u8]>,
    /// `Referer`.
    pub referer: Option<&'a [u8]>,
    /// `X-Request-Id`, as sent upstream.
    pub request_id: Option<&'a [u8]>,
    /// `X-Forwarded-For`, as received.
    pub forwarded_for: Option<&'a [u8]>,
    /// The endpoint that answered, or was asked last.
    pub upstream: Option<SocketAddr>,
    /// How often an endpoint was asked: 0 if none was, 2 after a retry.
    pub attempts: u32,
    /// The listener's name.
    pub listener: &'a str,
    /// The route's name.
    pub route: Option<&'a str>,
    /// The cluster's name.
    pub cluster: Option<&'a str>,
    /// What has answered in place of a failure.
    pub fallback: Option<fallback::Kind>,
}
