//! A request's head to what is done with it: refused, answered here, or forwarded, and how. Called
//! by `session` with the bytes that have arrived; touches no socket.
//!
//! ```text
//! parse -> client -> normalise -> Max-Forwards -> route -> limits -> write the outgoing head
//! ```

mod rate_limits;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::accept::ClientInfo;
use crate::access_log::Record;
use crate::breaker::Outcome;
use crate::exchange::Falling;
use crate::http::deadline::{self, Deadline};
use crate::http::encode::{self, KindSet, Persistence, RequestEdits};
use crate::http::forwarded::{self, Arrival, MaxForwards};
use crate::http::head::{
    FieldKind, Framing, METHOD_BYTES_MAX, Method, Parsed, RequestHead, Scratch, Target, Version,
    parse_request,
};
use crate::http::path::{self, Fragment, Normal};
use crate::plan::{Fallback, Listener, Overload};
use crate::reason::Reason;
use crate::respond::{self, Own};
use crate::route::{
    self, Asked, HeaderRules, HedgeDelay, RequestView, RetryPolicy, Route, RouteTimeouts,
};
use crate::shard::Shard;
use crate::shard::buffers::Buffer;
use crate::shard::plan::{ShardFallback, ShardPlan};
use crate::time::Nanos;
use crate::upstream::Endpoint;

use rate_limits::{Checks, Refused};

/// What the bytes so far are.
pub enum Admission {
    /// A request that is served: its order is in the place that was given for it.
    Order,
    /// A head that is refused, and its connection with it.
    Refused(Reason),
    /// Not yet a whole head.
    Partial,
}

/// A request, as far as its head tells: everything that serving it needs. The bytes that it was
/// parsed from may go.
pub struct Order {
    /// The plan that it keeps to its end.
    pub plan: Rc<ShardPlan>,
    /// The listener that it came in by: its place in the plan.
    pub listener_index: usize,
    /// What is done with it.
    pub action: Action,
    /// The outgoing head; or the whole answer, where that is ours.
    pub out: Buffer,
    /// Its method.
    pub method: Method,
    /// The client's version.
    pub version: Version,
    /// How its body arrives.
    pub framing: Framing,
    /// Most bytes that its body may have.
    pub body_bytes_max: u64,
    /// The client would send another request on its connection.
    pub keep_alive: bool,
    /// The outgoing head asks for an upgrade.
    pub upgrade: bool,
    /// Its client sends the body only once it is told to.
    pub expects_continue: bool,
    /// Bytes of its head.
    pub head_bytes: usize,
    /// Bytes of its body that travel with its head.
    pub body_at_hand: u64,
    /// Bytes of the body of our own answer.
    pub own_body_bytes: usize,
    /// When its first byte was there.
    pub began: Nanos,
    /// When its head was there.
    pub complete: Nanos,
    /// Why we answer ourselves.
    pub reason: Option<Reason>,
    /// The endpoint that was chosen.
    pub endpoint: Option<Rc<Endpoint>>,
    /// How often it was asked.
    pub attempts: u32,
    /// What the end of its last try says, as the breaker sees it.
    pub said: Outcome,
    /// It tries an endpoint whose breaker is half-open, and has to have its answer by then.
    /// [`Nanos::NEVER`]: it is an ordinary request.
    pub probe_until: Nanos,
    /// What its caller gave it, if that is believed.
    pub deadline: Option<Deadline>,
    /// With retries: until when there has to be an answer. Else [`Nanos::NEVER`].
    pub answer_until: Nanos,
    /// Whether the time of its answer is wanted, by the log or by a breaker.
    pub is_timed: bool,
    /// What the access log will say of it.
    pub log: Option<LogLine>,
    /// It is served however much there is to do.
    pub is_exempt: bool,
    /// What answers if it fails: a place in the plan's fallbacks.
    pub falls_back: Option<usize>,
    /// It has failed, and something else is to answer.
    pub falling: Option<Box<Falling>>,
    route: Option<usize>,
    /// Rate limits that it still has to pass.
    checks: Option<Checks>,
    /// What a client is told that was refused by one.
    refused: Option<Refused>,
}

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Sent to an endpoint of this cluster.
    Forward {
        /// Its place in the plan.
        cluster: usize,
        /// For balancers that hash.
        hash: Option<u64>,
        /// The route's breaker, by its place in [`crate::plan::Plan::route_breakers`].
        breaker: Option<usize>,
    },
    /// Not sent to this cluster, since too many of its requests fail; but there is a fallback.
    Reject {
        /// Its place in the plan.
        cluster: usize,
        /// For balancers that hash.
        hash: Option<u64>,
    },
    /// Answered here, with this status.
    Own {
        /// The status.
        status: u16,
    },
}

