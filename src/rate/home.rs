//! The side that decides: the buckets of one limit whose home is this shard, and what of them is
//! lent to whom.
//!
//! A voucher is a number of tokens that one shard may spend until `use_by`. Until it is settled it
//! takes up its place in the bucket; what was spent of it is then booked at the time that its holder
//! names. One that nobody has settled by `use_by` counts as spent at that time, all of it. So at any
//! time what is missing in the bucket and what is lent are no more than the burst together; and from
//! that the bound for every window follows.

use std::time::Duration;

use super::bucket::{Bucket, Rate};
use super::chain::{Chain, Chains};
use super::message::{Answer, Ask, Body, Settled};
use super::table::Table;
use super::{Key, Out, RateLimitSpec, Taken, WhenFull};
use crate::reconcile::ShardId;
use crate::reconcile::mutation::{self, Mutation};
use crate::time::Nanos;

/// After a refusal although something is lent, nothing is recalled for so long.
const RECALL_PAUSE: Duration = Duration::from_millis(10);

/// At high rates a shard that was refused does not ask again before so much time's tokens are there:
/// a flood of requests is no flood of messages.
const PACE: Duration = Duration::from_millis(5);

/// Who asks again within this time after its last token gets some in advance.
const BUSY_WITHIN: Duration = Duration::from_millis(100);

/// Buckets that are looked at for one that is full again, from the least recently used on.
const EVICTIONS_TRIED: usize = 8;

/// The buckets of one limit that are decided here.
#[derive(Debug)]
pub(super) struct Home {
    rate: Rate,
    when_full: WhenFull,
    recall_wait: Duration,
    lifetime: Duration,
    id: ShardId,
    shards: u16,
    table: Table<Held>,
    vouchers: Chains<Voucher>,
    asks: Chains<Pending>,
    /// Buckets that were forgotten although they were not full.
    pub evicted_busy: u64,
    /// Requests whose keys found no room.
    pub turned_away: u64,
}

/// One bucket, and what of it is out.
#[derive(Debug, Default)]
struct Held {
    bucket: Bucket,
    /// Tokens on vouchers that are not known to be spent.
    lent: u32,
    /// Taken on this shard, but other limits may still refuse the request.
    held: u32,
    vouchers: Chain,
    /// Asks that wait for what was recalled.
    asks: Chain,
    recall_after: Nanos,
}

/// What a key takes is said in `tuning/README.md`.
const _: () = assert!(size_of::<Held>() <= 40);

#[derive(Debug)]
struct Voucher {
    number: u64,
    shard: ShardId,
    tokens: u32,
    spent: u32,
    use_by: Nanos,
    /// When it was last recalled.
    recalled: Option<Nanos>,
}

#[derive(Debug)]
struct Pending {
    shard: ShardId,
    ask: Ask,
    since: Nanos,
}

impl Home {
    pub fn new(spec: &RateLimitSpec, id: ShardId, shards: u16) -> Home {
        Home {
            rate: spec.rate,
            when_full: spec.when_full,
            recall_wait: spec.recall_wait,
            lifetime: spec.lifetime,
            id,
            shards,
            table: Table::new(spec.keys_of_shard(shards)),
            vouchers: Chains::default(),
            asks: Chains::default(),
            evicted_busy: 0,
            turned_away: 0,
        }
    }

    /// Buckets that it knows.
    pub fn keys(&self) -> usize {
        self.table.len()
    }

    /// A newer plan has the same limit with other settings.
    pub fn change(&mut self, spec: &RateLimitSpec, now: Nanos, out: &mut Out) {
        if self.rate != spec.rate {
            let all: Vec<u32> = self.table.by_age().collect();
            for at in all {
                self.table[at].bucket.change(&self.rate, &spec.rate, now);
            }
        }
        self.rate = spec.rate;
        (self.when_full, self.recall_wait) = (spec.when_full, spec.recall_wait);
        self.lifetime = spec.lifetime;
        self.table.set_capacity(spec.keys_of_shard(self.shards));
        while self.table.is_too_full() {
            let oldest = self.table.by_age().next().expect("it is too full");
            self.forget(oldest, now, out);
        }
    }

