//! What a cluster would do with the request: its endpoints, how one is chosen, and what bounds it
//! all. A feature of clusters adds its line in [`Part::lines`].

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::names::is_known;
use super::report::{Block, Line, columns};
use super::running::{Running, phase};
use super::{percent, time};
use crate::balance::{Balancer, HashKey, Loads, Policy, Zone};
use crate::breaker::{Admits, Epoch, Settings, View};
use crate::config;
use crate::health::Health;
use crate::metrics::breakers::BreakerState;
use crate::plan::{Cluster, Plan};
use crate::reason::Reason;
use crate::reconcile::{ClusterSpec, UNLIMITED};
use crate::time::Nanos;

/// A cluster that the request may go to.
pub(super) struct Part<'a> {
    pub config: &'a config::Cluster,
    pub plan: &'a Plan,
    /// Its place in the plan.
    pub index: usize,
    /// Of the requests of this route, in percent.
    pub share: f64,
    /// For balancers that hash.
    pub hash: Option<u64>,
    /// The name of the route, if it has a breaker of its own for this cluster.
    pub route_breaker: Option<&'a str>,
    /// The cluster that stands in where none of its endpoints can be chosen.
    pub fallback: Option<usize>,
    pub running: Option<&'a Running>,
    /// Whether any of its endpoints is used, by its checks.
    pub has_healthy: bool,
    /// The cluster that cannot have the request, where this one gets it for that.
    pub stands_in_for: Option<&'a str>,
}

/// Where the request would go.
pub(super) enum Goes {
    /// To this endpoint: its key leads there.
    To(String),
    /// To one of so many.
    ToOneOf(usize),
    /// Nowhere.
    Refused(Reason),
}

/// One endpoint, as it stands.
struct Row {
    /// Its address, or its name where that is all that is known.
    address: String,
    weight: u32,
    state: BreakerState,
    trips: u64,
    health: Health,
    admits: Admits,
    is_out: bool,
}

impl Row {
    /// Whether it may get the request at all.
    fn is_usable(&self) -> bool {
        !self.is_out && self.admits != Admits::No
    }
}

/// Nothing is in flight.
struct Idle;

impl Loads for Idle {
    fn in_flight(&self, _: usize) -> u32 {
        0
    }

    fn in_flight_in_all(&self) -> u32 {
        0
    }

    fn waiting_time(&self, _: usize) -> f64 {
        0.0
    }
}

/// What a shard would say of a breaker in this state.
fn admits(state: BreakerState, settings: &Settings) -> Admits {
    let (mut view, now) = (View::default(), Nanos::now());
    view.apply(Epoch(1), phase(state, now));
    view.admits(settings, now, u32::MAX)
}

