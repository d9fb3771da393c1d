//! What is bounded: memory, buffers, connections, descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::support::wire::Broken;
use crate::support::{
    Client, GET, Message, OK, Origin, Proxy, Setup, eventually, patterned, pause,
};

const MIB: u64 = 1 << 20;

/// Bytes of a long body: enough to tell a bound from none, and few enough for every run.
/// `OUTRIGGER_TEST_LONG=1` makes it the gigabyte of the promise.
fn body_bytes() -> u64 {
    if std::env::var_os("OUTRIGGER_TEST_LONG").is_some() { 1024 * MIB } else { 64 * MIB }
}

/// What the kernel may hold on a way through the proxy: two connections, what was sent and what was
/// received of each (tcp(7)).
fn kernel_holds_max() -> u64 {
    let most = |name: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).expect(name);
        text.split_whitespace().last().expect("three numbers").parse().expect("a number")
    };
    2 * (most("tcp_rmem") + most("tcp_wmem")) + MIB
}

/// A body that cannot hide in there.
fn unhidden_bytes() -> u64 {
    body_bytes().max(kernel_holds_max() * 3 / 2)
}

/// What the process may grow by while a long body passes.
const GROWTH_MAX: u64 = 16 * MIB;

const STEP: usize = 251 * 1024;

/// Sends a body of [`patterned`] bytes.
fn send_body(mut send: impl FnMut(&[u8]), count: u64, chunked: bool) {
    let mut offset = 0;
    while offset < count {
        let step = (count - offset).min(STEP as u64) as usize;
        let bytes = patterned(offset, step);
        if chunked {
            send(format!("{step:x}\r\n").as_bytes());
        }
        send(&bytes);
        if chunked {
            send(b"\r\n");
        }
        offset += step as u64;
    }
    if chunked {
        send(b"0\r\n\r\n");
    }
}

fn framing(count: u64, chunked: bool) -> String {
    match chunked {
        true => "Transfer-Encoding: chunked".into(),
        false => format!("Content-Length: {count}"),
    }
}

/// Reads a chunked body of patterned bytes, without keeping it.
fn read_chunks(wire: &mut crate::support::Wire) -> u64 {
    let mut offset = 0;
    loop {
        let line = wire.read_until("\r\n");
        let digits = std::str::from_utf8(&line[..line.len() - 2]).unwrap();
        let size = u64::from_str_radix(digits, 16).unwrap();
        if size == 0 {
            assert_eq!(wire.read(2), b"\r\n");
            return offset;
        }
        wire.read_pattern(offset, size);
        assert_eq!(wire.read(2), b"\r\n");
        offset += size;
    }
}

/// Warms up, so that what is allocated once does not count.
fn warm(proxy: &Proxy) -> u64 {
    for _ in 0..4 {
        assert_eq!(proxy.get("/warm").status(), 200);
    }
    proxy.resident_bytes()
}

