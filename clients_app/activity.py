"""What one client did: its work, and its telemetry as pages draw it."""

from __future__ import annotations

from typing import Any

from clients_app.models import Client
from federation.events.models import Telemetry

SERIES_POINTS = 500
SERIES = 12


def work_of(client: Client, limit: int = 30) -> list[Any]:
    """The newest assignments of the client, with their round and session; training metadata is on them."""
    return list(
        client.assignments.select_related("round", "round__session")
        .defer("round__session__config")
        .order_by("-id")[:limit]
    )


def telemetry_charts(client: Client) -> dict[str, list[tuple[str, list[tuple[float, float]]]]]:
    """The newest samples of each series: `{name: [(client, [(unix seconds, value), …])]}`."""
    rows = Telemetry.objects.filter(client=client)
    names = sorted(set(rows.order_by("-id").values_list("name", flat=True)[:SERIES_POINTS]))[:SERIES]
    charts = {}
    for name in names:
        newest = rows.filter(name=name).order_by("-at").values_list("at", "value")[:SERIES_POINTS]
        charts[name] = [(client.name, [(at.timestamp(), value) for at, value in reversed(newest)])]
    return charts
