"""Tables of the rows, with a verdict where ours must hold something."""

import statistics
from collections.abc import Iterable

from rig import callgrind, rows
from rig.rows import Found, disturbed, verdict
from versus.figures import number, spread
from versus.measure import OTHERS_MAX, STOLEN_MAX
from versus.results import Campaign
from versus.table import markdown

from . import dead, defaults, figures, revived

ROWS = {
    "storm": "Retry storm: every endpoint fails, 1,000 requests/s",
    "dead": "Dead endpoint: one of three dies under 600 requests/s",
    "revived": "Revived endpoint: of an even share, what one of three gets in each second",
    "defaults": "Instructions of user space per request, defaults over all off",
    "slow": "Slow endpoint: one of ten takes 20 ms, 2,000 requests/s",
}


def all_of(about: Campaign, found: Found) -> str:
    out = [rows.headline(about)]
    for name, of_name in found.items():
        if good := rows.good(of_name):
            out += [f"{ROWS[name]}\n", TABLES[name](good)]
    doubted = [row for name in TIMED for row in rows.good(found.get(name, [])) if doubts(row)]
    if doubted:
        counted = f"{len(doubted)} of {sum(len(found.get(name, [])) for name in TIMED)}"
        out.append(f"- {DOUBT} {DOUBTED}: {counted} measurements. Counts and shares hold\n")
    out += [f"- INVALID {row}" for row in rows.broken(found)]
    return "\n".join(out)


# Rows that have latencies; what makes these doubtful, and how that is shown.
TIMED = ("dead", "slow")
DOUBT = "†"
DOUBTED = (
    f"the hypervisor had over {STOLEN_MAX:.0%} of all CPUs, others over {OTHERS_MAX:.0%}, or over "
    f"{figures.WAITED_MAX:.0%} of the requests found no connection: latencies are not to be quoted"
)


def doubts(row: dict) -> bool:
    """About its latencies."""
    return (
        row["stolen_share"] > STOLEN_MAX
        or row["others_share"] > OTHERS_MAX
        or row["waited_share"] > figures.WAITED_MAX
    )


def timed(of: list[dict], text: str) -> str:
    """Marked if half of the measurements or more are in doubt."""
    return f"{text} {DOUBT}" if 2 * sum(map(doubts, of)) >= len(of) else text


def storm_table(found: list[dict]) -> str:
    lines = []
    for row in found:
        word = verdict(False) if row["ours"] else " exceeded"
        # What came before the failing time is in neither figure.
        paid_for = row["allowed_since_start"] - row["upstream_well"]
        answers = row["statuses"] | row["unanswered"]
        lines.append([
            row["proxy"], str(row["shards"]),
            f"after {row['well_s']:g} s of 200" if row["well"] else "cold",
            f"{row['client']:,}", f"{row['upstream']:,}", f"{row['ratio']:.3f}",
            f"{row['ratio_max']:.2f}",
            f"{row['allowed']:,.0f}{'' if figures.storm_holds(row) else word}",
            f"{paid_for:,.0f}{'' if figures.storm_is_paid_for(row) else word}"
            if row["well"] else "–",
            ", ".join(f"{kind}: {count:,}" for kind, count in answers.items()),
            disturbed(row),
        ])
    head = [
        "", "shards or workers", "start", "client requests", "upstream", "ratio",
        "in the worst second", "1.2 × client + 3/s", "and what was saved", "answers",
        "stolen, others",
    ]
    return markdown(head, lines)


def dead_table(found: list[dict]) -> str:
    lines = []
    for row in found:
        seen = row["reached"] is not None
        holds = row["errors"] <= dead.ERRORS_MAX.get(row["death"], 0)
        lines.append([
            dead.DEATHS[row["death"]], row["proxy"],
            f"{row['errors']:,}{verdict(holds or not row['ours'])}",
            " ".join(map(str, row["errors_by_second"])),
            ", ".join(kinds(row)),
            f"{row['reached']:,}" if seen else "–",
            number(row["reached_until_s"] * 1e3) if seen else "–",
            str(row["later"]) if seen else "–",
            timed([row], number(row["p99_ms"])), timed([row], number(row["max_ms"])),
            disturbed(row),
        ])
    head = [
        "death", "", "failed requests", "by second", "as", "reached it", "until, ms", "later",
        "p99, ms", "max, ms", "stolen, others",
    ]
    return markdown(head, lines)


