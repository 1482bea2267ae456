"""Services of rounds: opening, closing, failing, stopping. Callers hold the locks that each names."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Count, Q, QuerySet

from clients_app.models import Client
from federation.events.services import publish
from federation.sessions import turns
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
from federation.sessions.locks import lock_open_rounds, lock_round, lock_session
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from federation.sessions.privacy import settle
from federation.sessions.selection import Chosen, PoolClient
from foundation import hints
from foundation.clock import db_now
from foundation.ids import uuid7_at
from foundation.moves import move


@dataclass(frozen=True)
class Tally:
    """The train assignments of one round, counted."""

    accepted: int
    live: int


def accepted_in(round_: Round) -> QuerySet[Assignment]:
    """The updates that count in a round, whichever round asked for them."""
    return Assignment.objects.filter(share__round=round_, status=AssignmentStatus.ACCEPTED)


def tally(round_: Round) -> Tally:
    """In an asynchronous session whoever trains is live in the round that trains."""
    if round_.buffered:
        live = Assignment.objects.filter(
            round__session=round_.session_id, kind=AssignmentKind.TRAIN, status__in=LIVE_ASSIGNMENT
        )
        return Tally(accepted=accepted_in(round_).count(), live=live.count())
    counts = Assignment.objects.filter(round=round_, kind=AssignmentKind.TRAIN).aggregate(
        accepted=Count("id", filter=Q(status=AssignmentStatus.ACCEPTED)),
        live=Count("id", filter=Q(status__in=LIVE_ASSIGNMENT)),
    )
    return Tally(**counts)


def rule_met(round_: Round, counts: Tally, now: dt.datetime) -> bool:
    """Enough updates, and everyone answered, or the goal reached, or the time up."""
    if counts.accepted < round_.min_updates:
        return False
    return counts.live == 0 or counts.accepted >= round_.goal or now >= round_.deadline


def start_grace(round_: Round, config: SessionConfig, now: dt.datetime) -> None:
    """Enough updates are there: the others have `grace_s` more at most, counted from the first call. Round is locked;
    the tick sees the deadline that has passed."""
    if config.grace_s is None or "grace_until" in round_.plan:
        return
    until = min(round_.deadline, now + dt.timedelta(seconds=config.grace_s))
    round_.plan = round_.plan | {"grace_until": until.isoformat()}
    round_.deadline = until
    round_.save(update_fields=["plan", "deadline"])


def open_round(session: Session, chosen: Chosen, config: SessionConfig, now: dt.datetime) -> Round:
    """A new round, or the next attempt of a failed one, with an assignment for each client. Session is locked."""
    clients, number, attempt = chosen.clients, chosen.number, chosen.attempt
    deadline = now + dt.timedelta(seconds=config.round_timeout_s)
    round_ = Round.objects.create(
        id=uuid7_at(now),  # lists go by it, and hosts differ in their clocks
        project_id=session.project_id,
        session=session,
        number=number,
        attempt=attempt,
        goal=chosen.goal,
        min_updates=chosen.min_updates,
        buffered=config.asynchronous is not None,
        input_model_id=session.current_model_id,
        created_at=now,
        deadline=deadline,
        plan=chosen.plan | settle(session, config),
    )
    assign(
        round_,
        clients,
        model_id=session.current_model_id,
        kind=AssignmentKind.TRAIN,
        deadline=deadline,
        why=chosen.why,
    )
    publish(
        project_id=session.project_id,
        kind="round.started",
        message=f"Round {number} of {session.name} started "
        + (
            f"and closes with {round_.goal} update{_s(round_.goal)}"
            if round_.buffered
            else f"with {len(clients)} client{_s(len(clients))}"
        )
        + (f" (attempt {attempt})." if attempt > 1 else "."),
        session_id=session.pk,
        round_number=number,
    )
    return round_


def _s(count: int) -> str:
    return "s" * (count != 1)


def assign(
    round_: Round,
    clients: Sequence[Client] | Sequence[PoolClient],
    *,
    model_id: uuid.UUID,
    kind: str,
    deadline: dt.datetime,
    why: Mapping[uuid.UUID, str] | None = None,
) -> None:
    """Assignments in bulk, each with why its client was chosen; on commit the combiners are woken."""
    Assignment.objects.bulk_create(
        Assignment(
            project_id=round_.project_id,
            round=round_,
            client_id=client.pk,
            model_id=model_id,
            kind=kind,
            deadline=deadline,
            why=(why or {}).get(client.pk, "")[:200],
        )
        for client in clients
    )
    hints.wake_combiners([str(client.pk) for client in clients])


def expire(rows: QuerySet[Assignment], now: dt.datetime, why: str) -> None:
    """Those of these live assignments whose time is up -> expired; the combiners tell their clients. Session is
    locked."""
    overdue = list(rows.filter(deadline__lte=now).order_by("id").values_list("pk", "client_id"))
    if overdue:
        move(
            Assignment.objects.filter(pk__in=[pk for pk, _ in overdue]),
            ASSIGNMENT_MOVES,
            AssignmentStatus.EXPIRED,
            ended_at=now,
            error=why,
        )
        hints.wake_combiners([str(client) for _, client in overdue])


def end_trains(of: Session | Round, status: str, reason: str) -> None:
    """Live training of a round, or of all rounds of a session -> `status`; the combiners tell their clients to stop."""
    rows = Assignment.objects.filter(kind=AssignmentKind.TRAIN, status__in=LIVE_ASSIGNMENT)
    rows = rows.filter(round=of) if isinstance(of, Round) else rows.filter(round__session=of)
    clients = [str(pk) for pk in rows.order_by("id").values_list("client_id", flat=True)]
    if clients:
        move(rows, ASSIGNMENT_MOVES, status, ended_at=db_now(), error=reason[:1000])
        hints.wake_combiners(clients)


def close(round_: Round, counts: Tally, now: dt.datetime) -> int:
    """training -> closing; answers how many shares close with it, for the caller to tell their combiners. Round is
    locked: nobody else locks its shares."""
    if not move(Round.objects.filter(pk=round_.pk), ROUND_MOVES, RoundStatus.CLOSING, closing_at=now):
        return 0
    closing = move(
        CombinerShare.objects.filter(round=round_),
        SHARE_MOVES,
        ShareStatus.CLOSING,
        come_from=[ShareStatus.OPEN],
    )
    why = "time is up" if now >= round_.deadline else f"{counts.accepted} updates are enough"
    if counts.live and not round_.buffered:  # else they are taken by the next round
        end_trains(round_, AssignmentStatus.EXPIRED, f"round {round_.number} is closed: {why}")
    return closing


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
    if not round_.buffered:
        end_trains(round_, AssignmentStatus.EXPIRED, f"round {round_.number} failed")
    if not move(
        Round.objects.filter(pk=round_.pk), ROUND_MOVES, RoundStatus.FAILED, ended_at=now, reason=reason[:500]
    ):
        return
    turns.hand_on(round_.project_id)
    if round_.buffered:
        _hand_on_number(round_)
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


def _hand_on_number(failed: Round) -> None:
    """Asynchronous: the round that trains takes the place of one that failed after it closed. Session is locked."""
    following = Round.objects.filter(
        session=failed.session_id, status=RoundStatus.TRAINING, number__gt=failed.number
    )
    attempts = Round.objects.filter(session=failed.session_id, number=failed.number).count()
    following.update(number=failed.number, attempt=attempts + 1)


def stop_open_rounds(session: Session, status: str, reason: str) -> None:
    """Everything open of a locked session ends: assignments, shares, rounds."""
    now = db_now()
    for round_ in lock_open_rounds(session):
        move(
            CombinerShare.objects.filter(round=round_),
            SHARE_MOVES,
            ShareStatus.ABANDONED,
            ended_at=now,
            reason=reason[:300],
        )
        move(Round.objects.filter(pk=round_.pk), ROUND_MOVES, status, ended_at=now, reason=reason[:500])
        turns.hand_on(round_.project_id)
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
    """closing -> reducing; workers are asked when it is its turn. Round is locked."""
    asked = now if turns.is_free(round_.project_id) else None
    rows = Round.objects.filter(pk=round_.pk)
    if move(rows, ROUND_MOVES, RoundStatus.REDUCING, reducing_at=now, reduce_asked_at=asked) and asked:
        turns.enqueue(round_.pk)


def shares_done(round_: Round) -> bool:
    return not CombinerShare.objects.filter(
        round=round_, status__in=[ShareStatus.OPEN, ShareStatus.CLOSING]
    ).exists()


def client_names(round_: Round) -> str:
    """A sentence that names who the accepted updates of a round came from."""
    names = (
        Client.objects.filter(assignments__in=accepted_in(round_))
        .order_by("name")
        .values_list("name", flat=True)
        .distinct()
    )
    return f"Updates came from: {', '.join(names[:10])}."
