//! The only read of the clock.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Nanoseconds since the process started. Never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Later than everything: a deadline that is switched off.
    pub const NEVER: Nanos = Nanos(u64::MAX);

    /// The time now: one vDSO call, about 25 ns.
    pub fn now() -> Nanos {
        Nanos(epoch().elapsed().as_nanos() as u64)
    }

    /// This much later. A zero duration means that the limit is off, and gives [`Nanos::NEVER`].
    pub fn after(self, limit: Duration) -> Nanos {
        if limit.is_zero() { Nanos::NEVER } else { self + limit }
    }

    /// From `earlier` to here; zero where that is later.
    pub fn since(self, earlier: Nanos) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// As the runtime's timers want it.
    pub fn instant(self) -> Instant {
        epoch() + Duration::from_nanos(self.0)
    }
}

impl std::ops::Add<Duration> for Nanos {
    type Output = Nanos;

    fn add(self, by: Duration) -> Nanos {
        Nanos(self.0.saturating_add(by.as_nanos() as u64))
    }
}

/// When the process first asked for the time.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}
