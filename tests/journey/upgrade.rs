//! Upgraded connections: a tunnel in both directions, each with an end of its own.

use crate::support::{Client, End, OK, Origin, Peer, Proxy, Setup, eventually};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n";

/// An origin that switches, and then does this.
fn switching(then: impl Fn(&mut Peer) + Send + Sync + 'static) -> Origin {
    Origin::start(move |peer| {
        let request = peer.request();
        assert!(request.connection("upgrade"), "{request:?}");
        assert_eq!(request.get("upgrade"), Some("websocket"));
        assert_eq!(request.get("sec-websocket-key"), Some("x"));
        peer.send(SWITCH);
        then(peer);
    })
}

#[track_caller]
fn upgraded(client: &mut Client) {
    let answer = client.ask(ASK);
    assert_eq!(answer.status(), 101);
    assert!(answer.connection("upgrade"), "{answer:?}");
    assert_eq!(answer.get("upgrade"), Some("websocket"));
    assert_eq!(answer.get("sec-websocket-accept"), Some("y"));
    assert!(!answer.has("content-length") && !answer.has("transfer-encoding"));
}

#[test]
fn a_tunnel_carries_both_directions() {
    let origin = switching(|peer| {
        for _ in 0..100 {
            let bytes = peer.read(4);
            peer.send([&bytes[..], b"!"].concat());
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    upgraded(&mut client);
    eventually("it is counted", || proxy.metric("outrigger_tunnels_open", &[]) == 1.0);
    for _ in 0..100 {
        client.send("ping");
        assert_eq!(client.read(5), b"ping!");
    }
    client.assert_closed();
    drop(client); // Until then, its direction is open.
    eventually("and counted no more", || proxy.metric("outrigger_tunnels_open", &[]) == 0.0);
}

#[test]
fn bytes_behind_both_heads_are_part_of_the_tunnel() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send(format!("{SWITCH}hello"));
        assert_eq!(peer.read(5), b"early");
        peer.send("done");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(format!("{ASK}early"));
    assert_eq!(client.answer().status(), 101);
    assert_eq!(client.read(9), b"hellodone");
}

#[test]
fn the_client_may_end_its_direction_first() {
    let origin = switching(|peer| {
        let (bytes, end) = peer.rest();
        assert_eq!((bytes.as_slice(), end), (&b"bye"[..], End::Closed));
        peer.send("the origin goes on");
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    upgraded(&mut client);
    client.send("bye");
    client.shutdown_write();
    let (bytes, end) = client.rest();
    assert_eq!((bytes.as_slice(), end), (&b"the origin goes on"[..], End::Closed));
}

#[test]
fn the_origin_may_end_its_direction_first() {
    let origin = switching(|peer| {
        peer.send("bye");
        peer.shutdown_write();
        let (bytes, end) = peer.rest();
        assert_eq!((bytes.as_slice(), end), (&b"the client goes on"[..], End::Closed));
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    upgraded(&mut client);
    assert_eq!(client.rest(), (b"bye".to_vec(), End::Closed));
    client.send("the client goes on");
    client.shutdown_write();
    eventually("the origin has it all", || origin.ended() == 1);
}

#[test]
fn a_reset_ends_both_directions() {
    let origin = switching(|peer| {
        peer.read(4);
        peer.reset();
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    upgraded(&mut client);
    client.send("ping");
    client.assert_ended();
    eventually("nothing is left", || proxy.metric("outrigger_connections_open", &[]) == 0.0);
}

#[test]
fn a_refused_upgrade_is_an_ordinary_answer() {
    let origin = Origin::answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    assert_eq!(client.ask(ASK).status(), 403);
    assert_eq!(client.get("/").status(), 403, "the connection goes on");
    assert!(!origin.last_request().has("upgrade"));
}

#[test]
fn an_ignored_upgrade_is_an_ordinary_answer() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    client.send(format!("{ASK}GET /next HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(origin.last_request().target(), "/next");
}

#[test]
fn a_switch_to_something_else_is_passed_on_or_refused() {
    let origin = Origin::start(|peer| {
        peer.request();
        peer.send("HTTP/1.1 101 Switching Protocols\r\n\r\n"); // Without saying to what.
        let _ = peer.rest();
    });
    let proxy = Proxy::before(&origin);
    assert_eq!(proxy.ask(ASK).status(), 502);
}

/// RFC 9110, 7.8: not in HTTP/1.0, and not unless Connection names it; HTTP/2 by upgrade is none
/// of ours.
#[test]
fn what_is_no_upgrade_is_not_passed_on() {
    let origin = Origin::answering(OK);
    let proxy = Proxy::before(&origin);
    for ask in [
        ASK.replace("HTTP/1.1", "HTTP/1.0"),
        ASK.replace("keep-alive, Upgrade", "keep-alive"),
        ASK.replace("websocket", "h2c"),
    ] {
        assert_eq!(proxy.ask(&ask).text(), "ok");
        let request = origin.last_request();
        assert!(!request.has("upgrade") && !request.connection("upgrade"), "{request:?}");
    }
}

#[test]
fn much_goes_through_a_tunnel_at_once() {
    const BYTES: u64 = 5_000_000;
    let origin = switching(|peer| {
        for offset in (0..BYTES).step_by(50_000) {
            peer.read_pattern(offset, 50_000);
            peer.send(crate::support::patterned(offset, 50_000));
        }
    });
    let proxy = Proxy::before(&origin);
    let mut client = proxy.client();
    upgraded(&mut client);
    for offset in (0..BYTES).step_by(50_000) {
        client.send(crate::support::patterned(offset, 50_000));
        client.read_pattern(offset, 50_000);
    }
    client.assert_closed();
}

#[test]
fn an_idle_tunnel_ends() {
    let origin = switching(|peer| {
        let _ = peer.rest();
    });
    let proxy = Setup::new(&origin).route("timeouts: {stream_idle: 300ms}").start();
    let mut client = proxy.client();
    upgraded(&mut client);
    client.assert_ended();
    eventually("the origin's side, too", || origin.ended() == 1);
}

#[test]
fn a_busy_tunnel_does_not() {
    let origin = switching(|peer| {
        for _ in 0..10 {
            crate::support::pause(100);
            peer.send("x");
        }
    });
    let proxy = Setup::new(&origin).route("timeouts: {stream_idle: 500ms}").start();
    let mut client = proxy.client();
    upgraded(&mut client);
    assert_eq!(client.rest(), (b"xxxxxxxxxx".to_vec(), End::Closed));
}
