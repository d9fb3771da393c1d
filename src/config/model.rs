//! What a configuration says, field by field. The documentation of a field is also the one in
//! the JSON Schema, so it says unit, default and effect. Read by `decode`, judged by `check`,
//! turned into a plan by `compile`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::balance::{RING_SIZE_MAX, RING_SIZE_MIN};

use super::error::Problem;
use super::values::{
    AdminAddress, Authority, Cidr, EndpointAddress, Factor, HeaderName, HeaderValue, HedgeAfter,
    HostPattern, ListenAddress, LogFilter, MethodName, Name, PathText, Period, Ratio,
    RedirectTarget, RuleName, Size, SizeLimit, StatusRange, Token,
};

/// A configuration that was checked. Every default is filled in.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Outrigger's configuration")]
pub struct Config {
    /// The version of the format: 1, the only one so far.
    pub version: Version,
    /// What the process says about itself.
    pub log: Log,
    /// Metrics and health of the proxy itself.
    pub admin: Admin,
    /// How the process stops.
    pub shutdown: Shutdown,
    /// Threads, one for each CPU core, each with a ring of its own.
    pub shards: Shards,
    /// When a shard has more to do than it can.
    pub overload: Overload,
    /// Where this proxy is: endpoints whose `zone` is the same come first. `zone: ${ZONE}` takes it
    /// from the environment. Default: nowhere, and zones do not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Where clients connect.
    pub listeners: Vec<Listener>,
    /// Which requests go where. With none, and one cluster, everything goes to that cluster.
    ///
    /// An exact host comes before the longest suffix, that before any host; for one host, an
    /// exact path before the longest prefix; else the order of the file. If methods, headers or
    /// query do not match, the next candidate is tried.
    pub routes: Vec<Route>,
    /// Groups of servers that serve the same thing.
    pub clusters: Vec<Cluster>,
    /// How many requests may come in a time. Routes name those that hold for them; one that several
    /// routes name is one limit for all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// What is probably not meant.
    #[serde(skip)]
    pub warnings: Vec<Problem>,
}

/// The version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Version;

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Version, D::Error> {
        match u32::deserialize(deserializer)? {
            1 => Ok(Version),
            other => Err(de::Error::custom(format!(
                "version {other} of the configuration is not known\nwrite version: 1"
            ))),
        }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(1)
    }
}

impl JsonSchema for Version {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "const": 1 })
    }
}

/// What the process says about itself, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `off`, `error`, `warn`, `info` (the default), `debug` or `trace`; or one for each module:
    /// `info,outrigger::control=debug`.
    pub level: LogFilter,
    /// `text` (the default) or `json`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Log {
        Log { level: LogFilter("info".into()), format: LogFormat::Text }
    }
}

/// How the process's own log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Metrics and health of the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where `/metrics`, `/ready` and `/healthz` are served; default 127.0.0.1:9901. `off` for
    /// nowhere. Port 0 lets the kernel choose.
    pub address: AdminAddress,
}

impl Default for Admin {
    fn default() -> Admin {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 9901));
        Admin { address: AdminAddress(Some(address)) }
    }
}

/// How the process stops when it gets SIGTERM or SIGQUIT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long it goes on accepting, while `/ready` says no and answers close their
    /// connections, so that others stop sending first. Default 0s; 5s suits a sidecar.
    pub drain_delay: Period,
    /// How long running requests may then take. Default 30s.
    pub drain_timeout: Period,
}

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown { drain_delay: Period::seconds(0), drain_timeout: Period::seconds(30) }
    }
}

/// When a shard has more to do than it can: requests wait in its loop until their turn comes. If all
/// of them have waited for longer than `queue_target` for an `interval`, those that have are refused
/// with 503 `overloaded` and `Retry-After: 1`, until none has for an `interval`. What has begun goes
/// on. A single stall refuses nobody, nor do requests that are answered without an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Overload {
    /// How long a request may wait in the loop. Default 0s: as long as it takes. 20ms suits most.
    pub queue_target: Period,
    /// For how long every wait has to be too long, in the loop or for a place
    /// (`limits.pending_target`). Default 200ms: twice the period of a CPU quota.
    pub interval: Period,
    /// Requests for exactly these paths are never refused for it: health checks. Default: none.
    pub exempt_paths: Vec<PathText>,
}

impl Default for Overload {
    fn default() -> Overload {
        Overload {
            queue_target: Period::seconds(0),
            interval: Period(std::time::Duration::from_millis(200)),
            exempt_paths: Vec::new(),
        }
    }
}

/// Threads, one for each CPU core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shards {
    /// How many: `auto` (the default; as many as CPUs are allowed, by affinity and by the
    /// cgroup's quota, rounded up), or a number. Not together with `cpus`.
    pub count: ShardCount,
    /// One shard on each of these CPUs instead: a list, or ranges as in "0-3,6".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuList>,
    /// `auto` (the default: io_uring, or epoll where the kernel or the container refuses it),
    /// `io_uring` or `epoll`.
    pub driver: Driver,
    /// Entries of each submission ring: a power of two from 32 to 32768. Default 1024. More
    /// lets a busy shard hand more to the kernel at once.
    pub ring_entries: u32,
    /// Size of each relay buffer, 4KiB to 16MiB. Default 32KiB: larger ones hold longer bodies
    /// together with their heads, but cost memory while they wait.
    pub buffer_bytes: Size,
    /// Pending connections that the kernel holds for each shard and listener; listen(2).
    /// Default 4096. The kernel cuts it to net.core.somaxconn.
    pub backlog: u32,
    /// What differs on single CPUs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub per_core: Vec<PerCore>,
}

impl Default for Shards {
    fn default() -> Shards {
        Shards {
            count: ShardCount::Auto,
            cpus: None,
            driver: Driver::Auto,
            ring_entries: 1024,
            buffer_bytes: Size(32 * 1024),
            backlog: 4096,
            per_core: Vec::new(),
        }
    }
}

/// Overrides for the shard on one CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PerCore {
    /// The CPU.
    pub cpu: usize,
    /// As `shards.driver`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// As `shards.ring_entries`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_entries: Option<u32>,
    /// As `shards.buffer_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_bytes: Option<Size>,
    /// As `shards.backlog`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<u32>,
}

/// How many shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardCount {
    /// As many as CPUs are allowed.
    Auto,
    /// So many.
    Exactly(u32),
}

