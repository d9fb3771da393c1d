//! What must never be, and what is true: the checker keeps books of its own, from what requests
//! and endpoints really did, and compares.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Fault;
use super::world::{Node, OverrideEpoch, Request};
use crate::breaker::{Epoch, Outcome, Override, Pass, Phase, SETTLE_GRACE, Settings};
use crate::reconcile::{ClusterId, EndpointId, Gradient, Home, Kind, Purse, RetryBudget, ShardId};
use crate::time::Nanos;

/// What really happened to one breaker.
#[derive(Debug, Clone, Default)]
struct Truth {
    /// The newest transition, and when.
    epoch: Epoch,
    phase: Phase,
    at: Nanos,
    /// Of the newest epochs: outcomes of requests that were admitted in it.
    failures: BTreeMap<Epoch, u64>,
    slow: BTreeMap<Epoch, u64>,
    /// Probes sent, and how they ended.
    sent: BTreeMap<Epoch, u32>,
    succeeded: BTreeMap<Epoch, u32>,
    failed: BTreeMap<Epoch, u32>,
    /// What operators wanted, newest last, with the epoch that the home made of it.
    overrides: Vec<(u64, Override)>,
    applied: Option<OverrideEpoch>,
    /// Released from being forced open: open without a place in `max_ejected`.
    is_exempt: bool,
}

/// A shard's outcomes in the epoch that it knows.
type Seen = (Epoch, u64, u64);

/// Which limit.
type LimitName = (ClusterId, Kind, Option<EndpointId>);

/// What is true of a limit.
#[derive(Debug, Clone, Default)]
struct Book {
    /// In flight, open or being retried, on each shard.
    in_use: Vec<u64>,
    /// What was lent at the last look.
    lent: Option<u64>,
}

/// What is true of the samples of a cluster.
#[derive(Debug, Clone, Default)]
struct Sampled {
    /// In which epoch each shard measures, and since when.
    known: Vec<(u32, Nanos)>,
    /// Answers to requests that were asked in that epoch, on any shard.
    answered: BTreeMap<u32, u64>,
}

/// Thousandths in a retry.
const RETRY_MILLI: u64 = 1_000;

/// What is true of a cluster's retry budget.
#[derive(Debug, Clone, Default)]
struct Budget {
    /// On each shard.
    savings: Vec<Savings>,
    /// In thousandths: all that first attempts ever paid, and all that retries cost.
    deposited: u64,
    spent: u64,
    /// Retries that the home has lent, and up to when its time is used up by them.
    minted: u64,
    paid_until: u64,
}

/// What retries of one shard may still cost.
#[derive(Debug, Clone, Default)]
struct Savings {
    /// When it came, and how much, in thousandths; the oldest first.
    parts: VecDeque<(Nanos, u64)>,
    /// Of the home's, as the shard knows it.
    granted: u64,
}

impl Savings {
    fn save(&mut self, milli: u64, now: Nanos) {
        self.parts.push_back((now, milli));
    }

    /// A retry; `false`: nobody has paid for it.
    fn spend(&mut self, ttl: Duration, now: Nanos) -> bool {
        while self.parts.front().is_some_and(|(at, _)| *at + ttl <= now) {
            self.parts.pop_front();
        }
        let mut due = RETRY_MILLI;
        while let Some((_, milli)) = self.parts.front_mut() {
            let part = due.min(*milli);
            *milli -= part;
            due -= part;
            if due == 0 {
                return true;
            }
            self.parts.pop_front();
        }
        false
    }
}

/// Keeps the books.
pub(super) struct Checker {
    shards: u16,
    settings: Settings,
    retry_budget: RetryBudget,
    budgets: BTreeMap<ClusterId, Budget>,
    truths: BTreeMap<EndpointId, Truth>,
    /// Which of them are of routes.
    routes: BTreeSet<EndpointId>,
    seen: BTreeMap<(usize, EndpointId), Seen>,
    books: BTreeMap<LimitName, Book>,
    samples: BTreeMap<ClusterId, Sampled>,
    /// How many were ejected at the last look.
    ejected: BTreeMap<ClusterId, usize>,
    views: BTreeMap<(usize, EndpointId), Epoch>,
}

