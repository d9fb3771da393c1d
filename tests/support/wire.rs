//! A TCP connection as a test sees it: bytes, ends, and nothing hidden.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use socket2::SockRef;

use super::PATIENCE;
use super::message::{self, Message};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// FIN.
    Closed,
    /// RST.
    Reset,
}

/// A connection ended in the middle of something.
#[derive(Debug)]
pub struct Broken {
    /// What had come of it.
    pub received: Vec<u8>,
    /// How it ended.
    pub end: End,
}

/// One connection.
pub struct Wire {
    stream: TcpStream,
    peer: SocketAddr,
    /// Received and not yet read by the test.
    received: Vec<u8>,
    ended: Option<End>,
    /// Everything that was ever received.
    record: Option<Arc<Mutex<Vec<u8>>>>,
}

impl Wire {
    pub fn new(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write timeout");
        let peer = stream.peer_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        Wire { stream, peer, received: Vec::new(), ended: None, record: None }
    }

    /// Also keeps all that is received.
    pub fn recording(stream: TcpStream, record: Arc<Mutex<Vec<u8>>>) -> Wire {
        Wire { record: Some(record), ..Wire::new(stream) }
    }

    pub fn local_address(&self) -> SocketAddr {
        self.stream.local_addr().expect("a local address")
    }

    pub fn peer_address(&self) -> SocketAddr {
        self.peer
    }

    /// A second handle of the socket: the connection ends when both are dropped.
    pub fn stream_again(&self) -> TcpStream {
        self.stream.try_clone().expect("a descriptor")
    }

    /// Whether neither side has ended it, as far as the kernel knows.
    pub fn is_established(&self) -> bool {
        is_established(&self.stream)
    }

