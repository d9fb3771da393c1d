//! Pipes for splice(2), kept for the next body.

use std::cell::RefCell;

use rustix::pipe::PipeFlags;

use crate::net::Timer;
use crate::relay::Pipe;
use crate::time::Nanos;

/// What a pipe holds; Linux gives 64 KiB unless asked. More lets one system call move more.
pub const PIPE_BYTES: usize = 256 * 1024;

/// Empty pipes kept.
const KEPT_MAX: usize = 64;

/// The empty pipes of a shard.
#[derive(Default)]
pub struct Pipes(RefCell<Vec<Pipe>>);

impl Pipes {
    /// An empty pipe; `None` where the process has no descriptors left.
    pub fn take(&self) -> Option<Pipe> {
        if let Some(pipe) = self.0.borrow_mut().pop() {
            return Some(pipe);
        }
        let flags = PipeFlags::NONBLOCK | PipeFlags::CLOEXEC;
        let (read, write) = rustix::pipe::pipe_with(flags).ok()?;
        // Refused above a user's quota (pipe(7)); the default size works as well.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
        Some(Pipe { read, write, timer: Timer::new(Nanos::now()) })
    }

    /// Keeps an empty pipe for the next.
    pub fn give_back(&self, pipe: Pipe) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT_MAX {
            kept.push(pipe);
        }
    }
}
