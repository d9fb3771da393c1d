//! What one shard has of all clusters: views of breakers, credits, and the requests that wait. This
//! is what a request asks; it decides with what the shard holds, in constant time, and allocates
//! nothing. Pure.
//!
//! ```text
//! admit ---- Ok(Ticket) ----------------------------------> complete
//!   |   '--- Err(refusal) -> another endpoint, or wait ---> Event::Admitted -> complete
//!   |                                                  '--> Event::Elsewhere -> admit anew
//! ```

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use super::budget::Deposits;
use super::gradient::{Progress, Samples};
use super::message::{Body, Limit};
use super::mutation::{self, Mutation};
use super::plan::{UNLIMITED, first_share, pending_share};
use super::purse::Purse;
use super::queue::{Queue, Waiter, Waiters};
use super::{
    ClusterId, ClusterSpec, EndpointId, EndpointSpec, Event, Kind, Out, RetryBudget, Role, ShardId,
    home_of,
};
use crate::breaker::{Admits, Epoch, Outcome, Pass, Permit, Phase, Settings, View};
use crate::time::Nanos;

/// Where nobody may wait, so many of a shard may ask the others all the same.
const ASKING_MAX: u32 = 1024;

/// Where a shard keeps an endpoint: good for as long as the plan that names it, and for as long as
/// a ticket is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointSlot(pub u32);

/// Where a shard keeps a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterSlot(pub u32);

/// An admitted request: one credit of its cluster, one of its endpoint, and the epochs under which
/// its outcome counts. Hand it back, to [`super::Reconciler::complete`] or
/// [`super::Reconciler::give_back`], on every way out.
#[derive(Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Clone))]
#[must_use = "a ticket that is dropped is a credit lost"]
pub struct Ticket {
    /// To which endpoint.
    pub endpoint: EndpointSlot,
    /// What the breaker gave it.
    pub pass: Pass,
    /// In which epoch of its cluster's round-trip times it was admitted.
    pub sampled_in: u32,
}

/// Why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The breaker is open: `breaker-open` if all are.
    Open,
    /// Half-open: a permit is needed. Wait for it (for `permit_wait`), or go elsewhere.
    NeedsPermit,
    /// This shard has no credit: wait for one, or go elsewhere.
    NoCredit,
    /// As many wait as may: `limit-pending`.
    TooManyPending,
    /// `max_pending` is 0: ask ([`super::Reconciler::ask`]), or refuse at once.
    NobodyMayWait,
    /// The endpoint left with a plan; choose by the newest one.
    Retired,
}

/// What a request could do at an endpoint now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Go there.
    Open,
    /// Wait for a place.
    Full,
    /// It is half-open, and this request would be the one of this shard that asks for a permit:
    /// worth a short wait, where there are others to choose.
    MayAsk,
    /// Go there, or wait for a permit, if there is nothing else.
    IfAlone,
    /// Nothing.
    Closed,
}

/// Why a retry is not allowed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryRefusal {
    /// `max_retries` are in flight, or this shard's part of them.
    NoCredit,
    /// The budget is spent.
    NoBudget,
}

/// Who waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Waiting {
    /// The caller's name for it.
    token: u64,
    want: Want,
    line: Line,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Want {
    Request(EndpointSlot),
    Connection(EndpointSlot),
    Retry(ClusterSlot),
    Permit(EndpointSlot),
}

/// In which queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Line {
    /// For a credit of the cluster alone.
    Cluster(Kind, ClusterSlot),
    /// For one of the cluster together with one of the endpoint.
    Endpoint(Kind, EndpointSlot),
    /// For a permit.
    Permit(EndpointSlot),
}

/// A cluster's limit of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClusterPurse {
    purse: Purse,
    /// Those that need no credit of an endpoint.
    queue: Queue,
    /// Granted alone, and asked for alone: totals.
    granted: u64,
    wanted: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cluster {
    id: ClusterId,
    home: ShardId,
    settings: Settings,
    retry_budget: RetryBudget,
    /// In the order of [`Kind::ALL`].
    purses: [ClusterPurse; 3],
    deposits: Deposits,
    tokens_wanted: u64,
    /// How long answers took, where the limit on requests follows that.
    samples: Option<Box<Samples>>,
    progress: Progress,
    pending: u64,
    pending_max: u64,
    is_retired: bool,
}

/// An endpoint's limit of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct EndpointPurse {
    purse: Purse,
    queue: Queue,
    wanted: u64,
    is_limited: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Endpoint {
    id: EndpointId,
    role: Role,
    cluster: ClusterSlot,
    view: View,
    /// Requests and connections.
    purses: [EndpointPurse; 2],
    /// Those that wait for a permit.
    permit_queue: Queue,
    pending: u64,
    pending_max: u64,
    /// Passes of a route's breaker that are out.
    passes: u64,
    /// Its report is to be sent with the next flush.
    is_dirty: bool,
    /// The slow requests that its home has been told of.
    slow_told: u64,
    is_retired: bool,
}

/// One shard's part of every cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    shard: ShardId,
    shards: u16,
    clusters: Vec<Option<Cluster>>,
    endpoints: Vec<Option<Endpoint>>,
    cluster_slots: BTreeMap<ClusterId, ClusterSlot>,
    endpoint_slots: BTreeMap<EndpointId, EndpointSlot>,
    waiters: Waiters<Waiting>,
    /// Endpoints whose reports are to be sent with the next flush.
    dirty: Vec<EndpointSlot>,
}

/// What [`Replica`]'s request path touches of a pair.
macro_rules! pair {
    ($self:ident, $slot:expr) => {{
        let endpoint =
            $self.endpoints[$slot.0 as usize].as_mut().expect("a slot lives as long as its users");
        let cluster = $self.clusters[endpoint.cluster.0 as usize]
            .as_mut()
            .expect("a cluster outlives its endpoints");
        (endpoint, cluster)
    }};
}

impl Replica {
    pub fn new(shard: ShardId, shards: u16) -> Replica {
        Replica {
            shard,
            shards,
            clusters: Vec::new(),
            endpoints: Vec::new(),
            cluster_slots: BTreeMap::new(),
            endpoint_slots: BTreeMap::new(),
            waiters: Waiters::default(),
            dirty: Vec::new(),
        }
    }

    // ---- Plans --------------------------------------------------------------------------------

    /// Gets to know who is new; nothing else changes yet.
    pub fn prepare(&mut self, spec: &ClusterSpec) {
        let slot = match self.cluster_slots.get(&spec.id) {
            Some(slot) => *slot,
            None => {
                let slot = ClusterSlot(vacant(&mut self.clusters));
                self.clusters[slot.0 as usize] = Some(Cluster::new(spec, self.shard, self.shards));
                self.cluster_slots.insert(spec.id, slot);
                slot
            }
        };
        for endpoint in &spec.endpoints {
            if !self.endpoint_slots.contains_key(&endpoint.id) {
                let at = EndpointSlot(vacant(&mut self.endpoints));
                let new = Endpoint::new(endpoint, slot, self.shard, self.shards);
                self.endpoints[at.0 as usize] = Some(new);
                self.endpoint_slots.insert(endpoint.id, at);
            }
        }
    }

