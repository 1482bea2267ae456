"""The model trail: what a round made of its parent."""

from __future__ import annotations

import uuid
from typing import Any

from federation.models.choices import ModelKind
from federation.models.models import Model
from foundation.plain_json import plain


def add_round_model(
    *,
    session_id: uuid.UUID,
    project_id: uuid.UUID,
    parent: Model,
    round_number: int,
    name: str,
    key: str,
    sha256: str,
    size_bytes: int,
    layout: list[dict[str, Any]],
    metadata: dict[str, Any],
) -> Model:
    """The row of a model whose artifact is already stored under `key`. One insert; the caller holds the
    transaction."""
    return Model.objects.create(
        project_id=project_id,
        session_id=session_id,
        kind=ModelKind.ROUND,
        name=name[:120],
        parent=parent,
        round_number=round_number,
        key=key,
        sha256=sha256,
        size_bytes=size_bytes,
        layout=layout,
        metadata=plain(metadata),
    )
