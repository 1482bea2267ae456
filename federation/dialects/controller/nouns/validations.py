"""What clients reported of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, always, as_uuid, by_id, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.dialects.controller.nouns.senders import SENT_BY_CLIENTS, client_node, node
from federation.models.models import Validation
from federation.models.selectors import validations


def rows(caller: Caller) -> Any:
    return validations(caller.actor, caller.project).select_related("client", "client__combiner")


def shaped(caller: Caller, found: Sequence[Validation]) -> list[Shape]:
    return [
        {
            "validation_id": str(row.pk),
            "model_id": str(row.model_id),
            "data": json.dumps(row.data),
            "correlation_id": str(row.assignment_id),
            "timestamp": when(row.created_at),
            "session_id": str(row.session_id) if row.session_id else "",
            "meta": "",
            "sender": client_node(row.client, row.client_name),
            "receiver": node(_combiner(row), "COMBINER"),
            "committed_at": when(row.created_at),
            "updated_at": when(row.created_at),
        }
        for row in found
    ]


def _combiner(row: Validation) -> str:
    """Where the client is, or was last: which combiner a report came through is not kept."""
    return row.client.combiner.name if row.client is not None and row.client.combiner is not None else ""


def find(caller: Caller, name: str) -> Lookup | None:
    found = as_uuid(name)
    return {"pk": found} if found else None


VALIDATIONS = Noun(
    "validations",
    rows,
    shaped,
    find,
    filters={
        "validation_id": by_id("pk"),
        "model_id": by_id("model_id"),
        "session_id": by_id("session_id"),
        "correlation_id": by_id("assignment_id"),
        **SENT_BY_CLIENTS,
        "sender.name": by_text("client_name"),
        "receiver.name": by_text("client__combiner__name"),
        "receiver.role": always("COMBINER"),
    },
    order={
        "timestamp": "created_at",
        "validation_id": "pk",
        "model_id": "model_id",
        "session_id": "session_id",
    },
)
