//! TOML text to a tree with places, the same kind that YAML becomes.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Finding;
use super::tree::{Entry, Kind, Node, Span};

/// Syntax errors that one report shows: after a few, the rest are echoes.
const SYNTAX_ERRORS_MAX: usize = 10;

/// The tree of `text`, or what is wrong with its syntax. Numbers its nodes from `next`.
pub(crate) fn parse(text: &str, source: u8, next: &mut u32) -> Result<Node, Vec<Finding>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let finding = |error: &toml::de::Error| {
            let range = error.span().unwrap_or(0..0);
            let span = Span { source, start: range.start, end: range.end };
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            Finding::error(span, format!("this is not TOML: {message}"))
        };
        return Err(errors.iter().take(SYNTAX_ERRORS_MAX).map(finding).collect());
    }
    let span = Span { source, start: 0, end: 0 };
    Ok(Builder { source, next }.table(table.into_inner(), span))
}

struct Builder<'a> {
    source: u8,
    next: &'a mut u32,
}

impl Builder<'_> {
    fn node(&mut self, kind: Kind, span: Span) -> Node {
        let id = *self.next;
        *self.next += 1;
        Node { id, span, kind, pruned: false }
    }

    fn span<T>(&self, value: &Spanned<T>) -> Span {
        let range = value.span();
        Span { source: self.source, start: range.start, end: range.end }
    }

    fn table(&mut self, table: DeTable<'_>, span: Span) -> Node {
        let mut entries: Vec<Entry> = table
            .into_iter()
            .map(|(key, value)| {
                let key_span = self.span(&key);
                Entry { key: key.into_inner().into_owned(), key_span, value: self.value(value) }
            })
            .collect();
        entries.sort_by_key(|entry| entry.key_span.start);
        self.node(Kind::Mapping { entries, lost: Vec::new() }, span)
    }

    fn value(&mut self, value: Spanned<DeValue<'_>>) -> Node {
        let span = self.span(&value);
        let kind = match value.into_inner() {
            DeValue::Table(table) => return self.table(table, span),
            DeValue::Array(items) => {
                Kind::Sequence(items.into_iter().map(|item| self.value(item)).collect())
            }
            DeValue::String(text) => Kind::Scalar { text: text.into_owned(), quoted: true },
            DeValue::Integer(number) => plain(
                i64::from_str_radix(number.as_str(), number.radix())
                    .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
            ),
            DeValue::Float(number) => plain(number.as_str().to_owned()),
            DeValue::Boolean(value) => plain(value.to_string()),
            DeValue::Datetime(value) => Kind::Scalar { text: value.to_string(), quoted: true },
        };
        self.node(kind, span)
    }
}

fn plain(text: String) -> Kind {
    Kind::Scalar { text, quoted: false }
}
