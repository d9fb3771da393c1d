//! How long an exchange waits, and for whom. Each wait is bounded by the connection's one timer;
//! when it fires, somebody looks: it moves the deadline, or ends the wait with a reason.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use super::NoAnswer;
use crate::admit::Order;
use crate::net::{Socket, Timer};
use crate::pace::{self, Pace, Stall};
use crate::reason::Reason;
use crate::relay::{Flow, Side};
use crate::shard::Shard;
use crate::shard::message::Drain;
use crate::time::Nanos;

/// A client that may have left is only looked after in exchanges that take longer than this, so
/// that quick ones do not pay for it.
pub(super) const WATCH_CLIENT_AFTER: Duration = Duration::from_millis(100);

/// Runs `work`, and whenever the timer fires asks `look`: it moves the deadline, or ends the work.
/// So does a drain whose time is up. The timer must have been set since the task last woke.
///
/// # Errors
/// What `look` said, or [`Reason::DrainTimeout`].
pub async fn within<T>(
    shard: &Shard,
    timer: &mut Timer,
    mut work: Pin<&mut impl Future<Output = T>>,
    mut look: impl FnMut(Nanos) -> Result<Nanos, Reason>,
) -> Result<T, Reason> {
    let mut woken = false;
    std::future::poll_fn(|context| {
        let woken = std::mem::replace(&mut woken, true);
        loop {
            if let Poll::Ready(result) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(result));
            }
            if shard.drain() == Some(Drain::Cut) {
                return Poll::Ready(Err(Reason::DrainTimeout));
            }
            if timer.poll_due(woken, context).is_pending() {
                return Poll::Pending;
            }
            let now = Nanos::now();
            match look(now) {
                // Polled once more: what looked may have changed what the work waits for.
                Ok(due) => timer.set(due, now),
                Err(reason) => return Poll::Ready(Err(reason)),
            }
        }
    })
    .await
}

/// The same, and once `look` was asked, or `watched` from the beginning, it also ends if the client
/// turns out to have left. One whose next request still waits in the kernel has not; and `None`
/// stays whatever happens.
pub(super) async fn attended<T>(
    shard: &Shard,
    client: Option<&Socket>,
    watched: bool,
    timer: &mut Timer,
    mut work: Pin<&mut impl Future<Output = T>>,
    mut look: impl FnMut(Nanos) -> Result<Nanos, Reason>,
) -> Result<T, Reason> {
    let watched = Cell::new(watched);
    let mut gone = pin!(async {
        match client {
            Some(client) => gone(client).await,
            None => std::future::pending().await,
        }
    });
    let both = pin!(std::future::poll_fn(|context| {
        if let Poll::Ready(result) = work.as_mut().poll(context) {
            return Poll::Ready(Some(result));
        }
        if watched.get() && gone.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Pending
    }));
    let ended = within(shard, timer, both, |now| {
        watched.set(true);
        look(now)
    });
    ended.await?.ok_or(Reason::ClientGone)
}

/// Ends when the client has left, and nothing of it waits to be read.
async fn gone(client: &Socket) {
    client.ended().await;
    if !client.is_closed() {
        std::future::pending::<()>().await;
    }
}

/// The time that an origin has for its answer, once it has the request.
pub(super) struct Waiting<'a> {
    order: &'a Order,
    due: Nanos,
    /// Waited before, since the timer was set.
    woken: bool,
    /// Waited for so long that the client may have left.
    long: bool,
    /// There is more time, but not for this try.
    is_short: bool,
    /// When another endpoint is asked as well.
    hedge_at: Nanos,
}

/// What a wait for an answer has brought.
pub(super) enum Arrived {
    /// Bytes of it.
    Bytes,
    /// None so far: it is time for a hedge.
    Late,
}

