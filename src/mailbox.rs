//! Messages between threads: one bounded queue for each ordered pair, and one bell (an eventfd)
//! for each receiver, rung only while the receiver sleeps.
//!
//! Every thread owns an [`Inbox`] and holds a [`Sender`] for each thread that it writes to. The
//! queue is off the request's path; a push without a wake costs tens of nanoseconds, a wake some
//! microseconds. Nothing here blocks, except [`Inbox::wait`], which only the access log's writer
//! calls; shards and the control thread wait for [`Inbox::fd`] in their own ways.
//!
//! ```text
//! receiver: asleep = true; fence; look once more -> empty: wait for the bell
//! sender:   push;          fence; asleep?        -> yes:   ring
//! ```
//!
//! Both fences are needed: without either, the receiver can miss the message while the sender
//! misses the flag, and the message lies there until the next one. (With them one of the two
//! must see what the other wrote.)

mod sleep_flag;

#[cfg(test)]
mod model;

/// What [`sleep_flag`] is made of; the model puts loom's in its place.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use sleep_flag::SleepFlag;

/// The receiving end. One thread owns it; it may be made on another and moved there.
#[derive(Debug)]
pub struct Inbox<T> {
    /// One for each sender.
    queues: Vec<Arc<ArrayQueue<T>>>,
    /// Where the next look begins, so that no sender is starved by another.
    next: usize,
    bell: Arc<Bell>,
}

impl<T> Inbox<T> {
    /// An inbox that nobody writes to yet.
    ///
    /// # Errors
    /// Where no eventfd can be made: no descriptors left.
    pub fn new() -> io::Result<Self> {
        let bell = Bell { asleep: SleepFlag::new(), eventfd: nonblocking_eventfd()? };
        Ok(Inbox { queues: Vec::new(), next: 0, bell: Arc::new(bell) })
    }

    /// Adds a queue of `capacity` messages and returns its sending end, for one other thread.
    pub fn sender(&mut self, capacity: usize) -> Sender<T> {
        let queue = Arc::new(ArrayQueue::new(capacity));
        self.queues.push(queue.clone());
        Sender { queue, bell: self.bell.clone() }
    }

    /// The next message. Messages of one sender keep their order; senders take turns.
    pub fn pop(&mut self) -> Option<T> {
        for _ in 0..self.queues.len() {
            let queue = &self.queues[self.next];
            self.next = (self.next + 1) % self.queues.len();
            if let Some(message) = queue.pop() {
                return Some(message);
            }
        }
        None
    }

    /// Whether something is there of any sender but the first, as far as can be seen without a
    /// fence: what is being pushed right now may be missed, until the next look.
    #[inline]
    pub fn has_more_than_of_first(&self) -> bool {
        self.queues.iter().skip(1).any(|queue| !queue.is_empty())
    }

    /// Says that the receiver is about to wait, and looks once more. `true`: nothing is there, and
    /// whatever comes rings the bell: wait until [`Inbox::fd`] is readable (or as long as you
    /// like), then call [`Inbox::wake_up`]. `false`: something is there; do not wait, `pop`.
    #[must_use = "waiting although it says false loses a message"]
    pub fn prepare_sleep(&self) -> bool {
        self.bell.asleep.raise();
        if self.queues.iter().all(|queue| queue.is_empty()) {
            return true;
        }
        self.bell.asleep.lower();
        false
    }

    /// Says that the receiver is up, and silences the bell. Call it after every wait, whatever
    /// ended it, and then `pop` until there is nothing.
    pub fn wake_up(&self) {
        self.bell.asleep.lower();
        let mut count = [0u8; 8];
        // EAGAIN: nobody rang, the wait ended for another reason. Nothing else can fail here.
        let _ = rustix::io::read(&self.bell.eventfd, &mut count);
    }

    /// The eventfd; readable when the bell was rung. Non-blocking.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.eventfd.as_fd()
    }

    /// Blocks this thread until the bell rings or the time is over. For threads that run no loop
    /// of their own.
    pub fn wait(&self, timeout: Option<Duration>) {
        if self.prepare_sleep() {
            let timeout = timeout.map(|t| Timespec {
                tv_sec: t.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: t.subsec_nanos().into(),
            });
            let mut fds = [PollFd::new(&self.bell.eventfd, PollFlags::IN)];
            // EINTR ends the wait early, which the caller has to expect anyway.
            let _ = poll(&mut fds, timeout.as_ref());
        }
        self.wake_up();
    }
}

impl<T> AsRawFd for Inbox<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.bell.eventfd.as_raw_fd()
    }
}

