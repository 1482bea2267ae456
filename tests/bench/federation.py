"""How long a round takes, through everything: `manage.py up`, gRPC, spool, database, worker.

    python -m tests.bench.federation --clients 2 --model-mb 1 --rounds 20 --json

N clients run in this process and only send back what they received (shifted, so that it is a new model). Figures are
over the rounds after the first. Prints one JSON line with `--json`, else a few lines for people.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from studio_sdk.api import StudioApi
from studio_sdk.client.config import ClientConfig
from studio_sdk.client.federated import FederatedClient
from studio_sdk.parameters import save_parameters

ROOT = Path(__file__).resolve().parents[2]
TENSORS = 8
PASSWORD = "a-long-bench-password-1"


class PeakMemory(threading.Thread):
    """Peak resident memory (bytes) of each server process, sampled; children count with their parent."""

    def __init__(self, up_pid: int) -> None:
        super().__init__(daemon=True)
        self.up = psutil.Process(up_pid)
        self.peak: dict[str, int] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            now: dict[str, int] = {}
            for child in self.up.children(recursive=True):
                try:
                    role = role_of(child.cmdline())
                    now[role] = now.get(role, 0) + child.memory_info().rss
                except psutil.Error:
                    continue
            for role, rss in now.items():
                self.peak[role] = max(self.peak.get(role, 0), rss)


def role_of(command: list[str]) -> str:
    text = " ".join(command)
    for role, mark in (
        ("combiner", "manage.py combiner"),
        ("worker", " worker"),
        ("beat", " beat"),
        ("web", "uvicorn"),
        ("redis", "valkey-server"),
        ("redis", "redis-server"),
    ):
        if mark in text:
            return role
    return "other"


def start_up(data: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen(
        [
            sys.executable,
            "manage.py",
            "up",
            "--data",
            str(data),
            "--port",
            "0",
            "--combiner-port",
            "0",
            "--json",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "REDIS_URL")}
        | {key: os.environ[f"BENCH_{key}"] for key in ("DATABASE_URL",) if f"BENCH_{key}" in os.environ},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"manage.py up did not start:\n{process.stderr.read() if process.stderr else ''}")
    return process, json.loads(line)


def echo(arrays: dict[str, Any], settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A new model of the same size: one addition a tensor."""
    return {name: value + np.float32(1e-3) for name, value in arrays.items()}, {"num_examples": 1}


def measure(clients: int, model_mb: float, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="studio-bench-") as folder:
        base = Path(folder)
        up, address = start_up(base / "data")
        memory = PeakMemory(up.pid)
        memory.start()
        runners: list[FederatedClient] = []
        try:
            api, slug = a_project(address["web"])
            size = max(1, int(model_mb * 1e6 / 4 / TENSORS))
            seed = base / "seed.npz"
            rng = np.random.default_rng(1)
            save_parameters({str(i): rng.standard_normal(size, np.float32) for i in range(TENSORS)}, seed)
            model = api.upload_model(slug, seed, name="seed")
            for number in range(clients):
                made = api.create_client(slug, f"echo-{number}")
                config = ClientConfig.of(made["config"])
                client = FederatedClient(config, work_dir=base / f"client-{number}", say=lambda _text: None)
                client.set_train(echo)
                runners.append(client)
                threading.Thread(target=client.run, daemon=True).start()
            session = api.create_session(
                slug,
                seed_model=model["id"],
                rounds=rounds,
                min_clients=clients,
                validate=False,
                round_timeout_s=600,
                client_settings={},
            )
            wait_for(api, slug, session["id"])
            rows = sorted(api.rounds(slug, session["id"]), key=lambda row: row["number"])
        finally:
            memory.done.set()
            for client in runners:
                client.stop()
            up.send_signal(signal.SIGTERM)
            up.wait(30)
        return report(rows, memory.peak, clients, model_mb)


def a_project(web: str) -> tuple[StudioApi, str]:
    api = StudioApi(web)
    api.sign_up("bench", "bench@example.org", PASSWORD)
    api = StudioApi(web, api.log_in("bench", PASSWORD, "bench")["token"])
    return api, api.create_project("Bench")["slug"]


def wait_for(api: StudioApi, slug: str, session_id: str) -> None:
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        row = api.session(slug, session_id)
        if row["status"] in ("finished", "failed", "stopped"):
            if row["status"] != "finished":
                raise SystemExit(f"the session {row['status']}: {row['reason']}")
            return
        time.sleep(0.25)
    raise SystemExit("the session did not end in time")


def seconds_between(one: str, other: str) -> float:
    return (datetime.fromisoformat(other) - datetime.fromisoformat(one)).total_seconds()


def report(rows: list[dict[str, Any]], peak: dict[str, int], clients: int, model_mb: float) -> dict[str, Any]:
    """A round lasts from its start to the start of the next; the last one to its end. The first is warm-up."""
    starts = [row["created_at"] for row in rows] + [rows[-1]["ended_at"]]
    times = [seconds_between(a, b) for a, b in itertools.pairwise(starts)][1:]
    median = statistics.median(times)
    parts: dict[str, float] = {}
    for name in ("training_s", "closing_s", "reducing_s"):
        parts[name] = round(statistics.median(row["timings"].get(name, 0.0) for row in rows[1:]), 4)
    return {
        "clients": clients,
        "model_mb": model_mb,
        "rounds": len(rows),
        "round_s": {"min": min(times), "median": median, "max": max(times)},
        "parts_s": parts,
        "peak_rss_mb": {role: round(rss / 1e6, 1) for role, rss in sorted(peak.items())},
        "moved_mb_per_s": round(2 * clients * model_mb / median, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--model-mb", type=float, default=1.0, help="10^6 bytes of float32, in 8 tensors")
    parser.add_argument("--rounds", type=int, default=10, help="the first is warm-up")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: the first is warm-up")
    result = measure(options.clients, options.model_mb, options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    times = result["round_s"]
    print(f"{options.clients} clients x {options.model_mb:g} MB, {options.rounds} rounds")
    print(f"  a round    {times['median']:.3f} s  ({times['min']:.3f} to {times['max']:.3f})")
    print(f"  moved      {result['moved_mb_per_s']} MB/s")
    for role, rss in result["peak_rss_mb"].items():
        print(f"  {role:<10} {rss} MB at most")


if __name__ == "__main__":
    main()