    /// The plan holds. Who is not in it is retired: admits nobody, and leaves with its last user.
    pub fn activate(&mut self, specs: &[ClusterSpec], out: &mut Out) {
        for spec in specs {
            let Some(slot) = self.cluster_slots.get(&spec.id) else { continue };
            if let Some(cluster) = &mut self.clusters[slot.0 as usize] {
                cluster.configure(spec, self.shard, self.shards);
            }
            for endpoint in &spec.endpoints {
                let Some(slot) = self.endpoint_slots.get(&endpoint.id).copied() else { continue };
                let Some(entry) = &mut self.endpoints[slot.0 as usize] else { continue };
                if entry.configure(endpoint, self.shard, self.shards) {
                    self.kick_all(slot, out); // They wait in the wrong line now.
                }
            }
        }
        let is_in_plan = |id: &EndpointId| {
            specs.iter().any(|spec| spec.endpoints.iter().any(|endpoint| endpoint.id == *id))
        };
        let gone: Vec<EndpointSlot> = self
            .endpoint_slots
            .iter()
            .filter(|(id, _)| !is_in_plan(id))
            .map(|(_, slot)| *slot)
            .collect();
        for slot in gone {
            if let Some(endpoint) = &mut self.endpoints[slot.0 as usize] {
                endpoint.is_retired = true;
            }
            self.kick_all(slot, out);
            self.let_go(slot, out);
        }
        let clusters: Vec<ClusterSlot> = self
            .cluster_slots
            .iter()
            .filter(|(id, _)| specs.iter().all(|spec| spec.id != **id))
            .map(|(_, slot)| *slot)
            .collect();
        for slot in clusters {
            if let Some(cluster) = &mut self.clusters[slot.0 as usize] {
                cluster.is_retired = true;
            }
            self.let_cluster_go(slot, out);
        }
    }

    /// Frees the place of a retired endpoint that nobody uses any more.
    fn let_go(&mut self, slot: EndpointSlot, out: &mut Out) {
        let Some(endpoint) = &self.endpoints[slot.0 as usize] else { return };
        if !endpoint.is_retired || endpoint.is_used() {
            return;
        }
        let (id, cluster) = (endpoint.id, endpoint.cluster);
        self.endpoint_slots.remove(&id);
        self.endpoints[slot.0 as usize] = None;
        self.dirty.retain(|other| *other != slot);
        out.endpoints_gone.push(id);
        self.let_cluster_go(cluster, out);
    }

    fn let_cluster_go(&mut self, slot: ClusterSlot, out: &mut Out) {
        let Some(cluster) = &self.clusters[slot.0 as usize] else { return };
        let has_endpoints =
            self.endpoints.iter().flatten().any(|endpoint| endpoint.cluster == slot);
        if cluster.is_retired && !has_endpoints && !cluster.is_used() {
            self.cluster_slots.remove(&cluster.id);
            out.clusters_gone.push(cluster.id);
            self.clusters[slot.0 as usize] = None;
        }
    }

    // ---- Requests -----------------------------------------------------------------------------

    #[inline]
    pub fn admits(&self, slot: EndpointSlot, now: Nanos, dice: u32) -> Admits {
        let Some(endpoint) = &self.endpoints[slot.0 as usize] else { return Admits::No };
        let Some(cluster) = &self.clusters[endpoint.cluster.0 as usize] else { return Admits::No };
        if endpoint.is_retired {
            return Admits::No;
        }
        endpoint.view.admits(&cluster.settings, now, dice)
    }

    #[inline]
    pub fn has_credit(&self, slot: EndpointSlot) -> bool {
        let Some(endpoint) = &self.endpoints[slot.0 as usize] else { return false };
        let Some(cluster) = &self.clusters[endpoint.cluster.0 as usize] else { return false };
        endpoint.purses[Kind::Requests as usize].purse.free() > 0
            && cluster.purses[Kind::Requests as usize].purse.free() > 0
    }

    #[inline(always)]
    pub fn standing(&self, slot: EndpointSlot, now: Nanos, dice: u32) -> Standing {
        let Some(endpoint) = &self.endpoints[slot.0 as usize] else { return Standing::Closed };
        let Some(cluster) = &self.clusters[endpoint.cluster.0 as usize] else {
            return Standing::Closed;
        };
        if endpoint.is_retired {
            return Standing::Closed;
        }
        match endpoint.view.admits(&cluster.settings, now, dice) {
            Admits::Yes
                if endpoint.purses[Kind::Requests as usize].purse.free() > 0
                    && cluster.purses[Kind::Requests as usize].purse.free() > 0 =>
            {
                Standing::Open
            }
            Admits::Yes => Standing::Full,
            Admits::WithPermit if endpoint.view.may_ask() => Standing::MayAsk,
            Admits::WithPermit | Admits::IfAlone => Standing::IfAlone,
            Admits::No => Standing::Closed,
        }
    }

    #[inline]
    pub fn admit(&mut self, slot: EndpointSlot, now: Nanos) -> Result<Ticket, Refusal> {
        let (endpoint, cluster) = pair!(self, slot);
        if endpoint.is_retired {
            return Err(Refusal::Retired);
        }
        match endpoint.view.admits(&cluster.settings, now, 0) {
            Admits::Yes | Admits::IfAlone => {}
            Admits::WithPermit => return Err(Refusal::NeedsPermit),
            Admits::No => return Err(Refusal::Open),
        }
        let own = &endpoint.purses[Kind::Requests as usize].purse;
        let shared = &cluster.purses[Kind::Requests as usize].purse;
        if (own.free() == 0 || shared.free() == 0) && !mutation::is_on(Mutation::CountBeforeAsking)
        {
            return Err(Refusal::NoCredit);
        }
        Ok(self.enter(slot))
    }

    /// Takes a request in where [`Standing::Open`] was just seen.
    #[inline(always)]
    pub fn enter(&mut self, slot: EndpointSlot) -> Ticket {
        let (endpoint, cluster) = pair!(self, slot);
        endpoint.purses[Kind::Requests as usize].purse.take();
        cluster.purses[Kind::Requests as usize].purse.take();
        cluster.ticket(slot, endpoint.view.take())
    }

    /// Deposits what a first attempt is worth in retries; a retry that waits for it goes.
    #[inline]
    pub fn deposit(&mut self, slot: EndpointSlot, now: Nanos, out: &mut Out) {
        let (endpoint, cluster) = pair!(self, slot);
        cluster.deposits.deposit(&cluster.retry_budget, now);
        if !cluster.purses[Kind::Retries as usize].queue.is_empty()
            && !mutation::is_on(Mutation::DepositServesNobody)
        {
            let at = endpoint.cluster;
            self.serve(Kind::Retries, at, None, now, out);
        }
    }

