//! Whose bucket it is: 128 bits made of what the limit tells requests apart by. What a client sent
//! is never stored, however long it is; and nobody who does not know the process's seed can find
//! two keys that meet.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// One bucket of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(pub u128);

impl Key {
    /// The shard that decides for it, for the life of the process. By multiplication: keys are
    /// uniform, and the number of shards never changes, so rendezvous hashing would only cost more.
    #[inline]
    pub fn home(self, shards: u16) -> u16 {
        (((self.0 >> 96) * u128::from(shards)) >> 32) as u16
    }
}

/// A key in the making.
pub struct KeyMaker([std::hash::DefaultHasher; 2]);

impl KeyMaker {
    /// For the limit with this number: SipHash twice, with two random seeds of this process.
    pub fn new(limit: u32) -> KeyMaker {
        static SEEDS: OnceLock<[RandomState; 2]> = OnceLock::new();
        let seeds = SEEDS.get_or_init(|| [RandomState::new(), RandomState::new()]);
        let mut maker = KeyMaker(seeds.each_ref().map(BuildHasher::build_hasher));
        maker.0.iter_mut().for_each(|hasher| hasher.write_u32(limit));
        maker
    }

    /// Adds a part. Where it ends is a part of it: `a`, `bc` is not `ab`, `c`.
    pub fn add(&mut self, part: &[u8]) {
        for hasher in &mut self.0 {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
    }

    /// The key.
    pub fn finish(&self) -> Key {
        let [high, low] = self.0.each_ref().map(Hasher::finish);
        Key(u128::from(high) << 64 | u128::from(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(limit: u32, parts: &[&str]) -> Key {
        let mut maker = KeyMaker::new(limit);
        parts.iter().for_each(|part| maker.add(part.as_bytes()));
        maker.finish()
    }

    #[test]
    fn parts_limits_and_values_make_the_key() {
        assert_eq!(key(1, &["a", "bc"]), key(1, &["a", "bc"]));
        for other in [key(2, &["a", "bc"]), key(1, &["ab", "c"]), key(1, &["a"]), key(1, &[])] {
            assert_ne!(key(1, &["a", "bc"]), other);
        }
    }

    #[test]
    fn homes_are_spread() {
        let mut homes = [0u32; 5];
        for client in 0..5_000u32 {
            homes[usize::from(key(1, &[&client.to_string()]).home(5))] += 1;
        }
        assert!(homes.iter().all(|count| (850..1_150).contains(count)), "{homes:?}");
        assert_eq!(Key(u128::MAX).home(5), 4);
    }
}
