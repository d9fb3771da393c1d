//! One request and its answer: an endpoint is chosen, a connection borrowed, the request sent, and
//! both bodies relayed. Called by `session`, which owns the client's connection; here the endpoint's
//! is borrowed, and given back or closed.
//!
//! ```text
//! pick -> pool or connect -> head (and a short body) -> head of the answer -> body -> pool
//!  ^              ^                                            |
//!  |              +--- once more, if a kept connection had ended, and nothing is lost
//!  +--- another try, if the route has retries for what happened
//! ```

mod fallback;

mod hedge;

mod patience;

mod place;

mod reply;

mod retry;

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::admit::Order;
use crate::answer::Answered;
use crate::balance::Zone;
use crate::breaker;
use crate::http::encode::Persistence;
use crate::http::head::Framing;
use crate::net::{Socket, Timer, would_block};
use crate::plan::Pool;
use crate::reason::{Fault, Reason};
use crate::relay::{Broken, Flow, Incoming, Outgoing, Relay};
use crate::shard::Shard;
use crate::shard::buffers::Buffer;
use crate::time::Nanos;
use crate::upstream::{Connection, Endpoint};

use fallback::Verdict;
use hedge::{Begun, Overtaking};
use patience::{Arrived, Uploading, Waiting};
use place::{Kept, Opening, Place};
use reply::Reply;
use retry::Tries;

pub use fallback::{Falling, begin as begin_fallback};
pub use patience::within;

/// A kept connection that ends later than this after a request was sent on it, without an answer, had
/// not ended before: its endpoint has failed.
const STALE_WITHIN: Duration = Duration::from_millis(100);

/// What an exchange borrows of the connection that carries it.
pub struct Exchange<'a> {
    /// The shard.
    pub shard: &'a Shard,
    /// The client's socket.
    pub client: &'a Socket,
    /// The connection's one timer.
    pub timer: &'a mut Timer,
    /// Received from the client and not yet dealt with: first of all, the request's body.
    pub inbound: &'a mut Buffer,
}

/// What came of an exchange.
pub struct Outcome {
    /// Of the answer that was sent; 0 where none was.
    pub status: u16,
    /// Why it was not the origin's, or not all of it.
    pub reason: Option<Reason>,
    /// Bytes to the client, heads included.
    pub sent: u64,
    /// Body bytes to the client.
    pub body_sent: u64,
    /// Body bytes from the client.
    pub body_received: u64,
    /// From the request's last byte sent to the head of the answer; measured only for the log.
    pub upstream_time: Option<Duration>,
    /// What comes next on the client's connection.
    pub next: Next,
}

/// What comes next on a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another request.
    Request,
    /// Its end.
    Close,
    /// Its end; but the client may still be sending, and must not lose our answer for it.
    Linger,
    /// Its end, as a reset: the client must not take what it has for everything.
    Reset,
}

/// Why an exchange failed, and how far it had come.
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// The status that the client has seen already, and how its connection has to end for it.
    pub told: Option<(u16, Next)>,
    /// The request's body was not received to its end.
    pub body_left: bool,
    /// Bytes that were sent to the client.
    pub sent: u64,
    /// Those of a body among them.
    pub body_sent: u64,
    /// Body bytes from the client, as far as they are known.
    pub body_received: u64,
    /// As in [`Outcome`], where there was an answer.
    pub upstream_time: Option<Duration>,
    /// The status of an answer that was given up for a fallback.
    pub given_up: Option<u16>,
    /// The request may be sent to another cluster: its body is still here, and either no endpoint
    /// has seen it, or it may be sent twice.
    pub may_move: bool,
}

impl Failure {
    /// One of which the client has seen nothing yet.
    pub fn untold(reason: Reason, body_left: bool) -> Failure {
        Failure {
            reason,
            told: None,
            body_left,
            sent: 0,
            body_sent: 0,
            body_received: 0,
            upstream_time: None,
            given_up: None,
            may_move: true,
        }
    }
}

