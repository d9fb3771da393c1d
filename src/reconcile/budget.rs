//! How many retries there may be: what first attempts deposit on their own shard, and a minimum
//! that the home lends, so that quiet services may retry too.
//!
//! What was saved is not for one moment: a part of the time pays for no more retries than it brought
//! deposits, or the part before, but always for one. Else all that ten good seconds have saved would
//! meet an outage in its first.
//!
//! Counted in thousandths of a retry. Pure; depositing takes a few instructions and no memory.

use std::time::Duration;

use super::RetryBudget;
use super::mutation::{self, Mutation};
use crate::time::Nanos;

/// Parts of the time for which a deposit is good: it expires within a tenth of it.
const PARTS: usize = 10;

/// A retry.
const RETRY_MILLI: u64 = 1_000;

/// One shard's deposits, and what the home has lent it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Deposits {
    parts: [u64; PARTS],
    /// The place of the newest part, and when it ends.
    newest: usize,
    newest_until: Nanos,
    /// Deposited in the newest part, and in the one before; and what the newest has paid for.
    made: u64,
    made_before: u64,
    paid: u64,
    /// All that the home ever granted, and how many of it were spent or have expired.
    granted: u64,
    spent: u64,
    /// When those of the home expire.
    expires: Nanos,
}

impl Deposits {
    /// A first attempt.
    #[inline]
    pub fn deposit(&mut self, budget: &RetryBudget, now: Nanos) {
        self.advance(budget.ttl, now);
        self.parts[self.newest] += u64::from(budget.deposit_milli);
        self.made += u64::from(budget.deposit_milli);
    }

    /// Spends one retry, the oldest deposits first. `false`: there is none.
    pub fn spend(&mut self, budget: &RetryBudget, now: Nanos) -> bool {
        self.advance(budget.ttl, now);
        if self.payable_milli() >= RETRY_MILLI {
            self.paid += RETRY_MILLI;
            let mut due = RETRY_MILLI;
            for step in 1..=PARTS {
                let part = &mut self.parts[(self.newest + step) % PARTS];
                let taken = due.min(*part);
                *part -= taken;
                due -= taken;
            }
            return true;
        }
        if now >= self.expires {
            self.spent = self.granted;
        }
        let lent = self.granted > self.spent;
        self.spent += u64::from(lent);
        lent || mutation::is_on(Mutation::RetryUnpaid)
    }

    /// What may be spent now, in thousandths of a retry.
    pub fn balance_milli(&mut self, budget: &RetryBudget, now: Nanos) -> u64 {
        self.advance(budget.ttl, now);
        let lent = if now < self.expires { self.granted - self.spent } else { 0 };
        self.payable_milli() + lent * RETRY_MILLI
    }

    /// How many retries that pays for.
    pub fn retries(&mut self, budget: &RetryBudget, now: Nanos) -> u64 {
        self.balance_milli(budget, now) / RETRY_MILLI
    }

    /// When more of what was saved may be spent than now, if nobody deposits anything.
    pub fn due(&self) -> Nanos {
        let is_held_back = self.saved_milli() >= RETRY_MILLI && self.payable_milli() < RETRY_MILLI;
        if is_held_back { self.newest_until } else { Nanos::NEVER }
    }

    fn saved_milli(&self) -> u64 {
        self.parts.iter().sum()
    }

    /// Of what was saved, as much as the newest part may pay.
    fn payable_milli(&self) -> u64 {
        let most = self.made.max(self.made_before).max(RETRY_MILLI);
        self.saved_milli().min(most.saturating_sub(self.paid))
    }

    /// All that the home ever granted, as far as is known here.
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// The home has granted so many in all. `true`: more than before.
    pub fn grant(&mut self, total: u64, budget: &RetryBudget, now: Nanos) -> bool {
        let by_message = mutation::is_on(Mutation::TokensCountedByMessage);
        let total = if by_message { self.granted + 1 } else { total };
        if total <= self.granted {
            return false;
        }
        if now >= self.expires {
            self.spent = self.granted;
        }
        self.granted = total;
        self.expires = now + budget.ttl;
        true
    }

    #[inline]
    fn advance(&mut self, ttl: Duration, now: Nanos) {
        if now >= self.newest_until && !mutation::is_on(Mutation::DepositsNeverExpire) {
            self.turn(ttl, now);
        }
    }

    /// Begins a new part. What is older than all of them is forgotten.
    #[cold]
    fn turn(&mut self, ttl: Duration, now: Nanos) {
        let length = (ttl.as_nanos() as u64 / PARTS as u64).max(1);
        let turns = (now.0 - self.newest_until.0) / length + 1;
        self.made_before = if turns == 1 { self.made } else { 0 };
        (self.made, self.paid) = (0, 0);
        for _ in 0..turns.min(PARTS as u64) {
            self.newest = (self.newest + 1) % PARTS;
            self.parts[self.newest] = 0;
        }
        self.newest_until = Nanos((now.0 / length + 1) * length);
    }
}

