"""What clients predicted with a model: one answer per client that was asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, always, as_uuid, by_id, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.dialects.controller.nouns.senders import SENT_BY_CLIENTS, client_node, node
from federation.sessions.choices import CommandKind, OrderStatus
from federation.sessions.models import Order
from federation.sessions.selectors import orders_of

NAME = "prediction_id"  # in a command's parameters: what its caller calls it


def rows(caller: Caller) -> Any:
    return (
        orders_of(caller.actor, caller.project)
        .filter(command__kind=CommandKind.PREDICT, status=OrderStatus.COMPLETED)
        .select_related("command", "client", "client__combiner")
    )


def shaped(caller: Caller, found: Sequence[Order]) -> list[Shape]:
    return [
        {
            "prediction_id": str(row.command.parameters.get(NAME) or row.command_id),
            "model_id": str(row.command.model_id) if row.command.model_id else None,
            "data": json.dumps(row.response),
            "correlation_id": str(row.pk),
            "timestamp": when(row.ended_at),
            "meta": "",
            "sender": client_node(row.client),
            "receiver": node(row.client.combiner.name if row.client.combiner else "", "COMBINER"),
            "committed_at": when(row.ended_at or row.created_at),
            "updated_at": when(row.ended_at or row.created_at),
        }
        for row in found
    ]


def find(caller: Caller, name: str) -> Lookup | None:
    """By what its caller calls it, or by the one client's answer."""
    answer = as_uuid(name)
    if answer is not None and rows(caller).filter(pk=answer).exists():
        return {"pk": answer}
    return {f"command__parameters__{NAME}": name} if "\x00" not in name else None


PREDICTIONS = Noun(
    "predictions",
    rows,
    shaped,
    find,
    filters={
        "prediction_id": by_text(f"command__parameters__{NAME}"),
        "model_id": by_id("command__model_id"),
        "correlation_id": by_id("pk"),
        **SENT_BY_CLIENTS,
        "receiver.name": by_text("client__combiner__name"),
        "receiver.role": always("COMBINER"),
    },
    order={"timestamp": "ended_at", "prediction_id": "command_id", "model_id": "command__model_id"},
    newest="ended_at",
)
