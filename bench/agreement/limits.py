"""Row `limit`: how many requests an origin ever saw at once, and how many a second got through.

An origin takes 50 ms and counts its own concurrency; each of many clients asks as soon as it has
its answer, and none goes away. So there is always somebody who wants in: what passes above the
limit is overshoot, what is missing below it was stranded.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path

from rig import figures
from rig.stage import Stage, stage, wait_for, watched
from versus.measure import Bench, Invalid, get
from versus.rivals import OURS, Setting

DELAY_MS = 50

# Of what the limit allows, so much may be missing.
SHARE_MISSED_MAX = 0.05

# Clients, over all connections; and how many of them on each shard where only one is busy.
CLIENTS = 200
CLIENTS_OF_ONE = 40


@dataclass(frozen=True)
class Way:
    """One way to set a limit in one proxy."""

    proxy: str
    title: str
    traits: frozenset[str]
    # Of Envoy: connections, and whether requests are limited as well.
    connections_limited: bool = False
    requests_limited: bool = True


OURS_WAY = Way(OURS, "`max_requests`", frozenset({"limit"}))

RIVALS = (
    Way("nginx", "`max_conns`, no `zone`", frozenset({"limit"})),
    Way("nginx", "`max_conns`, `zone`", frozenset({"limit", "zone"})),
    Way("haproxy", "`maxconn`", frozenset({"limit"})),
    Way("envoy", "`max_requests`", frozenset({"limit"})),
    Way("envoy", "`max_connections`", frozenset({"limit"}), True, False),
    Way("envoy", "both", frozenset({"limit"}), True, True),
)

# Where nothing shall be limited.
MANY = 1_000_000


def measure(
    bench: Bench, way: Way, binary: Path, workers: int, limit: int, seconds: float,
) -> dict:
    with stage(bench) as on:
        origin = on.origin(DELAY_MS)
        on.proxy(
            way.proxy, binary, workers, [origin.port], set(way.traits),
            limit=limit if way.requests_limited else MANY,
            connections=limit if way.connections_limited else MANY,
        )
        get(origin.port, "/stat/reset")
        with watched(on) as disturbance:
            load = on.load(
                "--closed", "-c", str(CLIENTS), "-d", f"{round(seconds * 1000)}ms",
                "--timeout", "600s",
            )
            said = load.wait(seconds)
        on.server.check()
        failed = sum(said["failures"].values())
        return {
            **row(origin.port, limit, *steady(said)),
            "clients": CLIENTS,
            "refused_share": failed / max(1, said["sent"]),
            "statuses": said["statuses"],
            # Those who still waited at the end, and how long that would be if nothing were lost.
            "last_s": said["elapsed_s"] - seconds,
            "last_expected_s": CLIENTS * DELAY_MS / 1000 / limit,
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }


def steady(said: dict) -> tuple[int, int]:
    """Right answers in whole seconds, without the first, and how many seconds."""
    planned = int(said["asked"]["planned_s"])
    seconds = [one for one in said["seconds"] if 1 <= one["second"] < planned]
    return sum(one["requests"] - one["failed"] for one in seconds), len(seconds)


def row(origin: int, limit: int, right: int, elapsed_s: float) -> dict:
    """After the load: this request would count as one."""
    stat = json.loads(get(origin, "/stat"))
    allowed = limit * 1000 / DELAY_MS
    return {
        "limit": limit,
        "concurrency_max": stat["concurrency_max"],
        "rate": right / elapsed_s,
        "share": right / elapsed_s / allowed,
    }


def measure_direct(bench: Bench, limit: int, seconds: float) -> dict:
    """As many clients as the limit, straight to the origin: what it can do."""
    with stage(bench) as on:
        origin = on.origin(DELAY_MS)
        on.setting = Setting(on.folder, bench.loadgen, [], [], frozenset(), port=origin.port)
        get(origin.port, "/stat/reset")
        with watched(on) as disturbance:
            load = on.load("--closed", "-c", str(limit), "-d", f"{round(seconds * 1000)}ms")
            said = load.wait(seconds)
        return {
            **row(origin.port, limit, *steady(said)),
            "clients": limit,
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }


# ---- All traffic on one shard ----------------------------------------------------------------


def measure_one_shard(
    bench: Bench, binary: Path, shards: int, limit: int, seconds: float
) -> dict:
    """All shards have connections, but only those of one carry requests."""
    with stage(bench) as on:
        origin = on.origin(DELAY_MS)
        port = on.proxy(OURS, binary, shards, [origin.port], set(OURS_WAY.traits), limit=limit)
        get(origin.port, "/stat/reset")
        with watched(on) as disturbance:
            right = asyncio.run(ask_on_one_shard(on, port, shards, seconds))
        return {
            **row(origin.port, limit, right, seconds - 1),
            "clients": CLIENTS_OF_ONE,
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }


async def ask_on_one_shard(on: Stage, port: int, shards: int, seconds: float) -> int:
    """Right answers, but for the first second's."""
    shard_of: dict[str, list] = {}
    while max(map(len, shard_of.values()), default=0) < CLIENTS_OF_ONE:
        opened, before = await asyncio.open_connection("127.0.0.1", port), sum(
            map(len, shard_of.values())
        )
        wait_for("connection is counted", lambda: open_total(on) > before)
        now = open_by_shard(on)
        shard = next(one for one in now if now[one] > len(shard_of.get(one, [])))
        shard_of.setdefault(shard, []).append(opened)
        if before > 4 * shards * CLIENTS_OF_ONE:
            raise Invalid("no shard gets connections")
    busy = max(shard_of.values(), key=len)
    end = time.monotonic() + seconds
    times = await asyncio.gather(*(ask_until(end, *streams) for streams in busy))
    for streams in shard_of.values():
        for _, writer in streams:
            writer.close()
    return sum(end - seconds + 1 <= at < end for of_one in times for at in of_one)


def open_by_shard(on: Stage) -> dict[str, float]:
    return figures.by_label(on.metrics(), "outrigger_connections_open", "shard")


def open_total(on: Stage) -> float:
    return sum(open_by_shard(on).values())


async def ask_until(
    end: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> list[float]:
    """When it was answered."""
    times = []
    while time.monotonic() < end:
        writer.write(b"GET /b/100 HTTP/1.1\r\nHost: bench\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Invalid(f"refused: {head.decode(errors='replace').splitlines()[0]}")
        times.append(time.monotonic())
    return times
