"""Instructions of user space that a proxy spends on a request. One shard, epoll: valgrind knows no
io_uring."""

import shutil
import signal
import subprocess
from pathlib import Path

from versus.measure import Bench, Invalid
from versus.rivals import OURS

from . import figures
from .stage import stage

# Requests of the two runs, whose difference is divided by the difference: what starting and ending
# cost is in both.
FEW, MANY = 2_000, 12_000

# Valgrind writes its file, in seconds.
DUMP_S = 30.0


def instructions(
    bench: Bench, binary: Path, connections: int, endpoints: int = 1,
    traits: frozenset[str] = frozenset(), counts: tuple[int, int] = (FEW, MANY), **values: object,
) -> float:
    """For each further request. `traits`, `values`: of the proxy's configuration."""
    few, many = (
        count(bench, binary, connections, requests, endpoints, traits, values)
        for requests in counts
    )
    return figures.slope(few, many)


def count(
    bench: Bench, binary: Path, connections: int, requests: int, endpoints: int,
    traits: frozenset[str], values: dict[str, object],
) -> tuple[int, int]:
    """Requests and instructions."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Invalid("valgrind is not installed")
    with stage(bench) as on:
        out = on.folder / "callgrind.out"
        prefix = (valgrind, "--tool=callgrind", f"--callgrind-out-file={out}")
        origins = [on.origin().port for _ in range(endpoints)]
        on.proxy(OURS, binary, 1, origins, set(traits), prefix, driver="epoll", **values)
        load = on.load("--closed", "-c", str(connections), "-n", str(requests), "--timeout", "60s")
        said = load.wait(120.0)
        if said["answered"] != requests or any(said["failures"].values()):
            raise Invalid(f"{said['answered']} answers to {requests} requests")
        on.server.process.send_signal(signal.SIGTERM)
        try:
            on.server.process.wait(DUMP_S)
        except subprocess.TimeoutExpired:
            raise Invalid("valgrind does not end") from None
        return requests, figures.instructions(out.read_text())
