//! A plan as one shard serves by it: with its endpoints' connections and its balancers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::{self, Record, Window};
use crate::balance::{Balancer, Loads};
use crate::breaker::Outcome;
use crate::health::ClusterHealth;
use crate::metrics::ShardCounters;
use crate::overload::Codel;
use crate::plan::{Cluster, Plan};
use crate::reconcile::{ClusterId, ClusterSlot, EndpointSlot, Kind, Reconciler};
use crate::rng::Rng;
use crate::route::{HedgeDelay, Route};
use crate::time::Nanos;
use crate::upstream::Endpoint;

use super::agreement::Agreement;

/// One plan, and this shard's state for it.
pub struct ShardPlan {
    /// What all shards share; `None` before the first plan arrived.
    plan: Option<Arc<Plan>>,
    clusters: Vec<ShardCluster>,
    /// Of the plan's breakers of routes.
    route_breakers: Vec<EndpointSlot>,
    /// Of the plan's routes: when they hedge.
    hedges: Vec<Option<RefCell<HedgeDelay>>>,
}

/// One cluster, as one shard sees it.
pub struct ShardCluster {
    slot: ClusterSlot,
    endpoints: Vec<Rc<Endpoint>>,
    balancer: RefCell<Balancer>,
    health: Arc<ClusterHealth>,
    /// Retries do not wait for leave before: there was none lately.
    retries_asked_after: Cell<Nanos>,
    /// Of those that wait for a place.
    pending: Cell<Codel>,
    /// Where the cluster has admission control.
    admission: Option<Box<Admission>>,
}

/// Admission control of one cluster, as one shard sees it.
struct Admission {
    settings: admission::Settings,
    record: Arc<Record>,
    window: RefCell<Window>,
    shard: usize,
    shards: usize,
}

/// The choice where some endpoints are down, or do not have their whole share yet.
#[cold]
fn by_health(
    health: &ClusterHealth,
    balancer: &mut Balancer,
    loads: &Seen<'_>,
    hash: Option<u64>,
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    let dice = balancer.dice();
    let in_use = |index: usize| !health.is_out(index) && usable(index);
    let whole = |index: usize| !health.holds_back(index, loads.now, dice) && in_use(index);
    balancer.pick(loads, hash, whole).or_else(|| balancer.pick(loads, hash, in_use))
}

/// What a cluster has under way on this shard.
struct Seen<'a> {
    cluster: ClusterSlot,
    endpoints: &'a [Rc<Endpoint>],
    own: &'a Reconciler,
    now: Nanos,
}

impl Loads for Seen<'_> {
    #[inline]
    fn in_flight(&self, index: usize) -> u32 {
        self.own.in_flight(self.endpoints[index].slot) as u32
    }

    fn in_flight_in_all(&self) -> u32 {
        let purse = self.own.cluster_purse(Kind::Requests, self.cluster);
        purse.map_or(0, |purse| purse.in_use()) as u32
    }

    fn waiting_time(&self, index: usize) -> f64 {
        self.endpoints[index].latency().load(self.in_flight(index), self.now)
    }
}

impl Admission {
    fn rejects(&self, dice: u32, now: Nanos) -> bool {
        let totals = self.record.of(self.shards);
        self.window.borrow_mut().rejects(&self.settings, totals, self.shard, dice, now)
    }

    /// What we refuse ourselves, and what clients break off, counts neither way.
    fn ended(&self, outcome: Outcome) {
        let own = &self.record.of(self.shards)[self.shard];
        own.requests.add(u64::from(outcome != Outcome::Neutral));
        own.successes.add(u64::from(outcome == Outcome::Success));
    }
}

impl ShardPlan {
    /// Before the first plan.
    pub fn empty() -> ShardPlan {
        ShardPlan {
            plan: None,
            clusters: Vec::new(),
            route_breakers: Vec::new(),
            hedges: Vec::new(),
        }
    }