impl<'de> Deserialize<'de> for ShardCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ShardCount, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = ShardCount;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number of shards, or auto")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ShardCount, E> {
                match (text, text.parse()) {
                    ("auto", _) => Ok(ShardCount::Auto),
                    (_, Ok(0)) => Err(E::custom("no shards, no proxy\nwrite auto, or 1 and more")),
                    (_, Ok(count @ 1..=SHARDS_MAX)) => Ok(ShardCount::Exactly(count)),
                    (_, Ok(_)) => Err(E::custom(format!("there are at most {SHARDS_MAX} shards"))),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }

        deserializer.deserialize_str(Reader)
    }
}

/// Shards of one process: more than any machine has cores for.
pub const SHARDS_MAX: u32 = 1024;

impl Serialize for ShardCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ShardCount::Auto => serializer.serialize_str("auto"),
            ShardCount::Exactly(count) => serializer.serialize_u32(*count),
        }
    }
}

impl JsonSchema for ShardCount {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ShardCount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "const": "auto" }, { "type": "integer", "minimum": 1, "maximum": SHARDS_MAX }]
        })
    }
}

/// CPUs by number, in the order of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CpuList(pub Vec<usize>);

impl<'de> Deserialize<'de> for CpuList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CpuList, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = CpuList;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list of CPUs, or ranges as in \"0-3,6\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CpuList, E> {
                parse_cpus(text).map(CpuList).ok_or_else(|| {
                    E::custom(format!("'{text}' is no list of CPUs\nwrite [0, 1] or \"0-3,6\""))
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<CpuList, A::Error> {
                let mut cpus = Vec::new();
                while let Some(cpu) = items.next_element::<u32>()? {
                    cpus.push(cpu as usize);
                }
                Ok(CpuList(cpus))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// `0-3,6` as the kernel writes it; also for /sys/fs/cgroup/cpuset.cpus.
fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last - first >= SHARDS_MAX as usize {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

impl JsonSchema for CpuList {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CpuList".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "array", "items": { "type": "integer", "minimum": 0 } },
                { "type": ["string", "integer"] }
            ]
        })
    }
}

/// What a shard waits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Driver {
    /// io_uring where it can be had, else epoll.
    #[serde(rename = "auto")]
    Auto,
    /// io_uring, or do not start.
    #[serde(rename = "io_uring")]
    IoUring,
    /// epoll.
    #[serde(rename = "epoll")]
    Epoll,
}

/// One address where clients connect, and what holds for their connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// For logs, metrics and `routes.listeners`. Default: the address.
    #[serde(default, skip_serializing_if = "is_unnamed")]
    pub name: Name,
    /// Where to listen: 0.0.0.0:8080, [::]:8080. Port 0 lets the kernel choose.
    pub address: ListenAddress,
    /// Defaults for what is not given here: `edge` (the default; clients are strangers) or
    /// `sidecar` (they are our own services).
    #[serde(default)]
    pub mode: Mode,
    /// How long a client may take.
    #[serde(default)]
    pub timeouts: ListenerTimeouts,
    /// How much a client may send.
    #[serde(default)]
    pub limits: ListenerLimits,
    /// Accept a bare LF as a line end in heads (RFC 9112, 2.2). Default false: refused with 400,
    /// because two parsers could read such a head differently.
    #[serde(default)]
    pub lenient_line_ends: bool,
    /// What the origin is told about the client, and whose word on it is believed.
    #[serde(default)]
    pub forwarded: Forwarded,
    /// How paths are normalised before anything looks at them.
    #[serde(default)]
    pub path: PathSettings,
    /// Say in `x-outrigger-reason` why an answer is ours. Default: edge false, sidecar true.
    #[serde(default)]
    pub reason_header: Option<bool>,
    /// One line for each request. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

fn is_unnamed(name: &Name) -> bool {
    name.0.is_empty()
}

/// Which defaults a listener has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Clients are strangers: ambiguous paths are refused, forwarded headers believed from
    /// nobody, reasons not told.
    #[default]
    Edge,
    /// Clients are our own services: paths pass with %2F and %5C as they are, forwarded headers
    /// are believed from this machine, reasons are told.
    Sidecar,
}

/// How long a client may take. 0 switches a limit off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerTimeouts {
    /// For the whole head of a request, from its first byte (or from accept). Default 10s; then
    /// 408.
    pub header: Period,
    /// Between two requests on one connection. Default 60s; then it is closed.
    pub idle: Period,
    /// Within each such time a body must move by `body_bytes_per_second_min`, in both
    /// directions. Default 30s; then 408, or a reset.
    pub body: Period,
    /// What moving means. Default 240.
    pub body_bytes_per_second_min: Size,
}

impl Default for ListenerTimeouts {
    fn default() -> ListenerTimeouts {
        ListenerTimeouts {
            header: Period::seconds(10),
            idle: Period::seconds(60),
            body: Period::seconds(30),
            body_bytes_per_second_min: Size(240),
        }
    }
}

/// How much a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerLimits {
    /// Longest request target. Default 8KiB; above it 414.
    pub uri_bytes_max: Size,
    /// Longest head, request line included. Default 60KiB; above it 431.
    pub head_bytes_max: Size,
    /// Most header fields, at most 256. Default 100; above it 431.
    pub fields_max: u32,
    /// Largest request body. Default unlimited: bodies stream in constant memory. Above it 413.
    pub body_bytes_max: SizeLimit,
    /// Open connections, over all shards. Default 65536; more wait or are closed.
    pub connections_max: u32,
    /// Open connections of one client address on each shard. Default 0: no limit.
    pub connections_per_client_max: u32,
}

impl Default for ListenerLimits {
    fn default() -> ListenerLimits {
        ListenerLimits {
            uri_bytes_max: Size(8 * 1024),
            head_bytes_max: Size(60 * 1024),
            fields_max: 100,
            body_bytes_max: SizeLimit::UNLIMITED,
            connections_max: 65_536,
            connections_per_client_max: 0,
        }
    }
}

/// What the origin is told about the client.
///
/// `append` adds to what a trusted peer sent (and replaces what a stranger sent), `set` replaces
/// it always, `leave` passes it on as it is, `remove` takes it away.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Forwarded {
    /// `X-Forwarded-For`, the client's address. Default append.
    #[serde(rename = "for")]
    pub for_: Treatment,
    /// `X-Forwarded-Proto`, the scheme. Default append.
    pub proto: Treatment,
    /// `X-Forwarded-Host`, the host that was asked for. Default append.
    pub host: Treatment,
    /// `X-Request-Id`. Default append: kept from a trusted peer, else new.
    pub request_id: Treatment,
    /// Our name in `Via` (RFC 9110, 7.6.3). Default: no `Via`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Token>,
    /// Whose forwarded headers are believed.
    pub trusted: Trusted,
}

