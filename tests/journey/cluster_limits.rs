//! How many requests and connections a cluster gets at once: over all shards together, exactly.

use std::net::{SocketAddr, TcpListener};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::support::{
    Census, Crowd, GET, Gate, Message, Origin, Proxy, Setup, eventually, pause, with_shards,
};

const SHARDS: [usize; 4] = [1, 2, 4, 8];

/// Nothing in these tests is about breakers.
const NO_BREAKER: &str = "breaker: {consecutive_failures: 0, failure_ratio: 0}";

/// Requests wait for as long as the test takes.
fn limited(gate: &Gate, shards: usize, limits: &str) -> Setup {
    gate.setup()
        .shards(&format!("count: {shards}"))
        .cluster(&format!("limits: {{pending_timeout: 60s, {limits}}}, {NO_BREAKER}"))
}

#[track_caller]
fn await_pending(proxy: &Proxy, count: usize) {
    eventually("so many wait", || proxy.metric("outrigger_requests_pending", &[]) == count as f64);
}

/// The whole limit can still be used, and not more.
#[track_caller]
fn assert_whole(proxy: &Proxy, gate: &Gate, limit: usize) {
    let mut crowd = Crowd::connect(proxy, 4 * limit);
    eventually("nothing is left inside", || gate.inside() == 0);
    gate.heal();
    gate.shut();
    gate.forget_peak();
    crowd.send(GET);
    eventually("the whole limit is used", || gate.inside() == limit);
    gate.open();
    crowd.answers().assert_all("200");
    assert_eq!(gate.peak(), limit);
}

/// Reason and status of an answer.
#[track_caller]
fn refused(answer: &Message) -> (u16, &str) {
    (answer.status(), answer.get("x-outrigger-reason").unwrap_or("none"))
}

/// An origin that takes its time sees exactly as many at once as it may, and everybody is served.
#[test]
fn the_limit_is_reached_and_never_exceeded() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        gate.take(50);
        let proxy = limited(&gate, shards, "max_requests: 7").start();
        let mut crowd = Crowd::connect(&proxy, 200);
        crowd.send(GET);
        // It is reached, however slow the machine; from then on nobody is held up.
        eventually("the limit is reached", || gate.inside() == 7);
        gate.open();
        crowd.answers().assert_all("200");
        assert_eq!(gate.peak(), 7, "{shards} shards");
        assert_eq!(gate.arrived(), 200);
    });
}

#[test]
fn a_limit_of_one_is_one() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        gate.take(10);
        let proxy = limited(&gate, shards, "max_requests: 1").start();
        let mut crowd = Crowd::connect(&proxy, 100);
        crowd.ask().assert_all("200");
        assert_eq!((gate.peak(), gate.arrived()), (1, 100), "{shards} shards");
    });
}

/// Whoever leaves is followed by exactly one more, for as long as anybody waits.
#[track_caller]
fn assert_refilled(gate: &Gate, crowd: &mut Crowd, limit: usize) {
    gate.shut();
    gate.forget_peak();
    let (before, count) = (gate.arrived(), crowd.0.len());
    crowd.send(GET);
    for left in 0..=count - limit {
        eventually("one follows another", || gate.arrived() - before == limit + left);
        assert_eq!(gate.inside(), limit);
        gate.let_go(1);
    }
    gate.open();
    crowd.answers().assert_all("200");
    assert_eq!(gate.peak(), limit);
}

#[test]
fn no_place_is_stranded() {
    with_shards(&SHARDS, |shards| {
        for limit in [1, 7] {
            let gate = Gate::new();
            let proxy = limited(&gate, shards, &format!("max_requests: {limit}")).start();
            assert_refilled(&gate, &mut Crowd::connect(&proxy, 40), limit);
        }
    });
}

