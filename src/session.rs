//! One client connection's journey: wait, read a head, admit it, forward it, relay both bodies,
//! record what came of it, and wait again. Start reading here.
//!
//! One task per connection carries each of its requests from beginning to end. Whatever waits is
//! bounded by the one timer of the connection. What decides is elsewhere and pure: `admit` turns a
//! head into an [`Order`], `answer` reads the head of an answer, the relays know framing, and
//! `pace` tells who stands still.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::accept::{Client, ClientInfo};
use crate::admit::{self, Action, Admission, Order};
use crate::answer::{self, Answered, Context, Taken};
use crate::http::encode::Persistence;
use crate::http::head::Framing;
use crate::net::{Socket, Timer, would_block};
use crate::pace::{self, Pace, Stall};
use crate::plan::Listener;
use crate::reason::Reason;
use crate::relay::{Broken, Flow, Incoming, Outgoing, Relay, Side};
use crate::respond;
use crate::shard::Shard;
use crate::shard::buffers::Buffer;
use crate::shard::message::Drain;
use crate::shard::parking::PARK_AFTER;
use crate::time::Nanos;
use crate::tunnel::Tunnel;
use crate::upstream::{Connection, Endpoint};

/// A client that may have left is only looked after in exchanges that take longer than this, so
/// that quick ones do not pay for it.
const WATCH_CLIENT_AFTER: Duration = Duration::from_millis(100);

/// After an early end we read on for so long, so that the client gets our answer and not a reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// And at most so many bytes.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// Bodies up to this are copied behind their heads, to leave in a write of one piece.
const COPY_BYTES_MAX: usize = 2 * 1024;

/// Interim answers (1xx) to one request; more is an origin gone mad.
const INTERIM_ANSWERS_MAX: u32 = 16;

/// A drain gives a new connection so long to send its first request.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Starts a task for one connection. A drain waits for it from now on.
pub fn start(shard: &Rc<Shard>, client: Client) {
    let key = shard.enter(client.socket.as_fd().as_raw_fd());
    crate::net::spawn(run(shard.clone(), client, key));
}

/// Serves one connection until it ends, or is idle for so long that it is parked.
async fn run(shard: Rc<Shard>, client: Client, key: usize) {
    let waker = std::future::poll_fn(|context| Poll::Ready(context.waker().clone())).await;
    shard.wake_by(key, waker);
    let _entered = Entered { key, shard: shard.clone() };
    let now = Nanos::now();
    let mut session = Session {
        timer: Timer::new(now),
        awake_since: now,
        inbound: Buffer::default(),
        shard: shard.clone(),
        socket: client.socket,
        info: client.info,
    };
    let parked_until = session.serve_requests().await;
    let Session { socket, info, inbound, .. } = session;
    shard.buffers.give_back(inbound);
    shard.needs_housekeeping();
    if let Some(due) = parked_until {
        shard.parking.park(Client { socket, info }, due);
    }
}

/// A session in its shard's register, until it is dropped.
struct Entered {
    shard: Rc<Shard>,
    key: usize,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.shard.leave(self.key);
    }
}

struct Session {
    shard: Rc<Shard>,
    socket: Socket,
    info: ClientInfo,
    timer: Timer,
    /// When it got its task: it is not parked again at once.
    awake_since: Nanos,
    /// Received from the client and not yet dealt with.
    inbound: Buffer,
}

/// What comes next on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another request.
    Request,
    /// Its end.
    Close,
    /// Its end; but the client may still be sending, and must not lose our answer for it.
    Linger,
    /// Its end, as a reset: the client must not take what it has for everything.
    Reset,
}

/// What a wait for a request came to.
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each request")]
enum Arrival {
    Order(Order),
    /// The head that began to arrive then is refused.
    Refused(Reason, Nanos),
    /// Nothing arrives; the connection may be parked until that time.
    Idle(Nanos),
    /// The client has left, or waited too long to say anything.
    Gone,
}

/// What came of an exchange.
struct Outcome {
    /// Of the answer that was sent; 0 where none was.
    status: u16,
    reason: Option<Reason>,
    endpoint: Option<Rc<Endpoint>>,
    /// Bytes to the client, heads included.
    sent: u64,
    /// Body bytes to the client.
    body_sent: u64,
    /// Body bytes from the client.
    body_received: u64,
    next: Next,
}

/// Why an exchange failed, and how far it had come.
struct Failure {
    reason: Reason,
    /// The status that the client has seen already, and how its connection has to end for it.
    told: Option<(u16, Next)>,
    /// The request's body was not received to its end.
    body_left: bool,
    /// Bytes that were sent to the client, and those of a body among them.
    sent: u64,
    body_sent: u64,
}

/// An exchange that came to its end.
struct Exchanged {
    outcome: Outcome,
    upstream_reusable: bool,
}

