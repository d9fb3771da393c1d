//! Client connections on their way from the shard that accepted them to one that has fewer. Who
//! counts connections must not overlook them, or all shards would hand theirs to the same one.

use crate::metrics::Counter;

/// How many are on their way, from each shard to each other. One of these, shared by all.
#[derive(Debug)]
pub struct Transit {
    shards: usize,
    /// By giver and taker; the giver counts.
    handed: Vec<Counter>,
    /// By giver and taker; the taker counts.
    taken: Vec<Counter>,
}

impl Transit {
    /// None on their way between so many shards.
    pub fn new(shards: usize) -> Transit {
        let counters = || (0..shards * shards).map(|_| Counter::default()).collect();
        Transit { shards, handed: counters(), taken: counters() }
    }

    /// One leaves; called by the giver, before it does.
    pub fn hand(&self, by: usize, to: usize) {
        self.handed[by * self.shards + to].add(1);
    }

    /// One has arrived; called by the taker, once it is counted among its own.
    pub fn take(&self, by: usize, to: usize) {
        self.taken[by * self.shards + to].add(1);
    }

    /// How many are on their way to a shard.
    pub fn to(&self, shard: usize) -> u64 {
        let pairs = (0..self.shards).map(|by| by * self.shards + shard);
        // Those taken are read first: what arrives meanwhile is counted twice rather than never.
        pairs
            .map(|pair| {
                let taken = self.taken[pair].get();
                self.handed[pair].get().saturating_sub(taken)
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_on_its_way() {
        let transit = Transit::new(3);
        transit.hand(0, 2);
        transit.hand(1, 2);
        transit.hand(1, 0);
        assert_eq!([0, 1, 2].map(|shard| transit.to(shard)), [1, 0, 2]);
        transit.take(0, 2);
        assert_eq!([0, 1, 2].map(|shard| transit.to(shard)), [1, 0, 1]);
    }
}
