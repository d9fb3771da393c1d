//! Active checks: times and counts that would never find anything.

use super::Checker;
use crate::config::model::{Cluster, HealthCheck};

impl Checker<'_> {
    /// `path` is the cluster's.
    pub(super) fn health_check(&mut self, path: &str, cluster: &Cluster) {
        let Some(check) = &cluster.health_check else { return };
        let at = |key: &str| format!("{path}.health_check.{key}");
        for (key, time, help) in [
            ("interval", check.interval, "write 2s, the default"),
            ("fast_interval", check.fast_interval, "write 500ms, the default"),
            ("timeout", check.timeout, "write what a good answer takes, and more"),
        ] {
            if time.0.is_zero() {
                self.error(&at(key), format!("{key} is 0s"), help);
            }
        }
        for (key, count) in [("rise", check.rise), ("fall", check.fall)] {
            if count == 0 {
                self.error(&at(key), format!("{key} is 0"), "write 1 or more");
            }
        }
        if check.fast_interval > check.interval
            && self.given(&at("fast_interval"))
            && !self.lost(&at("interval"))
        {
            self.error(
                &at("fast_interval"),
                format!(
                    "it looks every {} when something changes, but every {} else",
                    check.fast_interval, check.interval
                ),
                "lower it, or leave it out",
            );
        }
        if check.port == Some(0) {
            self.error(&at("port"), "nobody listens on port 0", "leave it out for the endpoint's");
        }
        if check.statuses.is_empty() && !self.lost(&at("statuses")) {
            self.error(&at("statuses"), "no status is good", "write [200]");
        }
        if check.path.is_none() && !self.lost(&at("path")) {
            let usual = HealthCheck::default();
            for (key, given) in
                [("host", check.host.is_some()), ("statuses", check.statuses != usual.statuses)]
            {
                if given {
                    self.error(
                        &at(key),
                        format!("'{key}' without 'path': a connection is all that is tried"),
                        "add path, such as /healthz",
                    );
                }
            }
        }
    }
}
