//! Configurations as files: what is good is read, what is bad is explained word for word.
//!
//! `tests/configs/bad/NAME.txt` is what `outrigger check` says about `NAME.yaml` or `NAME.toml`.
//! After a change of words, `UPDATE=1 cargo test --test config` writes them anew; read the diff.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use outrigger::config::{self, Config, Format};
use outrigger::reconcile::Registry;

/// The repository's root; files are named from here, so that messages are the same everywhere.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The configurations in a directory, by name.
fn configurations(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(directory)).expect(directory);
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Path::new(directory).join(entry.expect(directory).file_name()))
        .filter(|path| path.extension().is_some_and(|it| it == "yaml" || it == "toml"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

fn parse(path: &Path) -> Result<Config, String> {
    let text = fs::read_to_string(root().join(path)).expect("readable");
    config::parse(&text, Format::of(path), &path.display().to_string())
        .map_err(|errors| errors.to_string())
}

fn outrigger(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OUTRIGGER_")) {
        command.env_remove(name);
    }
    command.current_dir(root()).args(arguments).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn good_configurations_are_read() {
    for path in configurations("tests/configs/good") {
        let config = parse(&path).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.warnings, [], "{}", path.display());
        let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let plan = config::compile(&config, 1, &mut Registry::default(), &mut |_, port| {
            vec![address(port)]
        });
        assert_eq!(plan.listeners.len(), config.listeners.len());
        assert!(plan.clusters.iter().all(|cluster| !cluster.endpoints.is_empty()));
    }
}

#[test]
fn bad_configurations_are_explained() {
    let mut differences = Vec::new();
    for path in configurations("tests/configs/bad") {
        let said = match parse(&path) {
            Ok(_) => panic!("{} is read", path.display()),
            Err(errors) => of_any_machine(&errors),
        };
        let expected = root().join(path.with_extension("txt"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, &said).expect("writable");
        } else if fs::read_to_string(&expected).unwrap_or_default() != said {
            differences.push(format!("{} now says:\n{said}", path.display()));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Without the CPUs of this machine.
fn of_any_machine(errors: &str) -> String {
    let mut said = String::new();
    for line in errors.lines() {
        let cut = ["allowed: ", "used: "].iter().find_map(|it| Some(line.find(it)? + it.len()));
        match cut {
            Some(at) => said.push_str(&format!("{}...\n", &line[..at])),
            None => said.push_str(&format!("{line}\n")),
        }
    }
    said
}

/// The reference is good, states the defaults as they are, and leaves no key out.
#[test]
fn the_reference_is_complete_and_true() {
    let path = Path::new("tuning/reference.yaml");
    let config = parse(path).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.warnings, []);

    assert_eq!(config.log, config::Log::default());
    assert_eq!(config.admin, config::Admin::default());
    assert_eq!(config.shutdown, config::Shutdown::default());
    assert_eq!(config.shards, config::Shards::default());
    assert_eq!(config.overload, config::Overload::default());
    let minimal = parse(Path::new("tests/configs/good/minimal.yaml")).expect("good");
    let (listener, default) = (&config.listeners[0], &minimal.listeners[0]);
    assert_eq!(listener.timeouts, default.timeouts);
    assert_eq!(listener.limits, default.limits);
    assert_eq!(listener.forwarded, default.forwarded);
    assert_eq!(listener.path, default.path);
    assert_eq!(listener.reason_header, default.reason_header);
    assert_eq!(listener.access_log, Some(config::AccessLog::default()));
    assert_eq!(config.routes[0].timeouts, config::RouteTimeouts::default());
    assert_eq!(config.clusters[0].timeouts, config::ClusterTimeouts::default());
    assert_eq!(config.clusters[0].pool, config::Pool::default());
    assert_eq!(config.clusters[0].limits, config::Limits::default());
    assert_eq!(config.clusters[0].breaker, config::Breaker::default());
    let fallback = config.routes[0].fallback.as_ref().expect("one");
    assert_eq!(fallback.last_good, Some(config::LastGood::default()));
    let default = config::Fallback::default();
    assert_eq!(
        (&fallback.statuses, fallback.max_requests),
        (&default.statuses, default.max_requests)
    );
    let adaptive = config::AdaptiveConcurrency::default();
    assert_eq!(config.clusters[0].adaptive_concurrency, Some(adaptive));
    let admission = config::AdmissionControl::default();
    assert_eq!(config.clusters[0].admission_control, Some(admission));
    let config::Balance::RingHash(ring) = &config.clusters[1].balance else { panic!("a ring") };
    let sizes = (outrigger::balance::RING_SIZE_MIN, outrigger::balance::RING_SIZE_MAX);
    assert_eq!((ring.ring_size_min, ring.ring_size_max), sizes);

    let reference = fs::read_to_string(root().join(path)).expect("readable");
    let mut keys = Vec::new();
    collect_keys(&serde_json::json!(config::schema()), &mut keys);
    let words: std::collections::HashSet<&str> =
        reference.split(|it: char| !it.is_ascii_alphanumeric() && it != '_' && it != ':').collect();
    keys.retain(|key| !words.contains(format!("{key}:").as_str()));
    assert_eq!(keys, Vec::<String>::new(), "missing in {}", path.display());
}

/// Every key that the schema knows, anywhere.
fn collect_keys(schema: &serde_json::Value, keys: &mut Vec<String>) {
    match schema {
        serde_json::Value::Object(map) => {
            if let Some(properties) = map.get("properties").and_then(|it| it.as_object()) {
                keys.extend(properties.keys().cloned());
            }
            map.values().for_each(|value| collect_keys(value, keys));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|it| collect_keys(it, keys)),
        _ => {}
    }
}

/// The reference says the same in TOML.
#[test]
fn toml_can_say_everything_that_yaml_can() {
    let config = parse(Path::new("tuning/reference.yaml")).expect("good");
    let toml = toml::to_string(&config).expect("serialises");
    let again = config::parse(&toml, Format::Toml, "reference.toml")
        .unwrap_or_else(|errors| panic!("{errors}\n{toml}"));
    assert_eq!(config::to_yaml(&again), config::to_yaml(&config));
}

#[test]
fn check_says_ok_or_why_not() {
    let good = outrigger(&["check", "-c", "tests/configs/good/minimal.yaml"]);
    assert_eq!(text(&good.stdout), "configuration 'tests/configs/good/minimal.yaml' OK\n");
    assert_eq!((good.status.code(), text(&good.stderr).as_str()), (Some(0), ""));

    let bad = outrigger(&["validate", "-c", "tests/configs/bad/undecided.yaml"]);
    assert_eq!((bad.status.code(), text(&bad.stdout).as_str()), (Some(1), ""));
    let expected = fs::read_to_string(root().join("tests/configs/bad/undecided.txt")).expect("txt");
    assert!(text(&bad.stderr).starts_with(&expected), "{}", text(&bad.stderr));

    let missing = outrigger(&["check", "-c", "no/such/file.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).starts_with("error: cannot read 'no/such/file.yaml': No such"));
}

#[test]
fn warnings_do_not_fail() {
    let yaml = "{listeners: [{address: 127.0.0.1:1}], routes: [{cluster: a}],
        clusters: [{name: a, endpoints: [a:1]}, {name: b, endpoints: [b:1]}]}";
    let doubtful = outrigger(&["check", "--config-yaml", yaml]);
    assert_eq!(doubtful.status.code(), Some(0));
    assert_eq!(text(&doubtful.stdout), "configuration '--config-yaml' OK\n");
    assert!(text(&doubtful.stderr).contains("warning: no route leads to cluster 'b'"));
}

#[test]
fn usage_errors_exit_with_2() {
    for arguments in [
        &["check"][..],
        &["run"],
        &["fly"],
        &["run", "-c", "x", "--concurrency", "0"],
        &["run", "-c", "x", "--log-level", "chatty"],
        &["version", "--xml"],
        &["completions", "tcl"],
    ] {
        let output = outrigger(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

/// What is printed can be read again, and text laid over a file counts.
#[test]
fn the_printed_configuration_is_a_configuration() {
    let file = "tests/configs/good/everything.toml";
    let over = "{shutdown: {drain_timeout: 7s}}";
    let printed = outrigger(&["print-config", "-c", file, "--config-yaml", over]);
    assert_eq!(printed.status.code(), Some(0), "{}", text(&printed.stderr));
    let yaml = text(&printed.stdout);
    assert!(yaml.contains("drain_timeout: 7s"), "{yaml}");
    let again = outrigger(&["print-config", "--config-yaml", &yaml]);
    assert_eq!(text(&again.stdout), yaml);
}

#[test]
fn the_other_commands_print_what_programs_read() {
    let schema: serde_json::Value =
        serde_json::from_slice(&outrigger(&["schema"]).stdout).expect("JSON");
    assert_eq!(schema["properties"]["listeners"]["type"], "array");

    let version: serde_json::Value =
        serde_json::from_slice(&outrigger(&["version", "--json"]).stdout).expect("JSON");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    let version = outrigger(&["version"]);
    assert_eq!(text(&version.stdout), format!("outrigger {}\n", env!("CARGO_PKG_VERSION")));

    for shell in ["bash", "zsh", "fish"] {
        let script = text(&outrigger(&["completions", shell]).stdout);
        assert!(script.contains("print-config"), "{shell}");
    }
    let help = text(&outrigger(&["--help"]).stdout);
    for part in ["Examples:", "Signals:", "Exit codes:"] {
        assert!(help.contains(part), "{part}");
    }
}
