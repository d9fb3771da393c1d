//! The words of a configuration: times, sizes, addresses, patterns. Each is checked where it is
//! read, so whoever holds one holds a good one.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::error::clip;

/// The longest time that can be configured: a year. Zero, not this, means "no limit".
const PERIOD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Characters of a name; names become labels of metrics.
const NAME_CHARS_MAX: usize = 128;

/// Reads a word: an error is one line of message, and may be followed by one line of help.
fn read<'de, T, D>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    T: FromStr<Err = String>,
    D: Deserializer<'de>,
{
    struct Reader<T>(&'static str, std::marker::PhantomData<T>);

    impl<T: FromStr<Err = String>> de::Visitor<'_> for Reader<T> {
        type Value = T;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Reader(expected, std::marker::PhantomData))
}

/// What every word has: it is read from and written as a string, and says so in the schema.
macro_rules! word {
    ($type:ident, $expected:literal, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                read(deserializer, $expected)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

/// A length of time: `250ms`, `5s`, `1h30m`, `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

word!(Period, "a time such as 250ms, 5s or 1h30m", {
    "type": ["string", "integer"],
    "description": "A time: numbers with ms, s, m, h or d, as in 250ms or 1h30m; or 0.",
    "pattern": "^(0|([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+)$",
    "maximum": 0,
    "minimum": 0,
});

impl Period {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Period {
        Period(Duration::from_secs(seconds))
    }
}

/// Units of time with their milliseconds, the largest first.
const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Period, String> {
        let wrong = || format!("'{}' is no time\nwrite 250ms, 5s or 1h30m", clip(text));
        if text == "0" {
            return Ok(Period(Duration::ZERO));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!(
                "a time needs a unit\nwrite {0}s for seconds, or {0}ms for milliseconds",
                clip(text)
            ));
        }
        let (mut rest, mut micros, mut last) = (text, 0_u64, u64::MAX);
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|it: char| it.is_ascii_digit()).len();
            let (whole, after) = rest.split_at(digits);
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => {
                    let tail = after.trim_start_matches(|it: char| it.is_ascii_digit());
                    (&after[..after.len() - tail.len()], tail)
                }
                None => ("", after),
            };
            let letters =
                after.len() - after.trim_start_matches(|it: char| it.is_alphabetic()).len();
            let (unit, after) = after.split_at(letters);
            let (_, millis) =
                TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            if whole.is_empty() || *millis >= last || fraction.len() > 6 {
                return Err(wrong());
            }
            let unit_micros = millis * 1_000;
            let whole: u64 = whole.parse().map_err(|_| too_long())?;
            micros = whole
                .checked_mul(unit_micros)
                .and_then(|more| micros.checked_add(more))
                .ok_or_else(too_long)?;
            if !fraction.is_empty() {
                let part: u64 = fraction.parse().map_err(|_| wrong())?;
                micros += part * unit_micros / 10_u64.pow(fraction.len() as u32);
            }
            (rest, last) = (after, *millis);
        }
        let period = Duration::from_micros(micros);
        match text.is_empty() {
            true => Err(wrong()),
            false if period > PERIOD_MAX => Err(too_long()),
            false => Ok(Period(period)),
        }
    }
}

fn too_long() -> String {
    "a time of more than a year\nwrite 0 to switch a limit off".into()
}

impl fmt::Display for Period {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros() as u64;
        let mut left = micros / 1_000;
        if micros == 0 {
            return out.write_str("0s");
        }
        for (unit, millis) in TIME_UNITS.iter().take(4) {
            if left >= *millis {
                write!(out, "{}{unit}", left / millis)?;
                left %= millis;
            }
        }
        match (left, micros % 1_000) {
            (0, 0) => Ok(()),
            (_, 0) => write!(out, "{left}ms"),
            (_, part) => write!(out, "{left}.{part:03}ms"),
        }
    }
}

/// How long a hedge waits: a time, or a percentile of the answers' times such as `p95`, from p50 to
/// p99.9 in steps of 0.1. Holds permille.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeAfter {
    /// So long.
    Delay(Period),
    /// As long as so many of 1,000 answers take at most.
    Permille(u32),
}

