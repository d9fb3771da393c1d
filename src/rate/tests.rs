//! Limiters that talk to each other at once.

use super::*;

/// Some time at which nothing has happened yet.
const START: Nanos = Nanos(5_000_000_000);

fn spec(requests: u32, burst: u32) -> RateLimitSpec {
    RateLimitSpec {
        id: RateLimitId(0),
        rate: Rate::new(requests, Duration::from_secs(1), burst),
        keys_max: 1_000,
        when_full: WhenFull::Refuse,
        recall_wait: Duration::from_millis(20),
        lifetime: LIFETIME_MIN,
    }
}

/// Shards whose messages arrive at once.
struct Process {
    nodes: Vec<RateLimiter>,
    now: Nanos,
    tokens: u64,
    messages: u64,
}

impl Process {
    fn new(shards: u16, spec: RateLimitSpec) -> Process {
        let node = |id| {
            let mut node = RateLimiter::new(ShardId(id), shards);
            node.prepare(&[spec]);
            node.activate(&[spec], START);
            node
        };
        Process { nodes: (0..shards).map(node).collect(), now: START, tokens: 0, messages: 0 }
    }

    /// A request: admitted, or refused until then.
    fn ask(&mut self, shard: usize, key: Key) -> Result<(), Nanos> {
        match self.nodes[shard].take(RateLimitId(0), key, false, self.now) {
            Taken::Yes(_) => Ok(()),
            Taken::No { until } => Err(until),
            Taken::TableFull => Err(Nanos::NEVER),
            Taken::Ask => {
                self.tokens += 1;
                assert!(self.nodes[shard].wait(RateLimitId(0), key, self.tokens, false, self.now));
                loop {
                    if let Some(event) = self.nodes[shard].next_event() {
                        assert_eq!(event.token, self.tokens);
                        self.carry();
                        return event.got.map(|_| ());
                    }
                    assert!(self.carry() || self.pass(Duration::from_millis(1)), "it waits on");
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) -> bool {
        self.now = self.now + time;
        self.nodes.iter_mut().for_each(|node| node.turn(self.now));
        self.now < START + Duration::from_secs(3_600)
    }

    fn carry(&mut self) -> bool {
        let mut carried = false;
        for from in 0..self.nodes.len() {
            while let Some((to, message)) = self.nodes[from].outgoing() {
                self.nodes[usize::from(to.0)].receive(ShardId(from as u16), message, self.now);
                self.messages += 1;
                carried = true;
            }
        }
        carried
    }

    fn admitted(&mut self, shard: usize, key: Key, count: u32) -> u32 {
        (0..count).filter(|_| self.ask(shard, key).is_ok()).count() as u32
    }
}

/// The `n`th key whose home is this shard.
fn key_at(home: u16, shards: u16, n: usize) -> Key {
    let keys = (1..).map(|word: u128| Key(word.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060)));
    keys.map(|key| Key(key.0 << 32 | key.0)).filter(|key| key.home(shards) == home).nth(n).unwrap()
}

#[test]
fn one_shard_says_nothing_to_anybody() {
    let mut process = Process::new(1, spec(1, 7));
    assert_eq!(process.admitted(0, key_at(0, 1, 0), 200), 7);
    assert_eq!(process.admitted(0, key_at(0, 1, 1), 200), 7);
    assert_eq!((process.messages, process.nodes[0].next_due()), (0, Nanos::NEVER));
}

/// Whoever asks, and in whatever order: the burst, and not more.
#[test]
fn the_burst_is_exact_over_shards() {
    for shards in [2, 4, 8] {
        for burst in [1, 7, 100, 1_000] {
            for home in 0..2 {
                let mut process = Process::new(shards, spec(1, burst));
                let key = key_at(home, shards, 0);
                let mut got = 0;
                for round in 0..2 * burst as usize {
                    let shard = (round / 3) % usize::from(shards);
                    got += process.admitted(shard, key, 1);
                }
                assert_eq!(got, burst, "{shards} shards");
            }
        }
    }
}

#[test]
fn a_refusal_is_not_asked_again() {
    let mut process = Process::new(2, spec(1, 3));
    let key = key_at(0, 2, 0);
    assert_eq!(process.admitted(1, key, 3), 3);
    let until = process.ask(1, key).unwrap_err();
    assert_eq!(until, START + Duration::from_secs(1));
    let messages = process.messages;
    assert_eq!(process.admitted(1, key, 1_000), 0);
    assert_eq!(process.messages, messages);
    process.now = until;
    assert_eq!(process.admitted(1, key, 5), 1);
}

/// A key in demand costs a message now and then, and not one each.
#[test]
fn busy_shards_get_some_in_advance() {
    let mut process = Process::new(4, spec(10_000, 10_000));
    assert_eq!(process.admitted(1, key_at(0, 4, 0), 4_000), 4_000);
    assert!(process.messages < 120, "{} messages", process.messages);
}

/// What an idle shard has left comes back without being asked for.
#[test]
fn what_is_left_comes_back() {
    let mut process = Process::new(2, spec(1, 100));
    let key = key_at(0, 2, 0);
    assert_eq!(process.admitted(1, key, 5), 5);
    process.pass(holder::RETURN_AFTER + Duration::from_millis(1));
    process.carry();
    let before = process.messages;
    assert_eq!(process.admitted(0, key, 200), 95);
    assert_eq!(process.messages, before, "nothing had to be recalled");
}

#[test]
fn a_token_that_is_put_back_can_be_taken_again() {
    for shard in 0..2 {
        let mut process = Process::new(2, spec(1, 50));
        let key = key_at(0, 2, 0);
        assert_eq!(process.admitted(shard, key, 5), 5);
        // It has some now, or they are its own.
        let node = &mut process.nodes[shard];
        let Taken::Yes(voucher) = node.take(RateLimitId(0), key, true, process.now) else {
            panic!("it has none");
        };
        node.release(RateLimitId(0), key, voucher, false, process.now);
        assert_eq!(process.admitted(shard, key, 100), 45);
    }
}

#[test]
fn buckets_that_are_full_again_make_room_and_busy_ones_do_not() {
    let small = RateLimitSpec { keys_max: 2, ..spec(1, 1) };
    for when_full in [WhenFull::Refuse, WhenFull::Evict] {
        let mut process = Process::new(1, RateLimitSpec { when_full, ..small });
        let key = |n| key_at(0, 1, n);
        assert!(process.ask(0, key(0)).is_ok() && process.ask(0, key(1)).is_ok());
        let third = process.ask(0, key(2));
        let table = process.nodes[0].table(RateLimitId(0));
        assert_eq!(table.keys, 2);
        let counted = (table.evicted_busy, table.turned_away);
        match when_full {
            WhenFull::Refuse => assert_eq!((third, counted), (Err(Nanos::NEVER), (0, 1))),
            WhenFull::Evict => {
                assert_eq!((third, counted), (Ok(()), (1, 0)));
                assert!(process.ask(0, key(1)).is_err(), "the older one was forgotten");
            }
        }
        process.pass(Duration::from_secs(1));
        assert!(process.ask(0, key(3)).is_ok(), "they are full again");
        assert_eq!(process.nodes[0].table(RateLimitId(0)), table, "and nothing was lost");
    }
}

/// Those used least recently are not those that are full first: eight of them keep nobody out.
#[test]
fn a_few_empty_buckets_do_not_keep_others_out() {
    let mut process = Process::new(1, RateLimitSpec { keys_max: 20, ..spec(10, 10) });
    for n in 0..8 {
        assert_eq!(process.admitted(0, key_at(0, 1, n), 10), 10);
    }
    for n in 8..20 {
        assert_eq!(process.admitted(0, key_at(0, 1, n), 1), 1);
    }
    process.pass(Duration::from_millis(100));
    let admitted = (20..32).filter(|n| process.ask(0, key_at(0, 1, *n)).is_ok()).count();
    assert!(admitted >= 11, "{admitted} of 12, and 12 buckets are full again");
    assert_eq!(process.nodes[0].table(RateLimitId(0)).evicted_busy, 0);
    assert_eq!(process.admitted(0, key_at(0, 1, 0), 5), 1, "these are kept");
}

/// The same where requests wait for another shard, which does not answer.
#[test]
fn a_few_that_wait_do_not_keep_others_out() {
    let small = RateLimitSpec { keys_max: 30, when_full: WhenFull::Evict, ..spec(10, 10) };
    let mut process = Process::new(3, small);
    let limit = RateLimitId(0);
    for n in 0..8 {
        let (key, now) = (key_at(0, 3, n), process.now);
        assert_eq!(process.nodes[1].take(limit, key, false, now), Taken::Ask);
        assert!(process.nodes[1].wait(limit, key, 1_000 + n as u64, false, now));
    }
    while process.nodes[1].outgoing().is_some() {}
    for n in 0..20 {
        let refused = (0..2).all(|_| process.ask(1, key_at(2, 3, n)).is_err());
        assert!(!refused, "the {n}th");
    }
}

/// A reload: the same settings keep the buckets, others give no second burst, and what is gone
/// refuses nobody.
#[test]
fn a_reload_fills_no_bucket() {
    let mut process = Process::new(2, spec(1, 10));
    let key = key_at(0, 2, 0);
    assert_eq!(process.admitted(0, key, 6) + process.admitted(1, key, 4), 10);
    let (now, raised) = (process.now, spec(1, 15));
    for (specs, more) in [(vec![spec(1, 10)], 0), (vec![raised], 5), (vec![spec(1, 8)], 0)] {
        for node in &mut process.nodes {
            node.prepare(&specs);
            node.activate(&specs, now);
        }
        process.carry();
        assert_eq!(process.admitted(0, key, 1) + process.admitted(1, key, 20), more);
    }
    process.nodes.iter_mut().for_each(|node| node.activate(&[], now));
    assert_eq!(process.admitted(1, key, 20), 20);
}
