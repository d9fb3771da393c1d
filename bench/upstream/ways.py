"""How each proxy is set up: traits and values of its template in bench/rivals."""

from dataclasses import dataclass, field
from pathlib import Path

from rig.stage import Stage
from versus.rivals import OURS, PROXIES


@dataclass(frozen=True, eq=False)
class Way:
    """One way to set one proxy up."""

    proxy: str
    # What is told of it beside the proxy's name.
    title: str
    traits: frozenset[str] = frozenset()
    values: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{PROXIES[self.proxy].title}, {self.title}"

    @property
    def ours(self) -> bool:
        return self.proxy == OURS

    def start(
        self, on: Stage, binary: Path, workers: int, origins: list[int], *more: str
    ) -> None:
        """`more`: traits that the row gives to all."""
        traits = set(self.traits) | set(more)
        # Workers that share what they know of endpoints, where nginx has more than one.
        if self.proxy == "nginx" and workers > 1:
            traits.add("zone")
        on.proxy(self.proxy, binary, workers, origins, traits, **self.values)


def ours(title: str, **values: object) -> Way:
    return of(OURS, title, **values)


def of(proxy: str, title: str, *traits: str, **values: object) -> Way:
    """Each value brings the trait that asks for it."""
    known = {TRAITS[name] for name in values}
    return Way(proxy, title, frozenset(traits) | known, values)


TRAITS = {
    "balance": "balanced",
    "breaker": "breaker",
    "budget": "budgeted",
    "check": "checked",
    "next": "next",
    "retries": "retried",
    "retry_on": "retried",
    "retry_policy": "retried",
    "slow_start": "slow_start",
    "tries": "retried",
}
