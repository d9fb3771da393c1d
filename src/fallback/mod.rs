//! What answers in place of a failure, if a route has something for that: another cluster, the last
//! good answer, an answer of our own. Here is what is kept for it, and by which rules; `exchange`
//! gives leave, `session` answers.
//!
//! ```text
//! a failure, or a listed status -> something to answer with? -> leave (max_requests) -> cluster
//!        ^                                '-- none                '-- none             | failed
//!        |                                     |                       |               v
//!   retries are over                           '--> the failure stands <'         last good, own
//! ```

pub mod directives;

pub mod last_good;

pub mod store;

/// What has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Another cluster.
    Cluster,
    /// An answer that was given before.
    LastGood,
    /// The answer in the configuration.
    Static,
}

/// The field that says so.
pub const FIELD: &[u8] = b"x-outrigger-fallback";

impl Kind {
    /// Every kind, in the order in which they are tried.
    pub const ALL: [Kind; 3] = [Kind::Cluster, Kind::LastGood, Kind::Static];

    /// As in `x-outrigger-fallback`, the access log and the metrics' label `kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Cluster => "cluster",
            Kind::LastGood => "last-good",
            Kind::Static => "static",
        }
    }
}
