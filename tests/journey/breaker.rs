//! Endpoints that fail get no requests, on every shard; a counted few try them again.

use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

use crate::support::gate::{FAILING, HELD};
use crate::support::{
    Client, Crowd, GET, Gate, Hammer, OK, Origin, Proxy, Setup, eventually, pause, with_shards,
};

const SHARDS: [usize; 4] = [1, 2, 4, 8];

/// Opens for longer than any test takes.
const FOR_GOOD: &str = "open_time: 10m, max_open_time: 10m";

/// Opens for a short time, always the same (but for the jitter), and comes back at once.
const BRIEFLY: &str = "open_time: 300ms, max_open_time: 300ms, ramp: 0s";

fn guarded(gate: &Gate, shards: usize, breaker: &str) -> Setup {
    gate.setup()
        .shards(&format!("count: {shards}"))
        .cluster(&format!("breaker: {{{breaker}}}, limits: {{pending_timeout: 60s}}"))
}

/// Every shard refuses; nothing reaches the origin any more.
#[track_caller]
fn assert_open(proxy: &Proxy, arrived: impl Fn() -> usize) {
    let shards = proxy.metric("outrigger_shards", &[]) as usize;
    let mut crowd = Crowd::connect(proxy, 3 * shards);
    eventually("every shard refuses", || crowd.ask().of("503 breaker-open") == crowd.0.len());
    let before = arrived();
    for _ in 0..5 {
        crowd.ask().assert_all("503 breaker-open");
    }
    assert_eq!(arrived(), before, "an open endpoint gets nothing");
    assert_ne!(proxy.metric("outrigger_breaker_transitions_total", &[]), 0.0);
}

/// Requests until the breaker is open everywhere.
#[track_caller]
fn trip(proxy: &Proxy, gate: &Gate) {
    gate.open();
    gate.fail();
    let shards = proxy.metric("outrigger_shards", &[]) as usize;
    let mut crowd = Crowd::connect(proxy, 2 * shards);
    eventually("it opens", || crowd.ask().of("503 breaker-open") == crowd.0.len());
    eventually("nothing is left inside", || gate.inside() == 0);
}

// ---- What opens it ----------------------------------------------------------------------------

#[test]
fn failures_in_a_row_open_it_on_every_shard() {
    with_shards(&SHARDS, |shards| {
        for answer in ["500 Oh", "503 Busy", "599 Odd"] {
            let gate = Gate::new();
            gate.answer_with(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n"));
            let proxy = guarded(&gate, shards, FOR_GOOD).start();
            assert_open(&proxy, || gate.arrived());
            assert!(gate.arrived() >= 5);
        }
    });
}

/// One after the other, on one connection: the sixth is refused.
#[test]
fn five_in_a_row_are_enough_and_four_are_not() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        gate.fail();
        let proxy = guarded(&gate, shards, &format!("failure_ratio: 0, {FOR_GOOD}")).start();
        let mut client = proxy.client();
        for _ in 0..3 {
            (0..4).for_each(|_| assert_eq!(client.get("/").status(), 500));
            gate.heal();
            assert_eq!(client.get("/").status(), 200);
            gate.fail();
        }
        (0..5).for_each(|_| assert_eq!(client.get("/").status(), 500));
        // Its own shard knows at once.
        assert_eq!(client.get("/").get("x-outrigger-reason"), Some("breaker-open"));
        assert_eq!(gate.arrived(), 20);
        assert_open(&proxy, || gate.arrived());
    });
}

/// No shard has seen five.
#[test]
fn failures_of_several_shards_add_up() {
    with_shards(&[4, 8], |shards| {
        let gate = Gate::new();
        gate.fail();
        let proxy = guarded(&gate, shards, &format!("failure_ratio: 0, {FOR_GOOD}")).start();
        let mut crowds = Crowd::on_each_shard(&proxy, 1);
        // Two of each of three shards: six, two of which are too many.
        for crowd in crowds.iter_mut().take(3) {
            crowd.ask().assert_all("500");
        }
        for crowd in crowds.iter_mut().take(2) {
            crowd.ask().assert_all("500");
        }
        assert_eq!(gate.arrived(), 5);
        assert_open(&proxy, || gate.arrived());
        assert!(gate.arrived() < 5 * shards, "no shard has to find out by itself");
    });
}

