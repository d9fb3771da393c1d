//! Kept connections to origins: used again while they are sound, and never trusted.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::support::{GET, OK, Origin, Peer, Setup, eventually, pause};

/// The first connection answers once, does this with the next request, and ends; the others
/// answer everything.
fn failing_once(fail: impl Fn(&mut Peer) + Send + Sync + 'static) -> Origin {
    Origin::start(move |peer| {
        if peer.number == 0 {
            peer.request();
            peer.send(OK);
            fail(peer);
            return;
        }
        while peer.try_request().is_ok() {
            if peer.try_send(OK).is_err() {
                return;
            }
        }
    })
}

/// A kept connection that ends just as it is used.
#[test]
fn a_stale_connection_is_tried_again_once() {
    for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
        for reset in [false, true] {
            let origin = failing_once(move |peer| {
                let _ = peer.try_request();
                if reset {
                    peer.reset();
                }
            });
            let proxy = Setup::new(&origin).one_shard().start();
            let mut client = proxy.client();
            assert_eq!(client.get("/1").status(), 200);
            let request = format!("{method} /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.ask(request).status(), 200, "{method} {reset}");
            assert_eq!(origin.connections(), 2);
            let second = origin.last_request();
            assert_eq!((second.target(), second.body.as_slice()), ("/2", &b"hi"[..]));
            assert_eq!(proxy.metric("outrigger_resends_total", &[]), 1.0);
        }
    }
}

