//! What one field cannot know: names that must exist, be unique, or fit together. Everything that
//! is wrong is found in one go; what only follows from an error already reported is not said.

use std::collections::{HashMap, HashSet};

use crate::balance::RING_SIZE_MAX;
use crate::http::head::FIELDS_MAX;

use super::error::{FINDINGS_MAX, Finding, Place, Severity, SourceText, clip};
use super::machine::Machine;
use super::model::{
    Balance, Config, CpuList, Encoded, Listener, Match, PerCore, Route, ShardCount,
};
use super::suggest;
use super::tree::Node;
use super::values::{HostPattern, Name, Size};

/// Entries of an io_uring submission queue; io_uring_setup(2).
const RING_ENTRIES_MAX: u32 = 32_768;

/// Fewer would be handed to the kernel one by one.
const RING_ENTRIES_MIN: u32 = 32;

/// A page.
const BUFFER_BYTES_MIN: u64 = 4 * 1024;

/// Each busy connection takes one.
const BUFFER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The kernel keeps the backlog in 16 bits in places.
const BACKLOG_MAX: u32 = 65_535;

/// Keeps the sum of weights within 64 bits, whatever their number.
const WEIGHT_MAX: u32 = 1_000_000;

/// A direct answer is kept in memory by the plan.
const RESPOND_BYTES_MAX: usize = 64 * 1024;

/// The smallest head that a real client sends fits.
const HEAD_BYTES_MIN: u64 = 512;

/// What lists may refer to, taken from the text before anything was cut out of it.
pub(crate) struct Names {
    listeners: Vec<String>,
    clusters: Vec<String>,
}

impl Names {
    /// The names in `root`.
    pub(crate) fn of(root: &Node) -> Names {
        let listed = |list: &str| -> Vec<String> {
            let items = root.find(list).map_or(&[][..], Node::items);
            let name = |item: &Node| {
                let named = ["name", "address"].iter().find_map(|key| item.find(key)?.text());
                Some(named?.to_owned())
            };
            items.iter().filter_map(name).collect()
        };
        Names { listeners: listed("listeners"), clusters: listed("clusters") }
    }
}

/// Looks at everything; the findings stand in the order of the checks.
pub(crate) fn check(
    config: &Config,
    root: &Node,
    names: &Names,
    machine: &Machine,
    sources: &[SourceText],
) -> Vec<Finding> {
    let mut checker = Checker { config, root, names, sources, findings: Vec::new() };
    checker.shards(machine);
    checker.listeners();
    checker.clusters();
    checker.routes();
    checker.shadowed();
    checker.unused();
    checker.findings
}

struct Checker<'a> {
    config: &'a Config,
    root: &'a Node,
    names: &'a Names,
    sources: &'a [SourceText],
    findings: Vec<Finding>,
}

