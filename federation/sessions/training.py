"""A synchronous round while it trains: its rule, its deadline, its reserves."""

from __future__ import annotations

import datetime as dt

from federation.events.services import publish
from federation.sessions import rounds
from federation.sessions.choices import LIVE_ASSIGNMENT, AssignmentKind, AssignmentStatus
from federation.sessions.config import SessionConfig
from federation.sessions.lost import give_up_lost_disks
from federation.sessions.models import Assignment, Round, Session
from federation.sessions.selection import choose_more, eligible
from foundation import hints

RESERVES_LOOK_S = 2.0


def train(session: Session, round_: Round, config: SessionConfig, now: dt.datetime) -> dt.datetime | None:
    """Close, fail, or wait. Answers when to look again; None: a step was taken."""
    if give_up_lost_disks(round_, config, now):
        return None
    counts = rounds.tally(round_)
    if rounds.rule_met(round_, counts, now):
        rounds.close(round_, counts, now)
        hints.wake_combiners([])
        return None
    timed_out = now >= round_.deadline
    if not timed_out and assign_reserve(session, round_, config):
        return None
    if timed_out or counts.accepted + counts.live < round_.min_updates:
        fail_short(session, round_, counts, config, now)
        return None
    return next_look(round_, config, now)


def fail_short(
    session: Session, round_: Round, counts: rounds.Tally, config: SessionConfig, now: dt.datetime
) -> None:
    """Too few updates came, and no more will. Session and Round are locked."""
    why = "time was up" if now >= round_.deadline else "not enough clients are left"
    missing = who_was_missing(round_)
    rounds.fail(
        session, round_, f"{why} with {counts.accepted} of {round_.min_updates} updates. {missing}", config
    )


def next_look(round_: Round, config: SessionConfig, now: dt.datetime) -> dt.datetime:
    """When a round in which nothing happens is to be looked at."""
    soon = now + dt.timedelta(seconds=RESERVES_LOOK_S)
    return min(round_.deadline, soon) if config.reserves else round_.deadline


def assign_reserve(session: Session, round_: Round, config: SessionConfig) -> bool:
    """A chosen client is gone, or gave up, and reserves are configured: one more eligible client is assigned."""
    if not config.reserves:
        return False
    trains = Assignment.objects.filter(round=round_, kind=AssignmentKind.TRAIN)
    asked = set(trains.values_list("client_id", flat=True))
    used = len(asked) - round_.goal
    pool = eligible(session, config)
    done = set(trains.filter(status=AssignmentStatus.ACCEPTED).values_list("client_id", flat=True))
    busy = set(trains.filter(status__in=LIVE_ASSIGNMENT).values_list("client_id", flat=True)) & pool.online
    gone = len(asked - done - busy)
    if used >= min(config.reserves, gone):
        return False
    spare = choose_more(session, config, pool, 1, busy=asked).clients
    if not spare:
        return False
    rounds.assign(
        round_,
        spare,
        why={spare[0].pk: "in place of a client that went away"},
        model_id=round_.input_model_id,
        kind=AssignmentKind.TRAIN,
        deadline=round_.deadline,
    )
    publish(
        project_id=session.project_id,
        kind="round.reserve",
        message=f"{spare[0].name} takes part in round {round_.number} in place of a client that went away.",
        session_id=session.pk,
        round_number=round_.number,
        client_id=spare[0].pk,
    )
    return True


def who_was_missing(round_: Round) -> str:
    rows = (
        Assignment.objects.filter(round=round_, kind=AssignmentKind.TRAIN)
        .exclude(status=AssignmentStatus.ACCEPTED)
        .select_related("client")
        .order_by("client__name")[:10]
    )
    said = [f"{row.client.name} ({row.error or 'no answer'})" for row in rows]
    return f"Missing: {'; '.join(said)}" if said else ""
