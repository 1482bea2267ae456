"""Assignments as FEDn's clients are told of them, and found again in what they answer."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from dataclasses import dataclass
from typing import Any

from federation.dialects.fedn import fedn_pb2 as wire
from federation.sessions.assignments import Owed
from federation.sessions.choices import AssignmentKind, CommandKind
from federation.sessions.commands import Ordered

MAX_META_CHARS = 256 * 1024
TYPE_OF_ASSIGNMENT = {
    AssignmentKind.TRAIN: wire.MODEL_UPDATE,
    AssignmentKind.VALIDATE: wire.MODEL_VALIDATION,
}
TYPE_OF_COMMAND = {
    CommandKind.VALIDATE: wire.MODEL_VALIDATION,
    CommandKind.PREDICT: wire.MODEL_PREDICTION,
}


def task_request(task: Owed | Ordered, combiner: str) -> wire.TaskRequest:
    """The client needs `round_id` in `data` and a sender whose role is COMBINER; it sends `data` back in `meta.config`,
    and `correlation_id` with a validation: both name the assignment. Of a prediction it sends back `session_id`."""
    name = str(task.assignment_id)
    about: dict[str, Any]
    if isinstance(task, Owed):
        type_, session = TYPE_OF_ASSIGNMENT[AssignmentKind(task.kind)], str(task.session_id)
        about = {"round_id": str(task.round_number), "client_settings": task.settings}
    else:
        type_, session = TYPE_OF_COMMAND[CommandKind(task.kind)], str(task.command_id)
        about = {"round_id": "", "client_settings": task.parameters}
    return wire.TaskRequest(
        sender=wire.Client(role=wire.COMBINER, name=combiner),
        receiver=wire.Client(role=wire.CLIENT, client_id=str(task.client_id)),
        model_id=str(task.model_id),
        data=json.dumps(
            {"assignment_id": name, "session_id": session, "model_id": str(task.model_id), **about}
        ),
        correlation_id=name,
        timestamp=dt.datetime.now(dt.UTC).isoformat(),
        session_id=session,
        type=type_,
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
