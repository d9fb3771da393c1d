//! For which of a cluster's endpoints a request is: priorities, zones, slices; where it goes if none
//! can have it; and what becomes of a cluster that has lost all of them. The arithmetic is tested
//! beside the code.

use crate::health::{Patient, QUICK, await_state, setup};
use crate::support::{Crowd, GET, Gate, Origin, Proxy, Setup, eventually, with_shards};

/// Answers and metrics of so many requests on one connection.
fn ask(proxy: &Proxy, count: usize) {
    let mut client = proxy.client();
    for _ in 0..count {
        assert_eq!(client.get("/").status(), 200);
    }
}

fn served(patients: &[&Patient]) -> Vec<usize> {
    patients.iter().map(|patient| patient.served()).collect()
}

/// What each has served since.
fn since(patients: &[&Patient], before: &[usize]) -> Vec<usize> {
    served(patients).iter().zip(before).map(|(now, before)| now - before).collect()
}

#[test]
fn a_priority_gives_away_what_it_cannot_take() {
    with_shards(&[1, 4], |shards| {
        let (a, b, c) = (Patient::new("a"), Patient::new("b"), Patient::new("c"));
        let all = [&a, &b, &c];
        let proxy = setup(&all, QUICK)
            .seats(&["", "", "priority: 7"])
            .shards(&format!("count: {shards}"))
            .start();
        for patient in all {
            await_state(&proxy, patient, 1.0);
        }
        ask(&proxy, 40);
        assert_eq!(served(&all), [20, 20, 0]);
        // Half of them bear 70 %: 120 of 400, give or take seven deviations.
        a.say(500);
        await_state(&proxy, &a, 0.0);
        let before = served(&all);
        ask(&proxy, 400);
        let spilt = since(&all, &before);
        assert!(spilt[0] == 0 && (56..=184).contains(&spilt[2]), "{spilt:?}");
        b.say(500);
        await_state(&proxy, &b, 0.0);
        let before = served(&all);
        ask(&proxy, 40);
        assert_eq!(since(&all, &before), [0, 0, 40]);
        assert_eq!(proxy.metric("outrigger_cluster_panic", &[]), 0.0, "one can take all");
        c.say(500);
        await_state(&proxy, &c, 0.0);
        let before = served(&all);
        ask(&proxy, 100);
        assert!(since(&all, &before).iter().all(|count| *count > 0), "rather all than none");
        assert_eq!(proxy.metric("outrigger_cluster_panic", &[]), 1.0);
    });
}

/// An open breaker counts as much as a check, and the first priority comes back with its probe.
#[test]
fn a_priority_behind_breakers_is_left_and_found_again() {
    with_shards(&[1, 4], |shards| {
        let (first, second) = (Gate::new(), Origin::named("second"));
        first.fail();
        let proxy = Setup::to(&[first.origin(), &second])
            .seats(&["", "priority: 1"])
            .shards(&format!("count: {shards}"))
            .cluster(
                "breaker: {consecutive_failures: 2, open_time: 300ms, ramp: 0s, max_ejected: 1}",
            )
            .start();
        let mut client = proxy.client();
        eventually("the second is used", || client.get("/").text() == "second");
        assert_eq!(first.arrived(), 2);
        first.heal();
        // The probe's answer comes before the home's verdict on it.
        eventually("the first is used again", || (0..20).all(|_| client.get("/").text() == "ok"));
    });
}

const STANDING_IN: &str = "name: reserve, endpoints: ['{}']";

fn reserve(origin: &Origin) -> String {
    STANDING_IN.replace("{}", &origin.address().to_string())
}

#[test]
fn another_cluster_stands_in() {
    let (down, spare, other) = (Patient::new("a"), Origin::named("spare"), Origin::named("other"));
    down.say(500);
    let setup = setup(&[&down], QUICK)
        .cluster("panic_threshold: 0, fallback_cluster: reserve")
        .listener("access_log: {path: '{dir}/access'}")
        .and_cluster_text(&reserve(&spare))
        .and_cluster("other", &other)
        .and_route("match: {prefix: /other}, cluster: app, fallback_cluster: other")
        .one_shard();
    let proxy = setup.start();
    await_state(&proxy, &down, 0.0);
    let before = down.served();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").text(), "spare");
        assert_eq!(proxy.get("/other").text(), "other");
    }
    assert_eq!(down.served(), before);
    assert_eq!(proxy.metric("outrigger_cluster_fallbacks_total", &[]), 20.0);
    eventually("the log says so", || {
        let log = std::fs::read_to_string(proxy.path("access")).unwrap_or_default();
        let names = |cluster: &str| log.matches(&format!("cluster\":\"{cluster}\"")).count();
        names("reserve") == 10 && names("other") == 10
    });
    down.say(200);
    await_state(&proxy, &down, 1.0);
    assert_eq!(proxy.get("/").text(), "a");
}