fn unsafe_if(is_so: bool, what: impl FnOnce() -> String) -> Result<(), Fault> {
    if is_so { Err(Fault::Safety(what())) } else { Ok(()) }
}

impl Checker {
    pub fn new(shards: u16, settings: Settings, retry_budget: RetryBudget) -> Checker {
        Checker {
            shards,
            settings,
            retry_budget,
            budgets: BTreeMap::new(),
            truths: BTreeMap::new(),
            routes: BTreeSet::new(),
            seen: BTreeMap::new(),
            books: BTreeMap::new(),
            samples: BTreeMap::new(),
            ejected: BTreeMap::new(),
            views: BTreeMap::new(),
        }
    }

    // ---- What happened ------------------------------------------------------------------------

    /// This is the breaker of a route.
    pub fn is_a_route(&mut self, id: EndpointId) {
        self.routes.insert(id);
    }

    pub fn is_route(&self, id: EndpointId) -> bool {
        self.routes.contains(&id)
    }

    /// At most `probes` in an epoch.
    pub fn probe_sent(&mut self, endpoint: EndpointId, epoch: Epoch) -> Result<(), Fault> {
        let truth = self.truths.entry(endpoint).or_default();
        let sent = truth.sent.entry(epoch).or_default();
        *sent += 1;
        let (sent, max) = (*sent, self.settings.probes);
        unsafe_if(sent > max, || format!("{sent} probes of {endpoint:?} in {epoch:?}, not {max}"))
    }

    /// A request ended; `counted_in`: the epoch that its shard knew then.
    pub fn finished(
        &mut self,
        shard: usize,
        endpoint: EndpointId,
        pass: Pass,
        (outcome, latency): (Outcome, Duration),
        in_time: bool,
        counted_in: Option<Epoch>,
    ) {
        let is_slow = self.settings.latency_max.is_some_and(|max| latency > max);
        let truth = self.truths.entry(endpoint).or_default();
        if pass.probe.is_some() {
            let ended = if outcome == Outcome::Success && in_time && !is_slow {
                &mut truth.succeeded
            } else {
                &mut truth.failed
            };
            *ended.entry(pass.epoch).or_default() += 1;
            return;
        }
        if counted_in != Some(pass.epoch) || outcome == Outcome::Neutral {
            return;
        }
        let failed = u64::from(outcome == Outcome::Failure);
        *truth.failures.entry(pass.epoch).or_default() += failed;
        let slow = u64::from(outcome == Outcome::Success && is_slow);
        *truth.slow.entry(pass.epoch).or_default() += slow;
        let seen = self.seen.entry((shard, endpoint)).or_default();
        if seen.0 != pass.epoch {
            *seen = (pass.epoch, 0, 0);
        }
        seen.1 += 1;
        seen.2 += failed;
    }

    /// A request of a cluster whose limit follows has ended well, that was admitted at that time:
    /// its answer may have begun long before its end.
    pub fn sampled(&mut self, shard: usize, cluster: ClusterId, admitted: Nanos) {
        let sampled = self.samples.entry(cluster).or_default();
        sampled.known.resize(self.shards.into(), (0, Nanos(0)));
        let (epoch, since) = sampled.known[shard];
        if admitted >= since {
            *sampled.answered.entry(epoch).or_default() += 1;
        }
    }

    pub fn overridden(&mut self, endpoint: EndpointId, wanted: Override, generation: u64) {
        self.truths.entry(endpoint).or_default().overrides.push((generation, wanted));
    }

    /// The epoch that an override made, if that is the newest one.
    pub fn override_epoch(&self, endpoint: EndpointId, generation: u64) -> Option<Epoch> {
        let applied = self.truths.get(&endpoint)?.applied?;
        (applied.0 == generation).then_some(applied.1)
    }