impl<'a> Waiting<'a> {
    /// Begins to count.
    pub fn begin(order: &'a Order, now: Nanos) -> Waiting<'a> {
        let timeouts = order.timeouts();
        let due = now.after(timeouts.answer).min(order.ends_by());
        let whole = due.min(order.probe_until).min(order.answer_until);
        let due = whole.min(now.after(order.retries().try_timeout));
        let hedge_at = Nanos::NEVER;
        Waiting { order, due, woken: false, long: false, is_short: due < whole, hedge_at }
    }

    /// Another endpoint is asked as well then.
    pub fn hedge_at(&mut self, at: Nanos) {
        self.hedge_at = at;
    }

    /// There is no other hedge, and the timer was used for this one.
    pub fn hedged(&mut self) {
        self.hedge_at = Nanos::NEVER;
        self.long = true;
    }

    /// When its time is up.
    pub fn due(&self) -> Nanos {
        self.due
    }

    /// Something else was waited for since the timer was set.
    pub fn has_waited(&mut self) {
        self.woken = true;
    }

    /// When to look first.
    pub fn first_look(&self, now: Nanos) -> Nanos {
        self.due.min(now + WATCH_CLIENT_AFTER).min(self.hedge_at)
    }

    /// Looks: time may be up; if not, it is time to see whether the client is still there.
    pub fn look(&mut self, now: Nanos) -> Result<Nanos, Reason> {
        if now >= self.due {
            return Err(match now >= self.order.ends_by() {
                true => self.order.out_of_time(),
                false if self.is_short => Reason::TryTimeout,
                false => Reason::AnswerTimeout,
            });
        }
        self.long = true;
        Ok(self.due)
    }

    /// Waits for bytes of the answer. The first stage of nearly all exchanges, so it is one flat
    /// future; what takes long goes on in another.
    pub async fn until_readable(
        &mut self,
        shard: &Shard,
        upstream: &Socket,
        client: &Socket,
        timer: &mut Timer,
    ) -> Result<Arrived, Reason> {
        if !self.long {
            let mut readable = pin!(upstream.readable());
            let short = std::future::poll_fn(|context| {
                let woken = std::mem::replace(&mut self.woken, true);
                if readable.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Ok(true));
                }
                if shard.drain() == Some(Drain::Cut) {
                    return Poll::Ready(Err(Reason::DrainTimeout));
                }
                timer.poll_due(woken, context).map(|()| Ok(false))
            });
            if short.await? {
                return Ok(Arrived::Bytes);
            }
            let now = Nanos::now();
            if now >= self.hedge_at {
                return Ok(Arrived::Late);
            }
            self.look(now)?;
        }
        // It may have fired while nobody looked.
        timer.set(self.due.min(self.hedge_at), Nanos::now());
        let readable = pin!(upstream.readable());
        let client = self.watched(client);
        let mut is_late = false;
        let arrived = attended(shard, client, true, timer, readable, |now| {
            is_late = now >= self.hedge_at;
            match is_late {
                // Only a mark.
                true => Err(Reason::TryTimeout),
                false => Ok(self.look(now)?.min(self.hedge_at)),
            }
        });
        match arrived.await {
            Err(_) if is_late => Ok(Arrived::Late),
            arrived => arrived.map(|()| Arrived::Bytes),
        }
    }

    /// Waits for the whole answer.
    pub async fn attended<T>(
        &mut self,
        shard: &Shard,
        client: &Socket,
        timer: &mut Timer,
        answer: Pin<&mut impl Future<Output = Result<T, NoAnswer>>>,
    ) -> Result<T, NoAnswer> {
        let client = self.watched(client);
        attended(shard, client, self.long, timer, answer, |now| self.look(now)).await?
    }

    /// A probe that is out is not called back, though its client leaves: nobody else may try the
    /// endpoint meanwhile.
    fn watched<'s>(&self, client: &'s Socket) -> Option<&'s Socket> {
        (!self.order.is_probe()).then_some(client)
    }
}

/// Looks after a request's body.
pub(super) struct Uploading<'a> {
    pace: Pace,
    flow: &'a Flow,
    total: Nanos,
    out_of_time: Reason,
}

impl<'a> Uploading<'a> {
    /// Begins to watch; `until` that time at most.
    pub fn begin(order: &Order, until: Nanos, flow: &'a Flow, now: Nanos) -> Uploading<'a> {
        let limits = &order.listener().timeouts;
        let rules = pace::Rules {
            span: limits.body,
            bytes_per_second_min: limits.body_bytes_per_second_min,
            idle: order.timeouts().answer,
            client: Side::Source,
        };
        let total = order.ends_by().min(until);
        let out_of_time = order.out_of_time();
        Uploading { pace: Pace::new(rules, now), flow, total, out_of_time }
    }

    /// When to look next.
    pub fn due(&self) -> Nanos {
        self.pace.due().min(self.total)
    }

    /// Looks.
    pub fn look(&mut self, now: Nanos) -> Result<Nanos, Reason> {
        if now >= self.total {
            return Err(self.out_of_time);
        }
        self.pace.look(self.flow, 0, now).map_err(|stall| match stall {
            Stall::Client => Reason::BodyTimeout,
            Stall::Upstream => Reason::AnswerTimeout,
        })?;
        Ok(self.due())
    }
}

/// Looks after an answer's body.
pub(super) struct Downloading<'a> {
    pace: Pace,
    flow: &'a Flow,
    total: Nanos,
    out_of_time: Reason,
}

impl<'a> Downloading<'a> {
    /// Begins to watch.
    pub fn begin(order: &Order, flow: &'a Flow, now: Nanos) -> Downloading<'a> {
        let limits = &order.listener().timeouts;
        let rules = pace::Rules {
            span: limits.body,
            bytes_per_second_min: limits.body_bytes_per_second_min,
            idle: order.timeouts().stream_idle,
            client: Side::Sink,
        };
        let (total, out_of_time) = (order.ends_by(), order.out_of_time());
        Downloading { pace: Pace::new(rules, now), flow, total, out_of_time }
    }

    /// When to look first.
    pub fn first_look(&self, now: Nanos) -> Nanos {
        self.pace.due().min(self.total).min(now + WATCH_CLIENT_AFTER)
    }

    /// Looks. What the kernel still holds for the client has not moved.
    pub fn look(&mut self, client: &Socket, now: Nanos) -> Result<Nanos, Reason> {
        if now >= self.total {
            return Err(self.out_of_time);
        }
        self.pace.look(self.flow, client.unacknowledged(), now).map_err(|stall| match stall {
            Stall::Client => Reason::ClientStalled,
            Stall::Upstream => Reason::StreamIdle,
        })?;
        Ok(self.pace.due().min(self.total))
    }
}