    #[inline]
    pub fn complete(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        latency: Duration,
        now: Nanos,
        out: &mut Out,
    ) {
        let slot = ticket.endpoint;
        let (endpoint, cluster) = pair!(self, slot);
        let urgent = endpoint.view.record(&cluster.settings, ticket.pass, outcome, latency, now);
        if let Some(samples) = &mut cluster.samples
            && outcome == Outcome::Success
        {
            let in_flight = cluster.purses[Kind::Requests as usize].purse.in_use();
            samples.record(&cluster.progress, ticket.sampled_in, latency, in_flight);
            out.due_at(samples.due().max(now));
        }
        if urgent {
            self.tell(slot, ticket.pass, out);
        } else if outcome == Outcome::Success {
            self.report_later(slot, out);
        }
        self.put(Kind::Requests, slot, now, out);
    }

    /// What went well is told with the next flush. With one shard there is no hurry, since a
    /// failure tells it as well; unless it was slow, which nothing else tells.
    #[inline(always)]
    fn report_later(&mut self, slot: EndpointSlot, out: &mut Out) {
        let (endpoint, _) = pair!(self, slot);
        let is_slow = endpoint.view.report().slow > endpoint.slow_told;
        if endpoint.is_dirty && !is_slow {
            return;
        }
        if !std::mem::replace(&mut endpoint.is_dirty, true) {
            self.dirty.push(slot);
        }
        if is_slow || self.shards > 1 {
            out.due_at(out.flush_due);
        }
    }

    /// A probe has shown what it was sent for, but the request goes on: its end counts no more.
    pub fn settle_probe(
        &mut self,
        ticket: &mut Ticket,
        outcome: Outcome,
        latency: Duration,
        now: Nanos,
        out: &mut Out,
    ) {
        let (endpoint, cluster) = pair!(self, ticket.endpoint);
        let pass = ticket.pass;
        if pass.probe.is_some()
            && endpoint.view.record(&cluster.settings, pass, outcome, latency, now)
        {
            // An epoch that is over for good: half-open ones are not the first.
            ticket.pass = Pass { epoch: Epoch::default(), probe: None };
            self.tell(ticket.endpoint, pass, out);
        }
    }

    pub fn give_back(&mut self, ticket: Ticket, now: Nanos, out: &mut Out) {
        let slot = ticket.endpoint;
        let (endpoint, _) = pair!(self, slot);
        if endpoint.view.give_back(ticket.pass) {
            self.tell(slot, ticket.pass, out);
        }
        self.put(Kind::Requests, slot, now, out);
    }

    /// A failure, or the end of a probe: the home should know now.
    fn tell(&mut self, slot: EndpointSlot, pass: Pass, out: &mut Out) {
        let (endpoint, cluster) = pair!(self, slot);
        let (id, home) = (endpoint.id, cluster.home);
        if pass.probe.is_some() {
            if let Some(settlement) = endpoint.view.settled() {
                out.order(home, Body::Settled { endpoint: id, settlement }, true);
            }
            if !endpoint.permit_queue.is_empty() {
                endpoint.ask_permit(home, out);
            }
            return;
        }
        let report = *endpoint.view.report();
        out.order(home, Body::Outcomes { endpoint: id, report }, true);
        if report.has_stopped() {
            self.kick(slot, Kind::Requests, out);
        }
    }

    /// A request or a connection is over: what is owed goes back first, then the oldest that waits
    /// here is served.
    #[inline(always)]
    fn put(&mut self, kind: Kind, slot: EndpointSlot, now: Nanos, out: &mut Out) {
        let (endpoint, cluster) = pair!(self, slot);
        let own = &mut endpoint.purses[kind as usize];
        let shared = &mut cluster.purses[kind as usize];
        own.purse.put();
        shared.purse.put();
        let is_quiet = own.purse.owed() == 0
            && shared.purse.owed() == 0
            && own.queue.is_empty()
            && shared.queue.is_empty()
            && !endpoint.is_retired;
        if !is_quiet {
            self.settle(kind, slot, now, out);
        }
    }

    /// The slow part of [`Replica::put`].
    fn settle(&mut self, kind: Kind, slot: EndpointSlot, now: Nanos, out: &mut Out) {
        let (endpoint, cluster) = pair!(self, slot);
        let at = endpoint.cluster;
        if cluster.purses[kind as usize].purse.pay() {
            cluster.tell_credits(kind, true, out);
        }
        if endpoint.purses[kind as usize].purse.pay() {
            endpoint.tell_credits(kind, cluster, true, out);
        }
        self.serve(kind, at, Some(slot), now, out);
        self.let_go(slot, out);
    }

    // ---- Waiting ------------------------------------------------------------------------------

    /// Waits for a credit. [`Event::Admitted`] or [`Event::Elsewhere`] follows, unless cancelled.
    pub fn wait(
        &mut self,
        slot: EndpointSlot,
        token: u64,
        is_probe: bool,
        now: Nanos,
        out: &mut Out,
    ) -> Result<Waiter, Refusal> {
        let (endpoint, cluster) = pair!(self, slot);
        if endpoint.is_retired {
            return Err(Refusal::Retired);
        }
        may_wait(endpoint, cluster, is_probe)?;
        Ok(self.line_up(Kind::Requests, slot, token, now, out))
    }

    /// Waits where nobody may, for what the home and the others may still have. One that gave up
    /// leaves its ask behind: while that stands there is nothing, and nobody needs to wait for it.
    pub fn ask(
        &mut self,
        kind: Kind,
        slot: EndpointSlot,
        token: u64,
        now: Nanos,
        out: &mut Out,
    ) -> Result<Waiter, Refusal> {
        let (endpoint, cluster) = pair!(self, slot);
        if endpoint.is_retired {
            return Err(Refusal::Retired);
        }
        let own = &endpoint.purses[kind as usize];
        let shared = &cluster.purses[kind as usize];
        let (standing, waiting) = if own.is_limited || own.purse.free() == 0 {
            (own.wanted.saturating_sub(own.purse.granted()), own.queue.len())
        } else {
            (shared.wanted.saturating_sub(shared.granted), shared.queue.len())
        };
        if self.shards == 1 || waiting >= ASKING_MAX || standing > u64::from(waiting) {
            return Err(Refusal::NobodyMayWait);
        }
        Ok(self.line_up(kind, slot, token, now, out))
    }

    fn line_up(
        &mut self,
        kind: Kind,
        slot: EndpointSlot,
        token: u64,
        now: Nanos,
        out: &mut Out,
    ) -> Waiter {
        let (endpoint, cluster) = pair!(self, slot);
        cluster.pending += 1;
        endpoint.pending += 1;
        let want = match kind {
            Kind::Connections => Want::Connection(slot),
            _ => Want::Request(slot),
        };
        let at = endpoint.cluster;
        let own = &mut endpoint.purses[kind as usize];
        let waiter = if own.is_limited || own.purse.free() == 0 {
            let line = Line::Endpoint(kind, slot);
            self.waiters.push(&mut own.queue, Waiting { token, want, line })
        } else {
            let line = Line::Cluster(kind, at);
            let shared = &mut cluster.purses[kind as usize];
            self.waiters.push(&mut shared.queue, Waiting { token, want, line })
        };
        self.serve(kind, at, Some(slot), now, out);
        waiter
    }

