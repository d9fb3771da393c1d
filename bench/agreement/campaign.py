"""Flags -> rows in turn -> a file and tables."""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rig import callgrind, rows
from rig.figures import middle_and_most
from rig.rows import Found, Step, disturbed, verdict
from rig.stage import allowed_cpus
from versus import campaign
from versus.campaign import EXIT_INTERRUPTED, EXIT_INVALID, UsageError, say
from versus.figures import number, spread
from versus.measure import Bench
from versus.results import Campaign, Writer, row_line
from versus.rivals import OURS, PROXIES
from versus.table import markdown

from . import breakers, cost, limits

ROWS = {
    "limit": "Limits: 200 clients, an origin that takes 50 ms",
    "trip": "Trip: what reached an endpoint after its fifth failure",
    "recovery": "Recovery: requests that reached an endpoint in each second after its probe",
    "probe": "Probes",
    "quiet": "Messages between shards while all goes well",
    "instructions": "Instructions of user space per request",
    "cost": "CPU per request, paired",
}

DESCRIPTION = """Measures whether limits and breakers hold over all shards, and what that costs.

    bench/agreement/run                               all rows; half an hour
    bench/agreement/run --rows limit,trip --shards 1,4
    bench/agreement/run --before BINARY --before-commit 1d1c31c --rows cost,instructions
    bench/agreement/run --smoke                       does everything run? No figures to keep

Rows: limit, trip, recovery, probe, quiet, instructions, cost; the last two compare with --before.
All but `cost` let everything use all CPUs: with more shards than cores, they share them.
bench/README.md says what each row does, and what it must show."""

# Of the rounds of `cost`.
COST_ROUNDS = 40


@dataclass(frozen=True)
class Plan:
    """What a run is to do."""

    bench: Bench
    # With CPUs of their own for proxy and load; `None` where there is but one.
    pair: Bench | None
    binaries: dict[str, Path]
    before: Path | None
    shards: list[int]
    rows: list[str]
    smoke: bool
    seconds: float
    rounds: int

    @property
    def ours(self) -> Path:
        return self.binaries[OURS]

    def times(self, count: int) -> int:
        return 1 if self.smoke else count


def main() -> int:
    flags = campaign.parser(DESCRIPTION)
    flags.set_defaults(proxies="outrigger,nginx,haproxy,envoy", seconds=6.0, rounds=COST_ROUNDS)
    flags.add_argument("--shards", default="1,2,4,8", help="(1,2,4,8)")
    flags.add_argument("--before", type=Path, metavar="BINARY", help="to compare costs with")
    flags.add_argument("--before-commit", default="", help="what it was built from")
    flags.add_argument("--smoke", action="store_true", help="as short as can be")
    arguments = flags.parse_args()
    try:
        plan = planned(arguments)
        about = described(arguments, plan)
    except UsageError as error:
        flags.error(str(error))
    return run(plan, about, campaign.raw_path(arguments, about, "agreement"))


def planned(arguments: argparse.Namespace) -> Plan:
    chosen = list(campaign.choose(ROWS, arguments.rows, "row"))
    shards = rows.shard_counts(arguments.shards)
    if arguments.before_commit:
        cost.commit_of(arguments.before_commit)
    binaries = rows.available(arguments)
    cpus, loadgen = allowed_cpus(), campaign.load_generator(arguments)
    pair = Bench(loadgen, cpus[:1], cpus[1:2], cpus[1:2]) if len(cpus) > 1 else None
    before = arguments.before and campaign.built(cost.BEFORE, arguments.before).absolute()
    return Plan(
        Bench(loadgen, cpus, cpus, cpus), pair, binaries, before, shards, chosen,
        arguments.smoke, 3.0 if arguments.smoke else arguments.seconds,
        2 if arguments.smoke else arguments.rounds,
    )


def described(arguments: argparse.Namespace, plan: Plan) -> Campaign:
    titles = {name: ROWS[name] for name in plan.rows}
    about = rows.described(
        arguments, plan.bench, plan.binaries, titles, plan.seconds, plan.rounds
    )
    if plan.before:
        about.versions[cost.BEFORE] = arguments.before_commit or "unknown"
    return about


# ---- Measuring -------------------------------------------------------------------------------