impl Checker<'_> {
    /// An error at the value of `path`.
    fn error(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.say(Severity::Error, path, message.into(), help.into());
    }

    fn warn(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.say(Severity::Warning, path, message.into(), help.into());
    }

    fn say(&mut self, severity: Severity, path: &str, message: String, help: String) {
        let blame = self.root.blame(path);
        if !blame.pruned && self.findings.len() < FINDINGS_MAX {
            let help = Some(help).filter(|help| !help.is_empty());
            self.findings.push(Finding { severity, message, help, span: blame.value });
        }
    }

    /// The line of `path`, for a message about another place.
    fn line(&self, path: &str) -> usize {
        if self.findings.len() >= FINDINGS_MAX {
            return 0; // Nobody will read it.
        }
        let span = self.root.blame(path).value;
        self.sources.get(usize::from(span.source)).map_or(0, |it| Place::new(it, span).line)
    }

    fn given(&self, path: &str) -> bool {
        self.root.find(path).is_some_and(|node| !node.is_null())
    }

    fn shards(&mut self, machine: &Machine) {
        let shards = &self.config.shards;
        let allowed = list(&machine.cpus);
        if let Some(CpuList(cpus)) = &shards.cpus {
            if self.given("shards.count") && shards.count != ShardCount::Auto {
                self.error(
                    "shards.count",
                    "'count' and 'cpus' are both given",
                    "keep one: 'cpus' already says how many",
                );
            }
            if cpus.is_empty() {
                self.error("shards.cpus", "no CPUs, no shards", "name at least one CPU");
            }
            for (index, cpu) in cpus.iter().enumerate() {
                let path = match self.given(&format!("shards.cpus.{index}")) {
                    true => format!("shards.cpus.{index}"),
                    false => "shards.cpus".to_owned(),
                };
                if !machine.cpus.contains(cpu) {
                    self.error(
                        &path,
                        format!("CPU {cpu} is not there, or not allowed to this process"),
                        format!("allowed: {allowed}"),
                    );
                } else if cpus[..index].contains(cpu) {
                    self.error(
                        &path,
                        format!("CPU {cpu} is named twice"),
                        "one shard for each CPU",
                    );
                }
            }
        } else if let ShardCount::Exactly(count) = shards.count
            && count as usize > machine.cpus.len()
        {
            self.warn(
                "shards.count",
                format!("{count} shards share {} CPUs", machine.cpus.len()),
                "a shard of its own for each CPU is faster: 'auto'",
            );
        }
        self.ring("shards", Some(shards.ring_entries), Some(shards.buffer_bytes));
        self.backlog("shards", Some(shards.backlog));
        let mut used = shards.cpus(machine);
        used.sort_unstable();
        used.dedup();
        let lost = ["shards.cpus", "shards.count"].iter().any(|it| self.root.blame(it).pruned);
        for (index, core) in shards.per_core.iter().enumerate() {
            let path = format!("shards.per_core.{index}");
            let PerCore { cpu, ring_entries, buffer_bytes, backlog, .. } = *core;
            if !used.contains(&cpu) && !used.is_empty() && !lost {
                self.error(
                    &format!("{path}.cpu"),
                    format!("no shard runs on CPU {cpu}"),
                    format!("used: {}", list(&used)),
                );
            }
            if shards.per_core[..index].iter().any(|other| other.cpu == cpu) {
                self.error(
                    &format!("{path}.cpu"),
                    format!("CPU {cpu} is overridden twice"),
                    "merge the two",
                );
            }
            self.ring(&path, ring_entries, buffer_bytes);
            self.backlog(&path, backlog);
        }
    }

    fn ring(&mut self, path: &str, ring_entries: Option<u32>, buffer_bytes: Option<Size>) {
        if let Some(entries) = ring_entries
            && !(entries.is_power_of_two()
                && (RING_ENTRIES_MIN..=RING_ENTRIES_MAX).contains(&entries))
        {
            let near = entries.clamp(RING_ENTRIES_MIN, RING_ENTRIES_MAX).next_power_of_two();
            self.error(
                &format!("{path}.ring_entries"),
                format!("a ring has a power of two from {RING_ENTRIES_MIN} to {RING_ENTRIES_MAX} entries"),
                format!("write {near}"),
            );
        }
        if let Some(Size(bytes)) = buffer_bytes
            && !(BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&bytes)
        {
            self.error(
                &format!("{path}.buffer_bytes"),
                "a buffer has 4KiB to 16MiB",
                "64KiB is the default",
            );
        }
    }

    fn backlog(&mut self, path: &str, backlog: Option<u32>) {
        if backlog.is_some_and(|backlog| !(1..=BACKLOG_MAX).contains(&backlog)) {
            let path = format!("{path}.backlog");
            self.error(&path, format!("a backlog is 1 to {BACKLOG_MAX}"), "4096 is the default");
        }
    }

    fn listeners(&mut self) {
        let listeners = &self.config.listeners;
        if listeners.is_empty() {
            self.error(
                "listeners",
                "there is no listener",
                "add one: listeners: [{address: 127.0.0.1:8080}]",
            );
        }
        self.unique(listeners.iter().map(|it| &it.name), "listeners", "listener");
        let mut addresses = HashMap::new();
        for (index, listener) in listeners.iter().enumerate() {
            let address = listener.address.0;
            let path = format!("listeners.{index}");
            if address.port() != 0
                && let Some(first) = addresses.insert(address, index)
            {
                let first = self.called(first);
                self.error(
                    &format!("{path}.address"),
                    format!("{address} is taken by {first}"),
                    "give each listener an address of its own",
                );
            }
            if self.config.admin.address.0 == Some(address) && address.port() != 0 {
                let help = match self.given("admin.address") {
                    true => "give one of them another port",
                    false => "the admin listens there: move it with admin.address",
                };
                self.error(
                    &format!("{path}.address"),
                    format!("{address} is the admin's address"),
                    help,
                );
            }
            self.listener(&path, listener);
        }
        for (index, listener) in listeners.iter().enumerate() {
            let Some(log) = &listener.access_log else { continue };
            let other = listeners[..index].iter().position(|other| {
                other
                    .access_log
                    .as_ref()
                    .is_some_and(|it| it.path == log.path && it.format != log.format)
            });
            if let Some(other) = other {
                let other = self.called(other);
                self.warn(
                    &format!("listeners.{index}.access_log.format"),
                    format!("{other} writes to '{}' in another format", clip(&log.path)),
                    "give each format a file of its own",
                );
            }
        }
    }

    /// How a listener is called in a message.
    fn called(&self, index: usize) -> String {
        match &self.config.listeners[index].name {
            name if name.is_empty() => format!("listener {}", index + 1),
            name => format!("listener '{name}'"),
        }
    }

    fn listener(&mut self, path: &str, listener: &Listener) {
        let Listener { limits, timeouts, forwarded, .. } = listener;
        let fields_max = FIELDS_MAX as u32;
        if !(1..=fields_max).contains(&limits.fields_max) {
            self.error(
                &format!("{path}.limits.fields_max"),
                format!("a head may have 1 to {fields_max} fields"),
                "100 is the default",
            );
        }
        let buffer = self.config.shards.per_core.iter().filter_map(|core| core.buffer_bytes);
        let buffer = buffer.chain([self.config.shards.buffer_bytes]).min().unwrap_or(Size(0));
        if limits.head_bytes_max > buffer {
            let what = match self.given(&format!("{path}.limits.head_bytes_max")) {
                true => format!("{path}.limits.head_bytes_max"),
                false => "shards.buffer_bytes".to_owned(),
            };
            self.error(
                &what,
                format!(
                    "a head of {} does not fit into a buffer of {buffer}",
                    limits.head_bytes_max
                ),
                "lower limits.head_bytes_max, or raise shards.buffer_bytes",
            );
        }
        for (field, value) in
            [("uri_bytes_max", limits.uri_bytes_max), ("head_bytes_max", limits.head_bytes_max)]
        {
            if value.0 < HEAD_BYTES_MIN / 2 {
                self.error(
                    &format!("{path}.limits.{field}"),
                    format!("{value} bytes refuse every real request"),
                    format!("at least {}", HEAD_BYTES_MIN / 2),
                );
            }
        }
        if limits.uri_bytes_max > limits.head_bytes_max {
            let field = match self.given(&format!("{path}.limits.uri_bytes_max")) {
                true => "uri_bytes_max",
                false => "head_bytes_max",
            };
            self.error(
                &format!("{path}.limits.{field}"),
                format!(
                    "the target ({}) may be longer than the head that it is part of ({})",
                    limits.uri_bytes_max, limits.head_bytes_max
                ),
                "lower uri_bytes_max, or raise head_bytes_max",
            );
        }
        if limits.connections_max == 0 {
            self.error(
                &format!("{path}.limits.connections_max"),
                "no connections, no requests",
                "at least 1",
            );
        }
        let rate = timeouts.body_bytes_per_second_min;
        if timeouts.body.0.is_zero()
            && self.given(&format!("{path}.timeouts.body_bytes_per_second_min"))
        {
            self.warn(
                &format!("{path}.timeouts.body_bytes_per_second_min"),
                format!("{rate} bytes a second are never asked for: 'body' is 0"),
                "give 'body' a time",
            );
        }
        if rate.0 > u64::from(u32::MAX) {
            self.error(
                &format!("{path}.timeouts.body_bytes_per_second_min"),
                "nobody is that fast",
                "240 is the default",
            );
        }
        let trusted = format!("{path}.forwarded.trusted");
        for (index, cidr) in forwarded.trusted.cidrs.iter().flatten().enumerate() {
            if cidr.0.prefix_len() == 0 {
                self.warn(
                    &format!("{trusted}.cidrs.{index}"),
                    format!("{cidr} believes everybody: any client can claim any address"),
                    "name your proxies' addresses",
                );
            }
        }
        if listener.path.nul == Some(Encoded::Decode) {
            self.error(&format!("{path}.path.nul"), "%00 is never decoded", "write refuse or keep");
        }
    }

    fn clusters(&mut self) {
        let clusters = &self.config.clusters;
        self.unique(clusters.iter().map(|it| &it.name), "clusters", "cluster");
        for (index, cluster) in clusters.iter().enumerate() {
            let path = format!("clusters.{index}");
            let name = &cluster.name;
            if cluster.endpoints.is_empty() {
                self.error(
                    &format!("{path}.endpoints"),
                    format!("cluster '{name}' has no endpoints"),
                    "add one: endpoints: [127.0.0.1:9000]",
                );
            } else if cluster.endpoints.iter().all(|endpoint| endpoint.weight == 0) {
                self.error(
                    &format!("{path}.endpoints"),
                    format!("every endpoint of cluster '{name}' has weight 0"),
                    "give one of them a weight of 1 or more",
                );
            }
            let mut seen = HashMap::new();
            for (at, endpoint) in cluster.endpoints.iter().enumerate() {
                let at_path = format!("{path}.endpoints.{at}");
                self.weight(&at_path, endpoint.weight);
                if seen.insert(&endpoint.address, at).is_some() {
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
        }
    }

    fn weight(&mut self, path: &str, weight: u32) {
        if weight > WEIGHT_MAX {
            self.error(&format!("{path}.weight"), format!("a weight is 0 to {WEIGHT_MAX}"), "");
        }
    }

    fn routes(&mut self) {
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
        let known = &self.names.clusters;
        if let Some(name) = &route.cluster {
            self.known(&format!("{path}.cluster"), name, known, "cluster");
        }
        for (at, part) in route.clusters.iter().enumerate() {
            let at_path = format!("{path}.clusters.{at}");
            self.known(&format!("{at_path}.name"), &part.name, known, "cluster");
            self.weight(&at_path, part.weight);
            if route.clusters[..at].iter().any(|other| other.name == part.name) {
                self.error(
                    &format!("{at_path}.name"),
                    format!("cluster '{}' is there twice", part.name),
                    "give it once, with a larger weight",
                );
            }
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
        }
        if !forwards {
            for (field, given) in [
                ("prefix_rewrite", route.prefix_rewrite.is_some()),
                ("host_rewrite", route.host_rewrite.is_some()),
                ("preserve_path", route.preserve_path),
            ] {
                if given && !actions.is_empty() {
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
        if route.prefix_rewrite.is_some() && route.preserve_path {
            self.error(
                &format!("{path}.preserve_path"),
                "'prefix_rewrite' changes the path that 'preserve_path' keeps",
                "keep one of the two",
            );
        }
        if forwards && route.prefix_rewrite.is_some() && route.matches.path.is_some() {
            self.error(
                &format!("{path}.prefix_rewrite"),
                "'prefix_rewrite' needs a prefix, but the route matches one path",
                "match with 'prefix' instead of 'path'",
            );
        }
        if let Some(redirect) = &route.redirect {
            let path = format!("{path}.redirect");
            if ![301, 302, 303, 307, 308].contains(&redirect.status) {
                self.error(
                    &format!("{path}.status"),
                    format!("{} is no redirect", redirect.status),
                    "write 301, 302, 303, 307 or 308",
                );
            }
            if redirect.scheme.is_none()
                && redirect.host.is_none()
                && redirect.path.is_none()
                && redirect.prefix_rewrite.is_none()
            {
                self.error(
                    &path,
                    "this redirect leads back to itself",
                    "give scheme, host, path or prefix_rewrite",
                );
            }
            if redirect.path.is_some() && redirect.prefix_rewrite.is_some() {
                self.error(
                    &format!("{path}.prefix_rewrite"),
                    "'path' and 'prefix_rewrite' are both given",
                    "keep one of the two",
                );
            } else if redirect.prefix_rewrite.is_some() && route.matches.path.is_some() {
                self.error(
                    &format!("{path}.prefix_rewrite"),
                    "'prefix_rewrite' needs a prefix, but the route matches one path",
                    "use 'path' here, or match with 'prefix'",
                );
            }
        }
        if let Some(respond) = &route.respond {
            let path = format!("{path}.respond");
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
            if query.name.is_empty() || query.name.contains(['&', '=', '#', ' ']) {
                self.error(
                    &format!("{path}.query.{at}.name"),
                    format!("'{}' is no name of a query parameter", clip(&query.name)),
                    "write it as it stands between '&' and '='",
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
    fn shadowed(&mut self) {
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
                (None, Some(prefix)) => prefix.to_string(),
                (None, None) => "/".to_owned(),
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

    fn unused(&mut self) {
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
        }
        for (index, cluster) in self.config.clusters.iter().enumerate() {
            if !used.contains(&cluster.name) {
                let message = format!("no route leads to cluster '{}'", cluster.name);
                self.warn(&format!("clusters.{index}.name"), message, "");
            }
        }
    }

    fn known(&mut self, path: &str, name: &Name, known: &[String], what: &str) {
        if known.iter().any(|it| *it == name.0) {
            return;
        }
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let help = suggest::help(name, &known, "there are").unwrap_or_default();
        self.error(path, format!("no {what} is named '{name}'"), help);
    }

    /// Every name once. Things without a name may be many.
    fn unique<'n>(&mut self, names: impl Iterator<Item = &'n Name>, list: &str, what: &str) {
        let mut seen: HashMap<&Name, usize> = HashMap::new();
        for (index, name) in names.enumerate() {
            if name.is_empty() {
                continue;
            }
            if let Some(first) = seen.get(name) {
                let line = self.line(&format!("{list}.{first}.name"));
                self.error(
                    &format!("{list}.{index}.name"),
                    format!("two {what}s are named '{name}'"),
                    format!("the other is on line {line}; rename one"),
                );
            } else {
                seen.insert(name, index);
            }
        }
    }
}

/// Whether a list that means "all" when empty has everything that the other one has.
fn covers<T: PartialEq>(first: &[T], second: &[T]) -> bool {
    first.is_empty() || !second.is_empty() && second.iter().all(|it| first.contains(it))
}

/// `0, 1, 2` as a person reads it, not endlessly.
fn list(cpus: &[usize]) -> String {
    const SHOWN_MAX: usize = 16;
    let shown: Vec<String> = cpus.iter().take(SHOWN_MAX).map(usize::to_string).collect();
    match cpus.len() > SHOWN_MAX {
        true => format!("{}, ... {}", shown.join(", "), cpus[cpus.len() - 1]),
        false => shown.join(", "),
    }
}
