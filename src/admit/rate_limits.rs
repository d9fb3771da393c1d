//! The rate limits of a request's route: each must have a token for it. Those whose buckets are on
//! this shard, or of which it holds some, are passed while the head is at hand; for others the
//! session waits. A request that one of them refuses gives the others' tokens back.

use std::net::IpAddr;
use std::pin::pin;

use super::Order;
use crate::exchange::within;
use crate::http::encode;
use crate::http::field::Fields;
use crate::net::Timer;
use crate::plan::{Plan, RateKey, RateLimit};
use crate::rate::{Key, KeyMaker, ROUTE_LIMITS_MAX, Taken};
use crate::reason::Reason;
use crate::route::Route;
use crate::shard::Shard;
use crate::shard::rates::Rates;
use crate::time::Nanos;

/// What a request has to pass, and how far it has got.
#[derive(Debug, Clone, Copy)]
pub struct Checks {
    /// Limits, by their places in the plan, the buckets there, and the vouchers that gave a token.
    all: [(u16, Key, Option<u64>); ROUTE_LIMITS_MAX],
    count: u8,
    /// Those before have let it pass; in a dry run, maybe without a token.
    passed: u8,
}

/// What a refused client is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    /// By which limit: its place in the plan.
    limit: u16,
    /// Seconds until there will be a token, as far as is known; at least 1.
    seconds: u64,
}

impl Refused {
    /// `retry-after`, and how the limit is.
    pub fn write(self, plan: &Plan, out: &mut Vec<u8>) {
        let mut digits = itoa::Buffer::new();
        let seconds = digits.format(self.seconds).as_bytes();
        encode::line(b"retry-after", seconds, out);
        out.extend_from_slice(&plan.rate_limits[usize::from(self.limit)].lines);
        encode::line(b"ratelimit-remaining", b"0", out);
        encode::line(b"ratelimit-reset", seconds, out);
    }
}

/// What one limit says.
enum Said {
    Go(u64),
    No(Reason, Nanos),
}

impl Checks {
    /// The buckets of a request. One that lacks a header is not limited by what asks for it.
    fn of(
        plan: &Plan,
        route: &Route,
        address: IpAddr,
        fields: &Fields<'_, '_>,
        rates: &Rates,
    ) -> Checks {
        let none = (0, Key::default(), None);
        let mut checks = Checks { all: [none; ROUTE_LIMITS_MAX], count: 0, passed: 0 };
        for place in &route.rate_limits {
            let limit = &plan.rate_limits[*place];
            match key_of(limit, route, address, fields) {
                Some(key) => {
                    checks.all[usize::from(checks.count)] = (*place as u16, key, None);
                    checks.count += 1;
                }
                None => rates.count(limit, |counters| counters.skipped.add(1)),
            }
        }
        checks
    }

    /// The limit whose turn it is.
    fn next(&self) -> Option<(u16, Key)> {
        (self.passed < self.count).then(|| {
            let (limit, key, _) = self.all[usize::from(self.passed)];
            (limit, key)
        })
    }

    fn has_passed(&mut self, voucher: Option<u64>) {
        self.all[usize::from(self.passed)].2 = voucher;
        self.passed += 1;
    }

    /// Whether others may refuse the request after one has let it pass.
    fn holds(&self) -> bool {
        self.count > 1
    }

    /// Spends the tokens that it holds, or gives them back.
    fn release(&self, shard: &Shard, plan: &Plan, is_spent: bool, now: Nanos) {
        if !self.holds() {
            return;
        }
        for (limit, key, voucher) in &self.all[..usize::from(self.passed)] {
            if let Some(voucher) = voucher {
                let limit = plan.rate_limits[usize::from(*limit)].id;
                shard.agreement.release_token(limit, *key, *voucher, is_spent, now);
            }
        }
    }
}

fn key_of(
    limit: &RateLimit,
    route: &Route,
    address: IpAddr,
    fields: &Fields<'_, '_>,
) -> Option<Key> {
    let mut maker = KeyMaker::new(limit.id.0);
    for part in &limit.key {
        match part {
            RateKey::Route => maker.add(route.name.as_bytes()),
            RateKey::Client => match address {
                IpAddr::V4(address) => maker.add(&address.octets()),
                IpAddr::V6(address) => {
                    let mask = u128::MAX << (128 - u32::from(limit.ipv6_prefix)).min(127);
                    maker.add(&(address.to_bits() & mask).to_be_bytes());
                }
            },
            RateKey::Header(name) => {
                let mut values = 0u8;
                for (_, field, value) in fields.iter() {
                    if field.eq_ignore_ascii_case(name.as_bytes()) {
                        maker.add(value);
                        values = values.saturating_add(1);
                    }
                }
                if values == 0 {
                    return None;
                }
                // So that one header's second value is not another's first.
                maker.add(&[values]);
            }
        }
    }
    Some(maker.finish())
}

