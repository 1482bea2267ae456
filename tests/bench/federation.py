"""How long a round takes, through everything: `manage.py up`, gRPC, spool, database, worker.

    python -m tests.bench.federation --clients 2 --model-mb 1 --rounds 20 --json

N clients run beside it and only send back what they received. `--echo lean` (the default): as little as a client can do
(tests/bench/swarm.py), which measures the server; `--echo sdk`: our own client with its files and checksums, in one
process. Figures are over the rounds after the first. Prints one JSON line with `--json`, else a few lines for people.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
from studio_sdk.client.config import ClientConfig
from studio_sdk.client.federated import FederatedClient

from tests.bench import limits, stack
from tests.bench.stack import ROOT, Stack


def echo(arrays: dict[str, Any], settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A new model of the same size: one addition a tensor."""
    return {name: value + np.float32(1e-3) for name, value in arrays.items()}, {"num_examples": 1}


@contextmanager
def sdk_clients(studio: Stack, count: int) -> Iterator[None]:
    """So many of our own clients, as threads of this process."""
    runners: list[FederatedClient] = []
    try:
        for number in range(count):
            config = ClientConfig.of(studio.api.create_client(studio.slug, f"sdk-{number}")["config"])
            client = FederatedClient(
                config, work_dir=studio.folder / f"client-{number}", say=lambda _text: None
            ).set_train(echo)
            runners.append(client)
            threading.Thread(target=client.run, daemon=True).start()
        yield
    finally:
        for client in runners:
            client.stop()


@contextmanager
def swarm(studio: Stack, count: int, *arguments: str) -> Iterator[dict[str, Any]]:
    """So many lean clients in a process for each combiner; what they say once all are connected, and at their end."""
    targets = [row["address"] for row in studio.api.combiners(studio.slug)]
    tokens = studio.tokens(count)
    processes = []
    for number, target in enumerate(targets):
        path = studio.folder / f"tokens-{number}.txt"
        path.write_text("\n".join(tokens[number :: len(targets)]))
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.swarm", "--target", target, "--tokens", str(path), *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        studio.swarms.append(process)
        processes.append(process)
    told: dict[str, Any] = {"seconds": 0.0, "refused": []}
    for process in processes:
        told["seconds"] = max(told["seconds"], _told(process)["seconds"])
    yield told
    for process in processes:
        process.terminate()
        told["refused"] += _told(process)["refused"]
        process.wait(60)
        studio.swarms.remove(process)


def _told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("the clients of a benchmark ended early")
    said: dict[str, Any] = json.loads(line)
    return said


def measure(
    clients: int,
    model_mb: float,
    rounds: int,
    *,
    lean: bool = True,
    connected: int = 0,
    combiners: int = 1,
    lane: bool = True,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Rounds of a session in which `clients` take part, of `connected` that are there (as many, unless said)."""
    with stack.running("--combiners", str(combiners)) as studio:
        everybody = max(clients, connected)
        with (
            swarm(studio, everybody, *([] if lane else ["--no-lane"]))
            if lean
            else sdk_clients(studio, everybody)
        ):
            found = run_rounds(studio, clients, model_mb, rounds, settings=settings)
        return found | {
            "connected": everybody,
            "combiners": combiners,
            "echo": "lean" if lean else "sdk",
            "lane": lane,
        }


def run_rounds(
    studio: Stack,
    clients: int,
    model_mb: float,
    rounds: int,
    *,
    sessions: int = 1,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """So many sessions at once, with the clients that are connected. Seconds of a round are those of its session."""
    model = studio.seed(model_mb)
    studio.watch.start_over()
    before, began = studio.watch.now(), time.monotonic()
    asked = [
        studio.api.create_session(
            studio.slug, seed_model=model, rounds=rounds, min_clients=clients, requested_clients=clients,
            validate=False, round_timeout_s=600, client_settings={}, **(settings or {}),
        )["id"]
        for _ in range(sessions)
    ]  # fmt: skip
    for session in asked:
        studio.wait(session)
    took, after = time.monotonic() - began, studio.watch.now()
    rows = [
        sorted(studio.api.rounds(studio.slug, session), key=lambda row: row["number"]) for session in asked
    ]
    found = report(rows)
    cpu = {role: after[role][1] - before[role][1] for role in before if role in after}
    moved_mb = 2 * clients * model_mb
    return {
        "clients": clients, "model_mb": model_mb, "rounds": rounds, "sessions": sessions, **found,
        "rounds_per_s": round(rounds * sessions / took, 3),
        "cpu_s_a_round": {role: round(s / rounds / sessions, 4) for role, s in sorted(cpu.items())},
        "cpu_share": {role: round(s / took, 3) for role, s in sorted(cpu.items())},
        "peak_rss_mb": {role: round(rss / 1e6, 1) for role, rss in sorted(studio.watch.peak.items())},
        "together_mb": round(studio.watch.together / 1e6, 1),
        "moved_mb": round(moved_mb, 3),
        "moved_mb_per_s": round(moved_mb / found["round_s"]["median"], 1),
    }  # fmt: skip


def seconds_between(one: str, other: str) -> float:
    return (datetime.fromisoformat(other) - datetime.fromisoformat(one)).total_seconds()


def report(sessions: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """A round lasts from its start to the start of the next; the last one to its end. The first is warm-up."""
    times: list[float] = []
    for rows in sessions:
        starts = [row["created_at"] for row in rows] + [rows[-1]["ended_at"]]
        times += [seconds_between(a, b) for a, b in itertools.pairwise(starts)][1:]
    later = [row for rows in sessions for row in rows[1:]]
    parts = {
        name: round(statistics.median(row["timings"].get(name, 0.0) for row in later), 4)
        for name in ("training_s", "closing_s", "reducing_s")
    }
    return {
        "round_s": {"min": min(times), "median": statistics.median(times), "max": max(times)},
        "parts_s": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument(
        "--connected", type=int, default=0, help="clients that are there (default: --clients)"
    )
    parser.add_argument("--model-mb", type=float, default=1.0, help="10^6 bytes of float32, in 8 tensors")
    parser.add_argument("--rounds", type=int, default=10, help="the first is warm-up")
    parser.add_argument("--echo", choices=["lean", "sdk"], default="lean")
    parser.add_argument("--combiners", type=int, default=1)
    parser.add_argument("--no-lane", action="store_true", help="lean clients move models over gRPC")
    parser.add_argument("--limits", action="store_true", help="measure too how fast this machine could go")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: the first is warm-up")
    began = time.monotonic()
    result = measure(
        options.clients, options.model_mb, options.rounds, lean=options.echo == "lean",
        connected=options.connected, combiners=options.combiners, lane=not options.no_lane,
    )  # fmt: skip
    if options.limits:
        result["limits"] = limits.for_round(result)
    result["took_s"] = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps(result))
        return
    times = result["round_s"]
    print(f"{options.clients} clients x {options.model_mb:g} MB, {options.rounds} rounds")
    print(f"  a round    {times['median']:.3f} s  ({times['min']:.3f} to {times['max']:.3f})")
    print(f"  moved      {result['moved_mb_per_s']} MB/s")
    for role, rss in result["peak_rss_mb"].items():
        print(
            f"  {role:<10} {rss} MB at most, {result['cpu_s_a_round'].get(role, 0.0):.3f} s of processor a round"
        )
    for name, share in result.get("limits", {}).items():
        print(f"  {name:<24} {share}")


if __name__ == "__main__":
    main()
