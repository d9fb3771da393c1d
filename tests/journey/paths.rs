//! One spelling for what is matched, and for what the origin gets.

use crate::support::{OK, Origin, Proxy, Setup};

#[track_caller]
fn assert_paths(proxy: &Proxy, origin: &Origin, cases: &[(&str, Option<&str>)]) {
    for (sent, expected) in cases {
        let before = origin.requests().len();
        let answer = proxy.ask(format!("GET {sent} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let seen = origin.requests().get(before).map(|request| request.target().to_owned());
        match expected {
            Some(expected) => assert_eq!(seen.as_deref(), Some(*expected), "{sent}"),
            None => assert_eq!((answer.status(), seen), (400, None), "{sent}"),
        }
    }
}

#[test]
fn an_edge_normalises_and_refuses() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    assert_paths(
        &proxy,
        &origin,
        &[
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/a/b/", Some("/a/b/")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/..", Some("/")),
            ("/../../etc/passwd", Some("/etc/passwd")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a/.%2e/b", Some("/b")),
            ("/a/%2e/b", Some("/a/b")),
            ("//a///b", Some("/a/b")),
            ("/a//../b", Some("/b")),
            ("/%7Euser/%41%2d", Some("/~user/A-")),
            ("/%c3%a9", Some("/%C3%A9")),
            ("/%20", Some("/%20")),
            ("/...", Some("/...")),
            ("/a?b=/../c//d&%2f%00", Some("/a?b=/../c//d&%2f%00")),
            ("/a/..?x", Some("/?x")),
            ("http://a/b/../c", Some("/c")),
            ("/%2f", None),
            ("/a%2Fb", None),
            ("/a/..%2f..%2fetc", None),
            ("/%5c", None),
            ("/a\\b", None),
            ("/%00", None),
            ("/a#b", None),
            ("/a?b#c", None),
            ("/%", None),
            ("/%4", None),
            ("/%zz", None),
        ],
    );
}

#[test]
fn a_sidecar_keeps_what_is_doubtful() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("mode: sidecar").start();
    assert_paths(
        &proxy,
        &origin,
        &[
            ("/a%2fb", Some("/a%2Fb")),
            ("/a%5Cb", Some("/a%5Cb")),
            ("//a//b", Some("//a//b")),
            ("/a/../b", Some("/b")),
            ("/%00", None),
            ("/a#b", None),
        ],
    );
}

#[test]
fn the_policy_can_be_said() {
    let origin = Origin::answering(OK);
    let text = "path: {slash: decode, backslash: decode, nul: keep, fragment: strip, \
        merge_slashes: false}";
    let proxy = Setup::new(&origin).listener(text).start();
    assert_paths(
        &proxy,
        &origin,
        &[
            ("/a%2fb", Some("/a/b")),
            ("/a/..%2f..%2fetc", Some("/etc")),
            ("/a%5c..%5cb", Some("/b")),
            ("/a\\b", Some("/a/b")),
            ("/%00", Some("/%00")),
            ("/a#b", Some("/a")),
            ("/a?b#c", Some("/a?b")),
            ("//a", Some("//a")),
        ],
    );
}

#[test]
fn preserve_path_sends_what_was_written() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).route("preserve_path: true").start();
    assert_paths(
        &proxy,
        &origin,
        &[
            ("/a/../b//c/%7e?x", Some("/a/../b//c/%7e?x")),
            ("/%2f", None), // Still refused: rules have looked at something else.
        ],
    );
}

/// Routes see the normal form, so nobody walks around a rule.
#[test]
fn routes_match_what_goes_upstream() {
    let (public, private) = (Origin::answering(OK), Origin::answering(OK));
    let proxy = Setup::new(&public)
        .and_cluster("private", &private)
        .and_route("match: {prefix: /private}, cluster: private")
        .start();
    for path in
        ["/private", "/private/x", "/x/../private", "//private", "/%70rivate", "/./private/"]
    {
        proxy.get(path);
    }
    assert_eq!((public.requests().len(), private.requests().len()), (0, 6));
    for path in ["/privatex", "/private/../x", "/x/private", "/private%20"] {
        proxy.get(path);
    }
    assert_eq!((public.requests().len(), private.requests().len()), (4, 6));
}
