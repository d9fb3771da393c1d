//! A place at an endpoint: which one, and whether and when it may have one more request. Balancer,
//! breakers and limits meet here.
//!
//! ```text
//! at once ---- Ok ------------------------------------------> Place
//!    '--- no place, or no permit ---> wait ---> Admitted ---> Place
//!                          ^           |
//!                          '-----------'  Elsewhere: by the newest plan
//! ```

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use super::Exchange;
use super::patience::{WATCH_CLIENT_AFTER, attended};
use crate::admit::Order;
use crate::breaker::{Outcome, Pass};
use crate::plan::Cluster;
use crate::reason::{Fault, Reason};
use crate::reconcile::{EndpointSlot, Refusal, Ticket};
use crate::shard::agreement::{Agreement, For, News, Wait};
use crate::shard::plan::ShardPlan;
use crate::time::Nanos;
use crate::upstream::{Connection, Endpoint, Lease};

/// Choosing again after an answer that a plan or a breaker has just overtaken: more than that is
/// no accident.
const CHOICES_MAX: u32 = 8;

/// A request's place at its endpoint, until it is dropped.
pub(super) struct Place<'a> {
    agreement: &'a Agreement,
    ticket: Option<Ticket>,
    route: Option<RoutePass<'a>>,
    /// Something was sent, or tried: the endpoint may have seen the request.
    used: bool,
    /// It is a probe, and ended then.
    probe_until: Option<Nanos>,
    failure_statuses: bool,
}

