//! `outrigger` without a command: the demo's configuration. Its origins run inside the process;
//! `run` starts them and passes their addresses.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use outrigger_loadgen::origin::{Fail, Options, Origin};

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

/// The demo's three origins; they end with this.
pub struct Origins {
    fast: Origin,
    slow: Origin,
    flaky: Origin,
}

impl Origins {
    /// Starts them on free ports of 127.0.0.1.
    ///
    /// # Errors
    /// Where no socket or no thread can be had.
    pub fn start() -> io::Result<Origins> {
        let start = |greeting: &str, delay, fail| {
            let greeting = Some(format!("Hello from the {greeting} origin.\n"));
            Origin::start(Options { greeting, delay, fail, ..Options::default() })
        };
        Ok(Origins {
            fast: start("fast", Duration::ZERO, None)?,
            slow: start("slow", Duration::from_millis(200), None)?,
            flaky: start("flaky", Duration::ZERO, Some(Fail { percent: 20.0, status: 500 }))?,
        })
    }

    /// The proxy's configuration for them.
    pub fn config(&self) -> Result<Config, Errors> {
        config(self.fast.address(), self.slow.address(), self.flaky.address())
    }

    /// What to try.
    pub fn hints(&self) -> String {
        format!(
            "\
Outrigger's demo: http://{ADDRESS}, in front of three origins in this process. Try:
  curl -i http://{ADDRESS}/          the fast origin
  curl -i http://{ADDRESS}/slow      one that takes 200 ms
  curl -i http://{ADDRESS}/flaky     one that fails now and then
  curl -i http://{ADDRESS}/all       one of the three, by least_request
  curl -i http://{ADDRESS}/split     fast and slow, 9 to 1
  curl -i http://{ADDRESS}/hello     an answer of the proxy itself
  curl -s http://127.0.0.1:9901/metrics
  wrk -c 64 -d 5 http://{ADDRESS}/b/100
The configuration: outrigger print-config --help; a file of yours: outrigger run -c FILE.
Ctrl-C ends it.
"
        )
    }
}

/// The demo's configuration for origins at these addresses.
fn config(fast: SocketAddr, slow: SocketAddr, flaky: SocketAddr) -> Result<Config, Errors> {
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