/// Shards without traffic leave all of it to the one that has it.
#[test]
fn no_place_is_stranded_on_idle_shards() {
    with_shards(&SHARDS, |shards| {
        for limit in [1, 7] {
            let gate = Gate::new();
            let proxy = limited(&gate, shards, &format!("max_requests: {limit}")).start();
            // One shard after the other, so that the places have to move.
            let crowds = Crowd::on_each_shard(&proxy, 12);
            for mut crowd in crowds {
                assert_refilled(&gate, &mut crowd, limit);
            }
        }
    });
}

#[test]
fn each_endpoint_has_a_limit_of_its_own() {
    with_shards(&SHARDS, |shards| {
        let (one, two) = (Gate::shut_from_the_start(), Gate::shut_from_the_start());
        let proxy = Setup::to(&[one.origin(), two.origin()])
            .shards(&format!("count: {shards}"))
            .cluster("limits: {pending_timeout: 60s, per_endpoint: {max_requests: 3}}")
            .start();
        let mut crowd = Crowd::connect(&proxy, 40);
        crowd.send(GET);
        eventually("both are full", || (one.inside(), two.inside()) == (3, 3));
        two.open();
        eventually("the second goes on without the first", || two.arrived() > 10);
        assert_eq!((one.inside(), one.arrived()), (3, 3));
        one.open();
        crowd.answers().assert_all("200");
        assert!(one.peak() == 3 && two.peak() == 3, "{} {}", one.peak(), two.peak());
    });
}

#[test]
fn the_clusters_limit_holds_beside_those_of_its_endpoints() {
    with_shards(&SHARDS, |shards| {
        let (one, two) = (Gate::shut_from_the_start(), Gate::shut_from_the_start());
        let proxy = Setup::to(&[one.origin(), two.origin()])
            .shards(&format!("count: {shards}"))
            .cluster(
                "limits: {max_requests: 4, pending_timeout: 60s, per_endpoint: {max_requests: 3}}",
            )
            .start();
        let mut crowd = Crowd::connect(&proxy, 40);
        crowd.send(GET);
        for gone in 0..20 {
            eventually("one follows another", || one.arrived() + two.arrived() == 4 + gone);
            assert_eq!(one.inside() + two.inside(), 4);
            let busier = if one.inside() >= two.inside() { &one } else { &two };
            busier.let_go(1);
        }
        one.open();
        two.open();
        crowd.answers().assert_all("200");
        assert!(one.peak() <= 3 && two.peak() <= 3, "{} {}", one.peak(), two.peak());
    });
}

#[test]
fn nobody_waits_where_nobody_may() {
    let gate = Gate::shut_from_the_start();
    let proxy = limited(&gate, 1, "max_requests: 2, max_pending: 0").start();
    let mut crowd = Crowd::connect(&proxy, 2);
    crowd.send(GET);
    eventually("both are there", || gate.inside() == 2);
    assert_eq!(refused(&proxy.get("/")), (503, "limit-requests"));
    gate.open();
    crowd.answers().assert_all("200");
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(proxy.refusals("limit-requests"), 1.0);
}

/// Places that a shard does not have yet are no reason to refuse.
#[test]
fn where_nobody_may_wait_the_whole_limit_can_be_used() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = limited(&gate, shards, "max_requests: 8, max_pending: 0").start();
        let mut held = Vec::new();
        eventually("the whole limit is used", || {
            let mut client = proxy.client();
            client.send(GET);
            held.push(client);
            gate.inside() == 8
        });
        assert_eq!(refused(&proxy.get("/")), (503, "limit-requests"));
        gate.open();
        assert_eq!(gate.peak(), 8);
    });
}

/// What may wait is divided among the shards.
#[test]
fn more_than_may_wait_are_refused() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = limited(&gate, shards, "max_requests: 1, max_pending: 16").start();
        let mut first = proxy.client();
        first.send(GET);
        eventually("it is there", || gate.inside() == 1);
        let mut crowd = Crowd::connect(&proxy, 160);
        crowd.send(GET);
        eventually("the rest is refused", || proxy.refusals("limit-pending") == 144.0);
        await_pending(&proxy, 16);
        gate.open();
        assert_eq!(first.answer().status(), 200);
        let answers = crowd.answers();
        assert_eq!((answers.of("503 limit-pending"), answers.of("200")), (144, 16));
        assert_eq!(gate.arrived(), 17);
    });
}

