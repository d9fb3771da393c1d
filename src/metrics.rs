//! What a shard counts. Each shard writes its own [`ShardCounters`]; the control thread reads and
//! sums them when somebody asks.
//!
//! One writer per counter, so adding is a plain load and a plain store: never a read-modify-write,
//! never a line shared with another shard's counters. Called from every step of a request; never
//! allocates, never blocks. The text that Prometheus reads is made in [`exposition`].

pub mod breakers;

pub mod exposition;

pub mod fallbacks;

pub mod process;

pub mod rates;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::reason::Reason;
use crate::reconcile::{AGE_BUCKETS, Ages};

/// Counts up, from one thread only; any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Only the owning thread may call this: two writers would lose counts.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Takes over a count that is kept elsewhere; again by the owning thread only.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down, from one thread only; any thread may read.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Only the owning thread may call this, as with the other writers.
    #[inline]
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds to the value.
    #[inline]
    pub fn add(&self, n: i64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Subtracts from the value.
    #[inline]
    pub fn sub(&self, n: i64) {
        self.set(self.get().wrapping_sub(n));
    }

    /// The value now.
    #[inline]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The smallest duration that is told from less: 2^10 ns, about 1 µs.
const OCTAVE_FIRST: u32 = 10;

/// Durations from 2^36 ns (69 s) on share the last bucket.
const OCTAVE_END: u32 = 36;

/// Buckets to an octave, as a power of two: eight, so a value is known to within 12.5 %.
const STEPS_LOG2: u32 = 3;

/// One for all below the first octave, one for all from the last on.
const BUCKETS: usize = (((OCTAVE_END - OCTAVE_FIRST) << STEPS_LOG2) + 2) as usize;

/// Durations in log-linear buckets: eight to every doubling, from 1 µs to 69 s.
///
/// ```text
/// bucket 0        1 .. 8            9 .. 16          ...  208            209
/// ns     [0,2^10) [2^10,2^11) by 8  [2^11,2^12) by 8 ...  .. [.., 2^36)  [2^36, ...)
/// ```
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    /// Of all durations, in nanoseconds. Wraps after 584 years of waiting.
    sum_ns: AtomicU64,
}

const _: () = assert!(size_of::<Histogram>() <= 2048, "a histogram is meant to stay small");

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_ns: AtomicU64::new(0) }
    }
}

/// The bucket that a duration falls in: the exponent, and the three bits after the leading one.
#[inline]
fn bucket_of(nanos: u64) -> usize {
    // A value with bit 10 set cannot be below the first octave, and the clamp from above sends
    // what is too long to the last bucket.
    let clamped = nanos.min(1 << OCTAVE_END);
    let octave = (clamped | 1).ilog2();
    if octave < OCTAVE_FIRST {
        return 0;
    }
    let mantissa = (clamped >> (octave - STEPS_LOG2)) as u32 & ((1 << STEPS_LOG2) - 1);
    (((octave - OCTAVE_FIRST) << STEPS_LOG2) + mantissa + 1) as usize
}

/// Where a bucket ends, exclusively, in nanoseconds; the last has no end.
fn bucket_end_ns(bucket: usize) -> Option<u64> {
    if bucket + 1 >= BUCKETS {
        return None;
    }
    let (octave, step) = (bucket as u32 >> STEPS_LOG2, bucket as u64 & ((1 << STEPS_LOG2) - 1));
    let start = 1u64 << (octave + OCTAVE_FIRST);
    Some(start + step * (start >> STEPS_LOG2))
}

impl Histogram {
    /// Only the owning thread may call this.
    #[inline]
    pub fn record(&self, nanos: u64) {
        let bucket = &self.buckets[bucket_of(nanos)];
        bucket.store(bucket.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        let sum = self.sum_ns.load(Ordering::Relaxed).wrapping_add(nanos);
        self.sum_ns.store(sum, Ordering::Relaxed);
    }

    /// A copy, to add up and to ask.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.merge(self);
        snapshot
    }
}

/// What one or several histograms held when they were read.
#[derive(Debug, Clone)]
pub struct Snapshot {
    buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot { buckets: [0; BUCKETS], sum_ns: 0 }
    }
}

impl Snapshot {
    /// Adds what another histogram holds now.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs.load(Ordering::Relaxed);
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns.load(Ordering::Relaxed));
    }

    /// How many durations there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All durations together, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// How many were shorter than each power of two from 2^10 ns (1 µs) to 2^36 ns (69 s): the
    /// bound in nanoseconds and the count. The bounds are edges of buckets, so nothing is
    /// estimated. What lasted longer than the last bound is in [`Snapshot::count`] only.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut below = 0;
        let mut from = 0;
        (OCTAVE_FIRST..=OCTAVE_END).map(move |octave| {
            let to = ((octave - OCTAVE_FIRST) << STEPS_LOG2) as usize + 1;
            below += self.buckets[from..to].iter().sum::<u64>();
            from = to;
            (1 << octave, below)
        })
    }

    /// The duration in nanoseconds that the share `q` (0 to 1) of all did not exceed: the end of
    /// its bucket, so never too low by more than a rank and at most 12.5 % too high. `None` where
    /// nothing was recorded.
    pub fn quantile_ns(&self, q: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        let mut below = 0;
        let bucket = self.buckets.iter().position(|n| {
            below += n;
            below >= rank
        })?;
        Some(bucket_end_ns(bucket).unwrap_or(1 << OCTAVE_END))
    }
}

