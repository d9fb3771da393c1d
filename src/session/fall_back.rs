//! Answers in place of a failure: another cluster's, the last good one, one of our own. `exchange`
//! says whether there is one, and leave.

use std::io::IoSlice;
use std::pin::pin;

use super::Session;
use crate::admit::{Action, Order};
use crate::answer::LIMITS;
use crate::exchange::{Exchange, Failure, Next, Outcome, begin_fallback, within};
use crate::fallback::store::Kept;
use crate::fallback::{FIELD, Kind};
use crate::http::encode::{self, AnswerEdits, KindSet, Persistence, line};
use crate::http::head::{FieldKind, Framing, Method, Parsed, Scratch, parse_answer};
use crate::net::would_block;
use crate::pace::{Pace, Rules};
use crate::reason::{Fault, Reason};
use crate::relay::{Flow, Side};
use crate::respond::Own;
use crate::route::Respond;
use crate::shard::Shard;
use crate::time::Nanos;

impl Session {
    /// Answers in place of a failure.
    ///
    /// # Errors
    /// What the client has to be told: there is no other answer, or no leave.
    pub(super) async fn fall_back(
        &mut self,
        order: &mut Order,
        failure: Failure,
    ) -> Result<Outcome, Failure> {
        let Some(fallback) = order.fallback_plan() else { return Err(failure) };
        if failure.told.is_some() {
            return Err(failure);
        }
        // Whose answer was given up has leave already.
        if order.falling.is_none() {
            if !fallback.wants_reason(failure.reason) {
                return Err(failure);
            }
            let (shard, timer) = (&*self.shard, &mut self.timer);
            let begun = begin_fallback(shard, timer, order, failure.reason, failure.may_move);
            order.falling = begun.await;
        }
        let mut failure = failure;
        let Some(falling) = &mut order.falling else { return Err(failure) };
        if let Some(cluster) = falling.cluster.take() {
            match self.ask_cluster(order, cluster).await {
                Ok(outcome) => return Ok(outcome),
                Err(next) => failure = next,
            }
            let ends = failure.told.is_some()
                || failure.reason.fault() == Fault::Client
                || failure.reason == Reason::DrainTimeout;
            if ends {
                return Err(failure);
            }
        }
        let plan = order.plan.clone();
        let respond = order.falls_back.and_then(|it| plan.shared().fallbacks[it].respond.as_ref());
        let last_good = order.falling.as_mut().and_then(|falling| falling.last_good.take());
        if let Some(kept) = last_good {
            return Ok(self.give_again(order, failure, &kept).await);
        }
        match respond {
            Some(respond) => Ok(self.give_static(order, failure, respond).await),
            None => {
                order.fallback_state().inspect(|own| own.counters.failed.add(1));
                Err(failure)
            }
        }
    }

    /// Sends the request to another cluster.
    async fn ask_cluster(&mut self, order: &mut Order, cluster: usize) -> Result<Outcome, Failure> {
        let hash = match order.action {
            Action::Forward { hash, .. } | Action::Reject { hash, .. } => hash,
            Action::Own { .. } => None,
        };
        order.fall_back_to(cluster);
        // Whoever was asked before has had its time.
        order.answer_until = Nanos::NEVER;
        let dice = self.shard.rng.borrow_mut().bits() as u32;
        let asked = if !order.is_exempt && order.plan.rejects(cluster, dice, Nanos::now()) {
            let body_left = !order.has_whole_body();
            Err(Failure::untold(Reason::AdmissionControl, body_left))
        } else {
            let Session { shard, socket, timer, inbound, .. } = self;
            let mut exchange = Exchange { shard, client: socket, timer, inbound };
            Box::pin(exchange.run(order, cluster, hash, None)).await
        };
        order.tell_admission();
        if asked.is_ok() || asked.as_ref().is_err_and(|failure| failure.told.is_some()) {
            has_answered(order, Kind::Cluster);
        }
        asked
    }

    /// Gives an answer that was given before.
    async fn give_again(&mut self, order: &mut Order, failure: Failure, kept: &Kept) -> Outcome {
        has_answered(order, Kind::LastGood);
        let head_only = order.method == Method::Head;
        let persistence = persistence(&self.shard, order, &failure);
        order.out.clear();
        let mut out = std::mem::take(&mut order.out);
        write_again(order, kept, head_only, persistence, out.writer());
        order.out = out;
        let body: &[u8] = if head_only { b"" } else { &kept.body };
        let status = status_of(kept);
        self.give(order, failure, status, persistence, body).await
    }

    /// Gives the answer that the route has for that.
    async fn give_static(
        &mut self,
        order: &mut Order,
        failure: Failure,
        respond: &Respond,
    ) -> Outcome {
        has_answered(order, Kind::Static);
        let persistence = persistence(&self.shard, order, &failure);
        let date = self.shard.date.get(Nanos::now());
        let head_only = order.method == Method::Head;
        let own = Own {
            status: respond.status,
            persistence,
            date: &date,
            reason: told_reason(order),
            content_type: respond.content_type.as_deref().unwrap_or("").as_bytes(),
            body: &respond.body,
            // The body follows by itself.
            head_only: true,
        };
        let mut out = std::mem::take(&mut order.out);
        out.clear();
        let rules = order.response_rules();
        let add = |out: &mut Vec<u8>| {
            if !rules.drops(b"cache-control") {
                line(b"Cache-Control", b"no-store", out);
            }
            if !rules.drops(FIELD) {
                line(FIELD, Kind::Static.name().as_bytes(), out);
            }
            rules.write(out);
        };
        own.write(add, out.writer());
        order.out = out;
        let has_body = !head_only && !matches!(respond.status, 204 | 304);
        let body: &[u8] = if has_body { &respond.body } else { b"" };
        self.give(order, failure, respond.status, persistence, body).await
    }

