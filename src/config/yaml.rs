//! YAML text to a tree with places. Aliases and merge keys (`<<`) are expanded here, and budgets
//! keep a small text from becoming a large tree.

use std::collections::{HashMap, HashSet};

use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle};

use super::error::Finding;
use super::tree::{Entry, Kind, Node, Span};

/// Nodes of a tree after its aliases are expanded; serde-saphyr's own bound.
const NODES_MAX: u32 = 250_000;

/// Bytes of text in a tree after its aliases are expanded.
const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Nesting; serde-saphyr's own bound.
const DEPTH_MAX: usize = 64;

/// The tree of `text`, or what is wrong with its syntax. Numbers its nodes from `next`.
pub(crate) fn parse(text: &str, source: u8, next: &mut u32) -> Result<Node, Vec<Finding>> {
    let mut builder = Builder::new(text, source, next);
    for item in Parser::new_from_str(text) {
        let (event, span) = match item {
            Ok(item) => item,
            Err(error) => {
                let start = builder.byte(error.marker());
                let span = Span { source, start, end: start };
                let finding = Finding::error(span, format!("this is not YAML: {}", error.info()));
                builder.findings.push(finding.help(syntax_help(text, start)));
                return Err(builder.findings);
            }
        };
        let span = Span { source, start: builder.byte(&span.start), end: builder.byte(&span.end) };
        if let Err(finding) = builder.event(event, span) {
            builder.findings.push(finding);
            return Err(builder.findings);
        }
    }
    if !builder.findings.is_empty() {
        return Err(builder.findings);
    }
    let end = Span { source, start: 0, end: 0 };
    let empty = Node::empty(builder.take_id(), end);
    Ok(builder.root.unwrap_or(empty))
}

/// What is usually wrong in a line like this one.
fn syntax_help(text: &str, at: usize) -> &'static str {
    let at = text.floor_char_boundary(at);
    let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    match text[line..].bytes().find(|byte| *byte != b' ') {
        Some(b'\t') => "indent with spaces, YAML allows no tabs there",
        _ => "look here and at the line before: indentation, a missing ':', quote or bracket",
    }
}

/// A collection that is still open.
struct Frame {
    anchor: usize,
    span: Span,
    open: Open,
}

enum Open {
    Sequence(Vec<Node>),
    Mapping {
        entries: Vec<Entry>,
        seen: HashSet<String>,
        key: Option<(String, Span)>,
        merged: Vec<Node>,
    },
}

struct Builder<'a> {
    text: &'a str,
    source: u8,
    next: &'a mut u32,
    nodes: u32,
    text_bytes: usize,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Node>,
    documents: usize,
    root: Option<Node>,
    findings: Vec<Finding>,
    /// The last character index that was looked up, and its byte; markers come in order.
    last: (usize, usize),
}

