"""The event log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_number, by_id, by_number, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.dialects.controller.nouns.senders import client_node, node
from federation.events.models import Event
from federation.events.selectors import events_of, of_kinds_or_said, of_levels_or_said

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


def rows(caller: Caller) -> Any:
    return events_of(caller.actor, caller.project)


def shaped(caller: Caller, found: Sequence[Event]) -> list[Shape]:
    return [
        {
            "status_id": str(row.pk),
            "status": row.message,
            "timestamp": when(row.at),
            "log_level": _said(row, "log_level") or row.level.upper(),
            "data": json.dumps(row.data),
            "correlation_id": _said(row, "correlation_id") or _said(row, "assignment"),
            "type": TYPE.get(row.kind) or _said(row, "type") or "LOG",
            "extra": row.kind,
            "session_id": str(row.session_id) if row.session_id else "",
            "sender": _sender(row),
            "committed_at": when(row.at),
            "updated_at": when(row.at),
        }
        for row in found
    ]


def _said(row: Event, word: str) -> str:
    """A client that reports its status says these itself."""
    return str(row.data.get(word) or "") if isinstance(row.data, dict) else ""


def _sender(row: Event) -> Shape:
    if row.client is not None:
        return client_node(row.client)
    return node(row.combiner.name, "COMBINER") if row.combiner is not None else node(CONTROLLER, "REDUCER")


def find(caller: Caller, name: str) -> Lookup | None:
    number = as_number(name)
    return None if number is None else {"pk": number}


def _type(values: list[str]) -> Any:
    kinds = [kind for kind, word in TYPE.items() if word in values]
    return of_kinds_or_said(kinds, "type", values, rest_of=list(TYPE) if "LOG" in values else ())


def _log_level(values: list[str]) -> Any:
    return of_levels_or_said([value.lower() for value in values], "log_level", values)


def _name(values: list[str]) -> Any:
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
        "log_level": _log_level,
        "session_id": by_id("session_id"),
        "extra": by_text("kind"),
        "sender.name": _name,
        "sender.role": _role,
        "sender.client_id": by_id("client_id"),
    },
    order={"timestamp": "at", "status_id": "pk", "type": "kind", "log_level": "level"},
    newest="at",
)
