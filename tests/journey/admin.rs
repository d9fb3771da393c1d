//! The first admin pages.

use crate::support::{Client, GET, OK, Origin, Proxy, Setup, eventually, proxy::driver};

#[test]
fn probes_answer() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    for path in ["/ready", "/healthz"] {
        assert_eq!(proxy.admin(path).status(), 200, "{path}");
    }
    assert_eq!(proxy.admin("/nothing").status(), 404);
}

#[test]
fn a_page_of_a_strangers_learns_nothing() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = Client::connect(proxy.admin_address());
    let answer =
        client.ask("GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status(), 403);
}

#[test]
fn metrics_count_what_happens() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            match request.target() {
                "/404" => peer.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
                "/500" => peer.send("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
                _ => peer.send(OK),
            }
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    for path in ["/", "/", "/", "/404", "/404", "/500", "/%zz"] {
        client.get(path);
    }
    let class = |class| proxy.metric("outrigger_requests_total", &[class]);
    eventually("all are counted", || (class("2xx"), class("4xx"), class("5xx")) == (3.0, 3.0, 1.0));
    crate::support::eventually("it is counted", || proxy.refusals("bad-path") == 1.0);
    crate::support::eventually("it is counted", || proxy.refusals("no-route") == 0.0);
    assert_eq!(proxy.metric("outrigger_connections_open", &[]), 1.0);
    assert_eq!(proxy.metric("outrigger_connections_accepted_total", &[]), 1.0);
    assert_eq!(proxy.metric("outrigger_request_duration_seconds_count", &[]), 7.0);
    assert_eq!(proxy.metric("outrigger_upstream_connects_total", &[]), 1.0);
    assert_eq!(proxy.metric("outrigger_upstream_reuses_total", &[]), 5.0);
    assert!(proxy.metric("outrigger_received_bytes_total", &[]) > 100.0);
    assert!(proxy.metric("outrigger_sent_bytes_total", &[]) > 100.0);
    assert_eq!(proxy.metric("outrigger_ready", &[]), 1.0);
}

#[test]
fn every_shard_says_what_it_runs_on() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    for shard in 0..2 {
        let labels = [&*format!("shard=\"{shard}\""), &*format!("driver=\"{}\"", driver())];
        assert_eq!(proxy.metric("outrigger_driver_info", &labels), 1.0);
    }
    let log = proxy.log();
    assert!(log.matches("shard runs").count() >= 2, "{log}");
    assert!(log.contains(&driver()), "{log}");
}

/// All shards share the port, and the kernel spreads connections over them.
#[test]
fn every_shard_serves() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let mut client = proxy.client();
            client.ask(GET);
            client
        })
        .collect();
    for shard in 0..2 {
        let label = format!("shard=\"{shard}\"");
        assert!(proxy.metric("outrigger_connections_open", &[&label]) > 0.0, "shard {shard}");
    }
    drop(clients);
}

#[test]
fn one_core_may_differ() {
    let origin = Origin::answering(OK);
    let other = if driver() == "epoll" { "io_uring" } else { "epoll" };
    let proxy = Setup::new(&origin)
        .shards(&format!("cpus: [0, 1], per_core: [{{cpu: 1, driver: {other}, backlog: 64}}]"))
        .start();
    for (shard, driver) in [(0, driver()), (1, other.to_owned())] {
        let labels = [&*format!("shard=\"{shard}\""), &*format!("driver=\"{driver}\"")];
        assert_eq!(proxy.metric("outrigger_driver_info", &labels), 1.0);
    }
    for _ in 0..20 {
        assert_eq!(proxy.get("/").status(), 200);
    }
}

/// Shards are pinned, each to a CPU of its own.
#[test]
fn shards_are_pinned() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut cpus = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let of = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        if of("Name:").starts_with("shard-") {
            cpus.push(of("Cpus_allowed_list:"));
        }
    }
    cpus.sort();
    assert_eq!(cpus.len(), 2, "{cpus:?}");
    assert!(cpus.iter().all(|cpus| cpus.parse::<u32>().is_ok()), "one CPU each: {cpus:?}");
    assert_ne!(cpus[0], cpus[1]);
}
