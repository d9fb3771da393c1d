//! The origin by its wire: every path, every kind of body, and counters that are exact.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use outrigger_loadgen::net::Driver;
use outrigger_loadgen::origin::{Fail, Options, Origin};

fn start(driver: Driver) -> Origin {
    Origin::start(Options { threads: 2, driver, ..Options::default() }).unwrap()
}

fn connect(origin: &Origin) -> TcpStream {
    let stream = TcpStream::connect(origin.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Reads one answer: its head, and as much body as its Content-Length says.
fn answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let len = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn ask(stream: &mut TcpStream, request: &str) -> (String, Vec<u8>) {
    stream.write_all(request.as_bytes()).unwrap();
    answer(stream)
}

fn get(stream: &mut TcpStream, path: &str) -> (String, Vec<u8>) {
    ask(stream, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
}

fn on_each_driver(test: fn(Driver)) {
    test(Driver::Auto);
    test(Driver::Epoll);
}

#[test]
fn each_path_answers() {
    on_each_driver(|driver| {
        let origin = start(driver);
        let mut stream = connect(&origin);
        for len in [0, 1, 100, 32 * 1024, 32 * 1024 + 1, 3_000_000] {
            let (head, body) = get(&mut stream, &format!("/b/{len}"));
            assert!(head.starts_with("HTTP/1.1 200 OK\r\nDate: "), "{head}");
            assert_eq!(body.len(), len);
        }
        let (one, two) = (get(&mut stream, "/b/2000000").1, get(&mut stream, "/b/2000000").1);
        assert_eq!(one, two);
        assert_eq!(one[..1 << 20][..1000], one[1 << 20..][..1000], "repeats after 1 MiB");
        assert_eq!(get(&mut stream, "/s/5/7").1.len(), 7);
        assert!(get(&mut stream, "/e/503").0.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(get(&mut stream, "/e/204").0.starts_with("HTTP/1.1 204 No Content\r\n"));
        assert!(get(&mut stream, "/p/100/502").0.starts_with("HTTP/1.1 502 "));
        assert!(get(&mut stream, "/p/0/502").0.starts_with("HTTP/1.1 200 "));
        assert!(get(&mut stream, "/nothing").0.starts_with("HTTP/1.1 404 "));
        assert_eq!(origin.stat().connections, 1);
        assert_eq!(origin.stat().requests, 14);
        assert_eq!(origin.stat().concurrency_max, 1);
    });
}

#[test]
fn head_has_the_length_and_no_body() {
    on_each_driver(|driver| {
        let origin = start(driver);
        let mut stream = connect(&origin);
        stream.write_all(b"HEAD /b/100000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (head, body) = {
            let mut both = Vec::new();
            stream.write_all(b"GET /b/3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            stream.read_to_end(&mut both).unwrap();
            let text = String::from_utf8(both).unwrap();
            let (first, second) = text.split_once("\r\n\r\n").unwrap();
            (first.to_owned(), second.to_owned())
        };
        assert!(head.contains("Content-Length: 100000"), "{head}");
        assert!(body.starts_with("HTTP/1.1 200 OK"), "{body}");
        assert!(body.contains("Connection: close"), "{body}");
    });
}

#[test]
fn bodies_are_read_and_dropped() {
    on_each_driver(|driver| {
        let origin = start(driver);
        let mut stream = connect(&origin);
        for len in [0, 1, 70_000, 1_000_000] {
            let head = format!("POST /b/4 HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&vec![b'x'; len]).unwrap();
            assert_eq!(answer(&mut stream).1.len(), 4);
        }
        stream
            .write_all(b"POST /b/5 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            .unwrap();
        for _ in 0..100 {
            stream.write_all(b"400\r\n").unwrap();
            stream.write_all(&[b'y'; 1_024]).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"0\r\nTrailer: x\r\n\r\n").unwrap();
        assert_eq!(answer(&mut stream).1.len(), 5);
        let expecting = "POST /b/6 HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\
                         Content-Length: 3\r\n\r\n";
        assert!(ask(&mut stream, expecting).0.starts_with("HTTP/1.1 100 Continue\r\n"));
        stream.write_all(b"abc").unwrap();
        assert_eq!(answer(&mut stream).1.len(), 6);
        assert_eq!(origin.stat().requests, 6);
    });
}

/// Pipelined requests are answered in order, however the bytes are cut, delays among them.
#[test]
fn pipelines_keep_their_order() {
    on_each_driver(|driver| {
        let origin = start(driver);
        let mut stream = connect(&origin);
        let mut bytes = Vec::new();
        for index in 0..300 {
            let path = match index % 100 {
                7 => "/s/3/20".to_owned(),
                50 => "/b/100000".to_owned(),
                _ => format!("/b/{index}"),
            };
            bytes.extend_from_slice(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        }
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            for piece in bytes.chunks(777) {
                writer.write_all(piece).unwrap();
            }
        });
        for index in 0..300 {
            let expected = match index % 100 {
                7 => 20,
                50 => 100_000,
                _ => index,
            };
            assert_eq!(answer(&mut stream).1.len(), expected, "answer {index}");
        }
        sender.join().unwrap();
        assert_eq!(origin.stat().requests, 300);
        assert_eq!(origin.stat().concurrency, 0);
    });
}

#[test]
fn http_1_0_closes_unless_asked() {
    on_each_driver(|driver| {
        let origin = start(driver);
        let mut stream = connect(&origin);
        let kept = ask(&mut stream, "GET /b/1 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        assert!(kept.0.contains("Connection: keep-alive"), "{}", kept.0);
        stream.write_all(b"GET /b/1 HTTP/1.0\r\n\r\n").unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("Connection: close"), "{rest}");
    });
}

#[test]
fn nonsense_is_a_400_and_a_close() {
    on_each_driver(|driver| {
        let origin = start(driver);
        for request in ["GET\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"] {
            let mut stream = connect(&origin);
            stream.write_all(request.as_bytes()).unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            assert!(rest.starts_with("HTTP/1.1 400 "), "{rest}");
        }
    });
}

/// Counted over all threads and connections, exactly: every request is in the count until its
/// answer leaves, and the highest number is the number of them that overlapped.
#[test]
fn concurrency_is_exact() {
    on_each_driver(|driver| {
        let origin = start(driver);
        let mut streams: Vec<_> = (0..20).map(|_| connect(&origin)).collect();
        for stream in &mut streams {
            stream.write_all(b"GET /s/300/10 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        }
        for stream in &mut streams {
            assert_eq!(answer(stream).1.len(), 10);
        }
        let text = String::from_utf8(get(&mut streams[0], "/stat").1).unwrap();
        assert_eq!(
            text,
            "{\"connections\":20,\"connections_open\":20,\"requests\":20,\
             \"concurrency\":0,\"concurrency_max\":20}\n"
        );
        get(&mut streams[0], "/stat/reset");
        get(&mut streams[0], "/b/1");
        assert_eq!(origin.stat().concurrency_max, 1);
        assert_eq!(origin.stat().requests, 21);
    });
}

/// A client that ends its side together with its request is answered, and then let go.
#[test]
fn a_half_closed_client_is_answered_and_closed() {
    on_each_driver(|driver| {
        let origin = start(driver);
        for path in ["/b/10", "/b/500000", "/s/5/10"] {
            for _ in 0..10 {
                let mut stream = connect(&origin);
                let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
                stream.write_all(request.as_bytes()).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                assert!(all.starts_with(b"HTTP/1.1 200 OK\r\n"), "{path}");
            }
        }
        while origin.stat().connections_open > 0 {
            std::thread::yield_now();
        }
    });
}

/// A port that is taken is an error, not a share of somebody else's connections.
#[test]
fn a_taken_port_is_an_error() {
    for threads in [1, 2] {
        let first = Origin::start(Options { threads, ..Options::default() }).unwrap();
        for threads in [1, 2] {
            let again = Options { address: first.address(), threads, ..Options::default() };
            assert!(Origin::start(again).is_err());
        }
    }
}

/// Two origins in one process share nothing, and stopping one ends its connections.
#[test]
fn origins_are_independent_and_stop() {
    on_each_driver(|driver| {
        let fail = Some(Fail { percent: 100.0, status: 503 });
        let greeting = Some("hello".to_owned());
        let first = Origin::start(Options { greeting, driver, ..Options::default() }).unwrap();
        let second = Origin::start(Options { fail, driver, ..Options::default() }).unwrap();
        let (mut one, mut two) = (connect(&first), connect(&second));
        assert_eq!(get(&mut one, "/any").1, b"hello\n");
        assert!(get(&mut two, "/b/1").0.starts_with("HTTP/1.1 503 "));
        assert!(get(&mut two, "/stat").0.starts_with("HTTP/1.1 200 "));
        let mut sleeping = connect(&first);
        sleeping.write_all(b"GET /s/60000/1 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        while first.stat().concurrency == 0 {
            std::thread::yield_now();
        }
        let address = first.address();
        first.stop();
        assert_eq!(one.read(&mut [0; 10]).unwrap(), 0);
        assert_eq!(sleeping.read(&mut [0; 10]).unwrap(), 0);
        assert!(TcpStream::connect(address).is_err());
        assert!(get(&mut two, "/b/1").0.starts_with("HTTP/1.1 503 "));
    });
}
