//! Breakers as operators see and steer them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use rustix::process::Signal;

use crate::support::{Client, GET, Message, OK, Origin, Proxy, Setup, eventually};

const FAIL: &str = "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n";

const SHARDS: usize = 4;

/// More shards than cores are fine.
fn setup(origins: &[&Origin]) -> Setup {
    Setup::to(origins).shards(&format!("count: {SHARDS}")).listener("reason_header: true")
}

#[track_caller]
fn post(proxy: &Proxy, path: &str) -> Message {
    let mut client = Client::connect(proxy.admin_address());
    client.ask(format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ))
}

/// Overrides the breaker of an endpoint, which must work.
#[track_caller]
fn force(proxy: &Proxy, endpoint: SocketAddr, verb: &str) {
    let answer = post(proxy, &format!("/breakers/app/{endpoint}/{verb}"));
    assert_eq!(answer.status(), 200, "{verb}: {answer:?}");
    if verb != "auto" {
        let state = verb.replace("force-", "forced-");
        assert!(answer.text().contains(&format!("\"state\":\"{state}\"")), "{answer:?}");
    }
}

/// The state that the metrics tell; exactly one holds.
#[track_caller]
fn state(proxy: &Proxy, endpoint: &str) -> String {
    let page = proxy.admin("/metrics");
    let label = format!("endpoint=\"{endpoint}\"");
    let of_it = |line: &&str| line.starts_with("outrigger_breaker_state{") && line.contains(&label);
    let lines: Vec<_> = page.text().lines().filter(of_it).collect();
    assert_eq!(lines.len(), 6, "{lines:?}");
    let mut holds = lines.iter().filter(|line| line.ends_with(" 1"));
    let (one, other) = (holds.next().expect("a state"), holds.next());
    assert_eq!(other, None);
    let (_, state) = one.split_once("state=\"").expect("a state");
    state.split('"').next().unwrap().to_owned()
}

/// Kept connections on all shards.
#[track_caller]
fn clients_everywhere(proxy: &Proxy) -> Vec<Client> {
    let mut clients = Vec::new();
    let is_everywhere = || {
        (0..SHARDS).all(|shard| {
            proxy.metric("outrigger_connections_open", &[&format!("shard=\"{shard}\"")]) > 0.0
        })
    };
    while clients.len() < 8 || !is_everywhere() {
        assert!(clients.len() < 200, "some shard gets no connection");
        for _ in 0..8 {
            let mut client = proxy.client();
            client.ask(GET);
            clients.push(client);
        }
    }
    clients
}

#[track_caller]
fn assert_refused(answer: &Message) {
    assert_eq!((answer.status(), answer.get("x-outrigger-reason")), (503, Some("breaker-open")));
}

/// Once the POST has answered, the very next request on any shard goes by it.
#[test]
fn an_override_holds_everywhere_when_it_is_answered() {
    let origin = Origin::answering(OK);
    let proxy = setup(&[&origin]).start();
    let mut clients = clients_everywhere(&proxy);
    for _ in 0..40 {
        force(&proxy, origin.address(), "force-open");
        clients.iter_mut().for_each(|client| client.send(GET));
        clients.iter_mut().for_each(|client| assert_refused(&client.answer()));
        force(&proxy, origin.address(), "force-closed");
        clients.iter_mut().for_each(|client| client.send(GET));
        clients.iter_mut().for_each(|client| assert_eq!(client.answer().status(), 200));
    }
    assert_eq!(state(&proxy, &origin.address().to_string()), "forced-closed");
    assert_eq!(proxy.metric("outrigger_breaker_trips_total", &["cluster=\"app\""]), 0.0);
}

