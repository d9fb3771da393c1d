//! What a rate limit costs a request that it admits: whose bucket it is, and a token of it.

use std::hint::black_box;
use std::time::Duration;

use outrigger::rate::{
    Key, KeyMaker, LIFETIME_MIN, Rate, RateLimitId, RateLimitSpec, RateLimiter, WhenFull,
};
use outrigger::reconcile::ShardId;
use outrigger::time::Nanos;

use super::{Step, Work};

pub const STEPS: &[Step] = &[
    Step { name: "rate: key of an address", prepare: || key(&[192, 0, 2, 1]) },
    Step { name: "rate: key of 64 bytes", prepare: || key(&[7; 64]) },
    Step { name: "rate: take, 1 of 10000 keys", prepare: || take(false) },
    Step { name: "rate: take and spend, 1 of 10000 keys", prepare: || take(true) },
];

const LIMIT: RateLimitId = RateLimitId(0);

fn key(part: &'static [u8]) -> Work {
    Box::new(move || {
        let mut maker = KeyMaker::new(LIMIT.0);
        maker.add(black_box(part));
        black_box(maker.finish());
    })
}

/// On the shard that is its home, where there is a token each time.
fn take(holds: bool) -> Work {
    let spec = RateLimitSpec {
        id: LIMIT,
        rate: Rate::new(1, Duration::from_micros(1), 1_000),
        keys_max: 100_000,
        when_full: WhenFull::Evict,
        recall_wait: Duration::from_millis(50),
        lifetime: LIFETIME_MIN,
    };
    let mut limiter = RateLimiter::new(ShardId(0), 1);
    limiter.prepare(&[spec]);
    let mut now = Nanos(1_000_000_000);
    limiter.activate(&[spec], now);
    let keys: Vec<Key> = (0..10_000u32)
        .map(|client| {
            let mut maker = KeyMaker::new(LIMIT.0);
            maker.add(&client.to_be_bytes());
            maker.finish()
        })
        .collect();
    for key in &keys {
        limiter.take(LIMIT, *key, false, now);
    }
    let mut at = 0;
    Box::new(move || {
        at = (at + 1) % keys.len();
        now = now + Duration::from_micros(1);
        let taken = black_box(limiter.take(LIMIT, black_box(keys[at]), holds, now));
        if holds {
            limiter.release(LIMIT, keys[at], 0, true, now);
        }
        black_box((taken, limiter.next_event(), limiter.next_due()));
    })
}
