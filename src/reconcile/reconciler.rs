//! One shard's part in the agreement: its replica of everything, the homes that are its own, and
//! what it has to tell the others. The shard's loop calls this, and nothing below it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::home::Home;
use super::message::{About, Body, Message};
use super::mutation::{self, Mutation};
use super::outbox::Outbox;
use super::purse::Purse;
use super::queue::Waiter;
use super::replica::Replica;
use super::{
    Ages, ClusterId, ClusterSlot, Deposits, EndpointId, EndpointSlot, Event, FLUSH_INTERVAL, Kind,
    Out, PlanSpec, Refusal, RetryRefusal, SURPLUS_AFTER, ShardId, Standing, Ticket, home_of,
};
use crate::breaker::{Admits, Epoch, Outcome, Override, Pass, View};
use crate::time::Nanos;

/// One shard's part. See the [module](super) for when to call what.
#[derive(Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Clone))]
pub struct Reconciler {
    id: ShardId,
    shards: u16,
    replica: Replica,
    homes: BTreeMap<ClusterId, Home>,
    /// Which cluster an endpoint belongs to, of those that are decided here.
    homed: BTreeMap<EndpointId, ClusterId>,
    outboxes: Vec<Outbox>,
    /// Whose outbox has something in line.
    speaking: VecDeque<ShardId>,
    out: Out,
    prepared: Option<Arc<PlanSpec>>,
    generation: u64,
    clusters_end: ClusterId,
    endpoints_end: EndpointId,
    surplus_due: Nanos,
    ages: Ages,
    age_bound: Duration,
    /// Of what homes leave to chance.
    seed: u64,
}

/// What a message came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ack,
    NotYet,
    Gone,
}

impl Reconciler {
    /// Without a plan. `shards`: how many there are, at least 1.
    pub fn new(id: ShardId, shards: u16) -> Reconciler {
        Reconciler {
            id,
            shards,
            replica: Replica::new(id, shards),
            homes: BTreeMap::new(),
            homed: BTreeMap::new(),
            outboxes: (0..shards).map(|_| Outbox::default()).collect(),
            speaking: VecDeque::new(),
            out: Out::default(),
            prepared: None,
            generation: 0,
            clusters_end: ClusterId(0),
            endpoints_end: EndpointId(0),
            surplus_due: Nanos(0),
            ages: Ages::default(),
            age_bound: FLUSH_INTERVAL,
            seed: 0,
        }
    }

    /// Before the first plan: what is left to chance follows from this. Each process has another
    /// one, or all of them would try an endpoint again, and measure it, at the same time.
    pub fn seeded(self, seed: u64) -> Reconciler {
        Reconciler { seed, ..self }
    }

    // ---- Plans --------------------------------------------------------------------------------

    /// First phase: get to know who is new, so that nobody asks us about somebody unknown. Then
    /// acknowledge. Older plans are ignored.
    pub fn prepare(&mut self, plan: &Arc<PlanSpec>) {
        let newest = self.prepared.as_ref().map_or(self.generation, |plan| plan.generation);
        if plan.generation <= newest {
            return;
        }
        self.clusters_end = self.clusters_end.max(plan.clusters_end);
        self.endpoints_end = self.endpoints_end.max(plan.endpoints_end);
        for spec in &plan.clusters {
            self.replica.prepare(spec);
            if home_of(spec.id, self.shards) == self.id {
                let new = || Home::new(spec, self.shards, self.seed);
                let home = self.homes.entry(spec.id).or_insert_with(new);
                home.prepare(spec);
                for endpoint in &spec.endpoints {
                    self.homed.insert(endpoint.id, spec.id);
                }
            }
        }
        self.prepared = Some(plan.clone());
    }