/// An exchange that did not.
enum Undone {
    /// Nothing of an answer has reached the client.
    NotAnswered(NoAnswer),
    /// A part of it has.
    CutOff(Failure),
}

/// What came first in an exchange whose request body is still arriving.
enum First {
    Uploaded(Result<(), Broken>),
    Answered(Result<Answered, NoAnswer>),
}

/// What ended a wait for bytes.
enum Woken {
    Readable,
    Due,
    Drain,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoAnswer {
    /// The connection ended before a byte of it: if it was a kept one, it may just have been old.
    Stale,
    Failed(Reason),
}

impl From<Reason> for NoAnswer {
    fn from(reason: Reason) -> NoAnswer {
        NoAnswer::Failed(reason)
    }
}

impl Session {
    /// Request by request; ends with a deadline if the connection is to be parked until then.
    async fn serve_requests(&mut self) -> Option<Nanos> {
        loop {
            let next = match self.arrival().await {
                Arrival::Order(order) => self.serve(order).await,
                Arrival::Refused(reason, began) => self.refuse(reason, began).await,
                Arrival::Idle(due) => return Some(due),
                Arrival::Gone => return None,
            };
            match next {
                Next::Request => {}
                Next::Close => return None,
                Next::Linger => {
                    self.linger().await;
                    return None;
                }
                Next::Reset => {
                    self.socket.reset_on_close();
                    return None;
                }
            }
        }
    }

    /// Waits for a request, and reads its head.
    async fn arrival(&mut self) -> Arrival {
        let mut began = None;
        let mut complete = self.info.waiting_since;
        loop {
            let plan = self.shard.plan();
            if !self.inbound.is_empty() {
                complete = Nanos::now();
                let began = *began.get_or_insert(complete);
                let bytes = self.inbound.filled();
                match admit::admit(&self.shard, &plan, &self.info, bytes, began, complete) {
                    Admission::Order(order) => return Arrival::Order(order),
                    Admission::Refused(reason) => return Arrival::Refused(reason, began),
                    Admission::Partial => {}
                }
                if self.inbound.room() == 0 && !self.shard.buffers.enlarge(&mut self.inbound) {
                    return Arrival::Refused(Reason::HeadTooLarge, began);
                }
            }
            let listener = &plan.shared().listeners[self.info.slot.listener.index];
            let due = self.idle_due(listener);
            match began {
                Some(began) => self.timer.set(began.after(listener.timeouts.header), complete),
                None => {
                    let since = self.info.waiting_since.max(self.awake_since);
                    self.timer.set(due.min(since + PARK_AFTER), since);
                }
            }
            match self.until_readable(began.is_none()).await {
                Woken::Readable => {}
                Woken::Due => match began {
                    Some(began) => return Arrival::Refused(Reason::HeaderTimeout, began),
                    None if Nanos::now() < due => return Arrival::Idle(due),
                    None => return Arrival::Gone,
                },
                Woken::Drain => return Arrival::Gone,
            }
            if self.inbound.room() == 0 && self.inbound.is_empty() {
                self.inbound = self.shard.buffers.take();
            }
            match receive(&self.socket, &mut self.inbound) {
                Ok(0) => return Arrival::Gone,
                Ok(count) => self.shard.counters.bytes_received.add(count as u64),
                Err(error) if would_block(&error) => {
                    // Woken for nothing; the timer may have fired meanwhile, see `Timer::set`.
                    self.awake_since = Nanos::now();
                    complete = self.awake_since;
                    if self.inbound.is_empty() {
                        self.shard.buffers.give_back(std::mem::take(&mut self.inbound));
                    }
                }
                Err(_) => return Arrival::Gone,
            }
        }
    }

    /// When an idle connection is closed. A new one has the time of a head to say something.
    fn idle_due(&self, listener: &Listener) -> Nanos {
        if self.info.requests == 0 {
            self.info.accepted.after(listener.timeouts.header)
        } else {
            self.info.waiting_since.after(listener.timeouts.idle)
        }
    }

    /// Waits for bytes, the timer or, where the connection is idle, a drain.
    async fn until_readable(&mut self, idle: bool) -> Woken {
        let Session { shard, socket, timer, info, .. } = self;
        let mut readable = pin!(socket.readable());
        let mut woken = false;
        std::future::poll_fn(|context| {
            let woken = std::mem::replace(&mut woken, true);
            if readable.as_mut().poll(context).is_ready() {
                return Poll::Ready(Woken::Readable);
            }
            if idle && shard.drain() >= Some(Drain::Close) {
                let grace_ends = info.accepted + DRAIN_GRACE;
                let now = Nanos::now();
                if info.requests > 0 || now >= grace_ends {
                    return Poll::Ready(Woken::Drain);
                }
                timer.set(timer.due().min(grace_ends), now);
            }
            timer.poll_due(woken, context).map(|()| Woken::Due)
        })
        .await
    }

