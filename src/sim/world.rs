//! The world: shards, the wires between them, a clock, clients and servers, and what is true.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::check::Checker;
use super::{Fault, Op, Tally};
use crate::breaker::{self, Epoch, Outcome, Override, Pass, Phase};
use crate::reconcile::{
    Adaptive, ClusterId, ClusterLimits, ClusterSpec, EndpointId, EndpointLimits, EndpointSlot,
    EndpointSpec, Event, FLUSH_INTERVAL, Gradient, Home, Kind, Message, PlanSpec, Reconciler,
    Refusal, RetryBudget, Role, Rollout, ShardId, Step, Ticket, UNLIMITED, Waiter, home_of,
};
use crate::rng::Rng;
use crate::time::Nanos;

/// Flush intervals in which a healed world must agree.
const INTERVALS_TO_CONVERGE: u32 = 20;

/// In a healed world a loop goes round this often, if it has a reason to.
const TURN: Duration = Duration::from_micros(500);

/// Time in which every endpoint that answers must be closed again, given requests: some open times
/// at their longest, and as many ramps.
const RECOVERY: Duration = Duration::from_secs(8);

/// Places for endpoints in the world's plans; which of them are taken changes.
const PLACES: usize = 5;

/// The second cluster's first place; it is smaller.
const SECOND: usize = 3;

/// Places for breakers of routes.
const ROUTES: usize = 3;

/// The second cluster's first route.
const SECOND_ROUTE: usize = 2;

/// A request that has looked so often where it might go gives up.
const CHOICES_MAX: u8 = 4;

/// How the wires treat a seed's messages.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Of 256.
    lost: u8,
    /// Of 256.
    repeated: u8,
    delay_max: Duration,
    /// Whether messages of one sender may overtake each other.
    reorders: bool,
}

/// One shard, and what only it knows.
pub(super) struct Node {
    pub reconciler: Reconciler,
    /// When it last looked at the clock.
    pub clock: Nanos,
    pub stalled_until: Nanos,
    /// The plan that it serves by.
    pub plan: Arc<PlanSpec>,
    /// On the way to it, by time of arrival.
    wires: Vec<VecDeque<(Nanos, Message)>>,
    /// Steps of rollouts on the way to it.
    steps: VecDeque<(Nanos, Step)>,
}

/// How long a slow request takes.
const SLOW: Duration = Duration::from_millis(5);

/// What the others take.
const QUICK: Duration = Duration::from_millis(1);

/// A request that is on its way to an endpoint, or there.
pub(super) enum Request {
    /// For a credit, or for a permit of its route or its endpoint.
    Waiting(Errand, Waiter),
    /// It has to look again, when its task runs.
    Woken(Errand),
    InFlight(InFlight),
}

/// A request that is not at its endpoint yet.
pub(super) struct Errand {
    shard: usize,
    cluster: ClusterId,
    endpoint: EndpointId,
    /// The breaker that it has to pass first.
    wanted: Option<EndpointId>,
    /// And has passed.
    route: Option<RoutePass>,
    /// It is admitted, and then not sent.
    abandoned: bool,
    /// How often it has looked.
    choices: u8,
}

/// Leave of a route's breaker.
#[derive(Clone, Copy)]
pub(super) struct RoutePass {
    pub route: EndpointId,
    pub pass: Pass,
    slot: EndpointSlot,
    /// When a probe must be ended.
    end: Nanos,
}

/// A request at its endpoint.
pub(super) struct InFlight {
    pub shard: usize,
    pub endpoint: EndpointId,
    pub cluster: ClusterId,
    pub ticket: Ticket,
    pub route: Option<RoutePass>,
    /// When it was admitted.
    pub since: Nanos,
    /// When a probe must be ended.
    pub end: Nanos,
}

impl InFlight {
    /// What it probes, and in which epoch.
    pub fn probes(&self) -> impl Iterator<Item = (EndpointId, Epoch)> {
        let own = Some((self.endpoint, self.ticket.pass));
        let route = self.route.map(|route| (route.route, route.pass));
        let both = [own, route].into_iter().flatten();
        both.filter(|(_, pass)| pass.probe.is_some()).map(|(id, pass)| (id, pass.epoch))
    }

    fn ends(&self) -> Nanos {
        self.route.map_or(self.end, |route| self.end.min(route.end))
    }
}

impl Request {
    fn shard(&self) -> usize {
        match self {
            Request::Waiting(errand, _) | Request::Woken(errand) => errand.shard,
            Request::InFlight(it) => it.shard,
        }
    }
}

/// A retry that waits or runs, or a connection.
pub(super) struct Held {
    pub shard: usize,
    pub cluster: ClusterId,
    pub endpoint: Option<EndpointId>,
    pub slot: Option<EndpointSlot>,
    pub waiter: Option<Waiter>,
}

/// A place for an endpoint in the plans.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Who has it now.
    id: Option<EndpointId>,
    limits: EndpointLimits,
}

/// All there is.
pub struct World {
    pub(super) now: Nanos,
    fates: Rng,
    weather: Weather,
    pub(super) nodes: Vec<Node>,
    rollout: Rollout,
    pub(super) plans: BTreeMap<u64, Arc<PlanSpec>>,
    generation: u64,
    places: [Place; PLACES],
    /// Breakers of routes; the first two are of the first cluster.
    routes: [Option<EndpointId>; ROUTES],
    cluster_ids: [Option<ClusterId>; 2],
    cluster_limits: [ClusterLimits; 2],
    adaptive: [Option<Adaptive>; 2],
    settings: breaker::Settings,
    retry_budget: RetryBudget,
    /// Half of the seeds are about breakers: nothing is limited, and new endpoints do not answer.
    is_about_breakers: bool,
    endpoints_end: u32,
    clusters_end: u32,
    pub(super) dead: Vec<EndpointId>,
    overrides: u64,
    requests: BTreeMap<u64, Request>,
    connections: BTreeMap<u64, Held>,
    retries: BTreeMap<u64, Held>,
    tokens: u64,
    pub(super) checker: Checker,
    tally: Tally,
}

