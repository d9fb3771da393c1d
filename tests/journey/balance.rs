//! Which endpoint of a cluster gets a request. The arithmetic is tested beside the code; here, that
//! it is used.

use crate::support::{Crowd, GET, Gate, Origin, Proxy, Setup, eventually, pause};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn origins() -> Vec<Origin> {
    NAMES.into_iter().map(Origin::named).collect()
}

fn proxy(origins: &[Origin], cluster: &str) -> Proxy {
    let all: Vec<_> = origins.iter().collect();
    Setup::to(&all).one_shard().cluster(cluster).start()
}

#[test]
fn round_robin_takes_turns() {
    let origins = origins();
    let proxy = proxy(&origins, "balance: round_robin");
    let mut client = proxy.client();
    for _ in 0..40 {
        client.get("/");
    }
    let counts: Vec<_> = origins.iter().map(|origin| origin.requests().len()).collect();
    assert_eq!(counts, [10, 10, 10, 10]);
    let connections: Vec<_> = origins.iter().map(Origin::connections).collect();
    assert_eq!(connections, [1, 1, 1, 1]);
}

#[test]
fn weights_count() {
    let (heavy, light, none) =
        (Origin::named("heavy"), Origin::named("light"), Origin::named("none"));
    let endpoints = format!(
        "endpoints: [{{address: '{}', weight: 3}}, '{}', {{address: '{}', weight: 0}}]",
        heavy.address(),
        light.address(),
        none.address()
    );
    let proxy = Setup::new(&light)
        .one_shard()
        .and_route("match: {prefix: /weighed}, cluster: weighed")
        .and_cluster_text(&format!("name: weighed, balance: round_robin, {endpoints}"))
        .start();
    let mut client = proxy.client();
    for _ in 0..40 {
        client.get("/weighed");
    }
    let counts = [&heavy, &light, &none].map(|origin| origin.requests().len());
    assert_eq!(counts, [30, 10, 0]);
}

#[test]
fn random_and_least_request_use_every_endpoint() {
    for balance in ["random", "least_request"] {
        let origins = origins();
        let proxy = proxy(&origins, &format!("balance: {balance}"));
        let mut client = proxy.client();
        for _ in 0..200 {
            client.get("/");
        }
        for origin in &origins {
            assert!(origin.requests().len() > 10, "{balance}");
        }
    }
}

/// An endpoint that is stuck with requests gets fewer of them.
#[test]
fn least_request_avoids_the_busy() {
    let stuck = Origin::start(|peer| {
        peer.request();
        let _ = peer.rest();
    });
    let quick = Origin::named("quick");
    let proxy = Setup::to(&[&stuck, &quick]).one_shard().cluster("balance: least_request").start();
    let mut waiting = Vec::new();
    let mut answered = 0;
    while answered < 20 {
        let mut client = proxy.client();
        client.send(crate::support::GET);
        // The first that meets the stuck one stays there; then nobody else goes.
        if stuck.requests().is_empty() {
            crate::support::eventually("somebody has it", || {
                stuck.requests().len() + quick.requests().len() > answered
            });
        }
        if stuck.requests().len() > waiting.len() {
            waiting.push(client);
        } else {
            assert_eq!(client.answer().text(), "quick");
            answered += 1;
        }
    }
    assert!(stuck.requests().len() <= 1, "{}", stuck.requests().len());
}

#[test]
fn hashing_sticks_to_header_and_cookie() {
    for (balance, field) in [
        ("{ring_hash: {key: {header: x-user}}}", "X-User: "),
        ("{maglev: {key: {header: x-user}}}", "X-User: "),
        ("{ring_hash: {key: {cookie: session}}}", "Cookie: a=b; session="),
        ("{maglev: {key: {cookie: session}}}", "Cookie: session="),
    ] {
        let origins = origins();
        let all: Vec<_> = origins.iter().collect();
        let proxy = Setup::to(&all).cluster(&format!("balance: {balance}")).start();
        let ask = |user: u32| {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}{user}\r\n\r\n");
            proxy.ask(request).text().to_owned()
        };
        let first: Vec<_> = (0..40).map(ask).collect();
        let again: Vec<_> = (0..40).map(ask).collect();
        assert_eq!(first, again, "{balance}: on every shard, too");
        for name in NAMES {
            assert!(first.iter().any(|met| met == name), "{balance}: {name} is met: {first:?}");
        }
    }
}