/// The home's minimum: so many a second, kept for as long as a deposit would be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Mint {
    /// Nanoseconds' worth of tokens that were handed out, counted from the start of time.
    handed_out: u64,
}

impl Mint {
    /// Takes up to `count` of what has accumulated.
    pub fn take(&mut self, count: u64, budget: &RetryBudget, now: Nanos) -> u64 {
        let Some(price) = price(budget) else { return 0 };
        let oldest = now.0.saturating_sub(budget.ttl.as_nanos() as u64);
        if !mutation::is_on(Mutation::TokensHoarded) {
            self.handed_out = self.handed_out.max(oldest);
        }
        let taken = count.min(now.0.saturating_sub(self.handed_out) / price);
        self.handed_out += taken * price;
        taken
    }

    /// When the next one is there.
    pub fn due(&self, budget: &RetryBudget) -> Nanos {
        price(budget).map_or(Nanos::NEVER, |price| Nanos(self.handed_out + price))
    }
}

/// Nanoseconds for one token.
fn price(budget: &RetryBudget) -> Option<u64> {
    1_000_000_000u64.checked_div(budget.per_second_min.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn five_attempts_pay_for_one_retry() {
        let budget = RetryBudget::default();
        let mut deposits = Deposits::default();
        for _ in 0..4 {
            deposits.deposit(&budget, Nanos(0));
        }
        assert!(!deposits.spend(&budget, Nanos(0)));
        deposits.deposit(&budget, Nanos(9 * SECOND));
        assert!(deposits.spend(&budget, Nanos(9 * SECOND)));
        assert!(!deposits.spend(&budget, Nanos(9 * SECOND)));
    }

    #[test]
    fn deposits_and_loans_expire() {
        let budget = RetryBudget::default();
        let mut deposits = Deposits::default();
        for _ in 0..5 {
            deposits.deposit(&budget, Nanos(0));
        }
        assert_eq!(deposits.balance_milli(&budget, Nanos(9 * SECOND)), 1_000);
        assert!(!deposits.spend(&budget, Nanos(10 * SECOND)));
        assert!(deposits.grant(2, &budget, Nanos(10 * SECOND)));
        assert!(!deposits.grant(2, &budget, Nanos(10 * SECOND)), "not twice");
        assert!(deposits.spend(&budget, Nanos(19 * SECOND)));
        assert!(!deposits.spend(&budget, Nanos(20 * SECOND)));
    }

    /// Ten good seconds with 1,000 attempts each, and then each of them wants three retries.
    #[test]
    fn an_outage_does_not_get_all_that_was_saved() {
        let budget = RetryBudget::default();
        let mut deposits = Deposits::default();
        let mut retries = [0; 20];
        for attempt in 0..20_000_u64 {
            let now = Nanos(attempt * SECOND / 1_000);
            deposits.deposit(&budget, now);
            if attempt >= 10_000 {
                let paid = (0..3).filter(|_| deposits.spend(&budget, now)).count();
                retries[attempt as usize / 1_000] += paid;
            }
        }
        assert_eq!(retries[10..], [200; 10]);
    }

    /// Who asks once a second is not held up by it.
    #[test]
    fn a_quiet_service_may_spend_what_it_has_saved() {
        let budget = RetryBudget::default();
        let mut deposits = Deposits::default();
        for second in 0..10 {
            deposits.deposit(&budget, Nanos(second * SECOND));
        }
        let spent =
            (10..14).filter(|it| deposits.spend(&budget, Nanos(it * SECOND / 2 + 4 * SECOND)));
        assert_eq!(spent.count(), 2);
    }

    /// A reload that makes deposits last longer forgets none, and keeps none for ever.
    #[test]
    fn the_time_may_change() {
        let short = RetryBudget { ttl: Duration::from_secs(1), ..RetryBudget::default() };
        let long = RetryBudget::default();
        let mut deposits = Deposits::default();
        for _ in 0..5 {
            deposits.deposit(&short, Nanos(100 * SECOND));
        }
        assert_eq!(deposits.balance_milli(&long, Nanos(101 * SECOND)), 1_000);
        assert_eq!(deposits.balance_milli(&long, Nanos(111 * SECOND)), 0);
        for _ in 0..5 {
            deposits.deposit(&long, Nanos(111 * SECOND));
        }
        assert_eq!(deposits.balance_milli(&short, Nanos(115 * SECOND)), 0);
    }

    #[test]
    fn three_a_second_and_no_hoard() {
        let budget = RetryBudget::default();
        let mut mint = Mint::default();
        assert_eq!(mint.take(9, &budget, Nanos(SECOND)), 3);
        assert_eq!(mint.take(9, &budget, Nanos(SECOND)), 0);
        assert_eq!(mint.due(&budget), Nanos(4 * 333_333_333));
        assert_eq!(mint.take(99, &budget, Nanos(100 * SECOND)), 30);
    }
}
