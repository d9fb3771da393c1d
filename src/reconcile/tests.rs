//! A few shards on perfect wires: what a request sees, what crosses, and what wakes.

use std::sync::Arc;
use std::time::Duration;

use super::message::{Body, Stamp};
use super::*;
use crate::breaker::{Outcome, Override, Report};

const NOW: Nanos = Nanos(1_000_000_000);

const CLUSTER: ClusterId = ClusterId(0);

const ENDPOINT: EndpointId = EndpointId(0);

fn plan(generation: u64, limits: ClusterLimits, endpoints: &[EndpointId]) -> Arc<PlanSpec> {
    let mut spec = ClusterSpec::new(CLUSTER);
    spec.limits = limits;
    spec.endpoints = endpoints
        .iter()
        .map(|id| EndpointSpec { id: *id, role: Role::Endpoint, limits: EndpointLimits::default() })
        .collect();
    let endpoints_end = endpoints.iter().max().map_or(0, |id| id.0 + 1);
    Arc::new(PlanSpec {
        generation,
        clusters: vec![spec],
        clusters_end: ClusterId(1),
        endpoints_end: EndpointId(endpoints_end),
    })
}

fn shards(count: u16, limits: ClusterLimits) -> Vec<Reconciler> {
    let plan = plan(1, limits, &[ENDPOINT]);
    (0..count)
        .map(|id| {
            let mut shard = Reconciler::new(ShardId(id), count);
            shard.prepare(&plan);
            assert!(shard.activate(1, NOW));
            shard
        })
        .collect()
}

/// Carries messages until there are none. Returns how many would have woken their receiver.
fn carry(shards: &mut [Reconciler], now: Nanos) -> usize {
    let mut wakes = 0;
    loop {
        let mut carried = false;
        for from in 0..shards.len() {
            while let Some((to, message)) = shards[from].outgoing(now) {
                carried = true;
                wakes += usize::from(message.wakes);
                shards[usize::from(to.0)].receive(ShardId(from as u16), message, now);
            }
        }
        if !carried {
            return wakes;
        }
    }
}

fn requests(limit: u64) -> ClusterLimits {
    ClusterLimits { requests_max: limit, ..ClusterLimits::default() }
}

/// Takes as many as it gets, waiting for each that it does not get at once.
fn take_all(shards: &mut [Reconciler], which: usize, want: u64) -> Vec<Ticket> {
    let mut tickets = Vec::new();
    for token in 0..want {
        let slot = shards[which].endpoint(ENDPOINT).unwrap();
        match shards[which].admit(slot, NOW) {
            Ok(ticket) => tickets.push(ticket),
            Err(refusal) => {
                assert_eq!(refusal, Refusal::NoCredit);
                shards[which].wait(slot, token, false, NOW).unwrap();
                carry(shards, NOW);
            }
        }
        while let Some(event) = shards[which].next_event() {
            if let Event::Admitted { ticket, .. } = event {
                tickets.push(ticket);
            }
        }
    }
    tickets
}

#[test]
fn one_shard_has_it_all_and_says_nothing() {
    let mut shards = shards(1, requests(7));
    let tickets = take_all(&mut shards, 0, 9);
    assert_eq!(tickets.len(), 7);
    assert!(shards[0].outgoing(NOW).is_none());
    assert_eq!(shards[0].next_due(), Nanos::NEVER);
    let mut served = 0;
    for ticket in tickets {
        shards[0].complete(ticket, Outcome::Success, Duration::ZERO, NOW);
        while let Some(event) = shards[0].next_event() {
            if let Event::Admitted { ticket, .. } = event {
                served += 1;
                shards[0].complete(ticket, Outcome::Success, Duration::ZERO, NOW);
            }
        }
    }
    assert_eq!(served, 2, "those who waited");
    assert!(shards[0].outgoing(NOW).is_none());
}

