//! Fallbacks: what leads to one, what answers, and for whom.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rustix::net::RecvFlags;

use crate::support::{
    Client, Crowd, GET, Gate, Message, OK, Origin, Proxy, Setup, eventually, pause, with_shards,
};

const NO_BREAKER: &str = "breaker: {consecutive_failures: 0, failure_ratio: 0}";

const FAILURE: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";

const STATIC: &str = "fallback: {respond: {body: sorry}}";

/// An address at which nobody listens.
fn dead() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

fn at(endpoint: SocketAddr) -> Setup {
    Setup::at(&[endpoint]).listener("reason_header: true").cluster(NO_BREAKER)
}

fn before(origin: &Origin) -> Setup {
    at(origin.address())
}

/// Whether something has come for a client, without reading it.
fn has_answer(client: &Client) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(client.stream_again(), &mut [0; 1], flags).is_ok()
}

/// What answered, and why it had to.
fn told(answer: &Message) -> (u16, Option<&str>, Option<&str>) {
    (answer.status(), answer.get("x-outrigger-fallback"), answer.get("x-outrigger-reason"))
}

#[track_caller]
fn assert_static(answer: &Message, reason: &str) {
    assert_eq!(told(answer), (200, Some("static"), Some(reason)));
    assert_eq!(answer.text(), "sorry");
    assert_eq!(answer.get("cache-control"), Some("no-store"));
}

fn fallbacks(proxy: &Proxy, kind: &str) -> f64 {
    let kind = format!("kind=\"{kind}\"");
    proxy.metric("outrigger_fallbacks_total", &["route=\"usual\"", &kind])
}

fn refused(proxy: &Proxy) -> f64 {
    proxy.metric("outrigger_fallbacks_refused_total", &[])
}

fn failed(proxy: &Proxy) -> f64 {
    proxy.metric("outrigger_fallbacks_failed_total", &[])
}

// ---- What leads to one ------------------------------------------------------------------------

/// One connection for all of them: it stays.
#[test]
fn who_cannot_be_reached_is_answered_for() {
    let proxy = at(dead()).route(STATIC).start();
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_static(&client.get("/"), "connect-failed");
    }
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = client.answer_to("HEAD");
    assert_eq!(told(&head), (200, Some("static"), Some("connect-failed")));
    assert_eq!((head.get("content-length"), head.text()), (Some("5"), ""));
    assert_static(&client.get("/"), "connect-failed");
    assert_eq!(fallbacks(&proxy, "static"), 5.0);
    assert_eq!((fallbacks(&proxy, "cluster"), fallbacks(&proxy, "last-good")), (0.0, 0.0));
    assert_eq!((refused(&proxy), failed(&proxy)), (0.0, 0.0));
    eventually("each is counted", || proxy.refusals("connect-failed") == 5.0);
}

#[test]
fn an_answer_with_such_a_status_is_given_up() {
    let origin = Origin::answering(FAILURE);
    let proxy = before(&origin).one_shard().route(STATIC).start();
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_static(&client.get("/"), "upstream-status");
    }
    assert_eq!(origin.connections(), 1, "what was whole leaves its connection");
    eventually("each is counted", || proxy.refusals("upstream-status") == 5.0);
}

/// What was not read of it is nobody's answer.
#[test]
fn what_is_given_up_is_not_left_for_the_next() {
    const STALE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale";
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            let length = STALE.len();
            match request.target() {
                "/length" => {
                    peer.send(format!("HTTP/1.1 503 X\r\nContent-Length: {length}\r\n\r\n"))
                }
                "/chunked" => peer.send(format!(
                    "HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n"
                )),
                _ => {
                    peer.answer("fresh");
                    continue;
                }
            }
            // The rest comes when the connection might be in use again.
            pause(50);
            if peer.try_send(STALE).is_err() {
                return;
            }
        }
    });
    let proxy = before(&origin).one_shard().route(STATIC).start();
    let mut client = proxy.client();
    for path in ["/length", "/chunked"] {
        assert_static(&client.get(path), "upstream-status");
        assert_eq!(client.get("/").text(), "fresh", "{path}");
    }
}

#[test]
fn only_listed_statuses_count() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            let status = request.target().trim_start_matches('/').to_owned();
            peer.send(format!("HTTP/1.1 {status} X\r\nContent-Length: 6\r\n\r\norigin"));
        }
    });
    let proxy = before(&origin)
        .route("fallback: {statuses: [404, 500], respond: {status: 503, body: sorry}}")
        .start();
    let mut client = proxy.client();
    for status in [200, 301, 400, 403, 429, 501, 502, 503, 504] {
        let answer = client.get(&format!("/{status}"));
        assert_eq!((told(&answer), answer.text()), ((status, None, None), "origin"));
    }
    for status in [404, 500] {
        let answer = client.get(&format!("/{status}"));
        assert_eq!(told(&answer), (503, Some("static"), Some("upstream-status")));
    }
}

