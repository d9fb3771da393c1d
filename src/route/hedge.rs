//! When a request that has no answer yet is sent to a second endpoint as well (Dean and Barroso,
//! "The Tail at Scale", CACM 2013: hedged requests). Pure.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::time::Nanos;

/// What a route says of hedges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HedgePolicy {
    /// How long the first endpoint has to itself.
    pub after: HedgeAfter,
    /// At least this, whatever was measured.
    pub delay_min: Duration,
}

/// How long the first endpoint has to itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HedgeAfter {
    /// Always so long.
    Delay(Duration),
    /// So long that this share of the answers, in percent, was there by then.
    Percentile(f64),
}

/// Answers older than two of these are forgotten, younger than one are not.
const WINDOW: Duration = Duration::from_secs(10);

/// How often the percentile is taken anew.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A percentile is believed once so many answers lay beyond it.
const BEYOND_MIN: f64 = 2.0;

/// What is longer counts as this, in microseconds.
const MICROS_MAX: u64 = 60_000_000;

/// One shard's measure of a route's answers.
pub struct HedgeDelay {
    policy: HedgePolicy,
    measured: Option<Box<Measured>>,
}

struct Measured {
    recent: Histogram<u32>,
    before: Histogram<u32>,
    both: Histogram<u32>,
    began: Nanos,
    look_at: Nanos,
    delay: Option<Duration>,
}

impl HedgeDelay {
    /// Nothing measured yet.
    pub fn new(policy: HedgePolicy) -> HedgeDelay {
        let histogram =
            || Histogram::new_with_bounds(1, MICROS_MAX, 2).expect("bounds that are in order");
        let measured = || Measured {
            recent: histogram(),
            before: histogram(),
            both: histogram(),
            began: Nanos::default(),
            look_at: Nanos::default(),
            delay: None,
        };
        let measured = match policy.after {
            HedgeAfter::Delay(_) => None,
            HedgeAfter::Percentile(_) => Some(Box::new(measured())),
        };
        HedgeDelay { policy, measured }
    }

    /// How long the first endpoint has to itself; `None` while too little is known.
    pub fn delay(&self) -> Option<Duration> {
        let delay = match self.policy.after {
            HedgeAfter::Delay(delay) => Some(delay),
            HedgeAfter::Percentile(_) => self.measured.as_ref()?.delay,
        };
        Some(delay?.max(self.policy.delay_min))
    }

    /// Whether the time of answers matters.
    pub fn measures(&self) -> bool {
        self.measured.is_some()
    }

    /// An answer has taken so long; or a try was overtaken after this time, and would have taken
    /// longer. Without those, each hedge that wins would lower the percentile for the next ones.
    pub fn observe(&mut self, taken: Duration, now: Nanos) {
        let HedgeAfter::Percentile(percentile) = self.policy.after else { return };
        let Some(measured) = &mut self.measured else { return };
        let age = now.since(measured.began);
        if age >= WINDOW {
            std::mem::swap(&mut measured.recent, &mut measured.before);
            measured.recent.reset();
            if age >= WINDOW * 2 {
                measured.before.reset();
            }
            measured.began = now;
        }
        measured.recent.saturating_record((taken.as_micros() as u64).max(1));
        if now >= measured.look_at {
            measured.look_at = now + LOOK_EVERY;
            measured.delay = measured.percentile(percentile);
        }
    }
}

impl Measured {
    fn percentile(&mut self, percentile: f64) -> Option<Duration> {
        self.both.reset();
        for part in [&self.recent, &self.before] {
            self.both.add(part).expect("histograms of one shape");
        }
        let beyond = self.both.len() as f64 * (100.0 - percentile) / 100.0;
        (beyond >= BEYOND_MIN)
            .then(|| Duration::from_micros(self.both.value_at_percentile(percentile)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Nanos = Nanos(1_000_000_000_000);

    fn at_percentile(percentile: f64) -> HedgeDelay {
        let after = HedgeAfter::Percentile(percentile);
        HedgeDelay::new(HedgePolicy { after, delay_min: Duration::from_millis(1) })
    }

    /// 100 answers a second, of 1 to 100 ms.
    fn observe(hedge: &mut HedgeDelay, from: Nanos, seconds: u64, factor: u64) -> Nanos {
        for count in 0..seconds * 100 {
            let now = from + Duration::from_millis(count * 10);
            hedge.observe(Duration::from_millis((count * 37 % 100 + 1) * factor), now);
        }
        from + Duration::from_secs(seconds)
    }

    fn millis(hedge: &HedgeDelay) -> Option<u128> {
        hedge.delay().map(|delay| delay.as_millis())
    }

    #[test]
    fn a_fixed_delay() {
        let after = HedgeAfter::Delay(Duration::from_millis(20));
        let mut hedge = HedgeDelay::new(HedgePolicy { after, delay_min: Duration::ZERO });
        assert!(!hedge.measures());
        assert_eq!(millis(&hedge), Some(20));
        hedge.observe(Duration::from_secs(1), START);
        assert_eq!(millis(&hedge), Some(20));
    }

    #[test]
    fn a_measured_percentile() {
        let mut hedge = at_percentile(95.0);
        assert!(hedge.measures());
        assert_eq!(hedge.delay(), None);
        observe(&mut hedge, START, 5, 1);
        // Two digits of it.
        assert!((94..=96).contains(&millis(&hedge).unwrap()), "{:?}", hedge.delay());
    }

    #[test]
    fn too_few_answers_say_nothing() {
        let mut hedge = at_percentile(99.0);
        for count in 0..199 {
            hedge.observe(Duration::from_millis(5), START + LOOK_EVERY * count);
            if count < 79 {
                assert_eq!(hedge.delay(), None);
            }
        }
        // Four answers a second: 80 in the two windows that count.
        assert_eq!(hedge.delay(), None);
        observe(&mut hedge, START + LOOK_EVERY * 199, 3, 1);
        assert!(hedge.delay().is_some());
    }

    #[test]
    fn never_shorter_than_the_least() {
        let mut hedge = at_percentile(50.0);
        for count in 0..100 {
            hedge.observe(Duration::from_micros(30), START + Duration::from_millis(count * 10));
        }
        assert_eq!(millis(&hedge), Some(1));
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut hedge = at_percentile(50.0);
        let now = observe(&mut hedge, START, 20, 10);
        assert!((490..=515).contains(&millis(&hedge).unwrap()), "{:?}", hedge.delay());
        let now = observe(&mut hedge, now, 21, 1);
        assert!((49..=52).contains(&millis(&hedge).unwrap()), "{:?}", hedge.delay());
        // After a long silence nothing of before counts.
        let now = now + Duration::from_secs(60);
        hedge.observe(Duration::from_millis(1), now);
        assert_eq!(hedge.delay(), None);
    }
}
