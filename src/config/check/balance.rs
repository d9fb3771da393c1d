//! Which endpoints a request is for: priorities, zones, slices, and clusters that stand in for others.

use std::collections::{BTreeSet, HashMap};

use super::Checker;
use crate::config::model::{Aperture, Balance, Cluster, Config, Endpoint, ZoneAware};
use crate::config::values::Name;
use crate::health::TIERS_MAX;

impl Checker<'_> {
    /// `path` is the cluster's.
    pub(super) fn parts(&mut self, path: &str, cluster: &Cluster) {
        let used = || cluster.endpoints.iter().filter(|endpoint| endpoint.weight > 0);
        let priorities: BTreeSet<u32> = used().map(|endpoint| endpoint.priority).collect();
        if priorities.len() > TIERS_MAX as usize {
            self.error(
                &format!("{path}.endpoints"),
                format!("there are {} different priorities", priorities.len()),
                format!("{TIERS_MAX} at most: give neighbours the same"),
            );
        }
        let ZoneAware { spill_above, .. } = cluster.zone_aware;
        let at = |key: &str| format!("{path}.zone_aware.{key}");
        if spill_above == 0 {
            self.error(
                &at("spill_above"),
                "with 0 in flight, no request would stay in its zone",
                "write 1 or more, or leave out the zones",
            );
        }
        let hashes = matches!(cluster.balance, Balance::RingHash(_) | Balance::Maglev(_));
        if hashes && cluster.zone_aware != ZoneAware::default() {
            self.error(
                &format!("{path}.zone_aware"),
                "a key has one endpoint, whatever its zone",
                "remove it, or choose another 'balance'",
            );
        }
        if let Some(aperture) = &cluster.aperture {
            self.aperture(&format!("{path}.aperture"), cluster, aperture);
        }
    }

    fn aperture(&mut self, path: &str, cluster: &Cluster, aperture: &Aperture) {
        if !matches!(cluster.balance, Balance::LeastRequest | Balance::PeakEwma) {
            self.error(
                path,
                "slices are for balance: least_request and peak_ewma",
                "remove 'aperture', or choose one of these",
            );
        }
        let parted = |endpoint: &&Endpoint| endpoint.priority != cluster.endpoints[0].priority;
        if cluster.endpoints.iter().any(|endpoint| parted(&endpoint)) {
            self.error(
                path,
                "endpoints of several priorities have no slices",
                "remove 'aperture', or put them into a cluster of their own, as fallback_cluster",
            );
        }
        if self.config.zone.is_some() && cluster.endpoints.iter().any(|it| it.zone.is_some()) {
            self.error(
                path,
                "a slice takes endpoints of all zones",
                "remove 'aperture', or the zones of the endpoints",
            );
        }
        let at = |key: &str| format!("{path}.{key}");
        if aperture.min_aperture < 2 {
            self.error(
                &at("min_aperture"),
                format!("a choice of two needs two, not {}", aperture.min_aperture),
                "write 2 or more; 12 is the default",
            );
        }
        if aperture.max_load == 0 {
            self.error(&at("max_load"), "max_load is 0", "write 2, the default");
        }
    }

    /// Zones that nothing comes of. `zone` of the proxy is often a variable, so these are no errors.
    pub(super) fn zones(&mut self) {
        let clusters = &self.config.clusters;
        let zones: BTreeSet<&Name> = clusters
            .iter()
            .flat_map(|cluster| &cluster.endpoints)
            .filter_map(|endpoint| endpoint.zone.as_ref())
            .collect();
        match &self.config.zone {
            Some(own) if !zones.is_empty() && !zones.contains(own) => {
                let known: Vec<&str> = zones.iter().map(|zone| zone.0.as_str()).collect();
                self.warn(
                    "zone",
                    format!("no endpoint is in zone '{own}'"),
                    format!("there are {}", known.join(", ")),
                );
            }
            Some(own) if zones.is_empty() => {
                self.warn(
                    "zone",
                    format!("no endpoint has a zone, so '{own}' changes nothing"),
                    "give endpoints their zone, or remove it",
                );
            }
            None if !zones.is_empty() => {
                let given = clusters.iter().enumerate().find_map(|(index, cluster)| {
                    let at = cluster.endpoints.iter().position(|it| it.zone.is_some())?;
                    Some(format!("clusters.{index}.endpoints.{at}.zone"))
                });
                self.warn(
                    &given.unwrap_or_default(),
                    "endpoints have zones, but this proxy has none: they change nothing",
                    "add zone: NAME at the top, from a variable for instance: zone: ${ZONE}",
                );
            }
            _ => {}
        }
    }

    /// Clusters that stand in: known, and not for themselves in the end.
    pub(super) fn fallbacks(&mut self) {
        let fallbacks = self.config.fallbacks();
        for (index, cluster) in self.config.clusters.iter().enumerate() {
            let Some(name) = &cluster.fallback_cluster else { continue };
            let path = format!("clusters.{index}.fallback_cluster");
            self.known(&path, name, &self.names.clusters, "cluster");
            self.circle(&path, &cluster.name, name, &fallbacks);
        }
        for (index, route) in self.config.routes.iter().enumerate() {
            let Some(name) = &route.fallback_cluster else { continue };
            let path = format!("routes.{index}.fallback_cluster");
            if route.redirect.is_some() || route.respond.is_some() {
                self.error(&path, "'fallback_cluster' is for routes that forward", "remove it");
                continue;
            }
            self.known(&path, name, &self.names.clusters, "cluster");
            let parts = route.clusters.iter().map(|part| &part.name);
            for own in route.cluster.iter().chain(parts) {
                self.circle(&path, own, name, &fallbacks);
            }
        }
    }

    /// Says if the way from `first` leads to `own`. A circle elsewhere is said there.
    fn circle(&mut self, path: &str, own: &Name, first: &Name, fallbacks: &HashMap<&Name, &Name>) {
        let steps = std::iter::successors(Some(first), |name| fallbacks.get(name).copied());
        let mut steps = steps.take(self.config.clusters.len());
        let mut names = Vec::new();
        let leads_back = steps.any(|name| {
            names.push(name.0.as_str());
            name == own
        });
        if leads_back {
            self.error(
                path,
                format!("'{own}' falls back to itself: {own}, {}", names.join(", ")),
                "name a cluster that does not come back here, or none",
            );
        }
    }
}

impl Config {
    /// Which cluster stands in for which.
    pub(super) fn fallbacks(&self) -> HashMap<&Name, &Name> {
        let clusters = self.clusters.iter();
        clusters.filter_map(|it| Some((&it.name, it.fallback_cluster.as_ref()?))).collect()
    }
}
