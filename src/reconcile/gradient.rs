//! Adaptive concurrency: a cluster's limit on requests that follows how long answers take, as
//! Envoy's gradient controller has it. Decided at the cluster's home, lent like any limit; shards
//! report what they have measured. Pure.
//!
//! ```text
//! Lowering ---- all but concurrency_min are back ----> Measuring ---- enough samples ---.
//!    ^                                                                                   |
//!    '---- min_rtt_every is over, or the limit stays at its least ---- Following <-------'
//! ```
//!
//! Measuring finds the shortest round-trip time, at the least concurrency. Following compares what
//! the samples of each `update_every` say with it:
//!
//! ```text
//! gradient = (min_rtt + buffer) / sample_rtt, 0.5 to 2     limit = limit * gradient + sqrt(that)
//! ```
//!
//! A report is one percentile of one shard's samples since its last one, and how many they were; the
//! home takes the mean of the reports, by these numbers. One that is lost is a few samples less. What
//! was asked before the home began to measure is of another epoch, and does not count.

use std::time::Duration;

use super::ShardId;
use super::mutation::{self, Mutation};
use crate::rng::Rng;
use crate::time::Nanos;

/// The limit may stay at its least for so many updates; then the shortest time is measured anew,
/// since it may have become longer. As Envoy's.
const AT_LEAST_MAX: u32 = 5;

/// So many updates are waited for requests that still hold what was lent, before it is measured
/// without them: a download of an hour must not keep a cluster at its least.
const LOWERING_UPDATES_MAX: u32 = 10;

/// How often within an update's time it is looked whether they are back.
const LOOKS: u32 = 10;

const GRADIENT_MILLI_MIN: u64 = 500;
const GRADIENT_MILLI_MAX: u64 = 2_000;

/// How a cluster's limit follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Adaptive {
    /// Which percentile of the samples is compared, 1 to 100. Default 50, as all of these Envoy's.
    pub percentile: u32,
    /// From one update to the next. Default 100 ms.
    pub update_every: Duration,
    /// From one measurement of the shortest time to the next. Default 60 s.
    pub min_rtt_every: Duration,
    /// So much of it, in percent, may be added by chance. Default 15.
    pub jitter_percent: u32,
    /// Samples of a measurement. Default 50.
    pub min_rtt_requests: u32,
    /// What is added to the shortest time, in percent. Default 25.
    pub buffer_percent: u32,
    /// The least limit, also during a measurement. Default 3.
    pub concurrency_min: u64,
}

impl Default for Adaptive {
    fn default() -> Adaptive {
        Adaptive {
            percentile: 50,
            update_every: Duration::from_millis(100),
            min_rtt_every: Duration::from_secs(60),
            jitter_percent: 15,
            min_rtt_requests: 50,
            buffer_percent: 25,
            concurrency_min: 3,
        }
    }
}

/// What a shard has measured since its last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Measured {
    /// Of requests that were asked in this epoch.
    pub epoch: u32,
    /// Counts the shard's reports; the newest wins.
    pub number: u32,
    /// Samples.
    pub count: u32,
    /// The percentile of them, in nanoseconds.
    pub rtt_ns: u64,
    /// The most requests that were in flight.
    pub peak: u64,
}

/// Steps to a doubling: a sample is known to within 6 %.
const STEPS_LOG2: u32 = 4;

/// Less than 2^10 ns, a microsecond, is not told apart; nor is what takes longer than a minute.
const OCTAVE_FIRST: u32 = 10;
const OCTAVE_END: u32 = 36;
const BUCKETS: usize = ((OCTAVE_END - OCTAVE_FIRST) << STEPS_LOG2) as usize;

/// Where a shard is with its samples of one cluster. A reload may switch them off and on again, and
/// both sides go on from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Progress {
    epoch: u32,
    /// Of the last report.
    number: u32,
}

impl Progress {
    /// The home counts in this epoch now. `false`: it is known.
    pub fn begin(&mut self, epoch: u32) -> bool {
        let is_new = epoch > self.epoch;
        self.epoch = self.epoch.max(epoch);
        is_new
    }

    /// The epoch in which the shard counts: what was admitted before it is not of it.
    #[inline(always)]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
}

/// One shard's samples of one cluster, until they are reported.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Samples {
    settings: Adaptive,
    count: u32,
    peak: u64,
    buckets: [u32; BUCKETS],
    due: Nanos,
}

impl Samples {
    pub fn new(settings: Adaptive) -> Samples {
        Samples { settings, count: 0, peak: 0, buckets: [0; BUCKETS], due: Nanos(0) }
    }

