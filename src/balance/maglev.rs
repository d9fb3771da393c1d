//! Maglev's table: each endpoint walks its own permutation of the slots and claims free ones in
//! turn, until all are claimed. Built once per plan, then read only; pure.
//!
//! Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", 3.4;
//! weights as in Envoy: an endpoint of half the greatest weight claims every other turn.

use xxhash_rust::xxh64::xxh64;

use crate::rng::splitmix;

/// Slots: a prime, the greater size of the paper, and Envoy's default. At 100 endpoints shares
/// differ by less than one percent.
const SLOTS: usize = 65_537;

/// Other slots tried when a key's own endpoint is not usable, before all endpoints are looked at.
const PROBES_MAX: u32 = 8;

/// The table of a cluster.
#[derive(Debug, PartialEq)]
pub struct Maglev {
    /// Whose the slot is; empty without endpoints. Endpoints past 65,535 own none.
    slots: Box<[u16]>,
    endpoints: usize,
}

impl Maglev {
    /// `endpoints` are keys and weights, by index.
    pub(super) fn build(endpoints: &[(String, u32)]) -> Maglev {
        struct Walk {
            /// The slot it looks at next.
            next: usize,
            stride: usize,
            weight: u64,
            /// Turns it has had, in units of the greatest weight.
            had: u64,
        }
        let heaviest = endpoints.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
        let mut walks: Vec<Walk> = endpoints
            .iter()
            .take(usize::from(u16::MAX))
            .map(|(key, weight)| Walk {
                next: (xxh64(key.as_bytes(), 0) % SLOTS as u64) as usize,
                stride: (xxh64(key.as_bytes(), 1) % (SLOTS as u64 - 1)) as usize + 1,
                weight: u64::from(*weight),
                had: 0,
            })
            .collect();
        if heaviest == 0 {
            return Maglev { slots: Box::default(), endpoints: endpoints.len() };
        }
        let mut slots: Vec<Option<u16>> = vec![None; SLOTS];
        let mut free = SLOTS;
        for round in 1u64.. {
            for (index, walk) in walks.iter_mut().enumerate() {
                if round * walk.weight < walk.had + u64::from(heaviest) {
                    continue;
                }
                walk.had += u64::from(heaviest);
                while slots[walk.next].is_some() {
                    walk.next = (walk.next + walk.stride) % SLOTS;
                }
                slots[walk.next] = Some(index as u16);
                free -= 1;
                if free == 0 {
                    let slots = slots.into_iter().flatten().collect();
                    return Maglev { slots, endpoints: endpoints.len() };
                }
            }
        }
        unreachable!("each round claims at least one slot for the heaviest endpoint")
    }

    #[inline]
    pub(super) fn pick(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let owner = self.owner(hash);
        if usable(owner) { Some(owner) } else { self.elsewhere(hash, usable) }
    }

    #[inline]
    fn owner(&self, hash: u64) -> usize {
        usize::from(self.slots[(hash % SLOTS as u64) as usize])
    }

    /// Where a key goes whose own endpoint is not usable: decided by the key, so that it goes to
    /// the same place each time.
    #[cold]
    fn elsewhere(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut word = hash;
        for _ in 0..PROBES_MAX {
            let owner = self.owner(splitmix(&mut word));
            if usable(owner) {
                return Some(owner);
            }
        }
        let start = (splitmix(&mut word) % self.endpoints as u64) as usize;
        (start..self.endpoints).chain(0..start).find(|index| usable(*index))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{keyed, tests::endpoints};
    use super::*;

    fn owned(table: &Maglev, count: usize) -> Vec<i64> {
        let mut owned = vec![0; count];
        for owner in &table.slots {
            owned[usize::from(*owner)] += 1;
        }
        owned
    }

    #[test]
    fn one_endpoint_owns_all() {
        let table = Maglev::build(&keyed(&endpoints(&[7])));
        assert_eq!(owned(&table, 1), [SLOTS as i64]);
    }

    #[test]
    fn an_unusable_ones_keys_spread_and_stay() {
        let table = Maglev::build(&keyed(&endpoints(&[1; 10])));
        let mut seen = [0; 10];
        for hash in (0..SLOTS as u64).filter(|hash| table.owner(*hash) == 3) {
            let picked = table.pick(hash, |index| index != 3).unwrap();
            assert_eq!(table.pick(hash, |index| index != 3), Some(picked));
            seen[picked] += 1;
        }
        assert!(seen.iter().enumerate().all(|(index, count)| (*count == 0) == (index == 3)));
        assert_eq!(table.pick(1, |_| false), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Claims are dealt in turns, so equal endpoints differ by one slot at most.
        #[test]
        fn equal_shares_differ_by_one(count in 1usize..200) {
            let owned = owned(&Maglev::build(&keyed(&endpoints(&vec![1; count]))), count);
            let (least, most) = (owned.iter().min().unwrap(), owned.iter().max().unwrap());
            prop_assert!(most - least <= 1);
        }

        /// Weighted ones own their share of the slots, give or take one turn each.
        #[test]
        fn shares_follow_the_weights(weights in prop::collection::vec(1u32..100, 1..30)) {
            let owned = owned(&Maglev::build(&keyed(&endpoints(&weights))), weights.len());
            let total: u32 = weights.iter().sum();
            for (weight, owned) in weights.iter().zip(owned) {
                let share = SLOTS as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((owned as f64 - share).abs() <= 2.0 + weights.len() as f64, "{share} {owned}");
            }
        }

        /// One endpoint less of `count` moves its own slots and few others (the paper: a small
        /// multiple of its share; here at most as many again).
        #[test]
        fn removal_moves_little(count in 3usize..60, gone in 0usize..60) {
            let gone = gone % count;
            let mut list = endpoints(&vec![1; count]);
            let before = Maglev::build(&keyed(&list));
            let names: Vec<String> = list.iter().map(|endpoint| endpoint.name.clone()).collect();
            list.remove(gone);
            let after = Maglev::build(&keyed(&list));
            let strayed = (0..SLOTS).filter(|slot| {
                let (was, is) = (usize::from(before.slots[*slot]), usize::from(after.slots[*slot]));
                was != gone && names[was] != list[is].name
            });
            let strayed = strayed.count();
            prop_assert!(strayed <= SLOTS / count, "{strayed} of {SLOTS} at {count}");
        }
    }
}
