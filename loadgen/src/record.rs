//! What one worker has seen: latencies counted from the due time and from the sending, and counts.
//!
//! A worker writes; once a second it hands the second's histograms over and starts new ones, so the
//! hot path touches one of each. Merged by `run`. Histograms hold nanoseconds, 1 µs to 1 h, three
//! significant digits.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Smallest latency that is told apart, in nanoseconds.
const NANOS_MIN: u64 = 1_000;

/// Largest, in nanoseconds; what takes longer counts as this.
const NANOS_MAX: u64 = 3_600 * 1_000_000_000;

/// A request that leaves this long after its due time, though a connection was free or would have
/// been if the generator had kept time, is late: the generator's fault. In nanoseconds.
pub const LATE_NANOS: u64 = 1_000_000;

/// An empty histogram of latencies.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(NANOS_MIN, NANOS_MAX, 3).expect("the bounds are constants that fit")
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection could be had.
    Connect,
    /// The connection ended before the answer did.
    Reset,
    /// No whole answer in time.
    Timeout,
    /// An answer with the wrong status.
    Status,
    /// An answer of the wrong length or hash, or that is no HTTP/1.x.
    Mismatch,
    /// Due, but never sent or answered by the end of the run.
    Unfinished,
}

/// How many requests failed, by why; the fields are the kinds of [`Failure`].
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Failures {
    pub connect: u64,
    pub reset: u64,
    pub timeout: u64,
    pub status: u64,
    pub mismatch: u64,
    pub unfinished: u64,
}

impl Failures {
    /// Counts `n` more.
    pub fn add(&mut self, failure: Failure, n: u64) {
        *match failure {
            Failure::Connect => &mut self.connect,
            Failure::Reset => &mut self.reset,
            Failure::Timeout => &mut self.timeout,
            Failure::Status => &mut self.status,
            Failure::Mismatch => &mut self.mismatch,
            Failure::Unfinished => &mut self.unfinished,
        } += n;
    }

    /// All kinds, with their names.
    pub fn kinds(&self) -> [(&'static str, u64); 6] {
        [
            ("connect", self.connect),
            ("reset", self.reset),
            ("timeout", self.timeout),
            ("status", self.status),
            ("mismatch", self.mismatch),
            ("unfinished", self.unfinished),
        ]
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.kinds().iter().map(|(_, count)| count).sum()
    }

    fn merge(&mut self, other: &Self) {
        self.connect += other.connect;
        self.reset += other.reset;
        self.timeout += other.timeout;
        self.status += other.status;
        self.mismatch += other.mismatch;
        self.unfinished += other.unfinished;
    }
}

/// Counts of a worker, or of all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Requests that began to leave.
    pub sent: u64,
    /// Requests that were due and never left.
    pub unsent: u64,
    /// Whole answers, right or wrong.
    pub answered: u64,
    /// Requests without a right answer.
    pub failures: Failures,
    /// Of those, the ones without a latency: they broke off.
    pub lost: u64,
    /// Answers by status, up to 599.
    pub statuses: Vec<u64>,
    /// Body bytes received.
    pub body_bytes: u64,
    /// Sent more than [`LATE_NANOS`] after being due, for no lack of a connection.
    pub late: u64,
    /// Sent after waiting for a connection, through no fault of the generator.
    pub waited: u64,
    /// Connections opened. Not only while recording: all of them.
    pub connections: u64,
    /// Of those, ended by the target.
    pub connections_closed: u64,
    /// Tries that failed.
    pub connections_failed: u64,
    /// Answers to each target.
    pub targets: Vec<u64>,
}

impl Counts {
    /// Nothing yet.
    pub fn new(targets: usize) -> Self {
        Self {
            sent: 0,
            unsent: 0,
            answered: 0,
            failures: Failures::default(),
            lost: 0,
            statuses: vec![0; 600],
            body_bytes: 0,
            late: 0,
            waited: 0,
            connections: 0,
            connections_closed: 0,
            connections_failed: 0,
            targets: vec![0; targets],
        }
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.unsent += other.unsent;
        self.answered += other.answered;
        self.failures.merge(&other.failures);
        self.lost += other.lost;
        self.body_bytes += other.body_bytes;
        self.late += other.late;
        self.waited += other.waited;
        self.connections += other.connections;
        self.connections_closed += other.connections_closed;
        self.connections_failed += other.connections_failed;
        let add = |mine: &mut Vec<u64>, theirs: &Vec<u64>| {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        };
        add(&mut self.statuses, &other.statuses);
        add(&mut self.targets, &other.targets);
    }
}