/// Nothing is stranded on shards that have no traffic.
#[test]
fn traffic_on_one_shard_gets_all_of_a_limit() {
    for (count, limit) in [(2, 1), (2, 7), (4, 7), (8, 7), (8, 100)] {
        for which in [0, usize::from(count) - 1] {
            let mut shards = shards(count, requests(limit));
            let tickets = take_all(&mut shards, which, limit + 3);
            assert_eq!(tickets.len() as u64, limit, "{count} shards, shard {which}");
            std::mem::forget(tickets);
        }
    }
}

#[test]
fn shards_in_which_all_goes_well_never_wake_each_other() {
    let mut shards = shards(4, requests(64));
    let mut now = NOW;
    for _ in 0..1_000 {
        now = now + Duration::from_millis(3);
        for shard in &mut shards {
            let slot = shard.endpoint(ENDPOINT).unwrap();
            shard.turn(now);
            let tickets: Vec<_> = (0..8).map(|_| shard.admit(slot, now).unwrap()).collect();
            for ticket in tickets {
                shard.complete(ticket, Outcome::Success, Duration::from_millis(1), now);
            }
        }
        assert_eq!(carry(&mut shards, now), 0);
    }
    let home = usize::from(home_of(CLUSTER, 4).0);
    let slot = shards[1].endpoint(ENDPOINT).unwrap();
    assert!(shards[1].view(slot).unwrap().report().requests == 8_000);
    let ticket = shards[1 - home.min(1)].admit(slot, now).unwrap();
    shards[1 - home.min(1)].complete(ticket, Outcome::Failure, Duration::ZERO, now);
    assert!(carry(&mut shards, now) > 0, "a failure does");
}

#[test]
fn a_trip_reaches_every_shard_at_once() {
    let mut shards = shards(3, requests(UNLIMITED));
    let home = usize::from(home_of(CLUSTER, 3).0);
    let away = (home + 1) % 3;
    let slot = shards[away].endpoint(ENDPOINT).unwrap();
    for _ in 0..5 {
        let ticket = shards[away].admit(slot, NOW).unwrap();
        shards[away].complete(ticket, Outcome::Failure, Duration::ZERO, NOW);
    }
    assert_eq!(shards[away].admit(slot, NOW), Err(Refusal::Open), "its own run is enough");
    assert!(shards[home].admit(slot, NOW).is_ok());
    carry(&mut shards, NOW + Duration::from_millis(2));
    for shard in &mut shards {
        assert_eq!(shard.admit(slot, NOW), Err(Refusal::Open));
    }
    assert_eq!(shards[away].ages().counts.iter().sum::<u64>(), 1);
    assert_eq!(shards[away].ages().max, Duration::ZERO, "both at the same time here");
}

#[test]
fn an_override_is_applied_when_every_shard_has_it() {
    let mut shards = shards(3, requests(UNLIMITED));
    let home = usize::from(home_of(CLUSTER, 3).0);
    assert!(!shards[(home + 1) % 3].override_to(ENDPOINT, Override::ForceOpen, 1, NOW));
    assert!(shards[home].override_to(ENDPOINT, Override::ForceOpen, 1, NOW));
    let mut events = Vec::new();
    let mut drain = |shard: &mut Reconciler| {
        events.extend(std::iter::from_fn(|| shard.next_event()));
        events.iter().any(|event| matches!(event, Event::OverrideApplied { generation: 1, .. }))
    };
    assert!(!drain(&mut shards[home]));
    carry(&mut shards, NOW);
    assert!(drain(&mut shards[home]));
}

