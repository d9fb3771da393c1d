//! What the origin is told about the client, and whose word on it is believed.

use crate::support::{Message, OK, Origin, Setup};

const CLAIMS: &str = "GET / HTTP/1.1\r\nHost: shop.example:8080\r\nX-Forwarded-For: 192.0.2.1\r\n\
    X-Forwarded-For: 198.51.100.7, 127.0.0.9\r\nX-Forwarded-Proto: https\r\n\
    X-Forwarded-Host: claimed.example\r\nX-Request-Id: claimed-id\r\n\
    Forwarded: for=192.0.2.1\r\nVia: 1.0 before\r\n\r\n";

/// What the origin sees of [`CLAIMS`].
#[track_caller]
fn seen(forwarded: &str) -> Message {
    let origin = Origin::answering(OK);
    let setup = Setup::new(&origin).listener(&format!("forwarded: {{{forwarded}}}"));
    assert_eq!(setup.start().ask(CLAIMS).status(), 200);
    origin.request()
}

#[track_caller]
fn assert_ours(request: &Message) {
    assert_eq!(request.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.get("x-forwarded-proto"), Some("http"));
    assert_eq!(request.get("x-forwarded-host"), Some("shop.example:8080"));
    assert_new_id(request);
}

#[track_caller]
fn assert_new_id(request: &Message) {
    let id = request.get("x-request-id").expect("an id");
    assert!(id.len() == 36 && id.as_bytes()[14] == b'4', "a UUID of version 4: {id}");
}

#[test]
fn a_stranger_is_not_believed() {
    let request = seen("");
    assert_ours(&request);
    assert!(!request.has("forwarded"), "{request:?}");
    assert_eq!(request.all("via"), ["1.0 before"]);
}

#[test]
fn a_trusted_proxy_is_believed() {
    let request = seen("trusted: {cidrs: ['127.0.0.0/8']}");
    assert_eq!(
        request.get("x-forwarded-for"),
        Some("192.0.2.1, 198.51.100.7, 127.0.0.9, 127.0.0.1"),
        "several lines become one"
    );
    assert_eq!(request.get("x-forwarded-proto"), Some("https"));
    assert_eq!(request.get("x-forwarded-host"), Some("claimed.example"));
    assert_eq!(request.get("x-request-id"), Some("claimed-id"));
    assert_eq!(request.get("forwarded"), Some("for=192.0.2.1"));
}

#[test]
fn proxies_elsewhere_are_not_trusted() {
    assert_ours(&seen("trusted: {cidrs: ['10.0.0.0/8', '::1/128']}"));
}

#[test]
fn proxies_may_be_counted() {
    let request = seen("trusted: {hops: 2}");
    assert_eq!(request.get("x-request-id"), Some("claimed-id"));
    assert_ours(&seen("trusted: {hops: 9}")); // The request did not come through nine.
}

#[test]
fn set_replaces_even_what_is_trusted() {
    let request =
        seen("for: set, proto: set, host: set, request_id: set, trusted: {cidrs: ['127.0.0.0/8']}");
    assert_ours(&request);
}

#[test]
fn leave_passes_on_even_what_is_not() {
    let request = seen("for: leave, proto: leave, host: leave, request_id: leave");
    assert_eq!(request.all("x-forwarded-for"), ["192.0.2.1", "198.51.100.7, 127.0.0.9"]);
    assert_eq!(request.get("x-forwarded-proto"), Some("https"));
    assert_eq!(request.get("x-forwarded-host"), Some("claimed.example"));
    assert_eq!(request.get("x-request-id"), Some("claimed-id"));
}

#[test]
fn remove_removes() {
    let request = seen("for: remove, proto: remove, host: remove, request_id: remove");
    for gone in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id"] {
        assert!(!request.has(gone), "{gone}: {request:?}");
    }
}

#[test]
fn via_names_us_behind_those_before() {
    assert_eq!(seen("via: edge").all("via"), ["1.0 before", "1.1 edge"]);
}

#[test]
fn an_answer_has_our_via_too() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 it\r\n\r\nok");
    let proxy = Setup::new(&origin).listener("forwarded: {via: edge}").start();
    assert_eq!(proxy.get("/").all("via"), ["1.1 it", "1.1 edge"], "RFC 9110, 7.6.3");
}

#[test]
fn a_sidecar_trusts_its_own_machine() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("mode: sidecar").start();
    assert_eq!(proxy.ask(CLAIMS).status(), 200);
    assert_eq!(origin.request().get("x-request-id"), Some("claimed-id"));
}

/// The client's address decides about hashing: here the only difference between two clients.
#[test]
fn the_clients_address_is_what_is_hashed() {
    let origins: Vec<_> = ["a", "b", "c", "d"].into_iter().map(Origin::named).collect();
    let setup = Setup::to(&origins.iter().collect::<Vec<_>>())
        .listener("forwarded: {trusted: {cidrs: ['127.0.0.0/8']}}")
        .cluster("balance: {maglev: {key: source_address}}");
    let proxy = setup.start();
    let ask = |number: u32| {
        let answer = proxy
            .ask(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.{number}\r\n\r\n"));
        answer.text().to_owned()
    };
    let first: Vec<_> = (0..40).map(ask).collect();
    let again: Vec<_> = (0..40).map(ask).collect();
    assert_eq!(first, again, "the same client meets the same origin");
    for name in ["a", "b", "c", "d"] {
        assert!(first.iter().any(|met| met == name), "{name} is met by somebody: {first:?}");
    }
}