#[test]
fn resets_open_it() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        gate.reset();
        let proxy = guarded(&gate, shards, FOR_GOOD).start();
        assert_open(&proxy, || gate.arrived());
    });
}

#[test]
fn malformed_answers_open_it() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        gate.answer_with("nonsense\r\n\r\n");
        let proxy = guarded(&gate, shards, FOR_GOOD).start();
        assert_open(&proxy, || gate.arrived());
    });
}

#[test]
fn answers_that_are_too_late_open_it() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = guarded(&gate, shards, FOR_GOOD).route("timeouts: {answer: 100ms}").start();
        assert_open(&proxy, || gate.arrived());
    });
}

#[test]
fn refused_connects_open_it() {
    with_shards(&SHARDS, |shards| {
        // Bound, and not listening: the kernel refuses.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let proxy = Setup::at(&[socket.local_addr().unwrap().as_socket().unwrap()])
            .listener("reason_header: true")
            .shards(&format!("count: {shards}"))
            .cluster(&format!("breaker: {{{FOR_GOOD}}}"))
            .start();
        let tried = || proxy.metric("outrigger_upstream_connect_failures_total", &[]) as usize;
        assert_open(&proxy, tried);
        assert!(tried() >= 5);
    });
}

/// Every second one: no five in a row, but one half of twenty.
#[test]
fn a_share_of_failures_opens_it() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let breaker = "consecutive_failures: 0, failure_ratio: 0.5, min_requests: 20";
        let proxy = guarded(&gate, shards, &format!("{breaker}, {FOR_GOOD}")).start();
        let mut client = proxy.client();
        for _ in 0..10 {
            assert_eq!(client.get("/").status(), 200);
            assert_eq!(client.get(FAILING).status(), 500);
        }
        // What still comes before all have been told must not bring the share down again.
        gate.fail();
        assert_open(&proxy, || gate.arrived());
        // With one shard there is nobody else who could have asked meanwhile.
        assert!(shards > 1 || gate.arrived() == 20, "{}", gate.arrived());
    });
}

/// The same, of requests that are spread over the shards.
#[test]
fn a_share_of_failures_on_all_shards_together_opens_it() {
    with_shards(&[2, 4, 8], |shards| {
        let gate = Gate::new();
        let breaker = "consecutive_failures: 0, failure_ratio: 0.5, min_requests: 40";
        let proxy = guarded(&gate, shards, &format!("{breaker}, {FOR_GOOD}")).start();
        let mut crowds = Crowd::on_each_shard(&proxy, 1);
        // Three of four fail, and each shard has fewer than are needed.
        for round in 0..40 / shards {
            for crowd in &mut crowds {
                let (path, status) = if round % 4 == 0 { ("/", 200) } else { (FAILING, 500) };
                assert_eq!(crowd.0[0].get(path).status(), status);
            }
        }
        eventually("every shard refuses", || {
            let refuses = |crowd: &mut Crowd| crowd.0[0].get(FAILING).status() == 503;
            crowds.iter_mut().filter_map(|crowd| refuses(crowd).then_some(())).count() == shards
        });
        assert!(gate.arrived() < 80, "{}: a shard may have had forty alone", gate.arrived());
    });
}

#[test]
fn fewer_than_the_minimum_open_nothing() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        gate.fail();
        let breaker = "consecutive_failures: 0, failure_ratio: 0.5, min_requests: 20";
        let proxy = guarded(&gate, shards, &format!("{breaker}, {FOR_GOOD}")).start();
        Crowd::connect(&proxy, 19).ask().assert_all("500");
        pause(100);
        assert_eq!(proxy.get("/").status(), 500, "the twentieth");
        assert_open(&proxy, || gate.arrived());
    });
}

