//! The world of rate limits: shards, the wires between them, a clock, and requests for tokens. After
//! each token it looks at every window of its bucket; when the world has healed, at whether all that
//! is due can be had, on whichever shard.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Fault, Settings, Tally};
use crate::rate::{
    Key, LIFETIME_MIN, Message, Rate, RateLimitId, RateLimitSpec, RateLimiter, Taken, WhenFull,
};
use crate::reconcile::ShardId;
use crate::rng::{Rng, splitmix};
use crate::time::Nanos;

/// Limits of this world, and keys of each.
const LIMITS: u32 = 3;
const KEYS: u8 = 4;

/// A request that waits gives up after this.
const PATIENCE: Duration = Duration::from_millis(100);

/// In a healed world an answer takes no longer, a recall included.
const ANSWER: Duration = Duration::from_millis(60);

/// In a healed world a loop goes round this often.
const TURN: Duration = Duration::from_millis(1);

/// One step of a history, as [`super::Op`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateOp {
    /// Time goes by.
    Wait(Duration),
    /// A shard's loop goes round.
    Turn {
        /// Which shard.
        shard: u8,
    },
    /// Requests arrive.
    Take {
        /// At this shard.
        shard: u8,
        /// For this limit.
        limit: u8,
        /// Of this client.
        key: u8,
        /// So many.
        count: u8,
        /// The shard does not look at the clock, nor at its mailbox before.
        stale: bool,
        /// Another limit refuses them: what they take they put back.
        refused: bool,
    },
    /// A shard stands still.
    Stall {
        /// Which.
        shard: u8,
        /// For so long.
        time: Duration,
    },
    /// A new plan: a limit gets other settings, on one shard after the other.
    Plan {
        /// Which limit.
        limit: u8,
    },
}

impl RateOp {
    /// A history of so many steps.
    pub fn history(seed: u64, steps: u32) -> Vec<RateOp> {
        let mut rng = Rng::new(seed ^ 0x7261_7465_6c69_6d69);
        (0..steps).map(|_| RateOp::draw(&mut rng)).collect()
    }

    fn draw(rng: &mut Rng) -> RateOp {
        let bits = rng.bits();
        let (a, b, c) = ((bits >> 8) as u8, (bits >> 16) as u8, (bits >> 24) as u8);
        let word = (bits >> 32) as u32;
        match bits as u8 {
            0..70 => RateOp::Turn { shard: a },
            70..180 => RateOp::Take {
                shard: a,
                limit: b,
                key: c & c >> 4,
                count: 1 + (word % 5) as u8,
                stale: word & 0x300 == 0,
                refused: word & 0x7000 == 0,
            },
            180..184 => {
                let time = Duration::from_micros(u64::from(word) % 1_500_000);
                RateOp::Stall { shard: a, time }
            }
            184..187 => RateOp::Plan { limit: a },
            187..=255 => RateOp::Wait(Duration::from_micros(match a {
                0..160 => u64::from(word) % 2_000,
                160..230 => u64::from(word) % 20_000,
                230..=255 => u64::from(word) % 400_000,
            })),
        }
    }
}

/// One shard.
struct Node {
    limiter: RateLimiter,
    clock: Nanos,
    stalled_until: Nanos,
    wires: Vec<VecDeque<(Nanos, Message)>>,
}

/// A request that waits for a token.
struct Waiting {
    shard: usize,
    limit: RateLimitId,
    key: Key,
    until: Nanos,
    /// Another limit refuses it when it has its token.
    refused: bool,
    holds: bool,
}

/// A token that is taken, and of which other limits have not spoken yet.
struct Held {
    shard: usize,
    limit: RateLimitId,
    key: Key,
    voucher: u64,
    is_spent: bool,
    until: Nanos,
}

struct World {
    now: Nanos,
    fates: Rng,
    lost: u8,
    repeated: u8,
    delay_max: Duration,
    reorders: bool,
    nodes: Vec<Node>,
    specs: Vec<RateLimitSpec>,
    waiting: BTreeMap<u64, Waiting>,
    held: Vec<Held>,
    /// Other limits speak within this.
    held_max: Duration,
    tokens: u64,
    /// When tokens were taken, by limit and key; ascending.
    taken: BTreeMap<(RateLimitId, Key), Vec<Nanos>>,
    tally: Tally,
}

/// Runs a history.
pub(super) fn replay(
    seed: u64,
    settings: Settings,
    history: &[RateOp],
) -> Result<Tally, (Fault, usize)> {
    let mut world = World::new(seed, settings.shards);
    for (at, op) in history.iter().enumerate() {
        world.step(*op).map_err(|fault| (fault, at + 1))?;
    }
    world.heal().map_err(|fault| (fault, history.len()))?;
    Ok(world.tally)
}

