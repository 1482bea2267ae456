"""What guided selection remembers of each client: a row, brought up to date once as the next round opens."""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from django.db.models import Q, QuerySet

from federation.sessions.choices import AssignmentKind, AssignmentStatus
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, Round, SelectionScore, Session
from federation.sessions.selection.guided import Candidate, Pacer, Record, Report, relative_speeds, utilities
from federation.sessions.selection.pool import PoolClient
from foundation.clock import db_now

SPEED = "speed"  # the attribute with which a client says how fast it is: a number, higher is faster
_MISSED = (AssignmentStatus.FAILED, AssignmentStatus.REJECTED, AssignmentStatus.EXPIRED)
_MEASURED = (
    "id",
    "client_id",
    "status",
    "num_examples",
    "created_at",
    "delivered_at",
    "ended_at",
    "metadata__loss",
    "metadata__loss_squared_mean",
)


@dataclass(frozen=True)
class Memory:
    """Records of the session's clients that were tried, and how its pacer stands."""

    records: dict[uuid.UUID, Record]
    pacer: Pacer


def recall(session: Session, config: SessionConfig, last: Round | None) -> Memory:
    """As it was when `last`, the newest round, opened."""
    return Memory(_records(session), pacer_of(last, config))


def recall_within(
    session: Session, config: SessionConfig, last: Round | None, asked: Collection[uuid.UUID]
) -> Memory:
    """As `recall`, in the middle of that round: whom it has `asked` already is no longer one that was never tried."""
    memory = recall(session, config, last)
    number = last.number if last is not None else 1
    return replace(memory, records=dict.fromkeys(asked, Record(None, None, number, 1)) | memory.records)


def pacer_of(last: Round | None, config: SessionConfig) -> Pacer:
    """How the pacer stood when that round opened."""
    kept = (last.plan or {}).get("pacer") if last is not None else None
    return Pacer(**kept) if kept else Pacer(config.selection.duration_percentile)


def bring_up_to_date(session: Session, config: SessionConfig, last: Round | None) -> Memory:
    """Count what came of `last`, the newest round, and keep it. Reads its assignments, writes one statement.

    A chosen client that failed or did not answer in time keeps its utility (or is given the round's mean) and counts as
    no faster than the round was. Session is locked; to be called once, by whoever opens the next round.
    """
    memory = recall(session, config, last)
    if last is None:
        return memory
    records, pacer = memory.records, memory.pacer
    rows = list(_answers(session, config, last).order_by("id").values(*_MEASURED))
    accepted = [row for row in rows if row["status"] == AssignmentStatus.ACCEPTED]
    found = utilities([_report(row) for row in accepted])
    known = [utility for utility in found if utility is not None]
    mean = sum(known) / len(known) if known else None
    useful = dict(zip((row["id"] for row in accepted), found))
    round_s = _seconds_of(last)
    changed: dict[uuid.UUID, Record] = {}
    for row in rows:
        before = changed.get(row["client_id"]) or records.get(row["client_id"])
        if row["id"] in useful:
            utility = useful[row["id"]]
            after = Record(mean if utility is None else utility, _duration(row), last.number, _times(before))
        else:
            after = _missed(before, mean, max(round_s, _duration(row) or 0.0), last.number)
        changed[row["client_id"]] = after
    _keep(session, changed)
    return Memory(records | changed, pacer.after(sum(known), config.selection) if known else pacer)


def pacer_as_kept(memory: Memory) -> dict[str, Any]:
    """For the plan of the round that opens."""
    return asdict(memory.pacer)


def candidates(
    session: Session, config: SessionConfig, clients: Sequence[PoolClient], memory: Memory
) -> list[Candidate]:
    """What is known of each client. Those never tried are as fast as they were in the project's last guided session,
    else as they say. A session that was given a seed is to be repeatable: it looks at no other."""
    fresh = [client for client in clients if client.pk not in memory.records]
    speeds: dict[uuid.UUID, float] = {}
    if fresh:
        durations = _durations_elsewhere(session) if config.selection.seed is None else {}
        seen = relative_speeds([_inverse(durations.get(client.pk)) for client in fresh])
        said = relative_speeds([_number((client.attributes or {}).get(SPEED)) for client in fresh])
        speeds = {
            client.pk: by_sight if durations.get(client.pk) else by_word
            for client, by_sight, by_word in zip(fresh, seen, said)
        }
    return [Candidate(memory.records.get(client.pk), speeds.get(client.pk, 1.0)) for client in clients]


def _records(session: Session) -> dict[uuid.UUID, Record]:
    rows = SelectionScore.objects.filter(session=session, times__gt=0)
    return {
        client_id: Record(utility, duration_s, last_round, times)
        for client_id, utility, duration_s, last_round, times in rows.values_list(
            "client_id", "utility", "duration_s", "last_round", "times"
        )
    }


def _durations_elsewhere(session: Session) -> dict[uuid.UUID, float]:
    """Of the clients in the session before this one that was guided; one statement."""
    others = SelectionScore.objects.filter(session__project_id=session.project_id).exclude(session=session)
    newest = others.order_by("-session_id").values("session_id")[:1]
    rows = SelectionScore.objects.filter(session_id=newest, duration_s__gt=0)
    return {client: seconds for client, seconds in rows.values_list("client_id", "duration_s") if seconds}


def _answers(session: Session, config: SessionConfig, last: Round) -> QuerySet[Assignment]:
    """Train assignments whose end belongs to that round; what was taken from a client without its doing is not one."""
    rows = Assignment.objects.filter(kind=AssignmentKind.TRAIN)
    if config.asynchronous is None:
        return rows.filter(round=last, status__in=[AssignmentStatus.ACCEPTED, *_MISSED])
    return rows.filter(
        Q(share__round=last, status=AssignmentStatus.ACCEPTED)
        | Q(round__session=session, status__in=_MISSED, ended_at__gte=last.created_at)
    )


def _report(row: dict[str, Any]) -> Report:
    return Report(
        num_examples=row["num_examples"] or 0.0,
        loss=_number(row["metadata__loss"]),
        loss_squared_mean=_number(row["metadata__loss_squared_mean"]),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _inverse(seconds: float | None) -> float | None:
    return 1 / seconds if seconds else None


def _duration(row: dict[str, Any]) -> float | None:
    """From delivery (its word may come late, or never: then from the assignment) to acceptance."""
    begin, end = row["delivered_at"] or row["created_at"], row["ended_at"]
    return max(0.0, (end - begin).total_seconds()) if end else None


def _seconds_of(round_: Round) -> float:
    end = round_.closing_at or round_.ended_at or db_now()
    return max(0.0, (end - round_.created_at).total_seconds())


def _missed(before: Record | None, mean: float | None, round_s: float, number: int) -> Record:
    utility = before.utility if before and before.utility is not None else mean
    duration = max(before.duration_s or 0.0, round_s) if before else round_s
    return Record(utility, duration, number, _times(before))


def _times(before: Record | None) -> int:
    return (before.times if before else 0) + 1


def _keep(session: Session, changed: dict[uuid.UUID, Record]) -> None:
    SelectionScore.objects.bulk_create(
        [
            SelectionScore(session=session, client_id=client_id, **asdict(record))
            for client_id, record in changed.items()
        ],
        update_conflicts=True,
        unique_fields=["session", "client"],
        update_fields=["utility", "duration_s", "last_round", "times"],
    )
