"""How busy this combiner's process is, written with each renewal of its lease."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Traffic:
    """Bytes of models that arrived and left since the process started. Counted on the event loop only."""

    received_bytes: int = 0
    sent_bytes: int = 0


class LoadMeter:
    """Each `read` covers the time since the one before."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._at = time.monotonic()
        self._cpu_s = time.process_time()
        self._received, self._sent = traffic.received_bytes, traffic.sent_bytes

    def read(self, *, clients: int, uploads: int, queue: int) -> dict[str, Any]:
        """`cpu_percent` (of one core; more than 100 where several are busy), `rss_bytes`, `bytes_in_s` and
        `bytes_out_s` of models, and what the caller counted: connected clients, uploads in flight, and tasks and
        updates in line."""
        at, cpu_s = time.monotonic(), time.process_time()
        passed_s = max(at - self._at, 1e-3)
        received, sent = self._traffic.received_bytes, self._traffic.sent_bytes
        load = {
            "clients": clients,
            "cpu_percent": round(100 * (cpu_s - self._cpu_s) / passed_s, 1),
            "rss_bytes": rss_bytes(),
            "bytes_in_s": round((received - self._received) / passed_s),
            "bytes_out_s": round((sent - self._sent) / passed_s),
            "uploads": uploads,
            "queue": queue,
        }
        self._at, self._cpu_s, self._received, self._sent = at, cpu_s, received, sent
        return load


def rss_bytes() -> int:
    """Resident memory of this process now; where the system does not tell, the most it ever had."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
