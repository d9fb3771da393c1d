//! Every interleaving of a small world: from one state all steps that are possible, from each of
//! what they lead to all again, until there is no new state. Messages overtake each other at will;
//! some are repeated. (One that is lost is one that arrives after all else: the sender repeats it,
//! and totals that are late change nothing. Acknowledgements come at once; `sim` loses them too.)
//!
//! In every state the promises hold; and in those where nothing more can happen nobody waits.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::{self, Outcome, Pass};
use crate::reconcile::message::Body;
use crate::reconcile::mutation::{self, Mutation};
use crate::reconcile::{
    ClusterId, ClusterLimits, ClusterSpec, EndpointId, EndpointLimits, EndpointSpec, Event, Kind,
    Message, PlanSpec, Reconciler, Refusal, Role, ShardId, Ticket, UNLIMITED, home_of,
};
use crate::time::Nanos;

/// The time at which a walk begins.
const START: Nanos = Nanos(1_000_000_000);

const CLUSTER: ClusterId = ClusterId(0);

/// Where the entries are no endpoints.
const ROUTE: EndpointId = EndpointId(0);

/// What a walk is made of.
#[derive(Clone)]
struct Small {
    shards: u16,
    /// What its entries are. Through a route's breaker requests come back to themselves: there is
    /// no endpoint behind it.
    role: Role,
    /// Of the cluster, and of each endpoint.
    limit: u64,
    endpoint_limits: Vec<u64>,
    /// The cluster's limit in the second plan, if there is one.
    second_limit: Option<u64>,
    /// Requests that each shard may start.
    requests: [u8; 3],
    /// Messages that may be repeated.
    repeats: u8,
    /// Times to which the clock may move on, in order.
    times: Vec<Duration>,
    /// Whether requests may fail.
    fails: bool,
}

#[derive(Clone)]
struct State {
    nodes: Vec<Reconciler>,
    /// What time each shard takes it to be: it looks at the clock only when its loop goes round.
    clocks: Vec<Nanos>,
    /// The place in the times of what the time really is.
    time: usize,
    wires: Vec<(u16, u16, Message)>,
    /// Shard, endpoint, ticket.
    flying: Vec<(u16, usize, Ticket)>,
    /// Shard and pass: those that a route's breaker let through.
    passing: Vec<(u16, Pass)>,
    /// Shard and token.
    waiting: Vec<(u16, u64)>,
    /// Those that are to look at the route's breaker again, when their tasks run.
    woken: Vec<(u16, u64)>,
    left: Vec<u8>,
    repeats: u8,
    is_route: bool,
    /// Shards that serve by the second plan.
    replanned: Vec<bool>,
    /// Probes sent, by epoch.
    probes: Vec<(breaker::Epoch, u32)>,
}

fn plan(small: &Small, generation: u64, limit: u64) -> Arc<PlanSpec> {
    let endpoints = small.endpoint_limits.iter().enumerate().map(|(index, limit)| EndpointSpec {
        id: EndpointId(index as u32),
        role: small.role,
        limits: EndpointLimits { requests_max: *limit, ..EndpointLimits::default() },
    });
    let mut spec = ClusterSpec::new(CLUSTER);
    spec.limits = ClusterLimits { requests_max: limit, ..ClusterLimits::default() };
    spec.endpoints = endpoints.collect();
    spec.breaker = breaker::Settings {
        failures_in_a_row: if small.fails { 1 } else { u32::MAX },
        requests_min: u32::MAX,
        open_for: Duration::from_millis(100),
        permit_use_within: Duration::from_millis(100),
        probe_timeout: Duration::from_millis(100),
        ..breaker::Settings::default()
    };
    Arc::new(PlanSpec {
        generation,
        clusters: vec![spec],
        clusters_end: ClusterId(1),
        endpoints_end: EndpointId(small.endpoint_limits.len() as u32),
    })
}

impl State {
    fn new(small: &Small) -> State {
        let first = plan(small, 1, small.limit);
        let mut nodes: Vec<Reconciler> =
            (0..small.shards).map(|id| Reconciler::new(ShardId(id), small.shards)).collect();
        for node in &mut nodes {
            node.prepare(&first);
            node.activate(1, START);
            if let Some(limit) = small.second_limit {
                node.prepare(&plan(small, 2, limit));
            }
        }
        State {
            clocks: vec![START; nodes.len()],
            time: 0,
            wires: Vec::new(),
            flying: Vec::new(),
            passing: Vec::new(),
            waiting: Vec::new(),
            woken: Vec::new(),
            left: small.requests[..nodes.len()].to_vec(),
            repeats: small.repeats,
            is_route: small.role == Role::Route,
            replanned: vec![small.second_limit.is_none(); nodes.len()],
            probes: Vec::new(),
            nodes,
        }
    }

