//! The control thread's end of the mailbox: waits for the bell with tokio.

use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::mailbox::Inbox;

/// An inbox whose bell tokio listens to.
pub(super) struct AsyncInbox<T> {
    inbox: AsyncFd<Inbox<T>>,
}

impl<T> AsyncInbox<T> {
    pub fn new(inbox: Inbox<T>) -> io::Result<Self> {
        // SAFETY: the inbox holds a share of its bell, whose eventfd is opened with it, closed with
        // it and never exchanged.
        let inbox = unsafe { AsyncFd::register_with_interest(inbox, Interest::READABLE) }?;
        Ok(AsyncInbox { inbox })
    }

    /// The next message. Dropping the future loses nothing: messages stay in their queues, and at
    /// worst a sender rings a bell that nobody needed.
    ///
    /// # Errors
    /// Where tokio's driver is gone.
    pub async fn receive(&mut self) -> io::Result<T> {
        loop {
            if let Some(message) = self.inbox.get_mut().pop() {
                return Ok(message);
            }
            if !self.inbox.get_ref().prepare_sleep() {
                continue;
            }
            let mut ready = self.inbox.readable().await?;
            // Silence first, then forget: a ring in between only wakes once too often.
            ready.get_inner().wake_up();
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[tokio::test]
    async fn messages_from_other_threads_arrive() {
        let mut inbox = Inbox::new().unwrap();
        let sender = inbox.sender(2);
        let mut inbox = AsyncInbox::new(inbox).unwrap();
        let thread = thread::spawn(move || {
            for n in 0..5_000 {
                while sender.send(n).is_err() {
                    thread::yield_now();
                }
            }
        });
        for n in 0..5_000 {
            let got = tokio::time::timeout(Duration::from_secs(20), inbox.receive()).await;
            assert_eq!(got.expect("a lost wake-up").unwrap(), n);
        }
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let mut inbox = Inbox::new().unwrap();
        let sender = inbox.sender(8);
        let mut inbox = AsyncInbox::new(inbox).unwrap();
        for n in 0..10 {
            let idle = tokio::time::timeout(Duration::from_millis(1), inbox.receive());
            assert!(idle.await.is_err(), "nothing was sent");
            sender.send(n).unwrap();
            assert_eq!(inbox.receive().await.unwrap(), n);
        }
    }
}
