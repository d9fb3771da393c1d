//! What this shard tells of the breakers that it decides, by the names that the plan gives them:
//! lines of the log, and the records that the control thread reads. The agreement calls it, when a
//! breaker has changed; never on a request's usual path.

use std::cell::RefCell;
use std::sync::Arc;

use crate::breaker::{Epoch, Phase};
use crate::metrics::breakers::{BreakerState, ConcurrencyRecord, is_trip};
use crate::plan::{Breaker, Plan};
use crate::reconcile::{ClusterId, EndpointId};

/// The plans that may have the breaker that an event names: the one that holds, and behind it one
/// that is prepared, whose breakers may already change.
#[derive(Default)]
pub struct Breakers(RefCell<Vec<Arc<Plan>>>);

impl Breakers {
    /// There is a new plan to come.
    pub fn prepare(&self, plan: &Arc<Plan>) {
        self.0.borrow_mut().push(plan.clone());
    }

    /// It has come, and whatever the old one's breakers did is told.
    pub fn activate(&self, generation: u64) {
        self.0.borrow_mut().retain(|plan| plan.generation >= generation);
    }

    /// A breaker has a new state.
    pub fn changed(&self, id: EndpointId, phase: Phase, epoch: Epoch) {
        self.named(id, |breaker| {
            let before = breaker.record.publish(phase, epoch);
            let after = BreakerState::from(phase);
            let Breaker { cluster, name: endpoint, .. } = breaker;
            let (from, to, epoch, kind) = (before.name(), after.name(), epoch.0, breaker.kind());
            if is_trip(before, after) {
                tracing::warn!(cluster, endpoint, kind, from, to, epoch, "breaker trips");
            } else {
                tracing::info!(cluster, endpoint, kind, from, to, epoch, "breaker");
            }
        });
    }

    /// A breaker should have tripped, but must not.
    pub fn trip_refused(&self, id: EndpointId) {
        self.named(id, |breaker| {
            let Breaker { cluster, name: endpoint, record, .. } = breaker;
            let (state, _) = record.read();
            tracing::warn!(
                cluster,
                endpoint,
                kind = breaker.kind(),
                state = state.name(),
                "breaker does not trip: max_ejected is reached"
            );
        });
    }

    /// A limit on requests that follows what is measured was reckoned anew.
    pub fn concurrency(&self, id: ClusterId, tell: impl FnOnce(&ConcurrencyRecord)) {
        let plans = self.0.borrow();
        let record = plans.iter().rev().find_map(|plan| {
            let place = plan.clusters.iter().position(|cluster| cluster.id == id)?;
            plan.concurrency.get(place)
        });
        if let Some(record) = record {
            tell(record);
        }
    }

    /// One that no plan has is not told of: it has left with the last one.
    fn named(&self, id: EndpointId, tell: impl FnOnce(&Breaker)) {
        let plans = self.0.borrow();
        if let Some(breaker) = plans.iter().rev().find_map(|plan| plan.breaker(id)) {
            tell(breaker);
        }
    }
}
