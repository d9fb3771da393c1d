//! What the balancers promise together, in a simulated process: shards with balancers of their own,
//! requests that take their time, connections that are kept. Nothing but tests.

use std::collections::VecDeque;
use std::time::Duration;

use super::tests::endpoints;
use super::*;
use crate::health::{ClusterHealth, Health};
use crate::reconcile::EndpointId;

/// What each request takes.
const SERVICE: Duration = Duration::from_millis(20);

/// What the pool keeps an idle connection.
const IDLE: Duration = Duration::from_secs(4);

enum Choice {
    All(Balancer),
    Slice(Aperture),
}

/// One shard's view.
struct Shard {
    choice: Choice,
    in_flight: Vec<u32>,
    in_all: u32,
    latency: Vec<Latency>,
    /// Since when each kept connection is idle, oldest first, for each endpoint.
    idle: Vec<Vec<Nanos>>,
}

struct Seen<'a>(&'a [u32], u32, &'a [Latency], Nanos);

impl Loads for Seen<'_> {
    fn in_flight(&self, index: usize) -> u32 {
        self.0[index]
    }

    fn in_flight_in_all(&self) -> u32 {
        self.1
    }

    fn waiting_time(&self, index: usize) -> f64 {
        self.2[index].load(self.0[index], self.3)
    }
}

/// A process with one cluster.
struct World {
    policy: Policy,
    shards: Vec<Shard>,
    health: Option<ClusterHealth>,
    /// Of 2^32: what the breaker of endpoint 7 admits.
    recovered: u64,
    ends: VecDeque<(Nanos, usize, usize)>,
    counts: Vec<u32>,
    connections: u32,
    now: Nanos,
    rng: Rng,
}

impl World {
    fn new(
        policy: &Policy,
        count: usize,
        shards: usize,
        choice: impl Fn(usize) -> Choice,
    ) -> World {
        let shard = |at| Shard {
            choice: choice(at),
            in_flight: vec![0; count],
            in_all: 0,
            latency: vec![Latency::default(); count],
            idle: vec![Vec::new(); count],
        };
        World {
            policy: policy.clone(),
            shards: (0..shards).map(shard).collect(),
            health: None,
            recovered: 1 << 32,
            ends: VecDeque::new(),
            counts: vec![0; count],
            connections: 0,
            now: Nanos(1_000_000_000),
            rng: Rng::new(4),
        }
    }

    fn of(policy: &Policy, weights: &[u32], shards: usize) -> World {
        let list = endpoints(weights);
        World::new(policy, weights.len(), shards, |at| {
            Choice::All(Balancer::new(policy, &list, 100 + at as u64))
        })
    }

    /// Closes what has been idle for too long.
    fn sweep(&mut self) {
        for kept in self.shards.iter_mut().flat_map(|shard| &mut shard.idle) {
            let stale = kept.iter().take_while(|since| self.now.since(**since) >= IDLE).count();
            kept.drain(..stale);
            self.connections -= stale as u32;
        }
    }

    /// One request on a shard, so long after the one before.
    fn request(&mut self, shard: usize, pause: Duration) -> usize {
        self.now = self.now + pause;
        let now = self.now;
        while let Some((end, shard, endpoint)) = self.ends.front().copied().filter(|it| it.0 <= now)
        {
            self.ends.pop_front();
            let shard = &mut self.shards[shard];
            shard.in_flight[endpoint] -= 1;
            shard.in_all -= 1;
            shard.latency[endpoint].observe(SERVICE, end);
            shard.idle[endpoint].push(end);
        }
        let hash = Some(self.rng.bits());
        let dice = self.policy.dice(hash, self.rng.bits() as u32);
        let Shard { choice, in_flight, in_all, latency, idle } = &mut self.shards[shard];
        let loads = Seen(in_flight, *in_all, latency, now);
        let any = |index: usize| index != 7 || u64::from(dice) < self.recovered;
        let picked = match (choice, &self.health) {
            (Choice::All(balancer), Some(health)) if !health.is_plain(now) => {
                balancer.pick_by_health(health, &loads, now, hash, dice, any)
            }
            (Choice::All(balancer), _) => balancer.pick(&loads, hash, any),
            (Choice::Slice(aperture), _) => aperture.pick(&loads, now, any, any, any),
        };
        let picked = picked.expect("all are usable");
        in_flight[picked] += 1;
        *in_all += 1;
        if idle[picked].pop().is_none() {
            self.connections += 1;
        }
        self.counts[picked] += 1;
        self.ends.push_back((now + SERVICE, shard, picked));
        picked
    }
}

/// Which shard a request comes to.
type Landing = fn(&mut Rng, usize) -> usize;

