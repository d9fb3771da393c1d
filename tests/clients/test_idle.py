"""Clients that keep their connections and say nothing for a while."""

import socket
import time

import pytest

from origins import read_head
from support import PATIENCE_S, QUICK, SMALL

CONNECTIONS = 100 if QUICK else 1000


def ask(connection):
    connection.sendall(b"GET /nginx/small HTTP/1.1\r\nHost: idle\r\n\r\n")
    head, body = read_head(connection)
    assert head.startswith(b"HTTP/1.1 200 "), head
    while len(body) < len(SMALL):
        body += connection.recv(1000)
    assert body == SMALL.encode()


@pytest.fixture
def connections(proxy):
    connections = [
        socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S)
        for _ in range(CONNECTIONS)
    ]
    yield connections
    for connection in connections:
        connection.close()


# Longer than busy sessions wait, and longer than connections to origins are kept.
@pytest.mark.parametrize("pause_s", [0.4, 1.5, 6])
def test_a_connection_works_after_a_pause(connections, pause_s):
    for connection in connections:
        ask(connection)
    time.sleep(pause_s)
    for connection in connections:
        ask(connection)


def test_a_connection_works_whose_first_request_comes_late(connections):
    time.sleep(1.5)
    for connection in connections:
        ask(connection)


def test_a_request_may_come_in_pieces(connections):
    """Each piece by itself, with a pause in which the proxy sleeps."""
    for piece in (b"GET /nginx/sm", b"all HTTP/1.1\r\nHost: i", b"dle\r\n\r"):
        for connection in connections[:20]:
            connection.sendall(piece)
        time.sleep(0.7)
    for connection in connections[:20]:
        connection.sendall(b"\n")
        assert read_head(connection)[0].startswith(b"HTTP/1.1 200 ")
