"""How an assignment ends: accepted, refused, rejected, failed. Every report may be repeated safely."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from clients_app.models import Combiner
from federation.events.services import publish
from federation.models import services as models
from federation.sessions import rounds
from federation.sessions.choices import (
    ASSIGNMENT_MOVES,
    LIVE_ASSIGNMENT,
    AssignmentKind,
    AssignmentStatus,
    RoundStatus,
    SessionStatus,
    ShareStatus,
)
from federation.sessions.locks import lock_round
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from foundation import hints
from foundation.clock import db_now
from foundation.moves import move


@dataclass(frozen=True)
class SpooledUpdate:
    """An update that is on disk, checksummed and checked."""

    assignment_id: uuid.UUID
    client_id: uuid.UUID
    round_id: uuid.UUID
    spool_name: str
    sha256: str
    size_bytes: int
    num_examples: float
    update_norm: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """`accepted` also for a second copy; then `spool_name` is the file that counts. `superseded`: a newer combiner
    runs under this name, so nothing was decided; the client sends to that one."""

    accepted: bool
    reason: str = ""
    share_id: uuid.UUID | None = None
    spool_name: str = ""
    closes: bool = False
    superseded: bool = False


def accept_updates(
    *, combiner_id: uuid.UUID, epoch: int, updates: Sequence[SpooledUpdate]
) -> dict[uuid.UUID, Verdict]:
    """One transaction for each round. The transaction that accepts the last update closes the round itself."""
    by_round: dict[uuid.UUID, list[SpooledUpdate]] = defaultdict(list)
    for update in updates:
        by_round[update.round_id].append(update)
    verdicts: dict[uuid.UUID, Verdict] = {}
    for round_id, batch in sorted(by_round.items()):
        verdicts |= _accept_in_round(combiner_id, epoch, round_id, batch)
    return verdicts


def _accept_in_round(
    combiner_id: uuid.UUID, epoch: int, round_id: uuid.UUID, batch: list[SpooledUpdate]
) -> dict[uuid.UUID, Verdict]:
    with transaction.atomic():
        round_ = lock_round(round_id)
        if round_ is None:
            return {u.assignment_id: Verdict(False, "this round no longer exists") for u in batch}
        if not Combiner.objects.filter(pk=combiner_id, epoch=epoch).exists():
            gone = Verdict(False, "another combiner has taken over; connect again", superseded=True)
            return {u.assignment_id: gone for u in batch}
        share = _share_to_fill(round_, combiner_id)
        now = db_now()
        verdicts: dict[uuid.UUID, Verdict] = {}
        fresh: list[SpooledUpdate] = []
        for update in sorted(batch, key=lambda u: u.assignment_id):
            taken = share is not None and move(
                Assignment.objects.filter(pk=update.assignment_id, client_id=update.client_id),
                ASSIGNMENT_MOVES,
                AssignmentStatus.ACCEPTED,
                share=share,
                ended_at=now,
                progress=1.0,
                spool_name=update.spool_name,
                sha256=update.sha256,
                size_bytes=update.size_bytes,
                num_examples=update.num_examples,
                update_norm=update.update_norm,
                metadata=update.metadata,
                error="",
            )
            if taken and share is not None:
                verdicts[update.assignment_id] = Verdict(True, "", share.pk, update.spool_name)
                fresh.append(update)
            else:
                verdicts[update.assignment_id] = _read_again(update, round_)
        if not fresh:
            if share is not None and not share.assignments.exists():
                share.delete()  # made for a late update; an empty one would have no partial
            return verdicts
        counts = rounds.tally(round_)
        if rounds.rule_met(round_, counts, now):
            rounds.close(round_, counts, now)
            verdicts = {
                key: Verdict(v.accepted, v.reason, v.share_id, v.spool_name, closes=True)
                for key, v in verdicts.items()
            }
        for update in fresh:
            models.record_training_metadata(
                project_id=round_.project_id,
                session_id=round_.session_id,
                round_number=round_.number,
                model_id=round_.input_model_id,
                client_id=update.client_id,
                metadata=update.metadata,
                weight=update.num_examples,
            )
            publish(
                project_id=round_.project_id,
                kind="update.accepted",
                message=f"Update for round {round_.number} accepted ({update.num_examples:g} examples).",
                session_id=round_.session_id,
                round_number=round_.number,
                client_id=update.client_id,
                combiner_id=combiner_id,
                norm=update.update_norm,
                size_bytes=update.size_bytes,
            )
    if counts.live == 0 and counts.accepted < round_.min_updates:
        look_now(round_.session_id)
    return verdicts


def _share_to_fill(round_: Round, combiner_id: uuid.UUID) -> CombinerShare | None:
    """The combiner's open share, locked; made here while the locked round is training."""
    share = (
        CombinerShare.objects.select_for_update(of=("self",), no_key=True)
        .filter(round=round_, combiner_id=combiner_id)
        .exclude(status=ShareStatus.ABANDONED)
        .first()
    )
    if share is not None:
        return share if share.status == ShareStatus.OPEN else None
    if round_.status != RoundStatus.TRAINING:
        return None
    return CombinerShare.objects.create(project_id=round_.project_id, round=round_, combiner_id=combiner_id)


