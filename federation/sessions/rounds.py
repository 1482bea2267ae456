"""Services of rounds: opening, closing, failing, committing. Callers hold the locks that each names."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Count, Q

from clients_app.models import Client
from federation.events.services import publish
from federation.models.models import Model
from federation.models.services import add_round_model
from federation.sessions.choices import (
    ASSIGNMENT_MOVES,
    LIVE_ASSIGNMENT,
    ROUND_MOVES,
    SHARE_MOVES,
    AssignmentKind,
    AssignmentStatus,
    RoundStatus,
    SessionStatus,
    ShareStatus,
)
from federation.sessions.config import SessionConfig
from federation.sessions.locks import lock_open_round, lock_round, lock_session
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from foundation import hints
from foundation.clock import db_now
from foundation.moves import move

REDUCE_TASK = "federation.sessions.tasks.reduce_round"


@dataclass(frozen=True)
class Tally:
    """The train assignments of one round, counted."""

    accepted: int
    live: int
    total: int


def tally(round_: Round) -> Tally:
    counts = Assignment.objects.filter(round=round_, kind=AssignmentKind.TRAIN).aggregate(
        accepted=Count("id", filter=Q(status=AssignmentStatus.ACCEPTED)),
        live=Count("id", filter=Q(status__in=LIVE_ASSIGNMENT)),
        total=Count("id"),
    )
    return Tally(**counts)


def rule_met(round_: Round, counts: Tally, now: dt.datetime) -> bool:
    """Enough updates, and everyone answered, or the goal reached, or the time up."""
    if counts.accepted < round_.min_updates:
        return False
    return counts.live == 0 or counts.accepted >= round_.goal or now >= round_.deadline


def open_round(session: Session, clients: list[Client], config: SessionConfig, now: dt.datetime) -> Round:
    """A new round, or the next attempt of a failed one, with an assignment for each client. Session is locked."""
    number = session.rounds_done + 1
    attempt = Round.objects.filter(session=session, number=number).count() + 1
    deadline = now + dt.timedelta(seconds=config.round_timeout_s)
    round_ = Round.objects.create(
        project_id=session.project_id,
        session=session,
        number=number,
        attempt=attempt,
        goal=min(config.goal or len(clients), len(clients)),
        min_updates=config.needed_updates,
        input_model_id=session.current_model_id,
        deadline=deadline,
    )
    assign(round_, clients, model_id=session.current_model_id, kind=AssignmentKind.TRAIN, deadline=deadline)
    publish(
        project_id=session.project_id,
        kind="round.started",
        message=f"Round {number} of {session.name} started with {len(clients)} client{'s' * (len(clients) != 1)}"
        + (f" (attempt {attempt})." if attempt > 1 else "."),
        session_id=session.pk,
        round_number=number,
    )
    return round_


def assign(
    round_: Round, clients: list[Client], *, model_id: uuid.UUID, kind: str, deadline: dt.datetime
) -> None:
    """Assignments in bulk; on commit the combiners are woken."""
    Assignment.objects.bulk_create(
        Assignment(
            project_id=round_.project_id,
            round=round_,
            client=client,
            model_id=model_id,
            kind=kind,
            deadline=deadline,
        )
        for client in clients
    )
    hints.wake_combiners([str(client.pk) for client in clients])


def _live_assignments(round_: Round, *kinds: str) -> Any:
    rows = Assignment.objects.filter(round=round_, status__in=LIVE_ASSIGNMENT)
    return rows.filter(kind__in=kinds) if kinds else rows


def end_assignments(round_: Round, status: str, reason: str, *kinds: str) -> None:
    """Live assignments -> `status`; the combiners tell their clients to stop."""
    rows = _live_assignments(round_, *kinds)
    clients = [str(pk) for pk in rows.order_by("id").values_list("client_id", flat=True)]
    if clients:
        move(rows, ASSIGNMENT_MOVES, status, ended_at=db_now(), error=reason[:1000])
        hints.wake_combiners(clients)


def close(round_: Round, counts: Tally, now: dt.datetime) -> None:
    """training -> closing. Round is locked, and its shares are locked here."""
    list(
        CombinerShare.objects.select_for_update(of=("self",), no_key=True).filter(round=round_).order_by("id")
    )
    if not move(Round.objects.filter(pk=round_.pk), ROUND_MOVES, RoundStatus.CLOSING, closing_at=now):
        return
    move(
        CombinerShare.objects.filter(round=round_),
        SHARE_MOVES,
        ShareStatus.CLOSING,
        come_from=[ShareStatus.OPEN],
    )
    why = "time is up" if now >= round_.deadline else f"{counts.accepted} updates are enough"
    end_assignments(
        round_, AssignmentStatus.EXPIRED, f"round {round_.number} is closed: {why}", AssignmentKind.TRAIN
    )
    hints.wake_combiners([])


def fail(session: Session, round_: Round, reason: str, config: SessionConfig) -> None:
    """The round fails and the same model is tried again, up to `max_failed_rounds` in a row. Both are locked."""
    now = db_now()
    move(
        CombinerShare.objects.filter(round=round_),
        SHARE_MOVES,
        ShareStatus.ABANDONED,
        ended_at=now,
        reason=reason[:300],
    )
    end_assignments(round_, AssignmentStatus.EXPIRED, f"round {round_.number} failed", AssignmentKind.TRAIN)
    if not move(
        Round.objects.filter(pk=round_.pk), ROUND_MOVES, RoundStatus.FAILED, ended_at=now, reason=reason[:500]
    ):
        return
    session.failed_in_row += 1
    session.waiting_for, session.waiting_until = "", None
    session.save(update_fields=["failed_in_row", "waiting_for", "waiting_until"])
    publish(
        project_id=session.project_id,
        kind="round.failed",
        level="error",
        message=f"Round {round_.number} of {session.name} failed: {reason}",
        session_id=session.pk,
        round_number=round_.number,
    )


def stop_open_round(session: Session, status: str, reason: str) -> None:
    """Everything open of a locked session ends: assignments, shares, round."""
    now = db_now()
    round_ = lock_open_round(session)
    if round_ is not None:
        move(
            CombinerShare.objects.filter(round=round_),
            SHARE_MOVES,
            ShareStatus.ABANDONED,
            ended_at=now,
            reason=reason[:300],
        )
        move(Round.objects.filter(pk=round_.pk), ROUND_MOVES, status, ended_at=now, reason=reason[:500])
    cancel_live(session, reason)


def cancel_live(session: Session, reason: str) -> None:
    """Whatever clients still work on for this session is cancelled; they are told to stop."""
    now = db_now()
    rows = Assignment.objects.filter(round__session=session, status__in=LIVE_ASSIGNMENT)
    clients = [str(pk) for pk in rows.order_by("id").values_list("client_id", flat=True)]
    if clients:
        move(
            Assignment.objects.filter(pk__in=list(rows.values_list("pk", flat=True))),
            ASSIGNMENT_MOVES,
            AssignmentStatus.CANCELLED,
            ended_at=now,
            error=reason[:1000],
        )
        hints.wake_combiners(clients)


def wait_for_storage(round_id: uuid.UUID, what: str) -> bool:
    """A round cannot go on because `what` was refused: the session says so, and until when it is tried again.
    False: the round no longer waits for anything."""
    row = Round.objects.filter(pk=round_id).only("session_id").first()
    if row is None:
        return False
    with transaction.atomic():
        session, round_ = lock_session(row.session_id), lock_round(round_id)
        if session is None or round_ is None or session.status != SessionStatus.RUNNING:
            return False
        if round_.status not in (RoundStatus.CLOSING, RoundStatus.REDUCING):
            return False
        if session.waiting_for == what[:300]:
            return True
        patience = SessionConfig.from_json(session.config).start_timeout_s
        session.waiting_until = session.waiting_until or db_now() + dt.timedelta(seconds=patience)
        session.waiting_for = what[:300]
        session.save(update_fields=["waiting_for", "waiting_until"])
        publish(
            project_id=session.project_id,
            kind="storage.refused",
            level="error",
            message=f"Round {round_.number} of {session.name} waits for {what}; it is tried again.",
            session_id=session.pk,
            round_number=round_.number,
        )
    return True


def start_reducing(round_: Round, now: dt.datetime) -> None:
    """closing -> reducing; the reduction goes to its own queue. Round is locked."""
    if move(Round.objects.filter(pk=round_.pk), ROUND_MOVES, RoundStatus.REDUCING, reducing_at=now):
        enqueue_reduce(round_.pk)


def enqueue_reduce(round_id: uuid.UUID) -> None:
    transaction.on_commit(lambda: hints.enqueue(REDUCE_TASK, str(round_id), queue="reduce"), robust=True)


def shares_done(round_: Round) -> bool:
    return not CombinerShare.objects.filter(
        round=round_, status__in=[ShareStatus.OPEN, ShareStatus.CLOSING]
    ).exists()


@dataclass(frozen=True)
class ReducedModel:
    """What a reduction wrote: a file in storage and what is known of it."""

    key: str
    sha256: str
    size_bytes: int
    updates: int
    weight: float
    state_key: str = ""  # what the aggregator keeps for the next round; empty: nothing


def commit_round(*, round_id: uuid.UUID, owner: uuid.UUID, reduced: ReducedModel) -> Model | None:
    """One transaction: model, round, session, validations. None: somebody committed first, or it was stopped."""
    round_row = Round.objects.filter(pk=round_id).first()
    if round_row is None:
        return None
    with transaction.atomic():
        session = lock_session(round_row.session_id)
        if session is None or session.status != SessionStatus.RUNNING:
            return None
        now = db_now()
        round_ = Round.objects.select_for_update(of=("self",), no_key=True).get(pk=round_id)
        if round_.status != RoundStatus.REDUCING or round_.reduce_owner != owner:
            return None
        parent = Model.objects.get(pk=round_.input_model_id)
        model = add_round_model(
            session_id=session.pk,
            project_id=session.project_id,
            parent=parent,
            round_number=round_.number,
            name=f"{session.name} · round {round_.number}",
            key=reduced.key,
            sha256=reduced.sha256,
            size_bytes=reduced.size_bytes,
            layout=parent.layout,
            metadata={"updates": reduced.updates, "num_examples": reduced.weight},
        )
        move(
            Round.objects.filter(pk=round_id),
            ROUND_MOVES,
            RoundStatus.FINISHED,
            ended_at=now,
            output_model=model,
            reason=f"{reduced.updates} update{'s' * (reduced.updates != 1)} averaged",
            timings=timings(round_, now),
        )
        session.current_model = model
        session.aggregator_state = reduced.state_key
        session.rounds_done = round_.number
        session.failed_in_row = 0
        session.look_at = now
        session.waiting_for, session.waiting_until = "", None
        session.save(
            update_fields=[
                "current_model",
                "aggregator_state",
                "rounds_done",
                "failed_in_row",
                "look_at",
                "waiting_for",
                "waiting_until",
            ]
        )
        config = SessionConfig.from_json(session.config)
        if config.validate:
            assign_validations(session, round_, model, config, now)
        publish(
            project_id=session.project_id,
            kind="round.finished",
            message=f"Round {round_.number} of {session.name} finished: {reduced.updates} updates averaged.",
            session_id=session.pk,
            round_number=round_.number,
            model=str(model.pk),
        )
    return model


def assign_validations(
    session: Session, round_: Round, model: Model, config: SessionConfig, now: dt.datetime
) -> None:
    """Clients of this round that are still online validate what it made."""
    clients = list(
        Client.objects.filter(
            assignments__round=round_, assignments__kind=AssignmentKind.TRAIN, project_id=session.project_id
        )
        .online()
        .order_by("id")
        .distinct()
    )
    assign(
        round_,
        clients,
        model_id=model.pk,
        kind=AssignmentKind.VALIDATE,
        deadline=now + dt.timedelta(seconds=config.round_timeout_s),
    )


def timings(round_: Round, now: dt.datetime) -> dict[str, float]:
    """Seconds that each part of the round took."""

    def between(start: dt.datetime | None, end: dt.datetime | None) -> float:
        return round((end - start).total_seconds(), 4) if start and end else 0.0

    return {
        "training_s": between(round_.created_at, round_.closing_at),
        "closing_s": between(round_.closing_at, round_.reducing_at),
        "reducing_s": between(round_.reducing_at, now),
        "total_s": between(round_.created_at, now),
    }


def claim_reduction(round_id: uuid.UUID, owner: uuid.UUID, seconds: float) -> bool:
    """Take or renew the right to reduce. False: another holds it, or the round is past reducing."""
    now = db_now()
    return bool(
        Round.objects.filter(pk=round_id, status=RoundStatus.REDUCING)
        .filter(Q(reduce_until=None) | Q(reduce_until__lt=now) | Q(reduce_owner=owner))
        .update(reduce_owner=owner, reduce_until=now + dt.timedelta(seconds=seconds))
    )


def put_off_reduction(round_id: uuid.UUID, owner: uuid.UUID, seconds: float) -> None:
    """Give the claim back; nobody takes it for so long."""
    until = db_now() + dt.timedelta(seconds=seconds)
    Round.objects.filter(pk=round_id, status=RoundStatus.REDUCING, reduce_owner=owner).update(
        reduce_owner=None, reduce_until=until
    )


def client_names(round_: Round) -> str:
    """A sentence that names who the accepted updates of a round came from."""
    names = (
        Client.objects.filter(assignments__round=round_, assignments__status=AssignmentStatus.ACCEPTED)
        .order_by("name")
        .values_list("name", flat=True)
        .distinct()
    )
    return f"Updates came from: {', '.join(names[:10])}."
