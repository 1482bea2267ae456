"""Turns at being reduced: so that no project's rounds keep the workers from another's, nor from anything else.

Workers take reductions from one queue, first come first served. So a project puts at most `REDUCTIONS_PER_PROJECT`
rounds into it at a time, those that workers are at included; its others wait here, `reducing` with `reduce_asked_at`
empty. A reduction that ends hands its turn on to the round of its project that has waited longest. Where that was lost
with a worker, the tick finds whose turn it is. Two that take the last turn at once make one too many: harmless.

A worker process is at `REDUCTIONS_PER_WORKER` reductions at most, fewer than it has threads: however long they take, a
thread is left to advance sessions. A round that comes too many goes back to wait, and has the next place there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from django.conf import settings
from django.db import transaction
from django.db.models import Min, Q, QuerySet
from django.db.models.functions import Now

from federation.sessions.choices import RoundStatus
from federation.sessions.models import Round
from foundation import hints

REDUCE_TASK = "federation.sessions.tasks.reduce_round"
SOONEST_S, LATEST_S = 2.0, 30.0  # asked in vain: asked again, after as long as the round has waited
WAITING_LOOK_S = 10.0  # the net behind turns that are handed on
MOST_LOOKED_AT = 20
_IDLE = Q(reduce_until=None) | Q(reduce_until__lt=Now())


def is_free(project_id: uuid.UUID) -> bool:
    """Whether one more of the project's rounds may be reduced now."""
    most: int = settings.REDUCTIONS_PER_PROJECT
    return _reducing(project_id).filter(reduce_asked_at__isnull=False).count() < most


def enqueue(round_id: uuid.UUID) -> None:
    """On commit: ask workers to reduce a round whose `reduce_asked_at` was just written."""
    transaction.on_commit(lambda: hints.enqueue(REDUCE_TASK, str(round_id), queue="reduce"), robust=True)


def see_to(round_: Round, now: dt.datetime) -> dt.datetime:
    """Ask workers to reduce a locked, reducing round, if it is its turn and nobody is at it. Answers when to look
    again."""
    if round_.reduce_until is not None and round_.reduce_until >= now:
        return round_.reduce_until + dt.timedelta(seconds=SOONEST_S)
    if _is_due(round_, now):
        Round.objects.filter(pk=round_.pk).update(reduce_asked_at=now)
        enqueue(round_.pk)
    elif round_.reduce_asked_at is None:
        return now + dt.timedelta(seconds=WAITING_LOOK_S)
    return now + dt.timedelta(seconds=SOONEST_S)


def _is_due(round_: Round, now: dt.datetime) -> bool:
    asked, ended = round_.reduce_asked_at, round_.reduce_until
    if asked is None:
        return is_free(round_.project_id)
    if ended is not None and asked <= ended:  # whoever was asked then is gone
        return True
    waited = (asked - (round_.reducing_at or asked)).total_seconds()
    return now - asked >= dt.timedelta(seconds=min(max(waited, SOONEST_S), LATEST_S))


def hand_on(project_id: uuid.UUID) -> None:
    """A turn of the project is free: after commit, the round that has waited longest has it."""
    transaction.on_commit(lambda: _next(project_id), robust=True)


@contextlib.contextmanager
def at_work(round_id: uuid.UUID, *, helping: bool = False) -> Iterator[bool]:
    """A place in this process for a reduction, while it lasts. False: there is none, and the round went back, unless
    this was only `helping` another worker with it."""
    with _at_work.lock:
        has_place = _at_work.count < settings.REDUCTIONS_PER_WORKER
        _at_work.count += has_place
        _at_work.sent_back |= not has_place and not helping
    if not has_place:
        if not helping:
            Round.objects.filter(pk=round_id, reduce_until=None).update(reduce_asked_at=None)
        yield False
        return
    try:
        yield True
    finally:
        with _at_work.lock:
            _at_work.count -= 1
            somebody_waits, _at_work.sent_back = _at_work.sent_back, False
        if somebody_waits:
            _longest_waiting()


@dataclass
class _AtWork:
    """The reductions that this process is at."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    count: int = 0
    sent_back: bool = False


_at_work = _AtWork()


def _longest_waiting() -> None:
    """Ask for the round that has waited longest, of the projects that have a turn left."""
    waiting = Round.objects.filter(_IDLE, status=RoundStatus.REDUCING, reduce_asked_at=None)
    projects = waiting.values("project_id").annotate(since=Min("reducing_at")).order_by("since")
    for project_id in projects.values_list("project_id", flat=True)[:MOST_LOOKED_AT]:
        if is_free(project_id):
            return _next(project_id)


def _next(project_id: uuid.UUID) -> None:
    """Outside any transaction: the round is another session's, whose locks nobody holds here."""
    waiting = _reducing(project_id).filter(_IDLE, reduce_asked_at=None)
    for pk in list(
        waiting.order_by("reducing_at").values_list("pk", flat=True)[: settings.REDUCTIONS_PER_PROJECT]
    ):
        if not is_free(project_id):
            return
        if waiting.filter(pk=pk).update(reduce_asked_at=Now()):
            enqueue(pk)


def _reducing(project_id: uuid.UUID) -> QuerySet[Round]:
    return Round.objects.filter(project_id=project_id, status=RoundStatus.REDUCING)
