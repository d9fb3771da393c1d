//! What active checks have found of the endpoints of a cluster, and who is new: for the shards to
//! read when they choose. The control thread writes, and nobody else; what shards read is never more
//! than a plain load.
//!
//! | | |
//! |---|---|
//! | down | gets no request, unless the cluster is in panic |
//! | panic | fewer endpoints are up than `panic_threshold` says: rather all of them than none; with priorities, of one of them, and only where all together cannot take the requests |
//! | new, or up again | with `slow_start`: its share grows over that time, if there is another |
//!
//! A breaker knows nothing of it: down is down whatever the breaker says, up closes no breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::balance::healthy_share;
use crate::metrics::Counter;
use crate::reconcile::EndpointId;
use crate::time::Nanos;

/// Tiers that a cluster may have: each has a bit.
pub const TIERS_MAX: u32 = 32;

/// What checks say of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Health {
    /// Nobody checks it, or nobody has yet: it is used.
    #[default]
    Unchecked,
    /// It is used.
    Up,
    /// It is not.
    Down,
}

/// One endpoint's record. It lives as long as the endpoint's number.
#[derive(Debug, Default)]
pub struct EndpointHealth {
    state: AtomicU8,
    /// When it was first there, or up again; 0: from the beginning.
    since: AtomicU64,
    /// Checks that it passed.
    pub passed: Counter,
    /// Checks that it did not.
    pub failed: Counter,
}

impl EndpointHealth {
    /// One that joins others at this time.
    pub fn joining(now: Nanos) -> EndpointHealth {
        EndpointHealth { since: AtomicU64::new(now.0), ..EndpointHealth::default() }
    }

    /// What checks say of it.
    pub fn state(&self) -> Health {
        match self.state.load(Ordering::Relaxed) {
            1 => Health::Up,
            2 => Health::Down,
            _ => Health::Unchecked,
        }
    }

    /// Checks say this from now on. Only the control thread may call it.
    pub fn set(&self, state: Health, now: Nanos) {
        if self.state() == Health::Down && state == Health::Up {
            self.since.store(now.0, Ordering::Relaxed);
        }
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn since(&self) -> Nanos {
        Nanos(self.since.load(Ordering::Relaxed))
    }
}

/// A cluster's endpoints together.
#[derive(Debug)]
pub struct ClusterHealth {
    /// In the order of the plan.
    endpoints: Vec<(EndpointId, Arc<EndpointHealth>)>,
    slow_start: Duration,
    /// Of the endpoints, in percent: with fewer up, all are used.
    panic_percent: u32,
    /// Before this time there is something to look at: [`Nanos::NEVER`] while an endpoint is down.
    special_until: AtomicU64,
    /// The tier of each endpoint, where there is more than one.
    tiers: Vec<u8>,
    /// A bit for each tier.
    panics: AtomicU32,
    panics_begun: Arc<Counter>,
}

impl ClusterHealth {
    /// Of new endpoints.
    pub fn new(
        endpoints: impl Iterator<Item = EndpointId>,
        slow_start: Duration,
        panic_percent: u32,
    ) -> ClusterHealth {
        ClusterHealth {
            endpoints: endpoints.map(|id| (id, Arc::default())).collect(),
            slow_start,
            panic_percent,
            special_until: AtomicU64::new(0),
            tiers: Vec::new(),
            panics: AtomicU32::new(0),
            panics_begun: Arc::default(),
        }
    }

    /// With priorities: the tier of each endpoint, below [`TIERS_MAX`].
    pub fn with_tiers(self, tiers: Vec<u8>) -> ClusterHealth {
        // Of one tier alone, the share that is up decides.
        let tiers = if tiers.iter().all(|tier| *tier == 0) { Vec::new() } else { tiers };
        ClusterHealth { tiers, ..self }
    }

    /// Endpoints that were there before keep their records; others join those. Tells as
    /// [`ClusterHealth::sum_up`] does.
    pub fn take_over(&mut self, before: &ClusterHealth, now: Nanos) -> Option<bool> {
        let joins_others = !before.endpoints.is_empty();
        for (id, health) in &mut self.endpoints {
            match before.of(*id) {
                Some(known) => *health = known.clone(),
                None if joins_others => *health = Arc::new(EndpointHealth::joining(now)),
                None => {}
            }
        }
        let panicked = before.panics.load(Ordering::Relaxed);
        // Another number of tiers: who is in panic is found out anew.
        self.panics = AtomicU32::new(if self.tiers.is_empty() == before.tiers.is_empty() {
            panicked
        } else {
            0
        });
        self.panics_begun = before.panics_begun.clone();
        self.sum_up()
    }

