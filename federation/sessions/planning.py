"""Starting a session with numbers that are named only when it starts, as FEDn's and Scaleout's clients do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.db import transaction

from federation.sessions.choices import SessionStatus
from federation.sessions.config import SessionConfig, parse_client_ids
from federation.sessions.models import Session
from federation.sessions.services import continue_session, start_session
from foundation.errors import StudioError, invalid
from projects.actors import Actor
from projects.choices import Action
from projects.scoping import reach

MAX_ROUNDS = 100_000
MAX_TIMEOUT_S = 7 * 86400.0


def run_session(
    *,
    actor: Actor,
    session: Session,
    rounds: int | None = None,
    round_timeout_s: float | None = None,
    client_ids: Any = None,
) -> Session:
    """A new session starts, one that ended goes on, for `rounds` rounds of at most `round_timeout_s` each, with the
    clients that `client_ids` names (a list, or text with commas); what is None stays as the session has it. Raises
    StudioError 400, `session_running` (409), 403, 404; then nothing changes."""
    if rounds is not None and not 1 <= rounds <= MAX_ROUNDS:
        raise invalid("rounds", f"rounds must be a whole number from 1 to {MAX_ROUNDS}.")
    if round_timeout_s is not None and not 1 <= round_timeout_s <= MAX_TIMEOUT_S:
        raise invalid("round_timeout", f"round_timeout must be from 1 to {MAX_TIMEOUT_S:g} seconds.")
    reach(Session.objects.all(), actor, Action.RUN, "session", pk=session.pk)
    with transaction.atomic():
        row = Session.objects.select_for_update(of=("self",), no_key=True).get(pk=session.pk)
        if row.status == SessionStatus.RUNNING:
            raise StudioError("session_running", "A session is already running!", 409)
        config = SessionConfig.from_json(row.config)
        if round_timeout_s is not None:
            config = replace(config, round_timeout_s=round_timeout_s)
        if client_ids:
            needed = max(config.min_clients, config.needed_updates)
            config = replace(config, client_ids=parse_client_ids(client_ids, needed=needed))
        row.config = config.to_json()
        if row.status == SessionStatus.CREATED:
            row.rounds_wanted = rounds or row.rounds_wanted
            row.save(update_fields=["rounds_wanted", "config"])
            return start_session(actor=actor, session=row)
        row.save(update_fields=["config"])
        return continue_session(actor=actor, session=row, rounds=rounds or row.rounds_wanted)
