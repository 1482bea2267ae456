"""`advance`: the one step function of a session.

It may run twice, late, or in two workers at once: the row lock and the check of states make the second run a no-op.
One transaction a step, until no row of the table in the design applies.
"""

from __future__ import annotations

import datetime as dt
import enum
import uuid

import structlog
from django.db import transaction
from django.db.models import QuerySet

from clients_app.models import Client
from federation.events.services import publish
from federation.models.models import Metric
from federation.sessions import asynchronous, closing, privacy, rounds, training
from federation.sessions.choices import (
    LIVE_ASSIGNMENT,
    SESSION_MOVES,
    AssignmentKind,
    RoundStatus,
    SessionStatus,
)
from federation.sessions.config import SessionConfig
from federation.sessions.locks import check_keys, lock_open_rounds, lock_session
from federation.sessions.models import Assignment, Round, Session
from federation.sessions.selection import choose_for_round, eligible
from foundation import hints
from foundation.clock import db_now
from foundation.moves import move

log = structlog.get_logger(__name__)

# at a session that waits for clients: after as long as it has waited
SOONEST_LOOK_S, LATEST_LOOK_S = 2.0, 300.0
MAX_STEPS = 1000


class Step(enum.Enum):
    NONE = "nothing applies now"
    LAST = "taken, and nothing more applies until something happens"
    MORE = "taken, and the next may apply at once"


def advance(session_id: uuid.UUID, *, patient: bool = True) -> int:
    """Apply steps until none applies; answers how many did. Not `patient`: none while somebody else holds its lock."""
    hints.looked_at(str(session_id))
    for steps in range(MAX_STEPS):
        with transaction.atomic():
            session = lock_session(session_id, patient=patient)
            if session is None or session.status != SessionStatus.RUNNING:
                return steps
            taken = step(session)
        if taken is not Step.MORE:
            return steps + (taken is Step.LAST)
    return MAX_STEPS


def go_on(session: Session) -> None:
    """Take the step that follows in the transaction that has just made a model, so that nobody waits for a worker:
    half of what a short round takes. A worker is asked for whatever else there is to do, and where it goes wrong."""
    taken = Step.MORE
    try:
        with transaction.atomic():
            stepped = step(session)
            check_keys()
        taken = stepped
    except Exception:  # the model is not lost for it
        if transaction.get_rollback():  # unless the database itself has gone: then nothing was committed
            raise
        log.exception("session.step_failed", session=str(session.pk))
    if taken is Step.MORE:
        hints.wake_session(str(session.pk))


def step(session: Session) -> Step:
    """One step of a locked, running session."""
    config = SessionConfig.from_json(session.config)
    now = db_now()
    if session.stop_asked:
        rounds.stop_open_rounds(session, RoundStatus.STOPPED, "the session was stopped")
        end(session, SessionStatus.STOPPED, "Stopped on request.")
        return Step.MORE
    if reason := target_met(session, config):
        rounds.stop_open_rounds(session, RoundStatus.STOPPED, "the target was met")
        end(session, SessionStatus.FINISHED, reason)
        return Step.MORE
    if config.validate:
        rounds.expire(validations(session), now, "no validation came in time")
    open_ = lock_open_rounds(session)
    if not open_ and session.rounds_done >= session.rounds_wanted:
        done = session.rounds_done
        return finish(session, now, f"All {done} rounds are done." if done != 1 else "The round is done.")
    if not open_ and (reason := privacy.budget_spent(session, config)):
        return finish(session, now, reason)
    if session.failed_in_row >= config.max_failed_rounds:
        last = Round.objects.filter(session=session, status=RoundStatus.FAILED).order_by("-ended_at").first()
        why = last.reason if last else "no round succeeded"
        rounds.stop_open_rounds(session, RoundStatus.STOPPED, "the session failed")
        end(
            session,
            SessionStatus.FAILED,
            f"{session.failed_in_row} rounds failed in a row; the last: {why}",
        )
        return Step.MORE
    if not open_:
        return begin(session, config, now)
    if config.asynchronous is not None:
        return look(session, asynchronous.step(session, open_, config, now))
    (round_,) = open_
    if session.waiting_until is not None and now >= session.waiting_until:
        rounds.fail(session, round_, f"it waited in vain for {session.waiting_for}", config)
        return Step.MORE
    match round_.status:
        case RoundStatus.TRAINING:
            at = training.train(session, round_, config, now)
        case RoundStatus.CLOSING:
            at = closing.close(session, round_, config, now)
        case _:
            at = closing.reduce(round_, now)
    return look(session, at)


