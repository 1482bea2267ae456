"""Who may take part: the project's clients that are online, named and fit."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db.models import Count

from clients_app.models import Client, ClientQuerySet
from federation.sessions.choices import AssignmentKind
from federation.sessions.config import SessionConfig
from federation.sessions.config.expression import parse_where
from federation.sessions.models import Assignment, Session

SHOWN_OF_WHERE = 120


class PoolClient(NamedTuple):
    """A client that may be chosen: thousands of them are read for a round, so it is no row. `attributes` are read where
    they are looked at."""

    pk: uuid.UUID
    name: str
    attributes: dict[str, Any] | None = None


@dataclass(frozen=True)
class Pool:
    """Those who may be chosen, by id: the order that draws go by."""

    clients: list[PoolClient]
    online: frozenset[uuid.UUID]  # of those that were named, fit or not
    where: str = ""
    unfit: int = 0  # online, but what they say of themselves is not what `where` asks
    worn_out: int = 0  # took part as often as they may
    max_times: int | None = None

    def waiting(self, needed: int) -> str:
        """What a session waits for that needs more of them, as `Session.waiting_for` says it."""
        have = len(self.clients)
        missing = needed - have
        besides = ""
        if self.unfit:
            asked = self.where if len(self.where) <= SHOWN_OF_WHERE else f"{self.where[:SHOWN_OF_WHERE]}…"
            besides += f"; {self.unfit} online {'does' if self.unfit == 1 else 'do'} not fit {asked}"
        if self.worn_out:
            besides += f"; {self.worn_out} took part in {self.max_times} rounds, which is all they may"
        fitting = " that fit" if self.unfit and missing != 1 else " that fits" if self.unfit else ""
        more = f"{missing} more client{'s' * (missing != 1)}{fitting}"
        return f"{more} to come online ({have} of {needed} are{besides})"


def eligible(session: Session, config: SessionConfig, *, among: Collection[uuid.UUID] | None = None) -> Pool:
    """Two queries at most, however many there are; `where` is asked of the rows here. `among`: of these only."""
    rows = _named(session, config).online()
    if among is not None:
        rows = rows.filter(pk__in=among)
    looked_at = bool(config.selection.where) or config.selection.strategy == "guided"
    online = _read(rows, attributes=looked_at)
    fitting = _fitting(online, config)
    fresh, limit = fitting, config.selection.max_times
    if limit is not None:
        worn_out = _worn_out(session, limit)
        fresh = [client for client in fitting if client.pk not in worn_out]
    return Pool(
        clients=fresh,
        online=frozenset(client.pk for client in online),
        where=config.selection.where,
        unfit=len(online) - len(fitting),
        worn_out=len(fitting) - len(fresh),
        max_times=limit,
    )


def population(session: Session, config: SessionConfig) -> int:
    """How many clients of the project may take part, online or not: privacy's divisor goes by it."""
    if not config.selection.where:
        return _named(session, config).count()
    return len(_fitting(_read(_named(session, config), attributes=True), config))


def _named(session: Session, config: SessionConfig) -> ClientQuerySet:
    rows = Client.objects.filter(project_id=session.project_id)
    return rows.filter(pk__in=config.client_ids) if config.client_ids else rows


def _read(rows: ClientQuerySet, *, attributes: bool) -> list[PoolClient]:
    names = ["id", "name", "attributes"] if attributes else ["id", "name"]
    return [PoolClient(*row) for row in rows.order_by("id").values_list(*names)]


def _fitting(clients: list[PoolClient], config: SessionConfig) -> list[PoolClient]:
    asked = parse_where(config.selection.where)
    return clients if asked is None else [one for one in clients if asked.fits(one.attributes or {})]


def _worn_out(session: Session, limit: int) -> set[uuid.UUID]:
    """Clients that were asked in so many rounds of the session."""
    asked = Assignment.objects.filter(round__session=session, kind=AssignmentKind.TRAIN).order_by()
    rounds_each = asked.values("client_id").annotate(rounds=Count("round_id", distinct=True))
    return set(rounds_each.filter(rounds__gte=limit).values_list("client_id", flat=True))
