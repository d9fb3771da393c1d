//! One self-contained page: figures and plots of one run, or of several beside each other.
//!
//! Plots are SVG that plotters draws; the page loads nothing.

use std::fmt::Write as _;

use plotters::prelude::*;

use super::{Latency, Report};
use crate::units::{show_count, show_nanos, show_rate};

/// Of a plot, in pixels.
pub(super) const SIZE: (u32, u32) = (960, 420);

/// Line colours, in turn: told apart by most eyes (Okabe and Ito's set).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

pub(super) const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;\
padding:0 1rem;color:#222;background:#fff}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}\
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}\
th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}\
.warning{background:#fff3cd;padding:.5rem .8rem;border-left:4px solid #e69f00}\
.key{display:inline-block;width:.8em;height:.8em;margin-right:.5em}footer{color:#777;font-size:.8rem}";

/// The page for these runs, in their order.
///
/// # Errors
/// One line: a plot could not be drawn.
pub fn page(reports: &[Report]) -> Result<String, String> {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>",
        title = match reports {
            [one] => escape(&one.label),
            several => format!("{} runs compared", several.len()),
        }
    );
    page += &table(reports);
    for (report, warning) in reports
        .iter()
        .flat_map(|report| report.generator.warnings.iter().map(move |warning| (report, warning)))
    {
        let _ = writeln!(
            page,
            "<p class=\"warning\"><b>{}</b>: {}</p>",
            escape(&report.label),
            escape(warning)
        );
    }
    page += "<h2>Latency by percentile, from the due time</h2>\n";
    page += &by_percentile(reports).map_err(|error| format!("cannot draw: {error}"))?;
    page += "<h2>Latency over time: p50 and p99 of each second</h2>\n";
    let p50_p99: [Pick; 2] =
        [("p50", |second| second.p50 as f64 / 1e6), ("p99", |second| second.p99 as f64 / 1e6)];
    page += &over_time(reports, "ms", &p50_p99).map_err(|error| format!("cannot draw: {error}"))?;
    page += "<h2>The longest of each second</h2>\n";
    let max: [Pick; 1] = [("max", |second| second.max as f64 / 1e6)];
    page += &over_time(reports, "ms", &max).map_err(|error| format!("cannot draw: {error}"))?;
    page += "<h2>Requests a second</h2>\n";
    let rate: [Pick; 1] = [("requests", |second| second.requests as f64)];
    page +=
        &over_time(reports, "requests", &rate).map_err(|error| format!("cannot draw: {error}"))?;
    if reports.iter().any(|report| report.failures.total() > 0) {
        page += "<h2>Failures a second</h2>\n";
        let failed: [Pick; 1] = [("failed", |second| second.failed as f64)];
        page += &over_time(reports, "requests", &failed)
            .map_err(|error| format!("cannot draw: {error}"))?;
    }
    let _ = writeln!(page, "<footer>{}</footer></body></html>", escape(&reports[0].tool));
    Ok(page)
}

/// A line's name, and what it shows of a second.
type Pick = (&'static str, fn(&super::Second) -> f64);

fn table(reports: &[Report]) -> String {
    let mut table = String::from(
        "<table><tr><th>run</th><th>asked</th><th>achieved</th><th>mean</th><th>p50</th><th>p90</th>\
         <th>p99</th><th>p99.9</th><th>p99.99</th><th>max</th><th>answered</th><th>failed</th></tr>\n",
    );
    for (index, report) in reports.iter().enumerate() {
        let RGBColor(red, green, blue) = colour(index);
        let Latency { mean, p50, p90, p99, p999, p9999, max, .. } = report.latency_ns;
        let asked = report.asked.rate.map_or_else(|| "closed loop".to_owned(), show_rate);
        let _ = write!(
            table,
            "<tr><td><span class=\"key\" style=\"background:rgb({red},{green},{blue})\"></span>{}</td>\
             <td>{asked}</td><td>{}</td>",
            escape(&report.label),
            show_rate(report.achieved_rate)
        );
        for nanos in [mean as u64, p50, p90, p99, p999, p9999, max] {
            let _ = write!(table, "<td>{}</td>", show_nanos(nanos));
        }
        let _ = writeln!(
            table,
            "<td>{}</td><td>{}</td></tr>",
            show_count(report.answered),
            show_count(report.failures.total())
        );
    }
    table + "</table>\n"
}

pub(super) fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

type Drawn = Result<String, Box<dyn std::error::Error>>;

/// The axis that HdrHistogram's plotters use: 90 %, 99 %, 99.9 % are equally far apart.
fn by_percentile(reports: &[Report]) -> Drawn {
    let longest = reports.iter().map(|report| report.corrected.len()).max().unwrap_or(1).max(10);
    let right = 10_f64.powf((longest as f64).log10().ceil().clamp(1.0, 7.0));
    let lows = reports.iter().map(|report| report.latency_ns.min);
    let low = ms_floor(lows.min().unwrap_or(0));
    let high = reports.iter().map(|report| report.latency_ns.max).max().unwrap_or(0) as f64 / 1e6;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_right(40)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(
                (1.0..right).log_scale(),
                (low..(high * 1.2).max(low * 10.0)).log_scale(),
            )?;
        chart
            .configure_mesh()
            .x_label_formatter(&|inverse| percent(*inverse))
            .y_label_formatter(&|ms| show_nanos((ms * 1e6) as u64))
            .light_line_style(RGBColor(240, 240, 240))
            .draw()?;
        for (index, report) in reports.iter().enumerate() {
            let points = report.corrected.iter_quantiles(20).filter_map(|step| {
                let inverse = 1.0 / (1.0 - step.quantile_iterated_to());
                let ms = step.value_iterated_to() as f64 / 1e6;
                inverse.is_finite().then_some((inverse.min(right), ms.max(low)))
            });
            let line = colour(index).stroke_width(2);
            chart.draw_series(LineSeries::new(points, line))?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn ms_floor(nanos: u64) -> f64 {
    10_f64.powf((nanos.max(1_000) as f64 / 1e6).log10().floor())
}

/// 10 -> 90%, 1,000 -> 99.9%.
fn percent(inverse: f64) -> String {
    let digits = (inverse.log10().round() as usize).saturating_sub(2);
    format!("{:.*}%", digits, (1.0 - 1.0 / inverse) * 100.0)
}

fn over_time(reports: &[Report], unit: &str, picks: &[Pick]) -> Drawn {
    let seconds = || reports.iter().flat_map(|report| &report.seconds);
    let right = seconds().map(|second| second.second + 1).max().unwrap_or(1).max(2) as f64;
    let top =
        picks.iter().flat_map(|(_, pick)| seconds().map(pick)).fold(0.0_f64, f64::max).max(1e-3);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_right(40)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..right, 0.0..top * 1.1)?;
        chart
            .configure_mesh()
            .x_desc("seconds")
            .y_label_formatter(&|value| match unit {
                "ms" => show_nanos((value * 1e6) as u64),
                _ => show_count(*value as u64),
            })
            .light_line_style(RGBColor(245, 245, 245))
            .draw()?;
        for (index, report) in reports.iter().enumerate() {
            for (number, (name, pick)) in picks.iter().enumerate() {
                let points =
                    report.seconds.iter().map(|second| (second.second as f64 + 0.5, pick(second)));
                let line = colour(index).mix(if number == 0 { 0.45 } else { 1.0 }).stroke_width(2);
                let drawn = chart.draw_series(LineSeries::new(points, line).point_size(2))?;
                if picks.len() > 1 {
                    let label = format!("{name} {}", report.label);
                    drawn
                        .label(label)
                        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], line));
                }
            }
        }
        if picks.len() > 1 {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .position(SeriesLabelPosition::UpperRight)
                .draw()?;
        }
        root.present()?;
    }
    Ok(svg)
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