impl Order {
    /// The listener that it came in by.
    pub fn listener(&self) -> &Listener {
        &self.plan.shared().listeners[self.listener_index]
    }

    /// Whether it tries a half-open endpoint, or route.
    #[inline]
    pub fn is_probe(&self) -> bool {
        self.probe_until != Nanos::NEVER
    }

    /// The route's limits.
    pub fn timeouts(&self) -> &RouteTimeouts {
        &self.routed().timeouts
    }

    /// By when it has to be over: by the route's limit, or by its caller's. A probe is not called
    /// back for what a caller says: nobody else may try the endpoint meanwhile.
    #[inline]
    pub fn ends_by(&self) -> Nanos {
        let total = self.began.after(self.timeouts().total);
        match &self.deadline {
            Some(deadline) if !self.is_probe() => total.min(deadline.at),
            _ => total,
        }
    }

    /// Tells the origin how long it has: until its caller's deadline, or one of the route's limits
    /// if that comes first. For a try that begins now.
    #[inline]
    pub fn tell_deadline(&mut self, now: Nanos) {
        if let Some(deadline) = self.deadline {
            deadline.tell(self.try_ends_by(now), now, self.out.filled_mut());
        }
    }

    /// By when a try that begins now has to have an answer.
    pub fn try_ends_by(&self, now: Nanos) -> Nanos {
        let answer = now.after(self.timeouts().answer).min(self.answer_until);
        answer.min(now.after(self.retries().try_timeout)).min(self.ends_by())
    }

    /// Which of the two it was.
    pub fn out_of_time(&self) -> Reason {
        match self.ends_by() < self.began.after(self.timeouts().total) {
            true => Reason::Deadline,
            false => Reason::TotalTimeout,
        }
    }

    /// When the route tries once more.
    #[inline]
    pub fn retries(&self) -> &RetryPolicy {
        &self.routed().retries
    }

    /// How long its first endpoint has to itself, as far as that is known.
    pub fn hedge_delay(&self) -> Option<Duration> {
        self.plan.hedge_delay(self.route?)?.borrow().delay()
    }

    /// Where the time of its answers is measured for hedges.
    #[inline]
    pub fn measures_hedges(&self) -> Option<&RefCell<HedgeDelay>> {
        self.retries().hedge?;
        self.plan.hedge_delay(self.route?).filter(|delay| delay.borrow().measures())
    }

    /// Whether most of the time that has run out went by at the last endpoint, after `taken` there:
    /// what was late before was the client, or another endpoint.
    pub fn had_its_time(&self, reason: Reason, taken: Duration) -> bool {
        match reason {
            Reason::AnswerTimeout => taken * 2 >= self.timeouts().answer,
            _ => self.complete.since(self.began) * 2 < self.timeouts().total,
        }
    }

    /// Where it goes if no endpoint of `cluster` can have it, by the route or by that cluster.
    pub fn fallback(&self, cluster: usize) -> Option<usize> {
        let own = self.plan.cluster(cluster).fallback;
        match &self.routed().action {
            // The route speaks for its own clusters only.
            route::Action::Forward(forward)
                if forward.clusters.clusters().any(|it| it == cluster) =>
            {
                forward.fallback.or(own)
            }
            _ => own,
        }
    }

    /// It goes there now, as an ordinary request.
    pub fn fall_back_to(&mut self, next: usize) {
        if let Action::Forward { cluster, .. } | Action::Reject { cluster, .. } = &mut self.action {
            *cluster = next;
        }
        self.probe_until = Nanos::NEVER;
    }

