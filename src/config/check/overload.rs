//! Load shedding and admission control: what is never too much, or always.

use std::time::Duration;

use super::Checker;
use crate::config::model::{Cluster, Overload};

/// Rates are per second.
const WINDOW_MIN: Duration = Duration::from_secs(1);

/// Beyond it, one failure refuses as much as all.
const AGGRESSION_MAX: u32 = 10;

impl Checker<'_> {
    pub(super) fn overload(&mut self) {
        let Overload { queue_target, interval, exempt_paths } = &self.config.overload;
        let sheds = !queue_target.0.is_zero()
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
}