word!(HedgeAfter, "a time such as 20ms, or a percentile such as p95", {
    "type": "string",
    "description": "A time such as 20ms, or a percentile of what answers took, from p50 to p99.9.",
});

impl FromStr for HedgeAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<HedgeAfter, String> {
        let Some(percent) = text.strip_prefix('p') else {
            return text.parse().map(HedgeAfter::Delay);
        };
        let (whole, tenth) = percent.split_once('.').unwrap_or((percent, "0"));
        let digits = |text: &str, most: usize| {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| is_number && text.len() <= most)
        };
        let permille = digits(whole, 2).zip(digits(tenth, 1));
        let permille = permille.map(|(whole, tenth)| whole * 10 + tenth);
        permille
            .filter(|permille| (500..=999).contains(permille))
            .map(HedgeAfter::Permille)
            .ok_or_else(|| {
                format!(
                    "'{}' is no percentile\nwrite one from p50 to p99.9, or a time such as 20ms",
                    clip(text)
                )
            })
    }
}

impl fmt::Display for HedgeAfter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HedgeAfter::Delay(delay) => delay.fmt(out),
            HedgeAfter::Permille(permille) if permille % 10 == 0 => {
                write!(out, "p{}", permille / 10)
            }
            HedgeAfter::Permille(permille) => write!(out, "p{}.{}", permille / 10, permille % 10),
        }
    }
}

/// A number of bytes: `64KiB`, `10MB`, `512`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

word!(Size, "a size such as 64KiB, 10MB or 512", {
    "type": ["string", "integer"],
    "description": "Bytes: a number, or one with B, KB, KiB, MB, MiB, GB or GiB, as in 64KiB.",
    "pattern": "^[0-9_]+ ?(B|KB|kB|MB|GB|KiB|MiB|GiB|TiB)?$",
    "minimum": 0,
});

/// Units of size with their bytes.
const SIZE_UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("'{}' is no size\nwrite 64KiB, 10MB or 512", clip(text));
        let end =
            text.len() - text.trim_start_matches(|it: char| it.is_ascii_digit() || it == '_').len();
        let (number, unit) = text.split_at(end);
        let unit = unit.trim_start();
        let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
            let near = SIZE_UNITS.iter().map(|(name, _)| *name).find(|name| {
                !name.is_empty() && {
                    let short = name.trim_end_matches('B').trim_end_matches('i');
                    name.eq_ignore_ascii_case(unit) || short.eq_ignore_ascii_case(unit)
                }
            });
            return Err(match near {
                Some(_) if number.is_empty() => wrong(),
                Some(name) => format!("'{}' is no size\nwrite {number}{name}", clip(text)),
                None => wrong(),
            });
        };
        let number: u64 = number.replace('_', "").parse().map_err(|_| wrong())?;
        number.checked_mul(*factor).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, bytes) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 != 0 && self.0.is_multiple_of(bytes) {
                return write!(out, "{}{unit}", self.0 / bytes);
            }
        }
        write!(out, "{}", self.0)
    }
}

/// A bound on bytes that may be absent: a size, or `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeLimit(pub u64);

word!(SizeLimit, "a size such as 10MiB, or unlimited", {
    "type": ["string", "integer"],
    "description": "A size as in 10MiB, or `unlimited`.",
    "minimum": 0,
});

impl SizeLimit {
    /// No bound.
    pub const UNLIMITED: SizeLimit = SizeLimit(u64::MAX);
}

impl FromStr for SizeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<SizeLimit, String> {
        match text {
            "unlimited" => Ok(SizeLimit::UNLIMITED),
            text => {
                let size = text.parse::<Size>().map(|size| SizeLimit(size.0));
                size.map_err(|error| format!("{error}, or unlimited"))
            }
        }
    }
}

impl fmt::Display for SizeLimit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SizeLimit::UNLIMITED => out.write_str("unlimited"),
            SizeLimit(bytes) => Size(bytes).fmt(out),
        }
    }
}