    /// The admission control of the cluster that was asked last hears how that went.
    pub fn tell_admission(&mut self) {
        if let Action::Forward { cluster, .. } | Action::Reject { cluster, .. } = self.action {
            self.plan.ended(cluster, std::mem::replace(&mut self.said, Outcome::Neutral));
        }
    }

    /// What answers if it fails.
    pub fn fallback_plan(&self) -> Option<&Fallback> {
        Some(&self.plan.shared().fallbacks[self.falls_back?])
    }

    /// The same, as this shard has it.
    pub fn fallback_state(&self) -> Option<&ShardFallback> {
        Some(self.plan.fallback(self.falls_back?))
    }

    /// Whether it goes to a cluster that its route names, and not to one that stands in.
    pub fn is_at_home(&self) -> bool {
        match (&self.routed().action, self.action) {
            (route::Action::Forward(forward), Action::Forward { cluster, .. }) => {
                self.falling.is_none() && forward.clusters.clusters().any(|it| it == cluster)
            }
            _ => false,
        }
    }

    /// The rule that it falls under, by its place in the plan's router; `None` where it was refused
    /// before.
    pub fn rule(&self) -> Option<usize> {
        self.route
    }

    /// The route's rules for the answer's fields.
    pub fn response_rules(&self) -> &HeaderRules {
        &self.routed().response_headers
    }

    fn routed(&self) -> &Route {
        let route = self.route.expect("only routed requests are forwarded");
        &self.plan.shared().router.routes()[route]
    }
}

/// When the bytes of a head came.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    /// The first of them.
    pub began: Nanos,
    /// The last of them, as far as is known.
    pub complete: Nanos,
    /// When their connection was last seen to become readable.
    pub readable_since: Nanos,
}

/// Looks for a head in `bytes` and decides what becomes of the request. The order is made in
/// `made`: it is large, and each move of it would cost as much as the choice of an endpoint.
pub fn admit(
    shard: &Shard,
    plan: &Rc<ShardPlan>,
    info: &ClientInfo,
    bytes: &[u8],
    arrived: Arrived,
    made: &mut Option<Order>,
) -> Admission {
    let listener = &plan.shared().listeners[info.slot.listener.index];
    let mut scratch = Scratch::new();
    let head = match parse_request(bytes, &listener.head, &mut scratch) {
        Ok(Parsed::Complete(head)) => head,
        Ok(Parsed::Partial) => return Admission::Partial,
        Err(reason) => return Admission::Refused(reason),
    };
    let Arrived { began, complete, readable_since } = arrived;
    let order = made.insert(Order {
        listener_index: info.slot.listener.index,
        action: Action::Own { status: 0 },
        out: shard.buffers.take(),
        method: head.method,
        version: head.version,
        framing: head.framing,
        body_bytes_max: listener.body_bytes_max,
        keep_alive: head.keep_alive,
        upgrade: false,
        expects_continue: head.expect_continue,
        head_bytes: head.len,
        body_at_hand: 0,
        own_body_bytes: 0,
        began,
        complete,
        reason: None,
        endpoint: None,
        attempts: 0,
        said: Outcome::Neutral,
        probe_until: Nanos::NEVER,
        deadline: None,
        answer_until: Nanos::NEVER,
        is_timed: false,
        log: None,
        is_exempt: false,
        falls_back: None,
        falling: None,
        route: None,
        checks: None,
        refused: None,
        plan: plan.clone(),
    });
    if listener.access_log.is_some() {
        order.log = Some(LogLine::begin(shard, &head));
    }
    if let Err(reason) = decide(shard, plan, info, bytes, &head, readable_since, order) {
        order.own(shard, listener, reason);
    }
    Admission::Order
}

