//! Sockets, timers and tasks of a shard: the only import of the runtime.
//!
//! Everything here waits for *readiness* and then moves the bytes with a non-blocking call of its
//! own. A wait that is dropped loses nothing, buffers are plain borrowed slices, and both drivers
//! behave alike. Against completion-based reads this cost nothing measurable (0.70 against 0.72 of
//! HAProxy's CPU per request, in one interleaved run on Linux 6.18).

mod driver;
mod timer;
mod watch;

use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

pub use driver::{Driver, run};
pub use timer::Timer;
pub use watch::yield_now;

use crate::time::Nanos;

use watch::{ENDED, READABLE, Registration, URGENT, WRITABLE};

/// How old what is known of a kept connection may be. One batch of edges serves all requests of that
/// time, where a look at each socket would be a system call for each.
const VIEW_AGE_MAX: Duration = Duration::from_micros(200);

/// A full socket is no reason to block, nor a closed one for SIGPIPE.
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A non-blocking descriptor whose readiness can be awaited on this shard, by one task at a time.
/// Mostly a TCP socket, but listening sockets, eventfds and epoll instances do as well.
///
/// It remembers what the kernel told of it: `readable` ends at once until a call has found nothing
/// to read. Calls that are not made here have to be wrapped in [`Socket::reading`] or
/// [`Socket::writing`].
pub struct Socket {
    // Dropped before the descriptor is closed.
    registration: Registration,
    descriptor: OwnedFd,
}

impl Socket {
    /// Takes over a descriptor that is already non-blocking. There may be something to read.
    pub fn adopt(descriptor: OwnedFd) -> io::Result<Socket> {
        let registration = Registration::new(descriptor.as_fd(), READABLE)?;
        Ok(Socket { registration, descriptor })
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
        let descriptor = OwnedFd::from(socket);
        let registration = Registration::new(descriptor.as_fd(), 0)?;
        let socket = Socket { registration, descriptor };
        socket.writable().await;
        match rustix::net::sockopt::socket_error(&socket)? {
            Ok(()) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a read would not block; also at end of stream and after an error.
    pub fn readable(&self) -> impl Future<Output = ()> {
        self.registration.readiness().wait(READABLE)
    }

    /// When it was last seen to become readable: edges are taken at the beginning of a turn, and
    /// mostly once more within it. What was read since then does not matter.
    pub fn readable_since(&self) -> Nanos {
        self.registration.readiness().readable_since()
    }

    /// The same, with a deadline of its own; `false` once it has passed.
    pub fn readable_within(&self, span: Duration, timer: &mut Timer) -> impl Future<Output = bool> {
        let now = Nanos::now();
        timer.set(now + span, now);
        let mut readable = self.readable();
        std::future::poll_fn(move |context| {
            if Pin::new(&mut readable).poll(context).is_ready() {
                return Poll::Ready(true);
            }
            timer.poll_due(true, context).map(|()| false)
        })
    }

    /// Waits until a write would not block; also after an error.
    pub fn writable(&self) -> impl Future<Output = ()> {
        self.registration.readiness().wait(WRITABLE)
    }

    /// Waits until the peer has ended its side, or the connection has failed. What it sent before
    /// may still wait to be read.
    pub fn ended(&self) -> impl Future<Output = ()> {
        self.registration.readiness().wait(ENDED)
    }

    /// Makes a call that reads, and remembers if it found nothing.
    pub fn reading<T>(&self, mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        let readiness = self.registration.readiness();
        let mut result = call();
        if result.as_ref().err() == Some(&Errno::AGAIN) && readiness.knows(URGENT) {
            // In front of urgent data, a signal that is pending looks like that. It is not now.
            result = call();
        }
        if result.as_ref().err() == Some(&Errno::AGAIN) {
            readiness.clear(READABLE);
        }
        result
    }

    /// Makes a call that writes, and remembers if there was no room.
    pub fn writing<T>(&self, call: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let result = call();
        if result.as_ref().err() == Some(&Errno::AGAIN) {
            self.registration.readiness().clear(WRITABLE);
        }
        result
    }

    /// For eventfds, which a single read empties: the next `readable` waits for another edge.
    pub fn emptied(&self) {
        self.registration.readiness().clear(READABLE);
    }

    /// Reads what is there. `Ok(0)` is the end of the stream.
    pub fn try_recv(&self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let room = into.len();
        let recv = || rustix::net::recv(self, &mut *into, RecvFlags::DONTWAIT).map(|(_, it)| it);
        let count = self.reading(recv)?;
        let readiness = self.registration.readiness();
        if count < room && !readiness.knows(ENDED | URGENT) {
            // That was all; what arrives from now on makes another edge (epoll(7), question 9).
            readiness.clear(READABLE);
        }
        Ok(count)
    }

    /// Writes as much as the socket takes of one slice.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.writing(|| rustix::net::send(self, bytes, SEND))?)
    }

    /// Writes as much as the socket takes of several slices, in one call.
    pub fn try_send_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let send = || rustix::net::sendmsg(self, slices, &mut SendAncillaryBuffer::default(), SEND);
        Ok(self.writing(send)?)
    }

