"""Row `dead`: one of three endpoints dies in the middle of a steady load. Which clients notice, and
when does it get no more requests?

What reaches the dead one, it notes itself; where nobody is left to note, the SYNs to its port are
counted (see rig/witness.py).
"""

import contextlib
import time
from pathlib import Path

from rig.origin import CHECK
from rig.stage import Flaky, sleep_until, stage, watched
from rig.witness import Witness
from versus.measure import Bench, Invalid

from . import figures
from .ways import Way, of, ours

# What becomes of the endpoint; its deaths are told in rig/origin.py.
DEATHS = {
    "refused": "its process is gone: connections refused",
    "hole": "black hole: SYNs unanswered, and what was sent before",
    "mute": "accepts, and never answers",
    "reset": "accepts, and resets at each request",
    "status": "503",
    "garbage": "no HTTP, and the end of the connection",
}

# Requests that want a connection do not arrive there, but their SYNs count.
BY_SYN = {"refused", "hole"}

HEALTHY = 2
RATE = 600
# Each request that waits for a dead endpoint's time to run out holds one.
CONNECTIONS = 512

# Failed requests that ours may let through. What it retries, none; an answer of 503 is one, and the
# endpoint may give five until its breaker opens, what comes within 12 ms, and a probe's.
ERRORS_MAX = {"status": 10}

# Before it dies, and after, in seconds.
WELL_S, DEAD_S = 1.5, 6.0

# For connecting and for an answer's head, in each try: as all are set up.
TRY_S = 1

TRY = f"try_timeout: {TRY_S}s"
EVERY = "on: [connect-failure, reset, gateway-error]"
ENVOY_ON = 'retry_on: "connect-failure,refused-stream,reset,gateway-error"'

WAYS = (
    ours("defaults", retries=TRY),
    ours("health checks", retries=TRY, check=CHECK),
    of("nginx", "defaults"),
    of("haproxy", "checks, `observe layer7`, `redispatch`",
       check=CHECK, tries=3, retry_on="conn-failure"),
    of("envoy", "outlier detection", "ejecting", "many_retries",
       retry_policy=f"{ENVOY_ON}, num_retries: 1, per_try_timeout: {TRY_S}s"),
)

# Those that also retry after answers, and the deaths in which that makes a difference.
RETRYING = {
    ours("`on: […, gateway-error]`", retries=f"{TRY}, {EVERY}"): ("status", "garbage"),
    of("nginx", "`http_502 http_503 http_504 invalid_header`",
       next="error timeout invalid_header http_502 http_503 http_504"): ("status", "garbage"),
    of("haproxy", "`all-retryable-errors`",
       check=CHECK, tries=3, retry_on="all-retryable-errors"): tuple(DEATHS),
}


def measure(
    bench: Bench, way: Way, binary: Path, workers: int, death: str, dead_s: float
) -> dict:
    with stage(bench) as on:
        flaky = on.flaky()
        origins = [on.origin().port for _ in range(HEALTHY)]
        way.start(on, binary, workers, [*origins[:1], flaky.port, *origins[1:]], "impatient")
        seconds = WELL_S + dead_s
        flags = ["-R", str(RATE), "-c", str(CONNECTIONS), "-d", f"{round(seconds * 1000)}ms"]
        with watched(on) as disturbance, witness(flaky.port, death) as syns:
            # 100 B are right; what is no HTTP may look like an answer of HTTP/0.9.
            load = on.load(*flags, "--expect-length", "100", "--expect-status", "200")
            start = time.monotonic()
            sleep_until(start + WELL_S)
            died = kill(flaky, death)
            died_unix_ms = time.time() * 1e3
            said = load.wait(seconds)
        on.server.check()
        noted = [] if death == "refused" else flaky.log()
        arrivals = [at for at, _ in noted if at > died] + after_death(syns, died, death)
        died_s = (died_unix_ms - said["started_unix_ms"]) / 1e3
        failed = figures.failed_by_second(said["seconds"], died_s)
        if failed.before:
            raise Invalid(f"{failed.before} requests failed before the endpoint died")
        reached = figures.reached(arrivals, died) if can_see(syns, death) else None
        return {
            "sent": said["sent"],
            "failures": {kind: count for kind, count in said["failures"].items() if count},
            "statuses": said["statuses"],
            "errors": sum(said["failures"].values()),
            "errors_by_second": failed.after,
            # Requests that reached it until it was left alone, and when the last of them did.
            "reached": reached and reached.requests,
            "reached_until_s": reached and round(reached.until_s, 3),
            # Those that came later: probes, checks, and what was tried again.
            "later": reached and reached.later,
            "p99_ms": said["latency_ns"]["p99"] / 1e6,
            "max_ms": said["latency_ns"]["max"] / 1e6,
            "waited_share": said["waited"] / said["sent"],
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }


def kill(flaky: Flaky, death: str) -> int:
    """When it died, in nanoseconds."""
    return flaky.kill() if death == "refused" else flaky.die(death)


@contextlib.contextmanager
def witness(port: int, death: str):
    """What it yields is filled in at the end; it stays `None` where nobody may look."""
    found: dict[str, list[int] | None] = {"syns": None}
    looking = None
    if death in BY_SYN:
        with contextlib.suppress(PermissionError):
            looking = Witness(port)
    try:
        yield found
    finally:
        if looking is not None:
            found["syns"] = looking.stop()


def can_see(syns: dict, death: str) -> bool:
    return death not in BY_SYN or syns["syns"] is not None


def after_death(syns: dict, died: int, death: str) -> list[int]:
    after = [at for at in syns["syns"] or [] if at > died]
    # The first is its own, with which it fills its backlog.
    return after[1:] if death == "hole" else after