#[test]
fn host_names_are_resolved() {
    let origin = Origin::named("it");
    let port = origin.address().port();
    let proxy = Setup::new(&origin)
        .and_route("match: {prefix: /named}, cluster: named")
        .and_cluster_text(&format!("name: named, endpoints: ['localhost:{port}']"))
        .start();
    assert_eq!(proxy.get("/named").text(), "it");
}

#[test]
fn a_name_without_an_address_is_a_503() {
    let origin = Origin::named("it");
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .and_route("match: {prefix: /named}, cluster: named")
        .and_cluster_text("name: named, endpoints: ['nowhere.invalid:80']")
        .start();
    let answer = proxy.get("/named");
    assert_eq!((answer.status(), answer.get("x-outrigger-reason")), (503, Some("no-endpoint")));
    assert_eq!(proxy.get("/").text(), "it");
}

/// A slow endpoint gets its share of the time, not of the requests; one that fails at once, too.
#[test]
fn peak_ewma_avoids_the_slow_and_the_failing() {
    let slow = Origin::start(|peer| {
        while peer.try_request().is_ok() {
            pause(30);
            peer.answer("slow");
        }
    });
    let failing = Origin::answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    let quick = Origin::named("quick");
    let proxy = Setup::to(&[&slow, &failing, &quick])
        .one_shard()
        .cluster("balance: peak_ewma, breaker: {consecutive_failures: 0, failure_ratio: 0}")
        .start();
    let mut client = proxy.client();
    let asked = || [&slow, &failing, &quick].map(|origin| origin.requests().len());
    // Of two that are drawn, the better one: the failing one is that only until it is known, the
    // slow one in a third of all draws. By chance, or by turns, a hundred requests would not leave
    // out one of three. On a busy machine the quick one may be slow for a while, too.
    let mut counts = Vec::new();
    eventually("it is known who is what", || {
        let before = asked();
        for _ in 0..100 {
            client.get("/");
        }
        counts.push(std::array::from_fn::<_, 3, _>(|place| asked()[place] - before[place]));
        let [slow, failing, quick] = counts[counts.len() - 1];
        failing <= 3 && quick > slow && quick > 50
    });
    assert!(asked().iter().all(|count| *count >= 1), "{counts:?}");
}

/// A hot key does not bury its endpoint: beyond the bound it goes elsewhere, and comes back.
#[test]
fn a_hot_key_spills_over() {
    for table in ["ring_hash", "maglev"] {
        let gates: Vec<Gate> = (0..4).map(|_| Gate::shut_from_the_start()).collect();
        let origins: Vec<&Origin> = gates.iter().map(Gate::origin).collect();
        let balance = format!("balance: {{{table}: {{key: source_address, bounded_load: 1.25}}}}");
        let proxy = Setup::to(&origins).one_shard().cluster(&balance).start();
        let mut crowd = Crowd::connect(&proxy, 40);
        crowd.send(GET);
        let inside = || gates.iter().map(Gate::inside).collect::<Vec<_>>();
        eventually("all are under way", || inside().iter().sum::<usize>() == 40);
        // 1.25 of a quarter of 40, rounded up.
        assert!(inside().iter().all(|count| (1..=13).contains(count)), "{table}: {:?}", inside());
        gates.iter().for_each(Gate::open);
        crowd.answers().assert_all("200");
        let before: Vec<usize> = gates.iter().map(Gate::arrived).collect();
        for client in &mut crowd.0 {
            assert_eq!(client.get("/").status(), 200);
        }
        let after = gates.iter().zip(&before).filter(|(gate, before)| gate.arrived() > **before);
        assert_eq!(after.count(), 1, "{table}: one at a time, all go to the key's own endpoint");
    }
}
