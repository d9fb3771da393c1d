"""A workload as a file: TOML -> Scenario -> flags of the load generator.

The files are scenarios of the load generator, which reads all but the table `bench`; here only the
keys below are known, and all others are refused.
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "scenarios"

# The address that the files name; each measurement has another one.
PLACEHOLDER = "http://127.0.0.1:8080"


class ScenarioError(Exception):
    """A file that cannot be run; one line."""


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    order: int
    connections: int
    path: str
    # Requests a second, as the load generator writes them; None for a closed loop.
    rate: str | None = None
    keep_alive: bool = True
    method: str | None = None
    headers: tuple[str, ...] = ()
    body: str | None = None
    expect_length: int | None = None
    # Proxies run with their settings for large bodies, and bytes are compared, not requests.
    large: bool = False
    # One origin each, that answers so many milliseconds late.
    delays_ms: tuple[int, ...] = (0,)
    reload_every_s: float = 0.0
    idle_connections: int = 0
    # By kind of figure: what the ratio to the better yardstick must not exceed.
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def traits(self) -> frozenset[str]:
        """What configuration templates ask about."""
        traits = {
            "large": self.large,
            "reload": self.reload_every_s > 0,
            "several_origins": len(self.delays_ms) > 1,
        }
        return frozenset(name for name, holds in traits.items() if holds)

    def flags(self, port: int, seconds: float, seed: int = 1) -> list[str]:
        """For the load generator; everything but the CPUs, and what it writes."""
        flags = ["-c", str(self.connections), "-d", f"{round(seconds * 1000)}ms"]
        flags += ["--seed", str(seed)]
        flags += ["--closed"] if self.rate is None else ["-R", self.rate]
        if not self.keep_alive:
            flags.append("--no-keepalive")
        for header in self.headers:
            flags += ["-H", header]
        if self.method is not None:
            flags += ["-X", self.method]
        if self.body is not None:
            flags += ["--body", self.body]
        flags += ["--expect-status", "200"]
        if self.expect_length is not None:
            flags += ["--expect-length", str(self.expect_length)]
        return [*flags, f"http://127.0.0.1:{port}{self.path}"]


@dataclass
class Table:
    """A TOML table whose keys are taken out one by one."""

    where: str
    values: dict = field(default_factory=dict)

    def take(self, key: str, kind: type | tuple[type, ...], default=None):
        value = self.values.pop(key, default)
        if value is not None and not isinstance(value, kind):
            raise ScenarioError(f"{self.where}: {key} = {value!r} is of the wrong type")
        return value

    def end(self) -> None:
        if self.values:
            raise ScenarioError(f"{self.where}: unknown {', '.join(self.values)}")


def parse(name: str, text: str, folder: Path = FOLDER) -> Scenario:
    """Raises ScenarioError for what bench/versus cannot run, even if the load generator could."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{name}: {error}") from None
    file = Table(name, values)
    bench = Table(f"{name}, [bench]", file.take("bench", dict, {}))
    requests, phases = file.take("requests", list, []), file.take("phases", list, [])
    if len(requests) != 1 or len(phases) > 1:
        raise ScenarioError(f"{name}: one request and at most one phase")
    request = Table(f"{name}, [[requests]]", requests[0])
    phase = Table(f"{name}, [[phases]]", phases[0] if phases else {})
    # How long, is --seconds to say.
    file.take("duration", str)
    phase.take("duration", str)
    rate = phase.take("hold", (str, int, float))
    if file.take("closed", bool, False) != (rate is None):
        raise ScenarioError(f"{name}: either closed = true, or one phase that holds a rate")
    url = request.take("url", str, "")
    if not url.startswith(f"{PLACEHOLDER}/"):
        raise ScenarioError(f"{name}: the URL must begin with {PLACEHOLDER}/")
    if request.take("expect_status", int, 200) != 200:
        raise ScenarioError(f"{name}: only 200 is a right answer")
    body = request.take("body", str)
    if body is not None and body.startswith("@"):
        body = f"@{folder / body[1:]}"
    scenario = Scenario(
        name=name,
        title=bench.take("title", str, name),
        order=bench.take("order", int, 1000),
        connections=file.take("connections", int, 64),
        path=url.removeprefix(PLACEHOLDER),
        rate=None if rate is None else str(rate),
        keep_alive=file.take("keep_alive", bool, True),
        method=request.take("method", str),
        headers=tuple(request.take("headers", list, [])),
        body=body,
        expect_length=request.take("expect_length", int),
        large=bench.take("large", bool, False),
        delays_ms=tuple(bench.take("delays_ms", list, [0])),
        reload_every_s=float(bench.take("reload_every_s", (int, float), 0)),
        idle_connections=bench.take("idle_connections", int, 0),
        limits=bench.take("limits", dict, {}),
    )
    for table in (file, bench, request, phase):
        table.end()
    return scenario


def load(folder: Path = FOLDER) -> dict[str, Scenario]:
    """All files of the folder by name, in their order."""
    files = sorted(folder.glob("*.toml"))
    scenarios = [parse(file.stem, file.read_text(), folder) for file in files]
    scenarios.sort(key=lambda scenario: scenario.order)
    return {scenario.name: scenario for scenario in scenarios}
