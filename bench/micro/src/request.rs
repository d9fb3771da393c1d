//! What leaves: forwarded fields, the outgoing heads; and all that is decided about a request and
//! about its answer, step after step as `admit` and `answer` take them. Those two themselves need a
//! connection, which only the accept loop can make.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use outrigger::balance::{Balancer, Policy, Zone};
use outrigger::http::encode::{self, AnswerEdits, KindSet, Persistence, RequestEdits};
use outrigger::http::forwarded::{Arrival, Client, Forwarding, RequestIds, Trusted};
use outrigger::http::head::{
    FieldKind, HeadLimits, Method, Parsed, RequestHead, Scratch, parse_answer, parse_request,
};
use outrigger::http::path::{Normal, PathPolicy, normalise};
use outrigger::plan::Endpoint;
use outrigger::reconcile::EndpointId;
use outrigger::route::{Action, Forward, HeaderRules, Matcher, RequestView, Route, Router};

use crate::balance::InFlight;
use crate::messages::{
    ANSWER, ANSWER_16_FIELDS, GET_30_FIELDS, GET_BROWSER, GET_CURL, GET_FORWARDED, GET_WRK, answer,
    request,
};
use crate::{Step, Work};

pub const STEPS: &[Step] = &[
    Step { name: "forwarded: client, a stranger", prepare: || client(GET_CURL, false) },
    Step {
        name: "forwarded: client, behind 2 trusted proxies",
        prepare: || client(GET_FORWARDED, true),
    },
    Step { name: "forwarded: write, a stranger", prepare: || forwarded(GET_CURL, false) },
    Step {
        name: "forwarded: write, behind 2 trusted proxies",
        prepare: || forwarded(GET_FORWARDED, true),
    },
    Step { name: "forwarded: request id", prepare: request_id },
    Step { name: "encode: request, 1 field", prepare: || encode_request(GET_WRK, false) },
    Step { name: "encode: request, 3 fields", prepare: || encode_request(GET_CURL, false) },
    Step { name: "encode: request, 15 fields", prepare: || encode_request(GET_BROWSER, false) },
    Step { name: "encode: request, 30 fields", prepare: || encode_request(&GET_30_FIELDS, false) },
    Step {
        name: "encode: request, 15 fields, 3 rules",
        prepare: || encode_request(GET_BROWSER, true),
    },
    Step { name: "encode: answer, 5 fields", prepare: || encode_answer(ANSWER) },
    Step { name: "encode: answer, 16 fields", prepare: || encode_answer(ANSWER_16_FIELDS) },
    Step { name: "together: request, 1 field", prepare: || whole_request(GET_WRK) },
    Step { name: "together: request, 3 fields", prepare: || whole_request(GET_CURL) },
    Step { name: "together: request, 15 fields", prepare: || whole_request(GET_BROWSER) },
    Step { name: "together: request, 30 fields", prepare: || whole_request(&GET_30_FIELDS) },
    Step { name: "together: answer, 5 fields", prepare: || whole_answer(ANSWER) },
    Step { name: "together: answer, 16 fields", prepare: || whole_answer(ANSWER_16_FIELDS) },
];

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 8));

const DATE: &[u8] = b"Fri, 20 Nov 2026 12:34:56 GMT";

/// The kinds that a listener's rules for forwarded fields may drop.
const FORWARDED: [FieldKind; 5] = [
    FieldKind::XForwardedFor,
    FieldKind::XForwardedProto,
    FieldKind::XForwardedHost,
    FieldKind::XRequestId,
    FieldKind::Forwarded,
];

fn forwarding(trusting: bool) -> Forwarding {
    let cidrs = if trusting { vec!["10.0.0.0/8".parse().expect("a range")] } else { Vec::new() };
    Forwarding { trusted: Trusted { cidrs, hops: 0 }, ..Forwarding::default() }
}

fn room() -> Vec<u8> {
    Vec::with_capacity(32 * 1024)
}

fn client(bytes: &'static [u8], trusting: bool) -> Work {
    let (head, forwarding) = (request(bytes), forwarding(trusting));
    assert_eq!(forwarding.client(PEER, &head.fields).trusted_peer, trusting);
    Box::new(move || _ = black_box(forwarding.client(black_box(PEER), black_box(&head.fields))))
}

fn arrival<'a>(head: &RequestHead<'a, '_>) -> Arrival<'a> {
    Arrival { peer: black_box(PEER), tls: false, host: head.host, version: head.version }
}

fn forwarded(bytes: &'static [u8], trusting: bool) -> Work {
    let (head, forwarding) = (request(bytes), forwarding(trusting));
    let client = forwarding.client(PEER, &head.fields);
    let (mut ids, mut out) = (RequestIds::new(1), room());
    Box::new(move || {
        out.clear();
        let (head, arrival) = (black_box(&head), arrival(&head));
        forwarding.write(&client, &arrival, &head.fields, &mut ids, |_| false, &mut out);
        black_box(&out);
    })
}

fn request_id() -> Work {
    let mut ids = RequestIds::new(1);
    Box::new(move || _ = black_box(ids.draw()))
}