impl<'a> Builder<'a> {
    fn new(text: &'a str, source: u8, next: &'a mut u32) -> Builder<'a> {
        Builder {
            text,
            source,
            next,
            nodes: 0,
            text_bytes: 0,
            stack: Vec::new(),
            anchors: HashMap::new(),
            documents: 0,
            root: None,
            findings: Vec::new(),
            last: (0, 0),
        }
    }

    fn byte(&mut self, marker: &Marker) -> usize {
        if let Some(byte) = marker.byte_offset() {
            return byte.min(self.text.len());
        }
        let (from, start) = if marker.index() >= self.last.0 { self.last } else { (0, 0) };
        let skip = marker.index() - from;
        let byte = self.text[start..]
            .char_indices()
            .nth(skip)
            .map_or(self.text.len(), |(byte, _)| start + byte);
        self.last = (marker.index(), byte);
        byte
    }

    fn take_id(&mut self) -> u32 {
        let id = *self.next;
        *self.next += 1;
        id
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Finding> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Finding::error(span, "a second document begins here")
                        .help("a configuration is one document: remove the '---'"));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), span)?;
                let quoted = style != ScalarStyle::Plain;
                let kind = Kind::Scalar { text: text.into_owned(), quoted };
                let node = self.node(kind, span)?;
                self.value(node, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_tag(tag.is_some(), span)?;
                self.open(anchor, span, Open::Sequence(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_tag(tag.is_some(), span)?;
                let (entries, seen, merged) = (Vec::new(), HashSet::new(), Vec::new());
                self.open(anchor, span, Open::Mapping { entries, seen, key: None, merged })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(id) => {
                let Some((nodes, bytes)) = self.anchors.get(&id).map(weigh) else {
                    return Err(Finding::error(span, "this alias refers to what it is part of"));
                };
                self.charge(nodes, bytes, span)?;
                let Some(mut copy) = self.anchors.get(&id).cloned() else { return Ok(()) };
                copy.renumber(self.next);
                self.value(copy, 0)
            }
            _ => Ok(()),
        }
    }

    fn refuse_tag(&self, tagged: bool, span: Span) -> Result<(), Finding> {
        match tagged {
            true => Err(Finding::error(span, "a YAML tag has no meaning in a configuration")
                .help("remove the tag (the word that begins with '!')")),
            false => Ok(()),
        }
    }

    fn charge(&mut self, nodes: u32, bytes: usize, span: Span) -> Result<(), Finding> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        if self.nodes > NODES_MAX || self.text_bytes > TEXT_BYTES_MAX {
            return Err(Finding::error(
                span,
                format!("the configuration has more than {NODES_MAX} values or 64 MiB here"),
            )
            .help("aliases count each time they are used"));
        }
        Ok(())
    }

    fn node(&mut self, kind: Kind, span: Span) -> Result<Node, Finding> {
        let bytes = if let Kind::Scalar { text, .. } = &kind { text.len() } else { 0 };
        self.charge(1, bytes, span)?;
        Ok(Node { id: self.take_id(), span, kind, pruned: false })
    }

    fn open(&mut self, anchor: usize, span: Span, open: Open) -> Result<(), Finding> {
        if self.stack.len() == DEPTH_MAX {
            return Err(Finding::error(span, format!("nested more than {DEPTH_MAX} deep")));
        }
        self.stack.push(Frame { anchor, span, open });
        Ok(())
    }

    fn close(&mut self, end: Span) -> Result<(), Finding> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let span = Span { source: self.source, start: frame.span.start, end: end.end };
        let kind = match frame.open {
            Open::Sequence(items) => Kind::Sequence(items),
            Open::Mapping { mut entries, mut seen, merged, .. } => {
                for from in merged {
                    merge(&mut entries, &mut seen, from).map_err(|span| {
                        Finding::error(span, "'<<' takes a mapping, or a list of mappings")
                    })?;
                }
                Kind::Mapping { entries, lost: Vec::new() }
            }
        };
        let node = self.node(kind, span)?;
        self.value(node, frame.anchor)
    }

    /// A complete value: it goes into the collection that is open.
    fn value(&mut self, node: Node, anchor: usize) -> Result<(), Finding> {
        if anchor != 0 {
            let (nodes, bytes) = weigh(&node);
            self.charge(nodes, bytes, node.span)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut().map(|frame| &mut frame.open) {
            None => self.root = Some(node),
            Some(Open::Sequence(items)) => items.push(node),
            Some(Open::Mapping { entries, seen, key, merged }) => match key.take() {
                None => match node.kind {
                    Kind::Scalar { text, .. } => *key = Some((text, node.span)),
                    _ => {
                        return Err(Finding::error(node.head(), "a key must be a word"));
                    }
                },
                Some((name, _)) if name == "<<" => merged.push(node),
                Some((name, key_span)) => {
                    if seen.insert(name.clone()) {
                        entries.push(Entry { key: name, key_span, value: node });
                    } else {
                        self.findings.push(
                            Finding::error(key_span, format!("'{name}' is given twice"))
                                .help("keep one of the two"),
                        );
                    }
                }
            },
        }
        Ok(())
    }
}

/// Nodes and bytes of text, of a whole subtree.
fn weigh(node: &Node) -> (u32, usize) {
    let add = |(nodes, bytes): (u32, usize), child: &Node| {
        let (more, text) = weigh(child);
        (nodes + more, bytes + text)
    };
    match &node.kind {
        Kind::Scalar { text, .. } => (1, text.len()),
        Kind::Sequence(items) => items.iter().fold((1, 0), add),
        Kind::Mapping { entries, .. } => entries.iter().map(|entry| &entry.value).fold((1, 0), add),
    }
}

/// Adds what is not there yet; `Err` says what is no mapping.
fn merge(entries: &mut Vec<Entry>, seen: &mut HashSet<String>, from: Node) -> Result<(), Span> {
    match from.kind {
        Kind::Mapping { entries: others, .. } => {
            for other in others {
                if seen.insert(other.key.clone()) {
                    entries.push(other);
                }
            }
            Ok(())
        }
        Kind::Sequence(items) => items.into_iter().try_for_each(|item| match item.kind {
            Kind::Mapping { .. } => merge(entries, seen, item),
            _ => Err(item.span),
        }),
        Kind::Scalar { .. } => Err(from.span),
    }
}
