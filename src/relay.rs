//! One direction of an exchange's body: from one socket to the other, within a bounded buffer.
//!
//! What was received is sent from the buffer that received it. Framing is taken off and put on
//! anew, so a malformed body is found here and never passed on. Long bodies of known length go
//! through a pipe (splice(2)) and never enter the process. Whoever calls bounds the time, by looking
//! at [`Flow`] whenever its timer fires.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::fallback::last_good::Keeping;
use crate::http::body::{Chunked, Piece};
use crate::http::head::Framing;
use rustix::io::Errno;

use crate::net::{Socket, Timer, would_block};
use crate::reason::Reason;
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::pipes::{PIPE_BYTES, Pipes};

/// Bodies with at least so much still to come are spliced. Below, setting up costs more than the
/// copies.
pub const SPLICE_BYTES_MIN: u64 = 64 * 1024;

/// As many bytes of a spliced body are awaited at once, as long as they come within [`FAST`].
const LOW_WATER: u64 = PIPE_BYTES as u64 / 2;

/// The shortest time that the timer knows.
const FAST: Duration = Duration::from_millis(1);

/// Pieces of one buffer that leave in one write. Chunks may be tiny; the rest waits for the next.
const SPANS_MAX: usize = 16;

/// Bytes moved by one task before the others get a turn.
const TURN_BYTES_MAX: usize = 1024 * 1024;

/// And writes, since chunks may be tiny.
const TURN_WRITES_MAX: u32 = 64;

/// Trailer bytes kept until the end of a body.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

/// How a body that is being received ends.
#[derive(Debug, Clone)]
pub enum Incoming {
    /// So many bytes are still to come.
    Length(u64),
    /// The decoder knows.
    Chunked(Chunked),
    /// With the connection.
    UntilClose,
}

impl Incoming {
    /// For a framing that was understood from a head.
    pub fn new(framing: Framing, lenient_line_ends: bool) -> Incoming {
        match framing {
            Framing::None => Incoming::Length(0),
            Framing::Length(length) => Incoming::Length(length),
            Framing::Chunked => Incoming::Chunked(Chunked::new(lenient_line_ends)),
            Framing::UntilClose => Incoming::UntilClose,
        }
    }
}

/// How it is framed as it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    /// By its length, or by the end of the connection.
    Identity,
    /// In chunks of our own.
    Chunked,
}

/// What one direction has done so far; read by whoever bounds its time.
#[derive(Debug, Default)]
pub struct Flow {
    /// Body bytes moved.
    pub bytes: Cell<u64>,
    /// Whether anything was written, if only the head.
    pub begun: Cell<bool>,
    /// Which side it waits for, if any.
    pub waits_for: Cell<Option<Side>>,
}

/// The side of a relay that it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Whoever sends the body.
    Source,
    /// Whoever receives it.
    Sink,
}

/// Why a relay ended before the body did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The source closed or reset before the body's end.
    Truncated,
    /// The body is malformed or too large.
    Refused(Reason),
    /// The sink closed or reset.
    SinkGone,
}

/// A body on its way.
pub struct Relay<'a> {
    /// Where it comes from.
    pub from: &'a Socket,
    /// Where it goes.
    pub to: &'a Socket,
    /// What was received of it already; afterwards, what came behind it.
    pub buffer: &'a mut Buffer,
    /// How it ends.
    pub incoming: Incoming,
    /// How it leaves.
    pub outgoing: Outgoing,
    /// Most bytes it may have.
    pub bytes_max: u64,
    /// Bytes to write before it: the head.
    pub head: &'a [u8],
    /// Where buffers come from.
    pub buffers: &'a Buffers,
    /// Where pipes come from.
    pub pipes: &'a Pipes,
    /// What it has done so far.
    pub flow: &'a Flow,
    /// Keeps what goes by, until it is too much: then there is none.
    pub tap: Option<&'a mut Keeping>,
}

