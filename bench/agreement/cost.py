"""Rows `cost` and `quiet`: what agreement costs while nothing goes wrong."""

import dataclasses
import re
import time
from pathlib import Path

from rig import figures
from rig.stage import Stage, stage, watched
from versus import campaign, scenario
from versus.campaign import Turn
from versus.measure import Bench, Invalid
from versus.results import Row
from versus.rivals import OURS, PROXIES


# The binary that is compared with.
BEFORE = "before"

# ---- CPU per request ---------------------------------------------------------------------------

SCENARIO = "get-64"


def turns(bench: Bench, binaries: dict[str, Path], rounds: int, seconds: float) -> list[Turn]:
    """Both in each round, another one first each time."""
    one = scenario.load()[SCENARIO]
    proxies = {
        OURS: PROXIES[OURS],
        BEFORE: dataclasses.replace(PROXIES[OURS], name=BEFORE, title="before"),
    }
    made = []
    for number in range(1, rounds + 1):
        order = list(binaries) if number % 2 else list(reversed(binaries))
        made += [
            Turn(bench, one, proxies[name], binaries[name], number, place, seconds)
            for place, name in enumerate(order, 1)
        ]
    return made


def ratios(rows: list[Row]) -> list[float]:
    """Ours over the other's CPU per request, in each round that has both."""
    found = {(row.proxy, row.round): row.figures.cpu_us for row in rows if row.figures}
    return [
        cpu_us / found[BEFORE, number]
        for (name, number), cpu_us in found.items()
        if name == OURS and (BEFORE, number) in found
    ]


# ---- Quiet -------------------------------------------------------------------------------------

QUIET_CONNECTIONS = 64
QUIET_WARM, QUIET_REQUESTS = 2_000, 20_000

COUNTED = {
    "messages": "outrigger_shard_messages_total",
    "waking": "outrigger_shard_messages_waking_total",
    "dropped": "outrigger_shard_messages_dropped_total",
}


def quiet(bench: Bench, binary: Path, shards: int) -> dict:
    """What the shards say to each other while all goes well."""
    with stage(bench) as on:
        origin = on.origin()
        on.proxy(OURS, binary, shards, [origin.port], set())
        warm = all_well(on, QUIET_WARM)
        # What was still to be said is said.
        time.sleep(0.5)
        before = on.metrics()
        with watched(on) as disturbance:
            said = all_well(on, QUIET_REQUESTS)
        after = on.metrics()
        grown = {
            key: round(figures.total(after, name) - figures.total(before, name))
            for key, name in COUNTED.items()
        }
        return {
            "requests": said["answered"],
            "warm_up": warm["answered"],
            "rate": said["achieved_rate"],
            **grown,
            "waking_in_warm_up": round(figures.total(before, COUNTED["waking"])),
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }


def all_well(on: Stage, requests: int) -> dict:
    flags = ["--closed", "-c", str(QUIET_CONNECTIONS), "-n", str(requests)]
    said = on.load(*flags).wait(60.0)
    if any(said["failures"].values()) or said["answered"] != requests:
        raise Invalid(f"not all went well: {said['failures']}")
    return said


def commit_of(word: str) -> str:
    """What `--before-commit` may be."""
    if not re.fullmatch(r"[0-9a-f]{7,40}", word):
        raise campaign.UsageError(f"--before-commit {word}: a commit, such as 1d1c31c")
    return word
