//! What became of requests under each rate limit, by its name. Each shard counts for itself; a name
//! keeps its counters for as long as the process lives, so no total falls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Counter, Gauge};
use crate::rate::RateLimitId;

/// One limit, on one shard.
#[derive(Debug, Default)]
pub struct RateCounters {
    /// Requests that got a token.
    pub admitted: Counter,
    /// Requests for which there was none; those of a dry run are counted, and not refused.
    pub refused: Counter,
    /// Requests for which no answer came in time.
    pub unanswered: Counter,
    /// Requests whose key found no room.
    pub table_full: Carried,
    /// Requests that lack a header of the key, and are not limited.
    pub skipped: Counter,
    /// Buckets that were forgotten although they were not full.
    pub evicted: Carried,
    /// Buckets that are kept here.
    pub keys: Gauge,
}

/// A count of the limiter's. It begins anew whenever the limit becomes another one under the same
/// name.
#[derive(Debug, Default)]
pub struct Carried {
    /// Of which the last count was.
    limit: Counter,
    last: Counter,
    total: Counter,
}

impl Carried {
    /// Takes over the count of a limit. Only the owning thread may call this.
    pub fn raise_to(&self, limit: RateLimitId, count: u64) {
        let limit = u64::from(limit.0);
        if limit < self.limit.get() {
            return; // Of one that is about to go.
        }
        if limit > self.limit.get() {
            self.limit.set(limit);
            self.last.set(0);
        }
        self.total.add(count.saturating_sub(self.last.get()));
        self.last.set(count);
    }

    /// All together.
    pub fn get(&self) -> u64 {
        self.total.get()
    }
}

/// The counters of one shard, by the names of the limits. Locked by plans and by who reads, never on
/// a request's path.
#[derive(Debug, Default)]
pub struct RateRecords(Mutex<BTreeMap<String, Arc<RateCounters>>>);

impl RateRecords {
    /// Those of one limit.
    pub fn of(&self, name: &str) -> Arc<RateCounters> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name.to_owned()).or_default().clone()
    }

    /// All that there are.
    pub fn all(&self) -> BTreeMap<String, Arc<RateCounters>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
