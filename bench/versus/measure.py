"""One measurement: one proxy, one scenario, everything started anew and ended after.

What makes it invalid is raised as `Invalid` or `ProcessError`, and becomes a row that says so; what
makes it doubtful becomes a mark.
"""

import json
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .machine import CpuTicks
from .process import PATIENCE_S, Server, as_nice_as_we, connect, cpu_list, free_port, pinned
from .results import DISTURBED, NOT_SATURATED, RATE_MISSED, SHARED, STOLEN, Figures
from .rivals import Proxy, Setting
from .scenario import Scenario

# Load before the measurement, which fills pools and warms code, in seconds.
WARM_UP_S = 0.5

# Share of its CPU that a proxy must use in a closed loop to count as saturated.
SATURATED_MIN = 0.95

# Share of the proxies' CPU that others may have had before a measurement is marked.
OTHERS_MAX = 0.03

# Share of the same CPU that the hypervisor may have taken.
STOLEN_MAX = 0.02

# Idle connections must rest so long before they count, in seconds.
IDLE_SETTLE_S = 3.0

# Of a fixed rate must be reached.
RATE_MIN = 0.98

# Failures that a rate can cause which is too high.
TOO_LATE = {"timeout", "unfinished"}

# Failures that are a figure where the proxy reloads: all but wrong answers.
RELOAD_MAY = {"connect", "reset", "timeout", "status", "unfinished"}

# Between two looks at a running load generator, in seconds.
WATCH_EVERY_S = 0.02


class Invalid(Exception):
    """The setup is broken, or answers are wrong: no figures."""


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    loadgen: Path
    cpus_proxy: list[int]
    cpus_load: list[int]
    cpus_origin: list[int]
    # Each load generator's report stays there, as PROXY-RATE-SEED.json.
    keep: Path | None = None

    @property
    def shared(self) -> bool:
        return not set(self.cpus_proxy).isdisjoint(self.cpus_load + self.cpus_origin)


def measure(
    bench: Bench, proxy: Proxy, binary: Path, scenario: Scenario, seconds: float, seed: int
) -> Figures:
    """Raises Invalid or ProcessError."""
    folder = Path(tempfile.mkdtemp(prefix="outrigger-bench-"))
    servers: list[Server] = []
    try:
        origins = []
        for delay_ms in scenario.delays_ms:
            origins.append(start_origin(bench, delay_ms, folder, len(origins)))
            servers.append(origins[-1])
        setting = Setting(
            folder, binary, bench.cpus_proxy, [origin.port for origin in origins], scenario.traits
        )
        if proxy.direct:
            server = origins[0]
        else:
            server = proxy.start(setting)
            servers.append(server)
        return Measurement(bench, proxy, scenario, seconds, seed, setting, origins, server).run()
    finally:
        for server in reversed(servers):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def start_origin(bench: Bench, delay_ms: int, folder: Path, number: int) -> Server:
    port = free_port()
    command = [
        str(bench.loadgen), "origin", "--listen", f"127.0.0.1:{port}",
        "--threads", str(len(bench.cpus_origin)), "--cpus", cpu_list(bench.cpus_origin),
        "--delay", f"{delay_ms}ms",
    ]
    return Server.start(f"origin-{number}", command, bench.cpus_origin, port, folder)


