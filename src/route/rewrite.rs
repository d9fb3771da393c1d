//! Paths put together anew: a prefix replaced, and bytes escaped that have no place in a URI.

/// Whether `text` can stand as a path in a request line: it begins with `/`, and has neither a
/// query nor a fragment nor a byte that would have to be escaped.
pub fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| is_uri_byte(byte) && byte != b'?')
}

/// `path` with `rewrite` in place of its first `prefix_bytes`, in two parts, with exactly one slash
/// where they meet. A path that has no segments (`*`) stays as it is.
pub(super) fn prefix<'a>(rewrite: &'a str, prefix_bytes: usize, path: &'a [u8]) -> [&'a [u8]; 2] {
    let rest = path.get(prefix_bytes..).unwrap_or_default();
    match rest.first() {
        None => [rewrite.as_bytes(), b""],
        Some(b'/') => [rewrite.trim_end_matches('/').as_bytes(), rest],
        Some(_) => [path, b""],
    }
}

/// Appends `bytes`, each that is not `fit` as its percent-encoding.
pub(super) fn escape(bytes: &[u8], fit: impl Fn(u8) -> bool, out: &mut Vec<u8>) {
    for byte in bytes {
        if fit(*byte) {
            out.push(*byte);
        } else {
            let digit = |nibble: u8| b"0123456789ABCDEF"[usize::from(nibble)];
            out.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

/// Whether `byte` may stand in a path or a query (RFC 3986, 3.3 and 3.4), brackets included, which
/// clients send unescaped and everybody understands.
pub(super) fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(rewrite: &str, prefix_bytes: usize, path: &str) -> String {
        String::from_utf8(prefix(rewrite, prefix_bytes, path.as_bytes()).concat()).unwrap()
    }

    #[test]
    fn one_slash_where_they_meet() {
        let api = "/api".len();
        assert_eq!(rewritten("/v1", api, "/api/x"), "/v1/x");
        assert_eq!(rewritten("/v1/", api, "/api/x"), "/v1/x");
        assert_eq!(rewritten("/", api, "/api/x"), "/x");
        assert_eq!(rewritten("/", api, "/api"), "/");
        assert_eq!(rewritten("/v1", api, "/api"), "/v1");
        assert_eq!(rewritten("/v1/", api, "/api"), "/v1/");
        assert_eq!(rewritten("/v1", api, "/api/"), "/v1/");
        assert_eq!(rewritten("/v1", 0, "/"), "/v1/");
        assert_eq!(rewritten("/v1", 0, "/x/"), "/v1/x/");
        assert_eq!(rewritten("/", 0, "/x"), "/x");
        assert_eq!(rewritten("/v1", 0, "*"), "*");
    }

    #[test]
    fn escapes_what_is_not_fit() {
        let mut out = Vec::new();
        escape(b"/a b\r\n\\\xff%20[", is_uri_byte, &mut out);
        assert_eq!(out, b"/a%20b%0D%0A%5C%FF%20[");
    }
}
