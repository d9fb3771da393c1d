//! Rate limits that hold for the process: token buckets, by route, client address or header, without
//! a lock and without a counter that two shards write. Pure: values and a time go in, values come
//! out. `shard::rates` carries the messages; `sim` carries the same ones through a world that loses,
//! delays, repeats and reorders them.
//!
//! Each bucket (a limit and a [`Key`]) has a *home* among the shards, which decides for it. There, a
//! token costs a few comparisons. Other shards spend *vouchers*: so many tokens, until then. Who has
//! none asks and waits; who asks again and again gets more at once, as long as there are plenty. With
//! one shard every bucket is at home: there are no vouchers, no messages and no timers.
//!
//! ```text
//! a shard                          home
//!    | -- Ask(wanted, settled) ------> |  pays from the bucket, or recalls what others have left
//!    | <- Answer(voucher, tokens) ---- |  or: no token before `until`, do not ask before `ask_after`
//!    | -- Settle(spent, at) ---------> |  so many were spent, and then; the rest is returned
//!    | <- Recall(voucher) ------------ |  others need what is left of it
//!    | -- Settle(.., last) ----------> |
//! ```
//!
//! # Who calls what
//!
//! ```text
//! turn begins    receive(from, message, now) for all that the mailbox has, then turn(now)
//! a request      take -> Yes: go; No: refuse; TableFull: refuse
//!                     -> Ask: wait(token), with a timeout: cancel
//!                take and wait with `holds`, if other limits may still refuse the request; then
//!                release: spent, or put back
//! after a call   next_event() until None: wakes the request that waits under that token
//! turn ends      outgoing() until None. What does not fit is dropped
//! sleeping       until the bell rings, or next_due()
//! a plan         prepare, then activate, as of `reconcile`
//! ```
//!
//! # What is promised, and tested by `sim`
//!
//! - In any window of `t` no more than `burst + t / interval` requests of one key are admitted by the
//!   process, at any number of shards, whatever became of messages. (A key whose bucket was forgotten
//!   while it was not full, because the table was, begins anew: that is counted.)
//! - No token is stranded: what idle shards hold is recalled when others need it, comes back by
//!   itself after [`RETURN_AFTER`](holder::RETURN_AFTER), and at the latest counts as spent when its
//!   voucher ends.
//! - A refusal is cheap: who was refused does not ask again before there can be a token.

mod bucket;

mod chain;

mod holder;

mod home;

mod key;

pub mod message;

mod table;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

pub use bucket::{Bucket, Rate};
pub use key::{Key, KeyMaker};
pub use message::Message;

use crate::reconcile::{FLUSH_INTERVAL, ShardId};
use crate::time::Nanos;
use holder::{Holder, home_of};
use home::Home;
use message::Body;

/// A shorter life would cost tokens whenever a loop is late.
pub const LIFETIME_MIN: Duration = Duration::from_secs(1);

/// Limits of one route: a request carries the keys of those that it still has to pass.
pub const ROUTE_LIMITS_MAX: usize = 4;

/// A rate limit, in one incarnation: one that is removed and added again, or that tells requests
/// apart by something else, is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RateLimitId(pub u32);

/// What the shards have to know of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitSpec {
    /// Its number.
    pub id: RateLimitId,
    /// Of each bucket.
    pub rate: Rate,
    /// Buckets in the whole process, at least 1.
    pub keys_max: u32,
    /// What happens beyond.
    pub when_full: WhenFull,
    /// How long an ask waits for what others may return: a message there and back, with loops that
    /// are late. The requests behind it wait longer.
    pub recall_wait: Duration,
    /// How long a voucher is good, at least [`LIFETIME_MIN`]. Tokens of a shard that stalls are lost
    /// to the others for so long, and then count as spent.
    pub lifetime: Duration,
}

impl RateLimitSpec {
    /// An equal part for each shard, rounded up.
    fn keys_of_shard(&self, shards: u16) -> usize {
        self.keys_max.max(1).div_ceil(u32::from(shards.max(1))) as usize
    }
}

/// What becomes of a new key when the table is full of buckets that are not full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The bucket that was used least recently is forgotten: its key begins anew.
    Evict,
    /// The new key is refused.
    Refuse,
}

/// Whether there was a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is taken, of this voucher; 0: of the bucket itself.
    Yes(u64),
    /// There is none.
    No {
        /// Until then, as far as is known.
        until: Nanos,
    },
    /// Others have to be asked: see [`RateLimiter::wait`].
    Ask,
    /// There is no room for one more key.
    TableFull,
}

/// What a request that waits has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The caller's name for it.
    pub token: u64,
    /// It has its token, of this voucher; or there is none until then.
    pub got: Result<u64, Nanos>,
}

/// How full a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableState {
    /// Buckets that are kept.
    pub keys: usize,
    /// Buckets that were forgotten although they were not full.
    pub evicted_busy: u64,
    /// Requests whose keys found no room.
    pub turned_away: u64,
}

/// One shard's part in all limits.
#[derive(Debug)]
pub struct RateLimiter {
    id: ShardId,
    shards: u16,
    /// By their numbers.
    limits: Vec<Option<Box<Limit>>>,
    out: Out,
}

