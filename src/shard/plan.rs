//! A plan as one shard serves by it: with its endpoints' connections and its balancers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use crate::balance::Balancer;
use crate::metrics::ShardCounters;
use crate::plan::{Cluster, Plan};
use crate::rng::Rng;
use crate::time::Nanos;
use crate::upstream::Endpoint;

/// One plan, and this shard's state for it.
pub struct ShardPlan {
    /// What all shards share; `None` before the first plan arrived.
    plan: Option<Arc<Plan>>,
    clusters: Vec<ShardCluster>,
}

/// One cluster, as one shard sees it.
pub struct ShardCluster {
    endpoints: Vec<Rc<Endpoint>>,
    balancer: RefCell<Balancer>,
}

impl ShardPlan {
    /// Before the first plan.
    pub fn empty() -> ShardPlan {
        ShardPlan { plan: None, clusters: Vec::new() }
    }

    /// State for a new plan. Endpoints that stay keep their connections; those that go are retired.
    pub fn replacing(
        old: &ShardPlan,
        plan: Arc<Plan>,
        counters: &Arc<ShardCounters>,
        rng: &mut Rng,
    ) -> ShardPlan {
        let clusters = plan.clusters.iter().map(|cluster| {
            let before = old.cluster_named(&cluster.name);
            let endpoints = cluster.endpoints.iter().map(|endpoint| {
                before
                    .iter()
                    .flat_map(|cluster| &cluster.endpoints)
                    .find(|known| known.id == endpoint.id && known.name == endpoint.name)
                    .cloned()
                    .unwrap_or_else(|| Rc::new(Endpoint::new(endpoint, counters.clone())))
            });
            let endpoints = endpoints.collect();
            let Cluster { table, balance, endpoints: all, .. } = cluster;
            let balancer = Balancer::with_table(table, balance, all, rng.bits());
            ShardCluster { endpoints, balancer: RefCell::new(balancer) }
        });
        let clusters: Vec<ShardCluster> = clusters.collect();
        for known in old.clusters.iter().flat_map(|cluster| &cluster.endpoints) {
            let stays =
                clusters.iter().any(|new| new.endpoints.iter().any(|e| Rc::ptr_eq(e, known)));
            if !stays {
                known.retire();
            }
        }
        ShardPlan { plan: Some(plan), clusters }
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

    /// An endpoint of a cluster for one request, not `except`; `None` where there is none.
    pub fn pick(
        &self,
        cluster: usize,
        hash: Option<u64>,
        except: Option<&Rc<Endpoint>>,
    ) -> Option<Rc<Endpoint>> {
        let cluster = &self.clusters[cluster];
        let usable = |index: usize| match except {
            Some(except) => !Rc::ptr_eq(&cluster.endpoints[index], except),
            None => true,
        };
        let in_flight = |index: usize| cluster.endpoints[index].in_flight();
        let picked = cluster.balancer.borrow_mut().pick(in_flight, hash, usable)?;
        Some(cluster.endpoints[picked].clone())
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
