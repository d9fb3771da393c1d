//! What one cluster's home decides: its breakers, who holds which credits, who may send a probe,
//! and how many endpoints may be out at once. One decision after the other, on one shard. Pure.

use std::collections::{BTreeMap, VecDeque};

use super::budget::Mint;
use super::gradient::Change;
use super::lender::Lender;
use super::message::{Body, Limit};
use super::mutation::{self, Mutation};
use super::{
    ClusterId, ClusterSpec, EndpointId, Event, Gradient, Kind, Lent, Measured, Out, RetryBudget,
    Role, ShardId,
};
use crate::breaker::{Breaker, Epoch, Override, Report, Settings, Settlement};
use crate::rng::Rng;
use crate::time::Nanos;

/// What the home keeps of an endpoint, or of a route's breaker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    role: Role,
    breaker: Breaker,
    /// The newest epoch that each shard has applied.
    applied: Vec<Epoch>,
    /// An override that some shard has not applied yet: its generation and its epoch.
    overriding: Option<(u64, Epoch)>,
}

/// Retries of one shard that the home has lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Tokens {
    granted: u64,
    wanted: u64,
}

/// Decides for one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Home {
    id: ClusterId,
    shards: u16,
    settings: Settings,
    ejected_percent_max: u32,
    retry_budget: RetryBudget,
    entries: BTreeMap<EndpointId, Entry>,
    /// In the order of [`Kind::ALL`].
    lenders: [Lender; 3],
    mint: Mint,
    tokens: Vec<Tokens>,
    /// Shards that wait for tokens, in turn.
    token_asks: VecDeque<ShardId>,
    /// Where the limit on requests follows what is measured.
    gradient: Option<Gradient>,
    /// The newest epoch of its samples.
    sampling_epoch: u32,
    rng: Rng,
}

impl Home {
    /// As it begins: everything closed, every shard with its first share.
    pub(super) fn new(spec: &ClusterSpec, shards: u16, seed: u64) -> Home {
        Home {
            id: spec.id,
            shards,
            settings: spec.breaker,
            ejected_percent_max: spec.ejected_percent_max,
            retry_budget: spec.retry_budget,
            entries: BTreeMap::new(),
            lenders: Kind::ALL.map(|kind| Lender::new(spec.first_limit(kind), shards)),
            mint: Mint::default(),
            tokens: vec![Tokens::default(); shards.into()],
            token_asks: VecDeque::new(),
            gradient: spec
                .adaptive
                .map(|adaptive| Gradient::new(adaptive, spec.limits.requests_max, shards)),
            sampling_epoch: 0,
            rng: Rng::new(seed ^ u64::from(spec.id.0)),
        }
    }

    /// Gets to know new endpoints; old ones stay as they are.
    pub(super) fn prepare(&mut self, spec: &ClusterSpec) {
        for endpoint in &spec.endpoints {
            if self.entries.contains_key(&endpoint.id) {
                continue;
            }
            let entry = Entry {
                role: endpoint.role,
                breaker: Breaker::new(spec.breaker, self.shards),
                applied: vec![Epoch::default(); self.shards.into()],
                overriding: None,
            };
            self.entries.insert(endpoint.id, entry);
            if endpoint.role == Role::Endpoint {
                for kind in [Kind::Requests, Kind::Connections] {
                    self.lenders[kind as usize].add(endpoint.id, endpoint.limits.of(kind));
                }
            }
        }
    }

    /// The plan holds: new settings and limits; who is not in it is gone.
    pub(super) fn activate(&mut self, spec: &ClusterSpec, now: Nanos, out: &mut Out) {
        self.settings = spec.breaker;
        self.ejected_percent_max = spec.ejected_percent_max;
        self.retry_budget = spec.retry_budget;
        let gone: Vec<EndpointId> = self
            .entries
            .keys()
            .filter(|id| spec.endpoints.iter().all(|endpoint| endpoint.id != **id))
            .copied()
            .collect();
        for id in gone {
            self.entries.remove(&id);
            self.lenders.iter_mut().for_each(|lender| lender.remove(id));
        }
        self.adapt(spec, now);
        out.due_at(self.gradient.as_ref().map_or(Nanos::NEVER, Gradient::due));
        for kind in Kind::ALL {
            let lender = &mut self.lenders[kind as usize];
            let adaptive = self.gradient.as_ref().filter(|_| kind == Kind::Requests);
            lender.set_limit(None, adaptive.map_or(spec.limits.of(kind), Gradient::limit));
            for endpoint in &spec.endpoints {
                lender.set_limit(Some(endpoint.id), endpoint.limits.of(kind));
            }
        }
        for entry in self.entries.values_mut() {
            entry.breaker.configure(spec.breaker);
        }
        for kind in Kind::ALL {
            self.balance(kind, now, out);
        }
        self.tell_concurrency(out);
        self.retry_refused(now, out);
        // More probes may be allowed than before.
        let ids: Vec<EndpointId> = self.entries.keys().copied().collect();
        for id in ids {
            self.grant(id, now, out);
        }
        self.lend_tokens(now, out);
    }

