//! `outrigger print-config`: the configuration as it is understood.

use std::process::ExitCode;

use crate::config::{self, Overrides};

use super::ConfigArgs;

pub(super) fn main(args: ConfigArgs) -> ExitCode {
    match super::load(&args.source(Overrides::default())) {
        Ok(config) => super::print(&config::to_yaml(&config)),
        Err(code) => code,
    }
}
