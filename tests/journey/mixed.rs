//! Hedges, retries, fallbacks, reloads and clients that leave, all at once: nobody gets what was
//! meant for another request, and nothing is held for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use crate::support::{Client, Origin, Peer, Proxy, Setup, eventually, pause};

/// Numbers that look random, and come again in the next run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What goes by at the origins.
#[derive(Default)]
struct World {
    /// Requests that are held here, while they are.
    inside: [AtomicUsize; 2],
    peak: [AtomicUsize; 2],
    is_open: AtomicBool,
}

impl World {
    /// Holds a request at the origins (0), or those that stand in (1).
    fn hold(&self, place: usize) {
        let inside = self.inside[place].fetch_add(1, SeqCst) + 1;
        self.peak[place].fetch_max(inside, SeqCst);
        while !self.is_open.load(SeqCst) {
            pause(5);
        }
        self.inside[place].fetch_sub(1, SeqCst);
    }
}

/// What every answer to this target says.
fn text_of(target: &str) -> String {
    let longer = if target.contains("long") { 70_000 } else { 0 };
    format!("{target}|{}", "x".repeat(longer))
}

/// Answers as it likes; but what it says is what was asked for.
fn unruly(world: Arc<World>, seed: u64) -> Origin {
    Origin::start(move |peer| {
        let mut dice = Dice(seed + 97 * peer.number as u64);
        while let Ok(request) = peer.try_request() {
            let text = text_of(request.target());
            let length = text.len();
            if request.target().contains("hold-main") {
                world.hold(0);
            }
            let answer = match dice.below(if request.target().contains("hold") { 1 } else { 12 }) {
                0 if request.target().contains("hold-spare") => {
                    format!("HTTP/1.1 503 Busy\r\nContent-Length: {length}\r\n\r\n{text}")
                }
                0..=2 => format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}"),
                3 => chunked(200, &text),
                4 => format!("HTTP/1.1 503 Busy\r\nContent-Length: {length}\r\n\r\n{text}"),
                5 => chunked(503, &text),
                6 => return,
                7 => "nonsense\r\n\r\n".to_owned(),
                // More than was announced: it belongs to nobody.
                8 => format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale"
                ),
                9 => format!(
                    "HTTP/1.1 503 Busy\r\nContent-Length: {length}\r\n\r\n{text}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale"
                ),
                _ => {
                    pause(5 + dice.below(20));
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}")
                }
            };
            if give(peer, request.method(), &answer).is_err() {
                return;
            }
        }
    })
}

fn chunked(status: u16, text: &str) -> String {
    let (left, right) = text.split_at(text.len() / 2);
    format!(
        "HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{left}\r\n{:x}\r\n{right}\r\n0\r\n\r\n",
        left.len(),
        right.len()
    )
}

/// Sends an answer, of which HEAD gets the head only.
fn give(peer: &mut Peer, method: &str, answer: &str) -> std::io::Result<()> {
    let head = answer.find("\r\n\r\n").map_or(answer.len(), |end| end + 4);
    peer.try_send(if method == "HEAD" { &answer[..head] } else { answer })
}

fn spare(world: Arc<World>) -> Origin {
    Origin::start(move |peer| {
        let mut count = 0;
        while let Ok(request) = peer.try_request() {
            count += 1;
            if request.target().contains("hold") {
                world.hold(1);
            } else if count % 4 == 0 {
                return;
            }
            let text = text_of(request.target());
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            if give(peer, request.method(), &answer).is_err() {
                return;
            }
        }
    })
}

/// A request of its own name; its method and target.
fn request(dice: &mut Dice, name: &str) -> (&'static str, String, String) {
    let long = if dice.below(6) == 0 { "/long" } else { "" };
    // Some are asked for by everybody: there is a last good answer.
    let target = match dice.below(3) {
        0..=1 => format!("/shared-{}{long}", dice.below(4)),
        _ => format!("/{name}{long}"),
    };
    let (method, rest) = match dice.below(8) {
        0 => ("HEAD", "\r\n".to_owned()),
        1 => ("PUT", "Content-Length: 5\r\n\r\nhello".to_owned()),
        2 => ("PUT", format!("Content-Length: 40000\r\n\r\n{}", "b".repeat(40_000))),
        3 => ("POST", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned()),
        4 => ("POST", "Content-Length: 2\r\n\r\nhi".to_owned()),
        _ => ("GET", "\r\n".to_owned()),
    };
    let bytes = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{rest}");
    (method, target, bytes)
}

