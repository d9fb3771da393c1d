//! `outrigger version`: for people, and with `--json` for programs.

use std::process::ExitCode;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn main(json: bool) -> ExitCode {
    let text = match json {
        false => format!("outrigger {VERSION}"),
        true => serde_json::json!({
            "name": "outrigger",
            "version": VERSION,
            "os": std::env::consts::OS,
            "architecture": std::env::consts::ARCH,
            "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
        })
        .to_string(),
    };
    super::print(&format!("{text}\n"))
}
