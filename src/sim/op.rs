//! One step of a history. Steps know nothing of the world: an index is taken modulo what there is,
//! and a step that makes no sense does nothing, so that any part of a history is a history.

use std::time::Duration;

use crate::rng::Rng;

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Time goes by.
    Wait(Duration),
    /// A shard's loop goes round.
    Turn {
        /// Which shard.
        shard: u8,
    },
    /// A request arrives.
    Request {
        /// At this shard.
        shard: u8,
        /// For this endpoint.
        endpoint: u8,
        /// By this route to its cluster, if an odd number.
        route: u8,
        /// It is admitted, and then not sent.
        abandoned: bool,
    },
    /// The answer to a request in flight arrives, or it fails.
    Finish {
        /// Which of them.
        which: u8,
        /// 32 bits that decide how it ends.
        luck: u32,
    },
    /// A request that waits, or was woken to look again, gives up.
    Cancel {
        /// Which of them.
        which: u8,
    },
    /// A connection is opened.
    Connect {
        /// By this shard.
        shard: u8,
        /// To this endpoint.
        endpoint: u8,
    },
    /// A connection is closed.
    Disconnect {
        /// Which of them.
        which: u8,
    },
    /// A retry begins.
    Retry {
        /// At this shard.
        shard: u8,
        /// To this cluster.
        cluster: u8,
    },
    /// A retry ends.
    EndRetry {
        /// Which of them.
        which: u8,
    },
    /// A shard stands still.
    Stall {
        /// Which.
        shard: u8,
        /// For so long.
        time: Duration,
    },
    /// An endpoint stops answering, or nothing does that comes by a route.
    Kill {
        /// Which.
        endpoint: u8,
    },
    /// It answers again.
    Revive {
        /// Which.
        endpoint: u8,
    },
    /// A new plan: an endpoint, a route's breaker or a cluster comes or goes, a limit is set.
    Plan {
        /// Bits that decide what changes.
        change: u32,
    },
    /// An operator overrides a breaker, or releases it.
    Override {
        /// Of which endpoint, or route.
        endpoint: u8,
        /// Bits that decide how.
        wanted: u8,
    },
}

impl Op {
    /// A history of so many steps.
    pub fn history(seed: u64, steps: u32) -> Vec<Op> {
        // Another sequence than the world's own fates.
        let mut rng = Rng::new(seed ^ 0x6f75_7472_6967_6765);
        (0..steps).map(|_| Op::draw(&mut rng)).collect()
    }

    fn draw(rng: &mut Rng) -> Op {
        let bits = rng.bits();
        let (a, b, c) = ((bits >> 8) as u8, (bits >> 16) as u8, (bits >> 24) as u8);
        let word = (bits >> 32) as u32;
        match bits as u8 {
            0..58 => Op::Turn { shard: a },
            58..128 => {
                Op::Request { shard: a, endpoint: b, route: c, abandoned: word.is_multiple_of(32) }
            }
            128..173 => Op::Finish { which: a, luck: word },
            173..178 => Op::Cancel { which: a },
            178..185 => Op::Connect { shard: a, endpoint: b },
            185..190 => Op::Disconnect { which: a },
            190..196 => Op::Retry { shard: a, cluster: b },
            196..201 => Op::EndRetry { which: a },
            201..204 => {
                Op::Stall { shard: a, time: Duration::from_micros(u64::from(word) % 600_000) }
            }
            204..208 => Op::Kill { endpoint: a },
            208..212 => Op::Revive { endpoint: a },
            212..215 => Op::Plan { change: word },
            215..217 => Op::Override { endpoint: a, wanted: b },
            217..=255 => Op::Wait(Duration::from_micros(match a {
                0..160 => u64::from(word) % 2_000,
                160..230 => u64::from(word) % 20_000,
                230..=255 => u64::from(word) % 250_000,
            })),
        }
    }
}
