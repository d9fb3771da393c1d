//! The slice of a large cluster that one shard sends to, so that the process keeps some connections
//! for each endpoint, and not some for each endpoint and shard. Pure; a shard has one for each
//! cluster that asks for it.
//!
//! ```text
//! endpoints  |  a  |  b  |  c  |  d  |  e  |  a ...   a ring, each as wide as its weight
//! shard 0    |=======|                                3 shards: each covers a third, or a multiple
//! shard 1            |=======|                        of it; b is two thirds of a slice's part for
//! shard 2                    |=======|                shard 1, and one for shard 0
//! ```
//!
//! As in Finagle's deterministic aperture: all slices are equally wide, and a multiple of their
//! distance, so each point of the ring is in equally many of them, and endpoints are drawn by what
//! of them is in the slice. A slice grows with what the shard has in flight, and past endpoints that
//! are down. Nothing is random here: who is in a slice follows from the plan and the shard's number.

use std::time::Duration;

use super::{Group, Loads, Policy, Table};
use crate::time::Nanos;

/// How often a shard looks at its slice, where requests come as often.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The time constant of what is in flight on average.
const SMOOTHING: Duration = Duration::from_secs(5);

/// How long a slice keeps its width before it becomes narrower.
const NARROWER_AFTER: Duration = Duration::from_secs(10);

/// A slice becomes narrower where that would leave it this many times below `load_max`.
const SLACK: f64 = 2.0;

/// Fractions of endpoints add up to whole ones, up to rounding.
const ROUNDING: f64 = 1e-6;

/// When there is an aperture, and how wide it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApertureSettings {
    /// Clusters with fewer endpoints have none. Default 100.
    pub endpoints_min: u32,
    /// Endpoints of a slice, at least. Default 12, Finagle's.
    pub aperture_min: u32,
    /// Requests in flight per endpoint of a slice, on its shard and on average, above which it
    /// grows. Default 2, Finagle's.
    pub load_max: u32,
}

/// One shard's part.
#[derive(Debug)]
pub struct Aperture {
    policy: Policy,
    settings: ApertureSettings,
    weights: Box<[u32]>,
    /// Where each endpoint ends on the ring, which is `shards` times as long as all weights.
    ends: Box<[u64]>,
    shards: u64,
    start: u64,
    slice: Group,
    /// Of the slice.
    length: u64,
    /// The same in parts of the ring, as if all were there.
    units: u64,
    units_since: Nanos,
    /// In flight on average.
    load: f64,
    looked: Nanos,
    seed: u64,
}

impl Aperture {
    /// For shard number `shard` of `shards`. `load`: what it had in flight by the plan before.
    pub fn new(
        policy: &Policy,
        weights: impl Iterator<Item = u32>,
        settings: ApertureSettings,
        (shard, shards): (usize, usize),
        load: f64,
        seed: u64,
    ) -> Aperture {
        let weights: Box<[u32]> = weights.collect();
        let shards = shards.max(1) as u64;
        let mut end = 0;
        let ends = weights.iter().map(|weight| {
            end += u64::from(*weight) * shards;
            end
        });
        let ends: Box<[u64]> = ends.collect();
        let mut aperture = Aperture {
            policy: policy.clone(),
            settings,
            start: shard as u64 * (end / shards),
            weights,
            ends,
            shards,
            slice: Group::new(&[], &Table::None, policy, seed),
            length: 0,
            units: 1,
            units_since: Nanos(0),
            load,
            looked: Nanos(0),
            seed,
        };
        aperture.units = aperture.units_for(load, 1.0);
        let all = aperture.extent(|_| true);
        aperture.set_length(all);
        aperture
    }

    /// Endpoints in the slice.
    pub fn width(&self) -> usize {
        self.slice.members().len()
    }

    /// What is in flight on average.
    pub fn load(&self) -> f64 {
        self.load
    }

    /// The endpoint for the next request; `None` if none of the slice is usable. `is_there`: neither
    /// down nor behind an open breaker; `whole`: past its slow start as far as this request goes.
    ///
    /// Allocates where the slice changes.
    pub fn pick(
        &mut self,
        loads: &impl Loads,
        now: Nanos,
        is_there: impl Fn(usize) -> bool,
        whole: impl Fn(usize) -> bool,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if now >= self.looked + LOOK_EVERY {
            self.look(loads.in_flight_in_all(), now, is_there);
        }
        let picked = self.slice.pick(loads, None, whole, usable);
        if picked.is_none() {
            // More may have gone than was known.
            self.looked = Nanos(0);
        }
        picked
    }

