//! Some of a cluster's endpoints, with a balancer of their own. Pure.

use std::cell::OnceCell;

use super::{Balancer, Loads, Policy, Table};

#[derive(Debug)]
pub(super) struct Group {
    /// Their places in the cluster.
    members: Box<[u32]>,
    balancer: Balancer,
}

impl Group {
    /// `members` and their weights; `table` was built of the same.
    pub fn new(members: &[(u32, u32)], table: &Table, policy: &Policy, seed: u64) -> Group {
        let weights = || members.iter().map(|(_, weight)| *weight);
        Group {
            members: members.iter().map(|(index, _)| *index).collect(),
            balancer: Balancer::weighing(table, policy, weights, seed),
        }
    }

    /// Their places in the cluster.
    pub fn members(&self) -> impl ExactSizeIterator<Item = usize> {
        self.members.iter().map(|index| *index as usize)
    }

    /// One of those that pass `whole`; without any, of those that are usable.
    pub fn pick(
        &mut self,
        loads: &impl Loads,
        hash: Option<u64>,
        whole: impl Fn(usize) -> bool,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let Group { members, balancer } = self;
        let of = |index: usize| members[index] as usize;
        let own = Own { loads, members, in_all: OnceCell::new() };
        let picked = balancer
            .pick(&own, hash, |index| whole(of(index)))
            .or_else(|| balancer.pick(&own, hash, |index| usable(of(index))))?;
        Some(of(picked))
    }
}

/// What these have under way.
struct Own<'a, L> {
    loads: &'a L,
    members: &'a [u32],
    /// Added up once, if it is asked for.
    in_all: OnceCell<u32>,
}

impl<L: Loads> Loads for Own<'_, L> {
    fn in_flight(&self, index: usize) -> u32 {
        self.loads.in_flight(self.members[index] as usize)
    }

    fn in_flight_in_all(&self) -> u32 {
        let all = || self.members.iter().map(|index| self.loads.in_flight(*index as usize)).sum();
        *self.in_all.get_or_init(all)
    }

    fn waiting_time(&self, index: usize) -> f64 {
        self.loads.waiting_time(self.members[index] as usize)
    }
}
