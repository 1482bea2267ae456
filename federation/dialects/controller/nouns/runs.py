"""One run per start of a session: the events that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_number, by_id, by_number, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.events.models import Event
from federation.events.selectors import events_of
from federation.sessions.config import SessionConfig
from federation.sessions.models import Session
from federation.sessions.selectors import sessions_of


def rows(caller: Caller) -> Any:
    return events_of(caller.actor, caller.project).filter(kind="session.started", session__isnull=False)


def shaped(caller: Caller, found: Sequence[Event]) -> list[Shape]:
    ids = [row.session_id for row in found if row.session_id]
    known = {row.pk: row for row in sessions_of(caller.actor, caller.project).filter(pk__in=ids)}
    last: dict[Any, int] = {}
    for row in found:
        last[row.session_id] = max(row.pk, last.get(row.session_id, 0))
    return [
        _shape(row, known[row.session_id], row.pk == last[row.session_id])
        for row in found
        if row.session_id in known
    ]


def _shape(row: Event, session: Session, is_last: bool) -> Shape:
    ended = is_last and session.ended_at is not None
    return {
        "run_id": str(row.pk),
        "session_id": str(session.pk),
        "model_id": str(session.seed_model_id),
        "completed_at_model_id": str(session.current_model_id) if ended else None,
        "round_timeout": SessionConfig.from_json(session.config).round_timeout_s,
        "rounds": session.rounds_wanted,
        "completed_at": when(session.ended_at) if ended else None,
        "committed_at": when(row.at),
        "updated_at": when(session.ended_at if ended else row.at),
    }


def find(caller: Caller, name: str) -> Lookup | None:
    number = as_number(name)
    return None if number is None else {"pk": number}


RUNS = Noun(
    "runs",
    rows,
    shaped,
    find,
    filters={"run_id": by_number("pk"), "session_id": by_id("session_id")},
    order={"run_id": "pk"},
    newest="at",
)
