"""Figures from what was seen. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from rig.figures import SECOND

# A dead endpoint that got its share of requests and gets none for so long is left alone, in
# nanoseconds. Probes and checks are further apart.
LEFT_ALONE = 300_000_000

# The default budget: retries that a client's request pays for, and those that there are each second
# beside.
RATIO, PER_SECOND = 0.2, 3.0

# Of the requests may have found no connection free: what they waited is in no latency from sending.
WAITED_MAX = 0.01


# ---- Storm -----------------------------------------------------------------------------------


def allowed(client: int, seconds: float) -> float:
    """Upstream requests that a budget leaves to so many of clients in such a time."""
    return client * (1 + RATIO) + seconds * PER_SECOND


def storm_holds(row: dict) -> bool:
    """Of the failing time alone, which is what a client and an endpoint live through."""
    return row["upstream"] <= row["allowed"]


def storm_is_paid_for(row: dict) -> bool:
    """By all since the start, good times included."""
    return row["upstream"] + row["upstream_well"] <= row["allowed_since_start"]


def fastest(totals: list[tuple[float, int]], seconds: float) -> float:
    """The most, a second, by which a total grew over such a time, or a little longer. `totals`:
    when, and how much, in order."""
    most, first = 0.0, 0
    for at, total in totals:
        # The latest look that is far enough back.
        while first + 1 < len(totals) and at - totals[first + 1][0] >= seconds:
            first += 1
        since, before = totals[first]
        if at - since >= seconds:
            most = max(most, (total - before) / (at - since))
    return most


# ---- Dead endpoints --------------------------------------------------------------------------


@dataclass(frozen=True)
class Failed:
    """Failed requests before and after a death."""

    before: int
    # By second after it.
    after: list[int]


def failed_by_second(seconds: Iterable[dict], died_s: float) -> Failed:
    """`seconds`: as the load generator reports them. Those of the second in which it died count as
    after."""
    before, after = 0, []
    for one in seconds:
        if one["second"] < int(died_s):
            before += one["failed"]
        else:
            after.append(one["failed"])
    return Failed(before, after)


@dataclass(frozen=True)
class Reached:
    """What reached a dead endpoint."""

    # Until it was left alone.
    requests: int
    # The last of these, after its death.
    until_s: float
    later: int


def reached(arrivals: Iterable[int], died: int) -> Reached:
    """Times in nanoseconds."""
    last, count, later = died, 0, 0
    for at in sorted(arrivals):
        if later or at - last > LEFT_ALONE:
            later += 1
        else:
            last, count = at, count + 1
    return Reached(count, (last - died) / SECOND, later)


# ---- Revived endpoints -----------------------------------------------------------------------


# Of an even share, so far may a second be off what a ramp admits in its middle: chance alone moves
# 300 requests by a twentieth.
RAMP_OFF_MAX = 0.15

# Of what an even share would be, so much may come in the first half second.
STAMPEDE_MAX = 0.1


def off_ramp(shares: list[float], span_s: int) -> float:
    """By how much the worst second of the ramp differs from a straight one."""
    ideal = [(second + 0.5) / span_s for second in range(span_s)]
    return max(abs(share - wanted) for share, wanted in zip(shares, ideal))
