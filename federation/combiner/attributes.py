"""What clients say of themselves while they are connected, whatever dialect they say it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clients_app import presence
from federation.combiner.connection import Identity
from federation.combiner.threads import in_rows
from federation.sessions import assignments


async def take_attributes(who: Identity, said: Mapping[str, Any], *, whole: bool) -> None:
    """Keep it: `whole`, in place of all that was known; else name by name. Sessions that want clients look again, for
    this one may fit now."""
    write = presence.set_attributes if whole else presence.merge_attributes
    if await in_rows(write, client_id=who.client_id, attributes=said):
        await in_rows(assignments.wake_waiting_sessions, [who.project_id])
