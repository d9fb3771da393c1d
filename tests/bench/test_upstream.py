"""What bench/upstream computes, and how it sets proxies up, without a proxy."""

import asyncio
import json
import socket
import threading
from pathlib import Path

import pytest
from rig import origin, witness
from rig.figures import MS, SECOND
from upstream import campaign, dead, defaults, figures, revived, slow, storm, tables
from versus import rivals
from versus.measure import Bench

PROXIES = ("outrigger", "nginx", "haproxy", "envoy")


# ---- Figures ---------------------------------------------------------------------------------


def storm_row(**others) -> dict:
    row = {
        "proxy": "Outrigger", "ours": True, "shards": 1, "well_s": 0, "well": 0, "upstream_well": 0,
        "client": 1_000, "upstream": 1_203, "ratio": 1.203, "ratio_max": 1.2, "allowed": 1_203.0,
        "allowed_since_start": 1_203.0, "statuses": {"503": 1_000}, "unanswered": {},
        "stolen_share": 0.0, "others_share": 0.0,
    }
    return {**row, **others}


def test_what_a_storm_may_cost():
    assert figures.allowed(1_000, 1.0) == 1_203
    assert figures.storm_holds(storm_row())
    assert not figures.storm_holds(storm_row(upstream=1_204))
    # All since the start: 1,000 more, and what these paid for.
    saved = {"well": 1_000, "upstream_well": 1_000, "allowed_since_start": 2_406.0}
    assert figures.storm_is_paid_for(storm_row(upstream=1_406, **saved))
    assert not figures.storm_is_paid_for(storm_row(upstream=1_407, **saved))


def test_a_storm_that_breaks_the_budget_is_missed():
    text = tables.storm_table([storm_row(), storm_row(upstream=1_204)])
    assert text.count("**missed**") == 1
    text = tables.storm_table([storm_row(proxy="nginx", ours=False, upstream=4_000)])
    assert "| 1,203 exceeded |" in text and "missed" not in text
    saved = {"well": 1_000, "upstream_well": 1_000, "allowed_since_start": 2_406.0}
    text = tables.storm_table([storm_row(upstream=1_406, **saved)])
    assert "| 1,203 **missed** | 1,406 |" in text
    text = tables.storm_table([storm_row(upstream=1_407, **saved)])
    assert "| 1,203 **missed** | 1,406 **missed** |" in text


def test_the_worst_second_is_found():
    looks = [(0.0, 0), (0.5, 10), (1.0, 30), (1.5, 45), (3.0, 46)]
    assert figures.fastest(looks, 1.0) == 35
    assert figures.fastest(looks, 0.5) == 40
    # From the look at 0.5 s, the last one that is far enough back.
    assert figures.fastest([(0.0, 0), (0.5, 0), (1.6, 55)], 1.0) == pytest.approx(50)
    assert figures.fastest(looks, 4.0) == figures.fastest([], 1.0) == 0


def test_a_dead_endpoint_is_left_alone_when_its_share_stays_away():
    arrivals = [5 * MS, 100 * MS, 350 * MS, 700 * MS, 710 * MS]
    assert figures.reached(arrivals, 0) == figures.Reached(3, 0.35, 2)
    assert figures.reached([], 0) == figures.Reached(0, 0.0, 0)
    # One that is never left alone has no later ones.
    steady = [at * 200 * MS for at in range(1, 31)]
    assert figures.reached(steady, 0) == figures.Reached(30, 6.0, 0)


def test_failures_count_from_the_second_of_the_death():
    seconds = [{"second": second, "failed": failed} for second, failed in enumerate([0, 1, 2])]
    assert figures.failed_by_second(seconds, 1.6) == figures.Failed(0, [1, 2])
    assert figures.failed_by_second(seconds, 2.1) == figures.Failed(1, [2])


def test_a_ramp_is_straight():
    straight = [(second + 0.5) / 10 for second in range(10)]
    assert figures.off_ramp([*straight, 1.0, 1.0], 10) == 0
    assert figures.off_ramp([1.0, *straight[1:], 1.0, 1.0], 10) == pytest.approx(0.95)