    /// State for a new plan. Endpoints that stay keep their connections; those that go are retired.
    pub fn replacing(
        old: &ShardPlan,
        plan: Arc<Plan>,
        agreement: &Rc<Agreement>,
        counters: &Arc<ShardCounters>,
        rng: &mut Rng,
    ) -> ShardPlan {
        let shared = plan.health.iter().zip(&plan.admissions);
        let clusters = plan.clusters.iter().zip(shared).map(|(cluster, (health, record))| {
            let before = old.cluster_named(&cluster.name);
            let endpoints = cluster.endpoints.iter().map(|endpoint| {
                before
                    .iter()
                    .flat_map(|cluster| &cluster.endpoints)
                    .find(|known| known.id == endpoint.id && known.name == endpoint.name)
                    .cloned()
                    .unwrap_or_else(|| {
                        Rc::new(Endpoint::new(endpoint, agreement.clone(), counters.clone()))
                    })
            });
            let endpoints = endpoints.collect();
            let Cluster { table, balance, endpoints: all, .. } = cluster;
            let balancer = Balancer::with_table(table, balance, all, rng.bits());
            let slot = agreement.cluster_slot(cluster.id);
            let balancer = RefCell::new(balancer);
            let (health, retries_asked_after) = (health.clone(), Cell::default());
            let pending = Cell::new(before.map(|it| it.pending.get()).unwrap_or_default());
            let admission = cluster.admission.map(|settings| {
                let (shard, shards) = (agreement.id(), agreement.shards());
                let known = before.and_then(|it| it.admission.as_ref());
                let window = match known.filter(|it| it.settings.window == settings.window) {
                    Some(known) => known.window.clone(),
                    None => RefCell::new(Window::new(record.of(shards), Nanos::now())),
                };
                Box::new(Admission { settings, record: record.clone(), window, shard, shards })
            });
            ShardCluster {
                slot,
                endpoints,
                balancer,
                health,
                retries_asked_after,
                pending,
                admission,
            }
        });
        let clusters: Vec<ShardCluster> = clusters.collect();
        for known in old.clusters.iter().flat_map(|cluster| &cluster.endpoints) {
            let stays =
                clusters.iter().any(|new| new.endpoints.iter().any(|e| Rc::ptr_eq(e, known)));
            if !stays {
                known.retire();
            }
        }
        let route_breakers = plan.route_breakers.iter().map(|id| agreement.slot(*id)).collect();
        let hedge = |route: &Route| route.retries.hedge.map(HedgeDelay::new).map(RefCell::new);
        let hedges = plan.router.routes().iter().map(hedge).collect();
        ShardPlan { plan: Some(plan), clusters, route_breakers, hedges }
    }

    /// Which reload this is; 0 before the first plan.
    pub fn generation(&self) -> u64 {
        self.plan.as_ref().map_or(0, |plan| plan.generation)
    }

    /// What all shards share.
    ///
    /// # Panics
    /// Before the first plan, when nothing is served yet.
    pub fn shared(&self) -> &Arc<Plan> {
        self.plan.as_ref().expect("listeners start after the first plan")
    }

    /// What the plan says of a cluster.
    pub fn cluster(&self, cluster: usize) -> &Cluster {
        &self.shared().clusters[cluster]
    }

    /// From when on retries wait for leave.
    pub fn retries_asked_after(&self, cluster: usize) -> &Cell<Nanos> {
        &self.clusters[cluster].retries_asked_after
    }

    /// Whether a request to this cluster is refused, since too many fail; `dice`: 32 uniform bits.
    #[inline]
    pub fn rejects(&self, cluster: usize, dice: u32, now: Nanos) -> bool {
        self.clusters[cluster].admission.as_ref().is_some_and(|it| it.rejects(dice, now))
    }

    /// A request has ended; `outcome` tells how, and gets whether a 5xx is a failure.
    #[inline]
    pub fn ended(&self, cluster: usize, outcome: impl FnOnce(bool) -> Outcome) {
        if let Some(admission) = &self.clusters[cluster].admission {
            admission.ended(outcome(self.cluster(cluster).failure_statuses));
        }
    }

