"""Sessions, with their settings in the words that were sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_uuid, by_id, by_text, by_word, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.models.selectors import helper_of
from federation.sessions.config import SessionConfig
from federation.sessions.models import Session
from federation.sessions.selectors import sessions_of

STATUS = {
    "created": "Created",
    "running": "Started",
    "finished": "Finished",
    "failed": "Terminated",  # the clients know no other end; `reason` says why
    "stopped": "Terminated",
}
INSIDE: dict[str, list[Any]] = {
    "created": ["created"],
    "started": ["running"],
    "finished": ["finished"],
    "terminated": ["failed", "stopped"],
}


def config_shape(row: Session, helper: str) -> Shape:
    """`session_config`: what was sent wins over what it came to."""
    config = SessionConfig.from_json(row.config)
    timeout_s = config.round_timeout_s
    now: Shape = {
        "rounds": row.rounds_wanted,
        "round_timeout": int(timeout_s) if timeout_s == int(timeout_s) else timeout_s,
    }
    shape: Shape = {
        "aggregator": config.aggregator,
        "aggregator_kwargs": json.dumps(config.aggregator_kwargs) if config.aggregator_kwargs else None,
        "buffer_size": -1,
        "delete_models_storage": True,
        "clients_required": config.min_clients,
        "requested_clients": config.requested_clients,
        "validate": config.validate,
        "helper_type": helper,
        "model_id": str(row.seed_model_id),
        "server_functions": None,
    }
    sent = dict(config.as_sent)
    given = sent.get("aggregator_kwargs")
    if given is not None and not isinstance(given, str):
        sent["aggregator_kwargs"] = json.dumps(given)
    return {**shape, **sent, **now}


def rows(caller: Caller) -> Any:
    return sessions_of(caller.actor, caller.project)


def shaped(caller: Caller, found: Sequence[Session]) -> list[Shape]:
    helper = helper_of(caller.project) or "numpyhelper"
    return [
        {
            "session_id": str(row.pk),
            "name": row.name,
            "status": STATUS[row.status],
            "reason": row.reason or row.waiting_for,
            "session_config": config_shape(row, helper),
            "seed_model_id": str(row.seed_model_id),
            "committed_at": when(row.created_at),
            "updated_at": when(row.ended_at or row.started_at or row.created_at),
        }
        for row in found
    ]


def find(caller: Caller, name: str) -> Lookup | None:
    found = as_uuid(name)
    return {"pk": found} if found else None


SESSIONS = Noun(
    "sessions",
    rows,
    shaped,
    find,
    filters={
        "session_id": by_id("pk"),
        "name": by_text("name"),
        "status": by_word("status", INSIDE),
        "seed_model_id": by_id("seed_model_id"),
        "session_config.model_id": by_id("seed_model_id"),
    },
    order={"name": "name", "session_id": "pk", "status": "status", "updated_at": "ended_at"},
)
