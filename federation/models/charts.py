"""Curves as pages draw them: for each metric its lines, each line a name and its (round, value) points."""

from __future__ import annotations

import uuid

from federation.models.models import Model
from federation.models.selectors import Point, curves, project_curves
from projects.models import Project

Chart = list[tuple[str, list[tuple[int, float]]]]
FIRST = ("accuracy", "loss")
MAX_CHARTS = 24


def _ordered(charts: dict[str, Chart]) -> dict[str, Chart]:
    """Accuracy and loss first: they are looked for first."""

    def place(name: str) -> tuple[int, str]:
        return next((i for i, word in enumerate(FIRST) if word in name.lower()), len(FIRST)), name

    return {name: charts[name] for name in sorted(charts, key=place)[:MAX_CHARTS]}


def _points(points: list[Point]) -> list[tuple[int, float]]:
    return [(point.round, point.value) for point in points]


def session_charts(session_id: uuid.UUID, name: str) -> dict[str, Chart]:
    """One line per metric: the weighted mean over clients."""
    return _ordered(
        {metric: [(name, _points(points))] for metric, points in curves(session_id=session_id).items()}
    )


def project_charts(project: Project, sessions: int = 5) -> dict[str, Chart]:
    """One line per metric and session, for the sessions that were measured last."""
    found = project_curves(project_id=project.pk, sessions=sessions)
    names = dict(
        Model.objects.filter(project=project, session__in=found)
        .values_list("session_id", "session__name")
        .distinct()
    )
    charts: dict[str, Chart] = {}
    for session_id, by_metric in found.items():
        for metric, points in by_metric.items():
            charts.setdefault(metric, []).append((names.get(session_id) or "session", _points(points)))
    return _ordered(charts)


def metric_columns(means: dict[uuid.UUID, dict[str, float]], limit: int = 4) -> list[str]:
    """The metrics that a table has room for."""
    seen: dict[str, Chart] = {name: [] for row in means.values() for name in row}
    return list(_ordered(seen))[:limit]
