//! Brings plans to all shards in two phases, from the control thread. Pure.
//!
//! ```text
//! control                       every shard
//!    | -- Prepare(2) ------------> |  Reconciler::prepare: knows who is new
//!    | <- prepared(2) ------------ |
//!    |    (when all have said so)
//!    | -- Activate(2) -----------> |  Reconciler::activate: the plan holds
//!    | <- activated(2) ----------- |
//!    |    (when all have said so: the newest plan that came meanwhile)
//! ```
//!
//! So every shard sees the same plans in the same order, and nobody hears of an endpoint that it
//! does not know.

use super::ShardId;

/// What to tell every shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Get to know it.
    Prepare(u64),
    /// Serve by it.
    Activate(u64),
}

/// Which plan is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rollout {
    /// The newest generation that each shard has prepared, and that it has activated.
    prepared: Vec<u64>,
    activated: Vec<u64>,
    /// The newest step that was told.
    step: Option<Step>,
    /// The newest plan that waits; those before it are skipped.
    waiting: Option<u64>,
}

impl Rollout {
    /// Nothing on its way.
    pub fn new(shards: u16) -> Rollout {
        Rollout {
            prepared: vec![0; shards.into()],
            activated: vec![0; shards.into()],
            step: None,
            waiting: None,
        }
    }

    /// A new plan. `Some`: tell every shard.
    pub fn submit(&mut self, generation: u64) -> Option<Step> {
        self.waiting = self.waiting.max(Some(generation));
        self.advance()
    }

    /// A shard has prepared this generation. `Some`: tell every shard.
    pub fn prepared(&mut self, by: ShardId, generation: u64) -> Option<Step> {
        let newest = &mut self.prepared[usize::from(by.0)];
        *newest = generation.max(*newest);
        self.advance()
    }

    /// A shard has activated this generation. `Some`: tell every shard.
    pub fn activated(&mut self, by: ShardId, generation: u64) -> Option<Step> {
        let newest = &mut self.activated[usize::from(by.0)];
        *newest = generation.max(*newest);
        self.advance()
    }

    /// The newest step, and who has not done it: to be told again, if that may have been lost.
    pub fn undone(&self) -> Option<(Step, Vec<ShardId>)> {
        let (done, generation) = match self.step? {
            Step::Prepare(generation) => (&self.prepared, generation),
            Step::Activate(generation) => (&self.activated, generation),
        };
        let shards = (0..done.len()).filter(|shard| done[*shard] < generation);
        Some((self.step?, shards.map(|shard| ShardId(shard as u16)).collect()))
    }

    fn advance(&mut self) -> Option<Step> {
        let next = match self.step {
            Some(Step::Prepare(generation)) => self
                .prepared
                .iter()
                .all(|it| *it >= generation)
                .then_some(Step::Activate(generation)),
            Some(Step::Activate(generation))
                if self.activated.iter().any(|it| *it < generation) =>
            {
                None
            }
            _ => self.waiting.take().map(Step::Prepare),
        };
        if next.is_some() {
            self.step = next;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [ShardId; 2] = [ShardId(0), ShardId(1)];

    #[test]
    fn one_at_a_time_and_the_newest_next() {
        let mut rollout = Rollout::new(2);
        assert_eq!(rollout.submit(1), Some(Step::Prepare(1)));
        assert_eq!(rollout.submit(2), None);
        assert_eq!(rollout.prepared(BOTH[0], 1), None);
        assert_eq!(rollout.submit(3), None);
        assert_eq!(rollout.prepared(BOTH[1], 1), Some(Step::Activate(1)));
        assert_eq!(rollout.prepared(BOTH[1], 1), None, "said twice");
        assert_eq!(rollout.activated(BOTH[1], 1), None);
        assert_eq!(rollout.undone(), Some((Step::Activate(1), vec![BOTH[0]])));
        assert_eq!(rollout.activated(BOTH[0], 1), Some(Step::Prepare(3)));
    }
}
