//! All rules of a plan, indexed by host and path. [`Router::find`] is on every request's way: one
//! look-up for an exact host, one for each dot at which a suffix can begin, one for an exact path, one
//! for each slash at which a prefix can end; never a walk over all rules.
//!
//! ```text
//! exact hosts   "a.example" ─┐            exact paths  "/x/y" ─┐
//! suffixes      "example"   ─┼─► Paths ─► prefixes     "/x"   ─┼─► rules, in the file's order
//! any host                  ─┘            every path          ─┘
//! ```

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::redirect::without_port;
use super::{HostMatch, Matcher, PathMatch, RequestView, Route};

/// Longest host that is looked up, in bytes: a DNS name has at most 253. A longer one matches only
/// rules for any host.
const HOST_BYTES_MAX: usize = 255;

/// Keyed by what clients send, so seeded.
type Index<T> = HashMap<Box<[u8]>, T, RandomState>;

/// The rules of a plan.
#[derive(Debug, Default)]
pub struct Router {
    routes: Vec<Route>,
    /// Of the routes, by the same index; `None` where host and path say all.
    conditions: Vec<Option<Matcher>>,
    hosts: Index<Paths>,
    suffixes: Index<Paths>,
    suffix_lengths: Vec<usize>,
    any_host: Paths,
}

/// The rules of one host. Numbers are routes.
#[derive(Debug, Default)]
struct Paths {
    exact: Index<Vec<u32>>,
    /// Without the slash at their end, so never empty.
    prefixes: Index<Vec<u32>>,
    prefix_lengths: Vec<usize>,
    every: Vec<u32>,
}

impl Router {
    /// In the order of the configuration. A route's index is its place in `routes`.
    ///
    /// # Panics
    ///
    /// If a route fails [`Route::check`], which the configuration's check asks before.
    pub fn new(routes: Vec<(Matcher, Route)>) -> Router {
        let mut router = Router::default();
        for (number, (matcher, mut route)) in routes.into_iter().enumerate() {
            if let Err(problem) = route.check() {
                panic!("route '{}' was not checked: {problem}", route.name);
            }
            let number = u32::try_from(number).expect("a plan has fewer than 2^32 routes");
            let paths = match &matcher.host {
                HostMatch::Any => &mut router.any_host,
                HostMatch::Exact(host) => router.hosts.entry(host_key(host)).or_default(),
                HostMatch::Suffix(host) => {
                    let key = host_key(host.trim_start_matches('*').trim_start_matches('.'));
                    add_length(&mut router.suffix_lengths, key.len());
                    router.suffixes.entry(key).or_default()
                }
            };
            route.prefix_bytes = paths.insert(&matcher.path, number);
            router.conditions.push(matcher.is_conditional().then_some(matcher));
            router.routes.push(route);
        }
        router
    }

    /// The index of the route that a request falls under; the module above says which that is.
    pub fn find(&self, view: &RequestView<'_>) -> Option<usize> {
        if !(self.hosts.is_empty() && self.suffixes.is_empty())
            && let found @ Some(_) = self.find_by_host(view)
        {
            return found;
        }
        self.find_by_path(&self.any_host, view)
    }

    /// All routes, by index.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    fn find_by_host(&self, view: &RequestView<'_>) -> Option<usize> {
        let mut lower = [0; HOST_BYTES_MAX];
        let host = name(view.host, &mut lower)?;
        if let Some(paths) = self.hosts.get(host)
            && let found @ Some(_) = self.find_by_path(paths, view)
        {
            return found;
        }
        // The dot before a suffix has something before itself.
        let below =
            |length: usize| host.len() > length + 1 && host[host.len() - length - 1] == b'.';
        let lengths = self.suffix_lengths.iter().copied().filter(|length| below(*length));
        lengths
            .filter_map(|length| self.suffixes.get(&host[host.len() - length..]))
            .find_map(|paths| self.find_by_path(paths, view))
    }

    #[inline]
    fn find_by_path(&self, paths: &Paths, view: &RequestView<'_>) -> Option<usize> {
        if !paths.exact.is_empty()
            && let Some(rules) = paths.exact.get(view.path)
            && let found @ Some(_) = self.first_that_holds(rules, view)
        {
            return found;
        }
        let path = view.path;
        let ends = |length: usize| path.len() == length || path.get(length) == Some(&b'/');
        let lengths = paths.prefix_lengths.iter().copied().filter(|length| ends(*length));
        lengths
            .filter_map(|length| paths.prefixes.get(&path[..length]))
            .find_map(|rules| self.first_that_holds(rules, view))
            .or_else(|| self.first_that_holds(&paths.every, view))
    }

    #[inline]
    fn first_that_holds(&self, rules: &[u32], view: &RequestView<'_>) -> Option<usize> {
        rules.iter().map(|number| *number as usize).find(|number| {
            self.conditions[*number].as_ref().is_none_or(|conditions| conditions.holds(view))
        })
    }
}

