//! Another try of a request that failed: whether it is worth one, who pays for it, and when it goes.
//!
//! ```text
//! failed, or an answer that the route retries
//!   '-> may it be sent again? -> a place among max_retries, paid by the budget -> pause -> Place
//!           '-- no                '-- none: asked for, for 5 ms; then no            (elsewhere)
//! ```
//!
//! A retry counts against `max_retries` from here to the end of its request. What is refused leaves
//! the client with what there is: the answer, or the reason of the try that failed.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use super::patience::{Uploading, WATCH_CLIENT_AFTER, attended, within};
use super::place::{ASK_WAIT, Place, Waited};
use super::{Counted, Exchange, receive};
use crate::admit::Order;
use crate::http::head::Framing;
use crate::metrics::ShardCounters;
use crate::net::would_block;
use crate::reason::Reason;
use crate::reconcile::{ClusterSlot, EndpointSlot, RetryRefusal};
use crate::relay::{Flow, Side};
use crate::shard::agreement::{Agreement, News};
use crate::time::Nanos;
use crate::upstream::Endpoint;

/// After a wait for leave to retry that was in vain, nobody waits for so long: in an outage, each
/// failing request would wait.
pub(super) const NO_ASK_FOR: Duration = Duration::from_millis(100);

/// What a request may still try.
pub(super) struct Tries<'a> {
    left: u32,
    /// How many were made after the first.
    made: u32,
    /// Hedges that were sent, and are not counted in the order yet.
    hedges: u32,
    /// Nothing was worth more than one try so far: nearly always.
    more: Option<Box<More<'a>>>,
}

struct More<'a> {
    /// Endpoints that were tried.
    tried: Vec<EndpointSlot>,
    /// Where a probe has failed: not there, whatever happens.
    probed: Option<EndpointSlot>,
    leave: Option<Leave<'a>>,
    /// When it goes.
    due: Nanos,
}

/// Leave to retry; it counts until it is dropped.
pub(super) struct Leave<'a> {
    agreement: &'a Agreement,
    cluster: ClusterSlot,
}

impl<'a> Leave<'a> {
    /// Leave that the agreement has given.
    pub fn new(agreement: &'a Agreement, cluster: ClusterSlot) -> Leave<'a> {
        Leave { agreement, cluster }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.agreement.end_retry(self.cluster);
    }
}

/// Endpoints that a further try goes to only if there is no other, or not at all.
#[derive(Default, Clone, Copy)]
pub(super) struct Avoided<'t> {
    tried: &'t [EndpointSlot],
    probed: Option<EndpointSlot>,
}

impl Avoided<'_> {
    /// Whether another endpoint is better.
    pub fn has(&self, slot: EndpointSlot) -> bool {
        self.tried.contains(&slot)
    }

    /// Whether no endpoint at all is better.
    pub fn forbids(&self, slot: EndpointSlot) -> bool {
        self.probed == Some(slot)
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.tried.is_empty()
    }
}

