//! A checked configuration to a plan: names become positions, host names addresses, modes the
//! settings that they stand for. Called by the control thread, at start and for each reload.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::access_log::Format;
use crate::admission;
use crate::balance::{
    ApertureSettings, HashKey as BalanceKey, Policy, Table, Tiering, Zone, ZoneSettings,
};
use crate::breaker;
use crate::health::ClusterHealth;
use crate::http::forwarded::{Forwarding, Treatment as Handling, Trusted as TrustedPeers};
use crate::http::head::HeadLimits;
use crate::http::path::{Encoded as Coding, Fragment as Rest, PathPolicy};
use crate::overload::Target;
use crate::plan::{self, Plan};
use crate::rate::{self, Rate, RateLimitSpec};
use crate::reconcile::{
    Adaptive, ClusterLimits, ClusterSpec, EndpointId, EndpointKey, EndpointLimits, EndpointSpec,
    PlanSpec, Registry, RetryBudget, Role, UNLIMITED,
};
use crate::route::{
    self, Action, Condition, FieldMatch, Forward, HeaderRules, HedgeAfter, HedgePolicy, HostMatch,
    Matcher, PathMatch, RedirectPath, RetryPolicy, Router, Split, ValueMatch,
};

use super::model::{
    AccessLogFormat, AdaptiveConcurrency, AdmissionControl, Balance, Breaker, Cluster, Config,
    Encoded, Fragment, HashKey, HeaderChanges, HeaderLines, HealthCheck, Limits, Listener, Match,
    Mode, RateLimit, RateLimitKey, Redirect, Respond, Retries, RetryOn, Route, RouteTimeouts,
    Scheme, Treatment, WhenFull,
};
use super::values::{self, Cidr, EndpointAddress, HostPattern, Name, PathText, Period, Ratio};

/// The host names of all clusters, with their ports: what there is to resolve.
pub fn host_names(config: &Config) -> BTreeSet<(String, u16)> {
    let endpoints = config.clusters.iter().flat_map(|cluster| &cluster.endpoints);
    let names = endpoints.filter_map(|endpoint| match &endpoint.address {
        EndpointAddress::Host(host, port) if endpoint.weight > 0 => Some((host.clone(), *port)),
        _ => None,
    });
    names.collect()
}

/// The plan of `config`. `resolve` gives the addresses of a host name, as far as they are known;
/// with none, the endpoint is left out. So are endpoints of weight 0.
///
/// `registry` remembers from plan to plan who has which number.
pub fn compile(
    config: &Config,
    generation: u64,
    registry: &mut Registry,
    resolve: &mut dyn FnMut(&str, u16) -> Vec<SocketAddr>,
) -> Plan {
    compile_after(None, config, generation, registry, resolve)
}

/// The same after another plan of the same registry: clusters that have no endpoint any more keep
/// those of `before`, if they are meant to.
pub fn compile_after(
    before: Option<&Plan>,
    config: &Config,
    generation: u64,
    registry: &mut Registry,
    resolve: &mut dyn FnMut(&str, u16) -> Vec<SocketAddr>,
) -> Plan {
    let clusters = config.clusters.iter().map(|it| cluster(config, it, before, registry, resolve));
    let clusters: Vec<_> = clusters.collect();
    let specs = config.clusters.iter().zip(&clusters).map(|(it, compiled)| spec(it, compiled));
    let mut breakers = RouteBreakers {
        specs: specs.collect(),
        ids: Vec::new(),
        all: clusters.iter().flat_map(endpoint_breakers).collect(),
        clusters: &clusters,
    };
    let routes = routes(config, &mut breakers, registry);
    let (fallbacks, fallback_limits) = fallbacks(config, registry);
    let rate_limits: Vec<_> =
        config.rate_limits.iter().map(|it| rate_limit(it, registry)).collect();
    let rates = config.rate_limits.iter().zip(&rate_limits).map(|(it, known)| rates(it, known));
    let health = config.clusters.iter().zip(&clusters).map(|(it, compiled)| {
        let endpoints = compiled.endpoints.iter().map(|endpoint| endpoint.id);
        let tiers = compiled.tiering.as_ref().map_or(Vec::new(), |it| it.tier_of_each().to_vec());
        let health = ClusterHealth::new(endpoints, it.slow_start.0, it.panic_threshold.0);
        Arc::new(health.with_tiers(tiers))
    });
    let health = health.collect();
    let admissions = clusters.iter().map(|_| Arc::default()).collect();
    let concurrency = clusters.iter().map(|_| Arc::default()).collect();
    let RouteBreakers { mut specs, ids: route_breakers, all: mut breakers, .. } = breakers;
    // Behind those of the clusters, which have the same places as these.
    specs.extend(fallback_limits);
    breakers.sort_unstable_by_key(|breaker| breaker.id);
    // All numbers are taken: what has none by now is gone.
    let (clusters_end, endpoints_end) = registry.finish();
    Plan {
        generation,
        listeners: config.listeners.iter().map(|it| Arc::new(listener(config, it))).collect(),
        router: Router::new(routes),
        overload: overload(config),
        clusters,
        route_breakers,
        health,
        admissions,
        concurrency,
        breakers,
        rates: rates.collect(),
        rate_limits,
        fallbacks,
        agreement: Arc::new(PlanSpec { generation, clusters: specs, clusters_end, endpoints_end }),
    }
}

