//! `outrigger completions`: what shells need to complete the command line.

use std::process::ExitCode;

use clap::CommandFactory as _;

use super::Cli;

pub(super) fn main(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
