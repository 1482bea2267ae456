"""The model trail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from federation.dialects.controller.asked import Lookup, as_uuid, by_id, by_number, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape
from federation.models.models import Model
from federation.models.selectors import trail


def rows(caller: Caller) -> Any:
    return trail(caller.actor, caller.project).defer("layout", "metadata", "session__config")


def shaped(caller: Caller, found: Sequence[Model]) -> list[Shape]:
    return [
        {
            "model_id": str(row.pk),
            "model": str(row.pk),
            "name": row.name,
            "parent_model": str(row.parent_id) if row.parent_id else None,
            "session_id": str(row.session_id) if row.session_id else None,
            "size": row.size_bytes,
            "committed_at": when(row.created_at),
            "updated_at": when(row.created_at),
        }
        for row in found
    ]


def find(caller: Caller, name: str) -> Lookup | None:
    found = as_uuid(name)
    return {"pk": found} if found else None


MODELS = Noun(
    "models",
    rows,
    shaped,
    find,
    filters={
        "model_id": by_id("pk"),
        "model": by_id("pk"),
        "name": by_text("name"),
        "parent_model": by_id("parent_id"),
        "session_id": by_id("session_id"),
        "size": by_number("size_bytes"),
    },
    order={"name": "name", "model_id": "pk", "session_id": "session_id", "parent_model": "parent_id"},
)