#[test]
fn slow_answers_open_it() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let breaker = "max_latency: 20ms, slow_ratio: 0.5, min_requests: 16";
        let proxy = guarded(&gate, shards, &format!("{breaker}, {FOR_GOOD}")).start();
        gate.take(40);
        let mut crowd = Crowd::connect(&proxy, 16);
        crowd.ask().assert_all("200");
        assert_open(&proxy, || gate.arrived());
        assert!(gate.arrived() >= 16);
    });
}

// ---- What never counts ------------------------------------------------------------------------

/// Nothing of this has opened it.
#[track_caller]
fn assert_closed(proxy: &Proxy, gate: &Gate) {
    gate.open();
    gate.heal();
    let before = gate.arrived();
    let mut crowd = Crowd::connect(proxy, 24);
    crowd.ask().assert_all("200");
    assert_eq!(gate.arrived(), before + 24);
    assert_eq!(proxy.refusals("breaker-open"), 0.0);
    assert_eq!(proxy.metric("outrigger_breaker_transitions_total", &[]), 0.0);
}

/// Any failure that counts would open it.
const TOUCHY: &str = "consecutive_failures: 1, open_time: 10m, max_open_time: 10m";

#[test]
fn clients_that_leave_do_not_count() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = guarded(&gate, shards, TOUCHY).start();
        for request in [GET, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\nsome"] {
            for reset in [false, true] {
                let mut crowd = Crowd::connect(&proxy, 20);
                crowd.send(request);
                eventually("all are under way", || {
                    proxy.metric("outrigger_upstream_pool_connections", &["active"]) == 20.0
                });
                for client in crowd.0 {
                    if reset {
                        client.into_wire().reset();
                    }
                }
                eventually("all is over", || {
                    proxy.metric("outrigger_requests_in_flight", &[]) == 0.0
                });
            }
        }
        assert_closed(&proxy, &gate);
    });
}

#[test]
fn what_we_refuse_ourselves_does_not_count() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = gate
            .setup()
            .shards(&format!("count: {shards}"))
            .cluster(&format!("breaker: {{{TOUCHY}}}"))
            .cluster("limits: {max_requests: 1, max_pending: 1, pending_timeout: 1s}")
            .route("body_bytes_max: 10")
            .start();
        let mut first = proxy.client();
        first.send(GET);
        eventually("it is there", || gate.inside() == 1);
        let answers = Crowd::connect(&proxy, 30).ask();
        let refused = answers.of("503 limit-pending") + answers.of("503 timeout-pending");
        assert_eq!(refused, 30, "{answers:?}");
        gate.open();
        assert_eq!(first.answer().status(), 200);
        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (request, status) in [
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world".into(), 413),
            (format!("{chunked}b\r\nhello world\r\n0\r\n\r\n"), 413),
            (format!("{chunked}nonsense\r\n"), 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".into(), 400),
        ] {
            for _ in 0..10 {
                assert_eq!(proxy.ask(&request).status(), status, "{request}");
            }
        }
        for _ in 0..24 {
            assert_eq!(proxy.get("/").status(), 200);
        }
        assert_eq!(proxy.refusals("breaker-open"), 0.0);
    });
}

#[test]
fn a_5xx_counts_only_if_it_shall() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        gate.fail();
        let proxy = guarded(&gate, shards, &format!("fail_on_5xx: false, {TOUCHY}")).start();
        let mut crowd = Crowd::connect(&proxy, 40);
        crowd.ask().assert_all("500");
        assert_closed(&proxy, &gate);
        gate.reset();
        assert_open(&proxy, || gate.arrived());
    });
}

// ---- How it comes back ------------------------------------------------------------------------

