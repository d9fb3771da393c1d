"""What the bench computes, without a proxy: scenarios, templates, ratios, tables, the README."""

import itertools
import json
import os
import shlex
import threading
from pathlib import Path

import pytest
from conftest import script
from versus import campaign, complete, figures, machine, measure, process, readme, results, rivals
from versus import scenario, table
from versus.measure import Bench
from versus.results import Campaign, Figures, Row

# ---- Scenarios -------------------------------------------------------------------------------


def test_every_scenario_can_be_run():
    scenarios = scenario.load()
    assert {"get-1", "get-64", "16k", "1m", "new", "idle", "reload", "rate-5k"} <= set(scenarios)
    for one in scenarios.values():
        assert one.flags(1234, 2.0)[-1] == f"http://127.0.0.1:1234{one.path}"


def test_a_scenario_becomes_flags():
    text = """
        connections = 8
        keep_alive = false
        [[phases]]
        hold = "5k"
        duration = "10s"
        [[requests]]
        url = "http://127.0.0.1:8080/b/7"
        method = "POST"
        headers = ["X: y"]
        body = "@file"
        expect_status = 200
        expect_length = 7
        [bench]
        title = "seven"
        delays_ms = [0, 5]
    """
    one = scenario.parse("seven", text, Path("/beside"))
    assert one.flags(80, 1.5, seed=3) == [
        "-c", "8", "-d", "1500ms", "--seed", "3", "-R", "5k", "--no-keepalive", "-H", "X: y",
        "-X", "POST", "--body", "@/beside/file", "--expect-status", "200", "--expect-length", "7",
        "http://127.0.0.1:80/b/7",
    ]
    assert one.traits == {"several_origins"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("closed = true\nconections = 1\n[[requests]]\nurl = 'http://127.0.0.1:8080/'", "conect"),
        ("[[requests]]\nurl = 'http://127.0.0.1:8080/'", "either closed"),
        ("closed = true\n[[requests]]\nurl = 'http://other/'", "must begin"),
        ("closed = true", "one request"),
        ("closed = true\nconnections = 'x'\n[[requests]]\nurl = 'http://127.0.0.1:8080/'", "type"),
        ("closed = ", "bad:"),
    ],
)
def test_mistakes_in_scenarios_are_found(text, why):
    with pytest.raises(scenario.ScenarioError, match=why):
        scenario.parse("bad", text)


# ---- Rivals ----------------------------------------------------------------------------------


def test_a_template_keeps_lines_by_trait_and_repeats_origins():
    text = "a @PORT@\n  @large:b\n@!large:c\n@reload:  d\nserver @ORIGIN@;"
    done = rivals.render(text, frozenset({"large"}), {"PORT": "80"}, [1, 2])
    assert done == "a 80\n  b\nserver 1;\nserver 2;\n"
    with pytest.raises(ValueError, match="@NOBODY@"):
        rivals.render("@NOBODY@", frozenset(), {}, [])


@pytest.mark.parametrize("proxy", rivals.PROXIES.values(), ids=lambda proxy: proxy.name)
def test_every_template_renders(proxy, tmp_path):
    traits = ("large", "reload", "several_origins")
    for count, workers in itertools.product(range(len(traits) + 1), ([0], [0, 1])):
        for some in itertools.combinations(traits, count):
            setting = rivals.Setting(tmp_path, Path("/b"), workers, [1, 2], frozenset(some), 80, 81)
            for template in proxy.templates:
                assert setting.write(template, 7).read_text()
            assert proxy.command(setting)


# ---- Figures ---------------------------------------------------------------------------------


def figures_of(cpu_us: float, **others) -> Figures:
    plain = dict.fromkeys(
        ("requests", "errors", "wall_s", "cpu_s", "cpu_share", "rate", "body_bytes",
         "mib_per_cpu_s", "origin_connections", "client_connections", "load_cpu_share",
         "load_wait_share", "origin_cpu_share", "others_share", "stolen_share"),
        1,
    )
    return Figures(**{**plain, "late_share": 0.0, "cpu_us": cpu_us, **others})


