#!/usr/bin/env python3
"""An endpoint that fails on command, and remembers when each request arrived.

    origin.py PORT

    /ctl/fail/MS   from now on all are answered 500, MS milliseconds late; answers with the time
    /ctl/well      from now on all are answered 200, at once; answers with the time
    /ctl/log       answers with what arrived since the last time, and forgets it

Times are nanoseconds of CLOCK_MONOTONIC, which all processes share. One thread, so a request
is seen when its turn has come: a busy origin sees it later than it was sent, never earlier.
"""

import asyncio
import json
import sys
import time

BACKLOG = 4096

WELL, FAILED = 200, 500

ANSWERS = {
    WELL: b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nwell\n",
    FAILED: (
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 7\r\n\r\nfailed\n"
    ),
}


class Origin:
    """What all connections share."""

    def __init__(self) -> None:
        self.status = WELL
        self.delay_s = 0.0
        self.log: list[tuple[int, int]] = []

    def command(self, words: list[str]) -> str:
        now = time.monotonic_ns()
        match words:
            case ["fail", delay_ms]:
                self.status, self.delay_s = FAILED, float(delay_ms) / 1e3
            case ["well"]:
                self.status, self.delay_s = WELL, 0.0
            case ["log"]:
                log, self.log = self.log, []
                return json.dumps(log)
        return json.dumps(now)


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
            self.answer(head)

    def answer(self, head: bytes) -> None:
        origin = self.origin
        if head.startswith(b"GET /ctl/"):
            words = head.split(b" ", 2)[1].decode().split("/")[2:]
            body = origin.command(words).encode()
            told = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.transport.write(told + body)
            return
        status = origin.status
        origin.log.append((time.monotonic_ns(), status))
        if origin.delay_s:
            loop = asyncio.get_running_loop()
            loop.call_later(origin.delay_s, self.transport.write, ANSWERS[status])
        else:
            self.transport.write(ANSWERS[status])


async def serve(port: int) -> None:
    origin = Origin()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(origin), "127.0.0.1", port, backlog=BACKLOG
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