@dataclass
class Measurement:
    bench: Bench
    proxy: Proxy
    scenario: Scenario
    seconds: float
    seed: int
    setting: Setting
    origins: list[Server]
    server: Server
    # Reloads so far, looks at whether one was taken over, and questions to the origins: each of
    # these is a connection of its own.
    generation: int = 0
    looks: int = 0
    asked: int = 0

    def run(self) -> Figures:
        self.check_answers()
        pss_idle = self.server.pss_bytes()
        idle: list[socket.socket] = []
        try:
            pss_per_connection = None
            if self.scenario.idle_connections:
                idle = self.open_idle()
                time.sleep(IDLE_SETTLE_S)
                grown = self.server.pss_bytes() - pss_idle
                pss_per_connection = grown / len(idle)
            figures = self.under_load()
            figures.pss_idle_bytes = pss_idle
            figures.pss_per_connection_bytes = pss_per_connection
            if idle:
                check_open(idle)
            return figures
        finally:
            for connection in idle:
                abort(connection)

    def check_answers(self) -> None:
        """Does it answer as the origin would?"""
        path = self.scenario.path
        if (through := get(self.server.port, path)) != get(self.origins[0].port, path):
            raise Invalid(f"{path} through {self.proxy.name} has {len(through)} other bytes")

    def open_idle(self) -> list[socket.socket]:
        connections: list[socket.socket] = []
        try:
            for _ in range(self.scenario.idle_connections):
                connections.append(connect(self.server.port))
                exchange(connections[-1], self.scenario)
        except OSError as error:
            for connection in connections:
                abort(connection)
            raise Invalid(f"idle connection {len(connections)}: {error}") from None
        return connections

    def under_load(self) -> Figures:
        self.load(WARM_UP_S)
        opened, asked = self.origin_counts()
        ticks, start, spent = self.ticks(), time.monotonic(), self.server.cpu_ns()
        origin_spent = sum(origin.cpu_ns() for origin in self.origins)
        said, reloads_ms = self.load(self.seconds)
        self.keep_report()
        spent = (self.server.cpu_ns() - spent) / 1e9
        origin_spent = (sum(origin.cpu_ns() for origin in self.origins) - origin_spent) / 1e9
        wall, after = time.monotonic() - start, self.ticks()
        self.server.check()
        opened_after, asked_after = self.origin_counts()
        workers = self.setting.workers
        elapsed = said["elapsed_s"]
        answered, failed = said["answered"], sum(said["failures"].values())
        figures = Figures(
            requests=answered,
            errors=failed,
            wall_s=elapsed,
            cpu_s=spent,
            cpu_us=spent * 1e6 / answered if answered else float("inf"),
            cpu_share=spent / elapsed / workers,
            rate=answered / elapsed,
            body_bytes=said["body_bytes"],
            mib_per_cpu_s=said["body_bytes"] / 2**20 / spent if spent else 0.0,
            origin_connections=opened_after - opened,
            client_connections=said["connections"]["opened"],
            load_cpu_share=said["generator"]["cpu_share_max"],
            load_wait_share=said["generator"]["cpu_wait_share_max"],
            origin_cpu_share=origin_spent / elapsed / len(self.bench.cpus_origin),
            late_share=said["late"] / max(1, said["sent"]),
            others_share=max(0.0, after.busy - ticks.busy - spent) / wall / workers,
            stolen_share=(after.stolen - ticks.stolen) / wall / workers,
        )
        if self.scenario.rate is not None:
            latency = said["latency_ns"]
            figures.p50_us, figures.p99_us, figures.p999_us, figures.max_us = (
                latency[name] / 1e3 for name in ("p50", "p99", "p99.9", "max")
            )
        if self.scenario.reload_every_s:
            figures.reloads = len(reloads_ms)
            figures.reload_ms = max(reloads_ms, default=None)
        self.mark(figures, said)
        self.check(figures, said, asked_after - asked)
        return figures

    def ticks(self) -> CpuTicks:
        return CpuTicks.now(self.bench.cpus_proxy)

    def mark(self, figures: Figures, said: dict) -> None:
        """Says what is doubtful."""
        if self.scenario.rate is not None:
            if rate_missed(said):
                figures.marks.append(RATE_MISSED)
        # What the hypervisor took, the proxy wanted.
        elif figures.cpu_share + figures.stolen_share < SATURATED_MIN:
            figures.marks.append(NOT_SATURATED)
        if self.bench.shared:
            figures.marks.append(SHARED)
        elif figures.others_share > OTHERS_MAX:
            figures.marks.append(DISTURBED)
        if figures.stolen_share > STOLEN_MAX:
            figures.marks.append(STOLEN)

    def check(self, figures: Figures, said: dict, asked: int) -> None:
        """Raises Invalid for a broken setup. `asked`: how many requests the origins counted."""
        scenario, proxy = self.scenario, self.proxy.name
        if figures.requests == 0:
            raise Invalid(f"{proxy} answered nothing")
        kinds = {kind: count for kind, count in said["failures"].items() if count}
        # Nothing excuses a wrong answer; a reload that breaks requests off is measured by that, and
        # a rate that is too high leaves some behind.
        excused = RELOAD_MAY if scenario.reload_every_s else set()
        if RATE_MISSED in figures.marks:
            excused = excused | TOO_LATE
        if not kinds.keys() <= excused:
            raise Invalid(f"{figures.errors} requests failed: {kinds}")
        reloads = figures.reloads or 0
        # All were warm, but a burst may find them busy. Each reload brings new workers with pools
        # of their own, and each request that broke off may have taken its connection with it.
        most = (2 * scenario.connections + 2) * (1 + reloads) + figures.errors
        if figures.origin_connections > most and not self.proxy.direct:
            raise Invalid(
                f"{proxy} keeps no connections to the origin: it opened "
                f"{figures.origin_connections} for {figures.requests} requests"
            )
        # At a reload they may move twice: an old worker may accept them once more.
        most = scenario.connections * (1 + 2 * reloads) + figures.errors
        if scenario.keep_alive and figures.client_connections > most:
            raise Invalid(
                f"{proxy} closes its clients' connections: {figures.client_connections} for "
                f"{scenario.connections}"
            )
        # What was answered too late to count may be more, as may what failed and our own looks at
        # a reload; never less.
        most = 2 * scenario.connections + figures.errors + self.looks
        if not 0 <= asked - figures.requests <= most:
            raise Invalid(f"{figures.requests} answers, but the origin counts {asked} requests")

    def load(self, seconds: float) -> tuple[dict, list[float]]:
        """Runs the load generator; its report, and how long each reload took, in milliseconds."""
        command = [
            str(self.bench.loadgen), "--quiet", "--json", str(self.report),
            "--label", self.proxy.title,
            "--threads", str(len(self.bench.cpus_load)), "--cpus", cpu_list(self.bench.cpus_load),
            *self.scenario.flags(self.server.port, seconds, self.seed),
        ]
        log = self.setting.folder / "load.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                pinned(self.bench.cpus_load, command), stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )
        as_nice_as_we(process.pid)
        reloads: list[float] = []
        deadline = time.monotonic() + seconds + 2 * PATIENCE_S
        next_reload = time.monotonic() + self.scenario.reload_every_s / 2
        try:
            if self.scenario.reload_every_s:
                while process.poll() is None and time.monotonic() < deadline:
                    self.server.cpu_ns()  # Workers end; this remembers theirs.
                    if time.monotonic() >= next_reload:
                        next_reload += self.scenario.reload_every_s
                        reloads.append(self.reload())
                    time.sleep(WATCH_EVERY_S)
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Invalid("the load generator does not end") from None
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            self.server.check()
            raise Invalid(f"the load generator: {log.read_text(errors='replace').strip()[-400:]}")
        return json.loads(self.report.read_text()), reloads

    @property
    def report(self) -> Path:
        return self.setting.folder / "load.json"

    def keep_report(self) -> None:
        if self.bench.keep is not None:
            name = f"{self.proxy.name}-{self.scenario.rate or 'closed'}-{self.seed}.json"
            shutil.copy(self.report, self.bench.keep / name)

    def reload(self) -> float:
        """Reloads, waits until a new connection sees it, and returns how long, in milliseconds."""
        self.generation += 1
        start = time.monotonic()
        self.proxy.reload(self.setting, self.server, self.generation)
        while time.monotonic() < start + PATIENCE_S:
            self.looks += 1
            try:
                if generation(self.server.port) == str(self.generation):
                    return (time.monotonic() - start) * 1e3
            except OSError:
                pass  # A connection that a reload broke; the load generator counts its own.
            self.server.cpu_ns()
            time.sleep(WATCH_EVERY_S)
        raise Invalid(f"{self.proxy.name} did not take reload {self.generation} over")

    def origin_counts(self) -> tuple[int, int]:
        """Connections that the origins accepted from the proxy, and requests."""
        connections = requests = 0
        for origin in self.origins:
            stat = json.loads(get(origin.port, "/stat"))
            connections += stat["connections"]
            requests += stat["requests"]
        self.asked += len(self.origins)
        return connections - self.asked, requests


