//! A place at an endpoint: which one, and whether and when it may have one more request. Balancer,
//! breakers and limits meet here.
//!
//! ```text
//! at once ---- Ok ------------------------------------------> Place
//!    '--- no place, or no permit ---> wait ---> Admitted ---> Place
//!                          ^           |
//!                          '-----------'  Elsewhere: by the newest plan
//! ```

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use super::Exchange;
use super::patience::{WATCH_CLIENT_AFTER, attended};
use super::retry::Avoided;
use crate::admit::Order;
use crate::balance::Policy;
use crate::breaker::{Outcome, Pass};
use crate::plan::Cluster;
use crate::reason::{Fault, Reason};
use crate::reconcile::{ClusterId, EndpointId, EndpointSlot, Refusal, Standing, Ticket};
use crate::shard::agreement::{Agreement, For, News, Wait};
use crate::shard::plan::ShardPlan;
use crate::time::Nanos;
use crate::upstream::{Connection, Endpoint, Lease};

/// Choosing again after an answer that a plan or a breaker has just overtaken: more than that is
/// no accident.
const CHOICES_MAX: u32 = 8;

/// How long to wait for the other shards' answer where nobody may wait for a place: a message there
/// and back, twice where one has to give back what another gets, with loops that are a little late.
pub(super) const ASK_WAIT: Duration = Duration::from_millis(5);

/// A request's place at its endpoint, until it is dropped.
pub(super) struct Place<'a> {
    agreement: &'a Agreement,
    ticket: Option<Ticket>,
    /// Leave of the route's breaker, if it has one.
    route: Option<Box<RoutePass<'a>>>,
    /// Something was sent, or tried: the endpoint may have seen the request.
    used: bool,
    /// It took some time to get this place, or a connection: not the endpoint's doing.
    has_waited: bool,
    failure_statuses: bool,
}

impl<'a> Place<'a> {
    #[inline]
    fn new(agreement: &'a Agreement, ticket: Ticket, cluster: &Cluster) -> Place<'a> {
        let failure_statuses = cluster.failure_statuses;
        Place {
            agreement,
            ticket: Some(ticket),
            route: None,
            used: false,
            has_waited: false,
            failure_statuses,
        }
    }

    /// Leaves the route's breaker together with the endpoint's.
    pub fn set_route(&mut self, route: Box<RoutePass<'a>>) {
        self.route = Some(route);
    }

    /// Whether it is a probe of the route's breaker.
    #[inline]
    pub fn probes_route(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.probe_until != Nanos::NEVER)
    }

    /// Goes on in the place of another try: the route's breaker sees the request as one.
    pub fn follow(&mut self, before: &mut Place<'a>) {
        self.route = before.route.take();
    }

    /// If it is a probe, of the endpoint or of the route: when it is ended. Else never.
    #[inline]
    pub fn probe_until(&self) -> Nanos {
        let is_probe = |ticket: &Ticket| ticket.pass.probe.is_some();
        if self.route.is_none() && !self.ticket.as_ref().is_some_and(is_probe) {
            return Nanos::NEVER;
        }
        let own = self.ticket.as_ref().filter(|ticket| is_probe(ticket));
        let own = own.and_then(|ticket| self.agreement.probe_end(ticket.endpoint));
        let route = self.route.as_ref().map_or(Nanos::NEVER, |route| route.probe_until);
        own.unwrap_or(Nanos::NEVER).min(route)
    }

    /// Time has gone by that was not the endpoint's.
    pub fn has_waited(&mut self) {
        self.has_waited = true;
    }

    /// From now on the request's end says something about its endpoint.
    pub fn used(&mut self) {
        self.used = true;
    }

    /// The answer has begun: that is all that a probe has to find out. The rest of it may take
    /// longer than a probe may.
    #[inline(always)]
    pub fn answered(&mut self, order: &Order, status: u16, latency: Option<Duration>) {
        if order.is_probe() {
            self.probe_answered(status, latency);
        }
    }

    fn probe_answered(&mut self, status: u16, latency: Option<Duration>) {
        let outcome = outcome_of(Ok(status), self.failure_statuses, true);
        let (latency, now) = (latency.unwrap_or_default(), Nanos::now());
        if let Some(ticket) = self.ticket.as_mut().filter(|ticket| ticket.pass.probe.is_some()) {
            self.agreement.settle_probe(ticket, outcome, latency, now);
        }
        if let Some(route) = self.route.take_if(|route| route.probe_until != Nanos::NEVER) {
            route.end(outcome, latency, now);
        }
    }