/// Clients on all shards ask an open endpoint all the time; in each half-open period it gets
/// exactly as many requests as there are probes. (A shard sends one at a time.)
#[test]
fn a_half_open_endpoint_gets_exactly_its_probes() {
    with_shards(&SHARDS, |shards| {
        for probes in [1, 3] {
            let gate = Gate::new();
            let proxy = guarded(&gate, shards, &format!("probes: {probes}, {BRIEFLY}")).start();
            trip(&proxy, &gate);
            gate.shut();
            let at_once = probes.min(shards);
            let mut arrived = gate.arrived();
            gate.forget_peak();
            let hammer = Hammer::start(proxy.address(), 3 * shards);
            for _ in 0..3 {
                eventually("the probes come", || gate.arrived() == arrived + at_once);
                pause(100);
                assert_eq!(gate.inside(), at_once, "nobody else");
                // The first failure opens it again; but the others are still out there.
                gate.let_go(1);
                if at_once > 1 {
                    pause(400);
                    assert_eq!(gate.arrived(), arrived + at_once, "the probes of two periods");
                    gate.let_go(at_once - 1);
                }
                arrived += at_once;
                eventually("all have left", || gate.left() == arrived);
            }
            // Now all of them succeed, and everybody is let in: not before.
            gate.heal();
            for done in 0..probes {
                let expected = arrived + probes.min(done + at_once);
                eventually("the next probe comes", || gate.arrived() == expected);
                pause(50);
                assert_eq!(gate.arrived(), expected, "nobody else");
                gate.let_go(1);
            }
            eventually("it is closed", || gate.inside() > at_once);
            gate.open();
            let answers = hammer.stop();
            let failures = answers.of("500");
            assert_eq!(failures, 3 * at_once, "{answers:?}");
            assert_eq!(
                answers.total(),
                answers.of("200") + failures + answers.of("503 breaker-open"),
                "{answers:?}"
            );
        }
    });
}

/// A probe that hangs is ended in its time, and no other comes before.
#[test]
fn a_probe_that_hangs_is_followed_by_the_next_period() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, &format!("probe_timeout: 200ms, {BRIEFLY}")).start();
        trip(&proxy, &gate);
        gate.shut();
        gate.forget_peak();
        let (arrived, gone) = (gate.arrived(), gate.gone());
        let hammer = Hammer::start(proxy.address(), 3 * shards);
        for period in 1..=3 {
            eventually("a probe comes", || gate.arrived() == arrived + period);
            eventually("it is given up", || gate.gone() == gone + period);
        }
        assert_eq!(gate.peak(), 1, "one at a time");
        gate.open();
        gate.heal();
        eventually("it comes back", || hammer.answers().of("200") > 50);
        let answers = hammer.stop();
        assert_eq!(answers.of("504 timeout-answer"), 3, "{answers:?}");
    });
}

/// A probe is out until it is answered, whether or not somebody waits for it.
#[test]
fn a_probe_outlives_its_client() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, BRIEFLY).start();
        trip(&proxy, &gate);
        gate.shut();
        let (arrived, gone) = (gate.arrived(), gate.gone());
        let mut clients: Vec<Client> = Vec::new();
        eventually("a probe comes", || {
            let mut client = proxy.client();
            client.send(GET);
            clients.push(client);
            gate.inside() == 1
        });
        clients.into_iter().for_each(|client| client.into_wire().reset());
        let hammer = Hammer::start(proxy.address(), 2 * shards);
        pause(500);
        assert_eq!((gate.inside(), gate.gone()), (1, gone), "it is still out there");
        assert_eq!(gate.arrived(), arrived + 1, "and nobody else");
        gate.heal();
        gate.let_go(1);
        eventually("it has closed the breaker", || gate.inside() > 0);
        gate.open();
        assert!(hammer.stop().of("200") > 0);
    });
}

/// Whatever an old request brings, it says nothing about an endpoint that failed since.
#[test]
fn a_success_from_before_the_trip_closes_nothing() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, FOR_GOOD).start();
        let mut old = Crowd::connect(&proxy, 2 * shards);
        old.send(format!("GET {HELD} HTTP/1.1\r\nHost: a\r\n\r\n"));
        eventually("they are there", || gate.inside() == 2 * shards);
        gate.fail();
        assert_open(&proxy, || gate.arrived());
        gate.heal();
        gate.let_held_go(2 * shards);
        old.answers().assert_all("200");
        pause(50);
        assert_open(&proxy, || gate.arrived());
    });
}