/// A share: 0 to 1 in steps of 0.01. Holds percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(pub u32);

impl Ratio {
    /// So many hundredths.
    pub const fn percent(percent: u32) -> Ratio {
        Ratio(percent)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ratio, D::Error> {
        read(deserializer, "a ratio from 0 to 1, such as 0.5")
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 100.0)
    }
}

impl JsonSchema for Ratio {
    fn schema_name() -> Cow<'static, str> {
        "Ratio".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "number",
            "description": "A share from 0 to 1, in steps of 0.01.",
            "minimum": 0,
            "maximum": 1,
        })
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Ratio, String> {
        let no =
            |why: &str, help: String| Err(format!("'{}' is no ratio{why}\n{help}", clip(text)));
        let usual = || "write a number from 0 to 1: 0.5 for 50 %".to_owned();
        // What 0.5 may have been meant by: 50, or 50%.
        let of_percent = |percent: f64| match (1..=100).find(|it| f64::from(*it) == percent) {
            Some(percent) => format!("write {} for {percent} %", Ratio(percent)),
            None => usual(),
        };
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.trim_end().parse().unwrap_or(f64::NAN);
            return no(": it is written without %", of_percent(percent));
        }
        let Some(number) = text.parse().ok().filter(|number: &f64| number.is_finite()) else {
            return no("", usual());
        };
        if number < 0.0 {
            return no(": it is below 0", usual());
        }
        if number > 1.0 {
            return no(": it is above 1", of_percent(number));
        }
        let percent = number * 100.0;
        if (percent - percent.round()).abs() > 1e-6 {
            let (down, up) = (Ratio(percent.floor() as u32), Ratio(percent.ceil() as u32));
            return no(": it has steps of 0.01", format!("write {down} or {up}"));
        }
        Ok(Ratio(percent.round() as u32))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", f64::from(self.0) / 100.0)
    }
}

/// A status, or statuses from one to another: 200, 200-299.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The first of them.
    pub first: u16,
    /// The last.
    pub last: u16,
}

word!(StatusRange, "a status, or statuses such as 200-299", {
    "type": ["integer", "string"],
});

impl FromStr for StatusRange {
    type Err = String;

    fn from_str(text: &str) -> Result<StatusRange, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| text.parse().ok().filter(|it| (200..=599).contains(it));
        match (status(first), status(last)) {
            (Some(first), Some(last)) if first <= last => Ok(StatusRange { first, last }),
            _ => Err(format!(
                "'{}' is no final status\nwrite one from 200 to 599, or two as in 200-299",
                clip(text)
            )),
        }
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(out, "{}", self.first),
            false => write!(out, "{}-{}", self.first, self.last),
        }
    }
}

/// So many times as much: 1.01 to 10, in steps of 0.01. Holds percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Factor(pub u32);

impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Factor, D::Error> {
        read(deserializer, "a factor from 1.01 to 10, such as 1.25")
    }
}

impl Serialize for Factor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 100.0)
    }
}

impl JsonSchema for Factor {
    fn schema_name() -> Cow<'static, str> {
        "Factor".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "number",
            "description": "A factor from 1.01 to 10, in steps of 0.01.",
            "minimum": 1.01,
            "maximum": 10,
        })
    }
}

impl FromStr for Factor {
    type Err = String;

    fn from_str(text: &str) -> Result<Factor, String> {
        let percent = text.parse::<f64>().map_or(f64::NAN, |factor| factor * 100.0);
        let whole = percent.round();
        if !(101.0..=1000.0).contains(&whole) || (percent - whole).abs() > 1e-6 {
            let text = clip(text);
            return Err(format!(
                "'{text}' is no factor from 1.01 to 10 in steps of 0.01\nwrite 1.25 for a quarter more"
            ));
        }
        Ok(Factor(whole as u32))
    }
}

/// What something is called, in other places of the configuration, in logs and in metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Name(pub String);