#[test]
fn who_waits_too_long_is_told() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = Setup::new(gate.origin())
            .listener("reason_header: true")
            .shards(&format!("count: {shards}"))
            .cluster("limits: {max_requests: 1, pending_timeout: 1s}")
            .start();
        let mut first = proxy.client();
        first.send(GET);
        eventually("it is there", || gate.inside() == 1);
        let mut crowd = Crowd::connect(&proxy, 20);
        crowd.ask().assert_all("503 timeout-pending");
        gate.let_go(1);
        assert_eq!(first.answer().status(), 200);
        gate.open();
        for client in &mut crowd.0 {
            assert_eq!(client.get("/").status(), 200, "one after the other");
        }
        assert_eq!(gate.arrived(), 21, "who was refused never came");
    });
}

#[test]
fn who_leaves_the_queue_is_forgotten() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = limited(&gate, shards, "max_requests: 1, max_pending: 1000").start();
        let mut first = proxy.client();
        first.send(GET);
        eventually("it is there", || gate.inside() == 1);
        for _ in 0..3 {
            let mut crowd = Crowd::connect(&proxy, 40);
            crowd.send(GET);
            await_pending(&proxy, 40);
            drop(crowd);
            await_pending(&proxy, 0);
        }
        gate.open();
        assert_eq!(first.answer().status(), 200);
        assert_eq!(proxy.get("/").status(), 200);
        assert_eq!(gate.arrived(), 2, "nobody else ever came");
    });
}

// ---- Connections ------------------------------------------------------------------------------

#[test]
fn connections_are_limited_and_used_again() {
    with_shards(&SHARDS, |shards| {
        let census = Census::default();
        let gate = Gate::counted_by(&census);
        gate.take(3);
        let proxy = limited(&gate, shards, "max_connections: 3").start();
        let mut crowd = Crowd::connect(&proxy, 60);
        for _ in 0..3 {
            gate.shut();
            crowd.send(GET);
            eventually("all connections are used", || gate.inside() == 3);
            gate.open();
            crowd.answers().assert_all("200");
        }
        assert_eq!((census.peak(), gate.peak()), (3, 3), "{shards} shards");
    });
}

/// One connection is used by one shard after the other: who does not need it lets it go.
#[test]
fn an_idle_connection_gives_way_to_another_shards() {
    with_shards(&[2, 4, 8], |shards| {
        for limit in [1, 3] {
            let census = Census::default();
            let gate = Gate::counted_by(&census);
            let proxy = limited(&gate, shards, &format!("max_connections: {limit}"))
                .cluster("pool: {idle_timeout: 60s}")
                .start();
            let mut crowds = Crowd::on_each_shard(&proxy, 3);
            for _ in 0..3 {
                for crowd in &mut crowds {
                    crowd.ask().assert_all("200");
                }
            }
            assert_eq!(census.peak(), limit, "{shards} shards");
        }
    });
}

#[test]
fn an_idle_connection_gives_way_to_another_endpoints() {
    with_shards(&SHARDS, |shards| {
        let census = Census::default();
        let (one, two) = (Gate::counted_by(&census), Gate::counted_by(&census));
        let proxy = Setup::to(&[one.origin(), two.origin()])
            .shards(&format!("count: {shards}"))
            .cluster("balance: round_robin, pool: {idle_timeout: 60s}")
            .cluster("limits: {max_connections: 1, pending_timeout: 60s}")
            .start();
        let mut client = proxy.client();
        for _ in 0..10 {
            assert_eq!(client.get("/").status(), 200);
        }
        assert_eq!((one.arrived(), two.arrived()), (5, 5));
        assert_eq!(census.peak(), 1, "{shards} shards");
    });
}

