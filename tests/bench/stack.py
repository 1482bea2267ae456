"""A whole Studio for a benchmark: `manage.py up` in a directory of its own; memory and processor time watched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from studio_sdk.api import StudioApi
from studio_sdk.parameters import save_parameters

ROOT = Path(__file__).resolve().parents[2]
TENSORS = 8
MEMORY_EVERY_S = 0.05
PROCESSES_EVERY_S = 1.0
PASSWORD = "a-long-bench-password-1"
ROLES = (
    ("combiner", "manage.py combiner"),
    ("worker", " worker"),
    ("beat", " beat"),
    ("web", "uvicorn"),
    ("redis", "valkey-server"),
    ("redis", "redis-server"),
)


def role_of(command: list[str]) -> str:
    text = " ".join(command)
    return next((role for role, mark in ROLES if mark in text), "other")


class Watch(threading.Thread):
    """Resident memory (bytes, peak) and processor time (seconds) of each server process; children with their parent.

    It shares the processors with what it watches, so who is there is looked up once a second, and only memory often.
    """

    def __init__(self, up_pid: int) -> None:
        super().__init__(daemon=True)
        self.up = psutil.Process(up_pid)
        self.swarms: list[subprocess.Popen[str]] = []
        self.start_over()
        self.done = threading.Event()

    def start_over(self) -> None:
        self.peak: dict[str, int] = {}
        self.together = 0

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """Those that run now, each with its role."""
        found = []
        for swarm in list(self.swarms):
            with suppress(psutil.Error):  # it has just ended
                found.append(("clients", psutil.Process(swarm.pid)))
        for child in self.up.children(recursive=True):
            with suppress(psutil.Error):
                found.append((role_of(child.cmdline()), child))
        return found

    def now(self) -> dict[str, tuple[int, float]]:
        """Resident bytes, and seconds of processor time so far, by role."""
        found: dict[str, tuple[int, float]] = {}
        for role, process in self.processes():
            with suppress(psutil.Error):
                rss, cpu = found.get(role, (0, 0.0))
                times = process.cpu_times()
                found[role] = (rss + process.memory_info().rss, cpu + times.user + times.system)
        return found

    def run(self) -> None:
        processes, looked_at = self.processes(), time.monotonic()
        while not self.done.wait(MEMORY_EVERY_S):
            if time.monotonic() - looked_at > PROCESSES_EVERY_S:
                processes, looked_at = self.processes(), time.monotonic()
            seen: dict[str, int] = {}
            for role, process in processes:
                with suppress(psutil.Error):
                    seen[role] = seen.get(role, 0) + process.memory_info().rss
            self.together = max(self.together, sum(rss for role, rss in seen.items() if role != "clients"))
            for role, rss in seen.items():
                self.peak[role] = max(self.peak.get(role, 0), rss)


@dataclass
class Stack:
    """A running Studio with one project."""

    folder: Path
    data: Path
    web: str
    combiner: str
    api: StudioApi
    slug: str
    watch: Watch

    @property
    def swarms(self) -> list[subprocess.Popen[str]]:
        return self.watch.swarms

    def seed(self, model_mb: float) -> str:
        """Upload a random model of so many 10^6 bytes of float32; its id."""
        size = max(1, int(model_mb * 1e6 / 4 / TENSORS))
        rng = np.random.default_rng(1)
        path = self.folder / "seed.safetensors"
        save_parameters({str(i): rng.standard_normal(size, np.float32) for i in range(TENSORS)}, path)
        model: str = self.api.upload_model(self.slug, path, name=f"seed {model_mb:g} MB")["id"]
        path.unlink()
        return model

    def tokens(self, count: int) -> list[str]:
        """So many new clients, made in the database."""
        made = subprocess.run(
            [sys.executable, "-m", "tests.bench.fleet", self.slug, str(count)],
            cwd=ROOT, env=self.environ(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        return made.stdout.split()

    def environ(self) -> dict[str, str]:
        return clean_environ() | {"STUDIO_DATA": str(self.data)}

    def wait(self, session_id: str, timeout_s: float = 600) -> dict[str, Any]:
        """Until the session has ended; raises SystemExit unless it finished."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            row: dict[str, Any] = self.api.session(self.slug, session_id)
            if row["status"] in ("finished", "failed", "stopped"):
                if row["status"] != "finished":
                    raise SystemExit(f"the session {row['status']}: {row['reason']}")
                return row
            time.sleep(0.5)
        raise SystemExit("the session did not end in time")


def clean_environ() -> dict[str, str]:
    """This process's environment, with another database only when `BENCH_DATABASE_URL` names one."""
    kept = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "REDIS_URL")}
    if "BENCH_DATABASE_URL" in os.environ:
        kept["DATABASE_URL"] = os.environ["BENCH_DATABASE_URL"]
    return kept


@contextmanager
def running(*arguments: str) -> Iterator[Stack]:
    """`manage.py up` with these further arguments, and a project to measure in. Only what it started is ended, also
    when this process is asked to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as name:
        folder = Path(name)
        data = folder / "data"
        up = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--data", str(data), "--port", "0", "--combiner-port", "0",
             "--json", *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environ(),
        )  # fmt: skip
        assert up.stdout is not None and up.stderr is not None
        line = up.stdout.readline()
        if not line:
            raise SystemExit(f"manage.py up did not start:\n{up.stderr.read()}")
        address = json.loads(line)
        watch = Watch(up.pid)
        watch.start()
        try:
            api = StudioApi(address["web"])
            api.sign_up("bench", "bench@example.org", PASSWORD)
            api = StudioApi(address["web"], api.log_in("bench", PASSWORD, "bench")["token"])
            slug = api.create_project("Bench")["slug"]
            yield Stack(folder, data, address["web"], address["combiner"], api, slug, watch)
        finally:
            watch.done.set()
            for swarm in watch.swarms:
                swarm.terminate()
            up.send_signal(signal.SIGTERM)
            for process in (*watch.swarms, up):
                process.wait(60)