/// The second one changes nothing, but what it wants is not everywhere yet.
#[test]
fn an_override_that_is_on_its_way_already_is_waited_for() {
    let mut shards = shards(3, requests(UNLIMITED));
    let home = usize::from(home_of(CLUSTER, 3).0);
    shards[home].override_to(ENDPOINT, Override::ForceOpen, 1, NOW);
    carry(&mut shards, NOW);
    shards[home].override_to(ENDPOINT, Override::Release, 2, NOW);
    shards[home].override_to(ENDPOINT, Override::Release, 3, NOW);
    let mut applied = Vec::new();
    let mut drain = |shard: &mut Reconciler| {
        let events = std::iter::from_fn(|| shard.next_event());
        applied.extend(events.filter_map(|event| match event {
            Event::OverrideApplied { generation, .. } => Some(generation),
            _ => None,
        }));
        applied.clone()
    };
    assert_eq!(drain(&mut shards[home]), [1]);
    carry(&mut shards, NOW);
    assert_eq!(drain(&mut shards[home]), [1, 3]);
    shards[home].override_to(ENDPOINT, Override::Release, 4, NOW);
    assert_eq!(drain(&mut shards[home]), [1, 3, 4], "everywhere already");
}

#[test]
fn who_is_not_known_is_to_come_or_gone() {
    let mut shards = shards(2, requests(7));
    let home = usize::from(home_of(CLUSTER, 2).0);
    let from = ShardId(1 - home as u16);
    let mut answer = |endpoint, version| {
        let body = Body::Outcomes { endpoint, report: Report::default() };
        let stamp = Stamp { slot: 0, version };
        shards[home].receive(from, Message { wakes: true, stamp, body }, NOW);
        std::iter::from_fn(|| shards[home].outgoing(NOW)).last().unwrap().1.body
    };
    assert_eq!(answer(ENDPOINT, 1), Body::Ack);
    assert_eq!(answer(EndpointId(5), 2), Body::NotYet);
    let next = plan(2, requests(7), &[EndpointId(5)]);
    for shard in &mut shards {
        shard.prepare(&next);
        shard.activate(2, NOW);
        assert_eq!(shard.endpoint(ENDPOINT), None);
    }
    carry(&mut shards, NOW);
    let mut answer = |endpoint, version| {
        let body = Body::Outcomes { endpoint, report: Report::default() };
        let stamp = Stamp { slot: 0, version };
        shards[home].receive(from, Message { wakes: true, stamp, body }, NOW);
        std::iter::from_fn(|| shards[home].outgoing(NOW)).last().unwrap().1.body
    };
    assert_eq!(answer(EndpointId(5), 3), Body::Ack);
    assert_eq!(answer(ENDPOINT, 4), Body::Gone);
}

/// A request that is in flight when its endpoint leaves keeps its credits to its end.
#[test]
fn a_retired_endpoint_leaves_with_its_last_request() {
    let mut shards = shards(1, requests(2));
    let slot = shards[0].endpoint(ENDPOINT).unwrap();
    let ticket = shards[0].admit(slot, NOW).unwrap();
    shards[0].prepare(&plan(2, requests(2), &[EndpointId(1)]));
    shards[0].activate(2, NOW);
    assert_eq!(shards[0].admit(slot, NOW), Err(Refusal::Retired));
    let new = shards[0].endpoint(EndpointId(1)).unwrap();
    assert_ne!(new, slot);
    let other = shards[0].admit(new, NOW).unwrap();
    assert_eq!(shards[0].admit(new, NOW), Err(Refusal::NoCredit), "the old one counts");
    shards[0].complete(ticket, Outcome::Success, Duration::ZERO, NOW);
    assert_eq!(shards[0].endpoint(ENDPOINT), None);
    let third = shards[0].admit(new, NOW).unwrap();
    shards[0].give_back(other, NOW);
    shards[0].give_back(third, NOW);
}

/// As does a cluster with the last retry, even if that never begins.
#[test]
fn a_retired_cluster_leaves_with_its_last_retry() {
    let mut shards = shards(1, ClusterLimits { retries_max: 1, ..ClusterLimits::default() });
    let cluster = shards[0].cluster(CLUSTER).unwrap();
    shards[0].wait_retry(cluster, 1, NOW);
    let waiter = shards[0].wait_retry(cluster, 2, NOW);
    let mut empty = (*plan(2, ClusterLimits::default(), &[])).clone();
    empty.clusters.clear();
    shards[0].prepare(&Arc::new(empty));
    shards[0].activate(2, NOW);
    shards[0].end_retry(cluster, NOW);
    while shards[0].next_event().is_some() {}
    assert_eq!(shards[0].cluster(CLUSTER), Some(cluster));
    match shards[0].cancel(waiter, NOW) {
        true => {}
        false => shards[0].end_retry(cluster, NOW),
    }
    assert_eq!(shards[0].cluster(CLUSTER), None);
}