#[test]
fn what_breaks_without_an_answer_is_answered_for() {
    let broken = Origin::start(|peer| drop(peer.try_request()));
    let proxy = before(&broken).route(STATIC).start();
    assert_static(&proxy.get("/"), "upstream-reset");
    let garbage = Origin::closing_after("SSH-2.0\r\n\r\n");
    let proxy = before(&garbage).route(STATIC).start();
    assert_static(&proxy.get("/"), "bad-answer");
}

#[test]
fn what_takes_too_long_is_answered_for() {
    let gate = Gate::shut_from_the_start();
    for (limit, reason) in [
        ("timeouts: {answer: 50ms}", "timeout-answer"),
        ("timeouts: {total: 50ms}", "timeout-total"),
        ("retries: {try_timeout: 50ms, attempts: 0}", "timeout-try"),
    ] {
        let setup = before(gate.origin());
        let proxy = match limit.strip_prefix("retries: {") {
            Some(retries) => setup.retries(retries.trim_end_matches('}')).route(STATIC).start(),
            None => setup.route(limit).route(STATIC).start(),
        };
        let mut client = proxy.client();
        assert_static(&client.get("/"), reason);
        assert_static(&client.get("/"), reason);
    }
}

#[test]
fn who_is_refused_before_any_endpoint_is_answered_for() {
    // No endpoint, an open breaker, no place.
    let proxy = Setup::at(&[]).listener("reason_header: true").route(STATIC).start();
    assert_static(&proxy.get("/"), "no-endpoint");
    let origin = Origin::answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .cluster("breaker: {consecutive_failures: 1, open_time: 1h, max_open_time: 1h}")
        .one_shard()
        .route(STATIC)
        .start();
    assert_eq!(proxy.get("/").status(), 500);
    eventually("the breaker opens", || {
        let answer = proxy.get("/");
        answer.get("x-outrigger-reason") == Some("breaker-open") && answer.text() == "sorry"
    });
    let gate = Gate::shut_from_the_start();
    let proxy = before(gate.origin())
        .cluster("limits: {max_requests: 1, max_pending: 0}")
        .one_shard()
        .route(STATIC)
        .start();
    let mut first = proxy.client();
    first.send(GET);
    eventually("it is there", || gate.inside() == 1);
    assert_static(&proxy.get("/"), "limit-requests");
    gate.open();
    assert_eq!(first.answer().text(), "ok");
}

/// What admission control refuses, too.
#[test]
fn who_is_refused_by_chance_is_answered_for() {
    let origin = Origin::answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    let proxy = before(&origin)
        .cluster("admission_control: {sampling_window: 1m, max_rejection_probability: 1}")
        .one_shard()
        .route(STATIC)
        .start();
    let mut client = proxy.client();
    eventually("one is refused", || {
        let answer = client.get("/");
        let is_refused = answer.get("x-outrigger-reason") == Some("admission-control");
        is_refused.then(|| assert_static(&answer, "admission-control"));
        is_refused
    });
}

/// Neither what a client did, nor what its own time did not suffice for.
#[test]
fn not_for_what_clients_do() {
    let gate = Gate::shut_from_the_start();
    let statuses = "fallback: {statuses: [400, 408, 411, 429, 503, 504], respond: {body: sorry}}";
    let proxy = before(gate.origin()).listener("mode: sidecar").one_shard().route(statuses).start();
    let impatient = "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Deadline: 50\r\n\r\n";
    assert_eq!(told(&proxy.ask(impatient)), (504, None, Some("timeout-deadline")));
    let broken = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n";
    assert_eq!(told(&proxy.ask(broken)), (400, None, Some("bad-body")));
    let mut gone = proxy.client();
    gone.send(GET);
    eventually("it is there", || gate.inside() > 0);
    gone.into_wire().reset();
    eventually("it is noticed", || proxy.refusals("client-gone") == 1.0);
    assert_eq!(fallbacks(&proxy, "static"), 0.0);
}

/// Of which the client has seen a part, that is not taken back.
#[test]
fn not_once_an_answer_has_begun() {
    let origin = Origin::closing_after("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
    let proxy = before(&origin).route(STATIC).start();
    let mut client = proxy.client();
    client.send(GET);
    assert_eq!(client.answer_head().status(), 200);
    let (rest, _) = client.rest();
    assert_eq!(rest, b"half");
    eventually("it is counted", || proxy.refusals("answer-truncated") == 1.0);
    assert_eq!(fallbacks(&proxy, "static"), 0.0);
}

/// First the retries, and only then the fallback.
#[test]
fn retries_come_first() {
    let (bad, good) = (Origin::answering(FAILURE), Origin::answering(OK));
    let both = [bad.address(), good.address()];
    let paid = "retry_budget: {ratio: 1, min_per_second: 1000000}";
    let setup = |endpoints: &[SocketAddr]| {
        Setup::at(endpoints)
            .listener("reason_header: true")
            .cluster(NO_BREAKER)
            .cluster(paid)
            .one_shard()
            .retries("on: [5xx], attempts: 2, backoff: 0s, max_backoff: 0s")
            .route(STATIC)
    };
    let proxy = setup(&both).start();
    let mut client = proxy.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "ok");
    }
    assert_eq!(fallbacks(&proxy, "static"), 0.0);
    let asked = bad.requests().len();
    let proxy = setup(&both[..1]).start();
    assert_static(&proxy.get("/"), "upstream-status");
    assert_eq!(bad.requests().len() - asked, 3);
}