/// What the shards agree on for a cluster; the breakers of routes join it later.
fn spec(cluster: &Cluster, compiled: &plan::Cluster) -> ClusterSpec {
    let Limits {
        max_requests,
        max_connections,
        max_pending,
        max_retries,
        per_endpoint,
        pending_timeout: _,
        pending_target: _,
    } = cluster.limits;
    let own = |limit: Option<u32>| limit.map_or(UNLIMITED, u64::from);
    let limits = EndpointLimits {
        requests_max: own(per_endpoint.max_requests),
        connections_max: own(per_endpoint.max_connections),
        pending_max: own(per_endpoint.max_pending),
    };
    let endpoints = &compiled.endpoints;
    let endpoints =
        endpoints.iter().map(|it| EndpointSpec { id: it.id, role: Role::Endpoint, limits });
    ClusterSpec {
        limits: ClusterLimits {
            requests_max: max_requests.into(),
            connections_max: max_connections.into(),
            pending_max: max_pending.into(),
            retries_max: max_retries.into(),
        },
        retry_budget: RetryBudget {
            deposit_milli: cluster.retry_budget.ratio.0 * 10,
            ttl: cluster.retry_budget.ttl.0,
            per_second_min: cluster.retry_budget.min_per_second,
        },
        adaptive: cluster.adaptive_concurrency.as_ref().map(adaptive),
        breaker: breaker_settings(&cluster.breaker),
        ejected_percent_max: cluster.breaker.max_ejected.0,
        endpoints: endpoints.collect(),
        ..ClusterSpec::new(compiled.id)
    }
}

fn adaptive(concurrency: &AdaptiveConcurrency) -> Adaptive {
    Adaptive {
        percentile: concurrency.sample_percentile.0,
        update_every: concurrency.update_interval.0,
        min_rtt_every: concurrency.min_rtt_interval.0,
        jitter_percent: concurrency.min_rtt_jitter.0,
        min_rtt_requests: concurrency.min_rtt_requests,
        buffer_percent: concurrency.min_rtt_buffer.0,
        concurrency_min: concurrency.min_concurrency.into(),
    }
}

fn breaker_settings(breaker: &Breaker) -> breaker::Settings {
    /// A share that is never reached.
    const NEVER: u32 = 101;
    let share = |ratio: Ratio| if ratio.0 == 0 { NEVER } else { ratio.0 };
    let run = breaker.consecutive_failures;
    breaker::Settings {
        failures_in_a_row: if run == 0 { u32::MAX } else { run },
        failures_percent: share(breaker.failure_ratio),
        slow_percent: share(breaker.slow_ratio),
        latency_max: Some(breaker.max_latency.0).filter(|it| !it.is_zero()),
        requests_min: breaker.min_requests,
        window: breaker.window.0,
        open_for: breaker.open_time.0,
        open_for_max: breaker.max_open_time.0,
        probes: breaker.probes,
        permit_wait: breaker.permit_wait.0,
        probe_timeout: breaker.probe_timeout.0,
        ramp: breaker.ramp.0,
        ..breaker::Settings::default()
    }
}

fn rate_limit(limit: &RateLimit, registry: &mut Registry) -> plan::RateLimit {
    // Other keys are other buckets: nothing of the old ones would be of use.
    let id = registry.rate_limit(format!("{} {:?}", limit.name, limit.key));
    let key = limit.key.iter().map(|part| match part {
        RateLimitKey::Route => plan::RateKey::Route,
        RateLimitKey::Client => plan::RateKey::Client,
        RateLimitKey::Header(name) => plan::RateKey::Header(name.0.clone()),
    });
    plan::RateLimit {
        name: limit.name.to_string(),
        id,
        key: key.collect(),
        ipv6_prefix: limit.ipv6_prefix,
        home_timeout: limit.home_timeout.0,
        dry_run: limit.dry_run,
        lines: rate_limit_lines(limit),
    }
}