#[test]
fn what_waits_is_bounded() {
    let limits = ClusterLimits { requests_max: 1, pending_max: 3, ..ClusterLimits::default() };
    let mut shards = shards(2, limits);
    let held = take_all(&mut shards, 0, 1);
    let slot = shards[0].endpoint(ENDPOINT).unwrap();
    let first = shards[0].wait(slot, 7, false, NOW).unwrap();
    assert!(shards[0].wait(slot, 8, false, NOW).is_ok());
    assert_eq!(
        shards[0].wait(slot, 9, false, NOW),
        Err(Refusal::TooManyPending),
        "2 here, 1 there"
    );
    assert!(shards[0].cancel(first, NOW));
    assert!(!shards[0].cancel(first, NOW));
    assert!(shards[0].wait(slot, 9, false, NOW).is_ok());
    std::mem::forget(held);
}

#[test]
fn retries_need_a_credit_and_a_budget() {
    let limits = ClusterLimits { retries_max: 2, ..ClusterLimits::default() };
    let mut shards = shards(1, limits);
    let (cluster, slot) =
        (shards[0].cluster(CLUSTER).unwrap(), shards[0].endpoint(ENDPOINT).unwrap());
    assert_eq!(shards[0].begin_retry(cluster, NOW), Err(RetryRefusal::NoBudget));
    for _ in 0..15 {
        shards[0].deposit(slot, NOW);
    }
    assert_eq!(shards[0].begin_retry(cluster, NOW), Ok(()));
    assert_eq!(shards[0].begin_retry(cluster, NOW), Ok(()));
    assert_eq!(shards[0].begin_retry(cluster, NOW), Err(RetryRefusal::NoCredit));
    shards[0].end_retry(cluster, NOW);
    shards[0].wait_retry(cluster, 7, NOW);
    assert_eq!(shards[0].next_event(), Some(Event::RetryGranted { token: 7 }), "the third paid");
    shards[0].end_retry(cluster, NOW);
    // Nothing deposited is left: the home lends three a second.
    shards[0].wait_retry(cluster, 8, NOW);
    assert_eq!(shards[0].next_event(), Some(Event::RetryGranted { token: 8 }));
}

/// Not before its home lends the next one, and not behind those that come later.
#[test]
fn a_retry_goes_when_first_attempts_have_paid_for_it() {
    let mut shards = shards(1, ClusterLimits::default());
    let (cluster, slot) =
        (shards[0].cluster(CLUSTER).unwrap(), shards[0].endpoint(ENDPOINT).unwrap());
    for token in 0..3 {
        shards[0].wait_retry(cluster, token, NOW); // The home lends three.
        assert_eq!(shards[0].next_event(), Some(Event::RetryGranted { token }));
        shards[0].end_retry(cluster, NOW);
    }
    shards[0].wait_retry(cluster, 3, NOW);
    for _ in 0..4 {
        shards[0].deposit(slot, NOW);
        assert_eq!(shards[0].next_event(), None);
    }
    shards[0].deposit(slot, NOW);
    assert_eq!(shards[0].next_event(), Some(Event::RetryGranted { token: 3 }));
}

