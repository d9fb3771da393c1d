//! Replays the fuzz targets' corpus on stable, through the same checks. What a fuzzer once found is
//! kept there, and so stays fixed.

#[path = "fuzz/checks.rs"]
mod checks;

use std::path::Path;

fn replay(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut replayed = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display()); // Shown if the check panics.
        check(&std::fs::read(&path).unwrap());
        replayed += 1;
    }
    assert!(replayed > 0, "no seeds in {}", folder.display());
}

#[test]
fn head() {
    replay("head", checks::head);
}

#[test]
fn chunked() {
    replay("chunked", checks::chunked);
}

#[test]
fn config() {
    replay("config", checks::config);
}