/// The classes of status that requests are counted by; the label `code_class`.
pub const CODE_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// The place in [`ShardCounters::requests`] of a status.
#[inline]
pub fn code_class(status: u16) -> usize {
    match status {
        100..=599 => usize::from(status / 100) - 1,
        _ => 5,
    }
}

/// Everything one shard counts. It alone writes; aligned so that two shards' never meet in one
/// line (or in the pair of lines that x86 prefetches together).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardCounters {
    /// Requests answered, by class of the final status; see [`code_class`].
    pub requests: [Counter; CODE_CLASSES.len()],
    /// Exchanges being served now, tunnels among them.
    pub requests_in_flight: Gauge,
    /// From the first byte of the request's head to the last of the answer.
    pub request_duration: Histogram,
    /// Answers of our own and exchanges cut short, by [`Reason`].
    pub refusals: Refusals,
    /// Client connections taken from the accept queue and served.
    pub connections_accepted: Counter,
    /// Client connections open now.
    pub connections_open: Gauge,
    /// Client connections closed at once because of a limit.
    pub connections_shed: Counter,
    /// `accept(2)` that failed, for want of descriptors for instance.
    pub accept_failures: Counter,
    /// Bytes read from clients, heads included.
    pub bytes_received: Counter,
    /// Bytes written to clients, heads included.
    pub bytes_sent: Counter,
    /// Upgraded connections that tunnel now.
    pub tunnels_open: Gauge,
    /// Connections made to endpoints.
    pub upstream_connects: Counter,
    /// Requests sent on a connection that was already there.
    pub upstream_reuses: Counter,
    /// Connections that endpoints refused, or did not accept in time.
    pub upstream_connect_failures: Counter,
    /// Connections to endpoints open now, idle ones among them.
    pub upstream_open: Gauge,
    /// Connections to endpoints that wait in the pool.
    pub upstream_idle: Gauge,
    /// Retries: requests that failed, sent once more.
    pub retries: Counter,
    /// Requests sent once more because their kept connection had ended: free, and once.
    pub resends: Counter,
    /// Retries by which the client got an answer that was worth no further try.
    pub retries_succeeded: Counter,
    /// Requests sent to a second endpoint because the first was slow.
    pub hedges: Counter,
    /// Those among them whose answer was taken, or that went on after the first had failed.
    pub hedges_won: Counter,
    /// Hedges that were due, but had no leave, or no endpoint to go to.
    pub hedges_refused: Counter,
    /// Retries that were wanted, but as many were in flight as may.
    pub retries_refused_limit: Counter,
    /// Retries that were wanted, but that nobody had paid for.
    pub retries_refused_budget: Counter,
    /// The generation of the plan that new requests are served by.
    pub plan_generation: Gauge,
    /// Access log lines that found no room.
    pub access_log_dropped: Counter,
    /// Buffers lent to connections now.
    pub buffers_in_use: Gauge,
    /// Requests that wait for a place or a permit now.
    pub pending: Gauge,
    /// Messages to other shards, about limits and breakers.
    pub messages_sent: Counter,
    /// Those among them that woke their receiver, had it slept.
    pub messages_waking: Counter,
    /// Those that found a full queue; they are sent again.
    pub messages_dropped: Counter,
    /// How old decisions were when this shard applied them.
    pub view_ages: ViewAges,
    /// Those among them that were older than the bound allows.
    pub view_age_violations: Counter,
    /// How late the loop was lately, at worst, in nanoseconds.
    pub loop_lag_ns: Gauge,
    /// How long requests waited in the loop; only where that is limited.
    pub queue_delay: Histogram,
    /// How often they began to wait for too long, there or for a place.
    pub overloads: Counter,
    /// Transitions of the breakers that this shard decides.
    pub breaker_transitions: Counter,
    /// Trips that it refused, because too many endpoints were out.
    pub breaker_trips_refused: Counter,
    /// Requests sent to endpoints in this proxy's zone, further tries included.
    pub zone_own: Counter,
    /// The same in other zones, or none that is known, where this proxy has one.
    pub zone_other: Counter,
    /// Requests that went to another cluster, since no endpoint of their own could have them.
    pub cluster_fallbacks: Counter,
    /// Endpoints in the shard's slices of clusters with an aperture.
    pub aperture_endpoints: Gauge,
    /// Client connections accepted here and handed to another shard.
    pub connections_handed_over: Counter,
    /// Client connections that others accepted, and that came here.
    pub connections_taken_over: Counter,
    /// What became of requests under each rate limit.
    pub rates: rates::RateRecords,
    /// What fallbacks have done.
    pub fallbacks: fallbacks::FallbackRecords,
}

/// A counter for each [`Reason`].
#[derive(Debug)]
pub struct Refusals([Counter; Reason::ALL.len()]);

