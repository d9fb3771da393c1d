"""Bodies of any size pass in constant memory."""

import socket
import time

import pytest

from origins import read_head, receive, zeros
from support import GIB, MIB, PATIENCE_S, QUICK, wait_until

SIZE = GIB // 8 if QUICK else GIB

# What the process may grow by while one body passes: buffers, pipes, the allocator's spare.
GROWTH_MAX = 32 * MIB


@pytest.fixture
def growth(proxy):
    """By how many bytes the proxy's memory ever exceeded what it was at the start."""
    status = f"/proc/{proxy.pid}/status"

    def read(key):
        with open(status) as file:
            line = next(line for line in file if line.startswith(key))
        return int(line.split()[1]) * 1024

    # proc(5): 5 resets the high-water mark.
    with open(f"/proc/{proxy.pid}/clear_refs", "w") as file:
        file.write("5")
    before = read("VmRSS:")
    return lambda: read("VmHWM:") - before


def exchange(proxy, head):
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S * 2)
    connection.sendall(head)
    return connection


def test_download(proxy, growth):
    with exchange(proxy, b"GET /stream/%d HTTP/1.1\r\nHost: x\r\n\r\n" % SIZE) as connection:
        head, rest = read_head(connection)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert len(rest) + receive(connection, SIZE - len(rest)) == SIZE
    assert growth() <= GROWTH_MAX


def test_upload(proxy, growth):
    head = b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % SIZE
    with exchange(proxy, head) as connection:
        for block in zeros(SIZE):
            connection.sendall(block)
        head, rest = read_head(connection)
        assert head.startswith(b"HTTP/1.1 200 ")
        size = b"%d" % SIZE
        rest += connection.recv(100) if len(rest) < len(size) else b""
        assert rest == size
    assert growth() <= GROWTH_MAX


def test_a_reader_that_stalls(proxy, stream, growth):
    """Nobody reads: the origin is held up, and nothing is stored for later."""
    with exchange(proxy, b"GET /stream/%d HTTP/1.1\r\nHost: x\r\n\r\n" % SIZE) as connection:
        head, _ = read_head(connection)
        assert head.startswith(b"HTTP/1.1 200 ")
        wait_until("the origin still sends", lambda: stands_still(stream))
        # Two connections' socket buffers; tcp(7): 4 MiB and 6 MiB at most by default.
        assert stream.sent <= 64 * MIB
        assert growth() <= GROWTH_MAX


def stands_still(stream):
    before = stream.sent
    time.sleep(0.5)
    return before > 0 and stream.sent == before