impl World {
    /// As it begins: one plan, on all shards.
    pub fn new(seed: u64, shards: Option<u16>) -> World {
        let mut fates = Rng::new(seed);
        let shards = shards.unwrap_or(1 + fates.below(5) as u16);
        let weather = Weather {
            lost: [0, 8, 40, 100][fates.below(4) as usize],
            repeated: [0, 8, 40][fates.below(3) as usize],
            delay_max: Duration::from_micros([50, 1_000, 10_000, 60_000][fates.below(4) as usize]),
            reorders: fates.below(2) == 0,
        };
        let slow_counts = fates.below(4) == 0;
        let settings = breaker::Settings {
            latency_max: slow_counts.then_some(SLOW / 2),
            failures_in_a_row: [2, 3, 5][fates.below(3) as usize],
            requests_min: 6,
            window: Duration::from_millis(500),
            open_for: Duration::from_millis(30),
            open_for_max: Duration::from_millis(120),
            probes: 1 + fates.below(2) as u32,
            permit_use_within: Duration::from_millis(50),
            probe_timeout: Duration::from_millis(10),
            ramp: Duration::from_millis(50),
            ..breaker::Settings::default()
        };
        let retry_budget = RetryBudget {
            deposit_milli: [0, 200, 200, 1_000][fates.below(4) as usize],
            ttl: Duration::from_millis([200, 10_000][fates.below(2) as usize]),
            per_second_min: [0, 30, 300][fates.below(3) as usize],
        };
        let empty = Arc::new(PlanSpec {
            generation: 0,
            clusters: Vec::new(),
            clusters_end: ClusterId(0),
            endpoints_end: EndpointId(0),
        });
        let node = |id| Node {
            reconciler: Reconciler::new(ShardId(id), shards),
            clock: Nanos(0),
            stalled_until: Nanos(0),
            plan: empty.clone(),
            wires: (0..shards).map(|_| VecDeque::new()).collect(),
            steps: VecDeque::new(),
        };
        let mut world = World {
            // Not at zero: a time of zero means "never" here and there.
            now: Nanos(1_000_000_000),
            weather,
            nodes: (0..shards).map(node).collect(),
            rollout: Rollout::new(shards),
            plans: BTreeMap::new(),
            generation: 0,
            places: [Place { id: None, limits: EndpointLimits::default() }; PLACES],
            routes: [None; ROUTES],
            cluster_ids: [None; 2],
            cluster_limits: [ClusterLimits { retries_max: 3, ..ClusterLimits::default() }; 2],
            adaptive: [None; 2],
            settings,
            retry_budget,
            is_about_breakers: fates.below(2) == 0,
            endpoints_end: 0,
            clusters_end: 0,
            dead: Vec::new(),
            overrides: 0,
            requests: BTreeMap::new(),
            connections: BTreeMap::new(),
            retries: BTreeMap::new(),
            tokens: 0,
            checker: Checker::new(shards, settings, retry_budget),
            tally: Tally::default(),
            fates,
        };
        world.cluster_ids = [Some(world.new_cluster()), Some(world.new_cluster())];
        for cluster in 0..2 {
            world.cluster_limits[cluster] = ClusterLimits {
                requests_max: world.draw_limit(),
                connections_max: world.draw_limit(),
                pending_max: 8,
                retries_max: world.draw_retries(),
            };
        }
        world.adaptive = [world.draw_adaptive(), world.draw_adaptive()];
        for place in [0, 1, 2, SECOND] {
            world.fill(place);
        }
        for route in [0, SECOND_ROUTE] {
            world.fill_route(route);
        }
        let plan = world.make_plan();
        for node in &mut world.nodes {
            node.reconciler.prepare(&plan);
            node.reconciler.activate(plan.generation, Nanos(1));
            node.plan = plan.clone();
        }
        world.plans.insert(plan.generation, plan.clone());
        let _ = world.rollout.submit(plan.generation);
        for shard in 0..shards {
            let _ = world.rollout.prepared(ShardId(shard), plan.generation);
        }
        for shard in 0..shards {
            let _ = world.rollout.activated(ShardId(shard), plan.generation);
        }
        world
    }

    /// What went on.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Does one step, and checks.
    ///
    /// # Errors
    /// What must never be.
    pub fn step(&mut self, op: Op) -> Result<(), Fault> {
        match op {
            Op::Wait(time) => {
                self.now = self.now + time;
                Ok(())
            }
            Op::Turn { shard } => {
                self.turn(self.pick(shard))?;
                self.go_on(self.pick(shard))
            }
            Op::Request { shard, endpoint, route, abandoned } => {
                self.request(self.pick(shard), endpoint, route, abandoned)
            }
            Op::Finish { which, luck } => self.finish_some(which, luck),
            Op::Cancel { which } => self.cancel_some(which),
            Op::Connect { shard, endpoint } => self.connect(self.pick(shard), endpoint),
            Op::Disconnect { which } => self.disconnect_some(which),
            Op::Retry { shard, cluster } => self.retry_some(self.pick(shard), cluster),
            Op::EndRetry { which } => self.end_retry_some(which),
            Op::Stall { shard, time } => {
                let shard = self.pick(shard);
                self.nodes[shard].stalled_until = self.now + time;
                Ok(())
            }
            Op::Kill { endpoint } => {
                self.dead.extend(self.breaker_at(endpoint));
                Ok(())
            }
            Op::Revive { endpoint } => {
                let id = self.breaker_at(endpoint);
                self.dead.retain(|dead| Some(*dead) != id);
                Ok(())
            }
            Op::Plan { change } => self.change_plan(change),
            Op::Override { endpoint, wanted } => {
                let wanted = match wanted % 4 {
                    0 => Override::ForceOpen,
                    1 => Override::ForceClosed,
                    _ => Override::Release,
                };
                self.override_some(endpoint, wanted)
            }
        }
    }

    /// The endpoint in a place, or the route's breaker behind those.
    fn breaker_at(&self, place: u8) -> Option<EndpointId> {
        match usize::from(place) % (PLACES + ROUTES) {
            place if place < PLACES => self.places[place].id,
            place => self.routes[place - PLACES],
        }
    }

    fn pick(&self, shard: u8) -> usize {
        usize::from(shard) % self.nodes.len()
    }

    // ---- Shards -------------------------------------------------------------------------------

    /// A loop goes round: the clock is read, messages, timers, then what comes of it is sent.
    fn turn(&mut self, shard: usize) -> Result<(), Fault> {
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        self.nodes[shard].clock = self.now;
        self.take_steps(shard)?;
        for (from, message) in self.arrived(shard) {
            self.nodes[shard].reconciler.receive(ShardId(from as u16), message, self.now);
            self.after(shard)?;
        }
        self.nodes[shard].reconciler.turn(self.now);
        self.after(shard)?;
        self.end_probes(shard)
    }

    /// What has arrived, in the order of arrival over all wires.
    fn arrived(&mut self, shard: usize) -> Vec<(usize, Message)> {
        let now = self.now;
        let mut all = Vec::new();
        for (from, wire) in self.nodes[shard].wires.iter_mut().enumerate() {
            if self.weather.reorders {
                let mut place = 0;
                while place < wire.len() {
                    if wire[place].0 <= now {
                        all.extend(wire.remove(place).map(|(due, message)| (due, from, message)));
                    } else {
                        place += 1;
                    }
                }
            } else {
                while wire.front().is_some_and(|(due, _)| *due <= now) {
                    all.extend(wire.pop_front().map(|(due, message)| (due, from, message)));
                }
            }
        }
        all.sort_by_key(|(due, from, _)| (*due, *from));
        all.into_iter().map(|(_, from, message)| (from, message)).collect()
    }