/// Batches of pipelined requests; each answer has to be the one to its request.
fn ask_in_batches(proxy: &Proxy, number: u64, batches: u64) {
    let mut dice = Dice(number);
    let mut client = proxy.client();
    for batch in 0..batches {
        let count = 1 + dice.below(5);
        let requests: Vec<_> = (0..count)
            .map(|place| request(&mut dice, &format!("{number}-{batch}-{place}")))
            .collect();
        let all: String = requests.iter().map(|(.., bytes)| bytes.as_str()).collect();
        let sent = client.try_send(&all).is_ok();
        if sent && dice.below(10) == 0 {
            std::mem::replace(&mut client, proxy.client()).into_wire().reset();
            continue;
        }
        for (method, target, _) in &requests {
            let Ok(answer) = client.try_answer_to(method) else {
                client = proxy.client();
                break;
            };
            check(&answer, method, target);
            if answer.connection("close") {
                client = proxy.client();
                break;
            }
        }
    }
}

#[track_caller]
fn check(answer: &crate::support::Message, method: &str, target: &str) {
    let fallback = answer.get("x-outrigger-fallback");
    let context = || format!("{method} {target}: {} {fallback:?}", answer.start);
    let of_proxy = answer.has("x-outrigger-reason") && fallback.is_none();
    match (method, fallback) {
        ("HEAD", _) => assert_eq!(answer.text(), "", "{}", context()),
        (_, Some("static")) => assert_eq!(answer.text(), "sorry", "{}", context()),
        _ if of_proxy => assert!(answer.status() >= 400, "{}", context()),
        _ => assert!(answer.text() == text_of(target), "{}: {:.60}", context(), answer.text()),
    }
    if fallback == Some("last-good") {
        assert!(matches!(method, "GET" | "HEAD"), "{}", context());
    }
}

/// Clients that are held at a path, more of them one by one: never more than may be, and exactly as
/// many in the end.
fn assert_exactly(proxy: &Proxy, world: &World, place: usize, path: &str, most: usize) {
    world.peak[place].store(0, SeqCst);
    let get = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut held: Vec<Client> = Vec::new();
    eventually("all places are had", || {
        let mut client = proxy.client();
        client.send(&get);
        held.push(client);
        pause(20);
        world.inside[place].load(SeqCst) == most
    });
    for _ in 0..5 {
        let mut client = proxy.client();
        client.send(&get);
        held.push(client);
    }
    pause(50);
    assert_eq!(world.peak[place].load(SeqCst), most, "{path}");
    drop(held);
}

fn everything_at_once(shards: usize) {
    let world = Arc::new(World::default());
    let origins = [1, 2, 3].map(|seed| unruly(world.clone(), seed));
    let spare = spare(world.clone());
    let setup = |limit: usize| {
        let cluster = if limit == 8 { "cluster: spare, " } else { "" };
        let fallback = "last_good: {refresh: 0s}, respond: {body: sorry}, max_requests: 3";
        Setup::to(&origins.each_ref())
            .shards(&format!("count: {shards}"))
            .listener("reason_header: true, timeouts: {header: 0s, idle: 0s}")
            .cluster("breaker: {consecutive_failures: 0, failure_ratio: 0}")
            .cluster("retry_budget: {ratio: 1, min_per_second: 1000000}")
            .cluster(&format!("limits: {{max_requests: {limit}, max_retries: 6}}"))
            .and_cluster("spare", &spare)
            .and_route(
                "name: plain, match: {prefix: /hold-main}, cluster: app, retries: {attempts: 0}",
            )
            .retries(
                "attempts: 2, on: [5xx, reset, connect-failure], backoff: 1ms, hedge: {after: 4ms}",
            )
            .route(&format!("fallback: {{{cluster}{fallback}}}"))
    };
    let proxy = setup(8).start();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let proxy = &proxy;
            scope.spawn(move || ask_in_batches(proxy, number, 40));
        }
        for turn in 0..6 {
            pause(150);
            proxy.reload(&setup(if turn % 2 == 0 { 5 } else { 8 }));
        }
    });
    eventually("all is over", || {
        let is_zero = |name: &str| proxy.metric(name, &[]) == 0.0;
        is_zero("outrigger_requests_in_flight") && is_zero("outrigger_requests_pending")
    });
    assert_exactly(&proxy, &world, 0, "/hold-main", 8);
    world.is_open.store(true, SeqCst);
    eventually("all is over", || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0);
    eventually("nobody is held", || world.inside[0].load(SeqCst) == 0);
    world.is_open.store(false, SeqCst);
    assert_exactly(&proxy, &world, 1, "/hold-spare", 3);
    world.is_open.store(true, SeqCst);
    eventually("all is over", || proxy.metric("outrigger_requests_in_flight", &[]) == 0.0);
    let fallbacks = |kind: &str| proxy.metric("outrigger_fallbacks_total", &[kind]);
    for kind in ["kind=\"cluster\"", "kind=\"last-good\"", "kind=\"static\""] {
        assert!(fallbacks(kind) > 0.0, "{kind}");
    }
    assert!(proxy.metric("outrigger_hedges_won_total", &[]) > 0.0);
}

#[test]
fn nothing_is_mixed_up_on_one_shard() {
    everything_at_once(1);
}

#[test]
fn nothing_is_mixed_up_on_three() {
    everything_at_once(3);
}
