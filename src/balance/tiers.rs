//! Priorities and zones: for which of a cluster's endpoints a request is, before the policy chooses
//! one of them. Pure; a shard has one for each cluster that has either.
//!
//! ```text
//! priority 0 --- 10 of 10 there: all requests   6 of 10: 84 %   none: nothing
//! priority 1 --- nothing                        16 %            all
//!     '--- own zone, as far as it suffices --- other zones
//! ```
//!
//! Shares are Envoy's: an endpoint bears 1.4 times its part, so a priority, and within it the own
//! zone, gives none away before less than 72 % of it are there. "There" is who is neither down by
//! checks nor behind an open breaker. What a choice cannot place, the other priorities get in turn.

use std::time::Duration;

use super::{Group, Loads, Policy, Table};
use crate::plan::Endpoint;
use crate::rng::{Rng, splitmix};
use crate::time::Nanos;

/// What endpoints that are there bear of their priority's requests, in percent of their part.
/// Envoy's default.
pub const OVERPROVISIONING_PERCENT: u32 = 140;

/// How often a shard counts who is there, where requests come as often. Checks and breakers speak
/// later than that; and what meets nobody counts at once.
const COUNT_EVERY: Duration = Duration::from_millis(10);

/// All requests, in parts.
const WHOLE: u32 = 10_000;

/// Where an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Zone {
    /// It has none, or this proxy has none.
    #[default]
    Unknown,
    /// Where this proxy is.
    Own,
    /// Elsewhere.
    Other,
}

/// When requests stay in the zone of this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneSettings {
    /// With fewer endpoints there, zones are not told apart. Default 6.
    pub endpoints_min: u32,
    /// Requests in flight at an endpoint, over all shards, from which another zone is looked at.
    /// Default 32.
    pub spill_above: u32,
}

/// The priorities and zones of a cluster: built once, shared by all shards.
#[derive(Debug, PartialEq)]
pub struct Tiering {
    tiers: Vec<Spec>,
    /// The tier of each endpoint.
    of: Vec<u8>,
    zones: ZoneSettings,
}

/// One priority: places and weights.
#[derive(Debug, PartialEq)]
struct Spec {
    all: Vec<(u32, u32)>,
    table: Table,
    /// Own and other zones, where there are both.
    zones: Option<[Vec<(u32, u32)>; 2]>,
}

