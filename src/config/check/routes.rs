//! Routes: one action each, clusters that exist, requests that reach them.

use std::collections::{HashMap, HashSet};

use super::{Checker, WEIGHTS_MAX};
use crate::config::model::{Config, Match, Redirect, Respond, Retries, Route};
use crate::config::values::{Authority, HostPattern, Name};

/// A direct answer is kept in memory by the plan.
const RESPOND_BYTES_MAX: usize = 64 * 1024;

impl Checker<'_> {
    pub(super) fn routes(&mut self) {
        let Config { routes, clusters, .. } = self.config;
        if routes.is_empty() && clusters.is_empty() {
            self.error(
                "clusters",
                "there is nothing to serve: neither clusters nor routes",
                "add a cluster: clusters: [{name: app, endpoints: [127.0.0.1:9000]}]",
            );
        } else if routes.is_empty() && clusters.len() > 1 {
            self.error(
                if self.root.find("routes").is_some() { "routes" } else { "clusters" },
                format!("there are {} clusters, but no routes that choose one", clusters.len()),
                format!("add routes: [{{cluster: {}}}]", clusters[0].name),
            );
        }
        self.unique(routes.iter().map(|it| &it.name), "routes", "route");
        for (index, route) in routes.iter().enumerate() {
            let path = format!("routes.{index}");
            self.action(&path, route);
            self.retries(&path, route);
            self.fallback(&path, route);
            self.matches(&format!("{path}.match"), &route.matches);
            for (at, name) in route.listeners.iter().enumerate() {
                self.known(
                    &format!("{path}.listeners.{at}"),
                    name,
                    &self.names.listeners,
                    "listener",
                );
            }
            let timeouts = route.timeouts;
            let (answer, total) =
                (format!("{path}.timeouts.answer"), format!("{path}.timeouts.total"));
            if self.given(&answer)
                && self.given(&total)
                && !timeouts.total.0.is_zero()
                && (timeouts.answer > timeouts.total)
            {
                self.error(
                    &answer,
                    format!(
                        "the answer may take {}, but everything only {}",
                        timeouts.answer, timeouts.total
                    ),
                    "lower 'answer', or raise 'total'",
                );
            }
        }
    }

    fn action(&mut self, path: &str, route: &Route) {
        let forwards = route.cluster.is_some() || !route.clusters.is_empty();
        let actions: Vec<&str> = [
            ("cluster", route.cluster.is_some()),
            ("clusters", !route.clusters.is_empty() || self.given(&format!("{path}.clusters"))),
            ("redirect", route.redirect.is_some()),
            ("respond", route.respond.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect();
        match actions.as_slice() {
            [] => self.error(
                path,
                "this route does nothing",
                "add one of cluster, clusters, redirect, respond",
            ),
            [_] => {}
            [first, second, ..] => self.error(
                &format!("{path}.{second}"),
                format!("'{first}' and '{second}' are both given"),
                "a route does one thing: keep one",
            ),
        }
        if !forwards && !actions.is_empty() {
            self.only_for_forwarding(path, route);
        }
        if route.prefix_rewrite.is_some() && route.preserve_path {
            self.error(
                &format!("{path}.preserve_path"),
                "'prefix_rewrite' changes the path that 'preserve_path' keeps",
                "keep one of the two",
            );
        }
        self.targets(path, route);
        if let Some(redirect) = &route.redirect {
            self.redirect(&format!("{path}.redirect"), redirect);
        }
        if let Some(respond) = &route.respond {
            self.respond(&format!("{path}.respond"), respond);
        }
    }

    fn targets(&mut self, path: &str, route: &Route) {
        let known = &self.names.clusters;
        if let Some(name) = &route.cluster {
            self.known(&format!("{path}.cluster"), name, known, "cluster");
        }
        let mut seen = HashSet::new();
        for (at, part) in route.clusters.iter().enumerate() {
            let at_path = format!("{path}.clusters.{at}");
            self.known(&format!("{at_path}.name"), &part.name, known, "cluster");
            self.weight(&at_path, part.weight);
            if !seen.insert(&part.name) {
                self.error(
                    &format!("{at_path}.name"),
                    format!("cluster '{}' is there twice", part.name),
                    "give it once, with a larger weight",
                );
            }
        }
        if route.breaker {
            self.route_breaker(path, route);
        }
        if self.given(&format!("{path}.clusters")) && route.clusters.is_empty() {
            self.error(
                &format!("{path}.clusters"),
                "no clusters to choose from",
                "name at least one",
            );
        } else if !route.clusters.is_empty() && route.clusters.iter().all(|it| it.weight == 0) {
            self.error(
                &format!("{path}.clusters"),
                "every cluster of this route has weight 0",
                "give one of them a weight of 1 or more",
            );
        } else if route.clusters.iter().map(|it| u64::from(it.weight)).sum::<u64>() > WEIGHTS_MAX {
            self.error(
                &format!("{path}.clusters"),
                format!("the weights add up to more than {WEIGHTS_MAX}"),
                "only their ratio counts: divide them all",
            );
        }
    }

    /// What a redirect or a direct answer cannot use.
    fn only_for_forwarding(&mut self, path: &str, route: &Route) {
        for (field, given) in [
            ("prefix_rewrite", route.prefix_rewrite.is_some()),
            ("host_rewrite", route.host_rewrite.is_some()),
            ("preserve_path", route.preserve_path),
            ("breaker", route.breaker),
            ("retries", route.retries != Retries::default()),
            ("fallback", route.fallback.is_some()),
        ] {
            if given {
                self.error(
                    &format!("{path}.{field}"),
                    format!("'{field}' is for routes that forward"),
                    match (field, &route.redirect) {
                        ("prefix_rewrite", Some(_)) => "put it inside 'redirect'",
                        ("host_rewrite", Some(_)) => "use 'host' inside 'redirect'",
                        _ => "remove it",
                    },
                );
            }
        }
    }

    fn redirect(&mut self, path: &str, redirect: &Redirect) {
        if ![301, 302, 303, 307, 308].contains(&redirect.status) {
            self.error(
                &format!("{path}.status"),
                format!("{} is no redirect", redirect.status),
                "write 301, 302, 303, 307 or 308",
            );
        }
        if redirect.scheme.is_none()
            && redirect.host.is_none()
            && redirect.port.is_none()
            && redirect.path.is_none()
            && redirect.prefix_rewrite.is_none()
        {
            self.error(
                path,
                "this redirect leads back to itself",
                "give scheme, host, port, path or prefix_rewrite",
            );
        }
        if redirect.path.is_some() && redirect.prefix_rewrite.is_some() {
            self.error(
                &format!("{path}.prefix_rewrite"),
                "'path' and 'prefix_rewrite' are both given",
                "keep one of the two",
            );
        }
        let port_of_host = redirect.host.as_ref().and_then(Authority::port);
        if port_of_host.is_some() && redirect.port.is_some() {
            self.error(&format!("{path}.port"), "'host' has a port already", "keep one of the two");
        }
        if redirect.port == Some(0) {
            self.error(&format!("{path}.port"), "a port is 1 to 65535", "");
        }
    }

    pub(super) fn respond(&mut self, path: &str, respond: &Respond) {
        if !(200..=599).contains(&respond.status) {
            self.error(
                &format!("{path}.status"),
                format!("{} is no status of a final answer", respond.status),
                "write 200 to 599",
            );
        }
        if matches!(respond.status, 204 | 205 | 304) && !respond.body.is_empty() {
            self.error(
                &format!("{path}.body"),
                format!("an answer with status {} has no body", respond.status),
                "remove it (RFC 9110, 6.4.1)",
            );
        }
        if respond.body.len() > RESPOND_BYTES_MAX {
            self.error(
                &format!("{path}.body"),
                "a direct answer has at most 64KiB",
                "serve it from an origin",
            );
        }
    }

    fn matches(&mut self, path: &str, matches: &Match) {
        if matches.host.is_some() && !matches.hosts.is_empty() {
            self.error(
                &format!("{path}.hosts"),
                "'host' and 'hosts' are both given",
                "merge the two",
            );
        }
        for (at, host) in matches.hosts.iter().enumerate() {
            if matches.hosts[..at].contains(host) {
                self.warn(
                    &format!("{path}.hosts.{at}"),
                    format!("'{host}' is there twice"),
                    "keep one",
                );
            }
        }
        if matches.path.is_some() && matches.prefix.is_some() {
            self.error(
                &format!("{path}.prefix"),
                "'path' and 'prefix' are both given",
                "keep one of the two",
            );
        }
        for (at, header) in matches.headers.iter().enumerate() {
            let conditions = [&header.exact, &header.prefix, &header.suffix, &header.contains];
            self.conditions(&format!("{path}.headers.{at}"), conditions, header.present);
        }
        for (at, query) in matches.query.iter().enumerate() {
            let conditions = [&query.exact, &query.prefix, &query.suffix, &query.contains];
            self.conditions(&format!("{path}.query.{at}"), conditions, query.present);
            if query.name.is_empty() {
                self.error(
                    &format!("{path}.query.{at}.name"),
                    "a query parameter has a name",
                    "write what stands before '='",
                );
            }
        }
    }

    fn conditions(&mut self, path: &str, texts: [&Option<String>; 4], present: Option<bool>) {
        let names = ["exact", "prefix", "suffix", "contains"];
        let given: Vec<&str> = names
            .into_iter()
            .zip(texts)
            .filter_map(|(name, text)| text.is_some().then_some(name))
            .chain(present.map(|_| "present"))
            .collect();
        if let [first, second, ..] = given.as_slice() {
            self.error(
                &format!("{path}.{second}"),
                format!("'{first}' and '{second}' are both given"),
                "one condition for each entry: add a second entry",
            );
        }
        for (name, text) in names.into_iter().zip(texts) {
            if name != "exact" && text.as_ref().is_some_and(String::is_empty) {
                self.error(
                    &format!("{path}.{name}"),
                    format!("an empty '{name}' is always there"),
                    "write present: true, or remove the line",
                );
            }
        }
    }

    /// Routes that an earlier one with the same match takes everything from.
    pub(super) fn shadowed(&mut self) {
        let mut seen: HashMap<(Vec<HostPattern>, String), Vec<usize>> = HashMap::new();
        for (index, route) in self.config.routes.iter().enumerate() {
            let pruned = |part: &str| self.root.blame(&format!("routes.{index}.{part}")).pruned;
            if pruned("match") || pruned("listeners") {
                continue;
            }
            let matches = &route.matches;
            let mut hosts: Vec<_> = matches.host.iter().chain(&matches.hosts).cloned().collect();
            hosts.retain(|host| *host != HostPattern::Any);
            hosts.sort();
            let place = match (&matches.path, &matches.prefix) {
                (Some(path), _) => format!("={path}"),
                // A slash at the end of a prefix says nothing more.
                (None, Some(prefix)) => prefix.0.trim_end_matches('/').to_owned(),
                (None, None) => String::new(),
            };
            let earlier = seen.entry((hosts, place)).or_default();
            let first = earlier.iter().copied().find(|first| {
                let (first, route) = (&self.config.routes[*first], route);
                covers(&first.listeners, &route.listeners)
                    && covers(&first.matches.methods, &route.matches.methods)
                    && first.matches.headers.iter().all(|it| route.matches.headers.contains(it))
                    && first.matches.query.iter().all(|it| route.matches.query.contains(it))
            });
            earlier.push(index);
            if let Some(first) = first {
                let line = self.line(&format!("routes.{first}"));
                self.warn(
                    &format!("routes.{index}"),
                    format!("no request reaches this route: the one on line {line} takes them all"),
                    "move it up, or make its match narrower",
                );
            }
        }
    }

    pub(super) fn unused(&mut self) {
        if self.config.routes.is_empty() {
            return;
        }
        if self.root.blame("routes").pruned {
            return;
        }
        let mut used: HashSet<&Name> = HashSet::new();
        for route in &self.config.routes {
            used.extend(&route.cluster);
            used.extend(route.clusters.iter().map(|part| &part.name));
            used.extend(&route.fallback_cluster);
            used.extend(route.fallback.iter().filter_map(|it| it.cluster.as_ref()));
        }
        // Those that stand in for a cluster that is used, in any number of steps.
        let fallbacks = self.config.fallbacks();
        let mut looked: Vec<&Name> = used.iter().copied().collect();
        while let Some(name) = looked.pop() {
            if let Some(next) = fallbacks.get(name)
                && used.insert(next)
            {
                looked.push(next);
            }
        }
        for (index, cluster) in self.config.clusters.iter().enumerate() {
            if !used.contains(&cluster.name) {
                let message = format!("no route leads to cluster '{}'", cluster.name);
                self.warn(&format!("clusters.{index}.name"), message, "");
            }
        }
    }
}

/// Whether a list that means "all" when empty has everything that the other one has.
fn covers<T: PartialEq>(first: &[T], second: &[T]) -> bool {
    first.is_empty() || !second.is_empty() && second.iter().all(|it| first.contains(it))
}
