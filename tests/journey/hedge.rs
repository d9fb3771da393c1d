//! Hedges: a second endpoint is asked while the first one is slow, and one answer is taken.

use std::net::SocketAddr;

use crate::retry::full_backlog;
use crate::support::{Client, Crowd, GET, Gate, Origin, Proxy, Setup, eventually, with_shards};

/// The breaker stays out of it.
const NO_BREAKER: &str = "breaker: {consecutive_failures: 0, failure_ratio: 0}";

/// Hedges may be had from the first moment on.
const PAID: &str = "retry_budget: {ratio: 1, min_per_second: 1000000}";

const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";

fn unpaid(endpoints: &[SocketAddr]) -> Setup {
    let listener = "reason_header: true, timeouts: {header: 0s, idle: 0s}";
    // Between shards, leave may come too late on a busy machine.
    Setup::at(endpoints).listener(listener).cluster(NO_BREAKER).one_shard()
}

fn setup(endpoints: &[SocketAddr]) -> Setup {
    unpaid(endpoints).cluster(PAID)
}

/// Two endpoints that hold what comes.
struct Pair([Gate; 2]);

impl Pair {
    fn shut() -> Pair {
        Pair([Gate::shut_from_the_start(), Gate::shut_from_the_start()])
    }

    fn addresses(&self) -> [SocketAddr; 2] {
        [&self.0[0], &self.0[1]].map(|gate| gate.origin().address())
    }

    /// One request is on its way: to the first of these. Both have it.
    fn hedged(&self) -> (&Gate, &Gate) {
        eventually("the first has it", || self.inside() >= 1);
        let first = usize::from(self.0[0].inside() == 0);
        eventually("both have it", || self.inside() == 2);
        (&self.0[first], &self.0[1 - first])
    }

    fn inside(&self) -> usize {
        self.0[0].inside() + self.0[1].inside()
    }
}

fn hedges(proxy: &Proxy) -> [f64; 3] {
    ["hedges_total", "hedges_won_total", "hedges_refused_total"]
        .map(|name| proxy.metric(&format!("outrigger_{name}"), &[]))
}

/// Late enough that [`Pair::hedged`] sees which one is the first.
const LATE: &str = "attempts: 1, hedge: {after: 150ms}";

fn asked(proxy: &Proxy) -> Client {
    let mut client = proxy.client();
    client.send(GET);
    client
}

#[test]
fn the_second_answers_and_the_first_is_broken_off() {
    let pair = Pair::shut();
    let proxy = setup(&pair.addresses())
        .cluster("limits: {max_requests: 2, max_pending: 0}")
        .retries(LATE)
        .start();
    let mut client = asked(&proxy);
    let (first, second) = pair.hedged();
    second.answer_with("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond");
    second.open();
    assert_eq!(client.answer().text(), "second");
    eventually("the first is broken off", || first.gone() == 1);
    assert_eq!(hedges(&proxy), [1.0, 1.0, 0.0]);
    assert_eq!(proxy.metric("outrigger_retries_total", &[]), 0.0);
    // Both have given their places back.
    for gate in &pair.0 {
        gate.shut();
    }
    let mut crowd = Crowd::connect(&proxy, 2);
    crowd.send(GET);
    eventually("both have a place", || pair.inside() == 2);
    for gate in &pair.0 {
        gate.open();
    }
    crowd.answers().assert_all("200");
}

#[test]
fn the_first_answers_and_the_second_is_broken_off() {
    let pair = Pair::shut();
    let proxy = setup(&pair.addresses()).retries(LATE).start();
    let mut client = asked(&proxy);
    let (first, second) = pair.hedged();
    first.open();
    assert_eq!(client.answer().status(), 200);
    eventually("the second is broken off", || second.gone() == 1);
    assert_eq!(hedges(&proxy), [1.0, 0.0, 0.0]);
    // Its connection was kept.
    assert_eq!(first.origin().connections(), 1);
}

#[test]
fn who_answers_in_time_is_not_hedged() {
    let (one, two) = (Gate::new(), Gate::new());
    let endpoints = [one.origin().address(), two.origin().address()];
    let proxy = setup(&endpoints).retries("attempts: 1, hedge: {after: 60s}").start();
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").status(), 200);
    }
    assert_eq!((one.arrived(), two.arrived()), (10, 10));
    assert_eq!(hedges(&proxy), [0.0; 3]);
}