    /// Sends all of it.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the other side takes what is sent");
    }

    /// The same, where the other side may have closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends what fits without waiting; how much that was.
    pub fn send_some(&mut self, bytes: &[u8]) -> usize {
        self.stream.set_nonblocking(true).expect("non-blocking");
        let count = self.stream.write(bytes).unwrap_or(0);
        self.stream.set_nonblocking(false).expect("blocking");
        count
    }

    /// Sends byte by byte, each in a segment of its own.
    #[track_caller]
    pub fn send_slowly(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]);
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// Sends all of it and the end behind it, in one segment where it fits.
    pub fn send_and_end(&mut self, bytes: impl AsRef<[u8]>) {
        // Corked, what is written waits for more, and the FIN joins it (tcp(7)).
        SockRef::from(&self.stream).set_tcp_cork(true).expect("TCP_CORK");
        let _ = self.try_send(bytes);
        self.shutdown_write();
    }

    /// No more will be sent; reading goes on.
    pub fn shutdown_write(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection with RST.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).expect("linger");
    }

    /// Makes the kernel hold little of what is received and not read.
    pub fn hold_little(&self) {
        SockRef::from(&self.stream).set_recv_buffer_size(4096).expect("a receive buffer");
    }

    /// Receives more; false at the end.
    #[track_caller]
    fn fill(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.ended = Some(End::Closed),
            Ok(count) => {
                self.received.extend_from_slice(&bytes[..count]);
                if let Some(record) = &self.record {
                    record.lock().unwrap().extend_from_slice(&bytes[..count]);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.ended = Some(End::Reset);
            }
            Err(error) => {
                panic!("nothing came ({error}); before that: {:?}", show(&self.received))
            }
        }
        self.ended.is_none()
    }

    fn broken(&mut self) -> Broken {
        let received = std::mem::take(&mut self.received);
        Broken { received, end: self.ended.expect("an end") }
    }

    /// Everything up to and with `mark`.
    #[track_caller]
    pub fn try_read_until(&mut self, mark: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut searched = 0;
        loop {
            let from = searched.min(self.received.len());
            let found = self.received[from..].windows(mark.len()).position(|at| at == mark);
            if let Some(place) = found {
                let rest = self.received.split_off(from + place + mark.len());
                return Ok(std::mem::replace(&mut self.received, rest));
            }
            searched = self.received.len().saturating_sub(mark.len());
            if !self.fill() {
                return Err(self.broken());
            }
        }
    }

    #[track_caller]
    pub fn read_until(&mut self, mark: &str) -> Vec<u8> {
        self.try_read_until(mark.as_bytes()).expect("more bytes")
    }

    /// Exactly so many bytes.
    #[track_caller]
    pub fn try_read(&mut self, count: usize) -> Result<Vec<u8>, Broken> {
        while self.received.len() < count {
            if !self.fill() {
                return Err(self.broken());
            }
        }
        let rest = self.received.split_off(count);
        Ok(std::mem::replace(&mut self.received, rest))
    }

    #[track_caller]
    pub fn read(&mut self, count: usize) -> Vec<u8> {
        self.try_read(count).expect("more bytes")
    }

    /// Reads so many bytes of a long body, which must be [`super::pattern`] from `offset`, without
    /// keeping them.
    #[track_caller]
    pub fn read_pattern(&mut self, offset: u64, count: u64) {
        let mut done = 0;
        while done < count {
            if self.received.is_empty() && !self.fill() {
                panic!("the body ended after {done} of {count} bytes: {:?}", self.ended);
            }
            let have = (self.received.len() as u64).min(count - done) as usize;
            let pattern = super::pattern(offset + done);
            let have = have.min(pattern.len());
            assert!(self.received[..have] == pattern[..have], "at byte {done} of the body");
            done += have as u64;
            self.received.drain(..have);
        }
    }

    /// One message whose head has been understood by `bodiless`: whether it has no body.
    #[track_caller]
    pub fn try_message(
        &mut self,
        bodiless: impl FnOnce(&Message) -> bool,
    ) -> Result<Message, Broken> {
        let head = self.try_read_until(b"\r\n\r\n")?;
        let mut message = Message::parse(&head);
        if !bodiless(&message) {
            self.try_body(&mut message)?;
        }
        Ok(message)
    }

    /// The body of a message whose head was read.
    #[track_caller]
    pub fn try_body(&mut self, message: &mut Message) -> Result<(), Broken> {
        match message.framing() {
            message::Framing::None => {}
            message::Framing::Length(length) => message.body = self.try_read(length)?,
            message::Framing::Chunked => self.try_chunks(message)?,
            message::Framing::UntilClose => match self.rest() {
                (body, End::Closed) => message.body = body,
                (received, end) => return Err(Broken { received, end }),
            },
        }
        Ok(())
    }

    fn try_chunks(&mut self, message: &mut Message) -> Result<(), Broken> {
        loop {
            let line = self.try_read_until(b"\r\n")?;
            let digits = std::str::from_utf8(&line[..line.len() - 2]).expect("a chunk size");
            assert!(
                !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "we write sizes without extensions: {digits:?}"
            );
            let size = usize::from_str_radix(digits, 16).expect("a chunk size");
            if size == 0 {
                break;
            }
            message.chunks += 1;
            message.body.extend(self.try_read(size)?);
            assert_eq!(self.try_read(2)?, b"\r\n", "a chunk ends with CRLF");
        }
        loop {
            let line = self.try_read_until(b"\r\n")?;
            match &line[..line.len() - 2] {
                b"" => return Ok(()),
                line => message.trailers.push(message::field(line)),
            }
        }
    }

    /// All that still comes, and how it ends.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        while self.fill() {}
        (std::mem::take(&mut self.received), self.ended.expect("an end"))
    }

    /// Nothing more has come, and it ended in order.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        let (bytes, end) = self.rest();
        assert_eq!(show(&bytes), "", "nothing comes behind the last answer");
        assert_eq!(end, End::Closed);
    }

    /// It ended, in whatever way, and nothing more had come.
    #[track_caller]
    pub fn assert_ended(&mut self) {
        let (bytes, _) = self.rest();
        assert_eq!(show(&bytes), "", "nothing comes behind the last answer");
    }

    /// Nothing comes for a while. A slow machine makes this pass, never fail.
    #[track_caller]
    pub fn assert_quiet(&mut self, milliseconds: u64) {
        let span = std::time::Duration::from_millis(milliseconds);
        assert_eq!(show(&self.received), "");
        self.stream.set_read_timeout(Some(span)).expect("a read timeout");
        let mut byte = [0; 1];
        let result = self.stream.peek(&mut byte);
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => panic!("something came: {other:?}, {:?}", byte[0] as char),
        }
    }
}

/// Whether neither side has ended it, as far as the kernel knows.
pub fn is_established(stream: &TcpStream) -> bool {
    // Asked twice: the kernel reads the state before it locks the socket, and an end that has
    // arrived while a reader was in there waits for that lock (`tcp_get_info`).
    let _ = tcp_state(stream);
    tcp_state(stream) == Some(1) // TCP_ESTABLISHED
}

/// The first field of `struct tcp_info` (tcp(7), linux/tcp.h).
fn tcp_state(stream: &TcpStream) -> Option<u8> {
    let (mut state, mut length) = (0_u8, 1 as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes, and `state` has as many.
    let result = unsafe {
        let state = (&raw mut state).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, state, &mut length)
    };
    (result == 0).then_some(state)
}

/// Bytes as text, for assertions that fail.
pub fn show(bytes: &[u8]) -> String {
    let shown = bytes.len().min(2000);
    bytes[..shown].escape_ascii().to_string()
}
