//! The bundled upstream: answers as cheaply as it can, and counts honestly.
//!
//! ```text
//! /b/N             N bytes
//! /s/MS/N          N bytes after MS milliseconds
//! /e/CODE          a status
//! /p/PERCENT/CODE  that status for this share of the requests, else 200
//! /stat            counters as JSON; /stat/reset also forgets the highest concurrency
//! ```
//!
//! Used by `outrigger-loadgen origin`, by the bench, by tests, and inside the proxy's process by its
//! demo. A request counts from the end of its head to before the last byte of its answer is
//! written. Every origin is its own: nothing global, any number of them in one process.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::cpu;
use crate::http::{self, Chunks, FIELDS_MAX, Framing, Said};
use crate::net::{self, Driver, Edge, Socket, Watch};
use crate::random::Random;

/// Read at once, in bytes; also the largest head. Several pipelined requests fit.
const READ_BYTES: usize = 64 * 1024;

/// The pattern that bodies are cut from, in bytes. Longer bodies repeat it.
const PATTERN_BYTES: usize = 1 << 20;

/// Bodies up to this many bytes leave in one write with their head; longer ones go by sendfile(2).
const INLINE_BYTES_MAX: u64 = 32 * 1024;

/// Answers gathered before they are written, in bytes: what a deeply pipelining client may cost.
const GATHER_BYTES_MAX: usize = 64 * 1024;

/// Below this many bytes an upload is read; above it the kernel drops it uncopied.
const DISCARD_BYTES_MIN: u64 = 64 * 1024;

/// Turns that one connection may take before the others have theirs.
const TURNS_MAX: usize = 64;

/// How long an accept loop rests when descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// How long `stop` waits for connections to notice.
const STOP_WAIT: Duration = Duration::from_millis(200);

/// What an origin is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen. Port 0 takes a free one; all threads share it.
    pub address: SocketAddr,
    /// Threads, at least 1.
    pub threads: usize,
    /// CPUs to pin the threads to, in turn. Empty: not pinned.
    pub cpus: Vec<usize>,
    /// What the threads wait on.
    pub driver: Driver,
    /// Pending connections for each thread's socket; listen(2).
    pub backlog: i32,
    /// What paths without a meaning of their own are answered with (200). `None`: 404.
    pub greeting: Option<String>,
    /// Every answer is this late, except `/stat`.
    pub delay: Duration,
    /// Every request fails with this chance, except `/stat`.
    pub fail: Option<Fail>,
    /// Makes the failures repeatable.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            threads: 1,
            cpus: Vec::new(),
            driver: Driver::Auto,
            backlog: 4_096,
            greeting: None,
            delay: Duration::ZERO,
            fail: None,
            seed: 1,
        }
    }
}

/// A share of requests that fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fail {
    /// 0 to 100.
    pub percent: f64,
    /// 200 to 599.
    pub status: u16,
}

/// What `/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Requests answered or being answered, without those to `/stat`.
    pub requests: u64,
    /// Requests being answered now.
    pub concurrency: u64,
    /// The most at one moment, over all threads.
    pub concurrency_max: u64,
}

/// A running origin. Dropping it stops it.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    driver: &'static str,
    common: Arc<Common>,
    threads: Vec<(JoinHandle<()>, OwnedFd)>,
}