    fn now(&self, small: &Small) -> Nanos {
        small.times[..self.time].iter().fold(START, |now, time| now + *time)
    }

    /// All that may happen next.
    fn next(&self, small: &Small) -> Result<Vec<State>, String> {
        let mut all = Vec::new();
        for index in 0..self.wires.len() {
            if self.wires[..index].contains(&self.wires[index]) {
                continue;
            }
            let mut next = self.clone();
            next.deliver(index, false)?;
            all.push(next);
            if self.repeats > 0 {
                let mut next = self.clone();
                next.repeats -= 1;
                next.deliver(index, true)?;
                all.push(next);
            }
        }
        for shard in 0..small.shards {
            let at = usize::from(shard);
            if self.left[at] > 0 {
                for endpoint in 0..small.endpoint_limits.len() {
                    let mut next = self.clone();
                    next.left[at] -= 1;
                    match small.role {
                        Role::Endpoint => next.request(shard, endpoint)?,
                        Role::Route => {
                            let token = u64::from(shard) << 32 | u64::from(next.left[at]);
                            next.enter_route(shard, token)?;
                        }
                    }
                    all.push(next);
                }
            }
            if !self.replanned[at] {
                let mut next = self.clone();
                next.replanned[at] = true;
                next.nodes[at].activate(2, next.clocks[at]);
                next.after(shard)?;
                all.push(next);
            }
            let now = self.now(small);
            if self.clocks[at] < now {
                let mut next = self.clone();
                next.clocks[at] = now;
                next.nodes[at].turn(now);
                next.after(shard)?;
                all.push(next);
            }
        }
        if self.time < small.times.len() {
            let mut next = self.clone();
            next.time += 1;
            all.push(next);
        }
        let outcomes: &[Outcome] = match small.fails {
            true => &[Outcome::Success, Outcome::Failure],
            false => &[Outcome::Success],
        };
        for index in 0..self.woken.len() {
            let mut next = self.clone();
            let (shard, token) = next.woken.swap_remove(index);
            let mut gone = next.clone();
            next.enter_route(shard, token)?;
            all.push(next);
            gone.after(shard)?;
            all.push(gone);
        }
        for index in 0..self.passing.len() {
            for outcome in outcomes {
                let mut next = self.clone();
                let (shard, pass) = next.passing.swap_remove(index);
                let now = next.clocks[usize::from(shard)];
                let node = &mut next.nodes[usize::from(shard)];
                let slot = node.endpoint(ROUTE).expect("in both plans");
                node.leave_route(slot, pass, Some((*outcome, Duration::ZERO)), now);
                next.after(shard)?;
                all.push(next);
            }
        }
        for index in 0..self.flying.len() {
            for outcome in outcomes {
                let mut next = self.clone();
                next.finish(index, *outcome)?;
                all.push(next);
            }
        }
        Ok(all)
    }

    fn deliver(&mut self, index: usize, again: bool) -> Result<(), String> {
        let (from, to, message) =
            if again { self.wires[index] } else { self.wires.swap_remove(index) };
        let now = self.clocks[usize::from(to)];
        self.nodes[usize::from(to)].receive(ShardId(from), message, now);
        self.after(to)
    }

    fn request(&mut self, shard: u16, endpoint: usize) -> Result<(), String> {
        let at = usize::from(shard);
        let now = self.clocks[at];
        let token = u64::from(shard) << 32 | u64::from(self.left[at]);
        let node = &mut self.nodes[at];
        let slot = node.endpoint(EndpointId(endpoint as u32)).expect("in both plans");
        let waits = match node.admit(slot, now) {
            Ok(ticket) => {
                self.fly(shard, endpoint, ticket);
                false
            }
            Err(Refusal::NoCredit) => node.wait(slot, token, false, now).is_ok(),
            Err(Refusal::NeedsPermit) => node.wait_permit(slot, token, false, now).is_ok(),
            Err(_) => false,
        };
        if waits {
            self.waiting.push((shard, token));
        }
        self.after(shard)
    }

    fn enter_route(&mut self, shard: u16, token: u64) -> Result<(), String> {
        let now = self.clocks[usize::from(shard)];
        let node = &mut self.nodes[usize::from(shard)];
        let slot = node.endpoint(ROUTE).expect("in both plans");
        match node.enter_route(slot, now) {
            Ok(pass) => {
                self.count(pass);
                self.passing.push((shard, pass));
            }
            Err(Refusal::NeedsPermit) if node.wait_permit(slot, token, false, now).is_ok() => {
                self.waiting.push((shard, token));
            }
            Err(_) => {}
        }
        self.after(shard)
    }