    /// Second phase: the prepared plan holds. `false`: this is not the generation that was
    /// prepared.
    pub fn activate(&mut self, generation: u64, now: Nanos) -> bool {
        let Some(plan) = self.prepared.take_if(|plan| plan.generation == generation) else {
            return self.generation >= generation;
        };
        self.generation = generation;
        self.homes.retain(|id, _| plan.clusters.iter().any(|spec| spec.id == *id));
        for spec in &plan.clusters {
            if let Some(home) = self.homes.get_mut(&spec.id) {
                home.activate(spec, now, &mut self.out);
            }
        }
        let homes = &self.homes;
        self.homed.retain(|endpoint, cluster| {
            homes.get(cluster).is_some_and(|home| home.breaker(*endpoint).is_some())
        });
        self.replica.activate(&plan.clusters, &mut self.out);
        self.dispatch(now);
        let (homed, homes) = (&self.homed, &self.homes);
        let replica = &self.replica;
        let is_gone = |about: About| match about {
            About::Cluster(id) => !homes.contains_key(&id) && replica.cluster_slot(id).is_none(),
            About::Endpoint(id) => !homed.contains_key(&id) && replica.endpoint_slot(id).is_none(),
        };
        self.outboxes.iter_mut().for_each(|outbox| outbox.forget(is_gone));
        true
    }

    /// The newest plan that holds here.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where a cluster is kept; `None` if no prepared plan has it.
    pub fn cluster(&self, id: ClusterId) -> Option<ClusterSlot> {
        self.replica.cluster_slot(id)
    }

    /// Where an endpoint is kept; `None` if no prepared plan has it.
    pub fn endpoint(&self, id: EndpointId) -> Option<EndpointSlot> {
        self.replica.endpoint_slot(id)
    }

    // ---- Requests -----------------------------------------------------------------------------

    /// Whether the breaker lets a balancer choose this endpoint. `dice`: 32 uniform bits, drawn
    /// once for a request's whole choice.
    #[inline]
    pub fn admits(&self, endpoint: EndpointSlot, now: Nanos, dice: u32) -> Admits {
        self.replica.admits(endpoint, now, dice)
    }

    /// Whether this shard has the credits for one more request there.
    #[inline]
    pub fn has_credit(&self, endpoint: EndpointSlot) -> bool {
        self.replica.has_credit(endpoint)
    }

    /// The two together: what a request could do there now.
    #[inline(always)]
    pub fn standing(&self, endpoint: EndpointSlot, now: Nanos, dice: u32) -> Standing {
        self.replica.standing(endpoint, now, dice)
    }

    /// This shard's requests in flight at an endpoint.
    #[inline]
    pub fn in_flight(&self, endpoint: EndpointSlot) -> u64 {
        self.replica.purse(Kind::Requests, endpoint).map_or(0, Purse::in_use)
    }

    /// Admits a request, now or not at all.
    ///
    /// # Errors
    /// Why not. For [`Refusal::NoCredit`] and [`Refusal::NeedsPermit`] the caller may wait.
    #[inline]
    pub fn admit(&mut self, endpoint: EndpointSlot, now: Nanos) -> Result<Ticket, Refusal> {
        self.replica.admit(endpoint, now)
    }

    /// Admits a request where [`Standing::Open`] was just seen.
    #[inline(always)]
    pub fn enter(&mut self, endpoint: EndpointSlot) -> Ticket {
        self.replica.enter(endpoint)
    }

    /// Counts a first attempt for the retry budget; it may pay for a retry that waits.
    #[inline]
    pub fn deposit(&mut self, endpoint: EndpointSlot, now: Nanos) {
        self.replica.deposit(endpoint, now, &mut self.out);
        if self.out.has_news() {
            self.dispatch(now);
        }
    }

    /// Waits for credits, in turn; a route's probe however many wait already. Exactly one of [`Event::Admitted`] and [`Event::Elsewhere`] with
    /// this token follows, unless [`Reconciler::cancel`] says `true`.
    ///
    /// # Errors
    /// [`Refusal::TooManyPending`], [`Refusal::NobodyMayWait`], [`Refusal::Retired`].
    pub fn wait(
        &mut self,
        endpoint: EndpointSlot,
        token: u64,
        is_probe: bool,
        now: Nanos,
    ) -> Result<Waiter, Refusal> {
        let waiter = self.replica.wait(endpoint, token, is_probe, now, &mut self.out);
        self.dispatch(now);
        waiter
    }

    /// After [`Refusal::NobodyMayWait`]: waits for an answer of the other shards, which the caller
    /// bounds to a few milliseconds. For requests and connections, as their own waits.
    ///
    /// # Errors
    /// [`Refusal::NobodyMayWait`]: there is nothing to be had. [`Refusal::Retired`].
    pub fn ask(
        &mut self,
        kind: Kind,
        endpoint: EndpointSlot,
        token: u64,
        now: Nanos,
    ) -> Result<Waiter, Refusal> {
        let waiter = self.replica.ask(kind, endpoint, token, now, &mut self.out);
        self.dispatch(now);
        waiter
    }