/// What becomes of one forwarded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    /// Add to what a trusted peer sent; replace what a stranger sent.
    #[default]
    Append,
    /// Replace it.
    Set,
    /// Pass it on as it is.
    Leave,
    /// Take it away.
    Remove,
}

/// Whose forwarded headers are believed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trusted {
    /// Proxies by address: 10.0.0.0/8. The client is the last address in `X-Forwarded-For` that
    /// is none of them. Default: edge none, sidecar this machine.
    pub cidrs: Option<Vec<Cidr>>,
    /// Proxies by number: so many stand before us, whatever their addresses, so the client is
    /// entry number `hops` of `X-Forwarded-For`, from the right. Default 0: not counted. With
    /// `cidrs`: within the ranges, and at most so many.
    pub hops: u8,
}

/// How paths are normalised before routing (RFC 3986, 6.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PathSettings {
    /// `%2F`: `refuse` with 400, `keep` as it is, or `decode` to '/'. Default: edge refuse,
    /// sidecar keep.
    pub slash: Option<Encoded>,
    /// `%5C` and a raw backslash. Default: edge refuse, sidecar keep.
    pub backslash: Option<Encoded>,
    /// `%00`: `refuse` (the default) or `keep`.
    pub nul: Option<Encoded>,
    /// A raw '#', which no client should send: `refuse` (the default) or `strip`.
    pub fragment: Option<Fragment>,
    /// Make one slash of several. Default: edge true, sidecar false.
    pub merge_slashes: Option<bool>,
}

/// What becomes of an encoded character in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoded {
    /// 400.
    Refuse,
    /// Leave it encoded.
    Keep,
    /// Decode it, before dot segments are resolved.
    Decode,
}

/// What becomes of a fragment in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fragment {
    /// 400.
    Refuse,
    /// Cut it off.
    Strip,
}

/// Where the lines go, and how they look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessLog {
    /// A file, opened again on SIGUSR1; or `-` for standard output (the default).
    pub path: String,
    /// `json` (the default), `combined` (as nginx writes it) or `envoy`.
    pub format: AccessLogFormat,
}

impl Default for AccessLog {
    fn default() -> AccessLog {
        AccessLog { path: "-".into(), format: AccessLogFormat::Json }
    }
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogFormat {
    /// One object a line.
    Json,
    /// nginx's and Apache's.
    Combined,
    /// Envoy's default.
    Envoy,
}

/// Which requests, and what becomes of them: exactly one of `cluster`, `clusters`, `redirect` and
/// `respond`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    /// For logs and metrics. Default: `route-` and its number in the file, from 1.
    #[serde(skip_serializing_if = "is_unnamed")]
    pub name: Name,
    /// Only on these listeners, by name. Default: on all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Name>,
    /// Which requests. Default: all.
    #[serde(rename = "match")]
    pub matches: Match,
    /// Forward to this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Name>,
    /// Forward to one of several, by weight.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<WeightedCluster>,
    /// Forward to this cluster where no endpoint of the one above can be chosen, in place of that
    /// cluster's own `fallback_cluster`. Not for what has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback_cluster: Option<Name>,
    /// Send the client elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Answer here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respond: Option<Respond>,
    /// Send this to the origin in place of `match.prefix`, or of `match.path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_rewrite: Option<PathText>,
    /// Send this to the origin as `Host`. Default: what the client sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_rewrite: Option<Authority>,
    /// Send the path to the origin as the client wrote it, not normalised. Default false.
    pub preserve_path: bool,
    /// Changes to the request's headers, before it goes to the origin.
    #[serde(skip_serializing_if = "HeaderChanges::is_empty")]
    pub request_headers: HeaderChanges,
    /// Changes to the answer's headers, before it goes to the client.
    #[serde(skip_serializing_if = "HeaderChanges::is_empty")]
    pub response_headers: HeaderChanges,
    /// How long the origin may take.
    pub timeouts: RouteTimeouts,
    /// When a request that failed is sent once more.
    pub retries: Retries,
    /// Largest request body. Default: the listener's. Above it 413.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_bytes_max: Option<SizeLimit>,
    /// One more breaker for each cluster of this route, which sees only this route's requests:
    /// when it is open, they get 503 `breaker-open`, and other routes go on. It follows the
    /// cluster's `breaker`. A reload keeps its state if the route keeps its name. Default false.
    pub breaker: bool,
    /// What answers where a request has failed, and is not tried again. Default: nothing, the client
    /// gets the failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// The rate limits that hold for this route's requests, by name; up to 4. Each must admit a
    /// request; one that is refused takes no token of the others. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<Name>,
}

/// Which requests: all that is given must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// `example.org`, `*.example.org` (any name below it) or `*`. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostPattern>,
    /// Several hosts, any of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostPattern>,
    /// Exactly this path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathText>,
    /// This path and all below it: `/api` is also `/api/x`, but not `/apix`. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<PathText>,
    /// One of these methods. Default: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<MethodName>,
    /// Headers that the request must have (or must not).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Query parameters that the request must have (or must not).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryMatch>,
}

/// What one header must be. With its name alone: that it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// The header.
    pub name: HeaderName,
    /// It is this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// It begins with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// It ends with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// It has this in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// It is there (true), or is not (false).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// The opposite of the above. Default false.
    #[serde(default)]
    pub invert: bool,
}

/// What one query parameter must be. With its name alone: that it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryMatch {
    /// The parameter. Names and values are compared decoded: `%41` is `A`, `+` is a space.
    pub name: String,
    /// It is this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// It begins with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// It ends with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// It has this in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// It is there (true), or is not (false).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// The opposite of the above. Default false.
    #[serde(default)]
    pub invert: bool,
}

/// A cluster's part of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedCluster {
    /// The cluster.
    pub name: Name,
    /// Its share, against the sum of all. Default 1; 0 sends it nothing.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

