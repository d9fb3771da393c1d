"""Row `defaults`: what balancing, retries, budget and breakers cost while all goes well, in
instructions of user space: all as it is by default, over all of it off.

Limits cannot be switched off; they are out of the way. `retries.attempts: 0` switches the budget
off, too: nobody spends from it.
"""

from pathlib import Path

from rig import callgrind
from versus.measure import Bench

from .ways import Way, ours

ENDPOINTS = (1, 4)
CONNECTIONS = (1, 64)

# Over all of it off.
RATIO_MAX = 1.03

WAYS = {
    "defaults": ours("defaults"),
    "off": ours(
        "`round_robin`, all off",
        balance="round_robin",
        retries="attempts: 0",
        budget="ratio: 0, min_per_second: 0",
        breaker="consecutive_failures: 0, failure_ratio: 0",
    ),
}


# Where no figure is to be kept.
COUNTS_SMOKE = (200, 1_200)


def measure(
    bench: Bench, way: Way, binary: Path, endpoints: int, connections: int, smoke: bool
) -> dict:
    counts = COUNTS_SMOKE if smoke else (callgrind.FEW, callgrind.MANY)
    found = callgrind.instructions(
        bench, binary, connections, endpoints, way.traits, counts, **way.values
    )
    return {"requests": counts[1], "instructions": round(found, 1)}