    fn fly(&mut self, shard: u16, endpoint: usize, ticket: Ticket) {
        self.count(ticket.pass);
        self.flying.push((shard, endpoint, ticket));
    }

    /// A probe is sent.
    fn count(&mut self, Pass { epoch, probe }: Pass) {
        if probe.is_some() {
            match self.probes.iter_mut().find(|(other, _)| *other == epoch) {
                Some((_, count)) => *count += 1,
                None => self.probes.push((epoch, 1)),
            }
        }
    }

    fn finish(&mut self, index: usize, outcome: Outcome) -> Result<(), String> {
        let (shard, _, ticket) = self.flying.swap_remove(index);
        let now = self.clocks[usize::from(shard)];
        self.nodes[usize::from(shard)].complete(ticket, outcome, Duration::ZERO, now);
        self.after(shard)
    }

    /// Acts on events, hands acknowledgements over, and puts the rest on the wires.
    fn after(&mut self, shard: u16) -> Result<(), String> {
        let at = usize::from(shard);
        while let Some(event) = self.nodes[at].next_event() {
            match event {
                Event::Admitted { token, ticket } => {
                    self.waiting.retain(|waiting| *waiting != (shard, token));
                    let node = &self.nodes[at];
                    let is_its = |id: &u32| node.endpoint(EndpointId(*id)) == Some(ticket.endpoint);
                    let endpoint = (0..8).find(is_its).expect("in both plans");
                    self.fly(shard, endpoint as usize, ticket);
                }
                Event::Elsewhere { token } => {
                    self.waiting.retain(|waiting| *waiting != (shard, token));
                    if self.is_route {
                        self.woken.push((shard, token));
                    }
                }
                _ => {}
            }
        }
        let now = self.clocks[at];
        while let Some((to, message)) = self.nodes[at].outgoing(now) {
            if matches!(message.body, Body::Ack | Body::NotYet | Body::Gone) {
                let there = usize::from(to.0);
                let clock = self.clocks[there];
                self.nodes[there].receive(ShardId(shard), message, clock);
            } else {
                self.wires.push((shard, to.0, message));
            }
        }
        self.nodes.iter_mut().for_each(Reconciler::forget_statistics);
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        let count = self.nodes.len() as u16;
        let home = &self.nodes[usize::from(home_of(CLUSTER, count).0)];
        let Some((_, home)) = home.homes().next() else { return Err("no home".into()) };
        let lent = home.lent(Kind::Requests, None).ok_or("no limit")?;
        if self.flying.len() as u64 > lent.lent {
            return Err(format!("{} in flight, {lent:?}", self.flying.len()));
        }
        if self.replanned.iter().all(|it| !it) && lent.lent > lent.limit {
            return Err(format!("{lent:?}"));
        }
        for endpoint in home.endpoints().filter(|_| !self.is_route) {
            let lent = home.lent(Kind::Requests, Some(endpoint)).ok_or("no limit")?;
            let flying = self.flying.iter().filter(|it| it.1 == endpoint.0 as usize).count();
            if flying as u64 > lent.lent || lent.lent > lent.limit {
                return Err(format!("{flying} in flight to {endpoint:?}, {lent:?}"));
            }
        }
        let passes = self.flying.iter().map(|it| it.2.pass);
        let passes = passes.chain(self.passing.iter().map(|(_, pass)| *pass));
        let out: Vec<_> = passes.filter(|pass| pass.probe.is_some()).collect();
        if out.windows(2).any(|two| two[0].epoch != two[1].epoch) {
            return Err(format!("probes of two epochs are out: {out:?}"));
        }
        if let Some((epoch, sent)) = self.probes.iter().find(|(_, sent)| *sent > 1) {
            return Err(format!("{sent} probes in {epoch:?}"));
        }
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        let hash = |value: &dyn Fn(&mut DefaultHasher)| {
            let mut hasher = DefaultHasher::new();
            value(&mut hasher);
            hasher.finish()
        };
        // Wires and requests in flight are sets: their order is ours.
        let wires = self
            .wires
            .iter()
            .fold(0u64, |sum, it| sum.wrapping_add(hash(&|hasher| it.hash(hasher))));
        let flying = self
            .flying
            .iter()
            .fold(0u64, |sum, it| sum.wrapping_add(hash(&|hasher| it.hash(hasher))));
        hash(&|hasher| {
            (&self.nodes, &self.clocks, self.time, wires, flying, &self.waiting).hash(hasher);
            (&self.woken, &self.passing).hash(hasher);
            (&self.left, self.repeats, &self.replanned).hash(hasher);
        })
    }
}

