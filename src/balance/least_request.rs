//! Power of two choices: of two different endpoints drawn by weight, the one with fewer requests
//! in flight for its weight. Pure; remembers nothing.
//!
//! Drawing by weight keeps the shares right while nothing is in flight, comparing by weight keeps
//! them right under load. The first drawn wins a tie.

use super::sample::Sampler;
use crate::rng::Rng;

#[derive(Debug)]
pub(super) struct LeastRequest {
    sampler: Sampler,
}

impl LeastRequest {
    pub fn new(weights: impl Iterator<Item = u32>) -> LeastRequest {
        LeastRequest { sampler: Sampler::new(weights) }
    }

    #[inline]
    pub fn pick(
        &self,
        in_flight: impl Fn(usize) -> u32,
        rng: &mut Rng,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        self.sampler.better_of_two(rng, usable, |one, other| self.lighter(one, other, &in_flight))
    }

    /// Whether `one` has less in flight for its weight than `other`.
    #[inline]
    fn lighter(&self, one: usize, other: usize, in_flight: &impl Fn(usize) -> u32) -> bool {
        let scaled =
            |a: usize, b: usize| u64::from(in_flight(a)) * u64::from(self.sampler.weight(b));
        scaled(one, other) < scaled(other, one)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    #[test]
    fn of_two_the_lighter_one() {
        let mut rng = Rng::new(1);
        let least = LeastRequest::new([1, 1].into_iter());
        for _ in 0..100 {
            assert_eq!(least.pick(|at| [5, 4][at], &mut rng, |_| true), Some(1));
            assert_eq!(least.pick(|at| [0, 1][at], &mut rng, |_| true), Some(0));
        }
        // Three of a weight of ten are less than one of a weight of one.
        let least = LeastRequest::new([10, 1].into_iter());
        assert_eq!(least.pick(|at| [3, 1][at], &mut rng, |_| true), Some(0));
    }

    #[test]
    fn idle_endpoints_share_by_weight() {
        let mut rng = Rng::new(1);
        let least = LeastRequest::new([1, 3].into_iter());
        let heavy =
            (0..40_000).filter(|_| least.pick(|at| [0, 0][at], &mut rng, |_| true) == Some(1));
        let heavy = heavy.count();
        assert!((29_000..31_000).contains(&heavy), "{heavy}");
    }

    proptest! {
        /// The heaviest of all is never taken while anything else is usable.
        #[test]
        fn the_heaviest_is_never_taken(
            seats in prop::collection::vec((0u32..100, any::<bool>()), 2..30), seed: u64,
        ) {
            let mut in_flight: Vec<u32> = seats.iter().map(|seat| seat.0).collect();
            in_flight[0] = 1_000;
            let usable = |index: usize| index == 0 || seats[index].1;
            prop_assume!((1..seats.len()).any(usable));
            let least = LeastRequest::new(seats.iter().map(|_| 1));
            let mut rng = Rng::new(seed);
            for _ in 0..50 {
                let picked = least.pick(|at| in_flight[at], &mut rng, usable).unwrap();
                prop_assert!(picked != 0 && usable(picked));
            }
        }
    }
}
