//! Gives clusters and endpoints their numbers. One of these, in the control thread: whoever stays
//! from plan to plan keeps its number, whoever comes back gets a new one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{ClusterId, EndpointId};
use crate::rate::RateLimitId;

/// What makes an endpoint the same one in the next plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointKey {
    /// A server.
    Endpoint {
        /// Where it listens.
        address: SocketAddr,
        /// A hash of the settings by which it is reached; other settings are another endpoint.
        transport: u64,
    },
    /// The breaker of a route to this cluster, by the route's name.
    Route(String),
    /// Nothing: its cluster is only there to be a limit.
    Limit,
}

/// Who has which number.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    clusters: BTreeMap<String, ClusterId>,
    endpoints: BTreeMap<(ClusterId, EndpointKey), EndpointId>,
    /// Those that the plan in the making has.
    clusters_next: BTreeMap<String, ClusterId>,
    endpoints_next: BTreeMap<(ClusterId, EndpointKey), EndpointId>,
    clusters_end: ClusterId,
    endpoints_end: EndpointId,
    rate_limits: BTreeMap<String, RateLimitId>,
    rate_limits_next: BTreeMap<String, RateLimitId>,
    rate_limits_end: u32,
}

impl Registry {
    /// The number of a cluster in the plan that is being made.
    pub fn cluster(&mut self, name: &str) -> ClusterId {
        if let Some(id) = self.clusters_next.get(name) {
            return *id;
        }
        let id = self.clusters.get(name).copied().unwrap_or_else(|| {
            let id = self.clusters_end;
            self.clusters_end = ClusterId(id.0 + 1);
            id
        });
        self.clusters_next.insert(name.to_owned(), id);
        id
    }

    /// The number of an endpoint in the plan that is being made.
    pub fn endpoint(&mut self, cluster: ClusterId, key: EndpointKey) -> EndpointId {
        let key = (cluster, key);
        if let Some(id) = self.endpoints_next.get(&key) {
            return *id;
        }
        let id = self.endpoints.get(&key).copied().unwrap_or_else(|| {
            let id = self.endpoints_end;
            self.endpoints_end = EndpointId(id.0 + 1);
            id
        });
        self.endpoints_next.insert(key, id);
        id
    }

    /// The number of a rate limit in the plan that is being made. `identity`: its name, and what it
    /// tells requests apart by; if that changes, it is another.
    pub fn rate_limit(&mut self, identity: String) -> RateLimitId {
        let id = self.rate_limits.get(&identity).copied().unwrap_or_else(|| {
            let id = RateLimitId(self.rate_limits_end);
            self.rate_limits_end += 1;
            id
        });
        self.rate_limits_next.insert(identity, id);
        id
    }

    /// The plan is made: who is not in it is gone. Gives the ends for
    /// [`super::PlanSpec::clusters_end`] and [`super::PlanSpec::endpoints_end`].
    pub fn finish(&mut self) -> (ClusterId, EndpointId) {
        self.clusters = std::mem::take(&mut self.clusters_next);
        self.endpoints = std::mem::take(&mut self.endpoints_next);
        self.rate_limits = std::mem::take(&mut self.rate_limits_next);
        (self.clusters_end, self.endpoints_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_keeps_its_number_and_who_returns_does_not() {
        let mut registry = Registry::default();
        let key =
            |port| EndpointKey::Endpoint { address: ([127, 0, 0, 1], port).into(), transport: 0 };
        let app = registry.cluster("app");
        let (one, two) = (registry.endpoint(app, key(1)), registry.endpoint(app, key(2)));
        registry.finish();

        assert_eq!(registry.cluster("app"), app);
        assert_eq!(registry.endpoint(app, key(1)), one);
        assert_eq!(registry.endpoint(app, key(1)), one);
        registry.finish();

        assert_eq!(registry.cluster("app"), app);
        let back = registry.endpoint(app, key(2));
        assert!(back > two);
        assert_eq!(registry.finish(), (ClusterId(1), EndpointId(3)));

        registry.finish();
        assert_ne!(registry.cluster("app"), app, "the cluster was gone for a plan");
    }
}