    /// A breaker changed: it must be a change that there is, for a reason that there was.
    pub fn transition(
        &mut self,
        endpoint: EndpointId,
        epoch: Epoch,
        phase: Phase,
        now: Nanos,
    ) -> Result<(), Fault> {
        let settings = self.settings;
        let truth = self.truths.entry(endpoint).or_default();
        let (from, before) = (truth.phase, truth.epoch);
        unsafe_if(epoch != before.next(), || format!("{endpoint:?}: {before:?}, then {epoch:?}"))?;
        let count = |map: &BTreeMap<Epoch, u32>| map.get(&before).copied().unwrap_or_default();
        let failures = truth.failures.get(&before).copied().unwrap_or_default();
        let share = u64::from(settings.requests_min * settings.failures_percent).div_ceil(100);
        let slow = truth.slow.get(&before).copied().unwrap_or_default();
        let slow_share = u64::from(settings.requests_min * settings.slow_percent).div_ceil(100);
        let may_trip = failures >= share.min(settings.failures_in_a_row.into())
            || settings.latency_max.is_some() && slow >= slow_share;
        let elapsed = now.since(truth.at);
        let by_operator = truth.overrides.last().map(|(_, wanted)| *wanted);
        let is_new = truth.overrides.last().map(|(generation, _)| *generation)
            > truth.applied.map(|(generation, _)| generation);
        let is_allowed = match (from, phase) {
            (Phase::Closed | Phase::Recovering(_), Phase::Open) => may_trip,
            (Phase::Open, Phase::HalfOpen) => {
                let released = truth.is_exempt;
                let out = |map: &BTreeMap<Epoch, u32>| map.values().sum::<u32>();
                let in_flight = out(&truth.sent) - out(&truth.succeeded) - out(&truth.failed);
                unsafe_if(in_flight > 0, || {
                    format!("{endpoint:?} is half-open again while {in_flight} probes are out")
                })?;
                released || elapsed >= settings.open_for * 9 / 10
            }
            (Phase::HalfOpen, Phase::Recovering(_)) => count(&truth.succeeded) >= settings.probes,
            (Phase::HalfOpen, Phase::Open) => {
                count(&truth.failed) > 0 || elapsed >= settings.probe_timeout + SETTLE_GRACE
            }
            (Phase::Recovering(_), Phase::Closed) => elapsed >= settings.ramp,
            (_, Phase::ForcedOpen) => is_new && by_operator == Some(Override::ForceOpen),
            (_, Phase::ForcedClosed) => is_new && by_operator == Some(Override::ForceClosed),
            (Phase::ForcedOpen, Phase::Open) | (Phase::ForcedClosed, Phase::Closed) => {
                is_new && by_operator == Some(Override::Release)
            }
            _ => false,
        };
        unsafe_if(!is_allowed, || {
            format!(
                "{endpoint:?} went from {from:?} to {phase:?} ({epoch:?}) with {failures} failures \
                 and {slow} slow, {} probes succeeded and {} failed, after {elapsed:?}",
                count(&truth.succeeded),
                count(&truth.failed)
            )
        })?;
        let forced = |phase| matches!(phase, Phase::ForcedOpen | Phase::ForcedClosed);
        if (forced(phase) || forced(from))
            && is_new
            && let Some((generation, _)) = truth.overrides.last()
        {
            truth.applied = Some((*generation, epoch));
        }
        truth.is_exempt = match phase {
            Phase::Open => {
                from == Phase::ForcedOpen || (truth.is_exempt && from == Phase::HalfOpen)
            }
            Phase::HalfOpen => truth.is_exempt,
            _ => false,
        };
        truth.epoch = epoch;
        truth.phase = phase;
        truth.at = now;
        truth.failures.retain(|old, _| *old >= before);
        truth.slow.retain(|old, _| *old >= before);
        Ok(())
    }