// ---- Bodies and upgrades ----------------------------------------------------------------------

/// A body that was not read ends the connection, politely.
#[test]
fn a_body_that_is_not_here_ends_the_connection() {
    let proxy = at(dead()).route(STATIC).start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin");
    let answer = client.answer();
    assert_static(&answer, "connect-failed");
    assert!(answer.connection("close"));
    let origin = Origin::start(|peer| {
        peer.request_head();
        peer.send(FAILURE);
        peer.rest();
    });
    let proxy = before(&origin).route(STATIC).start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin");
    let answer = client.answer();
    assert_static(&answer, "upstream-status");
    assert!(answer.connection("close"));
}

#[test]
fn an_upgrade_that_fails_is_a_request_like_any_other() {
    let origin = Origin::answering(FAILURE);
    let spare = Origin::start(|peer| {
        assert!(peer.request().has("upgrade"));
        peer.send("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        let said = peer.read(2);
        peer.send(said);
    });
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    let proxy = before(&origin).route(STATIC).start();
    let mut client = proxy.client();
    assert_static(&client.ask(upgrade), "upstream-status");
    assert_static(&client.get("/"), "upstream-status");
    let proxy =
        before(&origin).and_cluster("spare", &spare).route("fallback: {cluster: spare}").start();
    let mut client = proxy.client();
    client.send(upgrade);
    assert_eq!(told(&client.answer_head()), (101, Some("cluster"), None));
    client.send("hi");
    assert_eq!(client.read(2), b"hi");
}

// ---- Another cluster --------------------------------------------------------------------------

fn to_spare(main: SocketAddr, spare: &Origin) -> Setup {
    at(main).and_cluster("spare", spare).route("fallback: {cluster: spare}")
}

#[test]
fn another_cluster_answers() {
    let (origin, spare) = (Origin::answering(FAILURE), Origin::echoing());
    let log = "access_log: {path: '{dir}/access'}";
    let proxy = to_spare(origin.address(), &spare).listener(log).one_shard().start();
    let mut client = proxy.client();
    let answer = client.get("/a?b=c");
    assert_eq!(told(&answer), (200, Some("cluster"), None));
    assert_eq!(answer.text(), "GET /a?b=c HTTP/1.1");
    // A body that went with its head goes again, if the method may.
    let put = "PUT /put HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(told(&client.ask(put)), (200, Some("cluster"), None));
    assert_eq!(spare.last_request().text(), "hello");
    let post = put.replace("PUT", "POST");
    assert_eq!(told(&client.ask(post)), (503, None, None), "it may have been acted on");
    assert_eq!((fallbacks(&proxy, "cluster"), failed(&proxy)), (2.0, 1.0));
    assert_eq!(spare.requests().len(), 2);
    eventually("the log says so", || {
        let log = std::fs::read_to_string(proxy.path("access")).unwrap_or_default();
        let line = |text: &str| log.lines().any(|line| line.contains(text));
        log.lines().count() == 3
            && line("\"outrigger.cluster\":\"spare\",\"outrigger.fallback\":\"cluster\"")
            && log.matches("upstream-status").count() == 2
    });
}

/// Also with a body that is larger than a head's buffer: it was kept for that.
#[test]
fn bodies_are_kept_for_another_cluster() {
    let (origin, spare) = (Origin::answering(FAILURE), Origin::echoing());
    let proxy = to_spare(origin.address(), &spare).start();
    let body = "b".repeat(60_000);
    let put = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n{body}");
    let mut client = proxy.client();
    assert_eq!(told(&client.ask(&put)), (200, Some("cluster"), None));
    assert_eq!(spare.request().text(), body);
    assert_eq!(told(&client.ask(&put)), (200, Some("cluster"), None));
}

/// Where nothing was sent, everything goes on: any method, and bodies that are still to come.
#[test]
fn what_was_not_sent_goes_elsewhere_with_its_body() {
    let spare = Origin::echoing();
    let proxy = to_spare(dead(), &spare).start();
    let mut client = proxy.client();
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(told(&client.ask(chunked)), (200, Some("cluster"), None));
    assert_eq!(spare.last_request().text(), "hello");
    let body = "b".repeat(300_000);
    let post = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n{body}");
    assert_eq!(told(&client.ask(post)), (200, Some("cluster"), None));
    assert_eq!(spare.last_request().text(), body);
    assert_eq!(told(&client.get("/")), (200, Some("cluster"), None), "the connection stays");
}

/// Then what comes behind it, or what the other cluster had to say.
#[test]
fn another_cluster_may_fail_too() {
    let (origin, spare) = (Origin::answering(FAILURE), Origin::answering(FAILURE));
    let proxy = to_spare(origin.address(), &spare).start();
    let answer = proxy.get("/");
    assert_eq!((told(&answer), answer.text()), ((503, Some("cluster"), None), "busy"));
    let both = "fallback: {cluster: spare, respond: {body: sorry}}";
    let proxy = before(&origin).and_cluster("spare", &spare).route(both).start();
    let mut client = proxy.client();
    assert_static(&client.get("/"), "upstream-status");
    assert_static(&client.get("/"), "upstream-status");
    assert_eq!(fallbacks(&proxy, "cluster"), 0.0);
    assert_eq!(spare.requests().len(), 3);
    let nobody = format!("name: spare, endpoints: ['{}']", dead());
    let proxy =
        before(&origin).and_cluster_text(&nobody).route("fallback: {cluster: spare}").start();
    assert_eq!(told(&proxy.get("/")), (503, None, Some("connect-failed")));
    assert_eq!(failed(&proxy), 1.0);
    let proxy = before(&origin).and_cluster_text(&nobody).route(both).start();
    assert_static(&proxy.get("/"), "upstream-status");
}

/// It is no other one where the cluster that stands in is the same.
#[test]
fn who_has_stood_in_is_not_asked_again() {
    let spare = Origin::answering(FAILURE);
    let proxy = Setup::at(&[])
        .listener("reason_header: true")
        .cluster("fallback_cluster: spare")
        .and_cluster("spare", &spare)
        .route("fallback: {cluster: spare, respond: {body: sorry}}")
        .start();
    assert_static(&proxy.get("/"), "upstream-status");
    assert_eq!(spare.requests().len(), 1);
}

// ---- How many at once -------------------------------------------------------------------------

#[test]
fn never_more_at_once_than_may_be() {
    with_shards(&[1, 4], |shards| {
        let spare = Gate::shut_from_the_start();
        let proxy = at(dead())
            .and_cluster("spare", spare.origin())
            .shards(&format!("count: {shards}"))
            .listener("timeouts: {header: 0s, idle: 0s}")
            .route("fallback: {cluster: spare, max_requests: 3}")
            .start();
        let mut crowd = Crowd::connect(&proxy, 40);
        crowd.send(GET);
        // Where others have to be asked, a place may come too late on a busy machine.
        let is_alone = shards == 1;
        eventually("all but those who may are refused", || {
            let (refused, inside) = (refused(&proxy) as usize, spare.inside());
            refused + inside == 40 && (inside == 3 || !is_alone)
        });
        spare.open();
        let answers = crowd.answers();
        let served = answers.of("200");
        assert_eq!(answers.of("503 connect-failed"), 40 - served);
        assert!(served == 3 || served < 3 && !is_alone, "{answers:?}");
        // And yet all of them can be had on one shard.
        spare.shut();
        let mut clients = Crowd::on_shard(&proxy, shards - 1, 4).0;
        let mut last = clients.pop().unwrap();
        for (place, client) in clients.iter_mut().enumerate() {
            eventually("it has its turn", || {
                client.send(GET);
                eventually("it is there, or refused", || {
                    spare.inside() > place || has_answer(client)
                });
                let is_there = spare.inside() > place;
                if !is_there {
                    assert_eq!(client.answer().status(), 503);
                }
                is_there
            });
        }
        assert_eq!(last.get("/").status(), 503);
        assert_eq!(spare.peak(), 3);
        spare.open();
        for mut client in clients {
            assert_eq!(told(&client.answer()), (200, Some("cluster"), None));
        }
    });
}

#[test]
fn a_limit_of_one_works_on_every_shard() {
    let proxy = at(dead())
        .shards("count: 4")
        .listener("timeouts: {header: 0s, idle: 0s}")
        .route("fallback: {max_requests: 1, respond: {body: sorry}}")
        .start();
    for mut crowd in Crowd::on_each_shard(&proxy, 1) {
        eventually("it has its turn", || crowd.ask().of("200 connect-failed") == 1);
    }
}

/// An answer that is a failure stands where no fallback has leave.
#[test]
fn who_has_no_leave_gets_the_answer() {
    let (origin, spare) = (Origin::answering(FAILURE), Gate::shut_from_the_start());
    let proxy = before(&origin)
        .and_cluster("spare", spare.origin())
        .one_shard()
        .route("fallback: {cluster: spare, max_requests: 1}")
        .start();
    let mut first = proxy.client();
    first.send(GET);
    eventually("it is there", || spare.inside() == 1);
    let answer = proxy.get("/");
    assert_eq!((told(&answer), answer.text()), ((503, None, None), "busy"));
    assert_eq!(refused(&proxy), 1.0);
    spare.open();
    assert_eq!(told(&first.answer()), (200, Some("cluster"), None));
}

/// The limit changes with a reload, and so does the answer; what is kept stays.
#[test]
fn a_reload_changes_it() {
    let (origin, up) = switched(|_| OK.to_owned());
    let setup = |more: &str| {
        before(&origin).one_shard().route(&format!("fallback: {{last_good: {{}}, {more}}}"))
    };
    let proxy = setup("max_requests: 1").start();
    assert_eq!(proxy.get("/").text(), "ok");
    up.store(false, SeqCst);
    assert_eq!(told(&proxy.get("/x")), (503, None, None));
    proxy.reload(&setup("max_requests: 2, respond: {body: sorry}"));
    assert_static(&proxy.get("/x"), "upstream-status");
    assert_eq!(told(&proxy.get("/")), (200, Some("last-good"), Some("upstream-status")));
    proxy.reload(&before(&origin).one_shard());
    assert_eq!(told(&proxy.get("/")), (503, None, None));
    assert_eq!(proxy.metric("outrigger_last_good_answers", &[]), 0.0);
}

// ---- The last good answer ---------------------------------------------------------------------

/// An origin that can be switched off, and what each target gets while it is not.
fn switched(
    answer: impl Fn(&Message) -> String + Send + Sync + 'static,
) -> (Origin, Arc<AtomicBool>) {
    let up = Arc::new(AtomicBool::new(true));
    let is_up = up.clone();
    let origin = Origin::start(move |peer| {
        while let Ok(request) = peer.try_request() {
            let answer = if is_up.load(SeqCst) { answer(&request) } else { FAILURE.to_owned() };
            if peer.try_send(answer).is_err() {
                return;
            }
        }
    });
    (origin, up)
}

const LAST_GOOD: &str = "fallback: {last_good: {refresh: 0s}}";

/// Of one shard, so that it is the one that has seen the answer.
fn remembering(origin: &Origin, fallback: &str) -> Proxy {
    before(origin).one_shard().route(fallback).start()
}

#[track_caller]
fn assert_last_good(answer: &Message, text: &str) {
    assert_eq!(told(answer), (200, Some("last-good"), Some("upstream-status")));
    assert_eq!(answer.text(), text);
    let age: u64 = answer.get("age").expect("an age").parse().expect("seconds");
    assert!(age < 60, "{age}");
    assert_eq!(answer.all("age").len(), 1);
}

#[test]
fn the_last_good_answer_is_given_again() {
    let (origin, up) = switched(|request| {
        let text = request.target().to_owned();
        format!(
            "HTTP/1.1 200 Fine\r\nX-Kind: \t odd\r\nAge: 2\r\nKeep-Alive: timeout=5\r\n\
             Content-Length: {}\r\n\r\n{text}",
            text.len()
        )
    });
    let proxy = before(&origin)
        .one_shard()
        .route(LAST_GOOD)
        .route("response_headers: {set: {x-ours: '1'}, remove: [x-gone]}")
        .start();
    let mut client = proxy.client();
    for path in ["/a", "/b?c"] {
        assert_eq!(client.get(path).text(), path);
    }
    up.store(false, SeqCst);
    for path in ["/a", "/b?c", "/a"] {
        let answer = client.get(path);
        assert_last_good(&answer, path);
        assert!(answer.start.ends_with("200 Fine"), "{}", answer.start);
        assert_eq!((answer.get("x-kind"), answer.get("x-ours")), (Some("odd"), Some("1")));
        assert!(!answer.has("keep-alive"));
        assert!(answer.get("age").unwrap().parse::<u64>().unwrap() >= 2);
    }
    assert_eq!(told(&client.get("/other")), (503, None, None));
    assert_eq!(told(&client.post("/a", "x")), (503, None, None));
    client.send("HEAD /a HTTP/1.1\r\nHost: example.org\r\n\r\n");
    let head = client.answer_to("HEAD");
    assert_eq!(told(&head), (200, Some("last-good"), Some("upstream-status")));
    assert_eq!(head.get("content-length"), Some("2"));
    up.store(true, SeqCst);
    assert_eq!(told(&client.get("/a")), (200, None, None));
    assert_eq!((fallbacks(&proxy, "last-good"), failed(&proxy)), (4.0, 2.0));
    assert_eq!(proxy.metric("outrigger_last_good_answers", &[]), 2.0);
    assert!(proxy.metric("outrigger_last_good_bytes", &[]) > 0.0);
}

/// However it came: in chunks, in pieces, longer than what is spliced. What was cut off is no answer.
#[test]
fn long_answers_are_kept_whole_or_not_at_all() {
    let long = "0123456789".repeat(20_000);
    let whole = long.clone();
    let (origin, up) = switched(move |request| match request.target() {
        "/length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{whole}", whole.len()),
        "/chunked" => {
            let half = whole.len() / 2;
            let (left, right) = whole.split_at(half);
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                 {half:x}\r\n{left}\r\n{:x};x=y\r\n{right}\r\n0\r\n\r\n",
                right.len()
            )
        }
        "/too-long" => {
            let length = whole.len() * 2;
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{whole}{whole}")
        }
        _ => format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{whole}{whole}\r\n0\r\n\r\n",
            whole.len() * 2
        ),
    });
    let proxy = remembering(&origin, "fallback: {last_good: {max_answer_bytes: 200000B}}");
    let mut client = proxy.client();
    for path in ["/length", "/chunked", "/too-long", "/too-long-chunks"] {
        assert!(client.get(path).text().starts_with(&long), "{path}");
    }
    up.store(false, SeqCst);
    for path in ["/length", "/chunked"] {
        assert_last_good(&client.get(path), &long);
    }
    for path in ["/too-long", "/too-long-chunks"] {
        assert_eq!(told(&client.get(path)), (503, None, None), "{path}");
    }
    // To a client in HTTP/1.0, too.
    let old = "GET /chunked HTTP/1.0\r\nHost: example.org\r\n\r\n";
    assert_last_good(&proxy.ask(old), &long);
}