def revived_row(**others) -> dict:
    row = {
        "proxy": "Outrigger", "ours": True, "shards": 1, "while_failing": 5, "well_to_first_s": 1.0,
        "fair": 300.0, "shares": [*((second + 0.5) / 10 for second in range(10)), 1.0, 1.0],
        "first_500_ms": 4, "peak_50_ms": 1, "stolen_share": 0.0, "others_share": 0.0,
    }
    return {**row, **others}


def test_a_stampede_is_missed():
    assert "missed" not in tables.revived_table([revived_row()])
    assert "| 16 **missed** |" in tables.revived_table([revived_row(first_500_ms=16)])
    assert "| 0.95 **missed** |" in tables.revived_table([revived_row(shares=[1.0] * 12)])
    assert "missed" not in tables.revived_table([revived_row(shares=[1.0] * 12, ours=False)])


def test_defaults_are_compared_pair_by_pair():
    rows = [
        {
            "way": way, "endpoints": endpoints, "connections": 1, "requests": 12_000,
            "instructions": count,
        }
        for endpoints, counts in ((1, (1_030, 1_000)), (4, (1_040, 1_000)))
        for way, count in zip(defaults.WAYS, counts)
    ]
    text = tables.defaults_table(rows)
    assert "| 1 | 1 | 1,030 | 1,000 | 1.030 |" in text
    assert "| 4 | 1 | 1,040 | 1,000 | 1.040 **missed** |" in text
    assert "| 4 | 1 | 1,040 | – | – |" in tables.defaults_table(rows[2:3])
    smoke = [{**row, "requests": 1_200} for row in rows]
    assert "missed" not in tables.defaults_table(smoke)


def dead_row(death: str, **others) -> dict:
    row = {
        "death": death, "proxy": "Outrigger", "ours": True, "errors": 0, "errors_by_second": [0],
        "failures": {}, "statuses": {"200": 9}, "reached": 5, "reached_until_s": 0.01, "later": 1,
        "p99_ms": 1.0, "max_ms": 2.0, "waited_share": 0.0, "stolen_share": 0.0, "others_share": 0.0,
    }
    return {**row, **others}


def test_what_is_retried_must_not_fail():
    assert "missed" not in tables.dead_table([dead_row("reset"), dead_row("status", errors=10)])
    assert "| 1 **missed** |" in tables.dead_table([dead_row("reset", errors=1)])
    assert "| 11 **missed** |" in tables.dead_table([dead_row("status", errors=11)])
    assert "missed" not in tables.dead_table([dead_row("reset", errors=1, ours=False)])
    # Where nobody may look at SYNs.
    unseen = dict.fromkeys(("reached", "reached_until_s", "later"))
    assert "| – | – | – |" in tables.dead_table([dead_row("refused", **unseen)])


def test_doubtful_latencies_are_marked():
    row = {
        "proxy": "Outrigger", "shards": 1, "slow_share": 0.02, "fast_shares": [0.9, 1.1],
        "p50_us": 200.0, "mean_us": 300.0, "p99_us": 900.0, "waited_share": 0.0,
        "stolen_share": 0.0, "others_share": 0.0,
    }
    assert "†" not in tables.slow_table([row])
    stolen = {**row, "stolen_share": 0.1}
    assert "| 200 (200–200) † |" in tables.slow_table([row, stolen])
    assert "†" not in tables.slow_table([row, row, stolen])


# ---- Ways ------------------------------------------------------------------------------------

ALL_WAYS = [
    *((way, ()) for way in (
        storm.OURS_OFF, storm.OURS_ON, storm.OURS_ONE, storm.OURS_ALL_OUT, *storm.RIVALS,
        *slow.OURS, *slow.RIVALS, *revived.WAYS, *defaults.WAYS.values(),
    )),
    *((way, ("impatient",)) for way in (*dead.WAYS, *dead.RETRYING)),
]


@pytest.mark.parametrize(("way", "more"), ALL_WAYS, ids=lambda one: getattr(one, "name", ""))
def test_every_way_is_written(way, more, tmp_path):
    proxy = rivals.PROXIES[way.proxy]
    values = {name.upper(): str(value) for name, value in way.values.items()}
    setting = rivals.Setting(
        tmp_path, Path("/b"), [0, 1], [98, 99], way.traits | set(more) | {"watched"}, 80, 81,
        count=4, values={"DRIVER": "auto", **values},
    )
    text = "".join(setting.write(template, 0).read_text() for template in proxy.templates)
    for value in values.values():
        assert value in text
    assert "98" in text and "99" in text and "@" not in text.replace('"@type"', "")


