"""Figures from what was seen: arrivals at an endpoint, and pages of metrics. Pure.

An arrival is a time in nanoseconds and the status that it was answered with; arrivals are in order.
"""

import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Arrival = tuple[int, int]

MS = 1_000_000
SECOND = 1_000_000_000

# Requests further apart than this belong to different half-open periods, in nanoseconds: shorter
# than any time that breakers stay open here, longer than a probe takes.
PERIOD_GAP = 150 * MS

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


# ---- Arrivals --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trip:
    """What reached an endpoint after the failure that was one too many."""

    requests: int
    # The last of them after that failure; 0 where there was none.
    last_ms: float


def trip(arrivals: Iterable[Arrival], since: int, until: int, failures: int) -> Trip | None:
    """`None`: there were not so many failures between these times."""
    failed = [at for at, status in arrivals if since <= at <= until and status >= 500]
    if len(failed) < failures:
        return None
    after = failed[failures:]
    return Trip(len(after), (after[-1] - failed[failures - 1]) / MS if after else 0.0)


def periods(times: Iterable[int], gap: int = PERIOD_GAP) -> list[list[int]]:
    """Groups of times that are not further apart than the gap."""
    groups: list[list[int]] = []
    for at in times:
        if groups and at - groups[-1][-1] <= gap:
            groups[-1].append(at)
        else:
            groups.append([at])
    return groups


def per_step(arrivals: Iterable[Arrival], since: int, step: int, count: int) -> list[int]:
    """How many arrived in each of `count` steps from `since`."""
    counts = [0] * count
    for at, _ in arrivals:
        index = (at - since) // step
        if 0 <= index < count:
            counts[index] += 1
    return counts


# ---- Metrics ---------------------------------------------------------------------------------


def parse(page: str) -> Samples:
    """Prometheus' text format, as far as the proxy writes it."""
    samples = {}
    for line in page.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            samples[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels))] = float(value)
    return samples


def by_label(samples: Samples, name: str, label: str) -> dict[str, float]:
    """One metric, summed over all labels but one."""
    sums: dict[str, float] = {}
    for (found, labels), value in samples.items():
        if found == name:
            key = dict(labels).get(label, "")
            sums[key] = sums.get(key, 0.0) + value
    return sums


def without(samples: Samples, shards: set[str]) -> Samples:
    """What the other shards say."""
    return {
        (name, labels): value
        for (name, labels), value in samples.items()
        if dict(labels).get("shard") not in shards
    }


def total(samples: Samples, name: str) -> float:
    return sum(value for (found, _), value in samples.items() if found == name)


@dataclass(frozen=True)
class Ages:
    """Of a histogram: the upper ends of the buckets that hold these, in milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def ages(before: Samples, after: Samples, name: str) -> Ages | None:
    """What a histogram has counted in between; `None`: nothing."""
    earlier = by_label(before, f"{name}_bucket", "le")
    grown = {
        float(le): value - earlier.get(le, 0.0)
        for le, value in by_label(after, f"{name}_bucket", "le").items()
    }
    count = max(grown.values(), default=0.0)
    if count <= 0:
        return None

    def end_of(share: float) -> float:
        return min(le for le, below in grown.items() if below >= share * count) * 1e3

    return Ages(round(count), end_of(0.5), end_of(0.99), end_of(1.0))


# ---- Callgrind -------------------------------------------------------------------------------


def instructions(text: str) -> int:
    """What a file of callgrind's has counted. Raises ValueError if it does not say."""
    found = re.search(r"^(?:totals|summary): (\d+)", text, re.M)
    if not found:
        raise ValueError("callgrind's file has no total")
    return int(found.group(1))


def slope(few: tuple[int, int], many: tuple[int, int]) -> float:
    """What each further one costs: of two pairs of a count and a cost."""
    return (many[1] - few[1]) / (many[0] - few[0])


# ---- For tables ------------------------------------------------------------------------------


def middle_and_most(values: Iterable[float], text: Callable[[float], str]) -> str:
    """Median; and the most, if there are several."""
    values = list(values)
    if not values:
        return "–"
    middle = text(statistics.median(values))
    return middle if len(values) == 1 else f"{middle}, at most {text(max(values))}"
