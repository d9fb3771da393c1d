//! Every command in the README runs, on an origin of the test's own and for a shorter time.

use std::process::{Command, Stdio};

use outrigger_loadgen::origin::{Options, Origin};

const README: &str = include_str!("../README.md");

/// The contents of the fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let parts = README.split(fence.as_str()).skip(1);
    parts.map(|part| part.split("```").next().expect("a block ends")).collect()
}

/// Words as a shell splits them; the README has no quotes but single ones.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().expect("there is one").push(letter),
        }
    }
    words
}

/// What takes seconds there takes tenths here.
fn shorter(word: &str) -> String {
    match word.strip_suffix('s').and_then(|digits| digits.parse::<u32>().ok()) {
        Some(seconds) => format!("{}ms", seconds * 100),
        None => word.to_owned(),
    }
}

#[test]
fn every_command_runs() {
    let origin = Origin::start(Options::default()).unwrap();
    let ours = |text: &str| text.replace("127.0.0.1:8081", &origin.address().to_string());
    let folder = tempfile::tempdir().unwrap();
    let [scenario] = blocks("toml")[..] else { panic!("one scenario") };
    let scenario: String = ours(scenario).split('"').map(shorter).collect::<Vec<_>>().join("\"");
    std::fs::write(folder.path().join("mix.toml"), scenario).unwrap();
    let mut ran = 0;
    for line in blocks("sh").into_iter().flat_map(str::lines) {
        if line.starts_with("cargo install ") || line.starts_with("outrigger-loadgen origin ") {
            continue; // One builds for minutes, the other runs for ever; tests/origin.rs has it.
        }
        let words: Vec<_> = words(line).iter().map(|word| shorter(&ours(word))).collect();
        assert_eq!(words[0], "outrigger-loadgen", "{line}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger-loadgen"));
        command.args(&words[1..]).current_dir(folder.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        // A busy machine may hold no threshold.
        let judged = ["--threshold", "--steps", "--find-max", "--scenario"];
        let may_fail = words.iter().any(|word| judged.contains(&word.as_str()));
        match output.status.code() {
            Some(0) => assert!(!line.contains("/p/5/503"), "{line}: 5 % fail"),
            Some(99) if may_fail => {}
            code => panic!("{line}: {code:?}: {errors}"),
        }
        ran += 1;
    }
    assert!(ran >= 12, "{ran}");
    for file in ["mix.json", "a.html", "a.hgrm", "a.hlog", "compared.html"] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
}

/// Nobody must look for a flag in vain.
#[test]
fn every_flag_is_named() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_outrigger-loadgen")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let flags = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let word = line.starts_with('-').then(|| line.split([' ', ',']).next())?;
        word.filter(|word| !["-h", "-V"].contains(word))
    });
    let missing: Vec<_> = flags.filter(|flag| !README.contains(&format!("`{flag}"))).collect();
    assert_eq!(missing, [""; 0]);
}