/// An exchange that came to its end.
struct Exchanged {
    outcome: Outcome,
    upstream_reusable: bool,
}

/// An exchange that did not.
enum Undone<'a> {
    /// Another try has leave in place of this answer, of which the client has seen nothing.
    Again {
        /// Its status.
        status: u16,
        /// How long it took, if that is measured.
        latency: Option<Duration>,
        /// The endpoint's connection can be used again.
        reusable: bool,
    },
    /// A fallback answers in place of this answer, of which the client has seen nothing.
    GivenUp {
        /// Its status.
        status: u16,
        /// How long it took, if that is measured.
        latency: Option<Duration>,
        /// The endpoint's connection can be used again.
        reusable: bool,
        /// The request's body was not received to its end.
        body_left: bool,
        /// As in [`Failure`].
        may_move: bool,
        /// What answers, where that is new.
        falling: Option<Box<Falling>>,
    },
    /// A hedge takes the place of this try, of which the client has seen nothing.
    Overtaken(Box<Overtaking<'a>>),
    /// Nothing of an answer has reached the client.
    NotAnswered(NoAnswer),
    /// A part of it has.
    CutOff(Failure),
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoAnswer {
    /// The connection ended before a byte of it: if it was a kept one, it may just have been old.
    Stale,
    Failed(Reason),
}

impl From<Reason> for Undone<'_> {
    fn from(reason: Reason) -> Self {
        Undone::NotAnswered(reason.into())
    }
}

impl From<Reason> for NoAnswer {
    fn from(reason: Reason) -> NoAnswer {
        NoAnswer::Failed(reason)
    }
}

impl From<NoAnswer> for Undone<'_> {
    fn from(none: NoAnswer) -> Self {
        Undone::NotAnswered(none)
    }
}

/// How a try ended, where that was not the request's end.
enum Tried {
    /// With an answer that is worth another.
    Again { status: u16, latency: Option<Duration> },
    /// Without one, or with a part of it.
    Failed(Failure),
}

impl Tried {
    fn failed(reason: Reason, body_left: bool) -> Tried {
        Tried::Failed(Failure::untold(reason, body_left))
    }
}

/// How a try begins.
enum Start {
    /// Its request is to be sent, at this time.
    Anew(Nanos),
    /// It was sent, as a hedge.
    Begun(Box<Begun>),
}

/// What came first in an exchange whose request body is still arriving.
enum First {
    Uploaded(Result<(), Broken>),
    Answered(Result<Answered, NoAnswer>),
}

