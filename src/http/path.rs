//! Paths in normal form: one spelling for what routing, rules and the origin look at (RFC 3986,
//! 6.2.2). The session calls it before anything else sees a path. Pure; copies only what it changes.

use crate::reason::Reason;

/// What to do with an escape that origins read in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoded {
    /// 400.
    Refuse,
    /// Passed on, still encoded.
    Keep,
    /// Decoded, and then read as what it stands for.
    Decode,
}

/// What to do with a fragment. It never belongs into a request (RFC 9112, 3.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// 400.
    Refuse,
    /// Cut off.
    Strip,
}

/// How paths are normalised. The default is the edge's: it refuses what is doubtful.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathPolicy {
    /// `%2F`. Decoded, it parts segments.
    pub slash: Encoded,
    /// `%5C`, and the bare `\`. Kept, it is `%5C`; decoded, it is a slash, as browsers and Windows
    /// read it.
    pub backslash: Encoded,
    /// `%00`. It is never decoded: that too means 400.
    pub nul: Encoded,
    /// `#` and what follows.
    pub fragment: Fragment,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
}

impl Default for PathPolicy {
    fn default() -> Self {
        PathPolicy {
            slash: Encoded::Refuse,
            backslash: Encoded::Refuse,
            nul: Encoded::Refuse,
            fragment: Fragment::Refuse,
            merge_slashes: true,
        }
    }
}

/// Where the normal path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normal<'b> {
    /// It was normal already: these bytes, without a copy.
    Same(&'b [u8]),
    /// In `out`.
    Written,
}

/// Brings `path`, which begins with `/` and has no query, into normal form: unreserved characters
/// decoded, other escapes in upper case, dot segments resolved (encoded ones too; above the root there
/// is nothing), empty segments merged. `out` is overwritten if need be.
///
/// The result is normal: doing it again changes nothing. No segment of it is `.` or `..`, nor would
/// be to an origin that also parts segments at kept escapes, or drops parameters (`..;a`).
///
/// # Errors
///
/// `BadPath`: not a path, a broken escape, or something that `policy` refuses.
#[inline]
pub fn normalise<'b>(
    path: &'b [u8],
    policy: &PathPolicy,
    out: &mut Vec<u8>,
) -> Result<Normal<'b>, Reason> {
    let mut doubtful = path.first() != Some(&b'/');
    let mut previous = 0;
    for &byte in path {
        doubtful |= DOUBTFUL[byte as usize];
        doubtful |= previous == b'/' && (byte == b'/' || byte == b'.');
        previous = byte;
    }
    if !doubtful {
        return Ok(Normal::Same(path));
    }
    rewrite(path, policy, out)?;
    Ok(if out == path { Normal::Same(path) } else { Normal::Written })
}

/// Bytes that the fast path leaves to [`rewrite`].
static DOUBTFUL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] =
            !matches!(byte as u8, b'!'..=b'~') || matches!(byte as u8, b'%' | b'\\' | b'#' | b'?');
        byte += 1;
    }
    table
};

#[cold]
fn rewrite(path: &[u8], policy: &PathPolicy, out: &mut Vec<u8>) -> Result<(), Reason> {
    out.clear();
    if path.first() != Some(&b'/') {
        return Err(Reason::BadPath);
    }
    let mut segment_start = 0; // In `out`, behind its last slash.
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let mut slash = *byte == b'/';
        match byte {
            b'/' => {}
            b'#' => match policy.fragment {
                Fragment::Refuse => return Err(Reason::BadPath),
                Fragment::Strip => break,
            },
            b'\\' => slash = doubted(policy.backslash, b"%5C", out)?,
            b'%' => {
                let [high, low, tail @ ..] = tail else { return Err(Reason::BadPath) };
                rest = tail;
                match hex(*high)? << 4 | hex(*low)? {
                    b'/' => slash = doubted(policy.slash, b"%2F", out)?,
                    b'\\' => slash = doubted(policy.backslash, b"%5C", out)?,
                    0 if doubted(policy.nul, b"%00", out)? => return Err(Reason::BadPath),
                    0 => {}
                    byte if is_unreserved(byte) => out.push(byte),
                    _ => out.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
                }
            }
            b'?' => return Err(Reason::BadPath),
            b'!'..=b'~' => out.push(*byte),
            _ => return Err(Reason::BadPath),
        }
        if slash {
            end_segment(out, segment_start, policy.merge_slashes, true)?;
            segment_start = out.len();
        }
    }
    end_segment(out, segment_start, policy.merge_slashes, false)
}

