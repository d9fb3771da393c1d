//! `outrigger explain`: what would happen to a request.

use std::net::SocketAddr;
use std::process::ExitCode;

use crate::config::{Config, Overrides};
use crate::explain::{self, Ask, Error, Running, States};

use super::{EXIT_CONFIG, EXIT_USAGE, ExplainArgs, ExplainFormat};

pub(super) fn main(args: ExplainArgs) -> ExitCode {
    let source = args.config.source(Overrides::default());
    let config = match super::load(&source) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let states = match args.admin {
        Some(admin) => match admin.0.map(Running::ask) {
            None => States::AfterStart("--admin off".to_owned()),
            Some(Ok(running)) => States::Of(running),
            Some(Err(error)) => return fail(EXIT_CONFIG, &format!("cannot ask {error}")),
        },
        None => by_configuration(&config),
    };
    let ask = Ask {
        method: args.request,
        url: args.url,
        headers: args.header,
        client: args.client,
        listener: args.listener,
    };
    match explain::explain(&config, &ask, &args.resolve, &states) {
        Ok(explanation) => super::print(&match args.format {
            ExplainFormat::Text => explanation.to_text(),
            ExplainFormat::Json => explanation.to_json(),
        }),
        Err(Error::Usage(error)) => fail(EXIT_USAGE, &error),
        Err(Error::Io(error)) => fail(EXIT_CONFIG, &format!("cannot explain: {error}")),
    }
}

/// Of the process that runs by this configuration, if there is one.
fn by_configuration(config: &Config) -> States {
    let why = match config.admin.address.0 {
        None => "the configuration has no admin address".to_owned(),
        Some(address) if address.port() == 0 => {
            "where the process listens is not known; --admin ADDRESS".to_owned()
        }
        Some(address) => match Running::ask(reachable(address)) {
            Ok(running) => return States::Of(running),
            Err(error) => error,
        },
    };
    States::AfterStart(why)
}

/// Who listens on every address listens on this machine's own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut reachable = address;
    if address.ip().is_unspecified() {
        reachable.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    reachable
}

/// The second line of an error is its help.
fn fail(code: u8, error: &str) -> ExitCode {
    let (what, help) = error.split_once('\n').unwrap_or((error, ""));
    eprintln!("error: {what}");
    if !help.is_empty() {
        eprintln!("  = {help}");
    }
    ExitCode::from(code)
}
