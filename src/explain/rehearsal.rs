//! A shard that serves nobody: it has the plan, and decides about a request as any other, by the
//! same code. No socket is opened but those that a shard has of its own.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::accept::ClientInfo;
use crate::access_log::AccessLogs;
use crate::admit::{self, Admission, Arrived, Order};
use crate::mailbox::Inbox;
use crate::metrics::ShardCounters;
use crate::plan::Plan;
use crate::reason::Reason;
use crate::shard::Shard;
use crate::shard::agreement::Agreement;
use crate::shard::message::{FromShard, ToShard};
use crate::shard::plan::ShardPlan;
use crate::shard::transit::Transit;
use crate::time::Nanos;

/// Bytes of its buffers: heads are no larger by default, and a larger one gets a larger buffer.
const BUFFER_BYTES: usize = 64 * 1024;

/// The shard, and the plan as it has it.
pub(super) struct Rehearsal {
    shard: Rc<Shard>,
    pub plan: Rc<ShardPlan>,
    counters: Arc<ShardCounters>,
    /// Nothing is written there.
    logs: Option<AccessLogs>,
}

impl Rehearsal {
    /// # Errors
    /// Where there are no descriptors, or no thread.
    pub fn new(plan: Arc<Plan>) -> io::Result<Rehearsal> {
        let counters = Arc::new(ShardCounters::default());
        let all = vec![counters.clone()];
        let (logs, mut of_shards) = AccessLogs::start(&all)?;
        let log = of_shards.pop().expect("one for each shard");
        let (inbox, transit) = (Inbox::<ToShard>::new()?, Arc::new(Transit::new(1)));
        let agreement = Agreement::new(0, inbox, vec![None], transit, all);
        let to_control = Inbox::<FromShard>::new()?.sender(1);
        let shard = Shard::new(0, u32::MAX, BUFFER_BYTES, log, agreement, to_control)?;
        shard.agreement.prepare(&plan);
        shard.agreement.activate(&plan, Nanos::now());
        let before = ShardPlan::empty();
        let mut rng = shard.rng.borrow_mut();
        let plan = ShardPlan::replacing(&before, plan, &shard.agreement, &counters, &mut rng);
        drop(rng);
        Ok(Rehearsal { shard, plan: Rc::new(plan), counters, logs: Some(logs) })
    }

    /// What becomes of a whole head on a listener.
    ///
    /// # Errors
    /// The reason, where the connection ends with it.
    pub fn admit(&self, listener: usize, peer: SocketAddr, head: &[u8]) -> Result<Order, Reason> {
        let info = ClientInfo::imagined(listener, peer, &self.counters);
        let (mut order, now) = (None, Nanos::now());
        let arrived = Arrived { began: now, complete: now, readable_since: now };
        match admit::admit(&self.shard, &self.plan, &info, head, arrived, &mut order) {
            Admission::Order => {
                let mut order = order.expect("it was made");
                if order.deadline.is_some() {
                    order.tell_deadline(now);
                }
                Ok(order)
            }
            Admission::Refused(reason) => Err(reason),
            // It would be waited for.
            Admission::Partial => Err(Reason::HeaderTimeout),
        }
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        if let Some(logs) = self.logs.take() {
            logs.stop();
        }
    }
}
