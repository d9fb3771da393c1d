//! Time limits, with short values. That they hold is tested by what happens, never by a clock.

use crate::support::{Client, End, GET, Gate, OK, Origin, Proxy, Setup, eventually, pause};

fn stuck() -> Origin {
    Origin::start(|peer| {
        let _ = peer.try_request();
        let _ = peer.rest();
    })
}

#[track_caller]
fn assert_reason(proxy: &Proxy, client: &mut Client, status: u16, reason: &str) {
    let answer = client.answer();
    assert_eq!(answer.status(), status);
    assert_eq!(answer.get("x-outrigger-reason"), Some(reason));
    eventually("it is counted", || proxy.refusals(reason) == 1.0);
}

#[test]
fn a_head_that_does_not_end() {
    let origin = Origin::answering(OK);
    let proxy =
        Setup::new(&origin).listener("reason_header: true, timeouts: {header: 300ms}").start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHo");
    assert_reason(&proxy, &mut client, 408, "timeout-header");
    client.assert_closed();
}

/// Slowloris: something comes all the time, and it does not help.
#[test]
fn a_head_that_drips() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("timeouts: {header: 500ms}").start();
    for kept in [false, true] {
        let mut client = proxy.client();
        if kept {
            assert_eq!(client.get("/").status(), 200);
        }
        client.send("GET / HTTP/1.1\r\nHost: a\r\n");
        // Ten times as long as it may take.
        let refused = (0..250).any(|_| {
            pause(20);
            client.try_send("X").is_err()
        });
        assert!(refused, "it may drip for ever");
        drop(client);
    }
    eventually("it is counted", || proxy.refusals("timeout-header") == 2.0);
}

/// A byte at a time, with and without line ends among them; the client is told why.
#[test]
fn a_head_that_drips_is_answered() {
    for piece in ["x", "X: y\r\n"] {
        let origin = Origin::answering(OK);
        let proxy =
            Setup::new(&origin).listener("reason_header: true, timeouts: {header: 400ms}").start();
        let mut client = proxy.client();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ");
        let mut bytes = piece.bytes().cycle();
        eventually("it is refused", || {
            let _ = client.try_send([bytes.next().unwrap()]);
            proxy.refusals("timeout-header") == 1.0
        });
        assert_reason(&proxy, &mut client, 408, "timeout-header");
        assert!(origin.received().is_empty());
    }
}

#[test]
fn a_connection_that_says_nothing() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("timeouts: {header: 300ms}").start();
    let mut client = proxy.client();
    let (bytes, end) = client.rest();
    assert!(bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 408 "), "{bytes:?}");
    assert_eq!(end, End::Closed);
}

/// Both before and after an idle connection gives up its task (half a second).
#[test]
fn an_idle_connection() {
    for idle in ["200ms", "1200ms"] {
        let origin = Origin::answering(OK);
        let proxy = Setup::new(&origin).listener(&format!("timeouts: {{idle: {idle}}}")).start();
        let mut client = proxy.client();
        assert_eq!(client.get("/").status(), 200);
        client.assert_closed();
        eventually("it is counted no more", || {
            proxy.metric("outrigger_connections_open", &[]) == 0.0
        });
    }
}

#[test]
fn an_idle_connection_comes_back() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").status(), 200);
        pause(800);
    }
    client.send("GET / HT");
    pause(800);
    client.send("TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
}

#[test]
fn a_body_that_stands_still() {
    let origin = stuck();
    let proxy =
        Setup::new(&origin).listener("reason_header: true, timeouts: {body: 400ms}").start();
    for (index, framing) in
        ["Content-Length: 1000000", "Transfer-Encoding: chunked"].iter().enumerate()
    {
        let mut client = proxy.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n5\r\nhello\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status(), 408, "{framing}");
        assert_eq!(answer.get("x-outrigger-reason"), Some("timeout-body"));
        client.assert_closed();
        eventually("it is counted", || proxy.refusals("timeout-body") == index as f64 + 1.0);
    }
    eventually("the origin is let go", || origin.ended() == 2);
    assert!(origin.requests().is_empty());
}

/// Slowloris in the body: a byte now and then is no progress.
#[test]
fn a_body_that_drips() {
    let origin = stuck();
    let proxy = Setup::new(&origin).listener("timeouts: {body: 600ms}").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    let refused = (0..300).any(|_| {
        pause(20);
        client.try_send("x").is_err()
    });
    assert!(refused, "it may drip for ever");
    eventually("it is counted", || proxy.refusals("timeout-body") == 1.0);
}