impl Refusals {
    /// Of one reason.
    pub fn of(&self, reason: Reason) -> &Counter {
        &self.0[reason as usize]
    }
}

impl Default for Refusals {
    fn default() -> Refusals {
        Refusals(std::array::from_fn(|_| Counter::default()))
    }
}

/// A copy of [`Ages`] that others may read.
#[derive(Debug, Default)]
pub struct ViewAges {
    counts: [Counter; AGE_BUCKETS],
    sum_ns: Counter,
}

impl ViewAges {
    /// Takes over what is known now.
    pub fn publish(&self, ages: &Ages) {
        for (mine, count) in self.counts.iter().zip(&ages.counts) {
            mine.set(*count);
        }
        self.sum_ns.set(ages.sum.as_nanos() as u64);
    }

    /// How many there were in each bucket; see [`Ages::bound_us`].
    pub fn counts(&self) -> [u64; AGE_BUCKETS] {
        std::array::from_fn(|bucket| self.counts[bucket].get())
    }

    /// All of them together, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns.get() as f64 / 1e9
    }
}

impl ShardCounters {
    /// A refusal, or an exchange cut short.
    #[inline]
    pub fn refuse(&self, reason: Reason) {
        self.refusals.0[reason as usize].add(1);
    }

    /// A request that got an answer, with its duration.
    #[inline]
    pub fn answered(&self, status: u16, nanos: u64) {
        self.requests[code_class(status)].add(1);
        self.request_duration.record(nanos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The slow, obvious way: walk the buckets until one ends above.
    fn bucket_by_search(nanos: u64) -> usize {
        (0..BUCKETS).find(|b| bucket_end_ns(*b).is_none_or(|end| nanos < end)).unwrap()
    }

    #[test]
    fn buckets_meet_without_gaps() {
        assert_eq!(bucket_end_ns(0), Some(1024));
        assert_eq!(bucket_end_ns(1), Some(1152));
        assert_eq!(bucket_end_ns(BUCKETS - 2), Some(1 << 36));
        assert_eq!(bucket_end_ns(BUCKETS - 1), None);
        for bucket in 0..BUCKETS - 1 {
            let end = bucket_end_ns(bucket).unwrap();
            assert_eq!(bucket_of(end - 1), bucket, "below {end}");
            assert_eq!(bucket_of(end), bucket + 1, "at {end}");
        }
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        #[test]
        fn bucket_of_agrees_with_the_search(nanos in any::<u64>(), shift in 0u32..64) {
            prop_assert_eq!(bucket_of(nanos >> shift), bucket_by_search(nanos >> shift));
        }

        #[test]
        fn cumulative_counts_what_is_below_each_bound(
            values in prop::collection::vec((any::<u64>(), 20u32..64), 0..200)
        ) {
            let values: Vec<u64> = values.into_iter().map(|(v, shift)| v >> shift).collect();
            let histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            let snapshot = histogram.snapshot();
            prop_assert_eq!(snapshot.count(), values.len() as u64);
            for (bound, below) in snapshot.cumulative() {
                prop_assert_eq!(below, values.iter().filter(|v| **v < bound).count() as u64);
            }
        }

        #[test]
        fn quantiles_are_close_from_above(
            mut values in prop::collection::vec(1024u64..(1 << 36), 1..200), q in 0.0f64..=1.0
        ) {
            let histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            let exact = values[rank - 1];
            let told = histogram.snapshot().quantile_ns(q).unwrap();
            prop_assert!(told > exact && told as f64 <= exact as f64 * 1.125 + 1.0, "{told} {exact}");
        }
    }

    #[test]
    fn snapshots_add_up() {
        let (a, b) = (Histogram::default(), Histogram::default());
        a.record(2_000_000);
        b.record(3_000_000);
        b.record(100_000_000_000);
        let mut both = a.snapshot();
        both.merge(&b);
        assert_eq!(both.count(), 3);
        assert_eq!(both.sum_seconds(), 100.005);
        assert_eq!(both.cumulative().last(), Some((1 << 36, 2)));
        assert_eq!(both.quantile_ns(1.0), Some(1 << 36));
        assert_eq!(Snapshot::default().quantile_ns(0.5), None);
    }

    #[test]
    fn statuses_fall_in_their_class() {
        for (status, class) in
            [(101, "1xx"), (200, "2xx"), (304, "3xx"), (499, "4xx"), (599, "5xx"), (0, "other")]
        {
            assert_eq!(CODE_CLASSES[code_class(status)], class);
        }
        assert_eq!(CODE_CLASSES[code_class(600)], "other");
    }

    #[test]
    fn gauges_go_both_ways() {
        let gauge = Gauge::default();
        gauge.add(5);
        gauge.sub(7);
        assert_eq!(gauge.get(), -2);
        gauge.set(3);
        assert_eq!(gauge.get(), 3);
    }

    #[test]
    fn shards_share_no_line() {
        assert_eq!(align_of::<ShardCounters>(), 128);
        assert_eq!(size_of::<ShardCounters>() % 128, 0);
    }
}
