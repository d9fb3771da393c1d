//! Sockets are watched edge-triggered: what the kernel has told once it does not tell again, so
//! what is forgotten too early is waited for in vain, and what is kept too long is trusted too
//! much. Each test here ends in an exchange that would hang, or fail, then.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::channel;

use rustix::net::SendFlags;
use rustix::process::Signal;

use crate::support::{Client, OK, Origin, Proxy, Setup, eventually, patterned, pause};

/// What one read takes at most: a buffer's default size.
const BUFFER_BYTES: usize = 32 * 1024;

/// A head and a body of so many bytes together; `first` is the head's beginning.
fn message_of(first: &str, bytes: usize) -> Vec<u8> {
    let head = |body: usize| format!("{first}Content-Length: {body:06}\r\n\r\n");
    let body = bytes - head(0).len();
    [head(body).into_bytes(), patterned(0, body)].concat()
}

/// Sizes around those where a read fills its buffer.
fn sizes() -> impl Iterator<Item = usize> {
    let full = [BUFFER_BYTES, 2 * BUFFER_BYTES, 3 * BUFFER_BYTES];
    full.into_iter().flat_map(|bytes| [bytes - 1, bytes, bytes + 1])
}

/// A read that fills its buffer does not tell whether there is more. The proxy is stopped while
/// the answer arrives, so that all of it is there at the first read.
#[test]
fn answers_that_fill_a_buffer() {
    let (let_go, go) = channel::<()>();
    let go = Mutex::new(go);
    let origin = Origin::start(move |peer| {
        while let Ok(request) = peer.try_request() {
            let bytes = request.target()[1..].parse().expect("a size");
            go.lock().unwrap().recv().unwrap();
            peer.send(message_of("HTTP/1.1 200 OK\r\n", bytes));
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    for (number, bytes) in sizes().enumerate() {
        client.send(format!("GET /{bytes} HTTP/1.1\r\nHost: a\r\n\r\n"));
        eventually("the origin has it", || origin.requests().len() > number);
        proxy.signal(Signal::STOP);
        let_go.send(()).unwrap();
        pause(20);
        proxy.signal(Signal::CONT);
        let answer = client.answer();
        assert!(answer.body == patterned(0, answer.body.len()), "{bytes} bytes");
        assert_eq!(answer.get("content-length"), Some(&*format!("{}", answer.body.len())));
    }
    assert_eq!(origin.connections(), 1, "it is kept");
}

/// The same in the other direction, with another request behind.
#[test]
fn requests_that_fill_a_buffer() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            assert!(request.body == patterned(0, request.body.len()));
            peer.answer(&format!("{} {}", request.target(), request.body.len()));
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    for bytes in sizes() {
        let request = message_of("PUT /put HTTP/1.1\r\nHost: a\r\n", bytes);
        proxy.signal(Signal::STOP);
        client.send(request);
        proxy.signal(Signal::CONT);
        assert!(client.answer().text().starts_with("/put "), "{bytes} bytes");
        assert_eq!(client.get("/next").text(), "/next 0");
    }
}

/// The answer and the end of a kept connection arrive as one. Whatever follows at once, even a
/// request that had arrived before, must not be sent into it: not even a POST is lost.
#[test]
fn an_answer_with_its_end() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send(OK);
        peer.request();
        peer.send_and_end(OK);
    });
    for pipelined in [false, true] {
        let proxy = Setup::new(&origin).one_shard().start();
        let before = origin.connections();
        let mut client = proxy.client();
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
        let requests: Vec<_> = (0..60).map(|n| if n / 3 % 2 == 0 { get } else { post }).collect();
        if pipelined {
            client.send(requests.concat());
        }
        for (number, request) in requests.into_iter().enumerate() {
            if !pipelined {
                client.send(request);
            }
            assert_eq!(client.answer().status(), 200, "request {number}, {pipelined}");
        }
        assert_eq!(origin.connections() - before, 30, "two requests each");
        assert_eq!(proxy.metric("outrigger_retries_total", &[]), 0.0);
    }
}