    /// Waits for a permit; the caller bounds the time.
    pub fn wait_permit(
        &mut self,
        slot: EndpointSlot,
        token: u64,
        is_probe: bool,
        out: &mut Out,
    ) -> Result<Waiter, Refusal> {
        let (endpoint, cluster) = pair!(self, slot);
        if endpoint.is_retired {
            return Err(Refusal::Retired);
        }
        if endpoint.view.phase() != Phase::HalfOpen {
            return Err(Refusal::Open);
        }
        // One may always ask, or an endpoint that nobody may wait for would never recover.
        may_wait(endpoint, cluster, is_probe || endpoint.permit_queue.is_empty())?;
        cluster.pending += 1;
        endpoint.pending += 1;
        let waiting = Waiting { token, want: Want::Permit(slot), line: Line::Permit(slot) };
        let waiter = self.waiters.push(&mut endpoint.permit_queue, waiting);
        endpoint.ask_permit(cluster.home, out);
        Ok(waiter)
    }

    /// Stops waiting: the client left, the time is over. `false`: it does not wait any more; its
    /// event is on the way, and a ticket in it has to be given back.
    pub fn cancel(&mut self, waiter: Waiter, out: &mut Out) -> bool {
        self.stop_waiting(waiter, true, out)
    }

    /// Stops waiting for a permit, as [`Replica::cancel`], but the ask stands: the permit is for
    /// whoever comes next.
    pub fn step_aside(&mut self, waiter: Waiter, out: &mut Out) -> bool {
        self.stop_waiting(waiter, false, out)
    }

    fn stop_waiting(&mut self, waiter: Waiter, withdraws: bool, out: &mut Out) -> bool {
        let Some(waiting) = self.waiters.get(waiter) else { return false };
        match waiting.line {
            Line::Cluster(kind, slot) => {
                let Some(cluster) = &mut self.clusters[slot.0 as usize] else { return false };
                self.waiters.remove(&mut cluster.purses[kind as usize].queue, waiter);
            }
            Line::Endpoint(kind, slot) => {
                let (endpoint, _) = pair!(self, slot);
                self.waiters.remove(&mut endpoint.purses[kind as usize].queue, waiter);
            }
            Line::Permit(slot) => {
                let (endpoint, cluster) = pair!(self, slot);
                self.waiters.remove(&mut endpoint.permit_queue, waiter);
                if withdraws
                    && endpoint.permit_queue.is_empty()
                    && let Some(number) = endpoint.view.withdraw()
                {
                    let epoch = endpoint.view.epoch();
                    let body = Body::Ask { endpoint: endpoint.id, epoch, number };
                    out.order(cluster.home, body, true);
                }
            }
        }
        self.no_longer_pending(waiting.want);
        if let Want::Retry(at) = waiting.want {
            self.let_cluster_go(at, out); // It may have been the last that its cluster waited for.
        }
        true
    }

    fn no_longer_pending(&mut self, want: Want) {
        if let Want::Request(slot) | Want::Connection(slot) | Want::Permit(slot) = want {
            let (endpoint, cluster) = pair!(self, slot);
            cluster.pending -= 1;
            endpoint.pending -= 1;
        }
    }

    /// Serves who waits, the oldest first, for as long as there are credits. Then what is free of
    /// an endpoint that somebody still waits for goes back: who waits holds nothing of it.
    fn serve(
        &mut self,
        kind: Kind,
        at: ClusterSlot,
        slot: Option<EndpointSlot>,
        now: Nanos,
        out: &mut Out,
    ) {
        loop {
            let Some(cluster) = &self.clusters[at.0 as usize] else { return };
            let shared = &cluster.purses[kind as usize];
            if shared.purse.free() == 0 {
                break;
            }
            let alone = self.waiters.front(&shared.queue);
            let own = slot
                .and_then(|slot| self.endpoints[slot.0 as usize].as_ref())
                .map(|endpoint| &endpoint.purses[kind as usize])
                .filter(|own| own.purse.free() > 0)
                .and_then(|own| self.waiters.front(&own.queue));
            let waiting = match (alone, own) {
                (None, None) => break,
                (Some((alone, older)), Some((_, newer))) if older < newer => alone,
                (_, Some((own, _))) => own,
                (Some((alone, _)), None) => alone,
            };
            if !self.serve_one(kind, waiting, now, out) {
                break;
            }
        }
        if let Some(slot) = slot
            && let Some(endpoint) = &mut self.endpoints[slot.0 as usize]
            && let Some(cluster) = &mut self.clusters[at.0 as usize]
            && !endpoint.purses[kind as usize].queue.is_empty()
        {
            endpoint.want_credits(kind, cluster, out);
        }
        if let Some(cluster) = &mut self.clusters[at.0 as usize]
            && !cluster.purses[kind as usize].queue.is_empty()
        {
            let waiting = u64::from(cluster.purses[kind as usize].queue.len());
            match kind {
                Kind::Retries => cluster.want_retries(waiting, now, out),
                Kind::Requests | Kind::Connections => cluster.want_credits(kind, waiting, out),
            }
        }
    }

    /// `false`: it cannot be served, for want of something that is no credit.
    fn serve_one(&mut self, kind: Kind, waiting: Waiting, now: Nanos, out: &mut Out) -> bool {
        if let Want::Retry(at) = waiting.want {
            let Some(cluster) = &mut self.clusters[at.0 as usize] else { return false };
            if !cluster.deposits.spend(&cluster.retry_budget, now) {
                return false;
            }
            let shared = &mut cluster.purses[kind as usize];
            self.waiters.pop(&mut shared.queue);
            shared.purse.take();
            out.event(Event::RetryGranted { token: waiting.token });
            return true;
        }
        let (Want::Request(slot) | Want::Connection(slot) | Want::Permit(slot)) = waiting.want
        else {
            return false;
        };
        let (endpoint, cluster) = pair!(self, slot);
        match waiting.line {
            Line::Cluster(..) => self.waiters.pop(&mut cluster.purses[kind as usize].queue),
            _ => self.waiters.pop(&mut endpoint.purses[kind as usize].queue),
        };
        let own = &mut endpoint.purses[kind as usize].purse;
        let shared = &mut cluster.purses[kind as usize].purse;
        let is_admitted = match waiting.want {
            Want::Connection(_) => true,
            _ => matches!(
                endpoint.view.admits(&cluster.settings, now, 0),
                Admits::Yes | Admits::IfAlone
            ),
        };
        if !is_admitted || own.free() == 0 || endpoint.is_retired {
            out.event(Event::Elsewhere { token: waiting.token });
        } else {
            own.take();
            shared.take();
            out.event(match waiting.want {
                Want::Connection(_) => Event::Connect { token: waiting.token, endpoint: slot },
                _ => {
                    let ticket = cluster.ticket(slot, endpoint.view.take());
                    Event::Admitted { token: waiting.token, ticket }
                }
            });
        }
        self.no_longer_pending(waiting.want);
        true
    }

    /// Sends away who waits for a credit of this endpoint, or for a permit.
    fn kick(&mut self, slot: EndpointSlot, kind: Kind, out: &mut Out) {
        loop {
            let (endpoint, _) = pair!(self, slot);
            let waiting = self
                .waiters
                .pop(&mut endpoint.purses[kind as usize].queue)
                .or_else(|| self.waiters.pop(&mut endpoint.permit_queue));
            let Some(waiting) = waiting else { return };
            out.event(Event::Elsewhere { token: waiting.token });
            self.no_longer_pending(waiting.want);
        }
    }