    /// A first attempt pays for a part of a retry.
    pub fn deposited(&mut self, shard: usize, cluster: ClusterId, now: Nanos) {
        let milli = u64::from(self.retry_budget.deposit_milli);
        let budget = self.budget(cluster);
        budget.deposited += milli;
        budget.savings[shard].save(milli, now);
    }

    /// A retry begins: somebody has paid for it, and not too long ago.
    pub fn retried(
        &mut self,
        shard: usize,
        cluster: ClusterId,
        nodes: &[Node],
    ) -> Result<(), Fault> {
        self.loans(shard, cluster, &nodes[shard]);
        let (ttl, now) = (self.retry_budget.ttl, nodes[shard].clock);
        let budget = self.budget(cluster);
        budget.spent += RETRY_MILLI;
        unsafe_if(!budget.savings[shard].spend(ttl, now), || {
            format!("nobody has paid for a retry of {cluster:?} on shard {shard}")
        })
    }

    fn budget(&mut self, cluster: ClusterId) -> &mut Budget {
        let budget = self.budgets.entry(cluster).or_default();
        budget.savings.resize(self.shards.into(), Savings::default());
        budget
    }

    /// What a shard has got of the home's retries since the last look.
    fn loans(&mut self, shard: usize, cluster: ClusterId, node: &Node) {
        let slot = node.reconciler.cluster(cluster);
        let Some(known) = slot.and_then(|slot| node.reconciler.deposits(slot)) else { return };
        let savings = &mut self.budget(cluster).savings[shard];
        let more = known.granted().saturating_sub(savings.granted);
        if more > 0 {
            savings.granted = known.granted();
            savings.save(more * RETRY_MILLI, node.clock);
        }
    }

    // ---- What is ------------------------------------------------------------------------------

    /// Something is in flight, open, or being retried.
    pub fn began(
        &mut self,
        shard: usize,
        kind: Kind,
        cluster: ClusterId,
        endpoint: Option<EndpointId>,
    ) {
        self.count(shard, kind, cluster, None, |count| count + 1);
        if endpoint.is_some() {
            self.count(shard, kind, cluster, endpoint, |count| count + 1);
        }
    }

    /// And no longer.
    pub fn ended(
        &mut self,
        shard: usize,
        kind: Kind,
        cluster: ClusterId,
        endpoint: Option<EndpointId>,
    ) {
        self.count(shard, kind, cluster, None, |count| count - 1);
        if endpoint.is_some() {
            self.count(shard, kind, cluster, endpoint, |count| count - 1);
        }
    }

    fn count(
        &mut self,
        shard: usize,
        kind: Kind,
        cluster: ClusterId,
        endpoint: Option<EndpointId>,
        change: impl Fn(u64) -> u64,
    ) {
        let book = self.books.entry((cluster, kind, endpoint)).or_default();
        book.in_use.resize(self.shards.into(), 0);
        book.in_use[shard] = change(book.in_use[shard]);
    }

    /// Looks at everything that may be different after something happened on `shard`.
    pub fn check(
        &mut self,
        shard: usize,
        nodes: &[Node],
        requests: &BTreeMap<u64, Request>,
    ) -> Result<(), Fault> {
        for node in nodes {
            for (cluster, home) in node.reconciler.homes() {
                self.minting(cluster, home, node.clock)?;
                self.borrowing(cluster, home, shard, &nodes[shard])?;
                self.sampling(cluster, home, shard, &nodes[shard])?;
                for kind in Kind::ALL {
                    self.lending((cluster, kind, None), home, shard, &nodes[shard])?;
                }
                for endpoint in home.endpoints() {
                    for kind in [Kind::Requests, Kind::Connections] {
                        let limit = (cluster, kind, Some(endpoint));
                        self.lending(limit, home, shard, &nodes[shard])?;
                    }
                }
                let (ejected, max) = (self.ejected(home), self.ejected_max(home));
                let before = self.ejected.insert(cluster, ejected).unwrap_or_default();
                unsafe_if(ejected > max && ejected > before, || {
                    format!("{ejected} endpoints of {cluster:?} are out, not {max}")
                })?;
            }
        }
        self.views(shard, nodes)?;
        self.probes(requests)?;
        waiters(shard, &nodes[shard])?;
        self.waiting_retries(shard, &nodes[shard])
    }

