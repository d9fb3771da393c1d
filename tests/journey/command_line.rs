//! The command line: what it prints, and how it exits.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use crate::support::proxy::OUTRIGGER;
use crate::support::{Origin, Setup};

fn outrigger(arguments: &[&str]) -> Output {
    Command::new(OUTRIGGER).args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("readable output")
}

/// A file with this text, in a directory of its own.
fn file(name: &str, content: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

const GOOD: &str = "listeners:\n  - address: 127.0.0.1:0\nclusters:\n  - name: app\n    endpoints: [127.0.0.1:9]\n";

#[test]
fn a_good_configuration_is_ok() {
    let (_directory, path) = file("good.yaml", GOOD);
    let output = outrigger(&["check", "-c", &path]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), format!("configuration '{path}' OK\n"));
    let toml = "[[listeners]]\naddress = \"127.0.0.1:0\"\n[[clusters]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9\"]\n";
    let (_directory, path) = file("good.toml", toml);
    assert_eq!(outrigger(&["check", "-c", &path]).status.code(), Some(0));
}

/// All in one go, each with its place.
#[test]
fn every_error_is_shown_where_it_is() {
    let (_directory, path) = file(
        "bad.yaml",
        "listeners:\n  - {address: 127.0.0.1:0, name: a}\n  - {address: 127.0.0.1:0, name: a}\n\
         clusters:\n  - {name: app, endpoints: []}\nroutes:\n  - {cluster: ap}\n",
    );
    let output = outrigger(&["check", "-c", &path]);
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr) + &text(&output.stdout);
    for place in [":3:", ":5:", ":7:"] {
        assert!(errors.contains(&format!("{path}{place}")), "{place} in {errors}");
    }
    assert!(errors.contains('^'), "{errors}");
    assert!(errors.contains("app"), "did you mean: {errors}");
}

#[test]
fn an_unknown_key_is_refused_with_advice() {
    let (_directory, path) = file("bad.yaml", &GOOD.replace("listeners", "listners"));
    for command in ["check", "run"] {
        let output = outrigger(&[command, "-c", &path]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(text(&output.stderr).contains("did you mean"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_missing_file_is_a_configuration_error() {
    assert_eq!(outrigger(&["run", "-c", "/nowhere.yaml"]).status.code(), Some(1));
}

#[test]
fn usage_errors() {
    for arguments in [&["run"][..], &["walk"], &["run", "--no-such-flag"], &["check"]] {
        assert_eq!(outrigger(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn an_address_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (_directory, path) = file("taken.yaml", &GOOD.replace("127.0.0.1:0", &address));
    let output = outrigger(&["run", "-c", &path]);
    assert_eq!(output.status.code(), Some(75));
    assert!(text(&output.stderr).contains(&address), "{}", text(&output.stderr));

    let admin = format!("admin: {{address: '{address}'}}\n{GOOD}");
    let (_directory, path) = file("admin.yaml", &admin);
    assert_eq!(outrigger(&["run", "-c", &path]).status.code(), Some(75));
}

/// Shards share a port, but not with another process: each would get a part of the connections.
#[test]
fn two_processes_do_not_share_a_port() {
    let origin = Origin::named("it");
    let first = Setup::new(&origin).start();
    let address = first.address().to_string();
    let second = format!("admin: {{address: off}}\n{}", GOOD.replace("127.0.0.1:0", &address));
    let (_directory, path) = file("second.yaml", &second);
    let output = outrigger(&["run", "-c", &path]);
    assert_eq!(output.status.code(), Some(75));
    assert!(text(&output.stderr).contains(&address), "{}", text(&output.stderr));
    assert_eq!(first.get("/").text(), "it");
}

#[test]
fn an_access_log_that_cannot_be_written() {
    let logging = GOOD.replace("127.0.0.1:0", "127.0.0.1:0\n    access_log: {path: /nowhere/x}");
    let (_directory, path) = file("logging.yaml", &logging);
    let output = outrigger(&["run", "-c", &path]);
    assert_eq!(output.status.code(), Some(75));
    assert!(text(&output.stderr).contains("/nowhere/x"), "{}", text(&output.stderr));
}

#[test]
fn help_version_schema_and_completions() {
    let help = outrigger(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("outrigger run -c"), "it teaches");
    let version = outrigger(&["version"]);
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
    let schema: serde_json::Value =
        serde_json::from_str(&text(&outrigger(&["schema"]).stdout)).expect("JSON");
    assert!(schema["properties"]["listeners"].is_object());
    let completions = outrigger(&["completions", "bash"]);
    assert!(text(&completions.stdout).contains("outrigger"));
}