impl Paths {
    /// Returns how many bytes of a path the match takes up.
    fn insert(&mut self, path: &PathMatch, number: u32) -> usize {
        let (rules, matched) = match path {
            PathMatch::Any => (&mut self.every, ""),
            PathMatch::Exact(path) => (self.exact.entry(key(path)).or_default(), &path[..]),
            PathMatch::Prefix(path) => match path.trim_end_matches('/') {
                "" => (&mut self.every, ""),
                prefix => {
                    add_length(&mut self.prefix_lengths, prefix.len());
                    (self.prefixes.entry(key(prefix)).or_default(), prefix)
                }
            },
        };
        rules.push(number);
        matched.len()
    }
}

/// Adds a length to a set whose longest comes first. Only those prefixes and suffixes are looked up
/// that something has the length of: a path of many segments costs no more than another.
fn add_length(lengths: &mut Vec<usize>, length: usize) {
    if let Err(place) = lengths.binary_search_by(|other| length.cmp(other)) {
        lengths.insert(place, length);
    }
}

fn key(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}

/// A configured host as it is looked up.
fn host_key(host: &str) -> Box<[u8]> {
    let lower = host.to_ascii_lowercase();
    without_root(lower.as_bytes()).into()
}

/// The name of a received host as it is looked up: without port and root, in lower case, which is
/// written to `lower` only if it has to be. `None` if it is too long to be a name, or empty.
#[inline]
fn name<'a>(host: &'a [u8], lower: &'a mut [u8; HOST_BYTES_MAX]) -> Option<&'a [u8]> {
    let name = without_root(without_port(host));
    if name.is_empty() {
        return None;
    }
    // All of it, without an early end: a few vector instructions.
    if !name.iter().fold(false, |upper, byte| upper | byte.is_ascii_uppercase()) {
        return Some(name);
    }
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    Some(lower)
}