/// As `rate::KeyMaker` makes them: uniform. The same for all seeds.
fn key_of(key: u8) -> Key {
    let mut word = u64::from(key % KEYS);
    Key(u128::from(splitmix(&mut word)) << 64 | u128::from(splitmix(&mut word)))
}

impl World {
    fn new(seed: u64, shards: Option<u16>) -> World {
        let mut fates = Rng::new(seed ^ 0x746f_6b65_6e73);
        let shards = shards.unwrap_or(1 + fates.below(5) as u16);
        let mut spec = |id| {
            let interval = [5, 20, 100, 400][fates.below(4) as usize];
            let burst = [1, 2, 3, 8, 40][fates.below(5) as usize];
            RateLimitSpec {
                id: RateLimitId(id),
                rate: Rate::new(1, Duration::from_millis(interval), burst),
                // One limit has room for too few.
                keys_max: if id == 0 { 1 + fates.below(3) as u32 } else { 1_000 },
                recall_wait: Duration::from_millis(20),
                lifetime: LIFETIME_MIN,
                when_full: [WhenFull::Evict, WhenFull::Refuse][fates.below(2) as usize],
            }
        };
        let specs: Vec<_> = (0..LIMITS).map(&mut spec).collect();
        let node = |id| {
            let mut limiter = RateLimiter::new(ShardId(id), shards);
            limiter.prepare(&specs);
            limiter.activate(&specs, Nanos(1));
            let wires = (0..shards).map(|_| VecDeque::new()).collect();
            Node { limiter, clock: Nanos(0), stalled_until: Nanos(0), wires }
        };
        World {
            now: Nanos(1_000_000_000),
            lost: [0, 8, 40, 100][fates.below(4) as usize],
            repeated: [0, 8, 40][fates.below(3) as usize],
            delay_max: Duration::from_micros([50, 1_000, 10_000, 60_000][fates.below(4) as usize]),
            reorders: fates.below(2) == 0,
            nodes: (0..shards).map(node).collect(),
            specs,
            waiting: BTreeMap::new(),
            held: Vec::new(),
            held_max: PATIENCE,
            tokens: 0,
            taken: BTreeMap::new(),
            tally: Tally::default(),
            fates,
        }
    }

    fn step(&mut self, op: RateOp) -> Result<(), Fault> {
        match op {
            RateOp::Wait(time) => {
                self.now = self.now + time;
                Ok(())
            }
            RateOp::Turn { shard } => self.turn(self.pick(shard)),
            RateOp::Take { shard, limit, key, count, stale, refused } => {
                let shard = self.pick(shard);
                if self.nodes[shard].stalled_until > self.now {
                    return Ok(());
                }
                if !stale || self.nodes[shard].clock == Nanos(0) {
                    self.turn(shard)?;
                }
                let limit = RateLimitId(u32::from(limit) % LIMITS);
                for _ in 0..count {
                    self.take(shard, limit, key_of(key), refused)?;
                }
                Ok(())
            }
            RateOp::Stall { shard, time } => {
                let shard = self.pick(shard);
                self.nodes[shard].stalled_until = self.now + time;
                Ok(())
            }
            RateOp::Plan { limit } => self.change(usize::from(limit) % self.specs.len()),
        }
    }

    fn pick(&self, shard: u8) -> usize {
        usize::from(shard) % self.nodes.len()
    }

    /// Another rate, by so little that the bound is as tight as before.
    fn change(&mut self, limit: usize) -> Result<(), Fault> {
        let spec = &mut self.specs[limit];
        let interval = spec.rate.interval();
        let is_round = interval.subsec_nanos().is_multiple_of(1_000);
        let one = Duration::from_nanos(1);
        let interval = if is_round { interval + one } else { interval - one };
        spec.rate = Rate::new(1, interval, spec.rate.burst());
        for shard in 0..self.nodes.len() {
            let node = &mut self.nodes[shard];
            node.limiter.activate(&self.specs, node.clock);
            self.after(shard)?;
        }
        Ok(())
    }

