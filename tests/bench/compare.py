"""Two checkouts or more, measured in turns: `python -m tests.bench.compare before=../before after=. --clients 2`.

A host that others use too changes its speed by half within minutes, so figures taken one after the other say little
about the code. Here each checkout has a whole Studio that waits while another is measured; what counts is the ratio of
neighbours in time. One JSON line; a checkout is a folder with its `.venv`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


class Side:
    """One checkout, with its Studio and its clients."""

    def __init__(self, name: str, folder: Path, arguments: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [str(folder / ".venv/bin/python"), str(Path(__file__).resolve()), "--side", *arguments],
            cwd=folder, env=os.environ | {"PYTHONPATH": f"{folder}:{folder / 'sdk'}"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.found: list[dict[str, Any]] = []

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early")
        told: dict[str, Any] = json.loads(line)
        return told

    def measure(self) -> None:
        self.say("again")
        self.found.append(self.hear())

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def report(self, first: Side) -> dict[str, Any]:
        rounds = [found["round_s"]["median"] for found in self.found]
        base = [found["round_s"]["median"] for found in first.found]
        cpu = [sum(found["cpu_s_a_round"].values()) for found in self.found]
        return {
            "name": self.name,
            "round_s": {"min": min(rounds), "median": statistics.median(rounds), "max": max(rounds)},
            "cpu_s_a_round": round(statistics.median(cpu), 4),
            "ratio_to_first": round(statistics.median(a / b for a, b in zip(rounds, base, strict=True)), 3),
        }


def side(clients: int, model_mb: float, rounds: int) -> None:
    """Runs in a checkout, with its code."""
    from tests.bench import federation, stack

    with stack.running() as studio, federation.swarm(studio, clients):
        print(json.dumps({"ready": True}), flush=True)
        while sys.stdin.readline().strip() == "again":
            print(json.dumps(federation.run_rounds(studio, clients, model_mb, rounds)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--model-mb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=40, help="of a session; the first is warm-up")
    parser.add_argument("--times", type=int, default=6, help="sessions of each")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return side(options.clients, options.model_mb, options.rounds)
    named = [checkout.partition("=") for checkout in options.checkouts]
    if len(named) < 2 or not all(name and (Path(at) / ".venv/bin/python").exists() for name, _, at in named):
        parser.error("name two checkouts or more, such as before=../before after=.; each needs its .venv")
    arguments = ["--clients", options.clients, "--model-mb", options.model_mb, "--rounds", options.rounds]
    sides = [Side(name, Path(at).resolve(), [str(a) for a in arguments]) for name, _, at in named]
    try:
        for one in sides:
            one.hear()
        for turn in range(options.times):
            for one in sides if turn % 2 == 0 else sides[::-1]:
                one.measure()
        print(json.dumps({"clients": options.clients, "model_mb": options.model_mb,
                          "sides": [one.report(sides[0]) for one in sides]}))  # fmt: skip
    finally:
        for one in sides:
            with suppress(OSError):  # it has ended
                one.say("enough")
            one.process.wait(60)


if __name__ == "__main__":
    main()
