//! Sockets, timers and tasks of a shard: the only import of the runtime.
//!
//! Everything here waits for *readiness* and then moves the bytes with a non-blocking call of its
//! own. A wait that is dropped loses nothing, buffers are plain borrowed slices, and both drivers
//! behave alike. Against completion-based reads this cost nothing measurable (0.70 against 0.72 of
//! HAProxy's CPU per request, in one interleaved run on Linux 6.18).

use std::cell::Cell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use monoio::net::TcpStream;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::time::Nanos;

/// A full socket is no reason to block, nor a closed one for SIGPIPE.
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A non-blocking descriptor whose readiness can be awaited on this shard. Mostly a TCP socket, but
/// listening sockets, eventfds and epoll instances do as well.
pub struct Socket {
    /// `None` only while it is being dropped or taken apart.
    stream: Option<TcpStream>,
    /// Waits that were dropped before they ended: the driver still refers to the descriptor.
    abandoned: Cell<bool>,
}

impl Socket {
    /// Takes over a descriptor that is already non-blocking.
    pub fn adopt(descriptor: OwnedFd) -> io::Result<Socket> {
        // The runtime's stream is only used for its readiness, which any pollable descriptor has.
        let stream = std::net::TcpStream::from(descriptor);
        Ok(Socket { stream: Some(TcpStream::from_std(stream)?), abandoned: Cell::new(false) })
    }

    /// Starts to connect, with `TCP_NODELAY` set, and waits until that is done.
    pub async fn connect(address: SocketAddr) -> io::Result<Socket> {
        use socket2::{Domain, Protocol, Type};
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => return Socket::adopt(socket.into()),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let socket = Socket::adopt(socket.into())?;
        socket.writable().await?;
        match rustix::net::sockopt::socket_error(&socket)? {
            Ok(()) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a read would not block; also at end of stream and after an error.
    pub async fn readable(&self) -> io::Result<()> {
        let wait = self.begin_wait();
        let result = self.stream().readable(false).await;
        wait.end();
        result
    }

    /// Waits until a write would not block; also after an error.
    pub async fn writable(&self) -> io::Result<()> {
        let wait = self.begin_wait();
        let result = self.stream().writable(false).await;
        wait.end();
        result
    }

    /// Reads what is there. `Ok(0)` is the end of the stream.
    pub fn try_recv(&self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let (_, count) = rustix::net::recv(self, into, RecvFlags::DONTWAIT)?;
        Ok(count)
    }

    /// Writes as much as the socket takes of one slice.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self, bytes, SEND)?)
    }

    /// Writes as much as the socket takes of several slices, in one call.
    pub fn try_send_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::net::sendmsg(self, slices, &mut SendAncillaryBuffer::default(), SEND)?)
    }

    /// Whether nothing waits to be read: neither bytes nor an end nor an error. A kept connection
    /// that is not quiet must not be used again.
    pub fn is_quiet(&self) -> bool {
        self.peek() == Err(Errno::AGAIN)
    }

    /// Whether the peer has closed its side, or the connection failed. False while bytes wait.
    pub fn is_closed(&self) -> bool {
        match self.peek() {
            Ok(count) => count == 0,
            Err(error) => error != Errno::AGAIN,
        }
    }

    /// How many bytes wait to be read, 1 at most; 0 at the end of the stream.
    fn peek(&self) -> Result<usize, Errno> {
        let mut byte = [MaybeUninit::uninit()];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        rustix::net::recv(self, &mut byte, flags).map(|(_, count)| count)
    }

    /// Bytes that were written, but that the peer's kernel has not acknowledged (tcp(7), SIOCOUTQ).
    pub fn unacknowledged(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int.
        let result = unsafe { libc::ioctl(self.raw(), libc::TIOCOUTQ, &mut bytes) };
        if result == 0 { bytes.max(0) as u64 } else { 0 }
    }

    /// Ends our side of the stream; the peer reads an end.
    pub fn shutdown_write(&self) {
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Write);
    }

    /// Stops a listening socket at once, even where an abandoned wait keeps it open.
    pub fn stop_listening(&self) {
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Both);
    }

    /// Makes the close send a reset, so that the peer cannot take what it has for everything.
    pub fn reset_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(self, Some(std::time::Duration::ZERO));
    }

    /// Takes the descriptor back from the runtime; a copy of it, where an abandoned wait may still
    /// hold the original for a moment. Gives the socket back where no copy can be had.
    pub fn into_descriptor(mut self) -> Result<OwnedFd, Socket> {
        if self.abandoned.get() {
            return self.as_fd().try_clone_to_owned().map_err(|_| self);
        }
        let stream = self.stream.take().expect("present until drop");
        // SAFETY: into_raw_fd gives up the only reference; no wait is in flight.
        Ok(unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) })
    }

    fn stream(&self) -> &TcpStream {
        self.stream.as_ref().expect("present until drop")
    }

    fn raw(&self) -> i32 {
        self.stream().as_raw_fd()
    }

    fn begin_wait(&self) -> Wait<'_> {
        Wait { socket: self, ended: false }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as the stream, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.raw()) }
    }
}

impl Drop for Socket {
    /// Closes at once, with one system call. Left to the runtime, a close takes two submissions and
    /// an allocation.
    fn drop(&mut self) {
        if let (Some(stream), false) = (self.stream.take(), self.abandoned.get()) {
            // SAFETY: as in into_descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) });
        }
    }
}

/// Notes a wait that never ended, see `Socket::abandoned`.
struct Wait<'a> {
    socket: &'a Socket,
    ended: bool,
}