def campaign_of(rows: list[Row]) -> Campaign:
    about = {"title": "GET", "rate": None, "large": False, "reload": False, "idle_connections": 0}
    return Campaign(
        date="2026-11-22T10:00:00Z", command="bench/versus/run",
        machine={"cpu": "X", "cpus": 2, "virtual": True, "kernel": "6", "commit": "abc"},
        versions={"outrigger": "0.1.0", "nginx": "1"}, seconds=2, rounds=3, cpus_proxy=[0],
        cpus_load=[1], cpus_origin=[1],
        scenarios={"get": {**about, "limits": {"CPU per request": 0.8}}},
        skipped={"caddy": "not installed"}, rows=rows,
    )


def row(proxy: str, number: int, cpu_us: float | None, **others) -> Row:
    found = None if cpu_us is None else figures_of(cpu_us, **others)
    return Row("get", proxy, number, 1, 1, 0.0, found, None if found else "broken")


ROWS = [
    row("outrigger", 1, 10), row("nginx", 1, 20), row("haproxy", 1, 40),
    row("outrigger", 2, 30), row("nginx", 2, 60), row("haproxy", 2, 30),
    row("outrigger", 3, 99), row("nginx", 3, None), row("haproxy", 3, 10),
]


def test_ratios_are_taken_within_a_round():
    one = figures.line(campaign_of(ROWS), "get", figures.CPU)
    # Round 3 has no valid figure of nginx, so it says nothing of the better one.
    assert one.ratios("outrigger", ["nginx", "haproxy"]) == {1: 0.5, 2: 1.0}
    assert one.ratios("outrigger", ["haproxy"]) == {1: 0.25, 2: 1.0, 3: 9.9}
    assert one.ratios("outrigger", ["envoy"]) == {}


def test_the_better_one_of_throughput_is_the_higher():
    rows = [
        row("outrigger", 1, 1, rate=50), row("nginx", 1, 1, rate=100), row("haproxy", 1, 1, rate=10)
    ]
    one = figures.line(campaign_of(rows), "get", figures.RATE)
    assert one.ratios("outrigger", ["nginx", "haproxy"]) == {1: 0.5}


def test_numbers_are_shown_with_three_digits():
    assert [figures.number(value) for value in (0, 0.123, 1.234, 12.34, 123.4, 12345.6)] == [
        "0", "0.12", "1.23", "12.3", "123", "12,346"
    ]
    assert figures.spread([3.0, 1.0, 2.0]) == "2.00 (1.00–3.00)"
    assert figures.spread([1.5]) == "1.50"
    assert figures.spread([]) == ""


# ---- Rows, tables, the README ----------------------------------------------------------------


def test_rows_survive_the_file(tmp_path):
    about, path = campaign_of([]), tmp_path / "raw" / "rows.jsonl"
    for _ in range(2):  # A second campaign is appended.
        writer = results.Writer(path, about)
        for one in ROWS:
            writer.row(one)
        writer.close()
    first, second = results.read(path)
    assert first == second == campaign_of(ROWS)
    path.write_text(path.read_text() + json.dumps({"row": {"scenario": "x"}}) + "\n")
    with pytest.raises(ValueError, match="line 21"):
        results.read(path)


def test_the_table_tells_figures_ratios_and_doubts():
    text = table.full(campaign_of([*ROWS, row("envoy", 1, 5, marks=[results.DISTURBED])]))
    assert "| GET: CPU per request, µs | 30.0 (10.0–99.0) | 40.0 (20.0–60.0) |" in text
    assert "| GET: CPU per request, µs | 0.75 (0.50–1.00) |" in text
    assert "INVALID get, nginx, round 3: broken" in text
    assert "get, disturbed: envoy 1/1" in text
    assert "caddy: skipped, not installed" in text


def test_the_summary_says_what_was_missed():
    assert "| 0.75 (0.50–1.00) | 0.80 |" in table.summary(campaign_of(ROWS), "")
    slower = [row("outrigger", 1, 30), *ROWS[1:3]]
    text = table.summary(campaign_of(slower), "bench/versus/report FILE")
    assert "| 1.50 | 0.80: **missed** |" in text
    assert "bench/versus/run\nbench/versus/report FILE\n" in text