impl Origin {
    /// Binds, starts the threads, and returns once all of them listen.
    ///
    /// # Errors
    /// When the address cannot be bound, or the driver cannot be had.
    pub fn start(options: Options) -> io::Result<Self> {
        let threads = options.threads.max(1);
        // Not shared at first: on a shared port, another origin would go unnoticed and take its part
        // of the connections.
        let alone = net::listen(options.address, options.backlog, false)?;
        let address = alone.local_addr()?;
        let listeners = if threads == 1 {
            vec![alone]
        } else {
            drop(alone);
            let listen = |_| net::listen(address, options.backlog, true);
            (0..threads).map(listen).collect::<Result<Vec<_>, _>>()?
        };
        let common = Arc::new(Common {
            stopping: AtomicBool::new(false),
            concurrency: AtomicU64::new(0),
            concurrency_max: AtomicU64::new(0),
            threads: (0..threads).map(|_| Counts::default()).collect(),
        });
        let pattern = Arc::new(Pattern::new()?);
        let (ready, started) = std::sync::mpsc::channel();
        let mut origin = Self { address, driver: "", common: common.clone(), threads: Vec::new() };
        for (index, listener) in listeners.into_iter().enumerate() {
            let bell = net::bell()?;
            let heard = bell.try_clone()?;
            let (common, pattern, ready) = (common.clone(), pattern.clone(), ready.clone());
            let options = options.clone();
            let thread =
                std::thread::Builder::new().name(format!("origin-{index}")).spawn(move || {
                    if let Some(&cpu) = options.cpus.get(index % options.cpus.len().max(1)) {
                        cpu::pin(cpu);
                    }
                    match net::Runtime::new(options.driver) {
                        Ok(mut runtime) => {
                            let _ = ready.send(Ok(runtime.name()));
                            runtime.block_on(async {
                                if let Ok(server) = Server::new(options, index, common, pattern) {
                                    server.run(listener, heard).await;
                                }
                            });
                        }
                        Err(error) => drop(ready.send(Err(error))),
                    }
                })?;
            origin.threads.push((thread, bell));
        }
        for _ in 0..threads {
            origin.driver = started.recv().map_err(io::Error::other)??;
        }
        Ok(origin)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `io_uring` or `epoll`.
    pub fn driver(&self) -> &'static str {
        self.driver
    }

    /// The counters of `/stat`.
    pub fn stat(&self) -> Stat {
        self.common.stat()
    }

