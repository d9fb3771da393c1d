//! The simulator on many seeds, and on machines that are broken on purpose.

use super::*;
use crate::reconcile::mutation::{self, Mutation};

/// Steps of chaos in each run.
const STEPS: u32 = 250;

/// Seeds of each of the tests below; they run side by side.
const SEEDS: u64 = 500;

/// Runs seeds that no other test runs, and shows that something went on in them.
fn hold(first: u64, count: u64, shards: Option<u16>) {
    let settings = Settings { shards, steps: STEPS };
    let mut tally = Tally::default();
    for seed in first..first + count {
        match run(seed, settings) {
            Ok(more) => tally.add(&more),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{tally:?}");
    assert!(tally.admitted > 10 * count, "{tally:?}");
    assert!(tally.waited > count, "{tally:?}");
    assert!(tally.transitions > count, "{tally:?}");
    assert!(tally.probes > count / 4, "{tally:?}");
    assert!(tally.route_probes > count / 4, "{tally:?}");
    assert!(tally.double_probes > 0, "{tally:?}");
    assert!(tally.plans > count / 4, "{tally:?}");
    assert!(tally.overrides > count / 4, "{tally:?}");
    assert!(tally.trips_refused > 0, "{tally:?}");
    assert!(tally.adapted > count, "{tally:?}");
    assert!(tally.measured > count / 4, "{tally:?}");
    assert!(tally.retries > count, "{tally:?}");
    assert!(tally.retries_waited > count, "{tally:?}");
}

#[test]
fn safety_and_liveness_hold() {
    hold(0, SEEDS, None);
}

#[test]
fn safety_and_liveness_hold_for_more_seeds() {
    hold(1_000_000, SEEDS, None);
}

#[test]
fn safety_and_liveness_hold_for_three_shards() {
    hold(2_000_000, SEEDS, Some(3));
}

#[test]
fn safety_and_liveness_hold_without_messages() {
    hold(3_000_000, SEEDS, Some(1));
}

#[test]
fn safety_and_liveness_hold_for_sixteen_shards() {
    hold(4_000_000, SEEDS / 20, Some(16));
}

/// The same seed gives the same history, to the last message.
#[test]
fn a_seed_repeats_itself() {
    let settings = Settings { shards: Some(4), steps: STEPS };
    assert_eq!(run(7, settings).ok(), run(7, settings).ok());
    assert_ne!(run(7, settings).ok(), run(8, settings).ok());
}

/// Seeds within which each mistake must be found; the rarest needs some 1,100.
const SEEDS_TO_FIND: u64 = 4_000;

/// Makes a mistake, and looks for a seed that shows it.
fn finds(mutation: Mutation) {
    let settings = Settings { shards: None, steps: STEPS };
    let found = mutation::with(mutation, || {
        (0..SEEDS_TO_FIND).find_map(|seed| {
            let history = Op::history(seed, settings.steps);
            replay(seed, settings, &history).err().map(|(fault, at)| (seed, fault, at))
        })
    });
    match found {
        Some((seed, fault, at)) => println!("{mutation:?}: seed {seed}, step {at}: {fault}"),
        None => panic!("{mutation:?} goes unseen"),
    }
}

macro_rules! mutations {
    ($($name:ident: $mutation:ident,)*) => {
        $(
            #[test]
            fn $name() {
                finds(Mutation::$mutation);
            }
        )*
    };
}

mutations! {
    finds_a_missing_epoch_check: NoEpochCheck,
    finds_a_lease_that_is_not_returned: LeaseNotReturned,
    finds_counting_before_asking: CountBeforeAsking,
    finds_a_permit_granted_again_although_it_was_sent: GrantSentPermitAgain,
    finds_a_return_that_is_lost: ReturnLost,
    finds_a_forgotten_acknowledgement: AcknowledgementForgotten,
    finds_an_ignored_recall: RecallIgnored,
    finds_an_ignored_endpoint_limit: EndpointLimitIgnored,
    finds_ejecting_without_bound: EjectWithoutBound,
    finds_a_permit_accepted_twice: PermitAcceptedTwice,
    finds_an_old_epoch_that_is_applied: OldEpochApplied,
    finds_an_ask_that_wakes_nobody: AskWithoutWaking,
    finds_a_permit_of_a_route_that_is_kept: RoutePermitKept,
    finds_a_probe_of_a_route_that_is_called_unsent: RouteProbeCalledUnsent,
    finds_a_route_that_forgets_who_waits: RouteWaiterForgotten,
    finds_a_route_that_needs_a_place_to_trip: RouteNeedsPlace,
    finds_a_route_that_leaves_its_requests: RouteLeavesItsRequests,
    finds_a_retry_that_begins_without_a_credit: RetryWithoutCredit,
    finds_a_retry_that_begins_without_a_budget: RetryUnpaid,
    finds_deposits_that_never_expire: DepositsNeverExpire,
    finds_deposits_that_serve_nobody: DepositServesNobody,
    finds_savings_that_serve_nobody: SavingsServeNobody,
    finds_tokens_that_are_counted_by_message: TokensCountedByMessage,
    finds_tokens_that_are_lost: TokensLost,
    finds_a_home_that_hoards_tokens: TokensHoarded,
    finds_samples_that_count_twice: SamplesCountedTwice,
    finds_samples_from_before_the_measurement: OldSamplesCount,
    finds_a_measurement_that_nobody_knows_of: MeasuringKeptSecret,
    finds_a_limit_that_falls_without_a_recall: LoweredWithoutRecall,
}

/// A failure is cut down, and what is left still fails.
#[test]
fn failures_are_cut_down() {
    let settings = Settings { shards: None, steps: STEPS };
    mutation::with(Mutation::CountBeforeAsking, || {
        let mut seeds = 0..SEEDS_TO_FIND;
        let failure = seeds.find_map(|seed| run(seed, settings).err()).expect("found above");
        assert!(failure.history.len() <= 10, "{failure}");
        let replayed = replay(failure.seed, settings, &failure.history);
        assert_eq!(replayed.err().map(|(fault, _)| fault), Some(failure.fault));
    });
}