fn rates(limit: &RateLimit, compiled: &plan::RateLimit) -> RateLimitSpec {
    let RateLimit { requests, per, burst, keys_max, when_full, .. } = *limit;
    RateLimitSpec {
        id: compiled.id,
        rate: Rate::new(requests, per.0, burst.unwrap_or(requests)),
        // Without a key there is one bucket.
        keys_max: if limit.key.is_empty() { 1 } else { keys_max },
        when_full: match when_full {
            WhenFull::Evict => rate::WhenFull::Evict,
            WhenFull::Refuse => rate::WhenFull::Refuse,
        },
        recall_wait: limit.home_timeout.0 / 2,
        lifetime: rate::LIFETIME_MIN.max(limit.home_timeout.0.saturating_mul(2)),
    }
}

/// What of a limit a refused client is told (draft-ietf-httpapi-ratelimit-headers-06, 3 and 4). A
/// window has whole seconds: a shorter one is told as what it allows in one.
fn rate_limit_lines(limit: &RateLimit) -> Vec<u8> {
    let RateLimit { requests, per, burst, .. } = *limit;
    let (quota, window) = match per.0.as_nanos() {
        nanos if nanos < 1_000_000_000 => (u128::from(requests) * 1_000_000_000 / nanos.max(1), 1),
        nanos => (u128::from(requests), nanos.div_ceil(1_000_000_000)),
    };
    let burst = burst.unwrap_or(requests);
    format!("ratelimit-limit: {quota}\r\nratelimit-policy: {quota};w={window};burst={burst}\r\n")
        .into_bytes()
}

/// One for each endpoint of a cluster.
fn endpoint_breakers(cluster: &plan::Cluster) -> impl Iterator<Item = plan::Breaker> {
    cluster.endpoints.iter().map(|endpoint| plan::Breaker {
        id: endpoint.id,
        cluster: cluster.name.clone(),
        cluster_id: cluster.id,
        role: Role::Endpoint,
        name: endpoint.address.to_string(),
        record: Arc::default(),
    })
}

/// The breakers of routes, while routes are compiled: each joins the spec of its cluster.
struct RouteBreakers<'a> {
    /// In the order of the clusters.
    specs: Vec<ClusterSpec>,
    /// As [`Plan::route_breakers`].
    ids: Vec<EndpointId>,
    /// As [`Plan::breakers`], in any order.
    all: Vec<plan::Breaker>,
    clusters: &'a [plan::Cluster],
}

impl RouteBreakers<'_> {
    /// One for each cluster of the route `name`; the result is [`Forward::breakers`]. Names of
    /// routes are unique, so nobody else has it.
    fn add(
        &mut self,
        name: &Name,
        clusters: &Split,
        registry: &mut Registry,
    ) -> Vec<(usize, usize)> {
        let mut added = Vec::new();
        for cluster in clusters.clusters() {
            let spec = &mut self.specs[cluster];
            let id = registry.endpoint(spec.id, EndpointKey::Route(name.to_string()));
            let limits = EndpointLimits::default();
            spec.endpoints.push(EndpointSpec { id, role: Role::Route, limits });
            added.push((cluster, self.ids.len()));
            self.ids.push(id);
            self.all.push(plan::Breaker {
                id,
                cluster: self.clusters[cluster].name.clone(),
                cluster_id: self.clusters[cluster].id,
                role: Role::Route,
                name: name.to_string(),
                record: Arc::default(),
            });
        }
        added
    }
}