    /// A request on this shard. `holds`: [`Home::release`] follows.
    #[inline]
    pub fn take(&mut self, key: Key, holds: bool, now: Nanos, out: &mut Out) -> Taken {
        let Some(at) = self.find_or_make(key, now, out) else {
            self.turned_away += 1;
            return Taken::TableFull;
        };
        self.expire(at, now);
        let Home { rate, table, .. } = self;
        table.touch(at);
        let held = &mut table[at];
        if held.bucket.available(rate, held.reserved(), now) > 0 {
            match holds {
                true => held.held += 1,
                false => held.bucket.book(rate, 1, now),
            }
            return Taken::Yes(0);
        }
        if held.lent > 0 && now >= held.recall_after {
            return Taken::Ask;
        }
        Taken::No { until: held.bucket.holds_at(rate, 1, held.reserved(), now) }
    }

    /// A token that is held on this shard is spent now, or not needed. It was not booked before: a
    /// bucket that was filled meanwhile could not tell what to take back.
    pub fn release(&mut self, key: Key, is_spent: bool, now: Nanos) {
        let Some(at) = self.table.find(key) else { return };
        let held = &mut self.table[at];
        // Forgotten and made anew, it may know of none.
        held.held = held.held.saturating_sub(1);
        if is_spent {
            held.bucket.book(&self.rate, 1, now);
        }
    }

    /// A shard asks. It is answered now, or when others have returned what they do not need.
    pub fn ask(&mut self, from: ShardId, key: Key, ask: Ask, now: Nanos, out: &mut Out) {
        let Some(at) = self.find_or_make(key, now, out) else {
            self.turned_away += u64::from(ask.wanted);
            // Nobody knows when there will be room.
            let (ask_after, until) = (now + RECALL_PAUSE, now + Duration::from_secs(1));
            let none = Answer {
                number: ask.number,
                voucher: 0,
                tokens: 0,
                use_by: Nanos(0),
                ask_after,
                until,
            };
            out.send(from, key, Body::Answer(none), true);
            return;
        };
        self.table.touch(at);
        self.settle_at(at, from, ask.settled);
        self.expire(at, now);
        self.bury(at, from, ask.known, now);
        let held = &mut self.table[at];
        if let Some(voucher) = self.vouchers.find_mut(&held.vouchers, |it| it.shard == from) {
            // It is on its way, or was lost: the same again.
            let again = Answer {
                number: ask.number,
                voucher: voucher.number,
                tokens: voucher.tokens,
                use_by: voucher.use_by,
                ask_after: Nanos(0),
                until: Nanos(0),
            };
            out.send(from, key, Body::Answer(again), true);
            return;
        }
        match self.asks.find_mut(&held.asks, |it| it.shard == from) {
            Some(pending) => pending.ask = ask,
            None => {
                self.asks.push(&mut held.asks, Pending { shard: from, ask, since: now });
                out.overdue(now + self.recall_wait, key);
            }
        }
        self.serve(at, now, out);
    }

    /// What became of a voucher.
    pub fn settle(&mut self, from: ShardId, key: Key, settled: Settled, now: Nanos, out: &mut Out) {
        let Some(at) = self.table.find(key) else { return };
        self.settle_at(at, from, settled);
        if !self.table[at].asks.is_empty() {
            self.serve(at, now, out);
        }
    }

    /// Asks that have waited for long enough are refused.
    pub fn overdue(&mut self, key: Key, now: Nanos, out: &mut Out) {
        if let Some(at) = self.table.find(key) {
            self.serve(at, now, out);
        }
    }

    fn settle_at(&mut self, at: u32, from: ShardId, settled: Settled) {
        let Home { rate, table, vouchers, .. } = self;
        let held = &mut table[at];
        let is_it = |it: &Voucher| it.shard == from && it.number == settled.voucher;
        let Some(voucher) = vouchers.find_mut(&held.vouchers, is_it) else { return };
        let more = settled.spent.min(voucher.tokens).saturating_sub(voucher.spent);
        voucher.spent += more;
        held.lent -= more;
        if !mutation::is_on(Mutation::RateSpentForgotten) {
            held.bucket.book(rate, more.into(), settled.at);
        }
        if settled.is_last {
            held.lent -= voucher.tokens - voucher.spent;
            vouchers.remove(&mut held.vouchers, is_it);
        }
    }

