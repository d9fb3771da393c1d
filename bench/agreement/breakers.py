"""Rows `trip`, `recovery` and `probe`: what an endpoint sees that fails, and gets well again.

The endpoint is origin.py, which notes when each request arrives. So figures hold what the endpoint
itself and the way to it add, and are never better than the truth.
"""

import statistics
import threading
import time
from pathlib import Path

from rig import figures
from rig.figures import MS, SECOND
from rig.stage import Stage, ended, sleep_until, stage, watched
from versus.measure import Bench, Invalid

# The default; in a row.
FAILURES = 5

# `flush_interval`, and the rounding of timers on both sides, in milliseconds. With how late the
# loops of both sides are it is the bound of a view's age.
BOUND_MS = 12

RATE = 2_000
CONNECTIONS = 64

# Under saturation.
CONNECTIONS_MANY = 256

# Of the healthy endpoint under saturation; the other one's is 1, so that it is not the bottleneck.
WEIGHT = 9

# Between two looks at how late the loops are, in seconds.
LOOK_EVERY_S = 0.2

LAG = "outrigger_loop_lag_seconds"


class Lags(threading.Thread):
    """Looks at how late the shards' loops are, while others look elsewhere."""

    def __init__(self, on: Stage) -> None:
        super().__init__(daemon=True)
        self.on = on
        self.ended = threading.Event()
        # Milliseconds: the worst of each look.
        self.seen: list[float] = []

    def run(self) -> None:
        while not self.ended.wait(LOOK_EVERY_S):
            try:
                lags = figures.by_label(self.on.metrics(), LAG, "shard").values()
            except Invalid:
                return
            self.seen.append(max(lags, default=0.0) * 1e3)

    def stop(self) -> dict:
        self.ended.set()
        self.join()
        seen = self.seen or [0.0]
        return {"lag_ms": statistics.median(seen), "lag_max_ms": max(seen)}


def open_loop(rate: int, seconds: float) -> list[str]:
    length = f"{round(seconds * 1000)}ms"
    return ["-R", str(rate), "-c", str(CONNECTIONS), "-d", length]


# ---- Trip ------------------------------------------------------------------------------------

# Well, failing, well again until the breaker is closed, in seconds.
TRIP_WELL_S, TRIP_FAILING_S, TRIP_AGAIN_S = 0.6, 0.7, 1.2

# It stays open longer than it fails, so that no probe is taken for a late request.
TRIP_BREAKER = "open_time: 1s, max_open_time: 1s, ramp: 0s, failure_ratio: 0"