def rate_missed(said: dict) -> bool:
    """Whether requests queued for longer than a request takes; by a load generator's report."""
    planned, last = said["asked"]["planned_s"], said["service_ns"]["p99"] / 1e9
    return (
        said["answered"] < said["due_rate"] * planned * RATE_MIN
        or said["elapsed_s"] > planned / RATE_MIN + last
    )


def get(port: int, path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
            return answer.read()
    except OSError as error:
        raise Invalid(f"GET {path}: {error}") from None


def generation(port: int) -> str | None:
    url = f"http://127.0.0.1:{port}/b/1"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        return answer.headers["X-Generation"]


def exchange(connection: socket.socket, scenario: Scenario) -> None:
    """One request and its answer; the connection stays open."""
    head = f"GET {scenario.path} HTTP/1.1\r\nHost: bench\r\n\r\n"
    connection.sendall(head.encode())
    answer = b""
    while len(answer.partition(b"\r\n\r\n")[2]) < (scenario.expect_length or 0):
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("closed in place of an answer")
        answer += more


def check_open(connections: list[socket.socket]) -> None:
    """Cheap only because it closed them?"""
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN | select.POLLRDHUP)
    if closed := poll.poll(0):
        raise Invalid(f"{len(closed)} of {len(connections)} idle connections were closed")


def abort(connection: socket.socket) -> None:
    """Closes with a reset, which leaves nothing behind."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