def _read_again(update: SpooledUpdate, round_: Round) -> Verdict:
    row = Assignment.objects.filter(pk=update.assignment_id, client_id=update.client_id).first()
    if row is not None and row.status == AssignmentStatus.ACCEPTED:
        return Verdict(True, "", row.share_id, row.spool_name)
    return Verdict(False, refusal(round_, row))


def refusal(round_: Round, row: Assignment | None) -> str:
    if row is None:
        return "there is no such assignment of yours"
    if row.status in LIVE_ASSIGNMENT:
        return f"round {round_.number} is {round_.status}"
    return row.error or f"round {round_.number} is closed"


def report_late(*, client_id: uuid.UUID, assignment_id: uuid.UUID, reason: str) -> None:
    """A late update is refused, and leaves an event."""
    row = (
        Assignment.objects.filter(pk=assignment_id, client_id=client_id)
        .select_related("round", "client")
        .first()
    )
    if row is not None:
        publish(
            project_id=row.project_id,
            kind="update.refused",
            level="warning",
            message=f"An update of {row.client.name} was refused: {reason}.",
            session_id=row.round.session_id,
            round_number=row.round.number,
            client_id=client_id,
        )


def end_with_reason(
    *, client_id: uuid.UUID, assignment_id: uuid.UUID, status: AssignmentStatus, reason: str, **data: Any
) -> bool:
    """A live assignment -> rejected or failed, the reason kept and told. False: it had ended already."""
    row = (
        Assignment.objects.filter(pk=assignment_id, client_id=client_id)
        .select_related("round", "client")
        .first()
    )
    if row is None:
        return False
    with transaction.atomic():
        session_id = row.round.session_id
        Session.objects.filter(pk=session_id, status=SessionStatus.RUNNING).update(look_at=Now())
        ended = move(
            Assignment.objects.filter(pk=assignment_id),
            ASSIGNMENT_MOVES,
            status,
            ended_at=Now(),
            error=reason[:1000],
        )
        if ended:
            publish(
                project_id=row.project_id,
                kind=f"assignment.{status}",
                level="warning",
                message=f"{row.client.name}, round {row.round.number}, {row.kind}: {reason}",
                session_id=session_id,
                round_number=row.round.number,
                client_id=client_id,
                **data,
            )
            hints.wake_session(str(session_id))
    return bool(ended)


def accept_validation(
    *, client_id: uuid.UUID, assignment_id: uuid.UUID, data: dict[str, Any], weight: float
) -> Verdict:
    """Keep a client's validation of a model. A second copy changes nothing."""
    row = (
        Assignment.objects.filter(pk=assignment_id, client_id=client_id, kind=AssignmentKind.VALIDATE)
        .select_related("round__session", "client")
        .first()
    )
    if row is None:
        return Verdict(False, "there is no such validation of yours")
    if row.status == AssignmentStatus.ACCEPTED:
        return Verdict(True)
    if weight <= 0:
        weight = _examples_of(row)
    session_id = row.round.session_id
    with transaction.atomic():
        Session.objects.filter(pk=session_id, status=SessionStatus.RUNNING).update(look_at=Now())
        if not move(
            Assignment.objects.filter(pk=assignment_id),
            ASSIGNMENT_MOVES,
            AssignmentStatus.ACCEPTED,
            ended_at=Now(),
            progress=1.0,
            num_examples=weight,
        ):
            row.refresh_from_db()
            return Verdict(row.status == AssignmentStatus.ACCEPTED, row.error or "the time for it was up")
        models.record_validation(
            project_id=row.project_id,
            session_id=session_id,
            round_number=row.round.number,
            model_id=row.model_id,
            client_id=client_id,
            client_name=row.client.name,
            assignment_id=assignment_id,
            data=data,
            weight=weight,
        )
        publish(
            project_id=row.project_id,
            kind="validation.received",
            message=f"{row.client.name} validated the model of round {row.round.number}.",
            session_id=session_id,
            round_number=row.round.number,
            client_id=client_id,
            model=str(row.model_id),
        )
        hints.wake_session(str(session_id))
    return Verdict(True)


def _examples_of(row: Assignment) -> float:
    known = (
        Assignment.objects.filter(
            round_id=row.round_id, client_id=row.client_id, kind=AssignmentKind.TRAIN, num_examples__gt=0
        )
        .values_list("num_examples", flat=True)
        .first()
    )
    return known or 1.0


def look_now(session_id: uuid.UUID) -> None:
    Session.objects.filter(pk=session_id, status=SessionStatus.RUNNING).update(look_at=Now())
    hints.wake_session(str(session_id))
