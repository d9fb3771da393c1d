//! Retries: what is worth one, where it goes, and what pays for it.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::support::{
    Client, Crowd, GET, Gate, OK, Origin, Peer, Setup, eventually, pause, with_shards,
};

/// The breaker stays out of it.
const NO_BREAKER: &str = "breaker: {consecutive_failures: 0, failure_ratio: 0}";

const FAILURE: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";

/// An address at which nobody listens.
fn dead() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// A listener whose queue is full: whoever connects to it hears nothing.
pub fn full_backlog() -> (Socket, Vec<TcpStream>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().ok().and_then(|it| it.as_socket()).expect("an address");
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let filling = (0..16).map_while(connect).collect();
    (listener, filling)
}

/// Reads each request's head, does this, and closes.
fn failing(fail: impl Fn(&mut Peer) + Send + Sync + 'static) -> Origin {
    Origin::start(move |peer| {
        if peer.try_request().is_ok() {
            fail(peer);
        }
    })
}

/// Retries may be had from the first moment on: with the usual budget, a process that has just begun
/// has none.
const PAID: &str = "retry_budget: {ratio: 1, min_per_second: 1000000}";

fn setup(endpoints: &[SocketAddr]) -> Setup {
    unpaid(endpoints).cluster(PAID)
}

/// The test says what pays.
fn unpaid(endpoints: &[SocketAddr]) -> Setup {
    // Between shards, leave may come too late on a busy machine.
    Setup::at(endpoints).listener("reason_header: true").cluster(NO_BREAKER).one_shard()
}

fn put(path: &str, length: usize) -> String {
    let mut request = format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    request.extend(std::iter::repeat_n('b', length));
    request
}

/// Whether something has come for a client, without reading it.
fn has_answer(client: &Client) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(client.stream_again(), &mut [0; 1], flags).is_ok()
}

// ---- What is worth another try ---------------------------------------------------------------

/// By default, whatever the method: nothing was sent.
#[test]
fn who_does_not_listen_is_passed_over() {
    let origin = Origin::answering(OK);
    let proxy = setup(&[dead(), origin.address(), dead()]).retries("attempts: 2").start();
    let mut client = proxy.client();
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        for _ in 0..6 {
            let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.ask(request).text(), "ok", "{method}");
        }
    }
    assert_eq!(origin.requests().len(), 24);
    assert!(origin.requests().iter().all(|request| request.body == b"hi"));
}

/// By default, too, and uploads that have not begun: none of it was sent.
#[test]
fn an_upload_waits_for_who_listens() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            peer.answer(&request.body.len().to_string());
        }
    });
    let proxy = setup(&[dead(), origin.address()]).retries("attempts: 1").start();
    for _ in 0..4 {
        let mut client = proxy.client();
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n");
        pause(20);
        client.send("1\r\n!\r\n0\r\n\r\n");
        assert_eq!(client.answer().text(), "6");
    }
}

#[test]
fn a_connection_that_breaks_is_tried_elsewhere() {
    let fail: [fn(&mut Peer); 4] = [
        |_| {},
        |peer| peer.reset(),
        |peer| peer.send("HTTP/1.1 200"),
        |peer| peer.send("nonsense\r\n\r\n"),
    ];
    for (number, fail) in fail.into_iter().enumerate() {
        let (bad, good) = (failing(fail), Origin::answering(OK));
        let proxy = setup(&[bad.address(), good.address()]).retries("attempts: 1").start();
        let mut client = proxy.client();
        for _ in 0..6 {
            assert_eq!(client.get("/").text(), "ok", "{number}");
        }
        assert!(bad.connections() >= 2);
        assert_eq!(proxy.metric("outrigger_retries_total", &[]), bad.connections() as f64);
        eventually("all are counted", || {
            proxy.metric("outrigger_retries_succeeded_total", &[]) == bad.connections() as f64
        });
    }
}

/// The origin may have acted on it.
#[test]
fn a_post_that_was_sent_is_not_sent_again() {
    for (more, is_retried) in [("attempts: 1", false), ("non_idempotent: true", true)] {
        let (bad, good) = (failing(|_| {}), Origin::answering(OK));
        let proxy = setup(&[bad.address(), good.address()]).retries(more).start();
        let mut failed = 0;
        for _ in 0..6 {
            let answer = proxy.client().post("/", "hi");
            failed += usize::from(answer.status() == 502);
            assert!(matches!(answer.status(), 200 | 502));
        }
        let sent = bad.requests().len() + good.requests().len();
        assert_eq!(sent, if is_retried { 6 + bad.requests().len() } else { 6 });
        assert_eq!(failed, if is_retried { 0 } else { bad.requests().len() });
        assert!(bad.requests().len() >= 2);
    }
}

