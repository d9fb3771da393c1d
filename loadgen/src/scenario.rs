//! A scenario file: TOML -> requests, phases and settings. Unknown keys are refused.
//!
//! ```toml
//! connections = 64
//! arrivals = "poisson"        # of phases only
//! warmup = "5s"
//!
//! [[phases]]                  # leave them out and say `closed = true` for a closed loop
//! ramp = ["1k", "10k"]
//! duration = "30s"
//!
//! [[phases]]
//! step = ["10k", "20k"]       # in `steps` equal parts
//! steps = 5
//! duration = "50s"
//!
//! [[phases]]
//! hold = "10k"
//! duration = "1m"
//!
//! [[requests]]
//! url = "http://127.0.0.1:8080/b/100"
//! weight = 9
//!
//! [[requests]]
//! url = "http://127.0.0.1:8080/upload"
//! method = "POST"
//! headers = ["Content-Type: text/plain"]
//! body = "@upload.bin"
//! chunked = true
//! expect_status = 201
//!
//! [bench]                     # for whoever runs scenarios, such as bench/versus; not read here
//! title = "GET and upload"
//! ```

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::schedule::{Arrivals, Phase};
use crate::target::{self, Expect, HashWanted, Request};
use crate::units;

/// Parts of a `step` phase that does not say how many.
const STEPS: u32 = 5;

/// A file's contents. What it leaves out, flags or defaults fill in.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// As `-c`.
    pub connections: Option<usize>,
    /// As `-t`.
    pub threads: Option<usize>,
    /// As `--pipeline`.
    pub pipeline: Option<usize>,
    /// As the opposite of `--no-keepalive`.
    pub keep_alive: Option<bool>,
    /// As `--closed`.
    pub closed: Option<bool>,
    /// As `--seed`.
    pub seed: Option<u64>,
    /// `constant` or `poisson`.
    #[serde(default, deserialize_with = "arrivals")]
    pub arrivals: Option<Arrivals>,
    /// As `-d`; of a closed loop.
    #[serde(default, deserialize_with = "duration")]
    pub duration: Option<Duration>,
    /// As `--warmup`.
    #[serde(default, deserialize_with = "duration")]
    pub warmup: Option<Duration>,
    /// As `--timeout`.
    #[serde(default, deserialize_with = "duration")]
    pub timeout: Option<Duration>,
    /// As `--threshold`.
    #[serde(default)]
    pub thresholds: Vec<String>,
    #[serde(default)]
    phases: Vec<PhaseText>,
    #[serde(default)]
    requests: Vec<RequestText>,
    /// For whoever runs scenarios; not read here.
    #[serde(default)]
    pub bench: toml::Table,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseText {
    hold: Option<Amount>,
    ramp: Option<[Amount; 2]>,
    step: Option<[Amount; 2]>,
    steps: Option<u32>,
    duration: String,
}

/// A rate: 500 or "10k". Zero is silence, which only a phase may ask for.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(f64),
    Text(String),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    url: String,
    weight: Option<u32>,
    method: Option<String>,
    #[serde(default)]
    headers: Vec<String>,
    body: Option<String>,
    #[serde(default)]
    chunked: bool,
    expect_status: Option<u16>,
    expect_length: Option<u64>,
    expect_hash: Option<String>,
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    units::duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn arrivals<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arrivals>, D::Error> {
    match String::deserialize(from)?.as_str() {
        "constant" => Ok(Some(Arrivals::Constant)),
        "poisson" => Ok(Some(Arrivals::Poisson)),
        other => Err(serde::de::Error::custom(format!("'{other}' is not constant or poisson"))),
    }
}

impl Scenario {
    /// Reads a file. Bodies from files are found beside it.
    ///
    /// # Errors
    /// What is wrong and where, as the TOML parser shows it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Whether it says when requests are due.
    pub fn has_phases(&self) -> bool {
        !self.phases.is_empty()
    }

    /// The phases, steps taken apart.
    ///
    /// # Errors
    /// One line: a phase of no kind or of two, a bad rate or duration.
    pub fn phases(&self) -> Result<Vec<Phase>, String> {
        let mut phases = Vec::new();
        for (index, phase) in self.phases.iter().enumerate() {
            let bad = |why: String| format!("phase {}: {why}", index + 1);
            let duration = units::positive_duration(&phase.duration).map_err(bad)?;
            let bad = |why: String| format!("phase {}: {why}", index + 1);
            let pair = |[from, to]: &[Amount; 2]| -> Result<(f64, f64), String> {
                Ok((from.rate().map_err(bad)?, to.rate().map_err(bad)?))
            };
            match (&phase.hold, &phase.ramp, &phase.step) {
                (Some(rate), None, None) => {
                    phases.push(Phase::hold(rate.rate().map_err(bad)?, Some(duration)));
                }
                (None, Some(ends), None) => {
                    let (from, to) = pair(ends)?;
                    phases.push(Phase { from, to, duration: Some(duration) });
                }
                (None, None, Some(ends)) => {
                    let (from, to) = pair(ends)?;
                    let steps = phase.steps.unwrap_or(STEPS);
                    if steps < 2 {
                        return Err(bad("a step needs at least 2 steps".to_owned()));
                    }
                    phases.extend((0..steps).map(|step| {
                        let rate = from + (to - from) * f64::from(step) / f64::from(steps - 1);
                        Phase::hold(rate, Some(duration / steps))
                    }));
                }
                _ => return Err(bad("needs exactly one of hold, ramp and step".to_owned())),
            }
        }
        if !phases.is_empty() && phases.iter().all(|phase| phase.from == 0.0 && phase.to == 0.0) {
            return Err("a rate of 0 sends nothing".to_owned());
        }
        Ok(phases)
    }

