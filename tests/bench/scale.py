"""How cost grows: clients, model size, combiners, sessions at once. Writes a table and a chart into the docs.

    python -m tests.bench.scale                    prints JSON lines, then the table
    python -m tests.bench.scale --write            and writes docs/scale-measured.md and docs/scale.svg
    python -m tests.bench.scale --only sessions    one of: clients, model, combiners, sessions, idle

Lean echo clients (tests/bench/swarm.py) share the machine with the server, so every figure holds both. Nothing here
leaves loopback. A whole pass takes some ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import chart, idle, limits, stack
from tests.bench.federation import run_rounds, swarm

DOCS = stack.ROOT / "docs"
FULL = 0.85  # a share of something from which on it is called used up


@dataclass(frozen=True)
class Point:
    axis: str
    clients: int
    model_mb: float
    rounds: int
    combiners: int = 1
    sessions: int = 1
    connected: int = 0


POINTS = (
    *(Point("clients", n, 1.0, 40 if n < 50 else 4) for n in (2, 10, 50, 200)),
    Point("clients", 200, 1.0, 4, connected=1000),
    Point("clients", 1000, 1.0, 3),
    Point("clients", 5000, 0.1, 3),
    *(Point("model", 10, mb, 40 if mb <= 1 else 5) for mb in (0.1, 1.0, 10.0, 50.0)),
    Point("model", 2, 500.0, 5),
    *(Point("combiners", 40, 5.0, 5, combiners=n) for n in (1, 2, 4)),
    *(Point("sessions", 10, 0.1, 6 if n < 100 else 3, sessions=n) for n in (1, 10, 100)),
)


def measured(points: tuple[Point, ...]) -> Iterator[dict[str, Any]]:
    """A Studio of its own for each axis and number of combiners: what served thousands keeps some of their memory."""
    for axis, combiners in dict.fromkeys((point.axis, point.combiners) for point in points):
        with stack.running("--combiners", str(combiners)) as studio:
            for point in points:
                if (point.axis, point.combiners) != (axis, combiners):
                    continue
                connected = max(point.clients, point.connected)
                with swarm(studio, connected):
                    found = run_rounds(
                        studio, point.clients, point.model_mb, point.rounds, sessions=point.sessions
                    )
                yield {"axis": point.axis, "connected": connected, "combiners": combiners, **found}


def saturated(found: dict[str, Any], speeds: dict[str, float], cores: int) -> str:
    """What was used up first, in words; empty: nothing was, the round waited for its own steps one after another."""
    share = found["cpu_share"]
    if sum(share.values()) >= FULL * cores:
        server = sum(value for role, value in share.items() if role != "clients")
        return f"all {cores} cores ({server / sum(share.values()):.0%} of them by the server)"
    for role, value in share.items():
        if value >= FULL * (found["combiners"] if role == "combiner" else 1):
            return f"one core, by the {role}"
    if found["moved_mb_per_s"] >= FULL * speeds["grpc_aio_mb_per_s"]:
        return "what one gRPC stream can carry"
    if found["moved_mb_per_s"] / 2 >= FULL * speeds["disk_mb_per_s"]:
        return "the disk"
    return ""


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "memory_gb": round(memory / 1e9, 1),
        "python": platform.python_version(),
        "on": datetime.now(UTC).date().isoformat(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def table(
    facts: dict[str, Any], speeds: dict[str, float], rows: list[dict[str, Any]], idling: dict[str, Any]
) -> str:
    """The page that docs/scale.md refers to."""
    lines = [
        "<!-- made by `python -m tests.bench.scale --write`; do not edit -->",
        "# Scale, as measured",
        "",
        f"{facts['cores']} cores ({facts['processor']}), {facts['memory_gb']} GB, Python {facts['python']}, "
        f"{facts['on']}; load {facts['load_before']} from other work when it began. Server and clients share the "
        "machine; the database is SQLite, storage a folder.",
        "",
        "This machine alone, in MB/s: "
        + ", ".join(
            f"{key.removesuffix('_mb_per_s').replace('_', ' ')} {value:,.0f}" for key, value in speeds.items()
        )
        + ".",
        "",
        "![Seconds of a round over the megabytes that it moves](scale.svg)",
        "",
        "| clients | connected | model MB | combiners | sessions | s a round | MB/s | of gRPC's limit | combiner MB "
        "| server CPU s a round | rounds/s | used up |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        server = sum(value for role, value in row["cpu_s_a_round"].items() if role != "clients")
        lines.append(
            f"| {row['clients']} | {row['connected']} | {row['model_mb']:g} | {row['combiners']} | {row['sessions']} "
            f"| {row['round_s']['median']:.3f} | {row['moved_mb_per_s']:.0f} "
            f"| {row['moved_mb_per_s'] / speeds['grpc_aio_mb_per_s']:.0%} | {row['peak_rss_mb']['combiner']:.0f} "
            f"| {server:.3f} | {row['rounds_per_s']:.2f} | {saturated(row, speeds, facts['cores']) or '–'} |"
        )
    if idling:
        lines += [
            "",
            f"**{idling['clients']:,} connected clients that are idle**: {idling['combiner_kb_a_client']} kB each in "
            f"the combiner ({idling['combiner_mb']:.0f} MB in all), {idling['idle_cpu_share']:.1%} of a core; a task "
            f"reaches one of them in {idling['task_to_one_s']['median'] * 1000:.0f} ms "
            f"({idling['task_to_one_s']['max'] * 1000:.0f} ms at most), all of them in "
            f"{idling['tasks_to_all_s']:.1f} s.",
        ]
    return "\n".join([*lines, ""])


def picture(speeds: dict[str, float], rows: list[dict[str, Any]]) -> str:
    names = {"clients": "more clients", "model": "larger models", "combiners": "more combiners"}
    lines = [
        chart.Line(name, sorted((r["moved_mb"], r["round_s"]["median"]) for r in rows if r["axis"] == axis))
        for axis, name in names.items()
        if any(row["axis"] == axis for row in rows)
    ]
    least, most = min(r["moved_mb"] for r in rows), max(r["moved_mb"] for r in rows)
    for name, key in (("gRPC alone", "grpc_aio"), ("TCP alone", "tcp")):
        speed = speeds[f"{key}_mb_per_s"]
        lines.append(chart.Line(name, [(least, least / speed), (most, most / speed)], dashed=True))
    return chart.svg("A round", "MB moved in a round, down and up", "seconds", lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["clients", "model", "combiners", "sessions", "idle"])
    parser.add_argument("--write", action="store_true", help="write the docs")
    options = parser.parse_args()
    facts, speeds = machine(), limits.measured()
    print(json.dumps({"machine": facts, "limits": speeds}), flush=True)
    rows = []
    for row in measured(tuple(p for p in POINTS if options.only in (None, p.axis))):
        rows.append(row)
        print(json.dumps(row), flush=True)
    idling = idle.measure(5000) if options.only in (None, "idle") else {}
    if idling:
        print(json.dumps({"idle": idling}), flush=True)
    page = table(facts, speeds, rows, idling)
    print(page)
    if options.write:
        (DOCS / "scale-measured.md").write_text(page)
        (DOCS / "scale.svg").write_text(picture(speeds, rows))


if __name__ == "__main__":
    main()
