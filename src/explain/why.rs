//! Why a request falls under this rule and not under another. Every condition is judged by the
//! router itself: one of a single rule that asks nothing else.

use crate::route::{
    Action, FieldMatch, Forward, HostMatch, Matcher, PathMatch, RequestView, Route, Router,
    ValueMatch,
};

/// A route that was not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PassedOver {
    /// Its place in the configuration.
    pub route: usize,
    pub why: String,
    /// Host and path match: it is another condition, or there is a more exact one.
    pub is_near: bool,
}

/// What a rule asks, one condition after the other, in the order in which they are judged.
fn conditions(matcher: &Matcher, listeners: &[&str]) -> Vec<(Matcher, String)> {
    let only = |change: &dyn Fn(&mut Matcher)| {
        let mut matcher = Matcher::default();
        change(&mut matcher);
        matcher
    };
    let mut all = vec![
        (only(&|it| it.host = matcher.host.clone()), format!("wants host {}", host(&matcher.host))),
        (only(&|it| it.path = matcher.path.clone()), path(&matcher.path)),
    ];
    if !matcher.listeners.is_empty() {
        let names: Vec<_> = matcher.listeners.iter().map(|index| listeners[*index]).collect();
        let wants = format!("wants listener {}", names.join(" or "));
        all.push((only(&|it| it.listeners = matcher.listeners.clone()), wants));
    }
    if !matcher.methods.is_empty() {
        let wants = format!("wants method {}", matcher.methods.join(" or "));
        all.push((only(&|it| it.methods = matcher.methods.clone()), wants));
    }
    for header in &matcher.headers {
        all.push((only(&|it| it.headers = vec![header.clone()]), field("header", header)));
    }
    for query in &matcher.query {
        all.push((only(&|it| it.query = vec![query.clone()]), field("query parameter", query)));
    }
    all
}

fn host(host: &HostMatch) -> String {
    match host {
        HostMatch::Any => "any".to_owned(),
        HostMatch::Exact(host) => host.clone(),
        HostMatch::Suffix(suffix) => {
            format!("*.{}", suffix.trim_start_matches('*').trim_start_matches('.'))
        }
    }
}

fn path(path: &PathMatch) -> String {
    match path {
        PathMatch::Any => "wants any path".to_owned(),
        PathMatch::Prefix(prefix) => format!("wants a path below {prefix}"),
        PathMatch::Exact(path) => format!("wants path {path}"),
    }
}

fn field(kind: &str, FieldMatch { name, value, invert }: &FieldMatch) -> String {
    let (wants, text) = match value {
        ValueMatch::Exact(text) => ("to be", text),
        ValueMatch::Prefix(text) => ("to begin with", text),
        ValueMatch::Suffix(text) => ("to end with", text),
        ValueMatch::Contains(text) => ("to have in it", text),
        ValueMatch::Present if *invert => return format!("wants no {kind} {name}"),
        ValueMatch::Absent if !invert => return format!("wants no {kind} {name}"),
        ValueMatch::Present | ValueMatch::Absent => return format!("wants {kind} {name}"),
    };
    format!("wants {kind} {name} {}{wants} '{text}'", if *invert { "not " } else { "" })
}

/// Which of these rules the router takes.
fn taken(matchers: &[&Matcher], view: &RequestView<'_>) -> Option<usize> {
    let route = || Route::new("", Action::Forward(Forward::to(0)));
    let rules = matchers.iter().map(|matcher| ((*matcher).clone(), route()));
    Router::new(rules.collect()).find(view)
}

/// The routes that come before the one that is taken, in the file or by precedence, in the order of
/// the file; all of them where none is taken. `rules` and `found` are as in the plan's router.
pub(super) fn passed_over(
    rules: &[(usize, Matcher)],
    listeners: &[&str],
    found: Option<usize>,
    view: &RequestView<'_>,
) -> Vec<PassedOver> {
    let winner = found.map(|found| &rules[found]);
    let mut all = Vec::new();
    let routes = rules.iter().map(|(route, _)| *route).max().map_or(0, |last| last + 1);
    for route in (0..routes).filter(|route| winner.is_none_or(|(taken, _)| taken != route)) {
        let own = || rules.iter().filter(|(of, _)| *of == route).map(|(_, matcher)| matcher);
        // A route with several hosts has a rule for each: what comes nearest tells most.
        let nearest = own().map(|matcher| judge(matcher, listeners, view)).max_by_key(|it| it.0);
        let Some((passed, mut why, matcher)) = nearest else { continue };
        if passed == 0 {
            let hosts: Vec<_> = own().map(|matcher| host(&matcher.host)).collect();
            why = Some(format!("wants host {}", hosts.join(" or ")));
        }
        let is_near = passed >= 2;
        if let Some((taken_route, taken_matcher)) = winner
            && *taken_route < route
            && !(is_near && precedes(matcher, taken_matcher, view))
        {
            continue;
        }
        let why = why.unwrap_or_else(|| "matches too, but less exactly".to_owned());
        all.push(PassedOver { route, why, is_near });
    }
    all
}