#[test]
fn what_was_cut_off_is_not_kept() {
    let is_first = AtomicBool::new(true);
    let origin = Origin::start(move |peer| {
        if peer.try_request().is_err() {
            return;
        }
        if is_first.swap(false, SeqCst) {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        } else {
            peer.send(FAILURE);
        }
    });
    let proxy = remembering(&origin, LAST_GOOD);
    let mut client = proxy.client();
    client.send(GET);
    client.rest();
    assert_eq!(told(&proxy.get("/")), (503, None, None));
    assert_eq!(proxy.metric("outrigger_last_good_answers", &[]), 0.0);
}

/// A client that leaves in the middle leaves nothing behind.
#[test]
fn the_client_may_leave() {
    let (origin, up) = switched(|_| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 150000\r\n\r\n{}", "x".repeat(150_000))
    });
    let proxy = remembering(&origin, LAST_GOOD);
    for _ in 0..5 {
        let mut client = proxy.client();
        client.send(GET);
        client.answer_head();
        client.into_wire().reset();
    }
    eventually("they are gone", || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0);
    up.store(false, SeqCst);
    let answer = proxy.get("/");
    // What had come from the origin before may be whole.
    assert!(answer.status() == 503 || answer.text().len() == 150_000);
}

#[test]
fn rules_of_shared_caches_hold() {
    let (origin, up) = switched(|request| {
        let (_, lines) = request.target().split_once('?').unwrap();
        let lines = lines.replace('_', " ").replace('~', "\r\n");
        format!("HTTP/1.1 200 OK\r\n{lines}\r\nContent-Length: 2\r\n\r\nok")
    });
    let proxy = remembering(&origin, LAST_GOOD);
    let mut client = proxy.client();
    let asked = |path: &str, lines: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: example.org\r\n{lines}\r\n")
    };
    let cookie = "Cookie: a=b\r\n";
    let cases = [
        ("/?Cache-Control:_max-age=60", "", true),
        ("/?Cache-Control:_no-store", "", false),
        ("/?Cache-Control:_private", "", false),
        ("/?Cache-Control:_no-cache", "", false),
        ("/?Cache-Control:_must-revalidate", "", false),
        ("/?Cache-Control:_max-age=60,_must-revalidate", "", true),
        ("/?Cache-Control:_stale-if-error=0", "", false),
        ("/?Cache-Control:_stale-if-error=60", "", true),
        ("/?Set-Cookie:_a=b", "", false),
        ("/?Vary:_*", "", false),
        ("/?X:_cookie", cookie, false),
        ("/?Cache-Control:_public", cookie, true),
        ("/?X:_authorization", "Authorization: x\r\n", false),
        ("/?X:_request", "Cache-Control: no-store\r\n", false),
    ];
    for (path, lines, _) in cases {
        assert_eq!(client.ask(asked(path, lines)).status(), 200);
    }
    up.store(false, SeqCst);
    for (path, lines, is_kept) in cases {
        let answer = client.ask(asked(path, lines));
        assert_eq!(answer.get("x-outrigger-fallback").is_some(), is_kept, "{path}");
    }
    // Nobody is shown what was kept for others, nor who wants none.
    let kept = "/?Cache-Control:_max-age=60";
    for lines in [cookie, "Authorization: x\r\n", "Cache-Control: no-cache\r\n"] {
        assert_eq!(told(&client.ask(asked(kept, lines))), (503, None, None), "{lines}");
    }
    assert_eq!(told(&client.ask(asked(kept, "").replace("example", "sample"))), (503, None, None));
}

