//! What is wrong with a configuration, and where: rendered as `FILE:LINE:COLUMN: error: ...` with
//! the line and a caret. Made by the other files here; the command line prints it.

use std::fmt;

use super::tree::Span;

/// Longest part of a line that an excerpt shows, in characters.
const EXCERPT_CHARS_MAX: usize = 100;

/// Problems that one report holds; nobody reads more, and each costs a look through the text.
pub(crate) const FINDINGS_MAX: usize = 200;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do about it; stands beside the caret.
    pub help: Option<String>,
    /// Where; `None` when there is no text to point at (a file that cannot be read).
    pub place: Option<Place>,
}

/// A place in a configuration, with what an excerpt needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// As it was given: a path, or `--config-yaml`.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, or what of it is near.
    excerpt: String,
    /// Characters of the excerpt before the caret.
    indent: usize,
    /// Carets, at least 1.
    width: usize,
}

/// Everything that was found in one go. Never empty, and at least one is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    /// In the order of the text.
    pub problems: Vec<Problem>,
}

/// A text that was read, and what it is called.
#[derive(Debug, Clone)]
pub(crate) struct SourceText {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// What a check says before its span is turned into a place.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    pub(crate) span: Span,
}

impl Finding {
    pub(crate) fn error(span: Span, message: impl Into<String>) -> Finding {
        Finding { severity: Severity::Error, message: message.into(), help: None, span }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Finding {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn place(self, sources: &[SourceText]) -> Problem {
        let place = sources.get(usize::from(self.span.source)).map(|it| Place::new(it, self.span));
        Problem { severity: self.severity, message: self.message, help: self.help, place }
    }
}

impl Problem {
    /// One without a place: the file cannot be read.
    pub fn bare(message: impl Into<String>) -> Problem {
        Problem { severity: Severity::Error, message: message.into(), help: None, place: None }
    }
}

impl Place {
    pub(crate) fn new(source: &SourceText, span: Span) -> Place {
        let text = source.text.as_str();
        let start = floor(text, span.start);
        let end = floor(text, span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let line = text[line_start..line_end].trim_end_matches('\r');
        let end = end.min(line_start + line.len()).max(start);
        let before = text[line_start..start].chars().count();
        let (excerpt, indent) = excerpt(line, before);
        let room = excerpt.chars().count().saturating_sub(indent).max(1);
        Place {
            file: source.name.clone(),
            line: text[..start].bytes().filter(|byte| *byte == b'\n').count() + 1,
            column: before + 1,
            excerpt,
            indent,
            width: text[start..end].trim_end().chars().count().clamp(1, room),
        }
    }
}

/// The part of a line around the character at `before`, and how many characters of it stand before
/// that one. Tabs become one space and control characters a dot, so the columns agree and no text
/// can drive a terminal.
fn excerpt(line: &str, before: usize) -> (String, usize) {
    let from = match before > EXCERPT_CHARS_MAX * 3 / 4 {
        true => before - EXCERPT_CHARS_MAX / 2,
        false => 0,
    };
    let visible = |char: char| match char {
        '\t' => ' ',
        char if char.is_control() => '\u{b7}',
        char => char,
    };
    let mut rest = line.chars().skip(from);
    let mut shown: String = rest.by_ref().take(EXCERPT_CHARS_MAX).map(visible).collect();
    let mut indent = before - from;
    if from > 0 {
        shown.insert_str(0, "...");
        indent += 3;
    }
    if rest.next().is_some() {
        shown.push_str("...");
    }
    (shown, indent)
}

/// The nearest character boundary at or below `at`.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

/// A word from outside, short and printable enough to be part of a message.
pub(crate) fn clip(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let visible = |char: char| if char.is_control() { '\u{b7}' } else { char };
    let mut short: String = text.chars().take(CHARS_MAX).map(visible).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push_str("...");
    }
    short
}

impl Errors {
    /// A single problem as a report.
    pub fn one(problem: Problem) -> Errors {
        Errors { problems: vec![problem] }
    }

    /// How many of the problems are errors.
    pub fn count(&self) -> usize {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error).count()
    }
}

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            write!(out, "{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = &self.place else {
            writeln!(out, "{}: {}", self.severity, self.message)?;
            return match &self.help {
                Some(help) => writeln!(out, "  = {help}"),
                None => Ok(()),
            };
        };
        let Place { file, line, column, .. } = place;
        writeln!(out, "{file}:{line}:{column}: {}: {}", self.severity, self.message)?;
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        writeln!(out, " {gutter} |")?;
        writeln!(out, " {number} | {}", place.excerpt.trim_end())?;
        write!(out, " {gutter} | {}{}", " ".repeat(place.indent), "^".repeat(place.width))?;
        match &self.help {
            Some(help) => writeln!(out, " {help}"),
            None => writeln!(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(text: &str, start: usize, end: usize) -> String {
        let source = SourceText { name: "a.yaml".into(), text: text.into() };
        let finding = Finding::error(Span { source: 0, start, end }, "no").help("do this");
        finding.place(&[source]).to_string()
    }

    #[test]
    fn the_caret_stands_under_the_place() {
        assert_eq!(
            render("one\ntwo: three\n", 9, 14),
            "a.yaml:2:6: error: no\n   |\n 2 | two: three\n   |      ^^^^^ do this\n"
        );
    }

    #[test]
    fn columns_count_characters_not_bytes() {
        assert!(render("\u{e4}\u{f6}: x", 6, 7).starts_with("a.yaml:1:5:"));
    }

    #[test]
    fn a_span_over_several_lines_is_cut_at_the_first() {
        assert!(render("ab\ncd", 0, 5).contains(" | ^^ do"));
    }

    #[test]
    fn a_long_line_is_cropped_around_the_caret() {
        let text = format!("{}HERE{}", "x".repeat(500), "y".repeat(500));
        let shown = render(&text, 500, 504);
        assert!(shown.contains("a.yaml:1:501:"));
        let lines: Vec<_> = shown.lines().collect();
        let at = lines[3].find('^').unwrap_or(0);
        assert_eq!(&lines[2][at..at + 4], "HERE");
        assert!(lines[2].len() < 130);
    }

    #[test]
    fn any_span_renders() {
        for start in 0..8 {
            for end in 0..8 {
                render("\u{e4}\r\n\t\u{1b}", start, end);
            }
        }
    }
}
