//! What fallbacks have done, by the name of their route. Each shard counts for itself; a name keeps
//! its counters for as long as the process lives, so no total falls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Counter, Gauge};
use crate::fallback::Kind;

/// Of one route, on one shard.
#[derive(Debug, Default)]
pub struct FallbackCounters {
    /// Requests that were answered by one, by its kind.
    pub answered: [Counter; Kind::ALL.len()],
    /// Requests that were not, since as many were under way as may.
    pub refused: Counter,
    /// Requests for which there was nothing to answer with, or for which that has failed, too.
    pub failed: Counter,
    /// Bytes that last good answers take here.
    pub kept_bytes: Gauge,
    /// How many there are.
    pub kept_answers: Gauge,
}

impl FallbackCounters {
    /// Of one kind.
    pub fn of(&self, kind: Kind) -> &Counter {
        &self.answered[kind as usize]
    }
}

/// The counters of one shard, by the names of the routes. Locked by plans and by who reads, never on
/// a request's path.
#[derive(Debug, Default)]
pub struct FallbackRecords(Mutex<BTreeMap<String, Arc<FallbackCounters>>>);

impl FallbackRecords {
    /// Those of one route.
    pub fn of(&self, route: &str) -> Arc<FallbackCounters> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(route.to_owned()).or_default().clone()
    }

    /// All that there are.
    pub fn all(&self) -> BTreeMap<String, Arc<FallbackCounters>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
