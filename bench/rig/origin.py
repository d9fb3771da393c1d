#!/usr/bin/env python3
"""An endpoint that fails on command, and remembers when each request arrived.

    origin.py PORT CONTROL_PORT

At the control port, which answers whatever becomes of the other one:

    /ctl/fail/MS   from now on all are answered 500, MS milliseconds late; answers with the time
    /ctl/die/WAY   from now on all meet one of the deaths below; answers with the time
    /ctl/well      from now on all are answered 200, at once; answers with the time
    /ctl/log       answers with what arrived since the last time, and forgets it

    status         503
    garbage        what is no HTTP, and the end of the connection
    reset          a reset
    mute           nothing, ever
    hole           nothing, and no connection is accepted any more: the backlog is full. For good

Times are nanoseconds of CLOCK_MONOTONIC, which all processes share. One thread, so a request
is seen when its turn has come: a busy origin sees it later than it was sent, never earlier.
Health checks, requests for CHECK, meet the same but are not remembered.
"""

import asyncio
import json
import socket
import struct
import sys
import time

BACKLOG = 4096

# What health checks ask for; the bundled origin has it, too.
CHECK = "/b/1"

BODY = b"%-99s\n" % b"well"

WELL, FAILED = 200, 500

# Unanswered.
NOTHING = 0

ANSWERS = {
    WELL: b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" + BODY,
    FAILED: (
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 7\r\n\r\nfailed\n"
    ),
    503: (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 5\r\n\r\ndead\n"
    ),
}

GARBAGE = b"\x16\x03\x01 no answer \x00 at all\r\n\r\n"

# What is remembered of those who died in some way.
DEATHS = {"status": 503, "garbage": NOTHING, "reset": NOTHING, "mute": NOTHING, "hole": NOTHING}


class Origin:
    """What all connections share."""

    def __init__(self, listener: socket.socket | None = None) -> None:
        self.listener = listener
        self.status = WELL
        self.delay_s = 0.0
        # One of DEATHS, while it is dead.
        self.death: str | None = None
        self.log: list[tuple[int, int]] = []

    def command(self, words: list[str]) -> str:
        now = time.monotonic_ns()
        match words:
            case ["fail", delay_ms]:
                self.death, self.status, self.delay_s = None, FAILED, float(delay_ms) / 1e3
            case ["die", way]:
                self.death, self.status, self.delay_s = way, DEATHS[way], 0.0
                if way == "hole":
                    self.fill_backlog()
            case ["well"]:
                self.death, self.status, self.delay_s = None, WELL, 0.0
            case ["log"]:
                log, self.log = self.log, []
                return json.dumps(log)
        return json.dumps(now)

    def fill_backlog(self) -> None:
        """Nobody accepts, and one that waits fills the queue: the kernel drops further SYNs."""
        asyncio.get_running_loop().remove_reader(self.listener.fileno())
        self.listener.listen(0)
        self.filler = socket.socket()
        self.filler.setblocking(False)
        self.filler.connect_ex(self.listener.getsockname())


class Connection(asyncio.Protocol):
    """Requests have no bodies, and come one at a time."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            self.answer(head.split(b" ", 2)[1].decode())

    def answer(self, path: str) -> None:
        origin = self.origin
        if path.startswith("/ctl/"):
            body = origin.command(path.split("/")[2:]).encode()
            told = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.transport.write(told + body)
            return
        if path != CHECK:
            origin.log.append((time.monotonic_ns(), origin.status))
        match origin.death:
            case "mute" | "hole":
                pass
            case "reset":
                reset(self.transport)
            case "garbage":
                self.transport.write(GARBAGE)
                self.transport.close()
            case _ if origin.delay_s:
                loop = asyncio.get_running_loop()
                loop.call_later(origin.delay_s, self.transport.write, ANSWERS[origin.status])
            case _:
                self.transport.write(ANSWERS[origin.status])


def reset(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=BACKLOG)


async def serve(port: int, control: int) -> None:
    listener = listen(port)
    origin = Origin(listener)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(origin), sock=listen(control))
    # asyncio calls listen(2) itself.
    server = await loop.create_server(lambda: Connection(origin), sock=listener, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
