//! What the control thread knows, for the admin pages to read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::metrics::ShardCounters;
use crate::metrics::exposition::{self, ControlView, ShardView};
use crate::metrics::process::ProcessStats;

/// One shard, by what it has told.
#[derive(Debug, Clone, Default)]
pub(super) struct ShardStatus {
    /// Empty until it is ready.
    pub driver: String,
    pub flags: String,
    /// 0 until it serves.
    pub plan_applied: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Status {
    pub shards: Vec<ShardStatus>,
    pub draining: bool,
    pub plan_newest: u64,
    pub dns_answers: u64,
    pub dns_failures: u64,
    reload_successful: bool,
    reload_success_time: SystemTime,
    reloads_succeeded: u64,
    reloads_failed: u64,
}

impl Status {
    /// Serves, on every shard, and is not ending.
    pub fn live(&self) -> bool {
        self.shards.iter().all(|shard| shard.plan_applied > 0) && !self.draining
    }

    /// Envoy's word for the state.
    pub fn state(&self) -> &'static str {
        match (self.draining, self.live()) {
            (true, _) => "DRAINING",
            (false, true) => "LIVE",
            (false, false) => "PRE_INITIALIZING",
        }
    }

    pub fn reload_succeeded(&mut self) {
        self.reload_successful = true;
        self.reload_success_time = SystemTime::now();
        self.reloads_succeeded += 1;
    }

    pub fn reload_failed(&mut self) {
        self.reload_successful = false;
        self.reloads_failed += 1;
    }
}

/// The status, and the counters beside it. Only the control thread's own tasks lock it, so nobody
/// ever waits.
#[derive(Debug)]
pub(super) struct Shared {
    counters: Vec<Arc<ShardCounters>>,
    access_log_lines_lost: Arc<AtomicU64>,
    status: Mutex<Status>,
}

impl Shared {
    /// The configuration that the process began with counts as one that came into force.
    pub fn new(
        counters: Vec<Arc<ShardCounters>>,
        access_log_lines_lost: Arc<AtomicU64>,
    ) -> Arc<Shared> {
        let status = Status {
            shards: vec![ShardStatus::default(); counters.len()],
            draining: false,
            plan_newest: 0,
            dns_answers: 0,
            dns_failures: 0,
            reload_successful: true,
            reload_success_time: SystemTime::now(),
            reloads_succeeded: 0,
            reloads_failed: 0,
        };
        Arc::new(Shared { counters, access_log_lines_lost, status: Mutex::new(status) })
    }

    pub fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status());
    }

    /// The page for Prometheus.
    pub fn metrics(&self) -> String {
        let status = self.status().clone();
        let shards: Vec<_> = self
            .counters
            .iter()
            .zip(&status.shards)
            .enumerate()
            .map(|(id, (counters, shard))| ShardView {
                id,
                counters,
                driver: &shard.driver,
                flags: &shard.flags,
                plan_applied: shard.plan_applied,
            })
            .collect();
        let reloaded = status.reload_success_time.duration_since(SystemTime::UNIX_EPOCH);
        let control = ControlView {
            live: status.live(),
            draining: status.draining,
            plan_newest: status.plan_newest,
            reload_successful: status.reload_successful,
            reload_success_seconds: reloaded.unwrap_or_default().as_secs_f64(),
            reloads_succeeded: status.reloads_succeeded,
            reloads_failed: status.reloads_failed,
            dns_answers: status.dns_answers,
            dns_failures: status.dns_failures,
            access_log_lines_lost: self.access_log_lines_lost.load(Ordering::Relaxed),
        };
        exposition::render(&shards, &control, &ProcessStats::read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_means_that_every_shard_serves() {
        let shared = Shared::new(vec![Arc::default(), Arc::default()], Arc::default());
        assert_eq!(shared.status().state(), "PRE_INITIALIZING");
        shared.update(|status| status.shards[0].plan_applied = 1);
        assert_eq!(shared.status().state(), "PRE_INITIALIZING");
        shared.update(|status| status.shards[1].plan_applied = 1);
        assert_eq!(shared.status().state(), "LIVE");
        shared.update(|status| status.draining = true);
        assert_eq!(shared.status().state(), "DRAINING");
    }

    #[test]
    fn a_failed_reload_shows_until_the_next_that_works() {
        let shared = Shared::new(vec![Arc::default()], Arc::default());
        let told = |shared: &Shared| {
            let page = shared.metrics();
            let line =
                page.lines().find(|l| l.starts_with("outrigger_config_last_reload_successful"));
            line.unwrap().to_owned()
        };
        assert!(told(&shared).ends_with(" 1"));
        shared.update(Status::reload_failed);
        assert!(told(&shared).ends_with(" 0"));
        shared.update(Status::reload_succeeded);
        assert!(told(&shared).ends_with(" 1"));
    }
}