def test_several_marks_must_all_hold():
    text = "  @!limit:@unfailing:a @X@\n  @!limit:@!unfailing:b\n@limit:  c\n"
    values = {"X": "1"}
    assert rivals.render(text, frozenset({"unfailing"}), values, []) == "  a 1\n"
    assert rivals.render(text, frozenset(), values, []) == "  b\n"
    assert rivals.render(text, frozenset({"limit", "unfailing"}), values, []) == "  c\n"


def test_every_row_has_steps_and_a_table():
    assert set(tables.ROWS) == set(tables.TABLES)
    plan = campaign.Plan(
        Bench(Path("/l"), [0, 1], [0, 1], [0, 1]), dict.fromkeys(PROXIES, Path("/b")),
        [1, 2, 4, 8], list(tables.ROWS), False, 1.0, 2,
    )
    taken = [(name, about) for name, (about, _) in campaign.steps(plan)]
    assert {name for name, _ in taken} == set(tables.ROWS)
    storms = [about for name, about in taken if name == "storm" and about["ours"]]
    assert {about["shards"] for about in storms if not about["well_s"]} == {1, 2, 4, 8}
    assert {about["shards"] for about in storms if about["well_s"]} == {1, 2, 4, 8}
    deaths = {about["death"] for name, about in taken if name == "dead"}
    assert deaths == set(dead.DEATHS)
    # Who is not installed has no steps.
    alone = campaign.Plan(
        plan.bench, {"outrigger": Path("/b")}, [3], plan.rows, True, 1.0, 1
    )
    assert all(about.get("ours", True) for _, (about, _) in campaign.steps(alone))
    assert alone.few == [3]


# ---- The endpoint, and who looks at its door -------------------------------------------------


@pytest.fixture
def dying():
    """An endpoint and its control port."""
    ready: list[int] = []
    loop = asyncio.new_event_loop()
    served = {}

    async def serve():
        listener, control = origin.listen(0), origin.listen(0)
        served["origin"] = made = origin.Origin(listener)
        for sock in (listener, control):
            await loop.create_server(lambda: origin.Connection(made), sock=sock, backlog=64)
            ready.append(sock.getsockname()[1])

    loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield ready
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def ask(port: int, path: str) -> bytes:
    """All that is answered until the end, or for a tenth of a second."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        try:
            while more := client.recv(4096):
                answer += more
        except TimeoutError:
            pass
    return answer


def test_every_death_is_died(dying):
    port, control = dying
    assert b"Content-Length: 100" in ask(port, "/b/100")
    ask(control, "/ctl/die/status")
    assert ask(port, "/b/100").startswith(b"HTTP/1.1 503")
    ask(control, "/ctl/die/garbage")
    assert ask(port, "/b/100") == origin.GARBAGE
    ask(control, "/ctl/die/mute")
    assert ask(port, "/b/100") == b""
    ask(control, "/ctl/die/reset")
    with pytest.raises(ConnectionResetError):
        ask(port, "/b/100")
    ask(control, "/ctl/well")
    assert ask(port, "/b/100").startswith(b"HTTP/1.1 200")
    # Checks are answered, and not remembered.
    assert ask(port, origin.CHECK).startswith(b"HTTP/1.1 200")
    log = ask(control, "/ctl/log").partition(b"\r\n\r\n")[2]
    assert [status for _, status in json.loads(log)] == [200, 503, 0, 0, 0, 200]
    ask(control, "/ctl/die/hole")
    with pytest.raises(TimeoutError):
        ask(port, "/b/100")


def test_a_witness_sees_who_knocks():
    with socket.socket() as taken, socket.socket() as other:
        for sock in (taken, other):
            sock.bind(("127.0.0.1", 0))
        port, beside = (sock.getsockname()[1] for sock in (taken, other))
        try:
            looking = witness.Witness(port)
        except PermissionError:
            pytest.skip("needs CAP_NET_RAW")
        for to in (port, beside, port):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", to))
        seen = looking.stop()
    assert len(seen) == 2 and seen[1] - seen[0] < SECOND
