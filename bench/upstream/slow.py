"""Row `slow`: one endpoint of ten takes 20 ms, the others answer at once. What does it get?"""

import json
from pathlib import Path

from rig.stage import ended, stage, watched
from versus.measure import Bench, Invalid, get

from .ways import Way, of, ours

FAST, SLOW_MS = 9, 20

RATE = 2_000
CONNECTIONS = 128

SECONDS = 4.0

OURS = (
    ours("`least_request`", balance="least_request"),
    ours("`peak_ewma`", balance="peak_ewma"),
    ours("`round_robin`", balance="round_robin"),
)

RIVALS = (
    of("nginx", "`least_conn`", "several_origins"),
    of("haproxy", "`leastconn`", "several_origins"),
    of("envoy", "`LEAST_REQUEST`", "several_origins"),
)


def measure(bench: Bench, way: Way, binary: Path, workers: int, seconds: float) -> dict:
    with stage(bench) as on:
        slow = on.origin(SLOW_MS).port
        fast = [on.origin().port for _ in range(FAST)]
        # In the middle: some begin with the first one whenever all are equal.
        origins = [*fast[: FAST // 2], slow, *fast[FAST // 2 :]]
        way.start(on, binary, workers, origins)
        flags = ["-R", str(RATE), "-c", str(CONNECTIONS), "-d", f"{round(seconds * 1000)}ms"]
        with watched(on) as disturbance:
            said = ended(on.load(*flags), seconds)
        on.server.check()
        if said["statuses"].get("200") != said["sent"]:
            raise Invalid(f"not all went well: {said['statuses']}")
        counts = [json.loads(get(port, "/stat"))["requests"] for port in origins]
        others = [count for port, count in zip(origins, counts) if port != slow]
        return {
            "requests": said["sent"],
            "slow_share": counts[origins.index(slow)] / sum(counts),
            # Of an even share, the least and the most that a fast one got.
            "fast_shares": [len(counts) * one / sum(counts) for one in (min(others), max(others))],
            # From sending to the answer's end: how late the load generator is, is not in it.
            "p50_us": said["service_ns"]["p50"] / 1e3,
            "p99_us": said["service_ns"]["p99"] / 1e3,
            "mean_us": said["service_ns"]["mean"] / 1e3,
            # Of the requests found no connection: their waiting would be missing above.
            "waited_share": said["waited"] / said["sent"],
            "late_share": said["late"] / said["sent"],
            "stolen_share": disturbance.stolen_share,
            "others_share": disturbance.others_share,
        }
