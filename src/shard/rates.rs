//! One shard's part in the rate limits, with what the pure machine lacks: the requests that wait,
//! somebody to wake, and counters. The [agreement](super::agreement) carries its messages.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::metrics::ShardCounters;
use crate::metrics::rates::RateCounters;
use crate::plan::{Plan, RateLimit};
use crate::rate::{Key, Message, RateLimitId, RateLimiter, Taken};
use crate::reconcile::ShardId;
use crate::time::Nanos;

/// One shard's part.
pub struct Rates {
    limiter: RefCell<RateLimiter>,
    waits: RefCell<Slab<Entry>>,
    /// By the limits' numbers.
    counters: RefCell<Vec<Option<Arc<RateCounters>>>>,
    /// When the limiter has something to do; every turn asks.
    due: Cell<Nanos>,
    shard: Arc<ShardCounters>,
}

/// Somebody who waits.
#[derive(Default)]
struct Entry {
    waker: Option<Waker>,
    got: Option<Result<u64, Nanos>>,
}

impl Rates {
    /// Without limits.
    pub fn new(id: ShardId, shards: usize, shard: Arc<ShardCounters>) -> Rates {
        Rates {
            limiter: RefCell::new(RateLimiter::new(id, shards as u16)),
            waits: RefCell::default(),
            counters: RefCell::default(),
            due: Cell::new(Nanos::NEVER),
            shard,
        }
    }

    // ---- Plans --------------------------------------------------------------------------------

    /// Gets to know who is new.
    pub fn prepare(&self, plan: &Plan) {
        self.limiter.borrow_mut().prepare(&plan.rates);
        let mut counters = self.counters.borrow_mut();
        for limit in &plan.rate_limits {
            let at = limit.id.0 as usize;
            if counters.len() <= at {
                counters.resize_with(at + 1, || None);
            }
            // By name: a total goes on, whatever is changed.
            counters[at].get_or_insert_with(|| self.shard.rates.of(&limit.name));
        }
    }

    /// The prepared plan holds.
    pub fn activate(&self, plan: &Plan, now: Nanos) {
        self.limiter.borrow_mut().activate(&plan.rates, now);
        self.follow_up();
        for (at, counters) in self.counters.borrow_mut().iter_mut().enumerate() {
            let stays = plan.rates.iter().any(|spec| spec.id.0 as usize == at);
            if !stays && let Some(gone) = counters.take() {
                gone.keys.set(0);
            }
        }
        for spec in &plan.rates {
            self.publish_table(spec.id);
        }
    }

    // ---- Requests -----------------------------------------------------------------------------

    /// See [`RateLimiter::take`].
    #[inline]
    pub fn take(&self, limit: RateLimitId, key: Key, holds: bool, now: Nanos) -> Taken {
        let taken = self.limiter.borrow_mut().take(limit, key, holds, now);
        self.follow_up();
        taken
    }

    /// See [`RateLimiter::release`].
    pub fn release(&self, limit: RateLimitId, key: Key, voucher: u64, is_spent: bool, now: Nanos) {
        self.limiter.borrow_mut().release(limit, key, voucher, is_spent, now);
        self.follow_up();
    }

    /// Waits for a token; `None` where there is no room for one more key.
    pub fn wait(
        &self,
        limit: RateLimitId,
        key: Key,
        holds: bool,
        now: Nanos,
    ) -> Option<TokenWait<'_>> {
        let at = self.waits.borrow_mut().insert(Entry::default());
        if !self.limiter.borrow_mut().wait(limit, key, at as u64, holds, now) {
            self.waits.borrow_mut().remove(at);
            return None;
        }
        self.follow_up();
        Some(TokenWait { rates: self, limit, key, at: Some(at) })
    }

    /// Counts what became of a request.
    pub fn count(&self, limit: &RateLimit, count: impl FnOnce(&RateCounters)) {
        if let Some(Some(counters)) = self.counters.borrow().get(limit.id.0 as usize) {
            count(counters);
        }
    }

    /// The buckets that are kept may have changed.
    pub fn publish_table(&self, limit: RateLimitId) {
        let table = self.limiter.borrow().table(limit);
        if let Some(Some(counters)) = self.counters.borrow().get(limit.0 as usize) {
            counters.keys.set(table.keys as i64);
            counters.evicted.raise_to(limit, table.evicted_busy);
            counters.table_full.raise_to(limit, table.turned_away);
        }
    }

    // ---- The shard's loop ---------------------------------------------------------------------

    /// A message of another shard.
    pub fn receive(&self, from: ShardId, message: Message, now: Nanos) {
        self.limiter.borrow_mut().receive(from, message, now);
        self.publish_table(message.limit);
    }

    /// Does what time has brought, and tells those who wait.
    pub fn turn(&self, now: Nanos) {
        if self.due.get() <= now {
            self.limiter.borrow_mut().turn(now);
        }
        self.follow_up();
    }

    /// When [`Rates::turn`] has something to do.
    #[inline(always)]
    pub fn due(&self) -> Nanos {
        self.due.get()
    }

    /// The next message to push.
    pub fn outgoing(&self) -> Option<(ShardId, Message)> {
        self.limiter.borrow_mut().outgoing()
    }

    /// Whether the main task has to be woken, whose timer is set for `armed`.
    pub fn has_news(&self, armed: Nanos) -> bool {
        self.due.get() < armed || self.limiter.borrow().has_outgoing()
    }

    /// After each call that may have brought news.
    fn follow_up(&self) {
        let mut limiter = self.limiter.borrow_mut();
        while let Some(event) = limiter.next_event() {
            // Tokens are keys, and leave with those who wait: it is there.
            if let Some(entry) = self.waits.borrow_mut().get_mut(event.token as usize) {
                entry.got = Some(event.got);
                entry.waker.take().into_iter().for_each(Waker::wake);
            }
        }
        self.due.set(limiter.next_due());
    }
}

/// Waits; dropping it ends that, and gives back what came too late.
pub struct TokenWait<'a> {
    rates: &'a Rates,
    limit: RateLimitId,
    key: Key,
    at: Option<usize>,
}

impl Future for TokenWait<'_> {
    /// There is a token, of this voucher; or none until then.
    type Output = Result<u64, Nanos>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<u64, Nanos>> {
        let at = self.at.expect("polled after its end");
        let mut waits = self.rates.waits.borrow_mut();
        let entry = &mut waits[at];
        let Some(got) = entry.got.take() else {
            entry.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        waits.remove(at);
        drop(waits);
        self.at = None;
        Poll::Ready(got)
    }
}

impl Drop for TokenWait<'_> {
    fn drop(&mut self) {
        let Some(at) = self.at else { return };
        let entry = self.rates.waits.borrow_mut().remove(at);
        if let Some(Ok(voucher)) = entry.got {
            self.rates.release(self.limit, self.key, voucher, false, Nanos::now());
        } else if entry.got.is_none() {
            self.rates.limiter.borrow_mut().cancel(self.limit, self.key, at as u64);
        }
    }
}
