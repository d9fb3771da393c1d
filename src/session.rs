//! One client connection's journey: wait, read a head, admit it, answer or exchange it, record what
//! came of it, and wait again. Start reading here.
//!
//! One task per connection carries each of its requests from beginning to end. Whatever waits is
//! bounded by the one timer of the connection. What decides is elsewhere and pure: `admit` turns a
//! head into an [`Order`], `answer` reads the head of an answer, the relays know framing, and
//! `pace` tells who stands still. `exchange` does what needs an endpoint.

mod fall_back;

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::accept::{Client, ClientInfo};
use crate::admit::{self, Action, Admission, Order};
use crate::exchange::{Exchange, Failure, Next, Outcome, receive, send, within};
use crate::http::encode::Persistence;
use crate::http::head::Framing;
use crate::net::{Socket, Timer, would_block};
use crate::plan::Listener;
use crate::reason::Reason;
use crate::respond;
use crate::shard::Shard;
use crate::shard::buffers::Buffer;
use crate::shard::message::Drain;
use crate::shard::parking::PARK_AFTER;
use crate::time::Nanos;

/// After an early end we read on for so long, so that the client gets our answer and not a reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// And at most so many bytes.
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// Pipelined requests served before the others get a turn.
const PIPELINED_PER_TURN_MAX: u32 = 16;

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
        unwaited: 0,
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
    /// Requests in a row that were here before they were waited for.
    unwaited: u32,
}

/// What a wait for a request came to.
enum Arrival {
    /// It is in the place that was given for it.
    Order,
    /// The head that began to arrive then is refused.
    Refused(Reason, Nanos),
    /// Nothing arrives; the connection may be parked until that time.
    Idle(Nanos),
    /// The client has left, or waited too long to say anything.
    Gone,
}

/// What ended a wait for bytes.
enum Woken {
    Readable,
    Due,
    Drain,
}

impl Session {
    /// Request by request; ends with a deadline if the connection is to be parked until then.
    async fn serve_requests(&mut self) -> Option<Nanos> {
        // Each order is made here, and stays here.
        let mut order = None;
        loop {
            let next = match self.arrival(&mut order).await {
                Arrival::Order => {
                    let next = self.serve(order.as_mut().expect("it was made")).await;
                    order = None;
                    next
                }
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
    async fn arrival(&mut self, order: &mut Option<Order>) -> Arrival {
        let mut began = None;
        let mut complete = self.info.waiting_since;
        let mut looked = 0;
        self.unwaited += 1;
        if self.unwaited == PIPELINED_PER_TURN_MAX {
            self.unwaited = 0;
            crate::net::yield_now().await;
            // The timer may have fired meanwhile, see `Timer::set`.
            self.awake_since = Nanos::now();
        }
        loop {
            let plan = self.shard.plan();
            if self.inbound.len() > looked {
                complete = Nanos::now();
            }
            if self.may_be_head(looked) {
                let began = *began.get_or_insert(complete);
                let bytes = self.inbound.filled();
                looked = bytes.len();
                let readable_since = self.socket.readable_since();
                let arrived = admit::Arrived { began, complete, readable_since };
                match admit::admit(&self.shard, &plan, &self.info, bytes, arrived, order) {
                    Admission::Order => return Arrival::Order,
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
                    None if self.shard.drain() >= Some(Drain::Close) => {
                        // It has its grace, and is not parked any more.
                        self.awake_since = Nanos::now();
                        continue;
                    }
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

    /// Whether it is worth to parse what has arrived, `looked` bytes of which were no whole head. A
    /// line's end may complete it; without one, limits are looked after as it grows. So a head that
    /// comes byte by byte is not parsed at each of them.
    fn may_be_head(&self, looked: usize) -> bool {
        let bytes = self.inbound.filled();
        bytes.len() > looked
            && (bytes.len() - looked > looked / 4
                || self.inbound.room() == 0
                || memchr::memchr(b'\n', &bytes[looked..]).is_some())
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
        let Session { shard, socket, timer, info, unwaited, .. } = self;
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
            *unwaited = 0;
            timer.poll_due(woken, context).map(|()| Woken::Due)
        })
        .await
    }

    /// Answers one request, and records what came of it.
    async fn serve(&mut self, order: &mut Order) -> Next {
        let shard = self.shard.clone();
        self.info.requests += 1;
        shard.counters.requests_in_flight.add(1);
        self.inbound.consume(order.head_bytes);
        if order.awaits_tokens() {
            Box::pin(order.await_tokens(&shard, &mut self.timer)).await;
        }
        let outcome = match order.action {
            Action::Own { status } => self.answer_ourselves(order, status).await,
            Action::Forward { cluster, hash, breaker } => {
                let Session { shard, socket, timer, inbound, .. } = self;
                let mut exchange = Exchange { shard, client: socket, timer, inbound };
                let done = exchange.run(order, cluster, hash, breaker).await;
                order.tell_admission();
                match done {
                    Ok(outcome) => outcome,
                    Err(failure) => self.fail(order, failure).await,
                }
            }
            Action::Reject { .. } => {
                let body_left = !order.has_whole_body();
                let failure = Failure::untold(Reason::AdmissionControl, body_left);
                self.fail(order, failure).await
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
            line.finish(
                &shard,
                order,
                &admit::Ending {
                    status: outcome.status,
                    reason: outcome.reason,
                    upstream_time: outcome.upstream_time,
                    body_received: outcome.body_received,
                    body_sent: outcome.body_sent,
                    ended: now,
                },
            );
        }
        shard.buffers.give_back(std::mem::take(&mut order.out));
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
            upstream_time: None,
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
        admit::log_refused(&shard, listener, &self.info, self.inbound.filled(), reason, began);
        shard.buffers.give_back(out);
        if sent.is_ok() { Next::Linger } else { Next::Close }
    }

    /// Answers for an exchange that failed, if the client can still be told.
    async fn fail(&mut self, order: &mut Order, mut failure: Failure) -> Outcome {
        if order.falls_back.is_some() {
            // Boxed: it is large and rare.
            match Box::pin(self.fall_back(order, failure)).await {
                Ok(outcome) => return outcome,
                Err(stands) => failure = stands,
            }
        }
        let Failure {
            reason, told, body_left, sent, body_sent, body_received, upstream_time, ..
        } = failure;
        let nobody_listens =
            matches!(reason, Reason::ClientGone | Reason::ClientStalled | Reason::DrainTimeout);
        let unanswered = (reason.status(), Next::Reset);
        let (status, next) = told.unwrap_or(unanswered);
        let mut outcome = Outcome {
            status,
            reason: Some(reason),
            sent,
            body_sent,
            body_received,
            upstream_time,
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

    /// Sends an answer of our own, within the time that a client has to read it.
    async fn send_within(&mut self, bytes: &[u8], listener: &Listener) -> Result<(), Reason> {
        let now = Nanos::now();
        self.timer.set(now.after(listener.timeouts.body), now);
        let send = pin!(send(&self.socket, bytes));
        let sent = within(&self.shard, &mut self.timer, send, |_| Err(Reason::ClientStalled)).await;
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
        let _ = within(shard, timer, pin!(forget), |_| Err(Reason::ClientStalled)).await;
    }
}