/// Several heads in one read, or each in its own; before and after clients are watched.
#[test]
fn interim_answers_in_any_segments() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            let path = request.target();
            match path {
                "/one" => peer.send(format!("{HINTS}{HINTS}{OK}")),
                "/two" => {
                    peer.send(HINTS);
                    pause(20);
                    peer.send(format!("{HINTS}{OK}"));
                }
                "/late" => {
                    pause(150);
                    peer.send(format!("{HINTS}{HINTS}{OK}"));
                }
                _ => {
                    peer.send(format!("{HINTS}{HINTS}"));
                    pause(150);
                    peer.send(OK);
                }
            }
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    for path in ["/one", "/two", "/later", "/late", "/one"] {
        assert_eq!(client.get(path).status(), 103, "{path}");
        assert_eq!(client.answer().status(), 103, "{path}");
        assert_eq!(client.answer().text(), "ok", "{path}");
    }
    assert_eq!(origin.connections(), 1, "it is kept");
}

/// The same while the request's body is still arriving.
#[test]
fn a_continue_and_the_answer_in_one_segment() {
    let origin = Origin::start(|peer| {
        for _ in 0..2 {
            let mut request = peer.request_head();
            peer.send(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}"));
            peer.try_body(&mut request).expect("a body");
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.answer().status(), 100);
    assert_eq!(client.answer().text(), "ok");
    client.send("hello");
    // What was an early answer does not spoil the next request, wherever it goes.
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.answer().status(), 100);
    assert_eq!(client.answer().text(), "ok");
}

/// Many requests in one write, each answered in its turn; between them others are served. The
/// proxy is stopped until both clients' requests are there.
#[test]
fn a_long_pipeline_of_own_answers() {
    const REQUESTS: usize = 200;
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin)
        .one_shard()
        .and_route("match: {path: /one}, respond: {status: 201, body: one}")
        .and_route("match: {path: /two}, respond: {status: 404, body: second}")
        .and_route("match: {path: /other}, respond: {body: other}")
        .listener("access_log: {path: '{dir}/access'}")
        .start();
    let (mut client, mut other) = (proxy.client(), proxy.client());
    let one = |number: usize| (number % 7).is_multiple_of(2);
    let path = |number| if one(number) { "/one" } else { "/two" };
    let requests: String = (0..REQUESTS)
        .map(|number| format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", path(number)))
        .collect();
    proxy.signal(Signal::STOP);
    client.send(requests);
    other.send("GET /other HTTP/1.1\r\nHost: a\r\n\r\n");
    proxy.signal(Signal::CONT);
    for number in 0..REQUESTS {
        let answer = client.answer();
        let expected = if one(number) { (201, "one") } else { (404, "second") };
        assert_eq!((answer.status(), answer.text()), expected, "{number}");
    }
    assert_eq!(other.answer().text(), "other");
    let log = || std::fs::read_to_string(proxy.path("access")).unwrap_or_default();
    eventually("all is logged", || log().lines().count() == REQUESTS + 1);
    let turn = log().lines().position(|line| line.contains("/other")).expect("its line");
    assert!(turn < REQUESTS, "it was served when all others had been");
}

/// The same where each needs an endpoint, which answers the last only once the other is served.
#[test]
fn a_long_pipeline_of_forwarded_requests() {
    const REQUESTS: usize = 200;
    let (let_go, go) = channel::<()>();
    let go = Mutex::new(go);
    let origin = Origin::start(move |peer| {
        while let Ok(request) = peer.try_request() {
            if request.target() == "/199" {
                go.lock().unwrap().recv().unwrap();
            }
            peer.answer(request.target());
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let (mut client, mut other) = (proxy.client(), proxy.client());
    let requests: String =
        (0..REQUESTS).map(|number| format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(requests);
    assert_eq!(other.get("/other").text(), "/other");
    let_go.send(()).unwrap();
    for number in 0..REQUESTS {
        assert_eq!(client.answer().text(), format!("/{number}"));
    }
}

/// A reader that lets everything pile up, and reads it all in the end: many answers of every size
/// up to some buffers, so that writes stop anywhere in them.
#[test]
fn many_answers_to_a_slow_reader() {
    const REQUESTS: usize = 1200;
    let body = |number: usize| patterned(0, number * 7919 % (BUFFER_BYTES * 5 / 4));
    let origin = Origin::start(move |peer| {
        while let Ok(request) = peer.try_request() {
            let body = body(request.target()[1..].parse().expect("a number"));
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
            peer.send(body);
        }
    });
    let large = "x".repeat(10_000);
    let proxy = Setup::new(&origin)
        .one_shard()
        .and_route(format!("match: {{path: /own}}, respond: {{body: {large}}}"))
        .start();
    let mut client = proxy.client();
    let own = |number: usize| number.is_multiple_of(3);
    let requests: String = (0..REQUESTS)
        .map(|number| match own(number) {
            true => "GET /own HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            false => format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"),
        })
        .collect();
    client.send(requests);
    pause(500);
    let forwarded = (0..REQUESTS).filter(|number| !own(*number)).count();
    assert!(origin.requests().len() < forwarded, "there is room for everything: nothing stops");
    for number in 0..REQUESTS {
        if number % 50 == 0 {
            pause(20);
        }
        let answer = client.answer();
        let expected = if own(number) { large.clone().into_bytes() } else { body(number) };
        assert!(answer.body == expected, "{number}");
    }
}

/// A client whose connection has been idle for so long that it gave up its task.
#[track_caller]
fn parked(proxy: &Proxy) -> Client {
    let mut client = proxy.client();
    assert_eq!(client.get("/before").status(), 200);
    pause(700);
    client
}

/// What wakes a parked connection is not lost on the way back to a task.
#[test]
fn a_parked_connection_wakes() {
    let origin = Origin::echoing();
    let proxy = Setup::new(&origin)
        .one_shard()
        .and_route("match: {path: /both}, respond: {body: both}")
        .start();
    let open = || proxy.metric("outrigger_connections_open", &[]);

    let mut client = parked(&proxy);
    assert!(client.get("/request").text().contains("/request"));
    drop(client);
    eventually("its end is seen", || open() == 0.0);

    let mut client = parked(&proxy);
    client.shutdown_write();
    client.assert_closed();
    eventually("it is counted no more", || open() == 0.0);

    parked(&proxy).into_wire().reset();
    eventually("nor is one that was reset", || open() == 0.0);

    let mut client = parked(&proxy);
    client.send_and_end("GET /both HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().text(), "both");
    client.assert_closed();
    eventually("it has ended", || open() == 0.0);
}

/// Many at once, more than one batch of edges holds.
#[test]
fn many_parked_connections_wake_together() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin)
        .one_shard()
        .and_route("match: {path: /own}, respond: {body: own}")
        .start();
    let mut clients: Vec<_> = (0..300).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/own").text(), "own");
    }
    pause(700);
    proxy.signal(Signal::STOP);
    for (number, client) in clients.iter_mut().enumerate() {
        let request = "GET /own HTTP/1.1\r\nHost: a\r\n\r\n";
        match number % 3 {
            0 => client.send(request),
            1 => client.send_and_end(request),
            _ => client.shutdown_write(),
        }
    }
    proxy.signal(Signal::CONT);
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 3 < 2 {
            assert_eq!(client.answer().text(), "own", "{number}");
        }
        if number % 3 > 0 {
            client.assert_closed();
        }
    }
}

/// Sends this again and again, until the proxy ends the connection or is no more; answers are
/// thrown away.
fn flood(proxy: &Proxy, first: &str, again: Vec<u8>) -> std::thread::JoinHandle<()> {
    let mut writer = TcpStream::connect(proxy.address()).unwrap();
    let mut reader = writer.try_clone().unwrap();
    writer.write_all(first.as_bytes()).unwrap();
    std::thread::spawn(move || {
        std::thread::scope(|scope| {
            scope.spawn(|| std::io::copy(&mut reader, &mut std::io::sink()));
            while writer.write_all(&again).is_ok() {}
            let _ = writer.shutdown(Shutdown::Both);
        });
    })
}

/// Each write takes few chunks, and there is always more to read: the relay never has to wait.
#[test]
fn tiny_chunks_leave_the_others_their_turn() {
    let origin = Origin::start(|peer| {
        if peer.request_head().target() == "/up" {
            let _ = peer.rest();
        } else {
            peer.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        }
    });
    let proxy = Setup::new(&origin).one_shard().route("timeouts: {total: 700ms}").start();
    let head = "POST /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let flooding = flood(&proxy, head, b"1\r\nx\r\n".repeat(20_000));
    eventually("the upload has begun", || origin.connections() == 1);
    assert_eq!(proxy.get("/").status(), 204);
    // Its own timer fires, too.
    eventually("time is up", || proxy.refusals("timeout-total") == 1.0);
    flooding.join().unwrap();
}

/// Each read fills its buffer with whole requests, and the answers are ours: neither waits.
#[test]
fn pipelines_of_whole_buffers_leave_the_others_their_turn() {
    const PIPELINED: usize = 640;
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin)
        .shards("count: 1, buffer_bytes: 4KiB")
        .listener("access_log: {path: '{dir}/access'}")
        .and_route("match: {prefix: /own}, respond: {status: 204}")
        .start();
    let request = "GET /own/pipe HTTP/1.1\r\nHost: a\r\nX-Padding: ................\r\n\r\n";
    assert_eq!(4096 % request.len(), 0);
    let (mut pipe, mut other) = (proxy.client(), proxy.client());
    assert_eq!(pipe.get("/own/first").status(), 204);
    assert_eq!(other.get("/own/first").status(), 204);
    proxy.signal(Signal::STOP);
    pipe.send(request.repeat(PIPELINED));
    other.send("GET /own/other HTTP/1.1\r\nHost: a\r\n\r\n");
    proxy.signal(Signal::CONT);
    for _ in 0..PIPELINED {
        assert_eq!(pipe.answer().status(), 204);
    }
    assert_eq!(other.answer().status(), 204);
    let log = || std::fs::read_to_string(proxy.path("access")).unwrap();
    eventually("all are logged", || log().matches("/own/pipe").count() == PIPELINED);
    let before = log().split("/own/other").next().unwrap().matches("/own/pipe").count();
    assert!(before < PIPELINED / 2, "{before} of the pipeline came first");
}

