"""What bench/loadgen computes: other generators' output, ratios, tables."""

import pytest
from conftest import script

run = script("loadgen/run")

WRK = """Running 1s test @ http://127.0.0.1:28081/s/5/100
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     6.61ms  681.34us  10.32ms   93.87%
    Req/Sec   603.50     29.01   646.00     70.00%
  Latency Distribution
     50%  648.00us
     75%    6.54ms
     90%    6.61ms
     99%    1.05s
  604 requests in 1.01s, 119.74KB read
Requests/sec:    599.91
Transfer/sec:    118.93KB
"""

H2LOAD = """finished in 1.00s, 596.00 req/s, 118.15KB/s
requests: 596 total, 600 started, 596 done, 594 succeeded, 1 failed, 1 errored, 0 timeout
status codes: 596 2xx, 0 3xx, 0 4xx, 0 5xx
"""


def test_wrk_is_read():
    found = run.read_wrk(WRK)
    assert (found.requests, found.errors, found.rate) == (604, 0, 599.91)
    assert (found.p50_us, found.p99_us) == (648, 1.05e6)
    errors = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
    assert run.read_wrk(WRK + errors).errors == 15
    with pytest.raises(ValueError, match="wrk said no"):
        run.read_wrk("unable to connect")


def test_h2load_is_read():
    log = "".join(f"1795401079004350\t200\t{micros}\n" for micros in range(200, 0, -1))
    found = run.read_h2load(H2LOAD, log)
    assert (found.requests, found.errors, found.rate) == (594, 2, 596.0)
    assert (found.p50_us, found.p99_us) == (101, 199)
    with pytest.raises(ValueError, match="h2load said"):
        run.read_h2load(H2LOAD, "")


def row(part: str, name: str, number: int, rate: float, cpu_us: float = 1.0, asked=None):
    found = run.Found(1, 0, rate, 50, 99, cpu_us, 0.9, 0.0, 0.0, 0.9, 0.1)
    return run.Row(part, "case", name, number, asked, found)


def test_a_rate_that_is_off_is_told():
    rows = [
        row("rate", "outrigger-loadgen", 1, 999.0, asked=1_000.0),
        row("rate", "outrigger-loadgen", 2, 1_000.0, asked=1_000.0),
        row("rate", "outrigger-loadgen", 3, 1_001.0, asked=1_000.0),
    ]
    text = run.rate_table(rows)
    assert "| +0.000% |" in text and "missed" not in text
    rows[0].found.rate = 994.0
    assert "| -0.600%: **missed** |" in run.rate_table(rows)


def test_ratios_are_taken_within_a_round():
    rows = [
        row("cost", "wrk", 1, 100, 10), row("cost", "outrigger-loadgen", 1, 100, 5),
        row("cost", "wrk", 2, 100, 10), row("cost", "outrigger-loadgen", 2, 100, 20),
        row("cost", "outrigger-loadgen", 3, 100, 99),
    ]
    text = run.cost_table(rows)
    assert "|  | outrigger-loadgen | wrk | ours over wrk |" in text
    assert "| 20.0 (5.00–99.0) | 10.0 (10.0–10.0) | 1.25 (0.50–2.00) |" in text
