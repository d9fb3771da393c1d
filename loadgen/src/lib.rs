//! Outrigger's load generator and its bundled origin server.
//!
//! The proxy's demo uses [`origin`] and nothing else; the generator is behind the feature `cli`.

pub mod net;

pub mod http;

pub mod origin;

#[cfg(feature = "cli")]
pub mod cli;
