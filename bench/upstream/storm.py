"""Row `storm`: every endpoint fails, and the load stays. How many requests do the endpoints get?

The endpoints count those that arrive, the load generator those that it sends: nobody asks the
proxy. A budget may save up while all is well, and spend that when nothing is: so it is measured
from a cold start, and after some seconds in which all was well.
"""

import json
import threading
import time
from pathlib import Path

from rig.stage import Stage, stage, watched
from versus.measure import Bench, Invalid, get

from . import figures
from .ways import Way, of, ours

ENDPOINTS = 4
RATE = 1_000

# More than are ever under way: a request with three pauses takes up to 0.2 s.
CONNECTIONS = 512

# As long as what is saved is good for, by default.
WELL_S = 10.0

FAILING_S = 5.0

# Between two looks at the endpoints' counts, in seconds.
LOOK_EVERY_S = 0.1

NO_BREAKER = "consecutive_failures: 0, failure_ratio: 0"

ON_5XX = "on: [5xx]"

THREE = f"attempts: 3, {ON_5XX}"

# Without breakers nothing but the budget is between the clients and the endpoints.
OURS_OFF = ours("`attempts: 3`, breakers off", retries=THREE, breaker=NO_BREAKER)
OURS_ON = ours("`attempts: 3`, breakers on", retries=THREE)
OURS_ALL_OUT = ours("`attempts: 3`, `max_ejected: 1`", retries=THREE, breaker="max_ejected: 1")
OURS_ONE = ours("`attempts: 1`, breakers off", retries=f"attempts: 1, {ON_5XX}", breaker=NO_BREAKER)

NEXT = "error timeout http_503"
ENVOY_RETRIES = "retry_on: 5xx, num_retries: 3"

RIVALS = (
    of("nginx", "all servers tried, `max_fails=0`", "unfailing", next=NEXT),
    of("nginx", "all servers tried, `max_fails=1`", next=NEXT),
    of("haproxy", "`retries 3`", tries=3, retry_on="503"),
    of("envoy", "`num_retries: 3`, 3 at once", retry_policy=ENVOY_RETRIES),
    of("envoy", "`num_retries: 3`, any number at once", "many_retries", retry_policy=ENVOY_RETRIES),
    of("envoy", "`num_retries: 3`, budget 20 %", "budgeted", retry_policy=ENVOY_RETRIES),
)


def measure(
    bench: Bench, way: Way, binary: Path, workers: int, well_s: float, failing_s: float
) -> dict:
    with stage(bench) as on:
        origins = [on.origin().port for _ in range(ENDPOINTS)]
        way.start(on, binary, workers, origins)
        began = time.monotonic()
        well = load(on, "/b/100", well_s) if well_s else {"sent": 0}
        if well_s and well["statuses"].get("200") != well["sent"]:
            raise Invalid(f"not all was well: {well['statuses']}")
        before = arrived(origins)
        since, looks = time.monotonic(), Looks(origins)
        with watched(on) as disturbance:
            looks.start()
            said = load(on, "/e/503", failing_s)
            looks.stop()
        on.server.check()
        ends = time.monotonic()
        upstream, client = arrived(origins) - before, said["sent"]
        return {
            "well": well["sent"],
            "upstream_well": before,
            "client": client,
            "upstream": upstream,
            "ratio": upstream / client,
            # In the worst second, of the clients'.
            "ratio_max": figures.fastest(looks.seen, 1.0) / RATE,
            "allowed": figures.allowed(client, ends - since),
            # With what was saved before, and all that came before.
            "allowed_since_start": figures.allowed(client + well["sent"], ends - began),
            "statuses": said["statuses"],
            # A proxy that makes four of each may be too busy to answer in time.
            "unanswered": {
                kind: count for kind, count in said["failures"].items()
                if count and kind != "status"
            },
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }


def load(on: Stage, path: str, seconds: float) -> dict:
    length = f"{round(seconds * 1000)}ms"
    flags = ["-R", str(RATE), "-c", str(CONNECTIONS), "-d", length]
    return on.load(*flags, path=path).wait(seconds)


def arrived(origins: list[int]) -> int:
    return sum(json.loads(get(port, "/stat"))["requests"] for port in origins)


class Looks(threading.Thread):
    """Looks at the endpoints' counts, while others look elsewhere."""

    def __init__(self, origins: list[int]) -> None:
        super().__init__(daemon=True)
        self.origins = origins
        self.ended = threading.Event()
        # When, in seconds, and how many had arrived.
        self.seen: list[tuple[float, int]] = []

    def run(self) -> None:
        while True:
            self.seen.append((time.monotonic(), arrived(self.origins)))
            if self.ended.wait(LOOK_EVERY_S):
                return

    def stop(self) -> None:
        self.ended.set()
        self.join()
