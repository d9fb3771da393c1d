"""Who is measured: how each is found, configured, started and reloaded.

Configurations are templates in bench/rivals. @NAME@ is replaced; a line with @ORIGIN@ stands once
for each origin; a line that begins with @trait: is there only where the scenario has the trait, one
with @!trait: only where it has not. Several marks before one line must all hold.
"""

import os
import re
import shutil
import signal
import subprocess
import tomllib
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .process import PATIENCE_S, Server, cpu_list, free_port

BENCH = Path(__file__).resolve().parents[1]
ROOT = BENCH.parent
TEMPLATES = BENCH / "rivals"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()

# Where bench/versus/setup puts what it installs.
INSTALLED = TARGET / "rivals"


def render(text: str, traits: frozenset[str], values: dict[str, str], origins: list[int]) -> str:
    """A template, filled in. Raises ValueError for a name without a value."""
    lines = []
    for line in text.splitlines():
        indent, marks, rest = re.match(r"(\s*)((?:@!?[a-z_]+:)*)(.*)", line).groups()
        asked = re.findall(r"@(!?)([a-z_]+):", marks)
        if any((trait in traits) == bool(negated) for negated, trait in asked):
            continue
        line = indent + rest
        times = origins if "@ORIGIN@" in line else [0]
        lines += [line.replace("@ORIGIN@", str(origin)) for origin in times]
    done = "\n".join(lines) + "\n"
    for name, value in values.items():
        done = done.replace(f"@{name}@", value)
    if left := re.search(r"@[A-Z_]+@", done):
        raise ValueError(f"a template asks for {left.group()}, which has no value")
    return done


@dataclass
class Setting:
    """One start of one proxy."""

    folder: Path
    binary: Path
    cpus: list[int]
    origins: list[int]
    traits: frozenset[str]
    port: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)
    # Workers, where they are not one for each CPU; then nobody pins them.
    count: int | None = None
    # What else the templates ask for.
    values: dict[str, str] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        return self.count or len(self.cpus)

    def write(self, template: str, generation: int, name: str | None = None) -> Path:
        """Fills a template in; answers tell the generation where the scenario reloads."""
        traits = set(self.traits)
        if self.count is not None:
            traits.add("counted")
        elif self.workers > 1:
            traits.add("several_workers")
        if self.workers > 1 or "reload" in traits:
            traits.add("master")
        values = {
            "PORT": str(self.port),
            "ADMIN": str(self.admin),
            "FOLDER": str(self.folder),
            "WORKERS": str(self.workers),
            "CPUS": cpu_list(self.cpus),
            "CPU_LIST": ", ".join(map(str, self.cpus)),
            "GENERATION": str(generation),
            **self.values,
        }
        path = self.folder / (name or template)
        text = (TEMPLATES / template).read_text()
        path.write_text(render(text, frozenset(traits), values, self.origins))
        return path


@dataclass(frozen=True)
class Proxy:
    name: str
    title: str
    # Where a rival is; ours is built.
    find: Callable[[], Path | None]
    version: Callable[[Path], str]
    # The first one is the configuration; others lie beside it.
    templates: tuple[str, ...]
    command: Callable[[Setting], list[str]]
    reload: Callable[[Setting, Server, int], None] | None = None
    environment: Callable[[Setting], dict[str, str]] = lambda _: {}
    # Scenarios that it cannot run, and why.
    skips: dict[str, str] = field(default_factory=dict)
    workers_max: int | None = None
    # A reference that does less than a proxy must.
    reference: bool = False
    # No proxy at all: the load goes to the origin.
    direct: bool = False

    def start(self, setting: Setting) -> Server:
        """Raises ProcessError if it does not come up."""
        for template in self.templates:
            setting.write(template, generation=0)
        return Server.start(
            self.name, self.command(setting), setting.cpus, setting.port, setting.folder,
            self.environment(setting),
        )


# ---- Where they are --------------------------------------------------------------------------


