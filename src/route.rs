//! Head to route: which rule a request falls under, and what that rule says shall happen.
//!
//! The configuration compiles into [`Matcher`]s and [`Route`]s, [`Router::new`] indexes them once
//! per plan, and the session asks [`Router::find`] once per request. Pure; finding never
//! allocates, and nothing in here opens a connection or sends an answer.
//!
//! # Precedence
//!
//! 1. The host: exact, then the longest `*.suffix`, then any.
//! 2. Within a host, the path: exact, then the longest prefix.
//! 3. Among the same host and path: the order of the configuration.
//!
//! The first rule in this order whose other conditions (listener, method, headers, query) hold as
//! well is taken. One whose conditions fail is passed over as if it were not there, so the search
//! goes on to shorter prefixes and then to less exact hosts.

use std::time::Duration;

use bytes::Bytes;

mod hedge;
mod matcher;
mod redirect;
mod retries;
mod rewrite;
mod router;
mod rules;

pub use hedge::{HedgeAfter, HedgeDelay, HedgePolicy};
pub use matcher::{FieldMatch, HostMatch, Matcher, PathMatch, RequestView, ValueMatch};
pub use redirect::{Asked, Redirect, RedirectPath};
pub use retries::{Condition, Conditions, RetryPolicy};
pub use rewrite::is_path;
pub use router::Router;
pub use rules::{HeaderRules, is_field_name, is_field_value};

/// What holds for the requests that fall under one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// As configured, for logs and metrics.
    pub name: String,
    /// What becomes of the request.
    pub action: Action,
    /// Applied to the request before it is forwarded.
    pub request_headers: HeaderRules,
    /// Applied to every answer to the client, ours included.
    pub response_headers: HeaderRules,
    /// How long the upstream may take.
    pub timeouts: RouteTimeouts,
    /// When another try is worth it.
    pub retries: RetryPolicy,
    /// Sends the path upstream as it was received instead of normalised. A `prefix_rewrite` goes
    /// before: it always rewrites the normalised path.
    pub preserve_path: bool,
    /// Largest request body, in bytes, in place of the listener's.
    pub body_bytes_max: Option<u64>,
    /// The rate limits that hold for it: their places in [`crate::plan::Plan::rate_limits`], at most
    /// [`crate::rate::ROUTE_LIMITS_MAX`].
    pub rate_limits: Vec<usize>,
    /// What answers in place of a failure: a place in [`crate::plan::Plan::fallbacks`].
    pub fallback: Option<usize>,
    /// How much of a matching path the rule's prefix or exact path takes up, in bytes: what a
    /// prefix rewrite replaces. Filled in by [`Router::new`].
    pub prefix_bytes: usize,
}

impl Route {
    /// A route with defaults for everything else.
    pub fn new(name: impl Into<String>, action: Action) -> Route {
        Route {
            name: name.into(),
            action,
            request_headers: HeaderRules::default(),
            response_headers: HeaderRules::default(),
            timeouts: RouteTimeouts::default(),
            retries: RetryPolicy::default(),
            preserve_path: false,
            body_bytes_max: None,
            rate_limits: Vec::new(),
            fallback: None,
            prefix_bytes: 0,
        }
    }

    /// Whether what it would write into heads is fit to be written there. The configuration's
    /// check asks; [`Router::new`] insists.
    ///
    /// # Errors
    ///
    /// What is wrong, in words for the operator.
    pub fn check(&self) -> Result<(), &'static str> {
        self.request_headers.check()?;
        self.response_headers.check()?;
        match &self.action {
            Action::Forward(forward) => forward.check(),
            Action::Redirect(redirect) => redirect.check(),
            Action::Respond(respond) => respond.check(),
        }
    }
}

/// Time limits between us and the endpoint; zero switches one off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// From the end of the request to the head of the final answer, retries included. Default 15 s;
    /// 504.
    pub answer: Duration,
    /// From the request's head to the end of the answer. Off by default.
    pub total: Duration,
    /// Between two movements in either direction once the answer began. Default 5 min.
    pub stream_idle: Duration,
}