    /// The exchange has ended: in this answer's status, or without one. `had_its_time`: most of the
    /// time that has run out went by at the endpoint.
    #[inline(always)]
    pub fn end(
        &mut self,
        ended: Result<u16, Reason>,
        had_its_time: bool,
        latency: Duration,
        now: Nanos,
    ) -> Outcome {
        let outcome = self.end_try(ended, had_its_time, latency, now);
        if let Some(route) = self.route.take_if(|_| self.used) {
            route.end(outcome, latency, now);
        }
        outcome
    }

    /// The same, but there may be another try: only the endpoint is told, and once.
    #[inline(always)]
    pub fn end_try(
        &mut self,
        ended: Result<u16, Reason>,
        had_its_time: bool,
        latency: Duration,
        now: Nanos,
    ) -> Outcome {
        if !self.used {
            return Outcome::Neutral;
        }
        let had_its_time = match ended {
            Err(Reason::TotalTimeout) => had_its_time && !self.has_waited,
            _ => had_its_time,
        };
        let outcome = outcome_of(ended, self.failure_statuses, had_its_time);
        if let Some(ticket) = self.ticket.take() {
            self.agreement.complete(ticket, outcome, latency, now);
        }
        outcome
    }
}

impl Drop for Place<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.ticket.is_some() || self.route.is_some() {
            self.abandon();
        }
    }
}

impl Place<'_> {
    /// It was never said how it ended: that is nobody's fault.
    #[cold]
    fn abandon(&mut self) {
        match self.ticket.take() {
            Some(ticket) if self.used => {
                self.agreement.complete(ticket, Outcome::Neutral, Duration::ZERO, Nanos::now());
            }
            Some(ticket) => self.agreement.give_back(ticket, Nanos::now()),
            None => {}
        }
        if let Some(route) = self.route.take_if(|_| self.used) {
            route.end(Outcome::Neutral, Duration::ZERO, Nanos::now());
        }
    }
}

/// Leave of a route's breaker, until it is dropped.
pub(super) struct RoutePass<'a> {
    agreement: &'a Agreement,
    slot: EndpointSlot,
    pass: Option<Pass>,
    /// It is a probe, and ended then. Else never.
    probe_until: Nanos,
}

impl RoutePass<'_> {
    /// If it is a probe: when it is ended. Else never.
    pub fn probe_until(&self) -> Nanos {
        self.probe_until
    }

    fn end(mut self, outcome: Outcome, latency: Duration, now: Nanos) {
        if let Some(pass) = self.pass.take() {
            self.agreement.leave_route(self.slot, pass, Some((outcome, latency)), now);
        }
    }
}

impl Drop for RoutePass<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.agreement.leave_route(self.slot, pass, None, Nanos::now());
        }
    }
}

/// Who belongs to the share that a recovering endpoint gets: of 32 bits that differ from request to
/// request (Fibonacci hashing of the nanosecond), what [`Policy::dice`] makes.
#[inline]
fn dice(policy: &Policy, hash: Option<u64>, now: Nanos) -> u32 {
    policy.dice(hash, ((now.0).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32)
}

/// What the end of an exchange says about its endpoint. Whatever was not its doing says nothing:
/// our own limits, and clients that leave, stall or break their requests.
fn outcome_of(ended: Result<u16, Reason>, failure_statuses: bool, had_its_time: bool) -> Outcome {
    match ended {
        Ok(status) if status >= 500 && failure_statuses => Outcome::Failure,
        Ok(_) => Outcome::Success,
        // Most of a request's time may have gone by elsewhere.
        Err(Reason::TotalTimeout | Reason::AnswerTimeout) if !had_its_time => Outcome::Neutral,
        Err(reason) if reason.fault() == Fault::Upstream => Outcome::Failure,
        Err(_) => Outcome::Neutral,
    }
}

/// Which kept connections a request may be sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// None: one has failed it already.
    No,
    /// Those on which nothing has come, as of now: it could not be sent again.
    QuietNow,
    /// The same, as of some microseconds ago.
    QuietLately,
}

/// What a wait for a connection has brought.
pub(super) enum Opening {
    /// Leave to open one.
    Lease(Lease),
    /// One that another exchange needs no more.
    Kept(Connection),
}