impl Config {
    /// Makes every default explicit: names, what a listener's mode stands for, the route that is
    /// meant when there is one cluster and no route.
    pub(crate) fn fill_in(&mut self) {
        for listener in &mut self.listeners {
            if listener.name.is_empty() {
                listener.name = Name(listener.address.to_string());
            }
            let policy = path_policy(listener);
            let path = &mut listener.path;
            let coding = |coding| match coding {
                Coding::Refuse => Encoded::Refuse,
                Coding::Keep => Encoded::Keep,
                Coding::Decode => Encoded::Decode,
            };
            path.slash.get_or_insert(coding(policy.slash));
            path.backslash.get_or_insert(coding(policy.backslash));
            path.nul.get_or_insert(coding(policy.nul));
            path.fragment.get_or_insert(Fragment::Refuse);
            path.merge_slashes.get_or_insert(policy.merge_slashes);
            listener.reason_header.get_or_insert(listener.mode == Mode::Sidecar);
            let cidrs = trusted_cidrs(listener);
            listener.forwarded.trusted.cidrs.get_or_insert(cidrs);
        }
        if let ([], [cluster]) = (self.routes.as_slice(), self.clusters.as_slice()) {
            let cluster = Some(cluster.name.clone());
            self.routes.push(Route { cluster, ..Route::default() });
        }
        let mut taken: std::collections::HashSet<Name> =
            self.routes.iter().map(|route| route.name.clone()).collect();
        for (index, route) in self.routes.iter_mut().enumerate() {
            let mut name = Name(format!("route-{}", index + 1));
            while route.name.is_empty() && !taken.insert(name.clone()) {
                name.0.push('_');
            }
            if route.name.is_empty() {
                route.name = name;
            }
        }
    }
}

/// What `sidecar` trusts: this machine.
fn trusted_cidrs(listener: &Listener) -> Vec<Cidr> {
    match (listener.mode, listener.forwarded.trusted.hops) {
        (Mode::Sidecar, 0) => {
            ["127.0.0.0/8", "::1/128"].iter().filter_map(|it| it.parse().ok()).collect()
        }
        _ => Vec::new(),
    }
}

fn path_policy(listener: &Listener) -> PathPolicy {
    let (pass, merge) = match listener.mode {
        Mode::Edge => (Encoded::Refuse, true),
        Mode::Sidecar => (Encoded::Keep, false),
    };
    let coding = |given: Option<Encoded>, default| match given.unwrap_or(default) {
        Encoded::Refuse => Coding::Refuse,
        Encoded::Keep => Coding::Keep,
        Encoded::Decode => Coding::Decode,
    };
    let path = listener.path;
    PathPolicy {
        slash: coding(path.slash, pass),
        backslash: coding(path.backslash, pass),
        nul: coding(path.nul, Encoded::Refuse),
        fragment: match path.fragment {
            Some(Fragment::Strip) => Rest::Strip,
            Some(Fragment::Refuse) | None => Rest::Refuse,
        },
        merge_slashes: path.merge_slashes.unwrap_or(merge),
    }
}

fn listener(config: &Config, listener: &Listener) -> plan::Listener {
    let Listener { timeouts, limits, .. } = listener;
    let rate = timeouts.body_bytes_per_second_min.0;
    plan::Listener {
        name: listener.name.to_string(),
        address: listener.address.0,
        backlog: config.shards.backlog,
        timeouts: plan::ListenerTimeouts {
            header: timeouts.header.0,
            idle: timeouts.idle.0,
            body: timeouts.body.0,
            body_bytes_per_second_min: u32::try_from(rate).unwrap_or(u32::MAX),
        },
        head: HeadLimits {
            uri_bytes_max: limits.uri_bytes_max.0 as usize,
            head_bytes_max: limits.head_bytes_max.0 as usize,
            fields_max: limits.fields_max as usize,
            lenient_line_ends: listener.lenient_line_ends,
        },
        body_bytes_max: limits.body_bytes_max.0,
        connections_max: limits.connections_max,
        connections_per_client_max: limits.connections_per_client_max,
        forwarding: forwarding(listener),
        path: path_policy(listener),
        reason_header: listener.reason_header.unwrap_or(listener.mode == Mode::Sidecar),
        access_log: listener.access_log.as_ref().map(|log| plan::AccessLog {
            path: log.path.clone(),
            format: match log.format {
                AccessLogFormat::Json => Format::Json,
                AccessLogFormat::Combined => Format::Combined,
                AccessLogFormat::Envoy => Format::Envoy,
            },
        }),
    }
}

fn forwarding(listener: &Listener) -> Forwarding {
    let forwarded = &listener.forwarded;
    let handling = |treatment| match treatment {
        Treatment::Append => Handling::Append,
        Treatment::Set => Handling::Set,
        Treatment::Leave => Handling::Leave,
        Treatment::Remove => Handling::Remove,
    };
    let cidrs = forwarded.trusted.cidrs.clone().unwrap_or_else(|| trusted_cidrs(listener));
    let cidrs: Vec<IpNet> = cidrs.into_iter().map(|cidr| cidr.0).collect();
    Forwarding {
        for_: handling(forwarded.for_),
        proto: handling(forwarded.proto),
        host: handling(forwarded.host),
        request_id: handling(forwarded.request_id),
        via: forwarded.via.as_ref().map(|via| via.0.clone()),
        trusted: TrustedPeers { cidrs, hops: forwarded.trusted.hops },
    }
}

