"""Flags -> measurements in turn -> rows in a file and a table."""

import argparse
import datetime
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
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
    made.add_argument("--seconds", type=float, default=3.0, help="of load, each time (3)")
    made.add_argument("--rows", default="all", help="names of files in bench/scenarios (all)")
    made.add_argument("--proxies", default="all", help=f"some of {','.join(PROXIES)} (all)")
    made.add_argument("--outrigger", type=Path, metavar="BINARY", help="instead of building it")
    made.add_argument(
        "--loadgen", type=Path, metavar="BINARY", help="outrigger-loadgen, instead of building it"
    )
    made.add_argument("--raw", type=Path, metavar="FILE", help="append rows there (target/bench)")
    made.add_argument("--keep", action="store_true", help="append rows in bench/results")
    return made


def main() -> int:
    flags = parser(DESCRIPTION)
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
    campaign = new_campaign(arguments, bench, scenarios, proxies, skipped)
    turns = [
        turn
        for number in range(1, arguments.rounds + 1)
        for turn in turns_of(number, bench, scenarios.values(), proxies, arguments.seconds)
    ]
    return run(turns, campaign, raw_path(arguments, campaign, "versus"))


def raw_path(arguments: argparse.Namespace, campaign: Campaign, name: str) -> Path:
    """Where the rows go: where they are kept only if that was asked for."""
    if arguments.raw:
        return arguments.raw
    if arguments.keep:
        prefix = "" if name == "versus" else f"{name}-"
        kind = machine.kind(campaign.machine)
        return RESULTS / f"{prefix}{campaign.date[:10]}-{kind}.jsonl"
    return TARGET / "bench" / f"{name}-{campaign.date.replace(':', '')}.jsonl"


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
        binary = built(OURS, arguments.outrigger) if name == OURS else proxy.find()
        if binary is not None and os.access(binary, os.X_OK):
            binaries[name] = binary.absolute()
        else:
            skipped[name] = "not installed: bench/versus/setup installs it"
    if not binaries:
        raise UsageError("none of these proxies is installed: bench/versus/setup installs them")
    return binaries, skipped


def load_generator(arguments: argparse.Namespace) -> Path:
    return built("outrigger-loadgen", arguments.loadgen).absolute()


def built(package: str, given: Path | None) -> Path:
    """A binary of ours: the given one, or this commit's."""
    if given is not None:
        if not os.access(given, os.X_OK):
            raise UsageError(f"{given} is not there, or no program")
        return given
    say(f"building {package}, unless it is as it should be")
    cargo = ["cargo", "build", "--release", "--locked", "--quiet", "--package", package]
    try:
        subprocess.run(cargo, cwd=ROOT, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"cannot build {package}: {error}") from None
    return TARGET / "release" / package


def make_bench(arguments: argparse.Namespace) -> Bench:
    """One CPU for the proxies, and others for the rest."""
    loadgen = load_generator(arguments)
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

    bench: Bench
    scenario: Scenario
    proxy: Proxy
    binary: Path
    # From 1; and the place in it, from 1.
    round: int
    place: int
    seconds: float

    def estimate_s(self) -> float:
        """About how long it takes."""
        idle = self.scenario.idle_connections
        settle = idle * IDLE_OPEN_S + IDLE_SETTLE_S if idle else 0.0
        return OVERHEAD_S + WARM_UP_S + self.seconds + settle


def turns_of(
    number: int, bench: Bench, scenarios: Iterable[Scenario], binaries: dict[str, Path],
    seconds: float,
) -> list[Turn]:
    """One round: in each scenario every proxy that fits, another one first each time."""
    turns = []
    for one in scenarios:
        fit = [
            name for name in binaries
            if one.name not in PROXIES[name].skips
            and len(bench.cpus_proxy) <= (PROXIES[name].workers_max or 1 << 16)
        ]
        first = (number - 1) % max(1, len(fit))
        turns += [
            Turn(bench, one, PROXIES[name], binaries[name], number, place, seconds)
            for place, name in enumerate(fit[first:] + fit[:first], 1)
        ]
    return turns


