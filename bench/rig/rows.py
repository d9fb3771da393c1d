"""Rows in turn -> a file, and what tables begin and end with."""

import argparse
import datetime
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from versus import campaign, machine
from versus.campaign import UsageError, say
from versus.measure import Bench, Invalid
from versus.process import ProcessError, as_nice_as_we
from versus.results import Campaign, Writer
from versus.rivals import OURS, PROXIES

# What is measured: a line for the reader, and how.
Step = tuple[dict, Callable[[], dict]]

# Rows by their names.
Found = dict[str, list[dict]]


# ---- Flags -----------------------------------------------------------------------------------


def shard_counts(text: str) -> list[int]:
    """What `--shards` may be."""
    shards = [int(word) for word in text.split(",") if word.isdigit()]
    if not shards or not all(0 < count <= 64 for count in shards):
        raise UsageError(f"--shards {text}: numbers from 1 to 64, such as 1,4")
    return shards


def available(arguments: argparse.Namespace) -> dict[str, Path]:
    """The chosen proxies' binaries; ours is always among them."""
    if OURS not in arguments.proxies and arguments.proxies != "all":
        arguments.proxies = f"{OURS},{arguments.proxies}"
    binaries, skipped = campaign.available(arguments)
    for what, why in skipped.items():
        say(f"{what}: skipped, {why}")
    return binaries


def described(
    arguments: argparse.Namespace, bench: Bench, binaries: dict[str, Path],
    titles: dict[str, str], seconds: float, rounds: int,
) -> Campaign:
    """`titles`: of the rows that are measured."""
    return Campaign(
        date=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        command=campaign.command(),
        # A priority above others' keeps them away from what waits for a timer, not from the caches.
        machine={**machine.describe(), "nice": os.getpriority(os.PRIO_PROCESS, 0)},
        versions=campaign.versions(arguments, binaries),
        seconds=seconds,
        rounds=rounds,
        cpus_proxy=bench.cpus_proxy,
        cpus_load=bench.cpus_load,
        cpus_origin=bench.cpus_origin,
        scenarios={name: {"title": title} for name, title in titles.items()},
        skipped={},
    )


# ---- Measuring -------------------------------------------------------------------------------


def prepare(bench: Bench) -> None:
    campaign.prepare(bench.cpus_load)
    if os.getsid(0) == os.getpid():
        as_nice_as_we(os.getpid())


def measure_all(
    steps: Iterable[tuple[str, Step]], kind: str, writer: Writer, found: Found
) -> None:
    """Each line of the file is `{kind: row}`."""
    for name, (what, measure) in steps:
        row = {"row": name, **what, **attempted(measure)}
        found[name].append(row)
        writer.line(json.dumps({kind: row}, ensure_ascii=False))
        say(" ".join(f"{key}={value}" for key, value in row.items()))


def attempted(measure: Callable[[], dict]) -> dict:
    try:
        return measure()
    except (Invalid, ProcessError) as error:
        return {"invalid": str(error)}
    except (OSError, ValueError) as error:  # What a proxy that dies midway leads to.
        return {"invalid": repr(error)}


# ---- Tables ----------------------------------------------------------------------------------


def headline(about: Campaign) -> str:
    """What the tables below are of."""
    host = about.machine
    versions = ", ".join(
        f"{PROXIES[name].title if name in PROXIES else name} {version}"
        for name, version in about.versions.items()
    )
    return (
        f"{about.date[:10]}, {host['cpus']} CPUs {host['cpu']}"
        f"{' (virtual)' if host['virtual'] else ''}, Linux {host['kernel']}, nice {host['nice']}; "
        f"{versions}; commit {host['commit']}.\n"
    )


def good(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "invalid" not in row]


def broken(found: Found) -> list[dict]:
    return [row for rows in found.values() for row in rows if "invalid" in row]


def verdict(holds: bool) -> str:
    return "" if holds else " **missed**"


def disturbed(row: dict) -> str:
    return f"{row['stolen_share']:.0%}, {row['others_share']:.0%}"