#[test]
fn a_long_download_runs_in_constant_memory() {
    for chunked in [false, true] {
        let count = body_bytes();
        let origin = Origin::start(move |peer| {
            while let Ok(request) = peer.try_request() {
                if request.target() == "/warm" {
                    peer.send(OK);
                    continue;
                }
                peer.send(format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", framing(count, chunked)));
                send_body(|bytes| peer.send(bytes), count, chunked);
            }
        });
        let proxy = Proxy::before(&origin);
        let before = warm(&proxy);
        let mut client = proxy.client();
        client.send(GET);
        client.answer_head();
        if chunked {
            assert_eq!(read_chunks(&mut client), count);
        } else {
            client.read_pattern(0, count);
        }
        let grown = proxy.resident_bytes_peak().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{grown} bytes more, chunked: {chunked}");
        assert_eq!(client.get("/warm").text(), "ok", "the connection goes on");
    }
}

#[test]
fn a_long_upload_runs_in_constant_memory() {
    for chunked in [false, true] {
        let count = body_bytes();
        let origin = Origin::start(move |peer| {
            loop {
                let Ok(head) = peer.try_read_until(b"\r\n\r\n") else { return };
                let request = Message::parse(&head);
                if request.method() == "PUT" {
                    if chunked {
                        assert_eq!(read_chunks(peer), count);
                    } else {
                        peer.read_pattern(0, count);
                    }
                }
                peer.send(OK);
            }
        });
        let proxy = Proxy::before(&origin);
        let before = warm(&proxy);
        let mut client = proxy.client();
        client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", framing(count, chunked)));
        send_body(|bytes| client.send(bytes), count, chunked);
        assert_eq!(client.answer().text(), "ok");
        let grown = proxy.resident_bytes_peak().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{grown} bytes more, chunked: {chunked}");
        assert_eq!(client.get("/warm").text(), "ok", "the connection goes on");
    }
}

/// A reader that pauses stops the origin: what it has not read is not in the process.
#[test]
fn a_stalled_reader_stops_the_origin() {
    for chunked in [false, true] {
        let count = unhidden_bytes();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let origin = Origin::start(move |peer| {
            while let Ok(request) = peer.try_request() {
                if request.target() == "/warm" {
                    peer.send(OK);
                    continue;
                }
                peer.send(format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", framing(count, chunked)));
                let mut send = |bytes: &[u8]| {
                    peer.send(bytes);
                    counter.fetch_add(bytes.len() as u64, Relaxed);
                };
                send_body(&mut send, count, chunked);
            }
        });
        let proxy = Proxy::before(&origin);
        let before = warm(&proxy);
        let mut client = proxy.client();
        client.send(GET);
        client.answer_head();
        let stalled_at = until_still(&sent);
        let most = kernel_holds_max();
        assert!(stalled_at < most, "the origin could send {stalled_at} of {count} bytes");
        let grown = proxy.resident_bytes().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{grown} bytes more, chunked: {chunked}");
        if chunked {
            assert_eq!(read_chunks(&mut client), count);
        } else {
            client.read_pattern(0, count);
        }
    }
}

/// An origin that pauses stops the client, too.
#[test]
fn a_stalled_origin_stops_the_upload() {
    for chunked in [false, true] {
        let count = unhidden_bytes();
        let (go_on, gone_on) = std::sync::mpsc::channel();
        let gone_on = std::sync::Mutex::new(gone_on);
        let origin = Origin::start(move |peer| {
            loop {
                let Ok(head) = peer.try_read_until(b"\r\n\r\n") else { return };
                if Message::parse(&head).method() == "PUT" {
                    gone_on.lock().unwrap().recv().unwrap();
                    if chunked {
                        assert_eq!(read_chunks(peer), count);
                    } else {
                        peer.read_pattern(0, count);
                    }
                }
                peer.send(OK);
            }
        });
        let proxy = Proxy::before(&origin);
        let before = warm(&proxy);
        let mut client = proxy.client();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let sender = std::thread::spawn(move || {
            client
                .send(format!("PUT / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", framing(count, chunked)));
            let send = |bytes: &[u8]| {
                client.send(bytes);
                counter.fetch_add(bytes.len() as u64, Relaxed);
            };
            send_body(send, count, chunked);
            client.answer()
        });
        let stalled_at = until_still(&sent);
        let most = kernel_holds_max();
        assert!(stalled_at < most, "the client could send {stalled_at} of {count} bytes");
        let grown = proxy.resident_bytes().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{grown} bytes more, chunked: {chunked}");
        go_on.send(()).unwrap();
        assert_eq!(sender.join().unwrap().text(), "ok");
    }
}

/// Waits until a counter has stood still for a while.
fn until_still(counter: &AtomicU64) -> u64 {
    let mut last = 0;
    let mut still = 0;
    eventually("it stands still", || {
        let now = counter.load(Relaxed);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        last = now;
        still > 60 // Looks, 5 ms apart.
    });
    last
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut clients: Vec<_> = (0..100).map(|_| proxy.client()).collect();
    for client in &mut clients[..50] {
        assert_eq!(client.get("/").status(), 200);
    }
    eventually("all are accepted", || proxy.metric("outrigger_connections_open", &[]) == 100.0);
    eventually("no buffer is lent", || proxy.metric("outrigger_buffers_in_use", &[]) == 0.0);
    // Not when they have waited for long, either; and they still work.
    pause(1_200);
    assert_eq!(proxy.metric("outrigger_connections_open", &[]), 100.0);
    assert_eq!(proxy.metric("outrigger_buffers_in_use", &[]), 0.0);
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
}

#[test]
fn buffers_come_back_whatever_happens() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            match request.target() {
                "/bad" => peer.send("nonsense\r\n\r\n"),
                "/cut" => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"),
                "/close" => {}
                _ => {
                    peer.send(OK);
                    continue;
                }
            }
            return;
        }
    });
    let proxy = Setup::new(&origin).listener("timeouts: {header: 300ms}").start();
    for _ in 0..5 {
        for path in ["/", "/bad", "/cut", "/close", "/%zz"] {
            let mut client = proxy.client();
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let _: Result<Message, Broken> = client.try_answer();
        }
        let mut client = proxy.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx");
        drop(client);
        let mut client = proxy.client();
        client.send("GET / HT");
        client.rest();
        let mut client = proxy.client();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
        client.rest();
    }
    eventually("nothing is held", || {
        proxy.metric("outrigger_buffers_in_use", &[]) == 0.0
            && proxy.metric("outrigger_connections_open", &[]) == 0.0
            && proxy.metric("outrigger_requests_in_flight", &[]) == 0.0
    });
}