    /// Answers one request, and records what came of it.
    async fn serve(&mut self, mut order: Order) -> Next {
        let shard = self.shard.clone();
        self.info.requests += 1;
        shard.counters.requests_in_flight.add(1);
        self.inbound.consume(order.head_bytes);
        let outcome = match order.action {
            Action::Own { status } => self.answer_ourselves(&order, status).await,
            Action::Forward { cluster, hash } => {
                match self.forward(&mut order, cluster, hash).await {
                    Ok(outcome) => outcome,
                    Err(failure) => self.fail(&mut order, failure).await,
                }
            }
        };
        if self.inbound.is_empty() {
            shard.buffers.give_back(std::mem::take(&mut self.inbound));
        }
        let now = Nanos::now();
        self.info.waiting_since = now;
        shard.needs_housekeeping();
        shard.counters.requests_in_flight.sub(1);
        shard.counters.bytes_sent.add(outcome.sent);
        if let Some(reason) = outcome.reason {
            shard.counters.refuse(reason);
        }
        shard.counters.answered(outcome.status, now.since(order.began).as_nanos() as u64);
        if let Some(line) = order.log.take() {
            let upstream = outcome.endpoint.as_ref().map(|endpoint| endpoint.address);
            line.finish(
                &shard,
                &order,
                &admit::Ending {
                    status: outcome.status,
                    reason: outcome.reason,
                    upstream,
                    body_received: outcome.body_received,
                    body_sent: outcome.body_sent,
                    ended: now,
                },
            );
        }
        shard.buffers.give_back(order.out);
        match outcome.next {
            Next::Close => self.close_politely(),
            next => next,
        }
    }

    /// Sends an answer that the order holds already.
    async fn answer_ourselves(&mut self, order: &Order, status: u16) -> Outcome {
        let body_left = self.body_left(order);
        let sent = self.send_within(order.out.filled(), order.listener()).await;
        Outcome {
            status,
            reason: order.reason,
            endpoint: None,
            sent: order.out.len() as u64,
            body_sent: order.own_body_bytes as u64,
            body_received: 0,
            next: match sent {
                Err(_) => Next::Close,
                Ok(()) if body_left => Next::Linger,
                Ok(()) if order.keep_alive && !self.shard.is_draining() => Next::Request,
                Ok(()) => Next::Close,
            },
        }
    }

    /// Drops the body of a request that is not forwarded, if it is here; true if it is not.
    fn body_left(&mut self, order: &Order) -> bool {
        match order.framing {
            Framing::None => false,
            Framing::Length(length) if length <= self.inbound.len() as u64 => {
                self.inbound.consume(length as usize);
                false
            }
            _ => true,
        }
    }

    /// The end of a connection on which everything was read; lingering only if there is more.
    fn close_politely(&self) -> Next {
        if self.inbound.is_empty() { Next::Close } else { Next::Linger }
    }

    /// Answers a head that is refused; the connection ends, since nobody knows what follows.
    async fn refuse(&mut self, reason: Reason, began: Nanos) -> Next {
        let shard = self.shard.clone();
        let plan = shard.plan();
        let listener = &plan.shared().listeners[self.info.slot.listener.index];
        let mut out = shard.buffers.take();
        let date = shard.date.get(began);
        respond::refusal(reason, listener, Persistence::Close, false, &date, out.writer());
        let sent = self.send_within(out.filled(), listener).await;
        shard.counters.refuse(reason);
        shard.counters.answered(reason.status(), Nanos::now().since(began).as_nanos() as u64);
        shard.counters.bytes_sent.add(out.len() as u64);
        admit::log_refused(&shard, listener, &self.info, reason, began);
        shard.buffers.give_back(out);
        if sent.is_ok() { Next::Linger } else { Next::Close }
    }

