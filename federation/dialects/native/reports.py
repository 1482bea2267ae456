"""What a native client reports up its stream. Each report names its assignment and may be repeated safely."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

from federation.combiner.attributes import take_attributes
from federation.combiner.connection import Connection
from federation.combiner.core import CombinerCore
from federation.combiner.reported import (
    MAX_ATTRIBUTES_BYTES,
    MAX_LOG_CHARS,
    finite_series,
    telemetry_samples,
)
from federation.combiner.threads import in_rows
from federation.combiner.validations import take_validation
from federation.dialects.native import studio_v1_pb2 as wire
from federation.events.services import publish
from federation.sessions import assignments
from federation.sessions.assignments import Owed
from federation.sessions.choices import AssignmentStatus
from foundation.errors import StudioError


def task(owed: Owed) -> wire.Task:
    return wire.Task(
        assignment_id=str(owed.assignment_id),
        kind=owed.kind,
        session_id=str(owed.session_id),
        session_name=owed.session_name,
        round=owed.round_number,
        model_id=str(owed.model_id),
        model_sha256=owed.model_sha256,
        model_size=owed.model_size_bytes,
        package_id=str(owed.package_id) if owed.package_id else "",
        package_sha256=owed.package_sha256,
        settings_json=json.dumps(owed.settings),
        deadline_unix_s=owed.deadline_unix_s,
        # none is said by saying nothing, as a server did that knew of no other way
        compression=owed.compression if owed.compression != "none" else "",
    )


def attributes(text: str) -> dict[str, Any] | None:
    """Attributes as a JSON object; anything else is not taken."""
    if not text or len(text) > MAX_ATTRIBUTES_BYTES:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def assignment_of(message: wire.ClientMessage) -> str:
    kind = message.WhichOneof("message")
    return str(getattr(getattr(message, kind), "assignment_id", ""))[:40] if kind else ""


def _id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise StudioError("bad_id", "assignment_id must be a UUID.") from None


async def handle(
    core: CombinerCore, connection: Connection, message: wire.ClientMessage
) -> wire.ServerMessage | None:
    """Act on one report; answers what the client must know, if anything."""
    match message.WhichOneof("message"):
        case "received":
            if _own(connection, message.received.assignment_id):
                core.hub.received(_id(message.received.assignment_id))
        case "progress":
            if _own(connection, message.progress.assignment_id) and math.isfinite(message.progress.fraction):
                core.hub.progress(_id(message.progress.assignment_id), message.progress.fraction)
        case "metrics":
            await _metrics(connection, message.metrics)
        case "validation":
            return await _validation(core, connection, message.validation)
        case "failure":
            return await _failure(core, connection, message.failure)
        case "log":
            await _log(connection, message.log)
        case "telemetry":
            core.hub.telemetry(telemetry_samples(connection.identity, message.telemetry.values.items()))
        case "attributes":
            value = attributes(message.attributes.attributes_json)
            if value is not None:
                await take_attributes(connection.identity, value, whole=True)
        case _:
            raise StudioError("unknown_report", "This server does not know that report.")
    return None


def _own(connection: Connection, assignment_id: str) -> bool:
    """Only what this stream was given may be marked; anything else is a repeat or a lie, and changes nothing."""
    return _id(assignment_id) in connection.given


async def _metrics(connection: Connection, report: wire.Metrics) -> None:
    if not _own(connection, report.assignment_id):
        return
    await in_rows(
        assignments.log_metrics,
        client_id=connection.identity.client_id,
        assignment_id=_id(report.assignment_id),
        values=finite_series(report.values.items()),
        step=report.step,
    )


async def _validation(
    core: CombinerCore, connection: Connection, report: wire.Validation
) -> wire.ServerMessage:
    receipt = await take_validation(
        core.hub, connection.identity, _id(report.assignment_id), report.data_json, report.num_examples
    )
    return _ack(report.assignment_id, receipt.status, receipt.reason)


async def _failure(core: CombinerCore, connection: Connection, report: wire.Failure) -> wire.ServerMessage:
    assignment_id = _id(report.assignment_id)
    await in_rows(
        assignments.end_with_reason,
        client_id=connection.identity.client_id,
        assignment_id=assignment_id,
        status=AssignmentStatus.FAILED,
        reason=report.reason[:900] or "the client gave no reason",
        exit_code=report.exit_code,
        log_tail=report.log_tail[-MAX_LOG_CHARS:],
    )
    core.hub.done(connection.identity.client_id, assignment_id)
    return _ack(report.assignment_id, "failed", "")


async def _log(connection: Connection, report: wire.Log) -> None:
    await in_rows(
        publish,
        project_id=connection.identity.project_id,
        kind="client.log",
        level=report.level if report.level in ("debug", "info", "warning", "error") else "info",
        message=report.text[:MAX_LOG_CHARS],
        client_id=connection.identity.client_id,
    )


def _ack(assignment_id: str, status: str, reason: str) -> wire.ServerMessage:
    return wire.ServerMessage(ack=wire.Ack(assignment_id=assignment_id, status=status, reason=reason))