/// Without the dot of the DNS root at its end.
#[inline]
fn without_root(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Action, FieldMatch, Forward, HeaderRules, ValueMatch};
    use super::*;
    use crate::http::head::{Fields, HeadLimits, Parsed, Scratch, parse_request};

    fn router(matchers: Vec<Matcher>) -> Router {
        let route = |_| Route::new("r", Action::Forward(Forward::to(0)));
        Router::new(matchers.into_iter().enumerate().map(|(n, m)| (m, route(n))).collect())
    }

    fn on(host: &str, path: PathMatch) -> Matcher {
        Matcher { host: HostMatch::parse(host), path, ..Matcher::default() }
    }

    fn prefix(path: &str) -> PathMatch {
        PathMatch::Prefix(path.to_owned())
    }

    fn exact(path: &str) -> PathMatch {
        PathMatch::Exact(path.to_owned())
    }

    fn with_fields<T>(lines: &str, then: impl FnOnce(&Fields<'_, '_>) -> T) -> T {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let mut scratch = Scratch::new();
        match parse_request(head.as_bytes(), &HeadLimits::default(), &mut scratch) {
            Ok(Parsed::Complete(head)) => then(&head.fields),
            _ => panic!("not a head: {head}"),
        }
    }

    fn find(router: &Router, host: &str, path: &str) -> Option<usize> {
        with_fields("", |fields| {
            let (host, path) = (host.as_bytes(), path.as_bytes());
            router.find(&RequestView {
                method: b"GET",
                host,
                path,
                query: None,
                fields,
                listener: 0,
            })
        })
    }

    #[test]
    fn exact_hosts_before_suffixes_before_any() {
        let router = router(vec![
            on("*", prefix("/")),
            on("*.example", prefix("/")),
            on("*.a.example", prefix("/")),
            on("x.a.example", prefix("/")),
        ]);
        assert_eq!(find(&router, "x.a.example", "/"), Some(3));
        assert_eq!(find(&router, "X.A.Example.:8080", "/"), Some(3));
        assert_eq!(find(&router, "y.a.example", "/"), Some(2));
        assert_eq!(find(&router, "z.y.a.example", "/"), Some(2));
        assert_eq!(find(&router, "a.example", "/"), Some(1));
        assert_eq!(find(&router, "b.example:80", "/"), Some(1));
        assert_eq!(find(&router, "example", "/"), Some(0));
        assert_eq!(find(&router, ".example", "/"), Some(0));
        assert_eq!(find(&router, "", "/"), Some(0));
        assert_eq!(find(&router, "[::1]:80", "/"), Some(0));
        let long = format!("{}.example", "A".repeat(300));
        assert_eq!(find(&router, &long, "/"), Some(0));
    }

    #[test]
    fn addresses_are_hosts() {
        let router = router(vec![on("[::1]", prefix("/")), on("127.0.0.1", prefix("/"))]);
        assert_eq!(find(&router, "[::1]:8080", "/"), Some(0));
        assert_eq!(find(&router, "[::1]", "/"), Some(0));
        assert_eq!(find(&router, "127.0.0.1:80", "/"), Some(1));
        assert_eq!(find(&router, "[::2]", "/"), None);
    }

    #[test]
    fn exact_paths_before_the_longest_prefix() {
        let router = router(vec![
            on("*", prefix("/")),
            on("*", prefix("/api")),
            on("*", prefix("/api/v1/")),
            on("*", exact("/api/v1")),
            on("*", exact("/api/")),
        ]);
        assert_eq!(find(&router, "a", "/api/v1"), Some(3));
        assert_eq!(find(&router, "a", "/api/v1/"), Some(2));
        assert_eq!(find(&router, "a", "/api/v1/x/y"), Some(2));
        assert_eq!(find(&router, "a", "/api/v12"), Some(1));
        assert_eq!(find(&router, "a", "/api"), Some(1));
        assert_eq!(find(&router, "a", "/api/"), Some(4));
        assert_eq!(find(&router, "a", "/apix"), Some(0));
        assert_eq!(find(&router, "a", "*"), Some(0));
        assert_eq!(
            router.routes().iter().map(|route| route.prefix_bytes).collect::<Vec<_>>(),
            [0, 4, 7, 7, 5]
        );
    }

    #[test]
    fn a_failed_condition_is_passed_over() {
        let method =
            |method: &str, matcher| Matcher { methods: vec![method.to_owned()], ..matcher };
        let router = router(vec![
            method("POST", on("a", exact("/x"))),
            method("POST", on("a", prefix("/x"))),
            method("PUT", on("a", prefix("/x"))),
            Matcher { listeners: vec![1, 2], ..on("a", prefix("/")) },
            on("*", prefix("/x")),
        ]);
        assert_eq!(find(&router, "a", "/x"), Some(4));
        let at = |method: &str, listener| {
            with_fields("", |fields| {
                let method = method.as_bytes();
                let path = b"/x";
                router.find(&RequestView {
                    method,
                    host: b"a",
                    path,
                    query: None,
                    fields,
                    listener,
                })
            })
        };
        assert_eq!(at("POST", 0), Some(0));
        assert_eq!(at("PUT", 2), Some(2));
        assert_eq!(at("GET", 2), Some(3));
        assert_eq!(at("post", 0), Some(4));
    }

    #[test]
    fn nothing_matches_nothing() {
        assert_eq!(find(&router(vec![]), "a", "/"), None);
        assert_eq!(find(&router(vec![on("b", prefix("/"))]), "a", "/"), None);
        assert_eq!(find(&router(vec![on("*", prefix("/x"))]), "a", "/"), None);
    }

    #[test]
    #[should_panic(expected = "was not checked")]
    fn unchecked_routes_are_not_taken() {
        let rules = HeaderRules { remove: vec!["a b".into()], ..HeaderRules::default() };
        let route =
            Route { request_headers: rules, ..Route::new("r", Action::Forward(Forward::to(0))) };
        Router::new(vec![(Matcher::default(), route)]);
    }

    /// A million short segments take no million look-ups.
    #[test]
    fn long_paths_are_cheap() {
        let router = router(vec![on("*", prefix("/a/b")), on("*", prefix(&"/x".repeat(400)))]);
        assert_eq!(find(&router, "a", &"/a".repeat(1_000_000)), None);
        assert_eq!(find(&router, "a", &"/x".repeat(400)), Some(1));
        assert_eq!(find(&router, "a", &"/x".repeat(1_000)), Some(1));
        assert_eq!(find(&router, "a", &format!("{}x", "/x".repeat(400))), None);
    }

    /// The documented order, by looking at every rule.
    fn slow_find(matchers: &[Matcher], view: &RequestView<'_>) -> Option<usize> {
        let host = String::from_utf8(view.host.to_vec()).unwrap().to_ascii_lowercase();
        let host = host.split(':').next().unwrap().trim_end_matches('.').to_owned();
        let path = String::from_utf8(view.path.to_vec()).unwrap();
        let rank = |matcher: &Matcher| {
            let host_rank = match &matcher.host {
                HostMatch::Any => Some((0, 0)),
                HostMatch::Exact(exact) => (*exact == host).then_some((2, 0)),
                HostMatch::Suffix(suffix) => {
                    let ends = host.ends_with(&format!(".{suffix}"));
                    (ends && host.len() > suffix.len() + 1).then_some((1, suffix.len()))
                }
            };
            let path_rank = match &matcher.path {
                PathMatch::Any => Some((0, 0)),
                PathMatch::Exact(exact) => (*exact == path).then_some((1, 0)),
                PathMatch::Prefix(prefix) => {
                    let prefix = prefix.trim_end_matches('/');
                    let below = path == prefix || path.starts_with(&format!("{prefix}/"));
                    (prefix.is_empty() || below).then_some((0, prefix.len()))
                }
            };
            host_rank.zip(path_rank).filter(|_| matcher.holds(view))
        };
        let ranked = matchers.iter().enumerate().filter_map(|(n, m)| Some((rank(m)?, n)));
        ranked.max_by_key(|(rank, number)| (*rank, std::cmp::Reverse(*number))).map(|(_, n)| n)
    }

    fn any_matcher() -> impl Strategy<Value = Matcher> {
        let host = "([ab]\\.)?[ab]";
        let host = prop_oneof![
            Just(HostMatch::Any),
            host.prop_map(HostMatch::Exact),
            host.prop_map(HostMatch::Suffix),
        ];
        let path = prop_oneof![
            Just(PathMatch::Any),
            "(/[xy]{1,2}){0,3}/?".prop_map(PathMatch::Prefix),
            "(/[xy]{1,2}){1,3}/?".prop_map(PathMatch::Exact),
        ];
        let methods = prop::collection::vec("GET|PUT", 0..2);
        let header = |name: String| FieldMatch { name, value: ValueMatch::Present, invert: false };
        let headers = prop::collection::vec("H[12]".prop_map(header), 0..2);
        let listeners = prop::collection::vec(0usize..2, 0..2);
        (listeners, host, path, methods, headers).prop_map(
            |(listeners, host, path, methods, headers)| Matcher {
                listeners,
                host,
                path,
                methods,
                headers,
                query: vec![],
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Hosts and paths from small alphabets, so that they meet often.
        #[test]
        fn finds_what_a_look_at_every_rule_finds(
            matchers in prop::collection::vec(any_matcher(), 0..20),
            requests in prop::collection::vec(
                ("([abAB]\\.){0,2}[abAB]\\.?(:80)?", "(/[xy]{1,2}){0,4}/?", "GET|PUT|POST", "(h[12]: 1\r\n)?", 0usize..3),
                1..20,
            ),
        ) {
            let router = router(matchers.clone());
            for (host, path, method, lines, listener) in &requests {
                with_fields(lines, |fields| {
                    let view = RequestView {
                        method: method.as_bytes(),
                        host: host.as_bytes(),
                        path: path.as_bytes(),
                        query: None,
                        fields,
                        listener: *listener,
                    };
                    prop_assert_eq!(router.find(&view), slow_find(&matchers, &view), "{} {}", host, path);
                    Ok(())
                })?;
            }
        }
    }
}