/// Of breakers, too; a body goes with it; and in a chain, the last one says why not.
#[test]
fn open_breakers_fall_back_and_the_last_one_answers() {
    let (failing, spare) = (Gate::new(), Gate::new());
    failing.fail();
    spare.fail();
    let breaker =
        "breaker: {consecutive_failures: 1, open_time: 1h, max_open_time: 1h, max_ejected: 1}";
    let proxy = failing
        .setup()
        .cluster(&format!("fallback_cluster: reserve, {breaker}"))
        .and_cluster_text(&format!(
            "{}, fallback_cluster: last, {breaker}",
            reserve(spare.origin())
        ))
        .and_cluster_text("name: last, endpoints: []")
        .one_shard()
        .start();
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let told = |answer: &crate::support::Message| {
        (answer.status(), answer.get("x-outrigger-reason").map(str::to_owned))
    };
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 500);
    assert_eq!(client.ask(post).status(), 500, "of the one that stands in");
    assert_eq!((failing.arrived(), spare.arrived()), (1, 1));
    assert_eq!(spare.origin().last_request().body, b"hello");
    assert_eq!(told(&proxy.ask(post)), (503, Some("no-endpoint".into())));
    assert_eq!(told(&client.get("/")), (503, Some("no-endpoint".into())));
    assert_eq!((failing.arrived(), spare.arrived()), (1, 1));
}

/// The breaker of a route is for the cluster that the route names: what another one answers is not its.
#[test]
fn a_routes_breaker_does_not_hear_of_the_one_that_stands_in() {
    let (down, spare) = (Patient::new("a"), Gate::new());
    down.say(500);
    spare.fail();
    let proxy = setup(&[&down], QUICK)
        .cluster(
            "panic_threshold: 0, fallback_cluster: reserve, breaker: {consecutive_failures: 1}",
        )
        .and_cluster_text(&format!(
            "{}, breaker: {{consecutive_failures: 0}}",
            reserve(spare.origin())
        ))
        .route("breaker: true")
        .one_shard()
        .start();
    await_state(&proxy, &down, 0.0);
    let mut client = proxy.client();
    for asked in 1..=10 {
        assert_eq!(client.get("/").status(), 500);
        assert_eq!(spare.arrived(), asked);
    }
    let labels = ["kind=\"route\"", "state=\"closed\""];
    assert_eq!(proxy.metric("outrigger_breaker_state", &labels), 1.0);
}

/// What is only busy is waited for.
#[test]
fn who_is_busy_is_not_stood_in_for() {
    let (busy, spare) = (Gate::shut_from_the_start(), Origin::named("spare"));
    let proxy = busy
        .setup()
        .cluster("fallback_cluster: reserve, limits: {max_requests: 1}")
        .and_cluster_text(&reserve(&spare))
        .one_shard()
        .start();
    let mut crowd = Crowd::connect(&proxy, 3);
    crowd.send(GET);
    eventually("one is in, two wait", || {
        busy.inside() == 1 && proxy.metric("outrigger_requests_pending", &[]) == 2.0
    });
    busy.open();
    crowd.answers().assert_all("200");
    assert!(spare.requests().is_empty());
}

/// A half-open endpoint is tried, and nobody waits for how that ends.
#[test]
fn the_one_that_stands_in_answers_while_a_probe_is_out() {
    let (gate, spare) = (Gate::new(), Origin::named("spare"));
    gate.fail();
    let proxy = gate
        .setup()
        .cluster("fallback_cluster: reserve")
        .cluster("breaker: {consecutive_failures: 1, open_time: 100ms, ramp: 0s, max_ejected: 1}")
        .and_cluster_text(&reserve(&spare))
        .one_shard()
        .start();
    assert_eq!(proxy.get("/").status(), 500);
    gate.heal();
    gate.shut();
    let mut prober = proxy.client();
    let mut other = proxy.client();
    eventually("a probe is out", || {
        let before = spare.requests().len();
        prober.send(GET);
        eventually("it is somewhere", || gate.inside() == 1 || spare.requests().len() > before);
        gate.inside() == 1 || prober.answer().text() != "spare"
    });
    for _ in 0..5 {
        assert_eq!(other.get("/").text(), "spare");
    }
    gate.open();
    assert_eq!(prober.answer().text(), "ok");
    eventually("the first is back", || other.get("/").text() == "ok");
}

