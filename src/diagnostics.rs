//! The process's own log: by `tracing`, written by a thread of its own, never on a request's path.

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::config::{Log, LogFormat};
use crate::control::SetLogLevel;

/// Starts it; what it returns changes the level later. `None` where a log runs already, as in
/// tests.
pub fn start(log: &Log) -> Option<SetLogLevel> {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    // Lives as long as the process: dropped, it would end the writer.
    std::mem::forget(guard);
    let filter =
        EnvFilter::try_new(log.level.to_string()).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let layer = fmt::layer().with_writer(writer).with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match log.format {
        LogFormat::Text => registry.with(layer.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(layer.json()).try_init(),
    };
    started.ok()?;
    Some(Box::new(move |level| {
        let filter = EnvFilter::try_new(level).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}
