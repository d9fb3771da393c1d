//! One line for each request, in each of the formats.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{OK, Origin, Proxy, Setup, eventually, pause};

const REQUEST: &str = "GET /a/../b?c=\"d\" HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/\"8\"\r\n\
    Referer: http://before/\r\n\r\n";

fn start(format: &str) -> (Origin, Proxy) {
    let origin = Origin::answering(OK);
    let access_log = format!("access_log: {{path: '{{dir}}/access', format: {format}}}");
    let proxy = Setup::new(&origin).listener(&access_log).start();
    (origin, proxy)
}

/// The lines, once there are so many.
#[track_caller]
fn lines(proxy: &Proxy, name: &str, count: usize) -> Vec<String> {
    let read = || std::fs::read_to_string(proxy.path(name)).unwrap_or_default();
    eventually("the lines are written", || read().lines().count() >= count);
    let text = read();
    assert!(text.ends_with('\n'));
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), count, "{text}");
    lines
}

#[test]
fn json() {
    let (origin, proxy) = start("json");
    proxy.ask(REQUEST);
    let line: Value = serde_json::from_str(&lines(&proxy, "access", 1)[0]).expect("JSON");
    assert_eq!(line["http.request.method"], "GET");
    assert_eq!(line["url.original"], "/a/../b?c=\"d\"");
    assert_eq!(line["http.version"], "1.1");
    assert_eq!(line["http.response.status_code"], 200);
    assert_eq!(line["http.response.body.bytes"], 2);
    assert_eq!(line["http.request.body.bytes"], 0);
    assert_eq!(line["client.ip"], "127.0.0.1");
    assert_eq!(line["url.domain"], "example.org");
    assert_eq!(line["user_agent.original"], "curl/\"8\"");
    assert_eq!(line["http.request.referrer"], "http://before/");
    assert_eq!(line["outrigger.upstream.address"], origin.address().to_string());
    assert_eq!(line["outrigger.listener"], "main");
    assert_eq!(line["outrigger.route"], "usual");
    assert_eq!(line["outrigger.cluster"], "app");
    assert!(line["event.duration"].as_u64().is_some_and(|ns| ns > 0), "{line}");
    assert_eq!(line["http.request.id"].as_str(), origin.request().get("x-request-id"));
    assert_eq!(line["http.request.forwarded_for"], "127.0.0.1");
    assert!(line.get("outrigger.reason").is_none(), "{line}");
}

#[test]
fn json_counts_bodies() {
    let (_origin, proxy) = start("json");
    assert_eq!(proxy.client().post("/", "hello").status(), 200);
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    crate::support::pause(20);
    client.send("5\r\nhello\r\n0\r\n\r\n");
    assert_eq!(client.answer().status(), 200);
    for line in lines(&proxy, "access", 2) {
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["http.request.body.bytes"], 5, "{line}");
        assert_eq!(line["http.response.body.bytes"], 2, "{line}");
    }
}

#[test]
fn combined() {
    let (_origin, proxy) = start("combined");
    proxy.ask(REQUEST);
    let line = &lines(&proxy, "access", 1)[0];
    let (before, after) = line.split_once(" \"GET ").expect("a request line");
    assert!(before.starts_with("127.0.0.1 - - [") && before.ends_with(" +0000]"), "{line}");
    assert_eq!(
        after,
        "/a/../b?c=\\x22d\\x22 HTTP/1.1\" 200 2 \"http://before/\" \"curl/\\x228\\x22\""
    );
}

#[test]
fn envoy() {
    let (origin, proxy) = start("envoy");
    proxy.ask(REQUEST);
    let line = &lines(&proxy, "access", 1)[0];
    let (start, rest) = line.split_once("] ").expect("a time");
    assert!(start.starts_with('[') && start.ends_with('Z'), "{line}");
    assert!(rest.starts_with("\"GET /a/../b?c=\\x22d\\x22 HTTP/1.1\" 200 - 0 2 "), "{line}");
    let id = origin.request().get("x-request-id").unwrap().to_owned();
    let end = format!(
        "\"127.0.0.1\" \"curl/\\x228\\x22\" \"{id}\" \"example.org\" \"{}\"",
        origin.address()
    );
    assert!(rest.ends_with(&end), "{line}\n{end}");
}