/// A read stops at urgent data (tcp(7)), so a short one is not all there is.
#[test]
fn urgent_data_hide_nothing() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).one_shard().start();
    for _ in 0..3 {
        let client = TcpStream::connect(proxy.address()).unwrap();
        let send =
            |bytes: &str, flags| rustix::net::send(&client, bytes.as_bytes(), flags).unwrap();
        send("GET / HTTP/1.1\r\nHost: a\r\n\r\n", SendFlags::empty());
        assert!((&client).read(&mut [0; 1024]).expect("an answer") > OK.len());
        proxy.signal(Signal::STOP);
        send("GET / HTTP/1.1\r\nHo", SendFlags::empty());
        send("!", SendFlags::OOB);
        send("st: a\r\nConnection: close\r\n\r\n", SendFlags::empty());
        pause(20);
        proxy.signal(Signal::CONT);
        let mut answer = String::new();
        (&client).read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
}

/// Nor where a body would go through a pipe, which such data cannot pass (splice(2)).
#[test]
fn urgent_data_within_a_long_body() {
    const HALF: usize = 300_000;
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            peer.answer(&request.body.len().to_string());
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    for _ in 0..10 {
        let mut client = proxy.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 2 * HALF));
        client.send([b'a'; HALF]);
        rustix::net::send(client.stream_again(), b"!", SendFlags::OOB).unwrap();
        client.send([b'b'; HALF]);
        let answer = client.answer();
        assert_eq!((answer.status(), answer.text()), (200, (2 * HALF).to_string().as_str()));
    }
}

