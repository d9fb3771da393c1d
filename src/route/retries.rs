//! Which failures of a request are worth another try, how many, and after how long. Pure.
//!
//! The conditions have Envoy's meanings (`x-envoy-retry-on`). What was sent once may have
//! been acted on, so methods that are not idempotent (RFC 9110, 9.2.2) are only tried again where
//! nothing was sent, unless the operator says otherwise.

use std::time::Duration;

use super::hedge::HedgePolicy;
use crate::reason::Reason;

/// Another try is worth it when this has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// No connection to the endpoint, or not in time. Nothing was sent.
    ConnectFailure,
    /// No answer: the connection failed, what came was no answer, or a try took too long. Connects
    /// that fail are among it.
    Reset,
    /// 502, 503, 504; and [`Condition::Reset`].
    GatewayError,
    /// Any status from 500 on; and [`Condition::Reset`].
    ServerError,
    /// 409.
    Conflict,
    /// One of the policy's own list.
    ListedStatus,
}

/// Several conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions(u8);

impl Conditions {
    /// Whether this is one of them.
    pub fn has(self, condition: Condition) -> bool {
        self.0 & (1 << condition as u8) != 0
    }
}

impl FromIterator<Condition> for Conditions {
    fn from_iter<T: IntoIterator<Item = Condition>>(conditions: T) -> Conditions {
        Conditions(conditions.into_iter().fold(0, |all, one| all | 1 << one as u8))
    }
}

/// What a route says of retries.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Tries after the first; 0: none.
    pub attempts: u32,
    /// When.
    pub on: Conditions,
    /// For [`Condition::ListedStatus`].
    pub statuses: Vec<u16>,
    /// Requests that are not idempotent, too, though the origin may have acted on them.
    pub non_idempotent: bool,
    /// From the end of the request to the head of its answer, for each try; zero: no limit but the
    /// route's.
    pub try_timeout: Duration,
    /// The pause before the first retry is random, up to this; it doubles with each.
    pub backoff: Duration,
    /// Up to this.
    pub backoff_max: Duration,
    /// An answer's `Retry-After` is waited for, up to this; with a longer one it is not retried.
    pub retry_after_max: Duration,
    /// Bodies of up to so many bytes are received before anything is sent, to be sent again.
    pub body_bytes_max: u64,
    /// When another endpoint is asked as well, before the first has answered.
    pub hedge: Option<HedgePolicy>,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: 1,
            on: [Condition::ConnectFailure, Condition::Reset].into_iter().collect(),
            statuses: Vec::new(),
            non_idempotent: false,
            try_timeout: Duration::ZERO,
            backoff: Duration::from_millis(25),
            backoff_max: Duration::from_millis(250),
            retry_after_max: Duration::from_secs(1),
            body_bytes_max: 64 * 1024,
            hedge: None,
        }
    }
}

impl RetryPolicy {
    /// Whether an answer with this status is one of its conditions.
    #[inline]
    pub fn wants_status(&self, status: u16) -> bool {
        status >= 400 && self.wants_error(status)
    }

    #[cold]
    fn wants_error(&self, status: u16) -> bool {
        (self.on.has(Condition::ServerError) && status >= 500)
            || (self.on.has(Condition::GatewayError) && matches!(status, 502..=504))
            || (self.on.has(Condition::Conflict) && status == 409)
            || (self.on.has(Condition::ListedStatus) && self.statuses.contains(&status))
    }

    /// Whether a try that ended for this reason, without an answer, is.
    pub fn wants_reason(&self, reason: Reason) -> bool {
        match reason {
            Reason::ConnectFailed | Reason::ConnectTimeout => {
                self.on.has(Condition::ConnectFailure) || self.minds_silence()
            }
            Reason::UpstreamReset | Reason::BadAnswer | Reason::TryTimeout => self.minds_silence(),
            _ => false,
        }
    }

