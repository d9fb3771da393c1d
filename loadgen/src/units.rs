//! Durations, rates and counts as people write them, and back. Pure.

use std::time::Duration;

/// Reads `250ms`, `30s`, `1m30s`, `2h`, `10us`; a bare number means seconds, as in wrk.
///
/// # Errors
/// What is wrong, in one line.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}' is no duration such as 250ms, 30s or 1m30s");
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| bad());
    }
    let (mut rest, mut total) = (text.trim(), 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let value: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            _ => return Err(bad()),
        };
        total += value * unit;
        rest = &rest[letters..];
    }
    if text.trim().is_empty() {
        return Err(bad());
    }
    Duration::try_from_secs_f64(total).map_err(|_| bad())
}

/// As [`duration`], but more than nothing.
///
/// # Errors
/// What is wrong, in one line.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("'{text}' is no time at all")),
        duration => Ok(duration),
    }
}

/// Reads `500`, `10k`, `2.5k`, `1M`: requests a second, or any other amount. More than zero.
///
/// # Errors
/// What is wrong, in one line.
pub fn rate(text: &str) -> Result<f64, String> {
    let bad = || format!("'{text}' is no rate such as 500, 10k or 2.5k");
    let text = text.trim().trim_end_matches("/s");
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'm' | 'M')) => (&text[..at], 1e6),
        _ => (text, 1.0),
    };
    let value = digits.parse::<f64>().map_err(|_| bad())? * unit;
    match value {
        0.0 => Err("a rate of 0 sends nothing".to_owned()),
        _ if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(bad()),
    }
}

/// Reads a whole number of at least one, `1000` or `10k`.
///
/// # Errors
/// What is wrong, in one line.
pub fn count(text: &str) -> Result<u64, String> {
    match rate(text) {
        Ok(value) if value.fract() == 0.0 && value < 1e15 => Ok(value as u64),
        _ => Err(format!("'{text}' is no whole number of at least 1, such as 100 or 10k")),
    }
}

/// Nanoseconds with three digits and their unit.
pub fn show_nanos(nanos: u64) -> String {
    let value = nanos as f64;
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => digits(value / 1e3, "µs"),
        1_000_000..1_000_000_000 => digits(value / 1e6, "ms"),
        _ => digits(value / 1e9, "s"),
    }
}

/// A duration as [`show_nanos`] shows it.
pub fn show(duration: Duration) -> String {
    show_nanos(duration.as_nanos() as u64)
}

fn digits(value: f64, unit: &str) -> String {
    match value {
        _ if value < 10.0 => format!("{value:.2} {unit}"),
        _ if value < 100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// Bytes with a binary unit.
pub fn show_bytes(bytes: f64) -> String {
    match bytes {
        _ if bytes < 1024.0 => format!("{bytes:.0} B"),
        _ if bytes < 1024.0 * 1024.0 => digits(bytes / 1024.0, "KiB"),
        _ if bytes < 1024.0 * 1024.0 * 1024.0 => digits(bytes / 1024.0 / 1024.0, "MiB"),
        _ => digits(bytes / 1024.0 / 1024.0 / 1024.0, "GiB"),
    }
}

/// A whole number with thin groups: `12,345,678`.
pub fn show_count(n: u64) -> String {
    let digits = n.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// Requests a second: whole above a hundred, with a digit below.
pub fn show_rate(rate: f64) -> String {
    if rate >= 100.0 {
        format!("{}/s", show_count(rate.round() as u64))
    } else {
        format!("{rate:.1}/s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("30s", 30_000_000_000_u64),
            ("30", 30_000_000_000),
            ("0.5", 500_000_000),
            ("250ms", 250_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("10us", 10_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", " ", "s", "-1s", "1x", "1s2", "1..2s", "NaN", "inf", "1e300h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive_duration("0ms").is_err());
    }

    #[test]
    fn rates_and_counts() {
        assert_eq!(rate("10k"), Ok(10_000.0));
        assert_eq!(rate("2.5k/s"), Ok(2_500.0));
        assert_eq!(rate("1M"), Ok(1e6));
        for text in ["0", "-5", "k", "", "ten", "NaN", "inf", "1kk"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!(count("10k"), Ok(10_000));
        for text in ["0", "1.5", "-1", "x"] {
            assert!(count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shown() {
        assert_eq!(show_nanos(999), "999 ns");
        assert_eq!(show_nanos(1_234), "1.23 µs");
        assert_eq!(show_nanos(45_600_000), "45.6 ms");
        assert_eq!(show_nanos(2_000_000_000), "2.00 s");
        assert_eq!(show_count(1_234_567), "1,234,567");
        assert_eq!(show_rate(9_999.7), "10,000/s");
        assert_eq!(show_bytes(1536.0), "1.50 KiB");
    }
}
