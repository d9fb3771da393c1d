//! A tree with places to typed values, through serde. Every error knows its node; what cannot be
//! decoded is cut out and the rest decoded again, so that one run reports everything.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};

use super::error::{Finding, clip};
use super::suggest;
use super::tree::{Entry, Kind, Node, Span};

/// The name of a newtype that is a word or a mapping: its visitor gets `visit_str` for the one and
/// `visit_newtype_struct` for the other.
pub(crate) const WORD_OR_MAPPING: &str = "word or mapping";

/// Errors after which decoding gives up.
const ERRORS_MAX: usize = 100;

/// Decodes what can be decoded. What cannot is cut out of `root` and reported in `findings`;
/// `None` if nothing remained.
pub(crate) fn decode<T: de::DeserializeOwned>(
    root: &mut Node,
    findings: &mut Vec<Finding>,
) -> Option<T> {
    let unknown = RefCell::new(Vec::new());
    for round in 0..ERRORS_MAX {
        unknown.borrow_mut().clear();
        let result = T::deserialize(Decoder { node: root, unknown: &unknown });
        let error = match result {
            Ok(value) => {
                findings.append(&mut unknown.borrow_mut());
                return Some(value);
            }
            Err(error) => error,
        };
        let id = error.node.unwrap_or(root.id);
        let (node, key_span) = find(root, id, None).unwrap_or((root, None));
        if !is_echo(node, error.missing) {
            let span = key_span.filter(|_| error.of_key).unwrap_or(node.head());
            let mut finding = Finding::error(span, error.message);
            finding.help = error.help;
            findings.push(finding);
        }
        if round + 1 == ERRORS_MAX || !root.prune(id) {
            break;
        }
    }
    findings.append(&mut unknown.borrow_mut());
    None
}

/// The node `id`, and the place of its key.
fn find(node: &Node, id: u32, key: Option<Span>) -> Option<(&Node, Option<Span>)> {
    if node.id == id {
        return Some((node, key));
    }
    match &node.kind {
        Kind::Scalar { .. } => None,
        Kind::Sequence(items) => items.iter().find_map(|item| find(item, id, None)),
        Kind::Mapping { entries, .. } => {
            entries.iter().find_map(|entry| find(&entry.value, id, Some(entry.key_span)))
        }
    }
}

/// Whether an error only says that what was cut out is not there.
fn is_echo(node: &Node, missing: Option<&'static str>) -> bool {
    match (&node.kind, missing) {
        (Kind::Mapping { lost, .. }, Some(field)) => lost.iter().any(|key| key == field),
        (Kind::Mapping { lost, entries }, None) => entries.is_empty() && !lost.is_empty(),
        _ => false,
    }
}

/// Why a node could not be decoded.
#[derive(Debug)]
pub(crate) struct Error {
    node: Option<u32>,
    message: String,
    help: Option<String>,
    missing: Option<&'static str>,
    /// The node's key is wrong, not its value.
    of_key: bool,
}

impl Error {
    fn new(message: impl Into<String>) -> Error {
        Error { node: None, message: message.into(), help: None, missing: None, of_key: false }
    }

    fn or_help(mut self, help: impl Into<String>) -> Error {
        self.help.get_or_insert(help.into());
        self
    }

