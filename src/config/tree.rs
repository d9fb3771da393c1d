//! A configuration as text with places: what YAML and TOML both become before anything is decoded,
//! so that every later error can say where. Built by `yaml` and `toml`, read by `decode` and
//! `check`.

/// A range of bytes in one of the texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    /// Which text: the file is 0, `--config-yaml` 1.
    pub(crate) source: u8,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// One value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Unique in its tree.
    pub(crate) id: u32,
    pub(crate) span: Span,
    pub(crate) kind: Kind,
    /// Something in here could not be decoded and was cut away. Checks that would only repeat
    /// the consequence keep quiet.
    pub(crate) pruned: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// `quoted` text is a string and nothing else; plain text may be a number, too.
    Scalar {
        text: String,
        quoted: bool,
    },
    Sequence(Vec<Node>),
    Mapping {
        entries: Vec<Entry>,
        /// Keys of entries that were cut away.
        lost: Vec<String>,
    },
}

/// One line of a mapping.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
}

impl Node {
    /// An empty mapping, for an empty file.
    pub(crate) fn empty(id: u32, span: Span) -> Node {
        Node {
            id,
            span,
            kind: Kind::Mapping { entries: Vec::new(), lost: Vec::new() },
            pruned: false,
        }
    }

    /// `key:` with nothing behind it, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, quoted: false }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The child at a key or an index.
    fn child(&self, step: &str) -> Option<(&Node, Option<Span>)> {
        match &self.kind {
            Kind::Scalar { .. } => None,
            Kind::Sequence(items) => items.get(step.parse::<usize>().ok()?).map(|it| (it, None)),
            Kind::Mapping { entries, .. } => entries
                .iter()
                .find(|entry| entry.key == step)
                .map(|entry| (&entry.value, Some(entry.key_span))),
        }
    }

    /// The elements, if it is a list.
    pub(crate) fn items(&self) -> &[Node] {
        if let Kind::Sequence(items) = &self.kind { items } else { &[] }
    }

    /// The text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Kind::Scalar { text, .. } = &self.kind { Some(text) } else { None }
    }

    /// What stands at `path` (`routes.3.match.prefix`), or nothing.
    pub(crate) fn find(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, step| Some(node.child(step)?.0))
    }

    /// The place to blame for `path`: its value, or as much of the way as exists.
    pub(crate) fn blame(&self, path: &str) -> Blame {
        let (mut node, mut key) = (self, None);
        for step in path.split('.') {
            match node.child(step) {
                Some((child, span)) => (node, key) = (child, span),
                None => {
                    let pruned = match &node.kind {
                        Kind::Mapping { lost, .. } => lost.iter().any(|key| key == step),
                        Kind::Sequence(_) => node.pruned,
                        Kind::Scalar { .. } => false,
                    };
                    return Blame { value: key.unwrap_or(node.head()), pruned };
                }
            }
        }
        let scalar = matches!(node.kind, Kind::Scalar { .. }) && !node.is_null();
        let value = if scalar { node.span } else { key.unwrap_or(node.head()) };
        Blame { value, pruned: node.pruned }
    }

    /// The first thing inside, for a caret that should not underline a whole block.
    pub(crate) fn head(&self) -> Span {
        match &self.kind {
            Kind::Mapping { entries, .. } => {
                entries.first().map_or(self.span, |entry| entry.key_span)
            }
            Kind::Sequence(items) => items.first().map_or(self.span, Node::head),
            Kind::Scalar { .. } => self.span,
        }
    }

    /// Cuts the node `id` out. False if it is the root, or not in here.
    pub(crate) fn prune(&mut self, id: u32) -> bool {
        let found = match &mut self.kind {
            Kind::Scalar { .. } => false,
            Kind::Sequence(items) => match items.iter().position(|item| item.id == id) {
                Some(at) => {
                    items.remove(at);
                    true
                }
                None => items.iter_mut().any(|item| item.prune(id)),
            },
            Kind::Mapping { entries, lost } => {
                match entries.iter().position(|entry| entry.value.id == id) {
                    Some(at) => {
                        lost.push(entries.remove(at).key);
                        true
                    }
                    None => entries.iter_mut().any(|entry| entry.value.prune(id)),
                }
            }
        };
        self.pruned |= found;
        found
    }

    /// Gives this node and all below fresh numbers; for copies that an alias makes.
    pub(crate) fn renumber(&mut self, next: &mut u32) {
        self.id = *next;
        *next += 1;
        match &mut self.kind {
            Kind::Scalar { .. } => {}
            Kind::Sequence(items) => items.iter_mut().for_each(|item| item.renumber(next)),
            Kind::Mapping { entries, .. } => {
                entries.iter_mut().for_each(|entry| entry.value.renumber(next));
            }
        }
    }

    /// Lays `over` upon this: mappings merge key by key, everything else is replaced.
    pub(crate) fn overlay(&mut self, over: Node) {
        match (&mut self.kind, over.kind) {
            (Kind::Mapping { entries, .. }, Kind::Mapping { entries: others, .. }) => {
                for other in others {
                    match entries.iter_mut().find(|entry| entry.key == other.key) {
                        Some(entry) => entry.value.overlay(other.value),
                        None => entries.push(other),
                    }
                }
            }
            (_, kind) => {
                self.kind = kind;
                self.span = over.span;
            }
        }
    }
}

/// Where an error about some path belongs.
pub(crate) struct Blame {
    /// The value, if it is a scalar; else the key that leads to it, or what is first in it.
    pub(crate) value: Span,
    /// Something was cut away there.
    pub(crate) pruned: bool,
}