/// One second of a run.
#[derive(Debug, Clone)]
pub struct Interval {
    /// Seconds since recording began.
    pub index: u64,
    /// From the due time.
    pub corrected: Histogram<u64>,
    /// From the sending. In a closed loop they are the same, and this stays empty.
    pub service: Histogram<u64>,
    /// Requests that failed.
    pub failed: u64,
}

impl Interval {
    /// An empty second.
    pub fn new(index: u64) -> Self {
        Self { index, corrected: histogram(), service: histogram(), failed: 0 }
    }

    /// Adds another worker's same second.
    pub fn merge(&mut self, other: &Self) {
        self.corrected.add(&other.corrected).expect("all histograms have the same bounds");
        self.service.add(&other.service).expect("all histograms have the same bounds");
        self.failed += other.failed;
    }
}

/// A worker's book.
#[derive(Debug)]
pub struct Recorder {
    /// The second under way.
    pub interval: Interval,
    /// The run so far.
    pub counts: Counts,
    /// How late requests left for no lack of a connection.
    pub lateness: Histogram<u64>,
    open_loop: bool,
}

impl Recorder {
    /// For so many targets.
    pub fn new(targets: usize, open_loop: bool) -> Self {
        Self {
            interval: Interval::new(0),
            counts: Counts::new(targets),
            lateness: histogram(),
            open_loop,
        }
    }

    /// A request began to leave. `waited`: for a connection, so its lateness is not ours.
    pub fn sent(&mut self, due: u64, now: u64, waited: bool) {
        self.counts.sent += 1;
        if !self.open_loop {
            return;
        }
        if waited {
            self.counts.waited += 1;
        } else {
            let late = now.saturating_sub(due);
            self.lateness.saturating_record(late);
            if late > LATE_NANOS {
                self.counts.late += 1;
            }
        }
    }

    /// A request took this long: its answer came, or its time was over.
    pub fn took(&mut self, due: u64, sent: u64, now: u64) {
        self.interval.corrected.saturating_record(now.saturating_sub(due));
        if self.open_loop {
            self.interval.service.saturating_record(now.saturating_sub(sent));
        }
    }

    /// A request was due and never sent: it has no service time.
    pub fn never_sent(&mut self, due: u64, now: u64) {
        self.interval.corrected.saturating_record(now.saturating_sub(due));
        self.counts.unsent += 1;
        self.failed(Failure::Unfinished, 1);
    }

    /// Requests failed.
    pub fn failed(&mut self, failure: Failure, n: u64) {
        self.counts.failures.add(failure, n);
        self.interval.failed += n;
    }

    /// Ends the second under way and begins the `next` one.
    pub fn turn(&mut self, next: u64) -> Interval {
        std::mem::replace(&mut self.interval, Interval::new(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_and_their_blame() {
        let mut recorder = Recorder::new(1, true);
        recorder.sent(0, 100, false);
        recorder.sent(0, LATE_NANOS + 1, false);
        recorder.sent(0, 5 * LATE_NANOS, true);
        recorder.took(0, 2_000_000, 5_000_000);
        assert_eq!((recorder.counts.sent, recorder.counts.late, recorder.counts.waited), (3, 1, 1));
        let interval = recorder.turn(7);
        assert!(interval.corrected.equivalent(interval.corrected.max(), 5_000_000));
        assert!(interval.service.equivalent(interval.service.max(), 3_000_000));
        assert_eq!((recorder.interval.index, recorder.interval.corrected.len()), (7, 0));
    }

    #[test]
    fn merging_loses_nothing() {
        let (mut one, mut two) = (Counts::new(2), Counts::new(2));
        one.statuses[200] = 5;
        two.statuses[200] = 6;
        two.targets[1] = 3;
        two.failures.add(Failure::Timeout, 4);
        one.merge(&two);
        assert_eq!((one.statuses[200], one.targets[1], one.failures.total()), (11, 3, 4));
        let (mut a, mut b) = (Interval::new(0), Interval::new(0));
        a.corrected.record(10_000).unwrap();
        b.corrected.record(3_600_000_000_000).unwrap();
        a.merge(&b);
        assert_eq!(a.corrected.len(), 2);
        assert!(a.corrected.equivalent(a.corrected.max(), 3_600_000_000_000));
    }
}
