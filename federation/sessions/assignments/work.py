"""What clients owe, what they may touch, and what they say while they work."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Max, QuerySet
from django.db.models.functions import Now

from federation.models import services as models
from federation.sessions.choices import (
    ASSIGNMENT_MOVES,
    LIVE_ASSIGNMENT,
    LIVE_ORDER,
    AssignmentKind,
    AssignmentStatus,
    SessionStatus,
)
from federation.sessions.models import Assignment, Order, Session
from foundation import hints
from foundation.moves import move


@dataclass(frozen=True)
class Owed:
    """A task that a connected client has not answered yet."""

    assignment_id: uuid.UUID
    client_id: uuid.UUID
    kind: str
    session_id: uuid.UUID
    session_name: str
    round_number: int
    model_id: uuid.UUID
    model_sha256: str
    model_size_bytes: int
    package_id: uuid.UUID | None
    package_sha256: str
    settings: dict[str, Any]
    deadline_unix_s: float


def owed(client_ids: Iterable[uuid.UUID]) -> list[Owed]:
    """Live assignments of these clients, oldest first: one query."""
    rows = (
        Assignment.objects.filter(client_id__in=list(client_ids), status__in=LIVE_ASSIGNMENT)
        .select_related("round__session__package", "model")
        .defer("model__layout", "round__session__package__entry_points")
        .order_by("id")
    )
    result = []
    for row in rows:
        session = row.round.session
        package = session.package
        result.append(
            Owed(
                assignment_id=row.pk,
                client_id=row.client_id,
                kind=row.kind,
                session_id=session.pk,
                session_name=session.name,
                round_number=row.round.number,
                model_id=row.model_id,
                model_sha256=row.model.sha256,
                model_size_bytes=row.model.size_bytes,
                package_id=package.pk if package else None,
                package_sha256=package.sha256 if package else "",
                settings=session.config.get("client_settings") or {},
                deadline_unix_s=row.deadline.timestamp(),
            )
        )
    return result


def reasons_of_end(assignment_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, tuple[str, str]]:
    """Of those that have ended: (status, reason)."""
    rows = Assignment.objects.filter(pk__in=list(assignment_ids)).exclude(status__in=LIVE_ASSIGNMENT)
    return {row.pk: (row.status, row.error) for row in rows.only("status", "error")}


def mark_delivered(assignment_ids: Iterable[uuid.UUID]) -> None:
    move(
        Assignment.objects.filter(pk__in=list(assignment_ids)),
        ASSIGNMENT_MOVES,
        AssignmentStatus.DELIVERED,
        delivered_at=Now(),
    )


def note_progress(fractions: dict[uuid.UUID, float]) -> None:
    rows = [Assignment(pk=pk, progress=min(max(value, 0.0), 1.0)) for pk, value in fractions.items()]
    Assignment.objects.bulk_update(rows, ["progress"])


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
    """What a client may do with one of its own assignments."""

    round_id: uuid.UUID
    project_id: uuid.UUID
    status: str
    live: bool
    kind: str
    reason: str

    @property
    def assignment_id(self) -> uuid.UUID:
        return self.task_id


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
    row = rows.select_related("model", "round").first()
    if row is None:
        return None
    live = row.status in LIVE_ASSIGNMENT
    return WorkGrant(
        task_id=row.pk,
        round_id=row.round_id,
        project_id=row.project_id,
        status=row.status,
        live=live,
        kind=row.kind,
        reason="" if live else row.error or f"round {row.round.number} is closed",
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
    """A client came online: sessions of its project that wait for one are looked at."""
    waiting = Session.objects.filter(
        project_id__in=list(project_ids), status=SessionStatus.RUNNING, waiting_until__isnull=False
    )
    for pk in waiting.values_list("pk", flat=True):
        hints.wake_session(str(pk))
