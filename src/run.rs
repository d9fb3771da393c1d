//! A checked configuration to a running process: descriptors, sockets, one thread per shard, and
//! the control thread on the calling one. Called by the command line; returns when all has ended.
//!
//! Everything that can fail for want of a resource is done before the first thread serves.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Resource, Rlimit};

use crate::access_log::{self, AccessLogs, ShardLog};
use crate::cli::{EXIT_BIND, EXIT_PANIC, Options, demo};
use crate::config::{self, Config, Machine, ShardOptions};
use crate::control::{self, ControlOptions, ShardHandle};
use crate::mailbox::{Inbox, Sender};
use crate::metrics::ShardCounters;
use crate::net::{self, Driver};
use crate::shard::agreement::Agreement;
use crate::shard::message::{FromShard, ToShard};
use crate::shard::transit::Transit;
use crate::shard::{Listening, Shard};

/// Messages that may wait for one shard, from each other one: what does not fit is sent again.
const PEER_CAPACITY: usize = 256;

/// Serves until a signal ends it.
pub fn run(config: Config, options: Options) -> ExitCode {
    let set_log_level = crate::diagnostics::start(&config.log);
    exit_on_panic();
    match start(config, options, set_log_level) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            last_words(&format!("outrigger: {error}\n"));
            ExitCode::from(EXIT_BIND)
        }
    }
}

/// The demo: three origins in this process, and the proxy in front of them.
pub fn demo() -> ExitCode {
    let origins = match demo::Origins::start() {
        Ok(origins) => origins,
        Err(error) => {
            eprintln!("outrigger: cannot start the demo's origins: {error}");
            return ExitCode::from(EXIT_BIND);
        }
    };
    match origins.config() {
        Ok(config) => {
            println!("{}", origins.hints());
            run(config, Options::default())
        }
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::FAILURE
        }
    }
}

fn start(
    config: Config,
    options: Options,
    set_log_level: Option<control::SetLogLevel>,
) -> Result<u8, Failure> {
    let descriptors = raise_descriptor_limit();
    let machine = Machine::here();
    let shard_options = config.shards.options(&machine);
    for log in config.listeners.iter().filter_map(|listener| listener.access_log.as_ref()) {
        access_log::probe(&log.path).map_err(|error| {
            let error = io::Error::new(error.kind(), format!("{}: {error}", log.path));
            Failure { what: "write the access log", error }
        })?;
    }
    let bound = bind(&config, &shard_options)?;
    let admin = match config.admin.address.0 {
        Some(address) => {
            let path = options.admin_address_path.as_deref();
            let listener = control::admin::bind(address, path);
            Some(listener.map_err(|error| Failure::bind("the admin pages", address, error))?)
        }
        None => None,
    };
    let counters: Vec<_> =
        shard_options.iter().map(|_| Arc::new(ShardCounters::default())).collect();
    let failed = |what| move |error| Failure { what, error };
    let (access_logs, shard_logs) =
        AccessLogs::start(&counters).map_err(failed("start the access log's writer"))?;
    let mut from_shards = Inbox::new().map_err(failed("make a mailbox"))?;
    let mut handles = Vec::new();
    let mut threads = Vec::new();
    let count = shard_options.len();
    let mut inboxes = Vec::new();
    for (id, counters) in counters.iter().enumerate() {
        let mut inbox = Inbox::new().map_err(failed("make a mailbox"))?;
        let sender = inbox.sender(control::TO_SHARD_CAPACITY);
        handles.push(ShardHandle { id, sender, counters: counters.clone() });
        inboxes.push(inbox);
    }
    let peers = introduce(&mut inboxes);
    let transit = Arc::new(Transit::new(count));
    let parts = shard_options.iter().zip(inboxes).zip(peers).zip(shard_logs).zip(bound.sockets);
    for (id, ((((own, inbox), peers), access_log), sockets)) in parts.enumerate() {
        let thread = ShardThread {
            id,
            clients_max: clients_max(descriptors, count),
            options: own.clone(),
            counters: counters.clone(),
            access_log,
            inbox,
            peers,
            transit: transit.clone(),
            to_control: from_shards.sender(control::FROM_SHARD_CAPACITY),
            sockets,
        };
        let name = format!("shard-{id}");
        let builder = std::thread::Builder::new().name(name);
        threads.push(builder.spawn(|| thread.run()).map_err(failed("start a shard's thread"))?);
    }
    if let Some(path) = &options.listen_address_path {
        write_addresses(path, &bound.addresses).map_err(failed("write --listen-address-path"))?;
    }
    let exit = control::run(ControlOptions {
        source: options.source.is_some().then_some(options.source),
        shards: handles,
        inbox: from_shards,
        admin,
        access_logs,
        listening: bound.addresses,
        set_log_level,
        dns: control::dns::DnsOptions::default(),
        config,
    });
    let exit = exit.map_err(failed("run the control thread"))?;
    if exit.drained {
        for thread in threads {
            let _ = thread.join();
        }
    }
    Ok(exit.code)
}

/// For each shard a way to each other one, by number.
fn introduce(inboxes: &mut [Inbox<ToShard>]) -> Vec<Vec<Option<Sender<ToShard>>>> {
    let count = inboxes.len();
    (0..count)
        .map(|from| {
            let to = inboxes.iter_mut().enumerate();
            to.map(|(to, inbox)| (to != from).then(|| inbox.sender(PEER_CAPACITY))).collect()
        })
        .collect()
}

/// What one shard's thread is made of.
struct ShardThread {
    id: usize,
    clients_max: u32,
    options: ShardOptions,
    /// Of all shards, by number.
    counters: Vec<Arc<ShardCounters>>,
    access_log: ShardLog,
    inbox: Inbox<ToShard>,
    peers: Vec<Option<Sender<ToShard>>>,
    transit: Arc<Transit>,
    to_control: Sender<FromShard>,
    sockets: Vec<OwnedFd>,
}

