//! Cluster to endpoint: which of them takes the next request, one file per policy.
//!
//! The shard calls [`Balancer::pick`] once per attempt. Pure: what is in flight, and what may be
//! taken, are passed in; no sockets, no clock, no locks. `pick` never allocates, and never returns
//! an endpoint that is not usable.
//!
//! The hash policies look up tables that are large and the same on every shard, so the control
//! thread builds a [`Table`] once per plan and the shards share it.

use std::net::IpAddr;
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::health::ClusterHealth;
use crate::http::head::Fields;
use crate::plan::Endpoint;
use crate::rng::{Rng, splitmix};
use crate::time::Nanos;

mod aperture;
mod group;
mod least_request;
mod maglev;
mod peak_ewma;
mod random;
mod ring_hash;
mod round_robin;
mod sample;
mod tiers;
#[cfg(test)]
mod uniformity;

pub use aperture::{Aperture, ApertureSettings};
use group::Group;
use least_request::LeastRequest;
pub use maglev::Maglev;
use peak_ewma::PeakEwma;
pub use peak_ewma::{FAILURE, Latency};
use random::Random;
pub use ring_hash::{RING_SIZE_MAX, RING_SIZE_MIN, Ring};
use round_robin::RoundRobin;
pub use tiers::{
    Candidates, OVERPROVISIONING_PERCENT, Tiering, Tiers, Zone, ZoneSettings, healthy_share,
};

/// How a cluster chooses an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// In turn, each by its weight, spread evenly (smooth weighted round robin).
    RoundRobin,
    /// Of two drawn at random, the one with fewer requests in flight for its weight.
    LeastRequest,
    /// Of two drawn at random, the one that is likely to answer sooner.
    PeakEwma,
    /// At random, by weight.
    Random,
    /// The same key goes to the same endpoint, by a ring of hashed points (ketama).
    RingHash {
        /// What is hashed.
        key: HashKey,
        /// Points on the ring, at least; [`RING_SIZE_MIN`] by default.
        ring_size_min: u32,
        /// Points on the ring, at most; [`RING_SIZE_MAX`] by default.
        ring_size_max: u32,
        /// See [`Bound`].
        bounded_load: Option<u32>,
    },
    /// The same key goes to the same endpoint, by Maglev's table: more even and faster than a
    /// ring, but a change of endpoints moves a few more keys.
    Maglev {
        /// What is hashed.
        key: HashKey,
        /// See [`Bound`].
        bounded_load: Option<u32>,
    },
}

impl Policy {
    /// The request's hash, for policies that ask for one. `None` also where the request does not
    /// carry the key: the balancer then chooses at random.
    #[inline]
    pub fn hash(&self, fields: &Fields<'_, '_>, client: IpAddr) -> Option<u64> {
        match self {
            Policy::RingHash { key, .. } | Policy::Maglev { key, .. } => key.hash(fields, client),
            Policy::RoundRobin | Policy::LeastRequest | Policy::PeakEwma | Policy::Random => None,
        }
    }
}

impl Policy {
    /// What decides whether an endpoint that gets a share only, in a slow start or while its breaker
    /// recovers, takes this request: 32 bits, compared with that share. `random`: uniform ones.
    ///
    /// A key's are its own, so that it moves once while the share grows. Of two choices, an endpoint
    /// with little in flight wins whenever it is drawn, which is twice as often as it should get a
    /// request: so its chance is halved.
    #[inline]
    pub fn dice(&self, hash: Option<u64>, random: u32) -> u32 {
        match (self, hash) {
            (Policy::LeastRequest | Policy::PeakEwma, _) => random.saturating_mul(2),
            (Policy::RingHash { .. } | Policy::Maglev { .. }, Some(mut hash)) => {
                (splitmix(&mut hash) >> 32) as u32
            }
            _ => random,
        }
    }
}

/// What of a request decides its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// The first field of this name; XXH64 of its value, as Envoy hashes it.
    Header(String),
    /// The first cookie of this name (RFC 6265, 4.2); XXH64 of its value.
    Cookie(String),
    /// The client's address, as the listener's trusted proxies let it be seen.
    SourceAddress,
}

impl HashKey {
    fn hash(&self, fields: &Fields<'_, '_>, client: IpAddr) -> Option<u64> {
        match self {
            HashKey::Header(name) => fields.get(name.as_bytes()).map(|value| xxh64(value, 0)),
            HashKey::Cookie(name) => cookie(fields, name.as_bytes()).map(|value| xxh64(value, 0)),
            HashKey::SourceAddress => Some(match client {
                IpAddr::V4(address) => xxh64(&address.octets(), 0),
                IpAddr::V6(address) => xxh64(&address.octets(), 0),
            }),
        }
    }
}