impl Default for RouteTimeouts {
    fn default() -> RouteTimeouts {
        RouteTimeouts {
            answer: Duration::from_secs(15),
            total: Duration::ZERO,
            stream_idle: Duration::from_secs(300),
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// An endpoint of a cluster answers.
    Forward(Forward),
    /// We send the client elsewhere.
    Redirect(Redirect),
    /// We answer.
    Respond(Respond),
}

/// To which cluster, and as what.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// One cluster, or several with their shares.
    pub clusters: Split,
    /// The route's breakers: for a cluster (its place in the plan) the place of the breaker in
    /// [`crate::plan::Plan::route_breakers`]. Empty where the route has none.
    pub breakers: Vec<(usize, usize)>,
    /// Where requests go that no endpoint of the cluster can have, in place of that cluster's own.
    pub fallback: Option<usize>,
    /// Replaces the matched prefix (or exact path) of the path; see [`Forward::write_path`].
    pub prefix_rewrite: Option<String>,
    /// Replaces `Host`.
    pub host_rewrite: Option<String>,
}

impl Forward {
    /// To one cluster, unchanged.
    pub fn to(cluster: usize) -> Forward {
        Forward {
            clusters: Split::one(cluster),
            breakers: Vec::new(),
            fallback: None,
            prefix_rewrite: None,
            host_rewrite: None,
        }
    }

    /// The route's breaker for a cluster, as in [`Forward::breakers`].
    pub fn breaker(&self, cluster: usize) -> Option<usize> {
        let found = self.breakers.iter().find(|(of, _)| *of == cluster);
        found.map(|(_, breaker)| *breaker)
    }

    /// Appends the path that goes upstream: the normalised `path` with its first `prefix_bytes`
    /// (the route's) rewritten, or as it is. There is exactly one slash where the rewrite meets
    /// the rest, and `*` stays `*`.
    pub fn write_path(&self, prefix_bytes: usize, path: &[u8], out: &mut Vec<u8>) {
        match &self.prefix_rewrite {
            Some(prefix) => {
                for part in rewrite::prefix(prefix, prefix_bytes, path) {
                    out.extend_from_slice(part);
                }
            }
            None => out.extend_from_slice(path),
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.prefix_rewrite.as_deref().is_some_and(|path| !is_path(path)) {
            return Err(
                "a prefix rewrite is a path: it begins with '/' and has no '?', '#' or space",
            );
        }
        let host_fits = |host: &str| !host.is_empty() && host.bytes().all(redirect::is_host_byte);
        if self.host_rewrite.as_deref().is_some_and(|host| !host_fits(host)) {
            return Err("a host rewrite is a host name with an optional port");
        }
        Ok(())
    }
}

/// Clusters and their shares of the requests. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Clusters' indices with the sum of the weights up to and including theirs.
    parts: Vec<(usize, u32)>,
}

impl Split {
    /// All to one.
    pub fn one(cluster: usize) -> Split {
        Split { parts: vec![(cluster, 1)] }
    }

    /// By weights; clusters of weight 0 get nothing. `None` if no weight is left, or if the sum
    /// exceeds `u32::MAX`.
    pub fn new(weights: impl IntoIterator<Item = (usize, u32)>) -> Option<Split> {
        let mut sum = 0u32;
        let mut parts = Vec::new();
        for (cluster, weight) in weights {
            sum = sum.checked_add(weight)?;
            if weight > 0 {
                parts.push((cluster, sum));
            }
        }
        (!parts.is_empty()).then_some(Split { parts })
    }

    /// The cluster for a request; `random` is uniform over all its values.
    #[inline]
    pub fn pick(&self, random: u32) -> usize {
        let [.., (last, sum)] = self.parts[..] else { unreachable!("a split is never empty") };
        if self.parts.len() == 1 {
            return last;
        }
        let point = ((u64::from(random) * u64::from(sum)) >> 32) as u32;
        self.parts.iter().find(|(_, end)| point < *end).map_or(last, |(cluster, _)| *cluster)
    }

