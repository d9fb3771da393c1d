//! Random numbers for choices: which endpoint, which side of a weighted split, a request's id.
//! One generator per shard, seeded by the caller. Never for secrets.
//!
//! xoshiro256++ (Blackman and Vigna): a period long enough that the ids of two processes do not
//! meet, and about a nanosecond a draw. A 64-bit state would do for balancing, but not for ids.

/// A generator of uniform numbers; the same seed gives the same sequence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// Starts from one word, spread over the state by splitmix64 (which never yields the all-zero
    /// state that would stay zero).
    pub fn new(seed: u64) -> Rng {
        let mut word = seed;
        Rng { state: std::array::from_fn(|_| splitmix(&mut word)) }
    }

    /// 64 uniform bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        let state = &mut self.state;
        let drawn = state[0].wrapping_add(state[3]).rotate_left(23).wrapping_add(state[0]);
        let shifted = state[1] << 17;
        state[2] ^= state[0];
        state[3] ^= state[1];
        state[1] ^= state[2];
        state[0] ^= state[3];
        state[2] ^= shifted;
        state[3] = state[3].rotate_left(45);
        drawn
    }

    /// A number below `bound`; 0 if `bound` is 0. By multiplication (Lemire), without the
    /// rejection step: the bias is `bound / 2^64`, which no split or balancer can show.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }
}

/// The next word of a splitmix64 sequence; also a good mixer of a single word.
#[inline]
pub fn splitmix(word: &mut u64) -> u64 {
    *word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*word ^ (*word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published first outputs for the state 1, 2, 3, 4.
    #[test]
    fn follows_the_reference() {
        let mut rng = Rng { state: [1, 2, 3, 4] };
        assert_eq!(rng.bits(), 41_943_041);
        assert_eq!(rng.bits(), 58_720_359);
        assert_eq!(rng.bits(), 3_588_806_011_781_223);
    }

    #[test]
    fn seeds_repeat_and_differ() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            [rng.bits(), rng.bits(), rng.bits()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(draw(0), [0; 3]);
    }

    #[test]
    fn below_stays_below_and_reaches_all() {
        let mut rng = Rng::new(1);
        let mut seen = [0u32; 5];
        for _ in 0..10_000 {
            seen[rng.below(5) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (1_800..2_200).contains(count)), "{seen:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }
}
