//! When each request is due: phases of a rate -> due times. Pure.
//!
//! The expected number of requests up to a time is a function that only grows; a request is due
//! where it reaches that request's number. Constant arrivals take whole numbers, Poisson arrivals
//! take sums of exponential gaps. Nothing is queued: a request that waits for a connection is one
//! that was not taken yet, so a backlog of millions costs no memory.
//!
//! ```text
//! rate     ___        expected        ,-'
//!        /|   |           4 -------- /
//!      /  |   |           3 ------ /     due: where the curve meets
//!     | warm-up, hold     2 ---- /       1, 2, 3 ... (or random gaps)
//! ```

use std::time::Duration;

use crate::random::Random;

/// Rounding must not decide whether a whole place at the end of a phase belongs to the next one.
const PLACE_TOLERANCE: f64 = 1e-6;

/// How requests are spread within a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arrivals {
    /// Evenly.
    #[default]
    Constant,
    /// As many independent users would: exponential gaps.
    Poisson,
}

/// A stretch of time whose rate is constant or changes evenly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    /// Requests a second where it begins.
    pub from: f64,
    /// Requests a second where it ends.
    pub to: f64,
    /// How long; `None` (the last phase only) is for ever.
    pub duration: Option<Duration>,
}

impl Phase {
    /// The same rate throughout.
    pub fn hold(rate: f64, duration: Option<Duration>) -> Self {
        Self { from: rate, to: rate, duration }
    }
}

/// Which part of all requests one worker sends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Of the rate, 0 to 1: what goes to this worker's address.
    pub share: f64,
    /// This worker's number among those that send to the address.
    pub index: u64,
    /// How many of them there are.
    pub of: u64,
    /// At most so many after the warm-up, over all of them.
    pub count: Option<u64>,
}

/// One worker's due times, in nanoseconds from the start, in order.
#[derive(Debug, Clone)]
pub struct Schedule {
    pieces: Vec<Piece>,
    arrivals: Arrivals,
    part: Part,
    random: Random,
    /// Of the requests to the address: which is next, as its place on the curve.
    place: f64,
    /// Requests taken.
    taken: u64,
    /// What is due before does not count: nanoseconds from the start.
    warm: u64,
    /// How many more may be taken that are due later.
    left: u64,
    piece: usize,
    next: Option<u64>,
}

/// A phase with its share taken, as a piece of the curve.
#[derive(Debug, Clone, Copy)]
struct Piece {
    begins_s: f64,
    rate: f64,
    slope: f64,
    expected_before: f64,
    expected_after: f64,
}

impl Schedule {
    /// Due times of `part` of the `phases`; `seed` is for Poisson arrivals. What is due within `warmup`
    /// comes on top of the part's count.
    pub fn new(
        phases: &[Phase],
        arrivals: Arrivals,
        part: Part,
        seed: u64,
        warmup: Duration,
    ) -> Self {
        let (mut begins_s, mut expected) = (0.0, 0.0);
        let mut pieces = Vec::with_capacity(phases.len());
        for phase in phases {
            let seconds = phase.duration.map_or(f64::INFINITY, |duration| duration.as_secs_f64());
            let rate = phase.from * part.share;
            let slope = if seconds.is_finite() && seconds > 0.0 {
                (phase.to - phase.from) * part.share / seconds
            } else {
                0.0
            };
            let requests = match phase.duration {
                Some(_) => (phase.from + phase.to) / 2.0 * part.share * seconds,
                None => f64::INFINITY,
            };
            pieces.push(Piece {
                begins_s,
                rate,
                slope,
                expected_before: expected,
                expected_after: expected + requests,
            });
            begins_s += seconds;
            expected += requests;
        }
        // The first place after the warm-up, which is the first phase, goes to this one.
        let first = match (arrivals, pieces.first()) {
            (Arrivals::Constant, Some(piece)) if !warmup.is_zero() => {
                (piece.expected_after - PLACE_TOLERANCE).ceil() as u64 % part.of
            }
            _ => 0,
        };
        let turn = (part.index + part.of - first) % part.of;
        let mut schedule = Self {
            pieces,
            arrivals,
            left: part.count.map_or(u64::MAX, |count| quota(count, turn, part.of)),
            warm: warmup.as_nanos() as u64,
            part,
            random: Random::new(seed),
            place: 0.0,
            taken: 0,
            piece: 0,
            next: None,
        };
        schedule.place = match arrivals {
            Arrivals::Constant => part.index as f64,
            Arrivals::Poisson => schedule.gap(),
        };
        schedule.next = schedule.due();
        schedule
    }