/// Decides, and writes the outgoing head. An error becomes our own answer.
fn decide(
    shard: &Shard,
    plan: &ShardPlan,
    info: &ClientInfo,
    bytes: &[u8],
    head: &RequestHead<'_, '_>,
    readable_since: Nanos,
    order: &mut Order,
) -> Result<(), Reason> {
    let (own, plan) = (plan, plan.shared());
    let listener = &plan.listeners[info.slot.listener.index];
    if head.method == Method::Connect {
        return Err(Reason::ConnectRefused);
    }
    let peer = info.peer.ip();
    let client = listener.forwarding.client(peer, &head.fields);
    if let Some(log) = &mut order.log {
        log.client = client.address;
    }
    let mut normalised = shard.scratch.take();
    normalised.clear();
    let raw_path = head.target.path().unwrap_or(b"/");
    let path = if head.fragment && !(listener.path.fragment == Fragment::Strip) {
        Err(Reason::BadPath)
    } else {
        path::normalise(raw_path, &listener.path, &mut normalised)
    };
    let result = path.and_then(|path| {
        let path = match path {
            Normal::Same(path) => path,
            Normal::Written => &normalised[..],
        };
        let view = RequestView {
            method: head.method_bytes,
            host: head.host,
            path,
            query: head.target.query(),
            fields: &head.fields,
            listener: info.slot.listener.index,
        };
        let max_forwards = match forwarded::max_forwards(head.method, &head.fields) {
            MaxForwards::Absent => None,
            MaxForwards::Forward(left) => Some(left),
            MaxForwards::Answer => return Err(Reason::MaxForwards),
            MaxForwards::Bad => return Err(Reason::BadHead),
        };
        let found = plan.router.find(&view).ok_or(Reason::NoRoute)?;
        order.route = Some(found);
        let route = &plan.router.routes()[found];
        order.body_bytes_max = route.body_bytes_max.unwrap_or(listener.body_bytes_max);
        if let Framing::Length(length) = head.framing
            && length > order.body_bytes_max
        {
            return Err(Reason::BodyTooLarge);
        }
        let route::Action::Forward(forward) = &route.action else {
            rate_limits::pass(shard, plan, route, client.address, &head.fields, order)?;
            let https = forwarded::arrived_encrypted(&client, &head.fields);
            order.own_of_route(shard, route, &view, https);
            return Ok(());
        };
        if let Some(overload) = &plan.overload {
            order.is_exempt = overload.exempts(path);
            order.is_in_time(shard, overload, info, readable_since)?;
        }
        let dice = shard.rng.borrow_mut().bits();
        let cluster = forward.clusters.pick(dice as u32);
        order.falls_back = route.fallback;
        let rejects = !order.is_exempt && own.rejects(cluster, (dice >> 32) as u32, order.complete);
        if rejects
            && !order.fallback_plan().is_some_and(|it| it.wants_reason(Reason::AdmissionControl))
        {
            return Err(Reason::AdmissionControl);
        }
        let left = if client.trusted_peer { deadline::left(&head.fields) } else { None };
        if left.is_some_and(|left| left <= order.complete.since(order.began)) {
            return Err(Reason::Deadline);
        }
        // The last that may refuse it: what is refused for another reason takes no token.
        rate_limits::pass(shard, plan, route, client.address, &head.fields, order)?;
        let policy = &plan.clusters[cluster].balance;
        let hash = policy.hash(&head.fields, client.address);
        let next = forward.fallback.or(plan.clusters[cluster].fallback);
        let hash = match next.or_else(|| order.fallback_plan()?.cluster) {
            None => hash,
            // Should it come to that: by what the next one looks at.
            Some(next) => {
                hash.or_else(|| plan.clusters[next].balance.hash(&head.fields, client.address))
            }
        };
        order.action = match rejects {
            false => Action::Forward { cluster, hash, breaker: forward.breaker(cluster) },
            true => Action::Reject { cluster, hash },
        };
        let upgrade = head.upgrade.filter(|_| head.framing == Framing::None);
        order.upgrade = upgrade.is_some();
        let mut rewritten = Buffer::default();
        let target = match (&head.target, &forward.prefix_rewrite) {
            (Target::Asterisk, _) => b"*",
            (_, Some(_)) => {
                rewritten = shard.buffers.take();
                forward.write_path(route.prefix_bytes, path, rewritten.writer());
                rewritten.filled()
            }
            (_, None) if route.preserve_path => raw_path,
            (_, None) => path,
        };
        let mut dropped = KindSet::default();
        for kind in FORWARDED {
            if listener.forwarding.drops(kind, &client) {
                dropped = dropped.with(kind);
            }
        }
        for kind in deadline::KINDS {
            dropped = dropped.with(kind);
        }
        if max_forwards.is_some() {
            dropped = dropped.with(FieldKind::MaxForwards);
        }
        if !head.expect_continue {
            // Nobody waits for it: an HTTP/1.0 client, or an expectation that we do not know.
            dropped = dropped.with(FieldKind::Expect);
        }
        let edits = RequestEdits {
            path: target,
            query: head.target.query(),
            host: match &forward.host_rewrite {
                Some(host) => host.as_bytes(),
                // HTTP/1.0 without a Host: some name must be said (RFC 9112, 3.2).
                None if head.host.is_empty() => plan.clusters[cluster].default_host(),
                None => head.host,
            },
            framing: head.framing,
            upgrade,
            dropped,
            rules: &route.request_headers,
        };
        let arrival = Arrival { peer, tls: false, host: head.host, version: head.version };
        let mut written = forwarded::Written::default();
        let rules = &route.request_headers;
        let add = |out: &mut Vec<u8>| {
            let ids = &mut shard.request_ids.borrow_mut();
            let ruled = |name: &[u8]| !rules.is_empty() && rules.drops(name);
            let forwarding = &listener.forwarding;
            written = forwarding.write(&client, &arrival, &head.fields, ids, ruled, out);
            if let Some(left) = left {
                let left = left - order.complete.since(order.began);
                order.deadline = Some(Deadline::write(left, order.complete, ruled, out));
            }
            if let Some(left) = max_forwards {
                let mut digits = itoa::Buffer::new();
                encode::line(b"Max-Forwards", digits.format(left).as_bytes(), out);
            }
        };
        encode::request(bytes, head, &edits, add, order.out.writer());
        if let Some(log) = &mut order.log {
            log.forwarded(order.out.filled(), &written);
        }
        shard.buffers.give_back(rewritten);
        Ok(())
    });
    shard.scratch.set(normalised);
    result
}

