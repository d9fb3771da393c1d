//! Limits and breakers: numbers that nothing could meet, or that never matter. A default that does
//! not matter is no reason for a warning, given or not: `print-config` writes them all.

use std::time::Duration;

use super::Checker;
use crate::breaker::BUCKETS;
use crate::config::model::{Breaker, Cluster, Limits, Route};

/// Shards report what they have seen every 10 ms: a shorter bucket could not be told from its
/// neighbours.
const WINDOW_MIN: Duration = Duration::from_millis(10 * BUCKETS as u64);

/// A day: the ramp is reckoned in 32 bits of milliseconds.
const RAMP_MAX: Duration = Duration::from_secs(24 * 3600);

impl Checker<'_> {
    /// `path` is the cluster's.
    pub(super) fn limits(&mut self, path: &str, cluster: &Cluster) {
        let limits = cluster.limits;
        let own = limits.per_endpoint;
        let usual = Limits::default();
        let at = |key: &str| format!("{path}.limits.{key}");
        self.room(path, cluster);

        if limits.pending_timeout.0.is_zero() {
            self.error(
                &at("pending_timeout"),
                "who waits for 0s does not wait",
                "write max_pending: 0 if nobody shall wait; else a longer time",
            );
        } else if limits.max_pending == 0 && limits.pending_timeout != usual.pending_timeout {
            self.warn(
                &at("pending_timeout"),
                "nobody waits: max_pending is 0",
                "remove it, or raise max_pending",
            );
        }

        for (key, own, all) in [
            ("max_requests", own.max_requests, limits.max_requests),
            ("max_connections", own.max_connections, limits.max_connections),
            ("max_pending", own.max_pending, limits.max_pending),
        ] {
            let sound = !self.lost(&at(key));
            if let Some(own) = own.filter(|own| *own > all && sound) {
                self.warn(
                    &at(&format!("per_endpoint.{key}")),
                    format!("no endpoint reaches {own}: the cluster's {key} is {all}"),
                    format!("lower it, or raise limits.{key}"),
                );
            }
        }

        let requests = Some(limits.max_requests).filter(|it| *it != usual.max_requests);
        let pairs = [
            ("", requests, Some(limits.max_connections)),
            ("per_endpoint.", own.max_requests, own.max_connections),
        ];
        for (part, requests, connections) in pairs {
            let requests_at = at(&format!("{part}max_requests"));
            let connections_at = at(&format!("{part}max_connections"));
            if let (Some(requests), Some(connections)) = (requests, connections)
                && requests > connections
                && connections > 0
                && !self.lost(&connections_at)
            {
                self.warn(
                    &requests_at,
                    format!(
                        "{requests} are never in flight: each has a connection to itself, and \
                         max_connections is {connections}"
                    ),
                    "raise max_connections as well",
                );
            }
        }
    }

    /// Whether a request fits through, and all the probes of an endpoint at once.
    fn room(&mut self, path: &str, cluster: &Cluster) {
        let limits = cluster.limits;
        let own = limits.per_endpoint;
        let probes = cluster.breaker.probes;
        let probes_at = format!("{path}.breaker.probes");
        let mut probes_sound = !self.lost(&probes_at);
        for (key, limit) in [
            ("max_requests", Some(limits.max_requests)),
            ("max_connections", Some(limits.max_connections)),
            ("per_endpoint.max_requests", own.max_requests),
            ("per_endpoint.max_connections", own.max_connections),
        ] {
            let at = format!("{path}.limits.{key}");
            let Some(limit) = limit else { continue };
            if limit == 0 {
                let help = match key.starts_with("per_endpoint") {
                    true => "leave it out: then only the cluster's holds",
                    false => {
                        "leave it out for 1024, the default; a large number is as good as none"
                    }
                };
                self.error(&at, format!("with {key} 0, nothing could ever be sent"), help);
            } else if limit < probes && probes_sound && !self.lost(&at) {
                let given = self.given(&at);
                // With defaults, one of them says it all.
                probes_sound = given;
                self.error(
                    if given { &at } else { &probes_at },
                    format!("{key} is {limit}: too few for {probes} probes at once"),
                    if given {
                        "raise it, or lower probes"
                    } else {
                        "lower it, or raise the limit"
                    },
                );
            }
        }
    }

    /// `path` is the cluster's.
    pub(super) fn breaker(&mut self, path: &str, breaker: &Breaker) {
        let at = |key: &str| format!("{path}.breaker.{key}");
        let usual = Breaker::default();
        self.breaker_times(path, breaker);
        if breaker.probes == 0 {
            self.error(
                &at("probes"),
                "without a probe, an endpoint never comes back",
                "write 1 or more",
            );
        }
        if breaker.min_requests == 0 {
            self.error(&at("min_requests"), "no requests have no ratio", "write 1 or more");
        }

        let rates = breaker.failure_ratio.0 > 0 || breaker.minds_latency();
        let sound = |checker: &Self, keys: &[&str]| !keys.iter().any(|key| checker.lost(&at(key)));
        if breaker.min_requests != usual.min_requests
            && breaker.min_requests > 0
            && !rates
            && sound(self, &["failure_ratio", "max_latency", "slow_ratio"])
        {
            self.warn(
                &at("min_requests"),
                "no ratio is looked at: both are off",
                "remove it, or set failure_ratio",
            );
        }
        if breaker.slow_ratio != usual.slow_ratio
            && breaker.slow_ratio.0 > 0
            && breaker.max_latency.0.is_zero()
            && sound(self, &["max_latency"])
        {
            self.warn(
                &at("slow_ratio"),
                "nothing is slow without max_latency",
                "add max_latency, or remove it",
            );
        } else if !breaker.max_latency.0.is_zero() && !breaker.minds_latency() {
            self.warn(
                &at("slow_ratio"),
                "slow answers change nothing: slow_ratio is 0",
                "remove max_latency, or raise slow_ratio",
            );
        }
        if breaker.minds_latency()
            && breaker.max_latency > breaker.probe_timeout
            && sound(self, &["probe_timeout"])
        {
            self.warn(
                &at("max_latency"),
                format!(
                    "a probe has failed after {}, before it is slow after {}",
                    breaker.probe_timeout, breaker.max_latency
                ),
                "raise probe_timeout, or lower max_latency",
            );
        }
    }

    fn breaker_times(&mut self, path: &str, breaker: &Breaker) {
        let at = |key: &str| format!("{path}.breaker.{key}");
        let Breaker { window, open_time, max_open_time, permit_wait, probe_timeout, ramp, .. } =
            *breaker;
        if window.0 < WINDOW_MIN {
            self.error(
                &at("window"),
                format!(
                    "a window of {window} is too short: it is counted in {BUCKETS} buckets, and \
                     shards report every 10ms"
                ),
                "write 100ms or more",
            );
        }
        if open_time.0.is_zero() {
            self.error(
                &at("open_time"),
                "a breaker that is open for 0s stops nothing",
                "write a longer time; consecutive_failures: 0 and failure_ratio: 0 switch it off",
            );
        } else if max_open_time < open_time {
            let both = ["open_time", "max_open_time"];
            if !both.iter().any(|key| self.lost(&at(key))) {
                let given = self.given(&at("max_open_time"));
                self.error(
                    &at(both[usize::from(given)]),
                    format!("it opens for {open_time} at first, but for {max_open_time} at most"),
                    if given { "raise it, or lower open_time" } else { "raise max_open_time" },
                );
            }
        }
        if probe_timeout.0.is_zero() {
            self.error(
                &at("probe_timeout"),
                "a probe that may take 0s always fails",
                "write what a good answer takes, and more",
            );
        } else if permit_wait > probe_timeout {
            let both = ["probe_timeout", "permit_wait"];
            if !both.iter().any(|key| self.lost(&at(key))) {
                let given = self.given(&at("permit_wait"));
                self.error(
                    &at(both[usize::from(given)]),
                    format!(
                        "a request waits {permit_wait} to be a probe, which takes {probe_timeout}"
                    ),
                    if given {
                        "lower it: a few milliseconds"
                    } else {
                        "raise it, or lower permit_wait"
                    },
                );
            }
        }
        if ramp.0 > RAMP_MAX {
            self.error(&at("ramp"), "a ramp takes at most 1d", "write 10s, the default");
        }
    }

    /// `path` is the route's. A breaker of its own follows the settings of the clusters.
    pub(super) fn route_breaker(&mut self, path: &str, route: &Route) {
        let clusters = self.config.clusters.iter().enumerate();
        let mut targets = route.cluster.iter().chain(route.clusters.iter().map(|part| &part.name));
        let off = targets.find_map(|name| {
            let (index, _) =
                clusters.clone().find(|(_, it)| it.name == *name && it.breaker.is_off())?;
            (!self.lost(&format!("clusters.{index}.breaker"))).then_some(name)
        });
        if let Some(name) = off {
            self.warn(
                &format!("{path}.breaker"),
                format!("it never opens for cluster '{name}': the breaker there is off"),
                "set consecutive_failures or failure_ratio there",
            );
        }
    }
}
