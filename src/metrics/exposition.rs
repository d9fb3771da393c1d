//! The counters as text that Prometheus reads (text format 0.0.4). The control thread calls it,
//! once for each scrape; shards never do.
//!
//! A series carries the label `shard` where one shard is worth looking at, and is a total where it
//! is not; no metric has both, so that `sum()` is always right.
//!
//! A state is told as Prometheus' users expect it of an enum (OpenMetrics' StateSet): one series
//! for each state, 1 for the one that holds and 0 for the others. So
//! `outrigger_breaker_state{state="open"} == 1` finds them, and a series never ends by a change.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};
use std::net::SocketAddr;

use super::breakers::{BreakerState, ConcurrencyRecord};
use super::fallbacks::FallbackCounters;
use super::process::ProcessStats;
use super::rates::RateCounters;
use super::{CODE_CLASSES, Counter, Gauge, ShardCounters, Snapshot};
use crate::admission::Totals;
use crate::fallback;
use crate::health::Health;
use crate::reason::Reason;
use crate::reconcile::{AGE_BUCKETS, Ages, ClusterLimits};

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One shard, as the control thread knows it.
#[derive(Debug, Clone, Copy)]
pub struct ShardView<'a> {
    /// Its number; the label `shard`.
    pub id: usize,
    /// What it counts.
    pub counters: &'a ShardCounters,
    /// `io_uring` or `epoll`; empty while the shard has not said.
    pub driver: &'a str,
    /// The ring's flags.
    pub flags: &'a str,
    /// The newest plan that it has acknowledged.
    pub plan_applied: u64,
}

/// One cluster of the newest plan.
#[derive(Debug, Clone)]
pub struct ClusterView<'a> {
    /// The label `cluster`.
    pub name: &'a str,
    /// As configured.
    pub limits: &'a ClusterLimits,
    /// Those of its endpoints, and of routes to it.
    pub breakers: Vec<BreakerView<'a>>,
    /// Of those that have left the plan, too.
    pub trips: u64,
    /// Of its endpoints, where they are checked.
    pub health: Vec<HealthView>,
    /// Too few are up.
    pub in_panic: bool,
    /// How often that has begun.
    pub panics: u64,
    /// Of each shard, where there is admission control.
    pub admission: &'a [Totals],
    /// Where its limit on requests follows what is measured.
    pub concurrency: Option<&'a ConcurrencyRecord>,
    /// How many it has.
    pub endpoints: usize,
    /// They are the last that it had.
    pub keeps_endpoints: bool,
}

/// What checks have found of an endpoint.
#[derive(Debug, Clone, Copy)]
pub struct HealthView {
    /// The label `endpoint`.
    pub endpoint: SocketAddr,
    /// The last verdict.
    pub health: Health,
    /// Checks that it passed.
    pub passed: u64,
    /// Checks that it did not.
    pub failed: u64,
}

/// One breaker of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct BreakerView<'a> {
    /// An address, or the name of a route; the label `endpoint`.
    pub endpoint: &'a str,
    /// `endpoint` or `route`.
    pub kind: &'static str,
    /// Where it stands.
    pub state: BreakerState,
}

/// What the control thread itself has to tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct ControlView {
    /// Serving, and neither starting nor draining.
    pub live: bool,
    /// Ending in an orderly way.
    pub draining: bool,
    /// The newest plan that was made.
    pub plan_newest: u64,
    /// The last reload, or the start, brought a configuration into force.
    pub reload_successful: bool,
    /// When that was last so, in seconds since 1970.
    pub reload_success_seconds: f64,
    /// Reloads that brought a configuration into force.
    pub reloads_succeeded: u64,
    /// Reloads after which everything stayed as it was.
    pub reloads_failed: u64,
    /// Host names that were looked up with an answer.
    pub dns_answers: u64,
    /// Host names that were looked up without one.
    pub dns_failures: u64,
    /// Access log lines lost by the writer: a full disk, a file that cannot be opened.
    pub access_log_lines_lost: u64,
}

/// Breakers that have series of their own, six each. Where there are more, none has, and only the
/// counts for each cluster are told: Prometheus pays for every series.
pub const BREAKERS_TOLD_MAX: usize = 500;

