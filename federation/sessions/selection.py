"""Who takes part in a round."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clients_app.models import Client
from federation.sessions.config import SessionConfig
from federation.sessions.models import Session


def eligible_clients(session: Session) -> list[Client]:
    """Clients of the project that are online, oldest first."""
    return list(Client.objects.filter(project_id=session.project_id).online().order_by("id"))


def choose(clients: Sequence[Client], config: SessionConfig, *, seed: str) -> list[Client]:
    """The clients of one round: all, or a random sample that `seed` repeats."""
    wanted = config.requested_clients
    if wanted is None or wanted >= len(clients):
        return list(clients)
    return random.Random(seed).sample(list(clients), wanted)
