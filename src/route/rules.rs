//! Header fields that a route removes, sets or adds. The writer of the outgoing head asks
//! [`HeaderRules::drops`] for each received line and then calls [`HeaderRules::write`].

/// Applied in this order: remove, set, add. Names count in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderRules {
    /// Every field of these names goes.
    pub remove: Vec<String>,
    /// Names and values that replace every field of the name.
    pub set: Vec<(String, String)>,
    /// Names and values that go beside fields of the name that are already there.
    pub add: Vec<(String, String)>,
}

/// What frames, addresses or ends a message is ours to write (RFC 9110, 7.6.1; RFC 9112, 6).
const OURS: [&str; 11] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

impl HeaderRules {
    /// Whether they change nothing.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Whether a field of this name stays behind, received or of our own making.
    #[inline]
    pub fn drops(&self, name: &[u8]) -> bool {
        let removed = self.remove.iter().chain(self.set.iter().map(|(name, _)| name));
        removed.into_iter().any(|other| other.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Appends the lines that are set and added, each with its CRLF.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        for (name, value) in self.set.iter().chain(&self.add) {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let written = self.set.iter().chain(&self.add);
        let names = self.remove.iter().chain(written.clone().map(|(name, _)| name));
        for name in names {
            if !is_field_name(name) {
                return Err("a header name is a token: letters, digits and !#$%&'*+-.^_`|~");
            }
            if OURS.iter().any(|ours| ours.eq_ignore_ascii_case(name)) {
                return Err("a header that frames or addresses the message is no rule's to change");
            }
        }
        if written.clone().any(|(_, value)| !is_field_value(value)) {
            return Err(
                "a header value has no line ends, no control characters and no space around it",
            );
        }
        Ok(())
    }
}

/// Whether `text` is a token (RFC 9110, 5.1 and 5.6.2).
pub fn is_field_name(text: &str) -> bool {
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(fit)
}

/// Whether `text` can stand as a field's value (RFC 9110, 5.5): no control but the tab, and no
/// white space around it.
pub fn is_field_value(text: &str) -> bool {
    let fit = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    text.bytes().all(fit) && text.trim_matches([' ', '\t']).len() == text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(remove: &[&str], set: &[(&str, &str)], add: &[(&str, &str)]) -> HeaderRules {
        let pairs = |list: &[(&str, &str)]| {
            list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        HeaderRules {
            remove: remove.iter().map(|name| name.to_string()).collect(),
            set: pairs(set),
            add: pairs(add),
        }
    }

    #[test]
    fn removes_sets_and_adds() {
        let rules = rules(&["X-A"], &[("X-B", "1")], &[("X-C", "2"), ("X-A", "3")]);
        assert!(rules.drops(b"x-a") && rules.drops(b"X-b"));
        assert!(!rules.drops(b"x-c") && !rules.drops(b"x-ab"));
        let mut out = Vec::new();
        rules.write(&mut out);
        assert_eq!(out, b"X-B: 1\r\nX-C: 2\r\nX-A: 3\r\n");
        assert!(!rules.is_empty() && HeaderRules::default().is_empty());
    }

    #[test]
    fn nothing_breaks_a_head() {
        assert_eq!(rules(&["x-a"], &[("x-b", "a, b\tc \u{e9}")], &[("x-c", "")]).check(), Ok(()));
        for name in
            ["", "a b", "a:", "a\r\n", "\u{e9}", "Host", "CONTENT-LENGTH", "transfer-encoding"]
        {
            assert!(rules(&[name], &[], &[]).check().is_err(), "{name}");
            assert!(rules(&[], &[(name, "v")], &[]).check().is_err(), "{name}");
            assert!(rules(&[], &[], &[(name, "v")]).check().is_err(), "{name}");
        }
        for value in ["a\r\nb: c", "a\n", "\0", "\u{7f}", " a", "a\t"] {
            assert!(rules(&[], &[("x", value)], &[]).check().is_err(), "{value:?}");
            assert!(rules(&[], &[], &[("x", value)]).check().is_err(), "{value:?}");
        }
    }
}