/// Each way to fail has its reason in the log, told to the client or not.
#[test]
fn reasons_are_logged() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            match request.target() {
                "/bad" => return peer.send("nonsense\r\n\r\n"),
                "/close" => return,
                "/cut" => return peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"),
                _ => peer.send(OK),
            }
        }
    });
    let proxy = Setup::new(&origin)
        .one_shard()
        .route("match: {prefix: /}")
        .and_route("match: {prefix: /own}, respond: {status: 418}")
        .listener("access_log: {path: '{dir}/access'}, limits: {body_bytes_max: 10}")
        .start();
    let cases = [
        ("GET /bad HTTP/1.1\r\nHost: a\r\n\r\n", 502, Some("bad-answer")),
        ("GET /close HTTP/1.1\r\nHost: a\r\n\r\n", 502, Some("upstream-reset")),
        ("GET /cut HTTP/1.1\r\nHost: a\r\n\r\n", 200, Some("answer-truncated")),
        ("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, Some("bad-path")),
        ("GET / HTTP/1.1\r\n\r\n", 400, Some("bad-head")),
        ("GET / HTTP/7.1\r\n\r\n", 505, Some("bad-version")),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413, Some("body-too-large")),
        ("GET /own HTTP/1.1\r\nHost: a\r\n\r\n", 418, None),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200, None),
    ];
    for (number, (request, status, reason)) in cases.into_iter().enumerate() {
        let mut client = proxy.client();
        client.send(request);
        let _ = client.try_answer();
        let line = lines(&proxy, "access", number + 1).pop().unwrap();
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["http.response.status_code"], status, "{request}");
        assert_eq!(line["outrigger.reason"].as_str(), reason, "{request}");
    }
}

/// How often an endpoint was asked, and how long its answer took.
#[test]
fn attempts_and_the_time_upstream() {
    let origin = Origin::start(|peer| {
        while let Ok(request) = peer.try_request() {
            match request.target() {
                "/stale" if peer.number == 0 => return,
                "/slow" => pause(60),
                "/late" => pause(600),
                "/close" => return,
                "/cut" => return peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"),
                _ => {}
            }
            if peer.try_send(OK).is_err() {
                return;
            }
        }
    });
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Setup::new(&origin)
        .one_shard()
        .and_cluster_text(&format!("name: nobody, endpoints: ['{nobody}']"))
        .and_route("match: {path: /own}, respond: {status: 418}")
        .and_route("match: {path: /nobody}, cluster: nobody, retries: {attempts: 0}")
        .and_route("match: {path: /late}, cluster: app, timeouts: {answer: 300ms}")
        .listener("access_log: {path: '{dir}/access'}")
        .start();
    // Whether an endpoint was asked, whether it answered, and how often it was asked, where that
    // is worth telling.
    let cases = [
        ("/", true, true, None),
        ("/stale", true, true, Some(2)),
        ("/slow", true, true, None),
        ("/own", false, false, None),
        ("/%00", false, false, None),
        ("/nobody", true, false, None),
        ("/late", true, false, None),
        ("/close", true, false, None),
        ("/cut", true, true, None),
    ];
    for (number, (path, asked, answered, attempts)) in cases.into_iter().enumerate() {
        let mut client = proxy.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let _ = client.try_answer();
        let line = lines(&proxy, "access", number + 1).pop().unwrap();
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line.get("outrigger.upstream.address").is_some(), asked, "{line}");
        let duration = line.get("outrigger.upstream.duration").and_then(Value::as_u64);
        assert_eq!(duration.is_some(), answered, "{line}");
        assert!(duration <= line["event.duration"].as_u64(), "{line}");
        assert!(path != "/slow" || duration >= Some(60_000_000), "{line}");
        assert_eq!(line["outrigger.upstream.attempts"].as_u64(), attempts, "{line}");
    }
    assert_eq!(proxy.metric("outrigger_resends_total", &[]), 1.0);
}

