"""Reading events and telemetry."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from django.db.models import Max, Q, QuerySet

from federation.events.models import Event, Telemetry
from projects.actors import Actor
from projects.models import Project

LEVELS = ("debug", "info", "warning", "error")
# Ids may commit out of order: who catches up reads this many before the last id it has, and drops what it knows.
READ_BEFORE = 50


def events_of(actor: Actor, project: Project) -> QuerySet[Event]:
    """Newest first, with the names of session, client and combiner at hand."""
    return (
        Event.objects.visible_to(actor)
        .filter(project=project)
        .select_related("session", "client", "combiner")
        .defer("session__config")
    )


def of_kind(rows: QuerySet[Event], kind: str) -> QuerySet[Event]:
    """Events of this kind or below it: `round` finds `round.finished`, `round.finished` itself only."""
    return rows.filter(Q(kind=kind) | Q(kind__startswith=f"{kind.rstrip('.')}."))


def of_kinds_or_said(
    kinds: Sequence[str], word: str, values: Sequence[str], *, rest_of: Sequence[str] = ()
) -> Q:
    """Events of one of `kinds`, or whose data says one of `values` under `word`; with `rest_of` also those of no kind
    in it that say nothing there."""
    found = Q(kind__in=kinds) | (Q(**{f"data__{word}__in": list(values)}) & ~Q(kind__in=rest_of))
    if rest_of:
        found |= ~Q(kind__in=rest_of) & Q(**{f"data__{word}__isnull": True})
    return found


def of_levels_or_said(levels: Sequence[str], word: str, values: Sequence[str]) -> Q:
    """Events of one of `levels`, or, where their data names one under `word`, with one of `values` there."""
    silent = Q(**{f"data__{word}__isnull": True})
    return (Q(level__in=levels) & silent) | Q(**{f"data__{word}__in": list(values)})


def from_level(rows: QuerySet[Event], level: str) -> QuerySet[Event]:
    """Events at least this grave."""
    return rows.filter(level__in=LEVELS[LEVELS.index(level) :])


def last_event_id(project: Project) -> int:
    """The newest event's id, 0 when there is none: what a page names when it starts to listen."""
    return Event.objects.filter(project=project).aggregate(last=Max("id"))["last"] or 0


def missed(project_id: uuid.UUID, *, after: int, at_most: int) -> Sequence[Event]:
    """What somebody who has events up to `after` may have missed, oldest first; the newest `at_most` of it. A few
    before `after` are read too, for ids may commit out of order. After 0 nothing is known: only the newest come."""
    rows = Event.objects.filter(project_id=project_id, id__gt=max(after - READ_BEFORE, 0)).order_by("-id")
    return list(reversed(rows[:at_most]))


def telemetry_of(actor: Actor, project: Project) -> QuerySet[Telemetry]:
    """Samples, newest first."""
    return Telemetry.objects.visible_to(actor).filter(project=project)


def kinds_of(project: Project, newest: int = 2000) -> list[str]:
    """The kinds among the newest events, to choose from."""
    rows = Event.objects.filter(project=project).order_by("-id").values_list("kind", flat=True)[:newest]
    return sorted(set(rows))


def senders_of(project: Project) -> tuple[list[tuple[uuid.UUID, str]], list[tuple[uuid.UUID, str]]]:
    """The newest sessions, and the clients by name, that events can be narrowed to: ids with names."""
    sessions = project.sessions.order_by("-id").values_list("pk", "name")[:100]
    clients = project.clients.order_by("name").values_list("pk", "name")[:500]
    return list(sessions), list(clients)