    /// The home lends no more retries than its time is worth: so many a second, and what was not
    /// asked for adds up for as long as a deposit is good.
    fn minting(&mut self, cluster: ClusterId, home: &Home, now: Nanos) -> Result<(), Fault> {
        let minted = (0..self.shards).map(|shard| home.tokens_granted(ShardId(shard))).sum();
        let RetryBudget { ttl, per_second_min, .. } = self.retry_budget;
        let budget = self.budget(cluster);
        let more = minted - budget.minted;
        if more == 0 {
            return Ok(());
        }
        let price = 1_000_000_000u64.checked_div(per_second_min.into()).unwrap_or(u64::MAX / 4);
        budget.minted = minted;
        budget.paid_until =
            budget.paid_until.max(now.0.saturating_sub(ttl.as_nanos() as u64)) + more * price;
        unsafe_if(budget.paid_until > now.0, || {
            format!("{more} retries of {cluster:?} were lent too soon at {now:?}")
        })
    }

    /// A shard has been lent no more retries than its home knows of, and all shards together have
    /// begun no more than there were.
    fn borrowing(
        &mut self,
        cluster: ClusterId,
        home: &Home,
        shard: usize,
        node: &Node,
    ) -> Result<(), Fault> {
        self.loans(shard, cluster, node);
        let lent = home.tokens_granted(ShardId(shard as u16));
        let budget = self.budget(cluster);
        let known = budget.savings[shard].granted;
        unsafe_if(known > lent, || {
            format!("shard {shard} has {known} retries of {cluster:?}, {lent} were lent")
        })?;
        let all = budget.deposited + budget.minted * RETRY_MILLI;
        unsafe_if(budget.spent > all, || {
            format!("retries of {cluster:?} have cost {}, of {all}", budget.spent)
        })
    }

    /// The home counts no sample twice, and none of what was asked before it began to measure.
    fn sampling(
        &mut self,
        cluster: ClusterId,
        home: &Home,
        shard: usize,
        node: &Node,
    ) -> Result<(), Fault> {
        let sampled = self.samples.entry(cluster).or_default();
        sampled.known.resize(self.shards.into(), (0, Nanos(0)));
        if let Some(slot) = node.reconciler.cluster(cluster) {
            let epoch = node.reconciler.sampling_epoch(slot);
            if epoch > sampled.known[shard].0 {
                sampled.known[shard] = (epoch, node.clock);
            }
        }
        let Some((epoch, counted)) = home.gradient().map(Gradient::counted) else { return Ok(()) };
        let answered = sampled.answered.get(&epoch).copied().unwrap_or_default();
        unsafe_if(counted > answered, || {
            format!("{counted} samples of {cluster:?} count in epoch {epoch}, of {answered}")
        })
    }