/// Something of the answer has reached the client.
#[test]
fn a_begun_answer_is_final() {
    let bad = failing(|peer| peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"));
    let proxy = setup(&[bad.address()]).retries("attempts: 3").start();
    let mut client = proxy.client();
    client.send(GET);
    let (bytes, _) = client.rest();
    assert!(bytes.ends_with(b"half"));
    assert_eq!(bad.connections(), 1);
}

#[test]
fn statuses_are_retried_where_the_route_says_so() {
    let retried = |on: &str, status: u16| {
        let origin = Origin::start(move |peer| {
            while peer.try_request().is_ok() {
                peer.send(format!("HTTP/1.1 {status} Oh\r\nContent-Length: 2\r\n\r\noh"));
            }
        });
        let proxy = setup(&[origin.address()])
            .retries(&format!("attempts: 2, backoff: 0s, max_backoff: 0s, {on}"))
            .start();
        let answer = proxy.get("/");
        assert_eq!((answer.status(), answer.text()), (status, "oh"), "{on}");
        origin.requests().len() == 3
    };
    for status in [500, 502, 503, 504, 599] {
        assert!(!retried("on: [connect-failure, reset]", status));
        assert!(retried("on: [5xx]", status));
        assert_eq!(retried("on: [gateway-error]", status), (502..=504).contains(&status));
    }
    assert!(retried("on: [retriable-4xx]", 409));
    assert!(!retried("on: [retriable-4xx, 5xx]", 429));
    assert!(retried("on: [retriable-status], statuses: [429]", 429));
    assert!(!retried("on: [retriable-status], statuses: [429]", 500));
}

#[test]
fn a_try_that_takes_too_long_is_tried_elsewhere() {
    let slow = failing(|peer| drop(peer.rest()));
    let good = Origin::answering(OK);
    let proxy = setup(&[slow.address(), good.address()]).retries("try_timeout: 50ms").start();
    let mut client = proxy.client();
    for _ in 0..4 {
        assert_eq!(client.get("/").text(), "ok");
    }
    assert!(slow.connections() > 0);

    let alone = setup(&[slow.address()]).retries("try_timeout: 50ms").start();
    let before = slow.connections();
    let answer = alone.get("/");
    assert_eq!((answer.status(), answer.get("x-outrigger-reason")), (504, Some("timeout-try")));
    assert_eq!(slow.connections() - before, 2);
}

/// `timeouts.answer` is for all tries together.
#[test]
fn tries_share_the_time_for_an_answer() {
    let slow = failing(|peer| drop(peer.rest()));
    let proxy = setup(&[slow.address()])
        .retries("attempts: 10, try_timeout: 300ms, backoff: 0s, max_backoff: 0s")
        .route("timeouts: {answer: 1s}")
        .start();
    let answer = proxy.get("/");
    assert_eq!((answer.status(), answer.get("x-outrigger-reason")), (504, Some("timeout-answer")));
    assert!((2..=4).contains(&slow.connections()), "{}", slow.connections());
}

/// A try that begins late has not had its time when that of the request is up: its endpoint is not
/// to blame.
#[test]
fn who_was_asked_late_is_not_blamed() {
    let (slow, good) = (Gate::shut_from_the_start(), Gate::shut_from_the_start());
    slow.reset();
    let proxy = Setup::to(&[slow.origin(), good.origin()])
        .listener("reason_header: true, timeouts: {header: 0s, idle: 0s}")
        .cluster(
            "breaker: {consecutive_failures: 1, failure_ratio: 0, open_time: 60s, max_ejected: 1}",
        )
        .cluster(PAID)
        .retries("attempts: 1, backoff: 0s, max_backoff: 0s")
        .route("timeouts: {answer: 2s}")
        .one_shard()
        .start();
    let mut client = proxy.client();
    // Until the first try was at the one that fails.
    loop {
        client.send(GET);
        eventually("it is there", || slow.inside() + good.inside() == 1);
        if slow.inside() == 1 {
            break;
        }
        good.let_go(1);
        assert_eq!(client.answer().status(), 200);
    }
    pause(1500);
    slow.let_go(1);
    let answer = client.answer();
    assert_eq!((answer.status(), answer.get("x-outrigger-reason")), (504, Some("timeout-answer")));
    assert_eq!(good.inside() + good.gone(), 1, "the second try was there");
    good.open();
    assert_eq!(client.get("/").status(), 200);
}

/// Connecting, too, is a part of the time for an answer.
#[test]
fn a_retry_does_not_connect_for_longer_than_it_may_take() {
    let (full, _filling) = full_backlog();
    let busy = Origin::start(|peer| {
        if peer.try_request().is_ok() {
            pause(300);
            peer.send(FAILURE);
        }
    });
    let proxy = setup(&[busy.address(), full.local_addr().unwrap().as_socket().unwrap()])
        .cluster("timeouts: {connect: 2s}, balance: random")
        .retries("attempts: 1, on: [5xx], backoff: 0s, max_backoff: 0s")
        .route("timeouts: {answer: 1s}")
        .start();
    // Until the one that answers was asked first.
    let mut client = proxy.client();
    let mut late = |_: &i32| {
        let answer = client.get("/");
        let reason = answer.get("x-outrigger-reason");
        assert!(matches!(reason, None | Some("timeout-answer")), "{reason:?}");
        reason.is_some()
    };
    assert!((0..30).any(|number| late(&number)));
}

/// Somebody who has said all that there is to say still wants to hear the answer.
#[test]
fn a_half_closed_client_sees_the_retry() {
    let origin = Origin::answering(OK);
    let proxy = setup(&[dead(), origin.address()]).retries("attempts: 1").start();
    let answered = |_: &usize| {
        let mut client = proxy.client();
        client.send(GET);
        client.shutdown_write();
        client.rest().0.ends_with(b"ok")
    };
    // On a busy machine one may have waited for so long that it seems to have left.
    assert!((0..12).filter(answered).count() > 8);
}

// ---- Where it goes ----------------------------------------------------------------------------

/// Not to one that was tried, as long as there is another.
#[test]
fn each_try_goes_to_another_endpoint() {
    for balance in ["round_robin", "least_request", "random", "{maglev: {key: source_address}}"] {
        let bad: Vec<Origin> = (0..3).map(|_| Origin::answering(FAILURE)).collect();
        let good = Origin::answering(OK);
        let mut endpoints: Vec<_> = bad.iter().map(Origin::address).collect();
        endpoints.push(good.address());
        let proxy = setup(&endpoints)
            .one_shard()
            .cluster(&format!("balance: {balance}"))
            .retries("attempts: 3, on: [5xx], backoff: 0s, max_backoff: 0s")
            .start();
        let mut client = proxy.client();
        for number in 1..=20 {
            assert_eq!(client.get("/").text(), "ok", "{balance}");
            assert_eq!(good.requests().len(), number);
            assert!(bad.iter().all(|bad| bad.requests().len() <= number), "{balance}");
        }
    }
}

/// A body that may have to be sent again is received first.
#[test]
fn a_body_is_sent_again() {
    for length in [10, 20_000, 60_000] {
        let (bad, good) = (failing(|_| {}), Origin::answering(OK));
        let proxy = setup(&[bad.address(), good.address()]).retries("attempts: 1").start();
        for _ in 0..4 {
            let mut client = proxy.client();
            let request = put("/", length);
            let (first, second) = request.split_at(request.len() / 2);
            client.send(first);
            pause(5);
            client.send(second);
            assert_eq!(client.answer().status(), 200, "{length}");
        }
        assert!(!bad.requests().is_empty());
        let all = [bad.requests(), good.requests()].concat();
        assert!(all.iter().all(|it| it.body == vec![b'b'; length]), "{length}");
        assert_eq!(good.requests().len(), 4);
    }
}

#[test]
fn a_body_that_is_too_long_is_sent_as_it_comes() {
    let (bad, good) = (failing(|_| {}), Origin::answering(OK));
    let proxy = setup(&[bad.address(), good.address()]).retries("body_bytes_max: 1KiB").start();
    let mut statuses: Vec<u16> =
        (0..4).map(|_| proxy.client().ask(put("/", 60_000)).status()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 502, 502]);
}