impl<'a> Tries<'a> {
    /// As many as the route allows. A probe of its breaker is one request, however it ends.
    #[inline]
    pub fn new(order: &Order, probes_route: bool) -> Tries<'a> {
        let left = if probes_route { 0 } else { order.retries().attempts };
        Tries { left, made: 0, hedges: 0, more: None }
    }

    /// Whether the route has any.
    #[inline]
    pub fn are_paid_for(&self) -> bool {
        self.left > 0
    }

    /// How long the endpoint has to itself, if another one is asked then.
    #[inline]
    pub fn hedge_delay(&self, order: &Order) -> Option<Duration> {
        order.retries().hedge?;
        let may_hedge = self.left > 0 && may_repeat(order) && !order.is_probe() && !order.upgrade;
        order.hedge_delay().filter(|_| may_hedge)
    }

    /// A hedge is a try, too: of the request that is at `first`.
    pub fn hedge_with(&mut self, first: EndpointSlot, second: EndpointSlot) {
        self.left -= 1;
        self.hedges += 1;
        self.more().tried.extend([first, second]);
    }

    /// The hedge is the request's try now.
    pub fn go_on_as_hedge(&mut self, leave: Leave<'a>) {
        self.more().leave = Some(leave);
    }

    /// How many hedges were sent since the last time.
    #[inline]
    pub fn take_hedges(&mut self) -> u32 {
        std::mem::take(&mut self.hedges)
    }

    /// Where the request was.
    pub fn avoided(&self) -> Avoided<'_> {
        match &self.more {
            Some(more) => Avoided { tried: &more.tried, probed: more.probed },
            None => Avoided::default(),
        }
    }

    /// Whether this answer is one to try again for.
    #[inline]
    pub fn want(&self, order: &Order, status: u16) -> bool {
        let policy = order.retries();
        policy.wants_status(status) && self.left > 0 && may_repeat(order)
    }

    /// Whether a try that ended for this reason is. `sent`: the endpoint may have seen the request.
    pub fn want_after(&self, order: &Order, reason: Reason, sent: bool) -> bool {
        let policy = order.retries();
        self.left > 0 && policy.wants_reason(reason) && (!sent || may_repeat(order))
    }

    /// The request has ended with this answer.
    #[inline]
    pub fn ended(&self, order: &Order, status: u16, counters: &ShardCounters) {
        if self.made > 0 && !order.retries().wants_status(status) {
            counters.retries_succeeded.add(1);
        }
    }

    fn more(&mut self) -> &mut More<'a> {
        self.more.get_or_insert_with(|| {
            Box::new(More { tried: Vec::new(), probed: None, leave: None, due: Nanos::NEVER })
        })
    }
}

/// Whether the same request twice is as good as once (RFC 9110, 9.2.2), or the route says so.
pub(super) fn may_repeat(order: &Order) -> bool {
    order.method.idempotent() || order.retries().non_idempotent
}

impl<'a> Exchange<'a> {
    /// Leave for another try, after this one has failed. `retry_after`: what its answer said.
    /// `answer_until`: by when it had to have an answer. `false`: there is none.
    pub(super) async fn may_retry(
        &mut self,
        order: &Order,
        cluster: usize,
        retry_after: Option<Duration>,
        answer_until: Nanos,
        tries: &mut Tries<'a>,
    ) -> bool {
        let Some(endpoint) = order.endpoint.as_ref().map(|endpoint| endpoint.slot) else {
            return false;
        };
        let agreement = &*self.shard.agreement;
        let policy = order.retries();
        let random = self.shard.rng.borrow_mut().bits() as u32;
        let pause = policy.pause(tries.made + 1, random);
        // What was sent away together shall not come back together.
        let pause = pause + retry_after.unwrap_or_default();
        let now = Nanos::now();
        let due = now + pause;
        let too_late = due >= order.ends_by().min(order.answer_until).min(answer_until);
        if too_late || retry_after.is_some_and(|time| time > policy.retry_after_max) {
            return false;
        }
        // The one before is over.
        tries.more().leave = None;
        let Some(slot) = agreement.cluster(order.plan.cluster(cluster).id) else { return false };
        let refusal = match agreement.begin_retry(slot, now) {
            Ok(()) => None,
            Err(refusal) => {
                let plan = order.plan.clone();
                let ask_after = plan.retries_asked_after(cluster);
                match self.ask_for_retry(slot, ask_after, now).await {
                    true => None,
                    false => Some(refusal),
                }
            }
        };
        let counters = &self.shard.counters;
        match refusal {
            Some(RetryRefusal::NoCredit) => counters.retries_refused_limit.add(1),
            Some(RetryRefusal::NoBudget) => counters.retries_refused_budget.add(1),
            None => {
                tries.left -= 1;
                tries.made += 1;
                let is_probe = order.is_probe();
                let more = tries.more();
                more.leave = Some(Leave::new(agreement, slot));
                more.due = due;
                more.tried.push(endpoint);
                more.probed = is_probe.then_some(endpoint).or(more.probed);
            }
        }
        refusal.is_none()
    }

