//! The command line: what it prints, and how it exits.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use crate::support::proxy::OUTRIGGER;
use crate::support::{Client, Gate, Origin, Proxy, Setup, eventually};

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

fn explain(proxy: &Proxy, arguments: &[&str]) -> serde_json::Value {
    let config = proxy.path("config.yaml");
    let config = config.to_str().expect("a readable path");
    let usual = ["explain", "-c", config, "--format", "json"];
    let output = outrigger(&[&usual, arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The explanation knows what the running process knows, and the request is sent nowhere.
#[test]
fn an_explanation_of_a_running_process() {
    let gates = [Gate::new(), Gate::new(), Gate::new()];
    let addresses = gates.each_ref().map(|it| it.origin().address().to_string());
    let arrived = || gates.each_ref().map(Gate::arrived);
    let bad = 1;
    gates[bad].fail();
    let setup = Setup::to(&gates.each_ref().map(Gate::origin))
        .cluster("balance: {maglev: {key: {header: x-user}}}")
        .cluster("breaker: {consecutive_failures: 1, open_time: 10m, max_open_time: 10m}")
        .cluster("limits: {max_requests: 7}")
        .one_shard();
    let proxy = setup.clone().start();
    let admin = proxy.admin_address().to_string();

    // A key of the endpoint that fails.
    let found = (0..).find_map(|user| {
        let key = format!("x-user: {user}");
        let said = explain(&proxy, &["--admin", &admin, "-H", &key, "/x"]);
        assert_eq!(said["request"]["states"]["differences"], serde_json::json!([]));
        (said["outcome"]["endpoint"] == addresses[bad].as_str()).then_some((key, said))
    });
    let (key, said) = found.expect("there is one");
    let rows = said["clusters"][0]["endpoints"].as_array().expect("rows");
    let second = rows.iter().position(|row| row["choice"] == 2).expect("a second choice");
    assert_eq!(arrived(), [0; 3], "nothing is sent");

    // The proxy sends it there, and once that one is out, to the second choice.
    let request = format!("GET /x HTTP/1.1\r\nHost: a\r\n{key}\r\nConnection: close\r\n\r\n");
    let mut expected = [0; 3];
    assert_eq!(proxy.ask(&request).status(), 500);
    expected[bad] += 1;
    assert_eq!(arrived(), expected);
    eventually("the breaker is open", || proxy.admin("/breakers").text().contains("\"open\""));
    let said = explain(&proxy, &["--admin", &admin, "-H", &key, "/x"]);
    assert_eq!(said["outcome"]["endpoint"], addresses[second].as_str(), "{said:#}");
    let row = &said["clusters"][0]["endpoints"][bad];
    assert_eq!(
        (&row["address"], &row["breaker"]),
        (&addresses[bad].as_str().into(), &"open".into())
    );
    assert_eq!((&row["usable"], &row["trips"]), (&false.into(), &1.into()));
    assert_eq!(row["gets"], "nothing: its breaker is open");
    assert_eq!(proxy.ask(&request).status(), 200);
    expected[second] += 1;
    assert_eq!(arrived(), expected, "as it was explained");

    // Without the process, all is as after a start; its address may stand in the configuration.
    let said = explain(&proxy, &["--admin", "off", "-H", &key, "/x"]);
    assert_eq!(said["outcome"]["endpoint"], addresses[bad].as_str());
    let own_admin = format!("{{admin: {{address: '{admin}'}}}}");
    let said = explain(&proxy, &["--config-yaml", &own_admin, "-H", &key, "/x"]);
    assert_eq!(said["outcome"]["endpoint"], addresses[second].as_str());
    assert_eq!(said["request"]["states"]["admin"], admin.as_str());
    assert_eq!(said["request"]["states"]["generation"], 1);

    // All are out: it is refused, as the proxy refuses it.
    for address in &addresses {
        let mut operator = Client::connect(proxy.admin_address());
        let force = format!("POST /breakers/app/{address}/force-open HTTP/1.1");
        let forced =
            operator.ask(format!("{force}\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(forced.status(), 200);
    }
    let said = explain(&proxy, &["--admin", &admin, "-H", &key, "/x"]);
    assert_eq!(
        (&said["outcome"]["status"], &said["outcome"]["reason"]),
        (&503.into(), &"breaker-open".into())
    );
    assert_eq!(proxy.ask(&request).status(), 503);

    // Another file than the one that it serves by.
    proxy.rewrite(&setup.yaml().replace("max_requests: 7", "max_requests: 8"));
    let said = explain(&proxy, &["--admin", &admin, "/x"]);
    let different = serde_json::json!(["its limit of requests of cluster app is 7"]);
    assert_eq!(said["request"]["states"]["differences"], different);
}

/// What an explanation says, in words of an answer: what answers, and why it is no endpoint.
fn foretold(said: &serde_json::Value) -> (u16, String) {
    let outcome = &said["outcome"];
    if outcome["kind"] == "forwarded" {
        let clusters = said["clusters"].as_array().expect("clusters");
        let last = clusters.last().expect("a cluster");
        return (200, last["name"].as_str().expect("a name").to_owned());
    }
    let fallback = &said["request"]["fallback"];
    if outcome["fallback"] == true && fallback["respond"].is_u64() {
        return (fallback["respond"].as_u64().unwrap() as u16, "static".to_owned());
    }
    let status = outcome["status"].as_u64().expect("a status") as u16;
    (status, outcome["reason"].as_str().expect("a reason").to_owned())
}

/// The same of an answer: each origin says the name of its cluster.
fn happened(answer: &crate::support::Message) -> (u16, String) {
    let said = answer.get("x-outrigger-fallback").or(answer.get("x-outrigger-reason"));
    (answer.status(), said.unwrap_or(answer.text()).to_owned())
}

/// Where no endpoint can be chosen: what is foretold, happens.
#[test]
fn explanations_of_what_stands_in() {
    let [app, one, two] = ["app", "one", "two"].map(Origin::named);
    let cluster = |name: &str, origin: Option<&Origin>, more: &str| {
        let endpoints = origin.map(|it| format!("'{}'", it.address())).unwrap_or_default();
        format!("name: {name}, endpoints: [{endpoints}]{more}")
    };
    let to_one = ", fallback_cluster: one";
    let to_two = ", fallback_cluster: two";
    let cases: [(&str, &str, Option<&Origin>, Option<&Origin>); 9] = [
        ("", "", None, None),
        (to_one, "", Some(&one), None),
        (to_one, "", None, None),
        (to_one, to_two, None, Some(&two)),
        (to_two, "", None, None),
        (to_one, ", fallback: {respond: {body: sorry}}", None, None),
        ("", ", fallback: {respond: {status: 203, body: sorry}}", None, None),
        ("", ", fallback: {last_good: {}}", None, None),
        ("", ", fallback: {statuses: [504], respond: {body: sorry}}", None, None),
    ];
    for (number, (of_app, more, of_one, of_two)) in cases.into_iter().enumerate() {
        let (of_route, of_cluster) =
            if more.contains("fallback:") { (more, "") } else { ("", more) };
        let proxy = Setup::at(&[])
            .listener("reason_header: true")
            .cluster(of_app.trim_start_matches(", "))
            .and_cluster_text(&cluster("one", of_one, of_cluster))
            .and_cluster_text(&cluster("two", of_two, ""))
            .route(of_route.trim_start_matches(", "))
            .start();
        let admin = proxy.admin_address().to_string();
        for method in ["GET", "POST"] {
            let said = explain(&proxy, &["--admin", &admin, "-X", method, "/x"]);
            let request = format!("{method} /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(
                foretold(&said),
                happened(&proxy.ask(request)),
                "{number} {method} {said:#}"
            );
        }
        let fallback = explain(&proxy, &["--admin", &admin, "-X", "POST", "/x"]);
        let is_told = fallback["outcome"]["fallback"] == true;
        assert_eq!(is_told, number == 5 || number == 6, "{number}: {fallback:#}");
    }
    drop(app);
}

/// What active checks have found counts, as it does in the proxy.
#[test]
fn an_explanation_knows_who_is_down() {
    let (good, bad) = (Gate::new(), Gate::new());
    bad.fail();
    let proxy = Setup::to(&[good.origin(), bad.origin()])
        .cluster("health_check: {path: /healthz, interval: 100ms}")
        .one_shard()
        .start();
    let admin = proxy.admin_address().to_string();
    let found = |value| {
        let page = proxy.admin("/metrics");
        let mut lines = page.text().lines().map(str::to_owned).collect::<Vec<_>>().into_iter();
        lines.any(|line| line.starts_with("outrigger_endpoint_up{") && line.ends_with(value))
    };
    eventually("both are checked", || found(" 1") && found(" 0"));
    let said = explain(&proxy, &["--admin", &admin, "/x"]);
    let endpoints = &said["clusters"][0]["endpoints"];
    assert_eq!((&endpoints[0]["up"], &endpoints[1]["up"]), (&true.into(), &false.into()));
    assert_eq!(endpoints[1]["gets"], "nothing: down by its checks");
    assert_eq!(said["outcome"]["endpoint"], good.origin().address().to_string());
}