/// Whether a connection is served, or shed with a 503 or a close.
fn served(client: &mut Client) -> bool {
    let _ = client.try_send(GET);
    match client.try_answer() {
        Ok(answer) if answer.status() == 503 => {
            assert!(answer.connection("close"), "{answer:?}");
            false
        }
        Ok(answer) => answer.status() == 200,
        Err(broken) => {
            assert_eq!(broken.received, b"");
            false
        }
    }
}

#[test]
fn a_listener_has_a_cap() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).one_shard().listener("limits: {connections_max: 3}").start();
    let mut clients: Vec<_> = (0..3).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert!(served(client));
    }
    for _ in 0..3 {
        assert!(!served(&mut proxy.client()), "one too many");
    }
    assert_eq!(proxy.metric("outrigger_connections_shed_total", &[]), 3.0);
    crate::support::eventually("it is counted", || proxy.refusals("limit-connections") == 3.0);
    for client in &mut clients {
        assert!(served(client), "those that are there are served on");
    }
    drop(clients.pop());
    eventually("there is room again", || served(&mut proxy.client()));
}

#[test]
fn the_cap_holds_over_all_shards() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("limits: {connections_max: 8}").start();
    let mut clients: Vec<_> = (0..40).map(|_| proxy.client()).collect();
    let served = clients.iter_mut().map(served).filter(|served| *served).count();
    assert!((4..=8).contains(&served), "{served} of 40");
    assert!(proxy.metric("outrigger_connections_open", &[]) <= 8.0);
}

#[test]
fn a_client_address_has_a_cap() {
    let origin = Origin::answering(OK);
    let proxy =
        Setup::new(&origin).one_shard().listener("limits: {connections_per_client_max: 2}").start();
    let mut clients: Vec<_> = (0..2).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert!(served(client));
    }
    assert!(!served(&mut proxy.client()), "one too many");
    let mut other = Client::connect_from("127.0.0.2", proxy.address());
    assert!(served(&mut other), "another address is another client");
    drop(clients.pop());
    eventually("there is room again", || served(&mut proxy.client()));
}

/// Out of descriptors: what is open is served on, the rest is shed, and it is over when it is over.
#[test]
fn running_out_of_descriptors_passes() {
    let origin = Origin::answering(OK);
    let proxy =
        Setup::new(&origin).one_shard().cluster("pool: {idle_timeout: 1m}").files_max(100).start();
    let mut old = proxy.client();
    assert_eq!(old.get("/").status(), 200);
    let many: Vec<_> = (0..150).map(|_| Client::connect(proxy.address())).collect();
    pause(300);
    for _ in 0..5 {
        assert_eq!(old.get("/").status(), 200, "what is open is served on");
        pause(50);
    }
    // Those that were shed have learnt it.
    let mut ended = 0;
    let mut open = Vec::new();
    for mut client in many {
        match client.send_some(GET.as_bytes()) {
            0 => ended += 1,
            _ => open.push(client),
        }
    }
    drop(open);
    let _ = ended;
    eventually("new clients are served again", || {
        let mut client = proxy.client();
        let _ = client.try_send(GET);
        client.try_answer().is_ok_and(|answer| answer.status() == 200)
    });
    assert_eq!(old.get("/").status(), 200);
    assert!(
        proxy.metric("outrigger_connections_shed_total", &[])
            + proxy.metric("outrigger_accept_failures_total", &[])
            > 0.0,
        "it did run out"
    );
}

/// On start, the soft limit of descriptors becomes the hard one.
#[test]
fn the_limit_of_descriptors_is_raised() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", proxy.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
}

/// A client that is gone while its answer is long takes nothing with it.
#[test]
fn many_clients_that_leave_take_nothing_with_them() {
    let origin = Origin::start(|peer| {
        while peer.try_request().is_ok() {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n";
            if peer.try_send(head).is_err() {
                return;
            }
            for _ in 0..100 {
                if peer.try_send([b'x'; 100_000]).is_err() {
                    return;
                }
            }
        }
    });
    let proxy = Proxy::before(&origin);
    for round in 0..30 {
        let mut client = proxy.client();
        client.send(GET);
        client.read(round * 10_000 + 1);
        if round % 2 == 0 {
            client.into_wire().reset();
        }
    }
    eventually("nothing is left", || {
        proxy.metric("outrigger_connections_open", &[]) == 0.0
            && proxy.metric("outrigger_buffers_in_use", &[]) == 0.0
            && proxy.metric("outrigger_upstream_pool_connections", &["active"]) == 0.0
    });
}