#[test]
fn variants_are_told_apart() {
    let (origin, up) = switched(|request| {
        let text = request.get("accept-language").unwrap_or("none");
        let length = text.len();
        format!(
            "HTTP/1.1 200 OK\r\nVary: Accept-Language\r\nContent-Length: {length}\r\n\r\n{text}"
        )
    });
    let proxy = remembering(&origin, LAST_GOOD);
    let mut client = proxy.client();
    let asked = |language: &str| {
        format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Language: {language}\r\n\r\n")
    };
    for language in ["de", "en"] {
        client.ask(asked(language));
    }
    up.store(false, SeqCst);
    for language in ["en", "de"] {
        assert_last_good(&client.ask(asked(language)), language);
    }
    assert_eq!(client.ask(asked("fr")).status(), 503);
}

#[test]
fn what_is_too_old_or_was_changed_is_not_given() {
    let (origin, up) = switched(|request| {
        let age = if request.target() == "/old" { 50 } else { 0 };
        format!("HTTP/1.1 200 OK\r\nAge: {age}\r\nContent-Length: 2\r\n\r\nok")
    });
    let proxy = remembering(&origin, "fallback: {last_good: {max_age: 51s, refresh: 0s}}");
    let mut client = proxy.client();
    for path in ["/old", "/new", "/changed"] {
        client.get(path);
    }
    client.post("/changed", "x");
    up.store(false, SeqCst);
    assert_last_good(&client.get("/new"), "ok");
    assert_eq!(client.get("/changed").status(), 503);
    eventually("it is too old", || client.get("/old").status() == 503);
    assert_last_good(&client.get("/new"), "ok");
}

