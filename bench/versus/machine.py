"""What a campaign runs on, and what else went on there."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .rivals import ROOT


def describe() -> dict:
    """For the raw rows. No host name."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu_model(cpuinfo),
        "cpus": os.cpu_count(),
        "virtual": "hypervisor" in cpuinfo,
        "memory_mib": int(memory.group(1)) // 1024 if memory else None,
        "kernel": platform.release(),
        "commit": commit(),
    }


def cpu_model(cpuinfo: str) -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    return found.group(1).strip() if found else platform.machine()


def kind(description: dict) -> str:
    """For a file's name: 2-cpu-amd-epyc."""
    model = re.sub(r"\(.*?\)|@.*|\d+-core|processor|cpu", " ", description["cpu"].lower())
    return "-".join([f"{description['cpus']}-cpu", *re.findall(r"[a-z0-9]+", model)])


def commit() -> str:
    """Of the working tree, -dirty if it differs."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True, text=True,
    )
    return done.stdout.strip() or "unknown"


@dataclass(frozen=True)
class CpuTicks:
    """Some CPUs' time since boot, in seconds; proc_stat(5)."""

    busy: float
    stolen: float

    @classmethod
    def now(cls, cpus: list[int]) -> "CpuTicks":
        return cls.parse(Path("/proc/stat").read_text(), cpus, os.sysconf("SC_CLK_TCK"))

    @classmethod
    def parse(cls, text: str, cpus: list[int], hertz: int) -> "CpuTicks":
        busy = stolen = 0
        for cpu in cpus:
            fields = re.search(rf"^cpu{cpu} (.+)$", text, re.M).group(1).split()
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
        return cls(busy / hertz, stolen / hertz)