def test_a_figure_that_the_generator_spoilt_is_marked():
    def late(proxy: str, number: int, share: float) -> Row:
        return row(
            proxy, number, 5, late_share=share, p50_us=40, p99_us=80, load_cpu_share=0.4,
            load_wait_share=0.1,
        )

    rows = [
        late("outrigger", 1, 0.0), late("nginx", 1, 0.02), late("haproxy", 1, 0.2),
        late("outrigger", 2, 0.0), late("nginx", 2, 0.0), late("haproxy", 2, 0.2),
        late("outrigger", 3, 0.02), late("nginx", 3, 0.0), late("haproxy", 3, 0.0),
    ]
    about = campaign_of(rows)
    about.scenarios["get"]["rate"] = "5k"
    text = table.summary(about, "")
    # One late round of three is no half; 20 % late requests move even a median.
    assert "| GET: p50, µs | 40.0 | 40.0 | 40.0 † | 1.00 (1.00–1.00) † |" in text
    assert "| GET: p99, µs | 80.0 | 80.0 | 80.0 † | 1.00 (1.00–1.00) † |" in text
    # CPU time does not depend on it.
    assert "| GET: CPU per request, µs | 5.00 | 5.00 | 5.00 | 1.00 (1.00–1.00) |" in text
    assert "- † in half of its rounds" in text
    assert "- generator late: 4 of 9 measurements" in text
    text = table.full(about)
    assert "| GET: p50, µs | 40.0 (40.0–40.0) | 40.0 (40.0–40.0) | 40.0 (40.0–40.0) † |" in text
    assert "| GET: p50, µs | 1.00 (1.00–1.00) † | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) † |" in text
    assert "- get, generator late: nginx 1/3, haproxy 2/3, outrigger 1/3" in text
    # One that was always busy could not even see when it was late.
    busy = [row("outrigger", 1, 5, p50_us=40, load_cpu_share=0.7, load_wait_share=0.25)]
    assert "generator late: outrigger 1/1" in table.full(campaign_of(busy))
    quiet = campaign_of([late("outrigger", 1, 0.0), late("nginx", 1, 0.0)])
    assert "†" not in table.full(quiet) + table.summary(quiet, "")


def test_the_readme_is_written_between_its_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    assert readme.update(path, "new\n")
    assert path.read_text() == f"before\n{readme.BEGIN}\n\nnew\n\n{readme.END}\nafter\n"
    assert not readme.update(path, "new\n")
    for broken in ("", readme.BEGIN, f"{readme.END}{readme.BEGIN}", readme.BEGIN * 2 + readme.END):
        with pytest.raises(readme.MarkError):
            readme.between(broken, "new")


def test_our_readme_has_the_table_of_the_rows_that_it_names(tmp_path, monkeypatch):
    text = (rivals.ROOT / "README.md").read_text()
    table_of_ours = text.partition(readme.BEGIN)[2].partition(readme.END)[0]
    [command] = [
        line for line in table_of_ours.splitlines() if line.startswith("bench/versus/report ")
    ]
    words = shlex.split(command)[1:]
    monkeypatch.chdir(rivals.ROOT)
    for old in (text, text.replace(table_of_ours, "\n")):
        copy = tmp_path / "README.md"
        copy.write_text(old)
        assert script("versus/report").main([*words[:-1], str(copy)]) == 0
        assert copy.read_text() == text


def test_a_campaign_is_chosen():
    first, second = campaign_of(ROWS), campaign_of(ROWS[:3])
    second.date = "2026-11-23T10:00:00Z"
    both = [first, second]
    assert results.choose(both, None) is second
    assert results.choose(both, "1") is first
    assert results.choose(both, "2026-11-22") is first
    for wrong in ("0", "3", "2026", "2027"):
        with pytest.raises(ValueError, match="2026-11-22T10:00:00Z, 2026-11-23T10:00:00Z"):
            results.choose(both, wrong)
    with pytest.raises(ValueError, match="no rows"):
        results.choose([campaign_of([])], None)