impl ShardThread {
    /// Runs the shard until the control thread ends it.
    fn run(self) {
        let ShardThread { id, clients_max, options, counters, access_log, .. } = self;
        let ShardThread { inbox, peers, transit, to_control, sockets, .. } = self;
        let cpu = options.cpu;
        if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
            tracing::warn!(shard = id, cpu, "cannot pin the thread to its CPU");
        }
        let ladder: &[Driver] = match options.driver {
            config::Driver::Auto => &Driver::LADDER,
            config::Driver::IoUring => &Driver::LADDER[..3],
            config::Driver::Epoll => &Driver::LADDER[3..],
        };
        let ran = net::run(ladder, options.ring_entries, |driver| async move {
            tracing::info!(
                shard = id,
                cpu,
                driver = driver.name(),
                flags = driver.flags(),
                "shard runs"
            );
            let ready = FromShard::Ready {
                shard: id,
                driver: driver.name().to_owned(),
                flags: driver.flags().to_owned(),
            };
            let _ = to_control.send(ready);
            let bytes = options.buffer_bytes;
            let agreement = Agreement::new(id, inbox, peers, transit, counters);
            match Shard::new(id, clients_max, bytes, access_log, agreement, to_control) {
                Ok(shard) => {
                    let sockets = sockets.into_iter().map(|socket| Listening { socket }).collect();
                    shard.run(sockets).await;
                }
                Err(error) => fatal(id, &error),
            }
        });
        if let Err(error) = ran {
            fatal(id, &error);
        }
    }
}

/// A shard cannot run: no driver, no descriptors.
fn fatal(shard: usize, error: &io::Error) -> ! {
    last_words(&format!("outrigger: shard {shard} cannot start: {error}\n"));
    std::process::exit(i32::from(EXIT_BIND));
}

/// Listening sockets: for each shard one of each listener.
struct Bound {
    sockets: Vec<Vec<OwnedFd>>,
    addresses: Vec<(String, SocketAddr)>,
}

/// Binds every listener once for each shard. Port 0 is chosen once, and all shards share it.
fn bind(config: &Config, shards: &[ShardOptions]) -> Result<Bound, Failure> {
    let mut bound = Bound { sockets: Vec::new(), addresses: Vec::new() };
    bound.sockets.resize_with(shards.len(), Vec::new);
    for listener in &config.listeners {
        let mut address = listener.address.0;
        // SO_REUSEPORT would let another process of ours share the port, and nobody would notice.
        bind_one(address, false).map_err(|error| Failure::bind(&listener.name, address, error))?;
        for (own, sockets) in shards.iter().zip(&mut bound.sockets) {
            let socket = bind_one(address, true)
                .and_then(|socket| {
                    socket.listen(i32::try_from(own.backlog).unwrap_or(i32::MAX))?;
                    Ok(socket)
                })
                .map_err(|error| Failure::bind(&listener.name, address, error))?;
            if address.port() == 0 {
                let chosen = socket.local_addr().ok().and_then(|address| address.as_socket());
                address = chosen.unwrap_or(address);
            }
            sockets.push(socket.into());
        }
        bound.addresses.push((listener.name.to_string(), address));
    }
    Ok(bound)
}

/// A bound socket, if `shared` one of a SO_REUSEPORT group. Accepted connections inherit
/// `TCP_NODELAY`.
fn bind_one(address: SocketAddr, shared: bool) -> io::Result<socket2::Socket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A line `name address` for each listener, written whole.
fn write_addresses(path: &Path, addresses: &[(String, SocketAddr)]) -> io::Result<()> {
    let lines: String =
        addresses.iter().map(|(name, address)| format!("{name} {address}\n")).collect();
    control::admin::write_whole(path, &lines)
}

/// As many descriptors as we may have; a proxy needs two for each exchange. Tells how many.
fn raise_descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "cannot raise the descriptor limit");
            limit.current.unwrap_or(u64::MAX)
        }
    }
}

/// Clients of one shard that leave a quarter of all descriptors to endpoints, logs and the rest.
fn clients_max(descriptors: u64, shards: usize) -> u32 {
    let clients = (descriptors / 4).saturating_mul(3) / shards as u64;
    u32::try_from(clients).unwrap_or(u32::MAX).max(1)
}

/// A panic anywhere ends the process, at once: what it held may be half changed.
fn exit_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        last_words(&format!("outrigger: thread {name} panicked: {panic}\n"));
        // SAFETY: _exit(2) ends the process without running anything that may wait for the thread
        // that is broken.
        unsafe { libc::_exit(i32::from(EXIT_PANIC)) }
    }));
}

/// Says why the process ends, if anybody hears it. It must end in any case: `eprintln!` would panic
/// where standard error is broken, and wait for ever where nobody reads it, or for a thread that
/// does.
fn last_words(text: &str) {
    let stderr = rustix::stdio::stderr();
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&none)) == Ok(1) {
        // A pipe that is writable has room for so many bytes (pipe(7), PIPE_BUF).
        let _ = rustix::io::write(stderr, &text.as_bytes()[..text.len().min(libc::PIPE_BUF)]);
    }
}

/// Why the process could not start.
struct Failure {
    what: &'static str,
    error: io::Error,
}

impl Failure {
    fn bind(what: &str, address: SocketAddr, error: io::Error) -> Failure {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "; another process listens there",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
            io::ErrorKind::AddrNotAvailable => "; no interface has that address",
            _ => "",
        };
        let error = io::Error::new(error.kind(), format!("{address} for {what}: {error}{hint}"));
        Failure { what: "bind", error }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "cannot {}: {}", self.what, self.error)
    }
}
