//! Signals of the process, as the control thread's loop takes them.

use std::fmt;
use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGHUP: read the configuration again.
    Hangup,
    /// SIGTERM, SIGQUIT: drain, then exit.
    Terminate,
    /// SIGINT: drain quickly; the second time, stop.
    Interrupt,
    /// SIGUSR1: open the access logs again.
    ReopenLogs,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signal::Hangup => "reload (SIGHUP)",
            Signal::Terminate => "drain (SIGTERM or SIGQUIT)",
            Signal::Interrupt => "interrupt (SIGINT)",
            Signal::ReopenLogs => "reopen logs (SIGUSR1)",
        })
    }
}

/// Takes the signals over; from here on none of them kills the process.
///
/// # Errors
/// Where a handler cannot be set.
pub(super) fn listen() -> io::Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(8);
    let kinds = [
        (SignalKind::hangup(), Signal::Hangup),
        (SignalKind::terminate(), Signal::Terminate),
        (SignalKind::quit(), Signal::Terminate),
        (SignalKind::interrupt(), Signal::Interrupt),
        (SignalKind::user_defined1(), Signal::ReopenLogs),
    ];
    for (kind, meaning) in kinds {
        let mut arrivals = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while arrivals.recv().await.is_some() {
                if sender.send(meaning).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
}
