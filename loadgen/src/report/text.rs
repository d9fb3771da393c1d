//! The report that a person reads in a terminal.

use std::fmt::Write as _;

use super::{Latency, Report};
use crate::units::{show_bytes, show_count, show_nanos, show_rate};

/// The whole report.
pub fn full(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(report, &mut text);
    text
}

fn write_all(report: &Report, out: &mut String) -> std::fmt::Result {
    let asked = &report.asked;
    let open = asked.r#loop == "open";
    let achieved = show_rate(report.achieved_rate);
    let elapsed = report.elapsed_s;
    match (&asked.arrivals, asked.rate) {
        (Some(arrivals), Some(rate)) => writeln!(
            out,
            "Open loop, {arrivals} arrivals: asked {}, achieved {achieved} ({:.2}%) over {elapsed:.1} s",
            show_rate(rate),
            report.achieved_rate / rate * 100.0
        )?,
        _ => writeln!(out, "Closed loop: {achieved} over {elapsed:.1} s")?,
    }
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    write!(out, "  {}", plural(asked.connections, "connection"))?;
    if !asked.keep_alive {
        write!(out, ", a new one for each request")?;
    }
    if asked.pipeline > 1 {
        write!(out, ", {} requests deep", asked.pipeline)?;
    }
    writeln!(out, ", {} ({})", plural(asked.threads, "thread"), report.generator.driver)?;
    for (weight, url) in &asked.urls {
        match asked.urls.len() {
            1 => writeln!(out, "  {url}")?,
            _ => writeln!(out, "  {weight} x {url}: {}", show_count(report.targets[url]))?,
        }
    }
    if open {
        writeln!(out, "\nLatency        from due    from sent   (corrected, and not)")?;
    } else {
        writeln!(out, "\nLatency       from sent   (a closed loop: stalls hide in it)")?;
    }
    for ((name, corrected), (_, service)) in
        figures(&report.latency_ns).iter().zip(figures(&report.service_ns))
    {
        match open {
            true => writeln!(
                out,
                "  {name:<8} {:>12} {:>12}",
                show_nanos(*corrected),
                show_nanos(service)
            )?,
            false => writeln!(out, "  {name:<8} {:>12}", show_nanos(*corrected))?,
        }
    }
    writeln!(
        out,
        "\nRequests     {} sent, {} answered, {} failed ({:.3}%)",
        show_count(report.sent),
        show_count(report.answered),
        show_count(report.failures.total()),
        report.error_share() * 100.0
    )?;
    let listed = |pairs: Vec<(String, u64)>| {
        let shown: Vec<_> =
            pairs.iter().map(|(name, count)| format!("{name}: {}", show_count(*count))).collect();
        shown.join(", ")
    };
    if report.failures.total() > 0 {
        let kinds = report.failures.kinds().into_iter().filter(|(_, count)| *count > 0);
        let kinds = kinds.map(|(name, count)| (name.to_owned(), count)).collect();
        writeln!(out, "Failures     {}", listed(kinds))?;
    }
    if report.lost > 0 {
        writeln!(
            out,
            "Lost         {} broke off and have no latency: they are in no percentile above, and \
             thresholds take them as the slowest",
            show_count(report.lost)
        )?;
    }
    let statuses = report.statuses.iter().map(|(status, count)| (status.to_string(), *count));
    writeln!(out, "Statuses     {}", listed(statuses.collect()))?;
    writeln!(
        out,
        "Received     {} of bodies, {}/s",
        show_bytes(report.body_bytes as f64),
        show_bytes(report.body_bytes as f64 / elapsed.max(1e-9))
    )?;
    let connections = &report.connections;
    writeln!(
        out,
        "Connections  {} opened, {} closed by the target, {} failed",
        show_count(connections.opened),
        show_count(connections.closed_by_target),
        show_count(connections.failed)
    )?;
    if open {
        let lateness = &report.lateness_ns;
        writeln!(
            out,
            "Sending      p50 {}, p99 {}, max {} after due; {} late by over 1 ms, {} waited for a \
             connection",
            show_nanos(lateness.p50),
            show_nanos(lateness.p99),
            show_nanos(lateness.max),
            show_count(report.late),
            show_count(report.waited)
        )?;
    }
    writeln!(
        out,
        "Generator    {:.2} µs of CPU per answer; the busiest thread computed {:.0}% of the time",
        report.generator.cpu_us_per_answer,
        report.generator.cpu_share_max * 100.0
    )?;
    for warning in &report.generator.warnings {
        writeln!(out, "WARNING      {warning}")?;
    }
    Ok(())
}