impl<'a> Exchange<'a> {
    /// Sends an order to an endpoint of `cluster`, and its answer to the client.
    ///
    /// # Errors
    /// Where there is no answer, or not all of it. The client has to be told, if it still can be.
    pub async fn run(
        &mut self,
        order: &mut Order,
        mut cluster: usize,
        hash: Option<u64>,
        breaker: Option<usize>,
    ) -> Result<Outcome, Failure> {
        let mut body_left = !order.has_whole_body();
        let mut now = order.complete;
        if body_left && let Some(length) = self.body_to_keep(order) {
            let whole = Box::pin(self.receive_body(order, length)).await;
            whole.map_err(|reason| Failure::untold(reason, body_left))?;
            body_left = false;
            now = Nanos::now();
        }
        self.shard.agreement.look(now);
        let mut route = None;
        if let Some(breaker) = breaker {
            let id = order.plan.shared().route_breakers[breaker];
            let entered = Box::pin(self.enter_route(order, cluster, id)).await;
            let entered = entered.map_err(|reason| Failure::untold(reason, body_left))?;
            route = entered.map(Box::new);
            order.probe_until = route.as_ref().map_or(Nanos::NEVER, |route| route.probe_until());
        }
        // After a wait at the route's breaker the plan may be another one.
        let placed = match breaker {
            None => self.place_at_once(&order.plan, cluster, hash, now, |_| true),
            Some(_) => Err(None),
        };
        let (mut endpoint, mut place) = match placed {
            Ok(placed) => placed,
            Err(chosen) => {
                let first = cluster;
                let placed = Box::pin(self.place_first(order, &mut cluster, hash, chosen)).await;
                now = Nanos::now();
                let (endpoint, mut place) =
                    placed.map_err(|reason| Failure::untold(reason, body_left))?;
                place.has_waited();
                // The route's breaker is for the cluster that it named.
                route = route.filter(|_| cluster == first);
                (endpoint, place)
            }
        };
        self.asks(order, &endpoint);
        if let Some(route) = route {
            place.set_route(route);
        }
        order.probe_until = place.probe_until();
        let learns =
            order.plan.cluster(cluster).weighs_latency || order.measures_hedges().is_some();
        order.is_timed = learns || order.log.is_some() || order.plan.cluster(cluster).times_answers;
        let mut tries = Tries::new(order, place.probes_route());
        if tries.are_paid_for() {
            self.shard.agreement.deposit(endpoint.slot, now);
        }
        if let Framing::Length(length) = order.framing
            && body_left
            && length <= self.inbound.len().min(order.out.room()) as u64
        {
            // A short body travels with its head, and can be sent again with it.
            let length = length as usize;
            order.out.writer().extend_from_slice(&self.inbound.filled()[..length]);
            self.inbound.consume(length);
            order.body_at_hand = length as u64;
            body_left = false;
        }
        if self.inbound.is_empty() {
            self.shard.buffers.give_back(std::mem::take(self.inbound));
        }
        let replayable = !body_left && order.method.idempotent();
        let pool = order.plan.cluster(cluster).pool;
        let mut may_take = if replayable { Kept::QuietLately } else { Kept::QuietNow };
        let mut kept = self.take_kept(order, &endpoint, &pool, replayable, now);
        let mut begun = None;
        let mut sent;
        let failure = 'tries: loop {
            order.attempts += u32::from(begun.is_none());
            sent = false;
            let tried = 'tried: {
                if order.framing == Framing::Chunked && endpoint.speaks_http10() {
                    break 'tried Tried::failed(Reason::LengthRequired, body_left);
                }
                let connection = match kept.take() {
                    Some(connection) => connection,
                    None => {
                        let opened =
                            self.open(order, cluster, &endpoint, may_take, &mut place).await;
                        now = Nanos::now();
                        match opened {
                            // It spoke before it was asked: whatever that is, it is no answer.
                            Ok(new) if !new.reused && !new.socket().is_quiet() => {
                                place.used();
                                break 'tried Tried::failed(Reason::BadAnswer, body_left);
                            }
                            Ok(connection) => connection,
                            Err(reason) => break 'tried Tried::failed(reason, body_left),
                        }
                    }
                };
                place.used();
                sent = true;
                if begun.is_none() {
                    order.tell_deadline(now);
                }
                let exchanged = if body_left {
                    // Boxed: it is large and rare, and every session would have to hold room for it.
                    Box::pin(self.with_upload(order, &connection, &mut place, now)).await
                } else {
                    let goal = (cluster, hash);
                    let start = begun.take().map_or(Start::Anew(now), Start::Begun);
                    self.at_once(order, goal, &connection, &mut place, &mut tries, start).await
                };
                order.attempts += tries.take_hedges();
                match exchanged {
                    Ok(Exchanged { outcome, upstream_reusable }) => {
                        now = Nanos::now();
                        if upstream_reusable {
                            connection.keep(&pool, now);
                        }
                        let latency = outcome.upstream_time.unwrap_or_default();
                        order.said = place.end(Ok(outcome.status), true, latency, now);
                        if learns {
                            self.learn(order, cluster, &endpoint, Ok(outcome.status), latency, now);
                            self.learn_for_hedges(order, latency, now);
                        }
                        tries.ended(order, outcome.status, &self.shard.counters);
                        return Ok(outcome);
                    }
                    Err(Undone::Again { status, latency, reusable }) => {
                        if reusable {
                            connection.keep(&pool, Nanos::now());
                        }
                        Tried::Again { status, latency }
                    }
                    Err(Undone::GivenUp {
                        status,
                        latency,
                        reusable,
                        body_left,
                        may_move,
                        falling,
                    }) => {
                        now = Nanos::now();
                        if reusable {
                            connection.keep(&pool, now);
                        }
                        let taken = latency.unwrap_or_default();
                        order.said = place.end(Ok(status), true, taken, now);
                        self.learn(order, cluster, &endpoint, Ok(status), taken, now);
                        self.learn_for_hedges(order, taken, now);
                        order.falling = order.falling.take().or(falling);
                        return Err(Failure {
                            upstream_time: latency,
                            given_up: Some(status),
                            may_move,
                            ..Failure::untold(Reason::UpstreamStatus, body_left)
                        });
                    }
                    Err(Undone::Overtaken(next)) => {
                        let ended = Nanos::now();
                        let before = next.end_before(&mut place, connection.reused, now, ended);
                        let taken = ended.since(now);
                        self.learn(order, cluster, &endpoint, before, taken, ended);
                        self.learn_for_hedges(order, taken, ended);
                        order.answer_until =
                            order.answer_until.min(now.after(order.timeouts().answer));
                        let mut next = *next;
                        next.place.follow(&mut place);
                        tries.go_on_as_hedge(next.leave);
                        (endpoint, place, now) = (next.endpoint, next.place, next.begun.asked);
                        (kept, begun) = (Some(next.connection), Some(next.begun));
                        order.endpoint = Some(endpoint.clone());
                        continue 'tries;
                    }
                    // It may have timed out just as we used it: once, on a new one, unless the
                    // origin may have acted on it already (RFC 9110, 9.2.2).
                    Err(Undone::NotAnswered(NoAnswer::Stale))
                        if connection.reused
                            && may_take == Kept::QuietLately
                            && Nanos::now().since(now) < STALE_WITHIN =>
                    {
                        self.shard.counters.resends.add(1);
                        may_take = Kept::No;
                        continue 'tries;
                    }
                    Err(Undone::NotAnswered(NoAnswer::Stale)) => {
                        Tried::failed(Reason::UpstreamReset, body_left)
                    }
                    Err(Undone::NotAnswered(NoAnswer::Failed(reason))) => {
                        Tried::failed(reason, body_left)
                    }
                    Err(Undone::CutOff(failure)) => Tried::Failed(failure),
                }
            };
            // What was received of a body while it was sent is gone.
            let lost = sent && body_left;
            let may_move = !lost && (!sent || retry::may_repeat(order));
            let ended = Nanos::now();
            // What was sent has a time to be answered in, however many tries that takes.
            let until = if sent { now.after(order.timeouts().answer) } else { Nanos::NEVER };
            let failure = match tried {
                Tried::Again { status, latency } => {
                    let latency = latency.unwrap_or_default();
                    place.end_try(Ok(status), true, latency, ended);
                    self.learn(order, cluster, &endpoint, Ok(status), latency, ended);
                    None
                }
                Tried::Failed(mut failure)
                    if lost
                        || failure.told.is_some()
                        || !tries.want_after(order, failure.reason, sent) =>
                {
                    failure.may_move = may_move;
                    break failure;
                }
                Tried::Failed(failure) => {
                    let taken = ended.since(now);
                    let had_its_time = order.had_its_time(failure.reason, taken);
                    place.end_try(Err(failure.reason), had_its_time, Duration::ZERO, ended);
                    if sent {
                        let said = Err(failure.reason);
                        self.learn(order, cluster, &endpoint, said, taken, ended);
                        sent = false;
                    }
                    let leave = self.may_retry(order, cluster, None, until, &mut tries);
                    if !Box::pin(leave).await {
                        break failure;
                    }
                    Some(failure)
                }
            };
            order.answer_until = order.answer_until.min(until);
            match Box::pin(self.place_again(order, cluster, hash, &tries)).await {
                Ok((other, mut next)) => {
                    next.follow(&mut place);
                    next.has_waited();
                    (endpoint, place) = (other, next);
                }
                Err(reason @ (Reason::ClientGone | Reason::DrainTimeout)) => {
                    break Failure::untold(reason, body_left);
                }
                Err(reason) => break failure.unwrap_or_else(|| Failure::untold(reason, body_left)),
            }
            now = Nanos::now();
            self.asks(order, &endpoint);
            order.probe_until = place.probe_until();
            kept = self.take_kept(order, &endpoint, &pool, replayable, now);
        };
        let ended = Nanos::now();
        let taken = ended.since(now);
        let had_its_time = !failure.body_left
            && failure.told.is_none()
            && order.had_its_time(failure.reason, taken);
        let latency = failure.upstream_time.unwrap_or_default();
        order.said = place.end(Err(failure.reason), had_its_time, latency, ended);
        // Unless that was said before a retry was refused.
        if sent {
            let taken = failure.upstream_time.unwrap_or(taken);
            self.learn(order, cluster, &endpoint, Err(failure.reason), taken, ended);
        }
        Err(failure)
    }

    /// The order goes to this endpoint now.
    #[inline(always)]
    fn asks(&self, order: &mut Order, endpoint: &Rc<Endpoint>) {
        order.endpoint = Some(endpoint.clone());
        self.count_zone(endpoint);
    }

    /// A request goes there.
    #[inline(always)]
    fn count_zone(&self, endpoint: &Endpoint) {
        match endpoint.zone() {
            Zone::Unknown => {}
            Zone::Own => self.shard.counters.zone_own.add(1),
            Zone::Other => self.shard.counters.zone_other.add(1),
        }
    }

    /// What a try that was sent tells of how slow its endpoint is, where the balancer asks.
    fn learn(
        &self,
        order: &Order,
        cluster: usize,
        endpoint: &Endpoint,
        ended: Result<u16, Reason>,
        taken: Duration,
        now: Nanos,
    ) {
        if order.plan.cluster(cluster).weighs_latency
            && let Some(outcome) = learned(ended)
        {
            endpoint.learn(outcome, taken, now);
        }
    }

    /// The same for the route, where its hedges ask.
    fn learn_for_hedges(&self, order: &Order, taken: Duration, now: Nanos) {
        if let Some(delay) = order.measures_hedges() {
            delay.borrow_mut().observe(taken, now);
        }
    }

    /// A connection that is there already.
    #[inline(always)]
    fn take_kept(
        &self,
        order: &Order,
        endpoint: &Rc<Endpoint>,
        pool: &Pool,
        replayable: bool,
        now: Nanos,
    ) -> Option<Connection> {
        // A probe is sent once: not on a connection that may turn out to be stale.
        if order.is_probe() || self.shard.agreement.awaits_connection(endpoint.slot) {
            return None;
        }
        endpoint.take_idle(pool, now, replayable)
    }

    /// Opens a connection, if the limits leave a place for it, within its time.
    async fn open(
        &mut self,
        order: &Order,
        cluster: usize,
        endpoint: &Rc<Endpoint>,
        kept: Kept,
        place: &mut Place<'_>,
    ) -> Result<Connection, Reason> {
        let lease = match endpoint.lease() {
            Some(lease) => lease,
            None => {
                place.has_waited();
                let opening = self.opening(order, cluster, endpoint, kept);
                match Box::pin(opening).await? {
                    Opening::Lease(lease) => lease,
                    Opening::Kept(connection) => return Ok(connection),
                }
            }
        };
        let now = Nanos::now();
        let limit = now.after(order.plan.cluster(cluster).connect_timeout);
        let total = order.ends_by().min(order.answer_until);
        let due = limit.min(total).min(order.probe_until);
        self.timer.set(due, now);
        let connecting = pin!(endpoint.connect(lease));
        let late = |now| match now >= total && total < limit {
            true if now >= order.ends_by() => Err(order.out_of_time()),
            true => Err(Reason::AnswerTimeout),
            false => Err(Reason::ConnectTimeout),
        };
        match within(self.shard, self.timer, connecting, late).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                tracing::debug!(endpoint = %endpoint.address, %error, "connect failed");
                match error.raw_os_error() {
                    // Ours, not the endpoint's: no descriptor, or no local port.
                    Some(libc::EMFILE | libc::ENFILE | libc::EADDRNOTAVAIL) => {
                        Err(Reason::OutOfDescriptors)
                    }
                    _ => {
                        place.used();
                        Err(Reason::ConnectFailed)
                    }
                }
            }
            Err(reason) => {
                if reason == Reason::ConnectTimeout {
                    place.used();
                }
                self.shard.counters.upstream_connect_failures.add(1);
                Err(reason)
            }
        }
    }

    /// One whose request is complete in the order: nearly all of them.
    async fn at_once(
        &mut self,
        order: &Order,
        (cluster, hash): (usize, Option<u64>),
        connection: &Connection,
        place: &mut Place<'_>,
        tries: &mut Tries<'a>,
        start: Start,
    ) -> Result<Exchanged, Undone<'a>> {
        let (shard, client) = (self.shard, self.client);
        let upstream = connection.socket();
        let (now, begun) = match start {
            Start::Anew(now) => (now, None),
            Start::Begun(begun) => (begun.asked, Some(begun)),
        };
        let mut waiting = Waiting::begin(order, now);
        if begun.is_some() {
            waiting.hedged();
        } else if let Some(delay) = tries.hedge_delay(order) {
            waiting.hedge_at(now + delay);
        }
        let looks_at = waiting.first_look(now);
        self.timer.set(looks_at, if begun.is_some() { Nanos::now() } else { now });
        let sent = match begun {
            None => upstream.try_send(order.out.filled()),
            Some(_) => Ok(order.out.len()),
        };
        match sent {
            Ok(count) if count == order.out.len() => {}
            first => {
                // Rare: the socket takes less than a head, or is broken.
                waiting.has_waited();
                let sent = first.as_ref().map_or(0, |count| *count);
                let rest = &order.out.filled()[sent..];
                let failed = match first {
                    Err(error) if !would_block(&error) => true,
                    _ => {
                        let send = pin!(send(upstream, rest));
                        within(shard, self.timer, send, |now| waiting.look(now))
                            .await
                            .map_err(NoAnswer::from)?
                            .is_err()
                    }
                };
                if failed && connection.reused {
                    return Err(NoAnswer::Stale.into());
                }
                // After a failed write an answer may still be there to be read.
            }
        }
        let mut reply = match begun {
            None => Reply::new(shard, order, now),
            Some(begun) => Reply::resumed(shard, order, *begun),
        };
        let answered = loop {
            match reply.look(false)? {
                Received::Partial => {
                    match waiting.until_readable(shard, upstream, client, self.timer).await? {
                        Arrived::Bytes => reply.receive(upstream)?,
                        Arrived::Late => {
                            let (waiting, reply) = (&mut waiting, &mut reply);
                            let hedge =
                                self.hedge(order, cluster, hash, upstream, tries, waiting, reply);
                            Box::pin(hedge).await?;
                        }
                    }
                }
                Received::Final(answered) => break answered,
                Received::Interim => {
                    let now = Nanos::now();
                    self.timer.set(self.timer.due(), now);
                    let send = pin!(reply.send_interim(client));
                    within(shard, self.timer, send, |now| waiting.look(now))
                        .await
                        .and_then(|sent| sent)
                        .map_err(NoAnswer::from)?;
                }
            }
        };
        place.answered(order, answered.status, reply.upstream_time());
        if tries.want(order, answered.status) {
            let sparing = answered.retry_after.map(|time| Duration::from_secs(time.into()));
            let until = now.after(order.timeouts().answer);
            if Box::pin(self.may_retry(order, cluster, sparing, until, tries)).await {
                return Err(Undone::Again {
                    status: answered.status,
                    latency: reply.upstream_time(),
                    reusable: answered.reusable && reply.is_whole(&answered),
                });
            }
        }
        if answered.status >= 400 && order.falls_back.is_some() {
            let may_move = retry::may_repeat(order);
            let judged = fallback::judge(shard, self.timer, order, answered.status, may_move);
            if let Verdict::GivenUp(falling) = Box::pin(judged).await {
                return Err(Undone::GivenUp {
                    status: answered.status,
                    latency: reply.upstream_time(),
                    reusable: answered.reusable && reply.is_whole(&answered),
                    body_left: false,
                    may_move,
                    falling,
                });
            }
        }
        let Exchange { timer, inbound, .. } = self;
        let flow = Flow::default();
        if answered.persistence == Persistence::Upgrade {
            let tunnel = reply.tunnel(upstream, client, timer, std::mem::take(inbound));
            return Box::pin(tunnel).await;
        }
        let downloaded = match reply.send_whole(&answered, client, &flow) {
            true => Ok(()),
            false => reply.download(&answered, upstream, client, timer, &flow).await,
        };
        reply.conclude(answered, downloaded, &flow, order.body_at_hand, true)
    }

    /// One whose request body is still arriving: both directions run at once.
    async fn with_upload(
        &mut self,
        order: &Order,
        connection: &Connection,
        place: &mut Place<'_>,
        now: Nanos,
    ) -> Result<Exchanged, Undone<'a>> {
        let Exchange { shard, client, timer, inbound } = self;
        let upstream = connection.socket();
        let up = Flow::default();
        let _counted = Counted { shard, flow: &up, at_hand: inbound.len() as u64 };
        let mut relay = Relay {
            from: client,
            to: upstream,
            buffer: inbound,
            incoming: Incoming::new(order.framing, order.listener().head.lenient_line_ends),
            outgoing: match order.framing {
                Framing::Chunked => Outgoing::Chunked,
                _ => Outgoing::Identity,
            },
            bytes_max: order.body_bytes_max,
            head: order.out.filled(),
            buffers: &shard.buffers,
            pipes: &shard.pipes,
            flow: &up,
            tap: None,
        };
        let mut upload = pin!(relay.run());
        let mut uploaded: Option<Result<(), Broken>> = None;
        let running = Cell::new(true);
        let continued = Cell::new(!order.expects_continue);
        let mut reply = Reply::new(shard, order, now);
        let mut asked = now;
        let answered = {
            let mut answer = pin!(async {
                loop {
                    match reply.look(running.get())? {
                        Received::Partial => {
                            upstream.readable().await;
                            reply.receive(upstream)?;
                        }
                        Received::Final(answered) => return Ok(answered),
                        Received::Interim => {
                            continued.set(true);
                            reply.send_interim(client).await?;
                        }
                    }
                }
            });
            let mut uploading = Uploading::begin(order, order.probe_until, &up, now);
            timer.set(uploading.due(), now);
            let first = pin!(std::future::poll_fn(|context| {
                if let Poll::Ready(result) = upload.as_mut().poll(context) {
                    return Poll::Ready(First::Uploaded(result));
                }
                answer.as_mut().poll(context).map(First::Answered)
            }));
            let answer_due = now.after(order.timeouts().answer);
            let first = within(shard, timer, first, |now| match uploading.look(now) {
                // The client waits for a 100, and so for the origin (RFC 9110, 10.1.1).
                Err(Reason::BodyTimeout) if !continued.get() && up.bytes.get() == 0 => {
                    if now < answer_due { Ok(answer_due) } else { Err(Reason::AnswerTimeout) }
                }
                looked => looked,
            });
            match first.await {
                Err(reason) => Err(reason.into()),
                Ok(First::Answered(answered)) => answered,
                Ok(First::Uploaded(Err(broken @ (Broken::Truncated | Broken::Refused(_))))) => {
                    Err(client_fault(broken).into())
                }
                Ok(First::Uploaded(result)) => {
                    // The origin's time begins when it has the whole request. One that stopped to
                    // read may have answered all the same.
                    uploaded = Some(result);
                    running.set(result.is_err());
                    let now = Nanos::now();
                    asked = now;
                    let mut waiting = Waiting::begin(order, now);
                    timer.set(waiting.first_look(now), now);
                    waiting.attended(shard, client, timer, answer).await
                }
            }
        }?;
        reply.asked_at(asked);
        place.answered(order, answered.status, reply.upstream_time());
        if answered.status >= 400 && order.falls_back.is_some() {
            let judged = fallback::judge(shard, timer, order, answered.status, false);
            if let Verdict::GivenUp(falling) = Box::pin(judged).await {
                let body_left = uploaded != Some(Ok(()));
                return Err(Undone::GivenUp {
                    status: answered.status,
                    latency: reply.upstream_time(),
                    reusable: answered.reusable && reply.is_whole(&answered) && !body_left,
                    body_left,
                    may_move: false,
                    falling,
                });
            }
        }
        let down = Flow::default();
        // An early refusal ends the upload (RFC 9110, 10.1.1); an early success may be an origin
        // that answers while it reads.
        let go_on = uploaded.is_none() && answered.status < 300;
        let downloaded = {
            let mut download = pin!(reply.download(&answered, upstream, client, timer, &down));
            std::future::poll_fn(|context| {
                if go_on
                    && uploaded.is_none()
                    && let Poll::Ready(result) = upload.as_mut().poll(context)
                {
                    uploaded = Some(result);
                }
                download.as_mut().poll(context)
            })
            .await
        };
        if go_on && uploaded.is_none() && downloaded.is_ok() {
            // The origin has said all, but it may still be reading. A probe is over by now.
            let began = Nanos::now();
            let mut uploading = Uploading::begin(order, Nanos::NEVER, &up, began);
            timer.set(uploading.due(), began);
            uploaded = within(shard, timer, upload.as_mut(), |now| uploading.look(now)).await.ok();
        }
        let complete = uploaded == Some(Ok(()));
        reply.conclude(answered, downloaded, &down, up.bytes.get(), complete)
    }
}

