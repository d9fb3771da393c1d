//! Whether requests queue for too long, and newcomers are better refused. CoDel's idea (RFC 8289):
//! a queue that is long for a moment does its work, one that is never short does harm. Pure; each
//! shard decides for itself, with times that it has read anyway.
//!
//! ```text
//! every wait above the target for an interval ---> overloaded ---> none above it for an interval
//!                                                  meanwhile, newcomers are refused while waits
//!                                                  are above the target
//! ```
//!
//! Two queues are looked at. In the loop of a shard, a request waits from the moment in which its
//! connection is seen to be readable until its head is read: [`LoopQueue`], asked by `admit`. At a
//! cluster, it waits for a place: [`Codel`] alone, asked by `exchange`.

use std::time::Duration;

use crate::time::Nanos;

/// What is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// A wait may be so long.
    pub delay: Duration,
    /// So long every wait has to be longer, until it is too much.
    pub interval: Duration,
}

/// One queue, as its waits tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Codel {
    /// Since when every wait was above the target.
    above_since: Option<Nanos>,
    /// Since when none was.
    below_since: Nanos,
    /// The last wait that it was told of.
    last: Nanos,
    is_overloaded: bool,
}

impl Codel {
    /// Somebody has waited for so long. `true`: it is overloaded since now.
    pub fn observe(&mut self, waited: Duration, target: Target, now: Nanos) -> bool {
        let before = std::mem::replace(&mut self.last, now);
        if waited <= target.delay {
            if self.above_since.take().is_some() {
                self.below_since = now;
            }
            // Or nobody came for an interval: whatever was, is over.
            if now.since(self.below_since.min(before)) >= target.interval {
                self.is_overloaded = false;
            }
            return false;
        }
        let since = *self.above_since.get_or_insert(now);
        let was_overloaded = self.is_overloaded;
        self.is_overloaded |= now.since(since) >= target.interval;
        self.is_overloaded && !was_overloaded
    }

    /// Whether newcomers that have waited for so long, or will, are refused.
    pub fn refuses(&self, waited: Duration, target: Target) -> bool {
        self.is_overloaded && waited > target.delay
    }

    /// Whether it is overloaded, and the last wait was too long.
    pub fn is_full(&self) -> bool {
        self.is_overloaded && self.above_since.is_some()
    }
}

/// The queue that a shard's loop is. What became readable together is read one after the other, so
/// the first of a batch has waited for nothing: the longest wait of each batch counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoopQueue {
    codel: Codel,
    /// When the batch that is being read became readable.
    batch: Nanos,
    longest: Duration,
    /// When the last of it was read.
    read: Nanos,
}

/// What becomes of a request that was waiting in the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// It is better refused.
    pub refuse: bool,
    /// The shard is overloaded since now.
    pub begins: bool,
}

impl LoopQueue {
    /// A request was read after having waited for so long; `batch`: when its connection was seen
    /// to be readable.
    pub fn arrived(
        &mut self,
        batch: Nanos,
        waited: Duration,
        target: Target,
        now: Nanos,
    ) -> Arrived {
        if now.since(self.read) >= target.interval {
            // Nothing to do for an interval, or a stall: neither is a queue that stands.
            *self = LoopQueue::default();
        }
        let mut begins = false;
        if batch != self.batch {
            begins = self.codel.observe(self.longest, target, self.read);
            self.batch = batch;
            self.longest = Duration::ZERO;
        }
        self.longest = self.longest.max(waited);
        self.read = now;
        Arrived { refuse: self.codel.refuses(waited, target), begins }
    }