/// The store is bounded, and what was asked for least recently goes.
#[test]
fn what_is_kept_is_bounded() {
    let (origin, up) = switched(|_| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}", "x".repeat(1000))
    });
    let proxy =
        remembering(&origin, "fallback: {last_good: {max_bytes: 15000B, max_answer_bytes: 1000B}}");
    let mut client = proxy.client();
    for number in 0..30 {
        client.get(&format!("/{number}"));
    }
    let bytes = proxy.metric("outrigger_last_good_bytes", &[]);
    assert!((13_000.0..=15_000.0).contains(&bytes), "{bytes}");
    let answers = proxy.metric("outrigger_last_good_answers", &[]) as usize;
    up.store(false, SeqCst);
    for number in 0..30 {
        let expected = if number < 30 - answers { 503 } else { 200 };
        assert_eq!(client.get(&format!("/{number}")).status(), expected, "{number}");
    }
}

/// Each shard has its own: one that has not seen the answer has none.
#[test]
fn each_shard_remembers_for_itself() {
    let (origin, up) = switched(|_| OK.to_owned());
    let proxy = before(&origin)
        .shards("count: 2")
        .listener("timeouts: {header: 0s, idle: 0s}")
        .route("fallback: {last_good: {}, respond: {body: sorry}}")
        .start();
    let mut crowds = Crowd::on_each_shard(&proxy, 1);
    assert_eq!(crowds[0].ask().of("200"), 1);
    up.store(false, SeqCst);
    let mut ask = |shard: usize| -> String {
        let client: &mut Client = &mut crowds[shard].0[0];
        client.get("/").text().to_owned()
    };
    assert_eq!((ask(0), ask(1)), ("ok".into(), "sorry".into()));
}

