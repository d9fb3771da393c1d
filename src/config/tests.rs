//! The whole way of a text, on an imagined machine with an imagined environment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::breaker;
use crate::http::path::Encoded as Coding;
use crate::plan::Plan;
use crate::reconcile::{
    ClusterLimits, ClusterSpec, EndpointId, EndpointLimits, EndpointSpec, Registry, RetryBudget,
    Role, UNLIMITED,
};
use crate::route::Action;

use super::*;

fn read(text: &str, format: Format) -> Result<Config, Errors> {
    let name = match format {
        Format::Yaml => "a.yaml",
        Format::Toml => "a.toml",
    };
    let text = Text { name: name.into(), text: text.into(), format };
    let machine = Machine { cpus: vec![0, 1, 2, 3], quota: None };
    let variable = |name: &str| (name == "PORT").then(|| "9000".to_owned());
    parse_on(vec![text], &machine, &variable)
}

fn yaml(text: &str) -> Result<Config, Errors> {
    read(text, Format::Yaml)
}

/// A good configuration, or a panic that shows what is wrong with it.
#[track_caller]
fn good(text: &str) -> Config {
    yaml(text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// `LINE:COLUMN message` of every problem.
#[track_caller]
fn bad(result: Result<Config, Errors>) -> Vec<String> {
    let problems = match result {
        Ok(config) => panic!("nothing wrong with {config:?}"),
        Err(errors) => errors.problems,
    };
    let line = |problem: &Problem| match &problem.place {
        Some(place) => format!("{}:{} {}", place.line, place.column, problem.message),
        None => problem.message.clone(),
    };
    problems.iter().map(line).collect()
}

fn nowhere(_: &str, _: u16) -> Vec<SocketAddr> {
    Vec::new()
}

const MINIMAL: &str = "\
listeners:
  - address: 127.0.0.1:8080
clusters:
  - name: app
    endpoints: [127.0.0.1:9000]
";

#[test]
fn five_lines_are_enough() {
    let config = good(MINIMAL);
    assert!(config.warnings.is_empty());
    assert_eq!(config.routes.len(), 1);
    assert_eq!(&*config.routes[0].name, "route-1");
    assert_eq!(&*config.listeners[0].name, "127.0.0.1:8080");
    let plan = compile(&config, 7, &mut Registry::default(), &mut nowhere);
    assert_eq!((plan.generation, plan.listeners.len(), plan.clusters.len()), (7, 1, 1));
    assert_eq!(plan.clusters[0].endpoints[0].name, "127.0.0.1:9000");
}

/// What print-config prints is the same configuration.
#[test]
fn what_is_printed_reads_the_same() {
    let config = good(&format!(
        "{MINIMAL}  - name: other
    endpoints: [{{address: 127.0.0.1:1, weight: 3}}, app.internal:80]
    balance: {{ring_hash: {{key: {{cookie: sid}}}}}}
routes:
  - match: {{host: '*.example.org', prefix: /a, methods: [GET]}}
    clusters: [{{name: app, weight: 2}}, {{name: other}}]
    request_headers: {{remove: [x-a], add: {{x-b: [\"1\", 'two: 2']}}}}
    body_bytes_max: 10MB
  - match: {{headers: [{{name: x, present: false}}]}}
    respond: {{status: 404, body: \"no\\n\"}}
  - cluster: app
shards: {{cpus: '0-1,3', per_core: [{{cpu: 3, driver: epoll}}]}}
shutdown: {{drain_delay: 1h30m}}
"
    ));
    let printed = to_yaml(&config);
    let again = good(&printed);
    assert_eq!(printed, to_yaml(&again));
    assert_eq!(config.routes, again.routes);
    assert_eq!(config.listeners, again.listeners);
    assert_eq!(config.clusters, again.clusters);
    assert_eq!(config.shards, again.shards);
}

#[test]
fn the_mode_decides_what_is_not_said() {
    let config =
        good(&MINIMAL.replace("8080", "8080\n    mode: sidecar\n    path: {slash: refuse}"));
    let plan = compile(&config, 1, &mut Registry::default(), &mut nowhere);
    let listener = &plan.listeners[0];
    assert!(listener.reason_header);
    assert_eq!(listener.path.slash, Coding::Refuse);
    assert_eq!(listener.path.backslash, Coding::Keep);
    assert_eq!(listener.forwarding.trusted.cidrs.len(), 2);
    let edge = compile(&good(MINIMAL), 1, &mut Registry::default(), &mut nowhere);
    assert!(!edge.listeners[0].reason_header);
    assert_eq!(edge.listeners[0].path.backslash, Coding::Refuse);
    assert!(edge.listeners[0].forwarding.trusted.cidrs.is_empty());
}

#[test]
fn names_are_resolved_and_zero_weights_left_out() {
    let config = good(
        "listeners: [{address: 127.0.0.1:1}]
clusters:
  - name: app
    endpoints: [App.Internal:80, {address: 127.0.0.1:9, weight: 0}, {address: b:80, weight: 0}]",
    );
    assert_eq!(host_names(&config).into_iter().collect::<Vec<_>>(), [("app.internal".into(), 80)]);
    let address = |last| SocketAddr::from(([10, 0, 0, last], 80));
    let plan = compile(&config, 1, &mut Registry::default(), &mut |host, port| {
        assert_eq!((host, port), ("app.internal", 80));
        vec![address(1), address(2), address(1)]
    });
    let endpoints = &plan.clusters[0].endpoints;
    let found: Vec<_> = endpoints.iter().map(|it| (it.address, it.name.as_str())).collect();
    assert_eq!(found, [(address(1), "app.internal:80"), (address(2), "app.internal:80")]);
}

/// What is not said in the configuration is what the machines have by default.
#[test]
fn limits_and_breakers_are_there_by_default() {
    let plan = compile(&good(MINIMAL), 1, &mut Registry::default(), &mut nowhere);
    let cluster = &plan.clusters[0];
    assert_eq!(cluster.pending_timeout, Duration::from_secs(5));
    assert!(cluster.failure_statuses);
    let id = cluster.endpoints[0].id;
    let endpoint = EndpointSpec { id, role: Role::Endpoint, limits: EndpointLimits::default() };
    let spec = ClusterSpec { endpoints: vec![endpoint], ..ClusterSpec::new(cluster.id) };
    assert_eq!(plan.agreement.clusters, [spec]);
    assert!(plan.route_breakers.is_empty());
}

/// Each has its limit behind the clusters, under a number that it keeps; hosts of a route share it.
#[test]
fn fallbacks_have_limits_of_their_own() {
    let text = |more: &str| {
        format!(
            "{MINIMAL}  - name: spare\n    endpoints: [127.0.0.1:1]\nroutes:\n{more}  \
             - {{name: b, match: {{hosts: [a, b]}}, cluster: app, fallback: {{cluster: spare}}}}\n"
        )
    };
    let mut registry = Registry::default();
    let plan = compile(&good(&text("")), 1, &mut registry, &mut nowhere);
    assert_eq!(plan.agreement.clusters.len(), 3);
    let spec = &plan.agreement.clusters[2];
    assert_eq!((spec.limits.requests_max, spec.limits.pending_max), (10, 0));
    assert!(plan.clusters.iter().all(|cluster| cluster.id != spec.id));
    let [fallback] = plan.fallbacks.as_slice() else { panic!("{:?}", plan.fallbacks) };
    assert_eq!((fallback.cluster, &*fallback.statuses), (Some(1), &[502, 503, 504][..]));
    assert_eq!(spec.endpoints[0].id, fallback.limit);
    assert!(plan.breakers.iter().all(|breaker| breaker.id != fallback.limit));
    let all: Vec<_> = plan.router.routes().iter().map(|route| route.fallback).collect();
    assert_eq!(all, [Some(0), Some(0)]);

    let first = "  - {name: a, match: {path: /a}, cluster: app, \
                 fallback: {respond: {}, max_requests: 3}}\n";
    let next = compile(&good(&text(first)), 2, &mut registry, &mut nowhere);
    assert_eq!(next.fallbacks[1].limit, fallback.limit);
    assert_eq!(next.agreement.clusters[2].limits.requests_max, 3);
    let places = next.router.routes().iter().map(|route| (route.name.clone(), route.fallback));
    let places: std::collections::BTreeSet<_> = places.collect();
    assert_eq!(
        places.into_iter().collect::<Vec<_>>(),
        [("a".to_owned(), Some(0)), ("b".to_owned(), Some(1))]
    );
}

#[test]
fn every_limit_and_breaker_setting_arrives() {
    let config = good(&format!(
        "{MINIMAL}    limits:
      max_requests: 11
      max_connections: 12
      max_pending: 13
      pending_timeout: 14ms
      max_retries: 14
      per_endpoint: {{max_requests: 8, max_connections: 9, max_pending: 0}}
    retry_budget: {{ratio: 0.15, ttl: 16s, min_per_second: 17}}
    breaker:
      consecutive_failures: 15
      failure_ratio: 0.16
      min_requests: 17
      window: 18s
      fail_on_5xx: false
      max_latency: 1.9ms
      slow_ratio: 0.2
      open_time: 21s
      max_open_time: 22s
      probes: 3
      permit_wait: 24ms
      probe_timeout: 25s
      ramp: 26s
      max_ejected: 0.27
"
    ));
    assert_eq!(config.warnings, []);
    let plan = compile(&config, 1, &mut Registry::default(), &mut nowhere);
    let cluster = &plan.clusters[0];
    assert_eq!(cluster.pending_timeout, Duration::from_millis(14));
    assert!(!cluster.failure_statuses);
    let limits = EndpointLimits { requests_max: 8, connections_max: 9, pending_max: 0 };
    let id = cluster.endpoints[0].id;
    let millis = Duration::from_millis;
    let expected = ClusterSpec {
        limits: ClusterLimits {
            requests_max: 11,
            connections_max: 12,
            pending_max: 13,
            retries_max: 14,
        },
        retry_budget: RetryBudget { deposit_milli: 150, ttl: millis(16_000), per_second_min: 17 },
        breaker: breaker::Settings {
            failures_in_a_row: 15,
            failures_percent: 16,
            slow_percent: 20,
            latency_max: Some(Duration::from_micros(1_900)),
            requests_min: 17,
            window: millis(18_000),
            open_for: millis(21_000),
            open_for_max: millis(22_000),
            probes: 3,
            permit_wait: millis(24),
            probe_timeout: millis(25_000),
            ramp: millis(26_000),
            ..breaker::Settings::default()
        },
        ejected_percent_max: 27,
        endpoints: vec![EndpointSpec { id, role: Role::Endpoint, limits }],
        ..ClusterSpec::new(cluster.id)
    };
    assert_eq!(plan.agreement.clusters, [expected]);
}

/// Off means that no number of failures is enough.
#[test]
fn what_is_off_is_never_reached() {
    let off = "    breaker: {consecutive_failures: 0, failure_ratio: 0, max_ejected: 0}\n";
    let config = good(&format!("{MINIMAL}{off}"));
    assert!(config.clusters[0].breaker.is_off());
    let plan = compile(&config, 1, &mut Registry::default(), &mut nowhere);
    let spec = &plan.agreement.clusters[0];
    let settings = spec.breaker;
    assert_eq!((settings.failures_in_a_row, settings.failures_percent), (u32::MAX, 101));
    assert_eq!((settings.latency_max, spec.ejected_percent_max), (None, 0));
    let slow = "    breaker: {max_latency: 1s, failure_ratio: 0, consecutive_failures: 0}\n";
    assert!(!good(&format!("{MINIMAL}{slow}")).clusters[0].breaker.is_off());
}

/// Defaults that do not matter beside what was chosen are printed, too; reading them is no reason
/// to warn.
#[test]
fn printed_defaults_raise_no_doubts() {
    for chosen in [
        "limits: {max_pending: 0}",
        "limits: {max_connections: 3}",
        "breaker: {failure_ratio: 0}",
        "breaker: {max_latency: 1s}",
    ] {
        let config = good(&format!("{MINIMAL}    {chosen}\n"));
        assert_eq!(config.warnings, [], "{chosen}");
        let again = good(&to_yaml(&config));
        assert_eq!((again.warnings, again.clusters), (vec![], config.clusters), "{chosen}");
    }
}

const SPLIT: &str = "\
listeners: [{address: 127.0.0.1:1}]
clusters:
  - {name: a, endpoints: [127.0.0.1:11, 127.0.0.1:12], limits: {per_endpoint: {max_requests: 9}}}
  - {name: b, endpoints: [127.0.0.1:21]}
  - {name: c, endpoints: [127.0.0.1:31]}
routes:
  - {name: plain, match: {prefix: /plain}, cluster: a}
  - {name: hosts, match: {hosts: [x.example, y.example]}, cluster: b, breaker: true}
  - name: split
    match: {prefix: /split}
    clusters: [{name: a, weight: 2}, {name: b}, {name: c, weight: 0}]
    breaker: true
  - {name: away, match: {prefix: /away}, redirect: {path: /}}
  - {name: rest, cluster: c}
";

/// The breakers of the routes with this name, one list for each of its entries: clusters by name,
/// breakers by number.
fn breakers_of(config: &Config, plan: &Plan, name: &str) -> Vec<Vec<(String, EndpointId)>> {
    let entries = plan.router.routes().iter().filter(|route| route.name == name);
    let found = entries.map(|route| {
        let Action::Forward(forward) = &route.action else { panic!("{name} forwards") };
        let named = |(cluster, breaker): &(usize, usize)| {
            (config.clusters[*cluster].name.to_string(), plan.route_breakers[*breaker])
        };
        forward.breakers.iter().map(named).collect()
    });
    found.collect()
}

/// One for each cluster that the route can choose, whatever the number of its hosts; it stands in
/// the cluster's spec behind the endpoints, without limits.
#[test]
fn routes_have_breakers_of_their_own() {
    let config = good(SPLIT);
    let plan = compile(&config, 1, &mut Registry::default(), &mut nowhere);
    let [hosts, split_a, split_b] = plan.route_breakers[..] else { panic!("three breakers") };
    let b = |id| vec![("b".to_owned(), id)];
    assert_eq!(breakers_of(&config, &plan, "hosts"), [b(hosts), b(hosts)]);
    let both = vec![("a".to_owned(), split_a), ("b".to_owned(), split_b)];
    assert_eq!(breakers_of(&config, &plan, "split"), [both]);
    assert_eq!(breakers_of(&config, &plan, "plain"), [vec![]]);

    let roles = |cluster: usize| -> Vec<(EndpointId, Role, u64)> {
        let endpoints = &plan.agreement.clusters[cluster].endpoints;
        endpoints.iter().map(|it| (it.id, it.role, it.limits.requests_max)).collect()
    };
    let server = |cluster: usize, index: usize, requests_max| {
        (plan.clusters[cluster].endpoints[index].id, Role::Endpoint, requests_max)
    };
    let route = |id| (id, Role::Route, UNLIMITED);
    assert_eq!(roles(0), [server(0, 0, 9), server(0, 1, 9), route(split_a)]);
    assert_eq!(roles(1), [server(1, 0, UNLIMITED), route(hosts), route(split_b)]);
    assert_eq!(roles(2), [server(2, 0, UNLIMITED)]);
}

/// A reload keeps the numbers of what stays, so its breakers and credits; what left and came back
/// is new. No number is given twice, and all lie below the ends.
#[test]
fn numbers_outlive_a_reload() {
    let mut registry = Registry::default();
    let mut generation = 0;
    let mut plan = |text: &str| {
        generation += 1;
        let config = good(text);
        let plan = compile(&config, generation, &mut registry, &mut nowhere);
        assert_eq!(plan.agreement.generation, generation);
        let mut ids: Vec<EndpointId> = plan
            .agreement
            .clusters
            .iter()
            .flat_map(|cluster| cluster.endpoints.iter().map(|it| it.id))
            .collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count);
        assert!(ids.iter().all(|id| *id < plan.agreement.endpoints_end));
        assert!(plan.clusters.iter().all(|it| it.id < plan.agreement.clusters_end));
        plan
    };
    let first = plan(SPLIT);
    // Breakers are told by name, and their records stay with their numbers.
    let told = |plan: &Plan| {
        let told = plan.breakers.iter().map(|it| {
            assert_eq!(plan.breaker(it.id).unwrap().name, it.name);
            format!("{} {:?} {}/{}", it.id.0, it.role, it.cluster, it.name)
        });
        told.collect::<Vec<_>>()
    };
    assert_eq!(
        told(&first)[..3],
        ["0 Endpoint a/127.0.0.1:11", "1 Endpoint a/127.0.0.1:12", "2 Endpoint b/127.0.0.1:21"]
    );
    let routes = first.breakers.iter().filter(|it| it.role == Role::Route).map(|it| it.id);
    assert_eq!(routes.collect::<Vec<_>>(), first.route_breakers);
    // Other limits, another order, another route before them: the same endpoints and breakers.
    let moved = SPLIT
        .replace("max_requests: 9", "max_requests: 5")
        .replace("127.0.0.1:11, 127.0.0.1:12", "127.0.0.1:12, 127.0.0.1:11")
        .replace(
            "routes:",
            "routes:\n  - {name: new, match: {path: /n}, cluster: c, breaker: true}",
        );
    let mut second = plan(&moved);
    second.keep_records(&first, crate::time::Nanos(1));
    for breaker in &second.breakers {
        let known = first.breaker(breaker.id);
        let is_kept = known.is_some_and(|known| Arc::ptr_eq(&known.record, &breaker.record));
        assert_eq!(is_kept, known.is_some(), "{breaker:?}");
    }
    assert_eq!(second.clusters[0].id, first.clusters[0].id);
    let ids = |plan: &Plan| plan.clusters[0].endpoints.iter().map(|it| it.id).collect::<Vec<_>>();
    assert_eq!(ids(&second), ids(&first).into_iter().rev().collect::<Vec<_>>());
    assert_eq!(second.route_breakers[1..], first.route_breakers);
    assert!(
        second.agreement.clusters[0].endpoints[..2].iter().all(|it| it.limits.requests_max == 5)
    );

    let gone =
        SPLIT.replace(", 127.0.0.1:12", "").replace(", cluster: b, breaker: true", ", cluster: b");
    let third = plan(&gone);
    assert_eq!(
        (ids(&third), &third.route_breakers[..]),
        (ids(&first)[..1].to_vec(), &first.route_breakers[1..])
    );
    let fourth = plan(SPLIT);
    assert_eq!(ids(&fourth)[0], ids(&first)[0]);
    assert!(ids(&fourth)[1] >= second.agreement.endpoints_end);
    assert!(fourth.route_breakers[0] >= second.agreement.endpoints_end);
    assert_eq!(fourth.route_breakers[1..], first.route_breakers[1..]);
}

#[test]
fn variables_are_values_and_never_structure() {
    let config = good(&MINIMAL.replace("127.0.0.1:9000", "\"127.0.0.1:${PORT}\""));
    assert_eq!(config.clusters[0].endpoints[0].address.to_string(), "127.0.0.1:9000");
    let errors = bad(yaml(&MINIMAL.replace("127.0.0.1:9000", "\"${NOT_SET}\"")));
    assert_eq!(errors[0], "5:17 the environment variable NOT_SET is not set");
    let toml = "shards.backlog = '${PORT}'\nlisteners = [{address='127.0.0.1:1'}]
clusters = [{name='a', endpoints=['b:1']}]";
    let config = read(toml, Format::Toml).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.shards.backlog, 9000);
}

/// The same mistakes are found in both formats, each at its own place.
#[test]
fn toml_errors_have_their_places() {
    let toml = "\
listeners = [{ address = '127.0.0.1:1', tiemouts = {} }]
[[routes]]
cluster = 'ap'
timeouts = { answer = 5 }
[[clusters]]
name = 'app'
endpoints = []
";
    assert_eq!(
        bad(read(toml, Format::Toml)),
        [
            "1:41 unknown key 'tiemouts'",
            "3:11 no cluster is named 'ap'",
            "4:23 a time needs a unit",
            "7:1 cluster 'app' has no endpoints: its requests get 503",
        ]
    );
    assert_eq!(bad(read("a = \nb = 1", Format::Toml)).len(), 1);
}

/// What cannot be decoded is told once, not again by everything that needed it.
#[test]
fn an_error_has_no_echo() {
    let text = "\
listeners: [{address: nowhere}]
routes: [{cluster: app}]
clusters:
  - name: app
    endpoints: [127.0.0.1]
    balance: {ring_hash: {key: {heder: x}}}
";
    assert_eq!(
        bad(yaml(text)),
        [
            "1:23 'nowhere' is no address to listen on",
            "5:17 '127.0.0.1' is no endpoint: it has no port",
            "6:33 unknown value 'heder'",
        ]
    );
}

#[test]
fn anchors_and_merge_keys_work() {
    let config = good(
        "listeners: [{address: 127.0.0.1:1}]
clusters:
  - &base {name: a, endpoints: &list [127.0.0.1:9], pool: {idle_max: 3}}
  - {<<: *base, name: b}
  - {name: c, endpoints: *list}
routes: [{clusters: [{name: a}, {name: b}, {name: c}]}]",
    );
    assert_eq!(config.clusters[1].pool.idle_max, 3);
    assert_eq!(&*config.clusters[1].name, "b");
    assert_eq!(config.clusters[2].endpoints.len(), 1);
}

/// Small texts that would become large trees, or deep ones.
#[test]
fn budgets_hold() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(bad(yaml(&laughs))[0].contains("more than 250000 values"));
    assert!(bad(yaml(&"[".repeat(100))).len() == 1);
    let deep = "[".repeat(70) + &"]".repeat(70);
    assert!(bad(yaml(&deep))[0].contains("nested more than 64 deep"));
    assert!(!bad(read(&format!("a = {}", "[".repeat(10_000)), Format::Toml)).is_empty());
    assert!(bad(yaml("a: &a [*a]"))[0].contains("alias"));
}

/// A report is bounded, and warnings never hide an error.
#[test]
fn many_problems_are_a_short_report() {
    let everybody = ["0.0.0.0/0"; 1_000].join(", ");
    let doubtful = format!("8080\n    forwarded: {{trusted: {{cidrs: [{everybody}]}}}}");
    let text = MINIMAL.replace("8080", &doubtful) + "routes: [{cluster: ap}]\n";
    let problems = bad(yaml(&text));
    assert_eq!(problems.len(), error::FINDINGS_MAX);
    assert!(problems.iter().any(|it| it.contains("no cluster is named 'ap'")));
    let routes = "  - {cluster: ap}\n".repeat(1_000);
    let problems = bad(yaml(&format!("{MINIMAL}routes:\n{routes}")));
    assert!(problems.len() <= error::FINDINGS_MAX);
    let clusters = "  - {name: x, endpoints: [nothing]}\n".repeat(1_000);
    assert!(bad(yaml(&format!("{MINIMAL}{clusters}"))).len() <= error::FINDINGS_MAX);
}

#[test]
fn weights_that_cannot_be_added_are_refused() {
    let part = |index| format!("  - {{name: c{index}, weight: 1000000}}\n");
    let cluster = |index| format!("  - {{name: c{index}, endpoints: [a:1]}}\n");
    let parts: String = (0..4_300).map(part).collect();
    let clusters: String = (0..4_300).map(cluster).collect();
    let text = format!(
        "listeners: [{{address: 127.0.0.1:1}}]\nclusters:\n{clusters}routes:\n- clusters:\n{parts}"
    );
    assert_eq!(bad(yaml(&text)), ["4304:3 the weights add up to more than 4294967295"]);
}

#[test]
fn a_second_text_is_laid_over_the_first() {
    let over = "listeners: [{address: 127.0.0.1:99}]\nlog: {level: chatty}";
    let text = |name: &str, text: &str| Text {
        name: name.into(),
        text: text.into(),
        format: Format::Yaml,
    };
    let machine = Machine { cpus: vec![0], quota: None };
    let errors = parse_on(vec![text("a.yaml", MINIMAL), text("over", over)], &machine, &|_| None)
        .unwrap_err();
    assert_eq!(errors.problems.len(), 1);
    assert!(errors.to_string().starts_with("over:2:14: error: 'chatty' is no log level"));
    let over = over.replace("chatty", "debug");
    let below = format!("{MINIMAL}log: {{format: json, level: off}}");
    let config = parse_on(vec![text("a.yaml", &below), text("over", &over)], &machine, &|_| None);
    let config = config.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.listeners[0].address.0.port(), 99);
    assert_eq!((config.log.format, config.log.level.0.as_str()), (LogFormat::Json, "debug"));
    assert_eq!(config.clusters.len(), 1);
}

#[test]
fn reloads_may_change_routes_but_not_threads_and_sockets() {
    let old = good(MINIMAL);
    let same = good(&format!("{MINIMAL}routes: [{{match: {{prefix: /a}}, cluster: app}}]"));
    assert!(reload_obstacles(&old, &same).is_empty());
    let limited = "    limits: {max_requests: 7}\n    breaker: {probes: 2}\n";
    let limited = format!("{MINIMAL}{limited}routes: [{{cluster: app, breaker: true}}]");
    assert!(reload_obstacles(&old, &good(&limited)).is_empty());
    for (change, obstacle) in [
        (MINIMAL.replace("listeners:", "shards: {count: 2}\nlisteners:"), "'shards' changed"),
        (MINIMAL.replace("listeners:", "admin: {address: off}\nlisteners:"), "'admin' changed"),
        (MINIMAL.replace("8080", "8081"), "listener '127.0.0.1:8080' is gone"),
    ] {
        let obstacles = reload_obstacles(&old, &good(&change));
        assert!(obstacles[0].starts_with(obstacle), "{obstacles:?}");
    }
}

/// Every key of the schema has a description: it is what editors show.
#[test]
fn the_schema_describes_every_key() {
    fn walk(value: &serde_json::Value, path: &str, missing: &mut Vec<String>) {
        if let Some(properties) = value.get("properties").and_then(|it| it.as_object()) {
            // A choice with a value has its description beside the key.
            let choice = properties.len() == 1 && value.get("description").is_some();
            for (key, property) in properties.iter().filter(|_| !choice) {
                if property.get("description").is_none() {
                    missing.push(format!("{path}.{key}"));
                }
            }
        }
        match value {
            serde_json::Value::Object(map) => {
                map.iter().for_each(|(key, value)| walk(value, &format!("{path}.{key}"), missing));
            }
            serde_json::Value::Array(items) => {
                items.iter().for_each(|item| walk(item, path, missing));
            }
            _ => {}
        }
    }
    let mut missing = Vec::new();
    walk(&serde_json::json!(schema()), "", &mut missing);
    assert_eq!(missing, Vec::<String>::new());
}

/// A good configuration's text with some of its bytes changed, or anything at all.
fn mangled() -> impl Strategy<Value = String> {
    let words =
        ["&a", "*a", "<<", ":", "- ", "\n", "[", "{", "]", "}", "0", "${", "\"", "~", "\t", "#"];
    let edit = (any::<prop::sample::Index>(), prop::sample::select(words.to_vec()), 0..8_usize);
    let edited = prop::collection::vec(edit, 1..8).prop_map(|edits| {
        let mut text = include_str!("../../tuning/reference.yaml").to_owned();
        for (at, word, cut) in edits {
            let start = text.floor_char_boundary(at.index(text.len().max(1)));
            let end = text.ceil_char_boundary((start + cut).min(text.len()));
            text.replace_range(start..end, word);
        }
        text
    });
    prop_oneof![edited, any::<String>(), "[-:\\[\\]{}&*<>!|%@,\"'# \\na-z0-9$]{0,200}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever the text: no panic, and every problem has a place within it.
    #[test]
    fn any_text_is_read_or_refused(text in mangled(), toml in any::<bool>()) {
        let format = if toml { Format::Toml } else { Format::Yaml };
        match read(&text, format) {
            Ok(config) => {
                let _ = compile(&config, 1, &mut Registry::default(), &mut nowhere);
                let _ = to_yaml(&config);
            }
            Err(errors) => {
                prop_assert!(errors.count() > 0);
                let _ = errors.to_string();
                for problem in &errors.problems {
                    let lines = text.lines().count().max(1) + 1;
                    prop_assert!(problem.place.as_ref().is_some_and(|it| it.line <= lines));
                }
            }
        }
    }
}
