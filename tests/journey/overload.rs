//! What is refused so that the rest is answered in time.

use crate::support::{
    Client, Crowd, GET, Gate, Message, Origin, Proxy, Setup, eventually, with_shards,
};

/// Every request waits in the loop for longer than a microsecond. A pause of an interval between two
/// of them would end it.
const ALWAYS: &str = "overload: {queue_target: 0.001ms, interval: 50ms, exempt_paths: [/healthz]}";

/// Reason and status of an answer.
#[track_caller]
fn reason(answer: &Message) -> (u16, &str) {
    (answer.status(), answer.get("x-outrigger-reason").unwrap_or("none"))
}

#[track_caller]
fn overloaded(proxy: &Proxy, client: &mut Client) {
    eventually("it has waited for too long, for an interval", || client.get("/").status() == 503);
    assert!(proxy.metric("outrigger_overloads_total", &[]) >= 1.0);
}

#[test]
fn what_queues_in_the_loop_for_too_long_is_refused() {
    let origin = Origin::named("served");
    let proxy = Setup::new(&origin)
        .one_shard()
        .listener("reason_header: true")
        .section(ALWAYS)
        .and_route("match: {path: /own}, respond: {body: here}")
        .start();
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 200, "one alone is no queue");
    overloaded(&proxy, &mut client);
    eventually("it is refused, and told so", || {
        let answer = client.get("/");
        let told = (answer.get("retry-after"), answer.get("x-envoy-overloaded"));
        reason(&answer) == (503, "overloaded") && told == (Some("1"), Some("true"))
    });
    // The connection goes on, and these are served whatever happens.
    for _ in 0..20 {
        assert_eq!(client.get("/healthz").text(), "served");
        assert_eq!(client.get("/own").text(), "here");
        assert_eq!(proxy.admin("/ready").status(), 200);
    }
    eventually("only exactly this path is exempt", || client.get("/healthz/").status() == 503);
    eventually("all are counted", || proxy.refusals("overloaded") >= 3.0);
    assert!(proxy.metric("outrigger_queue_delay_seconds_count", &[]) > 3.0);
}

/// What came with the request before has not waited in the loop; but it is not better off.
#[test]
fn what_is_pipelined_is_refused_with_the_rest() {
    let origin = Origin::named("served");
    let proxy = Setup::new(&origin).one_shard().section(ALWAYS).start();
    let mut client = proxy.client();
    overloaded(&proxy, &mut client);
    eventually("two are refused", || {
        client.send([GET, GET].concat());
        let statuses = [client.answer().status(), client.answer().status()];
        statuses == [503, 503]
    });
}

#[test]
fn without_a_target_nothing_is_refused() {
    let origin = Origin::named("served");
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    for _ in 0..200 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert_eq!(proxy.metric("outrigger_queue_delay_seconds_count", &[]), 0.0);
    assert_eq!(proxy.metric("outrigger_overloads_total", &[]), 0.0);
}

/// Two may be there, and nobody leaves: whoever waits, waits for too long.
fn crowded(gate: &Gate) -> Proxy {
    gate.setup()
        .one_shard()
        .section("overload: {interval: 10ms, exempt_paths: [/healthz]}")
        .cluster("limits: {max_requests: 1, pending_timeout: 60s, pending_target: 1ms}")
        .start()
}

#[track_caller]
fn await_pending(proxy: &Proxy, count: usize) {
    eventually("so many wait", || proxy.metric("outrigger_requests_pending", &[]) == count as f64);
}

#[test]
fn where_all_wait_for_a_place_for_too_long_nobody_may_join_them() {
    let gate = Gate::shut_from_the_start();
    let proxy = crowded(&gate);
    let mut crowd = Crowd::connect(&proxy, 40);
    crowd.send(GET);
    eventually("one is there", || gate.inside() == 1);
    await_pending(&proxy, 39);
    // One after the other, each after more than a millisecond of waiting.
    for gone in 1..30 {
        std::thread::sleep(std::time::Duration::from_millis(2));
        gate.let_go(1);
        eventually("the next is there", || gate.arrived() == 1 + gone);
    }
    await_pending(&proxy, 10);
    let mut late = proxy.client();
    let answer = late.get("/");
    assert_eq!((reason(&answer), answer.get("retry-after")), ((503, "overloaded"), Some("1")));
    // A health check waits in turn.
    let mut check = proxy.client();
    check.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
    await_pending(&proxy, 11);
    assert_eq!(proxy.metric("outrigger_overloads_total", &[]), 1.0);
    // Those who waited are served, and then all are welcome again.
    gate.open();
    crowd.answers().assert_all("200");
    assert_eq!(check.answer().status(), 200);
    assert_eq!(late.get("/").status(), 200);
    assert_eq!(gate.arrived(), 42);
    assert_eq!(proxy.refusals("overloaded"), 1.0);
}