def trip(
    bench: Bench, binary: Path, shards: int, rounds: int, saturated: bool
) -> dict:
    """Every round: it is well, fails, is well again."""
    with stage(bench) as on:
        flaky = on.flaky()
        healthy = [on.origin().port] if saturated else []
        traits = {"breaker", "flaky", *(["weighted"] if saturated else [])}
        on.proxy(
            "outrigger", binary, shards, healthy, traits,
            breaker=TRIP_BREAKER, flaky=flaky.port, weight=WEIGHT,
        )
        seconds = 1.0 + rounds * (TRIP_WELL_S + TRIP_FAILING_S + TRIP_AGAIN_S)
        flags = (
            ["--closed", "-c", str(CONNECTIONS_MANY), "-d", f"{round(seconds * 1000)}ms"]
            if saturated
            else open_loop(RATE, seconds)
        )
        before = on.metrics()
        with watched(on) as disturbance:
            load, lags = on.load(*flags), Lags(on)
            lags.start()
            at, failing = time.monotonic() + 0.5, []
            for _ in range(rounds):
                sleep_until(at := at + TRIP_WELL_S)
                since = flaky.fail()
                sleep_until(at := at + TRIP_FAILING_S)
                failing.append((since, flaky.well()))
                sleep_until(at := at + TRIP_AGAIN_S)
            seen = lags.stop()
            said = ended(load, seconds)
        on.server.check()
        after, arrivals = on.metrics(), flaky.log()
        trips = [figures.trip(arrivals, *one, FAILURES) for one in failing]
        if None in trips:
            raise Invalid(f"it did not trip in {trips.count(None)} of {rounds} rounds")
        # In the half second before it failed.
        rates = [
            sum(since - SECOND // 2 <= at < since for at, _ in arrivals) * 2
            for since, _ in failing
        ]
        # Those that decide know at once.
        transitions = figures.by_label(after, "outrigger_breaker_transitions_total", "shard")
        homes = {shard for shard, count in transitions.items() if count}
        ages = figures.ages(
            figures.without(before, homes), figures.without(after, homes),
            "outrigger_view_age_seconds",
        )
        violations = "outrigger_view_age_violations_total"
        return {
            "saturated": saturated,
            "rate": said["answered"] / said["elapsed_s"],
            "endpoint_rate": statistics.median(rates),
            "after_trip": [one.requests for one in trips],
            "last_ms": [round(one.last_ms, 2) for one in trips],
            "bound_ms": BOUND_MS + 2 * seen["lag_max_ms"],
            "allowed": statistics.median(rates) * (BOUND_MS + 2 * seen["lag_max_ms"]) / 1e3,
            "view_ages": ages and vars(ages),
            "view_age_violations": figures.total(after, violations)
            - figures.total(before, violations),
            **seen,
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }


# ---- Recovery --------------------------------------------------------------------------------

RECOVERY_RATE = 1_000

# The default.
RAMP_S = 10

RECOVERY_BREAKER = "open_time: 1s, failure_ratio: 0"


def recovery(bench: Bench, binary: Path, shards: int) -> dict:
    """Two endpoints; one fails and comes back."""
    with stage(bench) as on:
        flaky, healthy = on.flaky(), on.origin()
        on.proxy(
            "outrigger", binary, shards, [healthy.port], {"breaker", "flaky"},
            breaker=RECOVERY_BREAKER, flaky=flaky.port,
        )
        seconds = 3.0 + RAMP_S + 3.0
        with watched(on) as disturbance:
            load = on.load(*open_loop(RECOVERY_RATE, seconds))
            start = time.monotonic()
            sleep_until(start + 1.5)
            flaky.fail()
            sleep_until(start + 2.1)
            well = flaky.well()
            ended(load, seconds)
        on.server.check()
        arrivals = [(at, status) for at, status in flaky.log() if at > well]
        if not arrivals:
            raise Invalid("the endpoint never came back")
        # The probe.
        since = arrivals[0][0]
        fair = RECOVERY_RATE / 2
        per_second = figures.per_step(arrivals, since, SECOND, RAMP_S + 2)
        first_half = figures.per_step(arrivals, since, 50 * MS, 10)
        return {
            "fair": fair,
            "per_second": per_second,
            "shares": [round(count / fair, 3) for count in per_second],
            "first_500_ms": sum(first_half),
            "peak_50_ms": max(first_half),
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }


# ---- Probe -----------------------------------------------------------------------------------

# A probe's answer takes so long while it fails, so that all of a period's are out together.
PROBE_MS = 20

PROBE_BREAKER = "open_time: 500ms, max_open_time: 1s, ramp: 0s, failure_ratio: 0"

# Failing and well again, in seconds: three or four half-open periods, and time to close.
PROBE_FAILING_S, PROBE_WELL_S = 3.6, 1.6


def probe(bench: Bench, binary: Path, shards: int, probes: int, rounds: int) -> dict:
    """The only endpoint, hammered all the time."""
    with stage(bench) as on:
        flaky = on.flaky()
        on.proxy(
            "outrigger", binary, shards, [], {"breaker", "flaky"},
            breaker=f"{PROBE_BREAKER}, probes: {probes}", flaky=flaky.port,
        )
        seconds = 1.0 + rounds * (PROBE_FAILING_S + PROBE_WELL_S)
        times = []
        with watched(on) as disturbance:
            load = on.load(*open_loop(RATE, seconds))
            at = time.monotonic() + 0.5
            for _ in range(rounds):
                sleep_until(at)
                failing = flaky.fail(PROBE_MS)
                sleep_until(at := at + PROBE_FAILING_S)
                times.append((failing, flaky.well()))
                sleep_until(at := at + PROBE_WELL_S)
            ended(load, seconds)
        on.server.check()
        arrivals = flaky.log()
        counts, waited, closed = [], [], []
        for failing, well in times:
            groups = figures.periods([t for t, _ in arrivals if failing <= t < well])
            # The first one is what it took to trip it.
            counts += [len(group) for group in groups[1:]]
            again = [t for t, _ in arrivals if well <= t < well + PROBE_WELL_S * SECOND]
            if len(again) <= probes:
                raise Invalid("it did not close")
            waited.append((again[0] - well) / MS)
            # The first one that came because the breaker was closed.
            closed.append((again[probes] - again[probes - 1]) / MS)
        return {
            "probes": probes,
            "periods": len(counts),
            "in_each_period": sorted(set(counts)),
            "well_to_probe_ms": [round(one, 1) for one in waited],
            "probe_to_closed_ms": [round(one, 2) for one in closed],
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }
