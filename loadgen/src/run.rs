//! One run: starts the workers together, merges their seconds as they pass, and their totals.
//!
//! Called by `cli`, once for each rate. What a second looks like is handed to `watch` as soon as
//! every worker has told its part.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;

use crate::cpu::{self, Usage};
use crate::net;
use crate::plan::{Lane, Plan};
use crate::record::{self, Counts, Interval};
use crate::worker::{self, Control, Door, Told, Totals};

/// From the last worker's being ready to the start, so that all of them are there in time.
const START_DELAY: Duration = Duration::from_millis(5);

/// What came out of a run.
#[derive(Debug)]
pub struct Outcome {
    /// When recording began.
    pub started: SystemTime,
    /// From the due time.
    pub corrected: Histogram<u64>,
    /// From the sending; equal to `corrected` in a closed loop.
    pub service: Histogram<u64>,
    /// How late requests left for no lack of a connection.
    pub lateness: Histogram<u64>,
    /// All workers'.
    pub counts: Counts,
    /// The recorded time, to the last answer or the planned end, whichever is later.
    pub elapsed: Duration,
    /// What each worker's thread had of its CPU, and in how many nanoseconds.
    pub usages: Vec<(Usage, u64)>,
    /// `io_uring` or `epoll`.
    pub driver: &'static str,
    /// Stopped before its end.
    pub interrupted: bool,
}

/// Runs `plan`; `stop` ends it early. `watch` sees every second, with its number.
///
/// # Errors
/// One line: nothing listens at a target, or a worker could not start.
pub fn run(
    plan: &Arc<Plan>,
    stop: &Arc<AtomicBool>,
    watch: &mut dyn FnMut(&Interval),
) -> Result<Outcome, String> {
    if !plan.keep_alive {
        for lane in &plan.lanes {
            std::net::TcpStream::connect_timeout(&lane.address, plan.timeout)
                .map_err(|error| unreachable_target(plan, lane, &error))?;
        }
    }
    let control = Arc::new(Control { stop: stop.clone(), ..Control::default() });
    let (tell, told) = mpsc::channel();
    let mut workers = Vec::new();
    for index in 0..plan.threads {
        let bell = net::bell().map_err(|error| format!("cannot start: {error}"))?;
        let heard = bell.try_clone().map_err(|error| format!("cannot start: {error}"))?;
        let (plan, control, tell) = (plan.clone(), control.clone(), tell.clone());
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                if let Some(&cpu) = plan.cpus.get(index % plan.cpus.len().max(1)) {
                    cpu::pin(cpu);
                }
                worker::run(plan, index, heard, control, tell);
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        workers.push((thread, bell));
    }
    drop(tell);
    let ready = wait_ready(plan, &told);
    let start = match &ready {
        Ok(_) => net::now() + START_DELAY.as_nanos() as u64,
        Err(_) => 0,
    };
    control.start.store(start, Ordering::Release);
    workers.iter().for_each(|(_, bell)| net::ring(bell));
    let outcome = ready.and_then(|driver| {
        let started = SystemTime::now() + START_DELAY + plan.warmup;
        collect(plan, &told, started, driver, stop, watch)
    });
    for (thread, _) in workers {
        // A worker that panicked has said why; its totals are missing, which `collect` reports.
        let _ = thread.join();
    }
    outcome
}

/// Waits for all workers' first connections. At least one to each address must stand.
fn wait_ready(plan: &Plan, told: &mpsc::Receiver<Told>) -> Result<&'static str, String> {
    let mut name = "";
    let mut doors: Vec<Door> = plan.lanes.iter().map(|_| Door::default()).collect();
    for _ in 0..plan.threads {
        match told.recv() {
            Ok(Told::Ready { doors: seen, driver }) => {
                name = driver;
                for (door, seen) in doors.iter_mut().zip(seen) {
                    door.connected += seen.connected;
                    door.refused = seen.refused.or(door.refused.take());
                }
            }
            Ok(Told::Stuck(error)) => return Err(format!("cannot start: {error}")),
            _ => return Err("a worker died before the start".to_owned()),
        }
    }
    for (lane, door) in plan.lanes.iter().zip(doors) {
        if let (0, Some(error)) = (door.connected, door.refused) {
            return Err(unreachable_target(plan, lane, &error));
        }
    }
    Ok(name)
}

