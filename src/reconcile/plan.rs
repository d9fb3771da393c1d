//! What the protocol has to know of a plan: who exists, and what holds for them. The control
//! thread makes one of each configuration; every shard prepares it, then all activate it.

use std::time::Duration;

use super::{Adaptive, ClusterId, EndpointId, ShardId};
use crate::breaker;

/// No limit. Still counted, so that a limit may be set later: a shard then holds so many credits
/// that it never asks.
pub const UNLIMITED: u64 = u64::MAX;

/// What an unlimited limit lends to each shard; every real limit is smaller (they are 32 bits).
pub(super) const PLENTY: u64 = 1 << 32;

/// What can be limited by credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Exchanges open in the proxy.
    Requests,
    /// Connections to endpoints, idle ones included.
    Connections,
    /// Retries in flight, those waiting in backoff included. Per cluster only: while one waits, it
    /// has no endpoint yet.
    Retries,
}

impl Kind {
    /// Every kind, in the order of its number.
    pub const ALL: [Kind; 3] = [Kind::Requests, Kind::Connections, Kind::Retries];
}

/// Limits of a cluster over all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterLimits {
    /// Default 1024, as Envoy's.
    pub requests_max: u64,
    /// Default 1024, as Envoy's.
    pub connections_max: u64,
    /// Requests that wait for a credit; split evenly between the shards. Default 1024.
    pub pending_max: u64,
    /// Default 64: how many there are is the budget's; this bounds how many wait in their pauses.
    pub retries_max: u64,
}

impl Default for ClusterLimits {
    fn default() -> ClusterLimits {
        ClusterLimits {
            requests_max: 1024,
            connections_max: 1024,
            pending_max: 1024,
            retries_max: 64,
        }
    }
}

impl ClusterLimits {
    pub(super) fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Requests => self.requests_max,
            Kind::Connections => self.connections_max,
            Kind::Retries => self.retries_max,
        }
    }
}

/// Limits of one endpoint over all shards. All are [`UNLIMITED`] by default: the cluster's hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointLimits {
    /// Exchanges.
    pub requests_max: u64,
    /// Connections.
    pub connections_max: u64,
    /// Requests that wait for this endpoint; split evenly between the shards.
    pub pending_max: u64,
}

impl Default for EndpointLimits {
    fn default() -> EndpointLimits {
        EndpointLimits {
            requests_max: UNLIMITED,
            connections_max: UNLIMITED,
            pending_max: UNLIMITED,
        }
    }
}

impl EndpointLimits {
    pub(super) fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Requests => self.requests_max,
            Kind::Connections => self.connections_max,
            Kind::Retries => UNLIMITED,
        }
    }
}

/// How many retries there may be for each first attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RetryBudget {
    /// What a first attempt deposits, in thousandths of a retry. Default 200: a fifth.
    pub deposit_milli: u32,
    /// A deposit is good for so long. Default 10 s, as Finagle's.
    pub ttl: Duration,
    /// Retries per second that the home lends beside it, whatever the traffic; what is not taken
    /// adds up for as long as a deposit is good. Default 3: a quiet service may retry, too.
    pub per_second_min: u32,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget { deposit_milli: 200, ttl: Duration::from_secs(10), per_second_min: 3 }
    }
}

/// What an entry of a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A server: credits, a breaker, and a place in `max_ejected`.
    Endpoint,
    /// A breaker of a (route, cluster): no credits, no place.
    Route,
}

/// An endpoint, or a route's breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointSpec {
    /// Its number.
    pub id: EndpointId,
    /// What it is.
    pub role: Role,
    /// Its limits; of no effect for routes.
    pub limits: EndpointLimits,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterSpec {
    /// Its number.
    pub id: ClusterId,
    /// Limits over all endpoints.
    pub limits: ClusterLimits,
    /// For the breakers of its endpoints.
    pub breaker: breaker::Settings,
    /// Share of its endpoints that breakers may take out, in percent; one is always allowed.
    /// Default 50.
    pub ejected_percent_max: u32,
    /// For its retries.
    pub retry_budget: RetryBudget,
    /// How its limit on requests follows what is measured, up to `limits.requests_max`; `None`: that
    /// is the limit.
    pub adaptive: Option<Adaptive>,
    /// Its endpoints and the breakers of routes to it.
    pub endpoints: Vec<EndpointSpec>,
}

impl ClusterSpec {
    /// With every default, and no endpoints.
    pub fn new(id: ClusterId) -> ClusterSpec {
        ClusterSpec {
            id,
            limits: ClusterLimits::default(),
            breaker: breaker::Settings::default(),
            ejected_percent_max: 50,
            retry_budget: RetryBudget::default(),
            adaptive: None,
            endpoints: Vec::new(),
        }
    }

    /// A limit, as a new cluster begins: both sides know that without a message.
    pub(super) fn first_limit(&self, kind: Kind) -> u64 {
        let limit = self.limits.of(kind);
        match (kind, self.adaptive) {
            (Kind::Requests, Some(adaptive)) => adaptive.concurrency_min.min(limit),
            _ => limit,
        }
    }
}

/// All of it, in one generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PlanSpec {
    /// Which plan this is; a newer one wins.
    pub generation: u64,
    /// The clusters.
    pub clusters: Vec<ClusterSpec>,
    /// Numbers below these have been given at some time: who is asked about a higher one says
    /// "not yet", about an unknown lower one "gone".
    pub clusters_end: ClusterId,
    /// As `clusters_end`.
    pub endpoints_end: EndpointId,
}

/// What a shard holds of a limit from the start, without a message: everything if it is alone, half
/// of an even share if not. The other half is the home's to lend where the traffic is.
pub(super) fn first_share(limit: u64, shards: u16) -> u64 {
    match (limit, shards) {
        (UNLIMITED, _) => PLENTY,
        (_, 1) => limit,
        _ => limit / (2 * u64::from(shards)),
    }
}

/// A shard's part of a limit on what waits: even, the rest to the first shards. At least one, or a
/// shard could never wait for a credit that it does not hold.
pub(super) fn pending_share(limit: u64, shard: ShardId, shards: u16) -> u64 {
    if limit == UNLIMITED {
        return UNLIMITED;
    }
    let shards = u64::from(shards);
    (limit / shards + u64::from(u64::from(shard.0) < limit % shards)).max(u64::from(limit > 0))
}
