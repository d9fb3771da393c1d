//! Routing among few and among many rules. What is asked for lies spread over all of them.

use std::hint::black_box;

use outrigger::http::head::RequestHead;
use outrigger::route::{
    Action, FieldMatch, Forward, HostMatch, Matcher, PathMatch, RequestView, Route, Router,
    ValueMatch,
};

use crate::messages::{GET_CURL, request};
use crate::{ROUNDS, Step, Turns, Work};

pub const STEPS: &[Step] = &[
    Step {
        name: "route: the only one",
        prepare: || find(1, by_path, |_| "/api/0/items/42".into()),
    },
    Step { name: "route: 10 paths", prepare: || paths(10) },
    Step { name: "route: 100 paths", prepare: || paths(100) },
    Step { name: "route: 1000 paths", prepare: || paths(1000) },
    Step {
        name: "route: 1000 paths, none matches",
        prepare: || find(1000, by_path, |number| format!("/static/{number}.png")),
    },
    Step { name: "route: 10 hosts", prepare: || hosts(10) },
    Step { name: "route: 100 hosts", prepare: || hosts(100) },
    Step { name: "route: 1000 hosts", prepare: || hosts(1000) },
    Step { name: "route: 10 values of a header", prepare: || headers(10) },
    Step { name: "route: 100 values of a header", prepare: || headers(100) },
];

/// Different requests, as many as are made: hashes are seeded anew each time, so one request would
/// meet collisions today and none tomorrow.
const REQUESTS: usize = ROUNDS as usize;

fn paths(count: usize) -> Work {
    find(count, by_path, |number| format!("/api/{number}/items/42"))
}

fn by_path(number: usize) -> Matcher {
    Matcher { path: PathMatch::Prefix(format!("/api/{number}")), ..Matcher::default() }
}

fn find(count: usize, matcher: fn(usize) -> Matcher, path: fn(usize) -> String) -> Work {
    let head = request(GET_CURL);
    let asked = spread(count).map(|number| (head, path(number)));
    look_up(router(count, matcher), Turns::new(asked))
}

fn hosts(count: usize) -> Work {
    let by_host = |number| Matcher {
        host: HostMatch::Exact(format!("service-{number}.example.org")),
        ..Matcher::default()
    };
    let asked = spread(count).map(|number| {
        (head(&format!("Host: service-{number}.example.org\r\n")), "/api/items/42".to_owned())
    });
    look_up(router(count, by_host), Turns::new(asked))
}

/// They share host and path, so each is looked at until one matches.
fn headers(count: usize) -> Work {
    let by_header = |number| Matcher {
        headers: vec![FieldMatch {
            name: "x-tenant".into(),
            value: ValueMatch::Exact(format!("tenant-{number}")),
            invert: false,
        }],
        ..Matcher::default()
    };
    let asked = spread(count).map(|number| {
        (head(&format!("Host: a\r\nX-Tenant: tenant-{number}\r\n")), "/api/items/42".to_owned())
    });
    look_up(router(count, by_header), Turns::new(asked))
}

fn spread(count: usize) -> impl Iterator<Item = usize> {
    (0..REQUESTS).map(move |turn| turn * count / REQUESTS)
}

fn head(fields: &str) -> RequestHead<'static, 'static> {
    request(format!("GET / HTTP/1.1\r\n{fields}Accept: */*\r\n\r\n").into_bytes().leak())
}

fn router(count: usize, matcher: fn(usize) -> Matcher) -> Router {
    let route = |number| Route::new(format!("r{number}"), Action::Forward(Forward::to(0)));
    Router::new((0..count).map(|number| (matcher(number), route(number))).collect())
}

fn look_up(router: Router, mut asked: Turns<(RequestHead<'static, 'static>, String)>) -> Work {
    Box::new(move || {
        let (head, path) = asked.next();
        let view = RequestView {
            method: head.method_bytes,
            host: head.host,
            path: path.as_bytes(),
            query: None,
            fields: &head.fields,
            listener: 0,
        };
        black_box(router.find(&view));
    })
}