/// A burst may wait: it is not a queue that stands.
#[test]
fn a_burst_may_wait_for_a_place() {
    let gate = Gate::shut_from_the_start();
    let proxy = crowded(&gate);
    let mut crowd = Crowd::connect(&proxy, 20);
    crowd.send(GET);
    await_pending(&proxy, 19);
    std::thread::sleep(std::time::Duration::from_millis(30));
    let mut late = proxy.client();
    late.send(GET);
    // Nobody has waited to the end yet.
    await_pending(&proxy, 20);
    gate.open();
    crowd.answers().assert_all("200");
    assert_eq!(late.answer().status(), 200);
}

/// No breaker minds failures.
fn control(gate: &Gate, shards: usize, admission: &str) -> Setup {
    let setup = gate.setup().shards(&format!("count: {shards}"));
    setup
        .section("overload: {exempt_paths: [/healthz]}")
        .cluster("breaker: {consecutive_failures: 0, failure_ratio: 0}")
        .cluster(&format!("admission_control: {{{admission}}}"))
}

fn controlled(gate: &Gate, shards: usize, admission: &str) -> Proxy {
    control(gate, shards, admission).start()
}

#[track_caller]
fn await_refusal(client: &mut Client) {
    eventually("one is refused", || reason(&client.get("/")) == (503, "admission-control"));
}

/// Whichever shard has seen them fail.
#[test]
fn a_cluster_that_fails_gets_fewer_requests() {
    with_shards(&[1, 2, 4], |shards| {
        let gate = Gate::new();
        gate.fail();
        let control = "sampling_window: 20s, max_rejection_probability: 0.75";
        let proxy = controlled(&gate, shards, control);
        let mut crowds = Crowd::on_each_shard(&proxy, 1);
        for _ in 0..50 {
            assert_eq!(crowds[0].ask().total(), 1);
        }
        for crowd in &mut crowds {
            await_refusal(&mut crowd.0[0]);
        }
        let mut client = proxy.client();
        let before = gate.arrived();
        let answers: Vec<_> = (0..400).map(|_| client.get("/")).collect();
        let refused: Vec<_> = answers.iter().filter(|it| it.status() == 503).collect();
        assert_eq!(gate.arrived() - before, 400 - refused.len());
        // Three of four, by chance: further off than five standard deviations is none.
        assert!((250..350).contains(&refused.len()), "{} of 400", refused.len());
        assert_eq!(reason(refused[0]), (503, "admission-control"));
        assert_eq!(refused[0].get("retry-after"), Some("1"));
        for _ in 0..20 {
            assert_eq!(client.get("/healthz").status(), 500, "it is exempt");
        }
        // What was refused is no request of the cluster.
        let told = |name: &str, labels: &[&str]| proxy.metric(name, labels);
        let failure = ["cluster=\"app\"", "result=\"failure\""];
        eventually("all are counted", || {
            told("outrigger_admission_requests_total", &failure) == gate.arrived() as f64
        });
        let rejections = told("outrigger_admission_rejections_total", &["cluster=\"app\""]);
        assert_eq!(rejections, proxy.refusals("admission-control"));
    });
}

/// Who is refused for load has got nothing for a token, and does not wait for one.
#[test]
fn what_is_refused_for_load_costs_no_token() {
    with_shards(&[1, 2, 4], |shards| {
        let gate = Gate::new();
        gate.fail();
        let setup = control(&gate, shards, "sampling_window: 20s");
        let limit = "rate_limits: [{name: few, requests: 10000, per: 1h, home_timeout: 60s}]";
        let proxy = setup.section(limit).route("rate_limits: [few]").start();
        let mut client = proxy.client();
        await_refusal(&mut client);
        Crowd::connect(&proxy, 40).ask();
        Crowd::connect(&proxy, 40).ask();
        let refused = proxy.refusals("admission-control");
        assert!(refused >= 20.0, "{refused}");
        let admitted = proxy.metric("outrigger_rate_limit_admitted_total", &["limit=\"few\""]);
        assert_eq!(admitted, gate.arrived() as f64, "{shards} shards");
    });
}

