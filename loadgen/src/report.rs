//! What a run was and what came of it: the one document that every output is made from.
//!
//! Built by `cli` from a plan and an outcome; read back from JSON by `outrigger-loadgen report`. Holds
//! whole histograms, so any percentile can be asked for later.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::plan::{Load, Plan};
use crate::record::{Counts, Failures, Interval, LATE_NANOS};
use crate::run::Outcome;
use crate::schedule::Arrivals;
use crate::units;

pub mod hgrm;

pub mod html;

pub mod rates;

pub mod text;

/// Of the time in which it had its CPU, a worker may compute without being called the bottleneck.
const CPU_SHARE_MAX: f64 = 0.90;

/// Of its time a worker may wait for its CPU.
const CPU_WAIT_SHARE_MAX: f64 = 0.10;

/// Of the requests may leave late through the generator's own fault.
const LATE_SHARE_MAX: f64 = 0.01;

/// Of the asked rate must be reached.
const RATE_SHARE_MIN: f64 = 0.995;

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// This program and its version.
    pub tool: String,
    /// For tables and plots: the URLs, or what `--label` says.
    pub label: String,
    /// When recording began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// What was asked for.
    pub asked: Asked,
    /// Recorded seconds, to the last answer or the planned end, whichever is later.
    pub elapsed_s: f64,
    /// Whole answers a second.
    pub achieved_rate: f64,
    /// Requests due a second. Of Poisson arrivals it differs a little from the asked rate.
    pub due_rate: Option<f64>,
    /// Requests that began to leave.
    pub sent: u64,
    /// Whole answers, right or wrong.
    pub answered: u64,
    /// Sent more than a millisecond late though a connection was free, or would have been.
    pub late: u64,
    /// Sent after waiting for a connection, through no fault of the generator.
    pub waited: u64,
    /// Requests without a right answer.
    pub failures: Failures,
    /// Of those, the ones that broke off (no connection, a reset, no HTTP) and have no latency:
    /// thresholds take them as slower than all others.
    #[serde(default)]
    pub lost: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Answers by URL.
    pub targets: BTreeMap<String, u64>,
    /// Body bytes received.
    pub body_bytes: u64,
    /// Connections over the whole run, the warm-up's among them.
    pub connections: Connections,
    /// From the due time, in nanoseconds. In a closed loop nothing is due, and this is the service
    /// time.
    pub latency_ns: Latency,
    /// From the sending, in nanoseconds.
    pub service_ns: Latency,
    /// From due to sent where no connection was lacking, in nanoseconds: the generator's own delay.
    pub lateness_ns: Latency,
    /// What the generator needed.
    pub generator: Generator,
    /// Whether the rate and all thresholds were held; of `--steps` and `--find-max`.
    #[serde(default)]
    pub held: Option<bool>,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// From the due time: V2 compressed, base64.
    #[serde(with = "encoded")]
    pub corrected: Histogram<u64>,
    /// From the sending.
    #[serde(with = "encoded")]
    pub service: Histogram<u64>,
}

/// What was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Asked {
    /// `open` or `closed`.
    pub r#loop: String,
    /// `constant` or `poisson`; of an open loop.
    pub arrivals: Option<String>,
    /// Requests a second, on average over the recorded phases; of an open loop.
    pub rate: Option<f64>,
    /// Seconds, without the warm-up; unless only a count ends it.
    pub planned_s: Option<f64>,
    /// URLs with their weights.
    pub urls: Vec<(u32, String)>,
    /// Over all threads.
    pub connections: usize,
    /// Each on its own CPU where there are enough.
    pub threads: usize,
    /// Requests on a connection at once.
    pub pipeline: usize,
    /// Whether a connection carries more than one request.
    pub keep_alive: bool,
    /// Before the recording, in seconds.
    pub warmup_s: f64,
    /// For a request, in seconds.
    pub timeout_s: f64,
    /// Of arrivals and of the choice of URLs.
    pub seed: u64,
}

/// Connections over a run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Connections {
    /// Opened.
    pub opened: u64,
    /// Of those, ended by the target.
    pub closed_by_target: u64,
    /// Tries that failed.
    pub failed: u64,
}