const LANDINGS: [(&str, Landing); 3] = [
    ("even", |rng, shards| rng.below(shards as u64) as usize),
    // Half on the first, a quarter on the next, and so on.
    ("skewed", |rng, shards| (rng.bits().trailing_zeros() as usize).min(shards - 1)),
    ("on one shard", |_, shards| shards - 1),
];

/// The sum of squared deviations over what is expected.
fn chi_square(counts: &[u32], weights: &[u32]) -> f64 {
    let all: f64 = counts.iter().copied().map(f64::from).sum();
    let weight_of_all: f64 = weights.iter().copied().map(f64::from).sum();
    let parts = counts.iter().zip(weights).map(|(count, weight)| {
        let expected = all * f64::from(*weight) / weight_of_all;
        (f64::from(*count) - expected).powi(2) / expected
    });
    parts.sum()
}

/// With 19 degrees of freedom, one fair sample of a thousand is beyond this. The seed is fixed.
const CRITICAL: f64 = 43.8;

/// Whichever shards the connections land on, endpoints receive their share of 100,000 requests.
fn shares_are_even(policy: &Policy, weights: &[u32], shards: &[usize]) {
    for shards in shards.iter().copied() {
        let landings = if shards == 1 { &LANDINGS[..1] } else { &LANDINGS };
        for (landing, land) in landings {
            let mut world = World::of(policy, weights, shards);
            let mut rng = Rng::new(9);
            for _ in 0..100_000 {
                world.request(land(&mut rng, shards), Duration::from_micros(250));
            }
            let chi = chi_square(&world.counts, weights);
            let counts = &world.counts;
            assert!(chi < CRITICAL, "{policy:?}, {shards} shards, {landing}: {chi}: {counts:?}");
        }
    }
}

const EQUAL: [u32; 20] = [1; 20];

const UNEQUAL: [u32; 20] = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4];

#[test]
fn shares_are_even_in_turn() {
    shares_are_even(&Policy::RoundRobin, &EQUAL, &[1, 2, 4, 8]);
    shares_are_even(&Policy::RoundRobin, &UNEQUAL, &[1, 8]);
}

#[test]
fn shares_are_even_by_least_request() {
    shares_are_even(&Policy::LeastRequest, &EQUAL, &[1, 2, 4, 8]);
}

/// Of endpoints that are equally fast.
#[test]
fn shares_are_even_by_peak_ewma() {
    shares_are_even(&Policy::PeakEwma, &EQUAL, &[1, 2, 4, 8]);
}

#[test]
fn shares_are_even_at_random() {
    shares_are_even(&Policy::Random, &EQUAL, &[1, 2, 4, 8]);
    shares_are_even(&Policy::Random, &UNEQUAL, &[1, 8]);
}

/// Of many keys. A ring's shares are not: each endpoint owns another part of it.
#[test]
fn shares_are_even_by_maglev() {
    let maglev = Policy::Maglev { key: HashKey::SourceAddress, bounded_load: None };
    shares_are_even(&maglev, &EQUAL, &[1, 2, 4, 8]);
}

/// The tests above can fail: an endpoint that gets 5 % more than its share is found.
#[test]
fn five_percent_too_much_is_found() {
    let mut counts = vec![5_000; 20];
    (counts[3], counts[4]) = (5_250, 4_750);
    assert!(chi_square(&counts, &[1; 20]) < CRITICAL, "one is within what may happen");
    counts[5..15].fill(5_250);
    assert!(chi_square(&counts, &[1; 20]) > CRITICAL);
}

/// 200 endpoints, 8 shards: a connection for each endpoint, or nearly, where without slices there are
/// several times as many; and even shares.
#[test]
fn slices_save_connections_and_keep_shares_even() {
    let settings = ApertureSettings { endpoints_min: 100, aperture_min: 12, load_max: 2 };
    let (count, shards) = (200, 8);
    let list = endpoints(&vec![1; count]);
    let run = |policy: &Policy, is_slice: bool, requests: u32, pause: u64| {
        let mut world = World::new(policy, count, shards, |at| {
            let weights = list.iter().map(|endpoint| endpoint.weight);
            match is_slice {
                true => Choice::Slice(Aperture::new(
                    policy,
                    weights,
                    settings,
                    (at, shards),
                    0.0,
                    at as u64,
                )),
                false => Choice::All(Balancer::new(policy, &list, at as u64)),
            }
        });
        let mut rng = Rng::new(2);
        let mut most = 0;
        for request in 0..requests {
            if request % 500 == 0 {
                world.sweep();
            }
            world.request(rng.below(shards as u64) as usize, Duration::from_micros(pause));
            most = most.max(world.connections);
        }
        (most, world.counts)
    };
    for policy in [Policy::LeastRequest, Policy::PeakEwma] {
        let (most, counts) = run(&policy, true, 300_000, 1_000);
        assert!((200..=300).contains(&most), "{policy:?}: {most} connections");
        let even = counts.iter().sum::<u32>() / count as u32;
        let far = counts.iter().map(|it| it.abs_diff(even)).max().unwrap();
        assert!(far * 10 <= even, "{policy:?}: {even} each, but {counts:?}");
        let (without, _) = run(&policy, false, 40_000, 1_000);
        assert!(without > 3 * most, "{policy:?}: {without} without slices, {most} with");
    }
}

