//! Where a configuration comes from: a file, `--config-yaml`, and what the command line overrides.
//! Kept for as long as the process runs, since a reload reads the same again.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Errors, Problem};
use super::model::{Config, ShardCount};
use super::values::{LogFilter, Period};
use super::{Format, Text};

/// Larger files are no configurations.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Everything that decides what the configuration is.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// `-c`
    pub file: Option<PathBuf>,
    /// `--config-yaml`: laid over the file, key by key.
    pub yaml: Option<String>,
    /// What the command line says, after both.
    pub overrides: Overrides,
}

/// What the command line may override.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--concurrency`: so many shards, in place of `shards.count` and `shards.cpus`.
    pub shards: Option<u32>,
    /// `--log-level`, in place of `log.level`.
    pub log_level: Option<LogFilter>,
    /// `--drain-time-s`, in place of `shutdown.drain_timeout`.
    pub drain_timeout: Option<Duration>,
}

impl Source {
    /// Whether there is anything to read again.
    pub fn is_some(&self) -> bool {
        self.file.is_some() || self.yaml.is_some()
    }

    /// One file, and nothing else.
    pub fn file(path: impl Into<PathBuf>) -> Source {
        Source { file: Some(path.into()), ..Source::default() }
    }

    /// Reads everything (again) and checks it.
    pub fn load(&self) -> Result<Config, Errors> {
        let mut texts = Vec::new();
        if let Some(path) = &self.file {
            let text = read(path)?;
            texts.push(Text { name: path.display().to_string(), text, format: Format::of(path) });
        }
        if let Some(yaml) = &self.yaml {
            let name = "--config-yaml".to_owned();
            texts.push(Text { name, text: yaml.clone(), format: Format::Yaml });
        }
        let mut config = super::parse_texts(texts)?;
        self.overrides.apply(&mut config);
        Ok(config)
    }
}

impl Overrides {
    fn apply(&self, config: &mut Config) {
        if let Some(count) = self.shards {
            config.shards.count = ShardCount::Exactly(count);
            config.shards.cpus = None;
        }
        if let Some(level) = &self.log_level {
            config.log.level = level.clone();
        }
        if let Some(timeout) = self.drain_timeout {
            config.shutdown.drain_timeout = Period(timeout);
        }
    }
}

/// A whole file as text.
fn read(path: &Path) -> Result<String, Errors> {
    let cannot = |error: &dyn std::fmt::Display| {
        Errors::one(Problem::bare(format!("cannot read '{}': {error}", path.display())))
    };
    let metadata = std::fs::metadata(path).map_err(|error| cannot(&error))?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(cannot(&"it has more than 16 MiB"));
    }
    let bytes = std::fs::read(path).map_err(|error| cannot(&error))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
        cannot(&format_args!("line {line} is not UTF-8"))
    })
}
