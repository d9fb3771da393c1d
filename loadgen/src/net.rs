//! The only import of the runtime: one single-threaded ring (or epoll) for each thread.
//!
//! Everything waits for readiness and then calls recv(2) or send(2) without blocking. On the ring
//! that costs what a receive operation does, nothing is lost when a wait is dropped, and the same
//! code runs on epoll. Called by `origin` and the load generator's `worker`; decides nothing.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Entries of the submission queue. A full queue is flushed, so this bounds only a batch.
const RING_ENTRIES: u32 = 2_048;

/// Edges taken at once from a [`Watch`].
const EDGES_MAX: usize = 256;

/// Which kernel interface a thread waits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// io_uring with the best flags that the kernel has, epoll where it is blocked.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// epoll.
    Epoll,
}

/// One thread's runtime. Built on the thread that runs it: the ring belongs to its creator.
pub enum Runtime {
    /// On io_uring.
    Ring(monoio::Runtime<TimeDriver<IoUringDriver>>),
    /// On epoll.
    Epoll(monoio::Runtime<TimeDriver<LegacyDriver>>),
}

impl Runtime {
    /// Tries the rungs from the cheapest down: deferred task work, cooperative task work, no
    /// flags, epoll.
    ///
    /// # Errors
    /// When the asked driver cannot be had; with `Auto`, when not even epoll can.
    pub fn new(driver: Driver) -> io::Result<Self> {
        let mut refused = None;
        if driver != Driver::Epoll {
            let mut deferred = io_uring::IoUring::builder();
            deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            let mut cooperative = io_uring::IoUring::builder();
            cooperative.setup_coop_taskrun().setup_taskrun_flag();
            let plain = io_uring::IoUring::builder();
            for flags in [deferred, cooperative, plain] {
                let built = RuntimeBuilder::<IoUringDriver>::new()
                    .with_entries(RING_ENTRIES)
                    .uring_builder(flags)
                    .enable_timer()
                    .build();
                match built {
                    Ok(runtime) => return Ok(Self::Ring(runtime)),
                    Err(error) => refused = Some(error),
                }
            }
        }
        match (driver, refused) {
            (Driver::IoUring, Some(error)) => Err(error),
            _ => RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().map(Self::Epoll),
        }
    }

    /// Runs `future` and all that it spawns, until `future` is done.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::Ring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }

    /// `io_uring` or `epoll`, for the first line of a report.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ring(_) => "io_uring",
            Self::Epoll(_) => "epoll",
        }
    }
}

/// Starts a task on this thread.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    monoio::spawn(future);
}

/// Waits, in whole milliseconds; for finer ones there is [`Alarm`].
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// Waits for `future`, but no longer than `duration`, in whole milliseconds.
pub async fn within<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    monoio::time::timeout(duration, future).await.ok()
}

/// Lets every other task that can run do so, then looks for completions.
pub async fn give_way() {
    // A task that wakes itself would go to the front of the queue; a spawned one goes to the end.
    monoio::spawn(async {}).await;
}

/// A descriptor that a task of this thread may wait on. Closed when dropped.
#[derive(Debug)]
pub struct Socket(monoio::net::TcpStream);

