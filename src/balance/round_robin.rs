//! Smooth weighted round robin, the scheme that nginx made known. Pure.
//!
//! Each pick, every usable endpoint gains its weight in credit; the richest is taken and pays the
//! sum of those weights. Over as many picks as the weights sum to, each gets exactly its weight,
//! and a heavy endpoint's turns lie spread out: 5, 1, 1 gives `a a b a c a a`.
//!
//! With equal weights that is a plain cycle, which takes no arithmetic.

/// Picks at most walked by [`RoundRobin::skip`]: enough that shards begin apart, and cheap.
const SKIP_MAX: u32 = 256;

#[derive(Debug)]
pub(super) enum RoundRobin {
    /// All weights are equal; `next` is the endpoint whose turn it is.
    Equal {
        next: usize,
        count: usize,
    },
    Weighted(Box<[Turn]>),
}

#[derive(Debug)]
pub(super) struct Turn {
    weight: i64,
    /// What it has gained and not yet paid. Bounded by the sum of the weights.
    credit: i64,
}

impl RoundRobin {
    pub fn new(weights: impl Iterator<Item = u32>) -> RoundRobin {
        let turns: Box<[Turn]> =
            weights.map(|weight| Turn { weight: i64::from(weight), credit: 0 }).collect();
        if turns.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
            RoundRobin::Equal { next: 0, count: turns.len() }
        } else {
            RoundRobin::Weighted(turns)
        }
    }

    /// Starts somewhere else in the cycle.
    pub fn skip(&mut self, picks: u32) {
        match self {
            RoundRobin::Equal { next, count } => *next = picks as usize % (*count).max(1),
            RoundRobin::Weighted(_) => {
                for _ in 0..picks % SKIP_MAX {
                    self.pick(|_| true);
                }
            }
        }
    }

    #[inline]
    pub fn pick(&mut self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            RoundRobin::Equal { next, count } => {
                let picked = (*next..*count).chain(0..*next).find(|index| usable(*index))?;
                *next = if picked + 1 == *count { 0 } else { picked + 1 };
                Some(picked)
            }
            RoundRobin::Weighted(turns) => {
                let mut paid = 0;
                let mut richest: Option<(usize, i64)> = None;
                for (index, turn) in turns.iter_mut().enumerate() {
                    if !usable(index) {
                        continue;
                    }
                    turn.credit += turn.weight;
                    paid += turn.weight;
                    if richest.is_none_or(|(_, credit)| turn.credit > credit) {
                        richest = Some((index, turn.credit));
                    }
                }
                let (picked, _) = richest?;
                turns[picked].credit -= paid;
                Some(picked)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn picks(weights: &[u32], count: usize) -> Vec<usize> {
        let mut turns = RoundRobin::new(weights.iter().copied());
        (0..count).map(|_| turns.pick(|_| true).expect("usable")).collect()
    }

    #[test]
    fn spreads_the_heavy_one() {
        assert_eq!(picks(&[5, 1, 1], 7), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(picks(&[4, 2, 2], 4), [0, 1, 2, 0]);
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(picks(&[3, 3, 3], 7), [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(picks(&[9], 2), [0, 0]);
    }

    #[test]
    fn an_unusable_one_costs_nobody_a_turn() {
        let mut turns = RoundRobin::new([1, 1, 1, 1].into_iter());
        let picked: Vec<_> = (0..6).map(|_| turns.pick(|index| index != 1).unwrap()).collect();
        assert_eq!(picked, [0, 2, 3, 0, 2, 3]);
    }

    proptest! {
        /// Any stretch as long as the weights sum to gives each exactly its weight.
        #[test]
        fn shares_are_exact(weights in prop::collection::vec(1u32..20, 1..8), start in 0u32..300) {
            let total: u32 = weights.iter().sum();
            let mut turns = RoundRobin::new(weights.iter().copied());
            turns.skip(start);
            let mut counts = vec![0; weights.len()];
            for _ in 0..total {
                counts[turns.pick(|_| true).unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        /// Endpoints that stay unusable leave exact shares among the others.
        #[test]
        fn shares_of_the_usable_are_exact(
            seats in prop::collection::vec((1u32..20, any::<bool>()), 1..8),
        ) {
            let total: u32 = seats.iter().filter(|seat| seat.1).map(|seat| seat.0).sum();
            let mut turns = RoundRobin::new(seats.iter().map(|seat| seat.0));
            let mut counts = vec![0; seats.len()];
            // Equal weights cycle one by one, so they need no full period, but have one too.
            for _ in 0..total {
                counts[turns.pick(|index| seats[index].1).unwrap()] += 1;
            }
            let expected: Vec<u32> =
                seats.iter().map(|seat| if seat.1 { seat.0 } else { 0 }).collect();
            prop_assert_eq!(counts, expected);
        }
    }
}