#[derive(Debug)]
struct Limit {
    spec: RateLimitSpec,
    home: Home,
    holder: Holder,
}

/// Something to do later.
#[derive(Debug, Clone, Copy)]
enum Timed {
    /// Return what is left.
    Return { key: Key, voucher: u64 },
    /// Ask again.
    Resend { key: Key, number: u32 },
}

/// What the machines of one shard want done.
#[derive(Debug, Default)]
struct Out {
    /// The limit that is being looked at.
    limit: RateLimitId,
    /// For the others, and for this shard itself.
    orders: VecDeque<(ShardId, Message)>,
    own: VecDeque<Message>,
    id: Option<ShardId>,
    events: VecDeque<Event>,
    /// These two in the order of their times: each always takes as long.
    returns: VecDeque<(Nanos, RateLimitId, Key, u64)>,
    resends: VecDeque<(Nanos, RateLimitId, Key, u32)>,
    overdue: BinaryHeap<Reverse<(Nanos, RateLimitId, Key)>>,
    /// Those that have to tell their homes what they have spent, and when.
    dirty: Vec<(RateLimitId, Key)>,
    tell_at: Option<Nanos>,
    /// The newest voucher of this home.
    vouchers: u64,
}

impl Out {
    fn send(&mut self, to: ShardId, key: Key, body: Body, wakes: bool) {
        let message = Message { limit: self.limit, key, wakes, body };
        if Some(to) == self.id {
            self.own.push_back(message);
        } else {
            self.orders.push_back((to, message));
        }
    }

    fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    fn timed(&mut self, at: Nanos, what: Timed) {
        match what {
            Timed::Return { key, voucher } => {
                self.returns.push_back((at, self.limit, key, voucher));
            }
            Timed::Resend { key, number } => {
                self.resends.push_back((at, self.limit, key, number));
            }
        }
    }

    fn overdue(&mut self, at: Nanos, key: Key) {
        self.overdue.push(Reverse((at, self.limit, key)));
    }

    fn dirty(&mut self, key: Key, now: Nanos) {
        self.dirty.push((self.limit, key));
        self.tell_at.get_or_insert(now + FLUSH_INTERVAL);
    }

    fn next_voucher(&mut self) -> u64 {
        self.vouchers += 1;
        self.vouchers
    }

    fn due(&self) -> Nanos {
        let first = [
            self.returns.front().map(|it| it.0),
            self.resends.front().map(|it| it.0),
            self.overdue.peek().map(|it| it.0.0),
            self.tell_at,
        ];
        first.into_iter().flatten().min().unwrap_or(Nanos::NEVER)
    }
}

impl RateLimiter {
    /// Without limits. `shards`: how many there are, at least 1.
    pub fn new(id: ShardId, shards: u16) -> RateLimiter {
        let out = Out { id: Some(id), ..Out::default() };
        RateLimiter { id, shards, limits: Vec::new(), out }
    }

    // ---- Plans --------------------------------------------------------------------------------

    /// First phase: get to know who is new, so that nobody asks about somebody unknown.
    pub fn prepare(&mut self, specs: &[RateLimitSpec]) {
        for spec in specs {
            let at = spec.id.0 as usize;
            if self.limits.len() <= at {
                self.limits.resize_with(at + 1, || None);
            }
            self.limits[at].get_or_insert_with(|| {
                Box::new(Limit {
                    spec: *spec,
                    home: Home::new(spec, self.id, self.shards),
                    holder: Holder::new(spec, self.shards),
                })
            });
        }
    }

    /// Second phase: these hold, and no others. Limits that stay keep their buckets.
    pub fn activate(&mut self, specs: &[RateLimitSpec], now: Nanos) {
        for limit in &mut self.limits {
            let Some(known) = limit else { continue };
            self.out.limit = known.spec.id;
            match specs.iter().find(|spec| spec.id == known.spec.id) {
                Some(spec) if *spec == known.spec => {}
                Some(spec) => {
                    known.spec = *spec;
                    known.home.change(spec, now, &mut self.out);
                    known.holder.change(spec, &mut self.out);
                }
                None => {
                    known.holder.let_all_go(&mut self.out);
                    *limit = None;
                }
            }
        }
        self.dispatch(now);
    }

    // ---- Requests -----------------------------------------------------------------------------

    /// A token for one request, now or not at all. Of a limit that has gone there are always some.
    /// `holds`: [`RateLimiter::release`] follows.
    #[inline]
    pub fn take(&mut self, limit: RateLimitId, key: Key, holds: bool, now: Nanos) -> Taken {
        let RateLimiter { id, shards, limits, out } = self;
        let Some(Some(limit)) = limits.get_mut(limit.0 as usize) else { return Taken::Yes(0) };
        out.limit = limit.spec.id;
        let taken = match home_of(key, *shards) == *id {
            true => limit.home.take(key, holds, now, out),
            false => limit.holder.take(key, holds, now, out),
        };
        self.dispatch(now);
        taken
    }