/// One endpoint of 20 that goes moves its own keys, and with Maglev and a ring that grows denser a few
/// others: at most 1/20 + 10 % of all. One that is only down moves its own and no other.
#[test]
fn few_keys_move() {
    let key = HashKey::SourceAddress;
    let ring = Policy::RingHash {
        key: key.clone(),
        ring_size_min: RING_SIZE_MIN,
        ring_size_max: RING_SIZE_MAX,
        bounded_load: None,
    };
    let list = endpoints(&[1; 20]);
    let keys: Vec<u64> = (0..20_000u32).map(|key| xxh64(&key.to_le_bytes(), 0)).collect();
    for policy in [ring, Policy::Maglev { key, bounded_load: None }] {
        let place = |list: &[Endpoint], usable: &dyn Fn(usize) -> bool| -> Vec<String> {
            let mut balancer = Balancer::new(&policy, list, 1);
            let loads = super::tests::Busy(&[]);
            let mut name = |key: &u64| balancer.pick(&loads, Some(*key), usable).unwrap();
            keys.iter().map(|key| list[name(key)].name.clone()).collect()
        };
        let before = place(&list, &|_| true);
        for gone in 0..20 {
            let own = before.iter().filter(|name| **name == list[gone].name).count();
            let mut fewer = list.clone();
            fewer.remove(gone);
            let after = place(&fewer, &|_| true);
            let moved = before.iter().zip(&after).filter(|(old, new)| old != new).count();
            assert!(moved >= own && moved * 100 <= keys.len() * 15, "{policy:?}: {moved}");
            let down = place(&list, &|index| index != gone);
            let moved = before.iter().zip(&down).filter(|(old, new)| old != new).count();
            assert_eq!(moved, own, "{policy:?}");
        }
    }
}

/// Of skewed keys (the most frequent one is a seventh of all), no endpoint has more in flight than the
/// bound allows; without it, one has far more.
#[test]
fn bounded_load_holds_its_bound() {
    let ring = |bounded_load| Policy::RingHash {
        key: HashKey::SourceAddress,
        ring_size_min: RING_SIZE_MIN,
        ring_size_max: RING_SIZE_MAX,
        bounded_load,
    };
    let maglev = |bounded_load| Policy::Maglev { key: HashKey::SourceAddress, bounded_load };
    let list = endpoints(&[1; 20]);
    let mut rng = Rng::new(6);
    let keys: Vec<u64> = (0..20_000)
        .map(|_| {
            // Zipf's: the number of a key is a power of a uniform one.
            let uniform = (rng.bits() >> 11) as f64 / (1u64 << 53) as f64;
            xxh64(&(1_000f64.powf(uniform) as u64).to_le_bytes(), 0)
        })
        .collect();
    for (policy, percent) in [
        (ring(Some(125)), Some(125u32)),
        (maglev(Some(125)), Some(125)),
        (maglev(Some(150)), Some(150)),
        (ring(None), None),
    ] {
        let mut balancer = Balancer::new(&policy, &list, 1);
        let mut in_flight = vec![0u32; list.len()];
        let (mut under_way, mut beyond) = (VecDeque::new(), 0u32);
        for key in &keys {
            if under_way.len() == 200 {
                in_flight[under_way.pop_front().unwrap()] -= 1;
            }
            let picked =
                balancer.pick(&super::tests::Busy(&in_flight), Some(*key), |_| true).unwrap();
            in_flight[picked] += 1;
            under_way.push_back(picked);
            let all = under_way.len() as u32;
            let most = (all * percent.unwrap_or(125)).div_ceil(100 * 20);
            beyond += u32::from(in_flight[picked] > most);
        }
        assert_eq!(beyond == 0, percent.is_some(), "{policy:?}: {beyond} times");
    }
}