/// What the bytes from the origin are.
enum Received {
    /// Not yet a whole head.
    Partial,
    /// A 1xx, which is to be sent.
    Interim,
    /// The answer.
    Final(Answered),
}

/// Counts the bytes of an upload when it ends, however it ends.
struct Counted<'a> {
    shard: &'a Shard,
    flow: &'a Flow,
    /// Those that were counted when they came with the head.
    at_hand: u64,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let received = self.flow.bytes.get().saturating_sub(self.at_hand);
        self.shard.counters.bytes_received.add(received);
    }
}

/// What an end says of how fast an endpoint is. An error that comes fast is none the better for it,
/// whatever the breaker thinks of it; and who gave up had to wait at least so long.
fn learned(ended: Result<u16, Reason>) -> Option<breaker::Outcome> {
    match ended {
        Ok(status) if status >= 500 => Some(breaker::Outcome::Failure),
        Ok(_) => Some(breaker::Outcome::Success),
        Err(Reason::ClientGone | Reason::Deadline | Reason::TotalTimeout) => {
            Some(breaker::Outcome::Neutral)
        }
        Err(reason) if reason.fault() == Fault::Upstream => Some(breaker::Outcome::Failure),
        Err(_) => None,
    }
}

/// A request body that the client broke.
fn client_fault(broken: Broken) -> Reason {
    match broken {
        Broken::Truncated => Reason::ClientGone,
        Broken::Refused(reason) => reason,
        Broken::SinkGone => Reason::UpstreamReset,
    }
}

/// Sends all of it.
pub async fn send(to: &Socket, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match to.try_send(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if would_block(&error) => to.writable().await,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives what is there into the room that is left.
pub fn receive(from: &Socket, buffer: &mut Buffer) -> std::io::Result<usize> {
    let count = from.try_recv(buffer.spare())?;
    // SAFETY: the kernel has just written so many bytes of it.
    unsafe { buffer.filled_by(count) };
    Ok(count)
}
