//! SIGHUP: new requests by the new plan, those in flight by the old one.

use rustix::process::Signal;

use crate::support::{GET, OK, Origin, Setup, eventually};

#[test]
fn new_requests_follow_the_new_plan() {
    let (old, new) = (Origin::named("old"), Origin::named("new"));
    let proxy = Setup::new(&old).start();
    let mut client = proxy.client();
    assert_eq!(client.get("/").text(), "old");
    proxy.rewrite(&Setup::new(&new).route("response_headers: {set: {x-plan: two}}").yaml());
    proxy.signal(Signal::HUP);
    proxy.await_generation(2);
    let answer = client.get("/");
    assert_eq!((answer.text(), answer.get("x-plan")), ("new", Some("two")), "on a kept connection");
    assert_eq!(proxy.get("/").text(), "new");
    eventually("kept connections to the old one are closed", || old.ended() == old.connections());
    assert_eq!(proxy.metric("outrigger_config_reloads_total", &["success"]), 1.0);
}

#[test]
fn a_request_in_flight_keeps_its_plan() {
    let (let_go, go) = std::sync::mpsc::channel();
    let go = std::sync::Mutex::new(go);
    let old = Origin::start(move |peer| {
        peer.request();
        go.lock().unwrap().recv().unwrap();
        peer.send(OK);
    });
    let new = Origin::named("new");
    let proxy = Setup::new(&old).route("response_headers: {set: {x-plan: one}}").start();
    let mut client = proxy.client();
    client.send(GET);
    eventually("the old origin has it", || old.requests().len() == 1);
    proxy.rewrite(&Setup::new(&new).route("response_headers: {set: {x-plan: two}}").yaml());
    proxy.signal(Signal::HUP);
    proxy.await_generation(2);
    assert_eq!(proxy.get("/").get("x-plan"), Some("two"), "others go on by the new one");
    let_go.send(()).unwrap();
    let answer = client.answer();
    assert_eq!((answer.text(), answer.get("x-plan")), ("ok", Some("one")));
    assert_eq!(client.get("/").get("x-plan"), Some("two"), "the next request on it does not");
}

#[test]
fn an_upload_in_flight_keeps_its_plan() {
    let old = Origin::answering(OK);
    let new = Origin::named("new");
    let proxy = Setup::new(&old).start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
    eventually("the old origin has a part", || old.received().ends_with(b"hello"));
    proxy.rewrite(&Setup::new(&new).yaml());
    proxy.signal(Signal::HUP);
    proxy.await_generation(2);
    client.send("world");
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(old.request().body, b"helloworld");
    assert_eq!(client.get("/").text(), "new");
}

#[test]
fn what_stays_in_the_plan_keeps_its_connections() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    client.get("/");
    proxy.rewrite(
        &Setup::new(&origin).one_shard().route("response_headers: {set: {x-plan: two}}").yaml(),
    );
    proxy.signal(Signal::HUP);
    proxy.await_generation(2);
    assert_eq!(client.get("/").get("x-plan"), Some("two"));
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_bad_configuration_changes_nothing() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).start();
    for bad in ["listeners: [", "clusters: []\n", "listners: []\n"] {
        proxy.rewrite(bad);
        let before = proxy.metric("outrigger_config_reloads_total", &["failure"]);
        proxy.signal(Signal::HUP);
        eventually("it is refused", || {
            proxy.metric("outrigger_config_reloads_total", &["failure"]) == before + 1.0
        });
        assert_eq!(proxy.get("/").status(), 200);
        assert_eq!(proxy.admin("/ready").status(), 200);
    }
    assert_eq!(proxy.metric("outrigger_config_last_reload_successful", &[]), 0.0);
    proxy.rewrite(&Setup::new(&origin).yaml());
    proxy.signal(Signal::HUP);
    proxy.await_generation(2);
    assert_eq!(proxy.metric("outrigger_config_last_reload_successful", &[]), 1.0);
}

/// Under load, no request is lost.
#[test]
fn many_reloads_lose_no_request() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let proxy = Setup::new(&one).start();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let address = proxy.address();
                scope.spawn(move || {
                    let mut asked = 0;
                    while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                        let mut client = crate::support::Client::connect(address);
                        for _ in 0..20 {
                            let answer = client.post("/", "hello");
                            assert!(["one", "two"].contains(&answer.text()), "{answer:?}");
                            asked += 1;
                        }
                    }
                    asked
                })
            })
            .collect();
        for generation in 2..=10 {
            let origin = if generation % 2 == 0 { &two } else { &one };
            proxy.rewrite(&Setup::new(origin).yaml());
            proxy.signal(Signal::HUP);
            proxy.await_generation(generation);
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        for worker in workers {
            assert!(worker.join().unwrap() > 0);
        }
    });
}