    /// The requests.
    ///
    /// # Errors
    /// One line: a bad header, hash or weight, or a body that cannot be read.
    pub fn requests(&self, beside: &Path) -> Result<Vec<Request>, String> {
        self.requests.iter().map(|request| request.request(beside)).collect()
    }
}

impl Amount {
    fn rate(&self) -> Result<f64, String> {
        match self {
            Self::Number(rate) if rate.is_finite() && *rate >= 0.0 => Ok(*rate),
            Self::Number(rate) => Err(format!("{rate} is no rate")),
            Self::Text(text) if text.trim() == "0" => Ok(0.0),
            Self::Text(text) => units::rate(text),
        }
    }
}

impl RequestText {
    fn request(&self, beside: &Path) -> Result<Request, String> {
        if self.weight == Some(0) {
            return Err(format!("{}: a weight of 0 is never sent", self.url));
        }
        let headers = self.headers.iter().map(|text| target::header(text));
        Ok(Request {
            url: self.url.clone(),
            weight: self.weight.unwrap_or(1),
            method: self.method.clone(),
            headers: headers.collect::<Result<_, _>>()?,
            body: self.body.as_deref().map_or(Ok(Vec::new()), |text| body(text, beside))?,
            chunked: self.chunked,
            expect: Expect {
                status: self.expect_status,
                length: self.expect_length,
                hash: self.expect_hash.as_deref().map(hash).transpose()?,
            },
        })
    }
}

/// `TEXT`, or the contents of `@FILE`, which is looked for in `beside`.
///
/// # Errors
/// One line: the file cannot be read.
pub fn body(text: &str, beside: &Path) -> Result<Vec<u8>, String> {
    match text.strip_prefix('@') {
        None => Ok(text.as_bytes().to_vec()),
        Some(name) => std::fs::read(beside.join(name))
            .map_err(|error| format!("cannot read the body from {name}: {error}")),
    }
}

/// `first`, or 16 hexadecimal digits of xxh64.
///
/// # Errors
/// One line.
pub fn hash(text: &str) -> Result<HashWanted, String> {
    match text {
        "first" => Ok(HashWanted::First),
        _ if text.len() == 16 => u64::from_str_radix(text, 16)
            .map(HashWanted::Exactly)
            .map_err(|_| format!("'{text}' is no xxh64 of 16 hexadecimal digits")),
        _ => Err(format!("'{text}' is neither 'first' nor an xxh64 of 16 hexadecimal digits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(text: &str) -> Result<Scenario, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn phases_and_requests() {
        let text = r#"
            connections = 8
            arrivals = "poisson"
            warmup = "5s"
            [[phases]]
            ramp = [0, "10k"]
            duration = "30s"
            [[phases]]
            step = ["1k", 3000]
            steps = 3
            duration = "30s"
            [[phases]]
            hold = "2k"
            duration = "1m"
            [[requests]]
            url = "http://127.0.0.1/a"
            weight = 9
            headers = ["X: y"]
            body = "hi"
            expect_status = 201
            expect_hash = "0123456789abcdef"
            [bench]
            title = "not ours to read"
        "#;
        let scenario = scenario(text).unwrap();
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(
            scenario.phases().unwrap(),
            [
                Phase { from: 0.0, to: 10_000.0, duration: seconds(30) },
                Phase::hold(1_000.0, seconds(10)),
                Phase::hold(2_000.0, seconds(10)),
                Phase::hold(3_000.0, seconds(10)),
                Phase::hold(2_000.0, seconds(60)),
            ]
        );
        let request = &scenario.requests(Path::new("")).unwrap()[0];
        assert_eq!((request.weight, request.body.as_slice()), (9, &b"hi"[..]));
        assert_eq!(request.expect.hash, Some(HashWanted::Exactly(0x0123_4567_89ab_cdef)));
        assert_eq!(scenario.arrivals, Some(Arrivals::Poisson));
    }

    #[test]
    fn mistakes_are_found() {
        assert!(scenario("conections = 8").is_err());
        assert!(scenario("warmup = \"5x\"").is_err());
        assert!(scenario("arrivals = \"random\"").is_err());
        for phases in [
            "[[phases]]\nduration = \"1s\"",
            "[[phases]]\nhold = \"1k\"\nramp = [1, 2]\nduration = \"1s\"",
            "[[phases]]\nhold = \"x\"\nduration = \"1s\"",
            "[[phases]]\nhold = \"1k\"\nduration = \"0s\"",
            "[[phases]]\nhold = 0\nduration = \"1s\"",
            "[[phases]]\nhold = -5\nduration = \"1s\"",
            "[[phases]]\nstep = [1, 2]\nsteps = 1\nduration = \"1s\"",
        ] {
            assert!(scenario(phases).unwrap().phases().is_err(), "{phases}");
        }
    }
}
