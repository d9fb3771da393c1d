//! The command line of the load generator.

use std::process::ExitCode;

fn main() -> ExitCode {
    outrigger_loadgen::cli::main()
}