    /// After each call: events are acted on, messages leave, everything is checked.
    fn after(&mut self, shard: usize) -> Result<(), Fault> {
        while let Some(event) = self.nodes[shard].reconciler.next_event() {
            self.act(shard, event)?;
        }
        let clock = self.nodes[shard].clock;
        while let Some((to, message)) = self.nodes[shard].reconciler.outgoing(clock) {
            self.send(shard, usize::from(to.0), message);
        }
        self.check(shard)
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.tally.messages += 1;
        let fate = self.fates.bits();
        let delay = |bits: u64| {
            let micros = self.weather.delay_max.as_micros() as u64;
            Duration::from_micros(bits % (micros + 1))
        };
        let due = self.now + delay(fate >> 24);
        let wire = &mut self.nodes[to].wires[from];
        if (fate as u8) >= self.weather.lost {
            wire.push_back((due, message));
        } else {
            self.tally.lost += 1;
        }
        if ((fate >> 8) as u8) < self.weather.repeated {
            // The repetition may come very late.
            wire.push_back((due + delay(fate >> 40) * 8, message));
        }
    }

    fn act(&mut self, shard: usize, event: Event) -> Result<(), Fault> {
        let now = self.nodes[shard].clock;
        match event {
            Event::Admitted { token, ticket } => match self.requests.remove(&token) {
                Some(Request::Waiting(errand, _)) => self.admitted(token, errand, ticket),
                _ => Err(Fault::Safety(format!("{token} was admitted and does not wait"))),
            },
            Event::Elsewhere { token } => {
                if let Some(Request::Waiting(errand, _)) = self.requests.remove(&token) {
                    self.requests.insert(token, Request::Woken(errand));
                } else if self.connections.remove(&token).is_none() {
                    return Err(Fault::Safety(format!("{token} is sent away and does not wait")));
                }
                Ok(())
            }
            Event::Connect { token, endpoint } => {
                if let Some(held) = self.connections.get_mut(&token) {
                    held.waiter = None;
                    held.slot = Some(endpoint);
                    self.checker.began(shard, Kind::Connections, held.cluster, held.endpoint);
                    return Ok(());
                }
                Err(Fault::Safety(format!("{token} may connect and does not wait")))
            }
            Event::RetryGranted { token } => {
                let waiting = self.retries.get_mut(&token).filter(|held| held.waiter.is_some());
                let Some(held) = waiting else {
                    return Err(Fault::Safety(format!("retry {token} may go and does not wait")));
                };
                held.waiter = None;
                let cluster = held.cluster;
                self.retry_began(shard, cluster)
            }
            Event::CloseIdle { .. } => {
                // Every connection of this world is idle.
                loop {
                    let reconciler = &self.nodes[shard].reconciler;
                    let owed = self.connections.iter().find_map(|(token, held)| {
                        let slot = held.slot.filter(|_| held.shard == shard)?;
                        let is_owed =
                            held.waiter.is_none() && reconciler.connections_owed(slot) > 0;
                        is_owed.then_some((*token, slot))
                    });
                    let Some((token, slot)) = owed else { return Ok(()) };
                    if let Some(held) = self.connections.remove(&token) {
                        self.checker.ended(shard, Kind::Connections, held.cluster, held.endpoint);
                    }
                    self.nodes[shard].reconciler.close_connection(slot, now);
                }
            }
            Event::Transition { endpoint, epoch, phase } => {
                self.tally.transitions += 1;
                self.checker.transition(endpoint, epoch, phase, now)
            }
            Event::TripRefused { endpoint } => {
                if self.checker.is_route(endpoint) {
                    let what = format!("{endpoint:?} is a route, and needs no place to trip");
                    return Err(Fault::Safety(what));
                }
                self.tally.trips_refused += 1;
                Ok(())
            }
            Event::Concurrency { .. } => {
                self.tally.adapted += 1;
                Ok(())
            }
            Event::OverrideApplied { endpoint, generation } => {
                self.tally.overrides += 1;
                self.override_applied(endpoint, generation)
            }
        }
    }

    /// Every shard must have it.
    fn override_applied(&mut self, endpoint: EndpointId, generation: u64) -> Result<(), Fault> {
        let Some(epoch) = self.checker.override_epoch(endpoint, generation) else { return Ok(()) };
        for (shard, node) in self.nodes.iter().enumerate() {
            let view = node.reconciler.endpoint(endpoint).and_then(|it| node.reconciler.view(it));
            if view.is_some_and(|view| view.epoch() < epoch) {
                return Err(Fault::Safety(format!(
                    "override {generation} of {endpoint:?} was acknowledged before shard {shard}"
                )));
            }
        }
        Ok(())
    }

    /// Probes whose time is over are ended, as their sessions' timers would.
    fn end_probes(&mut self, shard: usize) -> Result<(), Fault> {
        let now = self.now;
        let due: Vec<u64> = self
            .requests
            .iter()
            .filter_map(|(token, request)| match request {
                Request::InFlight(it) if it.shard == shard && it.ends() <= now => Some(*token),
                _ => None,
            })
            .collect();
        due.into_iter().try_for_each(|token| self.finish(token, Outcome::Failure, Duration::ZERO))
    }

    fn check(&mut self, shard: usize) -> Result<(), Fault> {
        self.checker.check(shard, &self.nodes, &self.requests)
    }

    // ---- Requests -----------------------------------------------------------------------------

    /// An endpoint of the plan that the shard serves by.
    fn endpoint_of(&self, shard: usize, endpoint: u8) -> Option<(EndpointId, ClusterId)> {
        let plan = &self.nodes[shard].plan;
        let all: Vec<_> = plan
            .clusters
            .iter()
            .flat_map(|spec| entries(spec, Role::Endpoint).map(|id| (id, spec.id)))
            .collect();
        if all.is_empty() { None } else { Some(all[usize::from(endpoint) % all.len()]) }
    }

    /// A route to a cluster that has a breaker.
    fn route_to(&self, shard: usize, cluster: ClusterId, route: u8) -> Option<EndpointId> {
        let plan = &self.nodes[shard].plan;
        let spec = plan.clusters.iter().find(|spec| spec.id == cluster)?;
        let all: Vec<_> = entries(spec, Role::Route).collect();
        let is_wanted = !route.is_multiple_of(2) && !all.is_empty();
        is_wanted.then(|| all[usize::from(route / 2) % all.len()])
    }

    fn request(
        &mut self,
        shard: usize,
        endpoint: u8,
        route: u8,
        abandoned: bool,
    ) -> Result<(), Fault> {
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        self.turn(shard)?;
        let Some((endpoint, cluster)) = self.endpoint_of(shard, endpoint) else { return Ok(()) };
        let wanted = self.route_to(shard, cluster, route);
        self.tokens += 1;
        let errand =
            Errand { shard, cluster, endpoint, wanted, route: None, abandoned, choices: 0 };
        self.go(self.tokens, errand)
    }

    /// Those who were woken look again. Others may have come before them.
    fn go_on(&mut self, shard: usize) -> Result<(), Fault> {
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        self.nodes[shard].clock = self.now;
        for token in self.woken(shard) {
            let Some(Request::Woken(mut errand)) = self.requests.remove(&token) else { continue };
            if errand.wanted.is_none() {
                match self.next_endpoint(&errand) {
                    Some(endpoint) => errand.endpoint = endpoint,
                    None => {
                        self.give_up(&errand)?;
                        continue;
                    }
                }
            }
            self.go(token, errand)?;
        }
        Ok(())
    }

