"""What `up` prints: one JSON line for programs, a short page for people."""

from __future__ import annotations

import json
from collections.abc import Mapping


def as_json(said: Mapping[str, object]) -> str:
    """Exactly one line."""
    return json.dumps(said)


def as_text(said: Mapping[str, object], combiners: list[Mapping[str, object]]) -> str:
    """Addresses, where the data is, and what to do next."""
    lines = ["Studio is serving.", "", f"  Pages      {said['web']}/"]
    for entry in combiners:
        where = [f"{entry['tls']} (TLS)"] if entry.get("tls") else []
        where += [f"{entry['combiner']} (plain text)"] if entry.get("combiner") else []
        lines.append(f"  {'Combiner' if len(combiners) == 1 else entry['name']!s:<10} {', '.join(where)}")
    lines += [
        f"  Data       {said['data']}",
        f"  Logs       {said['data']}/logs",
        "",
        f"Sign up at {said['web']}/accounts/signup/",
        f"An administrator: STUDIO_DATA={said['data']} .venv/bin/python manage.py createsuperuser",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)