    /// When the next request is due; `None` when there are no more.
    pub fn peek(&self) -> Option<u64> {
        self.next
    }

    /// Takes the next request, if it is due by `now`.
    pub fn take(&mut self, now: u64) -> Option<u64> {
        let due = self.next.filter(|&due| due <= now)?;
        self.taken += 1;
        if due >= self.warm {
            self.left -= 1;
        }
        self.place = match self.arrivals {
            // Counted, not summed up: no error grows.
            Arrivals::Constant => (self.part.index + self.taken * self.part.of) as f64,
            Arrivals::Poisson => self.place + self.gap(),
        };
        self.next = self.due();
        Some(due)
    }

    /// How many are due by `now` and not taken; takes them.
    pub fn drain(&mut self, now: u64) -> u64 {
        let mut overdue = 0;
        while self.take(now).is_some() {
            overdue += 1;
        }
        overdue
    }

    /// One of `of` equal streams has gaps `of` times as long.
    fn gap(&mut self) -> f64 {
        self.random.exponential() * self.part.of as f64
    }

    fn due(&mut self) -> Option<u64> {
        // A whole place at the very end belongs to the time after: a second at 10/s has requests
        // 0 to 9.
        while self.place >= self.pieces.get(self.piece)?.expected_after - PLACE_TOLERANCE {
            self.piece += 1;
        }
        let piece = self.pieces[self.piece];
        let within = (self.place - piece.expected_before).max(0.0);
        // The stable form of the quadratic's root; with no slope it is within / rate.
        let root = (piece.rate * piece.rate + 2.0 * piece.slope * within).max(0.0).sqrt();
        let seconds = if within == 0.0 { 0.0 } else { 2.0 * within / (piece.rate + root) };
        let due = ((piece.begins_s + seconds) * 1e9).round() as u64;
        (due < self.warm || self.left > 0).then_some(due)
    }
}