    /// Waits for a permit, in turn. As [`Reconciler::wait`]; but one of a shard may always.
    ///
    /// # Errors
    /// [`Refusal::Open`], where the endpoint is not half-open, and those of [`Reconciler::wait`].
    pub fn wait_permit(
        &mut self,
        endpoint: EndpointSlot,
        token: u64,
        is_probe: bool,
        now: Nanos,
    ) -> Result<Waiter, Refusal> {
        let waiter = self.replica.wait_permit(endpoint, token, is_probe, &mut self.out);
        self.dispatch(now);
        waiter
    }

    /// Stops waiting. `false`: too late, the event is on its way; what it brings must be given
    /// back.
    pub fn cancel(&mut self, waiter: Waiter, now: Nanos) -> bool {
        let cancelled = self.replica.cancel(waiter, &mut self.out);
        self.dispatch(now);
        cancelled
    }

    /// Stops waiting for a permit, as [`Reconciler::cancel`]; but the ask stands, and its permit is
    /// for the next request that comes.
    pub fn step_aside(&mut self, waiter: Waiter, now: Nanos) -> bool {
        let cancelled = self.replica.step_aside(waiter, &mut self.out);
        self.dispatch(now);
        cancelled
    }

    /// A probe has shown what it was sent for: its answer has begun, say. The request may go on for
    /// as long as it likes; what its end says does not count any more.
    pub fn settle_probe(
        &mut self,
        ticket: &mut Ticket,
        outcome: Outcome,
        latency: Duration,
        now: Nanos,
    ) {
        self.replica.settle_probe(ticket, outcome, latency, now, &mut self.out);
        self.dispatch(now);
    }

    /// A request has ended.
    #[inline]
    pub fn complete(&mut self, ticket: Ticket, outcome: Outcome, latency: Duration, now: Nanos) {
        self.replica.complete(ticket, outcome, latency, now, &mut self.out);
        if self.out.has_news() {
            self.dispatch(now);
        }
    }

    /// A request was admitted, but nothing was sent.
    pub fn give_back(&mut self, ticket: Ticket, now: Nanos) {
        self.replica.give_back(ticket, now, &mut self.out);
        self.dispatch(now);
    }

    /// Enters by a route's breaker, before an endpoint is chosen.
    ///
    /// # Errors
    /// [`Refusal::Open`], [`Refusal::Retired`], [`Refusal::NeedsPermit`]: wait for it as for an
    /// endpoint's; [`Event::Elsewhere`] then says to enter again.
    #[inline]
    pub fn enter_route(&mut self, route: EndpointSlot, now: Nanos) -> Result<Pass, Refusal> {
        self.replica.enter_route(route, now)
    }

    /// Leaves a route's breaker: with an outcome, or with `None` if nothing was sent.
    pub fn leave_route(
        &mut self,
        route: EndpointSlot,
        pass: Pass,
        outcome: Option<(Outcome, Duration)>,
        now: Nanos,
    ) {
        self.replica.leave_route(route, pass, outcome, now, &mut self.out);
        self.dispatch(now);
    }

    // ---- Connections and retries --------------------------------------------------------------

    /// Counts a new connection, now or not at all.
    ///
    /// # Errors
    /// [`Refusal::NoCredit`], [`Refusal::Retired`].
    pub fn open_connection(&mut self, endpoint: EndpointSlot) -> Result<(), Refusal> {
        self.replica.open_connection(endpoint)
    }

    /// Waits for leave to connect; [`Event::Connect`] or [`Event::Elsewhere`] follows.
    ///
    /// # Errors
    /// As of [`Reconciler::wait`].
    pub fn wait_connection(
        &mut self,
        endpoint: EndpointSlot,
        token: u64,
        is_probe: bool,
        now: Nanos,
    ) -> Result<Waiter, Refusal> {
        let waiter = self.replica.wait_connection(endpoint, token, is_probe, now, &mut self.out);
        self.dispatch(now);
        waiter
    }

    /// A connection is closed.
    pub fn close_connection(&mut self, endpoint: EndpointSlot, now: Nanos) {
        self.replica.close_connection(endpoint, now, &mut self.out);
        self.dispatch(now);
    }

