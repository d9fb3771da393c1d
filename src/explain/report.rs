//! What is said, for people and for programs: lines with a name, in blocks with a title.
//!
//! A [`Line`] is all that a feature adds: what it is called, what it says, and the same as JSON.

use serde_json::{Map, Value};

/// Columns that text fits into; what cannot be broken may be longer.
const WIDTH: usize = 96;

/// Columns of a line's name, its indent included.
const NAMES: usize = 15;

/// One thing that is said.
#[derive(Debug)]
pub(super) struct Line {
    name: &'static str,
    /// Each begins a new line, and is broken between words.
    text: Vec<String>,
    /// As it is, below the text: tables and heads.
    table: Vec<String>,
    value: Value,
}

impl Line {
    pub fn new(name: &'static str, text: impl Into<String>, value: impl Into<Value>) -> Line {
        Line { name, text: vec![text.into()], table: Vec::new(), value: value.into() }
    }

    pub fn and(mut self, text: impl Into<String>) -> Line {
        self.text.push(text.into());
        self
    }

    pub fn table(name: &'static str, rows: Vec<String>, value: impl Into<Value>) -> Line {
        Line { name, text: Vec::new(), table: rows, value: value.into() }
    }

    /// For people only, over the whole width: it has no name.
    pub fn unnamed(text: impl Into<String>) -> Line {
        Line::new("", text, Value::Null)
    }

    /// For programs only: people see it elsewhere.
    pub fn hidden(name: &'static str, value: impl Into<Value>) -> Line {
        Line { name, text: Vec::new(), table: Vec::new(), value: value.into() }
    }

    fn write(&self, out: &mut String) {
        let names = if self.name.is_empty() { 2 } else { NAMES };
        let wrapped = self.text.iter().flat_map(|text| wrap(text, WIDTH - names));
        let rows = wrapped.chain(self.table.iter().cloned());
        for (index, row) in rows.enumerate() {
            let name = if index == 0 { self.name } else { "" };
            let row = format!("  {name:width$}{}", printable(&row), width = names - 2);
            out.push_str(row.trim_end());
            out.push('\n');
        }
    }
}

/// Lines that belong together.
#[derive(Debug)]
pub(super) struct Block {
    /// Stands above them; the first line of all is the request.
    pub title: String,
    pub lines: Vec<Line>,
}

impl Block {
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", printable(&self.title));
        self.lines.iter().for_each(|line| line.write(&mut text));
        text
    }

    pub fn json(&self) -> Map<String, Value> {
        let named = self.lines.iter().filter(|line| !line.name.is_empty());
        named.map(|line| (line.name.replace(" ", "_"), line.value.clone())).collect()
    }
}

/// Text in rows of at most so many characters, broken at spaces.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut rows = vec![String::new()];
    for word in text.split(' ') {
        let row = rows.last_mut().expect("there is one");
        if row.is_empty() {
            row.push_str(word);
        } else if row.chars().count() + 1 + word.chars().count() <= width {
            row.push(' ');
            row.push_str(word);
        } else {
            rows.push(format!("  {word}"));
        }
    }
    rows
}

/// Columns as wide as they have to be; those whose title ends with a space to the right.
pub(super) fn columns(titles: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let title = titles.iter().map(|title| title.trim_end().to_owned()).collect();
    let all = || std::iter::once(&title).chain(rows);
    let width = |column: usize| all().map(|row: &Vec<String>| row[column].chars().count()).max();
    let row = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column).unwrap_or_default();
            match titles[column].ends_with(' ') {
                true => format!("{cell:>width$}"),
                false => format!("{cell:width$}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all().map(row).collect()
}

/// What a terminal may be sent.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{b7}' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_named_wrapped_and_printable() {
        let words = "word ".repeat(30);
        let line = Line::new("limits", words.trim_end(), 7).and("a\u{1b}b");
        let block = Block { title: "cluster".into(), lines: vec![line] };
        let text = block.text();
        let rows: Vec<_> = text.lines().collect();
        assert_eq!(rows[0], "cluster");
        assert!(rows[1].starts_with("  limits       word word") && rows[1].len() <= WIDTH);
        assert!(rows[2].starts_with("                 word"));
        assert_eq!(rows[3], "               a\u{b7}b");
        assert_eq!(block.json()["limits"], 7);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_owned(), "100".to_owned()], vec!["bcd".to_owned(), "2".to_owned()]];
        assert_eq!(columns(&["X", "N "], &rows), ["X      N", "a    100", "bcd    2"]);
    }
}
