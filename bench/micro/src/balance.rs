//! One endpoint of three, and of a hundred. All are usable, and equally busy but for a few.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use outrigger::balance::{Balancer, HashKey, Loads, Policy, Zone};
use outrigger::plan::Endpoint;
use outrigger::reconcile::EndpointId;

use crate::messages::{GET_BROWSER, request};
use crate::{Step, Turns, Work};

pub const STEPS: &[Step] = &[
    Step { name: "balance: round_robin, 3", prepare: || pick(Policy::RoundRobin, 3, equal) },
    Step { name: "balance: round_robin, 100", prepare: || pick(Policy::RoundRobin, 100, equal) },
    Step {
        name: "balance: round_robin by weight, 3",
        prepare: || pick(Policy::RoundRobin, 3, by_weight),
    },
    Step {
        name: "balance: round_robin by weight, 100",
        prepare: || pick(Policy::RoundRobin, 100, by_weight),
    },
    Step { name: "balance: least_request, 3", prepare: || pick(Policy::LeastRequest, 3, equal) },
    Step {
        name: "balance: least_request, 100",
        prepare: || pick(Policy::LeastRequest, 100, equal),
    },
    Step { name: "balance: peak_ewma, 3", prepare: || pick(Policy::PeakEwma, 3, equal) },
    Step { name: "balance: peak_ewma, 100", prepare: || pick(Policy::PeakEwma, 100, equal) },
    Step { name: "balance: random, 3", prepare: || pick(Policy::Random, 3, equal) },
    Step { name: "balance: random, 100", prepare: || pick(Policy::Random, 100, equal) },
    Step {
        name: "balance: random by weight, 100",
        prepare: || pick(Policy::Random, 100, by_weight),
    },
    Step { name: "balance: ring_hash, 3", prepare: || pick(ring(), 3, equal) },
    Step { name: "balance: ring_hash, 100", prepare: || pick(ring(), 100, equal) },
    Step { name: "balance: maglev, 3", prepare: || pick(maglev(), 3, equal) },
    Step { name: "balance: maglev, 100", prepare: || pick(maglev(), 100, equal) },
    Step {
        name: "balance: hash of the client's address",
        prepare: || hash(HashKey::SourceAddress),
    },
    Step {
        name: "balance: hash of a header, 15 fields",
        prepare: || hash(HashKey::Header("accept-language".into())),
    },
    Step {
        name: "balance: hash of a cookie, 15 fields",
        prepare: || hash(HashKey::Cookie("session".into())),
    },
];

fn ring() -> Policy {
    Policy::RingHash {
        key: HashKey::SourceAddress,
        ring_size_min: 1024,
        ring_size_max: 8_388_608,
        bounded_load: None,
    }
}

fn maglev() -> Policy {
    Policy::Maglev { key: HashKey::SourceAddress, bounded_load: None }
}

/// Requests in flight, by endpoint.
pub struct InFlight<'a>(pub &'a [u32]);

impl Loads for InFlight<'_> {
    fn in_flight(&self, index: usize) -> u32 {
        self.0[index]
    }

    fn in_flight_in_all(&self) -> u32 {
        self.0.iter().sum()
    }

    fn waiting_time(&self, index: usize) -> f64 {
        self.in_flight(index).into()
    }
}

fn equal(_: usize) -> u32 {
    1
}

fn by_weight(index: usize) -> u32 {
    1 + index as u32 % 5
}

fn pick(policy: Policy, count: usize, weight: fn(usize) -> u32) -> Work {
    let endpoints: Vec<Endpoint> = (0..count)
        .map(|index| Endpoint {
            id: EndpointId(index as u32),
            address: ([10, 0, 0, index as u8], 80).into(),
            weight: weight(index),
            name: format!("10.0.0.{index}:80"),
            priority: 0,
            zone: Zone::Unknown,
        })
        .collect();
    let mut balancer = Balancer::new(&policy, &endpoints, 1);
    let in_flight: Vec<u32> = (0..count).map(|index| 3 + u32::from(index % 7 == 0)).collect();
    let mut hashes = Turns::new((0..64u64).map(|turn| turn.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    Box::new(move || {
        let hash = Some(*hashes.next());
        _ = black_box(balancer.pick(&InFlight(&in_flight), hash, |at| black_box(at) < count));
    })
}

fn hash(key: HashKey) -> Work {
    let head = request(GET_BROWSER);
    let policy = Policy::Maglev { key, bounded_load: None };
    let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
    assert!(policy.hash(&head.fields, client).is_some());
    Box::new(move || _ = black_box(policy.hash(black_box(&head.fields), black_box(client))))
}