word!(Name, "a name", {
    "type": "string",
    "minLength": 1,
    "maxLength": 128,
});

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        if text.is_empty() || text.chars().count() > NAME_CHARS_MAX {
            return Err(format!("a name has 1 to {NAME_CHARS_MAX} characters"));
        }
        match text.chars().find(|it| it.is_control() || it.is_whitespace() || "\"'\\".contains(*it))
        {
            Some(_) => Err("a name has no spaces, quotes or backslashes\nuse '-' or '_'".into()),
            None => Ok(Name(text.to_owned())),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::ops::Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Where we listen: an IP address with a port. Port 0 lets the kernel choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenAddress(pub SocketAddr);

word!(ListenAddress, "an IP address with a port", {
    "type": "string",
    "description": "An IP address and a port, as in 127.0.0.1:8080 or [::1]:8080.",
});

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<ListenAddress, String> {
        if let Ok(address) = text.parse() {
            return Ok(ListenAddress(address));
        }
        let wrong = format!("'{}' is no address to listen on", clip(text));
        if text.parse::<IpAddr>().is_ok() {
            let bracketed = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
            return Err(format!("{wrong}\nadd a port: {bracketed}:8080"));
        }
        if let Some((host, port)) = text.rsplit_once(':')
            && port.parse::<u16>().is_ok()
        {
            return Err(match host {
                "" | "*" => format!("{wrong}\nwrite 0.0.0.0:{port} for every IPv4 address"),
                "localhost" => format!("{wrong}\nwrite 127.0.0.1:{port}"),
                _ => format!("{wrong}\nwrite an IP address, not a name: 127.0.0.1:{port}"),
            });
        }
        Err(format!("{wrong}\nwrite 127.0.0.1:8080 or [::1]:8080"))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// Where the admin listens, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminAddress(pub Option<SocketAddr>);

word!(AdminAddress, "an IP address with a port, or off", {
    "type": "string",
    "description": "An IP address and a port, as in 127.0.0.1:9901; or `off`.",
});

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<AdminAddress, String> {
        match text {
            "off" => Ok(AdminAddress(None)),
            text => text.parse::<ListenAddress>().map(|address| AdminAddress(Some(address.0))),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(out),
            None => out.write_str("off"),
        }
    }
}

/// Where a cluster's endpoint listens: `10.0.0.1:80`, `[::1]:80` or `app.internal:80`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// An address.
    Socket(SocketAddr),
    /// A name that the control thread resolves, and a port.
    Host(String, u16),
}

word!(EndpointAddress, "an address or host name with a port", {
    "type": "string",
    "description": "An address or a host name, and a port: 10.0.0.1:80, [::1]:80, app.internal:80.",
});

impl FromStr for EndpointAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<EndpointAddress, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err("an endpoint's port is not 0".into()),
                _ => Ok(EndpointAddress::Socket(address)),
            };
        }
        let wrong = format!("'{}' is no endpoint", clip(text));
        if let Some((scheme @ ("http" | "https"), rest)) = text.split_once("://") {
            let host = rest.split('/').next().unwrap_or(rest);
            let port = if scheme == "https" { 443 } else { 80 };
            let port = if host.contains(':') { String::new() } else { format!(":{port}") };
            return Err(format!("{wrong}\nwrite host and port only: {}{port}", clip(host)));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(format!("{wrong}: it has no port\nwrite {}:80", clip(text)));
        };
        match port.parse::<u16>() {
            Ok(port) if port > 0 && is_host_name(host) => {
                Ok(EndpointAddress::Host(host.trim_end_matches('.').to_ascii_lowercase(), port))
            }
            Ok(port) if port > 0 => Err(format!(
                "{wrong}: '{}' is no host name\nwrite 10.0.0.1:80, [::1]:80 or app.internal:80",
                clip(host)
            )),
            _ => Err(format!("{wrong}: a port is a number from 1 to 65535")),
        }
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointAddress::Socket(address) => address.fmt(out),
            EndpointAddress::Host(host, port) => write!(out, "{host}:{port}"),
        }
    }
}

