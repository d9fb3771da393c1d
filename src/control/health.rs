//! Active checks: each endpoint of a cluster that asks for them is tried now and then, once for the
//! whole process. What they find goes into the plan's records ([`crate::health`]).
//!
//! One task for each endpoint: it begins at a random time within the interval, so that checks of
//! many endpoints do not come together, and each pause varies by a tenth. The first result counts at
//! once; after it, `rise` and `fall` in a row are needed, and until they are there it looks more
//! often.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::health::{EndpointHealth, Health};
use crate::http::head::{HeadLimits, Method, Parsed, Scratch, parse_answer};
use crate::plan::{HealthCheck, Plan};
use crate::reconcile::EndpointId;
use crate::rng::Rng;
use crate::time::Nanos;

/// Results that may wait for the control thread's loop.
const RESULTS_MAX: usize = 1024;

/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A change that a check has found.
#[derive(Debug)]
pub struct Found {
    /// Whose.
    pub endpoint: EndpointId,
    /// Whether it is up.
    pub up: bool,
    /// Why not, or empty.
    pub why: String,
}

/// All checks that run.
#[derive(Debug)]
pub struct Checks {
    running: HashMap<EndpointId, Running>,
    results: mpsc::Sender<Found>,
    rng: Rng,
}

#[derive(Debug)]
struct Running {
    check: Arc<HealthCheck>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checks {
    /// None yet; and where their results come.
    pub fn new(seed: u64) -> (Checks, mpsc::Receiver<Found>) {
        let (results, found) = mpsc::channel(RESULTS_MAX);
        (Checks { running: HashMap::new(), results, rng: Rng::new(seed) }, found)
    }

    /// Checks the endpoints of a plan, and no others. Who was checked before in the same way goes
    /// on; who is checked in another way keeps what was found until that finds otherwise; and what
    /// was found of somebody who is not checked any more is forgotten.
    pub fn follow(&mut self, plan: &Plan) {
        let mut before = std::mem::take(&mut self.running);
        for (cluster, health) in plan.clusters.iter().zip(&plan.health) {
            let Some(check) = &cluster.health_check else {
                for (_, record) in health.endpoints() {
                    record.set(Health::Unchecked, Nanos::now());
                }
                say_panic(&cluster.name, health.sum_up());
                continue;
            };
            for (endpoint, (id, record)) in cluster.endpoints.iter().zip(health.endpoints()) {
                let same = before.remove(id).filter(|running| running.check == *check);
                let running = same.unwrap_or_else(|| {
                    let mut address = endpoint.address;
                    address.set_port(check.port.unwrap_or(address.port()));
                    let watch = Watch {
                        endpoint: *id,
                        address,
                        request: request(check, &endpoint.name),
                        check: check.clone(),
                        record: record.clone(),
                        results: self.results.clone(),
                        rng: Rng::new(self.rng.bits()),
                    };
                    Running { check: check.clone(), task: tokio::spawn(watch.run()) }
                });
                self.running.insert(*id, running);
            }
        }
    }
}

/// Says what [`crate::health::ClusterHealth::sum_up`] tells.
pub fn say_panic(cluster: &str, changed: Option<bool>) {
    match changed {
        Some(true) => tracing::error!(cluster, "panic: too few endpoints are up, all are used"),
        Some(false) => tracing::info!(cluster, "panic is over"),
        None => {}
    }
}

/// One endpoint under watch.
struct Watch {
    endpoint: EndpointId,
    address: SocketAddr,
    /// What is sent, where that is a request.
    request: Vec<u8>,
    check: Arc<HealthCheck>,
    record: Arc<EndpointHealth>,
    results: mpsc::Sender<Found>,
    rng: Rng,
}

impl Watch {
    async fn run(mut self) {
        let mut verdict = Verdict::of(self.record.state());
        tokio::time::sleep(self.check.interval.mul_f64(self.draw())).await;
        loop {
            let looked = tokio::time::timeout(
                self.check.timeout,
                look(&self.check, &self.request, self.address),
            );
            let result = looked.await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            match &result {
                Ok(()) => self.record.passed.add(1),
                Err(_) => self.record.failed.add(1),
            }
            if verdict.add(result.is_ok(), self.check.rise, self.check.fall) {
                let up = result.is_ok();
                let found =
                    Found { endpoint: self.endpoint, up, why: result.err().unwrap_or_default() };
                if self.results.send(found).await.is_err() {
                    return;
                }
            }
            let pause = match verdict.is_changing() {
                true => self.check.fast_interval,
                false => self.check.interval,
            };
            tokio::time::sleep(pause.mul_f64(0.9 + 0.2 * self.draw())).await;
        }
    }

