"""What happens to a combiner, told to the projects whose training it touches."""

from __future__ import annotations

from typing import Any

from django.db.models import Q

from clients_app.models import Client, Combiner
from federation.events.services import publish
from projects.models import Project

# A combiner serves every project: on a large site only so many are told, and the operator sees the rest in its state.
MOST_PROJECTS = 200


def tell_projects(combiner: Combiner, kind: str, message: str, *, level: str = "info", **data: Any) -> None:
    """An event in every project that has a session running, or a client at this combiner, in the caller's
    transaction."""
    here = Client.objects.filter(combiner=combiner, connection_id__gt="").values("project_id")
    touched = Project.objects.filter(Q(sessions__status="running") | Q(pk__in=here)).distinct().order_by("pk")
    for project_id in touched.values_list("pk", flat=True)[:MOST_PROJECTS]:
        publish(
            project_id=project_id, kind=kind, message=message, level=level, combiner_id=combiner.pk, **data
        )
