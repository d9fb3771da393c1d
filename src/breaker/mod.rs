//! Circuit breaker of one endpoint, or of one (route, cluster): may it take one more? Pure.
//!
//! Two machines. The [`Breaker`] decides, at the one home of its cluster; a [`View`] is what each
//! shard has of it and what requests ask. They talk in values that `reconcile` carries: reports,
//! asks and settlements one way, epochs, refusals and permits the other.
//!
//! ```text
//!            run, ratio, slow share                    open time over, all permits settled
//!   Closed ---------------------------> Open ------------------------------> HalfOpen
//!     ^                                  ^ ^                                  |    |
//!     |                                  | '-- a probe fails, or is silent ---'    |
//!     |                                  '---- run, ratio ----.                    |
//!     '------------------ ramp over ------------------ Recovering <-- all probes --'
//!
//!   an operator's override: from any state to ForcedOpen or ForcedClosed, until released
//! ```
//!
//! Every transition is a new [`Epoch`]. What happened in an older one counts nowhere: a request
//! takes the epoch with it when it is admitted, and its outcome is filed under that epoch.

use std::time::Duration;

mod authority;

mod view;

mod window;

#[cfg(test)]
mod tests;

pub use authority::{Breaker, State};
pub use view::{Admits, Pass, PermitUse, View};
pub use window::{BUCKETS, Sums, Window};

use crate::time::Nanos;

/// Counts the transitions of one breaker; a newer one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The one after it.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// When a breaker trips, and how it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Failures in a row that trip it. Default 5, as Envoy's `consecutive_5xx`.
    pub failures_in_a_row: u32,
    /// Share of failures that trips it, in percent; above 100 it never does. Default 50.
    pub failures_percent: u32,
    /// Share of slow requests that trips it, in percent. Default 50; without effect unless
    /// `latency_max` is set.
    pub slow_percent: u32,
    /// A request that takes longer is slow. Default none.
    pub latency_max: Option<Duration>,
    /// Requests in the window below which no share trips. Default 20.
    pub requests_min: u32,
    /// What the shares are taken of: the last so long, in [`BUCKETS`] buckets; also how old a
    /// failure may be to count in a run that several shards share. Default 10 s.
    pub window: Duration,
    /// How long it stays open the first time. Default 5 s.
    pub open_for: Duration,
    /// And at most, after doubling with every probe that failed. Default 300 s.
    pub open_for_max: Duration,
    /// Requests that try a half-open endpoint; all must succeed. Default 1.
    pub probes: u32,
    /// How long a request waits for a permit before it looks elsewhere. Default 1 ms.
    pub permit_wait: Duration,
    /// A permit that is not used within this goes back. Default 1 s: a request that has a permit
    /// may still have to wait for a credit, and if it never came that far in time, a cluster at
    /// its limit would never get the endpoint back that it misses.
    pub permit_use_within: Duration,
    /// A probe is ended after this (counted from the last moment at which it could be sent), as a
    /// failure. Default 5 s, as a connect timeout.
    pub probe_timeout: Duration,
    /// Recovering: from none to all requests in this time. Default 10 s.
    pub ramp: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            failures_in_a_row: 5,
            failures_percent: 50,
            slow_percent: 50,
            latency_max: None,
            requests_min: 20,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
            open_for_max: Duration::from_secs(300),
            probes: 1,
            permit_wait: Duration::from_millis(1),
            permit_use_within: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(5),
            ramp: Duration::from_secs(10),
        }
    }
}

/// A home waits so long past the end of a permit before it takes silence for an answer: what the
/// holder says at the end needs some time to arrive.
pub const SETTLE_GRACE: Duration = Duration::from_millis(50);

/// What a breaker is to the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Phase {
    /// Requests flow.
    #[default]
    Closed,
    /// None does.
    Open,
    /// Those with a permit do.
    HalfOpen,
    /// A share that grows does, since then.
    Recovering(Nanos),
    /// An operator said no.
    ForcedOpen,
    /// An operator said yes, whatever happens.
    ForcedClosed,
}

/// What an exchange says about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It answers.
    Success,
    /// It does not, or not well.
    Failure,
    /// Nothing: the end was not its doing.
    Neutral,
}

/// What a shard has seen of a breaker in one epoch: totals, so that a newer report replaces an
/// older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Report {
    /// The epoch of the tickets.
    pub epoch: Epoch,
    /// Requests that ended in success or failure.
    pub requests: u64,
    /// Failures among them.
    pub failures: u64,
    /// Slow ones among them.
    pub slow: u64,
    /// Failures since the last success.
    pub tail: u32,
    /// When the first of the tail was.
    pub tail_since: Nanos,
    /// When the last of the tail was.
    pub tail_at: Nanos,
    /// When the last success was.
    pub succeeded_at: Nanos,
    /// How often the shard has stopped choosing the endpoint for a run of its own.
    pub run: u32,
    /// Of those, the newest that the home has refused to trip for. Below `run`: the shard has
    /// stopped, and waits for an answer.
    pub refused: u32,
}

impl Report {
    /// Whether the shard waits for an answer to its run.
    pub fn has_stopped(&self) -> bool {
        self.run > self.refused
    }
}

/// Leave to send one probe. Never counts twice: serials only rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permit {
    /// Its number, of all permits of this breaker.
    pub serial: u64,
    /// For this half-open period.
    pub epoch: Epoch,
    /// Which ask of the shard it answers.
    pub ask: u32,
    /// Not sent by then, it goes back.
    pub use_by: Nanos,
    /// The probe is ended then.
    pub end: Nanos,
}

/// What became of a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeResult {
    /// The probe succeeded.
    Success,
    /// It was sent and did not succeed, for whatever reason.
    Failure,
    /// It was never sent: somebody else may have the permit, under a new serial.
    NotSent,
}

/// A shard's confirmation that a permit is no longer used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Settlement {
    /// Which permit.
    pub serial: u64,
    /// How it ended.
    pub result: ProbeResult,
}

/// What an operator wants of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Override {
    /// No requests.
    ForceOpen,
    /// Requests, whatever happens.
    ForceClosed,
    /// Nothing any more.
    Release,
}
