"""A combiner's shares: what was accepted, what became of it, and what was lost."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from clients_app.models import Combiner
from federation.aggregation.aggregators import AGGREGATORS
from federation.events.services import publish
from federation.sessions import engine, rounds
from federation.sessions.assignments.acceptance import look_now
from federation.sessions.choices import (
    OPEN_ROUND,
    SHARE_MOVES,
    AssignmentStatus,
    RoundStatus,
    ShareStatus,
)
from federation.sessions.config import SessionConfig
from federation.sessions.locks import lock_round, lock_session
from federation.sessions.models import Assignment, CombinerShare, Round
from foundation import hints
from foundation.clock import db_now
from foundation.moves import move


@dataclass(frozen=True)
class AcceptedUpdate:
    assignment_id: uuid.UUID
    client_name: str
    spool_name: str
    num_examples: float


@dataclass(frozen=True)
class ShareWork:
    """A share of this combiner in an unfinished round, with the accepted rows that count."""

    share_id: uuid.UUID
    round_id: uuid.UUID
    project_id: uuid.UUID
    closing: bool
    is_model: bool  # the partial is the model as it is: the only share, and plain averaging
    layout: list[Any]
    accepted: tuple[AcceptedUpdate, ...]


def unfinished_shares(combiner_id: uuid.UUID, *, closing_only: bool) -> list[ShareWork]:
    states = [ShareStatus.CLOSING] if closing_only else [ShareStatus.OPEN, ShareStatus.CLOSING]
    shares = (
        CombinerShare.objects.filter(combiner_id=combiner_id, status__in=states)
        .select_related("round__input_model", "round__session")
        .order_by("id")
    )
    work = []
    for share in shares:
        accepted = (
            share.assignments.filter(status=AssignmentStatus.ACCEPTED).select_related("client").order_by("id")
        )
        config = SessionConfig.from_json(share.round.session.config)
        aggregator = AGGREGATORS.get(config.aggregator)  # none: the reduction says so
        others = CombinerShare.objects.filter(round_id=share.round_id).exclude(pk=share.pk)
        work.append(
            ShareWork(
                share_id=share.pk,
                round_id=share.round_id,
                project_id=share.project_id,
                closing=share.status == ShareStatus.CLOSING,
                is_model=aggregator is not None
                and aggregator.plain_mean
                and not others.exclude(status=ShareStatus.ABANDONED).exists(),
                layout=share.round.input_model.layout,
                accepted=tuple(
                    AcceptedUpdate(a.pk, a.client.name, a.spool_name, a.num_examples or 0.0) for a in accepted
                ),
            )
        )
    return work


def finish_share(
    *,
    share_id: uuid.UUID,
    combiner_id: uuid.UUID,
    epoch: int,
    partial_key: str,
    partial_sha256: str,
    weight: float,
    updates: int,
    is_model: bool,
) -> bool:
    """closing -> finished; the one that finishes the last share starts the reduction. False: given up meanwhile."""
    round_id = CombinerShare.objects.values_list("round_id", flat=True).get(pk=share_id)
    with transaction.atomic():
        round_ = lock_round(round_id)
        if round_ is None or not Combiner.objects.filter(pk=combiner_id, epoch=epoch).exists():
            return False
        finished = move(
            CombinerShare.objects.filter(pk=share_id),
            SHARE_MOVES,
            ShareStatus.FINISHED,
            partial_key=partial_key,
            partial_sha256=partial_sha256,
            weight=weight,
            updates=updates,
            is_model=is_model,
            ended_at=Now(),
        )
        if not finished:
            return False
        if round_.status == RoundStatus.CLOSING and rounds.shares_done(round_):
            if rounds.tally(round_).accepted >= round_.min_updates:
                rounds.start_reducing(round_, db_now())
            else:
                hints.wake_session(str(round_.session_id))
    return True


def abandon_share(*, share_id: uuid.UUID, reason: str) -> None:
    """The combiner cannot make this share's partial (its files are gone, or the sum is not finite)."""
    share = CombinerShare.objects.select_related("combiner").get(pk=share_id)
    round_row = Round.objects.get(pk=share.round_id)
    with transaction.atomic():
        lock_session(round_row.session_id)
        round_ = lock_round(share.round_id)
        if round_ is not None:
            engine.lose_share(share, round_, reason)
    look_now(round_row.session_id)


def share_waits(*, share_id: uuid.UUID, what: str) -> bool:
    """The partial of a closing share cannot be made or stored now. False: nobody waits for it any more."""
    share = CombinerShare.objects.filter(pk=share_id, status=ShareStatus.CLOSING).first()
    return share is not None and rounds.wait_for_storage(share.round_id, what)


def note_full_disk(*, combiner_id: uuid.UUID, project_id: uuid.UUID, reason: str) -> None:
    """The spool refused bytes: an event for the people who run things."""
    name = Combiner.objects.values_list("name", flat=True).get(pk=combiner_id)
    publish(
        project_id=project_id,
        kind="combiner.spool_refused",
        level="error",
        message=f"Combiner {name} cannot take updates: {reason}. Clients are told to try again later; "
        "nothing that was accepted is touched.",
        combiner_id=combiner_id,
    )


def fail_round(*, round_id: uuid.UUID, reason: str) -> None:
    """A round that no retry of a share can save: its sum is not finite."""
    round_row = Round.objects.get(pk=round_id)
    with transaction.atomic():
        session = lock_session(round_row.session_id)
        round_ = lock_round(round_id)
        if session is not None and round_ is not None and round_.status in OPEN_ROUND:
            rounds.fail(session, round_, reason, SessionConfig.from_json(session.config))
    look_now(round_row.session_id)


def lose_disk(combiner_id: uuid.UUID) -> int:
    """A combiner came back with another spool: what its old one held of unfinished rounds is lost."""
    shares = CombinerShare.objects.filter(
        combiner_id=combiner_id,
        status__in=[ShareStatus.OPEN, ShareStatus.CLOSING],
        round__status__in=OPEN_ROUND,
    ).values_list("pk", flat=True)
    lost = list(shares)
    for share_id in lost:
        abandon_share(share_id=share_id, reason="the combiner came back with another disk")
    return len(lost)


def spool_names_in_use(combiner_id: uuid.UUID) -> set[str]:
    """Spool files that unfinished rounds still need."""
    return set(
        Assignment.objects.filter(
            share__combiner_id=combiner_id,
            round__status__in=OPEN_ROUND,
            status=AssignmentStatus.ACCEPTED,
        ).values_list("spool_name", flat=True)
    )