    /// Answers for an exchange that failed, if the client can still be told.
    async fn fail(&mut self, order: &mut Order, failure: Failure) -> Outcome {
        let Failure { reason, told, body_left, sent, body_sent } = failure;
        let nobody_listens = matches!(reason, Reason::ClientGone | Reason::ClientStalled);
        let unanswered = (reason.status(), Next::Reset);
        let (status, next) = told.unwrap_or(unanswered);
        let endpoint = order.endpoint.clone();
        let reason_told = Some(reason);
        let mut outcome = Outcome {
            status,
            reason: reason_told,
            endpoint,
            sent,
            body_sent,
            body_received: 0,
            next,
        };
        if told.is_some() || nobody_listens {
            return outcome;
        }
        let broken_body =
            matches!(reason, Reason::BadBody | Reason::BodyTimeout | Reason::BodyTooLarge);
        let stays = order.keep_alive && !body_left && !broken_body && !self.shard.is_draining();
        let persistence = Persistence::of(order.version, stays);
        order.out.clear();
        let date = self.shard.date.get(order.began);
        let head_only = order.method == crate::http::head::Method::Head;
        let plan = order.plan.clone();
        let listener = &plan.shared().listeners[order.listener_index];
        respond::refusal(reason, listener, persistence, head_only, &date, order.out.writer());
        outcome.sent = order.out.len() as u64;
        outcome.body_sent = if head_only { 0 } else { respond::body_bytes(reason) as u64 };
        outcome.next = match self.send_within(order.out.filled(), listener).await {
            Err(_) => Next::Close,
            Ok(()) if body_left || broken_body => Next::Linger,
            Ok(()) if stays => Next::Request,
            Ok(()) => Next::Close,
        };
        outcome
    }

    /// Sends an order to an endpoint, and its answer to the client.
    async fn forward(
        &mut self,
        order: &mut Order,
        cluster: usize,
        hash: Option<u64>,
    ) -> Result<Outcome, Failure> {
        let shard = self.shard.clone();
        let failure =
            |reason, body_left| Failure { reason, told: None, body_left, sent: 0, body_sent: 0 };
        let mut body_left = !matches!(order.framing, Framing::None);
        let Some(endpoint) = order.plan.pick(cluster, hash, None) else {
            return Err(failure(Reason::NoEndpoint, body_left));
        };
        let _in_flight = endpoint.begin();
        order.endpoint = Some(endpoint.clone());
        if order.framing == Framing::Chunked && endpoint.speaks_http10() {
            return Err(failure(Reason::LengthRequired, body_left));
        }
        if let Framing::Length(length) = order.framing
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
            shard.buffers.give_back(std::mem::take(&mut self.inbound));
        }
        let pool = order.plan.cluster(cluster).pool;
        let mut now = order.complete;
        let replayable = !body_left && order.method.idempotent();
        let mut kept = endpoint.take_idle(&pool, now, replayable);
        loop {
            let connection = match kept.take() {
                Some(connection) => connection,
                None => {
                    let limit = order.plan.cluster(cluster).connect_timeout;
                    let connection = self.connect(&endpoint, limit).await;
                    let connection = connection.map_err(|reason| failure(reason, body_left))?;
                    now = Nanos::now();
                    if !connection.socket().is_quiet() {
                        // It spoke before it was asked: whatever that is, it is no answer.
                        return Err(failure(Reason::BadAnswer, body_left));
                    }
                    connection
                }
            };
            let exchanged = if body_left {
                // Boxed: it is large and rare, and every session would have to hold room for it.
                Box::pin(self.exchange_with_upload(order, &connection, now)).await
            } else {
                self.exchange(order, &connection, now).await
            };
            match exchanged {
                Ok(exchanged) => {
                    if exchanged.upstream_reusable {
                        connection.keep(&pool, Nanos::now());
                    }
                    return Ok(exchanged.outcome);
                }
                // It may have timed out just as we used it: once more, on a new one, unless the
                // origin may have acted on it already (RFC 9110, 9.2.2).
                Err(Undone::NotAnswered(NoAnswer::Stale)) if connection.reused && replayable => {
                    shard.counters.retries.add(1);
                }
                Err(Undone::NotAnswered(NoAnswer::Stale)) => {
                    return Err(failure(Reason::UpstreamReset, body_left));
                }
                Err(Undone::NotAnswered(NoAnswer::Failed(reason))) => {
                    return Err(failure(reason, body_left));
                }
                Err(Undone::CutOff(failure)) => return Err(failure),
            }
        }
    }

