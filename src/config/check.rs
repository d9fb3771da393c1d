//! What one field cannot know: names that must exist, be unique, or fit together. Everything that
//! is wrong is found in one go; what only follows from an error already reported is not said.

use std::collections::{BTreeSet, HashMap};

use super::error::{FINDINGS_MAX, Finding, Place, Severity, SourceText};
use super::machine::Machine;
use super::model::Config;
use super::suggest;
use super::tree::Node;
use super::values::Name;

mod balance;

mod clusters;

mod fallback;

mod health;

mod limits;

mod listeners;

mod overload;
mod rates;

mod retries;

mod routes;

mod shards;

/// Keeps the sum of weights within 64 bits, whatever their number.
const WEIGHT_MAX: u32 = 1_000_000;

/// A sum of weights must fit into 32 bits: picking by weight multiplies it.
const WEIGHTS_MAX: u64 = u32::MAX as u64;

/// What lists may refer to, taken from the text before anything was cut out of it.
pub(crate) struct Names {
    listeners: BTreeSet<String>,
    clusters: BTreeSet<String>,
    rate_limits: BTreeSet<String>,
}

impl Names {
    /// The names in `root`.
    pub(crate) fn of(root: &Node) -> Names {
        let listed = |list: &str| -> BTreeSet<String> {
            let items = root.find(list).map_or(&[][..], Node::items);
            let name = |item: &Node| {
                let named = ["name", "address"].iter().find_map(|key| item.find(key)?.text());
                Some(named?.to_owned())
            };
            items.iter().filter_map(name).collect()
        };
        Names {
            listeners: listed("listeners"),
            clusters: listed("clusters"),
            rate_limits: listed("rate_limits"),
        }
    }
}

/// Looks at everything; the findings stand in the order of the checks.
pub(crate) fn check(
    config: &Config,
    root: &Node,
    names: &Names,
    machine: &Machine,
    sources: &[SourceText],
) -> Vec<Finding> {
    let mut checker = Checker { config, root, names, sources, findings: Vec::new(), said: [0; 2] };
    checker.shards(machine);
    checker.overload();
    checker.listeners();
    checker.clusters();
    checker.routes();
    checker.rate_limits();
    checker.fallbacks();
    checker.zones();
    checker.shadowed();
    checker.unused();
    checker.findings
}

struct Checker<'a> {
    config: &'a Config,
    root: &'a Node,
    names: &'a Names,
    sources: &'a [SourceText],
    findings: Vec<Finding>,
    /// Errors and warnings so far: many of the one never hide the other.
    said: [usize; 2],
}

impl Checker<'_> {
    /// An error at the value of `path`.
    fn error(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.say(Severity::Error, path, message.into(), help.into());
    }

    fn warn(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.say(Severity::Warning, path, message.into(), help.into());
    }

    fn say(&mut self, severity: Severity, path: &str, message: String, help: String) {
        let blame = self.root.blame(path);
        let said = &mut self.said[usize::from(severity == Severity::Warning)];
        if !blame.pruned && *said < FINDINGS_MAX {
            *said += 1;
            let help = Some(help).filter(|help| !help.is_empty());
            self.findings.push(Finding { severity, message, help, span: blame.value });
        }
    }

    /// The line of `path`, for a message about another place.
    fn line(&self, path: &str) -> usize {
        if self.said.iter().any(|said| *said >= FINDINGS_MAX) {
            return 0; // Nobody will read it.
        }
        let span = self.root.blame(path).value;
        self.sources.get(usize::from(span.source)).map_or(0, |it| Place::new(it, span).line)
    }

    fn given(&self, path: &str) -> bool {
        self.root.find(path).is_some_and(|node| !node.is_null())
    }

    /// Something at `path` could not be read, so its value here is only the default.
    fn lost(&self, path: &str) -> bool {
        self.root.blame(path).pruned
    }

    fn weight(&mut self, path: &str, weight: u32) {
        if weight > WEIGHT_MAX {
            self.error(&format!("{path}.weight"), format!("a weight is 0 to {WEIGHT_MAX}"), "");
        }
    }

    fn known(&mut self, path: &str, name: &Name, known: &BTreeSet<String>, what: &str) {
        if known.contains(&name.0) {
            return;
        }
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let help = suggest::help(name, &known, "there are").unwrap_or_default();
        self.error(path, format!("no {what} is named '{name}'"), help);
    }

    /// Every name once. Things without a name may be many.
    fn unique<'n>(&mut self, names: impl Iterator<Item = &'n Name>, list: &str, what: &str) {
        let mut seen: HashMap<&Name, usize> = HashMap::new();
        for (index, name) in names.enumerate() {
            if name.is_empty() {
                continue;
            }
            if let Some(first) = seen.get(name) {
                let line = self.line(&format!("{list}.{first}.name"));
                self.error(
                    &format!("{list}.{index}.name"),
                    format!("two {what}s are named '{name}'"),
                    format!("the other is on line {line}; rename one"),
                );
            } else {
                seen.insert(name, index);
            }
        }
    }
}