#[test]
fn a_post_is_never_sent_twice() {
    for method in ["POST", "PATCH", "PURGE"] {
        let origin = failing_once(|peer| {
            let _ = peer.try_request();
        });
        let proxy = Setup::new(&origin).one_shard().listener("reason_header: true").start();
        let mut client = proxy.client();
        assert_eq!(client.get("/1").status(), 200);
        let request = format!("{method} /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        let answer = client.ask(request);
        assert_eq!(answer.status(), 502, "{method}");
        assert_eq!(answer.get("x-outrigger-reason"), Some("upstream-reset"));
        let sent = origin.requests().iter().filter(|request| request.target() == "/2").count();
        assert_eq!(sent, 1, "{method}");
    }
}

/// Once something of an answer has come, the request was acted on.
#[test]
fn a_begun_answer_is_not_tried_again() {
    let origin = failing_once(|peer| {
        let _ = peer.try_request();
        peer.send("HTTP/1.1 200");
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    assert_eq!(client.get("/1").status(), 200);
    assert_eq!(client.get("/2").status(), 502);
    assert_eq!(origin.connections(), 1);
}

/// Only a kept connection may have been stale; a new one that ends has failed.
#[test]
fn a_fresh_connection_is_not_tried_again() {
    let origin = Origin::start(|peer| {
        let _ = peer.try_request();
    });
    let proxy = Setup::new(&origin).one_shard().start();
    assert_eq!(proxy.get("/").status(), 502);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn it_is_tried_again_only_once() {
    let origin = Origin::start(|peer| {
        peer.request();
        if peer.number == 0 {
            peer.send(OK);
            let _ = peer.try_request();
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    assert_eq!(client.get("/1").status(), 200);
    assert_eq!(client.get("/2").status(), 502);
    assert_eq!(origin.connections(), 2);
}

/// An upload that does not fit into the head's buffer is gone once it is sent.
#[test]
fn an_upload_that_cannot_be_repeated_is_not() {
    let origin = failing_once(|peer| {
        peer.request_head();
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    assert_eq!(client.get("/1").status(), 200);
    client.send("PUT /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_eq!(client.answer().status(), 502);
    assert_eq!(origin.connections(), 1);
}

/// Seen before anything is sent: not even a POST notices, and a GET need not be sent twice.
#[test]
fn a_closed_connection_is_never_used() {
    for method in ["POST", "GET"] {
        for reset in [false, true] {
            let origin = failing_once(move |peer| {
                if reset {
                    peer.reset();
                }
            });
            let proxy = Setup::new(&origin).one_shard().start();
            let mut client = proxy.client();
            assert_eq!(client.post("/1", "x").status(), 200);
            eventually("the origin has closed", || origin.ended() == 1);
            let request = format!("{method} /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
            assert_eq!(client.ask(request).status(), 200, "{method} {reset}");
            assert_eq!(origin.connections(), 2);
            assert_eq!(proxy.metric("outrigger_resends_total", &[]), 0.0, "{method} {reset}");
        }
    }
}

/// Such as the 408 that some servers send before they close.
#[test]
fn a_connection_with_unasked_bytes_is_never_used() {
    let (sent, is_sent) = std::sync::mpsc::channel();
    let origin = failing_once(move |peer| {
        pause(100);
        peer.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nlate");
        sent.send(()).unwrap();
        let (bytes, _) = peer.rest();
        assert_eq!(bytes, b"", "no further request");
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    assert_eq!(client.post("/1", "x").status(), 200);
    is_sent.recv().unwrap();
    assert_eq!(client.post("/2", "x").text(), "ok");
    assert_eq!(origin.connections(), 2);
}

/// Nor while the shard has more to do than one look at its sockets shows: the answers that nobody
/// asked for arrive behind more requests than that.
#[test]
fn unasked_bytes_are_seen_behind_a_crowd() {
    const CROWD: usize = 300;
    let (sent, all_sent) = std::sync::mpsc::channel();
    let gate = std::sync::Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    let shut = gate.clone();
    let crowd = (std::sync::Mutex::new(0), std::sync::Condvar::new());
    let origin = Origin::start(move |peer| {
        if peer.try_request().is_err() {
            return;
        }
        let number = {
            let mut arrived = crowd.0.lock().unwrap();
            *arrived += 1;
            crowd.1.notify_all();
            let number = *arrived;
            // Nobody is answered before all are here, so that each has a connection of its own.
            drop(crowd.1.wait_while(arrived, |arrived| *arrived < CROWD).unwrap());
            number
        };
        peer.answer("good");
        if number <= CROWD {
            let open = shut.1.wait_while(shut.0.lock().unwrap(), |open| !*open);
            drop(open.unwrap());
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
            sent.send(()).unwrap();
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut clients: Vec<_> = (0..CROWD).map(|_| proxy.client()).collect();
    // Each on a connection of its own, all of them kept.
    proxy.signal(Signal::STOP);
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    clients.iter_mut().for_each(|client| client.send(request));
    proxy.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.answer().text(), "good");
    }
    proxy.signal(Signal::STOP);
    clients.iter_mut().for_each(|client| client.send(request));
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    let poisoned = origin.connections().min(CROWD);
    (0..poisoned).for_each(|_| all_sent.recv().unwrap());
    proxy.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.answer().text(), "good");
    }
}

#[test]
fn bytes_behind_an_answer_condemn_the_connection() {
    let behind = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokx",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nevil",
        "HTTP/1.1 204 No Content\r\n\r\nevil",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil",
    ];
    for bytes in behind {
        let origin = Origin::start(move |peer| {
            peer.request();
            peer.send(bytes);
            let (more, _) = peer.rest();
            assert_eq!(more, b"", "no further request");
        });
        let proxy = Setup::new(&origin).one_shard().start();
        let mut client = proxy.client();
        for number in 1..=3 {
            let answer = client.get("/");
            assert!(answer.status() < 400 && ["", "ok"].contains(&answer.text()), "{answer:?}");
            assert_eq!(origin.connections(), number, "{bytes:?}");
        }
        drop(client);
        eventually("its connections are closed", || origin.ended() == 3);
    }
}

/// The body of an answer to HEAD is nobody's.
#[test]
fn a_body_behind_head_condemns_the_connection() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").status(), 200);
        assert_eq!(client.get("/").text(), "ok");
    }
}

/// An endpoint that cannot take another connection.
struct Full {
    listener: Socket,
    waiting: Vec<TcpStream>,
}

impl Full {
    fn new() -> Full {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let mut full = Full { listener, waiting: Vec::new() };
        let address = full.address();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            full.waiting.push(stream);
        }
        full
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap().as_socket().unwrap()
    }
}

#[test]
fn a_refused_connect_is_a_503() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let proxy = Setup::at(&[address]).listener("reason_header: true").start();
    let mut client = proxy.client();
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.get("x-outrigger-reason"), Some("connect-failed"));
        assert!(!answer.has("connection"), "the client may go on: {answer:?}");
    }
    assert_eq!(proxy.metric("outrigger_upstream_connect_failures_total", &[]), 2.0);
}

#[test]
fn a_connect_that_takes_too_long_is_a_504() {
    let full = Full::new();
    let proxy = Setup::at(&[full.address()])
        .listener("reason_header: true")
        .cluster("timeouts: {connect: 200ms}")
        .start();
    let mut client = proxy.client();
    let answer = client.get("/");
    assert_eq!(answer.status(), 504);
    assert_eq!(answer.get("x-outrigger-reason"), Some("timeout-connect"));
    assert_eq!(client.post("/", "x").status(), 504);
    assert_eq!(proxy.metric("outrigger_upstream_connect_failures_total", &[]), 2.0);
}

/// Bytes that are there before the first byte of the request was written answer nothing. The proxy
/// is stopped while its connect is under way, so that they are surely there first.
#[test]
fn bytes_before_the_request_condemn_the_connection() {
    let full = Full::new();
    let proxy = Setup::at(&[full.address()]).one_shard().start();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the proxy connects", || connecting_to(full.address().port()));
    proxy.signal(Signal::STOP);
    // Room for its connect, which the kernel tries again after a second.
    let early = full.waiting.len();
    for _ in 0..early {
        full.listener.accept().unwrap();
    }
    full.listener.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    let (socket, _) = full.listener.accept().unwrap();
    let mut peer = crate::support::Wire::new(socket.into());
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    proxy.signal(Signal::CONT);
    // Whatever else it does: another connection, or an answer of its own.
    let listener = full.listener.try_clone().unwrap();
    std::thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let mut peer = crate::support::Wire::new(socket.into());
            peer.read_until("\r\n\r\n");
            peer.send(OK);
        }
    });
    let answer = client.answer();
    assert_ne!(answer.text(), "evil");
    assert!(answer.status() == 502 || answer.text() == "ok", "{answer:?}");
}

/// Whether somebody waits for an answer to its SYN.
fn connecting_to(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!("0100007F:{port:04X}");
    // 02 is SYN_SENT.
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.get(2) == Some(&remote.as_str()) && words.get(3) == Some(&"02")
    })
}