    /// Opens a connection, within its time.
    async fn connect(
        &mut self,
        endpoint: &Rc<Endpoint>,
        limit: Duration,
    ) -> Result<Connection, Reason> {
        let now = Nanos::now();
        self.timer.set(now.after(limit), now);
        let connected =
            within(&mut self.timer, pin!(endpoint.connect()), |_| Err(Reason::ConnectTimeout))
                .await;
        match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => {
                tracing::debug!(endpoint = %endpoint.address, %error, "connect failed");
                Err(Reason::ConnectFailed)
            }
            Err(reason) => Err(reason),
        }
    }

    /// One exchange whose request is complete in the order: nearly all of them.
    async fn exchange(
        &mut self,
        order: &Order,
        connection: &Connection,
        now: Nanos,
    ) -> Result<Exchanged, Undone> {
        let Session { shard, socket, timer, inbound, .. } = self;
        let upstream = connection.socket();
        let watch = Cell::new(false);
        let mut waiting = Waiting::new(order, &watch);
        timer.set(waiting.begin(now), now);
        let uploading = Cell::new(false);
        let mut asking = Asking::new(shard, order, &uploading);
        let asked = async {
            if send(upstream, order.out.filled()).await.is_err() && connection.reused {
                return Err(NoAnswer::Stale);
            }
            // After a failed write an answer may still be there to be read.
            asking.answer(upstream, socket, &watch).await
        };
        let answered = within(timer, pin!(asked), |now| waiting.look(now)).await;
        let answered = answered.map_err(NoAnswer::from).and_then(|answered| answered);
        let answered = answered.map_err(Undone::NotAnswered)?;
        let flow = Flow::default();
        if answered.persistence == Persistence::Upgrade {
            let tunnel = asking.tunnel(upstream, socket, timer, std::mem::take(inbound));
            return Box::pin(tunnel).await;
        }
        let downloaded = match asking.send_whole(&answered, socket, &flow) {
            true => Ok(()),
            false => asking.download(&answered, upstream, socket, timer, &flow).await,
        };
        asking.conclude(answered, downloaded, &flow, true)
    }

    /// One exchange whose request body is still arriving: both directions run at once.
    async fn exchange_with_upload(
        &mut self,
        order: &Order,
        connection: &Connection,
        now: Nanos,
    ) -> Result<Exchanged, Undone> {
        let Session { shard, socket, timer, inbound, .. } = self;
        let upstream = connection.socket();
        let up = Flow::default();
        let at_hand = inbound.len() as u64;
        let mut relay = Relay {
            from: &*socket,
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
        };
        let mut upload = pin!(relay.run());
        let mut uploaded: Option<Result<(), Broken>> = None;
        let watch = Cell::new(false);
        let uploading = Cell::new(true);
        let mut asking = Asking::new(shard, order, &uploading);
        let answered = {
            let total = order.began.after(order.timeouts().total);
            let mut pace = Pace::new(upload_rules(order), now);
            timer.set(pace.due().min(total), now);
            let mut answer = pin!(asking.answer(upstream, socket, &watch));
            let first = pin!(std::future::poll_fn(|context| {
                if let Poll::Ready(result) = upload.as_mut().poll(context) {
                    return Poll::Ready(First::Uploaded(result));
                }
                answer.as_mut().poll(context).map(First::Answered)
            }));
            let first = within(timer, first, |now| {
                if now >= total {
                    return Err(Reason::TotalTimeout);
                }
                pace.look(&up, 0, now).map_err(|stall| match stall {
                    Stall::Client => Reason::BodyTimeout,
                    Stall::Upstream => Reason::AnswerTimeout,
                })?;
                Ok(pace.due().min(total))
            });
            match first.await {
                Err(reason) => Err(reason),
                Ok(First::Answered(answered)) => Ok(answered),
                Ok(First::Uploaded(Err(broken @ (Broken::Truncated | Broken::Refused(_))))) => {
                    Err(client_fault(broken))
                }
                Ok(First::Uploaded(result)) => {
                    // The origin's time begins when it has the whole request. One that stopped to
                    // read may have answered all the same.
                    uploaded = Some(result);
                    uploading.set(result.is_err());
                    let mut waiting = Waiting::new(order, &watch);
                    let now = Nanos::now();
                    timer.set(waiting.begin(now), now);
                    within(timer, answer.as_mut(), |now| waiting.look(now)).await
                }
            }
        };
        let answered = answered.map_err(NoAnswer::from).and_then(|answered| answered);
        let answered = answered.map_err(Undone::NotAnswered)?;
        let down = Flow::default();
        // An early refusal ends the upload (RFC 9110, 10.1.1); an early success may be an origin
        // that answers while it reads.
        let go_on = uploaded.is_none() && answered.status < 300;
        let downloaded = {
            let mut download = pin!(asking.download(&answered, upstream, socket, timer, &down));
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
            // The origin has said all, but it may still be reading.
            let began = Nanos::now();
            let total = order.began.after(order.timeouts().total);
            let mut pace = Pace::new(upload_rules(order), began);
            timer.set(pace.due().min(total), began);
            let rest = within(timer, upload.as_mut(), |now| {
                if now >= total || pace.look(&up, 0, now).is_err() {
                    return Err(Reason::BodyTimeout);
                }
                Ok(pace.due().min(total))
            });
            uploaded = rest.await.ok();
        }
        let complete = uploaded == Some(Ok(()));
        let mut exchanged = asking.conclude(answered, downloaded, &down, complete)?;
        exchanged.outcome.body_received = up.bytes.get();
        shard.counters.bytes_received.add(up.bytes.get().saturating_sub(at_hand));
        Ok(exchanged)
    }

    /// Sends an answer of our own, within the time that a client has to read it.
    async fn send_within(&mut self, bytes: &[u8], listener: &Listener) -> Result<(), Reason> {
        let now = Nanos::now();
        self.timer.set(now.after(listener.timeouts.body), now);
        let send = pin!(send(&self.socket, bytes));
        let sent = within(&mut self.timer, send, |_| Err(Reason::ClientStalled)).await;
        sent?.map_err(|_| Reason::ClientGone)
    }

    /// Reads and forgets what the client still sends, for a while, so that it can read our answer.
    async fn linger(&mut self) {
        self.socket.shutdown_write();
        let now = Nanos::now();
        self.timer.set(now + LINGER_TIMEOUT, now);
        self.inbound.clear();
        let Session { socket, timer, inbound, shard, .. } = self;
        if inbound.room() == 0 {
            *inbound = shard.buffers.take();
        }
        let forget = async {
            let mut forgotten = 0;
            while forgotten < LINGER_BYTES_MAX {
                socket.readable().await;
                match receive(socket, inbound) {
                    Ok(0) => return,
                    Ok(count) => forgotten += count,
                    Err(error) if would_block(&error) => {}
                    Err(_) => return,
                }
                inbound.clear();
            }
        };
        let _ = within(timer, pin!(forget), |_| Err(Reason::ClientStalled)).await;
    }
}