/// A slow reader gets all of it; one that does not read at all is not waited for.
#[test]
fn whoever_reads_slowly_gets_it_all() {
    let text = "0123456789".repeat(20_000);
    let whole = text.clone();
    let (origin, up) = switched(move |_| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{whole}", whole.len())
    });
    let proxy = before(&origin)
        .one_shard()
        .listener("timeouts: {body: 400ms}")
        .route("fallback: {last_good: {refresh: 0s}, max_requests: 2}")
        .start();
    assert_eq!(proxy.get("/").text(), text);
    up.store(false, SeqCst);
    let mut slow = proxy.client();
    slow.hold_little();
    slow.send(GET);
    let head = slow.answer_head();
    assert_eq!(head.get("x-outrigger-fallback"), Some("last-good"));
    let mut read = 0;
    while read < text.len() {
        let count = 4_000.min(text.len() - read);
        assert_eq!(slow.read(count), text.as_bytes()[read..read + count]);
        read += count;
        pause(2);
    }
    assert_eq!(fallbacks(&proxy, "last-good"), 1.0);
}

/// Who does not read at all is not waited for; the log says how much there was of it, and why no more.
#[test]
fn whoever_does_not_read_is_given_up() {
    let whole = "0123456789".repeat(1_000_000);
    let text = whole.clone();
    let (origin, up) = switched(move |_| {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
    });
    let proxy = before(&origin)
        .one_shard()
        .listener("timeouts: {body: 400ms}, access_log: {path: '{dir}/access'}")
        .route(
            "fallback: {last_good: {max_answer_bytes: 16MiB, max_bytes: 64MiB}, max_requests: 1}",
        )
        .start();
    assert_eq!(proxy.get("/").text(), whole);
    up.store(false, SeqCst);
    let mut idle = proxy.client();
    idle.hold_little();
    idle.send(GET);
    assert_eq!(idle.answer_head().get("x-outrigger-fallback"), Some("last-good"));
    eventually("it is given up", || proxy.refusals("client-stalled") == 1.0);
    eventually("the log says so", || {
        let log = std::fs::read_to_string(proxy.path("access")).unwrap_or_default();
        let line = log.lines().find(|line| line.contains("client-stalled")).unwrap_or_default();
        line.contains("\"outrigger.fallback\":\"last-good\"") && !line.contains("10000000")
    });
    // Its place is free again.
    assert_eq!(proxy.get("/").text(), whole);
}

