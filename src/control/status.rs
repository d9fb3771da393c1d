//! What the control thread knows, for the admin pages to read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::health::ClusterHealth;
use crate::metrics::ShardCounters;
use crate::metrics::breakers::PastTrips;
use crate::metrics::exposition::{
    self, BreakerView, ClusterView, ControlView, HealthView, ShardView,
};
use crate::metrics::process::ProcessStats;
use crate::plan::{Cluster, Plan};
use crate::reconcile::ClusterId;

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
    published: Mutex<Published>,
}

/// The newest plan that was sent to the shards.
#[derive(Debug, Default)]
struct Published {
    plan: Option<Arc<Plan>>,
    past_trips: PastTrips,
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
        let (status, published) = (Mutex::new(status), Mutex::default());
        Arc::new(Shared { counters, access_log_lines_lost, status, published })
    }

    pub fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status());
    }

    /// The shards are sent a plan.
    pub fn publish(&self, plan: Arc<Plan>) {
        let mut published = self.published();
        let before = published.plan.replace(plan.clone());
        for breaker in before.iter().flat_map(|before| &before.breakers) {
            if plan.breaker(breaker.id).is_none() {
                published.past_trips.add(&breaker.cluster, breaker.record.clone());
            }
        }
    }

    /// The newest plan that was sent to the shards.
    pub fn plan(&self) -> Option<Arc<Plan>> {
        self.published().plan.clone()
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.counters.len()
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut published = self.published();
        let Published { plan, past_trips } = &mut *published;
        let clusters = plan.iter().flat_map(|plan| cluster_views(plan, past_trips));
        let clusters: Vec<_> = clusters.collect();
        exposition::render(&shards, &clusters, &control, &ProcessStats::read())
    }
}

/// The clusters of a plan, each breaker read once.
fn cluster_views<'a>(plan: &'a Plan, past_trips: &mut PastTrips) -> Vec<ClusterView<'a>> {
    let mut breakers: BTreeMap<ClusterId, Vec<BreakerView<'a>>> = BTreeMap::new();
    let mut trips: BTreeMap<ClusterId, u64> = BTreeMap::new();
    for breaker in &plan.breakers {
        let (state, _) = breaker.record.read();
        let view = BreakerView { endpoint: &breaker.name, kind: breaker.kind(), state };
        breakers.entry(breaker.cluster_id).or_default().push(view);
        *trips.entry(breaker.cluster_id).or_default() += breaker.record.trips();
    }
    let shared = plan.health.iter().zip(&plan.admissions).zip(&plan.concurrency);
    let clusters = plan.clusters.iter().zip(&plan.agreement.clusters).zip(shared);
    let views = clusters.map(|((cluster, spec), ((health, admission), record))| {
        let now = trips.remove(&cluster.id).unwrap_or_default();
        ClusterView {
            name: &cluster.name,
            limits: &spec.limits,
            breakers: breakers.remove(&cluster.id).unwrap_or_default(),
            health: health_views(cluster, health),
            in_panic: health.in_panic(),
            panics: health.panics_begun(),
            concurrency: spec.adaptive.map(|_| &**record),
            admission: if cluster.admission.is_some() { admission.known() } else { &[] },
            endpoints: cluster.endpoints.len(),
            keeps_endpoints: cluster.keeps_endpoints,
            trips: now + past_trips.of(&cluster.name),
        }
    });
    views.collect()
}

/// What checks have found of a cluster's endpoints, where there are any.
fn health_views(cluster: &Cluster, health: &ClusterHealth) -> Vec<HealthView> {
    let checked = cluster.endpoints.iter().filter(|_| cluster.health_check.is_some());
    let views = checked.zip(health.endpoints()).map(|(endpoint, (_, record))| HealthView {
        endpoint: endpoint.address,
        health: record.state(),
        passed: record.passed.get(),
        failed: record.failed.get(),
    });
    views.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::{Epoch, Phase};
    use crate::config;
    use crate::reconcile::Registry;

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

    /// What was counted for endpoints that leave, and for a cluster that leaves and comes back,
    /// stays counted.
    #[test]
    fn trips_outlive_their_endpoints() {
        let shared = Shared::new(vec![Arc::default()], Arc::default());
        let mut registry = Registry::default();
        let mut generation = 0;
        let mut publish = |clusters: &str| {
            let text = format!("listeners: [{{address: '127.0.0.1:1'}}]\nclusters: [{clusters}]\n");
            let text = text + "routes: [{respond: {status: 200}}]\n";
            let config = config::parse(&text, config::Format::Yaml, "test").unwrap();
            generation += 1;
            let mut plan = config::compile(&config, generation, &mut registry, &mut |_, _| vec![]);
            if let Some(before) = shared.plan() {
                plan.keep_records(&before, crate::time::Nanos(1));
            }
            shared.publish(Arc::new(plan));
        };
        let trip = |index: usize, times: u32| {
            let plan = shared.plan().unwrap();
            for epoch in 0..times {
                plan.breakers[index].record.publish(Phase::Open, Epoch(2 * epoch + 1));
                plan.breakers[index].record.publish(Phase::Closed, Epoch(2 * epoch + 2));
            }
        };
        let told = |cluster: &str| {
            let page = shared.metrics();
            let name = format!("outrigger_breaker_trips_total{{cluster=\"{cluster}\"}} ");
            page.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
        };
        assert_eq!(told("a"), None);
        let b = "{name: b, endpoints: ['127.0.0.1:3']}";
        publish(&format!("{{name: a, endpoints: ['127.0.0.1:1', '127.0.0.1:2']}}, {b}"));
        assert_eq!(told("a"), Some(0));
        trip(0, 3);
        trip(1, 1);
        assert_eq!((told("a"), told("b")), (Some(4), Some(0)));
        publish(&format!("{{name: a, endpoints: ['127.0.0.1:2']}}, {b}"));
        assert_eq!(told("a"), Some(4));
        trip(0, 1);
        assert_eq!(told("a"), Some(5));
        publish(b);
        assert_eq!((told("a"), told("b")), (None, Some(0)));
        publish(&format!("{{name: a, endpoints: ['127.0.0.1:2']}}, {b}"));
        assert_eq!(told("a"), Some(5));
    }
}