    /// Vouchers whose time is over, and of which not all was heard, were spent.
    #[inline]
    fn expire(&mut self, at: u32, now: Nanos) {
        if !self.table[at].vouchers.is_empty() {
            self.expire_some(at, now);
        }
    }

    fn expire_some(&mut self, at: u32, now: Nanos) {
        let Home { rate, table, vouchers, .. } = self;
        let held = &mut table[at];
        while let Some(Voucher { tokens, spent, use_by, .. }) =
            vouchers.remove(&mut held.vouchers, |it| it.use_by <= now)
        {
            held.lent -= tokens - spent;
            if !mutation::is_on(Mutation::RateExpiredForgiven) {
                held.bucket.book(rate, (tokens - spent).into(), use_by);
            }
        }
    }

    /// A voucher that its holder has lost sight of, and will not take any more: all of it may have
    /// been spent, until now.
    fn bury(&mut self, at: u32, from: ShardId, known: u64, now: Nanos) {
        let Home { rate, table, vouchers, .. } = self;
        let held = &mut table[at];
        let is_dead = |it: &Voucher| it.shard == from && it.number <= known;
        if let Some(Voucher { tokens, spent, .. }) = vouchers.remove(&mut held.vouchers, is_dead) {
            held.lent -= tokens - spent;
            held.bucket.book(rate, (tokens - spent).into(), now);
        }
    }

    /// Answers those who wait, the first one first, as far as there is something to say.
    fn serve(&mut self, at: u32, now: Nanos, out: &mut Out) {
        self.expire(at, now);
        loop {
            let held = &self.table[at];
            let Some(Pending { shard, ask, since }) = self.asks.each(&held.asks).next() else {
                return;
            };
            let (shard, ask, since) = (*shard, *ask, *since);
            let available = held.bucket.available(&self.rate, held.reserved(), now);
            if held.lent > 0 && now >= held.recall_after {
                if now >= since + self.recall_wait {
                    // Whoever has it does not answer.
                    self.table[at].recall_after = now + RECALL_PAUSE;
                } else if available == 0 {
                    self.recall(at, now, out);
                    return;
                }
            }
            let answer = self.answer(at, shard, &ask, available, now, out);
            let held = &mut self.table[at];
            self.asks.remove(&mut held.asks, |it| it.shard == shard);
            out.send(shard, self.table.key(at), Body::Answer(answer), true);
        }
    }

    fn answer(
        &mut self,
        at: u32,
        to: ShardId,
        ask: &Ask,
        available: u64,
        now: Nanos,
        out: &mut Out,
    ) -> Answer {
        let wanted = u64::from(ask.wanted.max(1));
        let held = &self.table[at];
        // The rest is asked for again, and then recalled.
        let may_recall = available > 0 && held.lent > 0 && now >= held.recall_after;
        let (mut voucher, mut tokens) = (0, 0);
        if available > 0 {
            let needed = wanted.min(available);
            let count = needed + self.advance(at, to, ask, available - needed, now);
            tokens = u32::try_from(count).unwrap_or(u32::MAX);
            voucher = out.next_voucher();
            let held = &mut self.table[at];
            held.lent += tokens;
            let use_by = now + self.lifetime;
            let new =
                Voucher { number: voucher, shard: to, tokens, spent: 0, use_by, recalled: None };
            self.vouchers.push(&mut held.vouchers, new);
        }
        let (mut ask_after, mut until) = (Nanos(0), Nanos(0));
        if available < wanted && !may_recall {
            let (rate, held) = (&self.rate, &self.table[at]);
            let lent = held.reserved();
            until = held.bucket.holds_at(rate, 1, lent, now);
            let of_pace = PACE.as_nanos() as u64 / rate.interval().as_nanos() as u64;
            let fair = u64::from(rate.burst()) / (2 * u64::from(self.shards));
            ask_after = held.bucket.holds_at(rate, of_pace.min(fair).max(1), lent, now);
            if tokens == 0 && held.lent > 0 {
                ask_after = ask_after.min(now + RECALL_PAUSE);
            }
        }
        Answer {
            number: ask.number,
            voucher,
            tokens,
            use_by: now + self.lifetime,
            ask_after,
            until,
        }
    }

