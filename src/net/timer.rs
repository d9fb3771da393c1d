//! The one timer of a connection.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::time::Nanos;

/// One kept timer that is moved rather than made anew. Moving it later costs a store: the entry in
/// the runtime's wheel stays where it is, and is moved when it fires too early. Nor is the entry
/// looked at in vain: it can only have fired if the task was woken.
pub struct Timer {
    sleep: Pin<Box<monoio::time::Sleep>>,
    /// When the wheel's entry fires.
    armed: Nanos,
    /// When we want to be told.
    due: Nanos,
    /// The entry will wake the task.
    registered: bool,
}

/// How far ahead the wheel's entry is put when there is no deadline.
const TIMER_FAR: std::time::Duration = std::time::Duration::from_secs(3600);

impl Timer {
    /// A timer without a deadline, for one task.
    pub fn new(now: Nanos) -> Timer {
        let armed = now + TIMER_FAR;
        let sleep = Box::pin(sleep_until(armed));
        Timer { sleep, armed, due: Nanos::NEVER, registered: false }
    }

    /// Moves the deadline. `now` must not lie before the last time that the task was woken: an
    /// entry that has fired since is armed again.
    pub fn set(&mut self, due: Nanos, now: Nanos) {
        self.due = due;
        if due < self.armed || now >= self.armed {
            self.arm(due.min(now + TIMER_FAR));
        }
    }

    /// The deadline as it is set.
    pub fn due(&self) -> Nanos {
        self.due
    }

    /// Ready once the deadline has passed; then it is switched off until the next `set`. `woken`
    /// says whether the task was woken since the deadline was set.
    pub fn poll_due(&mut self, woken: bool, context: &mut Context<'_>) -> Poll<()> {
        if self.registered && !woken {
            return Poll::Pending;
        }
        while self.sleep.as_mut().poll(context).is_ready() {
            let now = Nanos::now();
            if now >= self.due {
                self.due = Nanos::NEVER;
                self.arm(now + TIMER_FAR);
                return Poll::Ready(());
            }
            self.arm(self.due.min(now + TIMER_FAR));
        }
        self.registered = true;
        Poll::Pending
    }

    fn arm(&mut self, at: Nanos) {
        // Rounded up: the wheel counts whole milliseconds and would fire before its time.
        self.armed = at;
        self.registered = false;
        let at = Nanos(at.0.saturating_add(999_999));
        self.sleep.as_mut().reset(monoio::time::Instant::from_std(at.instant()));
    }
}

fn sleep_until(at: Nanos) -> monoio::time::Sleep {
    monoio::time::sleep_until(monoio::time::Instant::from_std(at.instant()))
}
