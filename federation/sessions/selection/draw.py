"""Drawing by lot. What is drawn depends on a seed, a place in the session and an order: on nothing of this process."""

from __future__ import annotations

import hashlib
import math
import random
import uuid
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

DRAWS_AGAIN = 20


def seed_of(session_id: uuid.UUID, seed: int | None) -> int:
    """The session's own seed, else one derived from its id: shown, so that another session can be given it."""
    if seed is not None:
        return seed
    return int.from_bytes(hashlib.sha256(session_id.bytes).digest()[:6])


def dice(seed: int, *place: int) -> random.Random:
    """The randomness of one place in a session, such as (round, attempt). A text seeds by its SHA-512."""
    return random.Random(":".join(str(part) for part in (seed, *place)))


def sample(items: Sequence[T], count: int, rng: random.Random) -> list[T]:
    """`count` of the items, each set of that size as likely, in the order they came in; all when there are no more."""
    if count >= len(items):
        return list(items)
    return [items[i] for i in sorted(rng.sample(range(len(items)), max(count, 0)))]


def coins(items: Sequence[T], probability: float, rng: random.Random) -> list[T]:
    """Poisson sampling: each item by its own coin, so there may be any number of them, and none."""
    return [item for item in items if rng.random() < probability]


def coins_with_at_least(items: Sequence[T], probability: float, least: int, rng: random.Random) -> list[T]:
    """As `coins`, drawn again while fewer than `least` come up; in the end the rest of them is drawn by lot."""
    drawn: list[T] = []
    for _ in range(DRAWS_AGAIN):
        drawn = coins(items, probability, rng)
        if len(drawn) >= least:
            return drawn
    return sample(items, least, rng)


def asked_for(wanted: int, over_commitment: float, eligible: int) -> int:
    """ceil(over_commitment * wanted), as many as there are. 1.1 times 10 is 11, though not in floating point."""
    return min(eligible, math.ceil(over_commitment * wanted - 1e-9))
