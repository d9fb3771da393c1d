//! What shards tell each other. Plain values; totals and newest values, never differences: losing,
//! repeating or reordering one does no harm.
//!
//! ```text
//! shard                                   home of the cluster
//!   | -- Outcomes: what I saw ---------------> |  counts, decides
//!   | -- Debit: returned, wanted ------------> |  books, lends, recalls
//!   | -- Ask / Settled: permits -------------> |  grants one, or the next
//!   | -- TokensWanted: retries --------------> |
//!   | -- Samples: round-trip times ----------> |  reckons a limit that follows them
//!   | <- Breaker: epoch, phase --------------- |
//!   | <- Refused: no trip for that run ------- |
//!   | <- Credit: granted, recalled ----------- |
//!   | <- Permit ------------------------------ |
//!   | <- Tokens: retries granted ------------- |
//!   | <- Sampling: samples from now on ------- |
//!   | <- Ack, NotYet, Gone: to each of the above, either way
//! ```

use super::{ClusterId, EndpointId, Kind, Measured};
use crate::breaker::{Epoch, Permit, Phase, Report, Settlement};
use crate::time::Nanos;

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit {
    /// Of this cluster.
    pub cluster: ClusterId,
    /// On this.
    pub kind: Kind,
    /// Of one endpoint, or `None`: of the whole cluster.
    pub endpoint: Option<EndpointId>,
}

/// Which message of a sender this is, so that the answer can name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp {
    /// The sender's place for it.
    pub slot: u32,
    /// Which value of that place.
    pub version: u32,
}

/// From one shard to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Message {
    /// Whether the receiver is to be woken for it. Where all went well, it is not.
    pub wakes: bool,
    /// For the answer.
    pub stamp: Stamp,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Body {
    /// To the home: what the sender has seen of an endpoint.
    Outcomes {
        /// Of which.
        endpoint: EndpointId,
        /// Totals of one epoch.
        report: Report,
    },
    /// To the home: credits.
    Debit {
        /// Which limit.
        limit: Limit,
        /// All that the sender ever returned.
        returned: u64,
        /// The granted total that it asks for. For an endpoint's limit, each of them together
        /// with one of the cluster's; for a cluster's limit, those that are granted alone.
        wanted: u64,
    },
    /// To the home: a request waits for a permit (odd), or no longer does (even).
    Ask {
        /// For which endpoint.
        endpoint: EndpointId,
        /// In which half-open period.
        epoch: Epoch,
        /// The newest wins.
        number: u32,
    },
    /// To the home: a permit is no longer used.
    Settled {
        /// Of which endpoint.
        endpoint: EndpointId,
        /// How it ended.
        settlement: Settlement,
    },
    /// To the home: retries, beyond what first attempts have deposited.
    TokensWanted {
        /// For which cluster.
        cluster: ClusterId,
        /// The granted total that the sender asks for.
        wanted: u64,
    },
    /// To the home: how long answers took.
    Samples {
        /// Of which cluster.
        cluster: ClusterId,
        /// Since the sender's last report.
        measured: Measured,
    },
    /// From the home: credits. Credits of an endpoint and of its cluster come together.
    Credit {
        /// Which limit.
        limit: Limit,
        /// All that was ever granted of it; for a cluster's limit, alone.
        granted: u64,
        /// The returned total that is demanded.
        recalled: u64,
        /// All that was ever granted of the cluster's limit, alone or with an endpoint's.
        cluster_granted: u64,
        /// When that was decided.
        decided: Nanos,
    },
    /// From the home: a breaker's state.
    Breaker {
        /// Of which endpoint.
        endpoint: EndpointId,
        /// The newest wins.
        epoch: Epoch,
        /// The state.
        phase: Phase,
        /// When that was decided.
        decided: Nanos,
    },
    /// From the home: it does not trip for the receiver's run.
    Refused {
        /// Of which endpoint.
        endpoint: EndpointId,
        /// In this epoch.
        epoch: Epoch,
        /// Which run.
        run: u32,
    },
    /// From the home: leave to send one probe.
    Permit {
        /// To which endpoint.
        endpoint: EndpointId,
        /// Once.
        permit: Permit,
    },
    /// From the home: leave for retries.
    Tokens {
        /// Of which cluster.
        cluster: ClusterId,
        /// All that were ever granted.
        granted: u64,
    },
    /// From the home: only samples of requests that are asked from now on count.
    Sampling {
        /// Of which cluster.
        cluster: ClusterId,
        /// The newest wins.
        epoch: u32,
    },
    /// The message with this stamp has arrived.
    Ack,
    /// The message with this stamp is about somebody whom the sender does not know yet: later.
    NotYet,
    /// The message with this stamp is about somebody who is gone: never again.
    Gone,
}

/// What a message is about: a newer value replaces an older one of the same subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Subject {
    Outcomes(EndpointId),
    Debit(Limit),
    Ask(EndpointId),
    Settled(EndpointId),
    TokensWanted(ClusterId),
    Credit(Limit),
    Breaker(EndpointId),
    Refused(EndpointId),
    Permit(EndpointId),
    Tokens(ClusterId),
    Samples(ClusterId),
    Sampling(ClusterId),
}

/// Whom a subject is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Cluster(ClusterId),
    Endpoint(EndpointId),
}

impl Subject {
    pub fn about(self) -> About {
        match self {
            Subject::Outcomes(endpoint)
            | Subject::Ask(endpoint)
            | Subject::Settled(endpoint)
            | Subject::Breaker(endpoint)
            | Subject::Refused(endpoint)
            | Subject::Permit(endpoint) => About::Endpoint(endpoint),
            Subject::Debit(limit) | Subject::Credit(limit) => match limit.endpoint {
                Some(endpoint) => About::Endpoint(endpoint),
                None => About::Cluster(limit.cluster),
            },
            Subject::TokensWanted(cluster)
            | Subject::Tokens(cluster)
            | Subject::Samples(cluster)
            | Subject::Sampling(cluster) => About::Cluster(cluster),
        }
    }
}

impl Body {
    /// `None` for answers.
    pub(super) fn subject(&self) -> Option<Subject> {
        Some(match *self {
            Body::Outcomes { endpoint, .. } => Subject::Outcomes(endpoint),
            Body::Debit { limit, .. } => Subject::Debit(limit),
            Body::Ask { endpoint, .. } => Subject::Ask(endpoint),
            Body::Settled { endpoint, .. } => Subject::Settled(endpoint),
            Body::TokensWanted { cluster, .. } => Subject::TokensWanted(cluster),
            Body::Credit { limit, .. } => Subject::Credit(limit),
            Body::Breaker { endpoint, .. } => Subject::Breaker(endpoint),
            Body::Refused { endpoint, .. } => Subject::Refused(endpoint),
            Body::Permit { endpoint, .. } => Subject::Permit(endpoint),
            Body::Tokens { cluster, .. } => Subject::Tokens(cluster),
            Body::Samples { cluster, .. } => Subject::Samples(cluster),
            Body::Sampling { cluster, .. } => Subject::Sampling(cluster),
            Body::Ack | Body::NotYet | Body::Gone => return None,
        })
    }
}

/// A message is copied into a queue slot; it stays within two cache lines.
const _: () = assert!(size_of::<Message>() <= 128);
