//! What keeps the shards in agreement, without a lock and without a counter that two of them write:
//! breakers that open everywhere, limits that hold everywhere. Pure: values and a time go in,
//! values come out. No sockets, no clock, no threads; the shard's loop carries the messages, and
//! `sim` carries the same ones through a world that loses, delays and repeats them.
//!
//! Every cluster has one *home* among the shards ([`home_of`]), which decides for it, one thing
//! after the other: breakers, credits, permits. Every shard has a *replica*, which is what requests
//! ask. A [`Reconciler`] is one shard's part: its replica and the homes that are its own. Where a
//! home is on the same shard, messages are calls; with one shard there are no others.
//!
//! # Who calls what
//!
//! ```text
//! turn begins    receive(from, message, now) for all that the mailbox has, then turn(now)
//! a request      a breaker of its route, if any: enter_route
//!                balancer: usable(i) = standing(i, now, dice) is Open or MayAsk; if nobody is,
//!                          Full; if still nobody, anything but Closed
//!                enter, if it was Open; else
//!                admit -> Ok(ticket): send; complete(ticket, outcome, latency, now) at its end,
//!                                     give_back(ticket) if nothing was sent
//!                      -> Err(NoCredit): wait(endpoint, token), with a timeout: cancel(waiter)
//!                      -> Err(NeedsPermit): wait_permit(endpoint, token), for permit_wait and
//!                                           then step_aside, or on if there is nowhere else
//!                      -> Err(Open): choose again; Err(Retired): choose by the newest plan
//!                a ticket with pass.probe: the request is not retried there, not cancelled when
//!                      its client leaves, and ended at view(endpoint).permit().end
//! after a call   next_event() until None: Admitted { token, ticket } and Elsewhere { token } wake
//!                the request that waits under that token
//! a connection   open_connection, or wait_connection -> Event::Connect; close_connection. When it
//!                becomes idle and connections_owed(endpoint) > 0, close it. On Event::CloseIdle
//!                close the oldest idle ones, connections_owed of them
//! a retry        begin_retry, or wait_retry during the backoff -> Event::RetryGranted; end_retry
//! turn ends      outgoing(now) until None: push each; Sender::send if message.wakes, else
//!                send_quietly. What does not fit is dropped
//! sleeping       until the bell rings, or next_due()
//! a plan         prepare(plan) -> say so; activate(generation, now) -> say so (see Rollout)
//! an operator    override_to, on the shard home_of(cluster) -> Event::OverrideApplied
//! an accept      handover: keep it, or give it to another shard
//! ```
//!
//! Prepare and activate carry the plan's generation; the plan itself goes beside `Prepare`. Requests
//! of an older plan may still name slots of the newer one, and the other way round: a slot lives
//! until its endpoint has left the plan and its last ticket is back.
//!
//! Requests cost a handful of comparisons and additions, and no allocation, as long as this shard
//! holds credits and nothing fails; everything else is off their path.
//!
//! # What is promised, and tested by `sim`
//!
//! - Never more in flight than the limit allows (or than were, when it was lowered).
//! - Never more than `probes` sent in one epoch of a half-open endpoint, and never two epochs'
//!   probes at once.
//! - Nothing counts in an epoch that is not its own.
//! - Never more endpoints out than `max_ejected` allows.
//! - Never a retry that neither first attempts nor the home have paid for, or that was paid for longer
//!   ago than the budget keeps what it has.
//! - No round-trip time counts twice, and none of what was asked before the home began to measure.
//! - Whatever messages did, 20 flush intervals after they flow again all shards agree.

mod age;

mod budget;

mod gradient;

mod handover;

mod home;

mod id;

mod lender;

pub mod message;

pub(crate) mod mutation;

mod outbox;

mod plan;

mod purse;

mod queue;

mod reconciler;

mod registry;

mod replica;

