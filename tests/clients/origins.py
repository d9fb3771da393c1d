"""Origins in Python: an echo with the awkward cases, a socket that streams without end, and a
WebSocket server. All run on threads of the test process, so a test can hold their steps.
"""

import asyncio
import gzip
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import websockets.asyncio.server
from websockets.exceptions import ConnectionClosed

from support import KIB, MIB, PATIENCE_S

# What /gzip says, before compression.
GZIP_TEXT = b"compressed by the origin, not by the proxy\n" * 500

BLOCK = bytes(range(256)) * (MIB // 256)


def pattern(size):
    """The bytes that /bytes and /chunked send: 0 to 255, again and again."""
    return BLOCK[:size] if size <= MIB else (BLOCK * (size // MIB + 1))[:size]


class Steps:
    """A counter that one side raises and the other waits for: a handshake without clocks."""

    def __init__(self):
        self.value = 0
        self.changed = threading.Condition()

    def reach(self, value):
        with self.changed:
            self.value = max(self.value, value)
            self.changed.notify_all()

    def wait(self, value):
        with self.changed:
            return self.changed.wait_for(lambda: self.value >= value, PATIENCE_S)


class Echo(BaseHTTPRequestHandler):
    """One connection. What it does is chosen by the first segment of the path."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 64 * KIB

    def log_message(self, *_):
        pass

    def handle_expect_100(self):
        if self.path.startswith("/refuse"):
            return True  # The final answer comes without a 100.
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def serve(self):
        url = urlsplit(self.path)
        name = url.path.strip("/").split("/")[0]
        if name == "refuse":
            self.close_connection = True
            self.answer(413, b"too much\n", close=True)
            return
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if name == "lines":
            self.serve_lines(query)
            return
        body, chunked = self.read_body()
        handler = getattr(self, f"serve_{name}", None)
        if handler:
            handler(query)
        else:
            self.echo_request(body, chunked)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = serve

    def echo_request(self, body, chunked):
        seen = {
            "method": self.command,
            "path": self.path,
            "version": self.request_version,
            "headers": [[name.lower(), value] for name, value in self.headers.items()],
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "chunked": chunked,
        }
        self.answer(200, json.dumps(seen).encode(), {"Content-Type": "application/json"})

    def serve_bytes(self, query):
        size = int(query["size"])
        self.head(200, {"Content-Length": size})
        self.send_pattern(size, self.wfile.write)

    def serve_chunked(self, query):
        size, step = int(query["size"]), int(query.get("step", 7000))
        self.head(200, {"Transfer-Encoding": "chunked", "Trailer": "X-Sum"})
        body = pattern(size)
        for start in range(0, size, step):
            self.send_chunk(body[start : start + step])
        self.wfile.write(b"0\r\nX-Sum: done\r\n\r\n")

    def serve_until_close(self, query):
        """The body ends where the connection ends."""
        self.close_connection = True
        self.head(200, {"Connection": "close"})
        self.send_pattern(int(query["size"]), self.wfile.write)

    def serve_gzip(self, _):
        self.answer(200, gzip.compress(GZIP_TEXT), {"Content-Encoding": "gzip"})

    def serve_cookies(self, _):
        self.answer(200, b"", [("Set-Cookie", f"c{i}={i}; Path=/") for i in range(3)])

    def serve_status(self, query):
        status = int(query["code"])
        self.answer(status, None if status in (204, 304) else b"status\n")

    def serve_redirect(self, query):
        left = int(query["left"])
        if left == 0:
            self.answer(200, b"arrived\n")
        else:
            self.answer(302, b"", {"Location": f"/redirect?left={left - 1}"})

    def serve_events(self, query):
        """Server-sent events. Event n + 1 leaves only after somebody said that n arrived."""
        steps = self.server.steps_of(query["key"])
        self.head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        self.wfile.flush()
        for number in range(int(query["count"])):
            if not steps.wait(number):
                self.close_connection = True  # A body without an end: the client sees it.
                return
            self.send_chunk(b"data: %d\n\n" % number)
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def serve_confirm(self, query):
        """Tells /events that an event arrived."""
        self.server.steps_of(query["key"]).reach(int(query["number"]) + 1)
        self.answer(200, b"")

    def serve_lines(self, query):
        """Says of each line of a chunked upload that it arrived, and how many they were."""
        arrived = self.server.steps_of(query["key"])
        lines = 0
        for chunk in self.read_chunks():
            lines += chunk.count(b"\n")
            arrived.reach(lines)
        self.answer(200, b"%d" % lines)

    def send_pattern(self, size, write):
        whole, rest = divmod(size, MIB)
        for _ in range(whole):
            write(BLOCK)
        write(BLOCK[:rest])

    def send_chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def head(self, status, fields):
        self.send_response(status)
        for name, value in fields.items() if isinstance(fields, dict) else fields:
            self.send_header(name, str(value))
        self.end_headers()

    def answer(self, status, body, fields=(), close=False):
        fields = list(fields.items() if isinstance(fields, dict) else fields)
        if body is not None:
            fields.append(("Content-Length", len(body)))
        if close:
            fields.append(("Connection", "close"))
        self.head(status, fields)
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0))), False
        return b"".join(self.read_chunks()), True

    def read_chunks(self):
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            assert self.rfile.readline() == b"\r\n"
        while self.rfile.readline() != b"\r\n":
            pass  # Trailers.


class EchoServer(ThreadingHTTPServer):
    request_queue_size = 4096
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Echo)
        self.port = self.server_address[1]
        self.steps = {}
        self.steps_lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def steps_of(self, key):
        with self.steps_lock:
            return self.steps.setdefault(key, Steps())

    def handle_error(self, request, client_address):
        pass  # A client that goes away midway is part of the tests.

    def stop(self):
        self.shutdown()
        self.server_close()


class StreamServer:
    """Answers one request a connection with as many bytes as its path asks for, or counts those
    that it is sent; made of bare sockets, because it moves gigabytes."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        # Bytes of the newest body that the kernel took.
        self.sent = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection:
            connection.settimeout(PATIENCE_S * 4)
            try:
                self.exchange(connection)
            except OSError:
                pass

    def exchange(self, connection):
        head, rest = read_head(connection)
        method, target, _ = head.split(b"\r\n")[0].split(b" ")
        if method == b"GET":
            size = int(target.rsplit(b"/")[-1])
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size
            )
            self.sent = 0
            for block in zeros(size):
                connection.sendall(block)
                self.sent += len(block)
        else:
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            received = len(rest) + receive(connection, length - len(rest))
            body = b"%d" % received
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                % (len(body), body)
            )

    def stop(self):
        self.listener.close()


def read_head(connection):
    """The bytes up to the empty line, and what came behind them."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(64 * KIB)
        if not more:
            raise ConnectionError(f"closed within a head: {data!r}")
        data += more
    head, rest = data.split(b"\r\n\r\n", 1)
    return head, rest


def zeros(size):
    """That many zeros, a block at a time."""
    block = memoryview(bytes(MIB))
    while size > 0:
        yield block[: min(size, MIB)]
        size -= MIB


def receive(connection, size):
    """Reads and forgets; returns how many bytes came, fewer than `size` only at the end."""
    buffer = memoryview(bytearray(MIB))
    left = size
    while left > 0:
        count = connection.recv_into(buffer[: min(left, MIB)])
        if count == 0:
            break
        left -= count
    return size - left


class WebSocketServer:
    """Echoes messages as they come. Some messages are commands, see `serve`."""

    def __init__(self):
        self.closes = []
        self.fragments = []
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.ready.wait(PATIENCE_S)

    def run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.main())

    async def main(self):
        self.stopping = asyncio.Event()
        async with websockets.asyncio.server.serve(
            self.serve, "127.0.0.1", 0, max_size=64 * MIB, backlog=1024,
            select_subprotocol=lambda _, offered: offered[0] if offered else None,
        ) as server:
            self.port = server.sockets[0].getsockname()[1]
            self.ready.set()
            await self.stopping.wait()

    async def serve(self, connection):
        try:
            while True:
                pieces = [piece async for piece in connection.recv_streaming()]
                self.fragments.append(len(pieces))
                message = pieces[0][:0].join(pieces)
                if message == "close 4001":
                    await connection.close(4001, "as you wish")
                elif message == "ping me":
                    await (await connection.ping(b"from the server"))
                    await connection.send("you answered")
                elif message == "headers":
                    await connection.send(str(connection.request.headers))
                elif message == "vanish":
                    connection.transport.abort()
                else:
                    await connection.send(message)
        except ConnectionClosed as closed:
            self.closes.append(closed.rcvd.code if closed.rcvd else None)

    def stop(self):
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join(PATIENCE_S)
