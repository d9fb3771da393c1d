//! What would happen to a request: listener, route, rewrites, clusters, endpoints, limits. For
//! `outrigger explain`; nothing is sent anywhere.
//!
//! ```text
//! Ask -> head -> a shard that serves nobody (rehearsal) -> admit -> Order -> lines
//!                        ^ the plan, as configured; states of the running process (running)
//! ```
//!
//! What decides is what decides in the proxy: the plan, [`crate::admit`], the router, the
//! balancers' tables, health and breakers. In here is only what is said about it. A feature adds a
//! [`Line`](report::Line): of requests in [`Told::lines`], of clusters in `cluster.rs`.

mod ask;
mod cluster;
mod fallback;
mod names;
mod rehearsal;
mod report;
mod running;
mod why;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::admit::{Action, Order};
use crate::config::{self, Config, Period, RateLimit, RateLimitKey, Size, SizeLimit};
use crate::health::Health;
use crate::http::deadline;
use crate::http::head::{HeadLimits, Parsed, RequestHead, Scratch, parse_request};
use crate::http::path::{self, Normal};
use crate::plan::{self, Plan};
use crate::reason::Reason;
use crate::reconcile::Registry;
use crate::respond::phrase;
use crate::route::{
    self, Condition, Forward, HedgeAfter, Matcher, RequestView, RetryPolicy, Route,
};
use crate::time::Nanos;

use cluster::{Goes, Part};
use names::{Names, is_known};
use rehearsal::Rehearsal;
use report::{Block, Line, printable};

pub use ask::Ask;
pub use names::Resolve;
pub use running::Running;

/// Routes that were passed over, in text; there may be thousands.
const ROUTES_TOLD_MAX: usize = 6;

/// Differences to the running process, in text.
const DIFFERENCES_TOLD_MAX: usize = 4;

/// How endpoints stand.
#[derive(Debug)]
pub enum States {
    /// As after a start, for this reason.
    AfterStart(String),
    /// As this process says.
    Of(Running),
}

impl States {
    fn running(&self) -> Option<&Running> {
        match self {
            States::AfterStart(_) => None,
            States::Of(running) => Some(running),
        }
    }
}

/// Why there is nothing to explain.
#[derive(Debug)]
pub enum Error {
    /// What is asked makes no sense; a second line says what to do.
    Usage(String),
    /// No descriptors, or no thread.
    Io(io::Error),
}

/// What would happen.
#[derive(Debug)]
pub struct Explanation {
    outcome: Value,
    request: Block,
    clusters: Vec<Block>,
}

impl Explanation {
    /// For people: some 100 columns.
    pub fn to_text(&self) -> String {
        let blocks = std::iter::once(&self.request).chain(&self.clusters);
        blocks.map(Block::text).collect::<Vec<_>>().join("\n")
    }

    /// For programs.
    pub fn to_json(&self) -> String {
        let clusters: Vec<_> = self.clusters.iter().map(Block::json).collect();
        let all = json!({
            "request": self.request.json(),
            "outcome": self.outcome,
            "clusters": clusters,
        });
        format!("{all:#}\n")
    }
}

/// Explains one request.
///
/// # Errors
/// Where the request is none, or there is no such listener.
pub fn explain(
    config: &Config,
    ask: &Ask,
    resolve: &[Resolve],
    states: &States,
) -> Result<Explanation, Error> {
    let written = ask.write().map_err(Error::Usage)?;
    let (listener, why_listener) = listener(config, ask, written.port).map_err(Error::Usage)?;
    let running = states.running();
    let mut names = Names { config, running, given: resolve, unknown: 0 };
    let mut resolve = |host: &str, port| names.addresses(host, port);
    let plan = config::compile(config, 1, &mut Registry::default(), &mut resolve);
    if let Some(running) = running {
        take_over(&plan, running);
    }
    let rehearsal = Rehearsal::new(Arc::new(plan)).map_err(Error::Io)?;
    let peer = SocketAddr::new(ask.client, 0);
    let order = rehearsal.admit(listener, peer, &written.head);
    let plan = rehearsal.plan.shared();
    let mut scratch = Scratch::new();
    // With the most that there may be: a head that is refused is looked at all the same.
    let limits = HeadLimits { fields_max: usize::MAX, ..plan.listeners[listener].head };
    let head = match parse_request(&written.head, &limits, &mut scratch) {
        Ok(Parsed::Complete(head)) => Some(head),
        _ => None,
    };
    let told = Told {
        config,
        ask,
        plan,
        listener,
        why_listener,
        head: head.as_ref(),
        order: order.as_ref(),
        refused: order.as_ref().map_or_else(|reason| Some(*reason), |order| order.reason),
        states,
        rules: config::route_rules(config),
    };
    // Those that are told of, and where the request ends among them.
    let (mut clusters, mut ends) = (Vec::new(), Vec::new());
    for mut part in told.parts(&rehearsal) {
        loop {
            let (block, goes) = part.explain();
            let name = part.plan.clusters[part.index].name.clone();
            clusters.push((name.clone(), part.share, block));
            let Some(next) = part.stands_in(&goes) else {
                ends.push((name, part.share, goes));
                break;
            };
            part = told.in_place_of(part, next, &rehearsal);
        }
    }
    let goes = ends.iter().map(|(name, share, goes)| (name.as_str(), *share, goes));
    let (text, mut outcome) = told.outcome(&goes.collect::<Vec<_>>());
    outcome["text"] = json!(text);
    let lines = told.lines(text);
    let title = printable(&format!("{} {}", ask.method, ask.url));
    let clusters = clusters.into_iter().map(|(name, share, mut block)| {
        let facts = [Line::hidden("name", name), Line::hidden("share", share)];
        block.lines.extend(facts);
        block
    });
    let clusters = clusters.collect();
    Ok(Explanation { outcome, request: Block { title, lines }, clusters })
}

