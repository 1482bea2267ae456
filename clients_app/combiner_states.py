"""Combiners as a project sees them: how busy each is, and what part of the open rounds goes through it."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Count, F, Q, Sum
from django.db.models.functions import Coalesce

from clients_app.models import Combiner
from projects.models import Project

# Of its process. How many clients of other projects it serves is not told.
SHOWN_LOAD = ("cpu_percent", "rss_bytes", "bytes_in_s", "bytes_out_s", "uploads", "queue")
# The room of sessions stands above this one and is not imported.
_OPEN_ROUND = ("training", "closing", "reducing")
_COUNTED = ("assigned", "delivered", "accepted", "rejected", "failed")


@dataclass(frozen=True)
class RoundShare:
    """A combiner's part of one open round. `asked`: clients asked through it; `accepted`: their updates it has;
    `weight_percent`: of the weight of all updates accepted so far, None before the first; `state`: of its share, open,
    closing, finished or abandoned, and empty before the first update."""

    session_id: uuid.UUID
    session_name: str
    number: int
    asked: int
    accepted: int
    weight_percent: float | None
    state: str


@dataclass(frozen=True)
class CombinerState:
    """One line of the list of combiners; `combiner` is a row of `combiners_of`."""

    combiner: Combiner
    alive: bool
    state: str
    active_clients: int
    load: dict[str, float]
    shares: list[RoundShare] = field(default_factory=list)


def combiner_states(project: Project, rows: Sequence[Combiner]) -> list[CombinerState]:
    """Three queries, however many combiners, clients and rounds."""
    shares = _round_shares(project) if rows else {}
    return [
        CombinerState(
            row,
            getattr(row, "alive", False),
            getattr(row, "state", ""),
            getattr(row, "active_clients", 0),
            _shown(row) if getattr(row, "alive", False) else {},
            shares.get(row.pk, []),
        )
        for row in rows
    ]


def _shown(row: Combiner) -> dict[str, float]:
    load = row.load if isinstance(row.load, dict) else {}
    return {key: load[key] for key in SHOWN_LOAD if isinstance(load.get(key), int | float)}


def _round_shares(project: Project) -> dict[uuid.UUID, list[RoundShare]]:
    rounds = {
        pk: (session_id, name, number)
        for pk, session_id, name, number in _of(project, "rounds")
        .filter(status__in=_OPEN_ROUND)
        .order_by("session__name", "number")
        .values_list("pk", "session_id", "session__name", "number")
    }
    if not rounds:
        return {}
    states = {
        (combiner_id, round_id): status
        for combiner_id, round_id, status in _of(project, "shares")
        .filter(round_id__in=rounds)
        .order_by("id")  # given up and begun again: the newest says how it stands
        .values_list("combiner_id", "round_id", "status")
    }
    lines = _counted(project, rounds)
    totals: dict[uuid.UUID, float] = defaultdict(float)
    for line in lines:
        totals[line["of"]] += line["folded"] or 0.0
    found: dict[uuid.UUID, list[RoundShare]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: list(rounds).index(line["of"])):
        session_id, name, number = rounds[line["of"]]
        total = totals[line["of"]]
        found[line["through"]].append(
            RoundShare(
                session_id,
                name,
                number,
                line["asked"],
                line["accepted"],
                100 * (line["folded"] or 0.0) / total if total else None,
                states.get((line["through"], line["of"]), ""),
            )
        )
    return found


def _counted(project: Project, rounds: dict[uuid.UUID, Any]) -> list[dict[str, Any]]:
    """For each combiner and round: `asked`, `accepted` and the summed weight `folded`. An update counts where it was
    accepted, in the round that took it; an open assignment where its client is connected, or was last."""
    accepted = Q(status="accepted")
    return list(
        _of(project, "assignments")
        .annotate(
            of=Coalesce("share__round_id", "round_id"),
            through=Coalesce("share__combiner_id", "client__combiner_id"),
        )
        .filter(Q(round_id__in=rounds) | Q(share__round_id__in=rounds), kind="train", status__in=_COUNTED)
        .filter(of__in=rounds, through__isnull=False)
        .order_by()
        .values("of", "through")
        .annotate(
            asked=Count("pk"),
            accepted=Count("pk", filter=accepted),
            folded=Sum(Coalesce(F("weight"), F("num_examples")), filter=accepted),
        )
    )


def _of(project: Project, rows: str) -> Any:
    """Rows of the room above, by the name under which a project has them."""
    return getattr(project, rows)
