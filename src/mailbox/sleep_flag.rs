//! The flag that says that a receiver sleeps, with its two fences. Apart from the rest so that
//! `model` can compile it a second time, on loom's atomics.

use super::atomic::{AtomicBool, Ordering, fence};

#[derive(Debug)]
pub(super) struct SleepFlag(AtomicBool);

impl SleepFlag {
    pub fn new() -> Self {
        SleepFlag(AtomicBool::new(false))
    }

    /// Receiver, before its second look.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Receiver, when it is up.
    pub fn lower(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Sender, after its push.
    pub fn raised(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}