    /// The innermost node wins: it was there first.
    fn at(mut self, node: &Node) -> Error {
        self.node.get_or_insert(node.id);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    /// The first line is the message, what follows is the help.
    fn custom<T: fmt::Display>(message: T) -> Error {
        let text = message.to_string();
        match text.split_once('\n') {
            Some((message, help)) => Error { help: Some(help.to_owned()), ..Error::new(message) },
            None => Error::new(text),
        }
    }

    fn missing_field(field: &'static str) -> Error {
        let message = format!("'{field}' is missing here");
        Error { missing: Some(field), ..Error::new(message) }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Error {
        let help = suggest::help(variant, expected, "one of");
        Error { help, ..Error::new(format!("unknown value '{}'", clip(variant))) }
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Error {
        Error::new(format!("expected {expected}, found {unexpected}"))
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Error {
        Error::new(format!("expected {expected}, found {unexpected}"))
    }
}

/// One node on its way into a type.
#[derive(Clone, Copy)]
struct Decoder<'a> {
    node: &'a Node,
    /// Keys that no field takes: reported, and passed over.
    unknown: &'a RefCell<Vec<Finding>>,
}

impl<'a> Decoder<'a> {
    fn go<T>(self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| error.at(self.node))
    }

    fn mismatch<T>(self, expected: &dyn de::Expected) -> Result<T, Error> {
        let found = match &self.node.kind {
            _ if self.node.is_null() => "nothing".to_owned(),
            Kind::Scalar { text, .. } => format!("'{}'", clip(text)),
            Kind::Sequence(_) => "a list".to_owned(),
            Kind::Mapping { .. } => "a mapping".to_owned(),
        };
        Err(Error::new(format!("expected {expected}, found {found}")).at(self.node))
    }

    /// The text of a plain scalar: what may be a number or a truth value.
    fn plain(self) -> Option<&'a str> {
        match &self.node.kind {
            Kind::Scalar { text, quoted: false } => Some(text),
            _ => None,
        }
    }

    fn number<'de, T: std::str::FromStr, V: Visitor<'de>>(
        self,
        visitor: V,
        visit: impl FnOnce(V, T) -> Result<V::Value, Error>,
        bounds: fmt::Arguments<'_>,
    ) -> Result<V::Value, Error> {
        match self.plain().and_then(|text| text.replace('_', "").parse().ok()) {
            Some(number) => self.go(visit(visitor, number)),
            None => self.mismatch(&bounds.to_string().as_str()),
        }
    }

    fn entries(self) -> Option<&'a [Entry]> {
        match &self.node.kind {
            Kind::Mapping { entries, .. } => Some(entries),
            _ if self.node.is_null() => Some(&[]),
            _ => None,
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.number(
                visitor,
                |visitor, number: $type| visitor.$visit(number),
                format_args!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX),
            )
        }
    )*};
}