/// Passes the limits that can be passed at once; the others are for the session.
#[inline]
pub(super) fn pass(
    shard: &Shard,
    plan: &Plan,
    route: &Route,
    address: IpAddr,
    fields: &Fields<'_, '_>,
    order: &mut Order,
) -> Result<(), Reason> {
    if route.rate_limits.is_empty() {
        return Ok(());
    }
    pass_at_once(shard, plan, route, address, fields, order)
}

fn pass_at_once(
    shard: &Shard,
    plan: &Plan,
    route: &Route,
    address: IpAddr,
    fields: &Fields<'_, '_>,
    order: &mut Order,
) -> Result<(), Reason> {
    let now = order.complete;
    shard.agreement.look(now);
    let rates = shard.agreement.rates();
    let mut checks = Checks::of(plan, route, address, fields, rates);
    let passed = pass_some(shard, plan, &mut checks, now);
    match passed {
        Ok(true) => Ok(()),
        Ok(false) => {
            order.checks = Some(checks);
            Ok(())
        }
        Err((reason, refused)) => {
            order.refused = Some(refused);
            Err(reason)
        }
    }
}

/// Passes limits until one has to be waited for (`false`), or refuses.
fn pass_some(
    shard: &Shard,
    plan: &Plan,
    checks: &mut Checks,
    now: Nanos,
) -> Result<bool, (Reason, Refused)> {
    let agreement = &shard.agreement;
    while let Some((place, key)) = checks.next() {
        let limit = &plan.rate_limits[usize::from(place)];
        let said = match agreement.take_token(limit.id, key, checks.holds(), now) {
            Taken::Yes(voucher) => Said::Go(voucher),
            Taken::Ask => return Ok(false),
            Taken::No { until } => Said::No(Reason::RateLimited, until),
            Taken::TableFull => Said::No(Reason::RateLimited, now),
        };
        judge(shard, plan, checks, said, now)?;
    }
    checks.release(shard, plan, true, now);
    Ok(true)
}

/// Counts what a limit says, and acts on it.
fn judge(
    shard: &Shard,
    plan: &Plan,
    checks: &mut Checks,
    said: Said,
    now: Nanos,
) -> Result<(), (Reason, Refused)> {
    let Some((place, _)) = checks.next() else { return Ok(()) };
    let limit = &plan.rate_limits[usize::from(place)];
    let rates = shard.agreement.rates();
    rates.publish_table(limit.id);
    match said {
        Said::No(reason, until) => {
            rates.count(limit, |counters| match reason {
                Reason::RateLimitUnanswered => counters.unanswered.add(1),
                _ => counters.refused.add(1),
            });
            if !limit.dry_run {
                checks.release(shard, plan, false, now);
                let left = until.since(now).as_nanos().div_ceil(1_000_000_000);
                let seconds = u64::try_from(left).unwrap_or(u64::MAX).max(1);
                return Err((reason, Refused { limit: place, seconds }));
            }
            checks.has_passed(None);
        }
        Said::Go(voucher) => {
            rates.count(limit, |counters| counters.admitted.add(1));
            checks.has_passed(Some(voucher));
        }
    }
    Ok(())
}

impl Order {
    /// Whether a token has to be waited for.
    #[inline]
    pub fn awaits_tokens(&self) -> bool {
        self.checks.is_some()
    }

    /// Waits for the tokens of the other shards. If there is none, the order becomes its refusal.
    pub async fn await_tokens(&mut self, shard: &Shard, timer: &mut Timer) {
        let Some(mut checks) = self.checks.take() else { return };
        let plan = self.plan.clone();
        let passed = wait_for_all(shard, plan.shared(), &mut checks, timer).await;
        self.complete = Nanos::now();
        if let Err((reason, refused)) = passed {
            self.refused = refused;
            let listener = &plan.shared().listeners[self.listener_index];
            self.own(shard, listener, reason);
        }
    }
}

async fn wait_for_all(
    shard: &Shard,
    plan: &Plan,
    checks: &mut Checks,
    timer: &mut Timer,
) -> Result<(), (Reason, Option<Refused>)> {
    let told = |(reason, refused)| (reason, Some(refused));
    loop {
        let now = Nanos::now();
        shard.agreement.look(now);
        if pass_some(shard, plan, checks, now).map_err(told)? {
            return Ok(());
        }
        let Some((place, key)) = checks.next() else { return Ok(()) };
        let limit = &plan.rate_limits[usize::from(place)];
        let said = match shard.agreement.wait_token(limit.id, key, checks.holds(), now) {
            None => Said::No(Reason::RateLimited, now),
            Some(wait) => {
                timer.set(now + limit.home_timeout, now);
                let late = |_| Err(Reason::RateLimitUnanswered);
                match within(shard, timer, pin!(wait), late).await {
                    Ok(Ok(voucher)) => Said::Go(voucher),
                    Ok(Err(until)) => Said::No(Reason::RateLimited, until),
                    Err(Reason::RateLimitUnanswered) => {
                        Said::No(Reason::RateLimitUnanswered, Nanos::now())
                    }
                    Err(reason) => {
                        checks.release(shard, plan, false, Nanos::now());
                        return Err((reason, None));
                    }
                }
            }
        };
        judge(shard, plan, checks, said, Nanos::now()).map_err(told)?;
    }
}