def new_campaign(
    arguments: argparse.Namespace, bench: Bench, scenarios: dict[str, Scenario],
    binaries: dict[str, Path], skipped: dict[str, str],
) -> Campaign:
    skipped = dict(skipped)
    for one in scenarios.values():
        for name in binaries:
            if one.name in PROXIES[name].skips:
                skipped[f"{name} in {one.name}"] = PROXIES[name].skips[one.name]
    return Campaign(
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        command=command(),
        machine=machine.describe(),
        versions=versions(arguments, binaries),
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


def versions(arguments: argparse.Namespace, binaries: dict[str, Path]) -> dict[str, str]:
    """As the programs tell. Ours is this commit's, unless a binary was given."""
    found = {name: PROXIES[name].version(binary) for name, binary in binaries.items()}
    if OURS in found and arguments.outrigger:
        found[OURS] += " (a given binary, of an unknown commit)"
    return found


def command() -> str:
    """As somebody else would type it: paths of this machine left out."""
    program = Path(sys.argv[0]).absolute()
    shown, words = [], iter(sys.argv[1:])
    for word in words:
        if word in ("--outrigger", "--loadgen", "--raw", "--before"):
            next(words, None)
        elif not word.startswith(("--outrigger=", "--loadgen=", "--raw=", "--before=")):
            shown.append(word)
    name = program.relative_to(ROOT) if ROOT in program.parents else program.name
    return shlex.join([str(name), *shown])


def run(
    turns: list[Turn], campaign: Campaign, raw: Path,
    show: Callable[[Campaign], str] = table.full,
) -> int:
    """Everything in turn. Ctrl-C ends it with the table so far. Returns the exit code."""
    prepare(campaign.cpus_load)
    for what, why in campaign.skipped.items():
        say(f"{what}: skipped, {why}")
    left = sum(turn.estimate_s() for turn in turns)
    say(f"{len(turns)} measurements, about {duration(left)}; raw rows: {raw}")
    writer = Writer(raw, campaign)
    interrupted = False
    try:
        for done, turn in enumerate(turns, 1):
            row = measured(turn)
            campaign.rows.append(row)
            writer.row(row)
            left -= turn.estimate_s()
            say(f"{progress(row)}  [{done}/{len(turns)}, {duration(left)} left]")
    except KeyboardInterrupt:
        interrupted = True
        say("interrupted: the table so far")
    finally:
        writer.close()
    print(show(campaign))
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_INVALID if any(row.invalid for row in campaign.rows) else 0


def prepare(cpus_load: list[int]) -> None:
    """This process never runs on the proxies' CPU; SIGTERM ends as Ctrl-C does."""
    raise_descriptor_limit()
    os.sched_setaffinity(0, cpus_load)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def measured(turn: Turn) -> Row:
    """The row, whatever comes of it."""
    found, invalid = None, None
    at = time.time()
    try:
        found = measure(
            turn.bench, turn.proxy, turn.binary, turn.scenario, turn.seconds, turn.round
        )
    except (Invalid, ProcessError) as error:
        invalid = str(error)
    except (OSError, ValueError) as error:  # What a proxy that dies midway leads to.
        invalid = repr(error)
    workers = len(turn.bench.cpus_proxy)
    return Row(
        turn.scenario.name, turn.proxy.name, turn.round, turn.place, workers, round(at, 1), found,
        invalid,
    )


def progress(row: Row) -> str:
    several = f" with {row.workers} workers" if row.workers > 1 else ""
    start = f"{row.scenario}, round {row.round}, {row.proxy}{several}:"
    if row.figures is None:
        return f"{start} INVALID: {row.invalid}"
    found = row.figures
    said = [f"{found.cpu_us:.1f} µs", f"{found.rate:,.0f}/s", f"CPU {found.cpu_share:.0%}"]
    if found.p50_us is not None:
        p50, p99 = figures.number(found.p50_us), figures.number(found.p99_us)
        said.append(f"p50 {p50} µs, p99 {p99} µs")
    if found.pss_per_connection_bytes is not None:
        said.append(f"{found.pss_per_connection_bytes / 1024:.2f} KiB a connection")
    if found.errors:
        said.append(f"{found.errors} failed")
    return f"{start} {', '.join(said + found.doubts)}"


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