mod rollout;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use age::{AGE_BUCKETS, Ages};
pub use budget::Deposits;
pub use gradient::{Adaptive, Gradient, Measured};
pub use handover::handover;
pub use home::Home;
pub use id::{ClusterId, EndpointId, ShardId, home_of};
pub use lender::Lent;
pub use message::{Limit, Message};
pub use plan::{
    ClusterLimits, ClusterSpec, EndpointLimits, EndpointSpec, Kind, PlanSpec, RetryBudget, Role,
    UNLIMITED,
};
pub use purse::Purse;
pub use queue::Waiter;
pub use reconciler::Reconciler;
pub use registry::{EndpointKey, Registry};
pub use replica::{ClusterSlot, EndpointSlot, Refusal, RetryRefusal, Standing, Ticket};
pub use rollout::{Rollout, Step};

use crate::breaker::{Epoch, Phase};
use crate::time::Nanos;

/// What can wait is sent this often. Failures, asks, grants and the like never wait.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(10);

/// Credits that were idle for this long go back to their home.
pub const SURPLUS_AFTER: Duration = Duration::from_secs(1);

/// What a shard's sessions, metrics and admin have to know.
#[derive(Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Clone))]
pub enum Event {
    /// The request that waits under this token may go.
    Admitted {
        /// The caller's name for it.
        token: u64,
        /// As from [`Reconciler::admit`].
        ticket: Ticket,
    },
    /// The request, or connection, that waits under this token waits in vain: choose again.
    Elsewhere {
        /// The caller's name for it.
        token: u64,
    },
    /// The connection that waits under this token may be opened; it counts already.
    Connect {
        /// The caller's name for it.
        token: u64,
        /// To there.
        endpoint: EndpointSlot,
    },
    /// The retry that waits under this token may go; it counts already.
    RetryGranted {
        /// The caller's name for it.
        token: u64,
    },
    /// Others need connections of this cluster: see [`Reconciler::connections_owed`].
    CloseIdle {
        /// Whose.
        cluster: ClusterSlot,
    },
    /// At the home: a breaker has a new state. For metrics and the log.
    Transition {
        /// Whose.
        endpoint: EndpointId,
        /// Its new epoch.
        epoch: Epoch,
        /// Its new state.
        phase: Phase,
    },
    /// At the home: a breaker should trip, but too many are open. For metrics and the log.
    TripRefused {
        /// Whose.
        endpoint: EndpointId,
    },
    /// At the home: a limit that follows what is measured has been reckoned anew. For metrics.
    Concurrency {
        /// Whose.
        cluster: ClusterId,
        /// What may be in flight.
        limit: u64,
        /// The shortest round-trip time, in nanoseconds.
        min_rtt_ns: u64,
        /// Thousandths by which the limit was changed last, before its headroom.
        gradient_milli: u64,
        /// The shortest time is being measured, or about to be.
        is_measuring: bool,
    },
    /// At the home: every shard has applied an override.
    OverrideApplied {
        /// Of which endpoint.
        endpoint: EndpointId,
        /// Which override.
        generation: u64,
    },
}

/// What the machines of one shard want done: messages, events, a look at a later time.
#[derive(Debug, PartialEq, Eq, Hash)]
#[cfg_attr(test, derive(Clone))]
struct Out {
    /// To whom, what, and whether it wakes.
    orders: VecDeque<(ShardId, message::Body, bool)>,
    events: VecDeque<Event>,
    due: Nanos,
    /// When the next flush may be.
    flush_due: Nanos,
    endpoints_gone: Vec<EndpointId>,
    clusters_gone: Vec<ClusterId>,
}

impl Default for Out {
    fn default() -> Out {
        Out {
            orders: VecDeque::new(),
            events: VecDeque::new(),
            due: Nanos::NEVER,
            flush_due: Nanos(0),
            endpoints_gone: Vec::new(),
            clusters_gone: Vec::new(),
        }
    }
}

impl Out {
    fn order(&mut self, to: ShardId, body: message::Body, wakes: bool) {
        self.orders.push_back((to, body, wakes));
    }

    fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    fn due_at(&mut self, at: Nanos) {
        self.due = self.due.min(at);
    }

    fn has_news(&self) -> bool {
        !self.orders.is_empty() || !self.endpoints_gone.is_empty() || !self.clusters_gone.is_empty()
    }
}