/// The sending end of one pair.
#[derive(Debug)]
pub struct Sender<T> {
    queue: Arc<ArrayQueue<T>>,
    bell: Arc<Bell>,
}

impl<T> Sender<T> {
    /// Pushes, and wakes the receiver if it sleeps.
    ///
    /// # Errors
    /// Gives the message back where the queue is full. The receiver was woken all the same.
    pub fn send(&self, message: T) -> Result<(), T> {
        let result = self.queue.push(message);
        self.bell.ring_if_asleep();
        result
    }

    /// Pushes without waking: the receiver finds it when it looks next, for whatever reason.
    ///
    /// # Errors
    /// Gives the message back where the queue is full, and wakes the receiver to empty it.
    pub fn send_quietly(&self, message: T) -> Result<(), T> {
        let result = self.queue.push(message);
        if result.is_err() {
            self.bell.ring_if_asleep();
        }
        result
    }

    /// Messages that wait to be read.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// There is no room for another one.
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// Nothing waits to be read.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Wakes the receiver if it sleeps, without a message.
    pub fn ring(&self) {
        self.bell.ring_if_asleep();
    }
}

/// What a receiver shares with all its senders.
#[derive(Debug)]
struct Bell {
    asleep: SleepFlag,
    eventfd: OwnedFd,
}

impl Bell {
    fn ring_if_asleep(&self) {
        if self.asleep.raised() {
            // EAGAIN: the count is at its limit, so the descriptor is readable as it is.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }
}

fn nonblocking_eventfd() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A time after which a lost wake-up is certain; nothing that works comes near it.
    const LOST_AFTER: Duration = Duration::from_secs(20);

    #[test]
    fn order_of_one_sender_is_kept_and_senders_take_turns() {
        let mut inbox = Inbox::new().unwrap();
        let (a, b) = (inbox.sender(8), inbox.sender(8));
        for n in 0..3 {
            a.send(("a", n)).unwrap();
            b.send(("b", n)).unwrap();
        }
        let all: Vec<_> = std::iter::from_fn(|| inbox.pop()).collect();
        assert_eq!(all, [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]);
    }

    #[test]
    fn a_full_queue_gives_the_message_back() {
        let mut inbox = Inbox::new().unwrap();
        let sender = inbox.sender(1);
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Err(2));
        assert_eq!(sender.send_quietly(3), Err(3));
        assert_eq!((inbox.pop(), inbox.pop()), (Some(1), None));
    }

    fn readable(inbox: &Inbox<u32>) -> bool {
        let mut fds = [PollFd::new(&inbox.bell.eventfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn the_bell_rings_only_for_a_sleeper() {
        let mut inbox = Inbox::new().unwrap();
        let sender = inbox.sender(8);
        sender.send(1).unwrap();
        assert!(!readable(&inbox), "awake: no system call");
        assert!(!inbox.prepare_sleep(), "something is there");
        assert_eq!(inbox.pop(), Some(1));
        assert!(inbox.prepare_sleep());
        sender.send_quietly(2).unwrap();
        assert!(!readable(&inbox), "quietly means quietly");
        sender.send(3).unwrap();
        assert!(readable(&inbox));
        inbox.wake_up();
        assert!(!readable(&inbox));
        sender.send(4).unwrap();
        assert!(!readable(&inbox), "awake again");
    }

    #[test]
    fn a_full_queue_wakes_its_reader_even_quietly() {
        let mut inbox = Inbox::new().unwrap();
        let sender = inbox.sender(1);
        assert!(inbox.prepare_sleep());
        sender.send_quietly(1).unwrap();
        assert!(!readable(&inbox));
        sender.send_quietly(2).unwrap_err();
        assert!(readable(&inbox));
    }

    /// Two senders against a receiver that sleeps at every chance. If a wake-up got lost, the
    /// receiver would sleep until the time is over, with messages lying there.
    #[test]
    fn no_wake_up_is_lost() {
        const MESSAGES: u32 = 20_000;
        let mut inbox = Inbox::new().unwrap();
        let senders = [inbox.sender(4), inbox.sender(4)];
        let threads = senders.map(|sender| {
            thread::spawn(move || {
                for n in 0..MESSAGES {
                    while sender.send(n).is_err() {
                        thread::yield_now();
                    }
                }
            })
        });
        let mut seen = 0;
        while seen < 2 * MESSAGES {
            match inbox.pop() {
                Some(_) => seen += 1,
                None => {
                    let before = std::time::Instant::now();
                    inbox.wait(Some(LOST_AFTER));
                    assert!(before.elapsed() < LOST_AFTER, "lost after {seen}");
                }
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