// ---- What pays for it -------------------------------------------------------------------------

/// The client gets what there is: here the answer, with its body.
#[test]
fn without_a_budget_there_is_no_retry() {
    with_shards(&[1, 4], |shards| {
        let origin = Origin::answering(FAILURE);
        let proxy = unpaid(&[origin.address()])
            .shards(&format!("count: {shards}"))
            .cluster("retry_budget: {ratio: 0, min_per_second: 0}")
            .retries("on: [5xx]")
            .start();
        let answer = proxy.get("/");
        assert_eq!((answer.status(), answer.text()), (503, "busy"));
        assert_eq!(origin.requests().len(), 1);
        let refused =
            |why: &str| proxy.metric(&format!("outrigger_retries_refused_{why}_total"), &[]);
        assert_eq!(refused("budget") + refused("limit"), 1.0);
    });
}

/// Everything fails: no more than a fifth more arrives than was asked for, however many shards there are.
#[test]
fn the_budget_holds_for_all_shards_together() {
    const ROUNDS: usize = 20;
    with_shards(&[1, 2, 4, 8], |shards| {
        let origin = Origin::answering(FAILURE);
        let proxy = unpaid(&[origin.address()])
            .shards(&format!("count: {shards}"))
            .cluster("retry_budget: {ratio: 0.2, min_per_second: 0, ttl: 60s}")
            .retries("attempts: 3, on: [5xx], backoff: 0s, max_backoff: 0s")
            .start();
        let mut crowd = Crowd::connect(&proxy, 10 * shards);
        (0..ROUNDS).for_each(|_| crowd.ask().assert_all("503"));
        let asked = 10 * shards * ROUNDS;
        let extra = origin.requests().len() - asked;
        assert!(extra <= asked / 5, "{extra} of {asked}");
        assert!(extra >= asked / 10, "{extra} of {asked}: the budget is there to be used");
        assert_eq!(proxy.metric("outrigger_retries_total", &[]), extra as f64);
    });
}

