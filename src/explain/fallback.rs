//! What answers in place of a failure. Whether anything is kept for that, only the shards know.

use serde_json::json;

use super::report::{Line, printable};
use super::{Told, time};
use crate::fallback::last_good::is_for;
use crate::reason::Reason;
use crate::respond::phrase;

impl Told<'_> {
    /// Whether something else may answer where the request is refused for this reason.
    pub(super) fn falls_back_from(&self, reason: Reason) -> bool {
        let Some((order, ..)) = self.forward() else { return false };
        order.fallback_plan().is_some_and(|fallback| {
            let has_kept = fallback.last_good.is_some() && is_for(order.out.filled());
            fallback.wants_reason(reason)
                && (fallback.cluster.is_some() || has_kept || fallback.respond.is_some())
        })
    }

    pub(super) fn fallback(&self) -> Option<Line> {
        let (order, route, _) = self.forward()?;
        let fallback = order.fallback_plan()?;
        let may_be_kept = is_for(order.out.filled());
        let mut steps = Vec::new();
        if let Some(cluster) = fallback.cluster {
            steps.push(format!("cluster {}", self.plan.clusters[cluster].name));
        }
        if let Some(last_good) = fallback.last_good.as_ref().filter(|_| may_be_kept) {
            let age = time(last_good.age_max);
            steps.push(format!("the last good answer, up to {age} old, if the shard has one"));
        }
        if let Some(respond) = &fallback.respond {
            let (status, bytes) = (respond.status, respond.body.len());
            steps.push(format!("{status} {}, {bytes} bytes", phrase(status)));
        }
        if steps.is_empty() {
            steps.push("nothing for this request".to_owned());
        }
        let statuses: Vec<_> = fallback.statuses.iter().map(u16::to_string).collect();
        let text = format!(
            "after {}: {}; {} at once",
            statuses.join(", "),
            steps.join("; then "),
            fallback.requests_max
        );
        let value = json!({
            "statuses": fallback.statuses,
            "cluster": fallback.cluster.map(|it| self.plan.clusters[it].name.as_str()),
            "last_good": fallback.last_good.is_some() && may_be_kept,
            "respond": fallback.respond.as_ref().map(|respond| respond.status),
            "max_requests": fallback.requests_max,
        });
        let line = Line::new("fallback", text, value);
        let repeats = order.method.idempotent() || route.retries.non_idempotent;
        Some(match fallback.cluster.is_some() && !repeats {
            true => {
                let method = printable(&self.ask.method);
                line.and(format!("{method} is not idempotent: to the cluster if nothing was sent"))
            }
            false => line,
        })
    }
}