#[test]
fn each_endpoint_has_a_limit_of_connections() {
    with_shards(&SHARDS, |shards| {
        let (ones, twos) = (Census::default(), Census::default());
        let (one, two) = (Gate::counted_by(&ones), Gate::counted_by(&twos));
        one.shut();
        two.shut();
        let proxy = Setup::to(&[one.origin(), two.origin()])
            .shards(&format!("count: {shards}"))
            .cluster("limits: {pending_timeout: 60s, per_endpoint: {max_connections: 2}}")
            .start();
        let mut crowd = Crowd::connect(&proxy, 40);
        crowd.send(GET);
        eventually("all connections are used", || (one.inside(), two.inside()) == (2, 2));
        for gate in [&one, &two] {
            gate.take(3);
            gate.open();
        }
        crowd.answers().assert_all("200");
        crowd.ask().assert_all("200");
        assert_eq!((ones.peak(), twos.peak()), (2, 2), "{shards} shards");
    });
}

#[test]
fn nobody_waits_for_a_connection_where_nobody_may() {
    let gate = Gate::shut_from_the_start();
    let proxy = limited(&gate, 1, "max_connections: 1, max_pending: 0").start();
    let mut first = proxy.client();
    first.send(GET);
    eventually("it is there", || gate.inside() == 1);
    assert_eq!(refused(&proxy.get("/")), (503, "limit-connections"));
    gate.open();
    assert_eq!(first.answer().status(), 200);
    assert_eq!(proxy.get("/").status(), 200);
}

// ---- Changes ----------------------------------------------------------------------------------

#[test]
fn a_reload_lowers_and_raises_a_limit() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let with = |limit: usize| limited(&gate, shards, &format!("max_requests: {limit}"));
        let proxy = with(8).start();
        let mut crowd = Crowd::connect(&proxy, 60);
        crowd.send(GET);
        eventually("it is full", || gate.inside() == 8);
        proxy.reload(&with(3));
        assert_eq!((gate.inside(), gate.gone()), (8, 0), "nothing is killed for it");
        // A place that is freed before its shard has heard of the recall may be used once more.
        gate.let_go(5);
        eventually("they leave", || {
            pause(50);
            let inside = gate.inside();
            if inside > 3 {
                gate.let_go(1);
            }
            inside == 3
        });
        gate.forget_peak();
        let arrived = gate.arrived();
        // Had one come in their place, it would be one too many now.
        for more in 1..=10 {
            gate.let_go(1);
            eventually("one follows another", || gate.arrived() == arrived + more);
            assert_eq!((gate.inside(), gate.peak()), (3, 3));
        }
        proxy.reload(&with(6));
        eventually("the new limit is used", || gate.inside() == 6);
        gate.open();
        crowd.answers().assert_all("200");
        assert_eq!(gate.peak(), 6);
        assert_eq!(gate.arrived(), 60);
    });
}

#[test]
fn a_tunnel_keeps_its_place() {
    with_shards(&SHARDS, |shards| {
        let origin = Origin::start(|peer| {
            while let Ok(request) = peer.try_request() {
                if !request.has("upgrade") {
                    peer.answer("ok");
                    continue;
                }
                peer.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
                );
                let _ = peer.rest();
                return;
            }
        });
        let proxy = Setup::new(&origin)
            .shards(&format!("count: {shards}"))
            .cluster("limits: {max_requests: 1, pending_timeout: 60s}")
            .start();
        for _ in 0..5 {
            let before = origin.requests().len();
            let mut tunnel = proxy.client();
            tunnel.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
            assert_eq!(tunnel.answer_head().status(), 101);
            let mut crowd = Crowd::connect(&proxy, 10);
            crowd.send(GET);
            await_pending(&proxy, 10);
            assert_eq!(origin.requests().len(), before + 1, "only the tunnel's");
            drop(tunnel);
            crowd.answers().assert_all("200");
        }
    });
}

// ---- Nothing leaks ----------------------------------------------------------------------------