/// Nor does it end a half-open period.
#[test]
fn a_success_from_before_the_trip_is_no_probe() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, BRIEFLY).start();
        let mut old = Crowd::connect(&proxy, 2 * shards);
        old.send(format!("GET {HELD} HTTP/1.1\r\nHost: a\r\n\r\n"));
        eventually("they are there", || gate.inside() == 2 * shards);
        gate.fail();
        let mut crowd = Crowd::connect(&proxy, 2 * shards);
        // On every shard: one that does not know yet would let another in.
        eventually("it opens", || crowd.ask().of("503 breaker-open") == crowd.0.len());
        gate.heal();
        gate.shut();
        let arrived = gate.arrived();
        let hammer = Hammer::start(proxy.address(), 2 * shards);
        eventually("the probe comes", || gate.inside() == 2 * shards + 1);
        gate.let_held_go(2 * shards);
        old.answers().assert_all("200");
        pause(300);
        assert_eq!(gate.arrived(), arrived + 1, "nobody is let in for that");
        gate.open();
        assert!(hammer.stop().of("200") > 0);
    });
}

/// Nor does a failure from before the trip open it once more.
#[test]
fn a_failure_from_before_the_trip_opens_nothing() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, BRIEFLY).start();
        let mut old = Crowd::connect(&proxy, 6 * shards);
        old.send(format!("GET {HELD} HTTP/1.1\r\nHost: a\r\n\r\n"));
        eventually("they are there", || gate.inside() == 6 * shards);
        gate.fail();
        let mut crowd = Crowd::connect(&proxy, 3 * shards);
        eventually("it opens", || crowd.ask().of("503 breaker-open") > 0);
        gate.heal();
        eventually("it comes back", || crowd.ask().of("200") == crowd.0.len());
        let transitions = || proxy.metric("outrigger_breaker_transitions_total", &[]);
        // Open, half-open, recovering, closed: and again, where a probe was too early.
        eventually("it is closed", || transitions() >= 4.0);
        pause(50);
        let before = transitions();
        gate.fail();
        gate.let_held_go(6 * shards);
        old.answers().assert_all("500");
        gate.heal();
        pause(50);
        crowd.ask().assert_all("200");
        assert_eq!(transitions(), before);
    });
}

#[test]
fn an_endpoint_with_few_requests_comes_back() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, "open_time: 100ms, ramp: 0s").start();
        trip(&proxy, &gate);
        gate.heal();
        for _ in 0..5 {
            // Longer than it is open, even if the trip was followed by a probe that failed.
            pause(500);
            assert_eq!(proxy.get("/").status(), 200);
        }
    });
}

/// A probe has a connection of its own; the one that is kept must not be in its way.
/// Where nobody may wait, somebody asks all the same.
#[test]
fn an_endpoint_that_nobody_may_wait_for_comes_back() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = gate
            .setup()
            .shards(&format!("count: {shards}"))
            .cluster(&format!("breaker: {{{BRIEFLY}}}, limits: {{max_pending: 0}}"))
            .start();
        trip(&proxy, &gate);
        gate.heal();
        let mut client = proxy.client();
        eventually("it comes back", || client.get("/").status() == 200);
        let mut crowd = Crowd::connect(&proxy, 3 * shards);
        eventually("everywhere", || crowd.ask().of("200") == crowd.0.len());
    });
}

#[test]
fn a_probe_finds_a_connection_where_there_is_only_one() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, BRIEFLY)
            .cluster("pool: {idle_timeout: 60s}")
            .and_cluster_text(&format!(
                "name: narrow, endpoints: ['{}'], pool: {{idle_timeout: 60s}}, \
                 limits: {{max_connections: 1, pending_timeout: 60s}}, breaker: {{{BRIEFLY}}}",
                gate.origin().address()
            ))
            .and_route("match: {prefix: /narrow}, cluster: narrow")
            .start();
        gate.fail();
        let mut client = proxy.client();
        eventually("it opens", || {
            client.get("/narrow").get("x-outrigger-reason") == Some("breaker-open")
        });
        gate.heal();
        eventually("it comes back", || client.get("/narrow").status() == 200);
    });
}

