"""The clients of a round by the session's strategy, and a phrase for each that says why."""

from __future__ import annotations

import random
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Q

from federation.sessions.choices import AssignmentKind
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, Round, Session
from federation.sessions.selection import draw, scores
from federation.sessions.selection.guided import Measure, guide
from federation.sessions.selection.pool import Pool, PoolClient


@dataclass(frozen=True)
class Chosen:
    """Who is asked, by id, and why each, in which attempt of which round; `plan` goes into the round's. It may end with
    `goal` updates and counts with `min_updates`."""

    clients: list[PoolClient]
    why: dict[uuid.UUID, str]
    plan: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    attempt: int = 0
    goal: int = 0
    min_updates: int = 0


def choose_for_round(
    session: Session,
    config: SessionConfig,
    pool: Pool,
    *,
    busy: Collection[uuid.UUID] = (),
    number: int | None = None,
) -> Chosen:
    """The clients of the round that the caller opens in this transaction, `number` (None: the one after the last that
    is done). Session is locked.

    The same session seed, round, attempt, clients in order of id and reports so far give the same choice. Asynchronous
    rounds fill the places that `busy` clients leave, and may ask nobody.
    """
    settings = config.selection
    last = _newest_round(session)
    number = session.rounds_done + 1 if number is None else number
    attempt = _attempt(session, config, last, number)
    seed = draw.seed_of(session.pk, settings.seed)
    secret = config.privacy is not None and settings.strategy == "poisson"
    free = [client for client in pool.clients if client.pk not in busy]
    wanted = wanted_of(config, len(pool.clients))
    places = draw.asked_for(wanted, settings.over_commitment, len(pool.clients))
    if config.asynchronous is not None:
        most = config.asynchronous.concurrency
        places = len(free) if most is None else max(0, most - len(busy))
    # A draw that others could repeat would tell them who took part: sampling then hides nobody.
    rng = random.SystemRandom() if secret else draw.dice(seed, number, attempt)
    lot = _Lot(session, config, free, places, number, rng)
    plan: dict[str, Any] = {}
    if settings.strategy == "poisson":
        picked = lot.by_coins(settings.fraction or wanted / max(1, len(pool.clients)))
    elif settings.strategy == "guided":
        memory = scores.bring_up_to_date(session, config, last)
        picked = lot.guided(memory)
        plan["pacer"] = scores.pacer_as_kept(memory)
    else:
        picked = lot.at_random()
    needed = min(config.needed_updates, len(picked.clients)) if secret else config.needed_updates
    plan["selection"] = {
        "strategy": settings.strategy,
        "seed": None if secret else seed,
        "online": len(pool.online),
        "eligible": len(pool.clients),
        "wanted": wanted,
        **({"asked": places} if settings.over_commitment > 1 else {}),
        "chosen": len(picked.clients),
        "needed": needed,
        "where": settings.where,
        **picked.told,
    }
    goal = _goal(config, wanted, len(picked.clients))
    return Chosen(picked.clients, picked.why, plan, number, attempt, goal, needed)


def choose_more(
    session: Session, config: SessionConfig, pool: Pool, places: int, *, busy: Collection[uuid.UUID]
) -> Chosen:
    """Clients for free places in an open round, by the same strategy, never `busy` ones. Session is locked."""
    free = [client for client in pool.clients if client.pk not in busy]
    if places < 1 or not free:
        return Chosen([], {})
    last = _newest_round(session)
    number, attempt = (last.number, last.attempt) if last else (0, 0)
    asked = Assignment.objects.filter(Q(round=last) | Q(share__round=last), kind=AssignmentKind.TRAIN)
    so_far = list(asked.order_by("id").values_list("client_id", flat=True))
    rng = draw.dice(draw.seed_of(session.pk, config.selection.seed), number, attempt, len(so_far))
    lot = _Lot(session, config, free, places, number, rng)
    if config.selection.strategy == "guided":
        picked = lot.guided(scores.recall_within(session, config, last, so_far))
    else:
        picked = lot.at_random()
    return Chosen(picked.clients, picked.why)


def _newest_round(session: Session) -> Round | None:
    # not by id: rounds are opened on several hosts, whose clocks differ
    return Round.objects.filter(session=session).order_by("-number", "-attempt").first()


def _attempt(session: Session, config: SessionConfig, last: Round | None, number: int) -> int:
    if config.asynchronous is not None:  # a round may fail before or after the one that follows it
        return Round.objects.filter(session=session, number=number).count() + 1
    return last.attempt + 1 if last is not None and last.number == number else 1


def wanted_of(config: SessionConfig, eligible: int) -> int:
    """How many of the eligible clients' updates a round wants; in asynchronous mode, how many are to train at once."""
    if config.asynchronous is not None:
        wanted = config.asynchronous.concurrency
    elif config.selection.fraction is not None:
        least = max(1, config.min_clients, config.needed_updates)
        wanted = max(least, int(config.selection.fraction * eligible + 0.5))
    else:
        wanted = config.requested_clients
    return eligible if wanted is None else min(wanted, eligible)


def _goal(config: SessionConfig, wanted: int, chosen: int) -> int:
    if config.asynchronous is not None:
        return config.asynchronous.buffer_size
    if config.selection.over_commitment > 1:
        return min(wanted, chosen)
    return min(config.goal or chosen, chosen)


@dataclass(frozen=True)
class _Picked:
    """Clients by id, why each, and what the round's plan tells of it."""

    clients: list[PoolClient]
    why: dict[uuid.UUID, str]
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Lot:
    """The places of a round, and who may get them."""

    session: Session
    config: SessionConfig
    free: list[PoolClient]
    places: int
    number: int
    rng: random.Random

    def at_random(self) -> _Picked:
        if self.places < len(self.free):
            drawn = draw.sample(self.free, self.places, self.rng)
            return _alike(drawn, f"drawn at random, {self.places} of {len(self.free)}")
        if self.config.client_ids:
            return _alike(self.free, "listed")
        fit = self.config.selection.where
        return _alike(self.free, "all that fit take part" if fit else "all that are online take part")

    def by_coins(self, probability: float) -> _Picked:
        """With privacy the draw is what it is, and nobody may come up: any other rule would void the accounting."""
        if self.config.privacy is not None:
            drawn = draw.coins(self.free, probability, self.rng)
        else:
            least = self.config.needed_updates
            drawn = draw.coins_with_at_least(self.free, probability, least, self.rng)
        picked = _alike(drawn, f"drawn by its own coin, with probability {probability:.3g}")
        picked.told["probability"] = probability
        return picked

    def guided(self, memory: scores.Memory) -> _Picked:
        found = guide(
            scores.candidates(self.session, self.config, self.free, memory),
            self.places,
            self.config.selection,
            measure=Measure.of(list(memory.records.values()), memory.pacer.percentile),
            round_number=self.number,
            rng=self.rng,
        )
        return _Picked(
            [self.free[pick.index] for pick in found.picks],
            {self.free[pick.index].pk: pick.why for pick in found.picks},
            {
                "epsilon": round(found.epsilon, 4),
                "exploring": found.exploring,
                "known": found.known,
                "aim_s": None if found.aim_s is None else round(found.aim_s, 3),
                "aim_percentile": memory.pacer.percentile,
            },
        )


def _alike(clients: list[PoolClient], why: str) -> _Picked:
    return _Picked(clients, dict.fromkeys((client.pk for client in clients), why))