def kinds(row: dict) -> Iterable[str]:
    """How requests failed."""
    for kind, count in row["failures"].items():
        if kind != "status":
            yield f"{kind}: {count:,}"
    for status, count in row["statuses"].items():
        if status != "200":
            yield f"{status}: {count:,}"


def revived_table(found: list[dict]) -> str:
    lines = []
    for row in found:
        span_s = len(row["shares"]) - 2
        off = figures.off_ramp(row["shares"], span_s)
        stampede = row["first_500_ms"] > figures.STAMPEDE_MAX * row["fair"] / 2
        # A span that is cut short is no ramp.
        ours = row["ours"] and span_s == revived.SPAN_S
        lines.append([
            row["proxy"], str(row["shards"]), str(row["while_failing"]),
            number(row["well_to_first_s"]),
            *(f"{share:.2f}" for share in row["shares"]),
            f"{off:.2f}{verdict(off <= figures.RAMP_OFF_MAX or not ours)}",
            f"{row['first_500_ms']}{verdict(not stampede or not ours)}",
            str(row["peak_50_ms"]), disturbed(row),
        ])
    seconds = len(found[0]["shares"])
    head = [
        "", "shards or workers", "while it failed", "well to first, s",
        *map(str, range(1, seconds + 1)), "off a straight ramp", "first 500 ms",
        "most in 50 ms of them", "stolen, others",
    ]
    return markdown(head, lines)


def defaults_table(found: list[dict]) -> str:
    lines = []
    for endpoints, connections in sorted({
        (row["endpoints"], row["connections"]) for row in found
    }):
        of = {
            row["way"]: row["instructions"] for row in found
            if (row["endpoints"], row["connections"]) == (endpoints, connections)
        }
        ratio = of["defaults"] / of["off"] if len(of) == 2 else None
        # Fewer requests than that are no figure.
        enough = all(row["requests"] >= callgrind.MANY for row in found)
        lines.append([
            str(endpoints), str(connections),
            *(f"{of[way]:,.0f}" if way in of else "–" for way in defaults.WAYS),
            "–" if ratio is None
            else f"{ratio:.3f}{verdict(ratio <= defaults.RATIO_MAX or not enough)}",
        ])
    return markdown(["endpoints", "connections", "defaults", "all off", "ratio"], lines)


def slow_table(found: list[dict]) -> str:
    lines = []
    for name, shards in dict.fromkeys((row["proxy"], row["shards"]) for row in found):
        of = [row for row in found if (row["proxy"], row["shards"]) == (name, shards)]
        least, most = zip(*(row["fast_shares"] for row in of))
        lines.append([
            name, str(shards),
            shares(row["slow_share"] for row in of),
            f"{min(least):.2f}–{max(most):.2f}",
            *(
                timed(of, spread(row[f"{key}_us"] for row in of)) for key in ("p50", "mean", "p99")
            ),
            shares(row["waited_share"] for row in of),
            ", ".join(disturbed(row) for row in of),
        ])
    head = [
        "", "shards or workers", "share of the slow one", "fast ones, of an even share",
        "p50, µs", "mean, µs", "p99, µs", "found no connection", "stolen, others",
    ]
    return markdown(head, lines)


def shares(values: Iterable[float]) -> str:
    """Median (least–most), in percent."""
    values = [value * 100 for value in values]
    middle = f"{statistics.median(values):.1f} %"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1f}–{max(values):.1f})"


TABLES = {
    "storm": storm_table,
    "dead": dead_table,
    "revived": revived_table,
    "defaults": defaults_table,
    "slow": slow_table,
}
