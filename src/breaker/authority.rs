//! The side that decides: one for each breaker, at the home of its cluster. `reconcile::home` calls
//! it with what shards report, and tells the shards what it decided. Knows no other breaker: how
//! many may be open at once is the home's affair.

use std::collections::VecDeque;
use std::time::Duration;

use super::{
    Epoch, Override, Permit, Phase, ProbeResult, Report, SETTLE_GRACE, Settings, Settlement, Sums,
    Window,
};
use crate::reconcile::ShardId;
use crate::reconcile::mutation::{self, Mutation};
use crate::rng::Rng;
use crate::time::Nanos;

/// Doublings of the open time after which it is at its maximum for every setting (5 s · 2^16 is
/// four days).
const DOUBLINGS_MAX: u32 = 16;

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// Requests flow; failures are counted.
    #[default]
    Closed,
    /// None does, until then at least.
    Open {
        /// When half-open may follow, if all permits are settled.
        until: Nanos,
    },
    /// Those with a permit do.
    HalfOpen,
    /// A growing share does.
    Recovering {
        /// Since when.
        since: Nanos,
    },
    /// By an operator.
    ForcedOpen,
    /// By an operator.
    ForcedClosed,
}

/// What was heard of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Heard {
    /// Its newest report of this epoch.
    report: Report,
    /// Its newest ask of this epoch: an odd number stands, an even one is withdrawn.
    ask: u32,
}

/// A permit that some shard has not settled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Outstanding {
    shard: ShardId,
    permit: Permit,
}

/// Decides for one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Breaker {
    settings: Settings,
    state: State,
    epoch: Epoch,
    /// When this epoch began.
    since: Nanos,
    /// How often it was reopened since it was last closed: the open time doubles with each.
    reopened: u32,
    heard: Vec<Heard>,
    window: Window,
    /// A trip that the home did not allow, and when: tried again when there is room.
    refused_at: Option<Nanos>,
    /// Shards that wait for a permit, in turn.
    asks: VecDeque<ShardId>,
    /// Permits that are not settled, of whatever epoch.
    outstanding: Vec<Outstanding>,
    serial: u64,
    /// Permits of this epoch, less those that came back unsent.
    granted: u32,
    /// Probes of this epoch that succeeded.
    succeeded: u32,
    /// The newest override.
    override_generation: u64,
    /// Opened, or kept open, by an operator: does not count against `max_ejected`.
    exempt: bool,
}

impl Breaker {
    /// Closed, for so many shards.
    pub fn new(settings: Settings, shards: u16) -> Breaker {
        Breaker {
            settings,
            state: State::Closed,
            epoch: Epoch::default(),
            since: Nanos(0),
            reopened: 0,
            heard: vec![Heard::default(); shards.into()],
            window: Window::default(),
            refused_at: None,
            asks: VecDeque::new(),
            outstanding: Vec::new(),
            serial: 0,
            granted: 0,
            succeeded: 0,
            override_generation: 0,
            exempt: false,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// How many transitions it has made.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// When this epoch began: what the age of a view is counted from.
    pub fn since(&self) -> Nanos {
        self.since
    }

    /// What the shards are to know of it.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Closed => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen => Phase::HalfOpen,
            State::Recovering { since } => Phase::Recovering(since),
            State::ForcedOpen => Phase::ForcedOpen,
            State::ForcedClosed => Phase::ForcedClosed,
        }
    }

