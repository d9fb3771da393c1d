//! What the shards serve by: a configuration that was checked, with its names resolved.
//!
//! The control thread compiles a [`Plan`] and sends it to every shard; from then on nobody changes
//! it. A request holds the plan that it began with to its end, so a reload never moves it.
//! Indices instead of names: `ListenerIndex`, `ClusterIndex` and so on are positions in the plan.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::access_log::Format;
use crate::admission;
use crate::balance::{ApertureSettings, Policy, Table, Tiering, Zone};
use crate::health::ClusterHealth;
use crate::http::forwarded::Forwarding;
use crate::http::head::HeadLimits;
use crate::http::path::PathPolicy;
use crate::metrics::breakers::{BreakerRecord, ConcurrencyRecord};
use crate::overload;
use crate::rate::{RateLimitId, RateLimitSpec};
use crate::reason::{Fault, Reason};
use crate::reconcile::{ClusterId, EndpointId, PlanSpec, Role};
use crate::route::{Matcher, Respond, Router};
use crate::time::Nanos;

/// One compiled configuration. Generations count up from 1; a newer one wins.
#[derive(Debug)]
pub struct Plan {
    /// Which reload this is.
    pub generation: u64,
    /// In the order of the configuration.
    pub listeners: Vec<Arc<Listener>>,
    /// Picks a route for a request.
    pub router: Router,
    /// When newcomers are refused, if ever.
    pub overload: Option<Overload>,
    /// In the order of the configuration.
    pub clusters: Vec<Cluster>,
    /// The breakers of routes; [`crate::route::Forward::breakers`] names places in it.
    pub route_breakers: Vec<EndpointId>,
    /// What active checks have found, and who is new; in the order of the clusters.
    pub health: Vec<Arc<ClusterHealth>>,
    /// What shards have seen of clusters with admission control; in the order of the clusters.
    pub admissions: Vec<Arc<admission::Record>>,
    /// Limits that follow what is measured, where there are any; in the order of the clusters.
    pub concurrency: Vec<Arc<ConcurrencyRecord>>,
    /// All breakers, of endpoints and of routes, in the order of their numbers.
    pub breakers: Vec<Breaker>,
    /// What the shards have to agree on: limits and breakers, of the same generation.
    pub agreement: Arc<PlanSpec>,
    /// In the order of the configuration; [`crate::route::Route::rate_limits`] names places in it.
    pub rate_limits: Vec<RateLimit>,
    /// What the shards have to agree on of those, in the same order.
    pub rates: Vec<RateLimitSpec>,
    /// What answers in place of failures; [`crate::route::Route::fallback`] names places in it.
    pub fallbacks: Vec<Fallback>,
}

impl Plan {
    /// Breakers and endpoints that were in the plan before go on with their records. Called once,
    /// before any shard has the plan. Tells in which clusters panic begins (`true`) or ends with it.
    pub fn keep_records(&mut self, before: &Plan, now: Nanos) -> Vec<(String, bool)> {
        let mut panics = Vec::new();
        let records = self.admissions.iter_mut().zip(&mut self.concurrency);
        for (cluster, (admission, concurrency)) in self.clusters.iter().zip(records) {
            let same = before.clusters.iter().position(|other| other.id == cluster.id);
            if let Some(same) = same {
                admission.clone_from(&before.admissions[same]);
                concurrency.clone_from(&before.concurrency[same]);
            }
        }
        for (cluster, health) in self.clusters.iter().zip(&mut self.health) {
            let same = before.clusters.iter().position(|other| other.id == cluster.id);
            // Nobody else has it yet.
            if let (Some(same), Some(health)) = (same, Arc::get_mut(health)) {
                let changed = health.take_over(&before.health[same], now);
                panics.extend(changed.map(|begins| (cluster.name.clone(), begins)));
            }
        }
        for breaker in &mut self.breakers {
            if let Some(known) = before.breaker(breaker.id) {
                breaker.record = known.record.clone();
            }
        }
        panics
    }

    /// A breaker, by its number.
    pub fn breaker(&self, id: EndpointId) -> Option<&Breaker> {
        let place = self.breakers.binary_search_by_key(&id, |breaker| breaker.id).ok()?;
        self.breakers.get(place)
    }
}

/// Who a breaker is, and where its home tells how it stands. What it decides is in
/// [`Plan::agreement`].
#[derive(Debug)]
pub struct Breaker {
    /// Its number in [`Plan::agreement`].
    pub id: EndpointId,
    /// Whose endpoints it guards.
    pub cluster: String,
    /// The number of that.
    pub cluster_id: ClusterId,
    /// Of an endpoint or of a route.
    pub role: Role,
    /// The endpoint's address, or the route's name; of one role no other in the cluster has it.
    pub name: String,
    /// Where it stands.
    pub record: Arc<BreakerRecord>,
}

