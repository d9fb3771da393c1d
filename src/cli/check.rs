//! `outrigger check`: says OK, or everything that is wrong.

use std::process::ExitCode;

use crate::config::Overrides;

use super::ConfigArgs;

pub(super) fn main(args: ConfigArgs) -> ExitCode {
    let source = args.source(Overrides::default());
    match super::load(&source) {
        Ok(_) => super::print(&format!("configuration '{}' OK\n", super::name(&source))),
        Err(code) => code,
    }
}
