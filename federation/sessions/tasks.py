"""Celery tasks: each parses, calls one service, and may run twice."""

from __future__ import annotations

import uuid

import structlog
from celery import shared_task
from django.db import OperationalError

from federation.sessions import commands, engine, reduction, sweeping

log = structlog.get_logger(__name__)


@shared_task(name="federation.sessions.tasks.advance_session", ignore_result=True)
def advance_session(session_id: str) -> None:
    engine.advance(uuid.UUID(session_id))


@shared_task(name="federation.sessions.tasks.tick", ignore_result=True)
def tick() -> None:
    """The safety net: looks at the sessions that are due, and only at those."""
    for session_id in engine.due_sessions():
        try:
            engine.advance(session_id)
        except OperationalError:  # somebody holds its lock: the next tick comes in a second
            continue
        except Exception:  # one session that cannot be advanced must not hold up the others
            log.exception("tick.session_failed", session=str(session_id))


@shared_task(name="federation.sessions.tasks.reduce_round", ignore_result=True)
def reduce_round(round_id: str) -> None:
    session_id = reduction.reduce_round(uuid.UUID(round_id))
    if session_id is not None:
        engine.advance(session_id)


@shared_task(name="federation.sessions.tasks.time_out_commands", ignore_result=True)
def time_out_commands() -> None:
    commands.time_out()


@shared_task(name="federation.sessions.tasks.sweep", ignore_result=True)
def sweep() -> None:
    sweeping.sweep()