/// `None`: nothing is ever refused for it, and nobody needs to look.
fn overload(config: &Config) -> Option<plan::Overload> {
    let queue = overload_target(config, config.overload.queue_target);
    let is_on = queue.is_some()
        || config
            .clusters
            .iter()
            .any(|it| !it.limits.pending_target.0.is_zero() || it.admission_control.is_some());
    let paths = config.overload.exempt_paths.iter().map(|path| path.0.clone());
    is_on.then(|| plan::Overload { queue, exempt_paths: paths.collect() })
}

fn overload_target(config: &Config, delay: Period) -> Option<Target> {
    let target = Target { delay: delay.0, interval: config.overload.interval.0 };
    (!delay.0.is_zero()).then_some(target)
}

fn cluster(
    config: &Config,
    cluster: &Cluster,
    before: Option<&Plan>,
    registry: &mut Registry,
    resolve: &mut dyn FnMut(&str, u16) -> Vec<SocketAddr>,
) -> plan::Cluster {
    let id = registry.cluster(&cluster.name.0);
    let mut endpoints: Vec<plan::Endpoint> = Vec::new();
    for endpoint in cluster.endpoints.iter().filter(|endpoint| endpoint.weight > 0) {
        let addresses = match &endpoint.address {
            EndpointAddress::Socket(address) => vec![*address],
            EndpointAddress::Host(host, port) => resolve(host, *port),
        };
        for address in addresses {
            // Two names may lead to the same server: once is enough.
            if !endpoints.iter().any(|other| other.address == address) {
                let name = endpoint.address.to_string();
                let key = EndpointKey::Endpoint { address, transport: 0 };
                let id = registry.endpoint(id, key);
                let (weight, priority) = (endpoint.weight, endpoint.priority);
                let zone = match (&config.zone, &endpoint.zone) {
                    (None, _) => Zone::Unknown,
                    (own, zone) if own == zone => Zone::Own,
                    _ => Zone::Other,
                };
                endpoints.push(plan::Endpoint { id, address, weight, name, priority, zone });
            }
        }
    }
    let last = before.and_then(|it| it.clusters.iter().find(|other| other.id == id));
    let last = last.filter(|last| endpoints.is_empty() && !last.endpoints.is_empty());
    let kept = last.filter(|_| cluster.keep_endpoints);
    for endpoint in kept.iter().flat_map(|last| &last.endpoints) {
        // The same number, since it never left.
        let key = EndpointKey::Endpoint { address: endpoint.address, transport: 0 };
        endpoints.push(plan::Endpoint { id: registry.endpoint(id, key), ..endpoint.clone() });
    }
    let balance = policy(&cluster.balance);
    let zones = ZoneSettings {
        endpoints_min: cluster.zone_aware.min_cluster_size,
        spill_above: cluster.zone_aware.spill_above,
    };
    let tiering = Tiering::of(&balance, &endpoints, zones).map(Arc::new);
    let aperture = cluster.aperture.map(|it| ApertureSettings {
        endpoints_min: it.min_endpoints,
        aperture_min: it.min_aperture,
        load_max: it.max_load,
    });
    let is_large = |it: &ApertureSettings| endpoints.len() >= it.endpoints_min as usize;
    plan::Cluster {
        name: cluster.name.to_string(),
        id,
        table: Table::build(&balance, &endpoints),
        aperture: aperture.filter(is_large).filter(|_| tiering.is_none()),
        tiering,
        keeps_endpoints: kept.is_some(),
        endpoints,
        fallback: position(config, cluster.fallback_cluster.as_ref()),
        connect_timeout: cluster.timeouts.connect.0,
        pending_timeout: cluster.limits.pending_timeout.0,
        pending_target: overload_target(config, cluster.limits.pending_target),
        failure_statuses: cluster.breaker.fail_on_5xx,
        admission: cluster.admission_control.as_ref().map(admission),
        health_check: cluster.health_check.as_ref().map(|check| Arc::new(health_check(check))),
        times_answers: !cluster.breaker.max_latency.0.is_zero()
            || balance == Policy::PeakEwma
            || cluster.adaptive_concurrency.is_some(),
        weighs_latency: balance == Policy::PeakEwma,
        pool: plan::Pool {
            idle_max: cluster.pool.idle_max,
            idle_timeout: cluster.pool.idle_timeout.0,
            age_max: cluster.pool.age_max.0,
            requests_max: cluster.pool.requests_max,
        },
        balance,
    }
}

