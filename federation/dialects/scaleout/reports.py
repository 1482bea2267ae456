"""What Scaleout's clients report, translated to services. Each may be repeated safely."""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from federation.combiner.attributes import take_attributes
from federation.combiner.connection import Identity
from federation.combiner.core import CombinerCore
from federation.combiner.intake import MAX_METADATA_BYTES, Receipt
from federation.combiner.reported import finite_series, json_object
from federation.combiner.staging import SLACK_BYTES, WIDEST
from federation.combiner.threads import in_rows
from federation.dialects.scaleout import scaleout_pb2 as wire
from federation.dialects.scaleout.containers import unwrapping
from federation.dialects.scaleout.polling import Polled, Task, json_value, report_of
from federation.events.services import TelemetrySample, publish
from federation.sessions import assignments, commands
from federation.sessions.assignments import Owed
from federation.sessions.choices import AssignmentStatus, CommandKind, OrderStatus
from federation.sessions.commands import Ordered
from foundation.errors import StudioError

MAX_PAYLOAD_CHARS = 16 * 1024
MAX_SERIES = 50
MAX_SENTENCE_CHARS = 4000
BELIEVED_CLOCK = dt.timedelta(days=7)  # records wait on the client while it is offline
_LEVELS = {
    wire.DEBUG: "debug",
    wire.WARNING: "warning",
    wire.ERROR: "error",
}