/// The listener that the request comes in by, and why.
fn listener(
    config: &Config,
    ask: &Ask,
    port: Option<u16>,
) -> Result<(usize, &'static str), String> {
    let listeners = &config.listeners;
    if let Some(name) = &ask.listener {
        let found = listeners.iter().position(|it| *it.name == **name);
        let all = || listeners.iter().map(|it| it.name.to_string()).collect::<Vec<_>>().join(", ");
        let unknown =
            || format!("there is no listener '{}'\nthere are: {}", printable(name), all());
        return found.map(|found| (found, "")).ok_or_else(unknown);
    }
    match listeners.iter().position(|it| Some(it.address.0.port()) == port) {
        Some(found) => Ok((found, "")),
        None if listeners.len() == 1 => Ok((0, "")),
        None => Ok((0, "the first; --listener NAME for another")),
    }
}

/// What checks of the running process have found, where checks write it.
fn take_over(plan: &Plan, running: &Running) {
    for (cluster, health) in plan.clusters.iter().zip(&plan.health) {
        for endpoint in &cluster.endpoints {
            let found = running.health(&cluster.name, &endpoint.address.to_string());
            if let (Health::Up | Health::Down, Some(record)) = (found, health.of(endpoint.id)) {
                record.set(found, Nanos::now());
            }
        }
        health.sum_up();
    }
}

/// All that is known when there is something to say.
struct Told<'a> {
    config: &'a Config,
    ask: &'a Ask,
    plan: &'a Plan,
    listener: usize,
    why_listener: &'static str,
    head: Option<&'a RequestHead<'a, 'a>>,
    order: Result<&'a Order, &'a Reason>,
    /// By us, before any endpoint.
    refused: Option<Reason>,
    states: &'a States,
    /// As in the plan's router, with their routes' places in the configuration.
    rules: Vec<(usize, Matcher)>,
}

impl<'a> Told<'a> {
    fn lines(&self, outcome: String) -> Vec<Line> {
        let lines = [
            Some(Line::unnamed(outcome)),
            Some(self.listener()),
            self.client(),
            self.path(),
            self.route(),
            self.sent(),
            self.answered(),
            self.answer_headers(),
            self.body(),
            self.rate_limits(),
            self.timeouts(),
            self.deadline(),
            self.retries(),
            self.hedge(),
            self.fallback(),
            Some(self.states()),
        ];
        lines.into_iter().flatten().collect()
    }

    /// The route that was found, and by which of its rules.
    fn found(&self) -> Option<(usize, &'a Route)> {
        let rule = self.order.ok()?.rule()?;
        Some((rule, &self.plan.router.routes()[rule]))
    }

    /// The same, where the request is forwarded.
    fn forward(&self) -> Option<(&'a Order, &'a Route, &'a Forward)> {
        let (order, (_, route)) = (self.order.ok()?, self.found()?);
        match (&route.action, order.action) {
            (route::Action::Forward(forward), Action::Forward { .. }) => {
                Some((order, route, forward))
            }
            _ => None,
        }
    }

