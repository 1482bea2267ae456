"""Devices, as FEDn's and Scaleout's users see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clients_app.models import Client
from clients_app.selectors import clients_of
from federation.dialects.controller.asked import Lookup, as_uuid, by_id, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape


def rows(caller: Caller) -> Any:
    return clients_of(caller.actor, caller.project)


def shaped(caller: Caller, found: Sequence[Client]) -> list[Shape]:
    return [
        {
            "client_id": str(row.pk),
            "name": row.name,
            "combiner": row.combiner.name if row.combiner else None,
            "combiner_preferred": None,
            "ip": "",
            "status": "online" if getattr(row, "online", False) else "offline",
            "last_seen": when(row.last_seen_at),
            "package": "remote",
            "dialect": row.dialect,
            "version": row.version,
            "committed_at": when(row.created_at),
            "updated_at": when(row.last_seen_at or row.created_at),
        }
        for row in found
    ]


def find(caller: Caller, name: str) -> Lookup | None:
    found = as_uuid(name)
    return {"pk": found} if found else None


def _status(values: list[str]) -> Lookup | None:
    wanted = {value.lower() for value in values}
    states = [
        state for state, words in ((True, {"online"}), (False, {"offline", "available"})) if wanted & words
    ]
    return {"online__in": states} if states else None


def _combiner(values: list[str]) -> Any:
    """By name, or by id as `APIClient.get_active_clients` has it."""
    ids = [found for value in values if (found := as_uuid(value))]
    return {"combiner_id__in": ids} if ids else by_text("combiner__name")(values)


CLIENTS = Noun(
    "clients",
    rows,
    shaped,
    find,
    filters={
        "client_id": by_id("pk"),
        "name": by_text("name"),
        "status": _status,
        "combiner": _combiner,
        "dialect": by_text("dialect"),
        "version": by_text("version"),
    },
    order={"name": "name", "last_seen": "last_seen_at", "client_id": "pk", "combiner": "combiner__name"},
)