    /// An endpoint's record.
    pub fn of(&self, id: EndpointId) -> Option<&Arc<EndpointHealth>> {
        self.endpoints.iter().find(|(other, _)| *other == id).map(|(_, health)| health)
    }

    /// All of them.
    pub fn endpoints(&self) -> impl Iterator<Item = &(EndpointId, Arc<EndpointHealth>)> {
        self.endpoints.iter()
    }

    /// After a record has changed. Tells whether panic began (`true`) or ended.
    pub fn sum_up(&self) -> Option<bool> {
        let all = self.endpoints.len();
        let is_down = |(_, health): &&(_, Arc<EndpointHealth>)| health.state() == Health::Down;
        let down = self.endpoints.iter().filter(is_down).count();
        let panics = match self.tiers.is_empty() {
            true => u32::from(down > 0 && self.too_few(down, all)),
            false => self.tiers_in_panic(),
        };
        let newest = self.endpoints.iter().map(|(_, health)| health.since()).max();
        let ramps_until = match newest {
            Some(since) if since.0 > 0 => since + self.slow_start,
            _ => Nanos(0),
        };
        let until = if down > 0 { Nanos::NEVER } else { ramps_until };
        let panicked = self.panics.swap(panics, Ordering::Relaxed);
        self.special_until.store(until.0, Ordering::Relaxed);
        if panics & !panicked != 0 {
            self.panics_begun.add(1);
        }
        ((panics != 0) != (panicked != 0)).then_some(panics != 0)
    }

    fn too_few(&self, down: usize, all: usize) -> bool {
        (all - down) * 100 < all * self.panic_percent as usize
    }

    /// As Envoy has it: a tier with too few endpoints is in panic only where all tiers together cannot
    /// take the requests.
    fn tiers_in_panic(&self) -> u32 {
        let count = self.tiers.iter().max().map_or(0, |last| usize::from(*last) + 1);
        let of_tier = |tier: usize| {
            let all = self.endpoints.iter().zip(&self.tiers);
            all.filter(move |(_, of)| usize::from(**of) == tier).map(|((_, health), _)| health)
        };
        let counted: Vec<(usize, usize)> = (0..count)
            .map(|tier| {
                let down = of_tier(tier).filter(|it| it.state() == Health::Down).count();
                (down, of_tier(tier).count())
            })
            .collect();
        let able = counted.iter().map(|(down, all)| healthy_share(all - down, *all)).sum::<u32>();
        if able >= healthy_share(1, 1) {
            return 0;
        }
        let panics = counted.iter().map(|(down, all)| *down > 0 && self.too_few(*down, *all));
        panics.enumerate().fold(0, |bits, (tier, panics)| bits | u32::from(panics) << tier)
    }

    /// Whether all endpoints are alike: nearly always.
    #[inline]
    pub fn is_plain(&self, now: Nanos) -> bool {
        now.0 >= self.special_until.load(Ordering::Relaxed)
    }

    /// Whether health is ignored, in a tier at least.
    pub fn in_panic(&self) -> bool {
        self.panics.load(Ordering::Relaxed) != 0
    }

    /// How often panic has begun.
    pub fn panics_begun(&self) -> u64 {
        self.panics_begun.get()
    }

    /// The same of one tier.
    pub fn panics(&self, tier: usize) -> bool {
        self.panics.load(Ordering::Relaxed) >> tier & 1 == 1
    }

    /// Whether checks say no, panic or not.
    pub fn is_down(&self, index: usize) -> bool {
        self.endpoints[index].1.state() == Health::Down
    }

    /// Whether an endpoint gets no request at all.
    pub fn is_out(&self, index: usize) -> bool {
        self.is_down(index) && !self.panics(self.tiers.get(index).map_or(0, |tier| (*tier).into()))
    }

