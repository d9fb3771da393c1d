//! HdrHistogram's percentile text: what its plotters read. Values in milliseconds.
//!
//! The layout is that of the Java library's `outputPercentileDistribution`, down to the widths and
//! to the last line, which has no fourth column.

use std::io::{self, Write};

use hdrhistogram::Histogram;

/// Steps for each halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

const NANOS_PER_MS: f64 = 1e6;

/// Writes the distribution.
///
/// # Errors
/// When the file cannot be written.
pub fn write(histogram: &Histogram<u64>, out: &mut impl Write) -> io::Result<()> {
    let columns = ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"];
    let [value, percentile, total, inverse] = columns;
    writeln!(out, "{value:>12} {percentile:>14} {total:>10} {inverse:>14}\n")?;
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NANOS_PER_MS;
        let quantile = step.quantile_iterated_to();
        if quantile < 1.0 {
            let inverse = 1.0 / (1.0 - quantile);
            writeln!(out, "{value:12.3} {quantile:2.12} {count:10} {inverse:14.2}")?;
        } else {
            writeln!(out, "{value:12.3} {quantile:2.12} {count:10}")?;
        }
    }
    let ms = |nanos: f64| nanos / NANOS_PER_MS;
    let (mean, stdev) = (ms(histogram.mean()), ms(histogram.stdev()));
    let max = ms(histogram.max() as f64);
    writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {stdev:12.3}]")?;
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len())?;
    let sub_buckets = 2 * 10_u64.pow(u32::from(histogram.sigfig())).next_power_of_two();
    writeln!(out, "#[Buckets = {:12}, SubBuckets     = {sub_buckets:12}]", histogram.buckets())
}
