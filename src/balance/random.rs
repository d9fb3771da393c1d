//! Random choice by weight. Pure; remembers nothing.

use super::sample::Sampler;
use crate::rng::Rng;

#[derive(Debug)]
pub(super) struct Random {
    sampler: Sampler,
}

impl Random {
    pub fn new(weights: impl Iterator<Item = u32>) -> Random {
        Random { sampler: Sampler::new(weights) }
    }

    #[inline]
    pub fn pick(&self, rng: &mut Rng, usable: impl Fn(usize) -> bool) -> Option<usize> {
        self.sampler.draw(rng, usable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_weights() {
        let random = Random::new([1, 2, 5].into_iter());
        let mut rng = Rng::new(3);
        let mut counts = [0i32; 3];
        for _ in 0..80_000 {
            counts[random.pick(&mut rng, |_| true).unwrap()] += 1;
        }
        for (count, expected) in counts.into_iter().zip([10_000, 20_000, 50_000]) {
            assert!((count - expected).abs() < 800, "{counts:?}");
        }
    }
}
