//! Mistakes made on purpose, to show that the simulator sees them. Tests switch one on for their
//! own thread; outside of tests [`is_on`] is constant, and nothing of it is left in the binary.

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mutation {
    /// Outcomes count whatever epoch their tickets are of.
    NoEpochCheck,
    /// A request that ends keeps its credit.
    LeaseNotReturned,
    /// A request is counted before there is a credit for it.
    CountBeforeAsking,
    /// A new epoch forgets the permits that are still out.
    GrantSentPermitAgain,
    /// The home acknowledges a return, but does not book it.
    ReturnLost,
    /// An acknowledgement is ignored.
    AcknowledgementForgotten,
    /// A recall is ignored.
    RecallIgnored,
    /// The home lends without looking at the limit of the endpoint.
    EndpointLimitIgnored,
    /// A trip does not look at how many are open already.
    EjectWithoutBound,
    /// A repeated permit is taken for a new one.
    PermitAcceptedTwice,
    /// A late message about a breaker replaces a newer one.
    OldEpochApplied,
    /// An ask for credits waits until its home looks.
    AskWithoutWaking,
    /// A permit of a route that nobody used is kept.
    RoutePermitKept,
    /// A probe of a route was sent, and its permit goes back as if it was not.
    RouteProbeCalledUnsent,
    /// Who waits for a route's permit is not told of it.
    RouteWaiterForgotten,
    /// A route needs a place in `max_ejected` to trip.
    RouteNeedsPlace,
    /// A route's breaker leaves with its plan, whoever has passed it.
    RouteLeavesItsRequests,
    /// A retry begins whether there is a credit for it or not.
    RetryWithoutCredit,
    /// A retry begins whether somebody has paid for it or not.
    RetryUnpaid,
    /// What first attempts have paid is good for ever.
    DepositsNeverExpire,
    /// What first attempts pay is not for retries that wait.
    DepositServesNobody,
    /// What may be spent only from the next moment on is not for retries that wait.
    SavingsServeNobody,
    /// Each message about tokens is one token more.
    TokensCountedByMessage,
    /// A home books tokens that it does not send.
    TokensLost,
    /// A home saves up tokens for ever.
    TokensHoarded,
    /// A report that comes twice counts twice.
    SamplesCountedTwice,
    /// What was asked before the home began to measure counts as well.
    OldSamplesCount,
    /// Shards are not told that the home begins to measure.
    MeasuringKeptSecret,
    /// A limit that was reckoned anew is lowered without a recall.
    LoweredWithoutRecall,
    /// What is lent of a rate limit may be lent once more.
    RateLentNotCounted,
    /// What is taken but not spent yet may be taken once more.
    RateHeldNotCounted,
    /// What was spent of a voucher is returned.
    RateSpentForgotten,
    /// A voucher of which nothing was heard was not spent.
    RateExpiredForgiven,
    /// A repeated voucher is a new one.
    RateVoucherTakenTwice,
    /// Vouchers are good for ever.
    RateVoucherNeverEnds,
    /// Who is asked for what is left of a voucher keeps it.
    RateRecallIgnored,
    /// What is left of a voucher is kept until it ends.
    RateKeepsTokens,
    /// An ask is not repeated.
    RateAskedOnce,
    /// A bucket that is not full is forgotten for a new one, and nobody counts it.
    RateBusyForgotten,
    /// A reload fills all buckets.
    ReloadFillsBuckets,
}

#[cfg(test)]
thread_local! {
    static ON: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// Whether this mistake is to be made.
#[cfg(test)]
pub(crate) fn is_on(mutation: Mutation) -> bool {
    ON.with(|on| on.get() == Some(mutation))
}

/// Never, outside of tests.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn is_on(_: Mutation) -> bool {
    false
}

/// Runs something with a mistake switched on, on this thread.
#[cfg(test)]
pub(crate) fn with<T>(mutation: Mutation, run: impl FnOnce() -> T) -> T {
    ON.with(|on| on.set(Some(mutation)));
    let result = run();
    ON.with(|on| on.set(None));
    result
}
