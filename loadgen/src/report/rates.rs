//! One self-contained page: latency at rising rates, as what each label adds over a baseline.
//!
//! Runs of one label and one rate count as repetitions: the page shows their median.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use plotters::prelude::*;

use super::html::{SIZE, STYLE, colour, escape};
use super::{Latency, Report};
use crate::units::{show_nanos, show_rate};

/// What is shown of a run: a name, and nanoseconds.
type Pick = (&'static str, fn(&Latency) -> u64);

const PICKS: [Pick; 4] = [
    ("p50", |latency| latency.p50),
    ("p99", |latency| latency.p99),
    ("p99.9", |latency| latency.p999),
    ("max", |latency| latency.max),
];

/// No plot goes below this many nanoseconds: less cannot be told from the baseline's own noise.
const SHOWN_MIN: f64 = 1_000.0;

/// The runs of one label, by rate.
struct Series<'a> {
    label: &'a str,
    /// Rates are whole here, so that they can be keys.
    runs: BTreeMap<u64, Vec<&'a Report>>,
}

impl<'a> Series<'a> {
    /// In the order in which the labels come.
    fn all(reports: &'a [Report]) -> Result<Vec<Self>, String> {
        let mut all: Vec<Self> = Vec::new();
        for report in reports {
            let Some(rate) = report.asked.rate else {
                return Err(format!("{} has no rate: it is a closed loop", report.label));
            };
            let series = match all.iter().position(|series| series.label == report.label) {
                Some(index) => &mut all[index],
                None => {
                    all.push(Self { label: &report.label, runs: BTreeMap::new() });
                    all.last_mut().expect("one was just pushed")
                }
            };
            series.runs.entry(rate.round() as u64).or_default().push(report);
        }
        Ok(all)
    }

    /// The median of the runs at a rate, in nanoseconds.
    fn at(&self, rate: u64, pick: Pick) -> Option<f64> {
        let mut values: Vec<_> =
            self.runs.get(&rate)?.iter().map(|report| (pick.1)(&report.latency_ns)).collect();
        values.sort_unstable();
        let middle = values.len() / 2;
        let upper = *values.get(middle)? as f64;
        Some(if values.len() % 2 == 1 { upper } else { (upper + values[middle - 1] as f64) / 2.0 })
    }

    /// What it adds over `baseline`, at the rates that both have.
    fn added<'s>(
        &'s self,
        baseline: &'s Self,
        pick: Pick,
    ) -> impl Iterator<Item = (u64, f64)> + 's {
        self.runs
            .keys()
            .filter_map(move |&rate| Some((rate, self.at(rate, pick)? - baseline.at(rate, pick)?)))
    }
}

/// The page.
///
/// # Errors
/// One line: a run has no rate, no run has the baseline's label, or a plot could not be drawn.
pub fn page(reports: &[Report], baseline: &str) -> Result<String, String> {
    let all = Series::all(reports)?;
    let Some(base) = all.iter().find(|series| series.label == baseline) else {
        return Err(format!("no run is labelled '{baseline}'"));
    };
    let others: Vec<_> = all.iter().filter(|series| series.label != baseline).collect();
    let title = format!("Latency added over {}, at rising rates", escape(baseline));
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>\n\
         <p>From when a request was due. Of several runs at a rate, the median. \
         Rates that a run did not reach are left out.</p>"
    );
    let _ = writeln!(page, "<p>{}</p>", key(&others));
    for pick in PICKS {
        let _ = writeln!(page, "<h2>{}</h2>", pick.0);
        page += &plot(&others, base, pick).map_err(|error| format!("cannot draw: {error}"))?;
        page += &table(&others, base, pick);
    }
    let warnings: Vec<_> = reports
        .iter()
        .filter(|report| !report.generator.warnings.is_empty())
        .map(|report| report.label.as_str())
        .collect();
    if !warnings.is_empty() {
        let _ = writeln!(
            page,
            "<p class=\"warning\">In {} of {} runs the generator warned that it, or something else \
             on its CPU, held requests up; that is in the baseline as well.</p>",
            warnings.len(),
            reports.len()
        );
    }
    let _ = writeln!(page, "<footer>{}</footer></body></html>", escape(&reports[0].tool));
    Ok(page)
}