/// One exchange's answer on its way: its buffers, and what was sent of it.
struct Asking<'a> {
    shard: &'a Shard,
    order: &'a Order,
    /// Received from the origin and not yet dealt with.
    answer: Buffer,
    /// The head as it leaves.
    reply: Buffer,
    /// Bytes of heads that were sent.
    sent: u64,
    /// Bytes of the body that went with the head.
    body_sent: u64,
    /// The request's body is still arriving.
    uploading: &'a Cell<bool>,
}

impl<'a> Asking<'a> {
    fn new(shard: &'a Shard, order: &'a Order, uploading: &'a Cell<bool>) -> Asking<'a> {
        let (answer, reply) = (Buffer::default(), Buffer::default());
        Asking { shard, order, answer, reply, sent: 0, body_sent: 0, uploading }
    }

    /// Waits for the head of the answer, and hands interim answers on. `watch` says when to look
    /// whether the client is still there.
    async fn answer(
        &mut self,
        upstream: &Socket,
        client: &Socket,
        watch: &Cell<bool>,
    ) -> Result<Answered, NoAnswer> {
        let mut interim_answers = 0;
        loop {
            match unless_gone(client, watch, pin!(upstream.readable())).await {
                Some(_) => {}
                None => return Err(Reason::ClientGone.into()),
            }
            if self.answer.room() == 0 {
                if self.answer.is_empty() {
                    self.answer = self.shard.buffers.take();
                } else if !self.shard.buffers.enlarge(&mut self.answer) {
                    return Err(Reason::BadAnswer.into());
                }
            }
            match receive(upstream, &mut self.answer) {
                Ok(0) if self.answer.is_empty() && interim_answers == 0 => {
                    return Err(NoAnswer::Stale);
                }
                Ok(0) => return Err(Reason::UpstreamReset.into()),
                Ok(_) => {}
                Err(error) if would_block(&error) => continue,
                Err(_) if self.answer.is_empty() && interim_answers == 0 => {
                    return Err(NoAnswer::Stale);
                }
                Err(_) => return Err(Reason::UpstreamReset.into()),
            }
            while !self.answer.is_empty() {
                match self.take_head()? {
                    Taken::Partial => break,
                    Taken::Final(answered) => {
                        self.answer.consume(answered.head_bytes);
                        self.sent += self.reply.len() as u64;
                        return Ok(answered);
                    }
                    Taken::Interim(head_bytes) => {
                        self.answer.consume(head_bytes);
                        interim_answers += 1;
                        if interim_answers > INTERIM_ANSWERS_MAX {
                            return Err(Reason::BadAnswer.into());
                        }
                        let sent = send(client, self.reply.filled()).await;
                        sent.map_err(|_| Reason::ClientGone)?;
                        self.sent += self.reply.len() as u64;
                        self.reply.clear();
                    }
                }
            }
        }
    }

    fn take_head(&mut self) -> Result<Taken, Reason> {
        if self.reply.room() == 0 {
            self.reply = self.shard.buffers.take();
        }
        let order = self.order;
        let context = Context {
            rules: order.response_rules(),
            stays: order.keep_alive && !self.shard.is_draining(),
            uploading: self.uploading.get(),
            date: &self.shard.date.get(order.began),
        };
        answer::take(self.answer.filled(), order, &context, self.reply.writer())
    }

    /// Sends an answer that is here as a whole, in one write, if the socket takes all of it.
    fn send_whole(&mut self, answered: &Answered, client: &Socket, flow: &Flow) -> bool {
        let whole = match answered.framing {
            Framing::None => 0,
            Framing::Length(length) if length <= self.answer.len() as u64 => length as usize,
            _ => return false,
        };
        let body = &self.answer.filled()[..whole];
        // A short body is copied behind its head: cheaper than a write of two pieces.
        let copied = whole <= COPY_BYTES_MAX && whole <= self.reply.room();
        let sent = if copied {
            self.reply.writer().extend_from_slice(body);
            client.try_send(self.reply.filled())
        } else {
            let slices = [IoSlice::new(self.reply.filled()), IoSlice::new(body)];
            client.try_send_vectored(&slices)
        };
        let head = if copied { self.reply.len() - whole } else { self.reply.len() };
        let sent = sent.unwrap_or(0);
        flow.begun.set(sent > 0);
        if copied {
            self.reply.truncate(head);
        }
        if sent < head + whole {
            // The rest is the relay's: it waits.
            self.reply.consume(sent.min(head));
            let of_body = sent.saturating_sub(head);
            self.answer.consume(of_body);
            self.body_sent = of_body as u64;
            flow.bytes.set(of_body as u64);
            return false;
        }
        self.answer.consume(whole);
        flow.bytes.set(whole as u64);
        true
    }

    /// Sends what is left of the answer's head and body to the client. `flow` tells how far it came.
    async fn download(
        &mut self,
        answered: &Answered,
        upstream: &Socket,
        client: &Socket,
        timer: &mut Timer,
        flow: &Flow,
    ) -> Result<(), Cut> {
        let order = self.order;
        let began = Nanos::now();
        let mut pace = Pace::new(download_rules(order), began);
        let total = order.began.after(order.timeouts().total);
        timer.set(pace.due().min(total).min(began + WATCH_CLIENT_AFTER), began);
        let watch = Cell::new(false);
        let mut relay = Relay {
            from: upstream,
            to: client,
            buffer: &mut self.answer,
            incoming: match answered.framing {
                Framing::Length(length) => Incoming::Length(length - self.body_sent),
                framing => Incoming::new(framing, false),
            },
            outgoing: answered.outgoing,
            bytes_max: u64::MAX,
            head: self.reply.filled(),
            buffers: &self.shard.buffers,
            pipes: &self.shard.pipes,
            flow,
        };
        let run = pin!(relay.run());
        let attended = pin!(unless_gone(client, &watch, run));
        let relayed = within(timer, attended, |now| {
            watch.set(true);
            if now >= total {
                return Err(Reason::TotalTimeout);
            }
            pace.look(flow, client.unacknowledged(), now).map_err(|stall| match stall {
                Stall::Client => Reason::ClientStalled,
                Stall::Upstream => Reason::StreamIdle,
            })?;
            Ok(pace.due().min(total))
        });
        let reason = match relayed.await {
            Ok(Some(Ok(()))) => return Ok(()),
            Ok(Some(Err(Broken::Truncated))) => Reason::AnswerTruncated,
            Ok(Some(Err(Broken::Refused(_)))) => Reason::BadAnswer,
            Ok(Some(Err(Broken::SinkGone)) | None) => Reason::ClientGone,
            Err(reason) => reason,
        };
        Err(Cut { reason, begun: flow.begun.get() })
    }

    /// Sends the head of a 101, and then whatever either side sends, until both have ended.
    async fn tunnel(
        mut self,
        upstream: &Socket,
        client: &Socket,
        timer: &mut Timer,
        inbound: Buffer,
    ) -> Result<Exchanged, Undone> {
        let order = self.order;
        let (up, down) = (Flow::default(), Flow::default());
        let tunnel = Tunnel {
            client,
            upstream,
            from_client: inbound,
            from_upstream: std::mem::take(&mut self.answer),
            head: self.reply.filled(),
            buffers: &self.shard.buffers,
            up: &up,
            down: &down,
        };
        self.shard.counters.tunnels_open.add(1);
        let ended = tunnel.run(timer, order.timeouts().stream_idle).await;
        self.shard.counters.tunnels_open.sub(1);
        let outcome = Outcome {
            status: 101,
            reason: ended.err(),
            endpoint: order.endpoint.clone(),
            sent: self.sent + down.bytes.get(),
            body_sent: down.bytes.get(),
            body_received: up.bytes.get(),
            next: Next::Close,
        };
        Ok(Exchanged { outcome, upstream_reusable: false })
    }

    /// What an exchange came to, once its answer has gone as far as it would.
    fn conclude(
        &mut self,
        answered: Answered,
        downloaded: Result<(), Cut>,
        flow: &Flow,
        uploaded: bool,
    ) -> Result<Exchanged, Undone> {
        let order = self.order;
        if let Some(endpoint) = &order.endpoint {
            endpoint.answered_in_http10(answered.http10);
        }
        let sent = self.sent + flow.bytes.get();
        match downloaded {
            Ok(()) => {
                let next = match answered.persistence {
                    _ if !uploaded => Next::Linger,
                    Persistence::Implied | Persistence::KeepAlive => Next::Request,
                    Persistence::Close | Persistence::Upgrade => Next::Close,
                };
                let endpoint = order.endpoint.clone();
                let (status, reason) = (answered.status, None);
                let body_sent = flow.bytes.get();
                let body_received = order.body_at_hand;
                let outcome =
                    Outcome { status, reason, endpoint, sent, body_sent, body_received, next };
                // Bytes behind the answer belong to nobody: the connection is not to be trusted.
                let upstream_reusable = answered.reusable && uploaded && self.answer.is_empty();
                Ok(Exchanged { outcome, upstream_reusable })
            }
            Err(Cut { reason, begun: false }) => Err(Undone::NotAnswered(reason.into())),
            Err(Cut { reason, begun: true }) => {
                // Where only the end of the connection ends the body, it must not look like one; and
                // a client that does not read would keep what was sent for minutes.
                let told = match answered.framing {
                    _ if reason == Reason::ClientStalled => Next::Reset,
                    _ if answered.outgoing == Outgoing::Chunked => Next::Close,
                    Framing::Length(_) | Framing::None => Next::Close,
                    Framing::Chunked | Framing::UntilClose => Next::Reset,
                };
                let told = Some((answered.status, told));
                let (body_left, body_sent) = (!uploaded, flow.bytes.get());
                Err(Undone::CutOff(Failure { reason, told, body_left, sent, body_sent }))
            }
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.shard.buffers.give_back(std::mem::take(&mut self.answer));
        self.shard.buffers.give_back(std::mem::take(&mut self.reply));
    }
}

/// An answer that did not reach its end, and whether any of it was sent.
struct Cut {
    reason: Reason,
    begun: bool,
}

/// The time that an origin has for its answer, once it has the request.
struct Waiting<'a> {
    order: &'a Order,
    watch: &'a Cell<bool>,
    due: Nanos,
}

impl<'a> Waiting<'a> {
    fn new(order: &'a Order, watch: &'a Cell<bool>) -> Waiting<'a> {
        Waiting { order, watch, due: Nanos::NEVER }
    }