    /// The limit on requests follows what is measured from now on, or no longer.
    fn adapt(&mut self, spec: &ClusterSpec, now: Nanos) {
        let max = spec.limits.requests_max;
        match (&mut self.gradient, spec.adaptive) {
            (Some(gradient), Some(adaptive)) => gradient.configure(adaptive, max, now),
            (gradient @ None, Some(adaptive)) => {
                let (shards, epoch) = (self.shards, self.sampling_epoch);
                *gradient = Some(Gradient::taking_over(adaptive, max, shards, epoch, now));
            }
            (gradient, None) => *gradient = None,
        }
    }

    /// A shard has measured how long answers take.
    pub(super) fn samples(
        &mut self,
        from: ShardId,
        measured: &Measured,
        now: Nanos,
        out: &mut Out,
    ) {
        let Some(gradient) = &mut self.gradient else { return };
        let change = gradient.report(from, measured, now, &mut self.rng);
        self.adapted(change, now, out);
    }

    /// Carries out what was decided about the limit on requests.
    fn adapted(&mut self, change: Change, now: Nanos, out: &mut Out) {
        let Some(gradient) = &self.gradient else { return };
        out.due_at(gradient.due());
        if change.epoch {
            let (epoch, _) = gradient.counted();
            self.sampling_epoch = epoch;
            let cluster = self.id;
            for shard in (0..self.shards).map(ShardId) {
                if !mutation::is_on(Mutation::MeasuringKeptSecret) {
                    out.order(shard, Body::Sampling { cluster, epoch }, true);
                }
            }
        }
        if change.limit {
            let limit = gradient.limit();
            self.lenders[Kind::Requests as usize].set_limit(None, limit);
            if !mutation::is_on(Mutation::LoweredWithoutRecall) {
                self.balance(Kind::Requests, now, out);
            }
            self.tell_concurrency(out);
        }
    }

    fn tell_concurrency(&self, out: &mut Out) {
        if let Some(gradient) = &self.gradient {
            out.event(Event::Concurrency {
                cluster: self.id,
                limit: gradient.limit(),
                min_rtt_ns: gradient.min_rtt().as_nanos() as u64,
                gradient_milli: gradient.gradient_milli(),
                is_measuring: gradient.is_measuring(),
            });
        }
    }

    /// What a shard has seen of an endpoint. `false`: the endpoint is not known.
    pub(super) fn outcomes(
        &mut self,
        from: ShardId,
        id: EndpointId,
        report: &Report,
        now: Nanos,
        out: &mut Out,
    ) -> bool {
        let room = self.has_room() || mutation::is_on(Mutation::EjectWithoutBound);
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        if entry.breaker.report(from, report, now) {
            let needs_place =
                entry.role == Role::Endpoint || mutation::is_on(Mutation::RouteNeedsPlace);
            if room || !needs_place {
                entry.breaker.trip(now, &mut self.rng);
                self.announce(id, out);
                return true;
            }
            if entry.breaker.refused_at().is_none() {
                out.event(Event::TripRefused { endpoint: id });
            }
            entry.breaker.refuse_trip(now);
        }
        if let Some(run) = entry.breaker.unanswered_run(from) {
            let epoch = entry.breaker.epoch();
            out.order(from, Body::Refused { endpoint: id, epoch, run }, true);
        }
        true
    }

