//! What the control thread and the shards tell each other, carried by [`crate::mailbox`].
//!
//! ```text
//! control                                    shard
//!    | <- Ready ------------------------------- |
//!    | -- Prepare(1) -------------------------> |  knows its clusters and endpoints
//!    | <- PlanPrepared { 1 } ------------------ |
//!    | -- Activate { 1 } (all have prepared) -> |  serves by it
//!    | <- PlanApplied { 1 } ------------------- |
//!    | -- Prepare(2) -------------------------> |
//!    | <- PlanPrepared { 2 } ------------------ |
//!    | -- Activate { 2 } ---------------------> |  new requests by 2, those in flight by 1
//!    | <- PlanApplied { 2 } ------------------- |
//!    | -- Override { .. } --------------------> |  only to the home of the breaker's cluster
//!    | <- OverrideApplied { .. } -------------- |  when every shard has it
//!    | -- Drain(Announce) --------------------> |  accepts on, answers with `Connection: close`
//!    | -- Drain(Close) -----------------------> |  empties the accept queues, closes listeners
//!    | <- Closed ------------------------------ |  hands nothing over any more
//!    | -- Drain(Finish) (all have closed) ----> |
//!    | <- Drained ----------------------------- |  when the last exchange has ended
//!    | -- Drain(Cut) -------------------------> |  only if that took too long
//!    | -- StopNow (all have drained) ---------> |  the thread ends
//! ```

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::breaker::Override;
use crate::plan::Plan;
use crate::rate;
use crate::reconcile::{EndpointId, Message, ShardId};

/// To a shard, from the control thread or from another shard.
#[derive(Debug)]
pub enum ToShard {
    /// Get to know this plan, so that nobody asks about somebody unknown, and answer with
    /// [`FromShard::PlanPrepared`]. Ignore one that is not newer than what you have.
    Prepare(Arc<Plan>),
    /// Every shard has prepared it: serve new requests by it, and answer with
    /// [`FromShard::PlanApplied`].
    Activate {
        /// [`Plan::generation`].
        generation: u64,
    },
    /// Override a breaker that is decided here, and answer with [`FromShard::OverrideApplied`]
    /// when every shard has it.
    Override {
        /// Whose.
        endpoint: EndpointId,
        /// What an operator wants.
        wanted: Override,
        /// Counts the overrides of the process; a newer one wins.
        generation: u64,
    },
    /// The next step of an orderly end. Steps only go forward; a later one implies the earlier.
    Drain(Drain),
    /// End now: no answers, no goodbyes.
    StopNow,
    /// Of another shard: its part in the agreement.
    Peer {
        /// Which shard says it.
        from: ShardId,
        /// What it says.
        message: Message,
    },
    /// Of another shard: about a bucket of a rate limit.
    Rate {
        /// Which shard says it.
        from: ShardId,
        /// What it says.
        message: rate::Message,
    },
    /// Of another shard, which has more than its share: a client's connection to serve.
    Accepted(Accepted),
}

/// A connection that was accepted, and of which nothing was read.
#[derive(Debug)]
pub struct Accepted {
    /// Which shard took it from its queue.
    pub by: usize,
    /// The listener that it came in by: its place in the plan.
    pub listener: usize,
    /// Its socket, non-blocking, not watched by anybody.
    pub socket: OwnedFd,
    /// The client's address.
    pub peer: SocketAddr,
}

/// The steps of an orderly end. The control thread keeps the time; a shard has no deadline of its
/// own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// Go on accepting, but answer with `Connection: close`, so that clients go elsewhere.
    Announce,
    /// Accept what still queues (closing a SO_REUSEPORT socket resets it), close the listeners and
    /// say [`FromShard::Closed`]; close idle connections.
    Close,
    /// Every shard has closed its listeners: what others have handed over is in the mailbox by now.
    /// Finish what is running, and say [`FromShard::Drained`].
    Finish,
    /// Time is up: cut off what is left (`Reason::DrainTimeout`), and say [`FromShard::Drained`].
    Cut,
}

/// Shard to control thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromShard {
    /// The runtime runs and waits for its first plan.
    Ready {
        /// Who says so.
        shard: usize,
        /// `io_uring` or `epoll`.
        driver: String,
        /// The ring's flags, `SINGLE_ISSUER|DEFER_TASKRUN|TASKRUN_FLAG` for instance; empty for
        /// none.
        flags: String,
    },
    /// This shard knows a plan.
    PlanPrepared {
        /// Who says so.
        shard: usize,
        /// [`Plan::generation`].
        generation: u64,
    },
    /// New requests on this shard are served by this plan, and its listeners accept.
    PlanApplied {
        /// Who says so.
        shard: usize,
        /// [`Plan::generation`].
        generation: u64,
    },
    /// Every shard has applied an override. Those before it, of the same breaker, may go
    /// unanswered.
    OverrideApplied {
        /// Whose.
        endpoint: EndpointId,
        /// Which.
        generation: u64,
    },
    /// The listeners are closed: this shard hands no connection over any more.
    Closed {
        /// Who says so.
        shard: usize,
    },
    /// Nothing is in flight, nothing is accepted, all is flushed. The thread stays until it is told
    /// [`ToShard::StopNow`]: the others may need what it decides.
    Drained {
        /// Who says so.
        shard: usize,
    },
}