/// A slow body that moves as fast as is asked for is left alone.
#[test]
fn a_body_that_is_only_slow() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin)
        .listener("timeouts: {body: 300ms, body_bytes_per_second_min: 100}")
        .start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n");
    for _ in 0..20 {
        pause(50);
        client.send([b'x'; 500]);
    }
    assert_eq!(client.answer().status(), 200);
}

/// A client that does not read.
#[test]
fn a_reader_that_stands_still() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while peer.try_send([b'x'; 65_536]).is_ok() {}
    });
    let proxy = Setup::new(&origin).listener("timeouts: {body: 400ms}").start();
    let mut client = proxy.client();
    client.send(GET);
    eventually("the exchange is ended", || proxy.refusals("client-stalled") == 1.0);
    eventually("the origin is let go", || origin.ended() == 1);
    // Else the kernel would keep for minutes what the client does not read.
    assert_eq!(client.rest().1, End::Reset);
}

/// A client that reads a byte now and then.
#[test]
fn a_reader_that_sips() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while peer.try_send(format!("10000\r\n{}\r\n", "x".repeat(65_536))).is_ok() {}
    });
    let proxy = Setup::new(&origin)
        .listener("timeouts: {body: 1s, body_bytes_per_second_min: 64KiB}")
        .start();
    let mut client = proxy.client();
    client.hold_little();
    client.send(GET);
    let mut sips = 0;
    eventually("the exchange is ended", || {
        if sips < 10_000 && proxy.refusals("client-stalled") == 0.0 {
            sips += 1;
            client.read(1);
            pause(10);
        }
        proxy.refusals("client-stalled") == 1.0
    });
    eventually("the origin is let go", || origin.ended() == 1);
}

#[test]
fn an_answer_that_does_not_come() {
    let origin = stuck();
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .route("timeouts: {answer: 300ms}")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    assert_reason(&proxy, &mut client, 504, "timeout-answer");
    eventually("the origin is let go", || origin.ended() == 1);
    client.send(GET);
    assert_eq!(client.answer().status(), 504, "the client's connection goes on");
}

#[test]
fn an_answer_whose_head_drips() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nX: ");
        while peer.try_send("x").is_ok() {
            pause(20);
        }
    });
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .route("timeouts: {answer: 400ms}")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    assert_reason(&proxy, &mut client, 504, "timeout-answer");
}

/// Interim answers are no answer.
#[test]
fn an_answer_that_is_only_announced() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 103 Early Hints\r\n\r\n");
        let _ = peer.rest();
    });
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .route("timeouts: {answer: 400ms}")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    assert_eq!(client.answer().status(), 103);
    assert_reason(&proxy, &mut client, 504, "timeout-answer");
}

/// The time of an answer begins when the origin has the whole request.
#[test]
fn a_slow_upload_does_not_use_up_the_answers_time() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).route("timeouts: {answer: 400ms}").start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    for _ in 0..10 {
        pause(80);
        client.send("x");
    }
    assert_eq!(client.answer().status(), 200);
}

#[test]
fn an_upload_that_nobody_answers() {
    let origin = stuck();
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .route("timeouts: {answer: 300ms}")
        .start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
    pause(50);
    client.send("0\r\n\r\n");
    assert_reason(&proxy, &mut client, 504, "timeout-answer");
}

const EXPECTANT: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

/// The client waits for a 100, so the origin is late, not the client.
#[test]
fn an_expectation_that_nobody_answers() {
    let origin = stuck();
    let proxy = Setup::new(&origin)
        .listener("reason_header: true, timeouts: {body: 200ms}")
        .route("timeouts: {answer: 600ms}")
        .start();
    let mut client = proxy.client();
    client.send(EXPECTANT);
    assert_reason(&proxy, &mut client, 504, "timeout-answer");
    client.assert_closed();
    assert_eq!(proxy.refusals("timeout-body"), 0.0);
    eventually("the origin is let go", || origin.ended() == 1);
}