/// A route without a name is named by its place: what was kept there is not another one's.
#[test]
fn what_is_kept_stays_with_its_route() {
    let (one, up) = switched(|_| OK.to_owned());
    let two = Origin::answering(FAILURE);
    let tenant = |name: &str, cluster: &str| {
        format!(
            "match: {{headers: [{{name: x-tenant, exact: {name}}}]}}, cluster: {cluster}, \
             retries: {{attempts: 0}}, fallback: {{last_good: {{refresh: 0s}}}}"
        )
    };
    let setup = |routes: [(&str, &str); 2]| {
        let [first, second] = routes.map(|(name, cluster)| tenant(name, cluster));
        before(&one).one_shard().and_cluster("two", &two).and_route(first).and_route(second)
    };
    let asked = |name: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Tenant: {name}\r\n\r\n");
    let proxy = setup([("one", "app"), ("two", "two")]).start();
    assert_eq!(proxy.ask(asked("one")).text(), "ok");
    assert_eq!(proxy.ask(asked("two")).status(), 503);
    up.store(false, SeqCst);
    assert_last_good(&proxy.ask(asked("one")), "ok");
    proxy.reload(&setup([("two", "two"), ("one", "app")]));
    assert_eq!(told(&proxy.ask(asked("two"))), (503, None, None));
    assert_eq!(told(&proxy.ask(asked("one"))), (503, None, None), "it was another place's");
    up.store(true, SeqCst);
    assert_eq!(proxy.ask(asked("one")).text(), "ok");
    up.store(false, SeqCst);
    assert_last_good(&proxy.ask(asked("one")), "ok");
    // Nor is it given for another cluster.
    proxy.reload(&setup([("two", "app"), ("one", "two")]));
    assert_eq!(told(&proxy.ask(asked("one"))), (503, None, None));
}

/// What a reload says of ages holds for what is kept, too.
#[test]
fn a_reload_may_make_answers_too_old() {
    let (origin, up) =
        switched(|_| "HTTP/1.1 200 OK\r\nAge: 50\r\nContent-Length: 2\r\n\r\nok".to_owned());
    let setup = |age: &str| {
        before(&origin).one_shard().route(&format!("fallback: {{last_good: {{max_age: {age}}}}}"))
    };
    let proxy = setup("1h").start();
    assert_eq!(proxy.get("/").text(), "ok");
    up.store(false, SeqCst);
    proxy.reload(&setup("2h"));
    assert_eq!(told(&proxy.get("/")).1, Some("last-good"));
    proxy.reload(&setup("30s"));
    assert_eq!(told(&proxy.get("/")), (503, None, None));
}

/// In each phase of a fallback the client may leave, or a reload come: then all places are free again.
#[test]
fn whatever_ends_it_the_place_is_free_again() {
    let spare = Gate::shut_from_the_start();
    let setup = |more: &str| {
        at(dead())
            .and_cluster("spare", spare.origin())
            .one_shard()
            .listener("timeouts: {header: 0s, idle: 0s}")
            .route(&format!("fallback: {{cluster: spare, max_requests: 2{more}}}"))
    };
    let proxy = setup("").start();
    for turn in 0..20 {
        let mut clients = [proxy.client(), proxy.client()];
        for client in &mut clients {
            client.send(GET);
        }
        eventually("both are there", || spare.inside() == 2);
        assert_eq!(told(&proxy.get("/")), (503, None, Some("connect-failed")));
        if turn % 4 == 3 {
            proxy.reload(&setup(if turn % 8 == 3 { ", respond: {body: sorry}" } else { "" }));
            // Those that are under way count by the plan of now, too.
            assert_eq!(told(&proxy.get("/")), (503, None, Some("connect-failed")));
        }
        if turn % 2 == 0 {
            for client in clients {
                client.into_wire().reset();
            }
            eventually("they are gone", || spare.inside() == 0);
        } else {
            spare.let_go(2);
            for mut client in clients {
                assert_eq!(told(&client.answer()), (200, Some("cluster"), None));
            }
            eventually("they have left", || spare.inside() == 0);
        }
        eventually("all is over", || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0);
    }
    assert_eq!(spare.peak(), 2);
}

// ---- And without ------------------------------------------------------------------------------

#[test]
fn a_route_without_one_is_as_before() {
    let origin = Origin::answering(FAILURE);
    let proxy = before(&origin).start();
    let answer = proxy.get("/");
    assert_eq!((told(&answer), answer.text()), ((503, None, None), "busy"));
    assert!(!proxy.admin("/metrics").text().contains("outrigger_fallbacks_total{"));
}