/// The value of the first cookie called `name`, over all `Cookie` lines; without its quotes.
fn cookie<'b>(fields: &Fields<'b, '_>, name: &[u8]) -> Option<&'b [u8]> {
    fields
        .iter()
        .filter(|(_, field, _)| field.eq_ignore_ascii_case(b"cookie"))
        .flat_map(|(_, _, value)| value.split(|byte| *byte == b';'))
        .find_map(|pair| {
            let equals = memchr::memchr(b'=', pair)?;
            let value = pair[equals + 1..].trim_ascii();
            (pair[..equals].trim_ascii() == name).then(|| {
                value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value)
            })
        })
}

/// What a hash policy looks up; read only, shared by all shards. `None` for the other policies.
#[derive(Debug, Clone, PartialEq)]
pub enum Table {
    /// The policy needs none.
    None,
    /// For [`Policy::RingHash`].
    Ring(Arc<Ring>),
    /// For [`Policy::Maglev`].
    Maglev(Arc<Maglev>),
}

impl Table {
    /// Takes milliseconds for large clusters: called by the control thread, once per plan.
    pub fn build(policy: &Policy, endpoints: &[Endpoint]) -> Table {
        match policy {
            Policy::RingHash { ring_size_min, ring_size_max, .. } => Table::Ring(Arc::new(
                Ring::build(&keyed(endpoints), *ring_size_min, *ring_size_max),
            )),
            Policy::Maglev { .. } => Table::Maglev(Arc::new(Maglev::build(&keyed(endpoints)))),
            Policy::RoundRobin | Policy::LeastRequest | Policy::PeakEwma | Policy::Random => {
                Table::None
            }
        }
    }
}

/// What tells endpoints apart in a table, with their weights, in the order of the endpoints. It is
/// the configured name, so that an endpoint keeps its keys when its address changes; where one
/// name stands for several addresses, the address.
fn keyed(endpoints: &[Endpoint]) -> Vec<(String, u32)> {
    let mut names: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
    names.sort_unstable();
    let shared = |name: &str| {
        let first = names.partition_point(|other| *other < name);
        names.get(first + 1).is_some_and(|next| *next == name)
    };
    endpoints
        .iter()
        .map(|endpoint| {
            let key = if shared(&endpoint.name) {
                endpoint.address.to_string()
            } else {
                endpoint.name.clone()
            };
            (key, endpoint.weight)
        })
        .collect()
}

/// What is under way, as one shard sees it.
pub trait Loads {
    /// Requests that endpoint `index` has not yet answered.
    fn in_flight(&self, index: usize) -> u32;

    /// Those of all endpoints together.
    fn in_flight_in_all(&self) -> u32;

    /// What [`Latency::load`] makes of an endpoint's.
    fn waiting_time(&self, index: usize) -> f64;
}

/// How much more than its share of the requests in flight an endpoint may have before its keys go
/// elsewhere (Mirrokni et al., "Consistent Hashing with Bounded Loads"; Envoy's
/// `hash_balance_factor`).
#[derive(Debug)]
struct Bound {
    /// Of its share, above 100.
    percent: u64,
    weights: Box<[u32]>,
    weight_of_all: u64,
}

impl Bound {
    fn new(policy: &Policy, weights: impl Iterator<Item = u32>) -> Option<Bound> {
        let (Policy::RingHash { bounded_load, .. } | Policy::Maglev { bounded_load, .. }) = policy
        else {
            return None;
        };
        let weights: Box<[u32]> = weights.collect();
        let weight_of_all = weights.iter().map(|weight| u64::from(*weight)).sum();
        Some(Bound { percent: u64::from((*bounded_load)?), weights, weight_of_all })
    }

    /// Whether one more request, counted among all, would be within the bound: rounded up, so that
    /// each endpoint may have one. `weight`: of those that share the requests.
    fn allows(&self, index: usize, loads: &impl Loads, weight: u64) -> bool {
        let all = u128::from(loads.in_flight_in_all()) + 1;
        let share = all * u128::from(self.percent) * u128::from(self.weights[index]);
        let most = share.div_ceil(100 * u128::from(weight));
        u128::from(loads.in_flight(index)) < most
    }

    /// The weight of some of them.
    fn weight_of(&self, some: impl Fn(usize) -> bool) -> u64 {
        let weights = self.weights.iter().enumerate().filter(|(index, _)| some(*index));
        weights.map(|(_, weight)| u64::from(*weight)).sum()
    }
}

