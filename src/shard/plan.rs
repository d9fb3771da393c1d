//! A plan as one shard serves by it: with its endpoints' connections and its balancers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::{self, Record, Window};
use crate::balance::{Aperture, Balancer, Candidates, Loads, Tiers};
use crate::breaker::Outcome;
use crate::fallback::last_good::{self, Keeping, Seen as SeenAnswer};
use crate::fallback::store::{Kept, Store};
use crate::health::ClusterHealth;
use crate::metrics::ShardCounters;
use crate::metrics::fallbacks::FallbackCounters;
use crate::overload::Codel;
use crate::plan::{Cluster, Fallback, LastGood, Plan};
use crate::reconcile::{ClusterId, ClusterSlot, EndpointSlot, Kind, Reconciler, Standing};
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
    /// Of the plan's fallbacks.
    fallbacks: Vec<ShardFallback>,
}

/// One fallback, as one shard sees it.
pub struct ShardFallback {
    /// What it has done.
    pub counters: Arc<FallbackCounters>,
    /// What is kept for it, if anything is, and by which rules.
    store: Option<(Rc<RefCell<Store>>, LastGood)>,
}

impl ShardFallback {
    fn of(
        fallback: &Fallback,
        before: Option<&ShardFallback>,
        shards: usize,
        counters: &ShardCounters,
    ) -> ShardFallback {
        let counters = counters.fallbacks.of(&fallback.route);
        let store = fallback.last_good.clone().map(|settings| {
            let bytes_max = settings.bytes_max / shards;
            let known = before.and_then(|it| Some(it.store.as_ref()?.0.clone()));
            let new = || Rc::new(RefCell::new(Store::new(bytes_max, counters.clone())));
            let store = known.unwrap_or_else(new);
            store.borrow_mut().resize(bytes_max);
            (store, settings)
        });
        ShardFallback { counters, store }
    }

    /// The answer to give to what was sent to an origin, in vain.
    pub fn last_good(&self, sent: &[u8], now: Nanos) -> Option<Rc<Kept>> {
        let (store, settings) = self.store.as_ref()?;
        last_good::find(&mut store.borrow_mut(), settings, sent, now)
    }

    /// Looks at an answer: whether it is one to keep.
    pub fn look(&self, seen: &SeenAnswer<'_>) -> Option<Keeping> {
        let (store, settings) = self.store.as_ref()?;
        last_good::look(&mut store.borrow_mut(), settings, seen)
    }

    /// The whole of it has come.
    pub fn keep(&self, keeping: Keeping) {
        if let Some((store, _)) = &self.store {
            keeping.finish(&mut store.borrow_mut());
        }
    }
}

/// One cluster, as one shard sees it.
pub struct ShardCluster {
    slot: ClusterSlot,
    endpoints: Vec<Rc<Endpoint>>,
    balancer: RefCell<Balancer>,
    /// Where not all endpoints are alike, or not all are this shard's: what is asked before.
    part: Option<RefCell<Part>>,
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

/// The part of a cluster's endpoints that a request is for.
enum Part {
    /// By priority and zone.
    Tiers(Tiers),
    /// This shard's, and how many it has, as the metric was told.
    Aperture(Box<Aperture>, u32, Arc<ShardCounters>),
}

impl Part {
    fn of(
        cluster: &Cluster,
        before: Option<&ShardCluster>,
        agreement: &Agreement,
        counters: &Arc<ShardCounters>,
        seed: u64,
    ) -> Option<Part> {
        let shards = agreement.shards();
        if let Some(tiering) = &cluster.tiering {
            return Some(Part::Tiers(Tiers::new(tiering, &cluster.balance, shards as u32, seed)));
        }
        let settings = cluster.aperture?;
        let load = before.and_then(|before| match &*before.part.as_ref()?.borrow() {
            Part::Aperture(aperture, ..) => Some(aperture.load()),
            Part::Tiers(_) => None,
        });
        let weights = cluster.endpoints.iter().map(|endpoint| endpoint.weight);
        let place = (agreement.shard(), shards);
        let load = load.unwrap_or_default();
        let aperture = Aperture::new(&cluster.balance, weights, settings, place, load, seed);
        let mut part = Part::Aperture(Box::new(aperture), 0, counters.clone());
        part.tell_width();
        Some(part)
    }

    /// `None` also where only endpoints of other parts are usable.
    fn pick(
        &mut self,
        health: &ClusterHealth,
        loads: &Seen<'_>,
        hash: Option<u64>,
        dice: u32,
        usable: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let is_plain = health.is_plain(loads.now);
        let usable = |index: usize| (is_plain || !health.is_out(index)) && usable(index);
        let is_there = |index: usize, in_panic: bool| {
            (is_plain || in_panic || !health.is_down(index)) && loads.admits(index)
        };
        let whole = |index: usize| {
            (is_plain || !health.holds_back(index, loads.now, dice)) && usable(index)
        };
        match self {
            Part::Tiers(tiers) => {
                let panics = |tier: usize| !is_plain && health.panics(tier);
                let who = Candidates { whole, usable, is_there, panics };
                tiers.pick(loads, hash, loads.now, &who)
            }
            Part::Aperture(aperture, ..) => {
                let is_there = |index| is_there(index, health.in_panic());
                let picked = aperture.pick(loads, loads.now, is_there, whole, usable);
                self.tell_width();
                picked
            }
        }
    }