    /// Connections that others wait for: close so many, the oldest idle ones, and do not pool any
    /// while this is not 0.
    pub fn connections_owed(&self, endpoint: EndpointSlot) -> u64 {
        self.replica.connections_owed(endpoint)
    }

    /// Whether any are.
    pub fn owes_connections(&self) -> bool {
        self.replica.owes_connections()
    }

    /// Begins a retry, now or not at all. It counts until [`Reconciler::end_retry`], its backoff
    /// included.
    ///
    /// # Errors
    /// Why not; the caller may wait.
    pub fn begin_retry(&mut self, cluster: ClusterSlot, now: Nanos) -> Result<(), RetryRefusal> {
        self.replica.begin_retry(cluster, now)
    }

    /// Waits for what a retry needs, while its backoff runs: [`Event::RetryGranted`] follows.
    pub fn wait_retry(&mut self, cluster: ClusterSlot, token: u64, now: Nanos) -> Waiter {
        let waiter = self.replica.wait_retry(cluster, token, now, &mut self.out);
        self.dispatch(now);
        waiter
    }

    /// A retry is over.
    pub fn end_retry(&mut self, cluster: ClusterSlot, now: Nanos) {
        self.replica.end_retry(cluster, now, &mut self.out);
        self.dispatch(now);
    }

    // ---- Operators ----------------------------------------------------------------------------

    /// Overrides a breaker, at its home. `generation`: counts the overrides of the process; a
    /// newer one wins. [`Event::OverrideApplied`] follows when every shard has it. `false`: the
    /// endpoint is not decided here.
    pub fn override_to(
        &mut self,
        endpoint: EndpointId,
        wanted: Override,
        generation: u64,
        now: Nanos,
    ) -> bool {
        let home = decider(&self.homed, &mut self.homes, endpoint);
        let Some(home) = home else { return false };
        home.override_to(endpoint, wanted, generation, now, &mut self.out);
        self.dispatch(now);
        true
    }

    // ---- The shard's loop ---------------------------------------------------------------------

    /// A message of another shard. Read all there are before the first admission of a turn.
    pub fn receive(&mut self, from: ShardId, message: Message, now: Nanos) {
        match message.body {
            Body::Ack | Body::NotYet | Body::Gone => {
                let outbox = &mut self.outboxes[usize::from(from.0)];
                if let Some(Body::Breaker { endpoint, epoch, .. }) =
                    outbox.answered(message.stamp, message.body)
                {
                    self.applied(from, endpoint, epoch);
                }
            }
            body => {
                let answer = match self.apply(from, body, now) {
                    Answer::Ack => Body::Ack,
                    Answer::NotYet => Body::NotYet,
                    Answer::Gone => Body::Gone,
                };
                self.outboxes[usize::from(from.0)].answer(message.stamp, answer);
                self.speak(from);
            }
        }
        self.dispatch(now);
    }

    /// Once a turn, behind the messages: what time has brought. One comparison if nothing.
    #[inline]
    pub fn turn(&mut self, now: Nanos) {
        if now >= self.out.due {
            self.flush(now);
        }
    }

    /// When [`Reconciler::turn`] has something to do, so that a sleeping shard sets its timer.
    pub fn next_due(&self) -> Nanos {
        self.out.due
    }

    /// Whether somebody has to be told something: another shard, a session, or the shard's timer,
    /// which is set for `armed`.
    #[inline]
    pub fn has_news(&self, armed: Nanos) -> bool {
        self.out.due < armed || !self.speaking.is_empty() || !self.out.events.is_empty()
    }

    /// Does what is due: timers, reports, resends.
    pub fn flush(&mut self, now: Nanos) {
        self.out.due = Nanos::NEVER;
        for home in self.homes.values_mut() {
            if home.due() <= now {
                home.tick(now, &mut self.out);
            }
        }
        self.replica.tick(now, &mut self.out);
        self.replica.flush(&mut self.out);
        self.out.flush_due = now + FLUSH_INTERVAL;
        if now >= self.surplus_due && self.shards > 1 {
            self.surplus_due = now + SURPLUS_AFTER;
            self.replica.return_surplus(&mut self.out);
        }
        self.dispatch(now);
        for shard in (0..self.shards).map(ShardId) {
            let outbox = &mut self.outboxes[usize::from(shard.0)];
            outbox.resend(now);
            if outbox.is_ready() {
                self.speak(shard);
            }
        }
        let homes = self.homes.values().map(Home::due).min().unwrap_or(Nanos::NEVER);
        let outboxes = self.outboxes.iter().map(Outbox::due).min().unwrap_or(Nanos::NEVER);
        self.out.due_at(homes.min(outboxes).min(self.replica.due()));
    }