    /// Closes the listeners and all connections, and waits for the threads.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.common.stopping.store(true, Ordering::Relaxed);
        for (thread, bell) in self.threads.drain(..) {
            net::ring(&bell);
            // A thread that panicked has said so on stderr; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// What the threads of one origin share.
#[derive(Debug)]
struct Common {
    stopping: AtomicBool,
    /// The one thing counted over all threads, so that its maximum is exact.
    concurrency: AtomicU64,
    concurrency_max: AtomicU64,
    threads: Vec<Counts>,
}

/// One thread's counters. One writer, so a load and a store will do. On its own cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts {
    connections: AtomicU64,
    connections_open: AtomicU64,
    requests: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Common {
    fn stat(&self) -> Stat {
        let sum = |pick: fn(&Counts) -> &AtomicU64| {
            self.threads.iter().map(|counts| pick(counts).load(Ordering::Relaxed)).sum()
        };
        Stat {
            connections: sum(|counts| &counts.connections),
            connections_open: sum(|counts| &counts.connections_open),
            requests: sum(|counts| &counts.requests),
            concurrency: self.concurrency.load(Ordering::Relaxed),
            concurrency_max: self.concurrency_max.load(Ordering::Relaxed),
        }
    }

    fn enter(&self) {
        let now = self.concurrency.fetch_add(1, Ordering::Relaxed) + 1;
        if now > self.concurrency_max.load(Ordering::Relaxed) {
            self.concurrency_max.fetch_max(now, Ordering::Relaxed);
        }
    }

    fn leave(&self) {
        self.concurrency.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes for bodies, in memory and as a file that sendfile(2) can take them from.
#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    file: OwnedFd,
}

impl Pattern {
    /// Printable and without a short period, so that a byte lost or doubled shows in a hash.
    fn new() -> io::Result<Self> {
        let mut random = Random::new(1);
        let bytes: Vec<u8> = (0..PATTERN_BYTES)
            .map(|index| if index % 80 == 79 { b'\n' } else { b'a' + (random.draw() % 26) as u8 })
            .collect();
        // SAFETY: the name is a C string that lives for the call.
        let fd = unsafe { libc::memfd_create(c"origin-body".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: memfd_create just gave us this descriptor.
        let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.write_all(&bytes)?;
        Ok(Self { bytes, file: file.into() })
    }
}

/// What a path asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ask {
    Bytes { delay_ms: u64, len: u64 },
    Status(u16),
    Share(Fail),
    Stat { reset: bool },
    Other,
}

impl Ask {
    /// Reads the path; a query is ignored.
    fn read(target: &[u8]) -> Self {
        let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
        let mut parts = path.split(|&byte| byte == b'/').skip(1);
        let parts = [parts.next(), parts.next(), parts.next(), parts.next()];
        Self::from_parts(parts).unwrap_or(Self::Other)
    }

    fn from_parts(parts: [Option<&[u8]>; 4]) -> Option<Self> {
        let status = |digits| {
            http::number(digits).filter(|code| (200..600).contains(code)).map(|code| code as u16)
        };
        Some(match parts {
            [Some(b"b"), Some(len), None, None] => {
                Self::Bytes { delay_ms: 0, len: http::number(len)? }
            }
            [Some(b"s"), Some(ms), Some(len), None] => {
                Self::Bytes { delay_ms: http::number(ms)?, len: http::number(len)? }
            }
            [Some(b"e"), Some(code), None, None] => Self::Status(status(code)?),
            [Some(b"p"), Some(percent), Some(code), None] => {
                let percent: f64 = std::str::from_utf8(percent).ok()?.parse().ok()?;
                if !(0.0..=100.0).contains(&percent) {
                    return None;
                }
                Self::Share(Fail { percent, status: status(code)? })
            }
            [Some(b"stat"), None, None, None] => Self::Stat { reset: false },
            [Some(b"stat"), Some(b"reset"), None, None] => Self::Stat { reset: true },
            _ => return None,
        })
    }
}

/// A request, as far as its answer depends on it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Request {
    ask: Ask,
    head_only: bool,
    /// The minor version: an HTTP/1.0 client must be told that the connection stays.
    version: u8,
    keep_alive: bool,
    expects_continue: bool,
    framing: Framing,
}

/// What an answer is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Reply {
    status: u16,
    body: Body,
    head_only: bool,
    version: u8,
    keep_alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Body {
    /// Cut from the pattern.
    Pattern(u64),
    /// The status and its phrase.
    Phrase,
    Greeting,
    Stat,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Read,
    Write,
    Pause(Duration),
    Close,
    /// Nothing: there is more to do at once.
    Again,
}

/// One connection. Idle, it holds no buffer.
#[derive(Debug)]
struct Connection {
    socket: Rc<Socket>,
    /// A task waits to go on with it; until then edges are only remembered.
    busy: bool,
    /// The peer has ended: read on after a short read.
    ended: bool,
    /// Bytes received and not yet used.
    carry: Vec<u8>,
    /// Bytes of answers that the socket did not take, from `out_at` on.
    out: Vec<u8>,
    out_at: usize,
    /// A long body being sent: bytes left, and where in the pattern.
    long_left: u64,
    long_at: usize,
    /// A request whose body is still coming, or whose answer waits.
    request: Option<Request>,
    body: Option<Rest>,
    /// The answer's delay is over, or was none.
    paused: bool,
    /// What is carried makes no progress without more.
    starved: bool,
    closing: bool,
}

/// What is still to come of a request's body.
#[derive(Debug, Clone, Copy)]
enum Rest {
    Length(u64),
    Chunked(Chunks),
}

/// One thread's connections by number; numbers are used again.
#[derive(Debug, Default)]
struct Connections {
    all: Vec<Option<Rc<RefCell<Connection>>>>,
    free: Vec<usize>,
}

impl Connections {
    fn insert(&mut self, connection: Connection) -> usize {
        let connection = Some(Rc::new(RefCell::new(connection)));
        match self.free.pop() {
            Some(number) => {
                self.all[number] = connection;
                number
            }
            None => {
                self.all.push(connection);
                self.all.len() - 1
            }
        }
    }

    fn remove(&mut self, number: usize) {
        self.all[number] = None;
        self.free.push(number);
    }
}

/// One thread.
struct Server {
    options: Options,
    common: Arc<Common>,
    index: usize,
    pattern: Arc<Pattern>,
    random: RefCell<Random>,
    buffer: RefCell<Vec<u8>>,
    gathered: RefCell<Vec<u8>>,
    date: RefCell<Date>,
    /// The last request head and what it meant: load repeats itself.
    seen: RefCell<(Vec<u8>, Option<Request>)>,
    /// The last short answer, as it was written.
    made: RefCell<(Vec<u8>, Option<Reply>)>,
    watch: Watch,
    connections: RefCell<Connections>,
    accepting: Cell<bool>,
}

impl Server {
    fn new(
        options: Options,
        index: usize,
        common: Arc<Common>,
        pattern: Arc<Pattern>,
    ) -> io::Result<Rc<Self>> {
        let seed = options.seed.wrapping_add(index as u64);
        Ok(Rc::new(Self {
            options,
            common,
            index,
            pattern,
            random: RefCell::new(Random::new(seed)),
            buffer: RefCell::new(vec![0; READ_BYTES]),
            gathered: RefCell::default(),
            date: RefCell::default(),
            seen: RefCell::default(),
            made: RefCell::default(),
            watch: Watch::new()?,
            connections: RefCell::default(),
            accepting: Cell::new(true),
        }))
    }

    /// Serves until the bell rings.
    async fn run(self: Rc<Self>, listener: TcpListener, bell: OwnedFd) {
        let (Ok(listener), Ok(bell)) = (net::adopt(listener), Socket::new(bell)) else {
            return;
        };
        let listener_fd = listener.fd();
        net::spawn(self.clone().accept(listener));
        net::spawn(self.clone().read());
        while !self.common.stopping.load(Ordering::Relaxed) {
            if bell.readable().await.is_err() {
                break;
            }
        }
        net::shut(listener_fd);
        for connection in self.connections.borrow().all.iter().flatten() {
            connection.borrow().socket.shut();
        }
        // A connection in a pause notices only after it; its peer has seen the end already.
        let tick = Duration::from_millis(2);
        for _ in 0..STOP_WAIT.as_millis() / tick.as_millis() {
            net::sleep(tick).await;
            let open = self.connections.borrow().all.iter().flatten().count();
            if open == 0 && !self.accepting.get() {
                break;
            }
        }
    }

    async fn accept(self: Rc<Self>, listener: Socket) {
        while !self.common.stopping.load(Ordering::Relaxed) {
            match net::accept(&listener) {
                Ok(socket) => self.open(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if listener.readable().await.is_err() {
                        break;
                    }
                }
                Err(_) if self.common.stopping.load(Ordering::Relaxed) => break,
                // EMFILE, or a client that was gone before we took it.
                Err(_) => net::sleep(ACCEPT_PAUSE).await,
            }
        }
        self.accepting.set(false);
    }

    fn open(&self, socket: Socket) {
        let counts = &self.common.threads[self.index];
        add(&counts.connections, 1);
        let connection = Connection::new(socket);
        let socket = connection.socket.clone();
        let mut connections = self.connections.borrow_mut();
        let number = connections.insert(connection);
        match self.watch.add(&socket, number as u64) {
            Ok(()) => add(&counts.connections_open, 1),
            Err(_) => connections.remove(number),
        }
    }

    fn close(&self, number: usize, connection: &Connection) {
        if connection.request.is_some() || connection.long_left > 0 {
            self.common.leave();
        }
        self.connections.borrow_mut().remove(number);
        add(&self.common.threads[self.index].connections_open, 1_u64.wrapping_neg());
    }

    /// Goes on with the connections that have something to read.
    async fn read(self: Rc<Self>) {
        let go_on = |edge: Edge| {
            let number = edge.token as usize;
            // The number may be free by now, or a later connection's: then there is nothing to read.
            let Some(connection) = self.connections.borrow().all[number].clone() else { return };
            let busy = {
                let mut connection = connection.borrow_mut();
                connection.ended |= edge.ended;
                connection.busy
            };
            if !busy {
                self.go_on(number, &connection);
            }
        };
        while self.watch.edges(go_on).await.is_ok() {}
    }

    /// Does what can be done with a connection, and sees to what it waits for.
    fn go_on(self: &Rc<Self>, number: usize, shared: &Rc<RefCell<Connection>>) {
        let mut connection = shared.borrow_mut();
        let mut turns = 0;
        let step = loop {
            turns += 1;
            match self.turn(&mut connection) {
                Step::Again if turns < TURNS_MAX => {}
                step => break step,
            }
        };
        match step {
            Step::Read => {}
            Step::Close => self.close(number, &connection),
            Step::Write | Step::Pause(_) | Step::Again => {
                connection.busy = true;
                net::spawn(self.clone().wait(step, number, shared.clone()));
            }
        }
    }

    async fn wait(self: Rc<Self>, step: Step, number: usize, shared: Rc<RefCell<Connection>>) {
        match step {
            Step::Pause(delay) => net::sleep(delay).await,
            Step::Write => {
                let socket = shared.borrow().socket.clone();
                let _ = socket.writable().await;
            }
            _ => net::give_way().await,
        }
        shared.borrow_mut().busy = false;
        self.go_on(number, &shared);
    }

    /// Does what can be done without waiting, and says what to wait for.
    fn turn(&self, connection: &mut Connection) -> Step {
        match self.flush(connection) {
            Ok(true) => {}
            Ok(false) => return Step::Write,
            Err(_) => return Step::Close,
        }
        if connection.closing {
            return Step::Close;
        }
        if let Some(Rest::Length(left)) = connection.body
            && left >= DISCARD_BYTES_MIN
            && connection.carry.is_empty()
        {
            return self.discard(connection, left);
        }
        let mut buffer = self.buffer.borrow_mut();
        let carried = connection.carry.len();
        buffer[..carried].copy_from_slice(&connection.carry);
        connection.carry.clear();
        let mut filled = carried;
        let mut drained = false;
        if connection.starved {
            match connection.socket.recv(&mut buffer[carried..]) {
                Ok(0) => return Step::Close,
                Ok(n) => {
                    filled += n;
                    // Only after a short read will the next bytes make an edge.
                    drained = filled < READ_BYTES && !connection.ended;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.carry.extend_from_slice(&buffer[..carried]);
                    connection.ended = false;
                    return Step::Read;
                }
                Err(_) => return Step::Close,
            }
        }
        let (used, step) = self.answer_all(connection, &buffer[..filled]);
        if used < filled {
            connection.carry.extend_from_slice(&buffer[used..filled]);
            if filled - used == READ_BYTES {
                return Step::Close; // A head that does not end.
            }
        } else if connection.carry.capacity() > 0 {
            connection.carry = Vec::new();
        }
        if step == Step::Read && !drained { Step::Again } else { step }
    }

    /// Takes as many requests out of `bytes` as it can; returns how much it used.
    fn answer_all(&self, connection: &mut Connection, bytes: &[u8]) -> (usize, Step) {
        let mut gathered = self.gathered.borrow_mut();
        gathered.clear();
        let mut used = 0;
        let mut step = Step::Read;
        connection.starved = false;
        while !connection.closing && connection.long_left == 0 {
            if gathered.len() > GATHER_BYTES_MAX {
                step = Step::Again;
                break;
            }
            let Some(request) = connection.request else {
                match self.parse(&bytes[used..]) {
                    Parsed::Partial => {
                        connection.starved = true;
                        break;
                    }
                    Parsed::Bad => {
                        let status = Reply::plain(400);
                        self.write_reply(status, connection, &mut gathered);
                        connection.closing = true;
                        used = bytes.len();
                        break;
                    }
                    Parsed::Head(request, len) => {
                        used += len;
                        self.begin(request, connection);
                        if request.expects_continue && connection.body.is_some() {
                            gathered.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                        }
                        continue;
                    }
                }
            };
            if connection.body.is_some() {
                match connection.read_body(&bytes[used..]) {
                    Ok(taken) => used += taken,
                    Err(_) => {
                        connection.closing = true;
                        self.end(connection);
                        break;
                    }
                }
                if connection.body.is_some() {
                    connection.starved = true;
                    break;
                }
                continue;
            }
            if !connection.paused {
                connection.paused = true;
                let delay = self.delay(request.ask);
                if delay > Duration::ZERO {
                    step = Step::Pause(delay);
                    break;
                }
            }
            let reply = self.reply(&request);
            self.write_reply(reply, connection, &mut gathered);
            connection.paused = false;
            if connection.long_left == 0 {
                self.end(connection);
            } else {
                connection.request = None;
            }
            connection.closing |= !reply.keep_alive;
        }
        let rest = if connection.long_left > 0 || connection.closing { Step::Again } else { step };
        match send_all(&connection.socket, &gathered) {
            Ok(sent) if sent == gathered.len() => (used, rest),
            Ok(sent) => {
                connection.out.extend_from_slice(&gathered[sent..]);
                // A pause that was due starts when the answers before it have left.
                if matches!(rest, Step::Pause(_)) {
                    connection.paused = false;
                }
                (used, Step::Write)
            }
            Err(_) => (used, Step::Close),
        }
    }

    fn begin(&self, request: Request, connection: &mut Connection) {
        connection.request = Some(request);
        connection.body = match request.framing {
            Framing::Length(0) | Framing::UntilClose => None,
            Framing::Length(len) => Some(Rest::Length(len)),
            Framing::Chunked => Some(Rest::Chunked(Chunks::default())),
        };
        if !matches!(request.ask, Ask::Stat { .. }) {
            add(&self.common.threads[self.index].requests, 1);
        }
        self.common.enter();
    }

    fn end(&self, connection: &mut Connection) {
        connection.request = None;
        self.common.leave();
    }

    fn delay(&self, ask: Ask) -> Duration {
        match ask {
            Ask::Stat { .. } => Duration::ZERO,
            Ask::Bytes { delay_ms, .. } => self.options.delay + Duration::from_millis(delay_ms),
            _ => self.options.delay,
        }
    }

    /// Throws an upload away without reading it.
    fn discard(&self, connection: &mut Connection, left: u64) -> Step {
        match connection.socket.discard(left.min(1 << 30) as usize) {
            Ok(0) => Step::Close,
            Ok(n) => {
                connection.body = match left - n as u64 {
                    0 => None,
                    left => Some(Rest::Length(left)),
                };
                connection.starved = connection.body.is_some();
                if connection.starved && !connection.ended { Step::Read } else { Step::Again }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.ended = false;
                Step::Read
            }
            Err(_) => Step::Close,
        }
    }

    fn parse(&self, bytes: &[u8]) -> Parsed {
        let mut seen = self.seen.borrow_mut();
        if let (head, Some(request)) = &*seen
            && bytes.starts_with(head)
        {
            return Parsed::Head(*request, head.len());
        }
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut []);
        let len = match request.parse_with_uninit_headers(bytes, &mut fields) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Parsed::Partial,
            Err(_) => return Parsed::Bad,
        };
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Parsed::Bad;
        };
        let Some(said) = Said::read(request.headers) else { return Parsed::Bad };
        let parsed = Request {
            ask: Ask::read(target.as_bytes()),
            head_only: method == "HEAD",
            version,
            keep_alive: said.keeps_alive(version),
            expects_continue: said.expects_continue,
            framing: if said.chunked {
                Framing::Chunked
            } else {
                Framing::Length(said.length.unwrap_or(0))
            },
        };
        seen.0.clear();
        seen.0.extend_from_slice(&bytes[..len]);
        seen.1 = Some(parsed);
        Parsed::Head(parsed, len)
    }