/// Many bytes of a long body are awaited at once, but not for longer than it takes to see that no
/// more come: here none come before the client has all that were sent.
#[test]
fn a_long_body_that_pauses_is_passed_on() {
    const LENGTH: usize = 1_000_000;
    let (release, released) = std::sync::mpsc::channel();
    let released = std::sync::Mutex::new(released);
    let origin = Origin::start(move |peer| {
        while peer.try_request().is_ok() {
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            let mut left = LENGTH;
            while left > 0 {
                let count: usize = released.lock().unwrap().recv().unwrap();
                peer.send(vec![b'x'; count]);
                left -= count;
            }
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.answer_head();
        for count in [1, 200_000, 1, 300_017, 90_000, 300_000, 109_980, 1] {
            release.send(count).unwrap();
            client.read(count);
        }
    }
    assert_eq!(origin.connections(), 1);
}

/// What comes behind a long upload is less than what was awaited at once of the upload.
#[test]
fn a_request_behind_a_long_upload() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            peer.answer(&request.body.len().to_string());
        }
    });
    let proxy = Setup::new(&origin).one_shard().start();
    for length in [300_000, 400_000, 700_001] {
        let mut client = proxy.client();
        let mut requests =
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        requests.extend(std::iter::repeat_n('u', length));
        requests.push_str("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.send(requests);
        assert_eq!(client.answer().text(), length.to_string());
        assert_eq!(client.answer().text(), "0");
    }
}
