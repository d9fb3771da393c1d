//! How many requests may come in a time: by route, client and header, over all shards together,
//! exactly.

use std::time::{Duration, Instant};

use crate::stalled::Stalled;
use crate::support::{Client, Crowd, Gate, Message, Origin, Proxy, Setup, eventually, with_shards};

const SHARDS: [usize; 4] = [1, 2, 4, 8];

/// So slow that nothing is refilled during a test; and nobody gives up waiting for another shard.
const NEVER_AGAIN: &str = "per: 1h, home_timeout: 60s";

/// One limit `few` for the usual route.
fn limited(gate: &Gate, shards: usize, limit: &str) -> Setup {
    limited_by(gate.setup(), shards, &format!("{{name: few, {NEVER_AGAIN}, {limit}}}"), "few")
}

/// These limits, of which the usual route names some.
fn limited_by(setup: Setup, shards: usize, limits: &str, named: &str) -> Setup {
    setup
        .shards(&format!("count: {shards}"))
        .section(&format!("rate_limits: [{limits}]"))
        .route(&format!("rate_limits: [{named}]"))
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

/// Status and reason.
#[track_caller]
fn said(answer: &Message) -> (u16, &str) {
    (answer.status(), answer.get("x-outrigger-reason").unwrap_or("none"))
}

const REFUSED: (u16, &str) = (429, "rate-limited");

/// How many of so many requests with these fields are admitted, each on a connection of its own.
#[track_caller]
fn admitted(proxy: &Proxy, fields: &str, count: usize) -> usize {
    let mut crowd = Crowd::connect(proxy, count);
    crowd.send(get(fields));
    let answers = crowd.answers();
    assert_eq!(answers.of("200") + answers.of("429 rate-limited"), count, "{answers:?}");
    answers.of("200")
}

#[track_caller]
fn counted(proxy: &Proxy, what: &str, limit: &str) -> f64 {
    let label = format!("limit=\"{limit}\"");
    proxy.metric(&format!("outrigger_rate_limit_{what}"), &[&label])
}

/// Whichever shards they come to: so many pass, and not one more or less.
#[test]
fn exactly_the_burst_passes() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = limited(&gate, shards, "requests: 7").start();
        let mut crowd = Crowd::connect(&proxy, 200);
        let answers = crowd.ask();
        let passed = (answers.of("200"), answers.of("429 rate-limited"));
        assert_eq!(passed, (7, 193), "{shards} shards: {answers:?}");
        crowd.ask().assert_all("429 rate-limited");
        assert_eq!(gate.arrived(), 7);
        assert_eq!(counted(&proxy, "admitted_total", "few"), 7.0);
        assert_eq!(counted(&proxy, "refused_total", "few"), 393.0);
        assert_eq!(proxy.refusals("rate-limited"), 393.0);
        assert_eq!(counted(&proxy, "unanswered_total", "few"), 0.0);
    });
}

/// Large enough that shards get some in advance: what one has left is there for the others.
#[test]
fn nothing_is_stranded_on_a_shard() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = limited(&gate, shards, "requests: 150").start();
        let mut passed = 0;
        // One shard after the other, and the first one is not done with what it was given.
        for mut crowd in Crowd::on_each_shard(&proxy, 12) {
            for _ in 0..150 / shards / 12 {
                passed += crowd.ask().of("200");
            }
        }
        let mut rest = Crowd::connect(&proxy, 40);
        for _ in 0..5 {
            passed += rest.ask().of("200");
        }
        assert_eq!((passed, gate.arrived()), (150, 150), "{shards} shards");
    });
}