impl Part<'_> {
    fn cluster(&self) -> &Cluster {
        &self.plan.clusters[self.index]
    }

    fn spec(&self) -> &ClusterSpec {
        &self.plan.agreement.clusters[self.index]
    }

    /// All that is said of it, and where it leads.
    pub fn explain(&self) -> (Block, Goes) {
        let rows = self.rows();
        let order = self.order(&rows);
        let goes = self.goes(&rows, &order);
        let name = &self.cluster().name;
        let title = match (self.stands_in_for, self.share) {
            (Some(other), _) => format!("cluster {name}, in place of {other}"),
            (None, 100.0) => format!("cluster {name}"),
            (None, share) => {
                format!("cluster {name}, {} of the route's requests", percent(share))
            }
        };
        (Block { title, lines: self.lines(&rows, &order, &goes) }, goes)
    }

    fn lines(&self, rows: &[Row], order: &[usize], goes: &Goes) -> Vec<Line> {
        let lines = [
            refused(goes),
            Some(self.balance()),
            Some(self.endpoints(rows, order)),
            self.parts(),
            self.slices(),
            self.fallback(),
            self.checks(),
            Some(self.breaker()),
            self.route_breaker(),
            Some(self.limits()),
            self.adaptive(),
            self.admission(),
            Some(self.budget()),
            Some(self.connections()),
        ];
        lines.into_iter().flatten().collect()
    }

    fn rows(&self) -> Vec<Row> {
        let (cluster, health) = (self.cluster(), &self.plan.health[self.index]);
        let endpoints = cluster.endpoints.iter().enumerate();
        let row = |(index, endpoint): (usize, &crate::plan::Endpoint)| {
            let address = endpoint.address.to_string();
            let known = self.running.and_then(|it| it.breaker(&cluster.name, "endpoint", &address));
            let state = known.map_or(BreakerState::Closed, |breaker| breaker.state());
            let found = health.of(endpoint.id).map_or(Health::Unchecked, |it| it.state());
            Row {
                address: match is_known(&endpoint.address) {
                    true => address,
                    false => endpoint.name.clone(),
                },
                weight: endpoint.weight,
                state,
                trips: known.map_or(0, |breaker| breaker.trips),
                health: found,
                admits: admits(state, &self.spec().breaker),
                is_out: health.is_out(index),
            }
        };
        endpoints.map(row).collect()
    }

    /// Where the request's key leads, and where if that is no use, and so on; empty without a key.
    fn order(&self, rows: &[Row]) -> Vec<usize> {
        let Cluster { table, balance, endpoints, .. } = self.cluster();
        let mut order: Vec<usize> = Vec::new();
        let Some(hash) = self.hash else { return order };
        if self.cluster().tiering.is_some() {
            // It depends on the shares of priorities what the key is looked up in.
            return order;
        }
        let mut balancer = Balancer::with_table(table, balance, endpoints, 0);
        while let Some(next) = balancer
            .pick(&Idle, Some(hash), |index| rows[index].is_usable() && !order.contains(&index))
        {
            order.push(next);
        }
        order
    }

    fn goes(&self, rows: &[Row], order: &[usize]) -> Goes {
        let route = self.route_state().map(|state| admits(state, &self.spec().breaker));
        match rows.iter().filter(|row| row.is_usable()).count() {
            _ if route == Some(Admits::No) => Goes::Refused(Reason::BreakerOpen),
            0 if self.has_healthy => Goes::Refused(Reason::BreakerOpen),
            0 => Goes::Refused(Reason::NoEndpoint),
            1 => Goes::To(rows.iter().find(|row| row.is_usable()).expect("one").address.clone()),
            count => match order.first() {
                Some(first) => Goes::To(rows[*first].address.clone()),
                None => Goes::ToOneOf(count),
            },
        }
    }

    /// The cluster that gets the request then. A route's breaker is for the cluster that it names:
    /// what that refuses goes nowhere else.
    pub fn stands_in(&self, goes: &Goes) -> Option<usize> {
        let is_of_endpoints =
            matches!(goes, Goes::Refused(Reason::BreakerOpen | Reason::NoEndpoint));
        let state = self.route_state();
        let by_route = state.is_some_and(|state| admits(state, &self.spec().breaker) == Admits::No);
        self.fallback.filter(|_| is_of_endpoints && !by_route)
    }

    fn balance(&self) -> Line {
        let named = |key: &HashKey| match key {
            HashKey::Header(name) => format!("header {name}"),
            HashKey::Cookie(name) => format!("cookie {name}"),
            HashKey::SourceAddress => "the client's address".to_owned(),
        };
        let hashed = |policy: &str, key: &HashKey, bounded_load: &Option<u32>| {
            let missing =
                if self.hash.is_none() { "; the request has none: at random" } else { "" };
            let bound = bounded_load.map_or(String::new(), |percent| {
                format!("; not where more than {percent} % of its share is in flight")
            });
            format!("{policy}, by {}{missing}{bound}", named(key))
        };
        let (policy, text) = match &self.cluster().balance {
            Policy::RoundRobin => ("round_robin", "round_robin: in turn, by weight".to_owned()),
            Policy::LeastRequest => (
                "least_request",
                "least_request: of two drawn at random, the one with less in flight for its weight"
                    .to_owned(),
            ),
            Policy::PeakEwma => (
                "peak_ewma",
                "peak_ewma: of two drawn at random, the one that is likely to answer sooner"
                    .to_owned(),
            ),
            Policy::Random => ("random", "random, by weight".to_owned()),
            Policy::RingHash { key, bounded_load, .. } => {
                ("ring_hash", hashed("ring_hash", key, bounded_load))
            }
            Policy::Maglev { key, bounded_load } => ("maglev", hashed("maglev", key, bounded_load)),
        };
        Line::new("balance", text, policy)
    }

    fn endpoints(&self, rows: &[Row], order: &[usize]) -> Line {
        let all: u32 = rows.iter().filter(|row| row.is_usable()).map(|row| row.weight).sum();
        let gets: Vec<String> = (0..rows.len()).map(|at| self.gets(rows, order, all, at)).collect();
        let cells = rows.iter().zip(&gets).map(|(row, gets)| {
            let checks = match row.health {
                Health::Unchecked if self.cluster().health_check.is_none() => "-",
                Health::Unchecked => "not yet",
                Health::Up => "up",
                Health::Down => "down",
            };
            let Row { address, weight, state, .. } = row;
            let words = [address, &weight.to_string(), state.name(), checks, gets];
            words.map(str::to_owned).to_vec()
        });
        let cells: Vec<_> = cells.collect();
        let json: Vec<Value> = rows
            .iter()
            .zip(&gets)
            .enumerate()
            .map(|(index, (row, gets))| {
                json!({
                    "address": row.address,
                    "weight": row.weight,
                    "breaker": row.state.name(),
                    "trips": row.trips,
                    "up": match row.health {
                        Health::Unchecked => Value::Null,
                        health => json!(health == Health::Up),
                    },
                    "usable": row.is_usable(),
                    "choice": order.iter().position(|at| *at == index).map(|place| place + 1),
                    "gets": gets,
                })
            })
            .collect();
        let titles = ["ADDRESS", "WEIGHT ", "BREAKER", "CHECKS", "GETS"];
        let mut table = columns(&titles, &cells);
        let own = &self.config.endpoints;
        for endpoint in own.iter().filter(|endpoint| endpoint.weight == 0) {
            table.push(format!("{}: weight 0, left out", endpoint.address));
        }
        if self.cluster().endpoints.iter().any(|endpoint| !is_known(&endpoint.address)) {
            table.push("names are not looked up: --resolve HOST:PORT:ADDRESS".to_owned());
        }
        Line::table("endpoints", table, json)
    }

    /// What an endpoint gets of requests like this one.
    fn gets(&self, rows: &[Row], order: &[usize], all: u32, at: usize) -> String {
        let row = &rows[at];
        let much = match &self.cluster().balance {
            _ if row.is_out => return "nothing: down by its checks".to_owned(),
            _ if row.state == BreakerState::ForcedOpen => {
                return "nothing: forced open".to_owned();
            }
            _ if row.admits == Admits::No => return "nothing: its breaker is open".to_owned(),
            _ if row.admits == Admits::WithPermit => {
                return "a probe now and then, else nothing".to_owned();
            }
            _ if !order.is_empty() => match order.iter().position(|it| *it == at) {
                Some(0) => "this request".to_owned(),
                place => format!("choice {}", place.map_or(0, |place| place + 1)),
            },
            Policy::RoundRobin | Policy::Random => {
                percent(f64::from(row.weight) * 100.0 / f64::from(all))
            }
            _ => "requests".to_owned(),
        };
        let ramp = self.spec().breaker.ramp;
        match row.admits {
            Admits::IfAlone => format!("{much}; less at first, for {}", time(ramp)),
            _ if row.health == Health::Down => format!("{much}: panic, checks are ignored"),
            _ => much,
        }
    }

    /// Priorities and zones, as far as they matter.
    fn parts(&self) -> Option<Line> {
        self.cluster().tiering.as_ref()?;
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        let mut own_zone = 0;
        for endpoint in &self.cluster().endpoints {
            *counts.entry(endpoint.priority).or_default() += 1;
            own_zone += usize::from(endpoint.zone == Zone::Own);
        }
        let said = counts.iter().map(|(priority, count)| {
            format!("priority {priority}: {}", counted(*count as u64, "endpoint"))
        });
        let mut said = said.collect::<Vec<_>>().join(", ");
        if own_zone > 0 {
            let rules = &self.config.zone_aware;
            said.push_str(&format!(
                "; {own_zone} in the own zone, first choice from {} endpoints on, and below {} in \
                 flight at each",
                rules.min_cluster_size, rules.spill_above
            ));
        }
        said.push_str("; the next as far as less than 72 % of one are there");
        Some(Line::new("parts", said, json!(counts)))
    }

    fn slices(&self) -> Option<Line> {
        let aperture = self.cluster().aperture?;
        let all = self.cluster().endpoints.len();
        let text = match all < aperture.endpoints_min as usize {
            true => format!("none below {} endpoints", aperture.endpoints_min),
            false => format!(
                "each shard sends to {} of {all} endpoints or more, growing above {} in flight at each",
                aperture.aperture_min, aperture.load_max
            ),
        };
        Some(Line::new("slices", text, json!({ "min_aperture": aperture.aperture_min })))
    }

    fn fallback(&self) -> Option<Line> {
        let name = &self.plan.clusters[self.fallback?].name;
        let text = format!("cluster {name}, where no endpoint of this one can be chosen");
        Some(Line::new("fallback", text, name.as_str()))
    }

    fn adaptive(&self) -> Option<Line> {
        let adaptive = self.spec().adaptive?;
        let text = format!(
            "{} to {} requests at once, by how long answers take: the shortest and {} %, looked at \
             every {}",
            adaptive.concurrency_min,
            self.spec().limits.requests_max,
            adaptive.buffer_percent,
            time(adaptive.update_every)
        );
        Some(Line::new("adaptive", text, json!({ "min": adaptive.concurrency_min })))
    }

    fn admission(&self) -> Option<Line> {
        let admission = self.cluster().admission?;
        let text = format!(
            "refused by chance while fewer than {} of {} succeed, {} at most",
            percent(admission.successes_min * 100.0),
            time(admission.window),
            percent(admission.rejections_max * 100.0)
        );
        Some(Line::new("admission", text, json!({ "sr_threshold": admission.successes_min })))
    }

    fn checks(&self) -> Option<Line> {
        let check = self.cluster().health_check.as_ref()?;
        let what = match &check.http {
            Some(http) => format!("GET {}", http.path),
            None => "a connection".to_owned(),
        };
        let panic = match self.config.panic_threshold.0 {
            0 => "no panic".to_owned(),
            percent => format!("with less than {percent} % up, all are used"),
        };
        let text = format!(
            "{what} every {}, within {}; down after {}, up after {}; {panic}",
            time(check.interval),
            time(check.timeout),
            check.fall,
            check.rise,
        );
        let slow = match self.config.slow_start.0 {
            Duration::ZERO => String::new(),
            span => format!("; who is up again, or new, starts slowly, over {}", time(span)),
        };
        let value = json!({
            "path": check.http.as_ref().map(|http| &http.path),
            "panic": self.plan.health[self.index].in_panic(),
        });
        Some(Line::new("checks", text + &slow, value))
    }

    fn breaker(&self) -> Line {
        let breaker = &self.spec().breaker;
        let mut opens = Vec::new();
        if breaker.failures_in_a_row != u32::MAX {
            opens.push(format!("{} failures in a row", breaker.failures_in_a_row));
        }
        let window = || format!("of {} and more in {}", breaker.requests_min, time(breaker.window));
        if breaker.failures_percent <= 100 {
            opens.push(format!("{} % failures {}", breaker.failures_percent, window()));
        }
        if let Some(latency) = breaker.latency_max
            && breaker.slow_percent <= 100
        {
            let slow = format!("{} % over {}", breaker.slow_percent, time(latency));
            opens.push(format!("{slow} {}", window()));
        }
        let is_on = !opens.is_empty();
        let text = match is_on {
            false => "never opens by itself".to_owned(),
            true => format!(
                "opens after {}; for {} to {}, then {}; whole again over {}; at most {} % of the \
                 endpoints at once",
                opens.join(" or "),
                time(breaker.open_for),
                time(breaker.open_for_max),
                counted(breaker.probes.into(), "probe"),
                time(breaker.ramp),
                self.spec().ejected_percent_max,
            ),
        };
        Line::new("breaker", text, json!({ "opens": is_on, "probes": breaker.probes }))
    }

    /// How the route's own breaker stands.
    fn route_state(&self) -> Option<BreakerState> {
        let route = self.route_breaker?;
        let known = self.running.and_then(|it| it.breaker(&self.cluster().name, "route", route));
        Some(known.map_or(BreakerState::Closed, |breaker| breaker.state()))
    }

    fn route_breaker(&self) -> Option<Line> {
        let (route, state) = (self.route_breaker?, self.route_state()?);
        let text = format!("the route {route} has a breaker of its own: {}", state.name());
        Some(Line::new("of route", text, state.name()))
    }

    fn limits(&self) -> Line {
        let limits = &self.spec().limits;
        let wait = match limits.pending_max {
            0 => "nobody waits".to_owned(),
            most => format!("{most} wait for {}", time(self.cluster().pending_timeout)),
        };
        let text = format!(
            "{} requests, {} connections at once; {wait}",
            limits.requests_max, limits.connections_max
        );
        let per_endpoint = self.spec().endpoints.first().map(|endpoint| endpoint.limits);
        let own = per_endpoint.map_or(Vec::new(), |own| {
            let all = [
                (own.requests_max, "requests"),
                (own.connections_max, "connections"),
                (own.pending_max, "waiting"),
            ];
            all.into_iter().filter(|(most, _)| *most != UNLIMITED).collect()
        });
        let value = json!({
            "requests": limits.requests_max,
            "connections": limits.connections_max,
            "pending": limits.pending_max,
            "retries": limits.retries_max,
            "per_endpoint": own.iter().map(|(most, kind)| ((*kind).to_owned(), json!(most)))
                .collect::<serde_json::Map<_, _>>(),
        });
        let line = Line::new("limits", text, value);
        if own.is_empty() {
            return line;
        }
        let words: Vec<_> = own.iter().map(|(most, kind)| format!("{most} {kind}")).collect();
        line.and(format!("each endpoint {}", words.join(", ")))
    }

    fn budget(&self) -> Line {
        let budget = &self.spec().retry_budget;
        let text = format!(
            "{} % of the requests of {}, and {} a second; {} at once",
            f64::from(budget.deposit_milli) / 10.0,
            time(budget.ttl),
            budget.per_second_min,
            self.spec().limits.retries_max,
        );
        let value = json!({
            "ratio": f64::from(budget.deposit_milli) / 1000.0,
            "min_per_second": budget.per_second_min,
        });
        Line::new("retry budget", text, value)
    }

    fn connections(&self) -> Line {
        let Cluster { connect_timeout, pool, .. } = self.cluster();
        let text = format!(
            "connect within {}; kept for {} idle, {} of an endpoint on each shard",
            time(*connect_timeout),
            time(pool.idle_timeout),
            pool.idle_max
        );
        let value = json!({ "connect_ms": connect_timeout.as_millis() as u64 });
        Line::new("connections", text, value)
    }
}

fn refused(goes: &Goes) -> Option<Line> {
    let Goes::Refused(reason) = goes else { return None };
    let text = format!("{} {}", reason.status(), reason.name());
    Some(Line::new("refused", text, reason.name()))
}

fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}