/// How many conditions hold before the first that does not, and that one.
fn judge<'a>(
    matcher: &'a Matcher,
    listeners: &[&str],
    view: &RequestView<'_>,
) -> (usize, Option<String>, &'a Matcher) {
    let conditions = conditions(matcher, listeners);
    let failed = conditions.iter().position(|(condition, _)| taken(&[condition], view).is_none());
    match failed {
        Some(place) => (place, Some(conditions[place].1.clone()), matcher),
        None => (usize::MAX, None, matcher),
    }
}

/// Whether a rule comes before another one that stands before it in the file: by host and path.
fn precedes(matcher: &Matcher, other: &Matcher, view: &RequestView<'_>) -> bool {
    let place = |matcher: &Matcher| {
        let Matcher { host, path, .. } = matcher.clone();
        Matcher { host, path, ..Matcher::default() }
    };
    taken(&[&place(other), &place(matcher)], view) == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::{HeadLimits, Parsed, Scratch, parse_request};

    fn rule(host: &str, path: PathMatch) -> Matcher {
        Matcher { host: HostMatch::parse(host), path, ..Matcher::default() }
    }

    /// What is said of the others, and which is taken.
    fn ask(rules: &[(usize, Matcher)], host: &str, path: &str) -> (Option<usize>, Vec<String>) {
        let mut scratch = Scratch::new();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nx-user: ann\r\n\r\n";
        let Ok(Parsed::Complete(head)) = parse_request(head, &HeadLimits::default(), &mut scratch)
        else {
            panic!("a head")
        };
        let (host, path) = (host.as_bytes(), path.as_bytes());
        let view = RequestView {
            method: b"GET",
            host,
            path,
            query: Some(b"v=1"),
            fields: &head.fields,
            listener: 0,
        };
        let matchers: Vec<_> = rules.iter().map(|(_, matcher)| matcher).collect();
        let found = taken(&matchers, &view);
        let all = passed_over(rules, &["one", "two"], found, &view);
        let said = all.iter().map(|it| format!("{}: {}", it.route, it.why));
        (found.map(|found| rules[found].0), said.collect())
    }

    fn prefix(path: &str) -> PathMatch {
        PathMatch::Prefix(path.into())
    }

    #[test]
    fn each_condition_is_named() {
        let header = |name: &str, value, invert| FieldMatch { name: name.into(), value, invert };
        let rest = |change: &dyn Fn(&mut Matcher)| {
            let mut matcher = rule("*", prefix("/a"));
            change(&mut matcher);
            matcher
        };
        let exactly = |text: &str| ValueMatch::Exact(text.into());
        let rules = [
            (0, rule("b.example", prefix("/a"))),
            (1, rule("*.example", prefix("/b"))),
            (2, rest(&|it| it.listeners = vec![1])),
            (3, rest(&|it| it.methods = vec!["POST".into(), "PUT".into()])),
            (4, rest(&|it| it.headers = vec![header("x-user", exactly("bob"), false)])),
            (5, rest(&|it| it.headers = vec![header("X-User", ValueMatch::Present, true)])),
            (6, rest(&|it| it.query = vec![header("v", exactly("1"), true)])),
            (7, rule("*", PathMatch::Any)),
            (8, rule("*", prefix("/a"))),
            (9, rule("*", prefix("/a"))),
        ];
        let (taken, said) = ask(&rules, "a.example", "/a");
        assert_eq!(taken, Some(8));
        assert_eq!(
            said,
            [
                "0: wants host b.example",
                "1: wants a path below /b",
                "2: wants listener two",
                "3: wants method POST or PUT",
                "4: wants header x-user to be 'bob'",
                "5: wants no header X-User",
                "6: wants query parameter v not to be '1'",
                "7: matches too, but less exactly",
            ]
        );
    }

    /// A later one is only told of if it is asked before.
    #[test]
    fn precedence_counts_before_the_file() {
        let post = |path| Matcher { methods: vec!["POST".into()], ..rule("*", path) };
        let rules = [
            (0, rule("*", prefix("/a"))),
            (1, post(PathMatch::Exact("/a/b".into()))),
            (2, post(prefix("/a"))),
            (3, rule("*", PathMatch::Any)),
        ];
        let expected = vec!["1: wants method POST".to_owned()];
        assert_eq!(ask(&rules, "a", "/a/b"), (Some(0), expected));
        assert_eq!(ask(&rules[1..3], "a", "/c").1.len(), 2, "all, where there is none");
    }

    /// Of several hosts, the one that matches.
    #[test]
    fn a_route_with_several_hosts_is_told_of_once() {
        let rules = [
            (0, rule("a.example", PathMatch::Exact("/x".into()))),
            (0, rule("b.example", PathMatch::Exact("/x".into()))),
            (1, rule("*", PathMatch::Any)),
        ];
        assert_eq!(ask(&rules, "b.example", "/").1, ["0: wants path /x"]);
        assert_eq!(ask(&rules, "c.example", "/").1, ["0: wants host a.example or b.example"]);
    }
}
