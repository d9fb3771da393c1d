//! Names to addresses, for the endpoints that a configuration names. Asks `/etc/hosts` and then
//! the servers of `/etc/resolv.conf`, both read anew each time; literal addresses are never asked
//! for.
//!
//! A name has its IPv4 addresses, or, if there are none, its IPv6 addresses: with both, half of
//! the requests to `localhost` would meet an origin that listens on one only.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Names asked for at the same time.
const CONCURRENCY_MAX: usize = 32;

/// How names are resolved.
#[derive(Debug, Clone)]
pub struct DnsOptions {
    /// The servers to ask; none means those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// How often all names are asked for again. Default 30 s.
    pub interval: Duration,
    /// The same while a name has never been resolved. Default 5 s.
    pub retry_interval: Duration,
    /// What one round may take; what has no answer by then has none. Default 5 s.
    pub timeout: Duration,
}

impl Default for DnsOptions {
    fn default() -> DnsOptions {
        DnsOptions {
            servers: Vec::new(),
            interval: Duration::from_secs(30),
            retry_interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
        }
    }
}

/// What one round has brought.
#[derive(Debug, Default)]
pub(super) struct LookUps {
    /// Sorted, without repetition, and not empty.
    pub answers: HashMap<String, Vec<IpAddr>>,
    /// Names without an answer, and why.
    pub failures: Vec<(String, String)>,
}

/// The last good answer for each name.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    by_name: HashMap<String, Vec<IpAddr>>,
}

impl Answers {
    pub fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// `true` if any answer is not the one that was known.
    pub fn learn(&mut self, answers: HashMap<String, Vec<IpAddr>>) -> bool {
        let mut changed = false;
        for (name, addresses) in answers {
            if self.by_name.get(&name) != Some(&addresses) {
                tracing::info!(name, ?addresses, "resolved");
                self.by_name.insert(name, addresses);
                changed = true;
            }
        }
        changed
    }

    pub fn keep_only(&mut self, names: &[String]) {
        self.by_name.retain(|name, _| names.contains(name));
    }

    /// For the compiler of plans. Literal addresses are their own answer.
    pub fn addresses(&self, host: &str, port: u16) -> Vec<SocketAddr> {
        if let Some(literal) = literal(host) {
            return vec![SocketAddr::new(literal, port)];
        }
        let known = self.by_name.get(host).map_or(&[][..], |addresses| addresses);
        known.iter().map(|address| SocketAddr::new(*address, port)).collect()
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// Asks for all names at once, and returns when all have answered or the time is over.
pub(super) async fn look_up(options: &DnsOptions, names: Vec<String>) -> LookUps {
    let mut look_ups = LookUps::default();
    if names.is_empty() {
        return look_ups;
    }
    let resolver = match resolver(options) {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => {
            look_ups.failures = names.into_iter().map(|name| (name, error.clone())).collect();
            return look_ups;
        }
    };
    let deadline = Instant::now() + options.timeout;
    let room = Arc::new(Semaphore::new(CONCURRENCY_MAX));
    let mut tasks = JoinSet::new();
    for name in names {
        let (resolver, room) = (resolver.clone(), room.clone());
        tasks.spawn(async move {
            let asked = timeout_at(deadline, async {
                let _room = room.acquire().await;
                ask(&resolver, &name).await
            });
            let answer = asked.await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            (name, answer)
        });
    }
    while let Some(finished) = tasks.join_next().await {
        match finished {
            Ok((name, Ok(addresses))) => _ = look_ups.answers.insert(name, addresses),
            Ok((name, Err(error))) => look_ups.failures.push((name, error)),
            // A task that panicked: the process ends by it.
            Err(_) => {}
        }
    }
    look_ups
}

async fn ask(resolver: &TokioResolver, name: &str) -> Result<Vec<IpAddr>, String> {
    let answer = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
    let mut addresses: Vec<_> = answer.iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err("the answer holds no address".to_owned());
    }
    Ok(addresses)
}

/// Made anew for each round, so that changes of the system's files are seen and nothing is cached.
fn resolver(options: &DnsOptions) -> Result<TokioResolver, String> {
    // Without a resolv.conf, or with one that names no server, names in /etc/hosts still work.
    let (mut config, mut opts) = read_system_conf().unwrap_or_else(|_| {
        (ResolverConfig::from_parts(None, vec![], vec![]), ResolverOpts::default())
    });
    if !options.servers.is_empty() {
        config = ResolverConfig::from_name_servers(
            options.servers.iter().map(|server| name_server(*server)).collect(),
        );
    }
    opts.use_hosts_file = ResolveHosts::Always;
    opts.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    opts.cache_size = 0;
    // The round's own limit is the last word; within it a lost packet is asked for again.
    opts.timeout = opts.timeout.min(options.timeout / 3);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(opts)
        .build()
        .map_err(|error| error.to_string())
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}