/// Where the client is sent. What is not given stays as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redirect {
    /// 301, 302 (the default), 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Another host, with a port if needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Authority>,
    /// Another port. Default: the usual one, if scheme or host are given; else the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Another path; with a query, if the request's is to be replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<RedirectTarget>,
    /// This in place of `match.prefix`, or of `match.path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_rewrite: Option<PathText>,
    /// Leave the request's query out. Default false.
    pub strip_query: bool,
}

impl Default for Redirect {
    fn default() -> Redirect {
        Redirect {
            status: 302,
            scheme: None,
            host: None,
            port: None,
            path: None,
            prefix_rewrite: None,
            strip_query: false,
        }
    }
}

/// The scheme of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

/// An answer of our own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Respond {
    /// 200 to 599. Default 200.
    pub status: u16,
    /// Default `text/plain; charset=utf-8`.
    pub content_type: HeaderValue,
    /// The body, up to 64 KiB. Default: empty.
    pub body: String,
}

impl Default for Respond {
    fn default() -> Respond {
        let content_type = HeaderValue("text/plain; charset=utf-8".into());
        Respond { status: 200, content_type, body: String::new() }
    }
}

/// Changes to headers: first `remove`, then `set`, then `add`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HeaderChanges {
    /// Take these away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<RuleName>,
    /// Replace these, or add them if they are missing.
    #[serde(skip_serializing_if = "HeaderLines::is_empty")]
    pub set: HeaderLines,
    /// Add these beside what is there. Several values: a list.
    #[serde(skip_serializing_if = "HeaderLines::is_empty")]
    pub add: HeaderLines,
}

impl HeaderChanges {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// Header lines as a mapping from name to value, or to several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderLines(pub Vec<(RuleName, HeaderValue)>);

impl HeaderLines {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One value, or a list of them.
struct Several(Vec<HeaderValue>);

impl<'de> Deserialize<'de> for Several {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Several, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Several;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a header value, or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Several, E> {
                text.parse().map(|value| Several(vec![value])).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Several, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = items.next_element()? {
                    values.push(value);
                }
                Ok(Several(values))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for HeaderLines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HeaderLines, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = HeaderLines;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a mapping from header names to values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderLines, A::Error> {
                let mut lines = Vec::new();
                while let Some((name, Several(values))) = map.next_entry::<RuleName, Several>()? {
                    lines.extend(values.into_iter().map(|value| (name.clone(), value)));
                }
                Ok(HeaderLines(lines))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

impl Serialize for HeaderLines {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for group in self.0.chunk_by(|(left, _), (right, _)| left == right) {
            let values: Vec<_> = group.iter().map(|(_, value)| value).collect();
            match values.as_slice() {
                [value] => map.serialize_entry(&group[0].0, value)?,
                values => map.serialize_entry(&group[0].0, values)?,
            }
        }
        map.end()
    }
}

impl JsonSchema for HeaderLines {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HeaderLines".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<HeaderValue>();
        json_schema!({
            "type": "object",
            "additionalProperties": { "anyOf": [value, { "type": "array", "items": value }] }
        })
    }
}

/// How long the origin may take. 0 switches a limit off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteTimeouts {
    /// From the end of the request to the head of the final answer, retries included. Default 15s;
    /// then 504.
    pub answer: Period,
    /// From the head of the request to the end of the answer. Default 0: no limit.
    pub total: Period,
    /// While an answer runs and nothing moves in either direction. Default 5m; then cut off.
    pub stream_idle: Period,
}

impl Default for RouteTimeouts {
    fn default() -> RouteTimeouts {
        RouteTimeouts {
            answer: Period::seconds(15),
            total: Period::seconds(0),
            stream_idle: Period::seconds(300),
        }
    }
}

/// When a request that failed is sent once more, after a short random pause and to another endpoint
/// if there is one. Each retry has to fit into the cluster's `limits.max_retries`, and to be paid
/// for by its `retry_budget`; else the client gets what the last try came to. A request of which the
/// client has seen a part of the answer is never sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// How often, after the first try. Default 1, at most 10; 0: never.
    #[schemars(range(max = 10))]
    pub attempts: u32,
    /// After what. Default `[connect-failure, reset]`.
    pub on: Vec<RetryOn>,
    /// The statuses of `retriable-status`, from 400 to 599. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u16>,
    /// Also requests whose method is not idempotent (POST, PATCH; RFC 9110, 9.2.2), although the
    /// origin may have acted on them. Default false: they are only sent again if nothing of them
    /// was sent.
    pub non_idempotent: bool,
    /// From the end of the request to the head of the answer, for each try. What takes longer is a
    /// `reset`, and 504 `timeout-try` if there is no further try. Default 0: no limit but
    /// `timeouts.answer`, which holds for all tries together.
    pub try_timeout: Period,
    /// The pause before the first retry: random, from 0 to this. It doubles with each further one.
    /// Default 25ms.
    pub backoff: Period,
    /// The longest pause. Default 250ms.
    pub max_backoff: Period,
    /// An answer's `Retry-After` is waited for, up to this; an answer that asks for more goes to
    /// the client. Default 1s.
    pub max_retry_after: Period,
    /// A body of up to so many bytes, whose length is known, is received before anything is sent,
    /// so that it can be sent again; larger ones are sent as they come, and only once. Default
    /// 64KiB, at most 1MiB. Bodies of methods that are not sent again are never kept, nor where
    /// `on` is only `connect-failure`.
    pub body_bytes_max: Size,
    /// Asks a second endpoint as well where the first one is slow. Default: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// Hedged requests: where an endpoint has not answered in time, another one is sent the same
/// request. The first answer that is worth no retry goes to the client; the other try is broken
/// off, which says nothing to a breaker. A hedge is one of `attempts`, counts against
/// `limits.max_retries` and is paid by `retry_budget`; where those refuse, there is none. One for
/// each try; only requests that may be sent twice, and whose body is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// When, counted from the end of the request: a percentile of what this route's answers took in
    /// the last 10 to 20 seconds, on the same shard; or a fixed time. There is no percentile before
    /// two answers lay beyond it: 40 answers for p95, 200 for p99.
    pub after: HedgeAfter,
    /// Never earlier than this. Default 2ms.
    #[serde(default = "Hedge::usual_delay")]
    pub min_delay: Period,
}

impl Hedge {
    /// Timers are rounded to whole milliseconds.
    fn usual_delay() -> Period {
        Period(std::time::Duration::from_millis(2))
    }
}

impl Default for Retries {
    fn default() -> Retries {
        Retries {
            attempts: 1,
            on: vec![RetryOn::ConnectFailure, RetryOn::Reset],
            statuses: Vec::new(),
            non_idempotent: false,
            try_timeout: Period::seconds(0),
            backoff: Period(std::time::Duration::from_millis(25)),
            max_backoff: Period(std::time::Duration::from_millis(250)),
            max_retry_after: Period::seconds(1),
            body_bytes_max: Size(64 * 1024),
            hedge: None,
        }
    }
}

/// After what a request is sent once more; Envoy's names, but for `retriable-status`, which is
/// `retriable-status-codes` there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// The endpoint refused the connection, could not be reached, or not in time. Nothing was sent.
    ConnectFailure,
    /// No answer: the connection broke, what came was no answer, or `try_timeout` went by; and all
    /// that `connect-failure` is.
    Reset,
    /// 502, 503 or 504; and all that `reset` is.
    GatewayError,
    /// Any status from 500 on; and all that `reset` is.
    #[serde(rename = "5xx")]
    ServerError,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Conflict,
    /// One of `statuses`.
    RetriableStatus,
}

