//! What limits and breakers cost a request while all goes well.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use outrigger::breaker::Outcome;
use outrigger::reconcile::{
    ClusterId, ClusterSpec, EndpointId, EndpointLimits, EndpointSpec, PlanSpec, Reconciler, Role,
    ShardId, Standing,
};
use outrigger::time::Nanos;

use super::{Step, Work};

pub const STEPS: &[Step] = &[
    Step { name: "agreement: choose, enter, complete; 1 shard", prepare: || exchange(1) },
    Step { name: "agreement: choose, enter, complete; 4 shards", prepare: || exchange(4) },
];

/// One endpoint, with every default.
fn exchange(shards: u16) -> Work {
    let id = EndpointId(0);
    let endpoint = EndpointSpec { id, role: Role::Endpoint, limits: EndpointLimits::default() };
    let cluster = ClusterSpec { endpoints: vec![endpoint], ..ClusterSpec::new(ClusterId(0)) };
    let plan = Arc::new(PlanSpec {
        generation: 1,
        clusters: vec![cluster],
        clusters_end: ClusterId(1),
        endpoints_end: EndpointId(1),
    });
    let mut reconciler = Reconciler::new(ShardId(0), shards);
    let now = Nanos(1_000_000_000);
    reconciler.prepare(&plan);
    reconciler.activate(1, now);
    let slot = reconciler.endpoint(id).expect("it is in the plan");
    Box::new(move || {
        let slot = black_box(slot);
        if reconciler.standing(slot, now, 0) == Standing::Open {
            let ticket = reconciler.enter(slot);
            reconciler.complete(ticket, Outcome::Success, Duration::ZERO, black_box(now));
        }
        black_box(reconciler.has_news(Nanos::NEVER));
    })
}
