"""Commands as Scaleout's Python API lists them: a root for what was asked, a child for each client."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_uuid, by_id, by_text, by_word, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.dialects.scaleout.polling import TYPE_OF_COMMAND
from federation.sessions.choices import LIVE_ORDER, CommandKind, OrderStatus
from federation.sessions.models import Command, Order
from federation.sessions.selectors import commands_of, orders_of

_STATUSES = {status.value: [status.value] for status in OrderStatus}


def command_type(command: Command) -> str:
    name = command.name if command.kind == CommandKind.CUSTOM else ""
    return TYPE_OF_COMMAND[command.kind] + name


def _status_of(orders: Sequence[Order]) -> str:
    """Of the whole: running as long as one is left, else the worst that happened."""
    counts = Counter(order.status for order in orders)
    if any(counts[live] for live in LIVE_ORDER):
        return "RUNNING" if counts[OrderStatus.PENDING] < len(orders) else "PENDING"
    for worst in ("failed", "timeout", "interrupted", "skipped"):
        if counts[worst]:
            return worst.upper()
    return "COMPLETED"


def _roots(caller: Caller, found: Sequence[Command]) -> list[Shape]:
    shapes = []
    for row in found:
        orders = list(row.orders.all())
        ends = [order.ended_at for order in orders]
        shapes.append(
            {
                **_asked(row),
                "correlation_id": str(row.pk),
                "parent_correlation_id": "",
                "client_id": "",
                "status": _status_of(orders),
                "done": all(ends),
                "response": None,
                "client_ids": [str(order.client_id) for order in orders],
                "started_at": when(min((o.started_at for o in orders if o.started_at), default=None)),
                "completed_at": when(max(filter(None, ends), default=None)) if all(ends) else None,
                "committed_at": when(row.created_at),
                "updated_at": when(max(filter(None, ends), default=row.created_at)),
            }
        )
    return shapes


def _children(caller: Caller, found: Sequence[Order]) -> list[Shape]:
    return [
        {
            **_asked(row.command),
            "correlation_id": str(row.pk),
            "parent_correlation_id": str(row.command_id),
            "client_id": str(row.client_id),
            "node_id": str(row.client_id),
            "client_name": row.client.name,
            "status": row.status.upper(),
            "done": row.ended_at is not None,
            "response": json.dumps(row.response) if row.response is not None else None,
            "message": row.reason,
            "started_at": when(row.started_at),
            "completed_at": when(row.ended_at),
            "committed_at": when(row.created_at),
            "updated_at": when(row.ended_at or row.started_at or row.created_at),
        }
        for row in found
    ]


def _asked(command: Command) -> Shape:
    return {
        "command_id": str(command.pk),
        "command_type": command_type(command),
        "parameters": json.dumps(command.parameters),
        "model_id": str(command.model_id or ""),
    }


def _by_id(caller: Caller, name: str) -> Lookup | None:
    found = as_uuid(name)
    return {"pk": found} if found else None


ROOTS = Noun(
    "commands",
    lambda caller: commands_of(caller.actor, caller.project),
    _roots,
    _by_id,
    filters={"correlation_id": by_id("pk"), "model_id": by_id("model_id"), "name": by_text("name")},
)
CHILDREN = Noun(
    "commands",
    lambda caller: orders_of(caller.actor, caller.project),
    _children,
    _by_id,
    filters={
        "correlation_id": by_id("pk"),
        "parent_correlation_id": by_id("command_id"),
        "client_id": by_id("client_id"),
        "node_id": by_id("client_id"),
        "model_id": by_id("command__model_id"),
        "status": by_word("status", _STATUSES),
    },
)


def any_of(caller: Caller, name: str) -> Any:
    """The row, root or child, of that correlation id. Raises StudioError 404."""
    where = _by_id(caller, name)
    root = where and ROOTS.rows(caller).filter(**where).first()
    return root or CHILDREN.row(caller, name)