#[test]
fn requests_stay_in_their_zone() {
    with_shards(&[1, 4], |shards| {
        let origins: Vec<Origin> = (0..4).map(|_| Origin::named("it")).collect();
        let all: Vec<&Origin> = origins.iter().collect();
        let proxy = Setup::to(&all)
            .section("zone: here")
            .seats(&["zone: here", "zone: here", "zone: there", ""])
            .cluster("zone_aware: {min_cluster_size: 4}, balance: least_request")
            .shards(&format!("count: {shards}"))
            .start();
        ask(&proxy, 40);
        let counts: Vec<usize> = origins.iter().map(|origin| origin.requests().len()).collect();
        assert!(counts[0] + counts[1] == 40 && counts[2..] == [0, 0], "{counts:?}");
        assert_eq!(proxy.metric("outrigger_zone_requests_total", &["zone=\"own\""]), 40.0);
        assert_eq!(proxy.metric("outrigger_zone_requests_total", &["zone=\"other\""]), 0.0);
    });
}

#[test]
fn a_busy_zone_spills_over() {
    let gates: Vec<Gate> = (0..4).map(|_| Gate::shut_from_the_start()).collect();
    let origins: Vec<&Origin> = gates.iter().map(Gate::origin).collect();
    let proxy = Setup::to(&origins)
        .section("zone: here")
        .seats(&["zone: here", "zone: here", "zone: there", "zone: there"])
        .cluster("zone_aware: {min_cluster_size: 2, spill_above: 3}, balance: least_request")
        .listener("timeouts: {header: 0s, idle: 0s}")
        .one_shard()
        .start();
    let mut crowd = Crowd::connect(&proxy, 20);
    let inside = || gates.iter().map(Gate::inside).collect::<Vec<_>>();
    let all = || inside().iter().sum::<usize>();
    for (sent, client) in crowd.0.iter_mut().enumerate() {
        client.send(GET);
        eventually("it is somewhere", || all() == sent + 1);
        if sent < 4 {
            assert_eq!(inside()[2..], [0, 0], "{sent}");
        }
    }
    let counts = inside();
    let (own, others) = (counts[0] + counts[1], counts[2] + counts[3]);
    assert!(own >= 6 && others >= 6, "{counts:?}");
    let metric = |zone: &str| {
        proxy.metric("outrigger_zone_requests_total", &[&format!("zone=\"{zone}\"")]) as usize
    };
    assert_eq!((metric("own"), metric("other")), (own, others));
    gates.iter().for_each(Gate::open);
    crowd.answers().assert_all("200");
}

/// 40 endpoints, 4 shards: a connection for each endpoint, not one for each and shard; and all of
/// them are used.
#[test]
fn slices_share_the_endpoints_of_a_large_cluster() {
    let run = |more: &str| {
        let origins: Vec<Origin> = (0..40).map(|_| Origin::named("it")).collect();
        let all: Vec<&Origin> = origins.iter().collect();
        let proxy = Setup::to(&all)
            .shards("count: 4")
            .listener("timeouts: {header: 0s, idle: 0s}")
            .cluster(&format!("balance: least_request, pool: {{idle_timeout: 1h}}{more}"))
            .start();
        let mut crowds = Crowd::on_each_shard(&proxy, 1);
        // Each shard draws 10 of its endpoints 200 times: that one is missed has a chance of 1e-8.
        for crowd in &mut crowds {
            for _ in 0..200 {
                crowd.ask().assert_all("200");
            }
        }
        let asked = origins.iter().filter(|origin| !origin.requests().is_empty()).count();
        let connections: usize = origins.iter().map(Origin::connections).sum();
        (asked, connections, proxy.metric("outrigger_aperture_endpoints", &[]))
    };
    let aperture = ", aperture: {min_endpoints: 40, min_aperture: 10}";
    let (asked, connections, width) = run(aperture);
    assert_eq!((asked, width), (40, 40.0));
    assert!((40..=60).contains(&connections), "{connections}");
    let (asked, connections, width) = run("");
    assert_eq!((asked, width), (40, 0.0));
    assert!(connections > 120, "{connections}");
}

