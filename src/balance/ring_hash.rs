//! Ketama: each endpoint owns points on a ring of 2^64, and a key belongs to the next point. Built
//! once per plan, then read only; pure.
//!
//! Points and their hashes are Envoy's (XXH64 of `address_n`, scaled so that the lightest endpoint
//! has at least its part of `ring_size_min`), so the same endpoints own the same keys behind
//! either proxy.

use xxhash_rust::xxh64::xxh64;

/// Points on a ring, at least, unless configured. Envoy's default.
pub const RING_SIZE_MIN: u32 = 1_024;

/// Points on a ring, at most, unless configured. Envoy's default.
pub const RING_SIZE_MAX: u32 = 8 * 1_024 * 1_024;

/// Steps along the ring before it is asked whether any endpoint is usable at all.
const STEPS_MAX: usize = 64;

/// The points of a cluster.
#[derive(Debug, PartialEq)]
pub struct Ring {
    /// Ascending.
    hashes: Box<[u64]>,
    /// Whose the point is, in the order of `hashes`.
    owners: Box<[u32]>,
    /// Hashes are even, so the top bits of one nearly say its place: for each value of the top
    /// bits, the first point that is not below it, and at the end the number of points.
    starts: Box<[u32]>,
    /// What is left of a hash when only the top bits are kept.
    shift: u32,
    endpoints: usize,
}

impl Ring {
    /// `endpoints` are keys and weights, by index.
    pub(super) fn build(endpoints: &[(String, u32)], size_min: u32, size_max: u32) -> Ring {
        let mut points = Vec::new();
        let total: f64 = endpoints.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let lightest = endpoints.iter().map(|(_, weight)| *weight).min().unwrap_or(1).max(1);
        let lightest = f64::from(lightest) / total;
        let scale = ((lightest * f64::from(size_min)).ceil() / lightest).min(f64::from(size_max));
        let (mut wanted, mut had) = (0.0, 0.0);
        let mut text = String::new();
        for (index, (key, weight)) in endpoints.iter().enumerate() {
            wanted += scale * f64::from(*weight) / total;
            let mut copy = 0u32;
            while had < wanted {
                text.clear();
                text.push_str(key);
                text.push('_');
                text.push_str(itoa::Buffer::new().format(copy));
                points.push((xxh64(text.as_bytes(), 0), index as u32));
                copy += 1;
                had += 1.0;
            }
        }
        points.sort_unstable();
        let hashes: Box<[u64]> = points.iter().map(|(hash, _)| *hash).collect();
        let bits = hashes.len().next_power_of_two().ilog2().max(1);
        let shift = u64::BITS - bits;
        let mut starts: Vec<u32> = (0..1u64 << bits)
            .map(|top| hashes.partition_point(|hash| *hash < top << shift) as u32)
            .collect();
        starts.push(hashes.len() as u32);
        Ring {
            hashes,
            owners: points.iter().map(|(_, index)| *index).collect(),
            starts: starts.into(),
            shift,
            endpoints: endpoints.len(),
        }
    }

    #[inline]
    pub(super) fn pick(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let place = self.place(hash);
        let mut owners = self.owners[place..].iter().chain(&self.owners[..place]);
        let mut owner_usable = |owner: &u32| usable(*owner as usize).then_some(*owner as usize);
        if let Some(picked) = owners.by_ref().take(STEPS_MAX).find_map(&mut owner_usable) {
            return Some(picked);
        }
        if !(0..self.endpoints).any(&usable) {
            return None;
        }
        // Some usable endpoint may own no point at all: then any usable one is as good.
        owners.find_map(owner_usable).or_else(|| (0..self.endpoints).find(|index| usable(*index)))
    }

    /// The first point at or after `hash`; the number of points if there is none.
    #[inline]
    fn place(&self, hash: u64) -> usize {
        let top = (hash >> self.shift) as usize;
        let (start, end) = (self.starts[top] as usize, self.starts[top + 1] as usize);
        start + self.hashes[start..end].partition_point(|point| *point < hash)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{keyed, tests::endpoints};
    use super::*;

    fn ring(weights: &[u32]) -> Ring {
        Ring::build(&keyed(&endpoints(weights)), RING_SIZE_MIN, RING_SIZE_MAX)
    }

    #[test]
    fn points_follow_the_weights() {
        let ring = ring(&[1, 1, 2]);
        let owned = |index| ring.owners.iter().filter(|owner| **owner == index).count();
        assert_eq!((owned(0), owned(1), owned(2)), (256, 256, 512));
    }

    #[test]
    fn the_points_are_envoys() {
        let ring = ring(&[1]);
        assert_eq!(ring.hashes.len(), 1_024);
        assert!(ring.hashes.contains(&xxh64(b"10.0.0.0:80_0", 0)));
        assert!(ring.hashes.contains(&xxh64(b"10.0.0.0:80_1023", 0)));
    }

    #[test]
    fn size_is_bounded() {
        let ring = Ring::build(&keyed(&endpoints(&[1, 1_000_000])), 1_024, 4_096);
        assert!(ring.hashes.len() <= 4_097, "{}", ring.hashes.len());
        // The light one may own nothing; alone usable, it is found all the same.
        assert_eq!(ring.pick(7, |index| index == 0), Some(0));
    }

    /// Losing one endpoint of ten moves its keys and no other, and they spread.
    #[test]
    fn only_the_lost_ones_keys_move() {
        let list = endpoints(&[1; 10]);
        let before = Ring::build(&keyed(&list), RING_SIZE_MIN, RING_SIZE_MAX);
        let gone = 4;
        let mut moved_to = [0; 10];
        for key in 0..10_000u32 {
            let hash = xxh64(&key.to_le_bytes(), 0);
            let home = before.pick(hash, |_| true).unwrap();
            let now = before.pick(hash, |index| index != gone).unwrap();
            if home == gone {
                moved_to[now] += 1;
            } else {
                assert_eq!(home, now);
            }
        }
        assert_eq!(moved_to.iter().filter(|count| **count > 0).count(), 9);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Against the definition: the least point not below the hash, else the least of all.
        #[test]
        fn places_are_the_next_point(count in 1usize..30, hashes in prop::collection::vec(any::<u64>(), 50)) {
            let ring = ring(&vec![1; count]);
            for hash in hashes.into_iter().chain([0, u64::MAX]).chain(ring.hashes.iter().copied()) {
                let slow = ring.hashes.iter().position(|point| *point >= hash).unwrap_or(0);
                prop_assert_eq!(ring.pick(hash, |_| true), Some(ring.owners[slow] as usize));
            }
        }

        /// An endpoint that is removed from the configuration moves its own keys only.
        #[test]
        fn removal_moves_the_removed_ones_keys(count in 2usize..20, gone in 0usize..20, hashes in prop::collection::vec(any::<u64>(), 50)) {
            let gone = gone % count;
            let mut list = endpoints(&vec![1; count]);
            let before = Ring::build(&keyed(&list), 2_048, 2_048);
            let names: Vec<String> = list.iter().map(|endpoint| endpoint.name.clone()).collect();
            list.remove(gone);
            let after = Ring::build(&keyed(&list), 2_048, 2_048);
            let mut strayed = 0;
            for hash in hashes {
                let home = before.pick(hash, |_| true).unwrap();
                let now = &list[after.pick(hash, |_| true).unwrap()].name;
                strayed += u32::from(home != gone && names[home] != *now);
            }
            // The points of the others grow denser, which takes some keys from one to another.
            prop_assert!(strayed <= 30, "{strayed}");
        }
    }
}