fn admission(control: &AdmissionControl) -> admission::Settings {
    let share = |ratio: Ratio| f64::from(ratio.0) / 100.0;
    admission::Settings {
        window: control.sampling_window.0,
        successes_min: share(control.sr_threshold),
        aggression: control.aggression.into(),
        rate_min: control.rps_threshold.into(),
        rejections_max: share(control.max_rejection_probability),
    }
}

/// Where in the configuration a cluster is.
fn position(config: &Config, name: Option<&Name>) -> Option<usize> {
    let name = name?;
    config.clusters.iter().position(|cluster| cluster.name == *name)
}

fn health_check(check: &HealthCheck) -> plan::HealthCheck {
    let statuses = check.statuses.iter().map(|range| range.first..=range.last);
    plan::HealthCheck {
        http: check.path.as_ref().map(|path| plan::HttpCheck {
            path: path.0.clone(),
            host: check.host.as_ref().map(|host| host.0.clone()),
            statuses: statuses.collect(),
        }),
        port: check.port,
        interval: check.interval.0,
        fast_interval: check.fast_interval.0.min(check.interval.0),
        timeout: check.timeout.0,
        rise: check.rise,
        fall: check.fall,
    }
}

fn policy(balance: &Balance) -> Policy {
    let key = |key: &HashKey| match key {
        HashKey::Header(name) => BalanceKey::Header(name.0.clone()),
        HashKey::Cookie(name) => BalanceKey::Cookie(name.0.clone()),
        HashKey::SourceAddress => BalanceKey::SourceAddress,
    };
    match balance {
        Balance::RoundRobin => Policy::RoundRobin,
        Balance::LeastRequest => Policy::LeastRequest,
        Balance::PeakEwma => Policy::PeakEwma,
        Balance::Random => Policy::Random,
        Balance::RingHash(ring) => Policy::RingHash {
            key: key(&ring.key),
            ring_size_min: ring.ring_size_min,
            ring_size_max: ring.ring_size_max,
            bounded_load: ring.bounded_load.map(|it| it.0),
        },
        Balance::Maglev(maglev) => Policy::Maglev {
            key: key(&maglev.key),
            bounded_load: maglev.bounded_load.map(|it| it.0),
        },
    }
}

/// One entry for each host of each route, in the order of the file.
fn routes(
    config: &Config,
    breakers: &mut RouteBreakers<'_>,
    registry: &mut Registry,
) -> Vec<(Matcher, route::Route)> {
    let position = |names: Vec<&Name>| -> HashMap<String, usize> {
        names.into_iter().enumerate().map(|(index, name)| (name.to_string(), index)).collect()
    };
    let clusters = position(config.clusters.iter().map(|it| &it.name).collect());
    let listeners = position(config.listeners.iter().map(|it| &it.name).collect());
    let rate_limits = position(config.rate_limits.iter().map(|it| &it.name).collect());
    let mut compiled = Vec::new();
    // As many as came before, which is the next one's place.
    let mut fallbacks = 0;
    for route in &config.routes {
        let mut target = self::route(route, &clusters);
        let limits = route.rate_limits.iter().filter_map(|name| rate_limits.get(&name.0));
        target.rate_limits = limits.copied().collect();
        if route.fallback.is_some() {
            target.fallback = Some(fallbacks);
            fallbacks += 1;
        }
        if let (true, Action::Forward(forward)) = (route.breaker, &mut target.action) {
            forward.breakers = breakers.add(&route.name, &forward.clusters, registry);
        }
        for matcher in matchers(route, &listeners) {
            compiled.push((matcher, target.clone()));
        }
    }
    compiled
}

/// What each rule of the plan's router asks, in its order, and the place of its route in `config`.
pub fn route_rules(config: &Config) -> Vec<(usize, Matcher)> {
    let names = config.listeners.iter().map(|it| it.name.to_string());
    let listeners = names.enumerate().map(|(index, name)| (name, index)).collect();
    let routes = config.routes.iter().enumerate();
    let of_route = |(place, route)| {
        let matchers = matchers(route, &listeners).into_iter();
        matchers.map(move |matcher| (place, matcher))
    };
    routes.flat_map(of_route).collect()
}