/// Once it has its 100, or has not waited for it, it is the client's turn.
#[test]
fn a_client_that_may_continue_and_does_not() {
    for (interim, begun) in [(true, ""), (true, "hel"), (false, "hel")] {
        let origin = Origin::start(move |peer| {
            peer.request_head();
            if interim {
                peer.send("HTTP/1.1 100 Continue\r\n\r\n");
            }
            let _ = peer.rest();
        });
        let proxy =
            Setup::new(&origin).listener("reason_header: true, timeouts: {body: 400ms}").start();
        let mut client = proxy.client();
        client.send(EXPECTANT);
        if interim {
            assert_eq!(client.answer().status(), 100);
        }
        client.send(begun);
        assert_reason(&proxy, &mut client, 408, "timeout-body");
        client.assert_closed();
    }
}

/// An origin that takes nothing of an upload.
#[test]
fn an_upload_that_nobody_reads() {
    let origin = Origin::start(|peer| {
        peer.hold_little();
        peer.request_head();
        pause(8_000);
    });
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .route("timeouts: {answer: 500ms}")
        .start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    let block = vec![b'x'; 1 << 20];
    let mut quiet = 0;
    while quiet < 20 {
        match client.send_some(&block) {
            0 => {
                quiet += 1;
                pause(10);
            }
            _ => quiet = 0,
        }
    }
    let answer = client.answer();
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.get("x-outrigger-reason"), Some("timeout-answer"));
}

#[test]
fn an_answer_that_stands_still() {
    for head in
        ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
    {
        let origin = Origin::start(move |peer| {
            peer.request();
            peer.send(format!("HTTP/1.1 200 OK\r\n{head}"));
            let _ = peer.rest();
        });
        let proxy = Setup::new(&origin).route("timeouts: {stream_idle: 300ms}").start();
        let mut client = proxy.client();
        client.send(GET);
        assert!(client.try_answer().is_err(), "a part never looks like a whole");
        eventually("it is counted", || proxy.refusals("timeout-stream-idle") == 1.0);
        eventually("the origin is let go", || origin.ended() == 1);
    }
}

#[test]
fn an_answer_that_moves_is_left_alone() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        for _ in 0..10 {
            pause(100);
            peer.send("x");
        }
    });
    let proxy = Setup::new(&origin)
        .route("timeouts: {stream_idle: 500ms, answer: 300ms}")
        .listener("timeouts: {body: 300ms}")
        .start();
    assert_eq!(proxy.get("/").text(), "xxxxxxxxxx", "only clients are asked to hurry");
}

#[test]
fn an_exchange_may_have_a_limit_of_its_own() {
    let origin = stuck();
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .route("timeouts: {total: 300ms}")
        .start();
    let mut client = proxy.client();
    client.send(GET);
    assert_reason(&proxy, &mut client, 504, "timeout-total");

    // An answer that drips is cut off by it.
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while peer.try_send("1\r\nx\r\n").is_ok() {
            pause(20);
        }
    });
    let proxy = Setup::new(&origin).route("timeouts: {total: 500ms}").start();
    let mut client = proxy.client();
    client.send(GET);
    assert!(client.try_answer().is_err(), "a part never looks like a whole");
    eventually("it is counted", || proxy.refusals("timeout-total") == 1.0);

    // So is an upload that drips.
    let origin = stuck();
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .route("timeouts: {total: 500ms}")
        .start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
    assert_reason(&proxy, &mut client, 504, "timeout-total");
}

// ---- Callers' deadlines -----------------------------------------------------------------------

const TRUSTED: &str = "forwarded: {trusted: {cidrs: ['127.0.0.0/8']}}, reason_header: true";