#[test]
fn the_connection_used_last_is_used_first() {
    let origin = Origin::start(|peer| {
        let number = peer.number;
        while peer.try_request().is_ok() {
            pause(30);
            if peer
                .try_send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}"))
                .is_err()
            {
                return;
            }
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut clients: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(GET);
    }
    for client in &mut clients {
        client.answer();
    }
    assert_eq!(origin.connections(), 4);
    let last = clients[0].get("/").text().to_owned();
    for _ in 0..5 {
        assert_eq!(clients[1].get("/").text(), last);
    }
}

#[test]
fn an_idle_connection_is_closed() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).cluster("pool: {idle_timeout: 300ms}").start();
    let mut client = proxy.client();
    client.get("/");
    eventually("it is closed", || origin.ended() == 1);
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(origin.connections(), 2);
}

#[test]
fn a_connection_has_an_age_and_a_number_of_requests() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).cluster("pool: {requests_max: 2}").start();
    let mut client = proxy.client();
    for _ in 0..6 {
        client.get("/");
    }
    assert_eq!(origin.connections(), 3);

    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).cluster("pool: {age_max: 300ms, idle_timeout: 300ms}").start();
    let mut client = proxy.client();
    client.get("/");
    pause(400);
    client.get("/");
    assert_eq!(origin.connections(), 2);
}

#[test]
fn a_pool_has_a_size() {
    let slow = || {
        Origin::start(|peer| {
            while peer.try_request().is_ok() {
                pause(100);
                if peer.try_send(OK).is_err() {
                    return;
                }
            }
        })
    };
    for (idle_max, kept) in [(0, 0), (1, 1), (256, 3)] {
        let origin = slow();
        let proxy = Setup::new(&origin)
            .one_shard()
            .cluster(&format!("pool: {{idle_max: {idle_max}, idle_timeout: 1m}}"))
            .start();
        let mut clients: Vec<_> = (0..3).map(|_| proxy.client()).collect();
        for client in &mut clients {
            client.send(GET);
        }
        for client in &mut clients {
            client.answer();
        }
        let idle = || proxy.metric("outrigger_upstream_pool_connections", &["state=\"idle\""]);
        eventually("the others are closed", || idle() == f64::from(kept));
        eventually("and the origin sees it", || origin.ended() == 3 - kept as usize);
    }
}

/// A client's close does not close the origin's connection: others use it.
#[test]
fn clients_share_the_pool() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).one_shard().start();
    for _ in 0..10 {
        assert_eq!(
            proxy.ask(GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).status(),
            200
        );
    }
    assert_eq!(origin.connections(), 1);
}

/// Once, and on a new connection: whoever answers the first request of each connection, and closes
/// with the second, would get the same request again and again.
#[test]
fn a_stale_connection_is_followed_by_a_new_one() {
    let origin = Origin::start(|peer| {
        if peer.try_request().is_ok() && peer.try_send(OK).is_ok() {
            let _ = peer.try_request();
        }
    });
    let proxy = Setup::new(&origin)
        .cluster("limits: {max_connections: 2, pending_timeout: 60s}")
        .cluster("breaker: {consecutive_failures: 0, failure_ratio: 0}")
        .one_shard()
        .start();
    let clients = 10;
    std::thread::scope(|scope| {
        for client in 0..clients {
            let mut connection = proxy.client();
            scope.spawn(move || {
                for request in 0..20 {
                    let path = format!("/{client}/{request}");
                    assert_eq!(connection.get(&path).status(), 200, "{path}");
                }
            });
        }
    });
    let mut sent = std::collections::HashMap::new();
    for request in origin.requests() {
        *sent.entry(request.target().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(sent.len(), 200);
    assert!(sent.values().all(|times| *times <= 2), "{sent:?}");
}

/// It was not the pause: the origin has worked, and failed.
#[test]
fn who_closes_late_has_failed() {
    let origin = Origin::start(|peer| {
        if peer.try_request().is_ok() && peer.try_send(OK).is_ok() && peer.try_request().is_ok() {
            pause(400);
        }
    });
    let proxy = Setup::new(&origin)
        .listener("reason_header: true")
        .cluster("breaker: {consecutive_failures: 1, open_time: 60s}")
        .one_shard()
        .start();
    let mut client = proxy.client();
    assert_eq!(client.get("/").status(), 200);
    let answer = client.get("/");
    let reason = answer.get("x-outrigger-reason");
    assert_eq!((answer.status(), reason), (502, Some("upstream-reset")));
    assert_eq!(origin.requests().len(), 2);
    assert_eq!(client.get("/").get("x-outrigger-reason"), Some("breaker-open"));
}