/// The kinds that a listener's rules for forwarded fields may drop.
const FORWARDED: [FieldKind; 5] = [
    FieldKind::XForwardedFor,
    FieldKind::XForwardedProto,
    FieldKind::XForwardedHost,
    FieldKind::XRequestId,
    FieldKind::Forwarded,
];

impl Order {
    /// Whether it has not waited in the shard's loop for too long, with all others.
    fn is_in_time(
        &self,
        shard: &Shard,
        overload: &Overload,
        info: &ClientInfo,
        readable_since: Nanos,
    ) -> Result<(), Reason> {
        let Some(target) = overload.queue else { return Ok(()) };
        let mut queue = shard.queue.get();
        // Where it came with the request before, that is what it has waited for.
        let refuse = if info.requests > 0 && readable_since < info.waiting_since {
            queue.refuses_another()
        } else {
            let waited = self.complete.since(readable_since.max(info.waiting_since));
            let arrived = queue.arrived(readable_since, waited, target, self.complete);
            shard.queue.set(queue);
            shard.counters.queue_delay.record(waited.as_nanos() as u64);
            shard.counters.overloads.add(arrived.begins.into());
            arrived.refuse
        };
        if refuse && !self.is_exempt { Err(Reason::Overloaded) } else { Ok(()) }
    }

    /// Makes an answer of our own of a refusal.
    fn own(&mut self, shard: &Shard, listener: &Listener, reason: Reason) {
        let reason = match (reason, self.method) {
            // RFC 9110, 7.6.2: the last recipient of OPTIONS answers it; we do not echo TRACE.
            (Reason::MaxForwards, Method::Trace) => Reason::TraceRefused,
            (reason, _) => reason,
        };
        self.reason = Some(reason);
        self.action = Action::Own { status: reason.status() };
        // What was half written for the origin.
        self.out.clear();
        // Behind a refused CONNECT a hasty client may have sent bytes that somebody else chose.
        let stays = self.keep_alive
            && self.body_is_short()
            && reason != Reason::ConnectRefused
            && !shard.is_draining();
        self.keep_alive = stays;
        let persistence = Persistence::of(self.version, stays);
        let date = shard.date.get(self.began);
        let head_only = self.method == Method::Head;
        self.own_body_bytes = if head_only { 0 } else { respond::body_bytes(reason) };
        let (refused, plan) = (self.refused, self.plan.clone());
        let add = |out: &mut Vec<u8>| {
            refused.into_iter().for_each(|refused| refused.write(plan.shared(), out));
        };
        let out = self.out.writer();
        respond::refusal_with(reason, listener, persistence, head_only, &date, add, out);
    }