impl Socket {
    /// Takes over any descriptor that can be polled: sockets, listeners, eventfds, timerfds. It
    /// must be non-blocking.
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // The runtime only polls and closes it; the type is the one that lets us in.
        monoio::net::TcpStream::from_std(TcpStream::from(fd)).map(Self)
    }

    /// The descriptor, which stays ours.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Waits until a read would not block: bytes, the end, or an error.
    ///
    /// # Errors
    /// When the wait itself fails, which a closed ring does.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable(false).await
    }

    /// Waits until a write would not block.
    ///
    /// # Errors
    /// As [`Socket::readable`].
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable(false).await
    }

    /// recv(2) without blocking. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else what the connection died of.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `len` bytes into a live, exclusive slice.
        let n = unsafe {
            libc::recv(self.fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Drops up to `len` received bytes in the kernel, without copying them; tcp(7), MSG_TRUNC.
    ///
    /// # Errors
    /// As [`Socket::recv`].
    pub fn discard(&self, len: usize) -> io::Result<usize> {
        // SAFETY: with MSG_TRUNC a TCP socket throws the bytes away and never writes through the
        // pointer.
        let n = unsafe {
            libc::recv(self.fd(), std::ptr::null_mut(), len, libc::MSG_DONTWAIT | libc::MSG_TRUNC)
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// send(2) without blocking and without a signal.
    ///
    /// # Errors
    /// `WouldBlock` when the send buffer is full; else what the connection died of.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the kernel reads at most `len` bytes of a live slice.
        let n = unsafe { libc::send(self.fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Sends from a file's pages without copying them through user space.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub fn send_file(&self, file: RawFd, offset: usize, len: usize) -> io::Result<usize> {
        let mut offset = offset as libc::off_t;
        // SAFETY: `offset` lives for the call; both descriptors are open.
        let n = unsafe { libc::sendfile(self.fd(), file, &mut offset, len) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Ends both directions, so that whoever waits on the socket wakes up.
    pub fn shut(&self) {
        shut(self.fd());
    }

    /// The error that a connect(2) in the background ended with, if any.
    pub fn connect_error(&self) -> io::Result<()> {
        let mut error: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: both out-parameters live for the call and have the size that is passed.
        let rc = unsafe {
            libc::getsockopt(
                self.fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                (&raw mut error).cast(),
                &mut len,
            )
        };
        match (rc, error) {
            (0, 0) => Ok(()),
            (0, errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Many sockets, watched through one: their readiness comes in batches, and a socket that is read
/// to its end costs nothing to watch again (epoll(7), edge-triggered).
pub struct Watch {
    epoll: Socket,
    events: Cell<Vec<libc::epoll_event>>,
}

/// One socket of a [`Watch`] became readable.
#[derive(Debug, Clone, Copy)]
pub struct Edge {
    /// As it was registered.
    pub token: u64,
    /// The peer has ended, or the connection has: read on after a short read.
    pub ended: bool,
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When descriptors ran out.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: epoll_create1 just gave us this descriptor.
        let epoll = Socket::new(unsafe { OwnedFd::from_raw_fd(fd) })?;
        Ok(Self { epoll, events: Cell::new(Vec::with_capacity(EDGES_MAX)) })
    }

    /// Watches `socket` until it is closed.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn add(&self, socket: &Socket, token: u64) -> io::Result<()> {
        let events = (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` lives for the call; both descriptors are open.
        let rc = unsafe {
            libc::epoll_ctl(self.epoll.fd(), libc::EPOLL_CTL_ADD, socket.fd(), &mut event)
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits for the next edges, and passes them on.
    ///
    /// # Errors
    /// As [`Socket::readable`].
    pub async fn edges(&self, mut pass: impl FnMut(Edge)) -> io::Result<()> {
        self.epoll.readable().await?;
        let mut events = self.events.take();
        let room = events.capacity() as libc::c_int;
        // SAFETY: the kernel writes at most `room` events into memory that the Vec owns.
        let n = unsafe { libc::epoll_wait(self.epoll.fd(), events.as_mut_ptr(), room, 0) };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel has just written the first `n`.
        unsafe { events.set_len(n) };
        const ENDED: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;
        for event in events.drain(..) {
            pass(Edge { token: event.u64, ended: event.events & ENDED != 0 });
        }
        self.events.set(events);
        Ok(())
    }
}

/// shutdown(2) of both directions. A listener's waiter wakes with an error.
pub fn shut(fd: RawFd) {
    // SAFETY: no memory is passed; a stale descriptor gives an error that does not matter.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Starts a connect(2). Writability says that it ended, [`Socket::connect_error`] how.
///
/// # Errors
/// When the address cannot be reached at all, or descriptors or ports ran out.
pub fn connect(address: SocketAddr) -> io::Result<Socket> {
    let domain = socket2::Domain::for_address(address);
    let kind = socket2::Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(domain, kind, Some(socket2::Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Socket::new(socket.into())
}

/// A listening socket; `shared`: of one thread among several on the same port (SO_REUSEPORT).
///
/// # Errors
/// When the address is taken, foreign or not permitted.
pub fn listen(address: SocketAddr, backlog: i32, shared: bool) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let kind = socket2::Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(domain, kind, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// accept4(2) on a listener that was wrapped as a [`Socket`].
///
/// # Errors
/// `WouldBlock` when the queue is empty; EMFILE and the like.
pub fn accept(listener: &Socket) -> io::Result<Socket> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null pointers say that the peer's address is not wanted.
    let fd =
        unsafe { libc::accept4(listener.fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: accept4 just gave us this descriptor, and nobody else has it.
    Socket::new(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An eventfd: wakes one thread's runtime from any other thread.
///
/// # Errors
/// When descriptors ran out.
pub fn bell() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: eventfd just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Rings a [`bell`], or a duplicate of it.
pub fn ring(bell: &impl AsRawFd) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: eight live bytes, as eventfd(2) wants them. It fails only when 2^64 rings wait.
    unsafe { libc::write(bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// A timerfd on the monotonic clock: finer than the runtime's milliseconds.
#[derive(Debug)]
pub struct Alarm(Socket);

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// When descriptors ran out.
    pub fn new() -> io::Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: timerfd_create just gave us this descriptor.
        Socket::new(unsafe { OwnedFd::from_raw_fd(fd) }).map(Self)
    }

    /// Sets the alarm to `at` nanoseconds of CLOCK_MONOTONIC, in place of what was set. Setting
    /// also takes back an expiry that nobody has seen yet. Zero unsets it.
    pub fn set(&self, at: u64) {
        let when = libc::timespec {
            tv_sec: (at / 1_000_000_000) as libc::time_t,
            tv_nsec: (at % 1_000_000_000) as libc::c_long,
        };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: never, it_value: when };
        // SAFETY: `setting` lives for the call; the old value is not wanted.
        unsafe {
            libc::timerfd_settime(
                self.0.fd(),
                libc::TFD_TIMER_ABSTIME,
                &setting,
                std::ptr::null_mut(),
            )
        };
    }

    /// Waits until it has gone off since it was last set.
    ///
    /// # Errors
    /// As [`Socket::readable`].
    pub async fn rang(&self) -> io::Result<()> {
        self.0.readable().await
    }
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock of [`Alarm`].
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives for the call. The monotonic clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Wraps a standard listener for this thread's runtime.
///
/// # Errors
/// When epoll refuses the descriptor.
pub fn adopt(listener: TcpListener) -> io::Result<Socket> {
    // SAFETY: `into_raw_fd` has just given up the descriptor to us.
    Socket::new(unsafe { OwnedFd::from_raw_fd(listener.into_raw_fd()) })
}
