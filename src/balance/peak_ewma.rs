//! Power of two choices by expected waiting time: of two different endpoints drawn by weight, the
//! one where latency times requests in flight is less for its weight. Pure.
//!
//! Latency is a peak-sensitive moving average (Finagle's `p2c` with peak EWMA): a slower answer than
//! the average replaces it at once, a faster one is averaged in with a decay of 10 s. Without
//! answers it falls, so that who was slow is asked again, and after 30 s of silence nothing is known
//! any more: then, as for a new endpoint, one request finds out. A failure counts as an answer
//! after [`FAILURE`], however fast it was: else the endpoint that refuses fastest would win.

use std::time::Duration;

use super::sample::Sampler;
use crate::rng::Rng;
use crate::time::Nanos;

/// The time constant of the average.
const DECAY: Duration = Duration::from_secs(10);

/// Without an answer for so long, nothing is known: what is left of the average, a twentieth, would
/// draw all requests until the next answer.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// What a failure counts as, if it did not take longer.
pub const FAILURE: Duration = Duration::from_secs(1);

/// What one request in flight counts as where nothing is known yet: more than any endpoint that
/// answers, so that a new one gets one request, and then its share.
const UNKNOWN_NS: f64 = 1e15;

/// How slow an endpoint has been lately, as one shard saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    average_ns: f64,
    at: Nanos,
}

impl Latency {
    /// An answer took so long.
    pub fn observe(&mut self, taken: Duration, now: Nanos) {
        let taken_ns = taken.as_nanos() as f64;
        let kept = decay(self.at, now);
        self.average_ns = match taken_ns > self.average_ns {
            true => taken_ns,
            false => self.average_ns * kept + taken_ns * (1.0 - kept),
        };
        self.at = now;
    }

    /// An answer would have taken longer than this.
    pub fn observe_at_least(&mut self, taken: Duration, now: Nanos) {
        if taken.as_nanos() as f64 > self.average_ns * decay(self.at, now) {
            self.observe(taken, now);
        }
    }

    /// What an endpoint with so many requests in flight weighs.
    #[inline]
    pub fn load(&self, in_flight: u32, now: Nanos) -> f64 {
        if self.average_ns == 0.0 || now.since(self.at) >= FORGOTTEN_AFTER {
            return f64::from(in_flight) * UNKNOWN_NS;
        }
        self.average_ns * decay(self.at, now) * (f64::from(in_flight) + 1.0)
    }
}

/// What is left of an average after some time.
fn decay(since: Nanos, now: Nanos) -> f64 {
    (-(now.since(since).as_nanos() as f64) / DECAY.as_nanos() as f64).exp()
}

#[derive(Debug)]
pub(super) struct PeakEwma {
    sampler: Sampler,
}

impl PeakEwma {
    pub fn new(weights: impl Iterator<Item = u32>) -> PeakEwma {
        PeakEwma { sampler: Sampler::new(weights) }
    }

    #[inline]
    pub fn pick(
        &self,
        load: impl Fn(usize) -> f64,
        rng: &mut Rng,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let per_weight = |index: usize| load(index) / f64::from(self.sampler.weight(index));
        self.sampler.better_of_two(rng, usable, |one, other| per_weight(one) < per_weight(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(seconds: u64) -> Nanos {
        Nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let mut latency = Latency::default();
        latency.observe(10 * MS, at(100));
        assert_eq!(latency.load(0, at(100)), 10e6);
        latency.observe(100 * MS, at(100));
        assert_eq!(latency.load(0, at(100)), 100e6, "a peak is believed");
        latency.observe(10 * MS, at(101));
        let after = latency.load(0, at(101));
        assert!((90e6..92e6).contains(&after), "a second of ten: {after}");
        latency.observe(10 * MS, at(131));
        let after = latency.load(0, at(131));
        assert!((13e6..15e6).contains(&after), "{after}");
        assert!(latency.load(0, at(1000)) < 1.0, "who was not asked is forgiven");
        assert!(latency.load(1, at(1000)) > 1e12, "and gets one request first");
    }

    #[test]
    fn requests_in_flight_multiply() {
        let mut latency = Latency::default();
        latency.observe(10 * MS, at(1));
        assert_eq!(latency.load(4, at(1)), 5.0 * latency.load(0, at(1)));
    }

    #[test]
    fn a_new_endpoint_gets_one_request_first() {
        let (new, mut known) = (Latency::default(), Latency::default());
        known.observe(500 * MS, at(1));
        assert!(new.load(0, at(1)) < known.load(0, at(1)));
        assert!(new.load(1, at(1)) > known.load(1000, at(1)));
    }

    #[test]
    fn of_two_the_one_that_answers_sooner() {
        let mut rng = Rng::new(1);
        let peak = PeakEwma::new([1, 1].into_iter());
        for _ in 0..100 {
            assert_eq!(peak.pick(|index| [5.0, 4.0][index], &mut rng, |_| true), Some(1));
            assert_eq!(peak.pick(|index| [5.0, 4.0][index], &mut rng, |index| index == 0), Some(0));
        }
        // Ten times the weight takes ten times the load.
        let peak = PeakEwma::new([10, 1].into_iter());
        assert_eq!(peak.pick(|index| [30.0, 4.0][index], &mut rng, |_| true), Some(0));
    }
}