/// Whatever it is that the first one fails with, the second is on its way already.
#[test]
fn the_second_goes_on_when_the_first_fails() {
    let fail: [fn(&Gate); 4] = [
        |gate| gate.reset(),
        |gate| gate.answer_with(BUSY),
        |gate| gate.answer_with("nonsense\r\n\r\n"),
        |gate| gate.answer_with("HTTP/1.1 20"),
    ];
    for (number, fail) in fail.into_iter().enumerate() {
        let pair = Pair::shut();
        let retries = "attempts: 1, on: [gateway-error], hedge: {after: 150ms}";
        let proxy = setup(&pair.addresses()).retries(retries).start();
        let mut client = asked(&proxy);
        let (first, second) = pair.hedged();
        fail(first);
        first.open();
        if number == 3 {
            // Half a head is none yet: it is the second that ends it.
            eventually("it has left", || first.left() == 1);
        } else {
            eventually("it goes on alone", || hedges(&proxy) == [1.0, 1.0, 0.0]);
        }
        second.open();
        assert_eq!(client.answer().status(), 200, "{number}");
        assert_eq!(hedges(&proxy), [1.0, 1.0, 0.0], "{number}");
    }
}

#[test]
fn a_second_that_fails_leaves_the_first_alone() {
    let fail: [fn(&Gate); 3] = [
        |gate| gate.reset(),
        |gate| gate.answer_with(BUSY),
        |gate| gate.answer_with("nonsense\r\n\r\n"),
    ];
    for (number, fail) in fail.into_iter().enumerate() {
        let pair = Pair::shut();
        let retries = "attempts: 1, on: [gateway-error], hedge: {after: 150ms}";
        let proxy = setup(&pair.addresses()).retries(retries).start();
        let mut client = asked(&proxy);
        let (first, second) = pair.hedged();
        fail(second);
        second.open();
        eventually("the second has left", || second.left() == 1);
        first.open();
        assert_eq!(client.answer().status(), 200, "{number}");
        assert_eq!(hedges(&proxy), [1.0, 0.0, 0.0], "{number}");
    }
}

/// Both fail: what the last one said goes to the client, and nothing hangs.
#[test]
fn both_fail() {
    let pair = Pair::shut();
    let retries = "attempts: 1, on: [gateway-error], hedge: {after: 150ms}";
    let proxy = setup(&pair.addresses()).retries(retries).start();
    let mut client = asked(&proxy);
    let (first, second) = pair.hedged();
    first.answer_with(BUSY);
    first.open();
    eventually("it goes on alone", || hedges(&proxy) == [1.0, 1.0, 0.0]);
    second.answer_with("HTTP/1.1 502 Oh\r\nContent-Length: 3\r\n\r\nbad");
    second.open();
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text()), (502, "bad"));
}

/// The origin may act on both.
#[test]
fn only_what_may_be_sent_twice_is_hedged() {
    for (more, is_hedged) in [("", false), (", non_idempotent: true", true)] {
        let pair = Pair::shut();
        let retries = format!("attempts: 1, hedge: {{after: 20ms}}{more}");
        let proxy = setup(&pair.addresses()).retries(&retries).start();
        let mut client = proxy.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        if is_hedged {
            pair.hedged();
        } else {
            eventually("it is there", || pair.inside() == 1);
            crate::support::pause(100);
            assert_eq!(pair.inside(), 1);
        }
        for gate in &pair.0 {
            gate.open();
        }
        assert_eq!(client.answer().status(), 200);
    }
}

/// A body that arrives after its head is received first, so that it can be sent twice.
#[test]
fn a_body_is_sent_to_both() {
    let slow = Gate::shut_from_the_start();
    let fast = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            peer.answer(&request.body.len().to_string());
        }
    });
    let proxy = setup(&[slow.origin().address(), fast.address()])
        .retries("attempts: 1, hedge: {after: 10ms}")
        .start();
    let mut client = proxy.client();
    for _ in 0..4 {
        client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n");
        client.send(vec![b'b'; 30_000]);
        assert_eq!(client.answer().text(), "30000");
    }
    // The hedge is the fast one's turn, too.
    let [sent, won, refused] = hedges(&proxy);
    assert!(won >= 3.0);
    assert_eq!((refused, slow.arrived()), (0.0, sent as usize));
}

/// First attempts pay: one hedge for five of them.
#[test]
fn hedges_are_paid_for_like_retries() {
    let pair = Pair::shut();
    let proxy = unpaid(&pair.addresses())
        .cluster("retry_budget: {ratio: 0.2, min_per_second: 0, ttl: 60s}")
        .retries("attempts: 1, hedge: {after: 5ms}")
        .start();
    let mut client = proxy.client();
    for request in 1..=15 {
        client.send(GET);
        eventually("it has its hedge, or none", || {
            let [sent, _, refused] = hedges(&proxy);
            sent + refused == f64::from(request)
        });
        eventually("it is there", || pair.inside() > 0);
        for gate in &pair.0 {
            gate.open();
        }
        assert_eq!(client.answer().status(), 200);
        eventually("nobody is there", || pair.inside() == 0);
        for gate in &pair.0 {
            gate.shut();
        }
    }
    let [sent, _, refused] = hedges(&proxy);
    assert_eq!((sent, refused), (3.0, 12.0));
}

