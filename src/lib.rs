//! Outrigger: an HTTP proxy for service meshes, one io_uring shard per CPU core.
//!
//! The modules stand in the order in which a request meets them; start reading at `session`.

pub mod cli;

pub mod config;

pub mod run;

pub mod diagnostics;

pub mod plan;

pub mod accept;

pub mod session;

pub mod http;

pub mod admit;

pub mod overload;

pub mod admission;

pub mod route;

pub mod exchange;

pub mod fallback;

pub mod balance;

pub mod breaker;

pub mod reconcile;

pub mod rate;

pub mod health;

pub mod upstream;

pub mod relay;

pub mod pace;

pub mod tunnel;

pub mod answer;

pub mod respond;

pub mod reason;

pub mod shard;

pub mod mailbox;

pub mod metrics;

pub mod access_log;

pub mod control;

pub mod sim;

pub mod explain;

pub mod rng;

pub mod net;

pub mod time;