/// Walks through all states; their number, and the number of those at which it ended.
fn walk(small: &Small) -> Result<(usize, usize), String> {
    let mut seen = HashSet::new();
    let first = State::new(small);
    seen.insert(first.fingerprint());
    let mut stack = vec![first];
    let mut ends = 0;
    while let Some(state) = stack.pop() {
        let next = state.next(small)?;
        if next.is_empty() {
            ends += 1;
            // A permit may lie unused until its time is over, and the walk's time is over first.
            if let Some((shard, token)) = state.waiting.first().filter(|_| !small.fails) {
                return Err(format!("{token} waits on shard {shard} for ever"));
            }
        }
        stack.extend(next.into_iter().filter(|state| seen.insert(state.fingerprint())));
    }
    Ok((seen.len(), ends))
}

fn credits(shards: u16, limit: u64, requests: u8) -> Small {
    Small {
        shards,
        role: Role::Endpoint,
        limit,
        endpoint_limits: vec![UNLIMITED],
        second_limit: None,
        requests: [requests; 3],
        repeats: 0,
        times: Vec::new(),
        fails: false,
    }
}

fn holds(small: &Small, states_min: usize) {
    let (states, ends) = walk(small).unwrap_or_else(|fault| panic!("{fault}"));
    println!("{states} states, {ends} ends");
    assert!(states >= states_min && ends > 0, "{states} states, {ends} ends");
}

#[test]
fn two_shards_share_one_credit() {
    holds(&Small { repeats: 1, ..credits(2, 1, 2) }, 1_000);
}

#[test]
fn two_shards_share_two_credits() {
    holds(&credits(2, 2, 2), 100);
}

#[test]
fn three_shards_share_one_credit() {
    holds(&Small { requests: [2, 1, 1], ..credits(3, 1, 0) }, 500);
}

#[test]
fn a_limit_is_lowered_and_raised() {
    holds(&Small { requests: [2, 1, 0], second_limit: Some(1), ..credits(2, 3, 0) }, 300);
    holds(&Small { requests: [2, 1, 0], second_limit: Some(3), ..credits(2, 1, 0) }, 300);
}

#[test]
fn credits_of_cluster_and_endpoint_are_nested() {
    let nested = Small { endpoint_limits: vec![1, 1], ..credits(2, 1, 1) };
    holds(&nested, 100);
    holds(&Small { requests: [2, 1, 0], ..nested.clone() }, 500);
    holds(&Small { limit: 2, ..nested }, 50);
}

/// Larger worlds, minutes in the dev profile: `cargo nextest run --release --run-ignored all walk`.
#[test]
#[ignore = "takes minutes without optimisation"]
fn larger_worlds() {
    holds(&credits(2, 2, 3), 100_000);
    holds(&credits(3, 1, 2), 10_000);
    holds(&Small { endpoint_limits: vec![1, 1], ..credits(2, 1, 2) }, 10_000);
    holds(&Small { endpoint_limits: vec![1, 1], ..credits(2, 2, 2) }, 10_000);
    holds(&probing(0), 50_000);
    holds(&Small { role: Role::Route, ..probing(0) }, 50_000);
}

/// Three requests: one to trip the breaker, and two that may be probes, at once or in turn.
fn probing(repeats: u8) -> Small {
    Small {
        requests: [2, 1, 0],
        repeats,
        fails: true,
        times: vec![Duration::from_millis(100), Duration::from_millis(300)],
        ..credits(2, UNLIMITED, 0)
    }
}

#[test]
fn one_probe_at_a_time() {
    holds(&Small { times: vec![Duration::from_millis(100)], ..probing(0) }, 1_000);
}

#[test]
fn one_probe_of_a_route_at_a_time() {
    let times = vec![Duration::from_millis(100)];
    holds(&Small { role: Role::Route, times, ..probing(0) }, 1_000);
}

/// The walk sees what is broken, too.
#[test]
fn the_walk_finds_mistakes() {
    let finds = |mistake: Mutation, small: &Small| {
        let fault = mutation::with(mistake, || walk(small)).expect_err("it goes unseen");
        println!("{mistake:?}: {fault}");
    };
    finds(Mutation::CountBeforeAsking, &credits(2, 1, 1));
    finds(Mutation::ReturnLost, &credits(2, 1, 2));
    finds(Mutation::RecallIgnored, &credits(2, 1, 2));
    let times = vec![Duration::from_millis(100)];
    let route = Small { role: Role::Route, times, ..probing(0) };
    finds(Mutation::RouteProbeCalledUnsent, &route);
    finds(Mutation::EndpointLimitIgnored, &Small { endpoint_limits: vec![1], ..credits(2, 2, 2) });
}