    pub fn configure(&mut self, settings: Adaptive) {
        self.settings = settings;
    }

    /// A request that was admitted in this epoch was answered after `latency`, while so many were
    /// in flight.
    pub fn record(&mut self, of: &Progress, epoch: u32, latency: Duration, in_flight: u64) {
        let is_older = epoch != of.epoch;
        if latency.is_zero() || (is_older && !mutation::is_on(Mutation::OldSamplesCount)) {
            return;
        }
        self.buckets[bucket_of(latency.as_nanos() as u64)] += 1;
        self.count += 1;
        self.peak = self.peak.max(in_flight);
    }

    /// When a report is due.
    pub fn due(&self) -> Nanos {
        if self.count > 0 { self.due } else { Nanos::NEVER }
    }

    /// The report, if it is due.
    pub fn report(&mut self, of: &mut Progress, now: Nanos) -> Option<Measured> {
        if now < self.due() {
            return None;
        }
        of.number += 1;
        self.due = now + self.settings.update_every;
        let Progress { epoch, number, .. } = *of;
        let Samples { count, peak, .. } = *self;
        let measured = Measured { epoch, number, count, rtt_ns: self.percentile_ns(), peak };
        self.forget();
        Some(measured)
    }

    /// What was measured so far does not count.
    pub fn forget(&mut self) {
        self.count = 0;
        self.peak = 0;
        self.buckets.fill(0);
    }

    fn percentile_ns(&self) -> u64 {
        let percent = u64::from(self.settings.percentile);
        let rank = (u64::from(self.count) * percent).div_ceil(100).max(1);
        let mut below = 0;
        let place = self.buckets.iter().position(|count| {
            below += u64::from(*count);
            below >= rank
        });
        place.map_or(0, bucket_middle_ns)
    }
}

fn bucket_of(nanos: u64) -> usize {
    let nanos = nanos.clamp(1 << OCTAVE_FIRST, (1 << OCTAVE_END) - 1);
    let octave = nanos.ilog2();
    let step = (nanos >> (octave - STEPS_LOG2)) as usize & ((1 << STEPS_LOG2) - 1);
    (((octave - OCTAVE_FIRST) << STEPS_LOG2) as usize) + step
}

fn bucket_middle_ns(bucket: usize) -> u64 {
    let octave = OCTAVE_FIRST + (bucket as u32 >> STEPS_LOG2);
    let step = bucket as u64 & ((1 << STEPS_LOG2) - 1);
    let width = 1 << (octave - STEPS_LOG2);
    (1 << octave) + step * width + width / 2
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Lowering { until: Nanos },
    Measuring,
    Following,
}

/// What the home has to do after it was told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Change {
    /// The limit is another one.
    pub limit: bool,
    /// A new epoch began: all shards have to know.
    pub epoch: bool,
}

/// The home's side: decides the limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Gradient {
    settings: Adaptive,
    /// The limit never exceeds that, whatever is measured.
    max: u64,
    limit: u64,
    /// The limit after the measurement that goes on.
    resume: u64,
    phase: Phase,
    epoch: u32,
    /// The newest report of each shard.
    numbers: Vec<u32>,
    /// Samples since the last update, and the sum of what they took.
    count: u64,
    sum_ns: u128,
    /// The most in flight: of each shard, since the last update.
    peaks: Vec<u64>,
    update_due: Nanos,
    measure_due: Nanos,
    min_rtt_ns: u64,
    gradient_milli: u64,
    /// Updates in a row that ended at the least limit.
    at_least: u32,
    /// Samples that ever counted in this epoch.
    counted: u64,
}

impl Gradient {
    /// Of a cluster that begins with it: nothing was lent beyond the least limit.
    pub(super) fn new(settings: Adaptive, max: u64, shards: u16) -> Gradient {
        let limit = settings.concurrency_min.min(max);
        Gradient {
            settings,
            max: max.min(u32::MAX.into()),
            limit,
            resume: limit,
            phase: Phase::Measuring,
            epoch: 0,
            numbers: vec![0; shards.into()],
            count: 0,
            sum_ns: 0,
            peaks: vec![0; shards.into()],
            update_due: Nanos(0),
            measure_due: Nanos(0),
            min_rtt_ns: 0,
            gradient_milli: 1_000,
            at_least: 0,
            counted: 0,
        }
    }

