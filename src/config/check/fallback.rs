//! Fallbacks: something to answer with, and failures that lead to it.

use super::Checker;
use crate::config::model::{LastGood, Route};

/// Every one of them may be under way for each request.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

impl Checker<'_> {
    /// `path` is the route's.
    pub(super) fn fallback(&mut self, path: &str, route: &Route) {
        let Some(fallback) = &route.fallback else { return };
        let at = |key: &str| format!("{path}.fallback.{key}");
        let is_empty = fallback.cluster.is_none()
            && fallback.last_good.is_none()
            && fallback.respond.is_none();
        if is_empty && !["cluster", "last_good", "respond"].iter().any(|key| self.lost(&at(key))) {
            self.error(
                &format!("{path}.fallback"),
                "nothing to fall back to",
                "add one of cluster, last_good, respond",
            );
        }
        if fallback.statuses.is_empty() && !self.lost(&at("statuses")) {
            self.error(
                &at("statuses"),
                "no failure leads to this fallback",
                "name statuses, such as 503; or remove the line: it is [502, 503, 504] by default",
            );
        }
        for (index, status) in fallback.statuses.iter().enumerate() {
            if !(400..=599).contains(status) {
                self.error(
                    &at(&format!("statuses.{index}")),
                    format!("{status} is no failure"),
                    "write statuses from 400 to 599",
                );
            }
        }
        if fallback.max_requests == 0 {
            self.error(
                &at("max_requests"),
                "a fallback for no request at all",
                "write 1 or more, or remove 'fallback'",
            );
        }
        if let Some(name) = &fallback.cluster {
            self.known(&at("cluster"), name, &self.names.clusters, "cluster");
            let own = route.clusters.iter().map(|part| &part.name).chain(&route.cluster);
            if own.into_iter().any(|own| own == name) {
                self.error(
                    &at("cluster"),
                    format!("'{name}' is what has failed"),
                    "name another cluster; 'retries' try the same one again",
                );
            }
        }
        if let Some(last_good) = &fallback.last_good {
            self.last_good(&at("last_good"), route, last_good);
        }
        if let Some(respond) = &fallback.respond {
            self.respond(&at("respond"), respond);
        }
    }

    fn last_good(&mut self, path: &str, route: &Route, last_good: &LastGood) {
        let LastGood { max_age, max_bytes, max_answer_bytes, refresh } = *last_good;
        let at = |key: &str| format!("{path}.{key}");
        let methods = &route.matches.methods;
        if !methods.is_empty() && !methods.iter().any(|it| it.0 == "GET") {
            self.error(
                path,
                "only answers to GET are kept, and this route gets none",
                "remove it, or add GET to match.methods",
            );
        }
        if max_bytes.0 == 0 {
            self.error(
                &at("max_bytes"),
                "nothing can be kept",
                "write 1MiB or more, or remove 'last_good'",
            );
        }
        if max_age.0.is_zero() {
            self.error(
                &at("max_age"),
                "every answer is too old",
                "write how old an answer may be that is better than none, such as 1h",
            );
        } else if refresh >= max_age && !self.lost(&at("refresh")) {
            let given = self.given(&at("refresh"));
            self.warn(
                &at(if given { "refresh" } else { "max_age" }),
                format!("answers are replaced after {refresh}, but of no use after {max_age}"),
                if given { "lower it, or raise max_age" } else { "raise it, or lower refresh" },
            );
        }
        if max_answer_bytes.0 > ANSWER_BYTES_MAX {
            self.error(
                &at("max_answer_bytes"),
                format!("{max_answer_bytes} of memory for each request"),
                "write 16MiB or less",
            );
        } else if max_answer_bytes > max_bytes && max_bytes.0 > 0 && !self.lost(&at("max_bytes")) {
            let given = self.given(&at("max_answer_bytes"));
            self.error(
                &at(if given { "max_answer_bytes" } else { "max_bytes" }),
                format!("one answer may take {max_answer_bytes}, all of them {max_bytes}"),
                if given {
                    "lower it, or raise max_bytes"
                } else {
                    "raise it, or lower max_answer_bytes"
                },
            );
        }
    }
}
