//! `outrigger explain`: what it says, word for word.
//!
//! `tests/configs/explain/NAME.txt` is what it says for the command of that name below, by
//! `shop.yaml` beside it. After a change of words, `UPDATE=1 cargo test --test explain` writes
//! them anew; read the diff. `journey` looks at explanations of running processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What is asked, by name.
const CASES: &[(&str, &[&str])] = &[
    (
        "key",
        &["-H", "x-user: ann", "-H", "x-debug: 1", "http://shop.example:8080/cart/./items?x=1"],
    ),
    ("post", &["-X", "POST", "http://shop.example:8080/cart/items"]),
    ("split", &["--resolve", "app.internal:80:10.0.0.1,10.0.0.2", "/split/x"]),
    ("answer", &["--client", "10.1.2.3", "/hello"]),
    ("busy", &["/busy"]),
    ("redirect", &["/old/x?y"]),
    ("no-route", &["/nothing"]),
    ("bad-path", &["http://shop.example:8080/a%2Fb"]),
    ("bad-head", &["-H", "Bad Name: x", "/cart"]),
    ("too-large", &["-X", "PUT", "-H", "Content-Length: 2000000", "http://shop.example:8080/cart"]),
    ("connect", &["-X", "CONNECT", "shop.example:8080"]),
    ("no-time", &["--listener", "mesh", "-H", "x-request-deadline: 0", "/inner"]),
    (
        "sidecar",
        &[
            "-H",
            "x-forwarded-for: 10.1.1.1",
            "-H",
            "x-request-deadline: 250",
            "-H",
            "x-request-id: mine",
            "http://shop.example:8081/inner/%2F",
        ],
    ),
    ("json", &["--format", "json", "-H", "x-user: bob", "http://a.shop.example:8080/cart"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn outrigger(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OUTRIGGER_")) {
        command.env_remove(name);
    }
    command.current_dir(root()).args(arguments).output().expect("the binary starts")
}

fn explain(arguments: &[&str]) -> Output {
    outrigger(&[&["explain", "-c", "tests/configs/explain/shop.yaml"], arguments].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn requests_are_explained() {
    let mut differences = Vec::new();
    for (name, arguments) in CASES {
        let output = explain(arguments);
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(0), String::new()),
            "{name}"
        );
        let said = text(&output.stdout);
        if *name != "json" {
            let longest = said.lines().map(|line| line.chars().count()).max();
            assert!(longest <= Some(100), "{name} is too wide:\n{said}");
        }
        let expected = root().join(Path::new("tests/configs/explain").join(format!("{name}.txt")));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, &said).expect("writable");
        } else if fs::read_to_string(&expected).unwrap_or_default() != said {
            differences.push(format!("{name} now says:\n{said}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// What is drawn at random is not told as if it was certain.
#[test]
fn the_same_is_said_each_time() {
    for (name, arguments) in CASES {
        let first = text(&explain(arguments).stdout);
        for _ in 0..3 {
            assert_eq!(text(&explain(arguments).stdout), first, "{name}");
        }
    }
}

#[test]
fn what_cannot_be_explained_is_said() {
    let said = |arguments: &[&str]| {
        let output = explain(arguments);
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        (output.status.code(), text(&output.stderr))
    };
    for (arguments, part) in [
        (&["https://a/"][..], "no listener speaks TLS\n  = write http://"),
        (&["-H", "nonsense", "/"], "header 'nonsense' has no colon\n  = write -H 'name: value'"),
        (&["--listener", "nope", "/"], "there is no listener 'nope'\n  = there are: edge, mesh"),
        (&["--client", "me", "/"], "--client"),
        (&["--resolve", "a", "/"], "write HOST:PORT:ADDRESS"),
        (&[], "<URL>"),
    ] {
        let (code, error) = said(arguments);
        assert!(code == Some(2) && error.contains(part), "{arguments:?}: {code:?} {error}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = nobody.local_addr().expect("an address").to_string();
    drop(nobody);
    let (code, error) = said(&["--admin", &address, "/"]);
    assert_eq!(code, Some(1), "{error}");
    assert_eq!(error, format!("error: cannot ask {address}/breakers: nobody listens there\n"));
    let bad = outrigger(&["explain", "-c", "tests/configs/bad/routes.yaml", "/"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("tests/configs/bad/routes.yaml:"));
}

#[test]
fn the_help_teaches() {
    let help = text(&outrigger(&["explain", "--help"]).stdout);
    for part in ["Examples:", "-X POST -H", "--resolve", "Exit codes:", "sent nowhere"] {
        assert!(help.contains(part), "{part} in {help}");
    }
}