    /// Whether the peer has ever sent urgent data. splice(2) does not get past them.
    pub fn has_urgent_data(&self) -> bool {
        self.registration.readiness().knows(URGENT)
    }

    /// Lets `readable` wait until so many bytes can be read (socket(7), `SO_RCVLOWAT`), or the end
    /// or an error. Calls take less, too, if that is all there is.
    pub fn set_low_water(&self, bytes: u32) {
        let size = size_of_val(&bytes) as libc::socklen_t;
        // SAFETY: it reads one int.
        let _ = unsafe {
            let descriptor = self.descriptor.as_raw_fd();
            libc::setsockopt(
                descriptor,
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const bytes).cast(),
                size,
            )
        };
        // There may be less than before, and nothing told of it.
        self.read_again();
    }

    /// Forgets that a call has found nothing: another kind of call may find something.
    pub fn read_again(&self) {
        self.registration.readiness().suppose(READABLE);
    }

    /// Whether nothing waits to be read: neither bytes nor an end nor an error. A kept connection
    /// that is not quiet must not be used again.
    pub fn is_quiet(&self) -> bool {
        self.peek() == Err(Errno::AGAIN)
    }

    /// The same as of [`VIEW_AGE_MAX`] ago at most, mostly without a system call. `now` must be.
    pub fn was_quiet(&self, now: Nanos) -> bool {
        watch::refresh(now, VIEW_AGE_MAX);
        !self.registration.readiness().knows(READABLE) || self.is_quiet()
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
        self.reading(|| rustix::net::recv(self, &mut byte[..], flags).map(|(_, count)| count))
    }

    /// Bytes that were written, but that the peer's kernel has not acknowledged (tcp(7), SIOCOUTQ).
    pub fn unacknowledged(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int.
        let result =
            unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
        if result == 0 { bytes.max(0) as u64 } else { 0 }
    }

    /// Ends our side of the stream; the peer reads an end.
    pub fn shutdown_write(&self) {
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Write);
    }

    /// Stops a listening socket at once, even while somebody holds it.
    pub fn stop_listening(&self) {
        let _ = rustix::net::shutdown(self, rustix::net::Shutdown::Both);
    }

    /// Makes the close send a reset, so that the peer cannot take what it has for everything.
    pub fn reset_on_close(&self) {
        let _ = rustix::net::sockopt::set_socket_linger(self, Some(Duration::ZERO));
    }

    /// Takes the descriptor back.
    pub fn into_descriptor(self) -> OwnedFd {
        self.registration.forget(self.descriptor.as_fd());
        self.descriptor
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Whether an error only says "not now".
pub fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Waits for a span of time. For rare things; connections keep a [`Timer`].
pub async fn sleep(span: Duration) {
    monoio::time::sleep(span).await;
}

/// Starts a task on this shard.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    monoio::spawn(task);
}