/// How many of the numbers `index`, `index + of` and so on are below `count`.
pub fn quota(count: u64, index: u64, of: u64) -> u64 {
    count.saturating_add(of - 1).saturating_sub(index) / of
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Part = Part { share: 1.0, index: 0, of: 1, count: None };

    fn all(mut schedule: Schedule) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take(u64::MAX)).collect()
    }

    fn seconds(n: u64) -> Option<Duration> {
        Some(Duration::from_secs(n))
    }

    #[test]
    fn constant_is_even_and_exact() {
        let phases = [Phase::hold(1_000.0, seconds(3))];
        let dues = all(Schedule::new(&phases, Arrivals::Constant, WHOLE, 0, Duration::ZERO));
        assert_eq!(dues.len(), 3_000);
        assert!(dues.iter().enumerate().all(|(k, &due)| due == k as u64 * 1_000_000));
    }

    /// Rates that divide no second still give the right number, an hour long.
    #[test]
    fn no_error_grows() {
        let phases = [Phase::hold(333.3, seconds(3_600))];
        let dues = all(Schedule::new(&phases, Arrivals::Constant, WHOLE, 0, Duration::ZERO));
        assert_eq!(dues.len(), 1_199_880);
        let last = (1_199_879.0_f64 / 333.3 * 1e9).round() as u64;
        assert!(dues[dues.len() - 1].abs_diff(last) <= 1);
    }

    /// Workers' parts interleave to exactly the whole.
    #[test]
    fn parts_make_the_whole() {
        let phases =
            [Phase::hold(700.0, seconds(2)), Phase { from: 700.0, to: 90.0, duration: seconds(3) }];
        let whole = all(Schedule::new(&phases, Arrivals::Constant, WHOLE, 0, Duration::ZERO));
        let mut parts: Vec<u64> = (0..3)
            .flat_map(|index| {
                let part = Part { index, of: 3, ..WHOLE };
                all(Schedule::new(&phases, Arrivals::Constant, part, 0, Duration::ZERO))
            })
            .collect();
        parts.sort_unstable();
        assert_eq!(parts, whole);
    }

    /// A ramp from 0 to 100/s in 10 s: request k is due at sqrt(k / 5) s.
    #[test]
    fn ramps_follow_the_curve() {
        let phases = [Phase { from: 0.0, to: 100.0, duration: seconds(10) }];
        let dues = all(Schedule::new(&phases, Arrivals::Constant, WHOLE, 0, Duration::ZERO));
        assert_eq!(dues.len(), 500);
        for (k, due) in dues.iter().enumerate() {
            let expected = (k as f64 / 5.0).sqrt() * 1e9;
            assert!((*due as f64 - expected).abs() < 10.0, "{k}: {due} {expected}");
        }
    }

    #[test]
    fn a_silent_phase_is_silent() {
        let phases = [
            Phase::hold(10.0, seconds(1)),
            Phase::hold(0.0, seconds(5)),
            Phase::hold(10.0, seconds(1)),
        ];
        let dues = all(Schedule::new(&phases, Arrivals::Constant, WHOLE, 0, Duration::ZERO));
        assert_eq!(dues.len(), 20);
        assert_eq!(dues[9], 900_000_000);
        assert_eq!(dues[10], 6_000_000_000);
    }

    #[test]
    fn counts_are_exact() {
        let phases = [Phase::hold(50.0, None)];
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            let sent: usize = (0..4)
                .map(|index| {
                    let part = Part { share: 1.0, index, of: 4, count: Some(1_001) };
                    all(Schedule::new(&phases, arrivals, part, index, Duration::ZERO)).len()
                })
                .sum();
            assert_eq!(sent, 1_001, "{arrivals:?}");
        }
    }

    /// The warm-up comes on top, whatever the workers' number and wherever their turns fall.
    #[test]
    fn a_count_is_of_what_comes_after_the_warm_up() {
        let warmup = Duration::from_millis(1_333);
        let phases = [Phase::hold(50.0, Some(warmup)), Phase::hold(50.0, None)];
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            for (of, count) in [(1, 20), (3, 20), (4, 2), (5, 1)] {
                let mut dues: Vec<u64> = (0..of)
                    .flat_map(|index| {
                        let part = Part { share: 1.0, index, of, count: Some(count) };
                        all(Schedule::new(&phases, arrivals, part, index, warmup))
                    })
                    .collect();
                dues.sort_unstable();
                let warm = dues.iter().filter(|due| **due < 1_333_000_000).count();
                assert_eq!(dues.len() - warm, count as usize, "{arrivals:?} {of}");
                if arrivals == Arrivals::Constant {
                    // Places 0 to 66 are due before; what follows has no holes.
                    let whole = (0..67 + count).map(|place| place * 20_000_000);
                    assert_eq!(dues, whole.collect::<Vec<_>>(), "{of}");
                } else {
                    assert!((40..95).contains(&warm), "{warm}");
                }
            }
        }
    }

    #[test]
    fn poisson_has_the_rate_and_the_spread() {
        let phases = [Phase::hold(1_000.0, seconds(100))];
        let part = Part { share: 0.5, index: 1, of: 2, count: None };
        let dues = all(Schedule::new(&phases, Arrivals::Poisson, part, 3, Duration::ZERO));
        // 25,000 expected, standard deviation 158.
        assert!((24_200..25_800).contains(&dues.len()), "{}", dues.len());
        let gaps: Vec<f64> = dues.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        let spread = variance.sqrt() / mean;
        assert!((0.95..1.05).contains(&spread), "exponential gaps spread by their mean: {spread}");
        let again = all(Schedule::new(&phases, Arrivals::Poisson, part, 3, Duration::ZERO));
        assert_eq!(dues, again, "the same seed repeats");
    }

    #[test]
    fn only_what_is_due_is_taken() {
        let phases = [Phase::hold(10.0, seconds(1))];
        let mut schedule = Schedule::new(&phases, Arrivals::Constant, WHOLE, 0, Duration::ZERO);
        assert_eq!(schedule.take(0), Some(0));
        assert_eq!(schedule.take(99_999_999), None);
        assert_eq!(schedule.peek(), Some(100_000_000));
        assert_eq!(schedule.drain(500_000_000), 5);
        assert_eq!(schedule.peek(), Some(600_000_000));
    }
}