/// Shards with credits for retries that nobody pays for leave each other, and themselves, in peace.
#[test]
fn retries_that_cannot_be_paid_swap_no_credits() {
    let retries = |limit| ClusterLimits { retries_max: limit, ..ClusterLimits::default() };
    for count in [1, 2, 3] {
        let mut shards = shards(count, retries(UNLIMITED));
        let cluster = shards[0].cluster(CLUSTER).unwrap();
        let wait = |shard: &mut Reconciler| {
            for token in 0..20 {
                shard.wait_retry(cluster, token, NOW);
            }
            let begun = std::iter::from_fn(|| shard.next_event()).count();
            (0..begun).for_each(|_| shard.end_retry(cluster, NOW));
        };
        shards.iter_mut().for_each(wait);
        let lowered = plan(2, retries(4), &[ENDPOINT]);
        for shard in &mut shards {
            shard.prepare(&lowered);
            shard.activate(2, NOW);
            while shard.next_event().is_some() {}
        }
        // Would not come to an end.
        carry(&mut shards, NOW);
        shards.iter_mut().for_each(wait);
        carry(&mut shards, NOW);
    }
}

/// A home does not go on to pay for retries that have long given up, and nobody saves them up.
#[test]
fn retries_that_gave_up_cost_one_token() {
    let mut shards = shards(2, ClusterLimits { retries_max: 100, ..ClusterLimits::default() });
    let cluster = shards[0].cluster(CLUSTER).unwrap();
    for shard in &mut shards {
        let waiters: Vec<_> = (0..50).map(|token| shard.wait_retry(cluster, token, NOW)).collect();
        for waiter in waiters {
            if !shard.cancel(waiter, NOW) {
                shard.end_retry(cluster, NOW);
            }
        }
    }
    let mut now = NOW;
    for _ in 0..60 {
        carry(&mut shards, now);
        now = now + Duration::from_secs(1);
        shards.iter_mut().for_each(|shard| shard.turn(now));
    }
    let home = usize::from(home_of(CLUSTER, 2).0);
    let lent = |shard| shards[home].homes().next().unwrap().1.tokens_granted(ShardId(shard));
    assert!(lent(0) + lent(1) <= 5, "three at once, and one that stood for each");
}

#[test]
fn idle_connections_are_closed_for_others() {
    let limits = ClusterLimits { connections_max: 1, ..ClusterLimits::default() };
    let mut shards = shards(2, limits);
    let slot = shards[0].endpoint(ENDPOINT).unwrap();
    assert_eq!(shards[0].open_connection(slot), Err(Refusal::NoCredit));
    shards[0].wait_connection(slot, 1, false, NOW).unwrap();
    carry(&mut shards, NOW);
    assert_eq!(shards[0].next_event(), Some(Event::Connect { token: 1, endpoint: slot }));
    shards[1].wait_connection(slot, 2, false, NOW).unwrap();
    carry(&mut shards, NOW);
    let asked = std::iter::from_fn(|| shards[0].next_event())
        .any(|event| matches!(event, Event::CloseIdle { .. }));
    assert!(asked && shards[0].connections_owed(slot) == 1);
    shards[0].close_connection(slot, NOW);
    carry(&mut shards, NOW);
    assert_eq!(shards[1].next_event(), Some(Event::Connect { token: 2, endpoint: slot }));
}

fn fail(shard: &mut Reconciler, slot: EndpointSlot, times: u32) {
    for _ in 0..times {
        let ticket = shard.admit(slot, NOW).unwrap();
        shard.complete(ticket, Outcome::Failure, Duration::ZERO, NOW);
    }
}

/// Of two endpoints one may be out; the other trips when there is room again, and not before.
#[test]
fn a_trip_beyond_max_ejected_is_tried_again() {
    let mut shard = Reconciler::new(ShardId(0), 1);
    shard.prepare(&plan(1, requests(UNLIMITED), &[EndpointId(0), EndpointId(1)]));
    shard.activate(1, NOW);
    let slots = [0, 1].map(|id| shard.endpoint(EndpointId(id)).unwrap());
    fail(&mut shard, slots[0], 5);
    assert_eq!(shard.admit(slots[0], NOW), Err(Refusal::Open));
    fail(&mut shard, slots[1], 5);
    let events: Vec<_> = std::iter::from_fn(|| shard.next_event()).collect();
    assert!(events.contains(&Event::TripRefused { endpoint: EndpointId(1) }));
    fail(&mut shard, slots[1], 1); // It stays in use.
    shard.override_to(EndpointId(0), Override::ForceClosed, 1, NOW);
    assert_eq!(shard.admit(slots[1], NOW), Err(Refusal::Open));
    fail(&mut shard, slots[0], 100);
}

