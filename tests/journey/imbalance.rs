//! Few long-lived connections are spread over the shards, whatever the kernel does with them.

use rustix::process::Signal;

use crate::support::{Client, Crowd, GET, OK, Origin, Proxy, Setup, by_shard, eventually};

fn proxy(origin: &Origin, shards: usize) -> Proxy {
    Setup::new(origin).shards(&format!("count: {shards}")).start()
}

fn open(proxy: &Proxy) -> Vec<u64> {
    by_shard(proxy, "outrigger_connections_open")
}

/// So many connections, one after the other, each in use before the next one comes.
#[track_caller]
fn in_use(proxy: &Proxy, count: usize) -> Vec<Client> {
    let connect = |_| {
        let mut client = proxy.client();
        assert_eq!(client.get("/").status(), 200);
        client
    };
    (0..count).map(connect).collect()
}

#[track_caller]
fn assert_one_each(shards: usize, runs: usize) {
    let origin = Origin::answering(OK);
    let proxy = proxy(&origin, shards);
    for run in 0..runs {
        let before = by_shard(&proxy, "outrigger_requests_total");
        let mut clients = in_use(&proxy, shards);
        assert_eq!(open(&proxy), vec![1; shards], "run {run}");
        // Each shard serves the one it has.
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
        let after = || by_shard(&proxy, "outrigger_requests_total");
        eventually("each has served two", || {
            after().iter().zip(&before).all(|(after, before)| after - before == 2)
        });
        if run % 2 == 1 {
            clients.reverse();
        }
        while let Some(client) = clients.pop() {
            drop(client);
            eventually("one less", || open(&proxy).iter().sum::<u64>() == clients.len() as u64);
        }
    }
    let handed = proxy.metric("outrigger_connections_handed_over_total", &[]);
    let taken = proxy.metric("outrigger_connections_taken_over_total", &[]);
    assert!(handed > 0.0 && handed == taken, "{handed} {taken}");
}

#[test]
fn two_connections_on_two_shards_are_served_by_both() {
    assert_one_each(2, 100);
}

#[test]
fn four_connections_on_four_shards_are_served_by_all() {
    assert_one_each(4, 25);
}

#[test]
fn eight_connections_on_eight_shards_are_served_by_all() {
    assert_one_each(8, 10);
}

/// They come and go: whoever has none gets the next.
#[test]
fn a_shard_that_lost_its_connection_gets_the_next() {
    let origin = Origin::answering(OK);
    let proxy = proxy(&origin, 4);
    let mut clients = in_use(&proxy, 4);
    for run in 0..40 {
        drop(clients.remove(run % 3));
        eventually("one less", || open(&proxy).iter().sum::<u64>() == 3);
        clients.extend(in_use(&proxy, 1));
        assert_eq!(open(&proxy), [1; 4], "run {run}");
    }
}

/// A request that is there when the connection is handed over is served, too.
#[test]
fn nothing_is_lost_by_a_hand_over() {
    let origin = Origin::answering(OK);
    let proxy = proxy(&origin, 8);
    for _ in 0..10 {
        let mut crowd = Crowd(Vec::new());
        for _ in 0..60 {
            let mut client = proxy.client();
            client.send(GET);
            crowd.0.push(client);
        }
        crowd.answers().assert_all("200");
        assert_eq!(open(&proxy).iter().sum::<u64>(), 60);
        drop(crowd);
        eventually("all are gone", || open(&proxy).iter().sum::<u64>() == 0);
    }
    assert!(proxy.metric("outrigger_connections_handed_over_total", &[]) > 0.0);
    assert_eq!(proxy.metric("outrigger_requests_total", &["2xx"]), 600.0);
}

/// Nor where the end begins while connections are on their way from shard to shard. The proxy is
/// stopped at first, so that many connections come at once.
#[test]
fn nothing_is_lost_by_a_hand_over_during_a_drain() {
    for _ in 0..20 {
        let origin = Origin::answering(OK);
        let mut proxy = proxy(&origin, 8);
        proxy.signal(Signal::STOP);
        let mut crowd = Crowd::connect(&proxy, 60);
        crowd.send(GET);
        proxy.signal(Signal::CONT);
        proxy.signal(Signal::TERM);
        crowd.answers().assert_all("200");
        assert!(proxy.exit().success());
    }
}