    /// A token that is held, of this voucher, is spent; or it is not needed after all.
    pub fn release(
        &mut self,
        limit: RateLimitId,
        key: Key,
        voucher: u64,
        is_spent: bool,
        now: Nanos,
    ) {
        self.of(limit, |limit, out| match voucher {
            0 => limit.home.release(key, is_spent, now),
            voucher => limit.holder.release(key, voucher, is_spent, now, out),
        });
        self.dispatch(now);
    }

    /// After [`Taken::Ask`]: waits for a token. An [`Event`] with this one follows, unless
    /// [`RateLimiter::cancel`] says `true`; the caller bounds the time. `false`: there is no room.
    pub fn wait(
        &mut self,
        limit: RateLimitId,
        key: Key,
        token: u64,
        holds: bool,
        now: Nanos,
    ) -> bool {
        let Some(Some(limit)) = self.limits.get_mut(limit.0 as usize) else { return false };
        self.out.limit = limit.spec.id;
        let waits = limit.holder.wait(key, token, holds, now, &mut self.out);
        self.dispatch(now);
        waits
    }

    /// Stops waiting. `false`: too late, the event is on its way.
    pub fn cancel(&mut self, limit: RateLimitId, key: Key, token: u64) -> bool {
        let Some(Some(limit)) = self.limits.get_mut(limit.0 as usize) else { return false };
        limit.holder.cancel(key, token)
    }

    // ---- The shard's loop ---------------------------------------------------------------------

    /// A message of another shard. Of a limit that is not known here, it is none of ours: who waits
    /// asks again.
    pub fn receive(&mut self, from: ShardId, message: Message, now: Nanos) {
        self.apply(from, message, now);
        self.dispatch(now);
    }

    /// Once a turn, behind the messages: what time has brought.
    pub fn turn(&mut self, now: Nanos) {
        if now < self.out.due() {
            return;
        }
        if self.out.tell_at.is_some_and(|due| due <= now) {
            self.out.tell_at = None;
            let mut dirty = std::mem::take(&mut self.out.dirty);
            for (limit, key) in dirty.drain(..) {
                self.of(limit, |limit, out| limit.holder.tell(key, out));
            }
            self.out.dirty = dirty;
        }
        while let Some((_, limit, key, voucher)) =
            self.out.returns.pop_front_if(|(due, ..)| *due <= now)
        {
            self.of(limit, |limit, out| limit.holder.give_back(key, voucher, out));
        }
        while let Some((_, limit, key, number)) =
            self.out.resends.pop_front_if(|(due, ..)| *due <= now)
        {
            self.of(limit, |limit, out| limit.holder.ask_again(key, number, now, out));
        }
        while let Some(Reverse((due, limit, key))) = self.out.overdue.peek().copied()
            && due <= now
        {
            self.out.overdue.pop();
            self.of(limit, |limit, out| limit.home.overdue(key, now, out));
        }
        self.dispatch(now);
    }

    /// When [`RateLimiter::turn`] has something to do.
    pub fn next_due(&self) -> Nanos {
        self.out.due()
    }

    /// The next message to push, and to whom; what does not fit into a full queue may be dropped.
    pub fn outgoing(&mut self) -> Option<(ShardId, Message)> {
        self.out.orders.pop_front()
    }

    /// Whether there are messages to push.
    pub fn has_outgoing(&self) -> bool {
        !self.out.orders.is_empty()
    }

    /// The next thing that a waiting request has to know. After every call, until `None`.
    pub fn next_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    // ---- Looking ------------------------------------------------------------------------------

    /// How full a limit's table is here.
    pub fn table(&self, limit: RateLimitId) -> TableState {
        let Some(Some(limit)) = self.limits.get(limit.0 as usize) else {
            return TableState::default();
        };
        let Limit { home, holder, .. } = &**limit;
        TableState {
            keys: home.keys(),
            evicted_busy: home.evicted_busy,
            turned_away: home.turned_away + holder.turned_away,
        }
    }

    // ---- Inside -------------------------------------------------------------------------------

    fn of(&mut self, limit: RateLimitId, act: impl FnOnce(&mut Limit, &mut Out)) {
        if let Some(Some(known)) = self.limits.get_mut(limit.0 as usize) {
            self.out.limit = limit;
            act(known, &mut self.out);
        }
    }

    /// Carries orders to this shard itself; the others stay for [`RateLimiter::outgoing`].
    fn dispatch(&mut self, now: Nanos) {
        while let Some(message) = self.out.own.pop_front() {
            self.apply(self.id, message, now);
        }
    }

    fn apply(&mut self, from: ShardId, message: Message, now: Nanos) {
        let Message { limit, key, body, .. } = message;
        self.of(limit, |limit, out| match body {
            Body::Ask(ask) => limit.home.ask(from, key, ask, now, out),
            Body::Settle(settled) => limit.home.settle(from, key, settled, now, out),
            Body::Answer(answer) => limit.holder.answered(key, answer, now, out),
            Body::Recall { voucher } => limit.holder.recalled(key, voucher, now, out),
        });
    }
}
