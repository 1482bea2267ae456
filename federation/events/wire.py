"""An event as browsers and scripts see it: the same object over REST and over the live socket."""

from __future__ import annotations

import json
from typing import Any

from federation.events.models import Event


def as_wire(event: Event) -> dict[str, Any]:
    """`{"id", "at", "level", "kind", "message", "session", "round", "client", "combiner", "data"}`; ids as
    text."""
    return {
        "id": event.pk,
        "at": event.at.isoformat().replace("+00:00", "Z"),
        "level": event.level,
        "kind": event.kind,
        "message": event.message,
        "session": _text(event.session_id),
        "round": event.round_number,
        "client": _text(event.client_id),
        "combiner": _text(event.combiner_id),
        "data": event.data,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def rendered(event: dict[str, Any]) -> str:
    """As one line of JSON."""
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))