def begin(session: Session, config: SessionConfig, now: dt.datetime) -> Step:
    """No open round, rounds left: open one, or say what is waited for, and until when."""
    pool = eligible(session, config)
    busy: set[uuid.UUID] = set()
    needed = max(config.min_clients, config.needed_updates)
    if config.asynchronous is not None:  # a client sends more than one update, and may hold a lease already
        busy, needed = asynchronous.training_now(session), config.min_clients
    if len(pool.clients) >= needed:
        chosen = choose_for_round(session, config, pool, busy=busy)
        round_ = rounds.open_round(session, chosen, config, now)
        session.waiting_for, session.waiting_until = "", None
        session.look_at, session.sought_at = training.next_look(round_, config, now), None
        session.save(update_fields=["waiting_for", "waiting_until", "look_at", "sought_at"])
        return Step.MORE if config.asynchronous is not None else Step.LAST
    until = session.waiting_until or now + dt.timedelta(seconds=config.start_timeout_s)
    waiting = pool.waiting(needed)
    if now >= until:
        end(
            session,
            SessionStatus.FAILED,
            f"Too few clients came online in time: waited for {waiting}. {_absent(session)}",
        )
        return Step.MORE
    if session.waiting_for != waiting:
        publish(
            project_id=session.project_id,
            kind="session.waiting",
            level="warning",
            message=f"{session.name} waits for {waiting}.",
            session_id=session.pk,
        )
    session.waiting_for, session.waiting_until = waiting, until
    waited = config.start_timeout_s - (until - now).total_seconds()
    pause = min(max(waited, SOONEST_LOOK_S), LATEST_LOOK_S)
    session.look_at, session.sought_at = min(until, now + dt.timedelta(seconds=pause)), now
    session.save(update_fields=["waiting_for", "waiting_until", "look_at", "sought_at"])
    return Step.NONE


def _absent(session: Session) -> str:
    online = Client.objects.filter(project_id=session.project_id).online().values("pk")
    names = list(
        Client.objects.filter(project_id=session.project_id)
        .exclude(pk__in=online)
        .order_by("name")
        .values_list("name", flat=True)[:10]
    )
    return f"Offline: {', '.join(names)}." if names else "The project has no other clients."


def finish(session: Session, now: dt.datetime, reason: str) -> Step:
    """No more rounds: finished when the validations of the last ended or timed out."""
    pending = validations(session).order_by("deadline").first()
    if pending is None:
        end(session, SessionStatus.FINISHED, reason)
        return Step.MORE
    waiting = "the last validations"
    if session.waiting_for != waiting:
        session.waiting_for, session.waiting_until = waiting, pending.deadline
        session.save(update_fields=["waiting_for", "waiting_until"])
    return look(session, pending.deadline)


def validations(session: Session) -> QuerySet[Assignment]:
    """Those that clients still owe."""
    return Assignment.objects.filter(
        round__session=session, kind=AssignmentKind.VALIDATE, status__in=LIVE_ASSIGNMENT
    )


def target_met(session: Session, config: SessionConfig) -> str:
    """The sentence that says so, once every validation of a model has ended and its mean reaches the target."""
    if config.target is None:
        return ""
    still = validations(session).values("model_id")
    means = Metric.objects.filter(
        session=session,
        source=Metric.Source.VALIDATION_MEAN,
        name=config.target.metric,
        round_number__gte=config.target_from_round,
    ).exclude(model_id__in=still)
    for mean in means.order_by("round_number"):
        if config.target.met_by(mean.value):
            return f"Target met in round {mean.round_number}: {mean.name} {mean.value:.4g}."
    return ""


def look(session: Session, at: dt.datetime | None) -> Step:
    """Keep when to look again. `at` None: a step was taken, so look at once; that is what is answered."""
    if at is not None and (session.look_at != at or session.sought_at is not None):
        session.look_at = at
        session.save(update_fields=["look_at", "sought_at"])
    return Step.MORE if at is None else Step.NONE


LEVEL_OF_END = {
    SessionStatus.FINISHED: "info",
    SessionStatus.STOPPED: "warning",
    SessionStatus.FAILED: "error",
}


def end(session: Session, status: SessionStatus, reason: str) -> None:
    """running -> finished, failed or stopped, with the reason that a page shows."""
    if not move(
        Session.objects.filter(pk=session.pk),
        SESSION_MOVES,
        status,
        reason=reason[:500],
        ended_at=db_now(),
        waiting_for="",
        waiting_until=None,
        stop_asked=False,
        look_at=None,
        sought_at=None,
    ):
        return
    rounds.cancel_live(session, f"the session {status}")
    publish(
        project_id=session.project_id,
        kind=f"session.{status}",
        level=LEVEL_OF_END[status],
        message=f"{session.name} {status}: {reason}",
        session_id=session.pk,
    )