/// A route's breaker admits without credits, and takes a permit back that was not used.
#[test]
fn a_route_has_a_breaker_and_no_limits() {
    let mut spec = ClusterSpec::new(CLUSTER);
    spec.limits = requests(1);
    let limits = EndpointLimits::default();
    spec.endpoints = vec![EndpointSpec { id: ENDPOINT, role: Role::Route, limits }];
    let plan = PlanSpec {
        generation: 1,
        clusters: vec![spec],
        clusters_end: ClusterId(1),
        endpoints_end: EndpointId(1),
    };
    let mut shard = Reconciler::new(ShardId(0), 1);
    shard.prepare(&Arc::new(plan));
    shard.activate(1, NOW);
    let route = shard.endpoint(ENDPOINT).unwrap();
    let failed = Some((Outcome::Failure, Duration::ZERO));
    let passes: Vec<_> = (0..5).map(|_| shard.enter_route(route, NOW).unwrap()).collect();
    for pass in passes {
        shard.leave_route(route, pass, failed, NOW);
    }
    assert_eq!(shard.enter_route(route, NOW), Err(Refusal::Open));
    let later = NOW + Duration::from_secs(5);
    shard.turn(later);
    assert_eq!(shard.enter_route(route, later), Err(Refusal::NeedsPermit));
    while shard.next_event().is_some() {}
    shard.wait_permit(route, 1, false, later).unwrap();
    assert_eq!(shard.next_event(), Some(Event::Elsewhere { token: 1 }), "it may enter now");
    let pass = shard.enter_route(route, later).unwrap();
    assert_eq!(pass.probe, std::num::NonZeroU64::new(1));
    shard.leave_route(route, pass, None, later);
    assert_eq!(shard.enter_route(route, later), Err(Refusal::NeedsPermit), "it went back");
    assert_eq!(shard.cluster_purse(Kind::Requests, ClusterSlot(0)).unwrap().in_use(), 0);
}

/// Processes that have the same plan, and see the same at the same time, do not all measure at once.
#[test]
fn processes_measure_at_times_of_their_own() {
    let measures_again = |seed| {
        let mut spec = ClusterSpec::new(CLUSTER);
        let min_rtt_every = Duration::from_secs(10);
        spec.adaptive =
            Some(Adaptive { min_rtt_every, jitter_percent: 100, ..Adaptive::default() });
        let limits = EndpointLimits::default();
        spec.endpoints = vec![EndpointSpec { id: ENDPOINT, role: Role::Endpoint, limits }];
        let (clusters_end, endpoints_end) = (ClusterId(1), EndpointId(1));
        let plan = PlanSpec { generation: 1, clusters: vec![spec], clusters_end, endpoints_end };
        let mut shard = Reconciler::new(ShardId(0), 1).seeded(seed);
        shard.prepare(&Arc::new(plan));
        shard.activate(1, NOW);
        let slot = shard.endpoint(ENDPOINT).unwrap();
        let times = (1..3_000).map(|count| NOW + Duration::from_millis(10) * count);
        let mut is_known = false;
        for now in times {
            let ticket = shard.admit(slot, now).unwrap();
            shard.complete(ticket, Outcome::Success, Duration::from_millis(5), now);
            shard.turn(now);
            while shard.next_event().is_some() {}
            let (_, home) = shard.homes().next().unwrap();
            let is_measuring = home.gradient().unwrap().is_measuring();
            if is_known && is_measuring {
                return now;
            }
            is_known |= !is_measuring;
        }
        panic!("it is never measured again");
    };
    assert_eq!(measures_again(1), measures_again(1));
    assert!((2..6).any(|seed| measures_again(seed) != measures_again(1)));
}
