"""Thousands of clients that are only connected: what each costs, and how soon a task reaches one of them, or all.

python -m tests.bench.idle --clients 5000 --json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from datetime import datetime
from typing import Any

from tests.bench import stack
from tests.bench.federation import swarm
from tests.bench.stack import Stack

WATCHED_S = 10.0
SINGLE_TASKS = 10


def measure(clients: int) -> dict[str, Any]:
    with stack.running() as studio:
        model = studio.seed(0.01)
        before = studio.watch.now()["combiner"][0]
        with swarm(studio, clients, "--idle") as said:
            settled = studio.watch.now()["combiner"]
            time.sleep(WATCHED_S)
            idle = studio.watch.now()["combiner"]
            ids = [row["id"] for row in studio.api.clients(studio.slug)]
            delays = [
                _first_task_s(studio, model, client_ids=[pk], min_clients=1)
                for pk in random.Random(7).sample(ids, SINGLE_TASKS)
            ]
            began = time.monotonic()
            all_s = _all_tasks_s(studio, model, clients)
            took = time.monotonic() - began
        return {
            "clients": clients,
            "connecting_s": said["seconds"],
            "combiner_kb_a_client": round((idle[0] - before) / clients / 1000, 1),
            "combiner_mb": round(idle[0] / 1e6, 1),
            "idle_cpu_share": round((idle[1] - settled[1]) / WATCHED_S, 4),
            "task_to_one_s": {"median": round(statistics.median(delays), 4), "max": round(max(delays), 4)},
            "tasks_to_all_s": round(all_s, 3),
            "until_all_delivered_s": round(took, 3),
        }


def _first_task_s(studio: Stack, model: str, **settings: Any) -> float:
    """From the row of the assignment to the client's confirmation, as the rows tell; the session is stopped then."""
    session = studio.api.create_session(studio.slug, seed_model=model, rounds=1, validate=False, **settings)
    try:
        return max(_delivered(studio, session["id"], 1))
    finally:
        studio.api.stop_session(studio.slug, session["id"])


def _all_tasks_s(studio: Stack, model: str, clients: int) -> float:
    session = studio.api.create_session(
        studio.slug, seed_model=model, rounds=1, validate=False, min_clients=clients
    )
    try:
        return max(_delivered(studio, session["id"], clients))
    finally:
        studio.api.stop_session(studio.slug, session["id"])


def _delivered(studio: Stack, session_id: str, count: int) -> list[float]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        rows = list(studio.api.assignments(studio.slug, session_id))
        waits = [_seconds(row["created_at"], row["delivered_at"]) for row in rows if row["delivered_at"]]
        if len(waits) >= count:
            return waits
        time.sleep(0.1 if count == 1 else 2.0)
    raise SystemExit(f"a task did not reach its client: {len(waits)} of {count} in two minutes")


def _seconds(one: str, other: str) -> float:
    return (datetime.fromisoformat(other) - datetime.fromisoformat(one)).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.clients)
    print(json.dumps(result) if options.json else "\n".join(f"{k:<24}{v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