def test_a_campaign_that_was_cut_off_says_so():
    assert complete.cut_off(campaign_of(ROWS)) is None
    cut = campaign_of(ROWS[:4])
    assert complete.cut_off(cut) == "cut off in round 2 of 3, after 3 of 6 measurements"
    assert "**cut off in round 2 of 3" in table.full(cut)
    assert "**cut off in round 2 of 3" in table.summary(cut, "")
    assert "cut off in round 2" in table.overview([cut])
    # What it left out on purpose is not missing.
    cut.skipped["nginx in get"] = "for a reason"
    cut.rounds = 2
    assert complete.cut_off(cut) is None


def test_a_part_of_a_table_does_not_replace_a_whole_one(tmp_path, capsys):
    raw, copy = tmp_path / "rows.jsonl", tmp_path / "README.md"
    old = f"{readme.BEGIN}\nold\n{readme.END}\n"
    copy.write_text(old)
    writer = results.Writer(raw, campaign_of([]))
    for one in ROWS[:4]:
        writer.row(one)
    writer.close()
    report = script("versus/report").main
    assert report([str(raw), "--readme", str(copy)]) == 2
    said = capsys.readouterr().err
    for why in ("cut off in round 2 of 3", "no rows get-1, get-16,", "no haproxy, envoy,"):
        assert why in said
    assert copy.read_text() == old
    assert report([str(raw), "--readme", str(copy), "--partial"]) == 0
    assert " --partial --readme README.md\n" in copy.read_text()


def test_a_rate_is_missed_when_requests_queue():
    def said(answered, elapsed_s, p99_ns=20e6):
        return {
            "asked": {"planned_s": 2.0}, "due_rate": 1000.0, "answered": answered,
            "elapsed_s": elapsed_s, "service_ns": {"p99": p99_ns},
        }

    # The last answers come after the planned end, by as much as a request takes.
    assert not measure.rate_missed(said(2000, 2.02))
    assert measure.rate_missed(said(2000, 2.5))
    assert measure.rate_missed(said(1900, 2.0))


def check(row: str, figures: Figures, asked: int, looks: int = 0, **failures: int) -> None:
    """As after a measurement of nginx."""
    setting = rivals.Setting(Path("/f"), Path("/b"), [0], [1], frozenset(), 80, 81)
    made = measure.Measurement(
        Bench(Path("/l"), [0], [1], [1]), rivals.PROXIES["nginx"], scenario.load()[row], 3.0, 1,
        setting, [], None, looks=looks,
    )
    made.check(figures, {"failures": failures}, asked)


def test_a_good_measurement_passes():
    def found(**others) -> Figures:
        fine = {"requests": 15_000, "errors": 0, "origin_connections": 3, "client_connections": 64}
        return figures_of(1, **{**fine, **others})

    check("rate-5k", found(), 15_000)
    check("rate-5k", found(), 15_100)
    late = {"marks": [results.RATE_MISSED], "errors": 900}
    check("rate-5k", found(**late, client_connections=900), 15_900, timeout=800, unfinished=100)
    broke = {"errors": 10, "reloads": 3, "origin_connections": 248, "client_connections": 304}
    check("reload", found(**broke), 15_030, looks=20, reset=9, status=1)


