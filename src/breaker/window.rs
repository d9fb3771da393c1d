//! The last ten seconds (or whatever is set), in buckets: what arrived when. Pure; fixed size.

use std::time::Duration;

use crate::time::Nanos;

/// Buckets of a window: what is forgotten at a time is a tenth.
pub const BUCKETS: usize = 10;

/// What a bucket, or the whole window, adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sums {
    /// Requests that ended in success or failure.
    pub requests: u64,
    /// Failures among them.
    pub failures: u64,
    /// Slow ones among them.
    pub slow: u64,
}

/// Sums by time of arrival.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Window {
    buckets: [Sums; BUCKETS],
    /// The number of the newest bucket, counted from the start of time.
    newest: u64,
}

impl Window {
    /// Files what arrived now.
    pub fn add(&mut self, sums: Sums, now: Nanos, window: Duration) {
        self.advance(now, window);
        let bucket = &mut self.buckets[(self.newest % BUCKETS as u64) as usize];
        bucket.requests += sums.requests;
        bucket.failures += sums.failures;
        bucket.slow += sums.slow;
    }

    /// What the window holds now.
    pub fn sums(&mut self, now: Nanos, window: Duration) -> Sums {
        self.advance(now, window);
        self.buckets.iter().fold(Sums::default(), |sum, bucket| Sums {
            requests: sum.requests + bucket.requests,
            failures: sum.failures + bucket.failures,
            slow: sum.slow + bucket.slow,
        })
    }

    /// Empties the buckets whose time has come again. A time before the newest bucket counts
    /// into that one.
    fn advance(&mut self, now: Nanos, window: Duration) {
        let length = (window.as_nanos() as u64 / BUCKETS as u64).max(1);
        let current = now.0 / length;
        let fresh = current.saturating_sub(self.newest).min(BUCKETS as u64);
        for step in 0..fresh {
            self.buckets[((current - step) % BUCKETS as u64) as usize] = Sums::default();
        }
        self.newest = self.newest.max(current);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn forgets_after_the_window() {
        let mut window = Window::default();
        let one = Sums { requests: 1, failures: 1, slow: 0 };
        window.add(one, Nanos(0), WINDOW);
        assert_eq!(window.sums(Nanos(9_999_999_999), WINDOW).failures, 1);
        assert_eq!(window.sums(Nanos(10_000_000_000), WINDOW).failures, 0);
    }

    proptest! {
        /// Against the slow and obvious model: a list of everything that arrived.
        #[test]
        fn counts_as_a_list_does(arrivals in prop::collection::vec((0u64..3_000, 1u64..4), 1..60)) {
            let mut window = Window::default();
            let mut list = Vec::new();
            let mut now = 0;
            for (step_ms, requests) in arrivals {
                now += step_ms * 1_000_000;
                window.add(Sums { requests, failures: 0, slow: 0 }, Nanos(now), WINDOW);
                list.push((now / 1_000_000_000, requests));
                let first = (now / 1_000_000_000).saturating_sub(9);
                let expected: u64 =
                    list.iter().filter(|(at, _)| *at >= first).map(|(_, count)| count).sum();
                prop_assert_eq!(window.sums(Nanos(now), WINDOW).requests, expected);
            }
        }
    }
}