    /// From 0 to 1.
    fn draw(&mut self) -> f64 {
        (self.rng.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What the results so far say.
#[derive(Debug, Default)]
struct Verdict {
    up: Option<bool>,
    /// Results in a row that say the contrary.
    against: u32,
}

impl Verdict {
    /// What was found before.
    fn of(state: Health) -> Verdict {
        let up = match state {
            Health::Unchecked => None,
            Health::Up => Some(true),
            Health::Down => Some(false),
        };
        Verdict { up, against: 0 }
    }

    /// One more result. `true`: it has changed.
    fn add(&mut self, passed: bool, rise: u32, fall: u32) -> bool {
        if self.up == Some(passed) {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = match self.up {
            None => 1,
            Some(true) => fall,
            Some(false) => rise,
        };
        if self.against < needed {
            return false;
        }
        self.against = 0;
        self.up = Some(passed);
        true
    }

    fn is_changing(&self) -> bool {
        self.against > 0
    }
}

/// One check, by a connection of its own.
///
/// # Errors
/// What is wrong with the endpoint.
async fn look(check: &HealthCheck, request: &[u8], address: SocketAddr) -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(told)?;
    let Some(http) = &check.http else { return Ok(()) };
    stream.write_all(request).await.map_err(told)?;
    let mut bytes = Vec::with_capacity(1024);
    loop {
        match stream.read_buf(&mut bytes).await.map_err(told)? {
            0 => return Err("it closed before its answer".to_owned()),
            _ if bytes.len() > HEAD_BYTES_MAX => return Err("its head is too large".to_owned()),
            _ => {}
        }
        while let Some((status, length)) = status(&bytes)? {
            if status >= 200 {
                return match http.statuses.iter().any(|range| range.contains(&status)) {
                    true => Ok(()),
                    false => Err(format!("status {status}")),
                };
            }
            bytes.drain(..length);
        }
    }
}

/// What is sent to an endpoint that is called so.
fn request(check: &HealthCheck, endpoint: &str) -> Vec<u8> {
    let Some(http) = &check.http else { return Vec::new() };
    let host = http.host.as_deref().unwrap_or(endpoint);
    let agent = concat!("outrigger/", env!("CARGO_PKG_VERSION"), " health check");
    let path = &http.path;
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

/// The status of the first head in `bytes`, and its length, if all of it is there.
fn status(bytes: &[u8]) -> Result<Option<(u16, usize)>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let limits = HeadLimits { head_bytes_max: HEAD_BYTES_MAX, ..HeadLimits::default() };
    match parse_answer(bytes, &limits, Method::Get, &mut Scratch::new()) {
        Ok(Parsed::Complete(head)) => Ok(Some((head.status, head.len))),
        Ok(Parsed::Partial) => Ok(None),
        Err(_) => Err("what it says is no HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_result_counts_and_then_several_in_a_row() {
        let mut verdict = Verdict::default();
        let mut add = |passed| (verdict.add(passed, 2, 3), verdict.is_changing());
        assert_eq!(add(true), (true, false));
        assert_eq!(add(true), (false, false));
        assert_eq!(add(false), (false, true));
        assert_eq!(add(false), (false, true));
        assert_eq!(add(true), (false, false), "it begins anew");
        assert_eq!(
            [add(false), add(false), add(false)],
            [(false, true), (false, true), (true, false)]
        );
        assert_eq!(
            [add(true), add(false), add(true), add(true)],
            [(false, true), (false, false), (false, true), (true, false)]
        );
        let mut verdict = Verdict::default();
        assert!(verdict.add(false, 2, 3), "down from the beginning");
    }

    #[test]
    fn a_verdict_outlives_its_check() {
        let mut verdict = Verdict::of(Health::Up);
        assert_eq!([false; 3].map(|passed| verdict.add(passed, 2, 3)), [false, false, true]);
        let mut verdict = Verdict::of(Health::Down);
        assert_eq!([true; 2].map(|passed| verdict.add(passed, 2, 3)), [false, true]);
        assert!(Verdict::of(Health::Unchecked).add(false, 2, 3));
    }

    #[test]
    fn statuses_are_read_from_heads() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n\r\n"), Ok(Some((204, 27))));
        assert_eq!(status(b"HTTP/1.0 503 Busy\r\n"), Ok(None));
        assert!(status(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").is_err());
    }
}