impl Breaker {
    /// What it guards, in a word.
    pub fn kind(&self) -> &'static str {
        match self.role {
            Role::Endpoint => "endpoint",
            Role::Route => "route",
        }
    }
}

/// When a shard has too much to do, or too many wait for a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overload {
    /// How long a request may wait in a shard's loop; `None`: as long as it takes.
    pub queue: Option<overload::Target>,
    /// Paths, as they are routed, for which nothing is refused.
    pub exempt_paths: Vec<String>,
}

impl Overload {
    /// Whether requests for this path are served whatever happens.
    pub fn exempts(&self, path: &[u8]) -> bool {
        self.exempt_paths.iter().any(|exempt| exempt.as_bytes() == path)
    }
}

/// One listening address and what holds for the connections that it accepts.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// As configured, for logs and metrics.
    pub name: String,
    /// Where to listen. Port 0 is bound once, and all shards share the number.
    pub address: SocketAddr,
    /// Pending connections the kernel holds for each shard's socket; listen(2).
    pub backlog: u32,
    /// How long each step may take.
    pub timeouts: ListenerTimeouts,
    /// Head sizes and strictness.
    pub head: HeadLimits,
    /// Largest request body, in bytes; `u64::MAX` means no limit. Above it: 413.
    pub body_bytes_max: u64,
    /// Open connections, over all shards together (each takes an equal part).
    pub connections_max: u32,
    /// Open connections of one client address, on each shard; 0 means no limit.
    pub connections_per_client_max: u32,
    /// Forwarded headers, and whom to believe.
    pub forwarding: Forwarding,
    /// How paths are normalised before anything looks at them.
    pub path: PathPolicy,
    /// Answers that we make ourselves, and 502s, say why in `x-outrigger-reason`.
    pub reason_header: bool,
    /// Where the access log goes, if anywhere: an index into the sinks that the writer thread
    /// holds, and the format of a line.
    pub access_log: Option<AccessLog>,
}

/// How one listener logs its requests.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLog {
    /// `-` is standard output; everything else is a path.
    pub path: String,
    /// How a line looks.
    pub format: Format,
}

/// Time limits between the client and us. All are on by default; zero switches one off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerTimeouts {
    /// From the first byte of a head (or from accept) to its last. Default 10 s; 408.
    pub header: Duration,
    /// Between two requests on one connection. Default 60 s; closed silently.
    pub idle: Duration,
    /// Within each such span a request body, or an answer that the client reads, must move by
    /// `body_bytes_per_second_min`. Default 30 s; 408, or a reset.
    pub body: Duration,
    /// What "moves" means, so that a byte a minute is no progress. Default 240.
    pub body_bytes_per_second_min: u32,
}

/// A rate limit, as requests meet it. What it allows is in [`Plan::rates`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// As configured, for metrics.
    pub name: String,
    /// Its number in [`Plan::rates`].
    pub id: RateLimitId,
    /// What tells requests apart.
    pub key: Vec<RateKey>,
    /// Bits of an IPv6 address that count.
    pub ipv6_prefix: u8,
    /// How long a request waits where other shards have to be asked. Default 100 ms.
    pub home_timeout: Duration,
    /// Nobody is refused.
    pub dry_run: bool,
    /// `ratelimit-limit` and `ratelimit-policy`, as lines of a head.
    pub lines: Vec<u8>,
}

/// What tells requests apart for a rate limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateKey {
    /// The route's name.
    Route,
    /// The client's address, as the listener's trusted proxies let it be seen.
    Client,
    /// All fields of this name.
    Header(String),
}

/// What answers in place of a failure: what there is of these, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct Fallback {
    /// The route's name, for metrics.
    pub route: String,
    /// The route's rules, and the clusters that it names: what is kept was an answer of theirs.
    pub rules: Vec<Matcher>,
    /// See above.
    pub clusters: Vec<String>,
    /// Which statuses are failures, of answers and of our own refusals.
    pub statuses: Vec<u16>,
    /// Another cluster: its place in the plan.
    pub cluster: Option<usize>,
    /// An answer that was given before.
    pub last_good: Option<LastGood>,
    /// An answer of our own.
    pub respond: Option<Respond>,
    /// How many requests at once, over all shards. Default 10.
    pub requests_max: u32,
    /// That limit in [`Plan::agreement`]: the one endpoint of a cluster of its own.
    pub limit: EndpointId,
}

impl Fallback {
    /// Whether this is the one of another plan still, so that what is kept may be given again. Names
    /// alone do not tell: a route without one is named by its place.
    pub fn goes_on(&self, before: &Fallback) -> bool {
        let is_known = |cluster| before.clusters.contains(cluster);
        self.route == before.route
            && self.rules == before.rules
            && self.clusters.iter().any(is_known)
    }