/// A histogram's figures, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub min: u64,
    pub mean: f64,
    pub stdev: f64,
    pub p50: u64,
    pub p75: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    #[serde(rename = "p99.9")]
    pub p999: u64,
    #[serde(rename = "p99.99")]
    pub p9999: u64,
    pub max: u64,
}

impl Latency {
    /// Of a histogram; zeros of an empty one.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            min: histogram.min(),
            mean: histogram.mean(),
            stdev: histogram.stdev(),
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: histogram.max(),
        }
    }
}

/// What the generator itself needed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Generator {
    /// `io_uring` or `epoll`.
    pub driver: String,
    /// Of its time, how long the busiest worker computed.
    pub cpu_share_max: f64,
    /// Of its time, how long a worker was ready and something else ran on its CPU; the most.
    pub cpu_wait_share_max: f64,
    /// CPU microseconds per answer, over all workers.
    pub cpu_us_per_answer: f64,
    /// It, or something else on its CPUs, held requests up: the figures are not the target's alone.
    #[serde(default)]
    pub bottleneck: bool,
    /// Why the figures may be the generator's rather than the target's. Empty is good.
    pub warnings: Vec<String>,
}

/// One second.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Second {
    /// Since recording began.
    pub second: u64,
    /// Requests that got their answer or ran out of time in it.
    pub requests: u64,
    /// Requests that failed in it.
    pub failed: u64,
    /// Latency from the due time, in nanoseconds.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The 99.9th.
    #[serde(rename = "p99.9")]
    pub p999: u64,
    /// The longest.
    pub max: u64,
}