    /// Sends away everybody who waits for this endpoint, in whatever line.
    fn kick_all(&mut self, slot: EndpointSlot, out: &mut Out) {
        self.kick(slot, Kind::Requests, out);
        self.kick(slot, Kind::Connections, out);
        for kind in [Kind::Requests, Kind::Connections] {
            let (_, cluster) = pair!(self, slot);
            let queue = &mut cluster.purses[kind as usize].queue;
            for waiter in self.waiters.all(queue) {
                let Some(waiting) = self.waiters.get(waiter) else { continue };
                match waiting.want {
                    Want::Request(at) | Want::Connection(at) if at == slot => {}
                    _ => continue,
                }
                let (_, cluster) = pair!(self, slot);
                self.waiters.remove(&mut cluster.purses[kind as usize].queue, waiter);
                out.event(Event::Elsewhere { token: waiting.token });
                self.no_longer_pending(waiting.want);
            }
        }
    }

    // ---- Connections --------------------------------------------------------------------------

    pub fn open_connection(&mut self, slot: EndpointSlot) -> Result<(), Refusal> {
        let (endpoint, cluster) = pair!(self, slot);
        if endpoint.is_retired {
            return Err(Refusal::Retired);
        }
        let own = &mut endpoint.purses[Kind::Connections as usize].purse;
        let shared = &mut cluster.purses[Kind::Connections as usize].purse;
        if own.free() == 0 || shared.free() == 0 {
            return Err(Refusal::NoCredit);
        }
        own.take();
        shared.take();
        Ok(())
    }

    pub fn wait_connection(
        &mut self,
        slot: EndpointSlot,
        token: u64,
        is_probe: bool,
        now: Nanos,
        out: &mut Out,
    ) -> Result<Waiter, Refusal> {
        let (endpoint, cluster) = pair!(self, slot);
        if endpoint.is_retired {
            return Err(Refusal::Retired);
        }
        may_wait(endpoint, cluster, is_probe)?;
        Ok(self.line_up(Kind::Connections, slot, token, now, out))
    }

    pub fn close_connection(&mut self, slot: EndpointSlot, now: Nanos, out: &mut Out) {
        self.put(Kind::Connections, slot, now, out);
    }

    /// How many connections to this endpoint, idle ones first, should be closed for others.
    pub fn connections_owed(&self, slot: EndpointSlot) -> u64 {
        let Some(endpoint) = &self.endpoints[slot.0 as usize] else { return 0 };
        let Some(cluster) = &self.clusters[endpoint.cluster.0 as usize] else { return 0 };
        let own = endpoint.purses[Kind::Connections as usize].purse.owed();
        own.max(cluster.purses[Kind::Connections as usize].purse.owed())
    }

    /// Whether any should be.
    pub fn owes_connections(&self) -> bool {
        let kind = Kind::Connections as usize;
        self.clusters.iter().flatten().any(|cluster| cluster.purses[kind].purse.owed() > 0)
            || self.endpoints.iter().flatten().any(|it| it.purses[kind].purse.owed() > 0)
    }

    // ---- Retries ------------------------------------------------------------------------------

    pub fn begin_retry(&mut self, at: ClusterSlot, now: Nanos) -> Result<(), RetryRefusal> {
        let cluster = self.clusters[at.0 as usize].as_mut().expect("a slot lives with its users");
        let shared = &mut cluster.purses[Kind::Retries as usize];
        let is_free = shared.purse.free() > 0 || mutation::is_on(Mutation::RetryWithoutCredit);
        if !is_free {
            return Err(RetryRefusal::NoCredit);
        }
        if !shared.queue.is_empty() {
            // Those in front wait for what pays.
            return Err(RetryRefusal::NoBudget);
        }
        if !cluster.deposits.spend(&cluster.retry_budget, now) {
            return Err(RetryRefusal::NoBudget);
        }
        shared.purse.take();
        Ok(())
    }

    /// Waits for what a retry needs, while its backoff runs; [`Event::RetryGranted`] follows.
    pub fn wait_retry(&mut self, at: ClusterSlot, token: u64, now: Nanos, out: &mut Out) -> Waiter {
        let cluster = self.clusters[at.0 as usize].as_mut().expect("a slot lives with its users");
        let line = Line::Cluster(Kind::Retries, at);
        let waiting = Waiting { token, want: Want::Retry(at), line };
        let waiter = self.waiters.push(&mut cluster.purses[Kind::Retries as usize].queue, waiting);
        self.serve(Kind::Retries, at, None, now, out);
        waiter
    }

    pub fn end_retry(&mut self, at: ClusterSlot, now: Nanos, out: &mut Out) {
        let Some(cluster) = &mut self.clusters[at.0 as usize] else { return };
        let shared = &mut cluster.purses[Kind::Retries as usize].purse;
        shared.put();
        if shared.pay() {
            cluster.tell_credits(Kind::Retries, true, out);
        }
        self.serve(Kind::Retries, at, None, now, out);
        self.let_cluster_go(at, out);
    }

    pub fn tokens(&mut self, id: ClusterId, granted: u64, now: Nanos, out: &mut Out) -> bool {
        let Some(at) = self.cluster_slots.get(&id).copied() else { return false };
        if let Some(cluster) = &mut self.clusters[at.0 as usize] {
            cluster.deposits.grant(granted, &cluster.retry_budget, now);
        }
        self.serve(Kind::Retries, at, None, now, out);
        true
    }

    /// Those who wait although enough is saved: a new part of the time may spend it.
    fn serve_retries(&mut self, now: Nanos, out: &mut Out) {
        for at in 0..self.clusters.len() {
            if self.clusters[at].as_ref().is_some_and(|it| it.retries_due() <= now) {
                self.serve(Kind::Retries, ClusterSlot(at as u32), None, now, out);
            }
        }
    }

    // ---- Breakers of routes -------------------------------------------------------------------

    pub fn enter_route(&mut self, slot: EndpointSlot, now: Nanos) -> Result<Pass, Refusal> {
        let (endpoint, cluster) = pair!(self, slot);
        match endpoint.view.admits(&cluster.settings, now, 0) {
            _ if endpoint.is_retired => Err(Refusal::Retired),
            Admits::Yes | Admits::IfAlone => {
                endpoint.passes += 1;
                Ok(endpoint.view.take())
            }
            Admits::WithPermit => Err(Refusal::NeedsPermit),
            Admits::No => Err(Refusal::Open),
        }
    }

