"""Samples of a client's series, such as memory_usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_number, by_number, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.dialects.controller.nouns.senders import SENT_BY_CLIENTS, client_node
from federation.events.models import Telemetry
from federation.events.selectors import telemetry_of


def rows(caller: Caller) -> Any:
    return telemetry_of(caller.actor, caller.project).select_related("client")


def shaped(caller: Caller, found: Sequence[Telemetry]) -> list[Shape]:
    return [
        {
            "telemetry_id": str(row.pk),
            "key": row.name,
            "value": row.value,
            "timestamp": when(row.at),
            "sender": client_node(row.client),
            "committed_at": when(row.at),
            "updated_at": when(row.at),
        }
        for row in found
    ]


def find(caller: Caller, name: str) -> Lookup | None:
    number = as_number(name)
    return None if number is None else {"pk": number}


TELEMETRY = Noun(
    "telemetry",
    rows,
    shaped,
    find,
    filters={"telemetry_id": by_number("pk"), "key": by_text("name"), **SENT_BY_CLIENTS},
    order={"timestamp": "at", "key": "name", "value": "value", "telemetry_id": "pk"},
    newest="at",
)
