//! `p99<20ms`, `errors<0.1%`, `rate>9.9k`: what a run must hold. Pure.
//!
//! A latency is judged over all requests. One that broke off (no connection, a reset) has none, and
//! counts as slower than any: else p99 would hold for a target that resets half of its connections.

use hdrhistogram::Histogram;

use crate::report::Report;
use crate::units;

/// One condition on a report.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// As it was written.
    pub text: String,
    metric: Metric,
    operator: Operator,
    limit: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Metric {
    /// Of the latencies from the due time (or from the sending), in nanoseconds.
    Quantile {
        quantile: f64,
        service: bool,
    },
    Mean {
        service: bool,
    },
    /// 0 to 1.
    ErrorShare,
    Errors,
    /// Answers a second.
    Rate,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

impl std::str::FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: String| format!("'{text}' is no threshold: {why}");
        let at = text
            .find(['<', '>'])
            .ok_or_else(|| bad("it needs < or >, as in 'p99<20ms' or 'errors<0.1%'".to_owned()))?;
        let (metric, rest) = (text[..at].trim(), &text[at..]);
        let (operator, limit) = [
            ("<=", Operator::LessOrEqual),
            (">=", Operator::MoreOrEqual),
            ("<", Operator::Less),
            (">", Operator::More),
        ]
        .into_iter()
        .find_map(|(sign, operator)| rest.strip_prefix(sign).map(|limit| (operator, limit.trim())))
        .ok_or_else(|| bad("it needs < or >".to_owned()))?;
        let (name, service) = match metric.strip_prefix("service.") {
            Some(name) => (name, true),
            None => (metric, false),
        };
        let time = || {
            let limit = units::duration(limit).map_err(&bad)?;
            // A bare number would mean seconds here and milliseconds to many.
            match limit.as_nanos() {
                nanos if rest.ends_with(|last: char| last.is_ascii_alphabetic()) => {
                    Ok(nanos as f64)
                }
                _ => Err(bad("a latency needs its unit, such as 20ms".to_owned())),
            }
        };
        let (metric, limit) = match name {
            "max" => (Metric::Quantile { quantile: 1.0, service }, time()?),
            "min" => (Metric::Quantile { quantile: 0.0, service }, time()?),
            "mean" => (Metric::Mean { service }, time()?),
            "errors" if !service => match limit.strip_suffix('%') {
                Some(percent) => (Metric::ErrorShare, number(percent).map_err(&bad)? / 100.0),
                None => (Metric::Errors, number(limit).map_err(&bad)?),
            },
            "rate" if !service => (Metric::Rate, units::rate(limit).map_err(&bad)?),
            _ => {
                let percent = name.strip_prefix('p').and_then(|digits| digits.parse::<f64>().ok());
                match percent.filter(|percent| (0.0..=100.0).contains(percent)) {
                    Some(percent) => {
                        // 99.9 / 100 is a hair above 0.999, and would ask for the next request.
                        let quantile = (percent * 1e10).round() / 1e12;
                        (Metric::Quantile { quantile, service }, time()?)
                    }
                    None => {
                        return Err(bad(format!(
                            "'{metric}' is not one of p50, p99, p99.9 and so on, min, mean, max \
                             (each also as service.p99), errors, rate"
                        )));
                    }
                }
            }
        };
        Ok(Self { text: text.to_owned(), metric, operator, limit })
    }
}

fn number(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err(format!("'{text}' is no number")),
    }
}

impl Threshold {
    /// Whether the report holds it. What nobody was answered in was not fast: a latency without an
    /// answer holds nothing.
    pub fn holds(&self, report: &Report) -> bool {
        if self.histogram(report).is_some_and(Histogram::is_empty) {
            return false;
        }
        let value = self.value(report);
        match self.operator {
            Operator::Less => value < self.limit,
            Operator::LessOrEqual => value <= self.limit,
            Operator::More => value > self.limit,
            Operator::MoreOrEqual => value >= self.limit,
        }
    }

    /// Whether it is about failed requests.
    pub fn judges_errors(&self) -> bool {
        matches!(self.metric, Metric::ErrorShare | Metric::Errors)
    }

    /// What the report has there, for people; beside a latency also how many requests failed.
    pub fn shown(&self, report: &Report) -> String {
        let Some(histogram) = self.histogram(report) else {
            let value = self.value(report);
            return match self.metric {
                Metric::ErrorShare => format!("{:.3}%", value * 100.0),
                Metric::Rate => units::show_rate(value),
                _ => units::show_count(value as u64),
            };
        };
        let value = self.value(report);
        let shown = if histogram.is_empty() {
            "no answer".to_owned()
        } else if value.is_infinite() {
            format!("never: {} requests broke off", units::show_count(report.lost))
        } else {
            units::show_nanos(value as u64)
        };
        match report.failures.total() {
            0 => shown,
            _ => format!("{shown}; {:.3}% of the requests failed", report.error_share() * 100.0),
        }
    }