    /// The clusters that it may go to.
    fn parts(&self, rehearsal: &Rehearsal) -> Vec<Part<'a>> {
        let (Some((_, route, forward)), Some(head)) = (self.forward(), self.head) else {
            return Vec::new();
        };
        let client =
            self.plan.listeners[self.listener].forwarding.client(self.ask.client, &head.fields);
        let all: u32 = forward.clusters.weights().map(|(_, weight)| weight).sum();
        let part = |(index, weight): (usize, u32)| Part {
            config: &self.config.clusters[index],
            plan: self.plan,
            index,
            share: f64::from(weight) * 100.0 / f64::from(all),
            hash: self.plan.clusters[index].balance.hash(&head.fields, client.address),
            route_breaker: forward.breaker(index).map(|_| route.name.as_str()),
            fallback: forward.fallback.or(self.plan.clusters[index].fallback),
            running: self.states.running(),
            has_healthy: rehearsal.plan.has(index, |_| true),
            stands_in_for: None,
        };
        forward.clusters.weights().map(part).collect()
    }

    /// The cluster that gets the request where no endpoint of `before` can.
    fn in_place_of(&self, before: Part<'a>, index: usize, rehearsal: &Rehearsal) -> Part<'a> {
        let (order, head) = (self.order.ok(), self.head);
        let own = order.and_then(|order| order.fallback(index));
        // Only the first two clusters of a chain are asked what they hash.
        let hash = before.hash.or_else(|| {
            let head = head.filter(|_| before.stands_in_for.is_none())?;
            let forwarding = &self.plan.listeners[self.listener].forwarding;
            let client = forwarding.client(self.ask.client, &head.fields);
            self.plan.clusters[index].balance.hash(&head.fields, client.address)
        });
        Part {
            config: &self.config.clusters[index],
            index,
            hash,
            route_breaker: None,
            fallback: own,
            has_healthy: rehearsal.plan.has(index, |_| true),
            stands_in_for: Some(self.plan.clusters[before.index].name.as_str()),
            ..before
        }
    }

    /// In a line, and for programs.
    fn outcome(&self, clusters: &[(&str, f64, &Goes)]) -> (String, Value) {
        if let Some(reason) = self.refused {
            let text = format!(
                "refused: {} {}, {}{}",
                reason.status(),
                phrase(reason.status()),
                reason.name(),
                meaning(reason)
            );
            return (text, refusal(reason));
        }
        let route = self.found().map_or("", |(_, route)| &route.name);
        if let Ok(Order { action: Action::Own { status }, .. }) = self.order {
            let text = format!("answered by route {route} itself: {status} {}", phrase(*status));
            return (text, json!({ "kind": "answered", "route": route, "status": status }));
        }
        if let [(name, _, Goes::Refused(reason))] = clusters {
            let (status, name_of) = (reason.status(), reason.name());
            let falls_back = self.falls_back_from(*reason);
            let then = if falls_back { "; then the fallback" } else { "" };
            let phrase = phrase(status);
            let text = format!("refused: {status} {phrase}, {name_of}, by cluster {name}{then}");
            let mut value = refusal(*reason);
            if falls_back {
                value["fallback"] = json!(true);
            }
            return (text, value);
        }
        let to = clusters.iter().map(|(name, share, goes)| {
            let share = match clusters.len() {
                1 => String::new(),
                _ => format!(" ({})", percent(*share)),
            };
            match goes {
                Goes::To(endpoint) => format!("{name}{share}, endpoint {endpoint}"),
                Goes::ToOneOf(count) => format!("{name}{share}, one of {count} endpoints"),
                Goes::Refused(reason) => {
                    format!("{name}{share}, refused there: {} {}", reason.status(), reason.name())
                }
            }
        });
        let text =
            format!("forwarded by route {route} to {}", to.collect::<Vec<_>>().join("; or to "));
        let endpoint = match clusters {
            [(_, _, Goes::To(endpoint))] => json!(endpoint),
            _ => Value::Null,
        };
        (text, json!({ "kind": "forwarded", "route": route, "endpoint": endpoint }))
    }

    fn listener(&self) -> Line {
        let listener = &self.plan.listeners[self.listener];
        let mode = match self.config.listeners[self.listener].mode {
            config::Mode::Edge => "edge",
            config::Mode::Sidecar => "sidecar",
        };
        let mut text = listener.name.clone();
        if listener.name != listener.address.to_string() {
            text.push_str(&format!(", on {}", listener.address));
        }
        text.push_str(&format!(", mode {mode}"));
        if !self.why_listener.is_empty() {
            text.push_str(&format!(" ({})", self.why_listener));
        }
        let limits = &listener.head;
        let head = format!(
            "its head within {}, {} and {} fields; its target {}",
            time(listener.timeouts.header),
            Size(limits.head_bytes_max as u64),
            limits.fields_max,
            Size(limits.uri_bytes_max as u64),
        );
        Line::new("listener", text, listener.name.as_str()).and(head)
    }

    fn client(&self) -> Option<Line> {
        let forwarding = &self.plan.listeners[self.listener].forwarding;
        let client = forwarding.client(self.ask.client, &self.head?.fields);
        let peer = self.ask.client.to_canonical();
        let text = match client.trusted_peer {
            true if client.address == peer => format!("{peer}, and what it forwards is believed"),
            true => format!("{}, as {peer} says, which is believed", client.address),
            false => format!("{peer}, and what it forwards is not believed"),
        };
        let value = json!({
            "address": client.address.to_string(),
            "trusted_peer": client.trusted_peer,
        });
        Some(Line::new("client", text, value))
    }

    fn path(&self) -> Option<Line> {
        let raw = self.head?.target.path()?;
        let mut out = Vec::new();
        let normal = path::normalise(raw, &self.plan.listeners[self.listener].path, &mut out);
        let raw = String::from_utf8_lossy(raw);
        match normal {
            Ok(Normal::Same(_)) => Some(Line::new("path", raw.clone(), raw.as_ref())),
            Ok(Normal::Written) => {
                let path = String::from_utf8_lossy(&out);
                let text = format!("{path}, from {raw}");
                Some(Line::new("path", text, path.as_ref()))
            }
            Err(_) => Some(Line::new("path", format!("{raw}, refused"), Value::Null)),
        }
    }

    fn route(&self) -> Option<Line> {
        let is_routed = self.found().is_some() || self.refused == Some(Reason::NoRoute);
        let head = self.head.filter(|_| is_routed)?;
        let mut out = Vec::new();
        let policy = &self.plan.listeners[self.listener].path;
        let raw = head.target.path().unwrap_or(b"/");
        let path = match path::normalise(raw, policy, &mut out).ok()? {
            Normal::Same(path) => path,
            Normal::Written => &out,
        };
        let view = RequestView {
            method: head.method_bytes,
            host: head.host,
            path,
            query: head.target.query(),
            fields: &head.fields,
            listener: self.listener,
        };
        let rule = self.found().map(|(rule, _)| rule);
        let listeners: Vec<_> = self.plan.listeners.iter().map(|it| it.name.as_str()).collect();
        let passed = why::passed_over(&self.rules, &listeners, rule, &view);
        let routes = &self.config.routes;
        let text = match rule {
            Some(rule) => {
                let place = self.rules[rule].0;
                let count = routes.len();
                let name = routes[place].name.to_string();
                if count == 1 { name } else { format!("{name}, number {} of {count}", place + 1) }
            }
            None => "none".to_owned(),
        };
        let json: Vec<_> = passed
            .iter()
            .map(|it| json!({ "route": routes[it.route].name.to_string(), "why": it.why }))
            .collect();
        let name = rule.map(|rule| routes[self.rules[rule].0].name.to_string());
        let mut line = Line::new("route", text, json!({ "name": name, "passed_over": json }));
        // What comes near tells more.
        let near = passed.iter().filter(|it| it.is_near).count();
        let mut far = ROUTES_TOLD_MAX.saturating_sub(near);
        let mut told = 0;
        for it in &passed {
            if !it.is_near {
                if far == 0 {
                    continue;
                }
                far -= 1;
            }
            if told == ROUTES_TOLD_MAX {
                break;
            }
            told += 1;
            line = line.and(format!("not {}: {}", routes[it.route].name, it.why));
        }
        if passed.len() > told {
            line = line.and(format!("and {} more: --format json", passed.len() - told));
        }
        Some(line)
    }

    /// The head that the origin gets.
    fn sent(&self) -> Option<Line> {
        let (order, route, _) = self.forward()?;
        let own_id = self.head?.fields.iter().find_map(|(_, name, value)| {
            name.eq_ignore_ascii_case(b"x-request-id").then_some(value)
        });
        let is_new_id = |line: &str| {
            let value = line.strip_prefix("X-Request-Id: ")?;
            (own_id != Some(value.as_bytes())).then_some("X-Request-Id: (a new one)".to_owned())
        };
        let is_ruled = route.request_headers.drops(b"x-request-id");
        let head = head_lines(order.out.filled());
        let rows = head.into_iter().map(|line| match is_new_id(&line).filter(|_| !is_ruled) {
            Some(masked) => masked,
            None => line,
        });
        let rows: Vec<_> = rows.collect();
        Some(Line::table("sent", rows.clone(), rows))
    }

    /// The answer of our own.
    fn answered(&self) -> Option<Line> {
        let order = self.order.ok()?;
        let Action::Own { .. } = order.action else { return None };
        let bytes = order.out.filled();
        let mut rows = head_lines(bytes);
        rows.retain(|line| !line.starts_with("Date: "));
        Some(Line::table("answer", rows.clone(), rows))
    }

    fn answer_headers(&self) -> Option<Line> {
        let (_, route, _) = self.forward()?;
        let rules = &route.response_headers;
        if rules.is_empty() {
            return None;
        }
        let removed = rules.remove.iter().map(|name| format!("without {name}"));
        let set = rules.set.iter().map(|(name, value)| format!("with {name}: {value}"));
        let added = rules.add.iter().map(|(name, value)| format!("and with {name}: {value}"));
        let rows: Vec<_> = removed.chain(set).chain(added).collect();
        Some(Line::table("answer", rows.clone(), rows))
    }

    fn body(&self) -> Option<Line> {
        let (order, ..) = self.forward()?;
        let timeouts = &self.plan.listeners[self.listener].timeouts;
        let text = match SizeLimit(order.body_bytes_max) {
            SizeLimit::UNLIMITED => "of any size".to_owned(),
            most => format!("up to {most}, or 413 {}", Reason::BodyTooLarge.name()),
        };
        let pace = format!(
            "; {} B/s in each {}, or 408 {}",
            timeouts.body_bytes_per_second_min,
            time(timeouts.body),
            Reason::BodyTimeout.name()
        );
        let pace = if timeouts.body.is_zero() { String::new() } else { pace };
        let value = Some(order.body_bytes_max).filter(|most| *most != u64::MAX);
        Some(Line::new("body", text + &pace, json!({ "bytes_max": value })))
    }

    fn timeouts(&self) -> Option<Line> {
        let (_, route, _) = self.forward()?;
        let timeouts = &route.timeouts;
        let text = format!(
            "answer {}, in all {}, pauses in the answer {}",
            limit(timeouts.answer),
            limit(timeouts.total),
            limit(timeouts.stream_idle)
        );
        let value = json!({
            "answer_ms": timeouts.answer.as_millis() as u64,
            "total_ms": timeouts.total.as_millis() as u64,
            "stream_idle_ms": timeouts.stream_idle.as_millis() as u64,
        });
        Some(Line::new("timeouts", text, value))
    }

    fn deadline(&self) -> Option<Line> {
        let (order, ..) = self.forward()?;
        let left = deadline::left(&self.head?.fields)?;
        let text = match order.deadline {
            Some(_) => format!("{} from the client, then 504 timeout-deadline", time(left)),
            None => format!("{} from the client, which is not believed", time(left)),
        };
        let value = json!({ "ms": left.as_millis() as u64, "believed": order.deadline.is_some() });
        Some(Line::new("deadline", text, value))
    }

    fn rate_limits(&self) -> Option<Line> {
        let (_, route) = self.found()?;
        let of_route = route.rate_limits.iter().map(|place| &self.config.rate_limits[*place]);
        let limits: Vec<&RateLimit> = of_route.collect();
        let said = limits.iter().map(|limit| {
            let RateLimit { name, requests, per, burst, .. } = limit;
            let keys = limit.key.iter().map(|key| match key {
                RateLimitKey::Route => "route".to_owned(),
                RateLimitKey::Client => "client".to_owned(),
                RateLimitKey::Header(name) => format!("header {name}"),
            });
            let keys: Vec<_> = keys.collect();
            let each = match keys.is_empty() {
                true => String::new(),
                false => format!(" for each {}", keys.join(" and ")),
            };
            let dry = if limit.dry_run { "; only counted" } else { "" };
            let burst = burst.unwrap_or(*requests);
            format!("{name}: {requests} in {per}, {burst} at once{each}{dry}")
        });
        let mut said = said.collect::<Vec<_>>().into_iter();
        let names: Vec<_> = limits.iter().map(|limit| limit.name.to_string()).collect();
        let line = Line::new("rate limits", said.next()?, json!(names));
        Some(said.fold(line, Line::and))
    }

    fn retries(&self) -> Option<Line> {
        let (order, route, _) = self.forward()?;
        let policy = &route.retries;
        let repeats = order.method.idempotent() || policy.non_idempotent;
        let on = conditions(policy);
        let text = if policy.attempts == 0 {
            "none".to_owned()
        } else {
            let each = match policy.try_timeout {
                Duration::ZERO => String::new(),
                span => format!("; each try {}", time(span)),
            };
            let tries = match policy.attempts {
                1 => "1 more try".to_owned(),
                more => format!("{more} more tries"),
            };
            let listed: Vec<_> = policy.statuses.iter().map(u16::to_string).collect();
            let listed = match policy.on.has(Condition::ListedStatus) {
                true => format!(" ({})", listed.join(", ")),
                false => String::new(),
            };
            format!(
                "{tries} after {}{listed}; pauses to {}, growing to {}{each}",
                on.join(", "),
                time(policy.backoff),
                time(policy.backoff_max)
            )
        };
        let value = json!({
            "attempts": policy.attempts,
            "on": on,
            "statuses": policy.statuses,
            "repeats_once_sent": repeats && policy.attempts > 0,
        });
        let line = Line::new("retries", text, value);
        Some(match policy.attempts > 0 && !repeats {
            true => {
                let method = printable(&self.ask.method);
                line.and(format!("{method} is not idempotent: only if nothing was sent"))
            }
            false => line,
        })
    }

    fn hedge(&self) -> Option<Line> {
        let (order, route, _) = self.forward()?;
        let hedge = route.retries.hedge?;
        let after = match hedge.after {
            HedgeAfter::Delay(delay) => time(delay),
            HedgeAfter::Percentile(percentile) => format!("p{percentile}"),
        };
        let repeats = order.method.idempotent() || route.retries.non_idempotent;
        let text = match repeats && !order.upgrade && route.retries.attempts > 0 {
            true => format!("a second endpoint after {after}, at least {}", time(hedge.delay_min)),
            false => "none: this request may not be sent twice".to_owned(),
        };
        Some(Line::new("hedge", text, json!({ "after": after })))
    }

    fn states(&self) -> Line {
        let running = match self.states {
            States::AfterStart(why) => {
                let value = json!({ "admin": null, "why": why });
                return Line::new("states", format!("as after a start: {why}"), value);
            }
            States::Of(running) => running,
        };
        let mut text = format!("of the process at {}", running.address);
        if let Some(generation) = running.generation() {
            text.push_str(&format!(", generation {generation}"));
        }
        if running.is_draining() {
            text.push_str(", which is ending");
        }
        let mut differences = self.differences(running);
        if running.reload_failed() {
            differences.insert(0, "its last reload failed".to_owned());
        }
        let value = json!({
            "admin": running.address.to_string(),
            "generation": running.generation(),
            "differences": differences,
        });
        let mut line = Line::new("states", text, value);
        if !differences.is_empty() {
            line = line.and("it does not serve this configuration:");
        }
        for difference in differences.iter().take(DIFFERENCES_TOLD_MAX) {
            line = line.and(format!("- {difference}"));
        }
        match differences.len().checked_sub(DIFFERENCES_TOLD_MAX) {
            None | Some(0) => line,
            Some(more) => line.and(format!("- and {more} more: --format json")),
        }
    }

    /// What can be told apart from outside: clusters, endpoints, breakers of routes, limits.
    fn differences(&self, running: &Running) -> Vec<String> {
        let mut found = Vec::new();
        for breaker in &self.plan.breakers {
            let address = breaker.name.parse::<SocketAddr>();
            if breaker.kind() == "endpoint" && address.is_ok_and(|address| !is_known(&address)) {
                continue;
            }
            if running.breaker(&breaker.cluster, breaker.kind(), &breaker.name).is_none() {
                let plan::Breaker { cluster, name, .. } = breaker;
                found.push(format!("it has no {} {name} of cluster {cluster}", breaker.kind()));
            }
        }
        let has_unknown = |cluster: &str| {
            let own = self.plan.clusters.iter().find(|it| it.name == cluster);
            own.is_some_and(|it| it.endpoints.iter().any(|it| !is_known(&it.address)))
        };
        for other in running.breakers.iter() {
            let is_it = |it: &&plan::Breaker| {
                it.cluster == other.cluster && it.kind() == other.kind && it.name == other.endpoint
            };
            let is_named = other.kind == "endpoint" && has_unknown(&other.cluster);
            if !is_named && !self.plan.breakers.iter().any(|it| is_it(&it)) {
                found.push(format!(
                    "it has {} {} of cluster {}",
                    other.kind, other.endpoint, other.cluster
                ));
            }
        }
        for (cluster, spec) in self.plan.clusters.iter().zip(&self.plan.agreement.clusters) {
            let limits = &spec.limits;
            for (kind, own) in [
                ("requests", limits.requests_max),
                ("connections", limits.connections_max),
                ("pending", limits.pending_max),
                ("retries", limits.retries_max),
            ] {
                let theirs = running.limit(&cluster.name, kind).filter(|theirs| *theirs != own);
                if let Some(theirs) = theirs {
                    let name = &cluster.name;
                    found.push(format!("its limit of {kind} of cluster {name} is {theirs}"));
                }
            }
        }
        found
    }
}

