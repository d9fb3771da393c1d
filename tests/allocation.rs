//! Counts heap allocations per request on a keep-alive connection, in the real shard: none.
//!
//! The whole process runs in here, under an allocator that counts. The client's and the origin's
//! threads do not count themselves; all others do, the control thread among them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrigger::config::{Format, parse};

struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !EXEMPT.try_with(Cell::get).unwrap_or(true) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests before the count begins: pools fill, tables grow, and each of the 16 buffers that a shard
/// has for its log is made when it is first needed.
const WARM_UP: usize = 4_000;

const COUNTED: usize = 1_000;

#[test]
fn a_request_allocates_nothing() {
    EXEMPT.set(true);
    let origin = origin();
    let directory = tempfile::tempdir().unwrap();
    let addresses = directory.path().join("addresses");
    let log = directory.path().join("access.log");
    let text = format!(
        "shards: {{count: 1, driver: {driver}}}\n\
         admin: {{address: off}}\n\
         log: {{level: error}}\n\
         listeners:\n\
         \x20 - {{name: plain, address: '127.0.0.1:0'}}\n\
         \x20 - name: logged\n\
         \x20   address: '127.0.0.1:0'\n\
         \x20   access_log: {{path: '{log}', format: json}}\n\
         \x20 - {{name: limited, address: '127.0.0.1:0'}}\n\
         \x20 - {{name: guarded, address: '127.0.0.1:0'}}\n\
         overload: {{queue_target: 10s, interval: 20s}}\n\
         rate_limits:\n\
         \x20 - {{name: many, key: [client, {{header: user-agent}}, route], requests: 1000000}}\n\
         \x20 - {{name: all, requests: 1000000}}\n\
         routes:\n\
         \x20 - {{listeners: [limited], cluster: app, rate_limits: [many, all]}}\n\
         \x20 - {{listeners: [guarded], cluster: guarded}}\n\
         \x20 - {{cluster: app}}\n\
         clusters:\n\
         \x20 - {{name: app, endpoints: ['{origin}']}}\n\
         \x20 - name: guarded\n\
         \x20   endpoints: ['{origin}']\n\
         \x20   adaptive_concurrency: {{}}\n\
         \x20   admission_control: {{}}\n\
         \x20   limits: {{pending_target: 1s}}\n",
        driver = std::env::var("OUTRIGGER_TEST_DRIVER").unwrap_or_else(|_| "auto".to_owned()),
        log = log.display(),
    );
    let config = parse(&text, Format::Yaml, "allocation.yaml").unwrap_or_else(|e| panic!("{e}"));
    let options = outrigger::cli::Options {
        listen_address_path: Some(addresses.clone()),
        ..outrigger::cli::Options::default()
    };
    std::thread::spawn(|| outrigger::run::run(config, options));
    let lines = wait_for(&addresses);
    let get = b"GET /path?query HTTP/1.1\r\nHost: example.com\r\nUser-Agent: test\r\n\r\n".to_vec();
    let mut post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4096\r\n\r\n".to_vec();
    post.resize(post.len() + 4096, b'x');
    for line in lines.lines() {
        let (name, address) = line.split_once(' ').unwrap();
        let mut client = TcpStream::connect(address.parse::<SocketAddr>().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for (what, request) in [("GET", &get), ("POST of 4 KiB", &post)] {
            ask(&mut client, request, WARM_UP);
            let before = CALLS.load(Ordering::Relaxed);
            ask(&mut client, request, COUNTED);
            let calls = CALLS.load(Ordering::Relaxed) - before;
            assert_eq!(calls, 0, "{what} on {name}: {calls} calls for {COUNTED} requests");
        }
    }
}

/// Asks so many times, each time for the whole answer.
fn ask(client: &mut TcpStream, request: &[u8], times: usize) {
    let mut buffer = [0; 4096];
    for _ in 0..times {
        client.write_all(request).unwrap();
        let mut got = 0;
        while !buffer[..got].ends_with(b"\r\n\r\nok") {
            let count = client.read(&mut buffer[got..]).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&buffer[..got]));
            got += count;
        }
    }
}

/// Answers `ok` to everything, on any number of connections.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        EXEMPT.set(true);
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            std::thread::spawn(move || {
                EXEMPT.set(true);
                let mut buffer = vec![0; 16 * 1024];
                let mut got = 0;
                loop {
                    match socket.read(&mut buffer[got..]) {
                        Ok(0) | Err(_) => return,
                        Ok(count) => got += count,
                    }
                    let Some(end) = buffer[..got].windows(4).position(|it| it == b"\r\n\r\n")
                    else {
                        continue;
                    };
                    let body = if buffer.starts_with(b"POST") { 4096 } else { 0 };
                    if got < end + 4 + body {
                        continue;
                    }
                    got = 0;
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: it\r\n\r\nok";
                    if socket.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The text of a file that appears when it is complete.
fn wait_for(path: &std::path::Path) -> String {
    for _ in 0..1_000 {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no addresses in {}", path.display());
}
