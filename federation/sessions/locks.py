"""Row locks, always in the order Session, Round, Share, Assignment by id.

They are `FOR NO KEY UPDATE`: an event or a metric that merely points at a locked session can be written by a
transaction that holds only the round, else the two would wait for each other.
"""

from __future__ import annotations

import uuid

from django.db import connection

from federation.sessions.choices import OPEN_ROUND
from federation.sessions.models import Round, Session

LOCK_WAIT = "5s"


def bound_lock_wait() -> None:
    """Within a transaction: wait a few seconds for a row at most. On SQLite the IMMEDIATE transaction is the lock."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"set local lock_timeout = '{LOCK_WAIT}'")


def check_keys() -> None:
    """Raise IntegrityError now, not when the transaction ends, if rows that it refers to have been deleted meanwhile;
    from here on they stay until it ends. On SQLite nobody else can delete any."""
    if connection.vendor == "postgresql":
        connection.check_constraints()


def lock_session(session_id: uuid.UUID, *, patient: bool = True) -> Session | None:
    """None: there is none, or, where not `patient`, somebody else holds it."""
    bound_lock_wait()
    rows = Session.objects.select_for_update(of=("self",), no_key=True, skip_locked=not patient)
    return next(iter(rows.filter(pk=session_id).order_by()), None)


def lock_open_rounds(session: Session) -> list[Round]:
    """Oldest first: one at most, or two of an asynchronous session, of which the second trains."""
    rows = Round.objects.select_for_update(of=("self",), no_key=True)
    return list(rows.filter(session=session, status__in=OPEN_ROUND).order_by("id"))


def lock_round(round_id: uuid.UUID) -> Round | None:
    bound_lock_wait()
    rows = Round.objects.select_for_update(of=("self",), no_key=True)
    return next(iter(rows.filter(pk=round_id).order_by()), None)
