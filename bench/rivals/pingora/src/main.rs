//! The smallest proxy on Pingora that does what the bench asks of all of them.
//!
//! ```text
//! pingora-rival --listen 127.0.0.1:8080 --threads 1 --origin 127.0.0.1:9000 [--origin ...]
//! ```
//!
//! With several origins it takes the less busy of two random ones. No modules, no log, no filters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use pingora_core::Result;
use pingora_core::modules::http::HttpModules;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Idle connections on either side live so long, in seconds: as with the other proxies.
const IDLE_SECONDS: u64 = 600;

/// Kept connections to the origins; as with the other proxies.
const POOL: usize = 1024;

struct Origin {
    address: String,
    in_flight: AtomicUsize,
}

/// Counts a request for as long as it lives.
#[derive(Default)]
struct InFlight(Option<Arc<Origin>>);

impl InFlight {
    fn at(origin: &Arc<Origin>) -> Self {
        origin.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Some(origin.clone()))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(origin) = &self.0 {
            origin.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

struct Bench {
    origins: Vec<Arc<Origin>>,
}

impl Bench {
    fn pick(&self) -> &Arc<Origin> {
        let [only] = &self.origins[..] else {
            let count = self.origins.len();
            let first = fastrand::usize(..count);
            let second = (first + fastrand::usize(1..count)) % count;
            let load = |index: usize| self.origins[index].in_flight.load(Ordering::Relaxed);
            return &self.origins[if load(second) < load(first) { second } else { first }];
        };
        only
    }
}

#[async_trait]
impl ProxyHttp for Bench {
    type CTX = InFlight;

    fn new_ctx(&self) -> InFlight {
        InFlight::default()
    }

    // The default adds compression.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, _: &mut InFlight) -> Result<()> {
        session.set_keepalive(Some(IDLE_SECONDS));
        Ok(())
    }

    async fn upstream_peer(&self, _: &mut Session, ctx: &mut InFlight) -> Result<Box<HttpPeer>> {
        let origin = self.pick();
        *ctx = InFlight::at(origin);
        Ok(Box::new(HttpPeer::new(origin.address.as_str(), false, String::new())))
    }
}

fn main() {
    let (mut listen, mut threads, mut origins) = (String::new(), 1, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().expect("each flag has a value");
        match flag.as_str() {
            "--listen" => listen = value,
            "--threads" => threads = value.parse().expect("a number of threads"),
            "--origin" => {
                origins.push(Arc::new(Origin { address: value, in_flight: AtomicUsize::new(0) }));
            }
            _ => panic!("{flag} is no flag: --listen, --threads, --origin"),
        }
    }
    let conf = ServerConf {
        threads,
        // Each thread keeps its connections, which costs less than moving them.
        work_stealing: false,
        upstream_keepalive_pool_size: POOL,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bench { origins });
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever();
}
