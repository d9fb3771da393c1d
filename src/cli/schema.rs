//! `outrigger schema`: what editors need to complete and check a configuration.

use std::process::ExitCode;

use crate::config;

pub(super) fn main() -> ExitCode {
    match serde_json::to_string_pretty(&config::schema()) {
        Ok(text) => super::print(&format!("{text}\n")),
        Err(error) => {
            eprintln!("cannot write the schema: {error}");
            ExitCode::FAILURE
        }
    }
}
