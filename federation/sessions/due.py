"""Which sessions are due a look: the net behind every hint.

A session that waits for clients is not looked at again and again: it is due when a client of its project came online
since it last sought one (`Session.sought_at`), which costs the same however many wait; beside that, after as long as it
has waited so far. Projects take turns: each one's most overdue session first, then each one's second.
"""

from __future__ import annotations

import datetime as dt
import uuid

from django.db.models import F, Max, Q, Window
from django.db.models.functions import Now, RowNumber

from clients_app.models import Client
from federation.sessions.choices import RoundStatus, SessionStatus, ShareStatus
from federation.sessions.models import CombinerShare, Round, Session

STUCK_S = 2.0  # a step is taken at once, unless a hint was lost
CAME_S = 30.0  # so long the tick goes by a connection
UNSEEN_S = 2.0  # a connection may have been written before a look that did not see it yet
MOST_AT_ONCE = 200


def due_sessions(limit: int = MOST_AT_ONCE) -> list[uuid.UUID]:
    """Two queries: running sessions whose moment has come, whose round is past its deadline or between training and its
    model, whose round holds updates at a combiner that is silent, or who seek clients where one has come."""
    stuck = Now() - dt.timedelta(seconds=STUCK_S)
    moving = Round.objects.filter(
        Q(status=RoundStatus.TRAINING, deadline__lte=Now())
        | Q(status=RoundStatus.CLOSING, closing_at__lt=stuck)
        | Q(status=RoundStatus.REDUCING, reduce_asked_at__lt=stuck)
        | Q(status=RoundStatus.REDUCING, reduce_asked_at=None, reduce_until__lt=Now())  # put off until then
    )
    silent = CombinerShare.objects.filter(
        round__status=RoundStatus.TRAINING, status=ShareStatus.OPEN, combiner__lease_until__lt=Now()
    )
    rows = (
        Session.objects.filter(status=SessionStatus.RUNNING)
        .filter(
            Q(look_at=None)
            | Q(look_at__lte=Now())
            | Q(pk__in=moving.values("session_id"))
            | Q(pk__in=silent.values("round__session_id"))
            | _sees_newcomers()
        )
        .alias(
            turn=Window(
                RowNumber(),
                partition_by=[F("project_id")],
                order_by=[F("look_at").asc(nulls_first=True), F("pk").asc()],
            )
        )
        .order_by("turn", F("look_at").asc(nulls_first=True), "pk")
        .values_list("pk", flat=True)
    )
    return list(rows[:limit])


def _sees_newcomers() -> Q:
    """Sessions that sought clients before one of their project came online, of the projects where one did lately."""
    since = Now() - dt.timedelta(seconds=CAME_S)
    came = Client.objects.filter(connection_id__gt="", connected_at__gt=since).values("project_id")
    found = Q(pk__in=[])
    for project_id, newest in (
        came.annotate(newest=Max("connected_at")).order_by("-newest").values_list("project_id", "newest")
    )[:MOST_AT_ONCE]:
        seen = newest + dt.timedelta(seconds=UNSEEN_S)
        found |= Q(project_id=project_id, sought_at__lt=seen)
    return found