fn key(others: &[&Series]) -> String {
    let mut key = String::new();
    for (index, series) in others.iter().enumerate() {
        let RGBColor(red, green, blue) = colour(index);
        let _ = write!(
            key,
            "<span class=\"key\" style=\"background:rgb({red},{green},{blue})\"></span>{} &emsp; ",
            escape(series.label)
        );
    }
    key
}

fn table(others: &[&Series], base: &Series, pick: Pick) -> String {
    let mut table = format!("<table><tr><th>added to {}</th>", escape(base.label));
    for rate in base.runs.keys() {
        let _ = write!(table, "<th>{}</th>", show_rate(*rate as f64));
    }
    table += "</tr>\n";
    for series in others {
        let _ = write!(table, "<tr><td>{}</td>", escape(series.label));
        let added: BTreeMap<_, _> = series.added(base, pick).collect();
        for rate in base.runs.keys() {
            let _ = write!(table, "<td>{}</td>", added.get(rate).map_or_else(String::new, shown));
        }
        table += "</tr>\n";
    }
    let _ = write!(table, "<tr><td>{} itself</td>", escape(base.label));
    for rate in base.runs.keys() {
        let own = base.at(*rate, pick).unwrap_or_default();
        let _ = write!(table, "<td>{}</td>", shown(&own));
    }
    table + "</tr></table>\n"
}

/// With its sign, since noise can make a difference negative.
fn shown(nanos: &f64) -> String {
    let sign = if *nanos < 0.0 { "−" } else { "" };
    format!("{sign}{}", show_nanos(nanos.abs() as u64))
}

fn plot(
    others: &[&Series],
    base: &Series,
    pick: Pick,
) -> Result<String, Box<dyn std::error::Error>> {
    // Evenly spaced, whatever the rates are, so that no label covers another.
    let rates: Vec<_> = base.runs.keys().copied().collect();
    let points = |series: &Series| -> Vec<(i32, f64)> {
        let place = |rate| rates.binary_search(&rate).map_or(0, |place| place as i32);
        let added = series.added(base, pick);
        added.map(|(rate, nanos)| (place(rate), nanos.max(SHOWN_MIN))).collect()
    };
    let every: Vec<_> = others.iter().flat_map(|series| points(series)).collect();
    let low = every.iter().map(|point| point.1).fold(f64::INFINITY, f64::min).max(SHOWN_MIN);
    let high = every.iter().map(|point| point.1).fold(low, f64::max);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_right(40)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(
                0..rates.len().max(2) as i32 - 1,
                (low / 1.2..high * 1.5).log_scale(),
            )?;
        chart
            .configure_mesh()
            .x_desc("requests a second")
            .x_labels(rates.len())
            .x_label_formatter(&|place| {
                rates.get(*place as usize).map_or_else(String::new, |rate| show_rate(*rate as f64))
            })
            .y_label_formatter(&|nanos| show_nanos(*nanos as u64))
            .light_line_style(RGBColor(240, 240, 240))
            .draw()?;
        for (index, series) in others.iter().enumerate() {
            let line = colour(index).stroke_width(2);
            chart.draw_series(LineSeries::new(points(series), line).point_size(3))?;
        }
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(label: &str, rate: Option<f64>, p50: u64) -> Report {
        let latency_ns = Latency { p50, ..Latency::default() };
        Report { latency_ns, ..Report::example(label, rate) }
    }

    #[test]
    fn median_of_runs_less_the_baseline() {
        let runs = [
            report("direct", Some(1_000.0), 10_000),
            report("a<b", Some(1_000.0), 50_000),
            report("a<b", Some(1_000.0), 30_000),
            report("a<b", Some(1_000.0), 90_000),
            report("a<b", Some(2_000.0), 70_000), // The baseline has no such rate.
        ];
        let all = Series::all(&runs).unwrap();
        let added: Vec<_> = all[1].added(&all[0], PICKS[0]).collect();
        assert_eq!(added, [(1_000, 40_000.0)]);
        let page = page(&runs, "direct").unwrap();
        assert!(page.contains("a&lt;b") && !page.contains("a<b"));
        assert!(page.contains("<svg"));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let runs = [report("a", Some(1.0), 1)];
        assert!(page(&runs, "direct").unwrap_err().contains("direct"));
        assert!(page(&[report("a", None, 1)], "a").unwrap_err().contains("closed"));
    }
}
