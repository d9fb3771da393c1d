//! Admission control: a cluster that fails gets fewer requests, the fewer the more of them fail, so
//! that it can come back. Envoy's filter of that name, decided on each shard from the totals of all.
//!
//! ```text
//! p = ((requests - successes / sr_threshold) / (requests + 1)) ^ (1 / aggression)
//! ```
//!
//! That is the chance to be refused, within the last `sampling_window`; at most
//! `max_rejection_probability`, and none below `rps_threshold`. What was refused is no request here,
//! so that the chance follows what the cluster does with the rest.
//!
//! Each shard counts for itself and reads the others' counts some hundred times in a window: plain
//! loads of counters with one writer each. So all go by the same sums, which are equally old.

use std::sync::OnceLock;
use std::time::Duration;

use crate::metrics::{Counter, Gauge};
use crate::time::Nanos;

/// The window slides by a part of it.
const PARTS: usize = 10;

/// How often in a window the others' counts are read.
const LOOKS: u32 = 100;

/// A rate is that of a second, at least: five requests in the first millisecond are not 5,000 per
/// second.
const RATE_SPAN_MIN: Duration = Duration::from_secs(1);

/// When a cluster gets fewer requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// What is looked at: the last so long. Default 30 s, as all of these Envoy's.
    pub window: Duration,
    /// The share of successes, 0 to 1, above which nothing is refused. Default 0.95.
    pub successes_min: f64,
    /// From 1: the more, the more is refused for the same share. Default 1.
    pub aggression: f64,
    /// Requests per second, of the process, below which nothing is refused. Default 0.
    pub rate_min: f64,
    /// The share of requests, 0 to 1, that is refused at most. Default 0.8.
    pub rejections_max: f64,
}

/// What one shard has seen of a cluster. It alone writes; no two share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Totals {
    /// Requests that ended in a way that says something about the cluster.
    pub requests: Counter,
    /// Those among them that ended well.
    pub successes: Counter,
    /// Requests that were refused.
    pub rejections: Counter,
    /// The chance to be refused, in millionths, when it was last reckoned.
    pub chance_millionths: Gauge,
}

/// What all shards have seen of a cluster. Lives as long as the cluster's number.
#[derive(Debug, Default)]
pub struct Record(OnceLock<Box<[Totals]>>);

impl Record {
    /// Of each shard. The first to ask says how many there are.
    pub fn of(&self, shards: usize) -> &[Totals] {
        self.0.get_or_init(|| (0..shards).map(|_| Totals::default()).collect())
    }

    /// The same; empty before any shard has asked.
    pub fn known(&self) -> &[Totals] {
        self.0.get().map_or(&[], |totals| totals)
    }
}

/// The sums of all shards at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sums {
    at: Nanos,
    requests: u64,
    successes: u64,
}

impl Sums {
    fn of(totals: &[Totals], at: Nanos) -> Sums {
        let sum = |count: fn(&Totals) -> &Counter| totals.iter().map(|it| count(it).get()).sum();
        Sums { at, requests: sum(|it| &it.requests), successes: sum(|it| &it.successes) }
    }
}

/// One shard's look at the last window.
#[derive(Debug, Clone)]
pub struct Window {
    /// Where parts of it began; a ring.
    marks: [Sums; PARTS],
    /// The place of the newest, and when its part is over.
    newest: usize,
    part_ends: Nanos,
    look_due: Nanos,
    /// To be refused: of 2^32.
    chance: u64,
}

impl Window {
    /// Begins with what is there: that was before.
    pub fn new(totals: &[Totals], now: Nanos) -> Window {
        let marks = [Sums::of(totals, now); PARTS];
        Window { marks, newest: 0, part_ends: Nanos(0), look_due: Nanos(0), chance: 0 }
    }

    /// Whether a request is refused; `dice`: 32 uniform bits. `own`: the place of this shard.
    #[inline]
    pub fn rejects(
        &mut self,
        settings: &Settings,
        totals: &[Totals],
        own: usize,
        dice: u32,
        now: Nanos,
    ) -> bool {
        if now >= self.look_due {
            self.look(settings, totals, own, now);
        }
        let rejects = u64::from(dice) < self.chance;
        totals[own].rejections.add(rejects.into());
        rejects
    }

    #[cold]
    fn look(&mut self, settings: &Settings, totals: &[Totals], own: usize, now: Nanos) {
        self.look_due = now + settings.window / LOOKS;
        let sums = Sums::of(totals, now);
        let part = settings.window / PARTS as u32;
        if now >= self.part_ends {
            // Parts in which nobody asked are empty.
            let parts = now.since(self.part_ends).as_nanos() / part.as_nanos().max(1) + 1;
            for _ in 0..parts.min(PARTS as u128) {
                self.newest = (self.newest + 1) % PARTS;
                self.marks[self.newest] = sums;
            }
            self.part_ends = now + part;
        }
        let chance = chance(settings, &self.marks[(self.newest + 1) % PARTS], &sums);
        self.chance = (chance * (1_u64 << 32) as f64) as u64;
        totals[own].chance_millionths.set((chance * 1e6) as i64);
    }
}