    /// The next message to push, and to whom. At the end of a turn, until `None`. One that does
    /// not fit into a full queue may be dropped: it is sent again.
    pub fn outgoing(&mut self, now: Nanos) -> Option<(ShardId, Message)> {
        while let Some(shard) = self.speaking.front().copied() {
            let outbox = &mut self.outboxes[usize::from(shard.0)];
            if let Some(message) = outbox.pop(now) {
                if message.wakes {
                    self.out.due_at(outbox.due());
                }
                return Some((shard, message));
            }
            self.speaking.pop_front();
        }
        None
    }

    /// The next thing that the shard's sessions, metrics or admin have to know. After every call,
    /// until `None`.
    pub fn next_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// Decisions that are older than this when they are applied here count as late.
    pub fn set_age_bound(&mut self, bound: Duration) {
        self.age_bound = bound;
    }

    /// How old decisions were when they were applied here.
    pub fn ages(&self) -> &Ages {
        &self.ages
    }

    /// Nothing is on its way from here: whatever was said is acknowledged.
    pub fn is_silent(&self) -> bool {
        self.outboxes.iter().all(Outbox::is_silent) && !self.replica.is_dirty()
    }

    // ---- Looking ------------------------------------------------------------------------------

    /// The homes that are this shard's.
    pub fn homes(&self) -> impl Iterator<Item = (ClusterId, &Home)> {
        self.homes.iter().map(|(id, home)| (*id, home))
    }

    /// What this shard has of a breaker.
    pub fn view(&self, endpoint: EndpointSlot) -> Option<&View> {
        self.replica.view(endpoint)
    }

    /// What this shard holds of an endpoint's limit.
    pub fn purse(&self, kind: Kind, endpoint: EndpointSlot) -> Option<&Purse> {
        self.replica.purse(kind, endpoint)
    }

    /// What this shard holds of a cluster's limit.
    pub fn cluster_purse(&self, kind: Kind, cluster: ClusterSlot) -> Option<&Purse> {
        self.replica.cluster_purse(kind, cluster)
    }

    /// How many wait here for a credit of an endpoint and its cluster together.
    pub fn waiting(&self, kind: Kind, endpoint: EndpointSlot) -> u32 {
        self.replica.waiting(kind, endpoint)
    }

    /// How many wait here for a credit of a cluster alone.
    pub fn cluster_waiting(&self, kind: Kind, cluster: ClusterSlot) -> u32 {
        self.replica.cluster_waiting(kind, cluster)
    }

    /// The epoch in which this shard measures round-trip times of a cluster.
    pub fn sampling_epoch(&self, cluster: ClusterSlot) -> u32 {
        self.replica.sampling_epoch(cluster)
    }

    /// How many wait here for a place or a permit in a cluster.
    pub fn pending(&self, cluster: ClusterSlot) -> u64 {
        self.replica.pending(cluster)
    }

    /// What this shard has of a cluster's retry budget.
    pub fn deposits(&self, cluster: ClusterSlot) -> Option<&Deposits> {
        self.replica.deposits(cluster)
    }

    /// Resets what only counts, so that states which differ in nothing else are the same.
    #[cfg(test)]
    pub(crate) fn forget_statistics(&mut self) {
        self.ages = Ages::default();
    }

    // ---- Inside -------------------------------------------------------------------------------

