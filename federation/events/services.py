"""Writing events and telemetry. An event is a row first; the push to open pages is a hint after commit."""

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction

from federation.events.models import Event, Telemetry
from federation.events.wire import as_wire
from foundation.hints import push_events
from foundation.plain_json import plain, plain_text

MAX_MESSAGE_CHARS = 1000
Id = uuid.UUID | str


def publish(*, project_id: Id, kind: str, message: str, **more: Any) -> Event:
    """One event of a project: a row in the caller's transaction, and a push to open pages once it is
    committed. What `more` may be: see `event`."""
    return publish_many([event(project_id=project_id, kind=kind, message=message, **more)])[0]


def event(
    *,
    project_id: Id,
    kind: str,
    message: str,
    level: str = "info",
    session_id: Id | None = None,
    round_number: int | None = None,
    client_id: Id | None = None,
    combiner_id: Id | None = None,
    **data: Any,
) -> Event:
    """An event that is not stored yet, for `publish_many`.

    `kind` is dotted, such as `round.finished`; `message` one sentence, cut at 1000 characters; `data` is made
    plain JSON.
    """
    text = plain_text(message)
    if len(text) > MAX_MESSAGE_CHARS:
        text = text[: MAX_MESSAGE_CHARS - 1] + "…"
    return Event(
        project_id=project_id,
        kind=kind[:60],
        message=text,
        level=level,
        session_id=session_id,
        round_number=round_number,
        client_id=client_id,
        combiner_id=combiner_id,
        data=plain(data),
    )


def publish_many(events: Sequence[Event]) -> Sequence[Event]:
    """Events in their order, as `publish` does each: one insert, and one push for each project."""
    rows = Event.objects.bulk_create(events)
    for project_id in dict.fromkeys(str(row.project_id) for row in rows):
        push_events(project_id, [as_wire(row) for row in rows if str(row.project_id) == project_id])
    return rows


@dataclass(frozen=True)
class TelemetrySample:
    """One value of a client's series, such as memory_bytes; `at` is aware UTC."""

    project_id: uuid.UUID
    client_id: uuid.UUID
    at: dt.datetime
    name: str
    value: float


def record_telemetry(rows: Sequence[TelemetrySample]) -> int:
    """Store a batch in one statement; answers how many. Values that are not finite and clients that are gone
    are left out."""
    finite = [row for row in rows if math.isfinite(row.value) and row.name]
    for last_try in (False, True):
        try:
            with transaction.atomic():
                return _insert(finite)
        except IntegrityError:  # a client was deleted between the look and the write
            if last_try:
                raise
    return 0


def _insert(rows: Sequence[TelemetrySample]) -> int:
    if not rows:
        return 0
    clients = Telemetry._meta.get_field("client").related_model
    known = clients._default_manager.filter(pk__in={row.client_id for row in rows})
    project_of = dict(known.values_list("pk", "project_id"))
    samples = [
        Telemetry(
            project_id=project_of[row.client_id],
            client_id=row.client_id,
            at=row.at,
            name=plain_text(row.name)[:60],
            value=row.value,
        )
        for row in rows
        if row.client_id in project_of
    ]
    Telemetry.objects.bulk_create(samples, batch_size=1000)
    return len(samples)