    /// One limit, at its home and on one shard.
    fn lending(
        &mut self,
        limit: LimitName,
        home: &Home,
        shard: usize,
        node: &Node,
    ) -> Result<(), Fault> {
        let (cluster, kind, endpoint) = limit;
        let Some(lent) = home.lent(kind, endpoint) else { return Ok(()) };
        let book = self.books.entry(limit).or_default();
        let before = book.lent.replace(lent.lent);
        unsafe_if(
            lent.lent > lent.limit && before.is_none_or(|before| lent.lent > before),
            || format!("{limit:?}: {} lent of {}", lent.lent, lent.limit),
        )?;
        let in_use: u64 = book.in_use.iter().sum();
        unsafe_if(in_use > lent.lent, || {
            format!("{limit:?}: {in_use} in use, {} lent", lent.lent)
        })?;
        let real = book.in_use.get(shard).copied().unwrap_or_default();
        let Some(purse) = purse(node, kind, cluster, endpoint) else {
            return unsafe_if(real > 0, || format!("{limit:?}: shard {shard} forgot {real}"));
        };
        unsafe_if(purse.in_use() != real, || {
            format!("{limit:?}: shard {shard} counts {}, it is {real}", purse.in_use())
        })?;
        unsafe_if(purse.in_use() > purse.held(), || {
            format!("{limit:?}: shard {shard} uses {real} of {}", purse.held())
        })?;
        let known = home.account(ShardId(shard as u16), kind, endpoint);
        let Some((granted, returned)) = known else { return Ok(()) };
        unsafe_if(purse.granted() > granted || purse.returned() < returned, || {
            format!("{limit:?}: shard {shard} has {purse:?}, its home {granted}, {returned}")
        })
    }

    /// Views never run ahead, never go back, and count what is theirs.
    fn views(&mut self, shard: usize, nodes: &[Node]) -> Result<(), Fault> {
        let node = &nodes[shard].reconciler;
        for other in nodes {
            for (_, home) in other.reconciler.homes() {
                for id in home.endpoints() {
                    let Some(slot) = node.endpoint(id) else { continue };
                    let (Some(view), Some(decided)) = (node.view(slot), home.breaker(id)) else {
                        continue;
                    };
                    let epoch = view.epoch();
                    unsafe_if(epoch > decided.epoch(), || {
                        format!("shard {shard} has {id:?} in {epoch:?}, before its home")
                    })?;
                    let before = self.views.insert((shard, id), epoch).unwrap_or_default();
                    unsafe_if(epoch < before, || format!("shard {shard}: {id:?} went back"))?;
                    let (seen_in, requests, failures) =
                        self.seen.get(&(shard, id)).copied().unwrap_or_default();
                    let expected = if seen_in == epoch { (requests, failures) } else { (0, 0) };
                    let report = view.report();
                    unsafe_if((report.requests, report.failures) != expected, || {
                        format!("shard {shard} counts {report:?} for {id:?}, not {expected:?}")
                    })?;
                }
            }
        }
        Ok(())
    }

    /// How many endpoints of a cluster breakers have taken out, and may: half of them, but one at
    /// least. Routes are none, and an operator may open as many as he likes.
    fn ejected(&self, home: &Home) -> usize {
        let is_out = |id: &EndpointId| {
            self.truths.get(id).is_some_and(|truth| {
                matches!(truth.phase, Phase::Open | Phase::HalfOpen) && !truth.is_exempt
            })
        };
        home.endpoints().filter(|id| !self.is_route(*id)).filter(is_out).count()
    }

    fn ejected_max(&self, home: &Home) -> usize {
        (home.endpoints().filter(|id| !self.is_route(*id)).count() / 2).max(1)
    }

    /// Probes of one endpoint, or route, that are out at once are of one epoch.
    fn probes(&self, requests: &BTreeMap<u64, Request>) -> Result<(), Fault> {
        let mut epochs: BTreeMap<EndpointId, Epoch> = BTreeMap::new();
        for request in requests.values() {
            let Request::InFlight(it) = request else { continue };
            for (id, epoch) in it.probes() {
                let other = *epochs.entry(id).or_insert(epoch);
                unsafe_if(other != epoch, || {
                    format!("probes of {id:?} are out in {other:?} and in {epoch:?}")
                })?;
            }
        }
        Ok(())
    }