    /// Whether this request is not among an endpoint's share yet, if another can take it. `dice` is
    /// uniform over all its values.
    pub fn holds_back(&self, index: usize, now: Nanos, dice: u32) -> bool {
        let since = self.endpoints[index].1.since();
        let elapsed = now.since(since).as_nanos();
        let span = self.slow_start.as_nanos();
        since.0 > 0 && elapsed < span && u128::from(dice) * span >= elapsed << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(count: u32, slow_start: u64) -> ClusterHealth {
        let endpoints = (0..count).map(EndpointId);
        ClusterHealth::new(endpoints, Duration::from_secs(slow_start), 50)
    }

    fn at(seconds: u64) -> Nanos {
        Nanos(seconds * 1_000_000_000)
    }

    fn set(health: &ClusterHealth, index: u32, state: Health, now: Nanos) -> Option<bool> {
        health.of(EndpointId(index)).unwrap().set(state, now);
        health.sum_up()
    }

    #[test]
    fn who_is_down_is_out_unless_too_many_are() {
        let health = cluster(4, 0);
        assert!(health.is_plain(at(1)));
        assert_eq!(set(&health, 1, Health::Down, at(1)), None);
        assert!(!health.is_plain(at(1_000_000)));
        let out = |health: &ClusterHealth| (0..4).map(|it| health.is_out(it)).collect::<Vec<_>>();
        assert_eq!(out(&health), [false, true, false, false]);
        assert_eq!(set(&health, 2, Health::Down, at(1)), None, "half are up: that is enough");
        assert_eq!(set(&health, 3, Health::Down, at(1)), Some(true));
        assert_eq!(out(&health), [false; 4]);
        assert_eq!(set(&health, 3, Health::Up, at(2)), Some(false));
        assert_eq!(out(&health), [false, true, true, false]);
        set(&health, 1, Health::Up, at(2));
        set(&health, 2, Health::Up, at(2));
        assert!(health.is_plain(at(2)));
    }

    #[test]
    fn who_comes_back_gets_its_share_bit_by_bit() {
        let health = cluster(2, 10);
        set(&health, 0, Health::Up, at(1));
        assert!(health.is_plain(at(1)), "it was never down");
        set(&health, 0, Health::Down, at(2));
        set(&health, 0, Health::Up, at(100));
        assert!(!health.is_plain(at(109)) && health.is_plain(at(110)));
        let share = |seconds: u64| {
            let dice = (0..1000u32).map(|it| it * (u32::MAX / 1000));
            dice.filter(|dice| !health.holds_back(0, at(seconds), *dice)).count()
        };
        assert!(share(100) == 0 && (498..=502).contains(&share(105)));
        assert_eq!(share(110), 1000);
        assert!(!health.holds_back(1, at(100), u32::MAX));
    }

    #[test]
    fn who_joins_others_starts_slowly() {
        let mut first = cluster(1, 10);
        first.take_over(&cluster(0, 10), at(5));
        assert!(first.is_plain(at(5)), "all are new");
        let mut second = cluster(2, 10);
        second.take_over(&first, at(50));
        assert!(!second.is_plain(at(55)));
        assert!(second.holds_back(1, at(51), u32::MAX) && !second.holds_back(0, at(51), u32::MAX));
        let mut third = cluster(2, 10);
        third.take_over(&second, at(58));
        assert!(third.holds_back(1, at(59), u32::MAX), "a reload changes nothing");
        assert!(third.is_plain(at(60)));
    }

    /// Envoy's rule: no panic while the tiers together suffice.
    #[test]
    fn tiers_panic_by_themselves_where_all_are_too_few() {
        let cluster = || cluster(20, 0).with_tiers((0..20).map(|at| at / 10).collect());
        let health = cluster();
        let down = |health: &ClusterHealth, range: std::ops::Range<u32>| {
            range.for_each(|at| assert_eq!(set(health, at, Health::Down, at_time()), None));
        };
        fn at_time() -> Nanos {
            at(1)
        }
        down(&health, 0..10);
        assert!(!health.in_panic() && health.is_out(0), "the second has all");
        down(&health, 10..12);
        assert!(!health.in_panic(), "eight of ten take all");
        assert_eq!(set(&health, 12, Health::Down, at(1)), Some(true));
        assert!(health.panics(0) && !health.panics(1), "seven of ten do not; the first panics");
        assert!(!health.is_out(0) && health.is_out(12) && health.is_down(0));
        down(&health, 13..16);
        assert!(health.panics(0) && health.panics(1));
        assert_eq!(set(&health, 0, Health::Up, at(2)), None);
        let mut next = cluster();
        next.take_over(&health, at(3));
        assert!(next.panics(0) && next.panics(1), "a reload forgets nothing");
    }

    #[test]
    fn panic_can_be_switched_off() {
        let health = ClusterHealth::new([EndpointId(0)].into_iter(), Duration::ZERO, 0);
        assert_eq!(set(&health, 0, Health::Down, at(1)), None);
        assert!(health.is_out(0));
    }
}