/// Makes the whole page.
pub fn render(
    shards: &[ShardView<'_>],
    clusters: &[ClusterView<'_>],
    control: &ControlView,
    process: &ProcessStats,
) -> String {
    // A shard takes some 2 KiB, the rest 12 KiB.
    let mut page = Page { text: String::with_capacity(16 * 1024 + shards.len() * 2 * 1024) };
    per_shard(&mut page, shards);
    totals(&mut page, shards);
    of_rate_limits(&mut page, shards);
    of_fallbacks(&mut page, shards);
    of_clusters(&mut page, clusters);
    own(&mut page, control);
    of_process(&mut page, process);
    page.text
}

/// How a metric behaves; the word after `# TYPE`.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page in the making.
struct Page {
    text: String,
}

impl Page {
    /// Begins a metric; its samples must follow at once.
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.text.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            self.text.push(separator);
            self.text.push_str(label);
            self.text.push_str("=\"");
            let _ = write!(Escaped(&mut self.text), "{value}");
            self.text.push('"');
            separator = ',';
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A histogram without labels.
    fn durations(&mut self, name: &str, help: &str, durations: &Snapshot) {
        self.family(name, Kind::Histogram, help);
        let bucket = format!("{name}_bucket");
        for (bound_ns, below) in durations.cumulative() {
            let bound = bound_ns as f64 / 1e9;
            self.sample(&bucket, &[("le", &bound)], below);
        }
        let count = durations.count();
        self.sample(&bucket, &[("le", &"+Inf")], count);
        self.sample(&format!("{name}_sum"), &[], durations.sum_seconds());
        self.sample(&format!("{name}_count"), &[], count);
    }

    /// A metric of one sample without labels.
    fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

/// Label values may hold anything; three characters need a backslash.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// Name, help, and where the figure is.
type CounterRow = (&'static str, &'static str, fn(&ShardCounters) -> &Counter);

type GaugeRow = (&'static str, &'static str, fn(&ShardCounters) -> &Gauge);

const COUNTERS: &[CounterRow] = &[
    ("outrigger_connections_accepted_total", "Client connections accepted and served.", |c| {
        &c.connections_accepted
    }),
    ("outrigger_connections_shed_total", "Client connections closed because of a limit.", |c| {
        &c.connections_shed
    }),
    ("outrigger_accept_failures_total", "Accepts that failed, for want of descriptors.", |c| {
        &c.accept_failures
    }),
    ("outrigger_received_bytes_total", "Bytes read from clients, heads included.", |c| {
        &c.bytes_received
    }),
    ("outrigger_sent_bytes_total", "Bytes written to clients, heads included.", |c| &c.bytes_sent),
    ("outrigger_upstream_connects_total", "Connections made to endpoints.", |c| {
        &c.upstream_connects
    }),
    ("outrigger_upstream_reuses_total", "Requests sent on a pooled connection.", |c| {
        &c.upstream_reuses
    }),
    (
        "outrigger_upstream_connect_failures_total",
        "Connections that endpoints refused or did not accept in time.",
        |c| &c.upstream_connect_failures,
    ),
    ("outrigger_retries_total", "Retries: requests that failed, sent once more.", |c| &c.retries),
    (
        "outrigger_resends_total",
        "Requests sent once more because their kept connection had ended.",
        |c| &c.resends,
    ),
    ("outrigger_retries_succeeded_total", "Retries whose answer was worth no further one.", |c| {
        &c.retries_succeeded
    }),
    (
        "outrigger_hedges_total",
        "Requests sent to a second endpoint because the first was slow.",
        |c| &c.hedges,
    ),
    (
        "outrigger_hedges_won_total",
        "Hedges whose answer was taken, or that went on after the first try had failed.",
        |c| &c.hedges_won,
    ),
    (
        "outrigger_hedges_refused_total",
        "Hedges that were due, but had no leave, or no endpoint to go to.",
        |c| &c.hedges_refused,
    ),
    (
        "outrigger_retries_refused_limit_total",
        "Retries that were wanted while max_retries were in flight.",
        |c| &c.retries_refused_limit,
    ),
    (
        "outrigger_retries_refused_budget_total",
        "Retries that were wanted, but neither first attempts nor the minimum paid for.",
        |c| &c.retries_refused_budget,
    ),
    (
        "outrigger_access_log_dropped_total",
        "Access log lines dropped because the writer was behind.",
        |c| &c.access_log_dropped,
    ),
    ("outrigger_shard_messages_total", "Messages to other shards, on limits and breakers.", |c| {
        &c.messages_sent
    }),
    (
        "outrigger_shard_messages_waking_total",
        "Messages to other shards that wake a sleeping receiver.",
        |c| &c.messages_waking,
    ),
    (
        "outrigger_shard_messages_dropped_total",
        "Messages to other shards that found a full queue, and were sent again.",
        |c| &c.messages_dropped,
    ),
    (
        "outrigger_view_age_violations_total",
        "Decisions that were older than the bound when the shard applied them.",
        |c| &c.view_age_violations,
    ),
    (
        "outrigger_overloads_total",
        "How often requests began to queue for too long, in the loop or for a place.",
        |c| &c.overloads,
    ),
    (
        "outrigger_breaker_transitions_total",
        "Transitions of the breakers that the shard decides.",
        |c| &c.breaker_transitions,
    ),
    (
        "outrigger_breaker_trips_refused_total",
        "Trips refused because of max_ejected, on the shard that decides.",
        |c| &c.breaker_trips_refused,
    ),
    (
        "outrigger_cluster_fallbacks_total",
        "Requests that went to a fallback cluster, for want of an endpoint in their own.",
        |c| &c.cluster_fallbacks,
    ),
    (
        "outrigger_connections_handed_over_total",
        "Client connections handed to a shard with fewer.",
        |c| &c.connections_handed_over,
    ),
    (
        "outrigger_connections_taken_over_total",
        "Client connections taken over from a shard with more.",
        |c| &c.connections_taken_over,
    ),
];

const GAUGES: &[GaugeRow] = &[
    ("outrigger_connections_open", "Client connections open now.", |c| &c.connections_open),
    ("outrigger_requests_in_flight", "Exchanges being served now.", |c| &c.requests_in_flight),
    ("outrigger_tunnels_open", "Upgraded connections open now.", |c| &c.tunnels_open),
    ("outrigger_buffers_in_use", "Buffers lent to connections now.", |c| &c.buffers_in_use),
    ("outrigger_aperture_endpoints", "Endpoints in the shard's slices of large clusters.", |c| {
        &c.aperture_endpoints
    }),
    ("outrigger_requests_pending", "Requests that wait for a place or a permit now.", |c| {
        &c.pending
    }),
];

fn per_shard(page: &mut Page, shards: &[ShardView<'_>]) {
    let name = "outrigger_requests_total";
    page.family(name, Kind::Counter, "Requests answered, by class of the status.");
    for shard in shards {
        for (class, counter) in CODE_CLASSES.iter().zip(&shard.counters.requests) {
            page.sample(name, &[("code_class", class), ("shard", &shard.id)], counter.get());
        }
    }
    for (name, help, counter) in COUNTERS {
        page.family(name, Kind::Counter, help);
        for shard in shards {
            page.sample(name, &[("shard", &shard.id)], counter(shard.counters).get());
        }
    }
    for (name, help, gauge) in GAUGES {
        page.family(name, Kind::Gauge, help);
        for shard in shards {
            page.sample(name, &[("shard", &shard.id)], gauge(shard.counters).get());
        }
    }
    let name = "outrigger_zone_requests_total";
    page.family(
        name,
        Kind::Counter,
        "Requests to endpoints, by where they are, if zones are known.",
    );
    for shard in shards {
        let ShardCounters { zone_own, zone_other, .. } = shard.counters;
        for (zone, count) in [("own", zone_own), ("other", zone_other)] {
            page.sample(name, &[("zone", &zone), ("shard", &shard.id)], count.get());
        }
    }
    let name = "outrigger_upstream_pool_connections";
    page.family(name, Kind::Gauge, "Connections to endpoints, by what they do.");
    for shard in shards {
        let idle = shard.counters.upstream_idle.get();
        let active = (shard.counters.upstream_open.get() - idle).max(0);
        page.sample(name, &[("state", &"active"), ("shard", &shard.id)], active);
        page.sample(name, &[("state", &"idle"), ("shard", &shard.id)], idle);
    }
    let name = "outrigger_loop_lag_seconds";
    page.family(name, Kind::Gauge, "How late the shard's loop was in the last seconds, at worst.");
    for shard in shards {
        let seconds = shard.counters.loop_lag_ns.get() as f64 / 1e9;
        page.sample(name, &[("shard", &shard.id)], seconds);
    }
    let name = "outrigger_view_age_seconds";
    page.family(name, Kind::Histogram, "From a decision to its application on the shard.");
    for shard in shards {
        let id = &shard.id;
        let mut below = 0;
        let counts = shard.counters.view_ages.counts();
        for (bucket, count) in counts.iter().enumerate().take(AGE_BUCKETS - 1) {
            below += count;
            let bound = Ages::bound_us(bucket) as f64 / 1e6;
            let labels: [(&str, &dyn Display); 2] = [("shard", id), ("le", &bound)];
            page.sample("outrigger_view_age_seconds_bucket", &labels, below);
        }
        let all: u64 = counts.iter().sum();
        let labels: [(&str, &dyn Display); 2] = [("shard", id), ("le", &"+Inf")];
        page.sample("outrigger_view_age_seconds_bucket", &labels, all);
        let sum = shard.counters.view_ages.sum_seconds();
        page.sample("outrigger_view_age_seconds_sum", &[("shard", id)], sum);
        page.sample("outrigger_view_age_seconds_count", &[("shard", id)], all);
    }
    let name = "outrigger_plan_generation";
    page.family(name, Kind::Gauge, "The newest plan that the shard has acknowledged.");
    for shard in shards {
        page.sample(name, &[("shard", &shard.id)], shard.plan_applied);
    }
    let name = "outrigger_driver_info";
    page.family(name, Kind::Gauge, "How the shard waits: the driver and the ring's flags.");
    for shard in shards.iter().filter(|shard| !shard.driver.is_empty()) {
        let labels: [(&str, &dyn Display); 3] =
            [("shard", &shard.id), ("driver", &shard.driver), ("flags", &shard.flags)];
        page.sample(name, &labels, 1);
    }
}

fn totals(page: &mut Page, shards: &[ShardView<'_>]) {
    page.single("outrigger_shards", Kind::Gauge, "Shards of this process.", shards.len());

    let name = "outrigger_refusals_total";
    page.family(name, Kind::Counter, "Answers of our own and exchanges cut short, by reason.");
    for reason in Reason::ALL {
        let sum: u64 = shards.iter().map(|s| s.counters.refusals.of(reason).get()).sum();
        page.sample(name, &[("reason", &reason.name())], sum);
    }

    let mut durations = Snapshot::default();
    let mut queueing = Snapshot::default();
    for shard in shards {
        durations.merge(&shard.counters.request_duration);
        queueing.merge(&shard.counters.queue_delay);
    }
    let name = "outrigger_request_duration_seconds";
    page.durations(name, "From a request's first byte to its answer's last.", &durations);
    let name = "outrigger_queue_delay_seconds";
    page.durations(name, "How long requests waited in the loop, with a queue_target.", &queueing);
}

/// Name, help, and where the figure is.
type RateRow = (&'static str, &'static str, fn(&RateCounters) -> u64);

const RATE_LIMITS: &[RateRow] = &[
    ("outrigger_rate_limit_admitted_total", "Requests that got a token.", |c| c.admitted.get()),
    (
        "outrigger_rate_limit_refused_total",
        "Requests for which there was no token, those of a dry run included.",
        |c| c.refused.get(),
    ),
    (
        "outrigger_rate_limit_unanswered_total",
        "Requests for which the shard that decides did not answer in time.",
        |c| c.unanswered.get(),
    ),
    (
        "outrigger_rate_limit_table_full_total",
        "Requests refused because there was no room for one more key.",
        |c| c.table_full.get(),
    ),
    (
        "outrigger_rate_limit_skipped_total",
        "Requests without a header of the key, which are not limited.",
        |c| c.skipped.get(),
    ),
    (
        "outrigger_rate_limit_evicted_total",
        "Buckets that were forgotten before they were full again, for want of room.",
        |c| c.evicted.get(),
    ),
];

fn of_rate_limits(page: &mut Page, shards: &[ShardView<'_>]) {
    let shards: Vec<_> = shards.iter().map(|shard| shard.counters.rates.all()).collect();
    let names: BTreeSet<&String> = shards.iter().flat_map(|shard| shard.keys()).collect();
    let sum = |name: &String, of: &dyn Fn(&RateCounters) -> i64| -> i64 {
        shards.iter().filter_map(|shard| shard.get(name)).map(|counters| of(counters)).sum()
    };
    for (name, help, counter) in RATE_LIMITS {
        page.family(name, Kind::Counter, help);
        for limit in &names {
            let labels: [(&str, &dyn Display); 1] = [("limit", limit)];
            page.sample(name, &labels, sum(limit, &|counters| counter(counters) as i64));
        }
    }
    let name = "outrigger_rate_limit_keys";
    page.family(name, Kind::Gauge, "Buckets that are kept.");
    for limit in &names {
        let labels: [(&str, &dyn Display); 1] = [("limit", limit)];
        page.sample(name, &labels, sum(limit, &|counters| counters.keys.get()));
    }
}

/// Name, how it behaves, help, and where the figure is.
type FallbackRow = (&'static str, Kind, &'static str, fn(&FallbackCounters) -> i64);

const FALLBACKS: &[FallbackRow] = &[
    (
        "outrigger_fallbacks_refused_total",
        Kind::Counter,
        "Failed requests that got no fallback, since max_requests had one.",
        |c| c.refused.get() as i64,
    ),
    (
        "outrigger_fallbacks_failed_total",
        Kind::Counter,
        "Failed requests for which there was no other answer, or whose fallback has failed, too.",
        |c| c.failed.get() as i64,
    ),
    ("outrigger_last_good_bytes", Kind::Gauge, "What the answers take that are kept.", |c| {
        c.kept_bytes.get()
    }),
    ("outrigger_last_good_answers", Kind::Gauge, "Answers that are kept to be given again.", |c| {
        c.kept_answers.get()
    }),
];

fn of_fallbacks(page: &mut Page, shards: &[ShardView<'_>]) {
    let shards: Vec<_> = shards.iter().map(|shard| shard.counters.fallbacks.all()).collect();
    let names: BTreeSet<&String> = shards.iter().flat_map(|shard| shard.keys()).collect();
    let sum = |name: &String, of: &dyn Fn(&FallbackCounters) -> i64| -> i64 {
        shards.iter().filter_map(|shard| shard.get(name)).map(|counters| of(counters)).sum()
    };
    let name = "outrigger_fallbacks_total";
    page.family(name, Kind::Counter, "Failed requests that a fallback has answered.");
    for route in &names {
        for kind in fallback::Kind::ALL {
            let labels: [(&str, &dyn Display); 2] = [("route", route), ("kind", &kind.name())];
            page.sample(name, &labels, sum(route, &|c| c.of(kind).get() as i64));
        }
    }
    for (name, kind, help, figure) in FALLBACKS {
        page.family(name, *kind, help);
        for route in &names {
            let labels: [(&str, &dyn Display); 1] = [("route", route)];
            page.sample(name, &labels, sum(route, &|counters| figure(counters)));
        }
    }
}

fn of_clusters(page: &mut Page, clusters: &[ClusterView<'_>]) {
    let name = "outrigger_breakers";
    page.family(name, Kind::Gauge, "Breakers of endpoints and routes, by their state.");
    for ClusterView { name: cluster, breakers, .. } in clusters {
        for state in BreakerState::ALL {
            let count = breakers.iter().filter(|breaker| breaker.state == state).count();
            page.sample(name, &[("cluster", cluster), ("state", &state.name())], count);
        }
    }
    if clusters.iter().map(|cluster| cluster.breakers.len()).sum::<usize>() <= BREAKERS_TOLD_MAX {
        let name = "outrigger_breaker_state";
        page.family(name, Kind::Gauge, "1 for the state that a breaker is in, 0 for the others.");
        for ClusterView { name: cluster, breakers, .. } in clusters {
            for BreakerView { endpoint, kind, state } in breakers {
                for each in BreakerState::ALL {
                    let labels: [(&str, &dyn Display); 4] = [
                        ("cluster", cluster),
                        ("endpoint", endpoint),
                        ("kind", kind),
                        ("state", &each.name()),
                    ];
                    page.sample(name, &labels, u8::from(each == *state));
                }
            }
        }
    }
    of_health(page, clusters);
    of_admission(page, clusters);
    of_concurrency(page, clusters);
    let name = "outrigger_breaker_trips_total";
    page.family(name, Kind::Counter, "How often failures have opened a breaker.");
    for ClusterView { name: cluster, trips, .. } in clusters {
        page.sample(name, &[("cluster", cluster)], trips);
    }
    let name = "outrigger_limit";
    page.family(name, Kind::Gauge, "What may be in use at once, over all shards.");
    for ClusterView { name: cluster, limits, .. } in clusters {
        let told = [
            ("requests", limits.requests_max),
            ("connections", limits.connections_max),
            ("pending", limits.pending_max),
            ("retries", limits.retries_max),
        ];
        for (kind, limit) in told {
            page.sample(name, &[("cluster", cluster), ("kind", &kind)], limit);
        }
    }
}

fn of_admission(page: &mut Page, clusters: &[ClusterView<'_>]) {
    let controlled = || clusters.iter().filter(|cluster| !cluster.admission.is_empty());
    let name = "outrigger_admission_requests_total";
    page.family(name, Kind::Counter, "Requests that admission control counts, by their end.");
    for ClusterView { name: cluster, admission, .. } in controlled() {
        let sum = |count: fn(&Totals) -> u64| admission.iter().map(count).sum::<u64>();
        let successes = sum(|it| it.successes.get());
        let failures = sum(|it| it.requests.get()).saturating_sub(successes);
        for (result, count) in [("success", successes), ("failure", failures)] {
            page.sample(name, &[("cluster", cluster), ("result", &result)], count);
        }
    }
    let name = "outrigger_admission_rejections_total";
    page.family(name, Kind::Counter, "Requests that admission control has chosen to refuse.");
    for ClusterView { name: cluster, admission, .. } in controlled() {
        let sum: u64 = admission.iter().map(|it| it.rejections.get()).sum();
        page.sample(name, &[("cluster", cluster)], sum);
    }
    let name = "outrigger_admission_rejection_probability";
    page.family(name, Kind::Gauge, "The chance to be refused, as each shard last reckoned it.");
    for ClusterView { name: cluster, admission, .. } in controlled() {
        for (shard, totals) in admission.iter().enumerate() {
            let chance = totals.chance_millionths.get() as f64 / 1e6;
            page.sample(name, &[("cluster", cluster), ("shard", &shard)], chance);
        }
    }
}

fn of_concurrency(page: &mut Page, clusters: &[ClusterView<'_>]) {
    type Row = (&'static str, &'static str, fn(&ConcurrencyRecord) -> f64);
    let rows: [Row; 4] = [
        (
            "outrigger_concurrency_limit",
            "What may be in flight, where that follows what is measured.",
            |it| it.limit.get() as f64,
        ),
        (
            "outrigger_concurrency_min_rtt_seconds",
            "The shortest round-trip time, as last measured; 0 before.",
            |it| it.min_rtt_ns.get() as f64 / 1e9,
        ),
        (
            "outrigger_concurrency_gradient",
            "By what the limit was last multiplied, before its headroom.",
            |it| it.gradient_milli.get() as f64 / 1e3,
        ),
        (
            "outrigger_concurrency_measuring",
            "1 while the shortest round-trip time is measured.",
            |it| it.measuring.get() as f64,
        ),
    ];
    for (name, help, value) in rows {
        page.family(name, Kind::Gauge, help);
        for ClusterView { name: cluster, concurrency, .. } in clusters {
            if let Some(record) = concurrency {
                page.sample(name, &[("cluster", cluster)], value(record));
            }
        }
    }
}

fn of_health(page: &mut Page, clusters: &[ClusterView<'_>]) {
    let name = "outrigger_cluster_endpoints";
    page.family(name, Kind::Gauge, "Endpoints of the cluster, those that are down included.");
    for ClusterView { name: cluster, endpoints, .. } in clusters {
        page.sample(name, &[("cluster", cluster)], endpoints);
    }
    let name = "outrigger_cluster_endpoints_kept";
    page.family(name, Kind::Gauge, "1 while its set is empty, and the last endpoints are used.");
    for ClusterView { name: cluster, keeps_endpoints, .. } in clusters {
        page.sample(name, &[("cluster", cluster)], u8::from(*keeps_endpoints));
    }
    let name = "outrigger_cluster_panic";
    page.family(name, Kind::Gauge, "1 while too few endpoints are up, and all are used.");
    for ClusterView { name: cluster, in_panic, .. } in clusters {
        page.sample(name, &[("cluster", cluster)], u8::from(*in_panic));
    }
    let name = "outrigger_cluster_panics_total";
    page.family(name, Kind::Counter, "How often too few endpoints were up.");
    for ClusterView { name: cluster, panics, .. } in clusters {
        page.sample(name, &[("cluster", cluster)], *panics);
    }
    let name = "outrigger_endpoint_up";
    page.family(name, Kind::Gauge, "Whether the endpoint is up by its checks.");
    for ClusterView { name: cluster, health, .. } in clusters {
        for view in health.iter().filter(|view| view.health != Health::Unchecked) {
            let labels: [(&str, &dyn Display); 2] =
                [("cluster", cluster), ("endpoint", &view.endpoint)];
            page.sample(name, &labels, u8::from(view.health == Health::Up));
        }
    }
    let name = "outrigger_health_checks_total";
    page.family(name, Kind::Counter, "Active checks of endpoints, by how they ended.");
    for ClusterView { name: cluster, health, .. } in clusters {
        for view in health {
            for (result, count) in [("passed", view.passed), ("failed", view.failed)] {
                let labels: [(&str, &dyn Display); 3] =
                    [("cluster", cluster), ("endpoint", &view.endpoint), ("result", &result)];
                page.sample(name, &labels, count);
            }
        }
    }
}

fn own(page: &mut Page, control: &ControlView) {
    use Kind::{Counter, Gauge};
    page.single(
        "outrigger_ready",
        Gauge,
        "1 while the process serves and does not drain.",
        u8::from(control.live),
    );
    page.single(
        "outrigger_draining",
        Gauge,
        "1 while the process ends in an orderly way.",
        u8::from(control.draining),
    );
    page.single(
        "outrigger_plan_generation_newest",
        Gauge,
        "The newest plan that was made.",
        control.plan_newest,
    );
    page.single(
        "outrigger_config_last_reload_successful",
        Gauge,
        "1 if the last reload brought a configuration into force.",
        u8::from(control.reload_successful),
    );
    page.single(
        "outrigger_config_last_reload_success_timestamp_seconds",
        Gauge,
        "When a configuration last came into force.",
        control.reload_success_seconds,
    );
    let name = "outrigger_config_reloads_total";
    page.family(name, Counter, "Reloads, by how they ended.");
    page.sample(name, &[("result", &"success")], control.reloads_succeeded);
    page.sample(name, &[("result", &"failure")], control.reloads_failed);
    let name = "outrigger_dns_lookups_total";
    page.family(name, Counter, "Host names looked up, by how that ended.");
    page.sample(name, &[("result", &"success")], control.dns_answers);
    page.sample(name, &[("result", &"failure")], control.dns_failures);
    page.single(
        "outrigger_access_log_lost_total",
        Counter,
        "Access log lines that could not be written.",
        control.access_log_lines_lost,
    );
    let name = "outrigger_build_info";
    page.family(name, Gauge, "What was built.");
    let commit = option_env!("OUTRIGGER_COMMIT").unwrap_or("unknown");
    page.sample(name, &[("version", &env!("CARGO_PKG_VERSION")), ("commit", &commit)], 1);
}

fn of_process(page: &mut Page, process: &ProcessStats) {
    use Kind::{Counter, Gauge};
    page.single(
        "process_cpu_seconds_total",
        Counter,
        "User and system time of all threads.",
        process.cpu_seconds,
    );
    let gauges = [
        ("process_resident_memory_bytes", "Resident memory.", process.resident_bytes),
        ("process_virtual_memory_bytes", "Address space.", process.virtual_bytes),
        ("process_threads", "Threads.", process.threads),
        ("process_open_fds", "Open descriptors.", process.fds_open),
        ("process_max_fds", "Descriptors that may be open.", process.fds_max),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            page.single(name, Gauge, help, value);
        }
    }
    if let Some(start) = process.start_seconds {
        let help = "When the process began, in seconds since 1970.";
        page.single("process_start_time_seconds", Gauge, help, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    /// A parser of the format, as strict as promtool's in what matters here: families are whole
    /// and announced, samples belong to them, no series appears twice.
    fn parse(page: &str) -> HashMap<String, f64> {
        let mut series = HashMap::new();
        let mut families = HashSet::new();
        let mut family = (String::new(), String::new());
        for line in page.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, text) = help.split_once(' ').expect("a help text");
                assert!(families.insert(name.to_owned()), "{name} is begun twice");
                assert!(text.ends_with('.'), "{name}: {text}");
                family = (name.to_owned(), String::new());
                continue;
            }
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(name, family.0);
                family.1 = kind.to_owned();
                continue;
            }
            let (key, value) = line.rsplit_once(' ').expect("a value");
            let name = key.split('{').next().unwrap();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            if family.1 == "histogram" {
                let suffix = name.strip_prefix(&family.0).expect("of its family");
                assert!(["_bucket", "_sum", "_count"].contains(&suffix));
            } else {
                assert_eq!(name, family.0);
                assert_eq!(name.ends_with("_total"), family.1 == "counter", "{name}");
            }
            if let Some(labels) = key.strip_prefix(name).unwrap().strip_prefix('{') {
                let labels = labels.strip_suffix('}').expect("a brace");
                assert!(labels.split("\",").all(|l| l.contains("=\"")), "{labels}");
            }
            let value = value.parse().expect("a number");
            assert!(series.insert(key.to_owned(), value).is_none(), "{key} appears twice");
        }
        series
    }

    fn page_of(shards: &[ShardCounters], driver: &str) -> String {
        let shards: Vec<_> = shards
            .iter()
            .enumerate()
            .map(|(id, counters)| ShardView {
                id,
                counters,
                driver,
                flags: "SINGLE_ISSUER|DEFER_TASKRUN",
                plan_applied: 7,
            })
            .collect();
        let control = ControlView { live: true, plan_newest: 8, ..Default::default() };
        let limits = ClusterLimits { requests_max: 7, ..ClusterLimits::default() };
        let breaker = |endpoint, kind, state| BreakerView { endpoint, kind, state };
        let breakers = vec![
            breaker("10.0.0.1:80", "endpoint", BreakerState::HalfOpen),
            breaker("10.0.0.2:80", "endpoint", BreakerState::Closed),
            // A route may be called like an endpoint.
            breaker("10.0.0.1:80", "route", BreakerState::Closed),
        ];
        let health = |port, health, passed, failed| {
            let endpoint = SocketAddr::from(([10, 0, 0, 1], port));
            HealthView { endpoint, health, passed, failed }
        };
        let health = vec![
            health(80, Health::Up, 7, 1),
            health(81, Health::Down, 0, 3),
            health(82, Health::Unchecked, 0, 0),
        ];
        let clusters = [
            ClusterView {
                name: "app",
                limits: &limits,
                breakers,
                trips: 3,
                health,
                in_panic: true,
                panics: 2,
                admission: &[],
                concurrency: None,
                endpoints: 2,
                keeps_endpoints: false,
            },
            ClusterView {
                name: "empty",
                limits: &limits,
                breakers: Vec::new(),
                trips: 0,
                health: Vec::new(),
                in_panic: false,
                panics: 0,
                admission: &[],
                concurrency: None,
                endpoints: 0,
                keeps_endpoints: true,
            },
        ];
        render(&shards, &clusters, &control, &ProcessStats::read())
    }

    #[test]
    fn a_page_tells_what_was_counted() {
        let shards = [ShardCounters::default(), ShardCounters::default()];
        shards[0].answered(200, 1_500_000);
        shards[1].answered(503, 100_000_000_000);
        shards[0].refuse(Reason::NoRoute);
        shards[1].refuse(Reason::NoRoute);
        shards[1].upstream_open.set(5);
        shards[1].upstream_idle.set(2);
        let series = parse(&page_of(&shards, "io_uring"));
        let told = [
            (r#"outrigger_requests_total{code_class="2xx",shard="0"}"#, 1.0),
            (r#"outrigger_requests_total{code_class="2xx",shard="1"}"#, 0.0),
            (r#"outrigger_requests_total{code_class="5xx",shard="1"}"#, 1.0),
            (r#"outrigger_refusals_total{reason="no-route"}"#, 2.0),
            (r#"outrigger_request_duration_seconds_bucket{le="0.001048576"}"#, 0.0),
            (r#"outrigger_request_duration_seconds_bucket{le="0.002097152"}"#, 1.0),
            (r#"outrigger_request_duration_seconds_bucket{le="68.719476736"}"#, 1.0),
            (r#"outrigger_request_duration_seconds_bucket{le="+Inf"}"#, 2.0),
            ("outrigger_request_duration_seconds_count", 2.0),
            ("outrigger_request_duration_seconds_sum", 100.0015),
            (r#"outrigger_upstream_pool_connections{state="active",shard="1"}"#, 3.0),
            (r#"outrigger_upstream_pool_connections{state="idle",shard="1"}"#, 2.0),
            (r#"outrigger_plan_generation{shard="0"}"#, 7.0),
            ("outrigger_plan_generation_newest", 8.0),
            (r#"outrigger_breakers{cluster="app",state="closed"}"#, 2.0),
            (r#"outrigger_breakers{cluster="app",state="half-open"}"#, 1.0),
            (r#"outrigger_breakers{cluster="empty",state="closed"}"#, 0.0),
            (r#"outrigger_breaker_trips_total{cluster="app"}"#, 3.0),
            (r#"outrigger_cluster_panic{cluster="app"}"#, 1.0),
            (r#"outrigger_cluster_panic{cluster="empty"}"#, 0.0),
            (r#"outrigger_cluster_panics_total{cluster="app"}"#, 2.0),
            (r#"outrigger_endpoint_up{cluster="app",endpoint="10.0.0.1:80"}"#, 1.0),
            (r#"outrigger_endpoint_up{cluster="app",endpoint="10.0.0.1:81"}"#, 0.0),
            (
                concat!(
                    r#"outrigger_health_checks_total{cluster="app","#,
                    r#"endpoint="10.0.0.1:81",result="failed"}"#
                ),
                3.0,
            ),
            (r#"outrigger_limit{cluster="app",kind="requests"}"#, 7.0),
            (r#"outrigger_limit{cluster="app",kind="pending"}"#, 1024.0),
            ("outrigger_ready", 1.0),
            ("outrigger_draining", 0.0),
            (
                concat!(
                    r#"outrigger_driver_info{shard="1",driver="io_uring","#,
                    r#"flags="SINGLE_ISSUER|DEFER_TASKRUN"}"#
                ),
                1.0,
            ),
        ];
        for (key, value) in told {
            assert_eq!(series.get(key), Some(&value), "{key}");
        }
        for key in ["process_cpu_seconds_total", "process_resident_memory_bytes"] {
            assert!(series[key] > 0.0, "{key}");
        }
    }

    #[test]
    fn a_shard_that_has_not_said_its_driver_has_none() {
        let series = parse(&page_of(&[ShardCounters::default()], ""));
        assert!(!series.keys().any(|key| key.starts_with("outrigger_driver_info")));
    }

    /// Every state of every breaker has a series, and one of them is 1.
    #[test]
    fn a_breaker_is_in_one_state() {
        let series = parse(&page_of(&[ShardCounters::default()], ""));
        let states = |endpoint: &str, kind: &str| -> Vec<f64> {
            let state = |state: BreakerState| {
                let key = format!(
                    r#"outrigger_breaker_state{{cluster="app",endpoint="{endpoint}",kind="{kind}",state="{}"}}"#,
                    state.name()
                );
                series[&key]
            };
            BreakerState::ALL.map(state).to_vec()
        };
        assert_eq!(states("10.0.0.1:80", "endpoint"), [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(states("10.0.0.2:80", "endpoint"), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(states("10.0.0.1:80", "route"), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn too_many_breakers_are_only_counted() {
        let limits = ClusterLimits::default();
        for (count, is_told) in [(BREAKERS_TOLD_MAX, true), (BREAKERS_TOLD_MAX + 1, false)] {
            let names: Vec<_> = (0..count).map(|port| format!("10.0.0.1:{port}")).collect();
            let breakers = names.iter().map(|endpoint| BreakerView {
                endpoint,
                kind: "endpoint",
                state: BreakerState::Open,
            });
            let breakers = breakers.collect();
            let cluster = ClusterView {
                name: "app",
                limits: &limits,
                breakers,
                trips: 0,
                health: Vec::new(),
                in_panic: false,
                panics: 0,
                admission: &[],
                concurrency: None,
                endpoints: 0,
                keeps_endpoints: true,
            };
            let page = render(&[], &[cluster], &ControlView::default(), &ProcessStats::read());
            let series = parse(&page);
            assert_eq!(series[r#"outrigger_breakers{cluster="app",state="open"}"#], count as f64);
            assert_eq!(page.contains("outrigger_breaker_state"), is_told, "{count}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let page = page_of(&[ShardCounters::default()], "a\"b\\c\nd");
        assert!(page.contains(r#"driver="a\"b\\c\nd""#));
        parse(&page);
    }
}