    fn woken(&self, shard: usize) -> Vec<u64> {
        let is_woken = |it: &&Request| matches!(it, Request::Woken(it) if it.shard == shard);
        let woken = self.requests.iter().filter(|(_, request)| is_woken(request));
        woken.map(|(token, _)| *token).collect()
    }

    /// By the newest plan, the one behind the one that was tried.
    fn next_endpoint(&self, errand: &Errand) -> Option<EndpointId> {
        let plan = &self.nodes[errand.shard].plan;
        let spec = plan.clusters.iter().find(|spec| spec.id == errand.cluster)?;
        let behind = entries(spec, Role::Endpoint).find(|id| *id > errand.endpoint);
        behind.or_else(|| entries(spec, Role::Endpoint).next())
    }

    /// As far as a request gets: first its route's breaker, if it has one, then its endpoint.
    fn go(&mut self, token: u64, mut errand: Errand) -> Result<(), Fault> {
        let (shard, now) = (errand.shard, self.now);
        if errand.choices == CHOICES_MAX {
            return self.give_up(&errand);
        }
        errand.choices += 1;
        let reconciler = &mut self.nodes[shard].reconciler;
        // By its number, each time: a plan may have taken it away meanwhile.
        if let Some(route) = errand.wanted.take()
            && let Some(slot) = reconciler.endpoint(route)
        {
            match reconciler.enter_route(slot, now) {
                Ok(pass) => {
                    let end = if pass.probe.is_some() { reconciler.view(slot) } else { None };
                    let end =
                        end.and_then(|view| view.permit()).map_or(Nanos::NEVER, |it| it.0.end);
                    errand.route = Some(RoutePass { route, pass, slot, end });
                }
                Err(Refusal::NeedsPermit) => {
                    errand.wanted = Some(route);
                    let waiter = reconciler.wait_permit(slot, token, false, now);
                    return self.waits(token, errand, waiter);
                }
                Err(Refusal::Retired) => {}
                Err(_) => return Ok(()),
            }
        }
        let Some(slot) = reconciler.endpoint(errand.endpoint) else {
            return self.give_up(&errand);
        };
        let is_probe = errand.route.as_ref().is_some_and(|route| route.pass.probe.is_some());
        let waiter = match reconciler.admit(slot, now) {
            Ok(ticket) => {
                self.admitted(token, errand, ticket)?;
                return self.after(shard);
            }
            Err(Refusal::NoCredit) => reconciler.wait(slot, token, is_probe, now),
            Err(Refusal::NeedsPermit) => reconciler.wait_permit(slot, token, is_probe, now),
            Err(_) => return self.give_up(&errand),
        };
        self.waits(token, errand, waiter)
    }

    fn waits(
        &mut self,
        token: u64,
        errand: Errand,
        waiter: Result<Waiter, Refusal>,
    ) -> Result<(), Fault> {
        let shard = errand.shard;
        match waiter {
            Ok(waiter) => {
                self.tally.waited += 1;
                self.requests.insert(token, Request::Waiting(errand, waiter));
                self.after(shard)
            }
            Err(_) => self.give_up(&errand),
        }
    }

    /// It goes nowhere.
    fn give_up(&mut self, errand: &Errand) -> Result<(), Fault> {
        if let Some(RoutePass { route, pass, slot, .. }) = errand.route {
            self.is_still_there(errand.shard, route, slot)?;
            self.nodes[errand.shard].reconciler.leave_route(slot, pass, None, self.now);
        }
        self.after(errand.shard)
    }

    /// A route's breaker lives for as long as somebody has passed it.
    fn is_still_there(
        &self,
        shard: usize,
        route: EndpointId,
        slot: EndpointSlot,
    ) -> Result<(), Fault> {
        if self.nodes[shard].reconciler.endpoint(route) == Some(slot) {
            return Ok(());
        }
        Err(Fault::Safety(format!("{route:?} left shard {shard} before its requests")))
    }

    fn admitted(&mut self, token: u64, errand: Errand, ticket: Ticket) -> Result<(), Fault> {
        let Errand { shard, cluster, endpoint, route, .. } = errand;
        let node = &mut self.nodes[shard];
        let now = node.clock;
        // A route's probe may have waited for its endpoint until its time was over.
        let is_late = route.is_some_and(|route| route.end <= now);
        if errand.abandoned || is_late {
            node.reconciler.give_back(ticket, now);
            if let Some(RoutePass { route, pass, slot, .. }) = route {
                self.is_still_there(shard, route, slot)?;
                self.nodes[shard].reconciler.leave_route(slot, pass, None, now);
            }
            return Ok(());
        }
        node.reconciler.deposit(ticket.endpoint, now);
        self.checker.deposited(shard, cluster, now);
        self.tally.admitted += 1;
        let mut end = Nanos::NEVER;
        if ticket.pass.probe.is_some() {
            let view = node.reconciler.view(ticket.endpoint);
            end = view.and_then(|view| view.permit()).map_or(Nanos::NEVER, |(it, _)| it.end);
        }
        self.checker.began(shard, Kind::Requests, cluster, Some(endpoint));
        let since = self.nodes[shard].clock;
        let request = InFlight { shard, endpoint, cluster, ticket, route, since, end };
        let mut probes = 0;
        for (id, epoch) in request.probes() {
            probes += 1;
            self.tally.probes += 1;
            self.tally.route_probes += u64::from(id != endpoint);
            self.checker.probe_sent(id, epoch)?;
        }
        self.tally.double_probes += u64::from(probes == 2);
        self.requests.insert(token, Request::InFlight(request));
        Ok(())
    }