@pytest.mark.parametrize(
    ("row", "others", "asked", "failures", "why"),
    [
        ("rate-5k", {"requests": 0}, 0, {}, "answered nothing"),
        ("rate-5k", {"errors": 1}, 15_000, {"reset": 1}, "1 requests failed"),
        ("rate-5k", {"origin_connections": 131}, 15_000, {}, "keeps no connections"),
        ("rate-5k", {"client_connections": 65}, 15_000, {}, "closes its clients'"),
        ("rate-5k", {}, 14_999, {}, "the origin counts 14999"),
        ("rate-5k", {}, 15_129, {}, "the origin counts 15129"),
        # A missed rate excuses what is late, and nothing else.
        ("rate-5k", {"missed": True, "errors": 1}, 15_000, {"status": 1}, "1 requests failed"),
        ("rate-5k", {"missed": True, "origin_connections": 9_000}, 15_000, {}, "keeps no conn"),
        ("rate-5k", {"missed": True, "client_connections": 9_000}, 15_000, {}, "closes its"),
        ("rate-5k", {"missed": True}, 9_000, {}, "the origin counts 9000"),
        # So does a reload for what it breaks off.
        ("reload", {"reloads": 3, "errors": 1}, 15_000, {"mismatch": 1}, "1 requests failed"),
        ("reload", {"reloads": 3, "origin_connections": 9_000}, 15_000, {}, "keeps no conn"),
        ("reload", {"reloads": 3, "client_connections": 9_000}, 15_000, {}, "closes its"),
        ("reload", {"reloads": 3}, 14_000, {}, "the origin counts 14000"),
    ],
)
def test_a_broken_measurement_is_no_figure(row, others, asked, failures, why):
    others = dict(others)
    marks = [results.RATE_MISSED] if others.pop("missed", False) else []
    fine = {"requests": 15_000, "errors": 0, "origin_connections": 3, "client_connections": 64}
    found = figures_of(1, **{**fine, **others}, marks=marks)
    with pytest.raises(measure.Invalid, match=why):
        check(row, found, asked, **failures)


# ---- Turns, machine, processes ---------------------------------------------------------------


def test_every_round_begins_with_another_proxy():
    bench = Bench(Path("/l"), [0], [1], [1])
    binaries = {name: Path("/b") for name in ("outrigger", "nginx", "floor")}
    scenarios = scenario.load()
    only = [scenarios["get-1"]]
    order = [
        [turn.proxy.name for turn in campaign.turns_of(number, bench, only, binaries, 1)]
        for number in (1, 2, 3, 4)
    ]
    assert order[0] == ["outrigger", "nginx", "floor"] == order[3]
    assert [names[0] for names in order] == ["outrigger", "nginx", "floor", "outrigger"]
    # The floor cannot do this one.
    skipping = campaign.turns_of(3, bench, [scenarios["new"]], binaries, 1)
    assert [turn.proxy.name for turn in skipping] == ["outrigger", "nginx"]


def test_cpus_are_shared_out():
    scale = script("scale/run")
    split = {workers: scale.layout(workers, list(range(8)), Path("/l")) for workers in (1, 4, 7, 8)}
    assert (split[4].cpus_proxy, split[4].cpus_load, split[4].cpus_origin) == (
        [0, 1, 2, 3], [4, 5], [6, 7]
    )
    assert split[7].cpus_load == split[7].cpus_origin == [7]
    assert [bench.shared for bench in split.values()] == [False, False, False, True]
    assert scale.worker_counts(None, 6) == [1, 2, 4]
    grown = scale.grown(scenario.load()["rate-5k"], 4)
    assert (grown.connections, grown.rate) == (256, "20000")


def test_a_machine_is_named_without_its_name():
    cpuinfo = "processor : 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\n"
    about = {"cpu": machine.cpu_model(cpuinfo), "cpus": 2}
    assert machine.kind(about) == "2-cpu-amd-epyc-7763"
    about = {"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cpus": 4}
    assert machine.kind(about) == "4-cpu-intel-xeon"


def test_cpu_ticks_add_up():
    text = "cpu  9 9\ncpu0 1 2 4 100 100 8 16 32 0 0\ncpu1 1 0 0 0 0 0 0 1 0 0\ncpu10 7 7 7 7\n"
    assert machine.CpuTicks.parse(text, [0], 1) == machine.CpuTicks(31, 32)
    assert machine.CpuTicks.parse(text, [0, 1], 2) == machine.CpuTicks(16, 16.5)


def test_cpu_time_is_the_schedulers():
    def work():
        sum(range(2_000_000))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alive = sum(
        int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[0])
        for task in os.listdir("/proc/self/task")
    )
    # Those two have ended: only the process's clock still counts them.
    assert process.cpu_ns(os.getpid()) > alive > 0
