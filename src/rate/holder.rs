//! The side that asks: what this shard holds of the buckets of one limit whose homes are elsewhere,
//! and who waits for more. (And of its own buckets, while others are asked to return something.)
//!
//! ```text
//! a token left? -- yes --> take it
//!     | no
//! refused lately, until later? -- yes --> refuse, and tell nobody
//!     | no
//! wait, and ask ---> Answer: a voucher: tokens for those who wait, first come, first served;
//!                    none: refuse them all, and everybody until `ask_after`
//! ```

use std::time::Duration;

use super::chain::{Chain, Chains};
use super::message::{Answer, Ask, Body, Settled};
use super::table::Table;
use super::{Event, Key, Out, RateLimitSpec, Taken, Timed};
use crate::reconcile::ShardId;
use crate::reconcile::mutation::{self, Mutation};
use crate::time::Nanos;

/// An ask is repeated after this if nothing is heard: two flush intervals.
pub(super) const RESEND_AFTER: Duration = Duration::from_millis(20);

/// Tokens that are left go back after this: long before the voucher ends, and they would be lost.
pub(super) const RETURN_AFTER: Duration = Duration::from_millis(400);

/// Purses that are looked at for one that may leave.
const EVICTIONS_TRIED: usize = 8;

/// What this shard holds of one limit.
#[derive(Debug)]
pub(super) struct Holder {
    shards: u16,
    table: Table<Purse>,
    /// Those who wait, and whether they hold their token until other limits have spoken.
    waiters: Chains<(u64, bool)>,
    /// By home: the newest voucher of a purse that has left. Older ones come too late.
    floors: Vec<u64>,
    /// Requests whose keys found no room, since requests wait for all that have some.
    pub turned_away: u64,
}

/// What it holds of one bucket.
#[derive(Debug, Default)]
struct Purse {
    /// The newest voucher that was taken.
    voucher: u64,
    left: u32,
    /// Taken, but other limits may still refuse the request.
    held: u32,
    spent: u32,
    /// Of those spent, how many the home was told of.
    told: u32,
    /// When the last one was spent.
    at: Nanos,
    use_by: Nanos,
    /// The home was not told yet that the voucher is done with.
    is_open: bool,
    /// It is on the list of those that have something to tell.
    is_dirty: bool,
    /// The voucher is in fact one of this purse: it knows what became of it.
    is_own: bool,
    asks: bool,
    number: u32,
    waiting: u32,
    waiters: Chain,
    ask_after: Nanos,
    until: Nanos,
}

/// What a key takes is said in `tuning/README.md`.
const _: () = assert!(size_of::<Purse>() <= 88);

impl Purse {
    fn settled(&self) -> Settled {
        let Purse { voucher, spent, at, .. } = *self;
        let voucher = if self.is_own { voucher } else { 0 };
        Settled { voucher, spent, at, is_last: self.is_done() }
    }

    /// Nothing more will be spent of the voucher.
    fn is_done(&self) -> bool {
        self.left + self.held == 0
    }

    /// Spends one that is left.
    fn spend(&mut self, holds: bool, now: Nanos) {
        self.left -= 1;
        *(if holds { &mut self.held } else { &mut self.spent }) += 1;
        self.at = now;
    }

    /// What is left is not used any more; what is held counts as spent.
    fn close(&mut self) -> Settled {
        self.spent += std::mem::take(&mut self.held);
        self.left = 0;
        self.is_open = false;
        self.told = self.spent;
        self.settled()
    }

    fn is_good(&self, now: Nanos) -> bool {
        now < self.use_by || mutation::is_on(Mutation::RateVoucherNeverEnds)
    }
}

impl Holder {
    pub fn new(spec: &RateLimitSpec, shards: u16) -> Holder {
        Holder {
            shards,
            // With one shard nobody is ever asked.
            table: Table::new(if shards == 1 { 1 } else { spec.keys_of_shard(shards) }),
            waiters: Chains::default(),
            floors: vec![0; usize::from(shards)],
            turned_away: 0,
        }
    }

    /// A newer plan has the same limit with other settings: what was refused may be asked for again.
    pub fn change(&mut self, spec: &RateLimitSpec, out: &mut Out) {
        let all: Vec<u32> = self.table.by_age().collect();
        for at in all {
            self.table[at].ask_after = Nanos(0);
        }
        if self.shards == 1 {
            return;
        }
        self.table.set_capacity(spec.keys_of_shard(self.shards));
        while self.table.is_too_full() && self.make_room(out) {}
    }