/// The minimum is the process's, not each shard's.
#[test]
fn the_minimum_holds_for_all_shards_together() {
    with_shards(&[1, 4, 8], |shards| {
        let began = Instant::now();
        let origin = Origin::answering(FAILURE);
        let proxy = unpaid(&[origin.address()])
            .shards(&format!("count: {shards}"))
            .cluster("retry_budget: {ratio: 0, min_per_second: 10, ttl: 2s}")
            .retries("on: [5xx], backoff: 0s, max_backoff: 0s")
            .start();
        pause(300);
        let mut crowd = Crowd::connect(&proxy, 10 * shards);
        (0..5).for_each(|_| crowd.ask().assert_all("503"));
        let most = (10.0 * began.elapsed().as_secs_f64()).ceil() as usize;
        let extra = origin.requests().len() - 50 * shards;
        assert!((3..=most).contains(&extra), "{extra} of {most}");
    });
}

/// `max_retries` are in flight, and not one more: those beyond get the answer that there is.
#[test]
fn retries_in_flight_are_limited_exactly() {
    const LIMIT: usize = 3;
    with_shards(&[1, 2, 4, 8], |shards| {
        // Each path fails at first; the second time it is held.
        let seen = Mutex::new(HashSet::new());
        let gate = std::sync::Arc::new((Mutex::new((0, false)), std::sync::Condvar::new()));
        let held = gate.clone();
        let origin = Origin::start(move |peer| {
            while let Ok(request) = peer.try_request() {
                if seen.lock().unwrap().insert(request.target().to_owned()) {
                    peer.send(FAILURE);
                    continue;
                }
                let mut hall = held.0.lock().unwrap();
                hall.0 += 1;
                drop(held.1.wait_while(hall, |hall| !hall.1).unwrap());
                if peer.try_send(OK).is_err() {
                    return;
                }
            }
        });
        let proxy = setup(&[origin.address()])
            .shards(&format!("count: {shards}"))
            .cluster(&format!("limits: {{max_retries: {LIMIT}}}"))
            .retries("on: [5xx], backoff: 0s, max_backoff: 0s")
            .start();
        let held = || gate.0.lock().unwrap().0;
        let mut idle = Crowd::connect(&proxy, 6 * shards).0;
        let mut waiting: Vec<Client> = Vec::new();
        let mut paths = 0..;
        // One after the other, until as many wait as may: a shard that lacks leave asks for it, but not
        // for long, and then its client gets the answer that there is.
        eventually("as many are held as may be", || {
            let mut client = idle.remove(0);
            let before = held();
            client.send(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", paths.next().unwrap()));
            eventually("it is held, or answered", || held() > before || has_answer(&client));
            if held() > before {
                waiting.push(client);
            } else {
                assert_eq!(client.answer().status(), 503);
                idle.push(client);
            }
            waiting.len() == LIMIT
        });
        for client in &mut idle {
            assert_eq!(client.get(&format!("/{}", paths.next().unwrap())).status(), 503);
        }
        assert_eq!(held(), LIMIT);
        gate.0.lock().unwrap().1 = true;
        gate.1.notify_all();
        for client in &mut waiting {
            assert_eq!(client.answer().status(), 200);
        }
        // They are over: there is leave again, also for a shard that had none.
        let last = idle.last_mut().unwrap();
        eventually("there is leave again", || {
            last.get(&format!("/{}", paths.next().unwrap())).status() == 200
        });
    });
}

// ---- When it goes -----------------------------------------------------------------------------

#[test]
fn retry_after_is_waited_for() {
    let busy = |seconds: &'static str| {
        Origin::start(move |peer| {
            let mut answer =
                format!("HTTP/1.1 503 Busy\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n");
            while peer.try_request().is_ok() {
                peer.send(std::mem::replace(&mut answer, OK.into()));
            }
        })
    };
    let origin = busy("1");
    let proxy = setup(&[origin.address()]).retries("on: [5xx]").start();
    let began = Instant::now();
    assert_eq!(proxy.get("/").status(), 200);
    assert!(began.elapsed() >= Duration::from_secs(1));

    let origin = busy("2");
    let proxy = setup(&[origin.address()]).retries("on: [5xx]").start();
    let answer = proxy.get("/");
    assert_eq!((answer.status(), answer.get("retry-after")), (503, Some("2")));
    assert_eq!(origin.requests().len(), 1);
}