/// As `admit` calls it; what we add is included.
fn write_request(
    received: &[u8],
    head: &RequestHead<'_, '_>,
    (path, client): (&[u8], &Client),
    (forwarding, rules): (&Forwarding, &HeaderRules),
    ids: &mut RequestIds,
    out: &mut Vec<u8>,
) {
    let mut dropped = KindSet::default();
    for kind in FORWARDED {
        if forwarding.drops(kind, client) {
            dropped = dropped.with(kind);
        }
    }
    if !head.expect_continue {
        dropped = dropped.with(FieldKind::Expect);
    }
    let edits = RequestEdits {
        path,
        query: head.target.query(),
        host: head.host,
        framing: head.framing,
        upgrade: None,
        dropped,
        rules,
    };
    let add = |out: &mut Vec<u8>| {
        let ruled = |name: &[u8]| !rules.is_empty() && rules.drops(name);
        forwarding.write(client, &arrival(head), &head.fields, ids, ruled, out);
    };
    encode::request(received, head, &edits, add, out);
}

fn encode_request(bytes: &'static [u8], ruled: bool) -> Work {
    let (head, forwarding) = (request(bytes), forwarding(false));
    let client = forwarding.client(PEER, &head.fields);
    let path = head.target.path().expect("a path");
    let (mut ids, mut out) = (RequestIds::new(1), room());
    let mut rules = HeaderRules::default();
    if ruled {
        rules.remove.push("x-internal".into());
        rules.set.push(("x-edge".into(), "outrigger".into()));
        rules.add.push(("x-tag".into(), "a".into()));
    }
    Box::new(move || {
        out.clear();
        let (head, about) = (black_box(&head), (black_box(path), &client));
        write_request(black_box(bytes), head, about, (&forwarding, &rules), &mut ids, &mut out);
        black_box(&out);
    })
}

fn encode_answer(bytes: &'static [u8]) -> Work {
    let head = answer(bytes);
    let (rules, mut out) = (HeaderRules::default(), room());
    Box::new(move || {
        out.clear();
        let head = black_box(&head);
        encode::answer(
            black_box(bytes),
            head,
            &answer_edits(head.framing, &rules),
            |_| {},
            &mut out,
        );
        black_box(&out);
    })
}

fn answer_edits(framing: outrigger::http::head::Framing, rules: &HeaderRules) -> AnswerEdits<'_> {
    AnswerEdits {
        framing,
        stated_length: None,
        persistence: Persistence::Implied,
        dropped: KindSet::default(),
        rules,
        date: black_box(DATE),
    }
}

/// One route, one cluster of three: a configuration of five lines.
fn whole_request(bytes: &'static [u8]) -> Work {
    request(bytes);
    let route = Route::new("all", Action::Forward(Forward::to(0)));
    let router = Router::new(vec![(Matcher::default(), route)]);
    let endpoints: Vec<Endpoint> = (1..4)
        .map(|last| Endpoint {
            id: EndpointId(last.into()),
            address: ([10, 0, 0, last], 80).into(),
            weight: 1,
            name: format!("10.0.0.{last}:80"),
            priority: 0,
            zone: Zone::Unknown,
        })
        .collect();
    let mut balancer = Balancer::new(&Policy::LeastRequest, &endpoints, 1);
    let (limits, policy, forwarding) =
        (HeadLimits::default(), PathPolicy::default(), forwarding(false));
    let (mut ids, mut out, mut normalised) = (RequestIds::new(1), room(), room());
    Box::new(move || {
        let bytes = black_box(bytes);
        let mut scratch = Scratch::new();
        let Ok(Parsed::Complete(head)) = parse_request(bytes, &limits, &mut scratch) else {
            unreachable!("parsed before");
        };
        let client = forwarding.client(black_box(PEER), &head.fields);
        normalised.clear();
        let raw = head.target.path().unwrap_or(b"/");
        let path = match normalise(raw, &policy, &mut normalised) {
            Ok(Normal::Same(path)) => path,
            _ => &normalised,
        };
        let view = RequestView {
            method: head.method_bytes,
            host: head.host,
            path,
            query: head.target.query(),
            fields: &head.fields,
            listener: 0,
        };
        let found = router.find(&view).expect("a route");
        let Route { action: Action::Forward(forward), request_headers, .. } =
            &router.routes()[found]
        else {
            unreachable!("the only route forwards");
        };
        black_box(forward.clusters.pick(black_box(7)));
        out.clear();
        let with = (&forwarding, request_headers);
        write_request(bytes, &head, (path, &client), with, &mut ids, &mut out);
        _ = black_box(balancer.pick(&InFlight(&[0; 3]), None, |_| true));
        black_box(&out);
    })
}

fn whole_answer(bytes: &'static [u8]) -> Work {
    let (limits, rules, mut out) = (HeadLimits::default(), HeaderRules::default(), room());
    Box::new(move || {
        let bytes = black_box(bytes);
        let mut scratch = Scratch::new();
        let method = black_box(Method::Get);
        let Ok(Parsed::Complete(head)) = parse_answer(bytes, &limits, method, &mut scratch) else {
            unreachable!("an answer");
        };
        out.clear();
        encode::answer(bytes, &head, &answer_edits(head.framing, &rules), |_| {}, &mut out);
        black_box(&out);
    })
}
