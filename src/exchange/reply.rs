//! The answer's way back: its head is received, rewritten and sent, and its body relayed.

use std::io::IoSlice;
use std::pin::pin;
use std::time::Duration;

use super::hedge::{Begun, status_of};
use super::patience::{Downloading, attended};
use super::{Exchanged, Failure, Next, NoAnswer, Outcome, Received, Undone, receive, send};
use crate::admit::Order;
use crate::answer::{self, Answered, Context, Taken};
use crate::fallback::last_good::{Keeping, Seen};
use crate::http::encode::Persistence;
use crate::http::head::Framing;
use crate::net::{Socket, Timer, would_block};
use crate::reason::Reason;
use crate::relay::{Broken, Flow, Incoming, Outgoing, Relay};
use crate::shard::Shard;
use crate::shard::buffers::Buffer;
use crate::time::Nanos;
use crate::tunnel::Tunnel;

/// Bodies up to this are copied behind their heads, to leave in a write of one piece.
const COPY_BYTES_MAX: usize = 2 * 1024;

/// Interim answers (1xx) to one request; more is an origin gone mad.
const INTERIM_ANSWERS_MAX: u32 = 16;

/// An answer on its way: its buffers, and what was sent of it.
pub(super) struct Reply<'a> {
    shard: &'a Shard,
    order: &'a Order,
    /// Received from the origin and not yet dealt with.
    received: Buffer,
    /// The head as it leaves.
    head: Buffer,
    /// Bytes of heads that were sent.
    sent: u64,
    /// Bytes of the body that went with the head.
    body_sent: u64,
    interim_answers: u32,
    /// When the origin had the whole request.
    asked: Nanos,
    /// When the head of its answer was here; measured only for the log.
    answered: Option<Nanos>,
    /// It is kept, as far as it has come.
    keeping: Option<Box<Keeping>>,
}

/// An answer that did not reach its end, and whether any of it was sent.
pub(super) struct Cut {
    reason: Reason,
    begun: bool,
}