impl Tiering {
    /// `None` where all endpoints are of one priority and no zone is preferred.
    pub fn of(policy: &Policy, endpoints: &[Endpoint], zones: ZoneSettings) -> Option<Tiering> {
        let mut priorities: Vec<u32> = endpoints.iter().map(|it| it.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let hashes = matches!(policy, Policy::RingHash { .. } | Policy::Maglev { .. });
        let seats = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<(u32, u32)> {
            let all = endpoints.iter().enumerate().filter(|(_, it)| wanted(it));
            all.map(|(index, it)| (index as u32, it.weight)).collect()
        };
        let tiers = priorities.iter().map(|priority| {
            let is_own = |it: &Endpoint| it.priority == *priority && it.zone == Zone::Own;
            let is_other = |it: &Endpoint| it.priority == *priority && it.zone != Zone::Own;
            let of_tier: Vec<Endpoint> =
                endpoints.iter().filter(|it| it.priority == *priority).cloned().collect();
            let zones = [seats(&is_own), seats(&is_other)];
            Spec {
                all: seats(&|it| it.priority == *priority),
                table: Table::build(policy, &of_tier),
                zones: Some(zones).filter(|zones| !hashes && zones.iter().all(|it| !it.is_empty())),
            }
        });
        let tiers: Vec<Spec> = tiers.collect();
        let plain = tiers.len() <= 1 && tiers.iter().all(|tier| tier.zones.is_none());
        let tier_of =
            |it: &Endpoint| priorities.partition_point(|priority| *priority < it.priority) as u8;
        let of = endpoints.iter().map(tier_of).collect();
        (!plain).then_some(Tiering { tiers, of, zones })
    }

    /// Of each endpoint, from 0.
    pub fn tier_of_each(&self) -> &[u8] {
        &self.of
    }
}

/// How much of a priority's requests its endpoints can take, of 10,000.
pub fn healthy_share(there: usize, all: usize) -> u32 {
    if all == 0 {
        return 0;
    }
    let able = there as u64 * u64::from(WHOLE * OVERPROVISIONING_PERCENT / 100) / all as u64;
    able.min(u64::from(WHOLE)) as u32
}

/// Who may be chosen; each is asked by its place in the cluster.
pub struct Candidates<W, U, T, P> {
    /// May take this request, and is past its slow start as far as this request goes.
    pub whole: W,
    /// May take this request.
    pub usable: U,
    /// Is neither down nor behind an open breaker; `panics`: whoever is down counts as up.
    pub is_there: T,
    /// Whether a tier is in panic.
    pub panics: P,
}

/// One shard's part.
#[derive(Debug)]
pub struct Tiers {
    tiers: Box<[Tier]>,
    zones: ZoneSettings,
    hashes: bool,
    counted_until: Nanos,
    rng: Rng,
}

#[derive(Debug)]
struct Tier {
    all: Group,
    zones: Option<Zones>,
    /// Of all requests.
    share: u32,
    in_panic: bool,
}

#[derive(Debug)]
struct Zones {
    own: Group,
    others: Group,
    /// Of the tier's requests, what the own zone can take; none while zones are not told apart.
    stays: Option<u32>,
}

impl Tiers {
    /// `shards`: how many share what may be in flight.
    pub fn new(tiering: &Tiering, policy: &Policy, shards: u32, seed: u64) -> Tiers {
        let mut rng = Rng::new(seed);
        let mut group =
            |seats: &[(u32, u32)], table: &Table| Group::new(seats, table, policy, rng.bits());
        let tiers = tiering.tiers.iter().map(|spec| Tier {
            all: group(&spec.all, &spec.table),
            zones: spec.zones.as_ref().map(|[own, others]| Zones {
                own: group(own, &Table::None),
                others: group(others, &Table::None),
                stays: None,
            }),
            share: 0,
            in_panic: false,
        });
        let tiers = tiers.collect();
        let spill_above = tiering.zones.spill_above.div_ceil(shards.max(1));
        Tiers {
            tiers,
            zones: ZoneSettings { spill_above, ..tiering.zones },
            hashes: matches!(policy, Policy::RingHash { .. } | Policy::Maglev { .. }),
            counted_until: Nanos(0),
            rng,
        }
    }

    /// The endpoint for the next request; `None` if none is usable.
    pub fn pick<W, U, T, P>(
        &mut self,
        loads: &impl Loads,
        hash: Option<u64>,
        now: Nanos,
        who: &Candidates<W, U, T, P>,
    ) -> Option<usize>
    where
        W: Fn(usize) -> bool,
        U: Fn(usize) -> bool,
        T: Fn(usize, bool) -> bool,
        P: Fn(usize) -> bool,
    {
        if now >= self.counted_until {
            self.count(who);
            self.counted_until = now + COUNT_EVERY;
        }
        let random = match hash {
            // A key has one priority for as long as the shares stay.
            Some(mut key) if self.hashes => splitmix(&mut key),
            _ => self.rng.bits(),
        };
        let chosen = self.chosen(part_of_whole(random));
        let picked = self.pick_in(chosen, loads, hash, who);
        if picked.is_some() {
            return picked;
        }
        // More may have gone than was known.
        self.counted_until = Nanos(0);
        let others = (0..self.tiers.len()).filter(|tier| *tier != chosen);
        others.into_iter().find_map(|tier| self.pick_in(tier, loads, hash, who))
    }

    /// The tier whose share this point lies in.
    fn chosen(&self, mut point: u32) -> usize {
        for (index, tier) in self.tiers.iter().enumerate() {
            match point.checked_sub(tier.share) {
                Some(rest) => point = rest,
                None => return index,
            }
        }
        0
    }

    fn pick_in<W, U, T, P>(
        &mut self,
        tier: usize,
        loads: &impl Loads,
        hash: Option<u64>,
        who: &Candidates<W, U, T, P>,
    ) -> Option<usize>
    where
        W: Fn(usize) -> bool,
        U: Fn(usize) -> bool,
    {
        let Tiers { tiers, zones: settings, rng, .. } = self;
        let Tier { all, zones, .. } = &mut tiers[tier];
        let Some(Zones { own, others, stays: Some(stays) }) = zones else {
            return all.pick(loads, hash, &who.whole, &who.usable);
        };
        let from = |group: &mut Group| group.pick(loads, hash, &who.whole, &who.usable);
        if *stays < WHOLE && part_of_whole(rng.bits()) >= *stays {
            return from(others).or_else(|| from(own));
        }
        let Some(near) = from(own) else { return from(others) };
        let in_flight = loads.in_flight(near);
        if in_flight < settings.spill_above {
            return Some(near);
        }
        Some(from(others).filter(|far| loads.in_flight(*far) < in_flight).unwrap_or(near))
    }