    fn reply(&self, request: &Request) -> Reply {
        let fails = match (request.ask, self.options.fail) {
            (Ask::Stat { .. }, _) => None,
            (Ask::Share(fail), _) => Some(fail),
            (_, fail) => fail,
        };
        let failed = fails
            .filter(|fail| self.random.borrow_mut().hits(fail.percent))
            .map(|fail| (fail.status, Body::Phrase));
        let (status, body) = failed.unwrap_or(match request.ask {
            Ask::Bytes { len, .. } => (200, Body::Pattern(len)),
            Ask::Status(status) => (status, Body::Phrase),
            Ask::Share(_) => (200, Body::Phrase),
            Ask::Stat { reset } => {
                if reset {
                    let now = self.common.concurrency.load(Ordering::Relaxed);
                    self.common.concurrency_max.store(now, Ordering::Relaxed);
                }
                (200, Body::Stat)
            }
            Ask::Other if self.options.greeting.is_some() => (200, Body::Greeting),
            Ask::Other => (404, Body::Phrase),
        });
        Reply {
            status,
            body,
            head_only: request.head_only,
            version: request.version,
            keep_alive: request.keep_alive,
        }
    }

    /// Appends the answer, or its head and then `long_left`.
    fn write_reply(&self, reply: Reply, connection: &mut Connection, out: &mut Vec<u8>) {
        let mut date = self.date.borrow_mut();
        let mut made = self.made.borrow_mut();
        if !date.refresh() && made.1 == Some(reply) {
            out.extend_from_slice(&made.0);
            return;
        }
        let start = out.len();
        let mut text = Vec::new();
        let len = match reply.body {
            Body::Pattern(len) => len,
            Body::Phrase => {
                let _ = writeln!(text, "{} {}", reply.status, http::phrase(reply.status));
                text.len() as u64
            }
            Body::Greeting => {
                text.extend_from_slice(self.options.greeting.as_deref().unwrap_or("").as_bytes());
                text.push(b'\n');
                text.len() as u64
            }
            Body::Stat => {
                // This request is in the count until its answer leaves; it is not one of theirs.
                let stat = self.common.stat();
                let _ = writeln!(
                    text,
                    "{{\"connections\":{},\"connections_open\":{},\"requests\":{},\
                     \"concurrency\":{},\"concurrency_max\":{}}}",
                    stat.connections,
                    stat.connections_open,
                    stat.requests,
                    stat.concurrency.saturating_sub(1),
                    stat.concurrency_max
                );
                text.len() as u64
            }
        };
        // Writing to a Vec cannot fail.
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", reply.status, http::phrase(reply.status));
        let _ = write!(out, "Date: {}\r\n", date.text);
        let bodiless = matches!(reply.status, 204 | 304);
        if !bodiless {
            let kind = match reply.body {
                Body::Stat => "application/json",
                _ => "text/plain",
            };
            let _ = write!(out, "Content-Type: {kind}\r\nContent-Length: {len}\r\n");
        }
        if !reply.keep_alive {
            out.extend_from_slice(b"Connection: close\r\n");
        } else if reply.version == 0 {
            out.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
        let mut repeats = !matches!(reply.body, Body::Stat);
        if !bodiless && !reply.head_only {
            match reply.body {
                Body::Pattern(len) if len <= INLINE_BYTES_MAX => {
                    out.extend_from_slice(&self.pattern.bytes[..len as usize]);
                }
                Body::Pattern(len) => {
                    connection.long_left = len;
                    connection.long_at = 0;
                    repeats = false;
                }
                _ => out.extend_from_slice(&text),
            }
        }
        if repeats {
            made.0.clear();
            made.0.extend_from_slice(&out[start..]);
            made.1 = Some(reply);
        } else {
            made.1 = None;
        }
    }

    /// Sends what waits. False when the socket is full.
    fn flush(&self, connection: &mut Connection) -> io::Result<bool> {
        let socket = &connection.socket;
        if connection.out_at < connection.out.len() {
            connection.out_at += send_all(socket, &connection.out[connection.out_at..])?;
            if connection.out_at < connection.out.len() {
                return Ok(false);
            }
            connection.out = Vec::new();
            connection.out_at = 0;
        }
        while connection.long_left > 0 {
            let here = PATTERN_BYTES - connection.long_at;
            let piece = connection.long_left.min(here as u64) as usize;
            let file = self.pattern.file.as_raw_fd();
            let last = connection.long_left == piece as u64;
            if last {
                self.common.leave();
            }
            let sent = match socket.send_file(file, connection.long_at, piece) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => {
                    if last {
                        connection.long_left = 0;
                    }
                    return Err(error);
                }
            };
            if last && sent < piece {
                // The last byte has not left after all. Not a new request: the maximum stays.
                self.common.concurrency.fetch_add(1, Ordering::Relaxed);
            }
            if sent == 0 {
                return Ok(false);
            }
            connection.long_left -= sent as u64;
            connection.long_at = (connection.long_at + sent) % PATTERN_BYTES;
        }
        Ok(true)
    }
}