// ---- Several endpoints ------------------------------------------------------------------------

/// Two endpoints, one of which fails; everybody else goes to the other.
#[test]
fn the_good_endpoint_takes_over_and_the_bad_one_comes_back() {
    with_shards(&SHARDS, |shards| {
        let (good, bad) = (Gate::new(), Gate::new());
        bad.fail();
        let proxy = Setup::to(&[good.origin(), bad.origin()])
            .listener("reason_header: true")
            .shards(&format!("count: {shards}"))
            .cluster(&format!("breaker: {{{BRIEFLY}}}"))
            .start();
        let mut crowd = Crowd::connect(&proxy, 3 * shards);
        let transitions = || proxy.metric("outrigger_breaker_transitions_total", &[]);
        eventually("it opens", || {
            crowd.ask();
            transitions() > 0.0
        });
        // Each client that sees a failure was a probe: one in each period.
        bad.shut();
        eventually("nothing is left there", || {
            bad.let_go(bad.inside());
            bad.inside() == 0
        });
        let arrived = bad.arrived();
        let hammer = Hammer::start(proxy.address(), 3 * shards);
        for period in 1..=3 {
            eventually("a probe comes", || bad.arrived() == arrived + period);
            pause(50);
            assert_eq!(bad.inside(), 1);
            bad.let_go(1);
        }
        eventually("the last one is answered", || hammer.answers().of("500") == 3);
        bad.heal();
        bad.open();
        eventually("it has its share again", || bad.arrived() > arrived + 50);
        let answers = hammer.stop();
        assert_eq!(answers.of("500"), 3, "{answers:?}");
        assert_eq!(answers.of("200") + 3, answers.total(), "{answers:?}");
    });
}

#[test]
fn not_all_endpoints_are_taken_out() {
    with_shards(&SHARDS, |shards| {
        let gates = [Gate::new(), Gate::new()];
        gates.iter().for_each(Gate::fail);
        let proxy = Setup::to(&[gates[0].origin(), gates[1].origin()])
            .listener("reason_header: true")
            .shards(&format!("count: {shards}"))
            .cluster(&format!("breaker: {{{FOR_GOOD}}}"))
            .start();
        let mut crowd = Crowd::connect(&proxy, 3 * shards);
        let refused = || proxy.metric("outrigger_breaker_trips_refused_total", &[]);
        eventually("one trips, and the other may not", || {
            crowd.ask();
            refused() > 0.0
        });
        eventually("every shard knows", || crowd.ask().of("500") == crowd.0.len());
        let before = gates.each_ref().map(Gate::arrived);
        for _ in 0..10 {
            // A shard refuses for as long as it waits for an answer to a run of its own.
            let answers = crowd.ask();
            assert_eq!(answers.of("500") + answers.of("503 breaker-open"), answers.total());
        }
        let now = gates.each_ref().map(Gate::arrived);
        let grown = (0..2).filter(|at| now[*at] > before[*at]).count();
        assert_eq!(grown, 1, "{before:?} {now:?}");
        assert_eq!(proxy.metric("outrigger_breaker_transitions_total", &[]), 1.0);
    });
}

// ---- Routes -----------------------------------------------------------------------------------

/// The endpoint is well, but this route's requests fail.
#[test]
fn a_route_has_a_breaker_of_its_own() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, &format!("min_requests: 1000, {FOR_GOOD}"))
            .and_route(format!(
                "name: bad, match: {{prefix: {FAILING}}}, cluster: app, breaker: true"
            ))
            .start();
        let mut client = proxy.client();
        for _ in 0..5 {
            assert_eq!(client.get("/").status(), 200);
            assert_eq!(client.get(FAILING).status(), 500);
            assert_eq!(client.get("/").status(), 200);
        }
        let failing = format!("GET {FAILING} HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut crowd = Crowd::connect(&proxy, 3 * shards);
        // One at a time, each between two that are well: many at once would trip the endpoint too.
        for client in &mut crowd.0 {
            eventually("its shard refuses", || {
                assert_eq!(client.get("/").status(), 200);
                client.get(FAILING).status() == 503
            });
        }
        let before = gate.arrived();
        crowd.send(&failing);
        crowd.answers().assert_all("503 breaker-open");
        assert_eq!(gate.arrived(), before);
        crowd.ask().assert_all("200");
    });
}