/// What answers in place of a failure, with `x-outrigger-fallback`: what is given of `cluster`,
/// `last_good` and `respond`, in this order, until one has an answer. Only where the client has seen
/// nothing of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fallback {
    /// After answers with these statuses, once they are not retried, and where a request gets one of
    /// them from this proxy, other than by its own or its client's fault. From 400 to 599; default
    /// `[502, 503, 504]`.
    pub statuses: Vec<u16>,
    /// Send the request to this cluster, if it may be sent again (see `retries.non_idempotent`) and its
    /// body is still here. Its limits, breakers and retry budget hold, and so do the route's retries
    /// and timeouts. Its answer is taken, unless it has one of the statuses and there is more to try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Name>,
    /// Give the last answer to the same GET again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_good: Option<LastGood>,
    /// Answer here. No cache keeps it: it says `Cache-Control: no-store`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub respond: Option<Respond>,
    /// How many requests may be answered so at once, over all shards; beyond it, they get what they
    /// would have got without. Default 10, as Hystrix's.
    #[schemars(range(min = 1))]
    pub max_requests: u32,
}

impl Default for Fallback {
    fn default() -> Fallback {
        Fallback {
            statuses: vec![502, 503, 504],
            cluster: None,
            last_good: None,
            respond: None,
            max_requests: 10,
        }
    }
}

/// Which answers are kept to be given again. Of GET only, with status 200, 203, 301, 308, 404 or
/// 410, as a shared cache may (RFC 9111), in the memory of the shard that has seen them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LastGood {
    /// Older answers are not given; the origin may say less (`stale-if-error`, `must-revalidate`).
    /// Default 1h.
    pub max_age: Period,
    /// What all of them take, heads and keys included. Each shard has an equal part; what was used
    /// least recently goes first. Default 16MiB.
    pub max_bytes: Size,
    /// Larger bodies are not kept. Default 256KiB.
    pub max_answer_bytes: Size,
    /// An answer that was kept is not replaced before it is this old, so that one that is asked for
    /// often is not copied each time. Default 1s.
    pub refresh: Period,
}

impl Default for LastGood {
    fn default() -> LastGood {
        LastGood {
            max_age: Period::seconds(3600),
            max_bytes: Size(16 * 1024 * 1024),
            max_answer_bytes: Size(256 * 1024),
            refresh: Period::seconds(1),
        }
    }
}

/// A group of servers that serve the same thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// For routes, logs and metrics.
    pub name: Name,
    /// The servers. With none, requests get 503 `no-endpoint`.
    pub endpoints: Vec<Endpoint>,
    /// What an empty set of endpoints means for a running process, after a reload or when no host name
    /// resolves any more. `true`, the default: something is wrong, and the last ones stay. `false`:
    /// there is none.
    #[serde(default = "yes")]
    pub keep_endpoints: bool,
    /// Where requests go for which no endpoint can be chosen: there is none, all are down, or behind
    /// open breakers. Not for what has failed, and not where all are busy. Default: nowhere, they
    /// get 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_cluster: Option<Name>,
    /// When requests stay in the zone of this proxy, if it has one.
    #[serde(default)]
    pub zone_aware: ZoneAware,
    /// Each shard sends to a slice of the endpoints, so that there are fewer connections. Default:
    /// each sends to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aperture: Option<Aperture>,
    /// How one of them is chosen: `least_request` (the default; the less busy of two random ones),
    /// `peak_ewma` (of two random ones, the one that is likely to answer sooner), `round_robin`,
    /// `random`; or by a key: `ring_hash: {key: ...}`, `maglev: {key: ...}`.
    #[serde(default)]
    pub balance: Balance,
    /// How long connecting may take.
    #[serde(default)]
    pub timeouts: ClusterTimeouts,
    /// Kept connections.
    #[serde(default)]
    pub pool: Pool,
    /// How much may be under way at once.
    #[serde(default)]
    pub limits: Limits,
    /// Whether each endpoint is tried now and then, and how. Default: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Share of the endpoints that must be up by their checks, 0 to 1; with fewer, checks are ignored:
    /// rather all of them than too few. Breakers are not. Default 0.5; 0: never.
    #[serde(default = "half")]
    pub panic_threshold: Ratio,
    /// How long an endpoint that joins others, or that its checks find up again, takes to its whole
    /// share. Default 0s: it has it at once.
    #[serde(default = "at_once")]
    pub slow_start: Period,
    /// How many retries there may be for how many requests.
    #[serde(default)]
    pub retry_budget: RetryBudget,
    /// Lets the limit on requests follow how long answers take. Default: it is `limits.max_requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// When requests are refused so that a failing cluster gets fewer of them. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission_control: Option<AdmissionControl>,
    /// When an endpoint gets no more requests, and how it comes back.
    #[serde(default)]
    pub breaker: Breaker,
}

/// When requests stay in the zone of this proxy. Not with `ring_hash` and `maglev`, which have no
/// choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ZoneAware {
    /// With fewer endpoints there (of one priority, neither down nor behind open breakers), zones are
    /// not told apart. Default 6.
    pub min_cluster_size: u32,
    /// Requests in flight at an endpoint of the own zone, split evenly between the shards, from which
    /// an endpoint of another zone is taken if it has fewer. From 1; default 32.
    #[schemars(range(min = 1))]
    pub spill_above: u32,
}

