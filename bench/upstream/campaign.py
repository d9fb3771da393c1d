"""Flags -> rows in turn -> a file and tables."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rig import rows
from rig.rows import Found, Step
from rig.stage import allowed_cpus
from versus import campaign
from versus.campaign import EXIT_INTERRUPTED, EXIT_INVALID, UsageError, say
from versus.measure import Bench
from versus.results import Campaign, Writer

from . import dead, defaults, revived, slow, storm, tables
from .ways import Way

DESCRIPTION = """Measures retries, balancing, and endpoints that die and come back, beside others.

    bench/upstream/run                                all rows; a quarter of an hour
    bench/upstream/run --rows storm --shards 1,8
    bench/upstream/run --rows slow --rounds 5 --proxies outrigger,haproxy
    bench/upstream/run --smoke                        does everything run? No figures to keep

Rows: storm, dead, revived, defaults, slow. Everything may use all CPUs: with more shards than
cores, they share them. bench/README.md says what each row does, and what it must show."""

# Of `slow`, whose latencies differ from round to round.
SLOW_ROUNDS = 2

# Shards, or a rival's workers, where not all numbers of them matter.
FEW = (1, 4)


@dataclass(frozen=True)
class Plan:
    """What a run is to do."""

    bench: Bench
    binaries: dict[str, Path]
    shards: list[int]
    rows: list[str]
    smoke: bool
    seconds: float
    rounds: int

    @property
    def few(self) -> list[int]:
        """Shards, where not all numbers of them matter."""
        return [count for count in self.shards if count in FEW] or self.shards[-1:]

    def have(self, ways) -> list[Way]:
        return [way for way in ways if way.proxy in self.binaries]

    def binary(self, way: Way) -> Path:
        return self.binaries[way.proxy]


def main() -> int:
    flags = campaign.parser(DESCRIPTION)
    flags.set_defaults(
        proxies="outrigger,nginx,haproxy,envoy", seconds=slow.SECONDS, rounds=SLOW_ROUNDS
    )
    flags.add_argument("--shards", default="1,2,4,8", help="(1,2,4,8)")
    flags.add_argument("--smoke", action="store_true", help="as short as can be")
    arguments = flags.parse_args()
    try:
        plan = planned(arguments)
        titles = {name: tables.ROWS[name] for name in plan.rows}
        about = rows.described(
            arguments, plan.bench, plan.binaries, titles, plan.seconds, plan.rounds
        )
    except UsageError as error:
        flags.error(str(error))
    return run(plan, about, campaign.raw_path(arguments, about, "upstream"))


def planned(arguments: argparse.Namespace) -> Plan:
    cpus = allowed_cpus()
    smoke = arguments.smoke
    shards = rows.shard_counts(arguments.shards)
    return Plan(
        Bench(campaign.load_generator(arguments), cpus, cpus, cpus),
        rows.available(arguments),
        shards[-1:] if smoke else shards,
        list(campaign.choose(tables.ROWS, arguments.rows, "row")),
        smoke,
        1.0 if smoke else arguments.seconds,
        1 if smoke else arguments.rounds,
    )


# ---- Measuring -------------------------------------------------------------------------------


def steps(plan: Plan) -> Iterator[tuple[str, Step]]:
    makers = {
        "storm": storm_steps,
        "dead": dead_steps,
        "revived": revived_steps,
        "defaults": defaults_steps,
        "slow": slow_steps,
    }
    for name in plan.rows:
        for step in makers[name](plan):
            yield name, step


def storm_steps(plan: Plan) -> Iterator[Step]:
    failing_s, well_s = (1.0, 1.0) if plan.smoke else (storm.FAILING_S, storm.WELL_S)

    def step(way: Way, workers: int, well_s: float = 0.0) -> Step:
        about = told(way, shards=workers, well_s=well_s)
        return about, lambda: storm.measure(
            plan.bench, way, plan.binary(way), workers, well_s, failing_s
        )

    for workers in plan.shards:
        yield step(storm.OURS_OFF, workers)
        yield step(storm.OURS_OFF, workers, well_s)
        yield step(storm.OURS_ON, workers)
    for way in (storm.OURS_ONE, storm.OURS_ALL_OUT):
        yield step(way, plan.few[-1])
    for way in plan.have(storm.RIVALS):
        for workers in plan.few:
            yield step(way, workers)
    # The one with a budget: what it saves up, if anything.
    for way in plan.have(storm.RIVALS[-1:]):
        yield step(way, plan.few[-1], well_s)


def dead_steps(plan: Plan) -> Iterator[Step]:
    workers = len(plan.bench.cpus_proxy)
    dead_s = 1.0 if plan.smoke else dead.DEAD_S
    for death in dead.DEATHS:
        retrying = [way for way, deaths in dead.RETRYING.items() if death in deaths]
        ways = [*dead.WAYS, *retrying]
        if plan.smoke:
            ways = dead.WAYS if death == "status" else dead.WAYS[:1]
        for way in plan.have(ways):
            yield told(way, death=death, shards=workers), lambda way=way, death=death: (
                dead.measure(plan.bench, way, plan.binary(way), workers, death, dead_s)
            )


def revived_steps(plan: Plan) -> Iterator[Step]:
    span_s = 1 if plan.smoke else revived.SPAN_S
    for way in plan.have(revived.WAYS[::3] if plan.smoke else revived.WAYS):
        for workers in plan.few if way.ours else plan.few[-1:]:
            yield told(way, shards=workers), lambda way=way, workers=workers: (
                revived.measure(plan.bench, way, plan.binary(way), workers, span_s)
            )


def defaults_steps(plan: Plan) -> Iterator[Step]:
    for endpoints in defaults.ENDPOINTS[-1:] if plan.smoke else defaults.ENDPOINTS:
        for connections in defaults.CONNECTIONS[-1:] if plan.smoke else defaults.CONNECTIONS:
            for name, way in defaults.WAYS.items():
                about = {"way": name, "endpoints": endpoints, "connections": connections}
                yield about, lambda way=way, about=about: defaults.measure(
                    plan.bench, way, plan.binary(way), about["endpoints"], about["connections"],
                    plan.smoke,
                )


def slow_steps(plan: Plan) -> Iterator[Step]:
    """Last, and in rounds, another one first each time."""
    ways = plan.have([*slow.OURS, *slow.RIVALS])
    for number in range(1, plan.rounds + 1):
        first = (number - 1) % len(ways)
        for way in ways[first:] + ways[:first]:
            for workers in plan.few:
                about = told(way, shards=workers, round=number)
                yield about, lambda way=way, workers=workers: slow.measure(
                    plan.bench, way, plan.binary(way), workers, plan.seconds
                )


def told(way: Way, **about: object) -> dict:
    return {"proxy": way.name, "ours": way.ours, **about}


def run(plan: Plan, about: Campaign, raw: Path) -> int:
    rows.prepare(plan.bench)
    say(f"rows {', '.join(plan.rows)}; raw rows: {raw}")
    writer = Writer(raw, about)
    found: Found = {name: [] for name in plan.rows}
    code = 0
    try:
        rows.measure_all(steps(plan), "upstream", writer, found)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        say("interrupted: the tables so far")
    finally:
        writer.close()
    print(tables.all_of(about, found))
    return code or (EXIT_INVALID if rows.broken(found) else 0)