    /// Fits the slice to what is in flight, and to who is there.
    fn look(&mut self, in_flight: u32, now: Nanos, is_there: impl Fn(usize) -> bool) {
        if self.looked.0 > 0 {
            let elapsed = now.since(self.looked).as_secs_f64();
            let kept = (-elapsed / SMOOTHING.as_secs_f64()).exp();
            self.load = self.load * kept + f64::from(in_flight) * (1.0 - kept);
        }
        self.looked = now;
        let wider = self.units_for(self.load, 1.0);
        let narrower = self.units_for(self.load, SLACK);
        let may_shrink = now >= self.units_since + NARROWER_AFTER;
        if wider > self.units || (narrower < self.units && may_shrink) {
            self.units = if wider > self.units { wider } else { narrower };
            self.units_since = now;
        }
        let length = self.extent(is_there);
        if length != self.length {
            self.set_length(length);
        }
    }

    /// Parts of the ring that such a load needs, with some slack.
    fn units_for(&self, load: f64, slack: f64) -> u64 {
        let of_a_unit = self.weights.len() as f64 / self.shards as f64;
        let for_load = load * slack / (of_a_unit * f64::from(self.settings.load_max));
        let at_least = f64::from(self.settings.aperture_min) / of_a_unit;
        let units = (for_load.max(at_least) - ROUNDING).ceil() as u64;
        units.clamp(1, self.shards)
    }

