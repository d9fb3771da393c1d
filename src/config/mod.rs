//! Text to a checked [`Config`], and from there to a [`Plan`](crate::plan::Plan).
//!
//! ```text
//! YAML, TOML --> tree with places --> ${VARIABLES} --> Config --> checks --> Plan
//!    yaml, toml        tree            substitute      decode     check    compile
//! ```
//!
//! Called at start, by `check`, and for every reload. Everything that is wrong is reported in one
//! go, each with file, line, column and what to do. Never panics, whatever the text; budgets bound
//! what a small text can cost.

use std::path::Path;

mod check;
mod compile;
mod decode;
mod error;
mod machine;
mod model;
mod reload;
mod source;
mod substitute;
mod suggest;
mod toml;
mod tree;
mod values;
mod yaml;

pub use compile::{compile, compile_after, host_names, route_rules};
pub use error::{Errors, Place, Problem, Severity};
pub use machine::{Machine, ShardOptions};
pub use model::*;
pub use reload::reload_obstacles;
pub use source::{Overrides, Source};
pub use values::*;

use error::{Finding, SourceText};
use tree::{Node, Span};

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The default.
    Yaml,
    /// Files that end in `.toml`.
    Toml,
}

impl Format {
    /// By the file's extension.
    pub fn of(path: &Path) -> Format {
        let toml = path.extension().is_some_and(|it| it.eq_ignore_ascii_case("toml"));
        if toml { Format::Toml } else { Format::Yaml }
    }
}

/// One of the texts that make a configuration.
pub(crate) struct Text {
    name: String,
    text: String,
    format: Format,
}

/// Reads and checks a file.
pub fn load(path: &Path) -> Result<Config, Errors> {
    Source::file(path).load()
}

/// Checks a text; `file_name` is what errors call it.
pub fn parse(text: &str, format: Format, file_name: &str) -> Result<Config, Errors> {
    parse_texts(vec![Text { name: file_name.to_owned(), text: text.to_owned(), format }])
}

/// Checks several texts as one: each is laid over those before it.
pub(crate) fn parse_texts(texts: Vec<Text>) -> Result<Config, Errors> {
    parse_on(texts, &Machine::here(), &|name| std::env::var(name).ok())
}

/// As [`parse`], for a given machine and environment.
pub(crate) fn parse_on(
    texts: Vec<Text>,
    machine: &Machine,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Errors> {
    let (formats, sources): (Vec<Format>, Vec<SourceText>) = texts
        .into_iter()
        .map(|Text { name, text, format }| (format, SourceText { name, text }))
        .unzip();
    let mut findings = Vec::new();
    let root = read_trees(&formats, &sources, &mut findings);
    let config = root.and_then(|mut root| {
        let mut failed = Vec::new();
        substitute::substitute(&mut root, variable, &mut failed);
        let names = check::Names::of(&root);
        for (node, finding) in failed {
            root.prune(node);
            findings.push(finding);
        }
        let config: Option<Config> = decode::decode(&mut root, &mut findings);
        if let Some(config) = &config {
            findings.extend(check::check(config, &root, &names, machine, &sources));
        }
        config
    });
    findings.sort_by_key(|finding| finding.severity == Severity::Warning);
    findings.truncate(error::FINDINGS_MAX);
    findings.sort_by_key(|finding| (finding.span.source, finding.span.start));
    let problems: Vec<Problem> =
        findings.into_iter().map(|finding| finding.place(&sources)).collect();
    match config {
        Some(mut config) if problems.iter().all(|it| it.severity == Severity::Warning) => {
            config.warnings = problems;
            config.fill_in();
            Ok(config)
        }
        _ => Err(Errors { problems }),
    }
}

/// The trees of all texts as one; `None` if one of them cannot be read.
fn read_trees(
    formats: &[Format],
    sources: &[SourceText],
    findings: &mut Vec<Finding>,
) -> Option<Node> {
    let mut next = 0;
    let mut whole: Option<Node> = None;
    for (index, (format, source)) in formats.iter().zip(sources).enumerate() {
        let number = index as u8;
        let tree = match format {
            Format::Yaml => yaml::parse(&source.text, number, &mut next),
            Format::Toml => toml::parse(&source.text, number, &mut next),
        };
        match (tree, &mut whole) {
            (Ok(tree), None) => whole = Some(tree),
            (Ok(tree), Some(whole)) => whole.overlay(tree),
            (Err(mut errors), _) => {
                findings.append(&mut errors);
                return None;
            }
        }
    }
    let empty = || Node::empty(next, Span::default());
    Some(match whole {
        Some(node) if node.is_null() => empty(),
        Some(node) => node,
        None => empty(),
    })
}

/// The JSON Schema of the configuration.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Config)
}

/// The configuration as YAML, with every default filled in.
pub fn to_yaml(config: &Config) -> String {
    serde_saphyr::to_string(config).unwrap_or_else(|error| format!("# {error}\n"))
}

#[cfg(test)]
mod tests;