#[test]
fn when_the_window_is_over_all_are_welcome() {
    let gate = Gate::new();
    gate.fail();
    let proxy = controlled(&gate, 2, "sampling_window: 1s");
    let mut client = proxy.client();
    await_refusal(&mut client);
    gate.heal();
    let mut in_a_row = 0;
    eventually("it is forgotten", || {
        in_a_row = if client.get("/").status() == 200 { in_a_row + 1 } else { 0 };
        in_a_row == 100
    });
}

/// Our own refusals say nothing about the cluster, nor is a low rate a reason.
#[test]
fn what_says_nothing_about_the_cluster_is_not_counted() {
    let gate = Gate::shut_from_the_start();
    let proxy = gate
        .setup()
        .one_shard()
        .cluster("limits: {max_requests: 1, max_pending: 0}")
        .cluster("admission_control: {sampling_window: 1s}")
        .start();
    let mut first = proxy.client();
    first.send(GET);
    eventually("it is there", || gate.inside() == 1);
    let mut client = proxy.client();
    for _ in 0..100 {
        assert_eq!(reason(&client.get("/")), (503, "limit-requests"));
    }
    gate.open();
    assert_eq!(first.answer().status(), 200);
    let requests = || proxy.metric("outrigger_admission_requests_total", &["cluster=\"app\""]);
    eventually("the one that was answered counts", || requests() == 1.0);
}

fn counted(proxy: &Proxy, cluster: &str, result: &str) -> f64 {
    let labels = [format!("cluster=\"{cluster}\""), format!("result=\"{result}\"")];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    proxy.metric("outrigger_admission_requests_total", &labels)
}

/// Whose time went by in our queue has not failed at the cluster.
#[test]
fn who_has_waited_for_a_place_all_the_time_is_not_counted() {
    let gate = Gate::shut_from_the_start();
    let proxy = gate
        .setup()
        .one_shard()
        .cluster("breaker: {consecutive_failures: 0, failure_ratio: 0}")
        .cluster("limits: {max_requests: 1, pending_timeout: 60s}")
        .cluster("admission_control: {sampling_window: 60s, max_rejection_probability: 0.01}")
        .route("timeouts: {total: 300ms}")
        .start();
    let mut crowd = Crowd::connect(&proxy, 30);
    let answers = crowd.ask();
    assert!(answers.of("504 timeout-total") >= 29, "{answers:?}");
    eventually("all have ended", || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0);
    let failures = counted(&proxy, "app", "failure");
    assert!(failures <= gate.arrived() as f64, "{failures} of {}", gate.arrived());
}

/// What another cluster has answered says something about that one.
#[test]
fn each_cluster_is_judged_by_its_own_answers() {
    let gate = Gate::new();
    let reserve = Origin::named("reserve");
    let proxy = gate
        .setup()
        .one_shard()
        .cluster("breaker: {consecutive_failures: 1, open_time: 60s}, fallback_cluster: reserve")
        .cluster("admission_control: {sampling_window: 60s, max_rejection_probability: 0.01}")
        .and_cluster_text(&format!(
            "name: reserve, endpoints: ['{}'], admission_control: {{sampling_window: 60s}}",
            reserve.address()
        ))
        .start();
    gate.fail();
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 500);
    eventually("the other one stands in", || client.get("/").text() == "reserve");
    for _ in 0..20 {
        client.get("/");
    }
    eventually("all are counted", || counted(&proxy, "reserve", "success") >= 20.0);
    assert_eq!(counted(&proxy, "app", "success"), 0.0);
    assert_eq!(counted(&proxy, "app", "failure"), 1.0);
}

/// Who stands in for another cluster is not to be overrun by what that one gets.
#[test]
fn a_cluster_that_stands_in_gets_fewer_requests_as_well() {
    let (gate, reserve) = (Gate::new(), Gate::new());
    let proxy = gate
        .setup()
        .one_shard()
        .section("overload: {exempt_paths: [/healthz]}")
        .cluster("breaker: {consecutive_failures: 1, open_time: 60s}, fallback_cluster: reserve")
        .and_cluster_text(&format!(
            "name: reserve, endpoints: ['{}'], admission_control: {{sampling_window: 20s}}, \
             breaker: {{consecutive_failures: 0, failure_ratio: 0}}",
            reserve.origin().address()
        ))
        .start();
    gate.fail();
    reserve.fail();
    let mut client = proxy.client();
    await_refusal(&mut client);
    let before = reserve.arrived();
    for _ in 0..20 {
        assert_eq!(client.get("/healthz").status(), 500, "it is exempt");
    }
    assert_eq!((reserve.arrived() - before, gate.arrived()), (20, 1));
}

