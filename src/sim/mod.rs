//! Tortures the machines of [`crate::reconcile`] and [`crate::breaker`]: the real code, any number
//! of shards, and a world with a clock of its own that loses, delays, repeats and reorders what
//! they say, stalls them, changes their plans, and kills what they talk to. After every step it
//! checks what must never be; then it heals, and checks what must come to be. The same seed gives
//! the same history; a failure is cut down to the shortest history found.
//!
//! `outrigger sim` runs it, and so do the tests.

mod check;

mod op;

mod rates;

mod shrink;

mod world;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod walk;

use std::fmt;

pub use op::Op;
pub use rates::RateOp;
pub use world::World;

/// What a run is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// So many shards; `None`: 1 to 5, by the seed.
    pub shards: Option<u16>,
    /// Steps of chaos before the world heals.
    pub steps: u32,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Something happened that never may.
    Safety(String),
    /// Something did not happen that had to.
    Liveness(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Safety(what) => write!(out, "safety: {what}"),
            Fault::Liveness(what) => write!(out, "liveness: {what}"),
        }
    }
}

/// A run that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Repeats it.
    pub seed: u64,
    /// What was wrong at its end.
    pub fault: Fault,
    /// The shortest history found that ends with such a fault.
    pub history: Vec<Op>,
    /// The same, if it is one of rate limits.
    pub rate_history: Vec<RateOp>,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "seed {}: {}", self.seed, self.fault)?;
        let steps = self.history.len() + self.rate_history.len();
        writeln!(out, "shortest history found, {steps} steps:")?;
        let mut all = self.rate_history.iter().enumerate();
        all.try_for_each(|(at, op)| writeln!(out, "{at:5}  {op:?}"))?;
        self.history.iter().enumerate().try_for_each(|(at, op)| writeln!(out, "{at:5}  {op:?}"))
    }
}

/// What went on in a run, so that a quiet run does not pass for a good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Requests admitted.
    pub admitted: u64,
    /// Requests that waited for a credit or a permit.
    pub waited: u64,
    /// Probes sent.
    pub probes: u64,
    /// Of those, probes of routes.
    pub route_probes: u64,
    /// Requests that were probes of a route and of an endpoint.
    pub double_probes: u64,
    /// Transitions of breakers.
    pub transitions: u64,
    /// Trips that `max_ejected` refused.
    pub trips_refused: u64,
    /// Plans that all shards activated.
    pub plans: u64,
    /// Overrides that all shards applied.
    pub overrides: u64,
    /// Retries.
    pub retries: u64,
    /// Of those, retries that waited for a credit or for what pays for them, or gave up.
    pub retries_waited: u64,
    /// Limits that were reckoned anew by what was measured.
    pub adapted: u64,
    /// Of the shortest round-trip times, measurements that came to an end.
    pub measured: u64,
    /// Messages carried, and lost.
    pub messages: u64,
    /// Messages lost.
    pub lost: u64,
    /// Tokens of rate limits taken.
    pub tokens: u64,
    /// Of those, tokens that requests waited for.
    pub tokens_waited: u64,
    /// Requests that a rate limit refused.
    pub tokens_refused: u64,
    /// Requests that got no answer about a token in time.
    pub tokens_unanswered: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Tally) {
        self.admitted += other.admitted;
        self.waited += other.waited;
        self.probes += other.probes;
        self.route_probes += other.route_probes;
        self.double_probes += other.double_probes;
        self.transitions += other.transitions;
        self.trips_refused += other.trips_refused;
        self.plans += other.plans;
        self.overrides += other.overrides;
        self.retries += other.retries;
        self.retries_waited += other.retries_waited;
        self.adapted += other.adapted;
        self.measured += other.measured;
        self.messages += other.messages;
        self.lost += other.lost;
        self.tokens += other.tokens;
        self.tokens_waited += other.tokens_waited;
        self.tokens_refused += other.tokens_refused;
        self.tokens_unanswered += other.tokens_unanswered;
    }
}

/// Runs one seed: a world of clusters, and one of rate limits. The two have nothing to do with each
/// other, in the proxy either, so each has a history of its own.
///
/// # Errors
/// The failure, cut down.
pub fn run(seed: u64, settings: Settings) -> Result<Tally, Box<Failure>> {
    let history = Op::history(seed, settings.steps);
    let mut tally = replay(seed, settings, &history).map_err(|(fault, at)| {
        let replay = |shorter: &[Op]| replay(seed, settings, shorter);
        let (fault, history) = shrink::shrink(fault, &history[..at], replay);
        Box::new(Failure { seed, fault, history, rate_history: Vec::new() })
    })?;
    let history = RateOp::history(seed, settings.steps);
    let more = rates::replay(seed, settings, &history).map_err(|(fault, at)| {
        let replay = |shorter: &[RateOp]| rates::replay(seed, settings, shorter);
        let (fault, rate_history) = shrink::shrink(fault, &history[..at], replay);
        Box::new(Failure { seed, fault, history: Vec::new(), rate_history })
    })?;
    tally.add(&more);
    Ok(tally)
}

/// Runs a history; a fault comes with how many steps it took.
fn replay(seed: u64, settings: Settings, history: &[Op]) -> Result<Tally, (Fault, usize)> {
    let mut world = World::new(seed, settings.shards);
    for (at, op) in history.iter().enumerate() {
        world.step(*op).map_err(|fault| (fault, at + 1))?;
    }
    world.heal().map_err(|fault| (fault, history.len()))?;
    Ok(world.tally())
}
