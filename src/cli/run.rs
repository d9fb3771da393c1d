//! `outrigger run`: flags and configuration to the process itself.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{Overrides, Source};

use super::RunArgs;

/// What the command line says beside the configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the configuration comes from, for reloads.
    pub source: Source,
    /// Write the admin's address there, once it listens.
    pub admin_address_path: Option<PathBuf>,
    /// Write the listeners' names and addresses there, once all shards listen.
    pub listen_address_path: Option<PathBuf>,
}

pub(super) fn main(args: RunArgs) -> ExitCode {
    let overrides = Overrides {
        shards: args.concurrency,
        log_level: args.log_level,
        drain_timeout: args.drain_time_s.map(Duration::from_secs),
    };
    let options = Options {
        source: args.config.source(overrides),
        admin_address_path: args.admin_address_path,
        listen_address_path: args.listen_address_path,
    };
    match super::load(&options.source) {
        Ok(config) => crate::run::run(config, options),
        Err(code) => code,
    }
}