impl<'a> Exchange<'a> {
    /// A place without waiting: nearly always there is one.
    ///
    /// # Errors
    /// Where there is none. `Some`: this half-open endpoint was chosen, and a permit is to be asked
    /// for.
    #[inline(always)]
    pub(super) fn place_at_once(
        &self,
        plan: &ShardPlan,
        cluster: usize,
        hash: Option<u64>,
        now: Nanos,
        is_wanted: impl Fn(EndpointSlot) -> bool,
    ) -> Result<(Rc<Endpoint>, Place<'a>), Option<Rc<Endpoint>>> {
        let agreement = &*self.shard.agreement;
        let mut own = agreement.reconciler();
        let asks = Cell::new(false);
        let dice = dice(&plan.cluster(cluster).balance, hash, now);
        let usable = |slot| match own.standing(slot, now, dice) {
            _ if !is_wanted(slot) => false,
            Standing::Open => true,
            Standing::MayAsk => {
                asks.set(true);
                true
            }
            Standing::Full | Standing::IfAlone | Standing::Closed => false,
        };
        let picked = plan.pick(cluster, hash, now, &own, usable);
        let endpoint = picked.ok_or(None)?;
        if asks.get() && own.standing(endpoint.slot, now, 0) == Standing::MayAsk {
            return Err(Some(endpoint.clone()));
        }
        let ticket = own.enter(endpoint.slot);
        Ok((endpoint.clone(), Place::new(agreement, ticket, plan.cluster(cluster))))
    }

    /// The same for a further try: at an endpoint that was not tried, if any has a place.
    fn place_elsewhere(
        &self,
        plan: &ShardPlan,
        cluster: usize,
        hash: Option<u64>,
        now: Nanos,
        avoided: Avoided<'_>,
    ) -> Result<(Rc<Endpoint>, Place<'a>), Option<Rc<Endpoint>>> {
        if !avoided.is_empty()
            && let Ok(placed) =
                self.place_at_once(plan, cluster, hash, now, |slot| !avoided.has(slot))
        {
            return Ok(placed);
        }
        self.place_at_once(plan, cluster, hash, now, |slot| !avoided.forbids(slot))
    }

    /// Where to wait, where there is no place at once: for a place if possible, else for a permit.
    /// `None`: nobody may be asked.
    fn choose_to_wait(
        &self,
        plan: &ShardPlan,
        cluster: usize,
        hash: Option<u64>,
        now: Nanos,
        avoided: Avoided<'_>,
    ) -> Option<Rc<Endpoint>> {
        let own = self.shard.agreement.reconciler();
        let dice = dice(&plan.cluster(cluster).balance, hash, now);
        let pick = |wanted: fn(Standing) -> bool| {
            let usable = |slot| !avoided.forbids(slot) && wanted(own.standing(slot, now, dice));
            plan.pick(cluster, hash, now, &own, usable)
        };
        let picked = pick(|it| it == Standing::Full).or_else(|| pick(|it| it != Standing::Closed));
        picked.cloned()
    }

    /// The place of a first try, even if it has to be waited for; in the cluster that stands in, where
    /// no endpoint of this one can be chosen.
    ///
    /// # Errors
    /// Why there is none, in the last cluster.
    pub(super) async fn place_first(
        &mut self,
        order: &mut Order,
        cluster: &mut usize,
        hash: Option<u64>,
        chosen: Option<Rc<Endpoint>>,
    ) -> Result<(Rc<Endpoint>, Place<'a>), Reason> {
        let none = Avoided::default();
        let mut placed = self.place(order, *cluster, hash, chosen, none).await;
        // No cluster comes twice, as `check` knows.
        while let Err(Reason::NoEndpoint | Reason::BreakerOpen) = placed
            && let Some(next) = order.fallback(*cluster)
        {
            *cluster = next;
            order.fall_back_to(next);
            self.shard.counters.cluster_fallbacks.add(1);
            let dice = (self.shard.rng.borrow_mut().bits() >> 32) as u32;
            if !order.is_exempt && order.plan.rejects(next, dice, Nanos::now()) {
                return Err(Reason::AdmissionControl);
            }
            placed = self.place(order, next, hash, None, none).await;
        }
        placed
    }

