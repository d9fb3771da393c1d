//! The shard: one pinned thread, one ring, and all that a request touches.

pub mod message;
