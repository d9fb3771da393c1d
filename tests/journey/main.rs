//! Black-box tests: the real binary between scripted origins and a client that sees every byte.
//! `OUTRIGGER_TEST_DRIVER=epoll` runs them all on the other driver.

#[path = "../support/mod.rs"]
#[allow(dead_code, missing_docs, reason = "shared by several test binaries")]
mod support;

mod exchange;

mod interim;

mod chunked;

mod old_http;

mod hop_by_hop;

mod forwarded;

mod refused;

mod bad_answers;

mod cut_off;

mod upgrade;

mod paths;

mod routing;

mod balance;

mod limits;

mod cluster_limits;

mod overload;
mod rate_limit;

mod breaker;

mod imbalance;

mod quiet;

mod stalled;

mod pool;

mod retry;

mod fallback;

mod health;
mod hedge;
mod mixed;

mod parts;

mod timeouts;

mod bounds;

mod drain;

mod overrides;

mod reload;

mod admin;

mod access_log;

mod command_line;

mod readiness;

mod regression;
