//! What lies in `tuning/`: every profile is good on any machine and serves as it is, and the
//! inspector finds what is there. `config.rs` looks at the reference.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger::config::{Config, Format, ShardCount, parse};
use serde_json::Value;
use tempfile::TempDir;

use support::proxy::OUTRIGGER;
use support::{Client, Origin, Proxy};

#[path = "support/mod.rs"]
#[allow(dead_code, missing_docs, unused_imports, reason = "shared by several test binaries")]
mod support;

fn tuning(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tuning").join(name)
}

fn profiles() -> Vec<PathBuf> {
    let entries = fs::read_dir(tuning("profiles")).expect("profiles");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

fn parsed(path: &Path) -> Config {
    let text = fs::read_to_string(path).expect("readable");
    parse(&text, Format::of(path), &path.display().to_string())
        .unwrap_or_else(|errors| panic!("{errors}"))
}

/// Without a word of doubt, whatever the number of CPUs, so with none that are named.
#[test]
fn profiles_are_good_on_any_machine() {
    for path in profiles() {
        let config = parsed(&path);
        assert_eq!(config.warnings, [], "{}", path.display());
        let shards = &config.shards;
        let count = shards.count;
        assert!(matches!(count, ShardCount::Auto | ShardCount::Exactly(1)), "{count:?}");
        assert!(shards.cpus.is_none() && shards.per_core.is_empty(), "{}", path.display());

        let mut command = Command::new(OUTRIGGER);
        let output = command.arg("check").arg("-c").arg(&path).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn profiles_serve() {
    for path in profiles() {
        let origin = Origin::named("served");
        let upstream = origin.address().to_string();
        let proxy = Proxy::from_file(
            &path,
            &[
                ("OUTRIGGER_LISTEN", "127.0.0.1:0"),
                ("OUTRIGGER_ADMIN", "127.0.0.1:0"),
                ("OUTRIGGER_UPSTREAM", &upstream),
            ],
        );
        let listener = parsed(&path).listeners[0].name.to_string();
        let answer = Client::connect(proxy.address_of(&listener)).get("/");
        assert_eq!((answer.status(), answer.text()), (200, "served"), "{}", path.display());
    }
}

/// Where a part of the configuration is explained: the section of the README, and what stands before
/// its keys there.
const TUNING: &[(&str, &str, &str)] = &[
    ("Shards", "Threads", ""),
    ("Overload", "The process", "overload."),
    ("PerCore", "Threads", "per_core"),
    ("ListenerTimeouts", "Clients", "timeouts."),
    ("ListenerLimits", "Clients", "limits."),
    ("AccessLog", "Clients", "access_log."),
    ("Forwarded", "Clients", "forwarded."),
    ("PathSettings", "Clients", "path."),
    ("Match", "Routes", "match."),
    ("RouteTimeouts", "Routes", "timeouts."),
    ("Retries", "Routes", "retries."),
    ("Hedge", "Routes", "retries.hedge."),
    ("Fallback", "Routes", "fallback."),
    ("LastGood", "Routes", "fallback.last_good."),
    ("RateLimit", "Rates", ""),
    ("RingHash", "Origins", "balance.ring_hash."),
    ("ZoneAware", "Origins", "zone_aware."),
    ("Aperture", "Origins", "aperture."),
    ("Pool", "Origins", "pool."),
    ("ClusterTimeouts", "Origins", "timeouts."),
    ("Limits", "Origins", "limits."),
    ("EndpointLimits", "Origins", "limits.per_endpoint"),
    ("Breaker", "Origins", "breaker."),
    ("RetryBudget", "Origins", "retry_budget."),
    ("AdaptiveConcurrency", "Origins", "adaptive_concurrency."),
    ("AdmissionControl", "Origins", "admission_control."),
    ("HealthCheck", "Origins", "health_check."),
    ("Log", "The process", "log."),
    ("Admin", "The process", "admin."),
    ("Shutdown", "The process", "shutdown."),
];

/// Parts that say what is done, and not how fast or with how much; or that only hold the others.
const NO_TUNING: &[&str] = &[
    "Cluster",
    "HashKey",
    "HeaderChanges",
    "HeaderMatch",
    "Listener",
    "Maglev",
    "QueryMatch",
    "RateLimitKey",
    "Redirect",
    "Respond",
    "Route",
    "Trusted",
    "WeightedCluster",
];

/// Keys of the parts above that are no knobs, or are a part themselves.
const NO_KNOBS: &[(&str, &str)] = &[
    ("Log", "format"),
    ("RateLimit", "name"),
    ("Shards", "per_core"),
    ("RingHash", "key"),
    ("Limits", "per_endpoint"),
    ("Match", "hosts"),
    ("Retries", "statuses"),
    ("Retries", "hedge"),
    ("Fallback", "last_good"),
    ("HealthCheck", "path"),
    ("HealthCheck", "host"),
    ("HealthCheck", "statuses"),
    ("HealthCheck", "port"),
];

/// The words in backquotes in the first cell of each row, by the section that the row stands in.
fn explained(readme: &str) -> Vec<(&str, Vec<&str>)> {
    let (mut section, mut rows) = ("", Vec::new());
    for line in readme.lines() {
        if let Some(title) = line.strip_prefix("##") {
            section = title.trim_start_matches(['#', ' ']);
        } else if let Some(row) = line.strip_prefix("| ") {
            let cell = row.split(" | ").next().expect("a row has a cell");
            rows.push((section, cell.split('`').skip(1).step_by(2).collect()));
        }
    }
    rows
}

/// Whose row begins with this word: the part with the longest prefix that fits.
fn part_of(section: &str, word: &str) -> Option<&'static str> {
    let fit =
        |(_, at, prefix): &&(_, &str, &str)| section.starts_with(at) && word.starts_with(prefix);
    let parts = TUNING.iter().filter(fit);
    parts.max_by_key(|(.., prefix)| prefix.len()).map(|(part, ..)| *part)
}

/// What each knob does to speed and memory is said where its part is explained, or that nobody knows.
/// The same name elsewhere does not count, and a new part must be put on one list or the other.
#[test]
fn every_knob_is_explained() {
    let readme = fs::read_to_string(tuning("README.md")).expect("readable");
    let rows = explained(&readme);
    let schema = serde_json::json!(outrigger::config::schema());
    let mut missing = Vec::new();
    for (part, about) in schema["$defs"].as_object().expect("parts") {
        let Some(keys) = about["properties"].as_object() else { continue };
        let Some((_, section, prefix)) = TUNING.iter().find(|(name, ..)| name == part) else {
            assert!(NO_TUNING.contains(&part.as_str()), "{part}: does it concern tuning?");
            continue;
        };
        for key in keys.keys() {
            let whole = format!("{prefix}{key}");
            let every = format!("{prefix}*");
            let told = rows.iter().any(|(at, words)| {
                let of_part = words.first().is_some_and(|first| part_of(at, first) == Some(part));
                at.starts_with(section)
                    && words.iter().any(|word| {
                        let named = !prefix.is_empty() && (*word == whole || *word == every);
                        named || (of_part && *word == key.as_str())
                    })
            });
            if !told && !NO_KNOBS.contains(&(part, key)) {
                missing.push(format!("{part}: {key}"));
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    for part in TUNING.iter().map(|(part, ..)| part).chain(NO_TUNING) {
        let known = &schema["$defs"][*part];
        assert!(known["properties"].is_object() || known["oneOf"].is_array(), "no {part}: {known}");
    }
}

// ---- The inspector -----------------------------------------------------------------------------

/// A host made of files.
struct Host(TempDir);

impl Host {
    /// One that nothing is wrong with.
    fn good() -> Host {
        let host = Host(TempDir::new().expect("a directory"));
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.12.1-generic"),
            ("proc/sys/kernel/io_uring_disabled", "0"),
            ("proc/sys/net/core/somaxconn", "4096"),
            ("proc/sys/net/core/busy_poll", "0"),
            ("proc/sys/net/ipv4/tcp_max_syn_backlog", "4096"),
            ("proc/sys/fs/nr_open", "1048576"),
            ("proc/sys/fs/file-max", "9223372036854775807"),
            ("proc/self/status", "Name:\tcat\nCpus_allowed_list:\t0-5,8-9\n"),
            ("proc/self/limits", "Max open files            1024     1048576     files\n"),
            ("proc/self/cgroup", "0::/kubepods/pod7\n"),
            ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
            ("sys/fs/cgroup/kubepods/pod7/cpu.max", "max 100000"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc"),
            ("sys/class/net/eth0/device/vendor", "0x8086"),
            ("sys/class/net/lo/queues/rx-0/rps_cpus", "0"),
        ] {
            host.put(path, text);
        }
        for queue in 0..8 {
            host.put(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus"), "000");
        }
        host
    }

    fn put(&self, path: &str, text: &str) -> &Host {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
        self
    }

    fn without(&self, path: &str) -> &Host {
        let path = self.0.path().join(path);
        fs::remove_dir_all(path).expect("a folder");
        self
    }

    #[track_caller]
    fn inspect(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("python3");
        command.env("PYTHONDONTWRITEBYTECODE", "1").arg(tuning("inspect"));
        command.arg("--root").arg(self.0.path()).args(arguments);
        let output = command.output().expect("python3 starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[track_caller]
    fn report(&self) -> Value {
        serde_json::from_str(&self.inspect(&["--json"])).expect("JSON")
    }

    /// What limits it: names, and where to change it.
    #[track_caller]
    fn limits(&self) -> Vec<(String, String)> {
        let report = self.report();
        let findings = report["findings"].as_array().expect("a list").iter();
        let limits = findings.filter(|it| it["level"] == "limit");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        limits.map(|it| (text(&it["what"]), text(&it["change"]))).collect()
    }
}

#[test]
fn a_good_host_has_no_limits() {
    let host = Host::good();
    assert_eq!(host.limits(), []);
    let report = host.report();
    assert_eq!(report["shards"], 8);
    assert_eq!(report["profile"], "tuning/profiles/cores-8.yaml");
    let text = host.inspect(&[]);
    assert!(text.contains("kernel: 6.12.1-generic"), "{text}");
    assert!(text.ends_with("where strangers connect\n"), "{text}");
}

/// Each is found, and told together with the place to change it.
#[test]
fn limits_are_found() {
    for (path, text, what, place) in [
        ("proc/sys/kernel/osrelease", "5.15.0-91", "kernel", "newer kernel"),
        ("proc/sys/kernel/io_uring_disabled", "2", "io_uring", "kernel.io_uring_disabled"),
        ("proc/sys/kernel/io_uring_disabled", "1", "io_uring", "kernel.io_uring_group"),
        ("proc/sys/net/core/somaxconn", "128", "accept queue", "net.core.somaxconn"),
        ("proc/sys/net/ipv4/tcp_max_syn_backlog", "512", "half-open queue", "tcp_max_syn_backlog"),
        ("proc/self/limits", "Max open files  1024  4096  files\n", "descriptors", "LimitNOFILE"),
        ("proc/sys/fs/file-max", "65536", "descriptors", "fs.file-max"),
        ("proc/sys/net/netfilter/nf_conntrack_max", "65536", "conntrack", "nf_conntrack_max"),
        ("proc/swaps", "Filename\tType\n/swapfile file 1 0 -2\n", "swap", "swapoff"),
        ("sys/fs/cgroup/kubepods/pod7/cpu.max", "50000 100000", "cpu quota", "pod7/cpu.max"),
        (
            "sys/fs/cgroup/kubepods/cpu.stat",
            "nr_throttled 7\n",
            "cpu throttled",
            "kubepods/cpu.max",
        ),
        (
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "hpet",
            "clock",
            "clocksource=",
        ),
    ] {
        let host = Host::good();
        let limits = host.put(path, text).limits();
        let found =
            matches!(&limits[..], [(name, change)] if name == what && change.contains(place));
        assert!(found, "{path}: {text}: {limits:?}");
    }
}

/// As the proxy counts them: the smallest quota on the way up, rounded up, and affinity.
#[test]
fn shards_follow_quota_and_affinity() {
    let quota = |own: &str, above: &str| {
        let host = Host::good();
        host.put("sys/fs/cgroup/kubepods/pod7/cpu.max", own);
        host.put("sys/fs/cgroup/kubepods/cpu.max", above);
        (host.report()["shards"].as_u64(), host.report()["profile"].as_str().map(str::to_owned))
    };
    let fits = |name: &str| Some(format!("tuning/profiles/{name}.yaml"));
    assert_eq!(quota("50000 100000", "max 100000"), (Some(1), fits("sidecar-half-cpu")));
    assert_eq!(quota("300000 100000", "150000 100000"), (Some(2), fits("cores-2")));
    assert_eq!(quota("max 100000", "6400000 100000"), (Some(8), fits("cores-8")));

    let host = Host::good();
    host.put("proc/self/status", "Cpus_allowed_list:\t0-63\n");
    assert_eq!(host.report()["profile"].as_str().map(str::to_owned), fits("cores-64"));
    // Version 1 of control groups.
    host.put("proc/self/cgroup", "4:cpu,cpuacct:/docker/a\n3:memory:/docker/a\n");
    host.put("sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us", "250000");
    host.put("sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us", "100000");
    assert_eq!(host.report()["shards"], 3);
}

#[test]
fn cards_with_one_queue_are_told() {
    let host = Host::good();
    for queue in 1..8 {
        host.without(&format!("sys/class/net/eth0/queues/rx-{queue}"));
    }
    let limits = host.limits();
    assert_eq!(limits.len(), 1, "{limits:?}");
    assert_eq!(limits[0].0, "network card eth0");
    assert!(limits[0].1.contains("rx-*/rps_cpus"), "{limits:?}");
    host.put("sys/class/net/eth0/queues/rx-0/rps_cpus", "0ff");
    assert_eq!(host.limits(), []);
}

/// Little is readable in some containers; nothing falls over.
#[test]
fn an_empty_host_is_looked_at() {
    let host = Host(TempDir::new().expect("a directory"));
    host.put("proc/version", "");
    assert_eq!(host.limits(), []);
    assert_eq!(host.report()["shards"], 1);
}