/// The chance to be refused, by what has happened from one to the other.
fn chance(settings: &Settings, from: &Sums, to: &Sums) -> f64 {
    // Sums of counters that others write meanwhile: a success may be seen before its request.
    let requests = to.requests.saturating_sub(from.requests);
    let successes = to.successes.saturating_sub(from.successes).min(requests);
    let (requests, successes) = (requests as f64, successes as f64);
    let span = to.at.since(from.at).max(RATE_SPAN_MIN).as_secs_f64();
    if requests / span < settings.rate_min {
        return 0.0;
    }
    let excess = (requests - successes / settings.successes_min) / (requests + 1.0);
    excess.max(0.0).powf(1.0 / settings.aggression).min(settings.rejections_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SETTINGS: Settings = Settings {
        window: Duration::from_secs(30),
        successes_min: 0.95,
        aggression: 1.0,
        rate_min: 0.0,
        rejections_max: 0.8,
    };

    fn totals(shards: usize) -> Vec<Totals> {
        (0..shards).map(|_| Totals::default()).collect()
    }

    fn second(second: u64) -> Nanos {
        Nanos(second * 1_000_000_000)
    }

    /// The chance as it is told, in millionths.
    fn told(window: &mut Window, settings: &Settings, totals: &[Totals], now: Nanos) -> i64 {
        window.rejects(settings, totals, 0, u32::MAX, now);
        totals[0].chance_millionths.get()
    }

    #[test]
    fn as_many_are_refused_as_the_formula_says() {
        let ends = |successes, aggression| {
            let to = Sums { at: second(30), requests: 1000, successes };
            chance(&Settings { aggression, ..SETTINGS }, &Sums::default(), &to)
        };
        assert_eq!(ends(1000, 1.0), 0.0);
        assert_eq!(ends(950, 1.0), 0.0);
        assert!((ends(475, 1.0) - 500.0 / 1001.0).abs() < 1e-9);
        assert!((ends(475, 2.0) - (500.0_f64 / 1001.0).sqrt()).abs() < 1e-9);
        assert_eq!(ends(0, 1.0), 0.8, "some get through, to see whether it is over");
    }

    #[test]
    fn a_low_rate_is_let_through() {
        let settings = Settings { rate_min: 10.0, ..SETTINGS };
        let failed = |requests| Sums { at: second(30), requests, successes: 0 };
        assert_eq!(chance(&settings, &Sums::default(), &failed(299)), 0.0);
        assert!(chance(&settings, &Sums::default(), &failed(300)) > 0.7);
        // Five in the first moment are no rate of thousands.
        let at_once = Sums { at: Nanos(1_000_000), requests: 5, successes: 0 };
        assert_eq!(chance(&settings, &Sums::default(), &at_once), 0.0);
    }

    /// What all shards have seen counts on each.
    #[test]
    fn shards_go_by_the_sums_of_all() {
        let totals = totals(4);
        let mut window = Window::new(&totals, second(1));
        assert_eq!(told(&mut window, &SETTINGS, &totals, second(1)), 0);
        for other in &totals[1..] {
            other.requests.add(100);
        }
        assert_eq!(told(&mut window, &SETTINGS, &totals, second(2)), 800_000);
        assert_eq!(totals[1].chance_millionths.get(), 0, "each tells its own");
    }

    #[test]
    fn what_was_a_window_ago_is_forgotten() {
        let totals = totals(2);
        let mut window = Window::new(&totals, second(1));
        for at in 1..=40 {
            totals[1].requests.add(10);
            assert!(at < 2 || told(&mut window, &SETTINGS, &totals, second(at)) > 0);
        }
        for at in 41..=67 {
            totals[1].requests.add(1_000);
            totals[1].successes.add(1_000);
            told(&mut window, &SETTINGS, &totals, second(at));
        }
        assert_eq!(told(&mut window, &SETTINGS, &totals, second(71)), 0);
        // Nobody asked for long; then failures begin.
        assert_eq!(told(&mut window, &SETTINGS, &totals, second(1_000)), 0);
        totals[0].requests.add(1_000);
        assert_eq!(told(&mut window, &SETTINGS, &totals, second(1_001)), 800_000);
    }

    proptest! {
        #[test]
        fn the_chance_is_one_and_falls_with_each_success(
            requests in 0u64..10_000, first in 0u64..10_000, more in 0u64..100, aggression in 1u32..10
        ) {
            let settings = Settings { aggression: aggression.into(), ..SETTINGS };
            let of = |successes| {
                let to = Sums { at: second(30), requests, successes };
                chance(&settings, &Sums::default(), &to)
            };
            prop_assert!((0.0..=0.8).contains(&of(first)));
            prop_assert!(of(first) >= of(first + more));
        }

        /// Of many requests, about the share that the chance says is refused.
        #[test]
        fn requests_are_refused_by_chance(failed in 0u64..100) {
            let totals = totals(1);
            let mut window = Window::new(&totals, second(1));
            window.rejects(&SETTINGS, &totals, 0, 0, second(1));
            totals[0].requests.add(100);
            totals[0].successes.add(100 - failed);
            let mut rng = crate::rng::Rng::new(failed);
            let refused = (0..4_000).filter(|_| {
                window.rejects(&SETTINGS, &totals, 0, rng.bits() as u32, second(2))
            });
            let share = refused.count() as f64 / 4_000.0;
            let chance = totals[0].chance_millionths.get() as f64 / 1e6;
            prop_assert!((share - chance).abs() < 0.05, "{share} {chance}");
            prop_assert_eq!(totals[0].rejections.get(), (share * 4_000.0).round() as u64);
        }
    }
}
