//! Load shedding: queues that are never too long, or always.

use super::Checker;
use crate::config::model::{Cluster, Overload};

impl Checker<'_> {
    pub(super) fn overload(&mut self) {
        let Overload { queue_target, interval, exempt_paths } = &self.config.overload;
        let pending = self.config.clusters.iter().map(|it| it.limits.pending_target);
        let longest = pending.chain([*queue_target]).max().unwrap_or(*queue_target);
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
        if longest.0.is_zero() && !exempt_paths.is_empty() && !self.lost("overload.queue_target") {
            self.warn(
                "overload.exempt_paths",
                "nothing is refused that these could be exempt from",
                "set overload.queue_target, or a cluster's limits.pending_target",
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
}
