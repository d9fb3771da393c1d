//! What a person sees while a run runs: a bar in a terminal, else one plain line a second. On
//! standard error; the report goes to standard output.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::Second;
use crate::units::{show, show_count, show_nanos, show_rate};

/// Shows each second as it passes.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    length: Option<Duration>,
    failed: u64,
}

impl Progress {
    /// For a run of this recorded length; `quiet` shows nothing.
    pub fn new(length: Option<Duration>, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            // The wide message gives way, so that the line never wraps.
            let (bar, style) = match length {
                Some(length) => {
                    (ProgressBar::new(length.as_secs().max(1)), "{bar:16} {pos}/{len}s  {wide_msg}")
                }
                None => (ProgressBar::no_length(), "{pos}s  {wide_msg}"),
            };
            bar.with_style(ProgressStyle::with_template(style).expect("the template is a constant"))
        });
        Self { bar, quiet, length, failed: 0 }
    }

    /// A second has passed.
    pub fn pass(&mut self, second: &Second) {
        self.failed += second.failed;
        if self.quiet {
            return;
        }
        let passed = Duration::from_secs(second.second + 1);
        let left = match self.length.map(|length| length.saturating_sub(passed)) {
            Some(left) => format!("  left {}", show(left)),
            None => String::new(),
        };
        let line = format!(
            "{:>9}  p50 {:>8}  p99 {:>8}  p99.9 {:>8}  errors {}{left}",
            show_rate(second.requests as f64),
            show_nanos(second.p50),
            show_nanos(second.p99),
            show_nanos(second.p999),
            show_count(self.failed)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(second.second + 1);
                bar.set_message(line);
            }
            None => eprintln!("{:>4}s  {line}", second.second + 1),
        }
    }

    /// The run is over.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