    /// Carries orders to where they belong; those to this shard itself at once.
    fn dispatch(&mut self, now: Nanos) {
        while let Some((to, body, wakes)) = self.out.orders.pop_front() {
            if to == self.id {
                self.apply(to, body, now);
            } else {
                let is_silenced = matches!(body, Body::Debit { .. })
                    && mutation::is_on(Mutation::AskWithoutWaking);
                self.outboxes[usize::from(to.0)].publish(body, wakes && !is_silenced);
                self.speak(to);
            }
        }
        let endpoints = std::mem::take(&mut self.out.endpoints_gone);
        let clusters = std::mem::take(&mut self.out.clusters_gone);
        if endpoints.is_empty() && clusters.is_empty() {
            return;
        }
        let (homed, homes) = (&self.homed, &self.homes);
        let is_gone = |about: About| match about {
            About::Cluster(id) => clusters.contains(&id) && !homes.contains_key(&id),
            About::Endpoint(id) => endpoints.contains(&id) && !homed.contains_key(&id),
        };
        self.outboxes.iter_mut().for_each(|outbox| outbox.forget(is_gone));
    }

    fn speak(&mut self, to: ShardId) {
        if !self.speaking.contains(&to) {
            self.speaking.push_back(to);
        }
    }

    fn applied(&mut self, by: ShardId, endpoint: EndpointId, epoch: Epoch) {
        if let Some(home) = decider(&self.homed, &mut self.homes, endpoint) {
            home.applied(by, endpoint, epoch, &mut self.out);
        }
    }

    fn apply(&mut self, from: ShardId, body: Body, now: Nanos) -> Answer {
        let Reconciler { replica, homes, homed, out, .. } = self;
        let mut news = None;
        let is_known = match body {
            Body::Outcomes { endpoint, report } => decider(homed, homes, endpoint)
                .is_some_and(|home| home.outcomes(from, endpoint, &report, now, out)),
            Body::Debit { limit, returned, wanted } => homes
                .get_mut(&limit.cluster)
                .is_some_and(|home| home.debit(from, limit, returned, wanted, now, out)),
            Body::Ask { endpoint, epoch, number } => decider(homed, homes, endpoint)
                .is_some_and(|home| home.ask(from, endpoint, epoch, number, now, out)),
            Body::Settled { endpoint, settlement } => decider(homed, homes, endpoint)
                .is_some_and(|home| home.settled(from, endpoint, settlement, now, out)),
            Body::TokensWanted { cluster, wanted } => match homes.get_mut(&cluster) {
                Some(home) => {
                    home.tokens_wanted(from, wanted, now, out);
                    true
                }
                None => false,
            },
            Body::Samples { cluster, measured } => match homes.get_mut(&cluster) {
                Some(home) => {
                    home.samples(from, &measured, now, out);
                    true
                }
                None => false,
            },
            Body::Sampling { cluster, epoch } => replica.sampling(cluster, epoch),
            Body::Credit { limit, granted, recalled, cluster_granted, decided } => {
                let known = replica.credit(limit, granted, recalled, cluster_granted, now, out);
                news = known.filter(|news| *news).map(|_| decided);
                known.is_some()
            }
            Body::Breaker { endpoint, epoch, phase, decided } => {
                let known = replica.breaker(endpoint, epoch, phase, out);
                news = known.filter(|news| *news).map(|_| decided);
                if from == self.id && known.is_some() {
                    self.applied(from, endpoint, epoch);
                }
                known.is_some()
            }
            Body::Refused { endpoint, epoch, run } => replica.refused(endpoint, epoch, run, out),
            Body::Permit { endpoint, permit } => replica.permit(endpoint, permit, now, out),
            Body::Tokens { cluster, granted } => replica.tokens(cluster, granted, now, out),
            Body::Ack | Body::NotYet | Body::Gone => true,
        };
        if let Some(decided) = news {
            self.ages.record(now.since(decided), self.age_bound);
        }
        if is_known { Answer::Ack } else { self.unknown(body) }
    }

    /// Somebody who is still to come, or who has gone.
    fn unknown(&self, body: Body) -> Answer {
        let is_to_come = match body.subject().map(|subject| subject.about()) {
            Some(About::Cluster(id)) => id >= self.clusters_end,
            Some(About::Endpoint(id)) => id >= self.endpoints_end,
            None => false,
        };
        if is_to_come { Answer::NotYet } else { Answer::Gone }
    }
}

/// The home of an endpoint, if it is here.
fn decider<'a>(
    homed: &BTreeMap<EndpointId, ClusterId>,
    homes: &'a mut BTreeMap<ClusterId, Home>,
    endpoint: EndpointId,
) -> Option<&'a mut Home> {
    homes.get_mut(homed.get(&endpoint)?)
}
