"""What a combiner has to do to finish a share: the accepted rows that count, and how."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from federation.sessions import counting
from federation.sessions.assignments.work import WorkGrant
from federation.sessions.choices import AssignmentStatus
from federation.sessions.models import Assignment


@dataclass(frozen=True)
class AcceptedUpdate:
    assignment_id: uuid.UUID
    spool_name: str
    weight: float  # in the fold; 0: it is counted, but not folded
    update_key: str = ""  # where storage has it, once it was collected


@dataclass(frozen=True)
class ShareWork:
    """A share that closes, with the accepted rows that count."""

    share_id: uuid.UUID
    round_id: uuid.UUID
    session_id: uuid.UUID
    project_id: uuid.UUID
    is_model: bool  # the partial is the model as it is: the only share, and plain averaging
    collects: bool  # the updates go to storage as they came; there is no partial
    input_key: str  # where storage has the model that they answer
    layout: list[Any]
    accepted: tuple[AcceptedUpdate, ...]


@dataclass(frozen=True)
class Closing:
    """A share that closed in the transaction which accepted its last update, and what the rows said then."""

    share_id: uuid.UUID
    round_id: uuid.UUID
    session_id: uuid.UUID
    alone: bool  # the only one of its round
    accepted: tuple[AcceptedUpdate, ...]

    def work(self, grant: WorkGrant) -> ShareWork:
        """`grant` is that of an update in it."""
        return ShareWork(
            share_id=self.share_id,
            round_id=self.round_id,
            session_id=self.session_id,
            project_id=grant.project_id,
            is_model=counting.adopts_partial(grant.config) and self.alone,
            collects=counting.collects(grant.config),
            input_key=grant.model_key,
            layout=grant.layout,
            accepted=self.accepted,
        )


def accepted_updates(share_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[AcceptedUpdate]]:
    """One query, however many there are; no row becomes an object."""
    accepted: dict[uuid.UUID, list[AcceptedUpdate]] = {share_id: [] for share_id in share_ids}
    rows = Assignment.objects.filter(share_id__in=share_ids, status=AssignmentStatus.ACCEPTED)
    fields = ("share_id", "pk", "spool_name", "weight", "num_examples", "update_key")
    for share_id, pk, spool_name, weight, examples, update_key in rows.order_by("id").values_list(*fields):
        counted = counted_weight(weight, examples)
        accepted[share_id].append(AcceptedUpdate(pk, spool_name, counted, update_key))
    return accepted


def names_in_share(share_id: uuid.UUID) -> list[str]:
    """Whose updates are accepted in it: the first few, by name."""
    rows = Assignment.objects.filter(share_id=share_id, status=AssignmentStatus.ACCEPTED)
    return list(rows.order_by("client__name").values_list("client__name", flat=True)[:10])


def weight_of(row: Assignment) -> float:
    return counted_weight(row.weight, row.num_examples)


def counted_weight(weight: float | None, num_examples: float | None) -> float:
    """In the fold. Rows that were accepted before weights were kept count by their examples."""
    return weight if weight is not None else num_examples or 0.0