impl<'de, 'a: 'de> Deserializer<'de> for Decoder<'a> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            _ if self.node.is_null() => self.mismatch(&visitor),
            Kind::Scalar { text, .. } => self.go(visitor.visit_str(text)),
            Kind::Sequence(_) => self.deserialize_seq(visitor),
            Kind::Mapping { .. } => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.plain() {
            Some("true" | "True" | "TRUE") => self.go(visitor.visit_bool(true)),
            Some("false" | "False" | "FALSE") => self.go(visitor.visit_bool(false)),
            _ => self.mismatch(&"true or false"),
        }
    }

    numbers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32, deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let visit = |visitor: V, number: f64| visitor.visit_f64(number);
        self.number(visitor, visit, format_args!("a number"))
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Scalar { text, .. } if !self.node.is_null() => self.go(visitor.visit_str(text)),
            _ => self.mismatch(&visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.is_null() {
            true => self.go(visitor.visit_none()),
            false => self.go(visitor.visit_some(self)),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.is_null() {
            true => self.go(visitor.visit_unit()),
            false => self.mismatch(&"nothing"),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Mapping { .. } => self.go(visitor.visit_newtype_struct(self)),
            _ if name == WORD_OR_MAPPING => self.deserialize_str(visitor),
            _ => self.go(visitor.visit_newtype_struct(self)),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let items: &[Node] = match &self.node.kind {
            Kind::Sequence(items) => items,
            _ if self.node.is_null() => &[],
            Kind::Scalar { text, .. } => {
                let help = format!("write [{}]", clip(text));
                return self.mismatch(&"a list").map_err(|error| error.or_help(help));
            }
            Kind::Mapping { .. } => {
                let help = "wrap it in a list: [{...}]";
                return self.mismatch(&"a list").map_err(|error| error.or_help(help));
            }
        };
        let unknown = self.unknown;
        self.go(visitor.visit_seq(Items { items: items.iter(), unknown }))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Some(entries) = self.entries() else { return self.mismatch(&"a mapping") };
        let unknown = self.unknown;
        let entries = entries.iter();
        self.go(visitor.visit_map(Entries { entries, fields: None, value: None, unknown }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Some(entries) = self.entries() else {
            let help = format!("with: {}", fields.join(", "));
            return self.mismatch(&"a mapping").map_err(|error| error.or_help(help));
        };
        let unknown = self.unknown;
        let (entries, fields) = (entries.iter(), Some(fields));
        self.go(visitor.visit_map(Entries { entries, fields, value: None, unknown }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (name, value) = match &self.node.kind {
            Kind::Scalar { text, .. } if !self.node.is_null() => (text.as_str(), None),
            Kind::Mapping { entries, .. } if entries.len() == 1 => {
                let entry = &entries[0];
                if !variants.contains(&entry.key.as_str()) {
                    let error: Error = de::Error::unknown_variant(&entry.key, variants);
                    return Err(error.at(self.node));
                }
                (entry.key.as_str(), Some(&entry.value))
            }
            _ => return self.mismatch(&format!("one of {}", variants.join(", ")).as_str()),
        };
        self.go(visitor.visit_enum(Choice { decoder: self, name, value }))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    unknown: &'a RefCell<Vec<Finding>>,
}

impl<'de, 'a: 'de> de::SeqAccess<'de> for Items<'a> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let decoder = Decoder { node, unknown: self.unknown };
        decoder.go(seed.deserialize(decoder)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, Entry>,
    fields: Option<&'static [&'static str]>,
    value: Option<&'a Node>,
    unknown: &'a RefCell<Vec<Finding>>,
}

impl<'de, 'a: 'de> de::MapAccess<'de> for Entries<'a> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        for entry in self.entries.by_ref() {
            if let Some(fields) = self.fields
                && !fields.contains(&entry.key.as_str())
            {
                let message = format!("unknown key '{}'", clip(&entry.key));
                let mut finding = Finding::error(entry.key_span, message);
                finding.help = suggest::help(&entry.key, fields, "known here");
                self.unknown.borrow_mut().push(finding);
                continue;
            }
            self.value = Some(&entry.value);
            let key = seed.deserialize(entry.key.as_str().into_deserializer());
            return key
                .map(Some)
                .map_err(|error: Error| Error { of_key: true, ..error.at(&entry.value) });
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(node) = self.value.take() else { return Err(Error::new("a value without key")) };
        let decoder = Decoder { node, unknown: self.unknown };
        decoder.go(seed.deserialize(decoder))
    }
}

/// One of several forms: a word, or a mapping with one key.
struct Choice<'a> {
    decoder: Decoder<'a>,
    name: &'a str,
    value: Option<&'a Node>,
}

impl<'de, 'a: 'de> de::EnumAccess<'de> for Choice<'a> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name = self.decoder.go(seed.deserialize(self.name.into_deserializer()))?;
        Ok((name, self))
    }
}

impl<'a> Choice<'a> {
    fn inner(&self) -> Result<Decoder<'a>, Error> {
        match self.value {
            Some(node) => Ok(Decoder { node, unknown: self.decoder.unknown }),
            None => {
                let message = format!("'{}' needs a value", self.name);
                let help = format!("write '{}: ...' as a mapping", self.name);
                Err(Error { help: Some(help), ..Error::new(message) }.at(self.decoder.node))
            }
        }
    }
}

impl<'de, 'a: 'de> de::VariantAccess<'de> for Choice<'a> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.value {
            Some(node) if !node.is_null() => {
                Err(Error::new(format!("'{}' takes no value", self.name)).at(node))
            }
            _ => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        let decoder = self.inner()?;
        decoder.go(seed.deserialize(decoder))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.inner()?.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.inner()?.deserialize_struct("", fields, visitor)
    }
}