/// At any number of shards no more are out than `max_retries`.
#[test]
fn hedges_count_as_retries_in_flight() {
    with_shards(&[1, 2, 4, 8], |shards| {
        let pair = Pair::shut();
        let proxy = setup(&pair.addresses())
            .shards(&format!("count: {shards}"))
            .cluster("limits: {max_retries: 3}")
            .retries("attempts: 1, hedge: {after: 5ms}")
            .start();
        let mut crowd = Crowd::connect(&proxy, 20);
        crowd.send(GET);
        eventually("each has its hedge, or none", || {
            let [sent, _, refused] = hedges(&proxy);
            sent + refused == 20.0
        });
        let [sent, ..] = hedges(&proxy);
        // On a busy machine the other shards' leave may come too late.
        let least = if shards == 1 { 3.0 } else { 0.0 };
        assert!((least..=3.0).contains(&sent), "{sent}");
        eventually("they are there", || pair.inside() == 20 + sent as usize);
        for gate in &pair.0 {
            gate.open();
        }
        crowd.answers().assert_all("200");
        assert!(pair.0[0].arrived() + pair.0[1].arrived() <= 23);
    });
}

/// There is nobody else to ask.
#[test]
fn one_endpoint_is_not_asked_twice() {
    let gate = Gate::shut_from_the_start();
    let proxy =
        setup(&[gate.origin().address()]).retries("attempts: 1, hedge: {after: 5ms}").start();
    let mut client = asked(&proxy);
    eventually("the hedge is refused", || hedges(&proxy) == [0.0, 0.0, 1.0]);
    gate.open();
    assert_eq!(client.answer().status(), 200);
    assert_eq!(gate.arrived(), 1);
}

/// What answers took says when.
#[test]
fn a_measured_percentile() {
    let pair = Pair::shut();
    for gate in &pair.0 {
        gate.open();
    }
    let proxy = setup(&pair.addresses())
        .retries("attempts: 1, hedge: {after: p50, min_delay: 150ms}")
        .start();
    let mut client = proxy.client();
    for gate in &pair.0 {
        gate.shut();
    }
    // Nothing is known yet.
    client.send(GET);
    eventually("it is there", || pair.inside() == 1);
    crate::support::pause(300);
    assert_eq!(pair.inside(), 1);
    for gate in &pair.0 {
        gate.open();
    }
    assert_eq!(client.answer().status(), 200);
    // The percentile is taken anew four times a second.
    eventually("a hedge is sent", || {
        for _ in 0..20 {
            assert_eq!(client.get("/").status(), 200);
        }
        for gate in &pair.0 {
            gate.shut();
        }
        client.send(GET);
        crate::support::pause(250);
        let sent = pair.inside() == 2;
        for gate in &pair.0 {
            gate.open();
        }
        assert_eq!(client.answer().status(), 200);
        sent
    });
}

/// The time of the whole request is over while the hedge still connects, and the first one has
/// failed: that is neither a slow connection, nor its endpoint's doing.
#[test]
fn out_of_time_while_the_hedge_connects() {
    let (full, _filling) = full_backlog();
    let full = full.local_addr().unwrap().as_socket().unwrap();
    let first = Origin::start(|peer| {
        if peer.try_request().is_ok() {
            crate::support::pause(150);
        }
    });
    let proxy = Setup::at(&[first.address(), full])
        .listener("reason_header: true")
        .cluster("breaker: {consecutive_failures: 1, failure_ratio: 0, open_time: 1h, max_open_time: 1h}")
        .cluster("timeouts: {connect: 5s}, balance: random")
        .cluster(PAID)
        .one_shard()
        .retries("attempts: 1, hedge: {after: 50ms}")
        .route("timeouts: {total: 600ms}")
        .start();
    let mut client = proxy.client();
    // Until the one that answers nothing at all was asked second.
    eventually("the hedge went there", || {
        let before = first.requests().len();
        let answer = client.get("/");
        let is_so = hedges(&proxy)[0] > 0.0 && first.requests().len() == before + 1;
        if is_so {
            assert_eq!(answer.get("x-outrigger-reason"), Some("timeout-total"));
        }
        is_so
    });
    let page = proxy.admin("/breakers");
    let mut breakers = page.text().split('{');
    let of_full = breakers.find(|it| it.contains(&full.to_string())).expect("its breaker");
    assert!(of_full.contains("closed"), "{}", page.text());
}

/// The client leaves while both are asked: both are broken off, and nothing is kept.
#[test]
fn a_client_that_leaves_ends_both() {
    let pair = Pair::shut();
    let proxy = setup(&pair.addresses())
        .cluster("limits: {max_requests: 2, max_pending: 0}")
        .retries("attempts: 1, hedge: {after: 5ms}")
        .start();
    for _ in 0..3 {
        let client = asked(&proxy);
        eventually("both have it", || pair.inside() == 2);
        drop(client);
        eventually("both are broken off", || pair.inside() == 0);
    }
    for gate in &pair.0 {
        gate.open();
    }
    assert_eq!(proxy.client().get("/").text(), "ok");
}