/// Never more than the burst and what time brings; and it does bring something.
#[test]
fn tokens_come_back_with_time() {
    with_shards(&[1, 4], |shards| {
        let gate = Gate::new();
        let limit = "{name: few, requests: 50, burst: 2, home_timeout: 60s}";
        let proxy = limited_by(gate.setup(), shards, limit, "few").start();
        let mut crowd = Crowd::connect(&proxy, 12);
        let began = Instant::now();
        let mut passed = 0;
        eventually("enough have passed", || {
            passed += crowd.ask().of("200");
            passed >= 20
        });
        let most = 2 + began.elapsed().as_millis() / 20;
        assert!(passed as u128 <= most, "{passed} of at most {most}");
        assert_eq!(gate.arrived(), passed);
    });
}

#[test]
fn each_client_has_a_bucket() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let proxy = limited(&gate, shards, "key: [client], requests: 3")
            .listener("forwarded: {trusted: {cidrs: [127.0.0.0/8]}}")
            .start();
        for client in ["192.0.2.1", "192.0.2.2", "2001:db8:0:1::5"] {
            assert_eq!(admitted(&proxy, &format!("X-Forwarded-For: {client}\r\n"), 20), 3);
        }
        // The same by another name, and a neighbour in the same /64; then one in the next.
        for (client, more) in
            [("::ffff:192.0.2.1", 0), ("2001:db8:0:1::6", 0), ("2001:db8:0:2::5", 3)]
        {
            assert_eq!(admitted(&proxy, &format!("X-Forwarded-For: {client}\r\n"), 8), more);
        }
        assert_eq!(counted(&proxy, "keys", "few"), 4.0);
    });
}

#[test]
fn each_value_of_a_header_has_a_bucket() {
    with_shards(&[1, 4], |shards| {
        let gate = Gate::new();
        let limit = "key: [{header: x-api-key}, {header: x-kind}], requests: 2";
        let proxy = limited(&gate, shards, limit).start();
        let long = "k".repeat(4_000);
        for key in ["one", "two", &long, &format!("{long}2"), ""] {
            let fields = format!("X-Api-Key: {key}\r\nX-Kind: a\r\n");
            assert_eq!(admitted(&proxy, &fields, 10), 2, "{key}");
        }
        assert_eq!(admitted(&proxy, "X-Api-Key: one\r\nX-Kind: b\r\n", 10), 2);
        // Two lines are two values, and not those of the other header.
        assert_eq!(admitted(&proxy, "X-Api-Key: one\r\nX-Api-Key: a\r\nX-Kind: a\r\n", 10), 2);
        assert_eq!(admitted(&proxy, "X-Api-Key: one\r\nX-Kind: a\r\nX-Kind: a\r\n", 10), 2);
        assert_eq!(admitted(&proxy, "X-Api-Key: one\r\n", 10), 10, "it is not limited");
        assert_eq!(counted(&proxy, "skipped_total", "few"), 10.0);
    });
}