/// The same while every shard is busy: no request that is sent after the answer is let through.
#[test]
fn an_override_holds_under_load() {
    let origin = Origin::answering(OK);
    let proxy = setup(&[&origin]).start();
    // Odd while it is forced open.
    let era = AtomicU32::new(0);
    let (stop, refused) = (AtomicBool::new(false), AtomicU32::new(0));
    let clients = clients_everywhere(&proxy);
    std::thread::scope(|scope| {
        let (era, stop, refused) = (&era, &stop, &refused);
        let ask = move |mut client: Client| {
            while !stop.load(SeqCst) {
                let begun = era.load(SeqCst);
                let answer = client.get("/");
                if begun % 2 == 1 && era.load(SeqCst) == begun {
                    assert_refused(&answer);
                    refused.fetch_add(1, SeqCst);
                }
            }
        };
        let workers: Vec<_> =
            clients.into_iter().take(32).map(|client| scope.spawn(move || ask(client))).collect();
        let has_failed = || workers.iter().any(|worker| worker.is_finished());
        for _ in 0..10 {
            force(&proxy, origin.address(), "force-open");
            era.fetch_add(1, SeqCst);
            let enough = refused.load(SeqCst) + 100;
            eventually("refused", || refused.load(SeqCst) >= enough || has_failed());
            era.fetch_add(1, SeqCst);
            force(&proxy, origin.address(), "force-closed");
        }
        stop.store(true, SeqCst);
    });
}

#[test]
fn an_endpoint_that_is_forced_closed_may_fail() {
    let origin = Origin::answering(FAIL);
    let proxy = setup(&[&origin]).start();
    force(&proxy, origin.address(), "force-closed");
    let mut client = proxy.client();
    for _ in 0..50 {
        assert_eq!(client.ask(GET).status(), 500);
    }
    assert_eq!(origin.requests().len(), 50);
    // By the usual rules again, with nothing remembered.
    force(&proxy, origin.address(), "auto");
    for _ in 0..5 {
        assert_eq!(client.ask(GET).status(), 500);
    }
    assert_refused(&client.ask(GET));
    assert_eq!(origin.requests().len(), 55);
    eventually("it is told", || state(&proxy, &origin.address().to_string()) == "open");
}

#[test]
fn an_endpoint_that_is_released_is_tried_first() {
    let origin = Origin::answering(OK);
    let proxy = setup(&[&origin]).start();
    let mut client = proxy.client();
    force(&proxy, origin.address(), "force-open");
    assert_refused(&client.ask(GET));
    force(&proxy, origin.address(), "auto");
    eventually("a probe succeeds", || client.ask(GET).status() == 200);
    let name = origin.address().to_string();
    eventually("it recovers", || state(&proxy, &name) == "recovering");
    // Nothing to release: that is fine, too.
    force(&proxy, origin.address(), "auto");
    assert_eq!(client.ask(GET).status(), 200);
}

#[test]
fn traffic_moves_to_the_others() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let proxy = setup(&[&one, &two]).start();
    let mut clients = clients_everywhere(&proxy);
    for (forced, other) in [(&one, "two"), (&two, "one")] {
        force(&proxy, forced.address(), "force-open");
        for client in &mut clients {
            assert_eq!(client.ask(GET).text(), other);
        }
        force(&proxy, forced.address(), "force-closed");
    }
    // No bound on those that an operator takes out.
    force(&proxy, one.address(), "force-open");
    force(&proxy, two.address(), "force-open");
    clients.iter_mut().for_each(|client| assert_refused(&client.ask(GET)));
}

#[test]
fn a_route_has_a_breaker_of_its_own() {
    let origin = Origin::answering(OK);
    let proxy = setup(&[&origin])
        .and_route("name: odd/one, match: {prefix: /odd}, cluster: app, breaker: true")
        .start();
    let answer = post(&proxy, "/breakers/app/routes/odd%2Fone/force-open");
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(answer.text().contains("\"kind\":\"route\""), "{answer:?}");
    assert_refused(&proxy.get("/odd"));
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(state(&proxy, "odd/one"), "forced-open");
    assert_eq!(post(&proxy, "/breakers/app/routes/odd%2Fone/force-closed").status(), 200);
    assert_eq!(proxy.get("/odd").status(), 200);
    // The other route has none.
    assert_eq!(post(&proxy, "/breakers/app/routes/usual/auto").status(), 404);
}