impl Default for ZoneAware {
    fn default() -> ZoneAware {
        ZoneAware { min_cluster_size: 6, spill_above: 32 }
    }
}

/// Each shard sends to a slice of a large cluster. With `least_request` or `peak_ewma`, and without
/// priorities and zones. Shares are even if connections are spread evenly over the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Aperture {
    /// Clusters with fewer endpoints have no slices. Default 100.
    pub min_endpoints: u32,
    /// Endpoints of a slice, at least, those that are down or behind open breakers not counted; from
    /// 2. Default 12.
    #[schemars(range(min = 2))]
    pub min_aperture: u32,
    /// Requests in flight per endpoint of the slice, on its shard and over the last seconds, above
    /// which it grows. From 1; default 2.
    #[schemars(range(min = 1))]
    pub max_load: u32,
}

impl Default for Aperture {
    fn default() -> Aperture {
        Aperture { min_endpoints: 100, min_aperture: 12, max_load: 2 }
    }
}

fn yes() -> bool {
    true
}

fn half() -> Ratio {
    Ratio::percent(50)
}

fn at_once() -> Period {
    Period::seconds(0)
}

/// How each endpoint is tried, once for the whole process. The first result counts at once, then
/// `rise` or `fall` in a row. An endpoint that is down gets no request; its breaker is not asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthCheck {
    /// GET this. Default: none, a connection is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathText>,
    /// `Host` of that request. Default: what the endpoint is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Authority>,
    /// Statuses that are good: 200, or ranges as in "200-299". Default: 200.
    pub statuses: Vec<StatusRange>,
    /// Another port than the endpoint's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From one check to the next, with a tenth of jitter. Default 2s.
    pub interval: Period,
    /// The same while results say that an endpoint may change. Default 500ms, or `interval` if that is
    /// less.
    pub fast_interval: Period,
    /// For one check. Default 1s.
    pub timeout: Period,
    /// Good checks in a row that bring an endpoint back, from 1. Default 2.
    #[schemars(range(min = 1))]
    pub rise: u32,
    /// Bad checks in a row that take it out, from 1. Default 3.
    #[schemars(range(min = 1))]
    pub fall: u32,
}

impl Default for HealthCheck {
    fn default() -> HealthCheck {
        HealthCheck {
            path: None,
            host: None,
            statuses: vec![StatusRange { first: 200, last: 200 }],
            port: None,
            interval: Period::seconds(2),
            fast_interval: Period(std::time::Duration::from_millis(500)),
            timeout: Period::seconds(1),
            rise: 2,
            fall: 3,
        }
    }
}

/// One server: `10.0.0.1:80`, `app.internal:80`, or a mapping with a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An address, or a host name that is resolved again every 30 s.
    pub address: EndpointAddress,
    /// Its share, up to 1000000. Default 1; 0 sends it nothing.
    pub weight: u32,
    /// Endpoints of greater numbers are used as far as those of lesser ones do not suffice. Default 0.
    pub priority: u32,
    /// Where it is.
    pub zone: Option<Name>,
}

/// An endpoint as a mapping.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename = "Endpoint")]
struct LongEndpoint {
    /// An address, or a host name that is resolved again every 30 s.
    address: EndpointAddress,
    /// Its share, up to 1000000. Default 1; 0 sends it nothing.
    #[serde(default = "one")]
    weight: u32,
    /// Endpoints of greater numbers are used as far as those of lesser ones do not suffice: less than
    /// 72 % of them are neither down nor behind open breakers. Up to 32 different ones. Default 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: u32,
    /// Where it is, to compare with this proxy's `zone`. Default: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Name>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Endpoint, D::Error> {
        deserializer.deserialize_newtype_struct(super::decode::WORD_OR_MAPPING, EndpointReader)
    }
}

/// Reads both forms of an endpoint.
struct EndpointReader;

impl<'de> Visitor<'de> for EndpointReader {
    type Value = Endpoint;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an endpoint such as 10.0.0.1:80, or a mapping with 'address' and 'weight'")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Endpoint, E> {
        let address = text.parse().map_err(E::custom)?;
        Ok(Endpoint { address, weight: 1, priority: 0, zone: None })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Endpoint, D::Error> {
        let LongEndpoint { address, weight, priority, zone } = LongEndpoint::deserialize(inner)?;
        Ok(Endpoint { address, weight, priority, zone })
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Endpoint { address, weight, priority, zone } = self.clone();
        match (weight, priority, &zone) {
            (1, 0, None) => address.serialize(serializer),
            _ => LongEndpoint { address, weight, priority, zone }.serialize(serializer),
        }
    }
}

impl JsonSchema for Endpoint {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Endpoint".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let short = generator.subschema_for::<EndpointAddress>();
        let long = LongEndpoint::json_schema(generator);
        json_schema!({ "anyOf": [short, long] })
    }
}

/// How one endpoint of a cluster is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, smoothly by weight.
    RoundRobin,
    /// The less busy of two random ones.
    #[default]
    LeastRequest,
    /// Of two random ones, the one where latency times requests in flight is less. Latency rises
    /// with each slower answer and falls within some 10s; a failure counts as 1s.
    PeakEwma,
    /// At random, by weight.
    Random,
    /// By a key, on a ring: few requests move when endpoints come and go.
    RingHash(RingHash),
    /// By a key, with a table of 65537 places: more even than a ring, moves a little more.
    Maglev(Maglev),
}

/// A hash ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RingHash {
    /// What is hashed.
    pub key: HashKey,
    /// Fewest points on the ring. Default 1024.
    #[serde(default = "ring_size_min")]
    pub ring_size_min: u32,
    /// Most points on the ring, Default 8388608, which is also the most.
    #[serde(default = "ring_size_max")]
    pub ring_size_max: u32,
    /// How much more than its share of the requests in flight an endpoint may have, from 1.01 to 10:
    /// beyond it, its keys go to the next one on the ring. Counted on each shard. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded_load: Option<Factor>,
}

fn ring_size_min() -> u32 {
    RING_SIZE_MIN
}

fn ring_size_max() -> u32 {
    RING_SIZE_MAX
}

/// A Maglev table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Maglev {
    /// What is hashed.
    pub key: HashKey,
    /// As of `ring_hash`; keys beyond it go to other places of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded_load: Option<Factor>,
}

/// What decides where a request goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashKey {
    /// A header's value. Without the header: a random endpoint.
    Header(HeaderName),
    /// A cookie's value. Without the cookie: a random endpoint.
    Cookie(Token),
    /// The client's address, as `forwarded` has it.
    SourceAddress,
}

