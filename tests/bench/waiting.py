"""What waiting sessions cost the others: the round time of a small session alone, and beside a thousand that wait.

    python -m tests.bench.waiting --waiting 1000 --rounds 40 --repeat 3 --json

All of it in one running Studio, alone and beside in turns, so that a slow moment of the machine meets both. The waiting
sessions are rows, as they are once they have waited for five minutes: of the same project as the one that is measured,
each due within the next five minutes, wanting more clients than there are. Prints one JSON line with `--json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from tests.bench import stack
from tests.bench.federation import seconds_between, swarm
from tests.bench.stack import ROOT, Stack

WAITED_S = 300.0


def measure(waiting: int, clients: int, model_mb: float, rounds: int, repeat: int) -> dict[str, Any]:
    """Medians over the rounds of `repeat` sessions each way."""
    times: dict[str, list[float]] = {"alone": [], "beside": []}
    cpu: dict[str, list[float]] = {"alone": [], "beside": []}
    with stack.running() as studio:
        model = studio.seed(model_mb)
        with swarm(studio, clients):
            one_session(studio, model, clients, 5)  # warm-up
            for turn in range(2 * repeat):
                way = "beside" if turn % 2 else "alone"
                rows(studio, waiting if way == "beside" else 0)
                before = studio.watch.now()["worker"][1]
                times[way] += one_session(studio, model, clients, rounds)
                cpu[way].append((studio.watch.now()["worker"][1] - before) / rounds)
    alone, beside = (statistics.median(times[way]) for way in ("alone", "beside"))
    return {
        "waiting": waiting, "clients": clients, "model_mb": model_mb, "rounds": rounds * repeat,
        "alone_s": round(alone, 5), "beside_s": round(beside, 5),
        "added_percent": round(100 * (beside / alone - 1), 2),
        "worker_cpu_s_a_round": {way: round(statistics.median(found), 5) for way, found in cpu.items()},
    }  # fmt: skip


def one_session(studio: Stack, model: str, clients: int, rounds: int) -> list[float]:
    """Seconds of each round but the first."""
    session = studio.api.create_session(
        studio.slug, seed_model=model, rounds=rounds, min_clients=clients, validate=False, round_timeout_s=600,
        client_settings={},
    )  # fmt: skip
    studio.wait(session["id"])
    found = sorted(studio.api.rounds(studio.slug, session["id"]), key=lambda row: row["number"])
    starts = [row["created_at"] for row in found] + [found[-1]["ended_at"]]
    return [seconds_between(a, b) for a, b in itertools.pairwise(starts)][1:]


def rows(studio: Stack, count: int) -> None:
    """So many sessions of the project wait, and no others."""
    subprocess.run(
        [sys.executable, "-m", "tests.bench.waiting", "--rows", studio.slug, "--waiting", str(count)],
        cwd=ROOT, env=studio.environ(), check=True,
    )  # fmt: skip


def write_rows(slug: str, count: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "studio.settings")
    import django

    django.setup()
    import datetime as dt

    from django.utils import timezone

    from federation.models.models import Model
    from federation.sessions.config import parse_spec
    from federation.sessions.models import Session
    from projects.models import Project

    project = Project.objects.get(slug=slug)
    Session.objects.filter(project=project, name__startswith="waiting-").delete()
    seed = Model.objects.filter(project=project, session=None).latest("id")
    spec = parse_spec({"seed_model": seed.pk, "min_clients": 1000, "start_timeout_s": 7200})
    now = timezone.now()
    Session.objects.bulk_create(
        [
            Session(
                project=project, name=f"waiting-{n}", config=spec.config.to_json(), seed_model=seed,
                current_model=seed, rounds_wanted=1, status="running", sought_at=now,
                waiting_for="998 more clients to come online (2 of 1000 are)",
                waiting_until=now + dt.timedelta(seconds=7200 - WAITED_S),
                look_at=now + dt.timedelta(seconds=WAITED_S * (n + 1) / count),
            )
            for n in range(count)
        ],
        batch_size=500,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--waiting", type=int, default=1000, help="sessions that wait for clients")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--model-mb", type=float, default=1.0, help="10^6 bytes of float32, in 8 tensors")
    parser.add_argument("--rounds", type=int, default=40, help="of each session; the first is warm-up")
    parser.add_argument("--repeat", type=int, default=3, help="sessions each way")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", metavar="SLUG", help=argparse.SUPPRESS)  # the part that runs on the rows
    options = parser.parse_args()
    if options.rows:
        write_rows(options.rows, options.waiting)
        return
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: the first is warm-up")
    result = measure(options.waiting, options.clients, options.model_mb, options.rounds, options.repeat)
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.clients} clients x {options.model_mb:g} MB, {result['rounds']} rounds each way")
    print(f"  alone                {1000 * result['alone_s']:.1f} ms a round")
    print(f"  beside {options.waiting:>5} waiting {1000 * result['beside_s']:.1f} ms a round")
    print(f"  added                {result['added_percent']} %")


if __name__ == "__main__":
    main()
