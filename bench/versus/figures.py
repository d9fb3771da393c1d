"""Figures from rows: by round, their median, and ratios within a round. Pure."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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


CPU = Kind("CPU per request", "µs", lambda figures: figures.cpu_us)
CPU_PER_MIB = Kind(
    "CPU per MiB", "µs",
    lambda figures: 1e6 / figures.mib_per_cpu_s if figures.mib_per_cpu_s else None,
)
RATE = Kind("throughput", "requests/s", lambda figures: figures.rate, higher_is_better=True)
BYTES = Kind(
    "bytes per CPU second", "MiB", lambda figures: figures.mib_per_cpu_s, higher_is_better=True
)
P50 = Kind("p50", "µs", lambda figures: figures.p50_us)
P99 = Kind("p99", "µs", lambda figures: figures.p99_us)
P999 = Kind("p99.9", "µs", lambda figures: figures.p999_us)
MAX = Kind("max", "µs", lambda figures: figures.max_us)
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
    for row in campaign.rows:
        if row.scenario == scenario and row.figures is not None:
            value = kind.pick(row.figures)
            if value is not None:
                values.setdefault(row.proxy, {})[row.round] = value
    about = campaign.scenarios[scenario]
    limit = about.get("limits", {}).get(kind.name)
    return Line(scenario, about["title"], kind, values, limit)


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
