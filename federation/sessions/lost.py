"""Combiners that went silent, and what was lost with them."""

from __future__ import annotations

import datetime as dt

from django.db.models import Q

from clients_app.models import Client
from federation.events.services import publish
from federation.sessions import rounds
from federation.sessions.choices import (
    ASSIGNMENT_MOVES,
    SHARE_MOVES,
    AssignmentKind,
    AssignmentStatus,
    RoundStatus,
    ShareStatus,
)
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, CombinerShare, Round
from foundation.clock import db_now
from foundation.moves import move

SEEN_SILENT_S = 15.0  # longer than a combiner that lives needs to renew its lease after an outage


def silent_shares(round_: Round, status: str, now: dt.datetime, patience_s: float) -> list[CombinerShare]:
    """Shares whose combiner's lease is out, and was seen to be out for a while.

    That it is out alone says nothing: after an outage of the database every lease is. Whoever lives renews it
    within `SEEN_SILENT_S`.
    """
    rows = list(
        CombinerShare.objects.select_for_update(of=("self",), no_key=True)
        .filter(round=round_, status=status)
        .filter(Q(combiner__lease_until__lt=now) | Q(combiner__lease_until=None))
        .select_related("combiner")
        .order_by("id")
    )
    silent = []
    for share in rows:
        renewed = share.combiner.lease_until
        if share.silent_since is None or (renewed is not None and share.silent_since < renewed):
            share.silent_since = now
            share.save(update_fields=["silent_since"])
        if now - share.silent_since >= dt.timedelta(seconds=min(patience_s, SEEN_SILENT_S)):
            silent.append(share)
    return silent


def give_up_lost_disks(round_: Round, config: SessionConfig, now: dt.datetime) -> bool:
    """A combiner whose lease has been out for `lost_after_s` took its disk along: what it accepted is lost."""
    cutoff = now - dt.timedelta(seconds=config.lost_after_s)
    gone = [
        share
        for share in silent_shares(round_, ShareStatus.OPEN, now, config.lost_after_s)
        if share.combiner.lease_until is None or share.combiner.lease_until <= cutoff
    ]
    for share in gone:
        lose_share(
            share, round_, f"combiner {share.combiner.name} has been away for {config.lost_after_s:g} s"
        )
    return bool(gone)


def lose_share(share: CombinerShare, round_: Round, reason: str) -> None:
    """Share -> abandoned, its accepted assignments -> lost; in training they are assigned again (in an
    asynchronous session everybody free is asked anyway). Round is locked."""
    if not move(
        CombinerShare.objects.filter(pk=share.pk),
        SHARE_MOVES,
        ShareStatus.ABANDONED,
        ended_at=db_now(),
        reason=reason[:300],
    ):
        return
    accepted = Assignment.objects.filter(share=share, status=AssignmentStatus.ACCEPTED)
    clients = list(Client.objects.filter(assignments__in=accepted).order_by("id"))
    move(accepted, ASSIGNMENT_MOVES, AssignmentStatus.LOST, error=reason[:1000])
    publish(
        project_id=share.project_id,
        kind="round.updates_lost",
        level="error",
        message=f"{len(clients)} accepted update{'s' * (len(clients) != 1)} of round {round_.number} lost: {reason}.",
        session_id=round_.session_id,
        round_number=round_.number,
        combiner_id=share.combiner_id,
    )
    if round_.status == RoundStatus.TRAINING and clients and not round_.buffered:
        rounds.assign(
            round_,
            clients,
            model_id=round_.input_model_id,
            kind=AssignmentKind.TRAIN,
            deadline=round_.deadline,
            why=dict.fromkeys((c.pk for c in clients), "asked again: its update was lost with the combiner"),
        )