fn unreachable_target(plan: &Plan, lane: &Lane, error: &io::Error) -> String {
    let mut urls: Vec<_> =
        lane.targets.iter().map(|&target| plan.targets[target].url.as_str()).collect();
    urls.dedup();
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => error.to_string(),
    };
    format!("cannot reach {}: {why}", urls.join(", "))
}

/// Seconds that wait for the slower workers.
struct Seconds {
    waiting: BTreeMap<u64, Interval>,
    /// For each worker how far it has told: sequence of messages is by worker, but the channel does
    /// not say whose; so a second is complete when as many parts came as there are workers, or a
    /// later one is.
    parts: BTreeMap<u64, usize>,
}

fn collect(
    plan: &Plan,
    told: &mpsc::Receiver<Told>,
    started: SystemTime,
    driver: &'static str,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(&Interval),
) -> Result<Outcome, String> {
    let mut outcome = Outcome {
        started,
        corrected: record::histogram(),
        service: record::histogram(),
        lateness: record::histogram(),
        counts: Counts::new(plan.targets.len()),
        elapsed: Duration::ZERO,
        usages: Vec::new(),
        driver,
        interrupted: false,
    };
    let mut seconds = Seconds { waiting: BTreeMap::new(), parts: BTreeMap::new() };
    let (mut last, mut wall) = (0, 0);
    while let Ok(message) = told.recv() {
        match message {
            Told::Second(interval) => {
                seconds.add(*interval);
                seconds.take_complete(plan.threads, &mut |second| outcome.pass(second, watch));
            }
            Told::Done(totals) => {
                let Totals { counts, lateness, last: theirs, usage, wall: ran } = *totals;
                outcome.counts.merge(&counts);
                outcome.lateness.add(&lateness).expect("all histograms have the same bounds");
                last = last.max(theirs);
                wall = wall.max(ran);
                outcome.usages.push((usage, ran));
            }
            Told::Ready { .. } | Told::Stuck(_) => {}
        }
    }
    seconds.take_complete(0, &mut |second| outcome.pass(second, watch));
    if outcome.usages.len() < plan.threads {
        return Err("a worker died during the run".to_owned());
    }
    outcome.interrupted = stop.load(Ordering::Relaxed);
    let end = match plan.length {
        _ if outcome.interrupted => wall,
        Some(length) => last.max(length.as_nanos() as u64),
        None => last,
    };
    outcome.elapsed = Duration::from_nanos(end).saturating_sub(plan.warmup);
    if matches!(plan.load, crate::plan::Load::Closed) {
        outcome.service = outcome.corrected.clone();
    }
    Ok(outcome)
}

impl Outcome {
    fn pass(&mut self, second: &Interval, watch: &mut dyn FnMut(&Interval)) {
        self.corrected.add(&second.corrected).expect("all histograms have the same bounds");
        self.service.add(&second.service).expect("all histograms have the same bounds");
        watch(second);
    }
}

impl Seconds {
    fn add(&mut self, interval: Interval) {
        *self.parts.entry(interval.index).or_default() += 1;
        match self.waiting.get_mut(&interval.index) {
            Some(second) => second.merge(&interval),
            None => drop(self.waiting.insert(interval.index, interval)),
        }
    }

    /// Takes the seconds, in order, up to the last one that has `parts` parts.
    fn take_complete(&mut self, parts: usize, pass: &mut dyn FnMut(&Interval)) {
        let complete = self.parts.iter().rev().find(|(_, have)| **have >= parts);
        let Some(last) = complete.map(|(index, _)| *index) else { return };
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() > last {
                break;
            }
            let (index, second) = entry.remove_entry();
            self.parts.remove(&index);
            pass(&second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that skipped a second holds nothing up, and nothing is lost.
    #[test]
    fn seconds_pass_in_order_and_whole() {
        let mut seconds = Seconds { waiting: BTreeMap::new(), parts: BTreeMap::new() };
        let interval = |index, failed| Interval { failed, ..Interval::new(index) };
        let mut passed = Vec::new();
        for (index, failed) in [(0, 1), (1, 2), (0, 4), (2, 8), (3, 16), (3, 32), (4, 64)] {
            seconds.add(interval(index, failed));
            seconds.take_complete(2, &mut |second| passed.push((second.index, second.failed)));
        }
        assert_eq!(passed, [(0, 5), (1, 2), (2, 8), (3, 48)]);
        seconds.take_complete(0, &mut |second| passed.push((second.index, second.failed)));
        assert_eq!(passed.last(), Some(&(4, 64)));
    }
}