#[test]
fn an_override_outlives_a_reload() {
    let (origin, other) = (Origin::named("one"), Origin::named("two"));
    let proxy = setup(&[&origin]).start();
    let mut clients = clients_everywhere(&proxy);
    force(&proxy, origin.address(), "force-open");
    proxy.rewrite(&setup(&[&origin]).route("response_headers: {set: {x-plan: two}}").yaml());
    proxy.signal(Signal::HUP);
    proxy.await_generation(2);
    clients.iter_mut().for_each(|client| assert_refused(&client.ask(GET)));
    assert_eq!(state(&proxy, &origin.address().to_string()), "forced-open");

    // One that leaves and comes back is another.
    for (generation, origin) in [(3, &other), (4, &origin)] {
        proxy.rewrite(&setup(&[origin]).yaml());
        proxy.signal(Signal::HUP);
        proxy.await_generation(generation);
        assert_eq!(clients[0].ask(GET).status(), 200);
        assert_eq!(state(&proxy, &origin.address().to_string()), "closed");
    }
    // And can be overridden by the new plan.
    force(&proxy, origin.address(), "force-open");
    clients.iter_mut().for_each(|client| assert_refused(&client.ask(GET)));
}

#[test]
fn who_asks_wrongly_changes_nothing() {
    let origin = Origin::answering(OK);
    let proxy = setup(&[&origin]).start();
    let address = origin.address();
    for path in ["/breakers/app/127.0.0.1:1/force-open", "/breakers/nothing/x/force-open"] {
        let answer = post(&proxy, path);
        assert_eq!(answer.status(), 404);
        assert!(answer.text().contains(&format!("\n/breakers/app/{address}\n")), "{answer:?}");
    }
    let path = format!("/breakers/app/{address}/force-open");
    let answer = proxy.admin(&path);
    assert_eq!((answer.status(), answer.get("allow")), (405, Some("POST")));
    for foreign in ["Host: localhost\r\nOrigin: http://evil.example", "Host: evil.example"] {
        let mut client = Client::connect(proxy.admin_address());
        let head = format!("POST {path} HTTP/1.1\r\n{foreign}\r\n");
        let answer = client.ask(format!("{head}Content-Length: 0\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.status(), 403);
    }
    assert_eq!(state(&proxy, &address.to_string()), "closed");
    assert_eq!(proxy.get("/").status(), 200);
}

#[test]
fn a_breaker_that_trips_is_seen() {
    let origin = Origin::answering(FAIL);
    let proxy = setup(&[&origin]).start();
    let name = origin.address().to_string();
    assert_eq!(state(&proxy, &name), "closed");
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.ask(GET).status(), 500);
    }
    assert_refused(&client.ask(GET));
    eventually("it is told", || state(&proxy, &name) == "open");
    let of_app = |name: &str, label: &str| proxy.metric(name, &["cluster=\"app\"", label]);
    assert_eq!(of_app("outrigger_breaker_trips_total", ""), 1.0);
    assert_eq!(of_app("outrigger_breakers", "state=\"open\""), 1.0);
    assert_eq!(of_app("outrigger_breakers", "state=\"closed\""), 0.0);
    assert_eq!(of_app("outrigger_limit", "kind=\"requests\""), 1024.0);

    let list = proxy.admin("/breakers");
    let list = list.text();
    for told in [&*format!("\"endpoint\":\"{name}\""), "\"state\":\"open\"", "\"forced\":false"] {
        assert!(list.contains(told), "{list}");
    }
    let table = proxy.admin("/breakers?format=text");
    assert!(table.text().contains(&format!("\napp      {name}  endpoint  open ")), "{table:?}");
    let is_told = |line: &str| {
        let words = ["WARN", "breaker trips", "cluster=\"app\"", "from=\"closed\"", "to=\"open\""];
        words.iter().all(|word| line.contains(word)) && line.contains(&name)
    };
    eventually("the log says so", || proxy.log().lines().any(is_told));
}
