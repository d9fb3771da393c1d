"""Row `revived`: an endpoint that was dead comes back. How fast do requests?

One of three endpoints answers 503 long enough to be taken out, and is well again. Of what it then
gets each second, an even share is 1; its probes and its first requests are counted in steps of 50
ms, where a stampede would show.
"""

import time
from pathlib import Path

from rig import figures
from rig.figures import MS, SECOND
from rig.origin import CHECK
from rig.stage import ended, sleep_until, stage, watched
from versus.measure import Bench, Invalid

from .ways import Way, of, ours

HEALTHY = 2
RATE = 900
CONNECTIONS = 64

# Of `ramp` (its default) and of `slow_start`.
SPAN_S = 10

# Well; failing: until every proxy has taken it out, by checks every two seconds.
WELL_S, FAILING_S = 1.0, 4.0

# Until it is back, at most: by then a probe or two checks have passed.
BACK_S = 5.0

NO_BREAKER = "consecutive_failures: 0, failure_ratio: 0"

WAYS = (
    ours("breaker", breaker="open_time: 1s, failure_ratio: 0"),
    ours("health checks, `slow_start`",
         breaker=NO_BREAKER, check=CHECK, slow_start=f"{SPAN_S}s"),
    of("haproxy", "`check`, `slowstart`", check=CHECK, slow_start=f"{SPAN_S}s"),
    of("envoy", "health checks, `slow_start_window`", "several_origins",
       check=CHECK, slow_start=f"{SPAN_S}s"),
)


def measure(bench: Bench, way: Way, binary: Path, workers: int, span_s: int) -> dict:
    """`span_s`: how long it is watched after it is back, but for two seconds."""
    with stage(bench) as on:
        flaky = on.flaky()
        origins = [on.origin().port for _ in range(HEALTHY)]
        way.start(on, binary, workers, [*origins, flaky.port])
        seconds = WELL_S + FAILING_S + BACK_S + span_s + 2
        flags = ["-R", str(RATE), "-c", str(CONNECTIONS), "-d", f"{round(seconds * 1000)}ms"]
        with watched(on) as disturbance:
            load, start = on.load(*flags), time.monotonic()
            sleep_until(start + WELL_S)
            failing = flaky.die("status")
            sleep_until(start + WELL_S + FAILING_S)
            well = flaky.well()
            said = ended(load, seconds)
        on.server.check()
        seen = flaky.log()
        # The last second, in which it had to be out already.
        late = sum(well - SECOND <= at < well for at, _ in seen)
        arrivals = [(at, status) for at, status in seen if at >= well]
        if not arrivals:
            raise Invalid("the endpoint never came back")
        since = arrivals[0][0]
        fair = RATE / (HEALTHY + 1)
        per_second = figures.per_step(arrivals, since, SECOND, span_s + 2)
        first = figures.per_step(arrivals, since, 50 * MS, 10)
        return {
            "failures": {kind: count for kind, count in said["failures"].items() if count},
            "while_failing": sum(failing <= at < well for at, _ in seen),
            "late": late,
            "well_to_first_s": round((since - well) / SECOND, 3),
            "fair": fair,
            "per_second": per_second,
            "shares": [round(count / fair, 3) for count in per_second],
            "first_500_ms": sum(first),
            "peak_50_ms": max(first),
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }
