//! A small seeded generator: runs can be repeated, and nothing here needs secrecy. Pure.

/// xorshift64*. Not for cryptography.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Different seeds, even neighbouring ones, give unrelated sequences.
    pub fn new(seed: u64) -> Self {
        // One round of splitmix64 spreads small seeds; the state must not be zero.
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((state ^ (state >> 31)) | 1)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Evenly from 0 up to, without, 1.
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Exponentially distributed with mean 1: the gaps of a Poisson process.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// True in this share of the calls.
    pub fn hits(&mut self, percent: f64) -> bool {
        self.unit() * 100.0 < percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_that_share() {
        let mut random = Random::new(42);
        let hits = (0..100_000).filter(|_| random.hits(5.0)).count();
        assert!((4_800..5_200).contains(&hits), "{hits}");
        assert!(!(0..1_000).any(|_| random.hits(0.0)));
        assert!((0..1_000).all(|_| random.hits(100.0)));
    }

    #[test]
    fn gaps_have_mean_one() {
        let mut random = Random::new(7);
        let sum: f64 = (0..100_000).map(|_| random.exponential()).sum();
        assert!((sum / 100_000.0 - 1.0).abs() < 0.02, "{sum}");
    }

    #[test]
    fn neighbouring_seeds_differ() {
        let firsts: std::collections::HashSet<_> =
            (0..1_000).map(|seed| Random::new(seed).draw()).collect();
        assert_eq!(firsts.len(), 1_000);
    }
}
