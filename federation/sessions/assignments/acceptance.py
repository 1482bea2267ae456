"""How an assignment ends: accepted, refused, rejected, failed. Every report may be repeated safely."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, transaction
from django.db.models.functions import Now

from clients_app.models import Combiner
from federation.aggregation.aggregators import UpdateFacts
from federation.events.models import Event
from federation.events.services import event, publish, publish_many
from federation.models import services as models
from federation.sessions import counting, privacy
from federation.sessions.assignments import arrivals
from federation.sessions.assignments.share_work import Closing, accepted_updates
from federation.sessions.choices import (
    ASSIGNMENT_MOVES,
    LIVE_ASSIGNMENT,
    AssignmentKind,
    AssignmentStatus,
    RoundStatus,
    SessionStatus,
    ShareStatus,
)
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from foundation import hints
from foundation.clock import db_now
from foundation.errors import StudioError
from foundation.moves import move

log = structlog.get_logger(__name__)

OF_THE_ROW = (DataError, IntegrityError)


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
    delta_norm: float | None = None  # where the session needs it
    sent_bytes: int | None = None  # what travelled
    encoding: str = ""  # how it was compressed on the way, if it was


@dataclass(frozen=True)
class Verdict:
    """`accepted` also for a second copy; then `spool_name` is the file that counts. `weight` is the update's in the
    fold. `superseded`: a newer combiner runs under this name, so nothing was decided; the client sends to that one."""

    accepted: bool
    reason: str = ""
    share_id: uuid.UUID | None = None
    spool_name: str = ""
    closes: bool = False
    closing: Closing | None = None  # of a verdict that closes: its combiner's share, to be finished at once
    superseded: bool = False
    unkept: bool = False
    weight: float | None = None
    round_id: uuid.UUID | None = None  # that of the share

    def keeps(self, update: SpooledUpdate) -> bool:
        """Whether this update's file is the one that counts."""
        return self.accepted and self.spool_name == update.spool_name


def accept_updates(
    *, combiner_id: uuid.UUID, epoch: int, updates: Sequence[SpooledUpdate]
) -> dict[uuid.UUID, Verdict]:
    """One transaction for each round (asynchronous: for each session). Whichever accepts the last update closes it.
    Raises only what the database is to blame for: an update that cannot be kept is refused, and no other with it."""
    verdicts: dict[uuid.UUID, Verdict] = {}
    for batch in arrivals.grouped(updates):
        try:
            verdicts |= _accept_together(combiner_id, epoch, batch)
        except Exception as error:
            if isinstance(error, (DatabaseError, InterfaceError)) and not isinstance(error, OF_THE_ROW):
                raise
            if len(batch) > 1:
                for update in batch:
                    verdicts |= accept_updates(combiner_id=combiner_id, epoch=epoch, updates=[update])
                continue
            log.exception("accept.unkept", assignment=str(batch[0].assignment_id))
            verdicts[batch[0].assignment_id] = Verdict(
                False, "the server cannot keep what came with it", unkept=True
            )
    return verdicts


def _accept_together(
    combiner_id: uuid.UUID, epoch: int, batch: list[SpooledUpdate]
) -> dict[uuid.UUID, Verdict]:
    with transaction.atomic():
        taking = arrivals.taking(batch[0].round_id)
        if taking is None:
            return {u.assignment_id: Verdict(False, "this round no longer exists") for u in batch}
        if not Combiner.objects.filter(pk=combiner_id, epoch=epoch).exists():
            gone = Verdict(False, "another combiner has taken over; connect again", superseded=True)
            return {u.assignment_id: gone for u in batch}
        round_ = taking.round
        share = _share_to_fill(round_, combiner_id)
        now = db_now()
        rows = _locked(batch)
        taking.age(rows.values(), now)
        verdicts: dict[uuid.UUID, Verdict] = {}
        fresh: list[Assignment] = []
        for update in sorted(batch, key=lambda u: u.assignment_id):
            row = rows.get(update.assignment_id)
            if row is not None and row.client_id != update.client_id:
                row = None
            if row is not None and row.status == AssignmentStatus.ACCEPTED:  # a second copy
                verdict = _accepted_already(row)
            elif (
                share is None or row is None or AssignmentStatus.ACCEPTED not in ASSIGNMENT_MOVES[row.status]
            ):
                verdict = Verdict(False, refusal(round_, row))
            else:
                verdict = _fill(row, update, share, round_, taking.config, now)
                fresh += [row] * verdict.accepted
            verdicts[update.assignment_id] = verdict
        if fresh:
            _write(fresh)
            models.record_training_metadata(_reports(fresh, round_))
            publish_many([_accepted_event(row, round_, combiner_id) for row in fresh])
        elif share is not None and not share.assignments.exists():
            share.delete()  # made for a late update; an empty one would have no partial
        if shares := taking.settle(fresh, now):
            closing = _closing(share, round_, alone=shares == 1) if fresh and share is not None else None
            if closing is None or shares > 1:
                hints.wake_combiners([], ourselves=closing is None)
            verdicts = {key: replace(v, closes=True, closing=closing) for key, v in verdicts.items()}
    if taking.look:
        look_now(round_.session_id)
    return verdicts


