"""What clients owe, what they may touch, and what they say while they work."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import F, Max, QuerySet
from django.db.models.functions import Now

from clients_app.presence import CombinerLease
from federation.models import services as models
from federation.models.models import Model
from federation.sessions import counting
from federation.sessions.choices import (
    ASSIGNMENT_MOVES,
    LIVE_ASSIGNMENT,
    LIVE_ORDER,
    AssignmentKind,
    AssignmentStatus,
    SessionStatus,
)
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, Order, Round, Session
from foundation import hints
from foundation.moves import move

MOST_WOKEN = 20


@dataclass(frozen=True)
class ModelGrant:
    """A model that a client may fetch for a task: an assignment, or an order of a command."""

    task_id: uuid.UUID
    model_id: uuid.UUID
    model_key: str
    model_sha256: str
    model_size_bytes: int
    layout: list[Any]


@dataclass(frozen=True)
class WorkGrant(ModelGrant):
    """What a client may do with one of its own assignments, and how what it sends will count."""

    client_id: uuid.UUID
    round_id: uuid.UUID
    project_id: uuid.UUID
    status: str
    live: bool
    kind: str
    reason: str
    config: SessionConfig

    @property
    def assignment_id(self) -> uuid.UUID:
        return self.task_id


@dataclass(frozen=True)
class Owed:
    """A task that a connected client has not answered yet."""

    assignment_id: uuid.UUID
    client_id: uuid.UUID
    kind: str
    session_id: uuid.UUID
    session_name: str
    round_number: int
    package_id: uuid.UUID | None
    package_sha256: str
    settings: dict[str, Any]
    deadline_unix_s: float
    grant: WorkGrant
    compression: str = "none"  # how the session would like the update

    @property
    def model_id(self) -> uuid.UUID:
        return self.grant.model_id

    @property
    def model_sha256(self) -> str:
        return self.grant.model_sha256

    @property
    def model_size_bytes(self) -> int:
        return self.grant.model_size_bytes


def owed(client_ids: Iterable[uuid.UUID]) -> list[Owed]:
    """Live assignments of these clients, oldest first: at most three queries."""
    return _owed(Assignment.objects.filter(client_id__in=list(client_ids)))


def owed_on(lease: CombinerLease) -> list[Owed]:
    """As `owed`, of everybody who is connected to a combiner; those who owe nothing cost nothing."""
    return _owed(
        Assignment.objects.filter(
            client__combiner_id=lease.combiner_id,
            client__connection_epoch=lease.epoch,
            client__connection_id__gt="",
        )
    )


def _owed(of: QuerySet[Assignment]) -> list[Owed]:
    """Of thousands of rows a few models and rounds are shared: each is read once, and no row becomes an object."""
    rows = list(
        of.filter(status__in=LIVE_ASSIGNMENT)
        .order_by("id")
        .values_list("pk", "client_id", "project_id", "kind", "status", "deadline", "round_id", "model_id")
    )
    if not rows:
        return []
    models = {
        model.pk: model
        for model in Model.objects.filter(pk__in={row[-1] for row in rows}).only(
            "key", "sha256", "size_bytes", "layout"
        )
    }
    rounds = {
        round_.pk: _RoundFacts.of(round_)
        for round_ in Round.objects.filter(pk__in={row[-2] for row in rows})
        .select_related("session__package")
        .only("number", "session__name", "session__config", "session__package__sha256")
    }
    return [
        rounds[round_id].owed(pk, client_id, project_id, kind, status, deadline, models[model_id])
        for pk, client_id, project_id, kind, status, deadline, round_id, model_id in rows
    ]


@dataclass(frozen=True)
class _RoundFacts:
    """What all assignments that a round issued have in common."""

    round: Round
    config: SessionConfig
    settings: dict[str, Any]

    @classmethod
    def of(cls, round_: Round) -> _RoundFacts:
        config = SessionConfig.from_json(round_.session.config)
        return cls(round_, config, counting.settings_of_clients(config))

    def owed(
        self,
        pk: uuid.UUID,
        client_id: uuid.UUID,
        project_id: uuid.UUID,
        kind: str,
        status: str,
        deadline: dt.datetime,
        model: Model,
    ) -> Owed:
        session = self.round.session
        package = session.package
        return Owed(
            assignment_id=pk,
            client_id=client_id,
            kind=kind,
            session_id=session.pk,
            session_name=session.name,
            round_number=self.round.number,
            package_id=package.pk if package else None,
            package_sha256=package.sha256 if package else "",
            settings=self.settings,
            deadline_unix_s=deadline.timestamp(),
            grant=WorkGrant(
                task_id=pk,
                client_id=client_id,
                round_id=self.round.pk,
                project_id=project_id,
                status=status,
                live=True,
                kind=kind,
                reason="",
                config=self.config,
                model_id=model.pk,
                model_key=model.key,
                model_sha256=model.sha256,
                model_size_bytes=model.size_bytes,
                layout=model.layout,
            ),
            compression=self.config.compression,
        )


def reasons_of_end(assignment_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, tuple[str, str]]:
    """(status, reason) of those that there are; a live one has no reason."""
    rows = Assignment.objects.filter(pk__in=list(assignment_ids))
    return {row.pk: (row.status, row.error) for row in rows.only("status", "error")}


def mark_delivered(assignment_ids: Iterable[uuid.UUID]) -> int:
    """Answers how many were."""
    return move(
        Assignment.objects.filter(pk__in=list(assignment_ids)),
        ASSIGNMENT_MOVES,
        AssignmentStatus.DELIVERED,
        delivered_at=Now(),
    )


def note_progress(fractions: dict[uuid.UUID, float]) -> None:
    """How far clients are; of what has ended meanwhile nothing changes."""
    rows = [Assignment(pk=pk, progress=min(max(value, 0.0), 1.0)) for pk, value in fractions.items()]
    Assignment.objects.filter(status__in=LIVE_ASSIGNMENT).bulk_update(rows, ["progress"])


def work_grant(client_id: uuid.UUID, assignment_id: uuid.UUID) -> WorkGrant | None:
    """None: there is no such assignment of this client."""
    return _grant(Assignment.objects.filter(pk=assignment_id, client_id=client_id))


def model_grant(client_id: uuid.UUID, model_id: uuid.UUID) -> ModelGrant | None:
    """The newest of the client's live tasks that name the model; None: there is none."""
    live = Assignment.objects.filter(client_id=client_id, model_id=model_id, status__in=LIVE_ASSIGNMENT)
    grant = _grant(live.order_by("-id"))
    if grant is not None:
        return grant
    order = (
        Order.objects.filter(client_id=client_id, command__model_id=model_id, status__in=LIVE_ORDER)
        .select_related("command__model")
        .order_by("-id")
        .first()
    )
    if order is None or (model := order.command.model) is None:
        return None
    return ModelGrant(order.pk, model.pk, model.key, model.sha256, model.size_bytes, model.layout)