    /// Whether nobody should join those who wait for a place in this cluster: all of them have
    /// waited for too long.
    pub fn pending_is_full(&self, cluster: usize, own: &Reconciler, now: Nanos) -> bool {
        let Some(target) = self.cluster(cluster).pending_target else { return false };
        let ShardCluster { slot, pending, .. } = &self.clusters[cluster];
        let mut queue = pending.get();
        if own.pending(*slot) == 0 {
            queue.observe(Duration::ZERO, target, now);
            pending.set(queue);
        }
        queue.is_full()
    }

    /// Somebody has waited for a place for so long. `true`: that is too long, since now.
    pub fn has_pended(&self, cluster: usize, waited: Duration, now: Nanos) -> bool {
        let Some(target) = self.cluster(cluster).pending_target else { return false };
        let pending = &self.clusters[cluster].pending;
        let mut queue = pending.get();
        let begins = queue.observe(waited, target, now);
        pending.set(queue);
        begins
    }

    /// An endpoint of a cluster for one request, among those that are usable; `None` where there
    /// is none.
    #[inline]
    pub fn pick(
        &self,
        cluster: usize,
        hash: Option<u64>,
        now: Nanos,
        own: &Reconciler,
        usable: impl Fn(EndpointSlot) -> bool,
    ) -> Option<&Rc<Endpoint>> {
        let ShardCluster { slot, endpoints, balancer, health, .. } = &self.clusters[cluster];
        let loads = Seen { cluster: *slot, endpoints, own, now };
        let usable = |index: usize| usable(endpoints[index].slot);
        let mut balancer = balancer.borrow_mut();
        let picked = match health.is_plain(now) {
            true => balancer.pick(&loads, hash, usable),
            false => by_health(health, &mut balancer, &loads, hash, usable),
        };
        picked.map(|index| &endpoints[index])
    }

    /// Whether an endpoint of a cluster that is not down passes a test.
    pub fn has(&self, cluster: usize, test: impl Fn(EndpointSlot) -> bool) -> bool {
        let ShardCluster { endpoints, health, .. } = &self.clusters[cluster];
        let mut all = endpoints.iter().enumerate();
        all.any(|(index, endpoint)| !health.is_out(index) && test(endpoint.slot))
    }

    /// The place of a cluster, by its number.
    pub fn position(&self, id: ClusterId) -> Option<usize> {
        self.shared().clusters.iter().position(|cluster| cluster.id == id)
    }

    /// Where the breaker of a route is kept.
    pub fn route_breaker(&self, index: usize) -> EndpointSlot {
        self.route_breakers[index]
    }

    /// When a route hedges, by its place in the plan; `None` where it does not.
    pub fn hedge_delay(&self, route: usize) -> Option<&RefCell<HedgeDelay>> {
        self.hedges[route].as_ref()
    }

    /// Closes an idle connection to another endpoint of the same cluster, where that is what a new
    /// one lacks. `false`: it is not, or there is none.
    pub fn close_for(&self, endpoint: &Rc<Endpoint>) -> bool {
        let is_its = |cluster: &&ShardCluster| {
            cluster.endpoints.iter().any(|other| Rc::ptr_eq(other, endpoint))
        };
        let Some(cluster) = self.clusters.iter().find(is_its) else { return false };
        endpoint.agreement().lacks_connections(cluster.slot)
            && cluster.endpoints.iter().any(|other| other.close_oldest())
    }

    /// Closes idle connections of a cluster, as many as others wait for.
    pub fn close_owed(&self, slot: ClusterSlot) {
        let clusters = self.clusters.iter().filter(|cluster| cluster.slot == slot);
        clusters.flat_map(|cluster| &cluster.endpoints).for_each(|endpoint| endpoint.close_owed());
    }

    /// Closes connections that have been idle for too long.
    pub fn sweep(&self, now: Nanos) {
        let Some(plan) = &self.plan else { return };
        for (cluster, state) in plan.clusters.iter().zip(&self.clusters) {
            for endpoint in &state.endpoints {
                endpoint.sweep(&cluster.pool, now);
            }
        }
    }

    fn cluster_named(&self, name: &str) -> Option<&ShardCluster> {
        let plan = self.plan.as_ref()?;
        let index = plan.clusters.iter().position(|cluster| cluster.name == name)?;
        self.clusters.get(index)
    }
}
