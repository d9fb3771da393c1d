//! The floor: what the kernel takes for a request that crosses a process, and next to nothing else.
//!
//! ```text
//! floor LISTEN ORIGIN        floor 127.0.0.1:8080 127.0.0.1:9000
//! ```
//!
//! One thread, one epoll set. Each client's connection gets one to the origin, and bytes are copied
//! both ways without a look at them: no parsing, no pool, no timeouts, no errors but the end. A
//! socket that takes less than it is given is written to until it takes the rest, which no real
//! proxy may do. It is a reference, not a rival.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

/// For both directions, one after the other, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// Events taken at once.
const EVENTS_MAX: usize = 256;

/// Open connections, two and two.
struct Pairs {
    epoll: i32,
    /// By descriptor: the socket, and its peer's descriptor.
    sockets: Vec<Option<(TcpStream, usize)>>,
}

impl Pairs {
    fn open(&mut self, client: TcpStream, origin: &str) {
        let Ok(origin) = TcpStream::connect(origin) else { return };
        let ends = [client.as_raw_fd() as usize, origin.as_raw_fd() as usize];
        for (socket, peer) in [client, origin].into_iter().zip([ends[1], ends[0]]) {
            let fd = socket.as_raw_fd();
            let set = socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(true));
            set.expect("a connected socket takes options");
            watch(self.epoll, fd);
            if self.sockets.len() <= fd as usize {
                self.sockets.resize_with(fd as usize + 1, || None);
            }
            self.sockets[fd as usize] = Some((socket, peer));
        }
    }

    /// Copies what has come on `fd`; closes both sockets at its end.
    fn copy(&mut self, fd: usize, buffer: &mut [u8]) {
        let Some((from, peer)) = &self.sockets[fd] else { return };
        let peer = *peer;
        let mut from = from;
        let open = match (from.read(buffer), &self.sockets[peer]) {
            (Ok(0), _) | (_, None) => false,
            (Ok(n), Some((to, _))) => write_all(to, &buffer[..n]),
            (Err(error), _) => error.kind() == ErrorKind::WouldBlock,
        };
        if !open {
            // Dropping closes, and closing takes them out of the epoll set.
            self.sockets[fd] = None;
            self.sockets[peer] = None;
        }
    }
}

fn write_all(mut to: &TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut poll =
                    libc::pollfd { fd: to.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
                // SAFETY: one entry, which lives for the call.
                unsafe { libc::poll(&mut poll, 1, -1) };
            }
            Err(_) => return false,
        }
    }
    true
}

fn watch(epoll: i32, fd: i32) {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
    // SAFETY: the event lives for the call.
    let done = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) };
    assert_eq!(done, 0, "epoll_ctl: {}", std::io::Error::last_os_error());
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, listen, origin] = &arguments[..] else { panic!("floor LISTEN ORIGIN") };
    let listener = TcpListener::bind(listen).expect("an address to listen on");
    listener.set_nonblocking(true).expect("a listener takes options");
    // SAFETY: no arguments to get wrong.
    let epoll = unsafe { libc::epoll_create1(0) };
    watch(epoll, listener.as_raw_fd());
    let mut pairs = Pairs { epoll, sockets: Vec::new() };
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
    loop {
        // SAFETY: the kernel fills at most as many events as there are.
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), EVENTS_MAX as i32, -1) };
        for event in &events[..count.max(0) as usize] {
            let fd = event.u64;
            if fd == listener.as_raw_fd() as u64 {
                while let Ok((client, _)) = listener.accept() {
                    pairs.open(client, origin);
                }
            } else {
                pairs.copy(fd as usize, &mut buffer);
            }
        }
    }
}