def largest_owed_bytes(client_id: uuid.UUID) -> int:
    """Size of the largest model that the client trains now; 0: it trains none."""
    rows = Assignment.objects.filter(
        client_id=client_id, kind=AssignmentKind.TRAIN, status__in=LIVE_ASSIGNMENT
    )
    return rows.aggregate(most=Max("model__size_bytes"))["most"] or 0


def _grant(rows: QuerySet[Assignment]) -> WorkGrant | None:
    row = rows.select_related("model", "round__session").first()
    if row is None:
        return None
    live = row.status in LIVE_ASSIGNMENT
    return WorkGrant(
        task_id=row.pk,
        client_id=row.client_id,
        round_id=row.round_id,
        project_id=row.project_id,
        status=row.status,
        live=live,
        kind=row.kind,
        reason="" if live else row.error or f"round {row.round.number} is closed",
        config=SessionConfig.from_json(row.round.session.config),
        model_id=row.model_id,
        model_key=row.model.key,
        model_sha256=row.model.sha256,
        model_size_bytes=row.model.size_bytes,
        layout=row.model.layout,
    )


def log_metrics(
    *, client_id: uuid.UUID, assignment_id: uuid.UUID, values: dict[str, float], step: int
) -> None:
    """Metrics that user code logged while it trained."""
    row = Assignment.objects.filter(pk=assignment_id, client_id=client_id).select_related("round").first()
    if row is not None and values:
        models.record_logged_metrics(
            project_id=row.project_id,
            session_id=row.round.session_id,
            round_number=row.round.number,
            model_id=row.model_id,
            client_id=client_id,
            values=[models.LoggedMetric(name, value, step) for name, value in values.items()],
        )


def newest_on_model(client_id: uuid.UUID, model_id: uuid.UUID) -> uuid.UUID | None:
    """The client's newest assignment, live or not, that names the model."""
    rows = Assignment.objects.filter(client_id=client_id, model_id=model_id).order_by("-id")
    return rows.values_list("pk", flat=True).first()


def wake_waiting_sessions(project_ids: Iterable[uuid.UUID]) -> None:
    """A client came online: running sessions of its project that want clients are looked at, those that train first,
    then the first to give up. At most `MOST_WOKEN` by this hint; the tick finds the others."""
    seeking = Session.objects.filter(
        project_id__in=list(project_ids), status=SessionStatus.RUNNING, sought_at__isnull=False
    ).order_by(F("waiting_until").asc(nulls_first=True))
    for pk in seeking.values_list("pk", flat=True)[:MOST_WOKEN]:
        hints.wake_session(str(pk))