    /// Every cluster that can be picked, with its weight.
    pub fn weights(&self) -> impl Iterator<Item = (usize, u32)> {
        let before = std::iter::once(0).chain(self.parts.iter().map(|(_, end)| *end));
        self.parts.iter().zip(before).map(|((cluster, end), before)| (*cluster, end - before))
    }

    /// Every cluster that can be picked.
    pub fn clusters(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().map(|(cluster, _)| *cluster)
    }
}

/// An answer of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    /// From 200 to 599.
    pub status: u16,
    /// `Content-Type`; none is sent without it.
    pub content_type: Option<String>,
    /// May be empty.
    pub body: Bytes,
}

impl Respond {
    fn check(&self) -> Result<(), &'static str> {
        if !(200..=599).contains(&self.status) {
            return Err("a direct response has a status from 200 to 599");
        }
        if self.content_type.as_deref().is_some_and(|value| !is_field_value(value)) {
            return Err("a content type has no line ends and no control characters");
        }
        if matches!(self.status, 204 | 304) && !self.body.is_empty() {
            return Err("a response with status 204 or 304 has no body");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shares_lie_where_the_weights_put_them() {
        let split = Split::new([(7, 1), (8, 0), (9, 3)]).unwrap();
        assert_eq!(split.pick(0), 7);
        assert_eq!(split.pick(u32::MAX / 4), 7);
        assert_eq!(split.pick(u32::MAX / 4 + 1), 9);
        assert_eq!(split.pick(u32::MAX), 9);
        assert_eq!(split.clusters().collect::<Vec<_>>(), [7, 9]);
        assert_eq!(split.weights().collect::<Vec<_>>(), [(7, 1), (9, 3)]);
        assert_eq!(Split::one(3).pick(u32::MAX), 3);
    }

    #[test]
    fn a_split_has_weight() {
        assert_eq!(Split::new([]), None);
        assert_eq!(Split::new([(0, 0)]), None);
        assert_eq!(Split::new([(0, u32::MAX), (1, 1)]), None);
        assert!(Split::new([(0, u32::MAX), (1, 0)]).is_some());
    }

    #[test]
    fn unfit_actions_are_refused() {
        let check = |action| Route::new("r", action).check().is_ok();
        let forward = |prefix: Option<&str>, host: Option<&str>| {
            check(Action::Forward(Forward {
                prefix_rewrite: prefix.map(str::to_owned),
                host_rewrite: host.map(str::to_owned),
                ..Forward::to(0)
            }))
        };
        assert!(forward(Some("/v1"), Some("a.example:81")));
        assert!(forward(None, Some("[::1]:81")));
        for prefix in ["", "v1", "/a b", "/a?b", "/a#b", "/a\r\nb", "/\u{e9}"] {
            assert!(!forward(Some(prefix), None), "{prefix}");
        }
        for host in ["", "a b", "a\r\nb", "a/b", "a@b"] {
            assert!(!forward(None, Some(host)), "{host}");
        }
        let respond = |status, content_type: Option<&str>, body: &'static str| {
            check(Action::Respond(Respond {
                status,
                content_type: content_type.map(str::to_owned),
                body: Bytes::from_static(body.as_bytes()),
            }))
        };
        assert!(respond(200, Some("text/plain"), "hello") && respond(204, None, ""));
        assert!(!respond(199, None, "") && !respond(600, None, ""));
        assert!(!respond(204, None, "x") && !respond(304, None, "x"));
        assert!(!respond(200, Some("text/plain\r\nx: y"), ""));
    }

    proptest! {
        /// Cut into the same number of steps as the weights sum to, each gets its weight.
        #[test]
        fn shares_are_exact(weights in prop::collection::vec(0u32..20, 1..10)) {
            let total: u32 = weights.iter().sum();
            prop_assume!(total > 0);
            let split = Split::new(weights.iter().copied().enumerate()).unwrap();
            let mut counts = vec![0; weights.len()];
            for step in 0..total {
                let middle = (u64::from(step) * 2 + 1) * (1 << 31) / u64::from(total);
                counts[split.pick(middle as u32)] += 1;
            }
            prop_assert_eq!(counts, weights);
        }
    }
}
