"""What bench/agreement computes, without a proxy: arrivals, metrics, instructions, tables."""

import asyncio
import socket
import threading
from pathlib import Path

import pytest
from agreement import campaign, cost, limits
from rig import figures, origin
from rig.figures import MS, SECOND
from rig.stage import Flaky
from versus import rivals
from versus.campaign import UsageError
from versus.measure import Bench
from versus.results import Row


def test_after_the_failure_that_was_one_too_many():
    arrivals = [(at * MS, 200 if at < 10 else 500) for at in range(20)]
    found = figures.trip(arrivals, 10 * MS, 30 * MS, 5)
    # 10 to 14 trip it; 15 to 19 come after.
    assert found == figures.Trip(5, 5.0)
    assert figures.trip(arrivals, 10 * MS, 14 * MS, 5) == figures.Trip(0, 0.0)
    assert figures.trip(arrivals, 10 * MS, 13 * MS, 5) is None
    # What was answered well does not count, whenever it came.
    assert figures.trip(arrivals, 0, 14 * MS, 5) == figures.Trip(0, 0.0)


def test_half_open_periods_lie_apart():
    assert figures.periods([0, 1, 5, 100, 101, 300], gap=50) == [[0, 1, 5], [100, 101], [300]]
    assert figures.periods([]) == []


def test_arrivals_by_second():
    arrivals = [(at, 200) for at in (-1, 0, SECOND - 1, SECOND, 3 * SECOND)]
    assert figures.per_step(arrivals, 0, SECOND, 3) == [2, 1, 0]


PAGE = """
# HELP lag How late.
# TYPE lag gauge
lag{shard="0"} 0.5
lag{shard="1"} 0.25
age_bucket{shard="0",le="0.001"} 10
age_bucket{shard="0",le="+Inf"} 10
age_bucket{shard="1",le="0.001"} 1
age_bucket{shard="1",le="0.002"} 98
age_bucket{shard="1",le="0.004"} 100
age_bucket{shard="1",le="+Inf"} 100
up 1
"""


def test_metrics_are_read():
    samples = figures.parse(PAGE)
    assert figures.by_label(samples, "lag", "shard") == {"0": 0.5, "1": 0.25}
    assert figures.total(samples, "lag") == 0.75
    assert figures.total(samples, "up") == 1
    assert figures.total(figures.without(samples, {"0"}), "lag") == 0.25


def test_quantiles_are_the_ends_of_buckets():
    samples = figures.without(figures.parse(PAGE), {"0"})
    assert figures.ages({}, samples, "age") == figures.Ages(100, 2.0, 4.0, 4.0)
    assert figures.ages(samples, samples, "age") is None


def test_instructions_per_request():
    few, many = (figures.instructions(f"events: Ir\n{line}\n") for line in (
        "summary: 1000", "totals: 6000"
    ))
    assert figures.slope((100, few), (1_100, many)) == 5.0
    with pytest.raises(ValueError, match="total"):
        figures.instructions("events: Ir")


def test_only_whole_seconds_count():
    said = {
        "asked": {"planned_s": 3.0},
        "seconds": [
            {"second": second, "requests": 100 + second, "failed": 1} for second in range(5)
        ],
    }
    assert limits.steady(said) == (100 + 101, 2)


def test_both_binaries_have_their_turn_first():
    bench = Bench(Path("/l"), [0], [1], [1])
    binaries = {"outrigger": Path("/new"), "before": Path("/old")}
    made = [
        (turn.round, turn.proxy.name, str(turn.binary))
        for turn in cost.turns(bench, binaries, 2, 1.0)
    ]
    assert made == [
        (1, "outrigger", "/new"), (1, "before", "/old"),
        (2, "before", "/old"), (2, "outrigger", "/new"),
    ]


def test_ratios_are_of_pairs():
    class Cpu:
        def __init__(self, cpu_us):
            self.cpu_us = cpu_us

    rows = [
        Row("get-64", name, number, 1, 1, 0.0, cpu and Cpu(cpu))
        for name, number, cpu in [
            ("outrigger", 1, 11), ("before", 1, 10), ("outrigger", 2, 9), ("before", 2, None),
        ]
    ]
    assert cost.ratios(rows) == [1.1]


def test_the_median_has_an_interval():
    assert campaign.interval([1.0] * 5) == "–"
    assert campaign.interval([1, 2, 3, 4, 5, 6]) == "1.000–6.000"
    # Bin(40, 1/2): 13 or fewer have 1.9 %, 14 have 4.
    assert campaign.interval(list(range(1, 41))) == "14.000–27.000"


def test_a_commit_is_no_path():
    assert cost.commit_of("1d1c31c") == "1d1c31c"
    with pytest.raises(UsageError):
        cost.commit_of("/tmp/x")


@pytest.mark.parametrize("way", [limits.OURS_WAY, *limits.RIVALS], ids=lambda way: way.title)
@pytest.mark.parametrize("workers", [1, 8])
def test_every_limit_is_written(way, workers, tmp_path):
    proxy = rivals.PROXIES[way.proxy]
    setting = rivals.Setting(
        tmp_path, Path("/b"), [0, 1], [99], way.traits | {"watched"}, 80, 81, count=workers,
        values={"LIMIT": "7", "CONNECTIONS": "1000000", "DRIVER": "auto"},
    )
    assert setting.workers == workers
    for template in proxy.templates:
        setting.write(template, 0)
    text = (tmp_path / proxy.templates[0]).read_text()
    assert "7" in text and "99" in text
    assert ("zone origin" in text) == ("zone" in way.traits)


def test_the_endpoint_fails_on_command():
    served = origin.Origin()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        loop.create_server(lambda: origin.Connection(served), "127.0.0.1", port)
    )
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    flaky = Flaky(port, port, None)
    try:
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert ask(client).startswith(b"HTTP/1.1 200")
            failed = flaky.fail()
            assert ask(client).startswith(b"HTTP/1.1 500")
            well = flaky.well()
            assert ask(client).startswith(b"HTTP/1.1 200")
        (first, ok), (second, bad), (third, _) = flaky.log()
        assert (ok, bad) == (200, 500)
        assert first < failed < second < well < third
        assert flaky.log() == []
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()



def ask(client: socket.socket) -> bytes:
    client.sendall(b"GET /b/100 HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\n") or b"\r\n\r\n" not in answer:
        answer += client.recv(4096)
    return answer
