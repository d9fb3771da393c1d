//! Host names of endpoints, without asking anybody: what the command line says, what the running
//! process has found, or nothing.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::Running;
use crate::config::{Cluster, Config, EndpointAddress};

/// As curl's `--resolve HOST:PORT:ADDRESS[,ADDRESS]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    host: String,
    port: u16,
    addresses: Vec<IpAddr>,
}

impl FromStr for Resolve {
    type Err = String;

    fn from_str(text: &str) -> Result<Resolve, String> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let (host, port) = (parts.next()?.to_ascii_lowercase(), parts.next()?.parse().ok()?);
            let addresses = parts.next()?.split(',');
            let bare = |text: &str| text.trim_matches(['[', ']']).parse().ok();
            Some(Resolve { host, port, addresses: addresses.map(bare).collect::<Option<_>>()? })
        };
        parse().ok_or_else(|| "write HOST:PORT:ADDRESS, as in app.internal:80:10.0.0.1".to_owned())
    }
}

/// Addresses for names, while a plan is compiled.
pub(super) struct Names<'a> {
    pub config: &'a Config,
    pub running: Option<&'a Running>,
    pub given: &'a [Resolve],
    /// How many have no address.
    pub unknown: u16,
}

impl Names<'_> {
    /// The addresses of a name; one that nobody has, see [`is_known`], where there are none.
    pub fn addresses(&mut self, host: &str, port: u16) -> Vec<SocketAddr> {
        let is_it = |it: &&Resolve| it.port == port && it.host.eq_ignore_ascii_case(host);
        if let Some(Resolve { addresses, .. }) = self.given.iter().find(is_it) {
            return addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
        }
        if let Ok(literal) = host.trim_matches(['[', ']']).parse() {
            return vec![SocketAddr::new(literal, port)];
        }
        if host.eq_ignore_ascii_case("localhost") {
            return vec![SocketAddr::from(([127, 0, 0, 1], port))];
        }
        let found = self.config.clusters.iter().find_map(|cluster| self.found(cluster, host, port));
        found.unwrap_or_else(|| {
            self.unknown += 1;
            vec![SocketAddr::new(
                Ipv6Addr::new(DISCARD, 0, 0, 0, 0, 0, 0, self.unknown).into(),
                port,
            )]
        })
    }

    /// What the running process has found for a name: all in its cluster that FILE does not name by
    /// address, if no other name has this port.
    fn found(&self, cluster: &Cluster, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        let mut literal = Vec::new();
        let mut names = Vec::new();
        for endpoint in cluster.endpoints.iter().filter(|endpoint| endpoint.weight > 0) {
            match &endpoint.address {
                EndpointAddress::Socket(address) => literal.push(*address),
                EndpointAddress::Host(name, of) if *of == port => names.push(name),
                EndpointAddress::Host(..) => {}
            }
        }
        if names != [host] {
            return None;
        }
        let breakers = self.running?.breakers.iter();
        let own = breakers.filter(|it| it.cluster == *cluster.name && it.kind == "endpoint");
        let addresses = own.filter_map(|it| it.endpoint.parse::<SocketAddr>().ok());
        let found: Vec<_> =
            addresses.filter(|it| it.port() == port && !literal.contains(it)).collect();
        (!found.is_empty()).then_some(found)
    }
}

/// The first word of 100::/64, where nobody is (RFC 6666).
const DISCARD: u16 = 0x100;

/// Whether an address is one.
pub(super) fn is_known(address: &SocketAddr) -> bool {
    !matches!(address, SocketAddr::V6(v6) if v6.ip().segments()[..7] == [DISCARD, 0, 0, 0, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolve_is_curls() {
        let read = |text: &str| text.parse::<Resolve>();
        let two = Resolve {
            host: "app.internal".into(),
            port: 80,
            addresses: vec![[10, 0, 0, 1].into(), "::1".parse().unwrap()],
        };
        assert_eq!(read("App.internal:80:10.0.0.1,[::1]"), Ok(two));
        for bad in ["", "a", "a:80", "a:80:", "a:x:10.0.0.1", "a:80:b"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_nobody_knows_are_told_apart() {
        let config = Config::default();
        let given = ["a:80:10.0.0.1".parse().unwrap()];
        let mut names = Names { config: &config, running: None, given: &given, unknown: 0 };
        let mut ask = |host, port| names.addresses(host, port);
        assert_eq!(ask("A", 80), [SocketAddr::from(([10, 0, 0, 1], 80))]);
        assert_eq!(ask("localhost", 1), [SocketAddr::from(([127, 0, 0, 1], 1))]);
        let (one, two) = (ask("a", 81), ask("b", 81));
        assert!(one != two && !is_known(&one[0]) && !is_known(&two[0]));
        assert!(
            is_known(&"[::1]:1".parse().unwrap()) && is_known(&"[100::1:0:1]:1".parse().unwrap())
        );
    }
}
