"""A combiner's shares: what was accepted, what became of it, and what was lost."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Now

from clients_app.models import Combiner
from federation.events.services import publish
from federation.sessions import committing, counting, engine, lost, rounds
from federation.sessions.assignments.acceptance import look_now
from federation.sessions.assignments.share_work import ShareWork, accepted_updates
from federation.sessions.choices import (
    OPEN_ROUND,
    SHARE_MOVES,
    AssignmentStatus,
    RoundStatus,
    ShareStatus,
)
from federation.sessions.committing import ReducedModel
from federation.sessions.config import SessionConfig
from federation.sessions.locks import lock_round, lock_session
from federation.sessions.models import Assignment, CombinerShare, Round
from foundation import hints
from foundation.clock import db_now
from foundation.moves import move

FEW_ONLINE = 100  # when the round opened: to choose among more is a worker's work, not a combiner's


def note_collected(*, combiner_id: uuid.UUID, epoch: int, keys: Mapping[uuid.UUID, str]) -> set[uuid.UUID]:
    """Accepted updates of this combiner are in storage under these keys; answers which rows name theirs, whoever asks
    again included. Another copy was there before, or the row no longer counts: then the key is nobody's."""
    with transaction.atomic():
        # Locked before anything is looked at: what an earlier call of ours wrote is seen, though its answer was lost.
        rows = list(
            Assignment.objects.select_for_update(of=("self",), no_key=True)
            .filter(pk__in=list(keys))
            .order_by("id")
            .select_related("share")
            .only("update_key", "status", "share__combiner_id", "share__status")
        )
        fresh = [row for row in rows if _wants_copy(row, combiner_id)]
        if fresh and Combiner.objects.filter(pk=combiner_id, epoch=epoch).exists():
            for row in fresh:
                row.update_key = keys[row.pk]
            Assignment.objects.bulk_update(fresh, ["update_key"])
    return {row.pk for row in rows if row.update_key == keys[row.pk]}


def _wants_copy(row: Assignment, combiner_id: uuid.UUID) -> bool:
    return (
        row.status == AssignmentStatus.ACCEPTED
        and not row.update_key
        and row.share is not None
        and row.share.combiner_id == combiner_id
        and row.share.status in (ShareStatus.OPEN, ShareStatus.CLOSING)
    )


def unfinished_shares(combiner_id: uuid.UUID) -> set[uuid.UUID]:
    """Those of this combiner that take updates, or are to become partials."""
    rows = CombinerShare.objects.filter(combiner_id=combiner_id)
    return set(rows.filter(status__in=[ShareStatus.OPEN, ShareStatus.CLOSING]).values_list("pk", flat=True))


def closing_shares(combiner_id: uuid.UUID) -> list[ShareWork]:
    """Two queries, however many there are; no row becomes an object."""
    others = CombinerShare.objects.filter(round=OuterRef("round")).exclude(pk=OuterRef("pk"))
    shares = list(
        CombinerShare.objects.filter(combiner_id=combiner_id, status=ShareStatus.CLOSING)
        .order_by("id")
        .values_list(
            "pk",
            "round_id",
            "round__session_id",
            "project_id",
            "round__session__config",
            "round__input_model__key",
            "round__input_model__layout",
            ~Exists(others.exclude(status=ShareStatus.ABANDONED)),
        )
    )
    if not shares:
        return []
    accepted = accepted_updates([share[0] for share in shares])
    work = []
    for pk, round_id, session_id, project_id, said, input_key, layout, alone in shares:
        config = SessionConfig.from_json(said)
        work.append(
            ShareWork(
                share_id=pk,
                round_id=round_id,
                session_id=session_id,
                project_id=project_id,
                is_model=counting.adopts_partial(config) and alone,
                collects=counting.collects(config),
                input_key=input_key,
                layout=layout,
                accepted=tuple(accepted[pk]),
            )
        )
    return work


def finish_share(
    *,
    share_id: uuid.UUID,
    round_id: uuid.UUID,
    session_id: uuid.UUID,
    combiner_id: uuid.UUID,
    epoch: int,
    partial_key: str = "",
    partial_sha256: str = "",
    weight: float,
    updates: int,
    is_model: bool = False,
    collected: bool = False,
) -> bool:
    """closing -> finished; the one that finishes the last share starts the reduction, or, where its partial is the
    model as it is, commits the round. No partial: the updates were collected, or none of them has any weight. False:
    given up meanwhile."""
    with transaction.atomic():
        session = lock_session(session_id) if is_model else None  # locks go in order: Session, Round, Share
        round_ = lock_round(round_id)
        if round_ is None:
            return False
        rows = CombinerShare.objects.filter(round=round_)
        shares = {
            pk: known
            for pk, *known in rows.values_list(
                "pk", "status", "partial_key", "combiner_id", "combiner__epoch"
            )
        }
        status, stored, *runs = shares.pop(share_id)
        if status == ShareStatus.FINISHED:
            return bool(stored == partial_key)  # also by a commit of ours whose answer was lost: no leftover
        if runs != [combiner_id, epoch]:
            return False
        if collected and _accepted_of(share_id).filter(update_key="").exists():
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
            collected=collected,
            ended_at=Now(),
        )
        if not finished:  # it was given up, or another attempt's partial is the share's
            return False
        others = {status for status, *_ in shares.values()} - {ShareStatus.ABANDONED}
        if round_.status == RoundStatus.CLOSING and others <= {ShareStatus.FINISHED}:
            if rounds.accepted_in(round_).count() < round_.min_updates:
                hints.wake_session(str(session_id))
            elif session is not None and partial_key and not others:
                adopted = ReducedModel(partial_key, partial_sha256, 0, updates, weight)
                made = committing.adopt_partial(session, round_, adopted, db_now())
                if made is not None and round_.plan.get("selection", {}).get("online", 0) <= FEW_ONLINE:
                    engine.go_on(session)
                else:
                    hints.wake_session(str(session_id))
            else:
                rounds.start_reducing(round_, db_now())
    return True


def _accepted_of(share_id: uuid.UUID) -> QuerySet[Assignment]:
    return Assignment.objects.filter(share_id=share_id, status=AssignmentStatus.ACCEPTED)


def abandon_share(*, share_id: uuid.UUID, reason: str) -> None:
    """The combiner cannot make this share's partial (its files are gone, or the sum is not finite)."""
    share = CombinerShare.objects.select_related("combiner").get(pk=share_id)
    round_row = Round.objects.get(pk=share.round_id)
    with transaction.atomic():
        lock_session(round_row.session_id)
        round_ = lock_round(share.round_id)
        if round_ is not None:
            share.refresh_from_db(fields=["status"])
            if share.status in (
                ShareStatus.OPEN,
                ShareStatus.CLOSING,
            ):  # else its updates are in a model already
                lost.lose_share(share, round_, reason)
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
            share__round__status__in=OPEN_ROUND,
            status=AssignmentStatus.ACCEPTED,
        ).values_list("spool_name", flat=True)
    )
