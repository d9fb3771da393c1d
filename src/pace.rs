//! Whether a body moves: slow peers on either side are told from slow origins. Pure.
//!
//! Looked at twice in each span of the listener's `body` limit. A client that moved less than its
//! rate allows in two looks in a row, and is what the relay waits for, has stalled; so a byte a
//! minute is no progress, and a client that is only waited for at the moment of one look is safe.

use std::time::Duration;

use crate::relay::{Flow, Side};
use crate::time::Nanos;

/// What counts as moving.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The span in which the client must move something; zero: never mind.
    pub span: Duration,
    /// How much a client must move, in bytes a second.
    pub bytes_per_second_min: u32,
    /// How long the origin may pause; zero: for ever.
    pub idle: Duration,
    /// Which side of the relay is the client.
    pub client: Side,
}

/// What stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// The client does not send, or does not read.
    Client,
    /// Nothing came from the origin, or it reads nothing.
    Upstream,
}

/// What the looks so far saw. Each rule has its own clock: one that looks often must not make the
/// other impatient.
#[derive(Debug)]
pub struct Pace {
    rules: Rules,
    /// The client's rule: when it was last applied, and how far the body was.
    looked: Nanos,
    looked_bytes: u64,
    strikes: u32,
    /// The origin's rule: when the body last moved or waited for the client, and how far it was.
    moved: Nanos,
    moved_bytes: u64,
}

/// Looks in one span.
const LOOKS_PER_SPAN: u32 = 2;

impl Pace {
    /// Begins to watch.
    pub fn new(rules: Rules, now: Nanos) -> Pace {
        Pace { rules, looked: now, looked_bytes: 0, strikes: 0, moved: now, moved_bytes: 0 }
    }

    /// When to look next.
    pub fn due(&self) -> Nanos {
        self.look_due().min(self.idle_due())
    }

    /// Looks. `unread` bytes were written, but the kernel still holds them for the client: they
    /// have not moved. An error is what stands still for too long.
    pub fn look(&mut self, flow: &Flow, unread: u64, now: Nanos) -> Result<(), Stall> {
        let bytes = flow.bytes.get().saturating_sub(unread);
        let waits_for_client = flow.waits_for.get() == Some(self.rules.client);
        if now >= self.look_due() {
            let more = bytes.saturating_sub(self.looked_bytes);
            let passed_ms = now.since(self.looked).as_millis() as u64;
            let enough = u64::from(self.rules.bytes_per_second_min) * passed_ms / 1000;
            (self.looked, self.looked_bytes) = (now, bytes.max(self.looked_bytes));
            self.strikes = if waits_for_client && more <= enough { self.strikes + 1 } else { 0 };
            if self.strikes >= LOOKS_PER_SPAN {
                return Err(Stall::Client);
            }
        }
        // While the client is waited for, its own rule holds; the origin's pause begins afterwards.
        if bytes > self.moved_bytes || waits_for_client {
            (self.moved, self.moved_bytes) = (now, bytes.max(self.moved_bytes));
        } else if now >= self.idle_due() {
            return Err(Stall::Upstream);
        }
        Ok(())
    }

    fn look_due(&self) -> Nanos {
        self.looked.after(self.rules.span / LOOKS_PER_SPAN)
    }

    fn idle_due(&self) -> Nanos {
        self.moved.after(self.rules.idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        span: Duration::from_secs(30),
        bytes_per_second_min: 240,
        idle: Duration::from_secs(300),
        client: Side::Sink,
    };

    /// Looks every time it is due, as the session does, until the end or an error.
    fn watch(rules: Rules, end_s: u64, each: impl Fn(u64, &Flow)) -> Result<(), (Stall, u64)> {
        let flow = Flow::default();
        let mut pace = Pace::new(rules, Nanos(0));
        loop {
            let now = pace.due();
            let seconds = now.0 / 1_000_000_000;
            if seconds > end_s {
                return Ok(());
            }
            each(seconds, &flow);
            pace.look(&flow, 0, now).map_err(|stall| (stall, seconds))?;
        }
    }

    #[test]
    fn a_reader_that_takes_nothing_has_stalled_within_the_span() {
        let result = watch(RULES, 600, |_, flow| flow.waits_for.set(Some(Side::Sink)));
        assert_eq!(result, Err((Stall::Client, 30)));
    }

    #[test]
    fn a_byte_now_and_then_is_no_progress() {
        let result = watch(RULES, 600, |seconds, flow| {
            flow.waits_for.set(Some(Side::Sink));
            flow.bytes.set(seconds);
        });
        assert_eq!(result, Err((Stall::Client, 30)));
    }

    #[test]
    fn a_slow_but_honest_reader_is_left_alone() {
        let result = watch(RULES, 3600, |seconds, flow| {
            flow.waits_for.set(Some(Side::Sink));
            flow.bytes.set(seconds * 300);
        });
        assert_eq!(result, Ok(()));
    }

    /// The kernel takes a megabyte at once and says nothing more for a minute; but the client reads.
    #[test]
    fn what_the_kernel_holds_has_not_moved_yet() {
        let flow = Flow::default();
        flow.bytes.set(1_000_000);
        flow.waits_for.set(Some(Side::Sink));
        let mut honest = Pace::new(RULES, Nanos(0));
        let mut stalled = Pace::new(RULES, Nanos(0));
        for look in 1..=4 {
            let now = honest.due();
            assert_eq!(honest.look(&flow, 1_000_000 - look * 10_000, now), Ok(()));
            let expected = if look < 2 { Ok(()) } else { Err(Stall::Client) };
            if look <= 2 {
                assert_eq!(stalled.look(&flow, 1_000_000, now), expected);
            }
        }
    }

    #[test]
    fn an_origin_may_pause_longer_than_a_client() {
        let quiet = |_, flow: &Flow| flow.waits_for.set(Some(Side::Source));
        assert_eq!(watch(RULES, 299, quiet), Ok(()));
        assert_eq!(watch(RULES, 600, quiet), Err((Stall::Upstream, 300)));
    }

    /// The origin's rule looks every 400 ms; a slow upload is within its own rule all the same.
    #[test]
    fn an_impatient_rule_does_not_hurry_the_other() {
        let rules = Rules { idle: Duration::from_millis(400), client: Side::Source, ..RULES };
        let result = watch(rules, 10, |_, flow| flow.waits_for.set(Some(Side::Source)));
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn what_is_switched_off_never_stalls() {
        let off = Rules { span: Duration::ZERO, idle: Duration::ZERO, ..RULES };
        assert_eq!(Pace::new(off, Nanos(0)).due(), Nanos::NEVER);
    }
}
