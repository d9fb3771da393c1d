//! In place of a failure: whether there is something to answer with, and leave to. Of an answer with
//! a status that is a failure this is found out before it is given up, so that the client gets it if
//! there is not.

use std::pin::pin;
use std::rc::Rc;

use super::patience::within;
use super::place::ASK_WAIT;
use crate::admit::{Action, Order};
use crate::breaker::Outcome;
use crate::fallback::Kind;
use crate::fallback::store::Kept;
use crate::net::Timer;
use crate::reason::Reason;
use crate::reconcile::{EndpointId, Refusal, Ticket};
use crate::shard::Shard;
use crate::shard::agreement::{Agreement, For, News};
use crate::time::Nanos;

/// A request that has failed, and is answered otherwise.
pub struct Falling {
    /// Why, at first.
    pub why: Reason,
    /// What has answered.
    pub answered: Option<Kind>,
    /// The cluster that is still to be asked: its place in the plan.
    pub cluster: Option<usize>,
    /// The last good answer, if there is one.
    pub last_good: Option<Rc<Kept>>,
    _leave: Leave,
}

impl Falling {
    /// Whether there is something to answer with where its cluster has failed, too.
    pub fn has_more(&self, order: &Order) -> bool {
        self.last_good.is_some() || order.fallback_plan().is_some_and(|it| it.respond.is_some())
    }
}

/// One of `max_requests`, until it is dropped.
struct Leave {
    agreement: Rc<Agreement>,
    ticket: Option<Ticket>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let nothing = std::time::Duration::ZERO;
            self.agreement.complete(ticket, Outcome::Neutral, nothing, Nanos::now());
        }
    }
}

/// What becomes of an answer with a status that is a failure.
pub(super) enum Verdict {
    /// The client gets it.
    Stands,
    /// Something else answers; by new leave, or by that which the request has.
    GivenUp(Option<Box<Falling>>),
}

/// What becomes of an answer with this status. `may_move`: the request may be sent to another cluster.
pub(super) async fn judge(
    shard: &Shard,
    timer: &mut Timer,
    order: &Order,
    status: u16,
    may_move: bool,
) -> Verdict {
    if !order.fallback_plan().is_some_and(|fallback| fallback.wants_status(status)) {
        return Verdict::Stands;
    }
    if let Some(falling) = &order.falling {
        return match falling.has_more(order) {
            true => Verdict::GivenUp(None),
            false => Verdict::Stands,
        };
    }
    match begin(shard, timer, order, Reason::UpstreamStatus, may_move).await {
        Some(falling) => Verdict::GivenUp(Some(falling)),
        None => Verdict::Stands,
    }
}

/// Begins to fall back, if there is something to answer with and leave to.
pub async fn begin(
    shard: &Shard,
    timer: &mut Timer,
    order: &Order,
    why: Reason,
    may_move: bool,
) -> Option<Box<Falling>> {
    let (fallback, own) = (order.fallback_plan()?, order.fallback_state()?);
    let now = Nanos::now();
    let is_other = |cluster: &usize| match order.action {
        Action::Forward { cluster: tried, .. } => tried != *cluster,
        Action::Reject { .. } | Action::Own { .. } => true,
    };
    let cluster = fallback.cluster.filter(is_other).filter(|_| may_move && now < order.ends_by());
    let last_good = own.last_good(order.out.filled(), now);
    if cluster.is_none() && last_good.is_none() && fallback.respond.is_none() {
        own.counters.failed.add(1);
        return None;
    }
    let Some(leave) = leave(shard, timer, fallback.limit, now).await else {
        own.counters.refused.add(1);
        return None;
    };
    Some(Box::new(Falling { why, answered: None, cluster, last_good, _leave: leave }))
}

/// One of `max_requests`. Where this shard has none, the others are asked for some milliseconds.
async fn leave(shard: &Shard, timer: &mut Timer, limit: EndpointId, now: Nanos) -> Option<Leave> {
    let agreement = &shard.agreement;
    agreement.look(now);
    // It may have left with a reload.
    let slot = agreement.endpoint(limit)?;
    let admitted = agreement.reconciler().admit(slot, now);
    let ticket = match admitted {
        Ok(ticket) => ticket,
        Err(Refusal::NoCredit) => {
            let wait = agreement.ask(For::Request(slot), now).ok()?;
            timer.set(now + ASK_WAIT, now);
            let late = |_| Err(Reason::PendingTimeout);
            match within(shard, timer, pin!(wait), late).await {
                Ok(News::Admitted(ticket)) => ticket,
                _ => return None,
            }
        }
        Err(_) => return None,
    };
    Some(Leave { agreement: agreement.clone(), ticket: Some(ticket) })
}