    /// How long the body is, if it has to be here before anything is sent, so that it can be sent
    /// again.
    #[inline]
    pub(super) fn body_to_keep(&self, order: &Order) -> Option<usize> {
        let Framing::Length(length) = order.framing else { return None };
        let policy = order.retries();
        let keeps = may_repeat(order)
            && (policy.replays() || order.fallback_plan().is_some_and(|it| it.cluster.is_some()))
            && length <= policy.body_bytes_max
            // Its client waits for the origin's word.
            && !order.expects_continue
            // Else it goes with its head anyway.
            && length > self.inbound.len().min(order.out.room()) as u64;
        keeps.then_some(length as usize)
    }

    /// Receives a request's body behind its head.
    ///
    /// # Errors
    /// What the client did.
    pub(super) async fn receive_body(
        &mut self,
        order: &mut Order,
        length: usize,
    ) -> Result<(), Reason> {
        let Exchange { shard, client, timer, inbound } = self;
        let flow = Flow::default();
        flow.waits_for.set(Some(Side::Source));
        let _counted = Counted { shard, flow: &flow, at_hand: inbound.len() as u64 };
        let now = Nanos::now();
        let mut uploading = Uploading::begin(order, Nanos::NEVER, &flow, now);
        timer.set(uploading.due(), now);
        let receiving = pin!(async {
            let mut left = length;
            loop {
                let count = inbound.len().min(left);
                order.out.writer().extend_from_slice(&inbound.filled()[..count]);
                inbound.consume(count);
                left -= count;
                flow.bytes.set((length - left) as u64);
                if left == 0 {
                    return Ok(());
                }
                if inbound.room() == 0 {
                    **inbound = shard.buffers.take();
                }
                client.readable().await;
                match receive(client, inbound) {
                    Ok(count) if count > 0 => {}
                    Err(error) if would_block(&error) => {}
                    Ok(_) | Err(_) => return Err(Reason::ClientGone),
                }
            }
        });
        within(shard, timer, receiving, |now| uploading.look(now)).await??;
        order.body_at_hand = length as u64;
        Ok(())
    }

    /// Other shards may have what a retry needs.
    async fn ask_for_retry(
        &mut self,
        cluster: ClusterSlot,
        ask_after: &Cell<Nanos>,
        now: Nanos,
    ) -> bool {
        if now < ask_after.get() {
            return false;
        }
        let agreement = &*self.shard.agreement;
        let wait = agreement.wait_retry(cluster, now);
        if let Ok(Waited::News(News::Retry(_))) = self.wait(wait, now + ASK_WAIT).await {
            return true;
        }
        ask_after.set(Nanos::now() + NO_ASK_FOR);
        false
    }

    /// The pause before a further try, and its place: at another endpoint, if there is one.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn place_again(
        &mut self,
        order: &Order,
        cluster: usize,
        hash: Option<u64>,
        tries: &Tries<'a>,
    ) -> Result<(Rc<Endpoint>, Place<'a>), Reason> {
        let more = tries.more.as_ref().expect("it has leave");
        let now = Nanos::now();
        if more.due > now {
            let Exchange { shard, client, timer, .. } = self;
            timer.set(more.due.min(now + WATCH_CLIENT_AFTER), now);
            let pause = pin!(std::future::pending::<()>());
            let due = |now: Nanos| match now < more.due {
                true => Ok(more.due),
                // Only a mark: the pause is over.
                false => Err(Reason::PendingTimeout),
            };
            match attended(shard, Some(client), false, timer, pause, due).await {
                Ok(()) | Err(Reason::PendingTimeout) => {}
                Err(reason) => return Err(reason),
            }
        }
        let placed = self.place(order, cluster, hash, None, tries.avoided()).await?;
        self.shard.counters.retries.add(1);
        Ok(placed)
    }
}