fn figures(latency: &Latency) -> [(&'static str, u64); 10] {
    [
        ("min", latency.min),
        ("mean", latency.mean as u64),
        ("p50", latency.p50),
        ("p75", latency.p75),
        ("p90", latency.p90),
        ("p95", latency.p95),
        ("p99", latency.p99),
        ("p99.9", latency.p999),
        ("p99.99", latency.p9999),
        ("max", latency.max),
    ]
}

/// The head of a table of several runs.
pub fn table_head() -> String {
    format!(
        "{:>12} {:>12} {:>10} {:>10} {:>10} {:>10} {:>9}  {}",
        "asked", "achieved", "p50", "p99", "p99.9", "max", "errors", "holds"
    )
}

/// What a search found, in a line above the best run's report. `best` is that run's index.
///
/// A rate at which the generator was the bottleneck is nobody's limit but the generator's.
pub fn conclusion(reports: &[Report], best: Option<usize>) -> String {
    let rate = |report: &Report| report.asked.rate.unwrap_or_default();
    let floor = best.map_or(0.0, |best| rate(&reports[best]));
    let failed = reports.iter().filter(|report| report.held == Some(false) && rate(report) > floor);
    let next = failed.min_by(|one, two| rate(one).total_cmp(&rate(two)));
    let ours = next.filter(|report| report.generator.bottleneck).map(|report| {
        format!(
            "WARNING      at {} the generator itself was the bottleneck: this is not the target's \
             limit\n",
            show_rate(rate(report))
        )
    });
    let found = match (best, next) {
        (None, _) => "No rate holds.",
        (Some(_), None) => "The highest rate that was tried holds:",
        (Some(_), Some(_)) if ours.is_some() => "The highest rate that was seen to hold:",
        (Some(_), Some(_)) => "The highest rate that holds:",
    };
    format!("{}{found}", ours.unwrap_or_default())
}

/// Whether a rate holds, for the last column of a table.
pub fn held(report: &Report) -> &'static str {
    match (report.held == Some(true), report.generator.bottleneck) {
        (true, false) => "yes",
        (false, false) => "no",
        (true, true) => "yes (the generator added to it)",
        (false, true) => "no: the generator was the bottleneck",
    }
}

/// One run's row.
pub fn table_row(report: &Report, verdict: &str) -> String {
    let latency = &report.latency_ns;
    format!(
        "{:>12} {:>12} {:>10} {:>10} {:>10} {:>10} {:>8.3}%  {verdict}",
        report.asked.rate.map_or_else(|| "closed".to_owned(), show_rate),
        show_rate(report.achieved_rate),
        show_nanos(latency.p50),
        show_nanos(latency.p99),
        show_nanos(latency.p999),
        show_nanos(latency.max),
        report.error_share() * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(rate: f64, held: bool, bottleneck: bool) -> Report {
        let mut report = Report { held: Some(held), ..Report::example("step", Some(rate)) };
        report.generator.bottleneck = bottleneck;
        report
    }

    #[test]
    fn the_generators_limit_is_not_the_targets() {
        let holds = step(1e3, true, false);
        let found = |others: &[Report]| {
            let reports: Vec<_> = others.iter().chain([&holds]).cloned().collect();
            conclusion(&reports, Some(reports.len() - 1))
        };
        assert_eq!(found(&[step(2e3, false, false)]), "The highest rate that holds:");
        let ours = found(&[step(4e3, false, false), step(2e3, false, true)]);
        assert!(ours.starts_with("WARNING      at 2,000/s the generator itself"), "{ours}");
        assert!(ours.ends_with("seen to hold:"), "{ours}");
        // The next rate above decides, not one far above it.
        let next = found(&[step(4e3, false, true), step(2e3, false, false)]);
        assert_eq!(next, "The highest rate that holds:");
        // A rate below that failed by chance is no limit.
        assert!(found(&[step(500.0, false, true)]).starts_with("The highest rate that was tried"));
        let none = conclusion(&[step(1e3, false, true)], None);
        assert!(none.starts_with("WARNING") && none.ends_with("No rate holds."), "{none}");
    }

    #[test]
    fn a_row_says_whose_limit_it_was() {
        assert_eq!(held(&step(1.0, true, false)), "yes");
        assert_eq!(held(&step(1.0, false, false)), "no");
        assert!(held(&step(1.0, false, true)).contains("generator"));
        assert!(held(&step(1.0, true, true)).contains("generator"));
    }
}