def steps(plan: Plan) -> Iterator[tuple[str, Step]]:
    """All but `cost`, which has its own."""
    bench, ours = plan.bench, plan.ours
    makers = {
        "limit": lambda: limit_steps(plan),
        "trip": lambda: (
            (
                {"shards": shards, "saturated": saturated},
                lambda shards=shards, saturated=saturated: breakers.trip(
                    bench, ours, shards, plan.times(10), saturated
                ),
            )
            for shards, saturated in [
                *((shards, False) for shards in plan.shards), (max(plan.shards), True),
            ]
        ),
        "recovery": lambda: (
            ({"shards": shards}, lambda shards=shards: breakers.recovery(bench, ours, shards))
            for shards in (plan.shards[-1:] if plan.smoke else plan.shards)
        ),
        "probe": lambda: (
            (
                {"shards": shards, "probes": probes},
                lambda shards=shards, probes=probes: breakers.probe(
                    bench, ours, shards, probes, plan.times(5)
                ),
            )
            for shards, probes in [*((shards, 1) for shards in plan.shards), (plan.shards[-1], 3)]
        ),
        "quiet": lambda: (
            ({"shards": shards}, lambda shards=shards: cost.quiet(bench, ours, shards))
            for shards in plan.shards
        ),
        "instructions": lambda: (
            (
                {"binary": name, "connections": connections, "round": turn},
                lambda binary=binary, connections=connections: {
                    "instructions": round(callgrind.instructions(bench, binary, connections), 1)
                },
            )
            for turn in range(1, plan.times(3) + 1)
            for connections in (1, 16)
            for name, binary in compared(plan).items()
        ),
    }
    for name in plan.rows:
        for step in makers.get(name, lambda: ())():
            yield name, step


def compared(plan: Plan) -> dict[str, Path]:
    return {OURS: plan.ours, **({cost.BEFORE: plan.before} if plan.before else {})}


def limit_steps(plan: Plan) -> Iterator[Step]:
    bench, ours, seconds = plan.bench, plan.ours, plan.seconds

    def through(way: limits.Way, workers: int, limit: int) -> Step:
        title = f"{PROXIES[way.proxy].title}, {way.title}"
        binary = plan.binaries[way.proxy]
        return {"proxy": title, "shards": workers, "limit": limit}, lambda: limits.measure(
            bench, way, binary, workers, limit, seconds
        )

    for limit in (7, 1):
        yield {"proxy": "no proxy", "shards": 0, "limit": limit}, lambda limit=limit: (
            limits.measure_direct(bench, limit, seconds)
        )
        for shards in plan.shards:
            yield through(limits.OURS_WAY, shards, limit)
    for shards in plan.shards:
        if shards > 1:
            about = {"proxy": "Outrigger, all traffic on one shard", "shards": shards, "limit": 7}
            yield about, lambda shards=shards: limits.measure_one_shard(
                bench, ours, shards, 7, seconds
            )
    for way in limits.RIVALS:
        for workers in plan.shards if way.proxy in plan.binaries else ():
            yield through(way, workers, 7)


def run(plan: Plan, about: Campaign, raw: Path) -> int:
    rows.prepare(plan.bench)
    say(f"rows {', '.join(plan.rows)}; raw rows: {raw}")
    writer = Writer(raw, about)
    found: Found = {name: [] for name in plan.rows}
    code = 0
    try:
        rows.measure_all(steps(plan), "agreement", writer, found)
        if "cost" in plan.rows:
            measure_cost(plan, about, writer)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
        say("interrupted: the tables so far")
    finally:
        writer.close()
    print(tables(about, found))
    wrong = rows.broken(found) or any(row.invalid for row in about.rows)
    return code or (EXIT_INVALID if wrong else 0)


def measure_cost(plan: Plan, about: Campaign, writer: Writer) -> None:
    if plan.pair is None:
        return say("cost: skipped, it needs two CPUs")
    seconds = 1.0 if plan.smoke else 2.0
    campaign.prepare(plan.pair.cpus_load)
    for turn in cost.turns(plan.pair, compared(plan), plan.rounds, seconds):
        row = campaign.measured(turn)
        about.rows.append(row)
        writer.line(row_line(row))
        say(campaign.progress(row))
    return None


# ---- Tables ----------------------------------------------------------------------------------


def tables(about: Campaign, found: Found) -> str:
    out = [rows.headline(about)]
    for name, of_name in found.items():
        if name == "cost":
            out.append(cost_table(about))
        elif good := rows.good(of_name):
            out += [f"{ROWS[name]}\n", TABLES[name](good)]
    out += [f"- INVALID {row}" for row in rows.broken(found)]
    return "\n".join(out)


def limit_table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        ours, within = row["proxy"].startswith("Outrigger"), abs(1 - row["share"])
        exact = row["concurrency_max"] == row["limit"]
        lines.append([
            row["proxy"], str(row["shards"] or "–"), str(row["limit"]),
            f"{row['concurrency_max']}{verdict(exact or not ours)}",
            f"{row['rate']:.1f}",
            f"{row['share']:.1%}"
            f"{verdict(within <= limits.SHARE_MISSED_MAX or not ours)}",
            f"{row['refused_share']:.1%}" if row.get("refused_share") else "0",
            f"{row['last_s']:.1f} ({row['last_expected_s']:.1f})" if "last_s" in row else "–",
            disturbed(row),
        ])
    head = [
        "", "shards or workers", "limit", "most at once", "right answers/s", "of what it allows",
        "refused", "the last 200, s (at best)", "stolen, others",
    ]
    return markdown(head, lines)