    /// Tokens beyond those that are asked for, for a shard that will ask again at once: a part of
    /// what is left, and no more than twice what it has just spent. None where few are left: they
    /// would be recalled.
    fn advance(&self, at: u32, to: ShardId, ask: &Ask, rest: u64, now: Nanos) -> u64 {
        let is_busy = now < ask.settled.at + BUSY_WITHIN;
        if to == self.id || !is_busy || rest < 2 * u64::from(self.shards) {
            return 0;
        }
        let held = &self.table[at];
        let others = self.vouchers.each(&held.vouchers).count() as u64;
        let part = rest / (2 * (others + 1));
        part.min(2 * u64::from(ask.settled.spent))
    }

    /// Asks all holders for what they have left, unless they were asked just now.
    fn recall(&mut self, at: u32, now: Nanos, out: &mut Out) {
        let key = self.table.key(at);
        let held = &self.table[at];
        let is_due = |it: &Voucher| it.recalled.is_none_or(|last| now >= last + RECALL_PAUSE);
        while let Some(voucher) = self.vouchers.find_mut(&held.vouchers, is_due) {
            voucher.recalled = Some(now);
            out.send(voucher.shard, key, Body::Recall { voucher: voucher.number }, true);
        }
    }

    /// Where a bucket is; `None` if there is no room for it.
    #[inline]
    fn find_or_make(&mut self, key: Key, now: Nanos, out: &mut Out) -> Option<u32> {
        match self.table.find(key) {
            Some(at) => Some(at),
            None => self.make(key, now, out),
        }
    }

    fn make(&mut self, key: Key, now: Nanos, out: &mut Out) -> Option<u32> {
        if self.table.is_full() {
            let oldest: [Option<u32>; EVICTIONS_TRIED] = {
                let mut ages = self.table.by_age();
                std::array::from_fn(|_| ages.next())
            };
            let mut tried = oldest.into_iter().flatten();
            let full = tried.find(|at| {
                self.expire(*at, now);
                self.may_leave(*at, now)
            });
            match (full, self.when_full, oldest[0]) {
                (Some(at), ..) => self.forget(at, now, out),
                (None, WhenFull::Evict, Some(at)) => self.forget(at, now, out),
                (None, ..) => {
                    // The next one looks at others.
                    oldest.into_iter().flatten().for_each(|at| self.table.touch(at));
                    return None;
                }
            }
        }
        Some(self.table.insert(key, Held::default()))
    }

    /// It is as good as new.
    fn may_leave(&self, at: u32, now: Nanos) -> bool {
        let held = &self.table[at];
        let is_idle = held.vouchers.is_empty() && held.asks.is_empty() && held.held == 0;
        held.bucket.is_full(now) && is_idle || mutation::is_on(Mutation::RateBusyForgotten)
    }

    fn forget(&mut self, at: u32, now: Nanos, out: &mut Out) {
        self.evicted_busy += u64::from(!self.may_leave(at, now));
        if !self.table[at].asks.is_empty() {
            // What was recalled is not waited for any longer. Would they ask again instead, they might
            // drive each other out for ever.
            self.table[at].recall_after = now + RECALL_PAUSE;
            self.serve(at, now, out);
        }
        let held = &mut self.table[at];
        while self.vouchers.pop(&mut held.vouchers).is_some() {}
        self.table.remove(at);
    }
}

impl Held {
    /// Tokens that are out, and may be spent at any moment.
    #[inline]
    fn reserved(&self) -> u64 {
        let lent = if mutation::is_on(Mutation::RateLentNotCounted) { 0 } else { self.lent };
        let held = if mutation::is_on(Mutation::RateHeldNotCounted) { 0 } else { self.held };
        u64::from(lent) + u64::from(held)
    }
}
