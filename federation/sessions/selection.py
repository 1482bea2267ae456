"""Who takes part in a round."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clients_app.models import Client
from federation.sessions.config import SessionConfig
from federation.sessions.models import Session


def eligible_clients(session: Session, config: SessionConfig) -> list[Client]:
    """Clients of the project that are online and may take part, oldest first."""
    rows = Client.objects.filter(project_id=session.project_id).online()
    if config.client_ids:
        rows = rows.filter(pk__in=config.client_ids)
    return list(rows.order_by("id"))


def choose(clients: Sequence[Client], config: SessionConfig, *, seed: str) -> list[Client]:
    """The clients of one round: all, or a random sample that `seed` repeats."""
    wanted = config.requested_clients
    if wanted is None or wanted >= len(clients):
        return list(clients)
    return random.Random(seed).sample(list(clients), wanted)