    /// Begins to count; tells when to look first.
    fn begin(&mut self, now: Nanos) -> Nanos {
        let timeouts = self.order.timeouts();
        self.due = now.after(timeouts.answer).min(self.order.began.after(timeouts.total));
        self.due.min(now + WATCH_CLIENT_AFTER)
    }

    /// Looks: time may be up; if not, it is time to see whether the client is still there.
    fn look(&mut self, now: Nanos) -> Result<Nanos, Reason> {
        if now >= self.due {
            let total = now >= self.order.began.after(self.order.timeouts().total);
            return Err(if total { Reason::TotalTimeout } else { Reason::AnswerTimeout });
        }
        self.watch.set(true);
        Ok(self.due)
    }
}

/// What counts as progress of a request body.
fn upload_rules(order: &Order) -> pace::Rules {
    let limits = &order.listener().timeouts;
    pace::Rules {
        span: limits.body,
        bytes_per_second_min: limits.body_bytes_per_second_min,
        idle: order.timeouts().answer,
        client: Side::Source,
    }
}

/// What counts as progress of an answer.
fn download_rules(order: &Order) -> pace::Rules {
    let limits = &order.listener().timeouts;
    pace::Rules {
        span: limits.body,
        bytes_per_second_min: limits.body_bytes_per_second_min,
        idle: order.timeouts().stream_idle,
        client: Side::Sink,
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

/// Runs `work`; but once `watch` is set, ends with `None` if the client turns out to have left. One
/// that has only sent its next request has not.
async fn unless_gone<T>(
    client: &Socket,
    watch: &Cell<bool>,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    let mut gone = pin!(async {
        client.ended().await;
        if !client.is_closed() {
            std::future::pending::<()>().await;
        }
    });
    std::future::poll_fn(|context| {
        if let Poll::Ready(result) = work.as_mut().poll(context) {
            return Poll::Ready(Some(result));
        }
        if watch.get() && gone.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}

/// Runs `work`, and whenever the timer fires asks `look`: it moves the deadline, or ends the work.
async fn within<T>(
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

/// Sends all of it.
async fn send(to: &Socket, mut bytes: &[u8]) -> io::Result<()> {
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
fn receive(from: &Socket, buffer: &mut Buffer) -> io::Result<usize> {
    let count = from.try_recv(buffer.spare())?;
    // SAFETY: the kernel has just written so many bytes of it.
    unsafe { buffer.filled_by(count) };
    Ok(count)
}