/// Writes a doubtful character as `policy` has it; true if it is to be read as decoded.
fn doubted(policy: Encoded, escape: &[u8; 3], out: &mut Vec<u8>) -> Result<bool, Reason> {
    match policy {
        Encoded::Refuse => Err(Reason::BadPath),
        Encoded::Keep => {
            out.extend(escape);
            Ok(false)
        }
        Encoded::Decode => Ok(true),
    }
}

/// Ends the segment from `start` on: by a slash, or by the end of the path. Resolves it if it is a
/// dot segment (RFC 3986, 5.2.4).
fn end_segment(out: &mut Vec<u8>, start: usize, merge: bool, slash: bool) -> Result<(), Reason> {
    match &out[start..] {
        b"." => out.truncate(start),
        b".." => {
            // What stands before `start` ends with a slash; what goes ends with it.
            let parent = out[..start - 1].iter().rposition(|byte| *byte == b'/');
            out.truncate(parent.map_or(1, |index| index + 1));
        }
        b"" if merge && start > 0 => {}
        segment if hides_dots(segment) => return Err(Reason::BadPath),
        _ if slash => out.push(b'/'),
        _ => {}
    }
    Ok(())
}

/// Whether some origins would find a dot segment in what is one segment to us.
fn hides_dots(segment: &[u8]) -> bool {
    if !segment.starts_with(b".") && !segment.contains(&b'%') {
        return false;
    }
    let mut rest = segment;
    loop {
        let part = &rest[..find_separator(rest)];
        let name = part.split(|byte| *byte == b';').next();
        // The plain `.` and `..` were resolved: here something follows or precedes.
        if matches!(name, Some(b"." | b"..")) {
            return true;
        }
        if part.len() == rest.len() {
            return false;
        }
        rest = &rest[part.len() + 3..];
    }
}

/// Where a kept slash or backslash stands.
fn find_separator(bytes: &[u8]) -> usize {
    let mut windows = bytes.windows(3);
    windows.position(|three| matches!(three, b"%2F" | b"%5C")).unwrap_or(bytes.len())
}

fn hex(digit: u8) -> Result<u8, Reason> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Reason::BadPath),
    }
}

