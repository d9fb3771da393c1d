//! The admin pages: metrics, probes, breakers. GET and HEAD only read; what changes something is a
//! POST.
//!
//! They are for programs and people who reach the address, not for web pages: a request whose
//! `Host` is a name other than `localhost` is refused, since a page of a stranger's could
//! otherwise read the answers through a name that it points at us (DNS rebinding). Addresses are
//! let through: they cannot be pointed anywhere. A POST that a browser sends for a page of another
//! site is refused, too: its sender could not read the answer, but it would have changed something.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use tokio::sync::mpsc;

use super::breakers::{self, Command};
use super::status::Shared;
use crate::metrics::exposition;

/// Binds the address, and writes the one that it became (port 0 lets the kernel choose) to a file.
///
/// # Errors
/// Where it cannot be bound, or the file not be written.
pub fn bind(address: SocketAddr, address_path: Option<&Path>) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    if let Some(path) = address_path {
        write_whole(path, &format!("{}\n", listener.local_addr()?))?;
    }
    Ok(listener)
}

/// Writes a file so that whoever waits for it never sees half of it.
///
/// # Errors
/// Where it cannot be written or renamed.
pub fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    fs::write(&unfinished, text)?;
    fs::rename(&unfinished, path)
}

/// What the pages are made of.
#[derive(Clone)]
pub(super) struct Pages {
    /// What there is to read.
    pub shared: Arc<Shared>,
    /// What there is to do.
    pub commands: mpsc::Sender<Command>,
    /// How long a page waits for every shard.
    pub override_timeout: Duration,
}

impl FromRef<Pages> for Arc<Shared> {
    fn from_ref(pages: &Pages) -> Arc<Shared> {
        pages.shared.clone()
    }
}

/// The server, to be spawned; it ends with the runtime.
///
/// # Errors
/// Where tokio cannot take the listener.
pub(super) fn serve(listener: TcpListener, pages: Pages) -> io::Result<impl Future<Output = ()>> {
    let address = listener.local_addr()?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tracing::info!(%address, "admin pages");
    Ok(async move {
        // Goes on after failed accepts, and returns only when told to, which nobody does.
        let _ = axum::serve(listener, router(pages)).await;
    })
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/stats/prometheus", get(metrics))
        .route("/ready", get(ready))
        .route("/healthz", get(alive))
        .route("/live", get(alive))
        .merge(breakers::pages())
        .layer(middleware::from_fn(refuse_strangers))
        .with_state(pages)
}

async fn index() -> &'static str {
    "outrigger\n\n\
     /metrics  for Prometheus (also /stats/prometheus)\n\
     /ready    200 LIVE while every shard serves, 503 before and while draining\n\
     /healthz  200 while the process runs (also /live)\n\
     /breakers state of every breaker, as JSON; ?format=text: as a table\n\
     \n\
     POST /breakers/CLUSTER/ADDRESS/force-open        no request, on any shard\n\
     POST /breakers/CLUSTER/ADDRESS/force-closed      requests, whatever happens\n\
     POST /breakers/CLUSTER/ADDRESS/auto              by the usual rules again\n\
     POST /breakers/CLUSTER/routes/ROUTE/force-open   and so on: the breaker of a route\n"
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], shared.metrics())
}

async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let status = shared.status();
    let code = if status.live() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(header::CACHE_CONTROL, "no-store")], format!("{}\n", status.state()))
}

/// That it answers is the answer.
async fn alive() -> &'static str {
    "OK\n"
}

async fn refuse_strangers(request: Request, next: Next) -> Response {
    let field = match request.headers().get(header::HOST) {
        Some(value) => value.to_str().ok(),
        // HTTP/1.0 without a Host: not a browser.
        None => Some("localhost"),
    };
    let target = request.uri().authority().map_or("localhost", |authority| authority.as_str());
    if !field.is_some_and(is_own_host) || !is_own_host(target) {
        return (StatusCode::FORBIDDEN, "this Host is not served here\n").into_response();
    }
    if !request.method().is_safe() && is_of_another_site(request.headers()) {
        return (StatusCode::FORBIDDEN, "not from a page of another site\n").into_response();
    }
    next.run(request).await
}

