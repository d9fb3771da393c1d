//! Retries: settings that contradict each other, or that never matter.

use std::time::Duration;

use super::Checker;
use crate::config::model::{Cluster, Retries, RetryOn, Route};
use crate::config::values::HedgeAfter;

/// More tries than that are a storm of their own.
const ATTEMPTS_MAX: u32 = 10;

/// A body waits in memory until its request is over.
const BODY_BYTES_MAX: u64 = 1024 * 1024;

/// Deposits are kept in ten parts of their time.
const TTL_MIN: Duration = Duration::from_millis(100);

/// Retries are priced in whole nanoseconds.
const PER_SECOND_MAX: u32 = 1_000_000;

impl Checker<'_> {
    /// `path` is the route's.
    pub(super) fn retries(&mut self, path: &str, route: &Route) {
        let retries = &route.retries;
        let at = |key: &str| format!("{path}.retries.{key}");
        if retries.attempts > ATTEMPTS_MAX {
            self.error(
                &at("attempts"),
                format!("{} retries of one request", retries.attempts),
                format!("write {ATTEMPTS_MAX} or less; 1 is the default"),
            );
        }
        self.retriable_statuses(path, retries);
        let nothing = Retries {
            attempts: 0,
            // This holds for the first try, too.
            try_timeout: retries.try_timeout,
            ..Retries::default()
        };
        if retries.attempts == 0 && *retries != nothing {
            self.warn(
                &at("attempts"),
                "nothing is sent again: attempts is 0",
                "raise it, or remove the rest",
            );
        }
        if retries.on.is_empty() && retries.attempts > 0 && !self.lost(&at("on")) {
            self.error(
                &at("on"),
                "nothing to retry after",
                "write attempts: 0 for no retries; else name a condition, such as connect-failure",
            );
        }
        if retries.max_backoff < retries.backoff && !self.lost(&at("backoff")) {
            let given = self.given(&at("max_backoff"));
            self.error(
                &at(if given { "max_backoff" } else { "backoff" }),
                format!(
                    "the first pause is up to {}, but the longest {}",
                    retries.backoff, retries.max_backoff
                ),
                if given { "raise it, or lower backoff" } else { "lower it, or raise max_backoff" },
            );
        }
        if retries.body_bytes_max.0 > BODY_BYTES_MAX {
            self.error(
                &at("body_bytes_max"),
                format!("{} of memory for each request", retries.body_bytes_max),
                "write 1MiB or less",
            );
        }
        self.hedge(path, route);
        let limits =
            [("timeouts.answer", route.timeouts.answer), ("timeouts.total", route.timeouts.total)];
        for (own, time) in [
            ("try_timeout", retries.try_timeout),
            ("backoff", retries.backoff),
            ("max_retry_after", retries.max_retry_after),
        ] {
            let exceeded = limits.iter().find(|(key, limit)| {
                time >= *limit && !limit.0.is_zero() && !self.lost(&format!("{path}.{key}"))
            });
            if let Some((key, limit)) = exceeded
                && self.given(&at(own))
            {
                self.warn(
                    &at(own),
                    format!("it is {time}, but all tries together have {limit} ({key})"),
                    format!("lower it, or raise {key}"),
                );
            }
        }
    }

    fn hedge(&mut self, path: &str, route: &Route) {
        let Some(hedge) = route.retries.hedge else { return };
        let at = |key: &str| format!("{path}.retries.hedge.{key}");
        if route.retries.attempts == 0 {
            self.error(
                &format!("{path}.retries.hedge"),
                "a hedge is one of the attempts, and there are none",
                "raise attempts, or remove it",
            );
        }
        let HedgeAfter::Delay(delay) = hedge.after else { return };
        if delay.0.max(hedge.min_delay.0).is_zero() {
            self.error(
                &at("after"),
                "each request would be sent twice",
                "write a time such as 20ms, or a percentile such as p95",
            );
        }
        let timeouts = [
            ("retries.try_timeout", route.retries.try_timeout),
            ("timeouts.answer", route.timeouts.answer),
        ];
        for (key, timeout) in timeouts {
            if !timeout.0.is_zero() && delay >= timeout && !self.lost(&format!("{path}.{key}")) {
                self.warn(
                    &at("after"),
                    format!("there is never a hedge: {key} is {timeout}"),
                    format!("lower it below {timeout}"),
                );
            }
        }
    }

    fn retriable_statuses(&mut self, path: &str, retries: &Retries) {
        let at = |key: &str| format!("{path}.retries.{key}");
        let by_list = retries.on.contains(&RetryOn::RetriableStatus);
        if by_list && retries.statuses.is_empty() && !self.lost(&at("statuses")) {
            self.error(
                &at("on"),
                "'retriable-status' without 'statuses'",
                "name them: statuses: [503]",
            );
        }
        if !by_list && !retries.statuses.is_empty() && !self.lost(&at("on")) {
            self.error(
                &at("statuses"),
                "'statuses' without 'retriable-status'",
                "add retriable-status to 'on'",
            );
        }
        for (index, status) in retries.statuses.iter().enumerate() {
            if !(400..=599).contains(status) {
                self.error(
                    &at(&format!("statuses.{index}")),
                    format!("{status} is no failure"),
                    "write statuses from 400 to 599",
                );
            }
        }
    }

    /// `path` is the cluster's.
    pub(super) fn retry_budget(&mut self, path: &str, cluster: &Cluster) {
        let budget = cluster.retry_budget;
        let at = |key: &str| format!("{path}.retry_budget.{key}");
        if budget.ttl.0 < TTL_MIN {
            self.error(
                &at("ttl"),
                format!("deposits for {} are gone before they are of use", budget.ttl),
                "write 100ms or more",
            );
        }
        if budget.min_per_second > PER_SECOND_MAX {
            self.error(
                &at("min_per_second"),
                format!("{} retries per second are no budget", budget.min_per_second),
                format!("write {PER_SECOND_MAX} or less"),
            );
        }
    }
}