    /// Of one that got it by a reload. The epoch goes on.
    pub(super) fn taking_over(
        settings: Adaptive,
        max: u64,
        shards: u16,
        epoch: u32,
        now: Nanos,
    ) -> Gradient {
        let until = now + settings.update_every * LOWERING_UPDATES_MAX;
        Gradient { phase: Phase::Lowering { until }, epoch, ..Gradient::new(settings, max, shards) }
    }

    /// Other settings, from a reload.
    pub(super) fn configure(&mut self, settings: Adaptive, max: u64, now: Nanos) {
        if settings.min_rtt_every < self.settings.min_rtt_every {
            self.measure_due = self.measure_due.min(now + settings.min_rtt_every);
        }
        self.settings = settings;
        self.max = max.min(u32::MAX.into());
        self.resume = self.clamped(self.resume);
        self.limit = match self.phase {
            Phase::Following => self.clamped(self.limit),
            Phase::Lowering { .. } | Phase::Measuring => self.least(),
        };
    }

    /// A shard reports. Samples of other epochs, and reports that were overtaken, do not count.
    pub(super) fn report(
        &mut self,
        from: ShardId,
        measured: &Measured,
        now: Nanos,
        rng: &mut Rng,
    ) -> Change {
        let shard = usize::from(from.0);
        let is_old = measured.number <= self.numbers[shard];
        if is_old && !mutation::is_on(Mutation::SamplesCountedTwice) {
            return Change::default();
        }
        self.numbers[shard] = measured.number;
        let is_lowering = matches!(self.phase, Phase::Lowering { .. });
        if measured.epoch != self.epoch || is_lowering {
            return Change::default();
        }
        self.counted += u64::from(measured.count);
        if self.count == 0 {
            self.update_due = self.update_due.max(now);
        }
        self.count += u64::from(measured.count);
        self.sum_ns += u128::from(measured.rtt_ns) * u128::from(measured.count);
        self.peaks[shard] = self.peaks[shard].max(measured.peak);
        if self.phase == Phase::Measuring && self.count >= self.settings.min_rtt_requests.into() {
            return self.follow(now, rng);
        }
        Change::default()
    }

    /// When [`Gradient::tick`] has something to do.
    pub(super) fn due(&self) -> Nanos {
        match self.phase {
            Phase::Lowering { .. } => self.update_due,
            Phase::Following if self.count > 0 => self.update_due,
            Phase::Following | Phase::Measuring => Nanos::NEVER,
        }
    }

    /// What time brings. `lent`: to all shards, now.
    pub(super) fn tick(&mut self, lent: u64, now: Nanos) -> Change {
        if now < self.due() {
            return Change::default();
        }
        match self.phase {
            Phase::Measuring => Change::default(),
            Phase::Lowering { until } if lent > self.limit && now < until => {
                self.update_due = (now + self.settings.update_every / LOOKS).min(until);
                Change::default()
            }
            Phase::Lowering { .. } => {
                self.phase = Phase::Measuring;
                self.epoch += 1;
                self.counted = 0;
                self.forget();
                Change { limit: false, epoch: true }
            }
            Phase::Following => self.update(now),
        }
    }

    /// The shortest time is known.
    fn follow(&mut self, now: Nanos, rng: &mut Rng) -> Change {
        self.min_rtt_ns = self.mean_ns();
        self.forget();
        self.phase = Phase::Following;
        self.at_least = 0;
        self.gradient_milli = 1_000;
        self.update_due = now + self.settings.update_every;
        let every = self.settings.min_rtt_every;
        let jitter = every.as_nanos() as u64 / 100 * u64::from(self.settings.jitter_percent);
        self.measure_due = now + every + Duration::from_nanos(rng.below(jitter + 1));
        self.limit = self.clamped(self.resume);
        Change { limit: true, epoch: false }
    }

    fn update(&mut self, now: Nanos) -> Change {
        let sample_ns = self.mean_ns().max(1);
        let peak: u64 = self.peaks.iter().sum();
        self.forget();
        self.update_due = now + self.settings.update_every;
        let good =
            self.min_rtt_ns + self.min_rtt_ns / 100 * u64::from(self.settings.buffer_percent);
        let gradient = (u128::from(good) * 1_000 / u128::from(sample_ns)) as u64;
        self.gradient_milli = gradient.clamp(GRADIENT_MILLI_MIN, GRADIENT_MILLI_MAX);
        // In thousandths: where few are let in, a fraction of a place decides.
        let base = self.limit * self.gradient_milli;
        let mut next = self.clamped((base + (base * 1_000).isqrt()) / 1_000);
        self.at_least = if next == self.least() { self.at_least + 1 } else { 0 };
        if next > self.limit && peak * 2 < self.limit {
            // Not half of it is used: nothing tells that more would be good.
            next = self.limit;
        }
        if now >= self.measure_due || self.at_least >= AT_LEAST_MAX {
            self.resume = next;
            let until = now + self.settings.update_every * LOWERING_UPDATES_MAX;
            self.phase = Phase::Lowering { until };
            self.update_due = now + self.settings.update_every / LOOKS;
            next = self.least();
        }
        self.limit = next;
        Change { limit: true, epoch: false }
    }

