//! Which request goes where, and what is changed on its way.

use crate::support::{Origin, Proxy, Setup};

/// Says which origin answers.
#[track_caller]
fn met(proxy: &Proxy, head: &str) -> String {
    let answer = proxy.ask(format!("{head}\r\n\r\n"));
    match answer.status() {
        200 => answer.text().to_owned(),
        status => status.to_string(),
    }
}

#[test]
fn hosts_and_paths_by_precedence() {
    let usual = Origin::named("usual");
    let others: Vec<_> =
        ["exact", "suffix", "deep", "path", "api", "v2"].into_iter().map(Origin::named).collect();
    let mut setup = Setup::new(&usual);
    for (name, origin) in ["exact", "suffix", "deep", "path", "api", "v2"].iter().zip(&others) {
        setup = setup.and_cluster(name, origin);
    }
    let proxy = setup
        .and_route("match: {host: '*.example.org'}, cluster: suffix")
        .and_route("match: {host: '*.deep.example.org'}, cluster: deep")
        .and_route("match: {host: www.example.org}, cluster: exact")
        .and_route("match: {prefix: /api}, cluster: api")
        .and_route("match: {prefix: /api/v2}, cluster: v2")
        .and_route("match: {path: /api/exact}, cluster: path")
        .start();
    for (host, path, expected) in [
        ("www.example.org", "/", "exact"),
        ("WWW.Example.ORG:8080", "/", "exact"),
        ("ftp.example.org", "/", "suffix"),
        ("a.b.example.org", "/", "suffix"),
        ("x.deep.example.org", "/", "deep"),
        ("example.org", "/", "usual"),
        ("notexample.org", "/", "usual"),
        ("www.example.org", "/api", "exact"),
        ("a", "/api", "api"),
        ("a", "/api/x", "api"),
        ("a", "/apix", "usual"),
        ("a", "/api/v2", "v2"),
        ("a", "/api/v2/x", "v2"),
        ("a", "/api/v22", "api"),
        ("a", "/api/exact", "path"),
        ("a", "/api/exact/x", "api"),
        ("a", "/api?/api/v2", "api"),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}");
        assert_eq!(met(&proxy, &head), expected, "{host} {path}");
    }
}

#[test]
fn methods_headers_and_query() {
    let usual = Origin::named("usual");
    let others: Vec<_> = ["post", "beta", "debug"].into_iter().map(Origin::named).collect();
    let mut setup = Setup::new(&usual);
    for (name, origin) in ["post", "beta", "debug"].iter().zip(&others) {
        setup = setup.and_cluster(name, origin);
    }
    let proxy = setup
        .and_route("match: {methods: [POST, PUT]}, cluster: post")
        .and_route("match: {headers: [{name: x-beta, exact: 'yes'}]}, cluster: beta")
        .and_route("match: {query: [{name: debug, exact: '1'}]}, cluster: debug")
        .start();
    for (head, expected) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0", "post"),
        ("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0", "post"),
        ("GET / HTTP/1.1\r\nHost: a", "usual"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX-Beta: yes", "beta"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX-Beta: no", "usual"),
        ("GET /?debug=1 HTTP/1.1\r\nHost: a", "debug"),
        ("GET /?x&debug=1&y HTTP/1.1\r\nHost: a", "debug"),
        ("GET /?debug=11 HTTP/1.1\r\nHost: a", "usual"),
        ("GET /?xdebug=1 HTTP/1.1\r\nHost: a", "usual"),
    ] {
        assert_eq!(met(&proxy, head), expected, "{head}");
    }
}

#[test]
fn what_no_route_takes_is_a_404() {
    let origin = Origin::named("it");
    let proxy =
        Setup::new(&origin).route("match: {prefix: /app}").listener("reason_header: true").start();
    let mut client = proxy.client();
    let answer = client.get("/");
    assert_eq!((answer.status(), answer.get("x-outrigger-reason")), (404, Some("no-route")));
    assert_eq!(client.get("/app").text(), "it", "the connection goes on");
}

#[test]
fn a_refused_upload_is_not_taken_for_a_request() {
    let origin = Origin::named("it");
    let proxy = Setup::new(&origin).route("match: {prefix: /app}").start();
    let smuggled = "GET /app HTTP/1.1\r\nHost: a\r\n\r\n";
    for framing in
        [format!("Content-Length: {}", smuggled.len()), "Transfer-Encoding: chunked".into()]
    {
        let mut client = proxy.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
        let _ = client.try_send(smuggled);
        assert_eq!(client.answer().status(), 404);
        client.shutdown_write();
        assert_eq!(client.rest().0, b"", "no second answer");
    }
    assert!(origin.requests().is_empty());
}

#[test]
fn prefixes_and_hosts_are_rewritten() {
    let origin = Origin::echoing();
    let proxy = Setup::new(&origin)
        .and_route(
            "match: {prefix: /api}, prefix_rewrite: /v1, host_rewrite: 'inside:81', cluster: app",
        )
        .and_route("match: {prefix: /strip}, prefix_rewrite: /, cluster: app")
        .start();
    for (sent, expected) in [
        ("/api", "GET /v1 HTTP/1.1"),
        ("/api/x?y", "GET /v1/x?y HTTP/1.1"),
        ("/strip", "GET / HTTP/1.1"),
        ("/strip/x", "GET /x HTTP/1.1"),
        ("/strip/x/../../y", "GET /y HTTP/1.1"),
    ] {
        assert_eq!(proxy.get(sent).text(), expected);
    }
    proxy.get("/api");
    let request = origin.last_request();
    assert_eq!(request.get("host"), Some("inside:81"));
    assert_eq!(request.get("x-forwarded-host"), Some("example.org"));
}