    /// A loop goes round: the clock is read, messages, timers, then what comes of it is sent.
    fn turn(&mut self, shard: usize) -> Result<(), Fault> {
        if self.nodes[shard].stalled_until > self.now {
            return Ok(());
        }
        let now = self.now;
        self.nodes[shard].clock = now;
        for (from, message) in self.arrived(shard) {
            self.nodes[shard].limiter.receive(ShardId(from as u16), message, now);
            self.after(shard)?;
        }
        self.nodes[shard].limiter.turn(now);
        self.after(shard)?;
        for held in self.held.extract_if(.., |it| it.shard == shard && it.until <= now) {
            let Held { limit, key, voucher, is_spent, .. } = held;
            self.nodes[shard].limiter.release(limit, key, voucher, is_spent, now);
        }
        self.after(shard)?;
        let late = |it: &Waiting| it.shard == shard && it.until <= now;
        let late: Vec<u64> =
            self.waiting.iter().filter(|(_, it)| late(it)).map(|(token, _)| *token).collect();
        for token in late {
            let Some(Waiting { limit, key, .. }) = self.waiting.remove(&token) else { continue };
            self.tally.tokens_unanswered += 1;
            if !self.nodes[shard].limiter.cancel(limit, key, token) {
                return Err(Fault::Safety(format!("{token} waits, and nobody knows of it")));
            }
        }
        Ok(())
    }

    fn arrived(&mut self, shard: usize) -> Vec<(usize, Message)> {
        let (now, reorders) = (self.now, self.reorders);
        let mut all = Vec::new();
        for (from, wire) in self.nodes[shard].wires.iter_mut().enumerate() {
            if reorders {
                wire.make_contiguous().sort_by_key(|(due, _)| *due);
            }
            while wire.front().is_some_and(|(due, _)| *due <= now) {
                all.extend(wire.pop_front().map(|(due, message)| (due, from, message)));
            }
        }
        all.sort_by_key(|(due, from, _)| (*due, *from));
        all.into_iter().map(|(_, from, message)| (from, message)).collect()
    }