    /// A place, even if it has to be waited for: by the newest plan, where the endpoint comes from.
    /// `chosen`: where to look first. `avoided`: of earlier tries.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn place(
        &mut self,
        order: &Order,
        cluster: usize,
        hash: Option<u64>,
        mut chosen: Option<Rc<Endpoint>>,
        avoided: Avoided<'_>,
    ) -> Result<(Rc<Endpoint>, Place<'a>), Reason> {
        let shard = self.shard;
        let agreement = &*shard.agreement;
        let id = order.plan.cluster(cluster).id;
        let due = self.pending_due(order, cluster).min(order.probe_until);
        for _ in 0..CHOICES_MAX {
            let now = Nanos::now();
            agreement.look(now);
            let plan = shard.plan();
            let at = plan.position(id).ok_or(Reason::NoEndpoint)?;
            if chosen.is_none() {
                chosen = match self.place_elsewhere(&plan, at, hash, now, avoided) {
                    Ok(placed) => return Ok(placed),
                    Err(chosen) => chosen,
                };
            }
            let chosen =
                chosen.take().or_else(|| self.choose_to_wait(&plan, at, hash, now, avoided));
            let Some(endpoint) = chosen else {
                return Err(match plan.has(at, |_| true) {
                    true => Reason::BreakerOpen,
                    // There is none, or all are down.
                    false => Reason::NoEndpoint,
                });
            };
            let refusal = match agreement.reconciler().admit(endpoint.slot, now) {
                Ok(ticket) => {
                    return Ok((endpoint, Place::new(agreement, ticket, plan.cluster(at))));
                }
                Err(refusal) => refusal,
            };
            let spec = &plan.shared().agreement.clusters[at];
            let what = match refusal {
                Refusal::NoCredit => For::Request(endpoint.slot),
                Refusal::NeedsPermit => For::Permit(endpoint.slot),
                _ => continue,
            };
            if matches!(what, For::Request(_)) && self.is_shed(order, &plan, at, now) {
                return Err(Reason::Overloaded);
            }
            let (wait, until, late) = match self.line_up(order, what, due, now) {
                Ok(waiting) => waiting,
                Err(Some(reason)) => return Err(reason),
                Err(None) => continue,
            };
            let needs_permit = matches!(what, For::Permit(_));
            let has_other = needs_permit && plan.has(at, |slot| agreement.admits(slot, now));
            let falls_back =
                needs_permit && avoided.is_empty() && order.fallback(cluster).is_some();
            if has_other || falls_back {
                // A short wait, and then to the others; the permit is for who comes next.
                let until = until.min(now.after(spec.breaker.permit_wait));
                match self.wait(wait, until).await? {
                    Waited::News(News::Admitted(ticket)) => {
                        return Ok((endpoint, Place::new(agreement, ticket, plan.cluster(at))));
                    }
                    Waited::News(_) => continue,
                    Waited::Late(wait) => wait.step_aside(),
                }
                if !has_other {
                    return Err(Reason::BreakerOpen);
                }
                continue;
            }
            let waited = match what {
                For::Request(slot) => self.wait_while_up(wait, until, id, slot).await?,
                _ => self.wait(wait, until).await?,
            };
            if matches!(what, For::Request(_)) {
                self.has_pended(&waited, &plan, at, now);
            }
            match waited {
                Waited::News(News::Admitted(ticket)) => {
                    return Ok((endpoint, Place::new(agreement, ticket, plan.cluster(at))));
                }
                Waited::News(_) => {}
                Waited::Late(_) => return Err(late.unwrap_or_else(|| self.late(order))),
            }
        }
        Err(Reason::BreakerOpen)
    }

    /// Waits for a place at an endpoint as long as its checks find it up: looked at ten times in a
    /// second. Who waits elsewhere then chooses again.
    async fn wait_while_up<'w>(
        &mut self,
        mut wait: Wait<'w>,
        until: Nanos,
        cluster: ClusterId,
        slot: EndpointSlot,
    ) -> Result<Waited<'w>, Reason> {
        let mut is_watched = false;
        loop {
            let look_at = Nanos::now() + WATCH_CLIENT_AFTER;
            match self.wait_watched(wait, until.min(look_at), is_watched).await? {
                Waited::Late(waiting) if until > look_at => {
                    is_watched = true;
                    let plan = self.shard.plan();
                    let is_out = plan.position(cluster).is_some_and(|at| plan.is_out(at, slot));
                    if is_out {
                        return Ok(Waited::News(News::Elsewhere));
                    }
                    wait = waiting;
                }
                waited => return Ok(waited),
            }
        }
    }

    /// Whether those who wait for a place have waited for so long that nobody should join them. A
    /// probe is what others wait for.
    fn is_shed(&self, order: &Order, plan: &ShardPlan, cluster: usize, now: Nanos) -> bool {
        !order.is_exempt
            && !order.is_probe()
            && plan.pending_is_full(cluster, &self.shard.agreement.reconciler(), now)
    }

    /// A request has waited for a place, with or without success.
    fn has_pended(&self, waited: &Waited<'_>, plan: &ShardPlan, cluster: usize, since: Nanos) {
        if matches!(waited, Waited::News(News::Elsewhere)) {
            return; // It chooses again, which says nothing about the queue.
        }
        let now = Nanos::now();
        let begins = plan.has_pended(cluster, now.since(since), now);
        self.shard.counters.overloads.add(begins.into());
    }

    /// Joins those that wait: until when, and what it is if nothing has come by then (`None`: that
    /// it waited too long). Where nobody may wait, the other shards are asked.
    ///
    /// # Errors
    /// The reason to refuse. `None`: choose again.
    fn line_up(
        &self,
        order: &Order,
        what: For,
        due: Nanos,
        now: Nanos,
    ) -> Result<(Wait<'a>, Nanos, Option<Reason>), Option<Reason>> {
        let agreement = &*self.shard.agreement;
        let full = match what {
            For::Request(_) => Reason::RequestLimit,
            For::Permit(_) => Reason::BreakerOpen,
            For::Connection(_) => Reason::ConnectionLimit,
        };
        match agreement.wait(what, order.is_probe(), now) {
            Ok(wait) => Ok((wait, due, None)),
            Err(Refusal::TooManyPending) => Err(Some(Reason::PendingLimit)),
            Err(Refusal::NobodyMayWait) => match agreement.ask(what, now) {
                Ok(wait) => Ok((wait, due.min(now + ASK_WAIT), Some(full))),
                Err(_) => Err(Some(full)),
            },
            Err(_) => Err(None),
        }
    }

    /// Leave of a route's breaker; `None` where it has gone with a reload.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn enter_route(
        &mut self,
        order: &Order,
        cluster: usize,
        id: EndpointId,
    ) -> Result<Option<RoutePass<'a>>, Reason> {
        let agreement = &*self.shard.agreement;
        let due = self.pending_due(order, cluster);
        for _ in 0..CHOICES_MAX {
            let now = Nanos::now();
            // By its number, each time: a reload may have taken it away while this waited.
            let Some(slot) = agreement.endpoint(id) else { return Ok(None) };
            match agreement.enter_route(slot, now) {
                Ok(pass) => {
                    let probe_until = pass.probe.and_then(|_| agreement.probe_end(slot));
                    let probe_until = probe_until.unwrap_or(Nanos::NEVER);
                    return Ok(Some(RoutePass { agreement, slot, pass: Some(pass), probe_until }));
                }
                Err(Refusal::NeedsPermit) => {}
                Err(Refusal::Retired) => return Ok(None),
                Err(_) => return Err(Reason::BreakerOpen),
            }
            let what = For::Permit(slot);
            let (wait, until, late) = match self.line_up(order, what, due, now) {
                Ok(waiting) => waiting,
                Err(Some(reason)) => return Err(reason),
                Err(None) => continue,
            };
            if let Waited::Late(_) = self.wait(wait, until).await? {
                return Err(late.unwrap_or_else(|| self.late(order)));
            }
        }
        Err(Reason::BreakerOpen)
    }

    /// Leave to open a connection, or one that was given back meanwhile.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn opening(
        &mut self,
        order: &Order,
        cluster: usize,
        endpoint: &Rc<Endpoint>,
        kept: Kept,
    ) -> Result<Opening, Reason> {
        let agreement = &*self.shard.agreement;
        let due = self.pending_due(order, cluster).min(order.probe_until);
        // Not before those who have waited longer.
        let takes = !order.is_probe() && kept != Kept::No;
        let replayable = kept == Kept::QuietLately;
        let mut may_take = takes && !agreement.awaits_connection(endpoint.slot);
        loop {
            let now = Nanos::now();
            let pool = &order.plan.cluster(cluster).pool;
            if may_take && let Some(kept) = endpoint.take_idle(pool, now, replayable) {
                return Ok(Opening::Kept(kept));
            }
            if let Some(lease) = endpoint.lease() {
                return Ok(Opening::Lease(lease));
            }
            if self.shard.plan().close_for(endpoint) {
                // An idle one to another endpoint of the cluster gives way.
                continue;
            }
            if self.is_shed(order, &order.plan, cluster, now) {
                return Err(Reason::Overloaded);
            }
            let what = For::Connection(endpoint.slot);
            let (wait, until, late) = match self.line_up(order, what, due, now) {
                Ok(waiting) => waiting,
                // `None`: it has left the plan.
                Err(reason) => return Err(reason.unwrap_or(Reason::NoEndpoint)),
            };
            let waited = self.wait(wait, until).await?;
            self.has_pended(&waited, &order.plan, cluster, now);
            match waited {
                Waited::News(News::Connect(_)) => return Ok(Opening::Lease(endpoint.leased())),
                Waited::News(_) => may_take = takes,
                Waited::Late(_) => return Err(late.unwrap_or_else(|| self.late(order))),
            }
        }
    }

    /// Until when a request waits for a place.
    fn pending_due(&self, order: &Order, cluster: usize) -> Nanos {
        let limit = order.plan.cluster(cluster).pending_timeout;
        Nanos::now().after(limit).min(order.ends_by()).min(order.answer_until)
    }

    /// Why a wait has ended without anything.
    fn late(&self, order: &Order) -> Reason {
        let now = Nanos::now();
        match () {
            () if now >= order.ends_by() => order.out_of_time(),
            () if now >= order.answer_until => Reason::AnswerTimeout,
            () => Reason::PendingTimeout,
        }
    }

    /// Waits; a client that leaves is noticed.
    pub(super) async fn wait<'w>(
        &mut self,
        wait: Wait<'w>,
        until: Nanos,
    ) -> Result<Waited<'w>, Reason> {
        self.wait_watched(wait, until, false).await
    }

    /// The same; `is_watched`: from the beginning.
    async fn wait_watched<'w>(
        &mut self,
        wait: Wait<'w>,
        until: Nanos,
        is_watched: bool,
    ) -> Result<Waited<'w>, Reason> {
        let now = Nanos::now();
        let Exchange { shard, client, timer, .. } = self;
        timer.set(until.min(now + WATCH_CLIENT_AFTER), now);
        let mut wait = wait;
        let ended = {
            let waiting = pin!(&mut wait);
            attended(shard, Some(client), is_watched, timer, waiting, |now| {
                // `PendingTimeout` is only a mark here: the caller knows what it was.
                if now < until { Ok(until) } else { Err(Reason::PendingTimeout) }
            })
            .await
        };
        match ended {
            Ok(news) => Ok(Waited::News(news)),
            Err(Reason::PendingTimeout) => Ok(Waited::Late(wait)),
            Err(reason) => Err(reason),
        }
    }
}