    pub fn leave_route(
        &mut self,
        slot: EndpointSlot,
        pass: Pass,
        outcome: Option<(Outcome, Duration)>,
        now: Nanos,
        out: &mut Out,
    ) {
        let (endpoint, cluster) = pair!(self, slot);
        endpoint.passes -= 1;
        let urgent = match outcome {
            Some(_)
                if pass.probe.is_some() && mutation::is_on(Mutation::RouteProbeCalledUnsent) =>
            {
                endpoint.view.give_back(pass)
            }
            Some((outcome, latency)) => {
                endpoint.view.record(&cluster.settings, pass, outcome, latency, now)
            }
            None if mutation::is_on(Mutation::RoutePermitKept) => false,
            None => endpoint.view.give_back(pass),
        };
        if urgent {
            self.tell(slot, pass, out);
        } else {
            self.report_later(slot, out);
        }
        self.let_go(slot, out);
    }

    // ---- Messages -----------------------------------------------------------------------------

    /// Credits from the home. `None`: the cluster is not known. `Some(true)`: there was news.
    pub fn credit(
        &mut self,
        limit: Limit,
        granted: u64,
        recalled: u64,
        cluster_granted: u64,
        now: Nanos,
        out: &mut Out,
    ) -> Option<bool> {
        let at = *self.cluster_slots.get(&limit.cluster)?;
        let kind = limit.kind;
        let cluster = self.clusters[at.0 as usize].as_mut()?;
        let shared = &mut cluster.purses[kind as usize];
        let mut news = shared.purse.grant(cluster_granted);
        let slot = limit.endpoint.and_then(|id| self.endpoint_slots.get(&id).copied());
        let mut is_recalled = false;
        match (limit.endpoint, slot) {
            (None, _) => {
                shared.granted = shared.granted.max(granted);
                is_recalled = shared.purse.recall(recalled);
            }
            (Some(_), Some(slot)) => {
                if let Some(endpoint) = &mut self.endpoints[slot.0 as usize] {
                    let own = &mut endpoint.purses[kind as usize].purse;
                    news |= own.grant(granted);
                    is_recalled = own.recall(recalled);
                }
            }
            (Some(_), None) => {} // Gone; what came with it of the cluster's limit counts.
        }
        // A grant serves who waits here first, or two shards would swap a credit for ever.
        self.serve(kind, at, slot, now, out);
        self.pay(kind, at, slot, limit.endpoint.is_none(), is_recalled, out);
        Some(news || is_recalled)
    }

    /// Returns what is owed and free, and says so; where a recall asks for nothing more than has
    /// been returned, it says that.
    fn pay(
        &mut self,
        kind: Kind,
        at: ClusterSlot,
        slot: Option<EndpointSlot>,
        is_clusters: bool,
        is_recalled: bool,
        out: &mut Out,
    ) {
        let Some(cluster) = &mut self.clusters[at.0 as usize] else { return };
        let shared = &mut cluster.purses[kind as usize].purse;
        let was_owed = shared.owed();
        let paid = shared.pay();
        if is_clusters && is_recalled {
            shared.share();
        }
        if paid || (is_clusters && is_recalled && was_owed == 0) {
            cluster.tell_credits(kind, true, out);
        }
        if kind == Kind::Connections && cluster.purses[kind as usize].purse.owed() > 0 {
            out.event(Event::CloseIdle { cluster: at });
        }
        let Some(endpoint) = slot.and_then(|slot| self.endpoints[slot.0 as usize].as_mut()) else {
            return;
        };
        let own = &mut endpoint.purses[kind as usize].purse;
        let was_owed = own.owed();
        let paid = own.pay();
        if !is_clusters && is_recalled {
            own.share();
        }
        if paid || (!is_clusters && is_recalled && was_owed == 0) {
            endpoint.tell_credits(kind, cluster, true, out);
        }
        if kind == Kind::Connections && endpoint.purses[kind as usize].purse.owed() > 0 {
            out.event(Event::CloseIdle { cluster: at });
        }
    }

    /// Where a breaker stands. `None`: it is not known. `Some(true)`: that was news.
    pub fn breaker(
        &mut self,
        id: EndpointId,
        epoch: Epoch,
        phase: Phase,
        out: &mut Out,
    ) -> Option<bool> {
        let slot = *self.endpoint_slots.get(&id)?;
        let (endpoint, cluster) = pair!(self, slot);
        let held = endpoint.view.settled();
        if !endpoint.view.apply(epoch, phase) {
            return Some(false);
        }
        endpoint.slow_told = 0;
        if endpoint.view.settled() != held
            && let Some(settlement) = endpoint.view.settled()
        {
            // A permit that nobody had used went back.
            out.order(cluster.home, Body::Settled { endpoint: id, settlement }, true);
        }
        // Who waits has to look again: for a permit in any case, for a credit if none is of use.
        while let Some(waiting) = self.waiters.pop(&mut endpoint.permit_queue) {
            cluster.pending -= 1;
            endpoint.pending -= 1;
            out.event(Event::Elsewhere { token: waiting.token });
        }
        if matches!(phase, Phase::Open | Phase::HalfOpen | Phase::ForcedOpen) {
            self.kick(slot, Kind::Requests, out);
        }
        Some(true)
    }

    pub fn refused(&mut self, id: EndpointId, epoch: Epoch, run: u32, out: &mut Out) -> bool {
        let Some(slot) = self.endpoint_slots.get(&id).copied() else { return false };
        let (endpoint, cluster) = pair!(self, slot);
        if endpoint.view.refuse(epoch, run) {
            let report = *endpoint.view.report();
            out.order(cluster.home, Body::Outcomes { endpoint: id, report }, false);
        }
        true
    }

    pub fn permit(&mut self, id: EndpointId, permit: Permit, now: Nanos, out: &mut Out) -> bool {
        let Some(slot) = self.endpoint_slots.get(&id).copied() else { return false };
        let (endpoint, cluster) = pair!(self, slot);
        let held = endpoint.view.settled();
        let mut is_usable = endpoint.view.accept(permit, now);
        if endpoint.is_retired && is_usable {
            let probe = NonZeroU64::new(permit.serial);
            endpoint.view.give_back(Pass { epoch: permit.epoch, probe });
            is_usable = false;
        }
        if endpoint.view.settled() != held
            && let Some(settlement) = endpoint.view.settled()
        {
            out.order(cluster.home, Body::Settled { endpoint: id, settlement }, true);
        }
        if !is_usable {
            return true;
        }
        out.due_at(permit.use_by);
        let Some((waiting, _)) = self.waiters.front(&endpoint.permit_queue) else { return true };
        if endpoint.role == Role::Route {
            if mutation::is_on(Mutation::RouteWaiterForgotten) {
                return true;
            }
            // It needs no credit: it enters again, and finds the permit.
            self.waiters.pop(&mut endpoint.permit_queue);
            self.no_longer_pending(waiting.want);
            out.event(Event::Elsewhere { token: waiting.token });
            return true;
        }
        let kind = Kind::Requests;
        let own = &mut endpoint.purses[kind as usize];
        let shared = &mut cluster.purses[kind as usize];
        if own.purse.free() > 0 && shared.purse.free() > 0 {
            own.purse.take();
            shared.purse.take();
            cluster.pending -= 1;
            endpoint.pending -= 1;
            self.waiters.pop(&mut endpoint.permit_queue);
            let ticket = cluster.ticket(slot, endpoint.view.take());
            out.event(Event::Admitted { token: waiting.token, ticket });
            return true;
        }
        // The permit waits for a credit, before all others, until its time is over.
        let at = endpoint.cluster;
        let want = Want::Request(slot);
        if own.is_limited || own.purse.free() == 0 {
            let waiting = Waiting { want, line: Line::Endpoint(kind, slot), ..waiting };
            self.waiters.requeue(&mut endpoint.permit_queue, &mut own.queue, waiting);
        } else {
            let waiting = Waiting { want, line: Line::Cluster(kind, at), ..waiting };
            self.waiters.requeue(&mut endpoint.permit_queue, &mut shared.queue, waiting);
        }
        self.serve(kind, at, Some(slot), now, out);
        true
    }

