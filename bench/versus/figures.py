"""Figures from rows: by round, their median, and ratios within a round. Pure."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .results import Campaign, Figures

# Values by round.
Series = dict[int, float]


@dataclass(frozen=True)
class Kind:
    """One kind of figure."""

    name: str
    unit: str
    pick: Callable[[Figures], float | None]
    higher_is_better: bool = False
    # Of the requests may be sent late before it is the load generator's figure more than the
    # target's; None where that does not matter.
    late_max: float | None = None


CPU = Kind("CPU per request", "µs", lambda figures: figures.cpu_us)
CPU_PER_MIB = Kind(
    "CPU per MiB", "µs",
    lambda figures: 1e6 / figures.mib_per_cpu_s if figures.mib_per_cpu_s else None,
)
RATE = Kind("throughput", "requests/s", lambda figures: figures.rate, higher_is_better=True)
BYTES = Kind(
    "bytes per CPU second", "MiB", lambda figures: figures.mib_per_cpu_s, higher_is_better=True
)
# As many late requests as lie above a percentile may be all of those above it. A tenth moves the
# median by no more than that of the ranks.
P50 = Kind("p50", "µs", lambda figures: figures.p50_us, late_max=0.1)
P99 = Kind("p99", "µs", lambda figures: figures.p99_us, late_max=0.01)
P999 = Kind("p99.9", "µs", lambda figures: figures.p999_us, late_max=0.001)
MAX = Kind("max", "µs", lambda figures: figures.max_us, late_max=0.0)
MEMORY = Kind(
    "memory per idle connection", "KiB",
    lambda figures: scaled(figures.pss_per_connection_bytes, 1024),
)
MEMORY_IDLE = Kind(
    "memory of the idle process", "MiB", lambda figures: scaled(figures.pss_idle_bytes, 1 << 20)
)
ERRORS = Kind("failed requests", "", lambda figures: float(figures.errors))
RELOAD = Kind("longest reload", "ms", lambda figures: figures.reload_ms)


def scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


@dataclass(frozen=True)
class Line:
    """One kind of figure in one scenario, for every proxy."""

    scenario: str
    title: str
    kind: Kind
    values: dict[str, Series]
    # What the ratio to the better yardstick must not exceed.
    limit: float | None = None
    # The rounds in which the load generator was too late for this figure.
    late: dict[str, set[int]] = field(default_factory=dict)

    def spoilt(self, proxies: Iterable[str], rounds: Iterable[int]) -> bool:
        """Whether in half of these rounds or more the generator was too late for one of them."""
        rounds = set(rounds)
        late = rounds & set().union(*(self.late.get(proxy, set()) for proxy in proxies))
        return bool(late) and 2 * len(late) >= len(rounds)

    def ratios(self, ours: str, rivals: Iterable[str]) -> Series:
        """Ours over the best of the rivals, in each round that has ours and all of theirs."""
        best = max if self.kind.higher_is_better else min
        rivals = list(rivals)
        ratios = {}
        for number, own in self.values.get(ours, {}).items():
            theirs = [self.values.get(rival, {}).get(number) for rival in rivals]
            if theirs and None not in theirs and best(theirs) > 0:
                ratios[number] = own / best(theirs)
        return ratios


def line(campaign: Campaign, scenario: str, kind: Kind) -> Line:
    """Valid rows of the campaign only."""
    values: dict[str, Series] = {}
    late: dict[str, set[int]] = {}
    for row in campaign.rows:
        if row.scenario == scenario and row.figures is not None:
            value = kind.pick(row.figures)
            if value is not None:
                values.setdefault(row.proxy, {})[row.round] = value
                if kind.late_max is not None and row.figures.late(kind.late_max):
                    late.setdefault(row.proxy, set()).add(row.round)
    about = campaign.scenarios[scenario]
    limit = about.get("limits", {}).get(kind.name)
    return Line(scenario, about["title"], kind, values, limit, late)


def number(value: float) -> str:
    """Three digits that count, and all before the point: 0.123, 12.3, 4,321."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Iterable[float]) -> str:
    """Median (least–most); alone where there is but one."""
    values = list(values)
    if not values:
        return ""
    if len(values) == 1:
        return number(values[0])
    middle = number(statistics.median(values))
    return f"{middle} ({number(min(values))}–{number(max(values))})"