    /// Who is there, and what follows for the shares.
    fn count<W, U, T, P>(&mut self, who: &Candidates<W, U, T, P>)
    where
        T: Fn(usize, bool) -> bool,
        P: Fn(usize) -> bool,
    {
        let there = |group: &Group, in_panic| {
            group.members().filter(|index| (who.is_there)(*index, in_panic)).count()
        };
        for (index, tier) in self.tiers.iter_mut().enumerate() {
            tier.in_panic = (who.panics)(index);
            let count = there(&tier.all, false);
            tier.share = healthy_share(count, tier.all.members().len());
            if let Some(Zones { own, others, stays }) = &mut tier.zones {
                let near = there(own, false);
                let told_apart = !tier.in_panic && count >= self.zones.endpoints_min as usize;
                *stays = match (told_apart && near > 0, there(others, false)) {
                    (false, _) => None,
                    (true, 0) => Some(WHOLE),
                    (true, _) => Some(healthy_share(near, own.members().len())),
                };
            }
        }
        if self.tiers.iter().all(|tier| tier.in_panic) {
            // Too few anywhere: by size, as if nobody was down.
            for tier in &mut self.tiers {
                tier.share = there(&tier.all, true) as u32;
            }
        }
        let sum: u64 = self.tiers.iter().map(|tier| u64::from(tier.share)).sum();
        let in_panic = self.tiers.iter().all(|tier| tier.in_panic);
        let whole = if in_panic { sum } else { sum.min(u64::from(WHOLE)) };
        let mut left = WHOLE;
        for tier in &mut self.tiers {
            let part = (u64::from(tier.share) * u64::from(WHOLE)).checked_div(whole).unwrap_or(0);
            tier.share = left.min(part as u32);
            left -= tier.share;
        }
        // What rounding leaves is the first one's that has any; with nobody there, the first one's.
        let first = self.tiers.iter().position(|tier| tier.share > 0).unwrap_or(0);
        if let Some(tier) = self.tiers.get_mut(first) {
            tier.share += left;
        }
    }
}

/// Of [`WHOLE`], from 64 random bits.
fn part_of_whole(random: u64) -> u32 {
    (((random >> 32) * u64::from(WHOLE)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{Busy, endpoints};
    use super::*;

    const SETTINGS: ZoneSettings = ZoneSettings { endpoints_min: 6, spill_above: 4 };

    /// Endpoints with a priority and a zone.
    fn list(seats: &[(u32, Zone)]) -> Vec<Endpoint> {
        let mut list = endpoints(&vec![1; seats.len()]);
        for (endpoint, (priority, zone)) in list.iter_mut().zip(seats) {
            (endpoint.priority, endpoint.zone) = (*priority, *zone);
        }
        list
    }

    fn tiers(policy: &Policy, seats: &[(u32, Zone)]) -> Tiers {
        let tiering = Tiering::of(policy, &list(seats), SETTINGS).expect("tiers");
        Tiers::new(&tiering, policy, 1, 1)
    }

    /// How many of 10,000 requests each endpoint gets where some are down, and some tiers in panic.
    fn counts(tiers: &mut Tiers, count: usize, down: &[usize], panics: &[usize]) -> Vec<u32> {
        let tier_of: Vec<usize> = (0..count)
            .map(|index| {
                tiers.tiers.iter().position(|it| it.all.members().any(|at| at == index)).unwrap()
            })
            .collect();
        let mut up = vec![true; count];
        down.iter().for_each(|index| up[*index] = false);
        let is_up = |index: usize| up[index];
        let usable = |index: usize| is_up(index) || panics.contains(&tier_of[index]);
        let who = Candidates {
            whole: usable,
            usable,
            is_there: |index: usize, in_panic: bool| is_up(index) || in_panic,
            panics: |tier: usize| panics.contains(&tier),
        };
        let mut counts = vec![0; count];
        tiers.counted_until = Nanos(0);
        for at in 1..=10_000u64 {
            let now = Nanos(at * 1_000_000);
            if let Some(index) = tiers.pick(&Busy(&[]), None, now, &who) {
                counts[index] += 1;
            }
        }
        counts
    }

    fn near(count: u32, percent: u32) {
        assert!(count.abs_diff(percent * 100) <= 200, "{count} is not {percent} %");
    }

    /// The table of Envoy's documentation ("Priority levels"), two and three levels of 100 each.
    #[test]
    fn shares_are_envoys() {
        let two: Vec<_> = (0..200).map(|at| (at / 100, Zone::Unknown)).collect();
        for (up, shares) in [
            ([100, 100], [100, 0]),
            ([72, 100], [100, 0]),
            ([71, 100], [99, 1]),
            ([50, 100], [70, 30]),
            ([25, 100], [35, 65]),
            ([0, 100], [0, 100]),
            ([25, 25], [50, 50]),
            ([72, 72], [100, 0]),
            ([50, 60], [70, 30]),
            ([5, 65], [7, 93]),
            ([0, 5], [0, 100]),
        ] {
            let mut tiers = tiers(&Policy::Random, &two);
            let down: Vec<usize> = (up[0]..100).chain(100 + up[1]..200).collect();
            let counts = counts(&mut tiers, 200, &down, &[]);
            near(counts[..100].iter().sum(), shares[0]);
            near(counts[100..].iter().sum(), shares[1]);
            assert!(down.iter().all(|index| counts[*index] == 0));
        }
        let three: Vec<_> = (0..300).map(|at| (at / 100 * 10, Zone::Unknown)).collect();
        for (up, shares) in [
            ([100; 3], [100, 0, 0]),
            ([50, 20, 100], [70, 28, 2]),
            ([25, 25, 25], [35, 35, 30]),
            ([10, 20, 20], [20, 40, 40]),
        ] {
            let mut tiers = tiers(&Policy::LeastRequest, &three);
            let gone = (0..3).flat_map(|tier| tier * 100 + up[tier]..tier * 100 + 100);
            let counts = counts(&mut tiers, 300, &gone.collect::<Vec<_>>(), &[]);
            for (tier, share) in shares.into_iter().enumerate() {
                near(counts[tier * 100..tier * 100 + 100].iter().sum(), share);
            }
        }
    }

    /// One level in panic uses all its endpoints for its share; all of them share by size.
    #[test]
    fn panic_by_level() {
        let seats: Vec<_> = (0..30).map(|at| (at / 10, Zone::Unknown)).collect();
        let down: Vec<usize> = (1..10).chain(12..20).chain(22..30).collect();
        let mut some = tiers(&Policy::Random, &seats);
        let got = counts(&mut some, 30, &down, &[0]);
        // 14, 28, 28 of 70.
        near(got[..10].iter().sum(), 20);
        assert!(got[..10].iter().all(|count| *count > 100), "{got:?}");
        near(got[10..20].iter().sum(), 40);
        let mut all =
            tiers(&Policy::Random, &[(0, Zone::Unknown), (1, Zone::Unknown), (1, Zone::Unknown)]);
        let got = counts(&mut all, 3, &[0, 1, 2], &[0, 1]);
        near(got[0], 33);
        near(got[1] + got[2], 67);
        // Without panic, nobody.
        assert_eq!(counts(&mut all, 3, &[0, 1, 2], &[]), [0, 0, 0]);
    }

    #[test]
    fn turns_stay_exact_in_each_level() {
        let seats: Vec<_> = (0..6).map(|at| (at % 2, Zone::Unknown)).collect();
        let mut tiers = tiers(&Policy::RoundRobin, &seats);
        let got = counts(&mut tiers, 6, &[0], &[]);
        // 93 % to two, and the rest to three.
        assert!(got[2].abs_diff(got[4]) <= 1 && got[1].abs_diff(got[3]) <= 1, "{got:?}");
        near(got[2] + got[4], 93);
    }

    /// The same key goes to the same place, and to another priority only when the shares say so.
    #[test]
    fn keys_stay_in_their_level() {
        let key = super::super::HashKey::SourceAddress;
        let policy = Policy::Maglev { key, bounded_load: None };
        let seats: Vec<_> = (0..20).map(|at| (at / 10, Zone::Own)).collect();
        let mut tiers = tiers(&policy, &seats);
        let mut place = |hash: u64, up: usize, second: u64| {
            let usable = |index: usize| !(up..10).contains(&index);
            let is_there = |index: usize, _| usable(index);
            let who = Candidates { whole: usable, usable, is_there, panics: |_| false };
            tiers.pick(&Busy(&[]), Some(hash), Nanos(second * 1_000_000_000), &who).unwrap()
        };
        let mut left = 0;
        for key in 0..2_000u64 {
            let home = place(key, 10, 10 * key + 1);
            assert!(home < 10 && home == place(key, 10, 10 * key + 2));
            let then = place(key, 5, 10 * key + 3);
            assert_eq!(then, place(key, 5, 10 * key + 4));
            left += u32::from(then >= 10);
        }
        near(left * 5, 30);
    }

    #[test]
    fn the_own_zone_first_as_far_as_it_goes() {
        use Zone::{Other, Own, Unknown};
        let seats = [Own, Own, Own, Own, Own, Other, Other, Other, Other, Unknown];
        let seats = seats.map(|zone| (0, zone));
        let own = |counts: &[u32]| counts[..5].iter().sum::<u32>();
        let mut all = tiers(&Policy::LeastRequest, &seats);
        assert_eq!(own(&counts(&mut all, 10, &[], &[])), 10_000);
        assert_eq!(own(&counts(&mut all, 10, &[0], &[])), 10_000);
        // Three of five bear 84 %.
        near(own(&counts(&mut all, 10, &[0, 1], &[])), 84);
        // One of five bears 28 %, and six are there.
        near(own(&counts(&mut all, 10, &[0, 1, 2, 3], &[])), 28);
        let got = counts(&mut all, 10, &[0, 1, 2, 3, 4], &[]);
        assert_eq!(own(&got), 0);
        // Five are there: zones are not told apart.
        let got = counts(&mut all, 10, &[0, 1, 2, 3, 5], &[]);
        near(own(&got), 20);
        // Nor in panic.
        let got = counts(&mut all, 10, &[1, 2, 3], &[0]);
        near(own(&got), 50);
    }

    /// Beyond what may be in flight in the own zone, the zone with less is taken.
    #[test]
    fn a_busy_zone_spills() {
        let seats: Vec<_> =
            (0..8).map(|at| (0, if at < 4 { Zone::Own } else { Zone::Other })).collect();
        let mut tiers = tiers(&Policy::LeastRequest, &seats);
        let who = Candidates {
            whole: |_: usize| true,
            usable: |_: usize| true,
            is_there: |_: usize, _: bool| true,
            panics: |_: usize| false,
        };
        let mut in_flight = [0u32; 8];
        let mut held = Vec::new();
        for _ in 0..80 {
            let picked = tiers.pick(&Busy(&in_flight), None, Nanos(1), &who).unwrap();
            in_flight[picked] += 1;
            let sum = |part: &[u32]| part.iter().sum::<u32>();
            held.push((sum(&in_flight[..4]), sum(&in_flight[4..])));
        }
        assert_eq!(held[11].1, 0, "three each stay at home: {held:?}");
        let (home, away) = held[79];
        assert!(away.abs_diff(home) <= 8, "beyond it, both alike: {held:?}");
        // And comes back.
        let back = tiers.pick(&Busy(&[3, 3, 3, 3, 0, 0, 0, 0]), None, Nanos(1), &who).unwrap();
        assert!(back < 4);
    }

    proptest! {
        /// Whatever is down: a usable endpoint if there is one, of the best priority that has any
        /// if the rest has none.
        #[test]
        fn somebody_is_found(
            seats in prop::collection::vec((0u32..4, 0u8..3, any::<bool>()), 1..20), seed: u64,
        ) {
            let zone = |it: u8| [Zone::Own, Zone::Other, Zone::Unknown][usize::from(it)];
            let seated: Vec<_> = seats.iter().map(|it| (it.0, zone(it.1))).collect();
            let settings = ZoneSettings { endpoints_min: 1, spill_above: 1 };
            for policy in [Policy::LeastRequest, Policy::RoundRobin] {
                let Some(tiering) = Tiering::of(&policy, &list(&seated), settings) else { continue };
                let mut tiers = Tiers::new(&tiering, &policy, 1, seed);
                let usable = |index: usize| seats[index].2;
                let is_there = |index: usize, _| usable(index);
                let who = Candidates { whole: |_: usize| false, usable, is_there, panics: |_| false };
                for at in 0..20 {
                    let picked = tiers.pick(&Busy(&[]), None, Nanos(at), &who);
                    prop_assert_eq!(picked.is_some(), seats.iter().any(|it| it.2));
                    prop_assert!(picked.is_none_or(usable));
                }
            }
        }
    }
}