    fn tell_width(&mut self) {
        if let Part::Aperture(aperture, told, counters) = self {
            let width = aperture.width() as u32;
            if width != *told {
                counters.aperture_endpoints.add(i64::from(width) - i64::from(*told));
                *told = width;
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Part::Aperture(_, told, counters) = self {
            counters.aperture_endpoints.sub((*told).into());
        }
    }
}

/// What a cluster has under way on this shard.
struct Seen<'a> {
    cluster: ClusterSlot,
    endpoints: &'a [Rc<Endpoint>],
    own: &'a Reconciler,
    now: Nanos,
}

impl Seen<'_> {
    /// Whether its breaker leaves an endpoint to choose, or would for a permit.
    fn admits(&self, index: usize) -> bool {
        let standing = self.own.standing(self.endpoints[index].slot, self.now, 0);
        matches!(standing, Standing::Open | Standing::Full | Standing::MayAsk)
    }
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
            fallbacks: Vec::new(),
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
                    .inspect(|known| known.set_zone(endpoint.zone))
                    .unwrap_or_else(|| {
                        Rc::new(Endpoint::new(endpoint, agreement.clone(), counters.clone()))
                    })
            });
            let endpoints = endpoints.collect();
            let Cluster { table, balance, endpoints: all, .. } = cluster;
            let balancer = Balancer::with_table(table, balance, all, rng.bits());
            let slot = agreement.cluster_slot(cluster.id);
            let balancer = RefCell::new(balancer);
            let part = Part::of(cluster, before, agreement, counters, rng.bits());
            let part = part.map(RefCell::new);
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
                part,
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
        let fallback = |it: &Fallback| {
            let known = old.plan.iter().flat_map(|plan| &plan.fallbacks);
            let before = known.zip(&old.fallbacks).find(|(known, _)| it.goes_on(known));
            ShardFallback::of(it, before.map(|(_, own)| own), agreement.shards(), counters)
        };
        let fallbacks = plan.fallbacks.iter().map(fallback).collect();
        ShardPlan { plan: Some(plan), clusters, route_breakers, hedges, fallbacks }
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

    /// A request has ended so.
    #[inline]
    pub fn ended(&self, cluster: usize, outcome: Outcome) {
        if let Some(admission) = &self.clusters[cluster].admission {
            admission.ended(outcome);
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
        let ShardCluster { slot, endpoints, balancer, part, health, .. } = &self.clusters[cluster];
        let loads = Seen { cluster: *slot, endpoints, own, now };
        let usable = |index: usize| usable(endpoints[index].slot);
        let mut balancer = balancer.borrow_mut();
        let is_plain = health.is_plain(now);
        let dice = match is_plain {
            true => 0,
            false => self.cluster(cluster).balance.dice(hash, balancer.random()),
        };
        if let Some(part) = part {
            let picked = part.borrow_mut().pick(health, &loads, hash, dice, usable);
            if picked.is_some() || self.cluster(cluster).tiering.is_some() {
                return picked.map(|index| &endpoints[index]);
            }
        }
        let picked = match is_plain {
            true => balancer.pick(&loads, hash, usable),
            false => balancer.pick_by_health(health, &loads, now, hash, dice, usable),
        };
        picked.map(|index| &endpoints[index])
    }

    /// Whether an endpoint of a cluster that is not down passes a test.
    pub fn has(&self, cluster: usize, test: impl Fn(EndpointSlot) -> bool) -> bool {
        let ShardCluster { endpoints, health, .. } = &self.clusters[cluster];
        let mut all = endpoints.iter().enumerate();
        all.any(|(index, endpoint)| !health.is_out(index) && test(endpoint.slot))
    }

    /// Whether checks take an endpoint out of a cluster.
    pub fn is_out(&self, cluster: usize, slot: EndpointSlot) -> bool {
        let ShardCluster { endpoints, health, .. } = &self.clusters[cluster];
        endpoints.iter().position(|it| it.slot == slot).is_some_and(|index| health.is_out(index))
    }

    /// The place of a cluster, by its number.
    pub fn position(&self, id: ClusterId) -> Option<usize> {
        self.shared().clusters.iter().position(|cluster| cluster.id == id)
    }

    /// Where the breaker of a route is kept.
    pub fn route_breaker(&self, index: usize) -> EndpointSlot {
        self.route_breakers[index]
    }

    /// A fallback, by its place in the plan.
    pub fn fallback(&self, place: usize) -> &ShardFallback {
        &self.fallbacks[place]
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
