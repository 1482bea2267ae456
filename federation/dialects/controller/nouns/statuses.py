"""The event log."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_number, by_id, by_number, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.dialects.controller.nouns.senders import client_node, node
from federation.events.models import Event
from federation.events.selectors import events_of

CONTROLLER = "controller"
TYPE = {
    "round.started": "MODEL_UPDATE_REQUEST",
    "update.accepted": "MODEL_UPDATE",
    "update.refused": "MODEL_UPDATE",
    "validation.received": "MODEL_VALIDATION",
    "client.registered": "NETWORK",
    "client.connected": "NETWORK",
    "client.disconnected": "NETWORK",
}
_OTHERS = "^(?!(" + "|".join(re.escape(kind) for kind in TYPE) + ")$)"


def rows(caller: Caller) -> Any:
    return events_of(caller.actor, caller.project)


def shaped(caller: Caller, found: Sequence[Event]) -> list[Shape]:
    return [
        {
            "status_id": str(row.pk),
            "status": row.message,
            "timestamp": when(row.at),
            "log_level": row.level.upper(),
            "data": json.dumps(row.data),
            "correlation_id": str(row.data.get("assignment", "")) if isinstance(row.data, dict) else "",
            "type": TYPE.get(row.kind, "LOG"),
            "extra": row.kind,
            "session_id": str(row.session_id) if row.session_id else "",
            "sender": _sender(row),
            "committed_at": when(row.at),
            "updated_at": when(row.at),
        }
        for row in found
    ]


def _sender(row: Event) -> Shape:
    if row.client is not None:
        return client_node(row.client)
    return node(row.combiner.name, "COMBINER") if row.combiner is not None else node(CONTROLLER, "REDUCER")


def find(caller: Caller, name: str) -> Lookup | None:
    number = as_number(name)
    return None if number is None else {"pk": number}


def _type(values: list[str]) -> Lookup | None:
    kinds = [kind for kind, word in TYPE.items() if word in values]
    if "LOG" in values:
        missing = [kind for kind in TYPE if kind not in kinds]
        return {"kind__regex": _OTHERS} if len(missing) == len(TYPE) else None
    return {"kind__in": kinds} if kinds else None


def _name(values: list[str]) -> Lookup | None:
    if CONTROLLER in values:
        return {"client": None, "combiner": None}
    return by_text("client__name")(values)


def _role(values: list[str]) -> Lookup | None:
    """One role, as the clients ask."""
    lookups: dict[str, Lookup] = {
        "CLIENT": {"client__isnull": False},
        "COMBINER": {"client": None, "combiner__isnull": False},
        "REDUCER": {"client": None, "combiner": None},
    }
    return lookups.get(values[0])


STATUSES = Noun(
    "statuses",
    rows,
    shaped,
    find,
    filters={
        "status_id": by_number("pk"),
        "status": by_text("message"),
        "type": _type,
        "log_level": lambda values: {"level__in": [value.lower() for value in values]},
        "session_id": by_id("session_id"),
        "extra": by_text("kind"),
        "sender.name": _name,
        "sender.role": _role,
        "sender.client_id": by_id("client_id"),
    },
    order={"timestamp": "at", "status_id": "pk", "type": "kind", "log_level": "level"},
    newest="at",
)