    /// Credits returned and asked for.
    pub(super) fn debit(
        &mut self,
        from: ShardId,
        limit: Limit,
        returned: u64,
        wanted: u64,
        now: Nanos,
        out: &mut Out,
    ) -> bool {
        let lender = &mut self.lenders[limit.kind as usize];
        if lender.lent(limit.endpoint).is_none() {
            return false;
        }
        lender.debit(from, limit.endpoint, returned, wanted);
        self.balance(limit.kind, now, out);
        true
    }

    /// A shard wants a permit, or no longer.
    pub(super) fn ask(
        &mut self,
        from: ShardId,
        id: EndpointId,
        epoch: Epoch,
        number: u32,
        now: Nanos,
        out: &mut Out,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.breaker.ask(from, epoch, number);
        self.grant(id, now, out);
        true
    }

    /// A permit is out of use.
    pub(super) fn settled(
        &mut self,
        from: ShardId,
        id: EndpointId,
        settlement: Settlement,
        now: Nanos,
        out: &mut Out,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        if entry.breaker.settle(from, settlement, now, &mut self.rng) {
            self.announce(id, out);
            self.retry_refused(now, out);
        }
        self.grant(id, now, out);
        out.due_at(self.entries[&id].breaker.due());
        true
    }

    /// A shard wants to retry more than its first attempts pay for.
    pub(super) fn tokens_wanted(&mut self, from: ShardId, wanted: u64, now: Nanos, out: &mut Out) {
        let tokens = &mut self.tokens[usize::from(from.0)];
        tokens.wanted = tokens.wanted.max(wanted);
        if tokens.wanted > tokens.granted && !self.token_asks.contains(&from) {
            self.token_asks.push_back(from);
        }
        self.lend_tokens(now, out);
    }

    /// An operator wants something of an endpoint. [`Event::OverrideApplied`] tells when every
    /// shard has it.
    pub(super) fn override_to(
        &mut self,
        id: EndpointId,
        wanted: Override,
        generation: u64,
        now: Nanos,
        out: &mut Out,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let newer = generation > entry.breaker.override_generation();
        if entry.breaker.override_to(wanted, generation, now) {
            entry.overriding = Some((generation, entry.breaker.epoch()));
            self.announce(id, out);
            self.retry_refused(now, out);
            out.due_at(self.entries[&id].breaker.due());
        } else if newer {
            // Nothing changes; but what it wants may still be on its way.
            let epoch = entry.breaker.epoch();
            if entry.applied.iter().all(|applied| *applied >= epoch) {
                out.event(Event::OverrideApplied { endpoint: id, generation });
            } else {
                entry.overriding = Some((generation, epoch));
            }
        }
        true
    }