    fn finish_some(&mut self, which: u8, luck: u32) -> Result<(), Fault> {
        let flying: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| match request {
                Request::InFlight(it) => self.nodes[it.shard].stalled_until <= self.now,
                _ => false,
            })
            .map(|(token, _)| *token)
            .collect();
        if flying.is_empty() {
            return Ok(());
        }
        let token = flying[usize::from(which) % flying.len()];
        let Some(Request::InFlight(request)) = self.requests.get(&token) else { return Ok(()) };
        let is_dead = |id: EndpointId| self.dead.contains(&id);
        let outcome = match luck % 100 {
            0..3 => Outcome::Neutral,
            3..93 if is_dead(request.endpoint) => Outcome::Failure,
            3..93 if request.route.is_some_and(|it| is_dead(it.route)) => Outcome::Failure,
            93..97 => Outcome::Failure,
            _ => Outcome::Success,
        };
        // Some answers take long, and a probe is settled when its answer begins.
        let goes_on = request.probes().next().is_some() && luck & 0x1_0000 != 0;
        let latency = if (luck >> 17).is_multiple_of(4) { SLOW } else { QUICK };
        match goes_on {
            true => self.settle(token, outcome, latency),
            false => self.finish(token, outcome, latency),
        }
    }

    /// What it probes is known; it goes on.
    fn settle(&mut self, token: u64, outcome: Outcome, latency: Duration) -> Result<(), Fault> {
        let Some(Request::InFlight(request)) = self.requests.get_mut(&token) else { return Ok(()) };
        let (shard, endpoint, pass) = (request.shard, request.endpoint, request.ticket.pass);
        let node = &mut self.nodes[shard];
        node.clock = self.now;
        let now = self.now;
        if pass.probe.is_some() {
            let counted_in = node.reconciler.view(request.ticket.endpoint).map(|it| it.epoch());
            node.reconciler.settle_probe(&mut request.ticket, outcome, latency, now);
            let in_time = now < std::mem::replace(&mut request.end, Nanos::NEVER);
            self.checker.finished(shard, endpoint, pass, (outcome, latency), in_time, counted_in);
        }
        if let Some(route) = request.route.take_if(|route| route.pass.probe.is_some()) {
            self.leave_route(shard, route, outcome, latency)?;
        }
        self.after(shard)
    }

    fn finish(&mut self, token: u64, outcome: Outcome, latency: Duration) -> Result<(), Fault> {
        let Some(Request::InFlight(request)) = self.requests.remove(&token) else { return Ok(()) };
        let InFlight { shard, endpoint, cluster, ticket, route, since, end } = request;
        self.checker.ended(shard, Kind::Requests, cluster, Some(endpoint));
        // Its task runs in a turn of its shard, which begins with the messages.
        let node = &mut self.nodes[shard];
        node.clock = self.now;
        let counted_in = node.reconciler.view(ticket.endpoint).map(|view| view.epoch());
        let (pass, now) = (ticket.pass, self.now);
        node.reconciler.complete(ticket, outcome, latency, now);
        let is_sampled =
            node.plan.clusters.iter().any(|it| it.id == cluster && it.adaptive.is_some());
        if is_sampled && outcome == Outcome::Success {
            self.checker.sampled(shard, cluster, since);
        }
        let in_time = now < end;
        self.checker.finished(shard, endpoint, pass, (outcome, latency), in_time, counted_in);
        if let Some(route) = route {
            self.leave_route(shard, route, outcome, latency)?;
        }
        self.after(shard)
    }

    /// With an outcome: what was sent has ended.
    fn leave_route(
        &mut self,
        shard: usize,
        RoutePass { route, pass, slot, end }: RoutePass,
        outcome: Outcome,
        latency: Duration,
    ) -> Result<(), Fault> {
        self.is_still_there(shard, route, slot)?;
        let reconciler = &mut self.nodes[shard].reconciler;
        let counted_in = reconciler.view(slot).map(|view| view.epoch());
        // Who has nothing to say of an end need not say it, unless it was a probe.
        let is_silent = outcome == Outcome::Neutral && pass.probe.is_none();
        let said = if is_silent { None } else { Some((outcome, latency)) };
        reconciler.leave_route(slot, pass, said, self.now);
        let in_time = self.now < end;
        self.checker.finished(shard, route, pass, (outcome, latency), in_time, counted_in);
        Ok(())
    }

    fn cancel_some(&mut self, which: u8) -> Result<(), Fault> {
        let undone: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| !matches!(request, Request::InFlight(_)))
            .filter(|(_, request)| self.nodes[request.shard()].stalled_until <= self.now)
            .map(|(token, _)| *token)
            .collect();
        if undone.is_empty() {
            return Ok(());
        }
        let token = undone[usize::from(which) % undone.len()];
        let errand = match self.requests.remove(&token) {
            Some(Request::Woken(errand)) => errand,
            Some(Request::Waiting(errand, waiter)) => {
                let reconciler = &mut self.nodes[errand.shard].reconciler;
                let left = match which.is_multiple_of(2) {
                    true => reconciler.cancel(waiter, self.now),
                    false => reconciler.step_aside(waiter, self.now),
                };
                if !left {
                    let what = format!("{token} waits and cannot be cancelled");
                    return Err(Fault::Safety(what));
                }
                errand
            }
            Some(Request::InFlight(_)) | None => return Ok(()),
        };
        self.nodes[errand.shard].clock = self.now;
        self.give_up(&errand)
    }

    fn connect(&mut self, shard: usize, endpoint: u8) -> Result<(), Fault> {
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        self.turn(shard)?;
        let Some((id, cluster)) = self.endpoint_of(shard, endpoint) else { return Ok(()) };
        self.tokens += 1;
        let (token, now) = (self.tokens, self.now);
        let reconciler = &mut self.nodes[shard].reconciler;
        let Some(slot) = reconciler.endpoint(id) else { return Ok(()) };
        let mut held = Held { shard, cluster, endpoint: Some(id), slot: Some(slot), waiter: None };
        match reconciler.open_connection(slot) {
            Ok(()) => self.checker.began(shard, Kind::Connections, cluster, Some(id)),
            Err(Refusal::NoCredit) => match reconciler.wait_connection(slot, token, false, now) {
                Ok(waiter) => held.waiter = Some(waiter),
                Err(_) => return Ok(()),
            },
            Err(_) => return Ok(()),
        }
        self.connections.insert(token, held);
        self.after(shard)
    }

    fn disconnect_some(&mut self, which: u8) -> Result<(), Fault> {
        let open: Vec<u64> = self.connections.keys().copied().collect();
        if open.is_empty() {
            return Ok(());
        }
        let token = open[usize::from(which) % open.len()];
        self.disconnect(token)
    }

    fn disconnect(&mut self, token: u64) -> Result<(), Fault> {
        let Some(held) = self.connections.get(&token) else { return Ok(()) };
        let shard = held.shard;
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        let Some(held) = self.connections.remove(&token) else { return Ok(()) };
        self.nodes[shard].clock = self.now;
        let reconciler = &mut self.nodes[shard].reconciler;
        match (held.waiter, held.slot) {
            (Some(waiter), _) => {
                reconciler.cancel(waiter, self.now);
            }
            (None, Some(slot)) => {
                self.checker.ended(shard, Kind::Connections, held.cluster, held.endpoint);
                reconciler.close_connection(slot, self.now);
            }
            (None, None) => {}
        }
        self.after(shard)
    }

    fn retry_some(&mut self, shard: usize, cluster: u8) -> Result<(), Fault> {
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        self.turn(shard)?;
        let clusters = &self.nodes[shard].plan.clusters;
        match clusters.get(usize::from(cluster) % clusters.len().max(1)) {
            Some(spec) => self.retry(shard, spec.id),
            None => Ok(()),
        }
    }

    fn retry(&mut self, shard: usize, cluster: ClusterId) -> Result<(), Fault> {
        self.tokens += 1;
        let (token, now) = (self.tokens, self.now);
        let reconciler = &mut self.nodes[shard].reconciler;
        let Some(slot) = reconciler.cluster(cluster) else { return Ok(()) };
        let mut held = Held { shard, cluster, endpoint: None, slot: None, waiter: None };
        match reconciler.begin_retry(slot, now) {
            Ok(()) => self.retry_began(shard, cluster)?,
            Err(_) => {
                held.waiter = Some(reconciler.wait_retry(slot, token, now));
                self.tally.retries_waited += 1;
            }
        }
        self.retries.insert(token, held);
        self.after(shard)
    }

    fn retry_began(&mut self, shard: usize, cluster: ClusterId) -> Result<(), Fault> {
        self.tally.retries += 1;
        self.checker.began(shard, Kind::Retries, cluster, None);
        self.checker.retried(shard, cluster, &self.nodes)
    }

    fn end_retry_some(&mut self, which: u8) -> Result<(), Fault> {
        let all: Vec<u64> = self.retries.keys().copied().collect();
        if all.is_empty() {
            return Ok(());
        }
        self.end_retry(all[usize::from(which) % all.len()])
    }

    fn end_retry(&mut self, token: u64) -> Result<(), Fault> {
        let Some(held) = self.retries.get(&token) else { return Ok(()) };
        let (shard, cluster, waiter) = (held.shard, held.cluster, held.waiter);
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        self.retries.remove(&token);
        self.nodes[shard].clock = self.now;
        let reconciler = &mut self.nodes[shard].reconciler;
        match waiter {
            Some(waiter) => {
                if !reconciler.cancel(waiter, self.now) {
                    let what = format!("retry {token} waits and cannot be cancelled");
                    return Err(Fault::Safety(what));
                }
            }
            None => {
                let Some(slot) = reconciler.cluster(cluster) else {
                    return Err(Fault::Safety(format!(
                        "{cluster:?} left before its retry {token}"
                    )));
                };
                reconciler.end_retry(slot, self.now);
                self.checker.ended(shard, Kind::Retries, cluster, None);
            }
        }
        self.after(shard)
    }

    // ---- Plans --------------------------------------------------------------------------------

    fn new_cluster(&mut self) -> ClusterId {
        self.clusters_end += 1;
        ClusterId(self.clusters_end - 1)
    }

    /// A new endpoint: never the one that was there before.
    fn fill(&mut self, place: usize) {
        self.endpoints_end += 1;
        if self.is_about_breakers {
            self.dead.push(EndpointId(self.endpoints_end - 1));
        }
        let limits = EndpointLimits {
            requests_max: self.draw_limit(),
            connections_max: self.draw_limit(),
            pending_max: UNLIMITED,
        };
        self.places[place] = Place { id: Some(EndpointId(self.endpoints_end - 1)), limits };
    }

    /// A new breaker of a route.
    fn fill_route(&mut self, route: usize) {
        self.endpoints_end += 1;
        let id = EndpointId(self.endpoints_end - 1);
        self.checker.is_a_route(id);
        self.routes[route] = Some(id);
    }

    fn draw_limit(&mut self) -> u64 {
        let drawn = [1, 2, 3, 7, 20, UNLIMITED][self.fates.below(6) as usize];
        if self.is_about_breakers { UNLIMITED } else { drawn }
    }

    fn draw_retries(&mut self) -> u64 {
        [1, 2, 3, 7, UNLIMITED][self.fates.below(5) as usize]
    }

    /// One limit in three follows what is measured, fast.
    fn draw_adaptive(&mut self) -> Option<Adaptive> {
        let adaptive = Adaptive {
            update_every: Duration::from_millis(10),
            min_rtt_every: Duration::from_millis(80),
            min_rtt_requests: 1 + self.fates.below(4) as u32,
            concurrency_min: 1 + self.fates.below(3),
            ..Adaptive::default()
        };
        (self.fates.below(3) == 0).then_some(adaptive)
    }

    fn make_plan(&mut self) -> Arc<PlanSpec> {
        self.generation += 1;
        let mut clusters = Vec::new();
        for (index, id) in self.cluster_ids.iter().enumerate() {
            let Some(id) = id else { continue };
            let (places, routes) = match index {
                0 => (0..SECOND, 0..SECOND_ROUTE),
                _ => (SECOND..PLACES, SECOND_ROUTE..ROUTES),
            };
            let limits = EndpointLimits::default();
            let routes = self.routes[routes].iter().flatten();
            let routes = routes.map(|id| EndpointSpec { id: *id, role: Role::Route, limits });
            let endpoints = self.places[places]
                .iter()
                .filter_map(|place| {
                    let (id, limits) = (place.id?, place.limits);
                    Some(EndpointSpec { id, role: Role::Endpoint, limits })
                })
                .chain(routes)
                .collect();
            clusters.push(ClusterSpec {
                limits: self.cluster_limits[index],
                breaker: self.settings,
                retry_budget: self.retry_budget,
                adaptive: self.adaptive[index],
                endpoints,
                ..ClusterSpec::new(*id)
            });
        }
        Arc::new(PlanSpec {
            generation: self.generation,
            clusters,
            clusters_end: ClusterId(self.clusters_end),
            endpoints_end: EndpointId(self.endpoints_end),
        })
    }

    fn change_plan(&mut self, change: u32) -> Result<(), Fault> {
        let place = (change >> 8) as usize % PLACES;
        let cluster = usize::from(place >= SECOND);
        let route = (change >> 8) as usize % ROUTES;
        match change % 12 {
            0 | 1 => match self.places[place].id {
                Some(_) => self.places[place].id = None,
                None => self.fill(place),
            },
            2 => self.fill(place), // The same address, in a new incarnation.
            3 => self.places[place].limits.requests_max = self.draw_limit(),
            4 => self.places[place].limits.connections_max = self.draw_limit(),
            5 => self.cluster_limits[cluster].requests_max = self.draw_limit(),
            11 => self.adaptive[cluster] = self.draw_adaptive(),
            6 => self.cluster_limits[cluster].connections_max = self.draw_limit(),
            7 => match self.routes[route] {
                Some(_) => self.routes[route] = None,
                None => self.fill_route(route),
            },
            8 => self.fill_route(route),
            9 => self.cluster_limits[cluster].retries_max = self.draw_retries(),
            _ => match self.cluster_ids[1] {
                Some(_) => {
                    self.cluster_ids[1] = None;
                    self.places[SECOND..].iter_mut().for_each(|place| place.id = None);
                    self.routes[SECOND_ROUTE..].fill(None);
                }
                None => {
                    self.cluster_ids[1] = Some(self.new_cluster());
                    self.fill(SECOND);
                    self.fill_route(SECOND_ROUTE);
                }
            },
        }
        let plan = self.make_plan();
        self.plans.insert(plan.generation, plan.clone());
        let step = self.rollout.submit(plan.generation);
        self.tell(step);
        Ok(())
    }

    fn tell(&mut self, step: Option<Step>) {
        let Some(step) = step else { return };
        for shard in 0..self.nodes.len() {
            self.tell_one(shard, step);
        }
    }

    fn tell_one(&mut self, shard: usize, step: Step) {
        let micros = self.weather.delay_max.as_micros() as u64;
        let due = self.now + Duration::from_micros(self.fates.below(micros + 1));
        self.nodes[shard].steps.push_back((due, step));
    }

    fn take_steps(&mut self, shard: usize) -> Result<(), Fault> {
        while self.nodes[shard].steps.front().is_some_and(|(due, _)| *due <= self.now) {
            let Some((_, step)) = self.nodes[shard].steps.pop_front() else { break };
            let node = &mut self.nodes[shard];
            let next = match step {
                Step::Prepare(generation) => {
                    node.reconciler.prepare(&self.plans[&generation]);
                    self.rollout.prepared(ShardId(shard as u16), generation)
                }
                Step::Activate(generation) => {
                    if node.reconciler.activate(generation, self.now) {
                        node.plan = self.plans[&generation].clone();
                    }
                    self.after(shard)?;
                    let next = self.rollout.activated(ShardId(shard as u16), generation);
                    self.tally.plans += u64::from(next != Some(step) && self.has_settled_plan());
                    next
                }
            };
            self.tell(next);
        }
        Ok(())
    }

    fn has_settled_plan(&self) -> bool {
        self.rollout
            .undone()
            .is_none_or(|(step, shards)| matches!(step, Step::Activate(_)) && shards.is_empty())
    }

    fn override_some(&mut self, place: u8, wanted: Override) -> Result<(), Fault> {
        let at = usize::from(place) % (PLACES + ROUTES);
        let is_second = if at < PLACES { at >= SECOND } else { at >= PLACES + SECOND_ROUTE };
        let cluster = self.cluster_ids[usize::from(is_second)];
        let (Some(id), Some(cluster)) = (self.breaker_at(place), cluster) else { return Ok(()) };
        let shard = usize::from(home_of(cluster, self.nodes.len() as u16).0);
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        self.turn(shard)?;
        self.overrides += 1;
        let generation = self.overrides;
        self.checker.overridden(id, wanted, generation);
        self.nodes[shard].reconciler.override_to(id, wanted, generation, self.now);
        self.after(shard)
    }

    // ---- The end ------------------------------------------------------------------------------

    /// The weather clears up, every shard runs, every endpoint answers, no new requests come: in
    /// 20 flush intervals there must be nothing left to do, and everybody must know the same. Then
    /// requests come again, and every breaker must close.
    ///
    /// # Errors
    /// What did not come to be, or must never be.
    pub fn heal(&mut self) -> Result<(), Fault> {
        self.weather = Weather {
            lost: 0,
            repeated: 0,
            delay_max: Duration::from_micros(200),
            reorders: false,
        };
        self.dead.clear();
        for node in &mut self.nodes {
            node.stalled_until = Nanos(0);
            // What was on its way arrives; a message delayed for ever is a lost one.
            let soon = self.now + TURN;
            node.wires.iter_mut().flatten().for_each(|(due, _)| *due = (*due).min(soon));
            node.steps.iter_mut().for_each(|(due, _)| *due = (*due).min(soon));
        }
        let deadline = self.now + FLUSH_INTERVAL * INTERVALS_TO_CONVERGE;
        while let Some(left) = self.unsettled() {
            if self.now > deadline {
                return Err(Fault::Liveness(format!(
                    "after {INTERVALS_TO_CONVERGE} flush intervals: {left}"
                )));
            }
            self.quiet_round(false)?;
            // A retry that waits for its budget may wait long: it gives up.
            let retries: Vec<u64> = self.retries.keys().copied().collect();
            retries.into_iter().try_for_each(|token| self.end_retry(token))?;
        }
        // What wakes nobody is known when everybody has looked once.
        let deadline = self.now + FLUSH_INTERVAL * INTERVALS_TO_CONVERGE;
        while let Some(left) = self.disagreement() {
            if self.now > deadline {
                return Err(Fault::Liveness(format!("shards do not agree: {left}")));
            }
            self.quiet_round(true)?;
        }
        self.recover()
    }

    /// One round of all shards; each runs only if it has a reason: somebody woke it, its own timer,
    /// or (`all`) for once without one.
    fn quiet_round(&mut self, all: bool) -> Result<(), Fault> {
        self.now = self.now + TURN;
        if let Some((step, shards)) = self.rollout.undone() {
            for shard in shards {
                if self.nodes[usize::from(shard.0)].steps.is_empty() {
                    self.tell_one(usize::from(shard.0), step);
                }
            }
        }
        for shard in 0..self.nodes.len() {
            let node = &self.nodes[shard];
            let woken = node
                .wires
                .iter()
                .any(|wire| wire.iter().any(|(due, it)| *due <= self.now && it.wakes));
            let single = self.nodes.len() == 1;
            let stepped = node.steps.front().is_some_and(|(due, _)| *due <= self.now);
            let due = node.reconciler.next_due() <= self.now;
            let goes_on = !self.woken(shard).is_empty();
            if !(all || woken || due || stepped || single || goes_on) {
                continue;
            }
            self.turn(shard)?;
            self.go_on(shard)?;
            if all {
                self.nodes[shard].reconciler.flush(self.now);
                self.after(shard)?;
            }
        }
        self.let_all_end()
    }

    /// Everything in flight ends well.
    fn let_all_end(&mut self) -> Result<(), Fault> {
        let flying: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| matches!(request, Request::InFlight(_)))
            .map(|(token, _)| *token)
            .collect();
        for token in flying {
            self.finish(token, Outcome::Success, QUICK)?;
        }
        let open: Vec<u64> = self.connections.keys().copied().collect();
        for token in open {
            if self.connections.get(&token).is_some_and(|held| held.waiter.is_none()) {
                self.disconnect(token)?;
            }
        }
        let begun = self.retries.iter().filter(|(_, held)| held.waiter.is_none());
        let begun: Vec<u64> = begun.map(|(token, _)| *token).collect();
        begun.into_iter().try_for_each(|token| self.end_retry(token))
    }

    /// Where a retry may hope for what it waits for, some begin, on every shard.
    fn begin_retries(&mut self) -> Result<(), Fault> {
        for shard in 0..self.nodes.len() {
            for spec in &self.nodes[shard].plan.clone().clusters {
                // Where few requests may be under way at once, what they pay may expire before it
                // is enough.
                let is_paid = self.retry_budget.deposit_milli > 0
                    && self.retry_budget.ttl >= RECOVERY
                    && entries(spec, Role::Endpoint).next().is_some();
                if is_paid || self.retry_budget.per_second_min > 0 {
                    self.retry(shard, spec.id)?;
                    self.retry(shard, spec.id)?;
                }
            }
        }
        Ok(())
    }

    /// How long the last of those may take: the home pays for them one by one, perhaps for as many
    /// that nobody waits for any more, or first attempts have to pay.
    fn retries_time(&self) -> Duration {
        let count = 3 * self.nodes.len() as u32;
        let price = Duration::from_secs(1).checked_div(self.retry_budget.per_second_min);
        price.map_or(RECOVERY * 2, |price| price * count + Duration::from_secs(1))
    }

    /// What is left to do, if anything.
    fn unsettled(&self) -> Option<String> {
        if let Some((token, _)) = self.requests.iter().next() {
            let kind = match &self.requests[token] {
                Request::Waiting(it, _) => {
                    let what = it.wanted.unwrap_or(it.endpoint);
                    format!("waits on shard {} for {what:?}", it.shard)
                }
                Request::Woken(it) => format!("was woken on shard {}", it.shard),
                Request::InFlight(_) => "is in flight".into(),
            };
            return Some(format!("request {token} {kind}"));
        }
        if let Some((token, held)) = self.retries.iter().next() {
            return Some(format!("retry {token} goes on on shard {}", held.shard));
        }
        if let Some((token, held)) = self.connections.iter().next() {
            return Some(format!("connection {token} waits on shard {}", held.shard));
        }
        if !self.has_settled_plan() {
            return Some("a plan is on its way".into());
        }
        for (shard, node) in self.nodes.iter().enumerate() {
            for (_, home) in node.reconciler.homes() {
                for id in home.endpoints() {
                    let Some(decided) = home.breaker(id) else { continue };
                    if decided.permits_outstanding() > 0 && decided.phase() != Phase::HalfOpen {
                        return Some(format!("a permit of {id:?} is not settled"));
                    }
                    for (other, node) in self.nodes.iter().enumerate() {
                        let slot = node.reconciler.endpoint(id);
                        let view = slot.and_then(|slot| node.reconciler.view(slot));
                        let epoch = view.map(|view| view.epoch());
                        if epoch != Some(decided.epoch()) {
                            return Some(format!(
                                "shard {other} has {id:?} in {epoch:?}, its home {shard} in {:?}",
                                decided.epoch()
                            ));
                        }
                    }
                }
            }
        }
        None
    }

    /// Where shards do not know the same, if anywhere.
    fn disagreement(&self) -> Option<String> {
        if let Some(left) = self.unsettled() {
            return Some(left);
        }
        if let Some(shard) = self.nodes.iter().position(|node| !node.reconciler.is_silent()) {
            return Some(format!("shard {shard} still has something to say"));
        }
        self.left_behind().or_else(|| self.checker.disagreement(&self.nodes))
    }

    /// What some shard still keeps of what is in no plan any more.
    fn left_behind(&self) -> Option<String> {
        for (shard, Node { reconciler, plan, .. }) in self.nodes.iter().enumerate() {
            let endpoint = (0..self.endpoints_end).map(EndpointId).find(|id| {
                let mut all = plan.clusters.iter().flat_map(|spec| &spec.endpoints);
                reconciler.endpoint(*id).is_some() && all.all(|it| it.id != *id)
            });
            let cluster = (0..self.clusters_end).map(ClusterId).find(|id| {
                let mut all = plan.clusters.iter();
                reconciler.cluster(*id).is_some() && all.all(|it| it.id != *id)
            });
            if endpoint.is_some() || cluster.is_some() {
                return Some(format!("shard {shard} keeps {endpoint:?} {cluster:?} that left"));
            }
        }
        None
    }

    /// Requests come again, everywhere, and every endpoint answers.
    fn recover(&mut self) -> Result<(), Fault> {
        for place in 0..PLACES + ROUTES {
            self.override_some(place as u8, Override::Release)?;
        }
        self.begin_retries()?;
        let mut measured = BTreeSet::new();
        let deadline = self.now + RECOVERY;
        let retries_deadline = self.now + self.retries_time();
        loop {
            let open = self.not_closed();
            if let Some((endpoint, phase)) = open.filter(|_| self.now > deadline) {
                return Err(Fault::Liveness(format!(
                    "{endpoint:?} answers, and is {phase:?} after {RECOVERY:?}"
                )));
            }
            self.note_measured(&mut measured);
            let unmeasured = self.unmeasured(&measured);
            if let Some(cluster) = unmeasured.filter(|_| self.now > deadline) {
                return Err(Fault::Liveness(format!(
                    "{cluster:?} is still measured after {RECOVERY:?}"
                )));
            }
            let retry = self.retries.iter().next();
            if let Some((token, held)) = retry.filter(|_| self.now > retries_deadline) {
                return Err(Fault::Liveness(format!(
                    "retry {token} of {:?} waits on shard {} after {:?}",
                    held.cluster,
                    held.shard,
                    self.retries_time()
                )));
            }
            if open.is_none() && retry.is_none() && unmeasured.is_none() {
                self.tally.measured += measured.len() as u64;
                return Ok(());
            }
            self.now = self.now + Duration::from_millis(4);
            for shard in 0..self.nodes.len() {
                self.turn(shard)?;
                self.go_on(shard)?;
                let fate = self.fates.bits();
                self.request(shard, fate as u8, (fate >> 8) as u8, false)?;
            }
            self.let_all_end()?;
            // Where many shards share one credit, it must come round before a probe's time is over.
            for _ in 0..self.nodes.len() / 4 {
                self.now = self.now + TURN;
                for shard in 0..self.nodes.len() {
                    self.turn(shard)?;
                    self.go_on(shard)?;
                }
                self.let_all_end()?;
            }
        }
    }

    /// Homes with endpoints whose limit follows what is measured.
    fn gradients(&self) -> impl Iterator<Item = (ClusterId, &Gradient)> {
        let homes = self.nodes.iter().flat_map(|node| node.reconciler.homes());
        let has_endpoints = |home: &Home| home.endpoints().any(|id| !self.checker.is_route(id));
        homes
            .filter_map(move |(id, home)| Some((id, home.gradient()?, has_endpoints(home))))
            .filter(|(.., has_endpoints)| *has_endpoints)
            .map(|(id, gradient, _)| (id, gradient))
    }

    /// Remembers for which clusters the shortest time is known.
    fn note_measured(&self, measured: &mut BTreeSet<ClusterId>) {
        let done = self.gradients().filter(|(_, gradient)| !gradient.is_measuring());
        measured.extend(done.map(|(id, _)| id));
    }

    /// A cluster whose shortest time should have been measured.
    fn unmeasured(&self, measured: &BTreeSet<ClusterId>) -> Option<ClusterId> {
        self.gradients().map(|(id, _)| id).find(|id| !measured.contains(id))
    }

    /// A breaker that is not closed, and could be: of what nobody asks for, nobody knows.
    fn not_closed(&self) -> Option<(EndpointId, Phase)> {
        let has_endpoints = |home: &Home| home.endpoints().any(|id| !self.checker.is_route(id));
        self.nodes
            .iter()
            .flat_map(|node| node.reconciler.homes())
            .filter(|(_, home)| has_endpoints(home))
            .flat_map(|(_, home)| home.endpoints().map(move |id| (home, id)))
            .filter_map(|(home, id)| Some((id, home.breaker(id)?.phase())))
            .find(|(_, phase)| *phase != Phase::Closed)
    }
}

/// The numbers of a cluster's endpoints, or of the breakers of routes to it.
fn entries(spec: &ClusterSpec, role: Role) -> impl Iterator<Item = EndpointId> {
    spec.endpoints.iter().filter(move |it| it.role == role).map(|it| it.id)
}

/// The epoch that a shard must have seen before an override counts as applied.
pub(super) type OverrideEpoch = (u64, Epoch);