/// Whether a browser says that somebody else's page is behind this. Another port is somebody else,
/// too. Programs that are no browsers say nothing.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_ours = |origin: &str| {
        let authority = origin.strip_prefix("http://");
        authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    };
    let differs = |name: &str, is_ours: &dyn Fn(&str) -> bool| {
        headers.get_all(name).iter().any(|value| !value.to_str().is_ok_and(is_ours))
    };
    differs("origin", &is_ours)
        || differs("sec-fetch-site", &|site| ["same-origin", "none"].contains(&site))
}

/// `localhost` or an address, with or without a port.
fn is_own_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((v6, port)) if is_port(port) => return v6.parse::<std::net::Ipv6Addr>().is_ok(),
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Nothing, or a colon and digits.
fn is_port(text: &str) -> bool {
    text.strip_prefix(':').map_or(text, |digits| digits).bytes().all(|b| b.is_ascii_digit())
        && (text.is_empty() || text.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[test]
    fn own_hosts_are_localhost_and_addresses() {
        for own in ["localhost", "LOCALHOST:1", "127.0.0.1:9901", "[::1]", "[::1]:80", "10.1.2.3"] {
            assert!(is_own_host(own), "{own}");
        }
        for foreign in [
            "",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "localhost:x",
            "[::1]x",
            "[localhost]",
            "::1",
            "[::1",
            "127.0.0.1:80:80",
            "[::1]80",
        ] {
            assert!(!is_own_host(foreign), "{foreign}");
        }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(
            address,
            &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
        )
        .await
    }

    fn start(shared: &Arc<Shared>) -> SocketAddr {
        start_with(shared, Duration::from_millis(50)).0
    }

    /// And what is ordered, which nobody obeys.
    fn start_with(
        shared: &Arc<Shared>,
        override_timeout: Duration,
    ) -> (SocketAddr, mpsc::Receiver<Command>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let listener = bind("127.0.0.1:0".parse().unwrap(), Some(&path)).unwrap();
        let written = fs::read_to_string(&path).unwrap();
        let (commands, ordered) = mpsc::channel(1);
        let pages = Pages { shared: shared.clone(), commands, override_timeout };
        tokio::spawn(serve(listener, pages).unwrap());
        (written.trim_end().parse().unwrap(), ordered)
    }

    #[tokio::test]
    async fn probes_follow_the_state() {
        let shared = Shared::new(vec![Arc::default()], Arc::default());
        let address = start(&shared);
        let before = get(address, "/ready").await;
        assert!(before.starts_with("HTTP/1.1 503 ") && before.ends_with("PRE_INITIALIZING\n"));
        shared.update(|status| status.shards[0].plan_applied = 1);
        let live = get(address, "/ready").await;
        assert!(live.starts_with("HTTP/1.1 200 ") && live.ends_with("LIVE\n"), "{live}");
        shared.update(|status| status.draining = true);
        let draining = get(address, "/ready").await;
        assert!(draining.starts_with("HTTP/1.1 503 ") && draining.ends_with("DRAINING\n"));
        for path in ["/healthz", "/live"] {
            assert!(get(address, path).await.starts_with("HTTP/1.1 200 "), "{path}");
        }
    }

    #[tokio::test]
    async fn metrics_say_their_format() {
        let shared = Shared::new(vec![Arc::default()], Arc::default());
        let answer = get(start(&shared), "/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
        assert!(answer.contains("\noutrigger_ready 0\n"));
    }

    #[tokio::test]
    async fn strangers_and_writers_are_refused() {
        let shared = Shared::new(vec![Arc::default()], Arc::default());
        let address = start(&shared);
        let close = "Connection: close\r\n\r\n";
        for (status, head) in [
            (403, "GET /metrics HTTP/1.1\r\nHost: evil.example:80\r\n"),
            (403, "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n"),
            (405, "POST /ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"),
            (405, "DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n"),
            (404, "GET /nothing HTTP/1.1\r\nHost: localhost\r\n"),
            (200, "HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n"),
        ] {
            let answer = ask(address, &format!("{head}{close}")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
        }
    }

    /// With a plan of one endpoint.
    fn with_a_plan() -> Arc<Shared> {
        let shared = Shared::new(vec![Arc::default(), Arc::default()], Arc::default());
        let text = "listeners: [{address: '127.0.0.1:1'}]\n\
                    clusters: [{name: c, endpoints: ['127.0.0.1:9000']}]\n";
        let config = crate::config::parse(text, crate::config::Format::Yaml, "test").unwrap();
        let plan = crate::config::compile(&config, 1, &mut Default::default(), &mut |_, _| vec![]);
        shared.publish(Arc::new(plan));
        shared
    }

    fn post(path: &str, more: &str) -> String {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost:1\r\n{more}Content-Length: 0\r\n\
             Connection: close\r\n\r\n"
        )
    }

    const FORCE: &str = "/breakers/c/127.0.0.1:9000/force-open";

    #[tokio::test]
    async fn pages_of_other_sites_change_nothing() {
        let shared = with_a_plan();
        let (address, mut ordered) = start_with(&shared, Duration::from_millis(50));
        for foreign in [
            "Origin: http://evil.example\r\n",
            "Origin: null\r\n",
            "Origin: http://localhost:2\r\n",
            "Origin: http://localhost\r\n",
            "Origin: https://localhost:1\r\n",
            "Origin: http://127.0.0.1:1\r\n",
            "Origin: http://localhost:1\r\nOrigin: http://evil.example\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "Sec-Fetch-Site: same-site\r\n",
            "Origin: http://localhost:1\r\nSec-Fetch-Site: cross-site\r\n",
        ] {
            let answer = ask(address, &post(FORCE, foreign)).await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{foreign}: {answer}");
            assert!(ordered.try_recv().is_err(), "{foreign}");
        }
        for own in [
            "",
            "Origin: http://LOCALHOST:1\r\n",
            "Origin: http://localhost:1\r\nSec-Fetch-Site: same-origin\r\n",
            "Sec-Fetch-Site: none\r\n",
        ] {
            // Nobody obeys.
            let answer = ask(address, &post(FORCE, own)).await;
            assert!(answer.starts_with("HTTP/1.1 504 "), "{own}: {answer}");
            assert!(answer.contains("it may still come into force"), "{answer}");
            assert!(ordered.try_recv().is_ok(), "{own}");
        }
        // Reading is for everybody who reaches us under a name of ours.
        let head = "GET /breakers HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n";
        let answer = ask(address, &format!("{head}Connection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[tokio::test]
    async fn overrides_are_posted() {
        let address = start(&with_a_plan());
        for path in [FORCE, "/breakers/c/routes/r/auto", "/breakers/c/127.0.0.1:9000/force-closed"]
        {
            let answer = get(address, path).await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{path}: {answer}");
            assert!(answer.contains("\r\nallow: POST\r\n"), "{path}: {answer}");
        }
        let answer = ask(address, &post("/breakers", "")).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nallow: GET,HEAD\r\n"));
        let answer = ask(address, &post("/breakers/c/127.0.0.1:9000/explode", "")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let index = get(address, "/").await;
        for verb in ["force-open", "force-closed", "auto"] {
            assert!(index.contains(&format!("POST /breakers/CLUSTER/ADDRESS/{verb} ")), "{index}");
        }
    }

    #[tokio::test]
    async fn who_ends_says_so() {
        let (address, ordered) = start_with(&with_a_plan(), Duration::from_secs(20));
        drop(ordered);
        let answer = ask(address, &post(FORCE, "")).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("is ending"), "{answer}");
        let shared = Shared::new(vec![Arc::default()], Arc::default());
        let answer = ask(start(&shared), &post(FORCE, "")).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("no plan"), "{answer}");
    }

    #[tokio::test]
    async fn breakers_are_listed() {
        use crate::breaker::{Epoch, Phase};
        let shared = with_a_plan();
        let address = start(&shared);
        let record = shared.plan().unwrap().breakers[0].record.clone();
        record.publish(Phase::Open, Epoch(1));
        record.publish(Phase::ForcedOpen, Epoch(2));
        let json = get(address, "/breakers").await;
        let home = crate::reconcile::home_of(Default::default(), 2).0;
        let (head, body) = json.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/json") && head.contains("no-store"));
        let told: serde_json::Value = serde_json::from_str(body).unwrap();
        let breaker = serde_json::json!({
            "cluster": "c", "endpoint": "127.0.0.1:9000", "kind": "endpoint",
            "state": "forced-open", "forced": true, "epoch": 2, "trips": 1, "home": home,
            "path": "/breakers/c/127.0.0.1:9000",
        });
        assert_eq!(told, serde_json::json!({ "breakers": [breaker] }));
        let text = get(address, "/breakers?format=text").await;
        assert!(
            text.contains("\r\n\r\nCLUSTER  ENDPOINT ") && text.contains("forced-open"),
            "{text}"
        );
        assert!(get(address, "/breakers?format=xml").await.starts_with("HTTP/1.1 400 "));
    }
}
