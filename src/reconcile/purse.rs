//! What one shard holds of one limit. Four totals that only rise, and the number in use.

use super::mutation::{self, Mutation};

/// One shard's side of a limit.
///
/// ```text
/// held = granted - returned     free = held - in use     owed = recalled - returned
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Purse {
    granted: u64,
    returned: u64,
    recalled: u64,
    in_use: u64,
    /// Granted, not returned and not in use. Each request asks for it, so it is kept.
    free: i64,
    /// The most in use since [`Purse::surplus`] was last asked.
    peak: u64,
    /// What it keeps when idle: its first share.
    kept: u64,
}

impl Purse {
    /// Holds its first share.
    pub fn new(first_share: u64) -> Purse {
        Purse {
            granted: first_share,
            free: first_share as i64,
            kept: first_share,
            ..Purse::default()
        }
    }

    /// All that was ever granted.
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// All that was ever returned.
    pub fn returned(&self) -> u64 {
        self.returned
    }

    /// In use now.
    pub fn in_use(&self) -> u64 {
        self.in_use
    }

    /// Lent to this shard, as far as it knows.
    pub fn held(&self) -> u64 {
        self.granted - self.returned
    }

    /// May be used.
    #[inline]
    pub fn free(&self) -> u64 {
        self.free.max(0) as u64
    }

    /// Demanded back, and not returned yet.
    #[inline]
    pub fn owed(&self) -> u64 {
        self.recalled.saturating_sub(self.returned)
    }

    /// Uses one. Only if one is free.
    #[inline]
    pub fn take(&mut self) {
        debug_assert!(
            self.free() > 0
                || mutation::is_on(Mutation::CountBeforeAsking)
                || mutation::is_on(Mutation::RetryWithoutCredit)
        );
        self.in_use += 1;
        self.free -= 1;
        self.peak = self.peak.max(self.in_use);
    }

    /// One is no longer in use.
    #[inline]
    pub fn put(&mut self) {
        if !mutation::is_on(Mutation::LeaseNotReturned) {
            self.in_use -= 1;
            self.free += 1;
        }
    }

    /// The home has granted so many in all.
    pub fn grant(&mut self, total: u64) -> bool {
        let more = total.saturating_sub(self.granted);
        self.granted += more;
        self.free += more as i64;
        more > 0
    }

    /// The home demands that so many in all be returned.
    pub fn recall(&mut self, total: u64) -> bool {
        if mutation::is_on(Mutation::RecallIgnored) {
            return false;
        }
        let news = total > self.recalled;
        self.recalled = self.recalled.max(total);
        news
    }

    /// Returns what is owed and not in use. `true`: something was.
    pub fn pay(&mut self) -> bool {
        let count = self.owed().min(self.free());
        self.give_back(count);
        count > 0
    }

    /// Returns everything that is not in use. `true`: something was.
    pub fn empty(&mut self) -> bool {
        let count = self.free();
        self.give_back(count);
        count > 0
    }

    /// Returns half of what is not in use: a recall says that somebody else is short of it.
    pub fn share(&mut self) {
        self.give_back(self.free() / 2);
    }

    /// What has been idle since this was last asked: beyond the first share and what the busiest
    /// moment took, with a quarter on top.
    pub fn surplus(&mut self) -> u64 {
        let wanted = self.kept.max(self.peak + self.peak.div_ceil(4));
        self.peak = self.in_use;
        self.free().min(self.held().saturating_sub(wanted))
    }

    /// Returns so many of what is free.
    pub fn give_back(&mut self, count: u64) {
        debug_assert!(count <= self.free());
        self.returned += count;
        self.free -= count as i64;
    }
}
