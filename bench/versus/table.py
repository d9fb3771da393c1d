"""A campaign as text in Markdown: figures, ratios, and what to know about them. Pure."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable

from . import complete, figures
from .figures import Kind, Line, number, spread
from .results import NOT_SATURATED, Campaign
from .rivals import OURS, PROXIES, YARDSTICKS


# Behind figures that the load generator spoilt.
SPOILT = " †"

SPOILT_SAYS = (
    "† in half of its rounds or more the load generator itself sent so many requests over a "
    "millisecond late (10 % for p50, 1 % for p99, 0.1 % for p99.9, any for max), or was so busy, that "
    "this may be its figure and not the proxy's: not to be quoted"
)


def proxies_of(campaign: Campaign) -> list[str]:
    """In the order of their definition."""
    ran = {row.proxy for row in campaign.rows}
    return [name for name in PROXIES if name in ran]


def lines(campaign: Campaign, pick: Callable[[dict], list[Kind]]) -> list[Line]:
    """The lines of a section; those without a value are left out."""
    found = []
    for name, about in campaign.scenarios.items():
        for kind in pick(about):
            one = figures.line(campaign, name, kind)
            if one.values:
                found.append(one)
    return found


def cost(about: dict) -> list[Kind]:
    return [figures.CPU_PER_MIB if about["large"] else figures.CPU]


def throughput(about: dict) -> list[Kind]:
    if about["rate"] is not None:
        return []
    return [figures.BYTES, figures.RATE] if about["large"] else [figures.RATE]


def latency(about: dict) -> list[Kind]:
    if about["rate"] is None:
        return []
    return [figures.P50, figures.P99, figures.P999, figures.MAX]


def memory(about: dict) -> list[Kind]:
    return [figures.MEMORY_IDLE, figures.MEMORY] if about["idle_connections"] else []


def reload(about: dict) -> list[Kind]:
    return [figures.ERRORS, figures.RELOAD] if about["reload"] else []


SECTIONS = {
    "CPU time: all of the proxy's threads, the kernel's work for them included": cost,
    "Throughput": throughput,
    "Latency at a fixed rate, from when a request was due": latency,
    "Memory (PSS)": memory,
    "Reload": reload,
}


def titled(one: Line) -> str:
    unit = f", {one.kind.unit}" if one.kind.unit else ""
    return f"{one.title}: {one.kind.name}{unit}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    out = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    out += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(out) + "\n"


def marked(one: Line, cell: str, proxies: Iterable[str], rounds: Iterable[int]) -> str:
    """The cell, with the mark if the load generator spoilt it."""
    return cell + SPOILT if cell and one.spoilt(proxies, rounds) else cell


def figure_table(campaign: Campaign, section: list[Line]) -> str:
    names = proxies_of(campaign)
    rows = []
    for one in section:
        series = {name: one.values.get(name, {}) for name in names}
        cells = [marked(one, spread(it.values()), [name], it) for name, it in series.items()]
        rows.append([titled(one), *cells])
    return markdown(["", *(PROXIES[name].title for name in names)], rows)


def ratio_table(campaign: Campaign, section: list[Line]) -> str:
    rivals = [name for name in proxies_of(campaign) if name != OURS]
    columns = [[rival] for rival in rivals if rival not in YARDSTICKS]
    columns = [list(YARDSTICKS), *([name] for name in YARDSTICKS if name in rivals), *columns]
    rows = []
    for one in section:
        ratios = [(column, one.ratios(OURS, column)) for column in columns]
        cells = [marked(one, spread(it.values()), [OURS, *column], it) for column, it in ratios]
        if any(cells):
            rows.append([titled(one), *cells])
    titles = [" or ".join(PROXIES[name].title for name in column) for column in columns]
    titles[0] = f"the better of {' and '.join(PROXIES[name].title for name in YARDSTICKS)}"
    return markdown([f"{PROXIES[OURS].title} over", *titles], rows) if rows else ""


def notes(campaign: Campaign) -> list[str]:
    """What a reader must know: who did not run, what was invalid, what is doubtful."""
    found = [f"{what}: skipped, {why}" for what, why in campaign.skipped.items()]
    for row in campaign.rows:
        if row.invalid:
            found.append(f"INVALID {row.scenario}, {row.proxy}, round {row.round}: {row.invalid}")
    marks: Counter[tuple[str, str, str]] = Counter()
    totals: Counter[tuple[str, str]] = Counter()
    for row in campaign.rows:
        totals[row.scenario, row.proxy] += 1
        for mark in row.figures.doubts if row.figures else []:
            marks[row.scenario, mark, row.proxy] += 1
    by_mark: dict[tuple[str, str], list[str]] = {}
    for (scenario, mark, proxy), count in marks.items():
        by_mark.setdefault((scenario, mark), []).append(
            f"{proxy} {count}/{totals[scenario, proxy]}"
        )
    found += [
        f"{scenario}, {mark}: {', '.join(counts)}" for (scenario, mark), counts in by_mark.items()
    ]
    return found


def described(campaign: Campaign) -> str:
    """Where, when, with what."""
    machine = campaign.machine
    versions = ", ".join(
        f"{PROXIES[name].title} {version}"
        for name, version in campaign.versions.items()
        if name in PROXIES and not PROXIES[name].reference
    )
    rounds = len({row.round for row in campaign.rows})
    where = complete.cut_off(campaign)
    return (
        f"{campaign.date[:10]}, {machine['cpus']} CPUs {machine['cpu']}"
        f"{' (virtual)' if machine['virtual'] else ''}, Linux {machine['kernel']}; {versions}; "
        f"commit {machine['commit']}; {rounds} interleaved round{'s' * (rounds != 1)} of "
        f"{campaign.seconds:g} s{f' (**{where}**)' if where else ''}"
    )


def overview(campaigns: list[Campaign]) -> str:
    """A line for each."""
    out = ""
    for number, campaign in enumerate(campaigns, 1):
        where = complete.cut_off(campaign) or f"{len(campaign.rows)} measurements"
        out += f"{number}  {campaign.date}  {campaign.command}: {where}\n"
    return out


def full(campaign: Campaign) -> str:
    """Everything, for the terminal."""
    out = [f"{described(campaign)}.\n", "Median (least–most).\n"]
    for title, pick in SECTIONS.items():
        section = lines(campaign, pick)
        if section:
            out += [f"{title}\n", figure_table(campaign, section)]
            if pick is not reload and (ratios := ratio_table(campaign, section)):
                out += ["Ratios round by round.\n", ratios]
    found = notes(campaign)
    if any(SPOILT in text for text in out):
        found.insert(0, SPOILT_SAYS)
    if found:
        out.append("\n".join(f"- {note}" for note in found) + "\n")
    return "\n".join(out)


# ---- The README's --------------------------------------------------------------------------


def summary(campaign: Campaign, written_by: str) -> str:
    """One table: medians of all, and the ratio to the better yardstick with its spread; below it
    the command that measured, and the one that wrote the table."""
    names = proxies_of(campaign)
    rows = []
    for one in summary_lines(campaign):
        ratios = one.ratios(OURS, YARDSTICKS)
        rows.append([
            titled(one),
            *(
                marked(one, median(series), [name], series)
                for name in names
                for series in [one.values.get(name, {})]
            ),
            marked(one, spread(ratios.values()), [OURS, *YARDSTICKS], ratios),
            verdict(one, ratios),
        ])
    yardsticks = " and ".join(PROXIES[name].title for name in YARDSTICKS)
    head = ["", *(PROXIES[name].title for name in names), "ratio", "limit"]
    parts = [
        f"{described(campaign)}. Medians. The ratio is {PROXIES[OURS].title}'s figure over the "
        f"better one of {yardsticks} in the same round: median (least–most).",
        markdown(head, rows).strip(),
    ]
    doubts = summary_notes(campaign)
    if SPOILT in parts[-1]:
        doubts.insert(0, SPOILT_SAYS)
    if doubts:
        parts.append("\n".join(f"- {doubt}" for doubt in doubts))
    parts.append(f"```sh\n{campaign.command}\n{written_by}\n```")
    return "\n\n".join(parts) + "\n"


def summary_notes(campaign: Campaign) -> list[str]:
    """Who is missing, and how many measurements were invalid or disturbed."""
    found = [
        f"{what}: skipped, {why}"
        for what, why in campaign.skipped.items()
        if not any(one.reference and what.startswith(one.name) for one in PROXIES.values())
    ]
    all_rows = len(campaign.rows)
    if invalid := [row for row in campaign.rows if row.invalid]:
        found.append(f"{len(invalid)} of {all_rows} measurements were invalid and are left out")
    marks = Counter(mark for row in campaign.rows if row.figures for mark in row.figures.doubts)
    # Whether a proxy was saturated matters to its throughput, which is not told here.
    del marks[NOT_SATURATED]
    return found + [f"{mark}: {count} of {all_rows} measurements" for mark, count in marks.items()]


def summary_lines(campaign: Campaign) -> list[Line]:
    found = lines(campaign, cost)
    found += lines(campaign, lambda about: [figures.P50, figures.P99] if about["rate"] else [])
    return found + lines(campaign, memory)


def median(series: dict[int, float]) -> str:
    return number(statistics.median(series.values())) if series else ""


def verdict(one: Line, ratios: dict[int, float]) -> str:
    if one.limit is None:
        return ""
    missed = ratios and statistics.median(ratios.values()) > one.limit
    return f"{one.limit:.2f}{': **missed**' if missed else ''}"