    /// A shard has applied this epoch.
    pub(super) fn applied(&mut self, from: ShardId, id: EndpointId, epoch: Epoch, out: &mut Out) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let applied = &mut entry.applied[usize::from(from.0)];
        *applied = (*applied).max(epoch);
        if let Some((generation, epoch)) = entry.overriding
            && entry.applied.iter().all(|applied| *applied >= epoch)
        {
            entry.overriding = None;
            out.event(Event::OverrideApplied { endpoint: id, generation });
        }
    }

    /// What time alone changes.
    pub(super) fn tick(&mut self, now: Nanos, out: &mut Out) {
        let due: Vec<EndpointId> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.breaker.due() <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if entry.breaker.tick(now, &mut self.rng) {
                self.announce(id, out);
            }
        }
        self.retry_refused(now, out);
        self.lend_tokens(now, out);
        let lent = self.lent(Kind::Requests, None).map_or(0, |lent| lent.lent);
        if let Some(change) = self.gradient.as_mut().map(|gradient| gradient.tick(lent, now)) {
            self.adapted(change, now, out);
        }
    }

    /// When [`Home::tick`] has something to do.
    pub(super) fn due(&self) -> Nanos {
        let breakers = self.entries.values().map(|entry| entry.breaker.due()).min();
        let tokens = match self.token_asks.is_empty() {
            true => Nanos::NEVER,
            false => self.mint.due(&self.retry_budget),
        };
        let gradient = self.gradient.as_ref().map_or(Nanos::NEVER, Gradient::due);
        breakers.unwrap_or(Nanos::NEVER).min(tokens).min(gradient)
    }

    /// Tells every shard where a breaker stands.
    fn announce(&mut self, id: EndpointId, out: &mut Out) {
        let breaker = &self.entries[&id].breaker;
        let (epoch, phase, decided) = (breaker.epoch(), breaker.phase(), breaker.since());
        for shard in (0..self.shards).map(ShardId) {
            out.order(shard, Body::Breaker { endpoint: id, epoch, phase, decided }, true);
        }
        out.due_at(breaker.due());
        out.event(Event::Transition { endpoint: id, epoch, phase });
    }

    fn grant(&mut self, id: EndpointId, now: Nanos, out: &mut Out) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        while let Some((shard, permit)) = entry.breaker.grant(now) {
            out.order(shard, Body::Permit { endpoint: id, permit }, true);
        }
        out.due_at(entry.breaker.due());
    }

    /// How many endpoints breakers may take out.
    pub fn ejected_max(&self) -> usize {
        let count = self.entries.values().filter(|entry| entry.role == Role::Endpoint).count();
        (count * self.ejected_percent_max as usize / 100).max(1)
    }

    /// How many they have taken out.
    pub fn ejected(&self) -> usize {
        let is_ejected =
            |entry: &&Entry| entry.role == Role::Endpoint && entry.breaker.is_ejected();
        self.entries.values().filter(is_ejected).count()
    }

    fn has_room(&self) -> bool {
        self.ejected() < self.ejected_max()
    }

    /// A place may be free: the trip that was refused first has it.
    fn retry_refused(&mut self, now: Nanos, out: &mut Out) {
        while self.has_room() {
            let refused = self
                .entries
                .iter()
                .filter_map(|(id, entry)| entry.breaker.refused_at().map(|at| (at, *id)));
            let Some((_, id)) = refused.min() else { return };
            let Some(entry) = self.entries.get_mut(&id) else { return };
            entry.breaker.trip(now, &mut self.rng);
            self.announce(id, out);
        }
    }

    fn lend_tokens(&mut self, now: Nanos, out: &mut Out) {
        while let Some(shard) = self.token_asks.front().copied() {
            let tokens = &mut self.tokens[usize::from(shard.0)];
            // One for each in turn.
            if tokens.wanted > tokens.granted {
                if self.mint.take(1, &self.retry_budget, now) == 0 {
                    break;
                }
                tokens.granted += 1;
                let granted = tokens.granted;
                if !mutation::is_on(Mutation::TokensLost) {
                    out.order(shard, Body::Tokens { cluster: self.id, granted }, true);
                }
            }
            self.token_asks.pop_front();
            if self.tokens[usize::from(shard.0)].wanted > self.tokens[usize::from(shard.0)].granted
            {
                self.token_asks.push_back(shard);
            }
        }
        if !self.token_asks.is_empty() {
            out.due_at(self.mint.due(&self.retry_budget));
        }
    }

    fn balance(&mut self, kind: Kind, now: Nanos, out: &mut Out) {
        let lender = &mut self.lenders[kind as usize];
        lender.balance();
        for (shard, endpoint, terms) in lender.changed() {
            let limit = Limit { cluster: self.id, kind, endpoint };
            let body = Body::Credit {
                limit,
                granted: terms.granted,
                recalled: terms.recalled,
                cluster_granted: terms.cluster_granted,
                decided: now,
            };
            out.order(shard, body, true);
        }
    }

    /// What decides the limit on requests, where it follows what is measured.
    pub fn gradient(&self) -> Option<&Gradient> {
        self.gradient.as_ref()
    }

    /// A breaker, for metrics and the simulator.
    pub fn breaker(&self, id: EndpointId) -> Option<&Breaker> {
        self.entries.get(&id).map(|entry| &entry.breaker)
    }

    /// The endpoints and route breakers that it decides for.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.entries.keys().copied()
    }

    /// All retries that it ever lent to a shard, beyond what first attempts there paid for.
    pub fn tokens_granted(&self, shard: ShardId) -> u64 {
        self.tokens[usize::from(shard.0)].granted
    }

    /// A limit as it stands, for metrics and the simulator.
    pub fn lent(&self, kind: Kind, endpoint: Option<EndpointId>) -> Option<Lent> {
        self.lenders[kind as usize].lent(endpoint)
    }

    /// Granted to a shard, and returned by it, as far as is known here.
    pub fn account(
        &self,
        shard: ShardId,
        kind: Kind,
        endpoint: Option<EndpointId>,
    ) -> Option<(u64, u64)> {
        self.lenders[kind as usize].account(shard, endpoint)
    }
}