/// The client is told when to come back, and may ask for something else on its connection.
#[test]
fn a_refusal_says_when_to_come_again() {
    with_shards(&[1, 2], |shards| {
        let gate = Gate::new();
        let limit = "{name: few, requests: 10, per: 100s, burst: 2, home_timeout: 60s}";
        let proxy = limited_by(gate.setup(), shards, limit, "few")
            .and_route("match: {prefix: /free}, respond: {status: 200}")
            .start();
        assert_eq!(admitted(&proxy, "", 2), 2);
        let mut client = proxy.client();
        let answer = client.get("/");
        assert_eq!(said(&answer), REFUSED);
        let after: u64 = answer.get("retry-after").unwrap().parse().unwrap();
        assert!((1..=10).contains(&after), "{after}");
        assert_eq!(answer.get("ratelimit-reset").unwrap(), after.to_string());
        assert_eq!(answer.get("ratelimit-remaining"), Some("0"));
        assert_eq!(answer.get("ratelimit-limit"), Some("10"));
        assert_eq!(answer.get("ratelimit-policy"), Some("10;w=100;burst=2"));
        assert_eq!(client.get("/free").status(), 200);
        let head = client.ask("HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert_eq!((said(&head), head.has("retry-after")), (REFUSED, true));
    });
}

/// A body that nobody wants does not become the next request.
#[test]
fn an_upload_that_is_refused_is_not_read() {
    with_shards(&[1, 4], |shards| {
        let gate = Gate::new();
        let proxy = limited(&gate, shards, "requests: 1").start();
        assert_eq!(admitted(&proxy, "", 1), 1);
        for _ in 0..8 {
            let answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n");
            assert_eq!(said(&answer), REFUSED);
            assert!(answer.connection("close"));
        }
        assert_eq!(gate.arrived(), 1);
    });
}

#[test]
fn routes_share_a_limit_or_have_their_own() {
    with_shards(&[1, 4], |shards| {
        let gate = Gate::new();
        let limits = format!(
            "{{name: shared, requests: 5, {NEVER_AGAIN}}}, \
             {{name: each, key: [route], requests: 3, {NEVER_AGAIN}}}"
        );
        let proxy = limited_by(gate.setup(), shards, &limits, "shared, each")
            .and_route("match: {prefix: /b}, respond: {status: 200}, rate_limits: [shared, each]")
            .start();
        // An answer of ours is limited as well.
        let passed = |path: &str| (0..9).filter(|_| proxy.get(path).status() == 200).count();
        assert_eq!((passed("/b"), passed("/")), (3, 2));
        assert_eq!(gate.arrived(), 2);
    });
}

/// Nobody knows what a shard has left that stands still: its keys are refused, and the others not.
/// When it goes on, so do they, and what it was asked for meanwhile counts once.
#[test]
fn a_shard_that_stands_still_admits_nobody() {
    let gate = Gate::new();
    let limit = "{name: few, key: [{header: x-key}], requests: 3, per: 1h, home_timeout: 50ms}";
    let proxy = limited_by(gate.setup(), 2, limit, "few").start();
    let mut client = Crowd::on_shard(&proxy, 0, 1).0.remove(0);
    let ask = |client: &mut Client, key: usize| client.ask(get(&format!("X-Key: {key}\r\n")));
    let stalled = Stalled::shard_of(&proxy, 1);
    let mut unanswered = Vec::new();
    for key in 0..24 {
        let answer = ask(&mut client, key);
        match said(&answer) {
            (429, "rate-limit-unanswered") => unanswered.push(key),
            other => assert_eq!(other, (200, "none")),
        }
        if answer.status() == 429 {
            assert_eq!(answer.get("retry-after"), Some("1"));
            assert_eq!(answer.get("ratelimit-limit"), Some("3"));
        }
    }
    assert!((1..24).contains(&unanswered.len()), "{unanswered:?}: keys are spread");
    assert_eq!(gate.arrived(), 24 - unanswered.len());
    assert_eq!(counted(&proxy, "unanswered_total", "few"), unanswered.len() as f64);
    eventually("all are counted", || {
        proxy.refusals("rate-limit-unanswered") == unanswered.len() as f64
    });
    drop(stalled);
    for key in &unanswered {
        let mut admitted = 0;
        eventually("it answers", || {
            let answer = ask(&mut client, *key);
            admitted += usize::from(answer.status() == 200);
            said(&answer) == REFUSED
        });
        // One may be lost to a loop that is late by a second.
        assert!((2..=3).contains(&admitted), "{admitted}");
    }
}

/// What one limit refuses takes no token of another.
#[test]
fn a_refused_request_costs_no_token() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let limits = format!(
            "{{name: all, requests: 40, {NEVER_AGAIN}}}, \
             {{name: each, key: [{{header: x-key}}], requests: 1, {NEVER_AGAIN}}}"
        );
        let proxy = limited_by(gate.setup(), shards, &limits, "all, each").start();
        // One by one: who waits for one limit may hold a token of the other meanwhile.
        let one = "X-Key: one\r\n";
        let passed = (0..60).filter(|_| proxy.ask(get(one)).status() == 200).count();
        assert_eq!(passed, 1);
        let others = (0..60).map(|key| proxy.ask(get(&format!("X-Key: {key}\r\n"))).status());
        assert_eq!(others.filter(|status| *status == 200).count(), 39, "{shards} shards");
    });
}