/// A name as RFC 1123 has it, with underscores, which Docker and Kubernetes users have.
fn is_host_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // All digits and dots is an address that someone mistyped: 10.0.0.256, 10.0.1.
    let number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 253 && text.split('.').all(label) && !text.rsplit('.').next().is_some_and(number)
}

/// Which hosts a route serves: `example.org`, `*.example.org` or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// `*`
    Any,
    /// One host, in lower case.
    Exact(String),
    /// `*.example.org` as `.example.org`: any number of labels before it, but at least one.
    Suffix(String),
}

word!(HostPattern, "a host such as example.org, *.example.org or *", {
    "type": "string",
    "description": "A host without port: example.org, *.example.org (any name below it) or *.",
});

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPattern, String> {
        let wrong = format!("'{}' is no host pattern", clip(text));
        if text == "*" {
            return Ok(HostPattern::Any);
        }
        if text.contains("://") {
            return Err(format!("{wrong}\nwrite the host only, without a scheme"));
        }
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
            || text.parse::<std::net::Ipv4Addr>().is_ok()
        {
            return Ok(HostPattern::Exact(text.to_ascii_lowercase()));
        }
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Err(format!("{wrong}\nwrite [{text}]"));
        }
        if let Some((host, port)) = text.rsplit_once(':')
            && port.bytes().all(|byte| byte.is_ascii_digit())
        {
            return Err(format!("{wrong}\nleave out the port, it is not compared: {}", clip(host)));
        }
        match text.strip_prefix("*.") {
            Some(suffix) if is_host_name(suffix) => {
                Ok(HostPattern::Suffix(format!(".{}", lower(suffix))))
            }
            None if is_host_name(text) => Ok(HostPattern::Exact(lower(text))),
            _ if text.contains('*') => {
                Err(format!("{wrong}\na '*' stands alone or for the first labels: *.example.org"))
            }
            _ => Err(format!("{wrong}\nwrite example.org, *.example.org or *")),
        }
    }
}

fn lower(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

impl fmt::Display for HostPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => out.write_str("*"),
            HostPattern::Exact(host) => out.write_str(host),
            HostPattern::Suffix(suffix) => write!(out, "*{suffix}"),
        }
    }
}

/// A path, or the beginning of one: from its '/', without a query.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathText(pub String);

word!(PathText, "a path that begins with /", {
    "type": "string",
    "description": "A path as in /api: it begins with '/', has no query, and is normal (no '..').",
    "pattern": "^/",
});

impl FromStr for PathText {
    type Err = String;

    fn from_str(text: &str) -> Result<PathText, String> {
        if !text.starts_with('/') {
            return Err(format!("a path begins with '/'\nwrite /{}", clip(text)));
        }
        if text.contains('?') {
            return Err("a path has no query\nmatch it with 'query'".into());
        }
        if text.contains('#') {
            return Err("a path has no fragment: clients do not send it".into());
        }
        if text.contains('*') && (text.ends_with("/*") || text.ends_with("/**")) {
            let prefix = text.trim_end_matches('*').trim_end_matches('/');
            let prefix = if prefix.is_empty() { "/" } else { prefix };
            return Err(format!("a path has no wildcards\nwrite prefix: {}", clip(prefix)));
        }
        // RFC 3986, 3.3: pchar, and what clients send without encoding it.
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)) {
            return Err(
                "a path has only visible ASCII characters\npercent-encode the others".into()
            );
        }
        if text.split('/').any(|segment| segment == "." || segment == "..") {
            return Err("no request has this path: dot segments are resolved before it is \
                        compared\nwrite it without '.' and '..'"
                .into());
        }
        if let Some(message) = badly_encoded(text) {
            return Err(message);
        }
        Ok(PathText(text.to_owned()))
    }
}

