"""What a client that polls was given, what it says of it, and what it is to be told next. Memory only: rows are not
asked, so a poll with no news costs nothing."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from federation.combiner.connection import Cancel, Connection, Delivery, Farewell
from federation.dialects.scaleout import scaleout_pb2 as wire
from federation.sessions.assignments import Owed
from federation.sessions.choices import AssignmentKind, CommandKind
from federation.sessions.commands import Ordered

TYPE_OF_KIND: dict[str, str] = {
    AssignmentKind.TRAIN: "Scaleout_ModelUpdate",
    AssignmentKind.VALIDATE: "Scaleout_Validation",
}
TYPE_OF_COMMAND: dict[str, str] = {
    CommandKind.CUSTOM: "Custom_",  # and the command's name
    CommandKind.PREDICT: "Scaleout_Inference",
    CommandKind.VALIDATE: "Scaleout_Validation",
    CommandKind.STAGE: "Scaleout_StageModel",
    CommandKind.RESTART: "Scaleout_RestartClient",
}
Task = Owed | Ordered
REMEMBERED = 64  # ended tasks, of which records may still come


def task_of(task: Task) -> wire.TaskRequest:
    request = wire.TaskRequest(
        correlation_id=str(task.assignment_id),
        client_id=str(task.client_id),
        model_id=str(task.model_id or ""),
        timestamp=dt.datetime.now(dt.UTC).isoformat(),
    )
    match task:
        case Owed():
            request.type = TYPE_OF_KIND[task.kind]
            request.session_id, request.round_id = str(task.session_id), str(task.round_number)
            request.data = json.dumps({"client_settings": task.settings})
        case Ordered():
            request.type = TYPE_OF_COMMAND[task.kind] + (task.name if task.kind == CommandKind.CUSTOM else "")
            request.data = json.dumps({"parameters": task.parameters})
    return request


@dataclass(eq=False)
class Polled:
    """One client's tasks. The client names every task that it holds in each poll, until it has said that it is done:
    one that it does not name did not arrive, or went with a process that was killed, and is given again."""

    connection: Connection
    given: dict[uuid.UUID, Task] = field(default_factory=dict)  # sent, its end not reported
    ended: OrderedDict[uuid.UUID, Task] = field(default_factory=OrderedDict)  # reported done
    aborting: set[uuid.UUID] = field(default_factory=set)  # the row has ended, the client still works on it
    seen: set[uuid.UUID] = field(default_factory=set)  # receipts already passed on
    over: Farewell | None = None

    def next_tasks(self, named: Iterable[uuid.UUID]) -> tuple[list[wire.TaskRequest], Farewell | None]:
        """What to answer to a poll that names these tasks as still held; and whether the connection is over."""
        held = set(named)
        while not self.connection.outbox.empty():
            self.take(self.connection.outbox.get_nowait())
        self.aborting &= held  # an abort of what it does not hold would start it
        tasks = [task_of(owed) for key, owed in self.given.items() if key not in held]
        tasks += [
            wire.TaskRequest(correlation_id=str(key), status="INTERRUPTED") for key in sorted(self.aborting)
        ]
        return tasks, self.over

    def take(self, delivery: Delivery) -> None:
        match delivery:
            case Owed() | Ordered() if delivery.assignment_id not in self.ended:
                self.given[delivery.assignment_id] = delivery
            case Cancel():
                self.given.pop(delivery.assignment_id, None)
                self.aborting.add(delivery.assignment_id)
            case Farewell():
                self.over = delivery

    def done(self, assignment_id: uuid.UUID) -> None:
        """The client reports its end; perhaps again, perhaps of no task of ours."""
        self.aborting.discard(assignment_id)
        self.seen.discard(assignment_id)
        task = self.given.pop(assignment_id, None)
        if task is not None:
            self.ended[assignment_id] = task
        while len(self.ended) > REMEMBERED:
            self.ended.popitem(last=False)

    def task(self, *, session_id: str, round_id: str, model_id: str) -> Owed | None:
        """The newest task that records with these words are about; they carry no correlation id."""
        for owed in [*reversed(self.given.values()), *reversed(self.ended.values())]:
            if isinstance(owed, Owed) and (
                str(owed.session_id),
                str(owed.round_number),
                str(owed.model_id),
            ) == (
                session_id,
                round_id,
                model_id,
            ):
                return owed
        return None


def report_of(report: wire.ActivityReport) -> dict[str, Any]:
    """The JSON object that a report answers with; anything else reads as empty."""
    value = json_value(report.response)
    return value if isinstance(value, dict) else {}


def json_value(text: str) -> Any:
    """None for what cannot be read. NaN and the infinities are no JSON: kept as null."""
    try:
        return json.loads(text, parse_constant=lambda _name: None)
    except (ValueError, RecursionError):
        return None
