//! Every interleaving of senders with a receiver that goes to sleep, under the memory model of
//! C11 rather than under this machine's. Without either fence of [`SleepFlag`] these fail.

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

// A second time, on purpose.
#[allow(clippy::duplicate_mod)]
#[path = "sleep_flag.rs"]
mod sleep_flag;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

use sleep_flag::SleepFlag;

/// The mailbox with the queue and the eventfd reduced to what matters: how many messages there
/// are, and whether the bell was rung. Both order memory, as the real ones do.
struct Mailbox {
    queued: AtomicUsize,
    flag: SleepFlag,
    rung: AtomicBool,
}

impl Mailbox {
    fn new() -> Arc<Mailbox> {
        let (queued, rung) = (AtomicUsize::new(0), AtomicBool::new(false));
        Arc::new(Mailbox { queued, flag: SleepFlag::new(), rung })
    }

    fn send(&self) {
        self.queued.fetch_add(1, Ordering::Release);
        if self.flag.raised() {
            self.rung.swap(true, Ordering::AcqRel);
        }
    }

    fn wake_up(&self) {
        self.flag.lower();
        self.rung.swap(false, Ordering::AcqRel);
    }

    /// The messages seen in the second look.
    fn prepare_sleep(&self) -> usize {
        self.flag.raise();
        self.queued.load(Ordering::Acquire)
    }
}

#[test]
fn either_the_message_or_the_flag_is_seen() {
    loom::model(|| {
        let mailbox = Mailbox::new();
        let sender = thread::spawn({
            let mailbox = mailbox.clone();
            move || mailbox.send()
        });
        let seen = mailbox.prepare_sleep();
        sender.join().unwrap();
        let rung = mailbox.rung.load(Ordering::Acquire);
        assert!(seen == 1 || rung, "the receiver sleeps, and nobody wakes it");
    });
}

/// Neither a ring that was silenced nor one that came late makes the next sleep last.
#[test]
fn so_it_is_when_the_receiver_was_up_before() {
    loom::model(|| {
        let mailbox = Mailbox::new();
        let sender = thread::spawn({
            let mailbox = mailbox.clone();
            move || mailbox.send()
        });
        let first = mailbox.prepare_sleep();
        mailbox.wake_up();
        let read = mailbox.queued.load(Ordering::Acquire).max(first);
        let seen = mailbox.prepare_sleep();
        sender.join().unwrap();
        let rung = mailbox.rung.load(Ordering::Acquire);
        assert!(read == 1 || seen == 1 || rung, "a message lies there");
    });
}