/// Nobody would read the answer.
#[test]
fn a_client_that_leaves_ends_the_pause() {
    let origin =
        Origin::answering("HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n");
    let proxy = setup(&[origin.address()])
        .one_shard()
        .retries("on: [5xx], max_retry_after: 2h")
        .route("timeouts: {answer: 0s}")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    eventually("it has failed once", || origin.requests().len() == 1);
    pause(50);
    assert_eq!(proxy.metric("outrigger_requests_in_flight", &[]), 1.0);
    drop(client);
    eventually("it is over", || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0);
    assert_eq!(origin.requests().len(), 1);
    assert_eq!(proxy.metric("outrigger_retries_total", &[]), 0.0);
}

/// A drain waits for it, and ends it when its time is up.
#[test]
fn a_drain_ends_the_pause() {
    let origin =
        Origin::answering("HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n");
    let mut proxy = setup(&[origin.address()])
        .section("shutdown: {drain_timeout: 200ms}")
        .retries("on: [5xx], max_retry_after: 2h")
        .route("timeouts: {answer: 0s}")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    eventually("it has failed once", || origin.requests().len() == 1);
    proxy.signal(Signal::TERM);
    assert!(proxy.exit().success());
}

// ---- Together with breakers -------------------------------------------------------------------

/// A probe that fails goes elsewhere, and only one was sent.
#[test]
fn a_failed_probe_is_tried_elsewhere() {
    let (bad, good) = (Gate::new(), Gate::new());
    bad.fail();
    let proxy = Setup::to(&[bad.origin(), good.origin()])
        .one_shard()
        .listener("reason_header: true")
        .cluster("breaker: {consecutive_failures: 1, open_time: 300ms, max_open_time: 300ms}")
        .cluster(PAID)
        .retries("on: [5xx], backoff: 0s, max_backoff: 0s")
        .start();
    let mut client = proxy.client();
    let mut asked = 0;
    eventually("several probes were sent", || {
        asked += 1;
        assert_eq!(client.get("/").status(), 200);
        bad.arrived() >= 4
    });
    assert_eq!(good.arrived(), asked);
}

/// The breaker of a route sees a request as one, however often it is tried.
#[test]
fn a_route_sees_one_request() {
    let (bad, good) = (Origin::answering(FAILURE), Origin::answering(OK));
    let proxy = Setup::to(&[&bad, &good])
        .listener("reason_header: true")
        .cluster("breaker: {consecutive_failures: 3, failure_ratio: 0, max_ejected: 0}")
        .cluster(PAID)
        .retries("on: [5xx], backoff: 0s, max_backoff: 0s")
        .route("breaker: true")
        .one_shard()
        .start();
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").status(), 200);
    }
    let state = |kind: &str| {
        let kind = format!("kind=\"{kind}\"");
        proxy.metric("outrigger_breaker_state", &[&kind, "state=\"closed\""])
    };
    assert_eq!(state("route"), 1.0);
}
