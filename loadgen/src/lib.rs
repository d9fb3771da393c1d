//! Outrigger's load generator and its bundled origin server.
//!
//! The proxy's demo uses [`origin`] and nothing else; the generator is behind the feature `cli`.
//! Its modules stand in the order in which a run meets them.

pub mod net;

pub mod cpu;

pub mod random;

pub mod http;

pub mod origin;

#[cfg(feature = "cli")]
pub mod cli;

#[cfg(feature = "cli")]
pub mod units;

#[cfg(feature = "cli")]
pub mod scenario;

#[cfg(feature = "cli")]
pub mod plan;

#[cfg(feature = "cli")]
pub mod limits;

#[cfg(feature = "cli")]
pub mod target;

#[cfg(feature = "cli")]
pub mod schedule;

#[cfg(feature = "cli")]
pub mod run;

#[cfg(feature = "cli")]
pub mod worker;

#[cfg(feature = "cli")]
pub mod answer;

#[cfg(feature = "cli")]
pub mod record;

#[cfg(feature = "cli")]
pub mod report;

#[cfg(feature = "cli")]
pub mod files;

#[cfg(feature = "cli")]
pub mod threshold;

#[cfg(feature = "cli")]
pub mod progress;