/// How a wait has ended.
pub(super) enum Waited<'a> {
    /// With news.
    News(News),
    /// Time is up; the place in the queue is still there.
    Late(Wait<'a>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_end_says_about_an_endpoint() {
        for (ended, outcome) in [
            (Ok(200), Outcome::Success),
            (Ok(404), Outcome::Success),
            (Ok(503), Outcome::Failure),
            (Err(Reason::ConnectFailed), Outcome::Failure),
            (Err(Reason::ConnectTimeout), Outcome::Failure),
            (Err(Reason::AnswerTimeout), Outcome::Failure),
            (Err(Reason::TotalTimeout), Outcome::Failure),
            (Err(Reason::UpstreamReset), Outcome::Failure),
            (Err(Reason::BadAnswer), Outcome::Failure),
            (Err(Reason::AnswerTruncated), Outcome::Failure),
            (Err(Reason::ClientGone), Outcome::Neutral),
            (Err(Reason::ClientStalled), Outcome::Neutral),
            (Err(Reason::BodyTimeout), Outcome::Neutral),
            (Err(Reason::BadBody), Outcome::Neutral),
            (Err(Reason::DrainTimeout), Outcome::Neutral),
            (Err(Reason::OutOfDescriptors), Outcome::Neutral),
            (Err(Reason::PendingTimeout), Outcome::Neutral),
            (Err(Reason::BreakerOpen), Outcome::Neutral),
            (Err(Reason::TryTimeout), Outcome::Failure),
            (Err(Reason::Deadline), Outcome::Neutral),
        ] {
            assert_eq!(outcome_of(ended, true, true), outcome, "{ended:?}");
        }
        assert_eq!(outcome_of(Ok(503), false, true), Outcome::Success);
        assert_eq!(outcome_of(Err(Reason::TotalTimeout), true, false), Outcome::Neutral);
        assert_eq!(outcome_of(Err(Reason::AnswerTimeout), true, false), Outcome::Neutral);
        assert_eq!(outcome_of(Err(Reason::TryTimeout), true, false), Outcome::Failure);
    }
}