/// Percent-encoding that no normalised path has (RFC 3986, 6.2.2).
fn badly_encoded(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    for (at, _) in text.match_indices('%') {
        let Some(hex) = bytes.get(at + 1..at + 3).filter(|it| it.iter().all(u8::is_ascii_hexdigit))
        else {
            return Some("'%' is not followed by two hexadecimal digits\nwrite %25 for it".into());
        };
        let hex = std::str::from_utf8(hex).unwrap_or_default();
        let byte = u8::from_str_radix(hex, 16).unwrap_or_default();
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            return Some(format!(
                "no request has this path: %{hex} is decoded before it is compared\nwrite '{}'",
                char::from(byte)
            ));
        }
        if hex.bytes().any(|it| it.is_ascii_lowercase()) {
            return Some(format!(
                "no request has this path: percent-encoding is compared in capitals\nwrite %{}",
                hex.to_ascii_uppercase()
            ));
        }
    }
    None
}

impl fmt::Display for PathText {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Where a redirect leads on the same host: a path, and a query if it brings its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RedirectTarget(pub String);

word!(RedirectTarget, "a path that begins with /", {
    "type": "string",
    "description": "A path as in /new, with a query if needed: /new?from=old.",
    "pattern": "^/",
});

impl FromStr for RedirectTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<RedirectTarget, String> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let _: PathText = path.parse()?;
        match query.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte))
        {
            true => Ok(RedirectTarget(text.to_owned())),
            false => {
                Err("a query has only visible ASCII characters\npercent-encode the others".into())
            }
        }
    }
}

impl fmt::Display for RedirectTarget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A method, as it is on the wire: `GET`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MethodName(pub String);

word!(MethodName, "a method such as GET", {
    "type": "string",
    "description": "A method, in the case that is sent: GET.",
});

impl FromStr for MethodName {
    type Err = String;

    fn from_str(text: &str) -> Result<MethodName, String> {
        const COMMON: [&str; 8] =
            ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];
        let upper = text.to_ascii_uppercase();
        if !is_token(text) {
            return Err(format!("'{}' is no method\nwrite GET, POST, ...", clip(text)));
        }
        if text == "CONNECT" {
            return Err("CONNECT is always refused: this is no open proxy".into());
        }
        if text != upper && COMMON.contains(&upper.as_str()) {
            return Err(format!("methods are case-sensitive\nwrite {upper}"));
        }
        Ok(MethodName(text.to_owned()))
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A field name (RFC 9110, 5.1), in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderName(pub String);

word!(HeaderName, "a header name", {
    "type": "string",
    "description": "A header name; case does not matter.",
});

impl FromStr for HeaderName {
    type Err = String;

