"""Legal state moves. Each app keeps its states and its table of moves in `choices.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import models

Moves = Mapping[str, frozenset[str]]


class IllegalMove(RuntimeError):
    """A move that no rule allows. A fault of ours, never of a user."""


def move(
    rows: models.QuerySet[Any],
    moves: Moves,
    to: str,
    *,
    come_from: Iterable[str] | None = None,
    **fields: Any,
) -> int:
    """Move every row of `rows` that may go to `to`; answers how many did.

    One conditional update: zero rows changed means somebody else was faster, and that is fine.
    """
    allowed = {source for source, targets in moves.items() if to in targets}
    sources = allowed if come_from is None else set(come_from)
    if not sources or not sources <= allowed:
        raise IllegalMove(f"{sorted(sources - allowed)} -> {to}")
    return rows.filter(status__in=sorted(sources)).update(status=to, **fields)