/// What the start of a buffer holds.
enum Parsed {
    Partial,
    Bad,
    Head(Request, usize),
}

impl Reply {
    fn plain(status: u16) -> Self {
        Self { status, body: Body::Phrase, head_only: false, version: 1, keep_alive: false }
    }
}

impl Connection {
    fn new(socket: Socket) -> Self {
        Self {
            socket: Rc::new(socket),
            busy: false,
            ended: false,
            carry: Vec::new(),
            out: Vec::new(),
            out_at: 0,
            long_left: 0,
            long_at: 0,
            request: None,
            body: None,
            paused: false,
            starved: true,
            closing: false,
        }
    }

    /// Reads past the body; `body` is `None` once it has ended.
    fn read_body(&mut self, bytes: &[u8]) -> Result<usize, http::BadChunk> {
        match &mut self.body {
            None => Ok(0),
            Some(Rest::Length(left)) => {
                let taken = (*left).min(bytes.len() as u64);
                *left -= taken;
                if *left == 0 {
                    self.body = None;
                }
                Ok(taken as usize)
            }
            Some(Rest::Chunked(chunks)) => {
                let taken = chunks.skip(bytes, |_| {})?;
                if chunks.done() {
                    self.body = None;
                }
                Ok(taken)
            }
        }
    }
}