/// What a look at the received bytes found.
#[derive(Default)]
struct Framed {
    /// Where data begins and ends in the buffer, which is far smaller than 4 GiB.
    spans: [(u32, u32); SPANS_MAX],
    spans_used: usize,
    /// Bytes of the buffer that are dealt with once the spans are sent.
    consumed: usize,
    data_bytes: usize,
    ended: bool,
}

impl Relay<'_> {
    /// Runs until the body's last byte was written.
    pub async fn run(&mut self) -> Result<(), Broken> {
        let mut trailers = Vec::new();
        let (mut turn_bytes, mut turn_writes) = (0, 0);
        loop {
            let framed = self.frame(&mut trailers).map_err(Broken::Refused)?;
            self.check_size(framed.data_bytes)?;
            self.write(&framed, &trailers).await?;
            self.head = &[];
            if self.tap.is_some() {
                self.keep(&framed);
            }
            self.flow.bytes.set(self.flow.bytes.get() + framed.data_bytes as u64);
            self.buffer.consume(framed.consumed);
            if framed.ended {
                return Ok(());
            }
            turn_bytes += framed.consumed;
            turn_writes += 1;
            if turn_bytes > TURN_BYTES_MAX || turn_writes >= TURN_WRITES_MAX {
                (turn_bytes, turn_writes) = (0, 0);
                crate::net::yield_now().await;
            }
            if framed.consumed > 0 && !self.buffer.is_empty() {
                continue; // More pieces than one write takes.
            }
            if let Incoming::Length(left) = self.incoming
                && left >= SPLICE_BYTES_MIN
                && self.outgoing == Outgoing::Identity
                && self.tap.is_none()
                && self.buffer.is_empty()
                && !self.from.has_urgent_data()
                && let Some(pipe) = self.pipes.take()
            {
                let left = self.splice(left, pipe).await?;
                if left == 0 {
                    return Ok(());
                }
                self.incoming = Incoming::Length(left);
            }
            if !self.read().await? {
                return match self.incoming {
                    Incoming::UntilClose => {
                        let end = Framed { ended: true, ..Framed::default() };
                        self.write(&end, &[]).await
                    }
                    _ => Err(Broken::Truncated),
                };
            }
        }
    }

    /// Looks at what was received: what of it is body, and whether that is all.
    fn frame(&mut self, trailers: &mut Vec<u8>) -> Result<Framed, Reason> {
        let bytes = self.buffer.filled();
        let mut framed = Framed::default();
        match &mut self.incoming {
            Incoming::Length(left) => {
                let count = (*left).min(bytes.len() as u64) as usize;
                *left -= count as u64;
                framed.push(0..count);
                framed.consumed = count;
                framed.ended = *left == 0;
            }
            Incoming::UntilClose => {
                framed.push(0..bytes.len());
                framed.consumed = bytes.len();
            }
            Incoming::Chunked(decoder) => {
                while framed.spans_used < SPANS_MAX {
                    let rest = &bytes[framed.consumed..];
                    let (consumed, piece) = decoder.step(rest)?;
                    let start = framed.consumed;
                    framed.consumed += consumed;
                    match piece {
                        Piece::NeedMore => break,
                        Piece::Data(data) => {
                            let at = start + (data.as_ptr() as usize - rest.as_ptr() as usize);
                            framed.push(at..at + data.len());
                        }
                        Piece::Trailer { name, value } => {
                            if trailers.len() + name.len() + value.len() > TRAILER_BYTES_MAX {
                                return Err(Reason::BadBody);
                            }
                            crate::http::encode::line(name, value, trailers);
                        }
                        Piece::End => {
                            framed.ended = true;
                            break;
                        }
                    }
                }
            }
        }
        Ok(framed)
    }

    #[cold]
    fn keep(&mut self, framed: &Framed) {
        let Some(tap) = &mut self.tap else { return };
        let bytes = self.buffer.filled();
        let mut spans = framed.spans[..framed.spans_used].iter();
        if !spans.all(|span| tap.take(&bytes[span.0 as usize..span.1 as usize])) {
            self.tap = None;
        }
    }

    fn check_size(&mut self, more: usize) -> Result<(), Broken> {
        if self.flow.bytes.get() + more as u64 > self.bytes_max {
            return Err(Broken::Refused(Reason::BodyTooLarge));
        }
        Ok(())
    }

    /// Writes the head if it is still to go, the spans, and the end if that is reached.
    async fn write(&mut self, framed: &Framed, trailers: &[u8]) -> Result<(), Broken> {
        let mut sent = 0;
        loop {
            match self.try_write(framed, trailers, sent) {
                Ok((count, total)) => {
                    sent += count;
                    self.flow.begun.set(true);
                    if sent == total {
                        return Ok(());
                    }
                }
                Err(error) if would_block(&error) => {
                    self.flow.waits_for.set(Some(Side::Sink));
                    self.to.writable().await;
                    self.flow.waits_for.set(None);
                }
                Err(_) => return Err(Broken::SinkGone),
            }
        }
    }

    /// One write of all that is still to go, `sent` bytes of it having gone; tells how many went
    /// now, and how many there were in all.
    fn try_write(
        &self,
        framed: &Framed,
        trailers: &[u8],
        sent: usize,
    ) -> io::Result<(usize, usize)> {
        let bytes = self.buffer.filled();
        let mut size_line = ChunkSize::default();
        let mut slices = [IoSlice::new(&[]); SPANS_MAX + 5];
        let mut used = 0;
        let mut total = 0;
        let mut put = |slice| {
            let slice: &[u8] = slice;
            if !slice.is_empty() {
                slices[used] = IoSlice::new(slice);
                used += 1;
                total += slice.len();
            }
        };
        let chunked = self.outgoing == Outgoing::Chunked;
        put(self.head);
        if chunked && framed.data_bytes > 0 {
            put(size_line.write(framed.data_bytes));
        }
        for span in &framed.spans[..framed.spans_used] {
            put(&bytes[span.0 as usize..span.1 as usize]);
        }
        if chunked && framed.data_bytes > 0 {
            put(b"\r\n");
        }
        if chunked && framed.ended {
            put(b"0\r\n");
            put(trailers);
            put(b"\r\n");
        }
        let mut slices = &mut slices[..used];
        if sent == total {
            return Ok((0, total));
        }
        IoSlice::advance_slices(&mut slices, sent);
        let count = self.to.try_send_vectored(slices)?;
        Ok((count, total))
    }

    /// Receives more. False at the end of the stream.
    async fn read(&mut self) -> Result<bool, Broken> {
        if self.buffer.is_empty() {
            // A body that pauses holds no buffer.
            self.buffers.give_back(std::mem::take(self.buffer));
        }
        self.flow.waits_for.set(Some(Side::Source));
        loop {
            self.from.readable().await;
            if self.buffer.room() == 0 && self.buffer.is_empty() {
                *self.buffer = match self.incoming {
                    Incoming::Length(left) if left < SPLICE_BYTES_MIN => self.buffers.take(),
                    _ if self.flow.bytes.get() == 0 => self.buffers.take(),
                    _ => self.buffers.take_large(),
                };
            } else if self.buffer.room() == 0 && !self.buffers.enlarge(self.buffer) {
                return Err(Broken::Refused(Reason::BadBody)); // A chunk line of 128 KiB.
            }
            match self.from.try_recv(self.buffer.spare()) {
                Ok(count) => {
                    // SAFETY: the kernel has just written so many bytes of it.
                    unsafe { self.buffer.filled_by(count) };
                    self.flow.waits_for.set(None);
                    return Ok(count > 0);
                }
                Err(error) if would_block(&error) => {}
                Err(_) => return Err(Broken::Truncated),
            }
        }
    }

    /// Moves the rest, so many bytes of it, through a pipe. Its size was checked with the head.
    /// Returns how many bytes are left for an ordinary relay: those behind urgent data.
    async fn splice(&mut self, mut left: u64, mut pipe: Pipe) -> Result<u64, Broken> {
        self.buffers.give_back(std::mem::take(self.buffer));
        let mut source = Source::new(self.from, left);
        let mut turn_bytes = 0;
        'bytes: while left > 0 {
            self.flow.waits_for.set(Some(Side::Source));
            let count = loop {
                let most = left.min(PIPE_BYTES as u64) as usize;
                let into_pipe = || splice(self.from, &pipe.write, most);
                match self.from.reading(into_pipe) {
                    Ok(0) => return Err(Broken::Truncated),
                    Ok(count) => break count,
                    Err(Errno::AGAIN | Errno::INTR) if self.from.has_urgent_data() => {
                        self.from.read_again();
                        break 'bytes;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => source.readable(&mut pipe.timer).await,
                    Err(_) => return Err(Broken::Truncated),
                }
            };
            source.has_sent(count, left - count as u64);
            self.flow.waits_for.set(Some(Side::Sink));
            let mut in_pipe = count;
            while in_pipe > 0 {
                let out_of_pipe = || splice(&pipe.read, self.to, in_pipe);
                match self.to.writing(out_of_pipe) {
                    Ok(0) => return Err(Broken::SinkGone),
                    Ok(count) => {
                        in_pipe -= count;
                        left -= count as u64;
                        turn_bytes += count;
                        self.flow.bytes.set(self.flow.bytes.get() + count as u64);
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {
                        self.to.writable().await;
                    }
                    Err(_) => return Err(Broken::SinkGone),
                }
            }
            if turn_bytes > TURN_BYTES_MAX {
                turn_bytes = 0;
                self.flow.waits_for.set(None);
                crate::net::yield_now().await;
            }
        }
        self.flow.waits_for.set(None);
        // Only an empty pipe may be used again; one left half full by an error above is closed.
        self.pipes.give_back(pipe);
        Ok(left)
    }
}