/// A head without its end, line by line.
fn head_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let head = text.split_once("\r\n\r\n").map_or(&*text, |(head, _)| head);
    head.split("\r\n").map(printable).collect()
}

fn refusal(reason: Reason) -> Value {
    json!({ "kind": "refused", "status": reason.status(), "reason": reason.name() })
}

/// What a head may be refused for, in words.
fn meaning(reason: Reason) -> &'static str {
    match reason {
        Reason::BadHead => ": its head breaks RFC 9110 or 9112",
        Reason::AmbiguousFraming => ": two parsers could read its framing differently",
        Reason::UnknownCoding => ": a transfer coding other than chunked",
        Reason::UriTooLong => ": its target is longer than the listener allows",
        Reason::HeadTooLarge => ": its head is larger than the listener allows",
        Reason::BadPath => ": the listener's rules for paths do not allow this one",
        Reason::BodyTooLarge => ": its Content-Length is more than may be",
        Reason::ConnectRefused => ": this is no open proxy",
        Reason::MaxForwards | Reason::TraceRefused => ": its Max-Forwards ends here",
        Reason::NoRoute => ": no route matches",
        Reason::Deadline => ": its caller has no time left",
        _ => "",
    }
}

fn conditions(policy: &RetryPolicy) -> Vec<&'static str> {
    let all = [
        (Condition::ConnectFailure, "connect-failure"),
        (Condition::Reset, "reset"),
        (Condition::GatewayError, "gateway-error"),
        (Condition::ServerError, "5xx"),
        (Condition::Conflict, "retriable-4xx"),
        (Condition::ListedStatus, "retriable-status"),
    ];
    let own = all.into_iter().filter(|(condition, _)| policy.on.has(*condition));
    own.map(|(_, name)| name).collect()
}