/// How long connecting may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterTimeouts {
    /// TCP connect. Default 5s; then 504.
    pub connect: Period,
}

impl Default for ClusterTimeouts {
    fn default() -> ClusterTimeouts {
        ClusterTimeouts { connect: Period::seconds(5) }
    }
}

/// Kept connections to each endpoint, on each shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// Idle connections for each endpoint and shard. Default 256; 0 keeps none.
    pub idle_max: u32,
    /// After which an idle connection is closed. Default 4s, below the 5s after which many
    /// servers close theirs.
    pub idle_timeout: Period,
    /// After which a connection is not used again. Default 1h; 0 for no limit.
    pub age_max: Period,
    /// Requests on one connection. Default 0: no limit.
    pub requests_max: u64,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool {
            idle_max: 256,
            idle_timeout: Period::seconds(4),
            age_max: Period::seconds(3600),
            requests_max: 0,
        }
    }
}

/// How much of a cluster may be under way at once, over all shards and endpoints. There is no word
/// for "unlimited": where nothing shall be limited, a large number does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests in flight, from 1. Default 1024. What comes beyond waits for a place.
    #[schemars(range(min = 1))]
    pub max_requests: u32,
    /// Connections to endpoints, idle ones included, from 1. Default 1024. What needs one more
    /// waits for it; an idle one is closed for it.
    #[schemars(range(min = 1))]
    pub max_connections: u32,
    /// Requests that wait, for a place or for a connection; split evenly between the shards, at least
    /// one for each. Default 1024. More get 503 `limit-pending`. 0: nobody waits, and what would
    /// gets 503 `limit-requests` or `limit-connections`, after at most 5 ms in which the other
    /// shards are asked for what they do not need.
    pub max_pending: u32,
    /// How long they wait. Default 5s; then 503 `timeout-pending`.
    pub pending_timeout: Period,
    /// If everybody has waited for longer than this for an `overload.interval`, who would have to wait
    /// gets 503 `overloaded` at once, until the waits are shorter; on each shard by itself. Default
    /// 0s: they wait for `pending_timeout`.
    pub pending_target: Period,
    /// Retries at once, those in their pause included. Default 64. One more is not made; 0: none.
    pub max_retries: u32,
    /// The same for each endpoint by itself (for each address of a host name). Default: only the
    /// cluster's hold.
    pub per_endpoint: EndpointLimits,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_requests: 1024,
            max_connections: 1024,
            max_pending: 1024,
            pending_timeout: Period::seconds(5),
            pending_target: Period::seconds(0),
            max_retries: 64,
            per_endpoint: EndpointLimits::default(),
        }
    }
}

/// How many retries there may be for how many requests, over all shards: so that an outage does not
/// multiply the load. What is neither deposited nor among the minimum is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryBudget {
    /// What each request that might be retried pays for its cluster's retries: 0 to 1 in steps of
    /// 0.01. Default 0.2: one retry for five requests.
    pub ratio: Ratio,
    /// How long that is good for, at least 100ms. Each tenth of it pays on each shard for no more
    /// than it or the tenth before brought there, but for one always. Default 10s.
    pub ttl: Period,
    /// Retries per second beside it, so that a quiet service may retry, too. What is not used adds
    /// up for `ttl`. Default 3, at most 1000000.
    #[schemars(range(max = 1_000_000))]
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget { ratio: Ratio::percent(20), ttl: Period::seconds(10), min_per_second: 3 }
    }
}

/// A limit on requests in flight that is found by measuring, over all shards: while answers take as
/// long as they do with few requests, it grows, and where they take longer, it shrinks. Envoy's
/// gradient controller. `limits.max_requests` holds beside it. What comes beyond waits as the limits
/// say; `limits.pending_target` bounds that, and `max_pending: 0` refuses at once, as Envoy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveConcurrency {
    /// Which percentile of the round-trip times is compared, 0.01 to 1. Default 0.5.
    pub sample_percentile: Ratio,
    /// From one update of the limit to the next, from 10ms. Default 100ms.
    pub update_interval: Period,
    /// From one measurement of the shortest round-trip time to the next: meanwhile, only
    /// `min_concurrency` requests are in flight. Default 60s.
    pub min_rtt_interval: Period,
    /// Share of it that is added by chance, 0 to 1, so that not all proxies measure at once. Default
    /// 0.15.
    pub min_rtt_jitter: Ratio,
    /// Answers that a measurement takes, from 1. Default 50.
    #[schemars(range(min = 1))]
    pub min_rtt_requests: u32,
    /// What is added to the shortest time, as a share of it, 0 to 1: so much longer may answers take
    /// before the limit shrinks. Default 0.25.
    pub min_rtt_buffer: Ratio,
    /// The least limit, from 1. Default 3.
    #[schemars(range(min = 1))]
    pub min_concurrency: u32,
}

impl Default for AdaptiveConcurrency {
    fn default() -> AdaptiveConcurrency {
        AdaptiveConcurrency {
            sample_percentile: Ratio::percent(50),
            update_interval: Period(std::time::Duration::from_millis(100)),
            min_rtt_interval: Period::seconds(60),
            min_rtt_jitter: Ratio::percent(15),
            min_rtt_requests: 50,
            min_rtt_buffer: Ratio::percent(25),
            min_concurrency: 3,
        }
    }
}

/// Refuses requests by chance, with 503 `admission-control`, while too many of the cluster's fail:
/// the more, the more fail. Failures are what a breaker counts. Envoy's filter of that name; its
/// rates are of the process here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionControl {
    /// What shares are taken of: the last so long, from 1s. Default 30s.
    pub sampling_window: Period,
    /// Share of successes below which requests are refused, 0.01 to 1. Default 0.95.
    pub sr_threshold: Ratio,
    /// The more, the more are refused for the same share: its root is taken. 1 to 10, default 1.
    #[schemars(range(min = 1, max = 10))]
    pub aggression: u32,
    /// Requests per second, over all shards, below which nothing is refused. Default 0.
    pub rps_threshold: u32,
    /// Share of requests that is refused at most, 0.01 to 1. Default 0.8: the others show whether
    /// it is over.
    pub max_rejection_probability: Ratio,
}