/// The time upstream begins when the endpoint has the whole request.
#[test]
fn a_slow_upload_is_not_the_endpoints_time() {
    let (_origin, proxy) = start("json");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
    for _ in 0..5 {
        pause(100);
        client.send("x");
    }
    assert_eq!(client.answer().status(), 200);
    let line: Value = serde_json::from_str(&lines(&proxy, "access", 1)[0]).expect("JSON");
    let upstream = line["outrigger.upstream.duration"].as_u64().expect("a time");
    // Half of what it took to send, as the proxy may have heard late of its beginning.
    assert!(upstream + 250_000_000 <= line["event.duration"].as_u64().unwrap(), "{line}");
}

/// What had come of a request counts, even if its answer was cut off.
#[test]
fn a_cut_answer_has_the_bytes_of_its_request() {
    let origin = Origin::closing_after("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx");
    let proxy = Setup::new(&origin).listener("access_log: {path: '{dir}/access'}").start();
    for (number, pieces) in [&["hello"][..], &["", "hel", "lo"]].into_iter().enumerate() {
        let mut client = proxy.client();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
        client.send(format!("{head}{}", pieces[0]));
        for piece in &pieces[1..] {
            pause(20);
            client.send(piece);
        }
        assert!(client.try_answer().is_err());
        let line = lines(&proxy, "access", number + 1).pop().unwrap();
        let line: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["outrigger.reason"], "answer-truncated");
        assert_eq!(line["http.request.body.bytes"], 5, "{line}");
        assert_eq!(line["http.response.body.bytes"], 1, "{line}");
    }
}

/// Nobody can forge a line.
#[test]
fn a_hostile_request_stays_in_its_line() {
    for format in ["json", "combined", "envoy"] {
        let (_origin, proxy) = start(format);
        proxy.ask("GET /\"} HTTP/1.1\r\nHost: a\r\nUser-Agent: \"\\n{\u{9b}\u{202e}\"\r\n\r\n");
        let line = &lines(&proxy, "access", 1)[0];
        assert!(!line.chars().any(char::is_control), "{line}");
        if format == "json" {
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(line["url.original"], "/\"}");
        }
    }
}

#[test]
fn standard_output_will_do() {
    let origin = Origin::answering(OK);
    let proxy = Setup::new(&origin).listener("access_log: {format: combined}").start();
    proxy.get("/printed");
    eventually("the line is printed", || proxy.stdout().contains("GET /printed HTTP/1.1"));
}

#[test]
fn there_is_none_by_default() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    proxy.get("/");
    crate::support::pause(700);
    assert_eq!(proxy.stdout(), "");
}

/// What logrotate does.
#[test]
fn a_moved_log_is_opened_again() {
    let (_origin, proxy) = start("combined");
    proxy.get("/before");
    assert!(lines(&proxy, "access", 1)[0].contains("/before"));
    std::fs::rename(proxy.path("access"), proxy.path("access.1")).unwrap();
    proxy.signal(Signal::USR1);
    // It is made when there is something to write.
    eventually("a new file is there", || {
        proxy.get("/after");
        proxy.path("access").exists()
    });
    let moved = std::fs::read_to_string(proxy.path("access.1")).unwrap();
    proxy.get("/last");
    eventually("it is used", || {
        std::fs::read_to_string(proxy.path("access")).unwrap().contains("/last")
    });
    assert_eq!(
        std::fs::read_to_string(proxy.path("access.1")).unwrap(),
        moved,
        "the old one rests"
    );
}