fn matchers(route: &Route, listeners: &HashMap<String, usize>) -> Vec<Matcher> {
    let Match { host, hosts, path, prefix, methods, headers, query } = &route.matches;
    let text = |path: &PathText| path.0.clone();
    let path = match (path, prefix) {
        (Some(path), _) => PathMatch::Exact(text(path)),
        (None, Some(prefix)) => PathMatch::Prefix(text(prefix)),
        (None, None) => PathMatch::Any,
    };
    let condition = |texts: [&Option<String>; 4], present: Option<bool>| {
        let [exact, prefix, suffix, contains] = texts.map(Clone::clone);
        let forms = [
            exact.map(ValueMatch::Exact),
            prefix.map(ValueMatch::Prefix),
            suffix.map(ValueMatch::Suffix),
            contains.map(ValueMatch::Contains),
            (present == Some(false)).then_some(ValueMatch::Absent),
        ];
        forms.into_iter().flatten().next().unwrap_or(ValueMatch::Present)
    };
    let headers: Vec<FieldMatch> = headers
        .iter()
        .map(|it| FieldMatch {
            name: it.name.0.clone(),
            value: condition([&it.exact, &it.prefix, &it.suffix, &it.contains], it.present),
            invert: it.invert,
        })
        .collect();
    let query: Vec<FieldMatch> = query
        .iter()
        .map(|it| FieldMatch {
            name: it.name.clone(),
            value: condition([&it.exact, &it.prefix, &it.suffix, &it.contains], it.present),
            invert: it.invert,
        })
        .collect();
    let mut hosts: Vec<HostMatch> = host
        .iter()
        .chain(hosts)
        .map(|host| match host {
            HostPattern::Any => HostMatch::Any,
            HostPattern::Exact(host) => HostMatch::Exact(host.clone()),
            HostPattern::Suffix(suffix) => HostMatch::Suffix(suffix.clone()),
        })
        .collect();
    if hosts.is_empty() {
        hosts.push(HostMatch::Any);
    }
    let matcher = |host| Matcher {
        listeners: route.listeners.iter().filter_map(|it| listeners.get(&it.0).copied()).collect(),
        host,
        path: path.clone(),
        methods: methods.iter().map(|it| it.0.clone()).collect(),
        headers: headers.clone(),
        query: query.clone(),
    };
    hosts.into_iter().map(matcher).collect()
}

fn route(route: &Route, clusters: &HashMap<String, usize>) -> route::Route {
    let RouteTimeouts { answer, total, stream_idle } = route.timeouts;
    route::Route {
        name: route.name.to_string(),
        action: action(route, clusters),
        request_headers: rules(&route.request_headers),
        response_headers: rules(&route.response_headers),
        timeouts: route::RouteTimeouts {
            answer: answer.0,
            total: total.0,
            stream_idle: stream_idle.0,
        },
        retries: retries(&route.retries),
        preserve_path: route.preserve_path,
        body_bytes_max: route.body_bytes_max.map(|limit| limit.0),
        prefix_bytes: 0,
        rate_limits: Vec::new(),
        fallback: None,
    }
}

/// One for each route that has one, in the order of the file; and their limits, each a cluster of its
/// own, with an endpoint that never fails.
fn fallbacks(config: &Config, registry: &mut Registry) -> (Vec<plan::Fallback>, Vec<ClusterSpec>) {
    let listeners = config.listeners.iter().map(|it| it.name.to_string());
    let listeners = listeners.enumerate().map(|(index, name)| (name, index)).collect();
    let with = config.routes.iter().filter_map(|it| Some((it, it.fallback.as_ref()?)));
    let both = with.map(|(named, fallback)| {
        let route = &named.name;
        // No cluster of the configuration has a name with spaces.
        let cluster = registry.cluster(&format!("fallback of {route}"));
        let limit = registry.endpoint(cluster, EndpointKey::Limit);
        let limits = EndpointLimits::default();
        let spec = ClusterSpec {
            limits: ClusterLimits {
                requests_max: fallback.max_requests.into(),
                pending_max: 0,
                ..ClusterLimits::default()
            },
            endpoints: vec![EndpointSpec { id: limit, role: Role::Endpoint, limits }],
            ..ClusterSpec::new(cluster)
        };
        let compiled = plan::Fallback {
            route: route.to_string(),
            rules: matchers(named, &listeners),
            clusters: named
                .cluster
                .iter()
                .chain(named.clusters.iter().map(|part| &part.name))
                .map(Name::to_string)
                .collect(),
            statuses: fallback.statuses.clone(),
            cluster: position(config, fallback.cluster.as_ref()),
            last_good: fallback.last_good.map(|it| plan::LastGood {
                age_max: it.max_age.0,
                bytes_max: usize::try_from(it.max_bytes.0).unwrap_or(usize::MAX),
                answer_bytes_max: usize::try_from(it.max_answer_bytes.0).unwrap_or(usize::MAX),
                refresh_after: it.refresh.0,
            }),
            respond: fallback.respond.as_ref().map(respond),
            requests_max: fallback.max_requests,
            limit,
        };
        (compiled, spec)
    });
    both.unzip()
}