    // ---- Time ---------------------------------------------------------------------------------

    /// Sends the reports that could wait.
    pub fn flush(&mut self, out: &mut Out) {
        for slot in self.dirty.drain(..) {
            let Some(endpoint) = &mut self.endpoints[slot.0 as usize] else { continue };
            let Some(cluster) = &self.clusters[endpoint.cluster.0 as usize] else { continue };
            endpoint.is_dirty = false;
            let report = *endpoint.view.report();
            let wakes = report.slow > endpoint.slow_told;
            endpoint.slow_told = report.slow;
            out.order(cluster.home, Body::Outcomes { endpoint: endpoint.id, report }, wakes);
        }
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Permits whose time is over go back.
    pub fn tick(&mut self, now: Nanos, out: &mut Out) {
        for endpoint in self.endpoints.iter_mut().flatten() {
            if !endpoint.view.tick(now) {
                continue;
            }
            let Some(cluster) = &self.clusters[endpoint.cluster.0 as usize] else { continue };
            if let Some(settlement) = endpoint.view.settled() {
                let body = Body::Settled { endpoint: endpoint.id, settlement };
                out.order(cluster.home, body, true);
            }
        }
        self.ask_again(out);
        self.serve_retries(now, out);
        for cluster in self.clusters.iter_mut().flatten() {
            let Cluster { samples, progress, .. } = cluster;
            let measured = samples.as_mut().and_then(|it| it.report(progress, now));
            if let Some(measured) = measured.filter(|_| !cluster.is_retired) {
                out.order(cluster.home, Body::Samples { cluster: cluster.id, measured }, true);
            }
        }
    }

    /// The home counts only what is asked from now on. `false`: the cluster is not known.
    pub fn sampling(&mut self, id: ClusterId, epoch: u32) -> bool {
        let Some(at) = self.cluster_slots.get(&id).copied() else { return false };
        if let Some(cluster) = &mut self.clusters[at.0 as usize]
            && cluster.progress.begin(epoch)
        {
            cluster.samples.iter_mut().for_each(|samples| samples.forget());
        }
        true
    }

    /// Who still waits for a permit asks for the next one.
    fn ask_again(&mut self, out: &mut Out) {
        for endpoint in self.endpoints.iter_mut().flatten() {
            if endpoint.permit_queue.is_empty() {
                continue;
            }
            if let Some(cluster) = &self.clusters[endpoint.cluster.0 as usize] {
                endpoint.ask_permit(cluster.home, out);
            }
        }
    }

    pub fn due(&self) -> Nanos {
        let dues = self.endpoints.iter().flatten().map(|endpoint| endpoint.view.due());
        let samples = self.clusters.iter().flatten().filter_map(|it| it.samples.as_ref());
        let retries = self.clusters.iter().flatten().map(Cluster::retries_due);
        dues.chain(samples.map(|it| it.due())).chain(retries).min().unwrap_or(Nanos::NEVER)
    }

    /// Returns what has been idle since the last call.
    pub fn return_surplus(&mut self, out: &mut Out) {
        for cluster in self.clusters.iter_mut().flatten() {
            for kind in Kind::ALL {
                let purse = &mut cluster.purses[kind as usize].purse;
                let surplus = purse.surplus();
                if surplus > 0 {
                    purse.give_back(surplus);
                    cluster.tell_credits(kind, false, out);
                }
            }
        }
        for endpoint in self.endpoints.iter_mut().flatten() {
            let Some(cluster) = &self.clusters[endpoint.cluster.0 as usize] else { continue };
            for kind in [Kind::Requests, Kind::Connections] {
                let own = &mut endpoint.purses[kind as usize];
                let surplus = own.purse.surplus();
                if surplus > 0 && own.is_limited {
                    own.purse.give_back(surplus);
                    endpoint.tell_credits(kind, cluster, false, out);
                }
            }
        }
    }

    // ---- Looking ------------------------------------------------------------------------------

    pub fn cluster_slot(&self, id: ClusterId) -> Option<ClusterSlot> {
        self.cluster_slots.get(&id).copied()
    }

    pub fn endpoint_slot(&self, id: EndpointId) -> Option<EndpointSlot> {
        self.endpoint_slots.get(&id).copied()
    }

    pub fn view(&self, slot: EndpointSlot) -> Option<&View> {
        self.endpoints.get(slot.0 as usize)?.as_ref().map(|endpoint| &endpoint.view)
    }

    pub fn purse(&self, kind: Kind, slot: EndpointSlot) -> Option<&Purse> {
        let endpoint = self.endpoints.get(slot.0 as usize)?.as_ref()?;
        endpoint.purses.get(kind as usize).map(|own| &own.purse)
    }

    pub fn cluster_purse(&self, kind: Kind, at: ClusterSlot) -> Option<&Purse> {
        let cluster = self.clusters.get(at.0 as usize)?.as_ref()?;
        Some(&cluster.purses[kind as usize].purse)
    }

    pub fn pending(&self, at: ClusterSlot) -> u64 {
        self.clusters.get(at.0 as usize).and_then(Option::as_ref).map_or(0, |it| it.pending)
    }

    pub fn deposits(&self, at: ClusterSlot) -> Option<&Deposits> {
        Some(&self.clusters.get(at.0 as usize)?.as_ref()?.deposits)
    }

    pub fn sampling_epoch(&self, at: ClusterSlot) -> u32 {
        self.clusters[at.0 as usize].as_ref().map_or(0, |cluster| cluster.progress.epoch())
    }

    /// How many wait for a credit of the endpoint and its cluster together.
    pub fn waiting(&self, kind: Kind, slot: EndpointSlot) -> u32 {
        let endpoint = self.endpoints.get(slot.0 as usize).and_then(Option::as_ref);
        endpoint.and_then(|it| it.purses.get(kind as usize)).map_or(0, |own| own.queue.len())
    }

    /// How many wait for a credit of the cluster alone.
    pub fn cluster_waiting(&self, kind: Kind, at: ClusterSlot) -> u32 {
        let cluster = self.clusters.get(at.0 as usize).and_then(Option::as_ref);
        cluster.map_or(0, |cluster| cluster.purses[kind as usize].queue.len())
    }
}

impl Cluster {
    fn new(spec: &ClusterSpec, shard: ShardId, shards: u16) -> Cluster {
        let purse = |kind: Kind| ClusterPurse {
            purse: Purse::new(first_share(spec.first_limit(kind), shards)),
            queue: Queue::default(),
            granted: 0,
            wanted: 0,
        };
        Cluster {
            id: spec.id,
            home: home_of(spec.id, shards),
            settings: spec.breaker,
            retry_budget: spec.retry_budget,
            purses: Kind::ALL.map(purse),
            deposits: Deposits::default(),
            tokens_wanted: 0,
            samples: spec.adaptive.map(|adaptive| Box::new(Samples::new(adaptive))),
            progress: Progress::default(),
            pending: 0,
            pending_max: pending_share(spec.limits.pending_max, shard, shards),
            is_retired: false,
        }
    }