    /// Events are acted on, messages leave.
    fn after(&mut self, shard: usize) -> Result<(), Fault> {
        let clock = self.nodes[shard].clock;
        while let Some(event) = self.nodes[shard].limiter.next_event() {
            let Some(waiting) = self.waiting.remove(&event.token) else {
                return Err(Fault::Safety(format!("{event:?} is about nobody")));
            };
            let Waiting { limit, key, refused, holds, .. } = waiting;
            match event.got {
                Ok(voucher) => {
                    self.tally.tokens_waited += 1;
                    if holds {
                        self.hold(shard, limit, key, voucher, !refused);
                    }
                    if !refused {
                        self.took(limit, key, clock)?;
                    }
                }
                Err(_) => self.tally.tokens_refused += 1,
            }
        }
        while let Some((to, message)) = self.nodes[shard].limiter.outgoing() {
            self.send(shard, usize::from(to.0), message);
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.tally.messages += 1;
        let fate = self.fates.bits();
        let micros = self.delay_max.as_micros() as u64;
        let delay = |bits: u64| Duration::from_micros(bits % (micros + 1));
        let due = self.now + delay(fate >> 24);
        let wire = &mut self.nodes[to].wires[from];
        if (fate as u8) >= self.lost {
            wire.push_back((due, message));
        } else {
            self.tally.lost += 1;
        }
        if ((fate >> 8) as u8) < self.repeated {
            // The repetition may come very late: after the voucher's end, too.
            wire.push_back((due + delay(fate >> 40) * 30, message));
        }
    }

    /// One request.
    fn take(
        &mut self,
        shard: usize,
        limit: RateLimitId,
        key: Key,
        refused: bool,
    ) -> Result<(), Fault> {
        let node = &mut self.nodes[shard];
        let clock = node.clock;
        self.tokens += 1;
        let token = self.tokens;
        let holds = refused || token.is_multiple_of(2);
        match node.limiter.take(limit, key, holds, clock) {
            Taken::Yes(voucher) => {
                if holds {
                    self.hold(shard, limit, key, voucher, !refused);
                }
                if !refused {
                    self.took(limit, key, clock)?;
                }
            }
            Taken::No { until } if until < clock => {
                return Err(Fault::Safety("a token was there before it was refused".into()));
            }
            Taken::No { .. } | Taken::TableFull => self.tally.tokens_refused += 1,
            Taken::Ask => {
                let until = self.now + PATIENCE;
                let waiting = Waiting { shard, limit, key, until, refused, holds };
                self.waiting.insert(token, waiting);
                if !node.limiter.wait(limit, key, token, holds, clock) {
                    self.waiting.remove(&token);
                }
            }
        }
        self.after(shard)
    }

    /// Other limits speak now, or later.
    fn hold(&mut self, shard: usize, limit: RateLimitId, key: Key, voucher: u64, is_spent: bool) {
        let fate = self.fates.bits();
        let clock = self.nodes[shard].clock;
        if fate.is_multiple_of(2) || self.held_max.is_zero() {
            self.nodes[shard].limiter.release(limit, key, voucher, is_spent, clock);
            return;
        }
        let micros = (fate >> 8) % (self.held_max.as_micros() as u64 + 1);
        let until = clock + Duration::from_micros(micros);
        self.held.push(Held { shard, limit, key, voucher, is_spent, until });
    }

    /// A token was taken: looks at every window that it is in.
    fn took(&mut self, limit: RateLimitId, key: Key, at: Nanos) -> Result<(), Fault> {
        self.tally.tokens += 1;
        let times = self.taken.entry((limit, key)).or_default();
        let place = times.partition_point(|other| *other <= at);
        times.insert(place, at);
        if self.nodes.iter().any(|node| node.limiter.table(limit).evicted_busy > 0) {
            return Ok(()); // A bucket was forgotten, and that was said.
        }
        let rate = self.specs[limit.0 as usize].rate;
        // By the shorter of the two intervals that it ever has.
        let micros = rate.interval().as_nanos() / 1_000 * 1_000;
        let (interval, burst) = (micros as u64, u64::from(rate.burst()));
        let mut full_at = 0;
        for time in times.iter() {
            full_at = full_at.max(time.0) + interval;
            if full_at - time.0 > burst * interval {
                let what = format!("{limit:?} {key:?}: more than {burst} and one in {interval} ns");
                return Err(Fault::Safety(format!("{what} until {time:?}")));
            }
        }
        Ok(())
    }

    // ---- A healed world -----------------------------------------------------------------------

    fn heal(&mut self) -> Result<(), Fault> {
        (self.lost, self.repeated, self.delay_max) = (0, 0, Duration::from_micros(50));
        for node in &mut self.nodes {
            node.stalled_until = self.now;
            // Behind one that is very late, others would wait in their queue.
            for (due, _) in node.wires.iter_mut().flatten() {
                *due = self.now.min(*due);
            }
        }
        for waiting in self.waiting.values_mut() {
            waiting.until = Nanos::NEVER;
        }
        self.held_max = Duration::ZERO;
        for Held { until, .. } in &mut self.held {
            *until = self.now;
        }
        (0..self.nodes.len()).try_for_each(|shard| self.turn(shard))?;
        // Those who wait have an answer soon, whatever was lost before.
        self.run(PATIENCE)?;
        if let Some((token, waiting)) = self.waiting.iter().next() {
            let Waiting { limit, shard, .. } = waiting;
            return Err(Fault::Liveness(format!("{token} waits for {limit:?} on {shard}")));
        }
        for at in 0..self.specs.len() {
            let limit = self.specs[at].id;
            if self.specs[at].keys_max < u32::from(KEYS) {
                continue;
            }
            for key in (0..KEYS).map(key_of) {
                self.run(self.refill(at) + LIFETIME_MIN)?;
                let first = self.fates.below(self.nodes.len() as u64) as usize;
                let second = self.fates.below(self.nodes.len() as u64) as usize;
                self.burst_is_whole(at, key, first, second)?;
                self.run(self.refill(at) + LIFETIME_MIN)?;
                // What is lent in advance and not used comes back, before it would be lost.
                let (interval, burst) = (self.interval(at), self.specs[at].rate.burst());
                let mut spent = 0;
                for _ in 0..burst / 3 {
                    spent += self.ask_for(first, limit, key, 1)?;
                }
                self.run(LIFETIME_MIN.max(interval * spent) + ANSWER)?;
                let got = self.ask_for(second, limit, key, burst)?;
                if got < burst {
                    let what = format!("{got} of {burst} of {limit:?} are back on {second}");
                    return Err(Fault::Liveness(what));
                }
            }
        }
        Ok(())
    }

    /// Whoever asks first, all of the burst is there, and no more.
    fn burst_is_whole(
        &mut self,
        at: usize,
        key: Key,
        first: usize,
        second: usize,
    ) -> Result<(), Fault> {
        let RateLimitSpec { id, rate, .. } = self.specs[at];
        let burst = rate.burst();
        // One by one, so that it is given some in advance.
        let mut got = 0;
        for _ in 0..burst / 3 {
            got += self.ask_for(first, id, key, 1)?;
        }
        got += self.ask_for(second, id, key, burst - burst / 3)?;
        if got < burst {
            let what = format!("{got} of {burst} of {id:?} on {first} and {second}");
            return Err(Fault::Liveness(what));
        }
        Ok(())
    }

    fn interval(&self, at: usize) -> Duration {
        self.specs[at].rate.interval()
    }

    fn refill(&self, at: usize) -> Duration {
        self.interval(at) * self.specs[at].rate.burst()
    }

    /// How many of so many requests are admitted.
    fn ask_for(
        &mut self,
        shard: usize,
        limit: RateLimitId,
        key: Key,
        count: u32,
    ) -> Result<u32, Fault> {
        let before = self.tally.tokens;
        self.turn(shard)?;
        for _ in 0..count {
            self.take(shard, limit, key, false)?;
        }
        let until = self.now + ANSWER;
        while !self.waiting.is_empty() {
            if self.now > until {
                return Err(Fault::Liveness(format!("no answer about {limit:?} on {shard}")));
            }
            self.run(TURN)?;
        }
        Ok((self.tally.tokens - before) as u32)
    }

    fn run(&mut self, time: Duration) -> Result<(), Fault> {
        let until = self.now + time;
        loop {
            let next = self.nodes.iter().map(Node::next).min().unwrap_or(Nanos::NEVER);
            self.now = next.max(self.now + TURN);
            if self.now > until {
                self.now = until;
                return Ok(());
            }
            for shard in 0..self.nodes.len() {
                if self.nodes[shard].next() <= self.now {
                    self.turn(shard)?;
                }
            }
        }
    }
}

impl Node {
    /// When its loop has a reason to go round.
    fn next(&self) -> Nanos {
        let mail = self.wires.iter().filter_map(|wire| wire.front()).map(|(due, _)| *due);
        mail.min().unwrap_or(Nanos::NEVER).min(self.limiter.next_due())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::mutation::{self, Mutation};

    const SETTINGS: Settings = Settings { shards: None, steps: 250 };

    /// Seeds within which each mistake must be found.
    const SEEDS_TO_FIND: u64 = 4_000;

    fn finds(mutation: Mutation) {
        let found = mutation::with(mutation, || {
            (0..SEEDS_TO_FIND).find_map(|seed| {
                let history = RateOp::history(seed, SETTINGS.steps);
                replay(seed, SETTINGS, &history).err().map(|(fault, at)| (seed, fault, at))
            })
        });
        match found {
            Some((seed, fault, at)) => println!("{mutation:?}: seed {seed}, step {at}: {fault}"),
            None => panic!("{mutation:?} goes unseen"),
        }
    }

    /// Seeds that no other test runs.
    fn hold(first: u64, count: u64, shards: Option<u16>) {
        let settings = Settings { shards, ..SETTINGS };
        let mut tally = Tally::default();
        for seed in first..first + count {
            let history = RateOp::history(seed, settings.steps);
            match replay(seed, settings, &history) {
                Ok(more) => tally.add(&more),
                Err((fault, at)) => panic!("seed {seed}, step {at}: {fault}"),
            }
        }
        println!("{tally:?}");
        assert!(tally.tokens > 20 * count && tally.tokens_refused > 20 * count, "{tally:?}");
        if shards != Some(1) {
            assert!(tally.tokens_waited > count && tally.tokens_unanswered > 0, "{tally:?}");
        }
    }

    #[test]
    fn rates_hold() {
        hold(5_000_000, 300, None);
    }

    #[test]
    fn rates_hold_without_messages() {
        hold(6_000_000, 300, Some(1));
    }

    #[test]
    fn rates_hold_for_sixteen_shards() {
        hold(7_000_000, 30, Some(16));
    }

    macro_rules! mutations {
        ($($name:ident: $mutation:ident,)*) => {
            $(
                #[test]
                fn $name() {
                    finds(Mutation::$mutation);
                }
            )*
        };
    }

    mutations! {
        finds_lent_tokens_that_do_not_count: RateLentNotCounted,
        finds_held_tokens_that_do_not_count: RateHeldNotCounted,
        finds_spent_tokens_that_are_returned: RateSpentForgotten,
        finds_ended_vouchers_that_are_forgiven: RateExpiredForgiven,
        finds_a_voucher_that_is_taken_twice: RateVoucherTakenTwice,
        finds_a_voucher_that_never_ends: RateVoucherNeverEnds,
        finds_a_recall_of_tokens_that_is_ignored: RateRecallIgnored,
        finds_tokens_that_are_kept: RateKeepsTokens,
        finds_an_ask_that_is_not_repeated: RateAskedOnce,
        finds_a_busy_bucket_that_is_forgotten: RateBusyForgotten,
        finds_a_reload_that_fills_buckets: ReloadFillsBuckets,
    }
}