impl<'a> Place<'a> {
    fn new(agreement: &'a Agreement, ticket: Ticket, cluster: &Cluster) -> Place<'a> {
        let probe_until = match ticket.pass.probe {
            Some(_) => agreement.probe_end(ticket.endpoint),
            None => None,
        };
        Place {
            agreement,
            ticket: Some(ticket),
            route: None,
            used: false,
            probe_until,
            failure_statuses: cluster.failure_statuses,
        }
    }

    /// Leaves the route's breaker together with the endpoint's.
    pub fn set_route(&mut self, route: Option<RoutePass<'a>>) {
        self.route = route;
    }

    /// If it is a probe, of the endpoint or of the route: when it is ended.
    pub fn probe_until(&self) -> Option<Nanos> {
        let route = self.route.as_ref().and_then(|route| route.probe_until);
        [self.probe_until, route].into_iter().flatten().min()
    }

    /// From now on the request's end says something about its endpoint.
    pub fn used(&mut self) {
        self.used = true;
    }

    /// The answer has begun: that is all that a probe has to find out. The rest of it may take
    /// longer than a probe may.
    #[inline]
    pub fn answered(&mut self, order: &Order, status: u16, latency: Option<Duration>) {
        if order.probe_until.is_none() {
            return;
        }
        let outcome = outcome_of(Ok(status), self.failure_statuses, true);
        let (latency, now) = (latency.unwrap_or_default(), Nanos::now());
        if self.probe_until.take().is_some()
            && let Some(ticket) = &mut self.ticket
        {
            self.agreement.settle_probe(ticket, outcome, latency, now);
        }
        if let Some(route) = self.route.take_if(|route| route.probe_until.is_some()) {
            route.end(outcome, latency, now);
        }
    }

    /// The exchange has ended: in this answer's status, or without one. `had_its_time`: what went
    /// by, went by at the endpoint.
    pub fn end(
        mut self,
        ended: Result<u16, Reason>,
        had_its_time: bool,
        latency: Duration,
        now: Nanos,
    ) {
        if !self.used {
            return;
        }
        let outcome = outcome_of(ended, self.failure_statuses, had_its_time);
        if let Some(ticket) = self.ticket.take() {
            self.agreement.complete(ticket, outcome, latency, now);
        }
        if let Some(route) = self.route.take() {
            route.end(outcome, latency, now);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        match self.ticket.take() {
            Some(ticket) if self.used => {
                self.agreement.complete(ticket, Outcome::Neutral, Duration::ZERO, Nanos::now());
            }
            Some(ticket) => self.agreement.give_back(ticket, Nanos::now()),
            None => {}
        }
    }
}

/// Leave of a route's breaker, until it is dropped.
pub(super) struct RoutePass<'a> {
    agreement: &'a Agreement,
    slot: EndpointSlot,
    pass: Option<Pass>,
    /// It is a probe, and ended then.
    probe_until: Option<Nanos>,
}

impl RoutePass<'_> {
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

/// What the end of an exchange says about its endpoint. Whatever was not its doing says nothing:
/// our own limits, and clients that leave, stall or break their requests.
fn outcome_of(ended: Result<u16, Reason>, failure_statuses: bool, had_its_time: bool) -> Outcome {
    match ended {
        Ok(status) if status >= 500 && failure_statuses => Outcome::Failure,
        Ok(_) => Outcome::Success,
        // The whole time of a request may have gone by elsewhere.
        Err(Reason::TotalTimeout) if !had_its_time => Outcome::Neutral,
        Err(reason) if reason.fault() == Fault::Upstream => Outcome::Failure,
        Err(_) => Outcome::Neutral,
    }
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
    /// Where there is none now.
    #[inline]
    pub(super) fn place_at_once(
        &self,
        plan: &ShardPlan,
        cluster: usize,
        hash: Option<u64>,
        now: Nanos,
    ) -> Result<(Rc<Endpoint>, Place<'a>), Option<(Rc<Endpoint>, Refusal)>> {
        let agreement = &*self.shard.agreement;
        let dice = self.shard.rng.borrow_mut().bits() as u32;
        let admitted = agreement.admit(now, dice, |own, usable| {
            let endpoint = plan.pick(cluster, hash, |slot| own.in_flight(slot), usable)?;
            Some((endpoint, endpoint.slot))
        });
        match admitted {
            Ok((endpoint, ticket)) => {
                let place = Place::new(agreement, ticket, plan.cluster(cluster));
                Ok((endpoint.clone(), place))
            }
            Err(None) => Err(None),
            Err(Some((endpoint, _, refusal))) => Err(Some((endpoint.clone(), refusal))),
        }
    }

    /// A place, even if it has to be waited for: by the newest plan, where the endpoint comes from.
    /// `refused`: the choice that was just made in vain. It stands: a second one would be somebody
    /// else's turn, and with two endpoints everybody would wait for the same one.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn place(
        &mut self,
        order: &Order,
        cluster: usize,
        hash: Option<u64>,
        refused: Option<(Rc<Endpoint>, Refusal)>,
    ) -> Result<(Rc<Endpoint>, Place<'a>), Reason> {
        let shard = self.shard;
        let agreement = &*shard.agreement;
        let id = order.plan.cluster(cluster).id;
        let due = self.pending_due(order, cluster);
        let is_newest = order.plan.generation() == shard.plan().generation();
        let mut refused = refused.filter(|_| is_newest);
        for _ in 0..CHOICES_MAX {
            let now = Nanos::now();
            agreement.look(now);
            let plan = shard.plan();
            let at = plan.position(id).ok_or(Reason::NoEndpoint)?;
            let placed = match refused.take() {
                Some(refused) => Err(Some(refused)),
                None => self.place_at_once(&plan, at, hash, now),
            };
            let (endpoint, refusal) = match placed {
                Ok(placed) => return Ok(placed),
                Err(None) if plan.cluster(at).endpoints.is_empty() => {
                    return Err(Reason::NoEndpoint);
                }
                Err(None) => return Err(Reason::BreakerOpen),
                Err(Some(refused)) => refused,
            };
            let spec = &plan.shared().agreement.clusters[at];
            let what = match refusal {
                Refusal::NoCredit => For::Request(endpoint.slot),
                Refusal::NeedsPermit => For::Permit(endpoint.slot),
                Refusal::Open | Refusal::Retired | Refusal::TooManyPending => continue,
            };
            let wait = match agreement.wait(what, now) {
                Ok(wait) => wait,
                Err(Refusal::TooManyPending) if spec.limits.pending_max == 0 => {
                    return Err(Reason::RequestLimit);
                }
                Err(Refusal::TooManyPending) => return Err(Reason::PendingLimit),
                Err(_) => continue,
            };
            let has_other =
                matches!(what, For::Permit(_)) && plan.has(at, |slot| agreement.admits(slot, now));
            if has_other {
                // A short wait, and then to the others; the permit is for who comes next.
                let until = due.min(now.after(spec.breaker.permit_wait));
                match self.wait(wait, until).await? {
                    Waited::News(News::Admitted(ticket)) => {
                        return Ok((endpoint, Place::new(agreement, ticket, plan.cluster(at))));
                    }
                    Waited::News(_) => continue,
                    Waited::Late(wait) => wait.step_aside(),
                }
                continue;
            }
            match self.wait(wait, due).await? {
                Waited::News(News::Admitted(ticket)) => {
                    return Ok((endpoint, Place::new(agreement, ticket, plan.cluster(at))));
                }
                Waited::News(_) => {}
                Waited::Late(_) => return Err(self.late(order)),
            }
        }
        Err(Reason::BreakerOpen)
    }

