//! Load shedding, adaptive concurrency and admission control: what is never too much, or always.

use std::time::Duration;

use super::Checker;
use crate::config::model::{AdaptiveConcurrency, Cluster, Overload};

/// Rates are per second.
const WINDOW_MIN: Duration = Duration::from_secs(1);

/// Beyond it, one failure refuses as much as all.
const AGGRESSION_MAX: u32 = 10;

/// How often shards report.
const UPDATE_MIN: Duration = Duration::from_millis(10);

impl Checker<'_> {
    pub(super) fn overload(&mut self) {
        let Overload { queue_target, interval, exempt_paths } = &self.config.overload;
        let sheds =
            !queue_target.0.is_zero()
                || self.config.clusters.iter().any(|it| {
                    !it.limits.pending_target.0.is_zero() || it.admission_control.is_some()
                });
        if interval.0.is_zero() {
            self.error(
                "overload.interval",
                "after 0s, every wait that is too long once would be too much",
                "write 200ms, the default",
            );
        } else if !queue_target.0.is_zero()
            && queue_target >= interval
            && !self.lost("overload.interval")
        {
            self.error(
                "overload.queue_target",
                format!("waits of up to {queue_target} cannot be judged within {interval}"),
                "lower it, 20ms suits most; or raise interval",
            );
        }
        if !sheds && !exempt_paths.is_empty() && !self.lost("overload.queue_target") {
            self.warn(
                "overload.exempt_paths",
                "nothing is refused that these could be exempt from",
                "set overload.queue_target, or a cluster's limits.pending_target or admission_control",
            );
        }
    }

    /// `path` is the cluster's.
    pub(super) fn pending_target(&mut self, path: &str, cluster: &Cluster) {
        let limits = cluster.limits;
        let at = |key: &str| format!("{path}.limits.{key}");
        let target = limits.pending_target;
        if target.0.is_zero() {
            return;
        }
        if limits.max_pending == 0 && !self.lost(&at("max_pending")) {
            self.error(
                &at("pending_target"),
                "nobody waits: max_pending is 0",
                "remove it, or raise max_pending",
            );
        } else if target >= limits.pending_timeout && !self.lost(&at("pending_timeout")) {
            self.error(
                &at("pending_target"),
                format!("nobody waits for {target}: pending_timeout is {}", limits.pending_timeout),
                "lower it, or raise pending_timeout",
            );
        }
    }

    /// `path` is the cluster's.
    pub(super) fn admission_control(&mut self, path: &str, cluster: &Cluster) {
        let Some(control) = cluster.admission_control else { return };
        let at = |key: &str| format!("{path}.admission_control.{key}");
        if control.sampling_window.0 < WINDOW_MIN {
            self.error(
                &at("sampling_window"),
                format!("a share of {} is chance", control.sampling_window),
                "write 1s or more; 30s is the default",
            );
        }
        if control.sr_threshold.0 == 0 {
            self.error(
                &at("sr_threshold"),
                "no share of successes is below 0",
                "write 0.95, the default; without admission_control, nothing is refused",
            );
        }
        if !(1..=AGGRESSION_MAX).contains(&control.aggression) {
            self.error(
                &at("aggression"),
                format!("aggression is 1 to {AGGRESSION_MAX}"),
                "write 1, the default",
            );
        }
        if control.max_rejection_probability.0 == 0 {
            self.error(
                &at("max_rejection_probability"),
                "nothing is ever refused",
                "write 0.8, the default; or leave admission_control out",
            );
        } else if control.max_rejection_probability.0 == 100 {
            self.warn(
                &at("max_rejection_probability"),
                "where all are refused, nobody finds out that the cluster is well again before the \
                 window is over",
                "write 0.8, the default",
            );
        }
    }

    /// `path` is the cluster's.
    pub(super) fn adaptive_concurrency(&mut self, path: &str, cluster: &Cluster) {
        let Some(adaptive) = cluster.adaptive_concurrency else { return };
        let at = |key: &str| format!("{path}.adaptive_concurrency.{key}");
        let AdaptiveConcurrency { update_interval, min_rtt_interval, min_concurrency, .. } =
            adaptive;
        if adaptive.sample_percentile.0 == 0 {
            self.error(&at("sample_percentile"), "no time is below all", "write 0.5, the default");
        }
        if update_interval.0 < UPDATE_MIN {
            self.error(
                &at("update_interval"),
                format!("shards report every 10ms, not every {update_interval}"),
                "write 10ms or more; 100ms is the default",
            );
        } else if min_rtt_interval <= update_interval && !self.lost(&at("update_interval")) {
            self.error(
                &at("min_rtt_interval"),
                format!(
                    "it would measure the shortest time every {min_rtt_interval}, and never use it"
                ),
                "write 60s, the default",
            );
        }
        if adaptive.min_rtt_requests == 0 {
            self.error(&at("min_rtt_requests"), "no answers take no time", "write 1 or more");
        }
        let (most, probes) = (cluster.limits.max_requests, cluster.breaker.probes);
        if min_concurrency == 0 {
            self.error(
                &at("min_concurrency"),
                "with 0, nothing could ever be sent",
                "write 1 or more; 3 is the default",
            );
        } else if min_concurrency > most && !self.lost(&format!("{path}.limits.max_requests")) {
            let given = self.given(&at("min_concurrency"));
            let limit = format!("{path}.limits.max_requests");
            self.error(
                &if given { at("min_concurrency") } else { limit },
                format!("at least {min_concurrency} at once, and at most {most}"),
                if given {
                    "lower it, or raise limits.max_requests, which holds beside it"
                } else {
                    "raise it, or lower adaptive_concurrency.min_concurrency"
                },
            );
        } else if min_concurrency < probes && !self.lost(&format!("{path}.breaker.probes")) {
            self.error(
                &at("min_concurrency"),
                format!("{min_concurrency} are too few for {probes} probes at once"),
                "raise it, or lower breaker.probes",
            );
        }
    }
}