def _closing(share: CombinerShare, round_: Round, *, alone: bool) -> Closing:
    accepted = accepted_updates([share.pk])[share.pk]
    return Closing(share.pk, round_.pk, round_.session_id, alone, tuple(accepted))


def _accepted_already(row: Assignment) -> Verdict:
    """Closed since, or by the call that is repeated here because its answer was lost: then that is told again."""
    share = CombinerShare.objects.filter(assignments=row).only("round_id", "status").first()
    return Verdict(
        True,
        "",
        row.share_id,
        row.spool_name,
        closes=share is not None and share.status == ShareStatus.CLOSING,
        weight=row.weight,
        round_id=share.round_id if share else None,
    )


def _locked(batch: list[SpooledUpdate]) -> dict[uuid.UUID, Assignment]:
    rows = Assignment.objects.select_for_update(of=("self",), no_key=True).order_by("id")
    return {row.pk: row for row in rows.filter(pk__in=[update.assignment_id for update in batch])}


def _fill(
    row: Assignment,
    update: SpooledUpdate,
    share: CombinerShare,
    round_: Round,
    config: SessionConfig,
    now: dt.datetime,
) -> Verdict:
    """What an accepted update makes of its locked row; `_write` stores it."""
    facts = UpdateFacts(
        key=str(row.client_id),
        num_examples=update.num_examples,
        metadata=update.metadata,
        base=str(row.model_id),
        delta_norm=update.delta_norm,
        staleness=row.staleness,
    )
    try:
        row.weight = counting.fold_weight(facts, config, privacy.of_round(round_, config))
    except StudioError as error:
        return Verdict(False, error.message)
    row.status, row.share, row.ended_at = AssignmentStatus.ACCEPTED, share, now
    row.progress, row.error = 1.0, ""
    row.spool_name, row.sha256, row.size_bytes = update.spool_name, update.sha256, update.size_bytes
    row.sent_bytes, row.encoding = update.sent_bytes, update.encoding
    row.num_examples, row.metadata = update.num_examples, update.metadata
    row.update_norm, row.delta_norm = update.update_norm, update.delta_norm
    return Verdict(True, "", share.pk, update.spool_name, weight=row.weight, round_id=round_.pk)


_FILLED = (
    "status", "share", "ended_at", "progress", "error", "spool_name", "sha256", "size_bytes", "sent_bytes",
    "encoding", "num_examples", "metadata", "update_norm", "delta_norm", "weight", "staleness",
)  # fmt: skip


def _write(rows: list[Assignment]) -> None:
    """Locked rows in one statement. An upsert: `bulk_update` builds a CASE per field and row, which costs more than
    a statement for each row."""
    Assignment.objects.bulk_create(rows, update_conflicts=True, unique_fields=["id"], update_fields=_FILLED)


def _reports(rows: list[Assignment], round_: Round) -> list[models.TrainingReport]:
    return [
        models.TrainingReport(
            project_id=round_.project_id,
            session_id=round_.session_id,
            round_number=round_.number,
            model_id=row.model_id,
            client_id=row.client_id,
            metadata=row.metadata,
            weight=row.num_examples or 0.0,
        )
        for row in rows
    ]


def _accepted_event(row: Assignment, round_: Round, combiner_id: uuid.UUID) -> Event:
    return event(
        project_id=round_.project_id,
        kind="update.accepted",
        message=f"Update for round {round_.number} accepted "
        f"({row.num_examples:g} example{'s' * (row.num_examples != 1)}).",
        session_id=round_.session_id,
        round_number=round_.number,
        client_id=row.client_id,
        combiner_id=combiner_id,
        norm=row.update_norm,
        size_bytes=row.size_bytes,
    )


def _share_to_fill(round_: Round, combiner_id: uuid.UUID) -> CombinerShare | None:
    """The combiner's open share, locked; made here while the locked round is training."""
    shares = CombinerShare.objects.select_for_update(of=("self",), no_key=True)
    kept = shares.filter(round=round_, combiner_id=combiner_id).exclude(status=ShareStatus.ABANDONED)
    share = next(iter(kept.order_by()), None)
    if share is not None:
        return share if share.status == ShareStatus.OPEN else None
    if round_.status != RoundStatus.TRAINING:
        return None
    return CombinerShare.objects.create(project_id=round_.project_id, round=round_, combiner_id=combiner_id)


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
) -> Verdict | None:
    """Keep a client's validation of a model. A second copy changes nothing. None: it has no such assignment."""
    row = (
        Assignment.objects.filter(pk=assignment_id, client_id=client_id, kind=AssignmentKind.VALIDATE)
        .select_related("round__session", "client")
        .first()
    )
    if row is None:
        return None
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
            share__round_id=row.round_id,
            client_id=row.client_id,
            kind=AssignmentKind.TRAIN,
            num_examples__gt=0,
        )
        .values_list("num_examples", flat=True)
        .first()
    )
    return known or 1.0


def look_now(session_id: uuid.UUID) -> None:
    Session.objects.filter(pk=session_id, status=SessionStatus.RUNNING).update(look_at=Now())
    hints.wake_session(str(session_id))