    /// Whether an answer with this status is a failure.
    pub fn wants_status(&self, status: u16) -> bool {
        self.statuses.contains(&status)
    }

    /// Whether what ended for this reason is one: never what a client did, or what its own time did
    /// not suffice for.
    pub fn wants_reason(&self, reason: Reason) -> bool {
        reason.fault() != Fault::Client
            && reason != Reason::DrainTimeout
            && self.wants_status(reason.status())
    }
}

/// Which answers are kept, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastGood {
    /// Older ones are not given. Default 1 h.
    pub age_max: Duration,
    /// Of the process: each shard has an equal part. Default 16 MiB.
    pub bytes_max: usize,
    /// Larger bodies are not kept. Default 256 KiB.
    pub answer_bytes_max: usize,
    /// One that is newer is not replaced. Default 1 s.
    pub refresh_after: Duration,
}

/// A set of endpoints that serve the same thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// As configured, for logs and metrics.
    pub name: String,
    /// Its number in [`Plan::agreement`].
    pub id: ClusterId,
    /// Resolved. May be empty: then requests get 503 `no-endpoint`.
    pub endpoints: Vec<Endpoint>,
    /// How one of them is chosen.
    pub balance: Policy,
    /// What the policy looks up: built once, shared by all shards.
    pub table: Table,
    /// Priorities and zones, if its endpoints have any.
    pub tiering: Option<Arc<Tiering>>,
    /// Each shard sends to a part of them: never together with priorities and zones.
    pub aperture: Option<ApertureSettings>,
    /// Where requests go that no endpoint of this one can have: a place in the plan.
    pub fallback: Option<usize>,
    /// Its own set was empty, and these endpoints are the last that it had.
    pub keeps_endpoints: bool,
    /// TCP connect, default 5 s; 504.
    pub connect_timeout: Duration,
    /// How long a request waits for a place where a limit is reached, default 5 s; 503.
    pub pending_timeout: Duration,
    /// How long everybody may wait before nobody may join them, if that is limited.
    pub pending_target: Option<overload::Target>,
    /// When requests are refused because others fail, if ever.
    pub admission: Option<admission::Settings>,
    /// How its endpoints are checked, if they are.
    pub health_check: Option<Arc<HealthCheck>>,
    /// Whether a 5xx is a failure for the breakers; true by default.
    pub failure_statuses: bool,
    /// Whether the breaker or the balancer asks how long answers take.
    pub times_answers: bool,
    /// Whether the balancer does.
    pub weighs_latency: bool,
    /// Kept connections.
    pub pool: Pool,
}

impl Cluster {
    /// The host of requests that name none: what its first endpoint is called.
    pub fn default_host(&self) -> &[u8] {
        self.endpoints.first().map_or(b"localhost", |endpoint| endpoint.name.as_bytes())
    }
}

/// How endpoints are checked by the control thread.
#[derive(Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// By a request; else a connection is enough.
    pub http: Option<HttpCheck>,
    /// In place of the endpoint's own.
    pub port: Option<u16>,
    /// From one check to the next. Default 2 s.
    pub interval: Duration,
    /// The same while an endpoint is about to change. Default 500 ms.
    pub fast_interval: Duration,
    /// For one check. Default 1 s.
    pub timeout: Duration,
    /// Checks in a row that bring an endpoint back. Default 2.
    pub rise: u32,
    /// Checks in a row that take it out. Default 3.
    pub fall: u32,
}

/// What is asked, and what is good.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// What is asked for.
    pub path: String,
    /// `Host`; else what the endpoint is called.
    pub host: Option<String>,
    /// Statuses that are good.
    pub statuses: Vec<RangeInclusive<u16>>,
}

/// One address of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its number in [`Plan::agreement`].
    pub id: EndpointId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share, from 1; endpoints of weight 0 are left out of the plan.
    pub weight: u32,
    /// What the configuration called it (`host:port`), for hashing and logs.
    pub name: String,
    /// Endpoints of greater numbers are used as far as those of lesser ones do not suffice.
    pub priority: u32,
    /// Where it is, as seen from this proxy.
    pub zone: Zone,
}

/// How one shard keeps connections to the endpoints of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Idle connections kept per endpoint and shard. Default 256.
    pub idle_max: u32,
    /// An idle connection is closed after this. Default 4 s: below the 5 s after which common
    /// servers (Node.js, Apache) close theirs.
    pub idle_timeout: Duration,
    /// A connection older than this is not used again. Default 1 h.
    pub age_max: Duration,
    /// Requests on one connection; 0 means no limit (the default).
    pub requests_max: u64,
}