    /// Whether something that has been sent may have to be sent again.
    pub fn replays(&self) -> bool {
        self.attempts > 0
            && (self.hedge.is_some()
                || self.minds_silence()
                || self.on.has(Condition::Conflict)
                || self.on.has(Condition::ListedStatus))
    }

    fn minds_silence(&self) -> bool {
        self.on.has(Condition::Reset)
            || self.on.has(Condition::GatewayError)
            || self.on.has(Condition::ServerError)
    }

    /// The pause before retry `number`, from 1: with full jitter, so that requests that failed
    /// together do not come back together. `random` is uniform over all its values.
    pub fn pause(&self, number: u32, random: u32) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << number.saturating_sub(1).min(16));
        let most = doubled.min(self.backoff_max).as_nanos() as u64;
        Duration::from_nanos(((u128::from(most) * u128::from(random)) >> 32) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(conditions: &[Condition]) -> RetryPolicy {
        let on = conditions.iter().copied().collect();
        RetryPolicy { on, statuses: vec![429], ..RetryPolicy::default() }
    }

    #[test]
    fn statuses_by_condition() {
        let statuses = [200, 302, 400, 404, 409, 429, 500, 501, 502, 503, 504, 505, 599];
        let wanted = |conditions: &[Condition]| -> Vec<u16> {
            let policy = on(conditions);
            statuses.into_iter().filter(|status| policy.wants_status(*status)).collect()
        };
        assert!(wanted(&[]).is_empty());
        assert!(wanted(&[Condition::ConnectFailure, Condition::Reset]).is_empty());
        assert_eq!(wanted(&[Condition::GatewayError]), [502, 503, 504]);
        assert_eq!(wanted(&[Condition::ServerError]), [500, 501, 502, 503, 504, 505, 599]);
        assert_eq!(wanted(&[Condition::Conflict]), [409]);
        assert_eq!(wanted(&[Condition::ListedStatus]), [429]);
        assert_eq!(wanted(&[Condition::ListedStatus, Condition::Conflict]), [409, 429]);
    }

    #[test]
    fn reasons_by_condition() {
        let wanted = |conditions: &[Condition]| -> Vec<Reason> {
            let policy = on(conditions);
            Reason::ALL.into_iter().filter(|reason| policy.wants_reason(*reason)).collect()
        };
        let connect = [Reason::ConnectFailed, Reason::ConnectTimeout];
        let silence = [
            Reason::ConnectFailed,
            Reason::ConnectTimeout,
            Reason::UpstreamReset,
            Reason::BadAnswer,
            Reason::TryTimeout,
        ];
        assert_eq!(wanted(&[]), []);
        assert_eq!(wanted(&[Condition::ConnectFailure]), connect);
        assert_eq!(wanted(&[Condition::Reset]), silence);
        assert_eq!(wanted(&[Condition::GatewayError]), silence);
        assert_eq!(wanted(&[Condition::ServerError]), silence);
        assert_eq!(wanted(&[Condition::Conflict, Condition::ListedStatus]), []);
    }

    #[test]
    fn pauses_double_and_are_random_all_the_way_down() {
        let policy = RetryPolicy::default();
        let longest = |number| policy.pause(number, u32::MAX).as_micros();
        assert_eq!(
            [1, 2, 3, 4, 5, 40].map(longest),
            [24_999, 49_999, 99_999, 199_999, 249_999, 249_999]
        );
        assert_eq!(policy.pause(3, 0), Duration::ZERO);
        assert_eq!(policy.pause(1, 1 << 31), Duration::from_micros(12_500));
    }

    #[test]
    fn only_what_may_be_sent_again_is_kept() {
        assert!(RetryPolicy::default().replays());
        assert!(!on(&[Condition::ConnectFailure]).replays());
        assert!(on(&[Condition::ListedStatus]).replays());
        assert!(!RetryPolicy { attempts: 0, ..RetryPolicy::default() }.replays());
    }
}