/// One shard's state for one cluster.
#[derive(Debug)]
pub struct Balancer {
    choice: Choice,
    bound: Option<Bound>,
    rng: Rng,
}

#[derive(Debug)]
enum Choice {
    RoundRobin(RoundRobin),
    LeastRequest(LeastRequest),
    PeakEwma(PeakEwma),
    Random(Random),
    Ring(Arc<Ring>),
    Maglev(Arc<Maglev>),
}

impl Balancer {
    /// Builds its own table where the policy needs one; shards use [`Balancer::with_table`].
    pub fn new(policy: &Policy, endpoints: &[Endpoint], seed: u64) -> Balancer {
        Balancer::with_table(&Table::build(policy, endpoints), policy, endpoints, seed)
    }

    /// `table` was built from the same policy and endpoints. Shards get different seeds, so that
    /// they do not all begin with the same endpoint.
    pub fn with_table(
        table: &Table,
        policy: &Policy,
        endpoints: &[Endpoint],
        seed: u64,
    ) -> Balancer {
        Balancer::weighing(table, policy, || endpoints.iter().map(|endpoint| endpoint.weight), seed)
    }

    /// The same of weights alone.
    fn weighing<W: Iterator<Item = u32>>(
        table: &Table,
        policy: &Policy,
        weights: impl Fn() -> W,
        seed: u64,
    ) -> Balancer {
        let mut rng = Rng::new(seed);
        let choice = match (table, policy) {
            (Table::Ring(ring), _) => Choice::Ring(ring.clone()),
            (Table::Maglev(table), _) => Choice::Maglev(table.clone()),
            (Table::None, Policy::LeastRequest) => {
                Choice::LeastRequest(LeastRequest::new(weights()))
            }
            (Table::None, Policy::PeakEwma) => Choice::PeakEwma(PeakEwma::new(weights())),
            (Table::None, Policy::Random) => Choice::Random(Random::new(weights())),
            (Table::None, _) => {
                let mut turns = RoundRobin::new(weights());
                turns.skip(rng.below(u64::from(u32::MAX)) as u32);
                Choice::RoundRobin(turns)
            }
        };
        Balancer { choice, bound: Bound::new(policy, weights()), rng }
    }

    /// The endpoint for the next request; `None` if no endpoint is usable.
    ///
    /// `hash` is what [`Policy::hash`] gave. `usable(i)` may be asked more than once about an endpoint
    /// and must not change its mind within a call.
    #[inline]
    pub fn pick(
        &mut self,
        loads: &impl Loads,
        hash: Option<u64>,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        match &mut self.choice {
            Choice::RoundRobin(turns) => turns.pick(usable),
            Choice::LeastRequest(least) => {
                least.pick(|index| loads.in_flight(index), &mut self.rng, usable)
            }
            Choice::PeakEwma(peak) => {
                peak.pick(|index| loads.waiting_time(index), &mut self.rng, usable)
            }
            Choice::Random(random) => random.pick(&mut self.rng, usable),
            Choice::Ring(_) | Choice::Maglev(_) => {
                let hash = hash.unwrap_or_else(|| self.rng.bits());
                if let Some(bound) = &self.bound {
                    let within = |weight: u64| {
                        let allows = |index| bound.allows(index, loads, weight) && usable(index);
                        self.look_up(hash, allows)
                    };
                    let picked = within(bound.weight_of_all).or_else(|| {
                        // Who is usable has the share of those who are not.
                        let weight = bound.weight_of(&usable);
                        (weight > 0 && weight < bound.weight_of_all).then(|| within(weight))?
                    });
                    if picked.is_some() {
                        return picked;
                    }
                }
                // Nobody is within the bound, where others are not usable.
                self.look_up(hash, usable)
            }
        }
    }

    /// The same where some endpoints are down, or do not have their whole share yet; `dice` is
    /// [`Policy::dice`]'s.
    #[cold]
    pub fn pick_by_health(
        &mut self,
        health: &ClusterHealth,
        loads: &impl Loads,
        now: Nanos,
        hash: Option<u64>,
        dice: u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let in_use = |index: usize| !health.is_out(index) && usable(index);
        let whole = |index: usize| !health.holds_back(index, now, dice) && in_use(index);
        self.pick(loads, hash, whole).or_else(|| self.pick(loads, hash, in_use))
    }

    /// A random number, uniform over all its values.
    pub fn random(&mut self) -> u32 {
        (self.rng.bits() >> 32) as u32
    }

