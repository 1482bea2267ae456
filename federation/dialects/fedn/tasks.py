"""Assignments as FEDn's clients are told of them, and found again in what they answer."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from dataclasses import dataclass
from typing import Any

from federation.dialects.fedn import fedn_pb2 as wire
from federation.sessions.assignments import Owed
from federation.sessions.choices import AssignmentKind

MAX_META_CHARS = 256 * 1024
_TYPE_OF_KIND = {
    AssignmentKind.TRAIN: wire.MODEL_UPDATE,
    AssignmentKind.VALIDATE: wire.MODEL_VALIDATION,
}


def task_request(owed: Owed, combiner: str) -> wire.TaskRequest:
    """The client needs `round_id` in `data` and a sender whose role is COMBINER; it sends `data` back in `meta.config`,
    and `correlation_id` with a validation: both name the assignment."""
    assignment = str(owed.assignment_id)
    data = {
        "assignment_id": assignment,
        "round_id": str(owed.round_number),
        "session_id": str(owed.session_id),
        "model_id": str(owed.model_id),
        "client_settings": owed.settings,
    }
    return wire.TaskRequest(
        sender=wire.Client(role=wire.COMBINER, name=combiner),
        receiver=wire.Client(role=wire.CLIENT, client_id=str(owed.client_id)),
        model_id=str(owed.model_id),
        data=json.dumps(data),
        correlation_id=assignment,
        timestamp=dt.datetime.now(dt.UTC).isoformat(),
        session_id=str(owed.session_id),
        type=_TYPE_OF_KIND[AssignmentKind(owed.kind)],
    )


@dataclass(frozen=True)
class Answer:
    """What `ModelUpdate.meta` says: which assignment it answers, and how the training went."""

    assignment_id: uuid.UUID | None
    num_examples: Any
    metadata: dict[str, Any]


def answer_of(update: wire.ModelUpdate) -> Answer:
    meta = _object(update.meta)
    config = _object(meta.get("config"))
    training = meta.get("training_metadata")
    metadata = training if isinstance(training, dict) else {}
    return Answer(
        assignment_id=as_id(config.get("assignment_id")) or as_id(update.correlation_id),
        num_examples=metadata.get("num_examples", 1),
        metadata=metadata,
    )


def receipt_of(status: wire.Status) -> uuid.UUID | None:
    """The assignment that a status speaks of: its `data` repeats the request."""
    request = _object(status.data)
    return as_id(request.get("correlationId") or request.get("correlation_id")) or as_id(
        status.correlation_id
    )


def as_id(text: Any) -> uuid.UUID | None:
    if not isinstance(text, str):
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _object(text: Any) -> dict[str, Any]:
    """A JSON object, perhaps given as text; anything else is an empty one."""
    if isinstance(text, str) and len(text) <= MAX_META_CHARS:
        try:
            text = json.loads(text, parse_constant=lambda _name: None)
        except (ValueError, RecursionError):
            return {}
    return text if isinstance(text, dict) else {}