/// Sends until all is gone or the socket is full; returns how much went.
fn send_all(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match socket.send(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// The Date field's value, made once a second (RFC 9110, 6.6.1).
#[derive(Debug, Default)]
struct Date {
    second: u64,
    text: String,
}

impl Date {
    /// True if the text has changed.
    fn refresh(&mut self) -> bool {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` lives for the call. The coarse clock is a few ns and good to 4 ms.
        unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut time) };
        let second = time.tv_sec as u64;
        if second == self.second {
            return false;
        }
        self.second = second;
        self.text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_what_they_say() {
        for (path, ask) in [
            ("/b/0", Ask::Bytes { delay_ms: 0, len: 0 }),
            ("/b/100?x=1", Ask::Bytes { delay_ms: 0, len: 100 }),
            ("/s/20/5", Ask::Bytes { delay_ms: 20, len: 5 }),
            ("/e/503", Ask::Status(503)),
            ("/p/0.5/500", Ask::Share(Fail { percent: 0.5, status: 500 })),
            ("/stat", Ask::Stat { reset: false }),
            ("/stat/reset", Ask::Stat { reset: true }),
            ("/", Ask::Other),
            ("/b/", Ask::Other),
            ("/b/1/2", Ask::Other),
            ("/b/-1", Ask::Other),
            ("/e/100", Ask::Other),
            ("/e/600", Ask::Other),
            ("/p/101/500", Ask::Other),
            ("/p/NaN/500", Ask::Other),
            ("*", Ask::Other),
        ] {
            assert_eq!(Ask::read(path.as_bytes()), ask, "{path}");
        }
    }
}
