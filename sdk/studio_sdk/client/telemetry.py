"""How busy this machine is: what a person wants to see beside a slow client."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from pathlib import Path

INTERVAL_S = 15.0


class Telemetry:
    """Reads load since the last call. Values: cpu_percent and memory_percent of the machine, process_memory_mb."""

    def __init__(self) -> None:
        self._busy, self._total = _cpu_times()

    def read(self) -> dict[str, float]:
        """The values that this system offers."""
        busy, total = _cpu_times()
        passed = total - self._total
        values: dict[str, float] = {"process_memory_mb": round(_own_memory_mb(), 1)}
        if passed > 0:
            values["cpu_percent"] = round(100.0 * (busy - self._busy) / passed, 1)
        self._busy, self._total = busy, total
        with contextlib.suppress(OSError, ValueError, KeyError):
            values["memory_percent"] = round(_memory_percent(), 1)
        return values


def _cpu_times() -> tuple[float, float]:
    """(busy, total) seconds of all cores; where the system does not say, this process's share of one core."""
    try:
        fields = [float(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        total = sum(fields)
        return total - fields[3] - fields[4], total
    except (OSError, ValueError, IndexError):
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system, time.monotonic()


def _memory_percent() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    total = float(lines["MemTotal"].split()[0])
    return 100.0 * (total - float(lines["MemAvailable"].split()[0])) / total


def _own_memory_mb() -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
