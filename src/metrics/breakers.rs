//! Where each breaker stands, for others than its home to read: the log, the metrics, the admin
//! pages. The shard that is the home of its cluster writes, and nobody else.
//!
//! A record lives as long as its breaker's number: the next plan takes it over
//! ([`crate::plan::Plan::keep_records`]), a new number begins closed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Counter;
use crate::breaker::{Epoch, Phase};

/// A [`Phase`], for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BreakerState {
    /// Requests flow.
    Closed,
    /// None does.
    Open,
    /// Those with a permit do.
    HalfOpen,
    /// A share that grows does.
    Recovering,
    /// An operator said no.
    ForcedOpen,
    /// An operator said yes, whatever happens.
    ForcedClosed,
}

impl BreakerState {
    /// Every state, in the order of its number.
    pub const ALL: [BreakerState; 6] = [
        BreakerState::Closed,
        BreakerState::Open,
        BreakerState::HalfOpen,
        BreakerState::Recovering,
        BreakerState::ForcedOpen,
        BreakerState::ForcedClosed,
    ];

    /// As the log, the metrics and the pages call it.
    pub fn name(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
            BreakerState::Recovering => "recovering",
            BreakerState::ForcedOpen => "forced-open",
            BreakerState::ForcedClosed => "forced-closed",
        }
    }

    /// By an operator.
    pub fn is_forced(self) -> bool {
        matches!(self, BreakerState::ForcedOpen | BreakerState::ForcedClosed)
    }
}

impl From<Phase> for BreakerState {
    fn from(phase: Phase) -> BreakerState {
        match phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open => BreakerState::Open,
            Phase::HalfOpen => BreakerState::HalfOpen,
            Phase::Recovering(_) => BreakerState::Recovering,
            Phase::ForcedOpen => BreakerState::ForcedOpen,
            Phase::ForcedClosed => BreakerState::ForcedClosed,
        }
    }
}

/// One breaker.
#[derive(Debug, Default)]
pub struct BreakerRecord {
    /// The epoch above the state's eight bits: one word, so that nobody reads one without the
    /// other.
    word: AtomicU64,
    trips: Counter,
}

impl BreakerRecord {
    /// A new state; gives the one before. Only the home may call this.
    pub fn publish(&self, phase: Phase, epoch: Epoch) -> BreakerState {
        let (before, _) = self.read();
        let state = BreakerState::from(phase);
        if is_trip(before, state) {
            self.trips.add(1);
        }
        self.word.store(u64::from(epoch.0) << 8 | state as u64, Ordering::Relaxed);
        before
    }

    /// Where it stands, and how many transitions led there.
    pub fn read(&self) -> (BreakerState, Epoch) {
        let word = self.word.load(Ordering::Relaxed);
        (BreakerState::ALL[(word & 0xff) as usize], Epoch((word >> 8) as u32))
    }

    /// See [`is_trip`].
    pub fn trips(&self) -> u64 {
        self.trips.get()
    }
}

/// A limit on requests that follows what is measured, as its home has decided it last.
#[derive(Debug, Default)]
pub struct ConcurrencyRecord {
    /// What may be in flight.
    pub limit: Counter,
    /// The shortest round-trip time, in nanoseconds; 0 until one was measured.
    pub min_rtt_ns: Counter,
    /// Thousandths by which it was changed last, before its headroom.
    pub gradient_milli: Counter,
    /// 1 while the shortest time is measured.
    pub measuring: Counter,
}

impl ConcurrencyRecord {
    /// It was reckoned anew. Only the home may call this.
    pub fn publish(&self, limit: u64, min_rtt_ns: u64, gradient_milli: u64, is_measuring: bool) {
        self.limit.set(limit);
        self.min_rtt_ns.set(min_rtt_ns);
        self.gradient_milli.set(gradient_milli);
        self.measuring.set(is_measuring.into());
    }
}

/// Whether requests, by their failures, have opened it: neither an operator did, nor a probe that
/// failed, which only keeps it open.
pub fn is_trip(before: BreakerState, after: BreakerState) -> bool {
    use BreakerState::{Closed, Open, Recovering};
    matches!((before, after), (Closed | Recovering, Open))
}

/// Trips of breakers that have left the plan, by the names of their clusters, so that no total
/// falls. A cluster keeps its entry for good: if it comes back, its total goes on.
#[derive(Debug, Default)]
pub struct PastTrips(BTreeMap<String, Past>);

#[derive(Debug, Default)]
struct Past {
    /// Of those that nobody can write any more.
    folded: u64,
    /// Some shard may still serve by a plan that has them.
    leaving: Vec<Arc<BreakerRecord>>,
}

impl PastTrips {
    /// A breaker of this cluster leaves.
    pub fn add(&mut self, cluster: &str, record: Arc<BreakerRecord>) {
        self.0.entry(cluster.to_owned()).or_default().leaving.push(record);
    }

    /// Of all that have left this cluster.
    pub fn of(&mut self, cluster: &str) -> u64 {
        let Some(past) = self.0.get_mut(cluster) else { return 0 };
        let mut leaving = 0;
        for record in std::mem::take(&mut past.leaving) {
            match Arc::try_unwrap(record) {
                Ok(record) => past.folded += record.trips(),
                Err(record) => {
                    leaving += record.trips();
                    past.leaving.push(record);
                }
            }
        }
        past.folded + leaving
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Nanos;

    #[test]
    fn a_record_tells_state_and_epoch_and_counts_trips() {
        let record = BreakerRecord::default();
        assert_eq!(record.read(), (BreakerState::Closed, Epoch(0)));
        let story = [
            (Phase::Open, BreakerState::Open, 1),
            (Phase::HalfOpen, BreakerState::HalfOpen, 1),
            (Phase::Open, BreakerState::Open, 1),
            (Phase::HalfOpen, BreakerState::HalfOpen, 1),
            (Phase::Recovering(Nanos(7)), BreakerState::Recovering, 1),
            (Phase::Open, BreakerState::Open, 2),
            (Phase::ForcedOpen, BreakerState::ForcedOpen, 2),
            (Phase::Open, BreakerState::Open, 2),
            (Phase::ForcedClosed, BreakerState::ForcedClosed, 2),
            (Phase::Closed, BreakerState::Closed, 2),
            (Phase::Open, BreakerState::Open, 3),
        ];
        let mut before = BreakerState::Closed;
        for (step, (phase, state, trips)) in story.into_iter().enumerate() {
            let epoch = Epoch(u32::MAX - 20 + step as u32);
            assert_eq!(record.publish(phase, epoch), before, "step {step}");
            assert_eq!((record.read(), record.trips()), ((state, epoch), trips), "step {step}");
            before = state;
        }
    }

    #[test]
    fn states_are_in_the_order_of_their_numbers() {
        for (number, state) in BreakerState::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
        }
    }

    #[test]
    fn trips_of_those_that_left_stay() {
        let record = Arc::new(BreakerRecord::default());
        let trip = |record: &BreakerRecord| {
            record.publish(Phase::Open, Epoch(1));
            record.publish(Phase::Closed, Epoch(2));
        };
        trip(&record);
        let mut past = PastTrips::default();
        past.add("app", record.clone());
        assert_eq!((past.of("app"), past.of("other")), (1, 0));
        // Its home has not heard yet that it is gone.
        trip(&record);
        assert_eq!(past.of("app"), 2);
        drop(record);
        for _ in 0..2 {
            assert_eq!(past.of("app"), 2);
        }
        assert!(past.0["app"].leaving.is_empty());
    }
}
