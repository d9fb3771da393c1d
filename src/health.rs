//! What active checks have found of the endpoints of a cluster, and who is new: for the shards to
//! read when they choose. The control thread writes, and nobody else; what shards read is never more
//! than a plain load.
//!
//! | | |
//! |---|---|
//! | down | gets no request, unless the cluster is in panic |
//! | panic | fewer endpoints are up than `panic_threshold` says: rather all of them than none |
//! | new, or up again | with `slow_start`: its share grows over that time, if there is another |
//!
//! A breaker knows nothing of it: down is down whatever the breaker says, up closes no breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::Counter;
use crate::reconcile::EndpointId;
use crate::time::Nanos;

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
    in_panic: AtomicBool,
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
            in_panic: AtomicBool::new(false),
        }
    }

    /// Endpoints that were there before keep their records; others join those.
    pub fn take_over(&mut self, before: &ClusterHealth, now: Nanos) {
        let joins_others = !before.endpoints.is_empty();
        for (id, health) in &mut self.endpoints {
            match before.of(*id) {
                Some(known) => *health = known.clone(),
                None if joins_others => *health = Arc::new(EndpointHealth::joining(now)),
                None => {}
            }
        }
        self.in_panic = AtomicBool::new(before.in_panic());
        self.sum_up();
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
        let panics = down > 0 && (all - down) * 100 < all * self.panic_percent as usize;
        let newest = self.endpoints.iter().map(|(_, health)| health.since()).max();
        let ramps_until = match newest {
            Some(since) if since.0 > 0 => since + self.slow_start,
            _ => Nanos(0),
        };
        let until = if down > 0 { Nanos::NEVER } else { ramps_until };
        let panicked = self.in_panic.swap(panics, Ordering::Relaxed);
        self.special_until.store(until.0, Ordering::Relaxed);
        (panics != panicked).then_some(panics)
    }

    /// Whether all endpoints are alike: nearly always.
    #[inline]
    pub fn is_plain(&self, now: Nanos) -> bool {
        now.0 >= self.special_until.load(Ordering::Relaxed)
    }

    /// Whether health is ignored.
    pub fn in_panic(&self) -> bool {
        self.in_panic.load(Ordering::Relaxed)
    }

    /// Whether an endpoint gets no request at all.
    pub fn is_out(&self, index: usize) -> bool {
        self.endpoints[index].1.state() == Health::Down && !self.in_panic()
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

    #[test]
    fn panic_can_be_switched_off() {
        let health = ClusterHealth::new([EndpointId(0)].into_iter(), Duration::ZERO, 0);
        assert_eq!(set(&health, 0, Health::Down, at(1)), None);
        assert!(health.is_out(0));
    }
}