def trip_table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        ages = row["view_ages"]
        most = max(row["after_trip"])
        late = row["view_age_violations"]
        lines.append([
            f"{row['shards']}{', saturated' if row['saturated'] else ''}",
            number(row["rate"]), number(row["endpoint_rate"]),
            middle_and_most(row["after_trip"], lambda value: f"{value:g}"),
            middle_and_most(row["last_ms"], number),
            f"{row['bound_ms']:.1f}",
            f"{row['allowed']:.0f}{verdict(most <= row['allowed'] or row['saturated'])}",
            f"{ages['p50_ms']:.3g}, {ages['p99_ms']:.3g}, {ages['max_ms']:.3g}" if ages else "–",
            f"{late:.0f} of {ages['count'] if ages else 0}{verdict(not late or row['saturated'])}",
            f"{row['lag_ms']:.1f}, {row['lag_max_ms']:.1f}",
            disturbed(row),
        ])
    head = [
        "shards", "requests/s", "of them to the endpoint", "after the trip", "last one, ms",
        "bound, ms", "rate × bound", "view age below, ms: p50, p99, max", "violations",
        "loop lag, ms: median, most", "stolen, others",
    ]
    return markdown(head, lines)


def recovery_table(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        for kind, values in (("requests", row["per_second"]), ("share", row["shares"])):
            shown = [str(value) if kind == "requests" else f"{value:.2f}" for value in values]
            first = [str(row["first_500_ms"]), str(row["peak_50_ms"]), disturbed(row)]
            lines.append([
                f"{row['shards']}, {kind}", *shown,
                *(first if kind == "requests" else ["", "", ""]),
            ])
    count = len(rows[0]["per_second"])
    head = [
        "shards, second", *map(str, range(1, count + 1)), "first 500 ms", "most in 50 ms of them",
        "stolen, others",
    ]
    return markdown(head, lines)


def probe_table(rows: list[dict]) -> str:
    """A shard has one probe out at a time, and the first failure ends the period."""
    lines = [
        [
            str(row["shards"]), str(row["probes"]), str(row["periods"]),
            ", ".join(map(str, row["in_each_period"]))
            + verdict(row["in_each_period"] == [min(row["probes"], row["shards"])]),
            middle_and_most(row["well_to_probe_ms"], number),
            middle_and_most(row["probe_to_closed_ms"], number),
            disturbed(row),
        ]
        for row in rows
    ]
    head = [
        "shards", "`probes`", "half-open periods", "requests in each", "well to probe, ms",
        "last probe to next request, ms", "stolen, others",
    ]
    return markdown(head, lines)


def quiet_table(rows: list[dict]) -> str:
    lines = [
        [
            str(row["shards"]), f"{row['requests']:,}", number(row["rate"]),
            f"{row['messages']:,}", f"{row['waking']:,}{verdict(row['waking'] == 0)}",
            str(row["dropped"]), str(row["waking_in_warm_up"]), disturbed(row),
        ]
        for row in rows
    ]
    head = [
        "shards", "requests", "requests/s", "messages", "that wake", "dropped",
        "that woke before", "stolen, others",
    ]
    return markdown(head, lines)


def instructions_table(rows: list[dict]) -> str:
    lines = []
    for connections in sorted({row["connections"] for row in rows}):
        of = {
            name: [
                row["instructions"] for row in rows
                if (row["connections"], row["binary"]) == (connections, name)
            ]
            for name in (OURS, cost.BEFORE)
        }
        ours, before = of[OURS], of[cost.BEFORE]
        more = statistics.median(ours) / statistics.median(before) - 1 if before and ours else None
        lines.append([
            str(connections), spread(ours), spread(before) or "–",
            "–" if more is None else f"{more:+.1%}{verdict(more <= 0.03)}",
        ])
    return markdown(["connections", "now", "before", "more"], lines)


def cost_table(about: Campaign) -> str:
    of = {
        name: [row.figures.cpu_us for row in about.rows if row.proxy == name and row.figures]
        for name in (OURS, cost.BEFORE)
    }
    marks = [mark for row in about.rows if row.figures for mark in row.figures.marks]
    counted = ", ".join(f"{mark} {marks.count(mark)}" for mark in sorted(set(marks))) or "none"
    paired = cost.ratios(about.rows)
    line = [
        str(len(paired)), spread(of[OURS]), spread(of[cost.BEFORE]) or "–", spread(paired) or "–",
        interval(paired), f"{counted} of {len(about.rows)}",
    ]
    head = ["pairs", "now, µs", "before, µs", "ratio", "95 % of the median", "marks"]
    return f"{ROWS['cost']}\n\n{markdown(head, [line])}"


def interval(values: list[float]) -> str:
    """Of the median, by order statistics (sign test); there must be six for it."""
    count = len(values)
    if count < 6:
        return "–"
    # The largest tail of Bin(n, 1/2) below 2.5 %.
    below, chance, term = 0, 0.0, 0.5**count
    while chance + term <= 0.025:
        chance += term
        below += 1
        term = term * (count - below + 1) / below
    ordered = sorted(values)
    return f"{ordered[below - 1]:.3f}–{ordered[count - below]:.3f}"


TABLES = {
    "limit": limit_table,
    "trip": trip_table,
    "recovery": recovery_table,
    "probe": probe_table,
    "quiet": quiet_table,
    "instructions": instructions_table,
}