    /// The same for a request that came with the one before, so that its wait tells nothing.
    pub fn refuses_another(&self) -> bool {
        self.codel.is_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TARGET: Target =
        Target { delay: Duration::from_millis(20), interval: Duration::from_millis(200) };
    const LONG: Duration = Duration::from_millis(21);
    const SHORT: Duration = Duration::from_millis(20);

    fn ms(millis: u64) -> Nanos {
        Nanos(millis * 1_000_000)
    }

    #[test]
    fn a_standing_queue_is_too_much_after_an_interval() {
        let mut codel = Codel::default();
        for at in (1000..1200).step_by(10) {
            assert!(!codel.observe(LONG, TARGET, ms(at)));
            assert!(!codel.is_full());
        }
        assert!(codel.observe(LONG, TARGET, ms(1200)), "it begins");
        assert!(!codel.observe(LONG, TARGET, ms(1210)), "once");
        assert!(codel.is_full() && codel.refuses(LONG, TARGET) && !codel.refuses(SHORT, TARGET));
    }

    #[test]
    fn one_short_wait_says_that_the_queue_is_good() {
        let mut codel = Codel::default();
        for at in (1000..3000).step_by(10) {
            let waited = if at % 190 == 0 { SHORT } else { LONG };
            assert!(!codel.observe(waited, TARGET, ms(at)));
        }
        assert!(!codel.is_full());
    }

    /// A process that was stopped for a second has one long batch, and then short ones.
    #[test]
    fn a_single_stall_is_not_too_much() {
        let mut queue = LoopQueue::default();
        for at in (1000..1100).step_by(10) {
            assert!(!queue.arrived(ms(at), SHORT, TARGET, ms(at)).refuse);
        }
        for place in 0..50 {
            let stalled = Duration::from_millis(1000 + place);
            assert!(!queue.arrived(ms(1100), stalled, TARGET, ms(2100 + place)).refuse);
        }
        for at in (2160..3000).step_by(10) {
            assert!(!queue.arrived(ms(at), SHORT, TARGET, ms(at)).refuse);
        }
    }

    /// Each batch takes 50 ms to be read, so its last have waited for so long.
    #[test]
    fn the_longest_wait_of_each_batch_counts() {
        let mut queue = LoopQueue::default();
        let mut served = 0;
        for batch in 0..40 {
            let began = 1000 + 50 * batch;
            for place in 0..50 {
                let waited = Duration::from_millis(place);
                let arrived = queue.arrived(ms(began), waited, TARGET, ms(began + place));
                // Overloaded, the first of a batch are served still.
                assert!(!arrived.refuse || waited > TARGET.delay);
                served += u32::from(!arrived.refuse && batch >= 10);
            }
        }
        assert_eq!(served, 30 * 21);
    }

    #[test]
    fn when_nothing_came_for_an_interval_all_is_good() {
        let mut queue = LoopQueue::default();
        for at in (1000..2000).step_by(10) {
            queue.arrived(ms(at), LONG, TARGET, ms(at));
        }
        assert!(queue.arrived(ms(2000), LONG, TARGET, ms(2000)).refuse);
        assert!(!queue.arrived(ms(2500), LONG, TARGET, ms(2500)).refuse);
        assert!(!queue.arrived(ms(2510), LONG, TARGET, ms(2510)).refuse);
    }

    proptest! {
        /// Against the whole history, looked through each time.
        #[test]
        fn overloaded_after_an_interval_of_long_waits_until_one_of_short_ones(
            waits in prop::collection::vec((1u64..60, 0u64..40), 1..200)
        ) {
            let mut codel = Codel::default();
            let mut history: Vec<(u64, bool)> = Vec::new();
            let (mut at, mut is_overloaded) = (1_000, false);
            for (pause, waited) in waits {
                at += pause;
                codel.observe(Duration::from_millis(waited), TARGET, ms(at));
                let is_long = waited > 20;
                history.push((at, is_long));
                let run = history.iter().rev().take_while(|(_, long)| *long == is_long);
                let since = run.last().map_or(at, |(at, _)| *at);
                let whole = if is_long || since != history[0].0 { at - since >= 200 } else { true };
                if whole {
                    is_overloaded = is_long;
                }
                prop_assert_eq!(codel.is_full(), is_overloaded && is_long);
            }
        }
    }
}