    fn ring(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// How long the slice has to be, so that those who are missing do not make it less than
    /// `aperture_min`: it goes on past its end, endpoint by endpoint.
    fn extent(&self, is_there: impl Fn(usize) -> bool) -> u64 {
        let ring = self.ring();
        let part = |index: usize, length: u64| {
            length as f64 / (u64::from(self.weights[index]) * self.shards) as f64
        };
        let mut length = self.units * (ring / self.shards);
        let (mut meant, mut there) = (0.0, 0.0);
        for (index, piece) in self.pieces(self.start, length) {
            meant += part(index, piece);
            there += if is_there(index) { part(index, piece) } else { 0.0 };
        }
        let needed = f64::from(self.settings.aperture_min).min(meant);
        for (index, piece) in self.pieces(self.start + length, ring - length) {
            if there + ROUNDING >= needed {
                break;
            }
            there += if is_there(index) { part(index, piece) } else { 0.0 };
            length += piece;
        }
        length
    }

    fn set_length(&mut self, length: u64) {
        let mut members: Vec<(u32, u32)> = Vec::new();
        for (index, piece) in self.pieces(self.start, length) {
            let piece = u32::try_from(piece).unwrap_or(u32::MAX);
            match members.first_mut() {
                // All around: it ends where it began.
                Some((first, weight)) if *first == index as u32 => *weight += piece,
                _ => members.push((index as u32, piece)),
            }
        }
        self.slice = Group::new(&members, &Table::None, &self.policy, self.seed);
        self.length = length;
    }

    /// The endpoints from a point on, for a length, with what of them lies there.
    fn pieces(&self, from: u64, length: u64) -> impl Iterator<Item = (usize, u64)> {
        let ring = self.ring();
        let mut at = if ring == 0 { 0 } else { from % ring };
        let mut index = self.ends.partition_point(|end| *end <= at);
        let mut left = length;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let picked = index;
            let end = self.ends[picked];
            let piece = left.min(end - at);
            left -= piece;
            index += 1;
            at = end;
            if index == self.ends.len() {
                (index, at) = (0, 0);
            }
            Some((picked, piece))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::Busy;
    use super::*;

    const SETTINGS: ApertureSettings =
        ApertureSettings { endpoints_min: 10, aperture_min: 12, load_max: 2 };

    fn aperture(weights: &[u32], shard: usize, shards: usize) -> Aperture {
        let weights = weights.iter().copied();
        Aperture::new(&Policy::LeastRequest, weights, SETTINGS, (shard, shards), 0.0, 7)
    }

    fn members(aperture: &Aperture) -> Vec<usize> {
        aperture.slice.members().collect()
    }

    fn at(seconds: f64) -> Nanos {
        Nanos((seconds * 1e9) as u64)
    }

    #[test]
    fn slices_lie_side_by_side() {
        let slices: Vec<_> = (0..4).map(|shard| members(&aperture(&[1; 48], shard, 4))).collect();
        for (shard, slice) in slices.iter().enumerate() {
            assert_eq!(*slice, (shard * 12..shard * 12 + 12).collect::<Vec<_>>());
        }
        // Twelve are more than a quarter of twenty: three quarters.
        assert_eq!(members(&aperture(&[1; 20], 3, 4)), (15..20).chain(0..10).collect::<Vec<_>>());
        assert_eq!(aperture(&[1; 200], 0, 1).width(), 200, "one shard has all");
        assert_eq!(aperture(&[1; 5], 1, 8).width(), 5);
    }

    /// What is down is made up for past the end, and only that.
    #[test]
    fn who_is_down_does_not_narrow_it() {
        let mut slice = aperture(&[1; 48], 1, 4);
        let down = |gone: &'static [usize]| move |index: usize| !gone.contains(&index);
        let look = |slice: &mut Aperture, now, gone| {
            let there = down(gone);
            slice.pick(&Busy(&[]), at(now), there, there, there)
        };
        assert!(look(&mut slice, 1.0, &[]).is_some());
        assert_eq!(members(&slice), (12..24).collect::<Vec<_>>());
        look(&mut slice, 2.0, &[13, 20, 24]);
        assert_eq!(members(&slice), (12..27).collect::<Vec<_>>());
        look(&mut slice, 3.0, &[0, 1]);
        assert_eq!(members(&slice), (12..24).collect::<Vec<_>>());
        // All of it: the next twelve.
        const ALL: [usize; 12] = [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
        let picked = look(&mut slice, 4.0, &ALL).unwrap();
        assert!((24..36).contains(&picked));
        // And if nobody is there, all the ring is looked at, and nobody found.
        assert_eq!(slice.pick(&Busy(&[]), at(5.0), |_| false, |_| false, |_| false), None);
        assert_eq!(slice.width(), 48);
    }

    /// It grows with what is in flight, not for a moment's, and does not go back and forth.
    #[test]
    fn it_grows_with_the_load() {
        let mut slice = aperture(&[1; 48], 0, 4);
        let mut widths = Vec::new();
        let mut run = |slice: &mut Aperture, from: u32, to: u32, all: u32| {
            let mut in_flight = vec![0; 48];
            in_flight[47] = all;
            for step in from * 10..to * 10 {
                slice.pick(
                    &Busy(&in_flight),
                    at(f64::from(step) / 10.0),
                    |_| true,
                    |_| true,
                    |_| true,
                );
                if widths.last() != Some(&slice.width()) {
                    widths.push(slice.width());
                }
            }
        };
        run(&mut slice, 1, 60, 20);
        assert_eq!(slice.width(), 12, "20 for 12 are less than two each");
        run(&mut slice, 60, 61, 60);
        assert_eq!(slice.width(), 24, "the average has just passed 24");
        run(&mut slice, 61, 62, 0);
        run(&mut slice, 62, 120, 40);
        assert_eq!(slice.width(), 24, "40 for 24");
        run(&mut slice, 120, 180, 22);
        assert_eq!(slice.width(), 24, "22 would nearly fill twelve");
        run(&mut slice, 180, 240, 1_000);
        assert_eq!(slice.width(), 48);
        run(&mut slice, 240, 300, 0);
        assert_eq!(slice.width(), 12);
        assert_eq!(widths, [12, 24, 36, 48, 36, 12], "{widths:?}");
    }

    proptest! {
        /// All slices together hold equally much of every endpoint, whatever the weights.
        #[test]
        fn slices_cover_the_ring_evenly(
            weights in prop::collection::vec(1u32..1_000, 1..60), shards in 1usize..17,
        ) {
            let mut covered = vec![0u64; weights.len()];
            let mut units = 0;
            for shard in 0..shards {
                let slice = aperture(&weights, shard, shards);
                units = slice.units;
                let pieces: Vec<_> = slice.pieces(slice.start, slice.length).collect();
                prop_assert!(slice.width() >= weights.len().min(12) || units < shards as u64);
                for (index, piece) in pieces {
                    covered[index] += piece;
                }
            }
            for (covered, weight) in covered.iter().zip(&weights) {
                prop_assert_eq!(*covered, u64::from(*weight) * shards as u64 * units);
            }
        }
    }
}
