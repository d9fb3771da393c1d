"""What takes part in a measurement: one proxy, its origins, a load; and how each is asked.

Everything may use all CPUs of the bench: more shards than cores is the point of many rows.
"""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from versus.machine import CpuTicks
from versus.measure import Bench, Invalid, get, start_origin
from versus.process import PATIENCE_S, Server, as_nice_as_we, cpu_list, free_port, pinned
from versus.rivals import OURS, PROXIES, Proxy, Setting

from . import figures
from .figures import Arrival, Samples

HERE = Path(__file__).resolve().parent

# How long a load may need for its last answers, in seconds: a queue of 200 at 20 a second.
LAST_ANSWERS_S = 30.0


@dataclass
class Stage:
    """One proxy and all around it; everything on it ends with it."""

    bench: Bench
    folder: Path
    servers: list[Server]
    # Set by `proxy`.
    setting: Setting | None = None
    server: Server | None = None

    def origin(self, delay_ms: int = 0) -> Server:
        """The bundled one: fast, and it counts how many it serves at once."""
        server = start_origin(self.bench, delay_ms, self.folder, len(self.servers))
        self.servers.append(server)
        return server

    def flaky(self) -> "Flaky":
        port, control = free_port(), free_port()
        command = [sys.executable, str(HERE / "origin.py"), str(port), str(control)]
        server = Server.start("flaky", command, self.bench.cpus_origin, port, self.folder)
        self.servers.append(server)
        return Flaky(port, control, server)

    def proxy(
        self, name: str, binary: Path, workers: int, origins: list[int], traits: set[str],
        prefix: tuple[str, ...] = (), **values: object,
    ) -> int:
        """Starts it and returns its port. `prefix`: what runs it, such as valgrind."""
        proxy: Proxy = PROXIES[name]
        if prefix:
            command = proxy.command
            proxy = dataclasses.replace(proxy, command=lambda of: [*prefix, *command(of)])
        if name == OURS:
            traits = traits | {"watched"}
        texts = {key.upper(): str(value) for key, value in {"driver": "auto", **values}.items()}
        self.setting = Setting(
            self.folder, binary, self.bench.cpus_proxy, origins, frozenset(traits), count=workers,
            values=texts,
        )
        self.server = proxy.start(self.setting)
        self.servers.append(self.server)
        if name == OURS:
            wait_for("every shard listens", self.is_ready)
        return self.setting.port

    def is_ready(self) -> bool:
        """The first shard that listens may be alone for a moment."""
        try:
            get(self.setting.admin, "/ready")
        except Invalid:
            return False
        return True

    def metrics(self) -> Samples:
        return figures.parse(get(self.setting.admin, "/metrics").decode())

    def load(self, *flags: str, path: str = "/b/100") -> "Load":
        return Load.start(self, flags, path)

    def cpu_ns(self) -> int:
        return sum(server.cpu_ns() for server in self.servers)


@contextlib.contextmanager
def stage(bench: Bench) -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="outrigger-bench-"))
    made = Stage(bench, folder, [])
    try:
        yield made
    finally:
        for server in reversed(made.servers):
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Flaky:
    """The endpoint of origin.py."""

    port: int
    control: int
    server: Server

    def fail(self, delay_ms: int = 0) -> int:
        """From when on, in nanoseconds."""
        return self.told(f"fail/{delay_ms}")

    def die(self, way: str) -> int:
        return self.told(f"die/{way}")

    def well(self) -> int:
        return self.told("well")

    def log(self) -> list[Arrival]:
        return [(at, status) for at, status in self.told("log")]

    def kill(self) -> int:
        """Its log is lost."""
        now = time.monotonic_ns()
        self.server.process.send_signal(signal.SIGKILL)
        self.server.process.wait()
        return now

    def told(self, command: str):
        return json.loads(get(self.control, f"/ctl/{command}"))


@dataclass
class Load:
    """A running load generator."""

    process: subprocess.Popen
    report: Path
    log: Path

    @classmethod
    def start(cls, on: Stage, flags: tuple[str, ...], path: str) -> "Load":
        cpus = on.bench.cpus_load
        report, log = on.folder / "load.json", on.folder / "load.log"
        command = [
            str(on.bench.loadgen), "--quiet", "--json", str(report),
            "--threads", str(len(cpus)), "--cpus", cpu_list(cpus), *flags,
            f"http://127.0.0.1:{on.setting.port}{path}",
        ]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                pinned(cpus, command), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )
        as_nice_as_we(process.pid)
        return cls(process, report, log)

    def wait(self, seconds: float) -> dict:
        """Its report. `seconds`: how long it was told to run. Raises Invalid."""
        try:
            self.process.wait(seconds + LAST_ANSWERS_S)
        except subprocess.TimeoutExpired:
            self.stop()
            raise Invalid("the load generator does not end") from None
        if self.process.returncode != 0:
            said = self.log.read_text(errors="replace").strip()
            raise Invalid(f"the load generator: {said[-400:]}")
        return json.loads(self.report.read_text())

    def stop(self) -> None:
        """It is no longer needed; what it says is lost."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def ended(load: Load, seconds: float) -> dict:
    """What each request was answered does not matter here; that it was answered does."""
    said = load.wait(seconds)
    lost = {
        kind: count for kind, count in said["failures"].items() if count and kind != "status"
    }
    if lost:
        raise Invalid(f"requests without an answer: {lost}")
    return said


@dataclass
class Disturbance:
    """Of the time of all CPUs of the bench, meanwhile: taken by the hypervisor, and by others."""

    stolen_share: float = 0.0
    others_share: float = 0.0


@contextlib.contextmanager
def watched(on: Stage) -> Iterator[Disturbance]:
    """Filled in at the end. What ended in between must have been waited for."""
    cpus = sorted(set(on.bench.cpus_proxy + on.bench.cpus_load + on.bench.cpus_origin))
    found = Disturbance()
    start, ticks, own = time.monotonic(), CpuTicks.now(cpus), own_cpu_s(on)
    yield found
    after, spent = CpuTicks.now(cpus), own_cpu_s(on) - own
    wall = (time.monotonic() - start) * len(cpus)
    found.stolen_share = round((after.stolen - ticks.stolen) / wall, 4)
    found.others_share = round(max(0.0, after.busy - ticks.busy - spent) / wall, 4)


def own_cpu_s(on: Stage) -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return on.cpu_ns() / 1e9 + sum(one.ru_utime + one.ru_stime for one in used)


def sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def wait_for(what: str, holds, every_s: float = 0.005) -> None:
    """Raises Invalid if it does not in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise Invalid(f"{what}: not within {PATIENCE_S:g} s")
        time.sleep(every_s)


def allowed_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))