    /// Leave of a route's breaker.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn enter_route(
        &mut self,
        order: &Order,
        cluster: usize,
        slot: EndpointSlot,
    ) -> Result<RoutePass<'a>, Reason> {
        let agreement = &*self.shard.agreement;
        let due = self.pending_due(order, cluster);
        for _ in 0..CHOICES_MAX {
            let now = Nanos::now();
            match agreement.enter_route(slot, now) {
                Ok(pass) => {
                    let probe_until = pass.probe.and_then(|_| agreement.probe_end(slot));
                    return Ok(RoutePass { agreement, slot, pass: Some(pass), probe_until });
                }
                Err(Refusal::NeedsPermit) => {}
                Err(_) => return Err(Reason::BreakerOpen),
            }
            let wait = match agreement.wait(For::Permit(slot), now) {
                Ok(wait) => wait,
                Err(Refusal::TooManyPending) => return Err(Reason::PendingLimit),
                Err(_) => continue,
            };
            if let Waited::Late(_) = self.wait(wait, due).await? {
                return Err(self.late(order));
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
        replayable: bool,
    ) -> Result<Opening, Reason> {
        let agreement = &*self.shard.agreement;
        let due = self.pending_due(order, cluster);
        loop {
            let now = Nanos::now();
            let pool = &order.plan.cluster(cluster).pool;
            if order.probe_until.is_none()
                && let Some(kept) = endpoint.take_idle(pool, now, replayable)
            {
                return Ok(Opening::Kept(kept));
            }
            if let Some(lease) = endpoint.lease() {
                return Ok(Opening::Lease(lease));
            }
            let Ok(wait) = agreement.wait(For::Connection(endpoint.slot), now) else {
                // It has left the plan.
                return Err(Reason::NoEndpoint);
            };
            match self.wait(wait, due).await? {
                Waited::News(News::Connect(_)) => return Ok(Opening::Lease(endpoint.leased())),
                Waited::News(_) => {}
                Waited::Late(_) => return Err(self.late(order)),
            }
        }
    }

    /// Until when a request waits for a place.
    fn pending_due(&self, order: &Order, cluster: usize) -> Nanos {
        let limit = order.plan.cluster(cluster).pending_timeout;
        Nanos::now().after(limit).min(order.began.after(order.timeouts().total))
    }

    /// Why a wait has ended without anything.
    fn late(&self, order: &Order) -> Reason {
        match Nanos::now() >= order.began.after(order.timeouts().total) {
            true => Reason::TotalTimeout,
            false => Reason::PendingTimeout,
        }
    }

    /// Waits; a client that leaves is noticed.
    async fn wait<'w>(&mut self, wait: Wait<'w>, until: Nanos) -> Result<Waited<'w>, Reason> {
        let now = Nanos::now();
        let Exchange { shard, client, timer, .. } = self;
        timer.set(until.min(now + WATCH_CLIENT_AFTER), now);
        let mut wait = wait;
        let ended = {
            let waiting = pin!(&mut wait);
            attended(shard, Some(client), false, timer, waiting, |now| {
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
enum Waited<'a> {
    News(News),
    /// Time is up; the place in the queue is still there.
    Late(Wait<'a>),
}
