//! `${NAME}` and `${NAME:-default}` in values, from the environment. Works on values, never on
//! the text, so a variable cannot change the structure; `$${` is a literal `${`.

use super::error::Finding;
use super::tree::{Kind, Node};

/// Bytes of one value after substitution.
const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// Replaces the variables in every value below `node`. Reports those that cannot be, each with
/// the number of its node.
pub(crate) fn substitute(
    node: &mut Node,
    variable: &dyn Fn(&str) -> Option<String>,
    findings: &mut Vec<(u32, Finding)>,
) {
    match &mut node.kind {
        Kind::Scalar { text, quoted } => {
            if !text.contains("${") {
                return;
            }
            match expand(text, variable) {
                Ok((new, replaced)) => {
                    *text = new;
                    // What came from a variable may be a number, although TOML must quote it.
                    *quoted &= !replaced;
                }
                Err((message, help)) => {
                    findings.push((node.id, Finding::error(node.span, message).help(help)));
                }
            }
        }
        Kind::Sequence(items) => {
            items.iter_mut().for_each(|item| substitute(item, variable, findings));
        }
        Kind::Mapping { entries, .. } => {
            entries.iter_mut().for_each(|entry| substitute(&mut entry.value, variable, findings));
        }
    }
}

/// The text with its variables replaced, and whether there were any; or message and help.
fn expand(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, bool), (String, String)> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut replaced = false;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let body = &rest[at + 2..];
        let Some(end) = body.find('}') else {
            return Err(("'${' without its '}'".into(), "write $${ for a literal ${".into()));
        };
        let (name, default) = match body[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&body[..end], None),
        };
        if !is_name(name) {
            return Err((
                format!("'{name}' is no name of an environment variable"),
                "write ${NAME} or ${NAME:-default}, and $${ for a literal ${".into(),
            ));
        }
        match (variable(name).filter(|value| !value.is_empty()), default) {
            (Some(value), _) => out.push_str(&value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err((
                    format!("the environment variable {name} is not set"),
                    format!("set it, or give a default: ${{{name}:-default}}"),
                ));
            }
        }
        replaced = true;
        if out.len() > VALUE_BYTES_MAX {
            return Err(("this value is longer than 1 MiB".into(), "shorten it".into()));
        }
        rest = &body[end + 1..];
    }
    out.push_str(rest);
    Ok((out, replaced))
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("8080".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn expanded(text: &str) -> Result<String, String> {
        expand(text, &environment).map(|(text, _)| text).map_err(|(message, _)| message)
    }

    #[test]
    fn set_variables_are_replaced() {
        assert_eq!(expanded("127.0.0.1:${PORT}/${PORT:-1}").as_deref(), Ok("127.0.0.1:8080/8080"));
    }

    #[test]
    fn a_default_stands_in_for_unset_and_empty() {
        assert_eq!(expanded("${NO:-a}${EMPTY:-b}${NO:-}").as_deref(), Ok("ab"));
    }

    #[test]
    fn unset_without_a_default_is_an_error() {
        assert!(expanded("${NO}").is_err_and(|message| message.contains("NO is not set")));
    }

    #[test]
    fn a_doubled_dollar_is_literal() {
        assert_eq!(expanded("$${PORT} $PORT $").as_deref(), Ok("${PORT} $PORT $"));
    }

    #[test]
    fn broken_references_are_errors() {
        for text in ["${", "${PORT", "${}", "${1A}", "${A B}"] {
            assert!(expanded(text).is_err(), "{text}");
        }
    }
}