#[test]
fn below_a_rate_nothing_is_refused() {
    let gate = Gate::new();
    gate.fail();
    let proxy = controlled(&gate, 1, "sampling_window: 1s, rps_threshold: 1000000");
    let mut client = proxy.client();
    for _ in 0..500 {
        assert_eq!(client.get("/").status(), 500);
    }
}

/// The limit of `app` follows what is measured, every 10 ms.
fn adaptive(gate: &Gate, shards: usize, limits: &str) -> Setup {
    gate.setup()
        .shards(&format!("count: {shards}"))
        .cluster("breaker: {consecutive_failures: 0, failure_ratio: 0}")
        .cluster(&format!("limits: {{pending_timeout: 60s, {limits}}}"))
        .cluster(
            "adaptive_concurrency: {update_interval: 10ms, min_rtt_interval: 1h, \
             min_rtt_requests: 20, min_rtt_buffer: 1, min_concurrency: 3}",
        )
}

fn concurrency(proxy: &Proxy, what: &str) -> f64 {
    proxy.metric(&format!("outrigger_concurrency_{what}"), &["cluster=\"app\""])
}

#[test]
fn until_the_shortest_time_is_known_few_are_in_flight() {
    with_shards(&[1, 2, 4], |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = adaptive(&gate, shards, "max_requests: 30").start();
        let mut crowd = Crowd::connect(&proxy, 40);
        crowd.send(GET);
        for gone in 0..15 {
            eventually("one follows another", || gate.arrived() == 3 + gone);
            assert_eq!(gate.inside(), 3, "{shards} shards");
            gate.let_go(1);
        }
        assert_eq!((concurrency(&proxy, "limit"), concurrency(&proxy, "measuring")), (3.0, 1.0));
        gate.open();
        crowd.answers().assert_all("200");
        // The rest of them were enough.
        eventually("it is measured", || concurrency(&proxy, "measuring") == 0.0);
        assert!(concurrency(&proxy, "min_rtt_seconds") > 0.0);
    });
}

/// As long as it is used, and answers are as quick as they can be; and never beyond `max_requests`.
#[test]
fn the_limit_grows_up_to_max_requests() {
    with_shards(&[1, 2, 4], |shards| {
        let gate = Gate::new();
        // They would have to take twice as long on a busy machine for a lower limit.
        gate.take(50);
        let setup = adaptive(&gate, shards, "max_requests: 12, max_connections: 64");
        let proxy = setup.start();
        let mut crowd = Crowd::connect(&proxy, 40);
        eventually("it is as large as may be", || {
            crowd.ask().assert_all("200");
            concurrency(&proxy, "limit") == 12.0
        });
        assert!(gate.peak() <= 12, "{}", gate.peak());
    });
}

/// Answers that take longer and longer bring it down to its least, where it is measured anew; what is
/// in flight is never more than was lent.
#[test]
fn the_limit_falls_where_answers_take_longer() {
    with_shards(&[1, 2], |shards| {
        let gate = Gate::new();
        let proxy = adaptive(&gate, shards, "max_requests: 30").start();
        let mut crowd = Crowd::connect(&proxy, 12);
        eventually("it is measured", || {
            crowd.ask().assert_all("200");
            concurrency(&proxy, "measuring") == 0.0
        });
        // Far beyond anything that was measured at first, on however busy a machine.
        gate.take(150);
        eventually("it is measured anew", || {
            crowd.ask().assert_all("200");
            concurrency(&proxy, "min_rtt_seconds") > 0.14
        });
        assert!(gate.peak() <= 30, "{}", gate.peak());
    });
}

/// Both ways, with requests in flight.
#[test]
fn a_reload_brings_it_and_takes_it_away() {
    with_shards(&[1, 2], |shards| {
        let gate = Gate::shut_from_the_start();
        let plain = gate
            .setup()
            .shards(&format!("count: {shards}"))
            .cluster("limits: {pending_timeout: 60s, max_requests: 10}");
        let proxy = plain.clone().start();
        let mut crowd = Crowd::connect(&proxy, 40);
        crowd.send(GET);
        eventually("as many as may", || gate.inside() == 10);
        proxy.reload(&adaptive(&gate, shards, "max_requests: 10"));
        proxy.await_generation(2);
        gate.let_go(7);
        eventually("seven have left, and nobody follows", || gate.inside() == 3);
        gate.let_go(1);
        eventually("one follows", || gate.arrived() == 11);
        assert_eq!(gate.inside(), 3);
        proxy.reload(&plain);
        proxy.await_generation(3);
        eventually("as many as may", || gate.inside() == 10);
        gate.open();
        crowd.answers().assert_all("200");
        assert_eq!((gate.peak(), gate.arrived()), (10, 40));
    });
}