    /// Makes an answer of what the route says itself.
    fn own_of_route(&mut self, shard: &Shard, route: &Route, view: &RequestView<'_>, https: bool) {
        let stays = self.keep_alive && self.body_is_short() && !shard.is_draining();
        self.keep_alive = stays;
        let date = shard.date.get(self.began);
        let mut own = Own {
            status: 200,
            persistence: Persistence::of(self.version, stays),
            date: &date,
            reason: None,
            content_type: b"text/plain",
            body: b"",
            head_only: self.method == Method::Head,
        };
        let mut location = shard.buffers.take();
        match &route.action {
            route::Action::Redirect(redirect) => {
                own.status = redirect.status;
                let asked = Asked {
                    https,
                    host: view.host,
                    path: view.path,
                    query: view.query,
                    prefix_bytes: route.prefix_bytes,
                };
                redirect.write_location(&asked, location.writer());
            }
            route::Action::Respond(respond) => {
                own.status = respond.status;
                own.content_type = respond.content_type.as_deref().unwrap_or("").as_bytes();
                own.body = &respond.body;
            }
            route::Action::Forward(_) => {}
        }
        let status = own.status;
        self.own_body_bytes = if own.head_only { 0 } else { own.body.len() };
        let add = |out: &mut Vec<u8>| {
            if !location.is_empty() {
                encode::line(b"Location", location.filled(), out);
            }
            route.response_headers.write(out);
        };
        own.write(add, self.out.writer());
        shard.buffers.give_back(location);
        self.action = Action::Own { status };
    }

    /// Whether there is no body that is not here with its head.
    #[inline]
    pub fn has_whole_body(&self) -> bool {
        match self.framing {
            Framing::None => true,
            Framing::Length(length) => length == self.body_at_hand,
            Framing::Chunked | Framing::UntilClose => false,
        }
    }

    /// Whether the request has no body that would have to be read before the next request.
    fn body_is_short(&self) -> bool {
        matches!(self.framing, Framing::None | Framing::Length(0))
    }
}

/// What the access log says of a request, kept until it has ended: the bytes of the head may be
/// gone by then.
pub struct LogLine {
    text: Buffer,
    method: Span,
    target: Span,
    fields: [Span; 5],
    client: std::net::IpAddr,
    start: SystemTime,
}

/// A part of a log line's text; empty where there is none. Heads are far smaller than 4 GiB.
#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Appends `bytes`, and tells where they are.
    fn put(bytes: &[u8], text: &mut Vec<u8>) -> Span {
        let start = text.len() as u32;
        text.extend_from_slice(bytes);
        Span { start, end: text.len() as u32 }
    }

    fn of(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }
}

/// Bytes of the target of a refused head that are logged.
const LOGGED_TARGET_BYTES_MAX: usize = 1024;

/// The places in [`LogLine::fields`].
const LOGGED: [Option<FieldKind>; 5] =
    [None, Some(FieldKind::UserAgent), Some(FieldKind::Referer), None, None];
const HOST: usize = 0;
const USER_AGENT: usize = 1;
const REFERER: usize = 2;
const REQUEST_ID: usize = 3;
const FORWARDED_FOR: usize = 4;

/// How an exchange ended.
pub struct Ending {
    /// The status that was sent.
    pub status: u16,
    /// Why it was not the origin's, if it was not.
    pub reason: Option<Reason>,
    /// From the request's last byte sent to the head of the endpoint's answer.
    pub upstream_time: Option<Duration>,
    /// Body bytes received.
    pub body_received: u64,
    /// Body bytes sent.
    pub body_sent: u64,
    /// When it ended.
    pub ended: Nanos,
}

