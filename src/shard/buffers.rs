//! The buffers of one shard: taken when there is something to hold, given back when there is not.
//!
//! Two sizes. Ordinary ones hold a head and the body bytes that came with it; large ones hold heads
//! that outgrew those, and relay long bodies. What comes back is kept for the next, up to a bound.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;

/// Bytes of a large buffer: holds every head that the limits allow, and a good piece of a body.
pub const LARGE_BYTES: usize = 128 * 1024;

/// The largest head that any limit may allow; what we make of it has to fit as well.
pub const HEAD_BYTES_MAX: usize = LARGE_BYTES - 8 * 1024;

/// Free large buffers kept for the next.
const LARGE_KEPT_MAX: usize = 16;

/// Free ordinary buffers kept for the next, in bytes.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Received bytes, or bytes to send, of which some may have been dealt with already.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// What is left to deal with.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The same, to change what is there.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    /// How many bytes are left to deal with.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether everything has been dealt with.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Marks the first `count` bytes as dealt with.
    pub fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len());
        self.start += count;
        if self.start == self.bytes.len() {
            self.clear();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// Keeps only the first `count` bytes of those that are left.
    pub fn truncate(&mut self, count: usize) {
        self.bytes.truncate(self.start + count);
    }

    /// For encoders: everything written here is left to deal with.
    pub fn writer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Room to receive into; made contiguous first if little is left of it.
    pub fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        if self.start > 0 && self.bytes.capacity() - self.bytes.len() < self.bytes.capacity() / 4 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.spare_capacity_mut()
    }

    /// Room that can be had without growing: also what was dealt with.
    pub fn room(&self) -> usize {
        self.bytes.capacity() - self.len()
    }

    /// Notes that the kernel has filled `count` bytes of the room.
    ///
    /// # Safety
    /// So many bytes of [`Buffer::spare`] must have been written.
    pub unsafe fn filled_by(&mut self, count: usize) {
        debug_assert!(count <= self.bytes.capacity() - self.bytes.len());
        // SAFETY: the caller vouches for the bytes.
        unsafe { self.bytes.set_len(self.bytes.len() + count) };
    }
}

/// The free buffers of a shard.
#[derive(Debug)]
pub struct Buffers {
    bytes: usize,
    free: RefCell<Vec<Vec<u8>>>,
    free_large: RefCell<Vec<Vec<u8>>>,
    in_use: Cell<usize>,
}

impl Buffers {
    /// Ordinary buffers of so many bytes each.
    pub fn new(bytes: usize) -> Buffers {
        Buffers {
            bytes,
            free: RefCell::new(Vec::with_capacity(1024)),
            free_large: RefCell::new(Vec::with_capacity(LARGE_KEPT_MAX)),
            in_use: Cell::new(0),
        }
    }

    /// An empty ordinary buffer.
    pub fn take(&self) -> Buffer {
        self.in_use.set(self.in_use.get() + 1);
        let bytes = self.free.borrow_mut().pop();
        Buffer { bytes: bytes.unwrap_or_else(|| Vec::with_capacity(self.bytes)), start: 0 }
    }

    /// An empty large buffer.
    pub fn take_large(&self) -> Buffer {
        self.in_use.set(self.in_use.get() + 1);
        let bytes = self.free_large.borrow_mut().pop();
        Buffer { bytes: bytes.unwrap_or_else(|| Vec::with_capacity(LARGE_BYTES)), start: 0 }
    }

    /// Replaces an ordinary buffer by a large one with the same content. Whether it could: a large
    /// one stays as it is.
    pub fn enlarge(&self, buffer: &mut Buffer) -> bool {
        if buffer.bytes.capacity() >= LARGE_BYTES {
            return false;
        }
        let mut large = self.take_large();
        large.bytes.extend_from_slice(buffer.filled());
        self.give_back(std::mem::replace(buffer, large));
        true
    }

    /// Keeps a buffer for the next, or frees it where enough are kept.
    pub fn give_back(&self, mut buffer: Buffer) {
        let capacity = buffer.bytes.capacity();
        if capacity == 0 {
            return; // The placeholder that a taken buffer leaves behind.
        }
        self.in_use.set(self.in_use.get() - 1);
        buffer.bytes.clear();
        let (free, kept_max) = if capacity == self.bytes {
            (&self.free, KEPT_BYTES_MAX / self.bytes)
        } else if capacity == LARGE_BYTES {
            (&self.free_large, LARGE_KEPT_MAX)
        } else {
            return; // An encoder made it grow; the next one should start small again.
        };
        let mut free = free.borrow_mut();
        if free.len() < kept_max {
            free.push(buffer.bytes);
        }
    }

    /// Buffers that are out.
    pub fn in_use(&self) -> usize {
        self.in_use.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_used_again() {
        let buffers = Buffers::new(4096);
        let mut first = buffers.take();
        first.writer().extend_from_slice(b"head");
        let place = first.filled().as_ptr();
        buffers.give_back(first);
        let mut second = buffers.take();
        assert!(second.is_empty());
        second.writer().push(b'x');
        assert_eq!(second.filled().as_ptr(), place);
    }

    #[test]
    fn enlarging_keeps_what_is_left() {
        let buffers = Buffers::new(4096);
        let mut buffer = buffers.take();
        buffer.writer().extend_from_slice(b"dealt with, left");
        buffer.consume(12);
        assert!(buffers.enlarge(&mut buffer));
        assert_eq!(buffer.filled(), b"left");
        assert!(!buffers.enlarge(&mut buffer));
        assert_eq!(buffers.in_use(), 1);
    }

    #[test]
    fn what_was_dealt_with_is_room() {
        let buffers = Buffers::new(4096);
        let mut buffer = buffers.take();
        buffer.writer().resize(4096, b'x');
        assert_eq!(buffer.room(), 0);
        buffer.consume(4000);
        assert_eq!(buffer.room(), 4000);
        assert_eq!(buffer.spare().len(), 4000);
        assert_eq!(buffer.filled(), [b'x'; 96]);
    }

    #[test]
    fn a_buffer_that_grew_is_not_kept() {
        let buffers = Buffers::new(4096);
        let mut buffer = buffers.take();
        buffer.writer().resize(10_000, 0);
        buffers.give_back(buffer);
        assert_eq!(buffers.free.borrow().len(), 0);
        assert_eq!(buffers.in_use(), 0);
    }
}
