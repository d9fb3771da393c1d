//! Which plan is on its way to the shards. Pure.
//!
//! One at a time: while a shard has not acknowledged the last one, newer ones wait, and only the
//! newest of them is sent then.

use std::sync::Arc;

use crate::plan::Plan;

pub(super) struct Rollout {
    /// The newest generation that each shard has acknowledged.
    applied: Vec<u64>,
    /// The newest generation that was sent.
    sent: u64,
    /// To be sent when `sent` has been acknowledged by all.
    waiting: Option<Arc<Plan>>,
}

impl Rollout {
    pub fn new(shards: usize) -> Rollout {
        Rollout { applied: vec![0; shards], sent: 0, waiting: None }
    }

    /// A new plan. Returns what to send to every shard now.
    pub fn offer(&mut self, plan: Arc<Plan>) -> Option<Arc<Plan>> {
        self.waiting = Some(plan);
        self.advance()
    }

    /// A shard has acknowledged. Returns what to send to every shard now.
    pub fn applied(&mut self, shard: usize, generation: u64) -> Option<Arc<Plan>> {
        if let Some(applied) = self.applied.get_mut(shard) {
            *applied = generation.max(*applied);
        }
        self.advance()
    }

    fn advance(&mut self) -> Option<Arc<Plan>> {
        if self.applied.iter().any(|applied| *applied < self.sent) {
            return None;
        }
        let plan = self.waiting.take()?;
        self.sent = plan.generation;
        Some(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Router;

    fn plan(generation: u64) -> Arc<Plan> {
        let router = Router::new(Vec::new());
        Arc::new(Plan { generation, listeners: Vec::new(), router, clusters: Vec::new() })
    }

    fn generation(plan: Option<Arc<Plan>>) -> Option<u64> {
        plan.map(|plan| plan.generation)
    }

    #[test]
    fn one_plan_is_on_its_way_and_later_ones_coalesce() {
        let mut rollout = Rollout::new(2);
        assert_eq!(generation(rollout.offer(plan(1))), Some(1));
        assert_eq!(generation(rollout.offer(plan(2))), None);
        assert_eq!(generation(rollout.offer(plan(3))), None);
        assert_eq!(generation(rollout.applied(0, 1)), None);
        assert_eq!(generation(rollout.applied(1, 1)), Some(3));
        assert_eq!(generation(rollout.applied(1, 3)), None);
        assert_eq!(generation(rollout.applied(0, 3)), None);
        assert_eq!(generation(rollout.offer(plan(4))), Some(4));
    }

    #[test]
    fn late_and_repeated_acknowledgements_change_nothing() {
        let mut rollout = Rollout::new(2);
        rollout.offer(plan(1));
        rollout.applied(0, 1);
        rollout.applied(1, 1);
        rollout.offer(plan(2));
        rollout.offer(plan(3));
        assert_eq!(generation(rollout.applied(0, 1)), None);
        assert_eq!(generation(rollout.applied(0, 2)), None);
        assert_eq!(generation(rollout.applied(0, 2)), None);
        assert_eq!(generation(rollout.applied(7, 9)), None, "no such shard");
        assert_eq!(generation(rollout.applied(1, 2)), Some(3));
    }
}
