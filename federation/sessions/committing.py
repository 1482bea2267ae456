"""How a reduction ends: the right to reduce a round, and the one transaction that makes its model the session's."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Q

from clients_app.models import Client
from federation.events.services import publish
from federation.models.models import Model
from federation.models.services import add_round_model
from federation.sessions import turns
from federation.sessions.choices import ROUND_MOVES, AssignmentKind, RoundStatus, SessionStatus
from federation.sessions.config import SessionConfig
from federation.sessions.locks import lock_session
from federation.sessions.models import Round, Session
from federation.sessions.privacy import Spent, told
from federation.sessions.rounds import assign
from foundation.clock import db_now
from foundation.moves import move


@dataclass(frozen=True)
class ReducedModel:
    """What a reduction wrote: a file in storage and what is known of it."""

    key: str
    sha256: str
    size_bytes: int  # 0: as large as the model that it answers
    updates: int
    weight: float
    state_key: str = ""  # what the aggregator keeps for the next round; empty: nothing
    spent: Spent | None = None  # of privacy

    @property
    def made_of(self) -> str:
        """Such as "made of 3 updates of 270 examples"; of a private session not whose data it was."""
        updates = f"made of {self.updates} update{'s' * (self.updates != 1)}"
        return updates if self.spent else f"{updates} of {self.weight:.15g} example{'s' * (self.weight != 1)}"


def commit_round(*, round_id: uuid.UUID, owner: uuid.UUID, reduced: ReducedModel) -> Model | None:
    """One transaction: model, round, session, validations. None: somebody committed first, or it was stopped."""
    session_id = Round.objects.filter(pk=round_id).values_list("session_id", flat=True).first()
    if session_id is None:
        return None
    with transaction.atomic():
        session = lock_session(session_id)
        if session is None or session.status != SessionStatus.RUNNING:
            return None
        round_ = Round.objects.select_for_update(of=("self",), no_key=True).get(pk=round_id)
        if round_.status != RoundStatus.REDUCING or round_.reduce_owner != owner:
            return None
        model = _commit(session, round_, reduced, db_now())
        turns.hand_on(session.project_id)
    return model


def adopt_partial(session: Session, round_: Round, reduced: ReducedModel, now: dt.datetime) -> Model | None:
    """The partial of a round's only share is its model as it is: nothing is left to reduce, so whoever finishes the
    share commits. Session and Round are locked, and the round is closing. None: the session does not run."""
    if session.status != SessionStatus.RUNNING:
        return None
    round_.reducing_at = now
    return _commit(session, round_, reduced, now)


def _commit(session: Session, round_: Round, reduced: ReducedModel, now: dt.datetime) -> Model:
    parent = Model.objects.get(pk=round_.input_model_id)
    model = add_round_model(
        session_id=session.pk,
        project_id=session.project_id,
        parent=parent,
        round_number=round_.number,
        name=f"{session.name} · round {round_.number}",
        key=reduced.key,
        sha256=reduced.sha256,
        size_bytes=reduced.size_bytes or parent.size_bytes,
        layout=parent.layout,
        metadata=told(reduced.spent)
        if reduced.spent
        else {"updates": reduced.updates, "num_examples": reduced.weight},
    )
    move(
        Round.objects.filter(pk=round_.pk),
        ROUND_MOVES,
        RoundStatus.FINISHED,
        reducing_at=round_.reducing_at,
        ended_at=now,
        output_model=model,
        reason=reduced.made_of,
        timings=timings(round_, now),
        epsilon=reduced.spent.epsilon if reduced.spent else None,
        plan=round_.plan | (reduced.spent.plan if reduced.spent else {}),
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
        message=f"Round {round_.number} of {session.name} finished: {reduced.made_of}.",
        session_id=session.pk,
        round_number=round_.number,
        model=str(model.pk),
    )
    return model


def assign_validations(
    session: Session, round_: Round, model: Model, config: SessionConfig, now: dt.datetime
) -> None:
    """Clients of this round that are still online validate what it made."""
    took_part = Q(assignments__share__round=round_) if round_.buffered else Q(assignments__round=round_)
    clients = list(
        Client.objects.filter(
            took_part, assignments__kind=AssignmentKind.TRAIN, project_id=session.project_id
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
    """Give the claim back, and the turn; nobody takes it for so long."""
    until = db_now() + dt.timedelta(seconds=seconds)
    mine = Round.objects.filter(pk=round_id, status=RoundStatus.REDUCING, reduce_owner=owner)
    if mine.update(reduce_owner=None, reduce_until=until, reduce_asked_at=None):
        turns.hand_on(Round.objects.values_list("project_id", flat=True).get(pk=round_id))
