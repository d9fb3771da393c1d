//! `outrigger` without a command: the demo's configuration. Its origins run inside the process;
//! `run` starts them and passes their addresses.

use std::net::SocketAddr;
use std::process::ExitCode;

use crate::config::{Config, Errors, Format};

/// Where the demo listens.
pub const ADDRESS: &str = "127.0.0.1:8080";

/// The demo's configuration; `ORIGIN_...` stand for the addresses of its three origins.
pub const CONFIG: &str = "\
# The demo's configuration. Everything that is not said has a default: outrigger print-config.
listeners:
  - name: demo
    address: 127.0.0.1:8080
    reason_header: true

routes:
  - name: slow
    match: {prefix: /slow}
    cluster: slow
  - name: flaky
    match: {prefix: /flaky}
    cluster: flaky
  - name: hello
    match: {path: /hello}
    respond: {body: \"Hello from the proxy itself.\\n\"}
  - name: split
    match: {prefix: /split}
    clusters:
      - {name: fast, weight: 9}
      - {name: slow, weight: 1}
  - name: all
    match: {prefix: /all}
    cluster: all
  - name: fast
    cluster: fast
    response_headers: {set: {x-served-by: outrigger}}

clusters:
  - name: fast
    endpoints: [ORIGIN_FAST]
  - name: slow
    endpoints: [ORIGIN_SLOW]
  - name: flaky
    endpoints: [ORIGIN_FLAKY]
  - name: all
    balance: least_request
    endpoints: [ORIGIN_FAST, ORIGIN_SLOW, ORIGIN_FLAKY]
";

/// The demo's configuration for origins at these addresses.
pub fn config(fast: SocketAddr, slow: SocketAddr, flaky: SocketAddr) -> Result<Config, Errors> {
    let text = CONFIG
        .replace("ORIGIN_FAST", &fast.to_string())
        .replace("ORIGIN_SLOW", &slow.to_string())
        .replace("ORIGIN_FLAKY", &flaky.to_string());
    crate::config::parse(&text, Format::Yaml, "the demo's configuration")
}

pub(super) fn main() -> ExitCode {
    crate::run::demo()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_has_a_good_configuration() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let config =
            config(address(1), address(2), address(3)).map_err(|errors| errors.to_string());
        assert_eq!(config.map(|config| config.warnings), Ok(Vec::new()));
    }
}