impl Framed {
    fn push(&mut self, span: Range<usize>) {
        if span.is_empty() {
            return;
        }
        self.data_bytes += span.len();
        self.spans[self.spans_used] = (span.start as u32, span.end as u32);
        self.spans_used += 1;
    }
}

/// A chunk's size line.
#[derive(Default)]
struct ChunkSize([u8; 18]);

impl ChunkSize {
    fn write(&mut self, bytes: usize) -> &[u8] {
        crate::http::body::chunk_header(bytes, &mut self.0)
    }
}

/// splice(2) without blocking.
fn splice(from: &impl AsFd, to: &impl AsFd, bytes: usize) -> Result<usize, Errno> {
    use rustix::pipe::SpliceFlags;
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    rustix::pipe::splice(from, None, to, None, bytes, flags)
}

/// A pipe, read end and write end, and what goes with it from body to body.
pub struct Pipe {
    /// Where bytes come out.
    pub read: OwnedFd,
    /// Where they go in.
    pub write: OwnedFd,
    /// Bounds the wait for many bytes at once.
    pub timer: Timer,
}

/// A source that is only looked at once many bytes have come, as long as they come fast. A wake-up
/// for each segment cost a twelfth of the CPU per byte. No byte of a slower source is held for longer
/// than [`FAST`].
struct Source<'a> {
    socket: &'a Socket,
    is_fast: bool,
}

impl<'a> Source<'a> {
    fn new(socket: &'a Socket, left: u64) -> Source<'a> {
        let mut source = Source { socket, is_fast: false };
        source.expect(left >= 2 * LOW_WATER);
        source
    }

    /// What to expect of it from now on.
    fn expect(&mut self, is_fast: bool) {
        if self.is_fast != is_fast {
            self.is_fast = is_fast;
            self.socket.set_low_water(if is_fast { LOW_WATER as u32 } else { 1 });
        }
    }

    /// So many bytes came at once, and so many are left.
    fn has_sent(&mut self, count: usize, left: u64) {
        let is_fast = self.is_fast || count as u64 >= LOW_WATER;
        self.expect(is_fast && left >= LOW_WATER);
    }

    async fn readable(&mut self, timer: &mut Timer) {
        if !self.is_fast {
            self.socket.readable().await;
        } else if !self.socket.readable_within(FAST, timer).await {
            self.expect(false);
        }
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        self.expect(false);
    }
}