/// RFC 3986, 2.3.
const fn is_unreserved(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LAX: PathPolicy = PathPolicy {
        slash: Encoded::Keep,
        backslash: Encoded::Keep,
        nul: Encoded::Keep,
        fragment: Fragment::Strip,
        merge_slashes: false,
    };

    const DECODING: PathPolicy = PathPolicy {
        slash: Encoded::Decode,
        backslash: Encoded::Decode,
        nul: Encoded::Decode,
        fragment: Fragment::Strip,
        merge_slashes: true,
    };

    fn normal(path: &[u8], policy: &PathPolicy) -> Option<Vec<u8>> {
        let mut out = b"left over".to_vec();
        match normalise(path, policy, &mut out) {
            Ok(Normal::Same(same)) => {
                assert!(std::ptr::eq(same, path));
                Some(same.to_vec())
            }
            Ok(Normal::Written) => Some(out),
            Err(reason) => {
                assert_eq!(reason, Reason::BadPath);
                None
            }
        }
    }

    #[track_caller]
    fn check(policy: &PathPolicy, cases: &[(&str, Option<&str>)]) {
        for (path, expected) in cases {
            let seen = normal(path.as_bytes(), policy);
            let seen = seen.map(|bytes| bytes.escape_ascii().to_string());
            assert_eq!(seen.as_deref(), *expected, "{path}");
        }
    }

    #[test]
    fn at_the_edge() {
        check(
            &PathPolicy::default(),
            &[
                ("/", Some("/")),
                ("/a/b.c/d", Some("/a/b.c/d")),
                ("/a/", Some("/a/")),
                ("/.well-known/x", Some("/.well-known/x")),
                ("/...", Some("/...")),
                ("/.a/..b/c.", Some("/.a/..b/c.")),
                ("//", Some("/")),
                ("///a//b///", Some("/a/b/")),
                ("/.", Some("/")),
                ("/..", Some("/")),
                ("/../../a", Some("/a")),
                ("/a/.", Some("/a/")),
                ("/a/..", Some("/")),
                ("/a/./b", Some("/a/b")),
                ("/a/../b", Some("/b")),
                ("/a/b/c/../../d", Some("/a/d")),
                ("/a//../b", Some("/b")),
                ("/a/%2e%2E/b", Some("/b")),
                ("/a/.%2e", Some("/")),
                ("/%2e", Some("/")),
                ("/%61%7e%2D", Some("/a~-")),
                ("/%c3%a9%3f", Some("/%C3%A9%3F")),
                ("/%252e%252e/", Some("/%252e%252e/")),
                ("/a;b=c/d;e", Some("/a;b=c/d;e")),
                ("/%0a", Some("/%0A")),
                ("", None),
                ("a", None),
                ("/%", None),
                ("/%2", None),
                ("/%zz", None),
                ("/%+1", None),
                ("/a%2fb", None),
                ("/a%2Fb", None),
                ("/a%5cb", None),
                ("/a\\b", None),
                ("/a%00", None),
                ("/a#b", None),
                ("/a?b", None),
                ("/a b", None),
                ("/a\u{7f}", None),
                ("/\u{e9}", None),
                ("/..;/a", None),
                ("/a/.;x=y/b", None),
                ("/a/%2e%2e;x", None),
            ],
        );
    }

    #[test]
    fn kept() {
        check(
            &LAX,
            &[
                ("//a//", Some("//a//")),
                ("/a//../b", Some("/a/b")),
                ("//..", Some("/")),
                ("/a%2fb", Some("/a%2Fb")),
                ("/a%5cb\\c", Some("/a%5Cb%5Cc")),
                ("/a%00", Some("/a%00")),
                ("/a/../b#c/../d", Some("/b")),
                ("/a%2f..", None),
                ("/..%2fa", None),
                ("/a%2f.%2fb", None),
                ("/a%5c%2e%2e%5cb", None),
                ("/a\\..\\b", None),
                ("/a%2f..;b", None),
                ("/a%2f..b", Some("/a%2F..b")),
                ("/%2f", Some("/%2F")),
            ],
        );
    }

    #[test]
    fn decoded() {
        check(
            &DECODING,
            &[
                ("/a%2fb", Some("/a/b")),
                ("/a%2f..%2fb", Some("/b")),
                ("/a%5c..\\b", Some("/b")),
                ("/%2f%2fa", Some("/a")),
                ("/a%00", None),
                ("/a%252fb", Some("/a%252fb")),
            ],
        );
    }

    fn policies() -> impl Strategy<Value = PathPolicy> {
        let encoded =
            || prop::sample::select(vec![Encoded::Refuse, Encoded::Keep, Encoded::Decode]);
        let fragment = prop::sample::select(vec![Fragment::Refuse, Fragment::Strip]);
        (encoded(), encoded(), encoded(), fragment, any::<bool>()).prop_map(
            |(slash, backslash, nul, fragment, merge_slashes)| PathPolicy {
                slash,
                backslash,
                nul,
                fragment,
                merge_slashes,
            },
        )
    }

    /// Paths made of what matters.
    fn paths() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "/", "/", "/", ".", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", "%00", "%",
            "a", "b;c", ";", "%41", "%c3", "%252e", "#", "?", "2", "e",
        ]);
        prop::collection::vec(piece, 0..12)
            .prop_map(|pieces| format!("/{}", pieces.concat()).into_bytes())
    }

    /// RFC 3986, 5.2.4 as it is written, on a list of segments.
    fn model(path: &str) -> String {
        let mut kept: Vec<&str> = Vec::new();
        let segments: Vec<&str> = path[1..].split('/').collect();
        for (index, segment) in segments.iter().enumerate() {
            let last = index + 1 == segments.len();
            match *segment {
                "." | ".." => {
                    if *segment == ".." {
                        kept.pop();
                    }
                    if last {
                        kept.push("");
                    }
                }
                other => kept.push(other),
            }
        }
        format!("/{}", kept.join("/"))
    }

    proptest! {
        #[test]
        fn normal_paths_are_safe_and_stay_as_they_are(path in paths(), policy in policies()) {
            if let Some(once) = normal(&path, &policy) {
                prop_assert_eq!(once.first(), Some(&b'/'));
                for segment in once[1..].split(|byte| *byte == b'/') {
                    prop_assert!(segment != b"." && segment != b"..");
                }
                if policy.merge_slashes {
                    prop_assert!(!once.windows(2).any(|two| two == b"//"));
                }
                prop_assert!(once.iter().all(|byte| byte.is_ascii_graphic() && !b"\\#?".contains(byte)));
                prop_assert_eq!(normal(&once, &policy), Some(once));
            }
        }

        #[test]
        fn anything_is_taken_without_a_panic(path: Vec<u8>, policy in policies()) {
            let _ = normal(&path, &policy);
        }

        #[test]
        fn dot_segments_go_as_the_rfc_says(path in "(/(|\\.|\\.\\.|a|bc)){1,8}") {
            let seen = normal(path.as_bytes(), &LAX).map(|bytes| String::from_utf8(bytes).unwrap());
            prop_assert_eq!(seen, Some(model(&path)));
        }
    }
}