    /// A request for a bucket whose home is elsewhere.
    #[inline]
    pub fn take(&mut self, key: Key, holds: bool, now: Nanos, out: &mut Out) -> Taken {
        let Some(at) = self.find_or_make(key, out) else {
            self.turned_away += 1;
            return Taken::TableFull;
        };
        self.table.touch(at);
        let purse = &mut self.table[at];
        if purse.left > 0 && purse.is_good(now) {
            purse.spend(holds, now);
            if !std::mem::replace(&mut purse.is_dirty, true) {
                out.dirty(key, now);
            }
            return Taken::Yes(purse.voucher);
        }
        if !purse.asks && now < purse.ask_after {
            return Taken::No { until: purse.until };
        }
        Taken::Ask
    }

    /// Waits for a token. `false`: there is no room.
    pub fn wait(&mut self, key: Key, token: u64, holds: bool, now: Nanos, out: &mut Out) -> bool {
        let Some(at) = self.find_or_make(key, out) else {
            self.turned_away += 1;
            return false;
        };
        let purse = &mut self.table[at];
        self.waiters.push(&mut purse.waiters, (token, holds));
        purse.waiting += 1;
        if !purse.asks {
            self.begin_ask(at, now, out);
        }
        true
    }

    /// Waits no longer. `false`: the event is on its way.
    pub fn cancel(&mut self, key: Key, token: u64) -> bool {
        let Some(at) = self.table.find(key) else { return false };
        let purse = &mut self.table[at];
        let found = self.waiters.remove(&mut purse.waiters, |it| it.0 == token).is_some();
        purse.waiting -= u32::from(found);
        found
    }

    /// A token that is held is spent, or not needed. If the voucher is done with, it was spent.
    pub fn release(&mut self, key: Key, voucher: u64, is_spent: bool, now: Nanos, out: &mut Out) {
        let Some(at) = self.table.find(key) else { return };
        let purse = &mut self.table[at];
        if purse.voucher != voucher || !purse.is_open || purse.held == 0 {
            return;
        }
        purse.held -= 1;
        if is_spent {
            purse.spent += 1;
            purse.at = now;
        } else {
            purse.left += 1;
        }
        if purse.is_done() {
            let settled = purse.close();
            out.send(home_of(key, self.shards), key, Body::Settle(settled), false);
        }
    }

    /// The home has answered.
    pub fn answered(&mut self, key: Key, answer: Answer, now: Nanos, out: &mut Out) {
        // Without a purse nobody waits; the voucher ends by itself.
        let Some(at) = self.table.find(key) else { return };
        let Answer { number, voucher, tokens, use_by, ask_after, until } = answer;
        let purse = &mut self.table[at];
        let is_current = purse.asks && number == purse.number;
        let is_new = voucher > purse.voucher || mutation::is_on(Mutation::RateVoucherTakenTwice);
        if voucher > 0 && is_new {
            if purse.is_open {
                let settled = purse.close();
                out.send(home_of(key, self.shards), key, Body::Settle(settled), false);
            }
            (purse.voucher, purse.left, purse.use_by) = (voucher, tokens, use_by);
            (purse.spent, purse.told) = (0, 0);
            (purse.is_open, purse.is_own) = (true, true);
            while purse.left > 0
                && purse.is_good(now)
                && let Some((token, holds)) = self.waiters.pop(&mut purse.waiters)
            {
                purse.waiting -= 1;
                purse.spend(holds, now);
                out.event(Event { token, got: Ok(voucher) });
            }
            if purse.is_done() {
                let settled = purse.close();
                out.send(home_of(key, self.shards), key, Body::Settle(settled), false);
            } else {
                purse.told = purse.spent;
                let settled = purse.settled();
                if settled.spent > 0 {
                    out.send(home_of(key, self.shards), key, Body::Settle(settled), false);
                }
                out.timed(now + RETURN_AFTER, Timed::Return { key, voucher });
            }
        } else if voucher > 0 {
            return;
        }
        if !is_current {
            return;
        }
        let purse = &mut self.table[at];
        purse.asks = false;
        (purse.ask_after, purse.until) = (ask_after, until);
        if purse.waiters.is_empty() {
            return;
        }
        if now < ask_after || tokens == 0 {
            while let Some((token, _)) = self.waiters.pop(&mut purse.waiters) {
                out.event(Event { token, got: Err(until) });
            }
            purse.waiting = 0;
        } else {
            self.begin_ask(at, now, out);
        }
    }