impl Wait<'_> {
    fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.socket.abandoned.set(true);
        }
    }
}

/// Whether an error only says "not now".
pub fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// One kept timer that is moved rather than made anew. Moving it later costs a store: the entry in
/// the runtime's wheel stays where it is, and is moved when it fires too early. Nor is the entry
/// looked at in vain: it can only have fired if the task was woken.
pub struct Timer {
    sleep: Pin<Box<monoio::time::Sleep>>,
    /// When the wheel's entry fires.
    armed: Nanos,
    /// When we want to be told.
    due: Nanos,
    /// The entry will wake the task.
    registered: bool,
}

/// How far ahead the wheel's entry is put when there is no deadline.
const TIMER_FAR: std::time::Duration = std::time::Duration::from_secs(3600);

impl Timer {
    /// A timer without a deadline, for one task.
    pub fn new(now: Nanos) -> Timer {
        let armed = now + TIMER_FAR;
        let sleep = Box::pin(sleep_until(armed));
        Timer { sleep, armed, due: Nanos::NEVER, registered: false }
    }

    /// Moves the deadline. `now` must not lie before the last time that the task was woken: an
    /// entry that has fired since is armed again.
    pub fn set(&mut self, due: Nanos, now: Nanos) {
        self.due = due;
        if due < self.armed || now >= self.armed {
            self.arm(due.min(now + TIMER_FAR));
        }
    }

    /// The deadline as it is set.
    pub fn due(&self) -> Nanos {
        self.due
    }

    /// Ready once the deadline has passed; then it is switched off until the next `set`. `woken`
    /// says whether the task was woken since the deadline was set.
    pub fn poll_due(&mut self, woken: bool, context: &mut Context<'_>) -> Poll<()> {
        if self.registered && !woken {
            return Poll::Pending;
        }
        while self.sleep.as_mut().poll(context).is_ready() {
            let now = Nanos::now();
            if now >= self.due {
                self.due = Nanos::NEVER;
                self.arm(now + TIMER_FAR);
                return Poll::Ready(());
            }
            self.arm(self.due.min(now + TIMER_FAR));
        }
        self.registered = true;
        Poll::Pending
    }

    fn arm(&mut self, at: Nanos) {
        // Rounded up: the wheel counts whole milliseconds and would fire before its time.
        self.armed = at;
        self.registered = false;
        let at = Nanos(at.0.saturating_add(999_999));
        self.sleep.as_mut().reset(monoio::time::Instant::from_std(at.instant()));
    }
}

fn sleep_until(at: Nanos) -> monoio::time::Sleep {
    monoio::time::sleep_until(monoio::time::Instant::from_std(at.instant()))
}

/// Waits for a span of time. For rare things; connections keep a [`Timer`].
pub async fn sleep(span: std::time::Duration) {
    monoio::time::sleep(span).await;
}

/// Starts a task on this shard.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    monoio::spawn(task);
}

/// Lets every other task run once. A task that wakes itself would go to the front of the queue.
pub async fn yield_now() {
    monoio::spawn(async {}).await;
}

/// Which of the runtime's drivers a shard runs on, and with which ring flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG`: Linux 6.1.
    RingDeferred,
    /// `COOP_TASKRUN | TASKRUN_FLAG`: Linux 5.19.
    RingCooperative,
    /// A ring without flags.
    RingPlain,
    /// No io_uring: blocked by seccomp or a sysctl, or an old kernel.
    Epoll,
}

impl Driver {
    /// From the cheapest to the one that always works.
    pub const LADDER: [Driver; 4] =
        [Driver::RingDeferred, Driver::RingCooperative, Driver::RingPlain, Driver::Epoll];

    /// `io_uring` or `epoll`.
    pub fn name(self) -> &'static str {
        if self == Driver::Epoll { "epoll" } else { "io_uring" }
    }

    /// The ring's flags, as in io_uring_setup(2).
    pub fn flags(self) -> &'static str {
        match self {
            Driver::RingDeferred => "SINGLE_ISSUER|DEFER_TASKRUN|TASKRUN_FLAG",
            Driver::RingCooperative => "COOP_TASKRUN|TASKRUN_FLAG",
            Driver::RingPlain | Driver::Epoll => "",
        }
    }
}

/// Runs a shard's main task on this thread until it ends; the rungs of `ladder` are tried in order.
/// `begin` gets the rung that was built, inside the runtime.
///
/// # Errors
/// The last rung's error where none could be built.
pub fn run<F: Future<Output = ()>>(
    ladder: &[Driver],
    ring_entries: u32,
    begin: impl FnOnce(Driver) -> F,
) -> io::Result<()> {
    let mut failure = io::Error::from(io::ErrorKind::Unsupported);
    for &driver in ladder {
        let mut ring = io_uring::IoUring::builder();
        match driver {
            Driver::RingDeferred => {
                ring.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            }
            Driver::RingCooperative => {
                ring.setup_coop_taskrun().setup_taskrun_flag();
            }
            Driver::RingPlain => {}
            Driver::Epoll => {
                let builder = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new();
                match builder.with_entries(ring_entries).enable_timer().build() {
                    Ok(mut runtime) => {
                        runtime.block_on(async { begin(driver).await });
                        return Ok(());
                    }
                    Err(error) => failure = error,
                }
                continue;
            }
        }
        let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
        match builder.uring_builder(ring).with_entries(ring_entries).enable_timer().build() {
            Ok(mut runtime) => {
                runtime.block_on(async { begin(driver).await });
                return Ok(());
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