impl LogLine {
    /// Copies what the log wants of a head.
    fn begin(shard: &Shard, head: &RequestHead<'_, '_>) -> LogLine {
        let mut text = shard.buffers.take();
        let out = text.writer();
        let mut put = |bytes: &[u8]| Span::put(bytes, out);
        let method = put(head.method_bytes);
        let mut target = put(head.target.path().unwrap_or(b"*"));
        if let Some(query) = head.target.query() {
            target.end = put(b"?").end;
            target.end = put(query).end;
        }
        let mut fields = [Span::default(); 5];
        fields[HOST] = put(head.host);
        for (place, kind) in LOGGED.iter().enumerate() {
            if let Some(value) = kind.and_then(|kind| head.fields.first(kind)) {
                fields[place] = put(value);
            }
        }
        let client = std::net::Ipv4Addr::UNSPECIFIED.into();
        LogLine { text, method, target, fields, client, start: SystemTime::now() }
    }

    /// Copies what was written for the origin.
    fn forwarded(&mut self, out: &[u8], written: &forwarded::Written) {
        let text = self.text.writer();
        for (place, range) in
            [(REQUEST_ID, &written.request_id), (FORWARDED_FOR, &written.forwarded_for)]
        {
            self.fields[place] = Span::put(&out[range.clone()], text);
        }
    }

    /// Writes the line.
    pub fn finish(self, shard: &Shard, order: &Order, ending: &Ending) {
        let text = self.text.filled();
        let field = |place: usize| Some(self.fields[place].of(text)).filter(|it| !it.is_empty());
        let plan = order.plan.shared();
        let cluster = match order.action {
            Action::Forward { cluster, .. } | Action::Reject { cluster, .. } => {
                Some(plan.clusters[cluster].name.as_str())
            }
            Action::Own { .. } => None,
        };
        let record = Record {
            start: self.start,
            client: self.client,
            method: self.method.of(text),
            target: self.target.of(text),
            protocol: protocol(order.version),
            status: ending.status,
            reason: ending.reason.or(order.falling.as_ref().map(|falling| falling.why)),
            body_bytes_received: ending.body_received,
            body_bytes_sent: ending.body_sent,
            duration_ns: ending.ended.since(order.began).as_nanos() as u64,
            upstream_duration_ns: ending.upstream_time.map(|time| time.as_nanos() as u64),
            host: field(HOST),
            user_agent: field(USER_AGENT),
            referer: field(REFERER),
            request_id: field(REQUEST_ID),
            forwarded_for: field(FORWARDED_FOR),
            upstream: order.endpoint.as_ref().map(|endpoint| endpoint.address),
            attempts: order.attempts,
            listener: &order.listener().name,
            route: order.route.map(|route| plan.router.routes()[route].name.as_str()),
            cluster,
            fallback: order.falling.as_ref().and_then(|falling| falling.answered),
        };
        shard.log(order.listener(), &record);
        shard.buffers.give_back(self.text);
    }
}

/// Logs a head that could not be made sense of: `bytes`, with what it says of method and target, as
/// far as that can be told.
pub fn log_refused(
    shard: &Shard,
    listener: &Listener,
    info: &ClientInfo,
    bytes: &[u8],
    reason: Reason,
    began: Nanos,
) {
    if listener.access_log.is_none() {
        return;
    }
    let (method, target) = request_line(bytes);
    let record = Record {
        start: SystemTime::now(),
        client: info.peer.ip().to_canonical(),
        method,
        target,
        protocol: protocol(Version::Http11),
        status: reason.status(),
        reason: Some(reason),
        body_bytes_received: 0,
        body_bytes_sent: respond::body_bytes(reason) as u64,
        duration_ns: Nanos::now().since(began).as_nanos() as u64,
        upstream_duration_ns: None,
        host: None,
        user_agent: None,
        referer: None,
        request_id: None,
        forwarded_for: None,
        upstream: None,
        attempts: 0,
        listener: &listener.name,
        route: None,
        cluster: None,
        fallback: None,
    };
    shard.log(listener, &record);
}

/// The first two words of a line that may be anything; `-` for what is not there.
fn request_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty());
    let mut words = line.unwrap_or_default().split(|byte| *byte == b' ');
    let mut word = |bytes_max: usize| match words.next().unwrap_or_default() {
        b"" => &b"-"[..],
        word => &word[..word.len().min(bytes_max)],
    };
    (word(METHOD_BYTES_MAX), word(LOGGED_TARGET_BYTES_MAX))
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    }
}