fn time(span: Duration) -> String {
    Period(span).to_string()
}

/// A limit that may be switched off.
fn limit(span: Duration) -> String {
    if span.is_zero() { "unlimited".to_owned() } else { time(span) }
}

/// With a decimal only where there is something to say.
fn percent(share: f64) -> String {
    let rounded = (share * 10.0).round() / 10.0;
    format!("{rounded} %")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(cluster: &str) -> Config {
        let text = format!(
            "admin: {{address: off}}\n\
             listeners: [{{address: '127.0.0.1:8080'}}]\n\
             routes: [{{name: all, cluster: app, breaker: true}}]\n\
             clusters: [{{name: app, {cluster}}}]\n"
        );
        config::parse(&text, config::Format::Yaml, "test").unwrap()
    }

    fn ask(url: &str) -> Ask {
        let client = [127, 0, 0, 1].into();
        let (method, headers) = ("GET".to_owned(), Vec::new());
        Ask { method, url: url.to_owned(), headers, client, listener: None }
    }

    fn said(config: &Config, states: States) -> Value {
        let explanation = explain(config, &ask("/x"), &[], &states).expect("a request");
        serde_json::from_str(&explanation.to_json()).expect("JSON")
    }

    /// Of endpoints 127.0.0.1:1 and so on, and of the route.
    fn running(endpoints: &[&str], route: &str, metrics: &str) -> States {
        let addresses: Vec<_> = (1..=endpoints.len()).map(|it| format!("127.0.0.1:{it}")).collect();
        let mut rows = vec![("app", "route", "all", route)];
        for (address, state) in addresses.iter().zip(endpoints) {
            rows.push(("app", "endpoint", address, state));
        }
        States::Of(Running::told(&rows, metrics))
    }

    fn gets(said: &Value) -> Vec<&str> {
        let rows = said["clusters"][0]["endpoints"].as_array().expect("rows");
        rows.iter().map(|row| row["gets"].as_str().expect("text")).collect()
    }

    #[test]
    fn each_state_of_a_breaker_is_told() {
        let all: Vec<_> = (1..=6).map(|port| format!("127.0.0.1:{port}")).collect();
        let config = config(&format!("balance: round_robin, endpoints: [{}]", all.join(", ")));
        let states = ["closed", "open", "half-open", "recovering", "forced-open", "forced-closed"];
        let said = said(&config, running(&states, "closed", ""));
        assert_eq!(
            gets(&said),
            [
                "25 %",
                "nothing: its breaker is open",
                "a probe now and then, else nothing",
                "25 %; less at first, for 10s",
                "nothing: forced open",
                "25 %",
            ]
        );
        assert_eq!(said["request"]["states"]["differences"], json!([]));
    }

    #[test]
    fn who_has_no_endpoint_is_refused_for_the_same_reason_as_in_the_proxy() {
        let two = "endpoints: ['127.0.0.1:1', '127.0.0.1:2'], health_check: {}";
        let down = "outrigger_endpoint_up{cluster=\"app\",endpoint=\"127.0.0.1:1\"} 0\n\
                    outrigger_endpoint_up{cluster=\"app\",endpoint=\"127.0.0.1:2\"} 0\n";
        let reason = |cluster: &str, endpoints: &[&str], route, metrics| {
            let said = said(&config(cluster), running(endpoints, route, metrics));
            said["outcome"]["reason"].as_str().map(str::to_owned)
        };
        let refused = |reason: &str| Some(reason.to_owned());
        let closed = ["closed", "closed"];
        assert_eq!(reason(two, &closed, "closed", ""), None);
        assert_eq!(reason(two, &["open", "forced-open"], "closed", ""), refused("breaker-open"));
        assert_eq!(reason(two, &closed, "open", ""), refused("breaker-open"));
        // Panic: all are used, but for those whose breakers are open.
        assert_eq!(reason(two, &closed, "closed", down), None);
        assert_eq!(reason(two, &["open", "open"], "closed", down), refused("breaker-open"));
        let never = format!("{two}, panic_threshold: 0");
        assert_eq!(reason(&never, &closed, "closed", down), refused("no-endpoint"));
    }

    #[test]
    fn another_configuration_is_told_apart() {
        let config = config("endpoints: ['127.0.0.1:1', 'app.internal:80']");
        let metrics = "outrigger_limit{cluster=\"app\",kind=\"requests\"} 7\n\
                       outrigger_config_last_reload_successful 0\n\
                       outrigger_plan_generation_newest 3\n";
        let rows = [
            ("app", "endpoint", "10.0.0.1:80", "closed"),
            ("app", "endpoint", "10.0.0.2:80", "open"),
            ("old", "endpoint", "127.0.0.1:9", "closed"),
        ];
        let said = said(&config, States::Of(Running::told(&rows, metrics)));
        assert_eq!(
            said["request"]["states"]["differences"],
            json!([
                "its last reload failed",
                "it has no endpoint 127.0.0.1:1 of cluster app",
                "it has no route all of cluster app",
                "it has endpoint 127.0.0.1:9 of cluster old",
                "its limit of requests of cluster app is 7",
            ])
        );
        assert_eq!(said["request"]["states"]["generation"], 3);
        // The name stands for what the process has found.
        assert_eq!(said["clusters"][0]["endpoints"][2]["address"], "10.0.0.2:80");
        assert_eq!(gets(&said), ["requests", "requests", "nothing: its breaker is open"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is asked is explained, or refused with advice.
        #[test]
        fn anything_may_be_asked(
            method in "[A-Z]{1,8}|\\PC{0,4}",
            url in "(http://)?[a-z:./?%#*\\[\\]]{0,20}|\\PC{0,10}",
            headers in prop::collection::vec("[a-zA-Z-]{1,12}: ?\\PC{0,10}|\\PC{0,10}", 0..4),
        ) {
            let config = config("endpoints: ['127.0.0.1:1', 'a:80']");
            let states = States::AfterStart("a test".to_owned());
            let asked = Ask { method, headers, ..ask(&url) };
            match explain(&config, &asked, &[], &states) {
                Ok(explanation) => {
                    let text = explanation.to_text();
                    prop_assert!(!text.contains(|it: char| it.is_control() && it != '\n'));
                    prop_assert!(serde_json::from_str::<Value>(&explanation.to_json()).is_ok());
                }
                Err(Error::Usage(error)) => prop_assert_eq!(error.lines().count(), 2, "{}", error),
                Err(Error::Io(error)) => prop_assert!(false, "{error}"),
            }
        }
    }
}
