//! A token bucket, as one time: when it is full again. (The generic cell rate algorithm of ATM
//! Forum TM 4.0, 4.4.2, by another name.) Pure; eight bytes a bucket, and no timer fills it.
//!
//! ```text
//!              now         full_at
//!  -------------|-------------|------> time
//!               |<--- debt -->|         spent and not refilled; at most burst * interval
//! ```

use std::time::Duration;

use crate::reconcile::mutation::{self, Mutation};
use crate::time::Nanos;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds from one token to the next, rounded up: never more than was configured.
    interval: u64,
    /// Tokens in a full bucket, at least 1.
    burst: u32,
}

impl Rate {
    /// `requests` tokens in each `per`, one after the other. Numbers of 0 count as 1.
    pub fn new(requests: u32, per: Duration, burst: u32) -> Rate {
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        Rate { interval: per.div_ceil(u64::from(requests.max(1))).max(1), burst: burst.max(1) }
    }

    /// From one token to the next.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval)
    }

    /// Tokens in a full bucket.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// How long so many tokens take.
    fn time_of(&self, tokens: u64) -> u64 {
        tokens.saturating_mul(self.interval)
    }
}

/// One bucket; full, to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    full_at: Nanos,
}

impl Bucket {
    /// Nothing is missing: it may be forgotten, and made anew.
    pub fn is_full(&self, now: Nanos) -> bool {
        self.full_at <= now
    }

    /// Tokens that it holds beyond those that are `lent`.
    #[inline]
    pub fn available(&self, rate: &Rate, lent: u64, now: Nanos) -> u64 {
        let debt = self.full_at.0.saturating_sub(now.0);
        let room = rate.time_of(u64::from(rate.burst)).saturating_sub(debt);
        (room / rate.interval).saturating_sub(lent)
    }

    /// So many were spent, the last of them at that time. Bookings may come late, and in any order:
    /// that only makes the bucket emptier than it is.
    #[inline]
    pub fn book(&mut self, rate: &Rate, tokens: u64, at: Nanos) {
        if tokens > 0 {
            self.full_at = Nanos(self.full_at.max(at).0.saturating_add(rate.time_of(tokens)));
        }
    }

    /// When it holds so many beyond those that are `lent`, if nobody takes any.
    pub fn holds_at(&self, rate: &Rate, tokens: u64, lent: u64, now: Nanos) -> Nanos {
        let wanted = rate.time_of(tokens.saturating_add(lent));
        let missing = (self.full_at.max(now).0.saturating_add(wanted))
            .saturating_sub(rate.time_of(u64::from(rate.burst)));
        Nanos(missing).max(now)
    }

    /// The rate changes: what is spent stays spent, token by token.
    pub fn change(&mut self, from: &Rate, to: &Rate, now: Nanos) {
        let debt = self.full_at.0.saturating_sub(now.0);
        let spent = debt.div_ceil(from.interval).min(u64::from(to.burst));
        let spent = if mutation::is_on(Mutation::ReloadFillsBuckets) { 0 } else { spent };
        self.full_at = Nanos(now.0 + to.time_of(spent));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Takes one, if there is one.
    fn take(bucket: &mut Bucket, rate: &Rate, now: u64) -> bool {
        let has = bucket.available(rate, 0, Nanos(now)) > 0;
        if has {
            bucket.book(rate, 1, Nanos(now));
        }
        has
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_one_each_interval() {
        let rate = Rate::new(10, SECOND, 3);
        let mut bucket = Bucket::default();
        let start = 5_000_000_000;
        let taken = (0..9).filter(|_| take(&mut bucket, &rate, start)).count();
        assert_eq!(taken, 3);
        assert_eq!(bucket.holds_at(&rate, 1, 0, Nanos(start)), Nanos(start + 100_000_000));
        assert!(!take(&mut bucket, &rate, start + 99_999_999));
        assert!(take(&mut bucket, &rate, start + 100_000_000));
        assert!(!bucket.is_full(Nanos(start + 399_999_999)));
        assert!(bucket.is_full(Nanos(start + 400_000_000)));
    }

    #[test]
    fn intervals_are_rounded_up() {
        assert_eq!(Rate::new(3, SECOND, 1).interval(), Duration::from_nanos(333_333_334));
        assert_eq!(Rate::new(0, Duration::ZERO, 0), Rate { interval: 1, burst: 1 });
    }

    /// Debt is carried over as tokens, so a reload gives nobody a second burst.
    #[test]
    fn what_is_spent_stays_spent() {
        let (slow, fast) = (Rate::new(1, SECOND, 10), Rate::new(100, SECOND, 20));
        let now = Nanos(7);
        let mut bucket = Bucket::default();
        bucket.book(&slow, 10, now);
        bucket.change(&slow, &fast, now);
        assert_eq!(bucket.available(&fast, 0, now), 10);
        bucket.change(&fast, &Rate::new(1, SECOND, 4), now);
        assert_eq!(bucket.available(&Rate::new(1, SECOND, 4), 0, now), 0);
    }

    proptest! {
        /// In any window, never more than the burst and what is refilled meanwhile.
        #[test]
        fn no_window_has_too_many(
            requests in 1u32..50, burst in 1u32..20,
            steps in prop::collection::vec(0u64..300_000_000, 1..200),
        ) {
            let rate = Rate::new(requests, SECOND, burst);
            let mut bucket = Bucket::default();
            let mut now = 1;
            let mut taken = Vec::new();
            for step in steps {
                now += step;
                if take(&mut bucket, &rate, now) {
                    taken.push(now);
                }
            }
            for (first, from) in taken.iter().enumerate() {
                for (last, to) in taken.iter().enumerate().skip(first) {
                    let most = u64::from(burst) + (to - from) / rate.interval;
                    prop_assert!((last - first + 1) as u64 <= most);
                }
            }
        }

        /// The slow, obvious way: a number that grows with time, and is capped.
        #[test]
        fn agrees_with_a_counter(
            burst in 1u32..20,
            steps in prop::collection::vec((0u64..5, 1u64..4), 1..200),
        ) {
            // A token a nanosecond: then the counter has no fractions.
            let rate = Rate { interval: 1, burst };
            let (mut bucket, mut tokens, mut now) = (Bucket::default(), u64::from(burst), 100);
            for (step, wanted) in steps {
                now += step;
                tokens = (tokens + step).min(u64::from(burst));
                prop_assert_eq!(bucket.available(&rate, 0, Nanos(now)), tokens);
                if wanted <= tokens {
                    tokens -= wanted;
                    bucket.book(&rate, wanted, Nanos(now));
                } else {
                    let at = bucket.holds_at(&rate, wanted, 0, Nanos(now));
                    prop_assert_eq!(at, Nanos(now + wanted - tokens));
                }
            }
        }

        /// Bookings in another order than they happened leave no more in it.
        #[test]
        fn late_bookings_are_on_the_safe_side(
            mut times in prop::collection::vec(0u64..2_000_000_000, 1..20), seed in any::<u64>(),
        ) {
            let rate = Rate::new(10, SECOND, 100);
            let mut mixed = Bucket::default();
            let mut rng = crate::rng::Rng::new(seed);
            let mut order = times.clone();
            for at in (1..order.len()).rev() {
                order.swap(at, rng.below(at as u64 + 1) as usize);
            }
            order.iter().for_each(|at| mixed.book(&rate, 1, Nanos(*at)));
            times.sort_unstable();
            let mut sorted = Bucket::default();
            times.iter().for_each(|at| sorted.book(&rate, 1, Nanos(*at)));
            prop_assert!(mixed.full_at >= sorted.full_at);
        }
    }
}