fn with_deadline(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

/// What is left of the caller's time is told to the origin, by both names.
#[test]
fn a_deadline_is_passed_on_with_what_is_left() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener(TRUSTED).route("timeouts: {answer: 10m}").start();
    for line in ["x-request-deadline", "X-Envoy-Expected-Rq-Timeout-Ms"] {
        let request = with_deadline(&format!("{line}: 60000\r\n"));
        assert_eq!(proxy.client().ask(request).status(), 200);
        let sent = origin.last_request();
        let left: u64 = sent.get("x-request-deadline").unwrap().trim().parse().unwrap();
        assert!((1..=60_000).contains(&left), "{left}");
        assert_eq!(sent.get("x-envoy-expected-rq-timeout-ms"), sent.get("x-request-deadline"));
    }
    // The head took its time.
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n");
    pause(50);
    client.send("x-request-deadline: 60000\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    let left: u64 =
        origin.last_request().get("x-request-deadline").unwrap().trim().parse().unwrap();
    assert!((1..=59_950).contains(&left), "{left}");
}

/// Whoever has less time of us knows it.
#[test]
fn a_deadline_told_is_no_longer_than_our_own_limits() {
    for (limits, tries, most) in [
        ("timeouts: {answer: 7s}", "attempts: 0", 7_000),
        ("timeouts: {answer: 5s, total: 5s}", "attempts: 0", 5_000),
        ("timeouts: {answer: 5s, total: 5s}", "attempts: 1, try_timeout: 2s", 2_000),
    ] {
        let origin = Origin::answering(OK);
        let proxy = Setup::new(&origin).listener(TRUSTED).route(limits).retries(tries).start();
        let request = with_deadline("x-request-deadline: 60000\r\n");
        assert_eq!(proxy.client().ask(request).status(), 200);
        let sent = origin.last_request();
        let left: u64 = sent.get("x-request-deadline").unwrap().trim().parse().unwrap();
        assert!((most / 2..=most).contains(&left), "{limits}: {left}");
    }
}

/// What was waited for a connection is gone.
#[test]
fn a_deadline_is_told_when_the_request_is_sent() {
    let gate = Gate::shut_from_the_start();
    let proxy = gate
        .setup()
        .listener("forwarded: {trusted: {cidrs: ['127.0.0.0/8']}}")
        .cluster("limits: {max_connections: 1, pending_timeout: 60s}")
        .one_shard()
        .start();
    let mut first = proxy.client();
    first.send(GET);
    eventually("the connection is used", || gate.inside() == 1);
    let mut second = proxy.client();
    second.send(with_deadline("x-request-deadline: 14000\r\n"));
    pause(400);
    gate.open();
    assert_eq!(first.answer().status(), 200);
    assert_eq!(second.answer().status(), 200);
    let sent = gate.origin().last_request();
    let left: u64 = sent.get("x-request-deadline").unwrap().trim().parse().unwrap();
    assert!(left <= 13_700, "{left}");
}

#[test]
fn a_strangers_deadline_is_no_deadline() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).start();
    let request = with_deadline("x-request-deadline: 0\r\nx-envoy-expected-rq-timeout-ms: 0\r\n");
    assert_eq!(proxy.client().ask(request).status(), 200);
    let sent = origin.last_request();
    assert_eq!(sent.get("x-request-deadline"), None);
    assert_eq!(sent.get("x-envoy-expected-rq-timeout-ms"), None);
}

/// And it says nothing about the endpoint: whoever gives too little time would open its breaker.
#[test]
fn a_deadline_ends_the_wait() {
    let gate = Gate::shut_from_the_start();
    let proxy = gate
        .setup()
        .listener("forwarded: {trusted: {cidrs: ['127.0.0.0/8']}}")
        .cluster("breaker: {consecutive_failures: 1}")
        .start();
    for _ in 0..3 {
        let answer = proxy.client().ask(with_deadline("x-request-deadline: 40\r\n"));
        let reason = answer.get("x-outrigger-reason");
        assert_eq!((answer.status(), reason), (504, Some("timeout-deadline")));
    }
    assert_eq!(gate.arrived(), 3);
    let answer = proxy.client().ask(with_deadline("x-request-deadline: 0\r\n"));
    assert_eq!(
        (answer.status(), answer.get("x-outrigger-reason")),
        (504, Some("timeout-deadline"))
    );
    assert_eq!(gate.arrived(), 3, "there was no time left to ask");
    gate.open();
    assert_eq!(proxy.get("/").status(), 200);
}

/// The next try has less time, and knows it.
#[test]
fn a_retry_is_told_what_is_left_then() {
    let origin = Origin::start(|peer| {
        peer.request();
        if peer.number == 0 {
            pause(100);
            return;
        }
        peer.send(OK);
    });
    let proxy = Setup::new(&origin)
        .listener(TRUSTED)
        .cluster("retry_budget: {min_per_second: 1000000}")
        .retries("attempts: 1")
        .start();
    let answer = proxy.client().ask(with_deadline("x-request-deadline: 60000\r\n"));
    assert_eq!(answer.status(), 200);
    let left: Vec<u64> = origin
        .requests()
        .iter()
        .map(|it| it.get("x-request-deadline").unwrap().trim().parse().unwrap())
        .collect();
    assert!(left[0] <= 60_000 && left[1] + 100 <= left[0], "{left:?}");
}