impl Second {
    /// Of what all workers told.
    pub fn of(interval: &Interval) -> Self {
        let histogram = &interval.corrected;
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            second: interval.index,
            requests: histogram.len(),
            failed: interval.failed,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

impl Report {
    /// Puts together what was asked for and what came.
    pub fn new(plan: &Plan, outcome: &Outcome, seconds: Vec<Second>, label: Option<&str>) -> Self {
        let counts = &outcome.counts;
        let elapsed_s = outcome.elapsed.as_secs_f64();
        let achieved_rate = if elapsed_s > 0.0 { counts.answered as f64 / elapsed_s } else { 0.0 };
        let urls: Vec<_> =
            plan.targets.iter().map(|target| (target.weight, target.url.clone())).collect();
        let mut targets = BTreeMap::new();
        for (target, answers) in plan.targets.iter().zip(&counts.targets) {
            *targets.entry(target.url.clone()).or_default() += answers;
        }
        let started = outcome.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let named: Vec<_> = urls.iter().map(|(_, url)| url.as_str()).collect();
        let mut report = Self {
            tool: concat!("outrigger-loadgen ", env!("CARGO_PKG_VERSION")).to_owned(),
            label: label.map_or_else(|| named.join(" "), str::to_owned),
            started_unix_ms: started.as_millis() as u64,
            asked: Asked {
                r#loop: match plan.load {
                    Load::Open { .. } => "open".to_owned(),
                    Load::Closed => "closed".to_owned(),
                },
                arrivals: match plan.load {
                    Load::Open { arrivals: Arrivals::Constant, .. } => Some("constant".to_owned()),
                    Load::Open { arrivals: Arrivals::Poisson, .. } => Some("poisson".to_owned()),
                    Load::Closed => None,
                },
                rate: asked_rate(plan),
                planned_s: planned_s(plan),
                urls,
                connections: plan.lanes.iter().map(|lane| lane.connections).sum(),
                threads: plan.threads,
                pipeline: plan.pipeline,
                keep_alive: plan.keep_alive,
                warmup_s: plan.warmup.as_secs_f64(),
                timeout_s: plan.timeout.as_secs_f64(),
                seed: plan.seed,
            },
            elapsed_s,
            achieved_rate,
            due_rate: due_rate(plan, counts),
            sent: counts.sent,
            answered: counts.answered,
            late: counts.late,
            waited: counts.waited,
            failures: counts.failures,
            lost: counts.lost,
            statuses: (0..)
                .zip(&counts.statuses)
                .filter(|(_, count)| **count > 0)
                .map(|(status, count)| (status, *count))
                .collect(),
            targets,
            body_bytes: counts.body_bytes,
            connections: Connections {
                opened: counts.connections,
                closed_by_target: counts.connections_closed,
                failed: counts.connections_failed,
            },
            latency_ns: Latency::of(&outcome.corrected),
            service_ns: Latency::of(&outcome.service),
            lateness_ns: Latency::of(&outcome.lateness),
            generator: Generator {
                driver: outcome.driver.to_owned(),
                cpu_share_max: 0.0,
                cpu_wait_share_max: 0.0,
                cpu_us_per_answer: 0.0,
                bottleneck: false,
                warnings: Vec::new(),
            },
            held: None,
            seconds,
            corrected: outcome.corrected.clone(),
            service: outcome.service.clone(),
        };
        report.judge_generator(plan, outcome);
        report
    }

    /// Of all requests, how many got no right answer.
    pub fn error_share(&self) -> f64 {
        // A wrong answer is an answer too; every other failure is a request without one.
        let Failures { status, mismatch, .. } = self.failures;
        let unanswered = self.failures.total() - status - mismatch;
        let all = self.answered + unanswered;
        if all == 0 { 1.0 } else { self.failures.total() as f64 / all as f64 }
    }

    /// Whether the asked rate was reached, as far as a report can tell.
    pub fn reached_rate(&self) -> bool {
        let (Some(planned_s), Some(due_rate)) = (self.asked.planned_s, self.due_rate) else {
            return true;
        };
        // The last requests of a run are answered after its end: that is no shortfall. Having
        // queued for longer than a request takes is.
        let last_s = self.service_ns.p99 as f64 / 1e9;
        // What broke off has ended too, and counts as a failure.
        (self.answered + self.lost) as f64 >= due_rate * planned_s * RATE_SHARE_MIN
            && self.elapsed_s <= planned_s / RATE_SHARE_MIN + last_s
    }

    fn judge_generator(&mut self, plan: &Plan, outcome: &Outcome) {
        let shares = |part: fn(&crate::cpu::Usage) -> u64| {
            outcome
                .usages
                .iter()
                .map(|(usage, wall)| part(usage) as f64 / (*wall).max(1) as f64)
                .fold(0.0, f64::max)
        };
        let ran: u64 = outcome.usages.iter().map(|(usage, _)| usage.ran).sum();
        let generator = &mut self.generator;
        generator.cpu_share_max = shares(|usage| usage.ran);
        generator.cpu_wait_share_max = shares(|usage| usage.waited);
        generator.cpu_us_per_answer = ran as f64 / 1e3 / self.answered.max(1) as f64;
        // Of the time in which it had its CPU. What spins is always busy.
        let busy = outcome.usages.iter().map(|(usage, wall)| {
            usage.ran as f64 / wall.saturating_sub(usage.waited).max(1) as f64
        });
        let busy = busy.fold(0.0, f64::max);
        if plan.spin.is_zero() && busy > CPU_SHARE_MAX {
            generator.warnings.push(format!(
                "a worker computed {:.0}% of the time that it had its CPU: the generator was at its \
                 limit. More threads, or a second machine, may show a faster target",
                busy * 100.0
            ));
        }
        if generator.cpu_wait_share_max > CPU_WAIT_SHARE_MAX {
            generator.warnings.push(format!(
                "a worker waited {:.0}% of the time for its CPU, which something else used: \
                 latencies hold that wait",
                generator.cpu_wait_share_max * 100.0
            ));
        }
        let late = self.late as f64 / self.sent.max(1) as f64;
        if late > LATE_SHARE_MAX {
            generator.warnings.push(format!(
                "{:.1}% of the requests left more than {} late for no lack of a connection: the \
                 generator was the bottleneck",
                late * 100.0,
                units::show_nanos(LATE_NANOS)
            ));
        }
        self.generator.bottleneck = !self.generator.warnings.is_empty();
        if let (false, Some(asked)) = (self.reached_rate() || outcome.interrupted, self.asked.rate)
        {
            let others = self.generator.bottleneck;
            self.generator.warnings.push(format!(
                "{} were asked and {} achieved: {}",
                units::show_rate(asked),
                units::show_rate(self.achieved_rate),
                if others {
                    "see above"
                } else {
                    "the target, or too few connections, was the bottleneck"
                }
            ));
        }
    }
}

#[cfg(test)]
impl Report {
    /// A run of an open loop in which nothing happened.
    pub(crate) fn example(label: &str, rate: Option<f64>) -> Self {
        let empty = crate::record::histogram();
        Self {
            tool: "test".to_owned(),
            label: label.to_owned(),
            started_unix_ms: 0,
            asked: Asked {
                r#loop: "open".to_owned(),
                arrivals: None,
                rate,
                planned_s: None,
                urls: Vec::new(),
                connections: 1,
                threads: 1,
                pipeline: 1,
                keep_alive: true,
                warmup_s: 0.0,
                timeout_s: 1.0,
                seed: 1,
            },
            elapsed_s: 1.0,
            achieved_rate: 0.0,
            due_rate: None,
            sent: 0,
            answered: 0,
            late: 0,
            waited: 0,
            failures: Default::default(),
            lost: 0,
            statuses: BTreeMap::new(),
            targets: BTreeMap::new(),
            body_bytes: 0,
            connections: Connections { opened: 0, closed_by_target: 0, failed: 0 },
            latency_ns: Latency::default(),
            service_ns: Latency::default(),
            lateness_ns: Latency::default(),
            generator: Generator {
                driver: "epoll".to_owned(),
                cpu_share_max: 0.0,
                cpu_wait_share_max: 0.0,
                cpu_us_per_answer: 0.0,
                bottleneck: false,
                warnings: Vec::new(),
            },
            held: None,
            seconds: Vec::new(),
            corrected: empty.clone(),
            service: empty,
        }
    }
}

/// The mean rate over the recorded phases.
fn asked_rate(plan: &Plan) -> Option<f64> {
    let Load::Open { phases, .. } = &plan.load else { return None };
    let recorded = if plan.warmup > Duration::ZERO { &phases[1..] } else { phases };
    let (mut requests, mut seconds) = (0.0, 0.0);
    for phase in recorded {
        let Some(duration) = phase.duration else { return Some(phase.to) };
        requests += (phase.from + phase.to) / 2.0 * duration.as_secs_f64();
        seconds += duration.as_secs_f64();
    }
    // A count may end it within the phases; then the mean of all of them is not what was asked.
    match (plan.count, planned_s(plan)) {
        (Some(count), Some(length)) if (count as f64) < requests => Some(count as f64 / length),
        _ => Some(requests / seconds),
    }
}

/// What the schedule came to.
fn due_rate(plan: &Plan, counts: &Counts) -> Option<f64> {
    let (Load::Open { .. }, Some(seconds)) = (&plan.load, planned_s(plan)) else { return None };
    (seconds > 0.0).then(|| (counts.sent + counts.unsent) as f64 / seconds)
}

fn planned_s(plan: &Plan) -> Option<f64> {
    plan.length.map(|length| length.saturating_sub(plan.warmup).as_secs_f64())
}

/// Reads one report, or several from one file of `--steps`.
///
/// # Errors
/// One line: no file, or not one of ours.
pub fn read(path: &std::path::Path) -> Result<Vec<Report>, String> {
    let bad = |why: &dyn std::fmt::Display| format!("cannot read {}: {why}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| bad(&error))?;
    let reports = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text)
    } else {
        serde_json::from_str(&text).map(|report| vec![report])
    };
    match reports.map_err(|error| bad(&error))? {
        reports if reports.is_empty() => Err(bad(&"it holds no report")),
        reports => Ok(reports),
    }
}

/// Histograms in JSON: V2 with deflate, in base64, as HdrHistogram's own logs have them.
mod encoded {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
    use serde::Deserialize as _;

    pub fn serialize<S: serde::Serializer>(
        histogram: &Histogram<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(histogram, &mut bytes)
            .map_err(|error| serde::ser::Error::custom(format!("{error:?}")))?;
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Histogram<u64>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        let read: Histogram<u64> = hdrhistogram::serialization::Deserializer::new()
            .deserialize(&mut &bytes[..])
            .map_err(|error| serde::de::Error::custom(format!("{error:?}")))?;
        // A file that is not ours may have other bounds; adding finds out.
        let mut histogram = crate::record::histogram();
        histogram.add(&read).map_err(serde::de::Error::custom)?;
        Ok(histogram)
    }
}