    /// Where a latency is looked up.
    fn histogram<'a>(&self, report: &'a Report) -> Option<&'a Histogram<u64>> {
        match self.metric {
            Metric::Quantile { service, .. } | Metric::Mean { service } => {
                Some(if service { &report.service } else { &report.corrected })
            }
            Metric::ErrorShare | Metric::Errors | Metric::Rate => None,
        }
    }

    fn value(&self, report: &Report) -> f64 {
        let histogram = self.histogram(report);
        match self.metric {
            Metric::Quantile { quantile, .. } => {
                histogram.map_or(0.0, |it| value_at(it, report.lost, quantile))
            }
            Metric::Mean { .. } if report.lost > 0 => f64::INFINITY,
            Metric::Mean { .. } => histogram.map_or(0.0, Histogram::mean),
            // With nothing asked and nothing answered, nothing was held.
            Metric::ErrorShare => report.error_share(),
            Metric::Errors => report.failures.total() as f64,
            Metric::Rate => report.achieved_rate,
        }
    }
}

/// The quantile over what `histogram` holds and `lost` more that took for ever.
fn value_at(histogram: &Histogram<u64>, lost: u64, quantile: f64) -> f64 {
    let timed = histogram.len() as f64;
    // As the histogram counts: the first value that so many requests do not exceed.
    let rank = (quantile * (timed + lost as f64) - 1e-6).ceil();
    if rank > timed {
        return f64::INFINITY;
    }
    // In the middle between two ranks, so that rounding cannot choose the next one.
    let of_timed = if lost == 0 { quantile } else { ((rank - 0.5) / timed).max(0.0) };
    histogram.value_at_quantile(of_timed) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Failures;

    #[test]
    fn thresholds_parse() {
        let parse = |text: &str| text.parse::<Threshold>();
        let p99 = parse("p99<20ms").unwrap();
        assert_eq!(p99.metric, Metric::Quantile { quantile: 0.99, service: false });
        assert_eq!((p99.operator, p99.limit), (Operator::Less, 20e6));
        let p999 = parse("service.p99.9 <= 1.5s").unwrap();
        assert_eq!(p999.metric, Metric::Quantile { quantile: 0.999, service: true });
        assert_eq!((p999.operator, p999.limit), (Operator::LessOrEqual, 1.5e9));
        assert_eq!(parse("errors<0.1%").unwrap().limit, 0.001);
        assert_eq!(parse("errors<=10").unwrap().metric, Metric::Errors);
        assert_eq!(parse("rate>=9.9k").unwrap().limit, 9_900.0);
        for bad in [
            "",
            "p99",
            "p99=5ms",
            "p99<",
            "p99<20",
            "p99<x",
            "p101<5ms",
            "px<5ms",
            "p<5ms",
            "service.errors<1",
            "errors<-1",
            "errors<x%",
            "rate>0",
            "<5ms",
            "p99<<5ms",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    /// Of a hundred requests ten take 1 ms to 10 ms, the others less; some more break off.
    #[test]
    fn what_broke_off_was_slow() {
        let mut report = Report::example("x", Some(100.0));
        for ms in 1..=100 {
            let nanos = if ms > 90 { (ms - 90) * 1_000_000 } else { 500_000 };
            report.corrected.record(nanos).unwrap();
        }
        report.answered = 100;
        let judge = |report: &Report, text: &str| {
            let threshold = text.parse::<Threshold>().unwrap();
            (threshold.holds(report), threshold.shown(report))
        };
        assert_eq!(judge(&report, "p90<1ms"), (true, "500 µs".to_owned()));
        report.lost = 1;
        report.failures.reset = 1;
        // Now 91 of 101 must be below.
        let (holds, shown) = judge(&report, "p90<900us");
        assert!(!holds && shown == "1.00 ms; 0.990% of the requests failed", "{shown}");
        assert!(judge(&report, "p99<11ms").0);
        assert!(!judge(&report, "max<1h").0);
        assert!(!judge(&report, "mean<1h").0);
        report.lost = 2;
        report.failures.reset = 2;
        let (holds, shown) = judge(&report, "p99<1h");
        assert!(!holds, "{shown}");
        assert_eq!(shown, "never: 2 requests broke off; 1.961% of the requests failed");
        assert!(judge(&report, "p98<11ms").0);
        // A wrong status has its latency; the share that failed stands beside it.
        report.lost = 0;
        report.failures = Failures { status: 2, ..Failures::default() };
        assert!(judge(&report, "p99<11ms").1.ends_with("; 2.000% of the requests failed"));
    }
}