impl Default for AdmissionControl {
    fn default() -> AdmissionControl {
        AdmissionControl {
            sampling_window: Period::seconds(30),
            sr_threshold: Ratio::percent(95),
            aggression: 1,
            rps_threshold: 0,
            max_rejection_probability: Ratio::percent(80),
        }
    }
}

/// How much of one endpoint may be under way at once, over all shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointLimits {
    /// Requests in flight, from 1. Default: no limit but the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_requests: Option<u32>,
    /// Connections, idle ones included, from 1. Default: no limit but the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_connections: Option<u32>,
    /// Requests that wait for a place at this endpoint, split as the cluster's. Default: no limit
    /// but the cluster's. 0: nobody waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
}

/// When an endpoint gets no more requests, and how it comes back.
///
/// Connects that fail, timeouts, resets and malformed answers are failures, and 5xx if
/// `fail_on_5xx` says so; what we refuse ourselves and what clients break off is neither failure
/// nor success. After `consecutive_failures`, or a share of failures or of slow answers, the
/// breaker opens: the endpoint is not chosen, and where no other is left, requests get 503
/// `breaker-open`. When `open_time` is over, `probes` requests try it; if all succeed, it gets its
/// share back over `ramp`, else the breaker stays open for twice as long as before. It is off with
/// `consecutive_failures: 0` and `failure_ratio: 0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Failures in a row that open it. Default 5; 0 for any number.
    pub consecutive_failures: u32,
    /// Share of failures in the window that opens it, 0.01 to 1. Default 0.5; 0 for none.
    pub failure_ratio: Ratio,
    /// Requests in the window below which no share opens it, from 1. Default 20.
    #[schemars(range(min = 1))]
    pub min_requests: u32,
    /// What shares are taken of: the last so long, at least 100ms. Default 10s.
    pub window: Period,
    /// Whether an answer with a status of 500 to 599 is a failure. Default true.
    pub fail_on_5xx: bool,
    /// An answer that takes longer is slow. Default 0s: none is.
    pub max_latency: Period,
    /// Share of slow answers in the window that opens it, 0.01 to 1. Default 0.5; 0 for none.
    /// Without effect unless `max_latency` is set.
    pub slow_ratio: Ratio,
    /// How long it stays open the first time. Default 5s. Doubled, with jitter, each time that
    /// probes fail.
    pub open_time: Period,
    /// How long it stays open at most. Default 5m.
    pub max_open_time: Period,
    /// Requests that try the endpoint then, from 1; all must succeed. Default 1.
    #[schemars(range(min = 1))]
    pub probes: u32,
    /// How long a request waits for leave to be a probe before it goes to another endpoint; if
    /// there is no other, it waits on. Default 1ms.
    pub permit_wait: Period,
    /// How long a probe may take; then it has failed. Longer than usual answers take, or the
    /// endpoint never comes back. Default 5s.
    pub probe_timeout: Period,
    /// How long it takes until the endpoint gets its whole share again, up to 1d. Default 10s; 0
    /// gives it back at once.
    pub ramp: Period,
    /// Share of the cluster's endpoints that breakers may take out at once, 0 to 1; one is always
    /// allowed. Default 0.5.
    pub max_ejected: Ratio,
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker {
            consecutive_failures: 5,
            failure_ratio: Ratio::percent(50),
            min_requests: 20,
            window: Period::seconds(10),
            fail_on_5xx: true,
            max_latency: Period::seconds(0),
            slow_ratio: Ratio::percent(50),
            open_time: Period::seconds(5),
            max_open_time: Period::seconds(300),
            probes: 1,
            permit_wait: Period(std::time::Duration::from_millis(1)),
            probe_timeout: Period::seconds(5),
            ramp: Period::seconds(10),
            max_ejected: Ratio::percent(50),
        }
    }
}

impl Breaker {
    /// Whether a share of slow answers opens it.
    pub fn minds_latency(&self) -> bool {
        !self.max_latency.0.is_zero() && self.slow_ratio.0 > 0
    }

    /// Whether nothing opens it.
    pub fn is_off(&self) -> bool {
        self.consecutive_failures == 0 && self.failure_ratio.0 == 0 && !self.minds_latency()
    }
}

/// A rate limit: one token bucket for each value of `key`, for the whole process, whatever the
/// number of shards. A request without a token gets 429 `rate-limited` with `retry-after`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// For routes, logs and metrics.
    pub name: Name,
    /// What tells requests apart: those that differ in any of it have buckets of their own. Default
    /// nothing: one bucket for all. A request that lacks one of the headers is not limited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<RateLimitKey>,
    /// So many requests in each `per`. A bucket is refilled evenly: 100 in 1s is one each 10ms.
    pub requests: u32,
    /// The time for `requests`. Default 1s.
    #[serde(default = "one_second")]
    pub per: Period,
    /// Tokens in a full bucket: so many requests may come at once. Default: as `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Most buckets that are kept, split evenly between the shards. Default 100000.
    #[serde(default = "keys_max")]
    pub keys_max: u32,
    /// What becomes of a new key when so many buckets are in use, and none of them is full again.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Bits of an IPv6 client's address that count: who has a /64 has all of its addresses. Default
    /// 64.
    #[serde(default = "ipv6_prefix", skip_serializing_if = "is_usual_prefix")]
    pub ipv6_prefix: u8,
    /// How long a request waits where other shards have to be asked for a token. Default 100ms; then
    /// 429 `rate-limit-unanswered`.
    #[serde(default = "home_timeout")]
    pub home_timeout: Period,
    /// Refuse nobody, and count what would have been refused. Default false.
    #[serde(default)]
    pub dry_run: bool,
}

fn one_second() -> Period {
    Period::seconds(1)
}

fn keys_max() -> u32 {
    100_000
}

fn ipv6_prefix() -> u8 {
    64
}

fn is_usual_prefix(prefix: &u8) -> bool {
    *prefix == ipv6_prefix()
}

fn home_timeout() -> Period {
    Period(std::time::Duration::from_millis(100))
}

/// What tells requests apart for a rate limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateLimitKey {
    /// The route's name.
    Route,
    /// The client's address, as `forwarded` has it.
    Client,
    /// All values of a header, in their order.
    Header(HeaderName),
}

/// What becomes of one key too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The bucket that was used least recently is forgotten, and counted: its key begins anew. As
    /// nginx, HAProxy and Envoy do. The default.
    #[default]
    Evict,
    /// The new key is refused with 429: the limit holds for everybody, and whoever can make up keys
    /// keeps others out.
    Refuse,
}
