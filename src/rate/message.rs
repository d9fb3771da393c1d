//! What shards tell each other about tokens. Any of it may be lost, late, repeated or overtaken: a
//! voucher counts once, by its number; what is not heard of is repeated by those who wait, and all
//! else ends by time.

use super::{Key, RateLimitId};
use crate::time::Nanos;

/// About one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Of which limit.
    pub limit: RateLimitId,
    /// Whose.
    pub key: Key,
    /// Whether the receiver is to be woken for it.
    pub wakes: bool,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// To the home: requests wait for tokens.
    Ask(Ask),
    /// To the home: what became of a voucher.
    Settle(Settled),
    /// From the home: a voucher, or none.
    Answer(Answer),
    /// From the home: others need what is left of this voucher.
    Recall {
        /// Which.
        voucher: u64,
    },
}

/// Tokens are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Of the asking shard, for this key: the answer names it.
    pub number: u32,
    /// How many, at least 1.
    pub wanted: u32,
    /// The newest voucher that the shard has had: it takes this one and older ones no more.
    pub known: u64,
    /// What became of that, if the shard knows: nothing of it will be spent any more.
    pub settled: Settled,
}

/// What became of a voucher, as far as its holder has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settled {
    /// Which; 0 for none.
    pub voucher: u64,
    /// Tokens of it that were spent.
    pub spent: u32,
    /// When the last of them was.
    pub at: Nanos,
    /// The rest is returned.
    pub is_last: bool,
}

/// Of the home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Which ask it answers.
    pub number: u32,
    /// Rises with each voucher of this home; 0 for none.
    pub voucher: u64,
    /// Tokens on it.
    pub tokens: u32,
    /// None of them is good at that time any more.
    pub use_by: Nanos,
    /// If that were not enough: it is of no use to ask before.
    pub ask_after: Nanos,
    /// And when there will be one, as far as is known now.
    pub until: Nanos,
}

/// A message is copied into a queue slot; it stays within two cache lines.
const _: () = assert!(size_of::<Message>() <= 112);