def on_path(name: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        return Path(found) if found else None

    return find


def installed(pattern: str) -> Callable[[], Path | None]:
    return lambda: next((path for path in sorted(INSTALLED.glob(pattern)) if path.is_file()), None)


def said(*arguments: str) -> Callable[[Path], str]:
    """The version that a binary tells when asked so."""

    def version(binary: Path) -> str:
        command = [str(binary), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
        found = re.search(r"\d+\.\d+\.\d+[.\w+-]*", done.stdout + done.stderr)
        return found.group() if found else "unknown"

    return version


def locked(package: str, lock: Path) -> Callable[[Path], str]:
    """The version of a crate that a program of ours is built on."""

    def version(_: Path) -> str:
        packages = tomllib.loads(lock.read_text())["package"]
        return next(entry["version"] for entry in packages if entry["name"] == package)

    return version


# ---- How they reload -------------------------------------------------------------------------


def by_signal(template: str, number: int) -> Callable[[Setting, Server, int], None]:
    """The file is written anew, and the first process told."""

    def reload(setting: Setting, server: Server, generation: int) -> None:
        setting.write(template, generation)
        os.kill(server.process.pid, number)

    return reload


def by_rename(template: str) -> Callable[[Setting, Server, int], None]:
    """The file is replaced as a whole, which the proxy watches for."""

    def reload(setting: Setting, _: Server, generation: int) -> None:
        setting.write(template, generation, "next").rename(setting.folder / template)

    return reload


def caddy_reload(setting: Setting, _: Server, generation: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{setting.admin}/load",
        data=setting.write("Caddyfile", generation).read_bytes(),
        headers={"Content-Type": "text/caddyfile"},
    )
    urllib.request.urlopen(request, timeout=PATIENCE_S).close()


# ---- Who they are ----------------------------------------------------------------------------


def pingora_command(setting: Setting) -> list[str]:
    origins = [part for port in setting.origins for part in ("--origin", f"127.0.0.1:{port}")]
    listen = f"127.0.0.1:{setting.port}"
    return [str(setting.binary), "--listen", listen, "--threads", str(setting.workers), *origins]


PROXIES = {
    proxy.name: proxy
    for proxy in (
        Proxy(
            "outrigger", "Outrigger", lambda: None, said("version"),
            ("outrigger.yaml",),
            lambda setting: [
                str(setting.binary), "run", "-c", str(setting.folder / "outrigger.yaml")
            ],
            by_signal("outrigger.yaml", signal.SIGHUP),
        ),
        Proxy(
            "nginx", "nginx", on_path("nginx"), said("-v"),
            ("nginx.conf",),
            lambda setting: [
                str(setting.binary), "-e", str(setting.folder / "nginx.err"),
                "-c", str(setting.folder / "nginx.conf"),
            ],
            by_signal("nginx.conf", signal.SIGHUP),
        ),
        Proxy(
            "haproxy", "HAProxy", on_path("haproxy"), said("-v"),
            ("haproxy.cfg",),
            lambda setting: [
                str(setting.binary), "-q", "-db", *(["-W"] if "reload" in setting.traits else []),
                "-f", str(setting.folder / "haproxy.cfg"),
            ],
            by_signal("haproxy.cfg", signal.SIGUSR2),
        ),
        Proxy(
            "envoy", "Envoy", installed("venv/lib/python*/site-packages/envoy/_bin/envoy"),
            said("--version"),
            ("envoy.yaml", "envoy-routes.yaml"),
            lambda setting: [
                str(setting.binary), "-c", str(setting.folder / "envoy.yaml"),
                "--concurrency", str(setting.workers), "--disable-hot-restart", "-l", "error",
            ],
            by_rename("envoy-routes.yaml"),
        ),
        Proxy(
            "caddy", "Caddy", installed("venv/bin/caddy"), said("version"),
            ("Caddyfile",),
            lambda setting: [
                str(setting.binary), "run", "--config", str(setting.folder / "Caddyfile"),
                "--adapter", "caddyfile",
            ],
            caddy_reload,
            environment=lambda setting: {
                "GOMAXPROCS": str(setting.workers),
                "GOGC": "400",
                "HOME": str(setting.folder),
                "XDG_CONFIG_HOME": str(setting.folder),
                "XDG_DATA_HOME": str(setting.folder),
            },
        ),
        Proxy(
            "pingora", "Pingora", installed("pingora/release/pingora-rival"),
            locked("pingora-proxy", TEMPLATES / "pingora" / "Cargo.lock"),
            (), pingora_command,
            skips={"reload": "Pingora reloads by starting anew, which is another thing"},
        ),
        Proxy(
            "floor", "floor", installed("floor/release/floor"),
            locked("floor", TEMPLATES / "floor" / "Cargo.lock"),
            (),
            lambda setting: [
                str(setting.binary), f"127.0.0.1:{setting.port}",
                f"127.0.0.1:{setting.origins[0]}",
            ],
            skips={
                "new": "the floor keeps no connections to the origin",
                "slow-endpoint": "the floor has one origin",
                "reload": "the floor has no configuration",
                "idle": "the floor would open as many connections to the origin",
            },
            workers_max=1,
            reference=True,
        ),
    )
}

DIRECT = Proxy(
    "direct", "direct", lambda: None, lambda _: "-", (), lambda _: [], reference=True, direct=True
)

# Ours, which is compared, and the two whose better one it is compared with.
OURS = "outrigger"
YARDSTICKS = ("nginx", "haproxy")