#[test]
fn a_dry_run_refuses_nobody() {
    with_shards(&[1, 4], |shards| {
        let gate = Gate::new();
        let proxy = limited(&gate, shards, "requests: 3, dry_run: true").start();
        Crowd::connect(&proxy, 20).ask().assert_all("200");
        assert_eq!(counted(&proxy, "admitted_total", "few"), 3.0);
        assert_eq!(counted(&proxy, "refused_total", "few"), 17.0);
        assert_eq!(proxy.refusals("rate-limited"), 0.0);
    });
}

#[test]
fn a_reload_keeps_the_buckets() {
    with_shards(&SHARDS, |shards| {
        let gate = Gate::new();
        let setup = |limit: &str| limited(&gate, shards, limit);
        let proxy = setup("requests: 10").start();
        assert_eq!(admitted(&proxy, "", 6), 6);
        proxy.reload(&setup("requests: 10").route("timeouts: {answer: 7s}"));
        assert_eq!(admitted(&proxy, "", 20), 4, "the same settings keep what there is");
        proxy.reload(&setup("requests: 10, burst: 12"));
        assert_eq!(admitted(&proxy, "", 20), 2, "what is spent stays spent");
        proxy.reload(&setup("requests: 5"));
        assert_eq!(admitted(&proxy, "", 20), 0);
        proxy.reload(&gate.setup().shards(&format!("count: {shards}")));
        assert_eq!(admitted(&proxy, "", 20), 20, "without a limit");
        proxy.reload(&setup("requests: 4"));
        assert_eq!(admitted(&proxy, "", 20), 4, "one that comes back is new");
    });
}

/// Keys that somebody makes up take bounded memory, and what that costs is counted.
#[test]
fn the_table_of_keys_is_bounded() {
    with_shards(&[1, 4], |shards| {
        let gate = Gate::new();
        for when_full in ["evict", "refuse"] {
            let limit = format!(
                "key: [{{header: x-key}}], requests: 1, keys_max: 8, when_full: {when_full}"
            );
            let proxy = limited(&gate, shards, &limit).start();
            let passed = (0..80)
                .filter(|key| proxy.ask(get(&format!("X-Key: {key}\r\n"))).status() == 200)
                .count();
            let keys = counted(&proxy, "keys", "few") as usize;
            assert!(keys > 0 && keys <= 8, "{keys}");
            let evicted = counted(&proxy, "evicted_total", "few") as usize;
            let turned_away = counted(&proxy, "table_full_total", "few") as usize;
            match when_full {
                "evict" => assert_eq!((passed, evicted, turned_away), (80, 80 - keys, 0)),
                // An ask that is repeated counts again.
                _ => {
                    assert_eq!((passed, evicted), (keys, 0));
                    assert!(turned_away >= 80 - keys, "{turned_away}");
                }
            }
        }
    });
}

/// Buckets that are full again make room: a table that is too small for all is large enough for
/// those in use.
#[test]
fn buckets_that_are_full_again_make_room() {
    let origin = Origin::named("ok");
    let limit = "{name: few, key: [{header: x-key}], requests: 1000, keys_max: 8, \
                 when_full: refuse}";
    let proxy = limited_by(Setup::new(&origin), 1, limit, "few").start();
    for key in 0..40 {
        // Each is full again after a millisecond.
        eventually("there is room", || {
            std::thread::sleep(Duration::from_millis(1));
            proxy.ask(get(&format!("X-Key: {key}\r\n"))).status() == 200
        });
    }
    assert_eq!(counted(&proxy, "evicted_total", "few"), 0.0);
}
