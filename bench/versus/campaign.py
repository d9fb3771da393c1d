"""Flags -> measurements in turn -> rows in a file and a table."""

import argparse
import datetime
import os
import resource
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from . import figures, machine, scenario, table
from .measure import IDLE_SETTLE_S, WARM_UP_S, Bench, Invalid, measure
from .process import ProcessError
from .results import Campaign, Row, Writer
from .rivals import OURS, PROXIES, ROOT, TARGET, Proxy
from .scenario import Scenario

# Starting and ending origin, proxy and load generator, for the estimate, in seconds.
OVERHEAD_S = 0.9

# Opening one idle connection, in seconds.
IDLE_OPEN_S = 0.0004

RESULTS = ROOT / "bench" / "results"

EXIT_INVALID = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

DESCRIPTION = """Measures proxies against each other, and prints a table.

    bench/versus/setup                                installs the rivals that are missing
    bench/versus/run                                  3 rounds of everything
    bench/versus/run --rounds 20 --keep               the campaign of the README
    bench/versus/run --rows get-64,1m --proxies outrigger,nginx,haproxy
    bench/versus/run --smoke                          does everything run? No figures to keep

In each round each proxy has its turn, another one first each time: alone on its CPU, started anew,
with one worker. Load and origin share another CPU. bench/README.md says how figures are computed
and what makes a row invalid."""


def parser(description: str) -> argparse.ArgumentParser:
    """What all commands of the bench have in common."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=3, help="of each row (3)")
    made.add_argument("--seconds", type=float, default=3.0, help="of load, for each measurement (3)")
    made.add_argument("--rows", default="all", help="names of files in bench/scenarios (all)")
    made.add_argument("--proxies", default="all", help=f"some of {','.join(PROXIES)} (all)")
    made.add_argument("--outrigger", type=Path, metavar="BINARY", help="(target/release/outrigger)")
    made.add_argument(
        "--loadgen", type=Path, metavar="BINARY", default=TARGET / "release" / "outrigger-loadgen",
        help="(target/release/outrigger-loadgen)",
    )
    return made


def main() -> int:
    flags = parser(DESCRIPTION)
    flags.add_argument("--raw", type=Path, metavar="FILE", help="append raw rows there (target/bench)")
    flags.add_argument("--keep", action="store_true", help="append raw rows in bench/results")
    flags.add_argument("--cpu-proxy", type=int, default=0, help="(0)")
    flags.add_argument("--cpu-load", type=int, default=1, help="(1)")
    flags.add_argument("--cpu-origin", type=int, help="(the load's)")
    flags.add_argument("--smoke", action="store_true", help="1 round of 1 s")
    arguments = flags.parse_args()
    if arguments.smoke:
        arguments.rounds, arguments.seconds = 1, 1.0
    try:
        scenarios = choose(scenario.load(), arguments.rows, "row")
        proxies, skipped = available(arguments)
        bench = make_bench(arguments)
    except (UsageError, scenario.ScenarioError) as error:
        flags.error(str(error))
    description = machine.describe()
    campaign = new_campaign(arguments, bench, scenarios, proxies, skipped, description)
    now = datetime.datetime.now(datetime.UTC)
    raw = arguments.raw or (
        RESULTS / f"{now:%Y-%m-%d}-{machine.kind(description)}.jsonl" if arguments.keep
        else TARGET / "bench" / f"versus-{now:%Y-%m-%dT%H%M%SZ}.jsonl"
    )
    return run(Plan(bench, scenarios, proxies, arguments.rounds, arguments.seconds), campaign, raw)


class UsageError(Exception):
    """One line."""


def choose(all_of: dict, names: str, what: str) -> dict:
    """Some of them, in their own order."""
    if names == "all":
        return all_of
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in all_of]:
        raise UsageError(f"no {what} {', '.join(unknown)}; there are {', '.join(all_of)}")
    return {name: one for name, one in all_of.items() if name in wanted}


def available(arguments: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """The chosen proxies' binaries, and who is missing."""
    binaries, skipped = {}, {}
    for name, proxy in choose(PROXIES, arguments.proxies, "proxy").items():
        binary = arguments.outrigger if name == OURS and arguments.outrigger else proxy.find()
        if binary is not None and os.access(binary, os.X_OK):
            binaries[name] = binary.absolute()
        elif name == OURS:
            raise UsageError("outrigger is not built: cargo build --release, or --outrigger BINARY")
        else:
            skipped[name] = "not installed: bench/versus/setup installs it"
    if not binaries:
        raise UsageError("none of these proxies is installed: bench/versus/setup installs them")
    return binaries, skipped


def make_bench(arguments: argparse.Namespace) -> Bench:
    loadgen = arguments.loadgen.absolute()
    if not os.access(loadgen, os.X_OK):
        raise UsageError(f"{arguments.loadgen} is not there: cargo build --release -p outrigger-loadgen")
    origin = arguments.cpu_load if arguments.cpu_origin is None else arguments.cpu_origin
    ours = os.sched_getaffinity(0)
    for cpu in (arguments.cpu_proxy, arguments.cpu_load, origin):
        if cpu not in ours:
            raise UsageError(f"CPU {cpu} is not there, or not ours: two CPUs are needed")
    if arguments.cpu_proxy in (arguments.cpu_load, origin):
        raise UsageError("the proxies need a CPU of their own")
    return Bench(loadgen, [arguments.cpu_proxy], [arguments.cpu_load], [origin])