def correlated(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise StudioError("bad_id", "correlation_id must be that of a task from here.") from None


def optional_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def version_in(parameters: str) -> str:
    """Of `{"client-version": "1.1.0"}`."""
    try:
        said = json_object(parameters, "parameters", 4096).get("client-version")
    except StudioError:
        return ""
    return said[:40] if isinstance(said, str) else ""


# --- tasks ------------------------------------------------------------------------------------------------------
async def activities(core: CombinerCore, polled: Polled, given: Iterable[wire.ActivityReport]) -> None:
    """What the client says of its tasks. Started is the receipt. Of an assignment, completed ends nothing, for the
    update or the validation does; failed and interrupted end it with their reason."""
    for report in given:
        task_id = optional_uuid(report.correlation_id)
        if task_id is None:
            continue
        task = polled.given.get(task_id)
        if task is not None and task_id not in polled.seen:
            polled.seen.add(task_id)
            core.hub.received(task_id)
        if report.done:
            if task is not None:
                await _ended(core, task, report)
            polled.done(task_id)


async def _ended(core: CombinerCore, task: Task, report: wire.ActivityReport) -> None:
    said = report_of(report)
    completed = report.status == "COMPLETED"
    reason = str(said.get("error") or said.get("msg") or f"the client reported {report.status[:40]}")[:900]
    match task:
        case Owed() if not completed:
            await in_rows(
                assignments.end_with_reason,
                client_id=task.client_id,
                assignment_id=task.assignment_id,
                status=AssignmentStatus.FAILED,
                reason=reason,
            )
        case Ordered() if not completed or task.kind != CommandKind.VALIDATE:
            interrupted = OrderStatus.INTERRUPTED if report.status == "INTERRUPTED" else OrderStatus.FAILED
            await in_rows(
                commands.end_order,
                client_id=task.client_id,
                order_id=task.assignment_id,
                status=OrderStatus.COMPLETED if completed else interrupted,
                response=json_value(report.response),
                reason="" if completed else reason,
            )
        case _:
            return
    core.hub.done(task.client_id, task.assignment_id)


async def model_update(core: CombinerCore, who: Identity, update: wire.ModelUpdate) -> Receipt:
    """Bind the uploaded container to its assignment. Raises StudioError 400, 404, 503."""
    assignment_id = correlated(update.correlation_id)
    staged = await core.staging.find(who, update.model_update_id)
    looked = await core.intake.look(who, assignment_id, now=staged is None)
    if isinstance(looked, Receipt):
        core.hub.done(who.client_id, assignment_id)
        return looked
    if staged is None:
        raise StudioError("no_upload", "The model of this update did not arrive; upload it first.", 404)
    try:
        meta = json_object(update.meta or "{}", "meta", MAX_METADATA_BYTES)
        training = meta.get("training_metadata")
        training = training if isinstance(training, dict) else {}
        examples = training.get("num_examples")
    except StudioError as error:
        receipt = await core.intake.reject(who, looked, error.message)
    else:
        rest = {key: value for key, value in meta.items() if key not in ("training_metadata", "config")}
        receipt = await core.intake.adopt(
            who,
            assignment_id,
            staged,
            num_examples=examples,  # type: ignore[arg-type]  # whatever it is, the intake checks it
            metadata_json=json.dumps({**rest, **training}),
            unwrap=unwrapping(WIDEST * looked.model_size_bytes + SLACK_BYTES),
        )
    await core.staging.discard(staged)
    core.hub.done(who.client_id, assignment_id)
    return receipt


async def metrics(who: Identity, polled: Polled | None, report: wire.ModelMetric) -> None:
    """Logged while training; without a task that they fit they are left out."""
    task = polled and polled.task(
        session_id=report.session_id, round_id=report.round_id, model_id=report.model_id
    )
    if not task:
        return
    await in_rows(
        assignments.log_metrics,
        client_id=who.client_id,
        assignment_id=task.assignment_id,
        values=finite_series((metric.key, metric.value) for metric in report.metrics),
        step=report.step.value,
    )


async def status(who: Identity, report: wire.Status) -> None:
    await in_rows(
        publish,
        project_id=who.project_id,
        kind="client.log",
        level=_LEVELS.get(report.log_level, "info"),
        message=report.status.strip()[:MAX_SENTENCE_CHARS],
        client_id=who.client_id,
    )


# --- series -----------------------------------------------------------------------------------------------------
def telemetry_record(who: Identity, record: wire.TelemetryRecord) -> list[TelemetrySample]:
    """`{"value": 0.5}` is the series `key`; other numbers beside it are series of their own, `key.name`."""
    at = _when(record.timestamp)
    return [
        TelemetrySample(who.project_id, who.client_id, at, name[:60], value)
        for name, value in _numbers(record.key, _payload(record.payload))
    ][:MAX_SERIES]


def telemetry_message(who: Identity, message: wire.TelemetryMessage) -> list[TelemetrySample]:
    at = _when(message.timestamp)
    return [
        TelemetrySample(who.project_id, who.client_id, at, each.key[:60], each.value)
        for each in message.telemetries[:MAX_SERIES]
        if each.key and math.isfinite(each.value)
    ]


def backlog(who: Identity, report: wire.BacklogReport) -> list[TelemetrySample]:
    at = dt.datetime.now(dt.UTC)
    values = {
        "backlog_total": float(report.backlog_total),
        "backlog_dropped_total": float(report.backlog_dropped_total),
    }
    return [TelemetrySample(who.project_id, who.client_id, at, key, value) for key, value in values.items()]


async def attributes(who: Identity, values: dict[str, Any]) -> None:
    if values:
        await take_attributes(who, values, whole=False)


def attribute_record(record: wire.AttributeRecord) -> dict[str, Any]:
    payload = _payload(record.payload)
    value = payload["value"] if set(payload) == {"value"} else payload
    return {record.key[:60]: value} if record.key else {}


async def inference(who: Identity, record: wire.InferenceResult) -> None:
    await in_rows(
        publish,
        project_id=who.project_id,
        kind="inference.result",
        message=f"{who.name} reports {record.key[:100]}.",
        client_id=who.client_id,
        model=record.model_id[:60],
        inference=record.inference_id[:60],
        payload=_payload(record.payload),
    )


def _payload(text: str) -> dict[str, Any]:
    try:
        return json_object(text or "{}", "The payload of a record", MAX_PAYLOAD_CHARS)
    except StudioError:
        return {}


def _numbers(key: str, payload: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in payload.items():
        if key and isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                continue
            if math.isfinite(number):
                yield (key if name == "value" else f"{key}.{name}"), number


def _when(stamp: Timestamp) -> dt.datetime:
    """The client's word, unless its clock is absurd."""
    now = dt.datetime.now(dt.UTC)
    try:
        said = stamp.ToDatetime(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        return now
    return said if abs(now - said) < BELIEVED_CLOCK else now
