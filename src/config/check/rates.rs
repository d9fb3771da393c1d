//! Rate limits: numbers that nothing could meet, and names that lead nowhere.

use std::collections::HashSet;
use std::time::Duration;

use super::Checker;
use crate::config::model::{RateLimit, RateLimitKey};
use crate::config::values::Name;
use crate::rate::{ROUTE_LIMITS_MAX, Rate};

/// A bucket's time is reckoned in 64 bits of nanoseconds.
const REFILL_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A slot takes some hundred bytes.
const KEYS_MAX: u32 = 10_000_000;

impl Checker<'_> {
    pub(super) fn rate_limits(&mut self) {
        let limits = &self.config.rate_limits;
        self.unique(limits.iter().map(|it| &it.name), "rate_limits", "rate limit");
        for (index, limit) in limits.iter().enumerate() {
            self.rate_limit(&format!("rate_limits.{index}"), limit);
        }
        let mut used: HashSet<&Name> = HashSet::new();
        for (index, route) in self.config.routes.iter().enumerate() {
            let path = format!("routes.{index}.rate_limits");
            if route.rate_limits.len() > ROUTE_LIMITS_MAX {
                self.error(
                    &format!("{path}.{ROUTE_LIMITS_MAX}"),
                    format!("a route has at most {ROUTE_LIMITS_MAX} rate limits"),
                    "leave out those that others imply",
                );
            }
            let mut own = HashSet::new();
            for (at, name) in route.rate_limits.iter().enumerate() {
                let known = &self.names.rate_limits;
                self.known(&format!("{path}.{at}"), name, known, "rate limit");
                if !own.insert(name) {
                    self.error(
                        &format!("{path}.{at}"),
                        format!("rate limit '{name}' is there twice"),
                        "once is enough",
                    );
                }
            }
            used.extend(&route.rate_limits);
        }
        if self.lost("routes") {
            return;
        }
        for (index, limit) in limits.iter().enumerate() {
            if !used.contains(&limit.name) {
                self.warn(
                    &format!("rate_limits.{index}.name"),
                    format!("no route names rate limit '{}'", limit.name),
                    "add it to rate_limits of a route",
                );
            }
        }
    }

    fn rate_limit(&mut self, path: &str, limit: &RateLimit) {
        let at = |key: &str| format!("{path}.{key}");
        let RateLimit { requests, per, burst, .. } = *limit;
        if requests == 0 {
            self.error(
                &at("requests"),
                "with no requests, all are refused",
                "write 1 or more; to refuse all, use respond: {status: 403}",
            );
        }
        if burst == Some(0) {
            self.error(
                &at("burst"),
                "a bucket without room never holds a token",
                "write 1 or more, or leave it out: then it is as requests",
            );
        }
        if per.0.is_zero() {
            self.error(&at("per"), "a rate is for a time longer than 0s", "write 1s, the default");
        } else if requests > 0 && !self.lost(&at("requests")) {
            let rate = Rate::new(requests, per.0, burst.unwrap_or(requests));
            if u128::from(requests) > per.0.as_nanos() {
                self.error(
                    &at("requests"),
                    "that is more than one each nanosecond",
                    "lower it, or leave the limit out",
                );
            } else if rate.interval().saturating_mul(rate.burst()) > REFILL_MAX {
                let given = self.given(&at("burst"));
                self.error(
                    &at(if given { "burst" } else { "per" }),
                    "an empty bucket would take more than a year to be full",
                    if given { "lower it, or raise requests" } else { "lower it" },
                );
            }
        }
        if limit.keys_max == 0 || limit.keys_max > KEYS_MAX {
            self.error(
                &at("keys_max"),
                format!("1 to {KEYS_MAX} buckets can be kept"),
                "100000 is the default",
            );
        }
        let usual = !self.given(&at("ipv6_prefix"));
        if limit.ipv6_prefix == 0 || limit.ipv6_prefix > 128 {
            self.error(
                &at("ipv6_prefix"),
                "an address has 128 bits",
                "write 1 to 128; 64 is the default",
            );
        } else if !usual && !limit.key.contains(&RateLimitKey::Client) && !self.lost(&at("key")) {
            self.warn(
                &at("ipv6_prefix"),
                "no address is looked at: client is not in the key",
                "add client to key, or remove it",
            );
        }
        if limit.home_timeout.0.is_zero() {
            self.error(
                &at("home_timeout"),
                "who waits for 0s has no answer",
                "write some milliseconds; 100ms is the default",
            );
        }
        for (place, part) in limit.key.iter().enumerate() {
            if limit.key[..place].contains(part) {
                self.error(
                    &format!("{path}.key.{place}"),
                    "that is in the key already",
                    "once is enough",
                );
            }
        }
    }
}