    #[inline]
    fn look_up(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        match &self.choice {
            Choice::Ring(ring) => ring.pick(hash, usable),
            Choice::Maglev(table) => table.pick(hash, usable),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::head::{HeadLimits, Parsed, Scratch, parse_request};

    pub fn endpoints(weights: &[u32]) -> Vec<Endpoint> {
        weights
            .iter()
            .enumerate()
            .map(|(index, weight)| {
                let address: std::net::SocketAddr =
                    ([10, 0, (index >> 8) as u8, index as u8], 80).into();
                let id = crate::reconcile::EndpointId(index as u32);
                let (name, zone) = (address.to_string(), Zone::Unknown);
                Endpoint { id, address, weight: *weight, name, priority: 0, zone }
            })
            .collect()
    }

    fn policies() -> [Policy; 6] {
        let key = HashKey::SourceAddress;
        [
            Policy::RoundRobin,
            Policy::LeastRequest,
            Policy::PeakEwma,
            Policy::Random,
            Policy::RingHash {
                key: key.clone(),
                ring_size_min: 64,
                ring_size_max: 1_024,
                bounded_load: Some(125),
            },
            Policy::Maglev { key, bounded_load: None },
        ]
    }

    /// Loads by index.
    pub struct Busy<'a>(pub &'a [u32]);

    impl Loads for Busy<'_> {
        fn in_flight(&self, index: usize) -> u32 {
            self.0.get(index).copied().unwrap_or(0)
        }

        fn in_flight_in_all(&self) -> u32 {
            self.0.iter().sum()
        }

        fn waiting_time(&self, index: usize) -> f64 {
            self.in_flight(index).into()
        }
    }

    const IDLE: Busy<'static> = Busy(&[]);

    fn hash_of(key: HashKey, lines: &str) -> Option<u64> {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let mut scratch = Scratch::new();
        let parsed = parse_request(head.as_bytes(), &HeadLimits::default(), &mut scratch);
        let Ok(Parsed::Complete(head)) = parsed else { panic!("not a head: {head}") };
        key.hash(&head.fields, [127, 0, 0, 1].into())
    }

    #[test]
    fn hashes_the_header_the_cookie_and_the_address() {
        let header = || HashKey::Header("X-User".into());
        assert_eq!(hash_of(header(), "x-user: ann\r\n"), Some(xxh64(b"ann", 0)));
        assert_eq!(hash_of(header(), "x-user: ann\r\nx-user: bob\r\n"), Some(xxh64(b"ann", 0)));
        assert_eq!(hash_of(header(), "x-users: ann\r\n"), None);

        let cookie = || HashKey::Cookie("id".into());
        assert_eq!(hash_of(cookie(), "Cookie: a=1; id=7; id=8\r\n"), Some(xxh64(b"7", 0)));
        assert_eq!(
            hash_of(cookie(), "Cookie: id2=7\r\ncookie: id=\"9\"\r\n"),
            Some(xxh64(b"9", 0))
        );
        assert_eq!(hash_of(cookie(), "Cookie: ID=7; x\r\n"), None);

        assert_eq!(hash_of(HashKey::SourceAddress, ""), Some(xxh64(&[127, 0, 0, 1], 0)));
    }

