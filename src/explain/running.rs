//! What a running process says of itself on its admin pages. Nobody else is ever asked, and nothing
//! is changed there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::Deserialize;

use crate::breaker::Phase;
use crate::health::Health;
use crate::metrics::breakers::BreakerState;
use crate::time::Nanos;

/// Whoever is alive on this machine answers sooner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// For each read; pages are made by a thread that never waits for long.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Larger pages are of something else.
const PAGE_BYTES_MAX: u64 = 64 << 20;

/// A process, as it was when it was asked.
#[derive(Debug)]
pub struct Running {
    /// Where its admin pages are.
    pub address: SocketAddr,
    pub(super) breakers: Vec<Breaker>,
    series: Vec<Series>,
}

/// One row of `/breakers`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Breaker {
    pub cluster: String,
    /// An address, or a route's name.
    pub endpoint: String,
    pub kind: String,
    state: String,
    pub trips: u64,
}

#[derive(Deserialize)]
struct Breakers {
    breakers: Vec<Breaker>,
}

/// One line of `/metrics`.
#[derive(Debug, PartialEq)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Breaker {
    /// Where it stands; closed where that is no word of ours.
    pub fn state(&self) -> BreakerState {
        let known = BreakerState::ALL.into_iter().find(|state| state.name() == self.state);
        known.unwrap_or(BreakerState::Closed)
    }
}

/// The same for a shard. When recovery began is not told: it begins now.
pub(super) fn phase(state: BreakerState, now: Nanos) -> Phase {
    match state {
        BreakerState::Closed => Phase::Closed,
        BreakerState::Open => Phase::Open,
        BreakerState::HalfOpen => Phase::HalfOpen,
        BreakerState::Recovering => Phase::Recovering(now),
        BreakerState::ForcedOpen => Phase::ForcedOpen,
        BreakerState::ForcedClosed => Phase::ForcedClosed,
    }
}

impl Running {
    /// Asks for `/breakers` and `/metrics`.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub fn ask(address: SocketAddr) -> Result<Running, String> {
        let page = |path| get(address, path).map_err(|error| format!("{address}{path}: {error}"));
        let stranger = |_| format!("{address}/breakers: what answers is no Outrigger");
        let Breakers { breakers } = serde_json::from_str(&page("/breakers")?).map_err(stranger)?;
        let series = page("/metrics")?.lines().filter_map(series).collect();
        Ok(Running { address, breakers, series })
    }

    /// One that says this: cluster, kind, name and state of its breakers, and its metrics.
    #[cfg(test)]
    pub(super) fn told(breakers: &[(&str, &str, &str, &str)], metrics: &str) -> Running {
        let breaker = |(cluster, kind, endpoint, state): &(&str, &str, &str, &str)| Breaker {
            cluster: (*cluster).to_owned(),
            endpoint: (*endpoint).to_owned(),
            kind: (*kind).to_owned(),
            state: (*state).to_owned(),
            trips: 0,
        };
        Running {
            address: SocketAddr::from(([127, 0, 0, 1], 9901)),
            breakers: breakers.iter().map(breaker).collect(),
            series: metrics.lines().filter_map(series).collect(),
        }
    }

    /// The breaker of an endpoint (by its address) or of a route (by its name).
    pub(super) fn breaker(&self, cluster: &str, kind: &str, name: &str) -> Option<&Breaker> {
        let is_it = |it: &&Breaker| it.cluster == cluster && it.kind == kind && it.endpoint == name;
        self.breakers.iter().find(is_it)
    }

    /// What checks say.
    pub(super) fn health(&self, cluster: &str, endpoint: &str) -> Health {
        let labels = [("cluster", cluster), ("endpoint", endpoint)];
        match self.value("outrigger_endpoint_up", &labels) {
            None => Health::Unchecked,
            Some(0.0) => Health::Down,
            Some(_) => Health::Up,
        }
    }

    /// Which reload it serves by.
    pub(super) fn generation(&self) -> Option<u64> {
        self.value("outrigger_plan_generation_newest", &[]).map(|value| value as u64)
    }

    /// It went on with what it had.
    pub(super) fn reload_failed(&self) -> bool {
        self.value("outrigger_config_last_reload_successful", &[]) == Some(0.0)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.value("outrigger_draining", &[]) == Some(1.0)
    }

    /// A limit of a cluster.
    pub(super) fn limit(&self, cluster: &str, kind: &str) -> Option<u64> {
        let value = self.value("outrigger_limit", &[("cluster", cluster), ("kind", kind)]);
        value.map(|value| value as u64)
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |series: &Series, (name, value): &(&str, &str)| {
            series.labels.iter().any(|(other, of)| other == name && of == value)
        };
        let found = self
            .series
            .iter()
            .find(|series| series.name == name && labels.iter().all(|label| has(series, label)));
        found.map(|series| series.value)
    }
}

/// A page. By HTTP/1.0: it ends with its connection, and has no chunks.
fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "no answer".to_owned(),
        _ => error.to_string(),
    };
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(failed)?;
    stream.set_read_timeout(Some(READ_TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(READ_TIMEOUT)).map_err(failed)?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("what answers speaks no HTTP")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("it answers {}", head.lines().next().unwrap_or_default())),
    }
}

/// A line as `render` of [`crate::metrics::exposition`] writes it; `None` for comments.
fn series(line: &str) -> Option<Series> {
    let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let (name, mut rest) = series.split_once('{').unwrap_or((series, "}"));
    let mut labels = Vec::new();
    while let Some((label, quoted)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next()? {
                (end, '"') => break end,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.push((label.trim_start_matches(',').to_owned(), value));
        rest = &quoted[end + 1..];
    }
    Some(Series { name: name.to_owned(), labels, value: value.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_metrics_is_read_back() {
        let read = |line| series(line).map(|it| (it.name, it.labels, it.value));
        assert_eq!(read("# TYPE a gauge"), None);
        assert_eq!(read("a 7"), Some(("a".into(), vec![], 7.0)));
        let labels = vec![("b".into(), "x, \"y\"=\\\n".into()), ("c".into(), "".into())];
        let line = r#"a{b="x, \"y\"=\\\n",c=""} 0.5"#;
        assert_eq!(read(line), Some(("a".into(), labels, 0.5)));
        assert_eq!(read(r#"a{b="x"#), None);
    }

    fn answering(page: &'static str) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head);
                let _ = stream.write_all(page.as_bytes());
            }
        });
        address
    }

    #[test]
    fn strangers_are_told_apart() {
        let stranger = Running::ask(answering("HTTP/1.0 200 OK\r\n\r\n<html>")).unwrap_err();
        assert!(stranger.ends_with("what answers is no Outrigger"), "{stranger}");
        let refusing = Running::ask(answering("HTTP/1.1 404 Not Found\r\n\r\n")).unwrap_err();
        assert!(refusing.ends_with("it answers HTTP/1.1 404 Not Found"), "{refusing}");
        let silent = Running::ask(answering("")).unwrap_err();
        assert!(silent.ends_with("speaks no HTTP"), "{silent}");
    }
}