#[test]
fn a_routes_breaker_probes_too() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = guarded(&gate, shards, &format!("consecutive_failures: 5, {BRIEFLY}"))
            .route("breaker: true")
            .start();
        trip(&proxy, &gate);
        gate.shut();
        gate.heal();
        gate.forget_peak();
        let arrived = gate.arrived();
        let hammer = Hammer::start(proxy.address(), 3 * shards);
        eventually("a probe comes", || gate.arrived() == arrived + 1);
        pause(200);
        assert_eq!(gate.arrived(), arrived + 1);
        gate.let_go(1);
        eventually("both are closed", || gate.inside() > 1);
        gate.open();
        let answers = hammer.stop();
        assert_eq!(answers.of("200") + answers.of("503 breaker-open"), answers.total());
    });
}

// ---- Reloads ----------------------------------------------------------------------------------

#[test]
fn a_reload_leaves_an_open_breaker_open() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        gate.fail();
        let setup = guarded(&gate, shards, FOR_GOOD);
        let proxy = setup.clone().start();
        assert_open(&proxy, || gate.arrived());
        gate.heal();
        proxy.reload(&setup.route("response_headers: {set: {x-plan: two}}"));
        assert_open(&proxy, || gate.arrived());
    });
}

/// Those that wait to be a probe of a route go on without its breaker.
#[test]
fn a_reload_takes_a_routes_breaker_away_while_requests_wait_for_it() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let setup = guarded(&gate, shards, BRIEFLY);
        let proxy = setup.clone().route("breaker: true").start();
        trip(&proxy, &gate);
        gate.shut();
        gate.heal();
        let arrived = gate.arrived();
        let asking = || {
            let mut crowd = Crowd::connect(&proxy, 3 * shards);
            crowd.send(GET);
            crowd
        };
        let mut first = asking();
        eventually("the probe is out", || {
            if gate.arrived() == arrived {
                first = asking();
            }
            gate.arrived() == arrived + 1
        });
        let mut crowd = asking();
        eventually("others wait", || {
            let wait = proxy.metric("outrigger_requests_pending", &[]) > 0.0;
            if !wait {
                crowd = asking();
            }
            wait
        });
        proxy.reload(&setup);
        gate.open();
        let answers = crowd.answers();
        assert_eq!(answers.of("200") + answers.of("503 breaker-open"), answers.total());
        eventually("all is well", || {
            let answers = Crowd::connect(&proxy, 3 * shards).ask();
            answers.of("200") == answers.total()
        });
    });
}

#[test]
fn an_endpoint_that_comes_back_begins_anew() {
    with_shards(&SHARDS, |shards| {
        let (gate, other) = (Gate::new(), Gate::new());
        let (with, without) = (guarded(&gate, shards, FOR_GOOD), guarded(&other, shards, FOR_GOOD));
        let proxy = with.clone().start();
        gate.fail();
        assert_open(&proxy, || gate.arrived());
        proxy.reload(&without);
        let mut crowd = Crowd::connect(&proxy, 3 * shards);
        crowd.ask().assert_all("200");
        assert_eq!(other.arrived(), 3 * shards);
        gate.heal();
        let arrived = gate.arrived();
        proxy.reload(&with);
        crowd.ask().assert_all("200");
        assert_eq!(gate.arrived(), arrived + 3 * shards);
    });
}

/// It did not fail, so it has nothing to recover from.
#[test]
fn an_endpoint_without_failures_makes_no_transition() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).shards("count: 4").start();
    let mut crowd = Crowd::connect(&proxy, 20);
    (0..20).for_each(|_| crowd.ask().assert_all("200"));
    assert_eq!(proxy.metric("outrigger_breaker_transitions_total", &[]), 0.0);
}