/// A ramp of thirty steps, for an endpoint that is up again, and for one that is new: its share grows
/// with the time, never beyond, and none is lost.
#[test]
fn a_slow_start_is_a_ramp() {
    const STEPS: usize = 30;
    let key = HashKey::SourceAddress;
    let ring = Policy::RingHash {
        key: key.clone(),
        ring_size_min: RING_SIZE_MIN,
        ring_size_max: RING_SIZE_MAX,
        bounded_load: None,
    };
    let at = EndpointId(7);
    for policy in [
        Policy::RoundRobin,
        Policy::LeastRequest,
        Policy::PeakEwma,
        Policy::Random,
        ring,
        Policy::Maglev { key, bounded_load: None },
    ] {
        for revived in [true, false] {
            let mut world = World::of(&policy, &[1; 10], 2);
            let land = |step: usize| step % 2;
            let all = |count: u32| {
                let ids = (0..10).filter(|id| *id != at.0 || count == 10).map(EndpointId);
                ClusterHealth::new(ids, Duration::from_secs(STEPS as u64), 50)
            };
            let health = all(10);
            let known = health.of(at).unwrap().clone();
            if revived {
                known.set(Health::Down, world.now);
                health.sum_up();
                world.health = Some(health);
                for step in 0..40_000 {
                    assert_ne!(world.request(land(step), Duration::from_millis(1)), 7);
                }
                known.set(Health::Up, world.now);
                world.health.as_ref().unwrap().sum_up();
            } else {
                let mut health = health;
                health.take_over(&all(9), world.now);
                world.health = Some(health);
            }
            let mut shares = Vec::new();
            for _ in 0..STEPS + 5 {
                world.counts.fill(0);
                for step in 0..1_000 {
                    world.request(land(step), Duration::from_millis(1));
                }
                shares.push(world.counts[7]);
            }
            // What an endpoint gets without any start: a tenth, and on a ring what it owns.
            let fair = match &policy {
                Policy::RingHash { .. } => shares[STEPS..].iter().sum::<u32>() / 5,
                _ => 100,
            };
            for (step, share) in shares.iter().enumerate() {
                let part = ((step as f64 + 0.5) / STEPS as f64).min(1.0);
                let wanted = f64::from(fair) * part;
                let noise = 4.0 * wanted.sqrt() + 3.0;
                let share = f64::from(*share);
                assert!(share <= wanted * 1.1 + noise, "{policy:?}, {revived}, {step}: {shares:?}");
                assert!(share >= wanted * 0.6 - noise, "{policy:?}, {revived}, {step}: {shares:?}");
            }
        }
    }
}

/// The same of a breaker's ramp, which refuses by the same dice.
#[test]
fn a_recovering_breakers_share_is_a_ramp() {
    let key = HashKey::SourceAddress;
    for policy in [
        Policy::RoundRobin,
        Policy::LeastRequest,
        Policy::PeakEwma,
        Policy::Random,
        Policy::Maglev { key, bounded_load: None },
    ] {
        let mut world = World::of(&policy, &[1; 10], 2);
        let mut shares = Vec::new();
        for step in 0..10u64 {
            world.recovered = ((2 * step + 1) << 32) / 20;
            world.counts.fill(0);
            for request in 0..2_000 {
                world.request(request % 2, Duration::from_millis(1));
            }
            shares.push(world.counts[7]);
        }
        for (step, share) in shares.iter().enumerate() {
            let wanted = 200.0 * (step as f64 + 0.5) / 10.0;
            let noise = 4.0 * wanted.sqrt() + 3.0;
            let share = f64::from(*share);
            assert!(share <= wanted * 1.1 + noise, "{policy:?}, {step}: {shares:?}");
            assert!(share >= wanted * 0.6 - noise, "{policy:?}, {step}: {shares:?}");
        }
    }
}

/// A key moves once in a start: to the endpoint that it belongs to, and stays.
#[test]
fn keys_move_once_in_a_slow_start() {
    let key = HashKey::SourceAddress;
    let policy = Policy::Maglev { key, bounded_load: None };
    let list = endpoints(&[1; 10]);
    let mut balancer = Balancer::new(&policy, &list, 1);
    let health = ClusterHealth::new((0..10).map(EndpointId), Duration::from_secs(30), 50);
    let known = health.of(EndpointId(7)).unwrap();
    known.set(Health::Down, Nanos(1));
    known.set(Health::Up, Nanos(1_000_000_000));
    health.sum_up();
    let loads = super::tests::Busy(&[]);
    let homes = (0..500u64).map(|key| xxh64(&key.to_le_bytes(), 0));
    let homes: Vec<u64> =
        homes.filter(|key| balancer.pick(&loads, Some(*key), |_| true) == Some(7)).collect();
    assert!(homes.len() > 20);
    for key in homes {
        let mut places: Vec<usize> = (1..32u64)
            .map(|second| {
                let now = Nanos(second * 1_000_000_000);
                let dice = policy.dice(Some(key), 7);
                balancer.pick_by_health(&health, &loads, now, Some(key), dice, |_| true).unwrap()
            })
            .collect();
        assert_eq!(places.last(), Some(&7));
        places.dedup();
        assert!(places.len() <= 2, "{places:?}");
    }
}