#[test]
fn redirects() {
    let origin = Origin::named("it");
    let proxy = Setup::new(&origin)
        .and_route(
            "match: {prefix: /a}, redirect: {status: 308, scheme: https, host: 'new.example:444'}",
        )
        .and_route("match: {prefix: /b}, redirect: {prefix_rewrite: /c}")
        .and_route("match: {path: /d}, redirect: {status: 301, path: /e}")
        .start();
    let mut client = proxy.client();
    for (path, status, location) in [
        ("/a/x?y", 308, "https://new.example:444/a/x?y"),
        ("/b/x?y", 302, "http://example.org/c/x?y"),
        ("/d", 301, "http://example.org/e"),
    ] {
        let answer = client.get(path);
        assert_eq!(answer.status(), status);
        assert_eq!(answer.get("location"), Some(location));
    }
    assert!(origin.requests().is_empty());
}

/// Behind a proxy of ours that ends TLS, a redirect must not lead out of it.
#[test]
fn redirects_keep_the_scheme_that_a_trusted_peer_tells() {
    let origin = Origin::named("it");
    for (trusted, location) in
        [("127.0.0.0/8", "https://example.org/c/x"), ("10.0.0.0/8", "http://example.org/c/x")]
    {
        let proxy = Setup::new(&origin)
            .listener(&format!("forwarded: {{trusted: {{cidrs: ['{trusted}']}}}}"))
            .and_route("match: {prefix: /b}, redirect: {prefix_rewrite: /c}")
            .start();
        let request = "GET /b/x HTTP/1.1\r\nHost: example.org\r\nX-Forwarded-Proto: https\r\n\r\n";
        assert_eq!(proxy.ask(request).get("location"), Some(location));
    }
}

#[test]
fn direct_responses() {
    let origin = Origin::named("it");
    let proxy = Setup::new(&origin)
        .and_route("match: {path: /robots.txt}, respond: {body: 'nothing here'}")
        .and_route(
            "match: {path: /gone}, respond: {status: 410, content_type: text/html, body: <p>}",
        )
        .and_route(
            "match: {path: /empty}, respond: {status: 204}, response_headers: {set: {x-own: '1'}}",
        )
        .start();
    let mut client = proxy.client();
    let answer = client.get("/robots.txt");
    assert_eq!((answer.status(), answer.text()), (200, "nothing here"));
    assert_eq!(answer.get("content-type"), Some("text/plain; charset=utf-8"));
    let answer = client.get("/gone");
    assert_eq!(
        (answer.status(), answer.text(), answer.get("content-type")),
        (410, "<p>", Some("text/html"))
    );
    let answer = client.get("/empty");
    assert_eq!((answer.status(), answer.get("x-own")), (204, Some("1")));
    let head = client.ask("HEAD /robots.txt HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(head.get("content-length"), Some("12"));
    assert_eq!(client.get("/x").text(), "it");
}

#[test]
fn headers_are_removed_set_and_added() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Gone: 1\r\nX-Set: 1\r\nX-Add: 1\r\nServer: it\r\n\r\n",
    );
    let rules = "{remove: [x-gone], set: {x-set: '2'}, add: {x-add: ['2', '3']}}";
    let proxy = Setup::new(&origin)
        .route(&format!("request_headers: {rules}, response_headers: {rules}"))
        .start();
    let answer = proxy.ask(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Gone: 1\r\nx-gone: 2\r\nX-SET: 1\r\nX-Add: 1\r\nX-Other: 1\r\n\r\n",
    );
    let request = origin.request();
    for message in [&request, &answer] {
        assert!(!message.has("x-gone"), "{message:?}");
        assert_eq!(message.all("x-set"), ["2"]);
        assert_eq!(message.all("x-add"), ["1", "2", "3"]);
    }
    assert_eq!(request.get("x-other"), Some("1"));
    assert_eq!(answer.get("server"), Some("it"));
}

/// What rules add is ours: a client cannot have it removed by naming it in Connection.
#[test]
fn added_headers_cannot_be_named_away() {
    let origin = Origin::named("it");
    let proxy = Setup::new(&origin)
        .route("request_headers: {set: {x-internal: '1'}, add: {x-more: '1'}}")
        .start();
    proxy.ask(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, x-internal, x-more\r\nX-Internal: 0\r\n\r\n",
    );
    let request = origin.request();
    assert_eq!(request.all("x-internal"), ["1"]);
    assert_eq!(request.all("x-more"), ["1"]);
}

#[test]
fn a_split_goes_by_weight() {
    let (usual, canary) = (Origin::named("usual"), Origin::named("canary"));
    let proxy = Setup::new(&usual)
        .and_cluster("canary", &canary)
        .and_route(
            "match: {prefix: /split}, \
             clusters: [{name: app, weight: 3}, {name: canary, weight: 1}]",
        )
        .and_route("match: {prefix: /none}, clusters: [{name: app, weight: 0}, {name: canary}]")
        .start();
    let mut client = proxy.client();
    let met = (0..400).filter(|_| client.get("/split").text() == "canary").count();
    // 100 expected; seven standard deviations.
    assert!((40..=160).contains(&met), "{met} of 400");
    assert!((0..50).all(|_| client.get("/none").text() == "canary"));
}

#[test]
fn routes_may_belong_to_listeners() {
    let (usual, inside) = (Origin::named("usual"), Origin::named("inside"));
    let proxy = Setup::new(&usual)
        .and_listener("name: inner")
        .and_cluster("inside", &inside)
        .and_route("listeners: [inner], cluster: inside")
        .start();
    assert_eq!(proxy.get("/").text(), "usual");
    let mut client = crate::support::Client::connect(proxy.address_of("inner"));
    assert_eq!(client.get("/").text(), "inside");
}