    fn from_str(text: &str) -> Result<HeaderName, String> {
        match is_token(text) {
            true => Ok(HeaderName(text.to_ascii_lowercase())),
            false => Err(format!(
                "'{}' is no header name\nletters, digits and '-', without the ':'",
                clip(text)
            )),
        }
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A field name that a rule may add, set or remove: not one that frames the message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName(pub String);

word!(RuleName, "a header name", {
    "type": "string",
    "description": "A header name, but none that frames the message (Content-Length, ...).",
});

/// Fields that are ours to write: connection and framing (RFC 9110, 7.6.1; RFC 9112, 6).
const OWN_FIELDS: [&str; 10] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

impl FromStr for RuleName {
    type Err = String;

    fn from_str(text: &str) -> Result<RuleName, String> {
        let name = text.parse::<HeaderName>()?.0;
        if name == "host" {
            return Err("'host' is no matter of header rules\nuse host_rewrite".into());
        }
        match OWN_FIELDS.contains(&name.as_str()) {
            true => Err(format!(
                "'{name}' belongs to the connection, no rule may change it\nremove this line"
            )),
            false => Ok(RuleName(name)),
        }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A field value (RFC 9110, 5.5): no control characters, no white space around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeaderValue(pub String);

word!(HeaderValue, "a header value", {
    "type": ["string", "integer", "number", "boolean"],
    "description": "A header value, as it is sent.",
});

impl FromStr for HeaderValue {
    type Err = String;

    fn from_str(text: &str) -> Result<HeaderValue, String> {
        if text.chars().any(|it| it.is_control() && it != '\t') {
            return Err("a header value has no line ends or control characters".into());
        }
        match text.trim() == text {
            true => Ok(HeaderValue(text.to_owned())),
            false => Err("a header value has no spaces around it\nremove them".into()),
        }
    }
}

impl fmt::Display for HeaderValue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// An authority to send as `Host`, or to redirect to: a host, and a port if it is not the usual.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authority(pub String);

word!(Authority, "a host, with a port if needed", {
    "type": "string",
    "description": "A host as in api.internal, with a port if needed: api.internal:8080.",
});

impl Authority {
    /// The host, in brackets if it is an IPv6 address.
    pub fn host(&self) -> &str {
        split_port(&self.0).0
    }

    /// The port, if one is given.
    pub fn port(&self) -> Option<u16> {
        split_port(&self.0).1?.parse().ok()
    }
}

/// `host:port`, `[::1]:port`, or a host alone.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

impl FromStr for Authority {
    type Err = String;

    fn from_str(text: &str) -> Result<Authority, String> {
        let (host, port) = split_port(text);
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let good_host = is_host_name(host)
            || host.parse::<std::net::Ipv4Addr>().is_ok()
            || bracketed.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
        match good_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            true => Ok(Authority(text.to_ascii_lowercase())),
            false => {
                Err(format!("'{}' is no host\nwrite api.internal or api.internal:8080", clip(text)))
            }
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A range of addresses: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr(pub IpNet);

word!(Cidr, "a range of addresses such as 10.0.0.0/8", {
    "type": "string",
    "description": "A range of addresses as in 10.0.0.0/8 or fd00::/8, or one address.",
});

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Cidr(address.into()));
        }
        let net: IpNet = text.parse().map_err(|_| {
            format!("'{}' is no range of addresses\nwrite 10.0.0.0/8 or fd00::/8", clip(text))
        })?;
        match net.trunc() == net {
            true => Ok(Cidr(net)),
            false => Err(format!(
                "'{}' has bits set behind its prefix\nwrite {}, or {} for the one address",
                clip(text),
                net.trunc(),
                net.addr()
            )),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// A token (RFC 9110, 5.6.2), for `via` and cookie names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Token(pub String);

word!(Token, "a word of letters and digits", {
    "type": "string",
    "description": "A token: letters, digits and !#$%&'*+-.^_`|~",
});

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Token, String> {
        match is_token(text) {
            true => Ok(Token(text.to_owned())),
            false => Err(format!("'{}' is no token\nuse letters, digits, '-' and '_'", clip(text))),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What is logged: a level, or directives such as `info,outrigger::control=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(pub String);

word!(LogFilter, "a log level", {
    "type": "string",
    "description": "off, error, warn, info, debug or trace; or directives: info,outrigger=debug.",
});

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFilter, String> {
        let wrong = || {
            format!(
                "'{}' is no log level\nwrite off, error, warn, info, debug or trace",
                clip(text)
            )
        };
        let level = |text: &str| {
            ["off", "error", "warn", "info", "debug", "trace"]
                .contains(&text.to_ascii_lowercase().as_str())
        };
        let directive = |part: &str| match part.split_once('=') {
            Some((target, text)) => is_token(&target.replace(':', "_")) && level(text),
            None => level(part),
        };
        match text.split(',').all(|part| directive(part.trim())) {
            true => Ok(LogFilter(text.to_owned())),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    let tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(tchar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods() {
        for (text, millis) in [
            ("0", 0),
            ("250ms", 250),
            ("5s", 5_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            ("2d", 172_800_000),
        ] {
            let period: Period = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(period.0, Duration::from_millis(millis), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "5 s",
            "5x",
            "1m1h",
            "-1s",
            "1e3s",
            "400d",
            "99999999999999999999s",
            "1s1s",
            ".",
        ] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }

    #[test]
    fn hedges() {
        for (text, after) in [
            ("20ms", HedgeAfter::Delay(Period(Duration::from_millis(20)))),
            ("p50", HedgeAfter::Permille(500)),
            ("p95", HedgeAfter::Permille(950)),
            ("p99.9", HedgeAfter::Permille(999)),
        ] {
            assert_eq!(text.parse(), Ok(after), "{text}");
            assert_eq!(after.to_string(), text);
        }
        for text in ["", "p", "95", "p49.9", "p100", "p99.99", "p-5", "p+95", "p95.", "p 95", "95%"]
        {
            assert!(text.parse::<HedgeAfter>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("64KiB", 65_536), ("10MB", 10_000_000), ("1 GiB", 1 << 30)]
        {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "KiB", "64kib", "1.5KiB", "-1", "99999999999TiB", "64K"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert!("64k".parse::<Size>().is_err_and(|error| error.ends_with("write 64KB")));
    }

    #[test]
    fn ratios() {
        for (text, percent) in [
            ("0", 0),
            ("0.0", 0),
            (".01", 1),
            ("0.29", 29),
            ("0.50", 50),
            ("5e-1", 50),
            ("0.57", 57),
            ("1", 100),
            ("1.0", 100),
        ] {
            assert_eq!(text.parse(), Ok(Ratio(percent)), "{text}");
        }
        for (text, help) in [
            ("50", "write 0.5 for 50 %"),
            ("50%", "write 0.5 for 50 %"),
            ("100 %", "write 1 for 100 %"),
            ("1.01", "0.5 for 50 %"),
            ("101", "0.5 for 50 %"),
            ("x%", "0.5 for 50 %"),
            ("-0.1", "0.5 for 50 %"),
            ("nan", "0.5 for 50 %"),
            ("inf", "0.5 for 50 %"),
            ("0,5", "0.5 for 50 %"),
            ("", "0.5 for 50 %"),
            ("0.005", "write 0 or 0.01"),
            ("0.999", "write 0.99 or 1"),
        ] {
            assert!(text.parse::<Ratio>().is_err_and(|error| error.ends_with(help)), "{text}");
        }
        for percent in 0..=100 {
            assert_eq!(Ratio(percent).to_string().parse(), Ok(Ratio(percent)));
        }
    }

    #[test]
    fn words_survive_being_written_and_read() {
        for text in ["0", "1ms", "1500ms", "90m", "1.5ms", "366d"] {
            let period: Period = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(period.to_string().parse(), Ok(period), "{text} as {period}");
        }
        for text in ["0", "1000", "64KiB", "1GiB", "unlimited"] {
            let size: SizeLimit = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for text in ["*", "*.example.org", "example.org", "[::1]"] {
            let host: HostPattern = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(host.to_string(), text);
        }
    }

    #[test]
    fn addresses() {
        for text in ["10.0.0.1:80", "[::1]:80", "app.internal:8080", "a_b:1"] {
            assert!(text.parse::<EndpointAddress>().is_ok(), "{text}");
        }
        for text in [
            "app",
            "10.0.0.1",
            "10.0.0.256:80",
            "http://a:80",
            "a:0",
            "a:99999",
            ":80",
            "-a:1",
            "a b:1",
        ] {
            assert!(text.parse::<EndpointAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths() {
        for text in ["/", "/api", "/api/v1/", "/a%20b", "/a%2Fb"] {
            assert!(text.parse::<PathText>().is_ok(), "{text}");
        }
        for text in ["", "api", "/a?b", "/a#b", "/a/*", "/a/../b", "/%41", "/%2f", "/%4", "/\u{e4}"]
        {
            assert!(text.parse::<PathText>().is_err(), "{text}");
        }
    }

    #[test]
    fn header_rules_keep_off_framing() {
        for text in ["Content-Length", "transfer-encoding", "Host", "Connection", "a b", "a:"] {
            assert!(text.parse::<RuleName>().is_err(), "{text}");
        }
        assert_eq!("X-Team".parse(), Ok(RuleName("x-team".into())));
        for text in ["a\nb", " a", "a\0"] {
            assert!(text.parse::<HeaderValue>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!("10.0.0.1".parse::<Cidr>().map(|it| it.to_string()), Ok("10.0.0.1/32".into()));
        for text in ["10.0.0.1/8", "10.0.0.0/33", "x", "10.0.0/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