    /// The home needs what is left.
    pub fn recalled(&mut self, key: Key, voucher: u64, now: Nanos, out: &mut Out) {
        if mutation::is_on(Mutation::RateRecallIgnored) {
            return;
        }
        let Some(at) = self.table.find(key) else {
            // Its purse has left, and what it told then was lost; or it comes too late by now. All
            // of it may have been spent.
            let home = home_of(key, self.shards);
            let floor = &mut self.floors[usize::from(home.0)];
            *floor = (*floor).max(voucher);
            let settled = Settled { voucher, spent: u32::MAX, at: now, is_last: true };
            out.send(home, key, Body::Settle(settled), true);
            return;
        };
        let purse = &mut self.table[at];
        if voucher > purse.voucher {
            // It is still on its way, and is not taken any more.
            if purse.is_open {
                let settled = purse.close();
                out.send(home_of(key, self.shards), key, Body::Settle(settled), false);
            }
            (purse.voucher, purse.spent, purse.told) = (voucher, 0, 0);
            purse.is_own = true;
        }
        if voucher == purse.voucher && purse.is_own {
            let settled = purse.close();
            out.send(home_of(key, self.shards), key, Body::Settle(settled), true);
        }
    }

    /// What is left of a voucher was not needed.
    pub fn give_back(&mut self, key: Key, voucher: u64, out: &mut Out) {
        let Some(at) = self.table.find(key) else { return };
        let purse = &mut self.table[at];
        if purse.is_open && purse.voucher == voucher && !mutation::is_on(Mutation::RateKeepsTokens)
        {
            let settled = purse.close();
            out.send(home_of(key, self.shards), key, Body::Settle(settled), false);
        }
    }

    /// Tells the home what was spent since it was last told.
    pub fn tell(&mut self, key: Key, out: &mut Out) {
        let Some(at) = self.table.find(key) else { return };
        let purse = &mut self.table[at];
        purse.is_dirty = false;
        if purse.is_open && purse.told < purse.spent {
            purse.told = purse.spent;
            purse.is_open = !purse.is_done();
            let settled = purse.settled();
            out.send(home_of(key, self.shards), key, Body::Settle(settled), false);
        }
    }

    /// Nothing was heard of an ask.
    pub fn ask_again(&mut self, key: Key, number: u32, now: Nanos, out: &mut Out) {
        let Some(at) = self.table.find(key) else { return };
        let purse = &mut self.table[at];
        if !purse.asks || purse.number != number || mutation::is_on(Mutation::RateAskedOnce) {
            return;
        }
        if purse.waiters.is_empty() {
            purse.asks = false;
        } else {
            self.send_ask(at, now, out);
        }
    }

    /// The limit is gone: nobody waits for it any more.
    pub fn let_all_go(&mut self, out: &mut Out) {
        let all: Vec<u32> = self.table.by_age().collect();
        for at in all {
            let purse = &mut self.table[at];
            while let Some((token, _)) = self.waiters.pop(&mut purse.waiters) {
                out.event(Event { token, got: Ok(0) });
            }
        }
    }

    fn begin_ask(&mut self, at: u32, now: Nanos, out: &mut Out) {
        let purse = &mut self.table[at];
        purse.asks = true;
        purse.number = purse.number.wrapping_add(1);
        self.send_ask(at, now, out);
    }

    fn send_ask(&mut self, at: u32, now: Nanos, out: &mut Out) {
        let key = self.table.key(at);
        let purse = &mut self.table[at];
        let settled = purse.close();
        let number = purse.number;
        let ask = Ask { number, wanted: purse.waiting, known: purse.voucher, settled };
        out.timed(now + RESEND_AFTER, Timed::Resend { key, number });
        out.send(home_of(key, self.shards), key, Body::Ask(ask), true);
    }

    #[inline]
    fn find_or_make(&mut self, key: Key, out: &mut Out) -> Option<u32> {
        match self.table.find(key) {
            Some(at) => Some(at),
            None => self.make(key, out),
        }
    }

    fn make(&mut self, key: Key, out: &mut Out) -> Option<u32> {
        if self.table.is_full() && !self.make_room(out) {
            return None;
        }
        let home = usize::from(home_of(key, self.shards).0);
        let voucher = self.floors[home];
        Some(self.table.insert(key, Purse { voucher, ..Purse::default() }))
    }

    /// The purse that was used least recently leaves, of those for which nobody waits: these are in
    /// use, and looked at again after all others.
    fn make_room(&mut self, out: &mut Out) -> bool {
        let mut tried = 0;
        let at = loop {
            let Some(at) = self.table.by_age().next() else { return false };
            if self.table[at].waiters.is_empty() {
                break at;
            }
            self.table.touch(at);
            tried += 1;
            if tried == EVICTIONS_TRIED {
                return false;
            }
        };
        let key = self.table.key(at);
        let home = home_of(key, self.shards);
        let purse = &mut self.table[at];
        if purse.is_open {
            let settled = purse.close();
            out.send(home, key, Body::Settle(settled), false);
        }
        let floor = &mut self.floors[usize::from(home.0)];
        *floor = (*floor).max(purse.voucher);
        self.table.remove(at);
        true
    }
}

/// The shard that decides for a key.
pub(super) fn home_of(key: Key, shards: u16) -> ShardId {
    ShardId(key.home(shards))
}
