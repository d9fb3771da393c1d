"""Processes of a measurement: starting, stopping, and what the kernel counts of them."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

# Longest wait for a process to listen or to end, in seconds.
PATIENCE_S = 10.0

# Between two looks at whether it does, in seconds.
LOOK_EVERY_S = 0.01

# Below the range that Linux takes outgoing connections' ports from; ip(7).
PORTS = range(10_240, 32_768)


class ProcessError(Exception):
    """A process that did not start, or did not live."""


def pinned(cpus: list[int], command: list[str]) -> list[str]:
    """The command, on these CPUs, and ended with us whatever ends us."""
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", cpu_list(cpus), *command]


def as_nice_as_we(leader: int) -> None:
    """A session's priority is its group's, not that of its processes; sched(7), autogroup."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        if nice:
            Path(f"/proc/{leader}/autogroup").write_text(str(nice))


def cpu_list(cpus: list[int]) -> str:
    return ",".join(map(str, cpus))


def free_port() -> int:
    """One that no outgoing connection can take before the server does."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                pass


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


@dataclass
class Server:
    """A process that listens, with all that it forks."""

    name: str
    port: int
    process: subprocess.Popen
    log: Path
    # Nanoseconds of CPU by process: number and start, since numbers are used again. What ended
    # stays counted as it was last seen.
    seen: dict[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def start(
        cls, name: str, command: list[str], cpus: list[int], port: int, folder: Path,
        environment: dict[str, str] | None = None,
    ) -> "Server":
        """Returns once it listens. Raises ProcessError if it does not."""
        log = folder / f"{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                pinned(cpus, command), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=folder, env={**os.environ, **(environment or {})}, start_new_session=True,
            )
        as_nice_as_we(process.pid)
        server = cls(name, port, process, log)
        try:
            server.wait_until_it_listens()
        except BaseException:
            server.stop()
            raise
        return server

    def wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return connect(self.port).close()
            except OSError:
                pass
            self.check()
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} does not listen: {self.said()}")
            time.sleep(LOOK_EVERY_S)

    def check(self) -> None:
        """Raises ProcessError if it has ended."""
        code = self.process.poll()
        if code is not None:
            how = f"by signal {-code}" if code < 0 else f"with {code}"
            raise ProcessError(f"{self.name} ended {how}: {self.said()}")

    def said(self) -> str:
        """The end of its output, on one line."""
        text = self.log.read_text(errors="replace")[-800:]
        return " | ".join(text.split("\n")[-6:]).strip(" |") or "it said nothing"

    def stop(self) -> None:
        """Ends it and what it forked; kindly first."""
        family = {pid: started(pid) for pid in self.family()}
        self.process.terminate()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            pass
        for pid, start in family.items():
            if start is not None and started(pid) == start:
                kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    # ---- What the kernel counts ----

    def family(self) -> list[int]:
        """It, its children, and theirs."""
        parents: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (fields := stat_fields(int(entry))) is not None:
                parents.setdefault(int(fields[1]), []).append(int(entry))
        family = [self.process.pid]
        for pid in family:
            family += parents.get(pid, [])
        return family

    def cpu_ns(self) -> int:
        """CPU time of all threads of it and its children so far, in nanoseconds."""
        for pid in self.family():
            start = started(pid)
            if start is None:
                continue
            try:
                self.seen[pid, start] = cpu_ns(pid)
            except OSError:
                pass  # It has just ended.
        return sum(self.seen.values())

    def pss_bytes(self) -> int:
        """Memory, what is shared divided by those who share it."""
        total = 0
        for pid in self.family():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.M).group(1)) * 1024
        return total


def cpu_ns(pid: int) -> int:
    """CPU time of a process's threads, the kernel's work for them included. Raises OSError.

    It is the sum over /proc/PID/task/*/schedstat; but that forgets threads that have ended, and the
    process's clock does not.
    """
    # clock_getcpuclockid(3): the process's number in the clock's; 2 is the scheduler's.
    return time.clock_gettime_ns((~pid << 3) | 2)


def stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from the third field on, since a name may hold anything; proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None


def started(pid: int) -> int | None:
    """In ticks since boot; None if it has ended."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