@dataclass(frozen=True)
class Turn:
    """One measurement to make."""

    scenario: Scenario
    proxy: Proxy
    round: int
    place: int


@dataclass(frozen=True)
class Plan:
    """All measurements of a campaign."""

    bench: Bench
    scenarios: dict[str, Scenario]
    binaries: dict[str, Path]
    rounds: int
    seconds: float

    def turns(self) -> list[Turn]:
        """Round by round, scenario by scenario; in each, every proxy, another one first each time."""
        turns = []
        for number in range(self.rounds):
            for one in self.scenarios.values():
                fit = [
                    PROXIES[name] for name in self.binaries
                    if one.name not in PROXIES[name].skips
                    and len(self.bench.cpus_proxy) <= (PROXIES[name].workers_max or 1 << 16)
                ]
                first = number % max(1, len(fit))
                order = fit[first:] + fit[:first]
                turns += [
                    Turn(one, proxy, number + 1, place + 1) for place, proxy in enumerate(order)
                ]
        return turns

    def seconds_of(self, turn: Turn) -> float:
        """About how long it takes."""
        idle = turn.scenario.idle_connections
        settle = idle * IDLE_OPEN_S + IDLE_SETTLE_S if idle else 0.0
        return OVERHEAD_S + WARM_UP_S + self.seconds + settle


def new_campaign(
    arguments: argparse.Namespace, bench: Bench, scenarios: dict[str, Scenario],
    binaries: dict[str, Path], skipped: dict[str, str], description: dict,
) -> Campaign:
    skipped = dict(skipped)
    for one in scenarios.values():
        for name in binaries:
            if one.name in PROXIES[name].skips:
                skipped[f"{name} in {one.name}"] = PROXIES[name].skips[one.name]
    return Campaign(
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        command=command(),
        machine=description,
        versions={name: PROXIES[name].version(binary) for name, binary in binaries.items()},
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        cpus_proxy=bench.cpus_proxy,
        cpus_load=bench.cpus_load,
        cpus_origin=bench.cpus_origin,
        scenarios={
            one.name: {
                "title": one.title,
                "rate": one.rate,
                "large": one.large,
                "reload": one.reload_every_s > 0,
                "idle_connections": one.idle_connections,
                "limits": one.limits,
            }
            for one in scenarios.values()
        },
        skipped=skipped,
    )


def command() -> str:
    """As somebody else would type it: paths of this machine left out."""
    program = Path(sys.argv[0]).absolute()
    shown, words = [], iter(sys.argv[1:])
    for word in words:
        if word in ("--outrigger", "--loadgen", "--raw"):
            next(words, None)
        elif not word.startswith(("--outrigger=", "--loadgen=", "--raw=")):
            shown.append(word)
    return shlex.join([str(program.relative_to(ROOT) if ROOT in program.parents else program.name), *shown])


def run(plan: Plan, campaign: Campaign, raw: Path) -> int:
    """Everything in turn. Ctrl-C ends it with the table so far."""
    raise_descriptor_limit()
    # Never on the proxies' CPU.
    os.sched_setaffinity(0, plan.bench.cpus_load)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    for what, why in campaign.skipped.items():
        say(f"{what}: skipped, {why}")
    turns = plan.turns()
    left = sum(map(plan.seconds_of, turns))
    say(f"{len(turns)} measurements, about {duration(left)}; raw rows: {raw}")
    writer = Writer(raw, campaign)
    interrupted = False
    try:
        for done, turn in enumerate(turns, 1):
            row = one(plan, turn)
            campaign.rows.append(row)
            writer.row(row)
            left -= plan.seconds_of(turn)
            say(f"{progress(row)}  [{done}/{len(turns)}, {duration(left)} left]")
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted: the table so far")
    finally:
        writer.close()
    print(table.full(campaign))
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_INVALID if any(row.invalid for row in campaign.rows) else 0


def one(plan: Plan, turn: Turn) -> Row:
    found, invalid = None, None
    at = time.time()
    try:
        found = measure(
            plan.bench, turn.proxy, plan.binaries[turn.proxy.name], turn.scenario, plan.seconds,
            turn.round,
        )
    except (Invalid, ProcessError) as error:
        invalid = str(error)
    return Row(
        turn.scenario.name, turn.proxy.name, turn.round, turn.place, len(plan.bench.cpus_proxy),
        round(at, 1), found, invalid,
    )


def progress(row: Row) -> str:
    start = f"{row.scenario}, round {row.round}, {row.proxy}:"
    if row.figures is None:
        return f"{start} INVALID: {row.invalid}"
    found = row.figures
    said = [f"{found.cpu_us:.1f} µs", f"{found.rate:,.0f}/s", f"CPU {found.cpu_share:.0%}"]
    if found.p50_us is not None:
        said.append(f"p50 {figures.number(found.p50_us)} µs, p99 {figures.number(found.p99_us)} µs")
    if found.pss_per_connection_bytes is not None:
        said.append(f"{found.pss_per_connection_bytes / 1024:.2f} KiB a connection")
    if found.errors:
        said.append(f"{found.errors} failed")
    return f"{start} {', '.join(said + found.marks)}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def raise_descriptor_limit() -> None:
    """Children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
