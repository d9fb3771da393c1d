//! Clusters: endpoints that can be chosen.

use std::collections::HashSet;

use super::{Checker, WEIGHTS_MAX};
use crate::balance::RING_SIZE_MAX;
use crate::config::model::Balance;

impl Checker<'_> {
    pub(super) fn clusters(&mut self) {
        let clusters = &self.config.clusters;
        self.unique(clusters.iter().map(|it| &it.name), "clusters", "cluster");
        for (index, cluster) in clusters.iter().enumerate() {
            let path = format!("clusters.{index}");
            let name = &cluster.name;
            if cluster.endpoints.is_empty() {
                if !self.lost(&format!("{path}.endpoints")) {
                    self.warn(
                        &format!("{path}.endpoints"),
                        format!("cluster '{name}' has no endpoints: its requests get 503"),
                        "add one: endpoints: [127.0.0.1:9000]",
                    );
                }
            } else if cluster.endpoints.iter().all(|endpoint| endpoint.weight == 0) {
                self.error(
                    &format!("{path}.endpoints"),
                    format!("every endpoint of cluster '{name}' has weight 0"),
                    "give one of them a weight of 1 or more",
                );
            } else if cluster.endpoints.iter().map(|it| u64::from(it.weight)).sum::<u64>()
                > WEIGHTS_MAX
            {
                self.error(
                    &format!("{path}.endpoints"),
                    format!("the weights add up to more than {WEIGHTS_MAX}"),
                    "only their ratio counts: divide them all",
                );
            }
            let mut seen = HashSet::new();
            for (at, endpoint) in cluster.endpoints.iter().enumerate() {
                let at_path = format!("{path}.endpoints.{at}");
                self.weight(&at_path, endpoint.weight);
                if !seen.insert(&endpoint.address) {
                    self.error(
                        &at_path,
                        format!("endpoint {} is there twice", endpoint.address),
                        "give it once, with a larger weight",
                    );
                }
            }
            if let Balance::RingHash(ring) = &cluster.balance {
                let ring_path = format!("{path}.balance.ring_hash");
                if ring.ring_size_max > RING_SIZE_MAX || ring.ring_size_max == 0 {
                    self.error(
                        &format!("{ring_path}.ring_size_max"),
                        format!("a ring has 1 to {RING_SIZE_MAX} points"),
                        "8388608 is the default",
                    );
                } else if ring.ring_size_min > ring.ring_size_max {
                    self.error(
                        &format!("{ring_path}.ring_size_min"),
                        format!("ring_size_min is above ring_size_max, {}", ring.ring_size_max),
                        "lower it",
                    );
                }
            }
            let pool = cluster.pool;
            if self.given(&format!("{path}.pool.age_max"))
                && !pool.age_max.0.is_zero()
                && pool.idle_timeout > pool.age_max
            {
                self.error(
                    &format!("{path}.pool.age_max"),
                    format!(
                        "a connection is too old after {} before it has been idle for {}",
                        pool.age_max, pool.idle_timeout
                    ),
                    "raise age_max, or lower idle_timeout",
                );
            }
            self.limits(&path, cluster);
            self.pending_target(&path, cluster);
            self.admission_control(&path, cluster);
            self.adaptive_concurrency(&path, cluster);
            self.breaker(&path, &cluster.breaker);
            self.retry_budget(&path, cluster);
            self.health_check(&path, cluster);
            self.parts(&path, cluster);
        }
    }
}