#[test]
fn places_come_back_from_clients_that_leave() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = limited(&gate, shards, "max_requests: 7, max_connections: 7").start();
        for round in 0..6 {
            let mut crowd = Crowd::connect(&proxy, 30);
            crowd.send(GET);
            eventually("it is full", || gate.inside() == 7);
            for client in crowd.0.drain(..) {
                if round % 2 == 0 {
                    client.into_wire().reset();
                }
            }
            eventually("all is over", || {
                gate.inside() == 0 && proxy.metric("outrigger_requests_in_flight", &[]) == 0.0
            });
        }
        assert_whole(&proxy, &gate, 7);
    });
}

#[test]
fn places_come_back_from_uploads_that_break_off() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = limited(&gate, shards, "max_requests: 7, max_connections: 7").start();
        for round in 0..6 {
            let mut crowd = Crowd::connect(&proxy, 30);
            crowd.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nsome");
            eventually("some are under way", || {
                proxy.metric("outrigger_upstream_pool_connections", &["active"]) > 0.0
            });
            for client in crowd.0.drain(..) {
                if round % 2 == 0 {
                    client.into_wire().reset();
                }
            }
            eventually("all is over", || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0);
        }
        assert_eq!(gate.arrived(), 0, "none was whole");
        assert_whole(&proxy, &gate, 7);
    });
}

#[test]
fn places_come_back_from_answers_that_are_late_or_bad() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::shut_from_the_start();
        let proxy = limited(&gate, shards, "max_requests: 7, max_connections: 7")
            .and_route("match: {prefix: /hasty}, cluster: app, timeouts: {answer: 1s, total: 20s}")
            .start();
        let mut crowd = Crowd::connect(&proxy, 20);
        crowd.send("GET /hasty HTTP/1.1\r\nHost: a\r\n\r\n");
        crowd.answers().assert_all("504 timeout-answer");
        gate.reset();
        gate.open();
        crowd.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        crowd.answers().assert_all("502 upstream-reset");
        gate.answer_with("nonsense\r\n\r\n");
        crowd.ask().assert_all("502 bad-answer");
        assert_whole(&proxy, &gate, 7);
    });
}

#[test]
fn places_come_back_from_connects_that_fail() {
    with_shards(&SHARDS, |shards| {
        // Bound, and not listening: the kernel refuses.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let proxy = Setup::at(&[address])
            .listener("reason_header: true")
            .shards(&format!("count: {shards}"))
            .cluster("limits: {max_requests: 7, max_connections: 7, pending_timeout: 60s}")
            .cluster(NO_BREAKER)
            .start();
        let mut crowd = Crowd::connect(&proxy, 40);
        for _ in 0..3 {
            crowd.ask().assert_all("503 connect-failed");
        }
        socket.listen(128).unwrap();
        let gate = Gate::on(TcpListener::from(socket), &Census::default());
        assert_whole(&proxy, &gate, 7);
    });
}

/// The end of the process waits for those in the queue, too, whichever shards they are on.
#[test]
fn who_waits_is_served_before_the_end() {
    with_shards(&[0, 1, 2, 3], |spared| {
        let gate = Gate::shut_from_the_start();
        let mut proxy = limited(&gate, 4, "max_requests: 1").start();
        let mut crowds = Crowd::on_each_shard(&proxy, 3);
        // One shard has nothing to do, and may be gone before the others.
        crowds.remove(spared);
        crowds.iter_mut().for_each(|crowd| crowd.send(GET));
        eventually("one is there", || gate.inside() == 1);
        await_pending(&proxy, 8);
        proxy.signal(Signal::TERM);
        eventually("it drains", || std::net::TcpStream::connect(proxy.address()).is_err());
        pause(100);
        gate.open();
        for crowd in &mut crowds {
            crowd.answers().assert_all("200");
        }
        assert!(proxy.exit().success());
        assert_eq!((gate.peak(), gate.arrived()), (1, 9));
    });
}
