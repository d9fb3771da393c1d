//! A draw by weight in constant time: Vose's form of Walker's alias method. Used by the policies
//! that draw endpoints; pure, and allocates only when it is built.
//!
//! Every endpoint has one slot of equal width. A slot holds its own endpoint up to `own`, and the
//! rest is lent to one heavier endpoint, so one random word finds slot and side.

use crate::rng::Rng;

/// Draws that may hit an unusable endpoint before all of them are looked at. With half of the
/// endpoints usable, 15 of 16 draws end here.
const DRAWS_MAX: u32 = 4;

#[derive(Debug)]
pub(super) struct Sampler {
    weights: Box<[u32]>,
    /// Empty if all weights are equal.
    slots: Box<[Slot]>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Of 2^32: how much of the slot is its own endpoint's.
    own: u64,
    other: u32,
}

impl Sampler {
    pub fn new(weights: impl Iterator<Item = u32>) -> Sampler {
        let weights: Box<[u32]> = weights.collect();
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let slots = if equal { Box::default() } else { alias(&weights) };
        Sampler { weights, slots }
    }

    fn count(&self) -> usize {
        self.weights.len()
    }

    #[inline]
    pub fn weight(&self, index: usize) -> u32 {
        self.weights[index]
    }

    /// An endpoint by weight, usable or not. There is at least one.
    #[inline]
    fn any(&self, rng: &mut Rng) -> usize {
        // The product's high word is the slot, its low word the place within the slot.
        let product = u128::from(rng.bits()) * self.weights.len() as u128;
        let slot = (product >> 64) as usize;
        match self.slots.get(slot) {
            Some(side) if (product as u64 >> 32) >= side.own => side.other as usize,
            _ => slot,
        }
    }

    /// A usable endpoint by weight, among the usable ones; `None` if there is none.
    #[inline]
    pub fn draw(&self, rng: &mut Rng, usable: impl Fn(usize) -> bool) -> Option<usize> {
        if self.weights.is_empty() {
            return None;
        }
        for _ in 0..DRAWS_MAX {
            let drawn = self.any(rng);
            if usable(drawn) {
                return Some(drawn);
            }
        }
        self.search(rng, usable)
    }

    /// Power of two choices: of two different usable endpoints drawn by weight, the second if it is
    /// better than the first; `better(one, other)` says so. `None` if none is usable.
    #[inline]
    pub fn better_of_two(
        &self,
        rng: &mut Rng,
        usable: impl Fn(usize) -> bool,
        better: impl Fn(usize, usize) -> bool,
    ) -> Option<usize> {
        let first = self.draw(rng, &usable)?;
        if self.count() == 1 {
            return Some(first);
        }
        let second = self.draw(rng, |index| index != first && usable(index));
        Some(match second {
            Some(second) if better(second, first) => second,
            _ => first,
        })
    }

    /// The same as `draw` by looking at every endpoint, for when few are usable.
    #[cold]
    fn search(&self, rng: &mut Rng, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let all = || self.weights.iter().enumerate().filter(|(index, _)| usable(*index));
        let total: u64 = all().map(|(_, weight)| u64::from(*weight)).sum();
        let mut point = rng.below(total);
        for (index, weight) in all() {
            match point.checked_sub(u64::from(*weight)) {
                Some(rest) => point = rest,
                None => return Some(index),
            }
        }
        None
    }
}

fn alias(weights: &[u32]) -> Box<[Slot]> {
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let count = weights.len() as u128;
    let (mut small, mut large) = (Vec::new(), Vec::new());
    // Mass in units of which each slot holds exactly `total`.
    let mut mass: Vec<u128> = weights.iter().map(|weight| u128::from(*weight) * count).collect();
    for (index, own) in mass.iter().enumerate() {
        if *own < total { small.push(index) } else { large.push(index) }
    }
    let mut slots: Box<[Slot]> =
        (0..weights.len()).map(|index| Slot { own: 1 << 32, other: index as u32 }).collect();
    while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
        slots[poor] = Slot { own: ((mass[poor] << 32) / total) as u64, other: rich as u32 };
        mass[rich] -= total - mass[poor];
        if mass[rich] < total {
            large.pop();
            small.push(rich);
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    #[test]
    fn nothing_to_draw() {
        let mut rng = Rng::new(1);
        assert_eq!(Sampler::new([].into_iter()).draw(&mut rng, |_| true), None);
        assert_eq!(Sampler::new([1, 2].into_iter()).draw(&mut rng, |_| false), None);
    }

    proptest! {
        /// The slots hold exactly the weights' shares, up to the rounding of 2^-32 per slot.
        #[test]
        fn slots_hold_the_weights(weights in prop::collection::vec(1u32..=u32::MAX, 1..50)) {
            let slots = alias(&weights);
            let mut held = vec![0u64; weights.len()];
            for (index, slot) in slots.iter().enumerate() {
                held[index] += slot.own;
                held[slot.other as usize] += (1 << 32) - slot.own;
            }
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (weight, held) in weights.iter().zip(held) {
                let share = f64::from(*weight) / total;
                let got = held as f64 / (weights.len() as f64 * 4_294_967_296.0);
                prop_assert!((share - got).abs() < 1e-8, "{share} {got}");
            }
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Few usable endpoints, found by searching, keep their shares too.
        #[test]
        fn usable_endpoints_share_by_weight(seed: u64, weights in prop::collection::vec(1u32..5, 20)) {
            let sampler = Sampler::new(weights.iter().copied());
            let mut rng = Rng::new(seed);
            let mut counts = [0u32; 2];
            for _ in 0..20_000 {
                let drawn = sampler.draw(&mut rng, |index| index == 3 || index == 17).unwrap();
                counts[usize::from(drawn == 17)] += 1;
            }
            let share = f64::from(weights[17]) / f64::from(weights[3] + weights[17]);
            prop_assert!((f64::from(counts[1]) / 20_000.0 - share).abs() < 0.03);
        }
    }
}
