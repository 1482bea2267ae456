"""Which round takes an update: the one that asked for it, or, in an asynchronous session, the one that trains."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from federation.sessions import asynchronous, rounds
from federation.sessions.choices import LIVE_ASSIGNMENT, AssignmentKind, RoundStatus, SessionStatus
from federation.sessions.config import SessionConfig
from federation.sessions.locks import bound_lock_wait, lock_round, lock_session
from federation.sessions.models import Assignment, Round, Session
from foundation.clock import db_now


class Arrived(Protocol):
    @property
    def round_id(self) -> uuid.UUID: ...


T = TypeVar("T", bound=Arrived)


def grouped(updates: Sequence[T]) -> list[list[T]]:
    """Updates that one transaction may take: of one round, or of one asynchronous session."""
    asked = {update.round_id for update in updates}
    if len(asked) == 1:
        return [list(updates)]
    sessions = dict(
        Round.objects.filter(pk__in=asked, buffered=True).order_by("id").values_list("pk", "session_id")
    )
    groups: dict[uuid.UUID, list[T]] = defaultdict(list)
    for update in updates:
        groups[sessions.get(update.round_id, update.round_id)].append(update)
    return [group for _, group in sorted(groups.items())]


@dataclass
class Taking:
    """The round that takes the updates of one transaction, locked; so is the session when it is asynchronous."""

    round: Round
    config: SessionConfig
    session: Session | None = None
    look: bool = False  # after `settle`: the session is to be looked at, once this is committed
    _free: set[uuid.UUID] = field(default_factory=set)

    def age(self, rows: Collection[Assignment], now: dt.datetime) -> None:
        """Write on each locked row how stale its update is; end those that are too stale to count."""
        if self.session is not None and self.round.status == RoundStatus.TRAINING:
            live = [row for row in rows if row.kind == AssignmentKind.TRAIN and row.status in LIVE_ASSIGNMENT]
            dropped = asynchronous.drop_stale(self.session, self.round, self.config, live, now)
            self._free = {row.client_id for row in dropped}

    def settle(self, fresh: Collection[Assignment], now: dt.datetime) -> int:
        """The updates of `fresh` are accepted and written. Answers how many shares that made close with the round."""
        if self.session is not None:
            free = self._free | {row.client_id for row in fresh}
            return asynchronous.settle(self.session, self.round, self.config, free, now) if free else 0
        if not fresh:
            return 0
        counts = rounds.tally(self.round)
        if counts.accepted >= self.round.min_updates:
            rounds.start_grace(self.round, self.config, now)
        if rounds.rule_met(self.round, counts, now):
            return rounds.close(self.round, counts, now)
        self.look = counts.live == 0
        return 0


def taking(round_id: uuid.UUID) -> Taking | None:
    """Within a transaction: lock the round that takes updates which `round_id` asked for. None: there is no such
    round any more."""
    rows = Round.objects.filter(pk=round_id).select_related("session")
    bound_lock_wait()
    mine = next(
        iter(rows.select_for_update(of=("self",), no_key=True).filter(buffered=False).order_by()), None
    )
    if mine is not None:
        return Taking(mine, SessionConfig.from_json(mine.session.config))
    asked = rows.first()
    if asked is None:
        return None
    config = SessionConfig.from_json(asked.session.config)
    session = lock_session(asked.session_id)
    if session is not None and session.status == SessionStatus.RUNNING:
        found = asynchronous.training_round(session, config, db_now())
        if found is not None:
            return Taking(found, config, session)
    locked = lock_round(round_id)
    return Taking(locked, config) if locked is not None else None