/// Those that are missing in a slice are made up for.
#[test]
fn a_slice_goes_on_past_the_dead() {
    let patients: Vec<Patient> = (0..12).map(|_| Patient::new("it")).collect();
    let all: Vec<&Patient> = patients.iter().collect();
    let proxy = setup(&all, QUICK)
        .shards("count: 4")
        .cluster("aperture: {min_endpoints: 1, min_aperture: 3}, balance: peak_ewma")
        .start();
    assert_eq!(proxy.metric("outrigger_aperture_endpoints", &[]), 12.0);
    for patient in &all[..6] {
        patient.say(500);
        await_state(&proxy, patient, 0.0);
    }
    let before = served(&all);
    let mut crowds = Crowd::on_each_shard(&proxy, 1);
    for crowd in &mut crowds {
        for _ in 0..50 {
            crowd.ask().assert_all("200");
        }
    }
    let after = since(&all, &before);
    assert!(after[..6].iter().all(|count| *count == 0), "{after:?}");
    assert!(after[6..].iter().all(|count| *count > 0), "{after:?}");
    // Six more for the first shard, three more for the second; none for the others.
    assert_eq!(proxy.metric("outrigger_aperture_endpoints", &[]), 21.0);
}

/// Wherever the connections are, endpoints get the same; here, all on one of four shards, and even.
#[test]
fn shares_are_even_wherever_connections_are() {
    for balance in ["round_robin", "least_request", "random"] {
        for skewed in [true, false] {
            let origins: Vec<Origin> = (0..4).map(|_| Origin::named("it")).collect();
            let all: Vec<&Origin> = origins.iter().collect();
            let proxy = Setup::to(&all)
                .shards("count: 4")
                .listener("timeouts: {header: 0s, idle: 0s}")
                .cluster(&format!("balance: {balance}"))
                .start();
            let mut crowds = match skewed {
                true => vec![Crowd::on_shard(&proxy, 2, 1)],
                false => Crowd::on_each_shard(&proxy, 1),
            };
            for at in 0..800 {
                let among = crowds.len();
                crowds[at % among].ask().assert_all("200");
            }
            // 200 each, and a deviation of 12: six of them.
            let counts: Vec<usize> = origins.iter().map(|origin| origin.requests().len()).collect();
            let fair = counts.iter().all(|count| (127..=273).contains(count));
            assert!(fair, "{balance}, {skewed}: {counts:?}");
        }
    }
}

#[test]
fn a_cluster_that_loses_all_endpoints_keeps_the_last_ones() {
    let (origin, other) = (Origin::named("it"), Origin::named("other"));
    let setup = Setup::new(&origin);
    let none = Setup::at(&[]);
    let proxy = setup.clone().start();
    let kept = || {
        let of = |name: &str| proxy.metric(name, &["cluster=\"app\""]);
        (of("outrigger_cluster_endpoints"), of("outrigger_cluster_endpoints_kept"))
    };
    assert_eq!((proxy.get("/").text(), kept()), ("it", (1.0, 0.0)));
    for _ in 0..2 {
        proxy.reload(&none);
        assert_eq!((proxy.get("/").text(), kept()), ("it", (1.0, 1.0)));
    }
    assert_eq!(proxy.log().matches("no endpoint any more, the last ones stay").count(), 1);
    // A name that has no address is the same.
    proxy.rewrite(&none.yaml().replace("endpoints: []", "endpoints: ['nowhere.invalid:80']"));
    let generation = proxy.metric("outrigger_plan_generation_newest", &[]) as u64 + 1;
    proxy.signal(rustix::process::Signal::HUP);
    proxy.await_generation(generation);
    assert_eq!((proxy.get("/").text(), kept()), ("it", (1.0, 1.0)));
    proxy.reload(&Setup::new(&other));
    assert_eq!((proxy.get("/").text(), kept()), ("other", (1.0, 0.0)));
    // Unless that is meant.
    proxy.reload(&none.clone().cluster("keep_endpoints: false"));
    assert_eq!((proxy.get("/").status(), kept()), (503, (0.0, 0.0)));
}

#[test]
fn a_cluster_may_begin_without_endpoints() {
    let origin = Origin::named("it");
    let proxy = Setup::at(&[]).listener("reason_header: true").start();
    let answer = proxy.get("/");
    assert_eq!((answer.status(), answer.get("x-outrigger-reason")), (503, Some("no-endpoint")));
    assert_eq!(proxy.metric("outrigger_cluster_endpoints_kept", &[]), 0.0);
    proxy.reload(&Setup::new(&origin));
    assert_eq!(proxy.get("/").text(), "it");
}
