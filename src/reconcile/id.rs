//! Who is who. Numbers are given by the control thread (see [`super::registry`]) and never used
//! again, so a number stands for a name and its incarnation at once.

use crate::rng::splitmix;

/// A shard of this process, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// A cluster, in one incarnation: one that is removed and added again is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterId(pub u32);

/// An endpoint of a cluster (its address and transport settings), or a breaker of a route, in one
/// incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EndpointId(pub u32);

/// The one shard that decides for a cluster, for the cluster's whole life: rendezvous hashing over
/// all shards. There is no failover.
pub fn home_of(cluster: ClusterId, shards: u16) -> ShardId {
    let score = |shard: u16| {
        let mut word = u64::from(cluster.0) << 16 | u64::from(shard);
        splitmix(&mut word)
    };
    ShardId((0..shards).max_by_key(|shard| score(*shard)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_spread() {
        let mut homes = [0u32; 4];
        for cluster in 0..4_000 {
            homes[usize::from(home_of(ClusterId(cluster), 4).0)] += 1;
        }
        assert!(homes.iter().all(|count| (850..1_150).contains(count)), "{homes:?}");
    }

    /// What makes it rendezvous hashing: a fifth shard takes clusters, but moves none between the
    /// other four.
    #[test]
    fn more_shards_move_only_what_they_take() {
        for cluster in (0..1_000).map(ClusterId) {
            let (four, five) = (home_of(cluster, 4), home_of(cluster, 5));
            assert!(five == four || five == ShardId(4));
        }
    }
}
