"""Every scalar that was measured or logged."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_number, by_id, by_number, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.dialects.controller.nouns.senders import SENT_BY_CLIENTS, client_node
from federation.models.models import Metric
from federation.models.selectors import metrics
from federation.sessions.selectors import round_places, rounds_in


def rows(caller: Caller) -> Any:
    return metrics(caller.actor, caller.project).select_related("client")


def shaped(caller: Caller, found: Sequence[Metric]) -> list[Shape]:
    places = _places(caller, {row.session_id for row in found if row.session_id})
    return [
        {
            "metric_id": str(row.pk),
            "key": row.name,
            "value": row.value,
            "timestamp": when(row.created_at),
            "sender": client_node(row.client),
            "model_id": str(row.model_id) if row.model_id else None,
            "step": row.step,
            "round_id": places.get((row.session_id, row.round_number)),
            "session_id": str(row.session_id) if row.session_id else None,
            "source": row.source,
            "committed_at": when(row.created_at),
            "updated_at": when(row.created_at),
        }
        for row in found
    ]


def _places(caller: Caller, sessions: set[uuid.UUID]) -> dict[tuple[Any, Any], str]:
    """For each (session, number) which of the project's rounds it is; of several attempts the last. Two queries."""
    if not sessions:
        return {}
    place_of = round_places(caller.project)
    known = rounds_in(caller.actor, caller.project).filter(session_id__in=sessions).order_by("id")
    return {
        (session, number): str(place_of[pk])
        for session, number, pk in known.values_list("session_id", "number", "pk")
        if pk in place_of
    }


def find(caller: Caller, name: str) -> Lookup | None:
    number = as_number(name)
    return None if number is None else {"pk": number}


METRICS = Noun(
    "metrics",
    rows,
    shaped,
    find,
    filters={
        "metric_id": by_number("pk"),
        "key": by_text("name"),
        "model_id": by_id("model_id"),
        "session_id": by_id("session_id"),
        "step": by_number("step"),
        "source": by_text("source"),
        **SENT_BY_CLIENTS,
    },
    order={"timestamp": "created_at", "key": "name", "value": "value", "step": "step", "metric_id": "pk"},
)