fn retries(retries: &Retries) -> RetryPolicy {
    let condition = |on: &RetryOn| match on {
        RetryOn::ConnectFailure => Condition::ConnectFailure,
        RetryOn::Reset => Condition::Reset,
        RetryOn::GatewayError => Condition::GatewayError,
        RetryOn::ServerError => Condition::ServerError,
        RetryOn::Conflict => Condition::Conflict,
        RetryOn::RetriableStatus => Condition::ListedStatus,
    };
    RetryPolicy {
        attempts: retries.attempts,
        on: retries.on.iter().map(condition).collect(),
        statuses: retries.statuses.clone(),
        non_idempotent: retries.non_idempotent,
        try_timeout: retries.try_timeout.0,
        backoff: retries.backoff.0,
        backoff_max: retries.max_backoff.0,
        retry_after_max: retries.max_retry_after.0,
        body_bytes_max: retries.body_bytes_max.0,
        hedge: retries.hedge.map(|hedge| HedgePolicy {
            after: match hedge.after {
                values::HedgeAfter::Delay(delay) => HedgeAfter::Delay(delay.0),
                values::HedgeAfter::Permille(permille) => {
                    HedgeAfter::Percentile(f64::from(permille) / 10.0)
                }
            },
            delay_min: hedge.min_delay.0,
        }),
    }
}

fn action(route: &Route, clusters: &HashMap<String, usize>) -> Action {
    if let Some(redirect) = &route.redirect {
        let Redirect { status, scheme, host, port, path, prefix_rewrite, strip_query } = redirect;
        let whole = path.as_ref().map(|it| RedirectPath::Whole(it.0.clone()));
        return Action::Redirect(route::Redirect {
            status: *status,
            scheme: scheme.map(|scheme| match scheme {
                Scheme::Http => "http".to_owned(),
                Scheme::Https => "https".to_owned(),
            }),
            host: host.as_ref().map(|it| it.host().to_owned()),
            port: port.or_else(|| host.as_ref()?.port()),
            path: whole
                .or_else(|| prefix_rewrite.as_ref().map(|it| RedirectPath::Prefix(it.0.clone()))),
            strip_query: *strip_query,
        });
    }
    if let Some(answer) = &route.respond {
        return Action::Respond(respond(answer));
    }
    let parts = route.cluster.iter().map(|name| (name, 1));
    let parts = parts.chain(route.clusters.iter().map(|part| (&part.name, part.weight)));
    let parts = parts.filter_map(|(name, weight)| Some((*clusters.get(&name.0)?, weight)));
    Action::Forward(Forward {
        breakers: Vec::new(),
        clusters: Split::new(parts).expect("checked: clusters exist, and their weights have a sum"),
        fallback: route.fallback_cluster.as_ref().and_then(|it| clusters.get(&it.0).copied()),
        prefix_rewrite: route.prefix_rewrite.as_ref().map(|it| it.0.clone()),
        host_rewrite: route.host_rewrite.as_ref().map(|it| it.0.clone()),
    })
}

fn respond(respond: &Respond) -> route::Respond {
    let Respond { status, content_type, body } = respond;
    route::Respond {
        status: *status,
        content_type: (!body.is_empty()).then(|| content_type.0.clone()),
        body: bytes::Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn rules(changes: &HeaderChanges) -> HeaderRules {
    let lines = |lines: &HeaderLines| {
        lines.0.iter().map(|(name, value)| (name.0.clone(), value.0.clone())).collect()
    };
    HeaderRules {
        remove: changes.remove.iter().map(|name| name.0.clone()).collect(),
        set: lines(&changes.set),
        add: lines(&changes.add),
    }
}
