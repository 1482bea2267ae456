"""Celery tasks: each parses, calls one service, and may run twice."""

from __future__ import annotations

import time
import uuid

import structlog
from celery import shared_task
from django.db import OperationalError

from federation.sessions import commands, due, engine, parts, reduction, sweeping, turns
from foundation import hints

log = structlog.get_logger(__name__)

TICK_S = 0.4  # the next tick comes in a second


@shared_task(name="federation.sessions.tasks.advance_session", ignore_result=True)
def advance_session(session_id: str) -> None:
    engine.advance(uuid.UUID(session_id))


@shared_task(name="federation.sessions.tasks.tick", ignore_result=True)
def tick() -> None:
    """The safety net: looks at the sessions that are due, and only at those. What it cannot see to in its own time,
    and what somebody else is at, is left to other tasks: no session holds up another."""
    begun = time.monotonic()
    for session_id in due.due_sessions():
        if time.monotonic() - begun > TICK_S:
            hints.wake_session(str(session_id))
            continue
        try:
            engine.advance(session_id, patient=False)
        except OperationalError:  # somebody holds its lock: the next tick comes in a second
            continue
        except Exception:  # one session that cannot be advanced must not hold up the others
            log.exception("tick.session_failed", session=str(session_id))


@shared_task(name="federation.sessions.tasks.reduce_round", ignore_result=True)
def reduce_round(round_id: str) -> None:
    with turns.at_work(uuid.UUID(round_id)) as has_place:
        session_id = reduction.reduce_round(uuid.UUID(round_id)) if has_place else None
    if session_id is not None:
        engine.advance(session_id)
        reduction.delete_collected(uuid.UUID(round_id))


@shared_task(name="federation.sessions.tasks.help_reduce", ignore_result=True)
def help_reduce(round_id: str, owner: str) -> None:
    with turns.at_work(uuid.UUID(round_id), helping=True) as has_place:
        if has_place:
            parts.help_reduce(uuid.UUID(round_id), uuid.UUID(owner))


@shared_task(name="federation.sessions.tasks.time_out_commands", ignore_result=True)
def time_out_commands() -> None:
    commands.time_out()


@shared_task(name="federation.sessions.tasks.sweep", ignore_result=True)
def sweep() -> None:
    sweeping.sweep()