    /// Whether it takes one of the places that `max_ejected` leaves.
    pub fn is_ejected(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::HalfOpen) && !self.exempt
    }

    /// When the home last refused to let it trip, if nothing has changed since.
    pub fn refused_at(&self) -> Option<Nanos> {
        self.refused_at
    }

    /// Permits that no shard has settled yet.
    pub fn permits_outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// The newest override's generation.
    pub fn override_generation(&self) -> u64 {
        self.override_generation
    }

    /// New settings: they hold from the next decision on. What runs, runs on.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Files what a shard has seen. `true`: this should trip; call [`Breaker::trip`], or
    /// [`Breaker::refuse_trip`] if it must not.
    pub fn report(&mut self, from: ShardId, report: &Report, now: Nanos) -> bool {
        if report.epoch != self.epoch && !mutation::is_on(Mutation::NoEpochCheck) {
            return false; // It tells of a state that we have left.
        }
        let heard = &mut self.heard[usize::from(from.0)].report;
        if (report.requests, report.refused) < (heard.requests, heard.refused) {
            return false; // Overtaken by a newer one.
        }
        let news = Sums {
            requests: report.requests - heard.requests,
            failures: report.failures.saturating_sub(heard.failures),
            slow: report.slow.saturating_sub(heard.slow),
        };
        *heard = *report;
        if self.refused_at.is_some_and(|at| report.succeeded_at > at) {
            self.refused_at = None;
        }
        if !matches!(self.state, State::Closed | State::Recovering { .. }) {
            return false;
        }
        self.window.add(news, now, self.settings.window);
        self.should_trip(now)
    }

    /// Whether a run, the young tails together, or a share says so.
    fn should_trip(&mut self, now: Nanos) -> bool {
        let settings = self.settings;
        let threshold = settings.failures_in_a_row;
        let succeeded_at =
            self.heard.iter().map(|heard| heard.report.succeeded_at).max().unwrap_or_default();
        let mut together = 0u32;
        for Heard { report, .. } in &self.heard {
            if report.tail >= threshold {
                return true;
            }
            // Only what no shard has disproved since, and no old story.
            let young = now.since(report.tail_at) <= settings.window;
            if report.tail > 0 && report.tail_since > succeeded_at && young {
                together += report.tail;
            }
        }
        if together >= threshold {
            return true;
        }
        let sums = self.window.sums(now, settings.window);
        let reaches = |count: u64, percent: u32| {
            count * 100 >= sums.requests * u64::from(percent) && count > 0
        };
        sums.requests >= u64::from(settings.requests_min)
            && (reaches(sums.failures, settings.failures_percent)
                || settings.latency_max.is_some() && reaches(sums.slow, settings.slow_percent))
    }

    /// Opens. From Recovering, it stays open for longer than the last time.
    pub fn trip(&mut self, now: Nanos, rng: &mut Rng) {
        match self.state {
            State::Closed => self.reopened = 0,
            State::Recovering { .. } => self.reopened += 1,
            _ => return,
        }
        self.exempt = false;
        self.open(now, rng);
    }

    /// It should trip, but too many others are open: it stays as it is, and is tried again.
    pub fn refuse_trip(&mut self, now: Nanos) {
        self.refused_at.get_or_insert(now);
    }

    /// The end of the run that `from` waits for an answer to, if it does.
    pub fn unanswered_run(&self, from: ShardId) -> Option<u32> {
        let report = &self.heard[usize::from(from.0)].report;
        (report.epoch == self.epoch && report.has_stopped()).then_some(report.run)
    }

    /// What time alone changes. `true`: there is a new epoch.
    pub fn tick(&mut self, now: Nanos, rng: &mut Rng) -> bool {
        if now < self.due() {
            return false;
        }
        match self.state {
            State::Open { .. } => self.enter(State::HalfOpen, now),
            // Silence: perhaps the probe is still out there, perhaps nobody is at fault.
            State::HalfOpen => self.open(now, rng),
            State::Recovering { .. } => {
                self.reopened = 0;
                self.enter(State::Closed, now);
            }
            _ => return false,
        }
        true
    }

    /// When [`Breaker::tick`] will have something to do.
    pub fn due(&self) -> Nanos {
        match self.state {
            // The clock alone settles no permit: a shard may stall between reading the clock and
            // writing its probe.
            State::Open { until } if self.outstanding.is_empty() => until,
            State::HalfOpen => self
                .outstanding
                .iter()
                .map(|out| out.permit.end + SETTLE_GRACE)
                .min()
                .unwrap_or(Nanos::NEVER),
            State::Recovering { since } => since + self.settings.ramp,
            _ => Nanos::NEVER,
        }
    }

    /// A shard asks for a permit (an odd number), or withdraws that (an even one).
    pub fn ask(&mut self, from: ShardId, epoch: Epoch, number: u32) {
        let heard = &mut self.heard[usize::from(from.0)];
        if epoch != self.epoch || number <= heard.ask {
            return;
        }
        heard.ask = number;
        if number.is_multiple_of(2) {
            self.asks.retain(|shard| *shard != from);
        } else if !self.asks.contains(&from) {
            self.asks.push_back(from);
        }
    }

    /// The next permit, if one may be granted now. Call it after whatever may have freed one,
    /// until it says `None`.
    pub fn grant(&mut self, now: Nanos) -> Option<(ShardId, Permit)> {
        if self.state != State::HalfOpen || self.granted >= self.settings.probes {
            return None;
        }
        let holds = |shard: &ShardId| self.outstanding.iter().any(|out| out.shard == *shard);
        let place = self.asks.iter().position(|shard| !holds(shard))?;
        let shard = self.asks.remove(place)?;
        self.serial += 1;
        self.granted += 1;
        let use_by = now + self.settings.permit_use_within;
        let permit = Permit {
            serial: self.serial,
            epoch: self.epoch,
            ask: self.heard[usize::from(shard.0)].ask,
            use_by,
            end: use_by + self.settings.probe_timeout,
        };
        self.outstanding.push(Outstanding { shard, permit });
        Some((shard, permit))
    }

    /// A shard confirms that a permit is out of use. `true`: there is a new epoch.
    pub fn settle(
        &mut self,
        from: ShardId,
        settlement: Settlement,
        now: Nanos,
        rng: &mut Rng,
    ) -> bool {
        let known = |out: &Outstanding| out.shard == from && out.permit.serial == settlement.serial;
        let Some(place) = self.outstanding.iter().position(known) else { return false };
        let Outstanding { permit, .. } = self.outstanding.swap_remove(place);
        if permit.epoch == self.epoch && self.state == State::HalfOpen {
            match settlement.result {
                ProbeResult::NotSent => self.granted -= 1,
                ProbeResult::Failure => {
                    self.reopened += 1;
                    self.open(now, rng);
                    return true;
                }
                ProbeResult::Success => {
                    self.succeeded += 1;
                    if self.succeeded >= self.settings.probes {
                        self.exempt = false;
                        self.enter(State::Recovering { since: now }, now);
                        return true;
                    }
                }
            }
        }
        // The last old permit may have been all that half-open waited for.
        self.tick(now, rng)
    }

    /// What an operator wants; older generations are ignored. `true`: there is a new epoch.
    pub fn override_to(&mut self, wanted: Override, generation: u64, now: Nanos) -> bool {
        if generation <= self.override_generation {
            return false;
        }
        self.override_generation = generation;
        let next = match (wanted, self.state) {
            (Override::ForceOpen, _) => State::ForcedOpen,
            (Override::ForceClosed, _) => State::ForcedClosed,
            (Override::Release, State::ForcedOpen) => {
                self.exempt = true;
                State::Open { until: now }
            }
            (Override::Release, State::ForcedClosed) => State::Closed,
            (Override::Release, _) => return false,
        };
        self.reopened = 0;
        self.enter(next, now);
        true
    }

    fn open(&mut self, now: Nanos, rng: &mut Rng) {
        let until = now + self.open_time(rng);
        self.enter(State::Open { until }, now);
    }

    /// 5 s, 10 s, 20 s and so on; from the second on up to a tenth less, so that breakers that
    /// opened together do not probe together for ever.
    fn open_time(&self, rng: &mut Rng) -> Duration {
        let doubled = self.settings.open_for.saturating_mul(1 << self.reopened.min(DOUBLINGS_MAX));
        let time = doubled.min(self.settings.open_for_max);
        if self.reopened == 0 {
            return time;
        }
        time - Duration::from_nanos(rng.below(time.as_nanos() as u64 / 10))
    }

    /// The only way into a state: a new epoch, in which nothing has been counted.
    fn enter(&mut self, state: State, now: Nanos) {
        self.state = state;
        self.epoch = self.epoch.next();
        self.since = now;
        for heard in &mut self.heard {
            *heard = Heard::default();
            heard.report.epoch = self.epoch;
        }
        self.window = Window::default();
        self.refused_at = None;
        self.asks.clear();
        self.granted = 0;
        self.succeeded = 0;
        if mutation::is_on(Mutation::GrantSentPermitAgain) {
            self.outstanding.clear();
        }
    }
}