    /// Sends a head that was written, and a body behind it.
    async fn give(
        &mut self,
        order: &Order,
        failure: Failure,
        status: u16,
        persistence: Persistence,
        body: &[u8],
    ) -> Outcome {
        let head = order.out.filled();
        let flow = Flow::default();
        let ended = self.send_paced(order, head, body, &flow).await;
        let (sent, why) = (flow.bytes.get(), order.falling.as_ref().map(|falling| falling.why));
        Outcome {
            status,
            // What broke it off, rather than what it was given for.
            reason: ended.err().or(why),
            sent: failure.sent + sent,
            body_sent: sent.saturating_sub(head.len() as u64),
            body_received: failure.body_received,
            upstream_time: failure.upstream_time,
            next: match ended {
                Err(Reason::ClientGone) => Next::Close,
                Err(_) => Next::Reset,
                Ok(()) if failure.body_left => Next::Linger,
                Ok(()) if persistence == Persistence::Close => Next::Close,
                Ok(()) => Next::Request,
            },
        }
    }

    /// Sends both, as long as the client reads them as fast as it must. `flow` tells how far that
    /// came.
    async fn send_paced(
        &mut self,
        order: &Order,
        head: &[u8],
        body: &[u8],
        flow: &Flow,
    ) -> Result<(), Reason> {
        let Session { shard, socket, timer, .. } = self;
        let (socket, now) = (&*socket, Nanos::now());
        let limits = &order.listener().timeouts;
        let mut pace = Pace::new(
            Rules {
                span: limits.body,
                bytes_per_second_min: limits.body_bytes_per_second_min,
                idle: order.timeouts().stream_idle,
                client: Side::Sink,
            },
            now,
        );
        timer.set(pace.due(), now);
        let sending = pin!(async {
            let mut sent = 0;
            while sent < head.len() + body.len() {
                let of_body = sent.saturating_sub(head.len());
                let slices =
                    [IoSlice::new(&head[sent - of_body..]), IoSlice::new(&body[of_body..])];
                match socket.try_send_vectored(&slices) {
                    Ok(count) => sent += count,
                    Err(error) if would_block(&error) => {
                        flow.waits_for.set(Some(Side::Sink));
                        socket.writable().await;
                        flow.waits_for.set(None);
                    }
                    Err(_) => return Err(Reason::ClientGone),
                }
                flow.bytes.set(sent as u64);
            }
            Ok(())
        });
        let sent = within(shard, timer, sending, |now| {
            let unread = socket.unacknowledged();
            pace.look(flow, unread, now).map_err(|_| Reason::ClientStalled)?;
            Ok(pace.due())
        });
        sent.await?
    }
}

/// What becomes of the client's connection.
fn persistence(shard: &Shard, order: &Order, failure: &Failure) -> Persistence {
    let stays = order.keep_alive && !failure.body_left && !shard.is_draining();
    Persistence::of(order.version, stays)
}

/// Notes what has answered.
fn has_answered(order: &mut Order, kind: Kind) {
    order.fallback_state().inspect(|own| own.counters.of(kind).add(1));
    if let Some(falling) = &mut order.falling {
        falling.answered = Some(kind);
    }
}

/// Why there is another answer, where the listener tells such things.
fn told_reason(order: &Order) -> Option<Reason> {
    let why = order.falling.as_ref()?.why;
    order.listener().reason_header.then_some(why)
}

fn status_of(kept: &Kept) -> u16 {
    let digits = kept.head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(200)
}

/// The head of an answer that is given again: as of any other answer, and how old it is (RFC 9111,
/// 5.1).
fn write_again(
    order: &Order,
    kept: &Kept,
    head_only: bool,
    persistence: Persistence,
    out: &mut Vec<u8>,
) {
    let mut scratch = Scratch::new();
    let parsed = parse_answer(&kept.head, &LIMITS, Method::Get, &mut scratch);
    let Ok(Parsed::Complete(head)) = parsed else { unreachable!("it was read when it came") };
    let length = kept.body.len() as u64;
    let rules = order.response_rules();
    let edits = AnswerEdits {
        framing: if head_only { Framing::None } else { Framing::Length(length) },
        stated_length: head_only.then_some(length),
        persistence,
        dropped: KindSet::of(&[FieldKind::Age]),
        rules,
        date: &kept.date,
    };
    let add = |out: &mut Vec<u8>| {
        if !rules.drops(b"via") {
            order.listener().forwarding.write_via(head.version, out);
        }
        if !rules.drops(b"age") {
            let age = kept.age(Nanos::now()).as_secs();
            line(b"Age", itoa::Buffer::new().format(age).as_bytes(), out);
        }
        if !rules.drops(FIELD) {
            line(FIELD, Kind::LastGood.name().as_bytes(), out);
        }
        if let Some(reason) = told_reason(order) {
            line(b"x-outrigger-reason", reason.name().as_bytes(), out);
        }
    };
    encode::answer(&kept.head, &head, &edits, add, out);
}