    fn configure(&mut self, spec: &ClusterSpec, shard: ShardId, shards: u16) {
        self.settings = spec.breaker;
        self.retry_budget = spec.retry_budget;
        match (&mut self.samples, spec.adaptive) {
            (Some(samples), Some(adaptive)) => samples.configure(adaptive),
            (samples, adaptive) => *samples = adaptive.map(|it| Box::new(Samples::new(it))),
        }
        self.pending_max = pending_share(spec.limits.pending_max, shard, shards);
    }

    /// Of a request that is admitted now, at an endpoint of it.
    #[inline(always)]
    fn ticket(&self, endpoint: EndpointSlot, pass: Pass) -> Ticket {
        Ticket { endpoint, pass, sampled_in: self.progress.epoch() }
    }

    fn is_used(&self) -> bool {
        self.purses.iter().any(|shared| shared.purse.in_use() > 0 || !shared.queue.is_empty())
    }

    /// As many as wait, beyond what was granted; an ask that stands is not repeated.
    fn want_credits(&mut self, kind: Kind, waiting: u64, out: &mut Out) {
        let shared = &mut self.purses[kind as usize];
        let missing = waiting.saturating_sub(shared.purse.free());
        let wanted = shared.granted + missing;
        if missing > 0 && wanted > shared.wanted {
            shared.wanted = wanted;
            self.tell_credits(kind, true, out);
        }
    }

    fn tell_credits(&self, kind: Kind, wakes: bool, out: &mut Out) {
        let shared = &self.purses[kind as usize];
        let limit = Limit { cluster: self.id, kind, endpoint: None };
        let (returned, wanted) = (shared.purse.returned(), shared.wanted);
        out.order(self.home, Body::Debit { limit, returned, wanted }, wakes);
    }

    /// First what pays for a retry, and then a credit for each that is paid: shards that cannot pay
    /// would swap their credits for ever.
    fn want_retries(&mut self, waiting: u64, now: Nanos, out: &mut Out) {
        match self.deposits.retries(&self.retry_budget, now) {
            0 => {
                out.due_at(self.retries_due());
                self.want_token(out);
            }
            paid => self.want_credits(Kind::Retries, paid.min(waiting), out),
        }
    }

    /// When those who wait for a retry may go although nobody brings anything.
    fn retries_due(&self) -> Nanos {
        let is_awaited = !self.purses[Kind::Retries as usize].queue.is_empty()
            && !mutation::is_on(Mutation::SavingsServeNobody);
        if is_awaited { self.deposits.due() } else { Nanos::NEVER }
    }

    /// One at a time: an ask cannot be taken back, and what nobody waits for any more would be lent
    /// all the same.
    fn want_token(&mut self, out: &mut Out) {
        let wanted = self.deposits.granted() + 1;
        if wanted > self.tokens_wanted {
            self.tokens_wanted = wanted;
            out.order(self.home, Body::TokensWanted { cluster: self.id, wanted }, true);
        }
    }
}

impl Endpoint {
    fn new(spec: &EndpointSpec, cluster: ClusterSlot, shard: ShardId, shards: u16) -> Endpoint {
        let purse = |kind: Kind| EndpointPurse {
            purse: Purse::new(first_share(spec.limits.of(kind), shards)),
            queue: Queue::default(),
            wanted: 0,
            is_limited: spec.limits.of(kind) != UNLIMITED,
        };
        Endpoint {
            id: spec.id,
            role: spec.role,
            cluster,
            view: View::default(),
            purses: [purse(Kind::Requests), purse(Kind::Connections)],
            permit_queue: Queue::default(),
            pending: 0,
            pending_max: pending_share(spec.limits.pending_max, shard, shards),
            passes: 0,
            is_dirty: false,
            slow_told: 0,
            is_retired: false,
        }
    }

    /// `true`: a limit was set or lifted.
    fn configure(&mut self, spec: &EndpointSpec, shard: ShardId, shards: u16) -> bool {
        self.pending_max = pending_share(spec.limits.pending_max, shard, shards);
        let mut changed = false;
        for kind in [Kind::Requests, Kind::Connections] {
            let is_limited = spec.limits.of(kind) != UNLIMITED;
            changed |= std::mem::replace(&mut self.purses[kind as usize].is_limited, is_limited)
                != is_limited;
        }
        changed
    }

    fn is_used(&self) -> bool {
        let is_passed = self.passes > 0 && !mutation::is_on(Mutation::RouteLeavesItsRequests);
        is_passed || self.purses.iter().any(|own| own.purse.in_use() > 0)
    }

    /// What is free of it goes back, and as many as wait are asked for, each together with one of
    /// the cluster's. An ask that stands is not repeated.
    fn want_credits(&mut self, kind: Kind, cluster: &Cluster, out: &mut Out) {
        let own = &mut self.purses[kind as usize];
        let returns = own.purse.empty();
        let wanted = own.purse.granted() + u64::from(own.queue.len());
        if wanted > own.wanted {
            own.wanted = wanted;
            self.tell_credits(kind, cluster, true, out);
        } else if returns {
            self.tell_credits(kind, cluster, true, out);
        }
    }

    fn tell_credits(&self, kind: Kind, cluster: &Cluster, wakes: bool, out: &mut Out) {
        let own = &self.purses[kind as usize];
        let limit = Limit { cluster: cluster.id, kind, endpoint: Some(self.id) };
        let (returned, wanted) = (own.purse.returned(), own.wanted);
        out.order(cluster.home, Body::Debit { limit, returned, wanted }, wakes);
    }

    fn ask_permit(&mut self, home: ShardId, out: &mut Out) {
        if let Some(number) = self.view.want_permit() {
            let epoch = self.view.epoch();
            out.order(home, Body::Ask { endpoint: self.id, epoch, number }, true);
        }
    }
}

/// Whether one more may wait. A route's probe always may: there are few, and others wait for them.
fn may_wait(endpoint: &Endpoint, cluster: &Cluster, is_always: bool) -> Result<(), Refusal> {
    let has_room = cluster.pending < cluster.pending_max && endpoint.pending < endpoint.pending_max;
    if is_always || has_room {
        Ok(())
    } else if cluster.pending_max == 0 || endpoint.pending_max == 0 {
        Err(Refusal::NobodyMayWait)
    } else {
        Err(Refusal::TooManyPending)
    }
}

/// A free place, at the end if there is none.
fn vacant<T>(places: &mut Vec<Option<T>>) -> u32 {
    let place = places.iter().position(Option::is_none).unwrap_or_else(|| {
        places.push(None);
        places.len() - 1
    });
    place as u32
}