    fn least(&self) -> u64 {
        self.settings.concurrency_min.min(self.max)
    }

    fn clamped(&self, limit: u64) -> u64 {
        limit.clamp(self.least(), self.max)
    }

    fn mean_ns(&self) -> u64 {
        (self.sum_ns / u128::from(self.count.max(1))) as u64
    }

    fn forget(&mut self) {
        self.count = 0;
        self.sum_ns = 0;
        self.peaks.fill(0);
    }

    /// The limit that it has decided on.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The shortest round-trip time; zero before the first was measured.
    pub fn min_rtt(&self) -> Duration {
        Duration::from_nanos(self.min_rtt_ns)
    }

    /// Thousandths by which the last update has changed the limit.
    pub fn gradient_milli(&self) -> u64 {
        self.gradient_milli
    }

    /// Whether the shortest time is being measured, or about to be.
    pub fn is_measuring(&self) -> bool {
        self.phase != Phase::Following
    }

    /// The epoch that counts, and how many samples have counted in it.
    pub fn counted(&self) -> (u32, u64) {
        (self.epoch, self.counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use proptest::prelude::*;

    const ONE: ShardId = ShardId(0);
    const OTHER: ShardId = ShardId(1);
    const MAX: u64 = 1_000;

    fn ms(millis: u64) -> Nanos {
        Nanos(millis * 1_000_000)
    }

    fn measured(epoch: u32, number: u32, count: u32, rtt_ms: u64, peak: u64) -> Measured {
        Measured { epoch, number, count, rtt_ns: rtt_ms * 1_000_000, peak }
    }

    /// Its shortest time is 10 ms.
    fn following(shards: u16) -> Gradient {
        let mut gradient = Gradient::new(Adaptive::default(), MAX, shards);
        let mut rng = rng::Rng::new(7);
        assert_eq!((gradient.limit(), gradient.is_measuring()), (3, true));
        let few = gradient.report(ONE, &measured(0, 1, 49, 10, 3), ms(1), &mut rng);
        assert_eq!(few, Change::default());
        let enough = gradient.report(ONE, &measured(0, 2, 1, 10, 3), ms(2), &mut rng);
        assert_eq!(enough, Change { limit: true, epoch: false });
        assert_eq!(gradient.min_rtt(), Duration::from_millis(10));
        gradient
    }

    /// Updates, each after a report that answers took so long while the whole limit was used.
    fn update(gradient: &mut Gradient, rtt_ms: u64, times: u32) {
        let mut rng = rng::Rng::new(7);
        for _ in 0..times {
            let now = gradient.update_due;
            let number = gradient.numbers[0] + 1;
            let (epoch, peak) = (gradient.epoch, gradient.limit());
            gradient.report(ONE, &measured(epoch, number, 10, rtt_ms, peak), now, &mut rng);
            gradient.tick(0, now);
        }
    }

    #[test]
    fn quick_answers_raise_the_limit_and_slow_ones_lower_it() {
        let mut gradient = following(1);
        update(&mut gradient, 10, 1);
        // 3 * 1.25, and the root of that.
        assert_eq!((gradient.gradient_milli(), gradient.limit()), (1_250, 5));
        update(&mut gradient, 10, 40);
        assert_eq!(gradient.limit(), MAX);
        update(&mut gradient, 12, 1);
        assert_eq!((gradient.gradient_milli(), gradient.limit()), (1_041, MAX));
        update(&mut gradient, 100, 1);
        assert_eq!((gradient.gradient_milli(), gradient.limit()), (500, 522));
        update(&mut gradient, 100, 20);
        // Where half of it and its root are as much again.
        assert_eq!(gradient.limit(), 3);
    }

    /// An origin with 8 places, of 10 ms each, and a queue: what is more than fits waits.
    #[test]
    fn the_limit_settles_where_the_origin_is_busy_and_its_queue_short() {
        let mut gradient = following(1);
        let mut settled = Vec::new();
        for round in 0..200 {
            let rtt_ms = 10 * gradient.limit().max(8) / 8;
            update(&mut gradient, rtt_ms, 1);
            if round >= 100 && !gradient.is_measuring() {
                settled.push(gradient.limit());
            }
        }
        assert!(settled.iter().all(|limit| (8..=24).contains(limit)), "{settled:?}");
    }

    #[test]
    fn what_is_not_used_does_not_grow() {
        let mut gradient = following(1);
        update(&mut gradient, 10, 10);
        let limit = gradient.limit();
        let now = gradient.update_due;
        let report = measured(0, gradient.numbers[0] + 1, 10, 10, limit / 2 - 1);
        gradient.report(ONE, &report, now, &mut rng::Rng::new(7));
        gradient.tick(0, now);
        assert_eq!(gradient.limit(), limit);
        assert_eq!(gradient.due(), Nanos::NEVER, "nothing to look at without samples");
    }

    #[test]
    fn the_mean_of_shards_is_weighed_by_their_samples() {
        let mut gradient = following(2);
        let (now, mut rng) = (gradient.update_due, rng::Rng::new(7));
        gradient.report(ONE, &measured(0, 3, 30, 20, 2), now, &mut rng);
        gradient.report(OTHER, &measured(0, 1, 10, 60, 1), now, &mut rng);
        // Repeated, or overtaken by a newer one: no sample counts twice.
        gradient.report(OTHER, &measured(0, 1, 10, 60, 1), now, &mut rng);
        gradient.report(ONE, &measured(0, 2, 1, 10, 3), now, &mut rng);
        assert_eq!((gradient.mean_ns(), gradient.count), (30_000_000, 40));
    }

    #[test]
    fn it_is_measured_again_with_few_requests_and_new_samples() {
        let mut gradient = following(1);
        update(&mut gradient, 10, 20);
        let before = gradient.limit();
        let mut rng = rng::Rng::new(7);
        let now = gradient.measure_due;
        assert!((60_000..=69_100).contains(&(now.0 / 1_000_000)), "{now:?}");
        let number = gradient.numbers[0] + 1;
        gradient.report(ONE, &measured(0, number, 10, 10, before), now, &mut rng);
        assert!(gradient.tick(before, now).limit);
        assert_eq!((gradient.limit(), gradient.is_measuring()), (3, true));
        // Those that are out hold what they were lent; what they say does not count.
        let late = measured(0, number + 1, 100, 90, before);
        assert_eq!(gradient.report(ONE, &late, gradient.due(), &mut rng), Change::default());
        assert_eq!(gradient.tick(4, gradient.due()), Change::default());
        let begun = gradient.tick(3, gradient.due());
        assert_eq!(begun, Change { limit: false, epoch: true });
        let (epoch, counted) = gradient.counted();
        assert_eq!((epoch, counted, gradient.due()), (1, 0, Nanos::NEVER));
        gradient.report(ONE, &measured(0, number + 2, 100, 90, 9), now, &mut rng);
        assert_eq!(gradient.counted(), (1, 0), "that was before");
        gradient.report(ONE, &measured(1, number + 3, 50, 20, 3), now, &mut rng);
        assert_eq!(gradient.min_rtt(), Duration::from_millis(20));
        assert!(gradient.limit() >= before && !gradient.is_measuring());
    }

    /// A download of an hour keeps nobody waiting for an hour.
    #[test]
    fn measuring_waits_for_requests_that_are_out_but_not_for_ever() {
        let now = ms(1_000);
        let mut gradient = Gradient::taking_over(Adaptive::default(), MAX, 1, 4, now);
        let mut at = now;
        while gradient.tick(100, at) == Change::default() {
            at = gradient.due();
            assert!(at <= now + Duration::from_secs(1));
        }
        assert_eq!(at, now + Duration::from_secs(1));
        assert_eq!(gradient.counted(), (5, 0), "the epoch goes on from there");
    }

    #[test]
    fn at_its_least_for_long_it_is_measured_anew() {
        let mut gradient = following(1);
        update(&mut gradient, 1_000, AT_LEAST_MAX - 1);
        assert_eq!((gradient.limit(), gradient.is_measuring()), (3, false));
        update(&mut gradient, 1_000, 1);
        assert!(gradient.is_measuring(), "the origin may have become slower for good");
    }

    /// Nor is it by one that is not used: a quiet cluster would be measured for ever.
    #[test]
    fn a_least_limit_that_is_not_used_is_no_reason_to_measure() {
        let mut gradient = following(1);
        for (rtt_ms, measures) in [(10, false), (1_000, true)] {
            for _ in 0..2 * AT_LEAST_MAX {
                let (now, number) = (gradient.update_due, gradient.numbers[0] + 1);
                let report = measured(gradient.epoch, number, 10, rtt_ms, 1);
                gradient.report(ONE, &report, now, &mut rng::Rng::new(7));
                gradient.tick(0, now);
            }
            assert_eq!((gradient.limit(), gradient.is_measuring()), (3, measures));
        }
    }

    #[test]
    fn a_reload_holds_at_once() {
        let mut gradient = following(1);
        update(&mut gradient, 10, 40);
        gradient.configure(Adaptive::default(), 50, ms(9_000));
        assert_eq!(gradient.limit(), 50);
        let adaptive = Adaptive { concurrency_min: 60, ..Adaptive::default() };
        gradient.configure(adaptive, 100, ms(9_000));
        assert_eq!((gradient.limit(), gradient.is_measuring()), (60, false));
        // It does not wait for the end of an interval that is not any more.
        let min_rtt_every = Duration::from_secs(1);
        gradient.configure(Adaptive { min_rtt_every, ..adaptive }, 100, ms(9_000));
        assert_eq!(gradient.measure_due, ms(10_000));
    }

    #[test]
    fn shards_report_a_percentile_and_begin_anew() {
        let mut samples = Samples::new(Adaptive { percentile: 90, ..Adaptive::default() });
        let mut progress = Progress::default();
        assert_eq!(samples.due(), Nanos::NEVER);
        for millis in 1..=100 {
            samples.record(&progress, 0, Duration::from_millis(millis), millis);
        }
        let report = samples.report(&mut progress, ms(1_000)).unwrap();
        assert_eq!((report.epoch, report.number, report.count, report.peak), (0, 1, 100, 100));
        assert!((85_000_000..95_000_000).contains(&report.rtt_ns), "{}", report.rtt_ns);
        assert_eq!(samples.report(&mut progress, ms(5_000)), None);
        // What was admitted before the shard knew of the epoch does not count in it.
        assert!(progress.begin(1) && !progress.begin(1) && !progress.begin(0));
        samples.record(&progress, 0, Duration::from_millis(1), 1);
        assert_eq!(samples.count, 0);
        samples.record(&progress, 1, Duration::from_millis(10), 1);
        let report = samples.report(&mut progress, ms(2_010)).unwrap();
        assert_eq!((report.epoch, report.number, report.count, report.peak), (1, 2, 1, 1));
    }

    proptest! {
        #[test]
        fn a_bucket_is_narrow(nanos in 1024u64..(1 << 36)) {
            let middle = bucket_middle_ns(bucket_of(nanos));
            prop_assert!(middle.abs_diff(nanos) <= nanos / 16, "{nanos} {middle}");
        }

        /// Whatever is reported, late, repeated or of another epoch: the limit is within its
        /// bounds, the least one while it is measured, and never more than doubles.
        #[test]
        fn the_limit_stays_within_its_bounds(
            reports in prop::collection::vec(
                (0u16..3, 0u32..4, 1u32..60, 1u32..200, 1u64..5_000, 0u64..2_000, 0u64..90), 0..300
            ),
            least in 1u64..20, max in 1u64..300, lent in 0u64..400
        ) {
            let settings = Adaptive {
                concurrency_min: least,
                min_rtt_every: Duration::from_secs(2),
                ..Adaptive::default()
            };
            let mut gradient = Gradient::new(settings, max, 3);
            let mut rng = rng::Rng::new(max);
            let mut now = ms(1_000);
            for (shard, back, number, count, rtt_ms, peak, pause) in reports {
                now = now + Duration::from_millis(pause);
                let before = gradient.limit();
                let was_measuring = gradient.is_measuring();
                let epoch = gradient.epoch.saturating_sub(back);
                let report = measured(epoch, number, count, rtt_ms, peak);
                gradient.report(ShardId(shard), &report, now, &mut rng);
                gradient.tick(lent, now);
                let limit = gradient.limit();
                prop_assert!(limit >= least.min(max) && limit <= max);
                prop_assert!(!gradient.is_measuring() || limit == least.min(max));
                prop_assert!(was_measuring || limit <= 2 * before + (2 * before).isqrt());
                let is_lowering = matches!(gradient.phase, Phase::Lowering { .. });
                prop_assert!(gradient.due() > now || is_lowering);
            }
        }
    }
}
