#!/usr/bin/env python3
"""An endpoint of limited capacity: so many requests at once, each for a fixed time, the others in a
queue, first come, first served.

    origin.py PORT PLACES SERVICE_MS

    /ctl/stat      answers with what was served, what is in the queue, and the longest queue; forgets
                   the last
    /ctl/empty     forgets the queue

It does what most servers do: who has left the queue by giving up is served all the same, and that
is what makes a queue that is too long useless. One thread; it computes nothing while it serves.
"""

import asyncio
import json
import sys
from collections import deque

BACKLOG = 4096

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nwell\n"


class Origin:
    """What all connections share."""

    def __init__(self, places: int, service_s: float) -> None:
        self.free = places
        self.service_s = service_s
        self.queue: deque[Connection] = deque()
        self.served = 0
        self.longest = 0

    def arrived(self, connection: "Connection") -> None:
        self.queue.append(connection)
        self.longest = max(self.longest, len(self.queue))
        self.go_on()

    def go_on(self) -> None:
        loop = asyncio.get_running_loop()
        while self.free > 0 and self.queue:
            self.free -= 1
            loop.call_later(self.service_s, self.done, self.queue.popleft())

    def done(self, connection: "Connection") -> None:
        self.free += 1
        self.served += 1
        connection.answer(ANSWER)
        self.go_on()

    def command(self, word: str) -> str:
        if word == "empty":
            self.queue.clear()
        told = {"served": self.served, "queue": len(self.queue), "longest": self.longest}
        self.longest = len(self.queue)
        return json.dumps(told)


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
            if head.startswith(b"GET /ctl/"):
                word = head.split(b" ", 2)[1].decode().split("/")[2]
                body = self.origin.command(word).encode()
                self.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            else:
                self.origin.arrived(self)

    def answer(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)


async def serve(port: int, places: int, service_s: float) -> None:
    origin = Origin(places, service_s)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(origin), "127.0.0.1", port, backlog=BACKLOG
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1e3))
