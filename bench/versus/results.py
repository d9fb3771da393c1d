"""Raw rows: JSON lines, one campaign line and then one line for each measurement.

Files are only ever appended to. Figures that a scenario has not are null.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

# Marks: what makes figures doubtful.
NOT_SATURATED = "not saturated"
RATE_MISSED = "rate missed"
DISTURBED = "disturbed"
STOLEN = "stolen"
SHARED = "load on the proxy's CPUs"
LATE = "generator late"

# Of the requests may be sent late before that is marked; as the load generator warns.
LATE_MAX = 0.01

# Of the time in which it had its CPU, the load generator may compute at a fixed rate.
BUSY_MAX = 0.9


@dataclass
class Figures:
    """What one measurement found."""

    requests: int
    errors: int
    # From the first request to the last answer, as the load generator counts.
    wall_s: float
    # Of all threads of all of the proxy's processes.
    cpu_s: float
    # CPU microseconds per request.
    cpu_us: float
    # Of the time of the proxy's CPUs, what it used.
    cpu_share: float
    # Answers a second.
    rate: float
    body_bytes: int
    # MiB of answers' bodies for each second of CPU.
    mib_per_cpu_s: float
    # Opened while the measurement ran; what the warm-up opened is not in it.
    origin_connections: int
    client_connections: int
    # Of the load's CPU: used by the load generator, waited for by it, used by the origin.
    load_cpu_share: float
    load_wait_share: float
    origin_cpu_share: float
    # Of the requests, sent late though a connection was free.
    late_share: float
    # Of the proxy's CPU: used by other processes, and taken by the hypervisor.
    others_share: float
    stolen_share: float
    # Open loop only; from when a request was due.
    p50_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    max_us: float | None = None
    # After the first request.
    pss_idle_bytes: int | None = None
    # Growth, for each idle connection.
    pss_per_connection_bytes: float | None = None
    # Under load; and the longest until a new connection saw the new configuration.
    reloads: int | None = None
    reload_ms: float | None = None
    # Of the marks above, as they were known when it was measured.
    marks: list[str] = field(default_factory=list)

    @property
    def doubts(self) -> list[str]:
        """The marks, and what the figures themselves tell."""
        return self.marks + [LATE] * self.late(LATE_MAX)

    def late(self, share_max: float) -> bool:
        """Whether more than that share left late. A generator that was always busy is late, too,
        but its requests wait for connections whose answers it has not read yet."""
        busy = self.load_cpu_share > BUSY_MAX * (1 - self.load_wait_share)
        return self.late_share > share_max or (self.p50_us is not None and busy)


@dataclass
class Row:
    """One measurement."""

    scenario: str
    proxy: str
    # From 1; and the place in the round, from 1.
    round: int
    turn: int
    workers: int
    # Unix time.
    time: float
    figures: Figures | None
    # Why there are no figures.
    invalid: str | None = None


@dataclass
class Campaign:
    """What all rows of one command have in common."""

    date: str
    command: str
    # As machine.describe() has it.
    machine: dict
    versions: dict[str, str]
    seconds: float
    rounds: int
    cpus_proxy: list[int]
    cpus_load: list[int]
    cpus_origin: list[int]
    # Titles of the scenarios, in their order.
    scenarios: dict[str, str]
    # Why proxies, or a proxy in a scenario, did not run.
    skipped: dict[str, str]
    rows: list[Row] = field(default_factory=list)


def campaign_line(campaign: Campaign) -> str:
    values = dataclasses.asdict(dataclasses.replace(campaign, rows=[]))
    del values["rows"]
    return json.dumps({"campaign": values}, ensure_ascii=False)


def row_line(row: Row) -> str:
    return json.dumps({"row": dataclasses.asdict(row)}, ensure_ascii=False)


def read(path: Path) -> list[Campaign]:
    """All campaigns of a file. Raises ValueError for a line that is none of ours."""
    campaigns: list[Campaign] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            value = json.loads(line)
            if "campaign" in value:
                campaigns.append(Campaign(**value["campaign"]))
            else:
                row = value["row"]
                figures = row.pop("figures")
                campaigns[-1].rows.append(Row(figures=figures and Figures(**figures), **row))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error!r}") from None
    return campaigns


def choose(campaigns: list[Campaign], which: str | None) -> Campaign:
    """By number from 1, or by the start of its date; else the last. Raises ValueError."""
    if which is None:
        fit = campaigns[-1:]
    elif which.isdecimal() and len(which) < 4:
        fit = campaigns[int(which) - 1:][:1] if int(which) else []
    else:
        fit = [one for one in campaigns if one.date.startswith(which)]
    if len(fit) != 1:
        there = ", ".join(one.date for one in campaigns) or "none"
        raise ValueError(f"{len(fit)} campaigns are '{which or 'the last'}'; there are: {there}")
    if not fit[0].rows:
        raise ValueError(f"the campaign of {fit[0].date} has no rows")
    return fit[0]


class Writer:
    """Appends a campaign as it goes, so that nothing is lost with a run that is cut off."""

    def __init__(self, path: Path, campaign: Campaign):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "a", encoding="utf-8")
        self.line(campaign_line(campaign))

    def line(self, line: str) -> None:
        self.file.write(line + "\n")
        self.file.flush()

    def row(self, row: Row) -> None:
        self.line(row_line(row))

    def close(self) -> None:
        self.file.close()
