//! Outrigger: an HTTP proxy for service meshes, one io_uring shard per CPU core.
//!
//! The modules stand in the order in which a request meets them; start reading at `session`.

pub mod cli;

pub mod config;

pub mod plan;

pub mod http;

pub mod route;

pub mod balance;

pub mod reason;

pub mod shard;

pub mod mailbox;

pub mod metrics;

pub mod access_log;

pub mod control;

pub mod time;
