//! The admin pages: metrics and probes. Read-only; GET and HEAD.
//!
//! They are for programs and people who reach the address, not for web pages: a request whose
//! `Host` is a name other than `localhost` is refused, since a page of a stranger's could
//! otherwise read the answers through a name that it points at us (DNS rebinding). Addresses are
//! let through: they cannot be pointed anywhere.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

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

/// The server, to be spawned; it ends with the runtime.
///
/// # Errors
/// Where tokio cannot take the listener.
pub(super) fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
) -> io::Result<impl Future<Output = ()>> {
    let address = listener.local_addr()?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tracing::info!(%address, "admin pages");
    Ok(async move {
        // Goes on after failed accepts, and returns only when told to, which nobody does.
        let _ = axum::serve(listener, pages(shared)).await;
    })
}

fn pages(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/stats/prometheus", get(metrics))
        .route("/ready", get(ready))
        .route("/healthz", get(alive))
        .route("/live", get(alive))
        .layer(middleware::from_fn(refuse_foreign_hosts))
        .with_state(shared)
}

async fn index() -> &'static str {
    "outrigger\n\n\
     /metrics  for Prometheus (also /stats/prometheus)\n\
     /ready    200 LIVE while every shard serves, 503 before and while draining\n\
     /healthz  200 while the process runs (also /live)\n"
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

async fn refuse_foreign_hosts(request: Request, next: Next) -> Response {
    let field = match request.headers().get(header::HOST) {
        Some(value) => value.to_str().ok(),
        // HTTP/1.0 without a Host: not a browser.
        None => Some("localhost"),
    };
    let target = request.uri().authority().map_or("localhost", |authority| authority.as_str());
    if field.is_some_and(is_own_host) && is_own_host(target) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "this Host is not served here\n").into_response()
    }
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
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let listener = bind("127.0.0.1:0".parse().unwrap(), Some(&path)).unwrap();
        let written = fs::read_to_string(&path).unwrap();
        tokio::spawn(serve(listener, shared.clone()).unwrap());
        written.trim_end().parse().unwrap()
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
}