    /// No retry waits for what its shard has.
    fn waiting_retries(&self, shard: usize, node: &Node) -> Result<(), Fault> {
        for spec in &node.plan.clusters {
            let Some(cluster) = node.reconciler.cluster(spec.id) else { continue };
            let waiting = node.reconciler.cluster_waiting(Kind::Retries, cluster);
            let free = node.reconciler.cluster_purse(Kind::Retries, cluster).map_or(0, Purse::free);
            if waiting == 0 || free == 0 {
                continue;
            }
            let mut deposits = node.reconciler.deposits(cluster).cloned().unwrap_or_default();
            if deposits.due().max(node.reconciler.next_due()) <= node.clock {
                continue; // Its time has just come, and so has the timer's.
            }
            let balance = deposits.balance_milli(&self.retry_budget, node.clock);
            unsafe_if(balance >= RETRY_MILLI, || {
                format!(
                    "shard {shard}: {waiting} retries of {:?} wait, there are {free} places and \
                     {balance} thousandths to pay for them",
                    spec.id
                )
            })?;
        }
        Ok(())
    }

    /// Where a home and a shard do not know the same of a limit.
    pub fn disagreement(&self, nodes: &[Node]) -> Option<String> {
        for shard in 0..self.shards.into() {
            for node in nodes {
                for (cluster, home) in node.reconciler.homes() {
                    let endpoints = home.endpoints().map(Some).chain([None]);
                    for (endpoint, kind) in
                        endpoints.flat_map(|it| Kind::ALL.map(|kind| (it, kind)))
                    {
                        let Some(purse) = purse(&nodes[shard], kind, cluster, endpoint) else {
                            continue;
                        };
                        let Some(known) = home.account(ShardId(shard as u16), kind, endpoint)
                        else {
                            continue;
                        };
                        if known != (purse.granted(), purse.returned()) {
                            return Some(format!(
                                "{kind:?} of {cluster:?} {endpoint:?}: shard {shard} has {purse:?}, \
                                 its home {known:?}"
                            ));
                        }
                    }
                    let lent = home.tokens_granted(ShardId(shard as u16));
                    let known = nodes[shard].reconciler.cluster(cluster);
                    let known = known.and_then(|slot| nodes[shard].reconciler.deposits(slot));
                    if known.is_some_and(|known| known.granted() != lent) {
                        return Some(format!("shard {shard} lacks retries of {cluster:?}"));
                    }
                    for kind in Kind::ALL {
                        let lent = home.lent(kind, None)?;
                        if lent.lent > lent.limit {
                            return Some(format!("{cluster:?} {kind:?}: {lent:?} and no recall"));
                        }
                    }
                }
            }
        }
        None
    }
}

/// Nobody waits for what its shard has, or holds a part of what it waits for.
fn waiters(shard: usize, node: &Node) -> Result<(), Fault> {
    for spec in &node.plan.clusters {
        let Some(cluster) = node.reconciler.cluster(spec.id) else { continue };
        for kind in [Kind::Requests, Kind::Connections] {
            let shared = node.reconciler.cluster_purse(kind, cluster).map_or(0, Purse::free);
            let waiting = node.reconciler.cluster_waiting(kind, cluster);
            unsafe_if(shared > 0 && waiting > 0, || {
                format!(
                    "shard {shard}: {waiting} wait for {kind:?} of {:?}, {shared} free",
                    spec.id
                )
            })?;
            for endpoint in &spec.endpoints {
                let Some(slot) = node.reconciler.endpoint(endpoint.id) else { continue };
                let free = node.reconciler.purse(kind, slot).map_or(0, Purse::free);
                let waiting = node.reconciler.waiting(kind, slot);
                unsafe_if(free > 0 && waiting > 0, || {
                    format!(
                        "shard {shard}: {waiting} wait for {kind:?} of {:?}, {free} free",
                        endpoint.id
                    )
                })?;
            }
        }
    }
    Ok(())
}

fn purse(
    node: &Node,
    kind: Kind,
    cluster: ClusterId,
    endpoint: Option<EndpointId>,
) -> Option<&Purse> {
    match endpoint {
        None => node.reconciler.cluster_purse(kind, node.reconciler.cluster(cluster)?),
        Some(endpoint) => node.reconciler.purse(kind, node.reconciler.endpoint(endpoint)?),
    }
}