    /// Names keep keys in place; a name with two addresses cannot tell them apart.
    #[test]
    fn endpoints_are_keyed_by_name_unless_shared() {
        let mut list = endpoints(&[1, 1, 1]);
        list[0].name = "web:80".into();
        list[1].name = "api:80".into();
        list[2].name = "api:80".into();
        let keys: Vec<String> = keyed(&list).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["web:80", "10.0.0.1:80", "10.0.0.2:80"]);
    }

    #[test]
    fn no_endpoints_no_choice() {
        for policy in policies() {
            assert_eq!(Balancer::new(&policy, &[], 1).pick(&IDLE, Some(7), |_| true), None);
        }
    }

    #[test]
    fn shards_begin_at_different_endpoints() {
        let list = endpoints(&[1; 100]);
        let first =
            |seed| Balancer::new(&Policy::RoundRobin, &list, seed).pick(&IDLE, None, |_| true);
        assert!((1..10).any(|seed| first(seed) != first(0)));
    }

    /// One hot key: no endpoint gets more than the bound, and each gets its own keys below it.
    #[test]
    fn a_hot_key_spills_over() {
        let key = || HashKey::SourceAddress;
        let ring = |bounded_load| Policy::RingHash {
            key: key(),
            ring_size_min: RING_SIZE_MIN,
            ring_size_max: RING_SIZE_MAX,
            bounded_load,
        };
        let maglev = |bounded_load| Policy::Maglev { key: key(), bounded_load };
        let weights = [1, 1, 2, 1, 1];
        let list = endpoints(&weights);
        for policy in [ring(Some(125)), maglev(Some(125)), ring(Some(200)), maglev(Some(101))] {
            let (Policy::RingHash { bounded_load: Some(percent), .. }
            | Policy::Maglev { bounded_load: Some(percent), .. }) = policy
            else {
                unreachable!("they are bounded");
            };
            let mut balancer = Balancer::new(&policy, &list, 1);
            let home = balancer.pick(&IDLE, Some(7), |_| true);
            let mut in_flight = vec![0; list.len()];
            for all in 1u32..=600 {
                let picked = balancer.pick(&Busy(&in_flight), Some(7), |_| true).unwrap();
                in_flight[picked] += 1;
                let most = (f64::from(all * weights[picked] * percent) / 600.0).ceil() as u32;
                assert!(in_flight[picked] <= most, "{policy:?}: {in_flight:?}");
            }
            let used = in_flight.iter().filter(|count| **count > 0).count();
            assert!(used >= 2, "{policy:?}: {in_flight:?}");
            let nobody = vec![0; list.len()];
            assert_eq!(balancer.pick(&Busy(&nobody), Some(7), |_| true), home);
        }
        let mut unbounded = Balancer::new(&ring(None), &list, 1);
        let home = unbounded.pick(&IDLE, Some(7), |_| true).unwrap();
        let mut in_flight = vec![0; list.len()];
        in_flight[home] = 1000;
        assert_eq!(unbounded.pick(&Busy(&in_flight), Some(7), |_| true), Some(home));
    }

    /// Rather too much than nothing.
    #[test]
    fn who_is_usable_has_the_share_of_those_who_are_not() {
        let list = endpoints(&[1; 10]);
        let policy = Policy::Maglev { key: HashKey::SourceAddress, bounded_load: Some(125) };
        let mut balancer = Balancer::new(&policy, &list, 1);
        let mut in_flight = vec![0; 10];
        for _ in 0..40 {
            let picked = balancer.pick(&Busy(&in_flight), Some(7), |index| index < 4);
            in_flight[picked.expect("four are usable")] += 1;
        }
        // 40 x 1.25 / 4, rounded up.
        assert!(in_flight.iter().all(|count| *count <= 13), "{in_flight:?}");
        assert_eq!(in_flight[4..], [0; 6]);
    }

    #[test]
    fn beyond_the_bound_if_there_is_no_other() {
        let list = endpoints(&[1, 1, 1]);
        let policy = Policy::Maglev { key: HashKey::SourceAddress, bounded_load: Some(110) };
        let mut balancer = Balancer::new(&policy, &list, 1);
        assert_eq!(balancer.pick(&Busy(&[9, 0, 0]), Some(7), |index| index == 0), Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever the policy, the weights and the load: a usable endpoint if there is one.
        #[test]
        fn picks_usable_endpoints_only(
            seats in prop::collection::vec((1u32..1_000, 0u32..50, any::<bool>()), 1..40),
            hashes in prop::collection::vec(prop::option::of(any::<u64>()), 1..20),
            seed: u64,
        ) {
            let weights: Vec<u32> = seats.iter().map(|seat| seat.0).collect();
            let in_flight: Vec<u32> = seats.iter().map(|seat| seat.1).collect();
            let list = endpoints(&weights);
            for policy in policies() {
                let mut balancer = Balancer::new(&policy, &list, seed);
                for hash in &hashes {
                    match balancer.pick(&Busy(&in_flight), *hash, |index| seats[index].2) {
                        Some(index) => prop_assert!(seats[index].2, "{policy:?} took {index}"),
                        None => prop_assert!(seats.iter().all(|seat| !seat.2), "{policy:?} gave up"),
                    }
                }
            }
        }

        /// A key stays where it is for as long as the endpoints do, on every shard.
        #[test]
        fn hash_policies_agree_across_shards(hash: u64, count in 1usize..50) {
            let list = endpoints(&vec![1; count]);
            for policy in &policies()[4..] {
                let one = Balancer::new(policy, &list, 1).pick(&IDLE, Some(hash), |_| true);
                let other = Balancer::new(policy, &list, 2).pick(&IDLE, Some(hash), |_| true);
                prop_assert_eq!(one, other);
            }
        }
    }
}
