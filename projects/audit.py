"""The audit trail: one row a deed, written in the deed's own transaction."""

from __future__ import annotations

import uuid
from typing import Any

from projects.actors import Actor
from projects.models import AuditEvent


def record(actor: Actor, verb: str, *, project_id: uuid.UUID | None, target: str = "", **data: Any) -> None:
    AuditEvent.objects.create(
        project_id=project_id, actor=actor.key, verb=verb, target=target[:200], data=data
    )
