//! `outrigger sim`: the protocol between shards in a hostile world, by seed.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sim::{self, Failure, Settings, Tally};

use super::SimArgs;

/// How often a long run says where it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Failures after which a run gives up.
const FAILURES_MAX: usize = 3;

pub(super) fn main(args: SimArgs) -> ExitCode {
    let settings = Settings { shards: args.shards, steps: args.steps };
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.threads)
            .map(|worker| {
                let next = &next;
                scope.spawn(move || work(&args, settings, next, worker == 0, begun))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>()
    });
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    for result in results {
        let Ok((more, failed)) = result else { return ExitCode::FAILURE };
        tally.add(&more);
        failures.extend(failed);
    }
    let seeds = next.load(Ordering::Relaxed).min(args.seeds);
    let mut text: String = failures.iter().map(|failure| format!("{failure}\n")).collect();
    text.push_str(&format!(
        "{seeds} seeds from {}, {} steps each, {:.1?}: {}\n{tally:#?}\n",
        args.seed,
        args.steps,
        begun.elapsed(),
        match failures.len() {
            0 => "safety and liveness hold".to_owned(),
            count => format!("{count} FAILED"),
        }
    ));
    let printed = super::print(&text);
    if failures.is_empty() { printed } else { ExitCode::FAILURE }
}

/// Takes seeds until there are none, or enough has failed.
fn work(
    args: &SimArgs,
    settings: Settings,
    next: &AtomicU64,
    tells: bool,
    begun: Instant,
) -> (Tally, Vec<Failure>) {
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let mut told = begun;
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= args.seeds || failures.len() >= FAILURES_MAX {
            return (tally, failures);
        }
        match sim::run(args.seed.wrapping_add(index), settings) {
            Ok(more) => tally.add(&more),
            Err(failure) => failures.push(*failure),
        }
        if tells && told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            eprintln!("{index} of {} seeds, {:.0?}", args.seeds, begun.elapsed());
        }
    }
}