impl<'a> Reply<'a> {
    /// Nothing yet.
    pub fn new(shard: &'a Shard, order: &'a Order, asked: Nanos) -> Reply<'a> {
        Reply {
            shard,
            order,
            received: Buffer::default(),
            head: Buffer::default(),
            sent: 0,
            body_sent: 0,
            interim_answers: 0,
            asked,
            answered: None,
            keeping: None,
        }
    }

    /// One whose request was sent before.
    pub fn resumed(shard: &'a Shard, order: &'a Order, begun: Begun) -> Reply<'a> {
        let mut reply = Reply::new(shard, order, begun.asked);
        reply.received = begun.received;
        reply
    }

    /// The status with which the answer begins, once it does. It is looked at, and not taken.
    pub async fn first_word(&mut self, upstream: &Socket) -> Result<u16, NoAnswer> {
        loop {
            if let Some(status) = status_of(self.received.filled())? {
                return Ok(status);
            }
            upstream.readable().await;
            self.receive(upstream)?;
        }
    }

    /// Corrects when the origin had the whole request.
    pub fn asked_at(&mut self, asked: Nanos) {
        self.asked = asked;
    }

    /// From the request's last byte to the head of its answer, if that is measured.
    pub fn upstream_time(&self) -> Option<Duration> {
        self.answered.map(|answered| answered.since(self.asked))
    }

    /// Reads what the origin has sent.
    pub fn receive(&mut self, upstream: &Socket) -> Result<(), NoAnswer> {
        if self.received.room() == 0 {
            if self.received.is_empty() {
                self.received = self.shard.buffers.take();
            } else if !self.shard.buffers.enlarge(&mut self.received) {
                return Err(Reason::BadAnswer.into());
            }
        }
        match receive(upstream, &mut self.received) {
            Err(error) if would_block(&error) => Ok(()),
            Ok(0) | Err(_) if self.received.is_empty() && self.interim_answers == 0 => {
                Err(NoAnswer::Stale)
            }
            Ok(0) | Err(_) => Err(Reason::UpstreamReset.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Looks for a head in what was received, and rewrites it. `uploading`: the request's body is
    /// still arriving.
    pub fn look(&mut self, uploading: bool) -> Result<Received, NoAnswer> {
        if self.received.is_empty() {
            return Ok(Received::Partial);
        }
        if self.head.room() == 0 {
            self.head = self.shard.buffers.take();
        }
        let order = self.order;
        let context = Context {
            rules: order.response_rules(),
            stays: order.keep_alive && !self.shard.is_draining(),
            uploading,
            date: &self.shard.date.get(order.began),
        };
        match answer::take(self.received.filled(), order, &context, self.head.writer())? {
            Taken::Partial => Ok(Received::Partial),
            Taken::Final(answered) => {
                if order.falls_back.is_some() {
                    self.keep(&answered);
                }
                self.received.consume(answered.head_bytes);
                self.sent += self.head.len() as u64;
                if order.is_timed {
                    self.answered = Some(Nanos::now());
                }
                Ok(Received::Final(answered))
            }
            Taken::Interim(head_bytes) => {
                self.received.consume(head_bytes);
                self.interim_answers += 1;
                if self.interim_answers > INTERIM_ANSWERS_MAX {
                    return Err(Reason::BadAnswer.into());
                }
                Ok(Received::Interim)
            }
        }
    }

    /// Keeps the answer for a fallback, if it is worth it: at once, where all of it is here.
    #[cold]
    fn keep(&mut self, answered: &Answered) {
        let order = self.order;
        let (Some(fallback), Some(own)) = (order.fallback_plan(), order.fallback_state()) else {
            return;
        };
        if fallback.last_good.is_none() {
            return;
        }
        let now = Nanos::now();
        let (head, rest) = self.received.filled().split_at(answered.head_bytes);
        let keeping = own.look(&Seen {
            sent: order.out.filled(),
            head,
            is_failure: fallback.wants_status(answered.status)
                || order.retries().wants_status(answered.status),
            is_own: order.is_at_home(),
            date: self.shard.date.get(now),
            now,
        });
        let Some(mut keeping) = keeping else { return };
        match answered.framing {
            Framing::Length(length) if length <= rest.len() as u64 => {
                if keeping.take(&rest[..length as usize]) {
                    own.keep(keeping);
                }
            }
            _ => self.keeping = Some(Box::new(keeping)),
        }
    }

    /// Hands an interim answer on.
    pub async fn send_interim(&mut self, client: &Socket) -> Result<(), Reason> {
        send(client, self.head.filled()).await.map_err(|_| Reason::ClientGone)?;
        self.sent += self.head.len() as u64;
        self.head.clear();
        Ok(())
    }

    /// Whether the whole answer is here, and nothing behind it.
    pub fn is_whole(&self, answered: &Answered) -> bool {
        match answered.framing {
            Framing::None => self.received.is_empty(),
            Framing::Length(length) => self.received.len() as u64 == length,
            Framing::Chunked | Framing::UntilClose => false,
        }
    }

    /// Sends an answer that is here as a whole, in one write, if the socket takes all of it.
    pub fn send_whole(&mut self, answered: &Answered, client: &Socket, flow: &Flow) -> bool {
        let whole = match answered.framing {
            Framing::None => 0,
            Framing::Length(length) if length <= self.received.len() as u64 => length as usize,
            _ => return false,
        };
        let body = &self.received.filled()[..whole];
        // A short body is copied behind its head: cheaper than a write of two pieces.
        let copied = whole <= COPY_BYTES_MAX && whole <= self.head.room();
        let sent = if copied {
            self.head.writer().extend_from_slice(body);
            client.try_send(self.head.filled())
        } else {
            let slices = [IoSlice::new(self.head.filled()), IoSlice::new(body)];
            client.try_send_vectored(&slices)
        };
        let head = if copied { self.head.len() - whole } else { self.head.len() };
        let sent = sent.unwrap_or(0);
        flow.begun.set(sent > 0);
        if copied {
            self.head.truncate(head);
        }
        if sent < head + whole {
            // The rest is the relay's: it waits.
            self.head.consume(sent.min(head));
            let of_body = sent.saturating_sub(head);
            self.received.consume(of_body);
            self.body_sent = of_body as u64;
            flow.bytes.set(of_body as u64);
            return false;
        }
        self.received.consume(whole);
        flow.bytes.set(whole as u64);
        true
    }

    /// Sends what is left of the answer's head and body to the client. `flow` tells how far it came.
    pub async fn download(
        &mut self,
        answered: &Answered,
        upstream: &Socket,
        client: &Socket,
        timer: &mut Timer,
        flow: &Flow,
    ) -> Result<(), Cut> {
        let began = Nanos::now();
        let mut downloading = Downloading::begin(self.order, flow, began);
        timer.set(downloading.first_look(began), began);
        let mut keeping = self.keeping.take();
        let mut relay = Relay {
            from: upstream,
            to: client,
            buffer: &mut self.received,
            incoming: match answered.framing {
                Framing::Length(length) => Incoming::Length(length - self.body_sent),
                framing => Incoming::new(framing, false),
            },
            outgoing: answered.outgoing,
            bytes_max: u64::MAX,
            head: self.head.filled(),
            buffers: &self.shard.buffers,
            pipes: &self.shard.pipes,
            flow,
            tap: keeping.as_deref_mut(),
        };
        let ended = {
            let run = pin!(relay.run());
            let look = |now| downloading.look(client, now);
            attended(self.shard, Some(client), false, timer, run, look).await
        };
        let is_kept = relay.tap.is_some();
        let reason = match ended {
            Ok(Ok(())) => {
                if let (Some(keeping), true) = (keeping, is_kept)
                    && let Some(own) = self.order.fallback_state()
                {
                    own.keep(*keeping);
                }
                return Ok(());
            }
            Ok(Err(Broken::Truncated)) => Reason::AnswerTruncated,
            Ok(Err(Broken::Refused(_))) => Reason::BadAnswer,
            Ok(Err(Broken::SinkGone)) => Reason::ClientGone,
            Err(reason) => reason,
        };
        Err(Cut { reason, begun: flow.begun.get() })
    }

    /// Sends the head of a 101, and then whatever either side sends, until both have ended.
    pub async fn tunnel(
        mut self,
        upstream: &Socket,
        client: &Socket,
        timer: &mut Timer,
        inbound: Buffer,
    ) -> Result<Exchanged, Undone<'static>> {
        let order = self.order;
        let (up, down) = (Flow::default(), Flow::default());
        let tunnel = Tunnel {
            client,
            upstream,
            from_client: inbound,
            from_upstream: std::mem::take(&mut self.received),
            head: self.head.filled(),
            buffers: &self.shard.buffers,
            up: &up,
            down: &down,
        };
        self.shard.counters.tunnels_open.add(1);
        let ended = tunnel.run(self.shard, timer, order.timeouts().stream_idle).await;
        self.shard.counters.tunnels_open.sub(1);
        let outcome = Outcome {
            status: 101,
            reason: ended.err(),
            sent: self.sent + down.bytes.get(),
            body_sent: down.bytes.get(),
            body_received: up.bytes.get(),
            upstream_time: self.upstream_time(),
            next: match ended {
                Err(Reason::DrainTimeout) => Next::Reset,
                _ => Next::Close,
            },
        };
        Ok(Exchanged { outcome, upstream_reusable: false })
    }

    /// What an exchange came to, once its answer has gone as far as it would.
    pub fn conclude(
        &mut self,
        answered: Answered,
        downloaded: Result<(), Cut>,
        flow: &Flow,
        body_received: u64,
        uploaded: bool,
    ) -> Result<Exchanged, Undone<'static>> {
        let order = self.order;
        if let Some(endpoint) = &order.endpoint {
            endpoint.answered_in_http10(answered.http10);
        }
        let sent = self.sent + flow.bytes.get();
        match downloaded {
            Ok(()) => {
                let outcome = Outcome {
                    status: answered.status,
                    reason: None,
                    sent,
                    body_sent: flow.bytes.get(),
                    body_received,
                    upstream_time: self.upstream_time(),
                    next: match answered.persistence {
                        _ if !uploaded => Next::Linger,
                        Persistence::Implied | Persistence::KeepAlive => Next::Request,
                        Persistence::Close | Persistence::Upgrade => Next::Close,
                    },
                };
                // Bytes behind the answer belong to nobody: the connection is not to be trusted.
                let upstream_reusable = answered.reusable && uploaded && self.received.is_empty();
                Ok(Exchanged { outcome, upstream_reusable })
            }
            Err(Cut { reason, begun: false }) => Err(Undone::NotAnswered(reason.into())),
            Err(Cut { reason, begun: true }) => {
                // Where only the end of the connection ends the body, it must not look like one; and
                // a client that does not read would keep what was sent for minutes.
                let told = match answered.framing {
                    _ if matches!(reason, Reason::ClientStalled | Reason::DrainTimeout) => {
                        Next::Reset
                    }
                    _ if answered.outgoing == Outgoing::Chunked => Next::Close,
                    Framing::Length(_) | Framing::None => Next::Close,
                    Framing::Chunked | Framing::UntilClose => Next::Reset,
                };
                let told = Some((answered.status, told));
                Err(Undone::CutOff(Failure {
                    reason,
                    told,
                    body_left: !uploaded,
                    sent,
                    body_sent: flow.bytes.get(),
                    body_received,
                    upstream_time: self.upstream_time(),
                    given_up: None,
                    may_move: false,
                }))
            }
        }
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        self.shard.buffers.give_back(std::mem::take(&mut self.received));
        self.shard.buffers.give_back(std::mem::take(&mut self.head));
    }
}
