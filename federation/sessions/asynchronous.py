"""Asynchronous rounds: a buffer that closes when it is full (FedBuff: Nguyen et al., AISTATS 2022, Algorithm 1).

At any time `concurrency` clients train, each from the model that was newest when it was asked. An update belongs to
the round that trains when it comes, whichever round asked for it; a client whose update was taken is asked again in
the same transaction. The round closes with `buffer_size` updates, and the next one opens in that transaction too.

- *In order.* A round closes only once the one before it has become a model, or has failed; until then it goes on
  taking updates, beyond its goal if need be. So a reduction that is slower than the clients makes larger buffers, not
  a queue; at most two rounds are open, one that trains and one that becomes a model; and what a round starts from,
  its `input_model`, is settled as it closes: the newest model there is.
- *Staleness* of an update: rounds between the model that it answers and the round that takes it. Beyond
  `max_staleness` it is dropped: refused with that reason, and its client is asked again.
- *Nothing waits for ever.* A client has `round_timeout_s` from when it was asked; then its lease expires and its
  place is free. A round has as long from when it opened: then it closes with what it has if that is `min_updates` or
  more, else it fails and is tried again; so it does when nobody trains and nobody can be asked. `max_failed_rounds`
  in a row fail the session. Clients' leases outlive the rounds that gave them.
- *A client that fails*, or whose update is rejected, is not asked again by the same round.
- *A round that fails after it closed* (its combiner's disk was lost) gives its number to the one that trains, which
  goes on with the updates it has.

The caller of everything here holds the session's lock: who is asked, and which round takes what, is decided under it.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Mapping

from django.db.models import QuerySet

from federation.models.models import Model
from federation.sessions import closing, rounds
from federation.sessions.choices import (
    ASSIGNMENT_MOVES,
    LIVE_ASSIGNMENT,
    PAST_TRAINING,
    AssignmentKind,
    AssignmentStatus,
    RoundStatus,
)
from federation.sessions.config import SessionConfig
from federation.sessions.lost import give_up_lost_disks
from federation.sessions.models import Assignment, Round, Session
from federation.sessions.selection import PoolClient, choose_for_round, choose_more, eligible
from federation.sessions.training import fail_short
from foundation import hints
from foundation.moves import move

NET_S = 60.0  # for clients that may be asked without having come online since they were sought


def step(session: Session, open_: list[Round], config: SessionConfig, now: dt.datetime) -> dt.datetime | None:
    """One step of a session with open rounds, locked and oldest first. Answers when to look again; None: a step was
    taken."""
    looks = []
    for round_ in open_:
        if round_.status == RoundStatus.TRAINING:
            at = train(session, round_, config, now, alone=len(open_) == 1)
        elif session.waiting_until is not None and now >= session.waiting_until:
            rounds.fail(session, round_, f"it waited in vain for {session.waiting_for}", config)
            return None
        elif round_.status == RoundStatus.CLOSING:
            at = closing.close(session, round_, config, now)
        else:
            at = closing.reduce(round_, now)
        if at is None:
            return None
        looks.append(at)
    return min(looks)


def train(
    session: Session, round_: Round, config: SessionConfig, now: dt.datetime, *, alone: bool
) -> dt.datetime | None:
    """Expire, ask, close or fail. `alone`: the round before it is over."""
    if give_up_lost_disks(round_, config, now):
        return None
    rounds.expire(_leases(session), now, "no update came in time")
    fill(session, round_, config, now)
    session.sought_at = now  # whoever comes online later is seen by the tick
    counts = rounds.tally(round_)
    over = counts.live == 0 or now >= round_.deadline
    if counts.accepted >= (round_.min_updates if over else round_.goal):
        if alone:
            close(session, round_, config, now)
            hints.wake_combiners([])
            return None
    elif over:
        fail_short(session, round_, counts, config, now)
        return None
    soonest = _leases(session).order_by("deadline").first()
    moments = [now + dt.timedelta(seconds=NET_S), *([soonest.deadline] if soonest else [])]
    return min([*moments, round_.deadline] if round_.deadline > now else moments)


def _leases(session: Session) -> QuerySet[Assignment]:
    return Assignment.objects.filter(
        round__session=session, kind=AssignmentKind.TRAIN, status__in=LIVE_ASSIGNMENT
    )


def training_now(session: Session) -> set[uuid.UUID]:
    """Clients that hold a lease, connected or not."""
    return set(_leases(session).values_list("client_id", flat=True))


def training_round(session: Session, config: SessionConfig, now: dt.datetime) -> Round | None:
    """The round that takes what comes now, locked; opened here when none trains. None: no rounds are left."""
    found = (
        Round.objects.select_for_update(of=("self",), no_key=True)
        .filter(session=session, status=RoundStatus.TRAINING)
        .first()
    )
    if found is not None or session.failed_in_row >= config.max_failed_rounds:
        return found
    opened = open_next(session, config, now)
    if opened is not None and opened.number == session.rounds_done + 1 and session.waiting_until is not None:
        session.waiting_for, session.waiting_until = "", None  # it waited for clients, and one has come
        session.save(update_fields=["waiting_for", "waiting_until"])
    return opened


def open_next(session: Session, config: SessionConfig, now: dt.datetime) -> Round | None:
    """The next round, with clients for the free places. None: no rounds are left."""
    number = session.rounds_done + 1
    if Round.objects.filter(session=session, status__in=PAST_TRAINING).exists():
        number += 1
    if number > session.rounds_wanted:
        return None
    chosen = choose_for_round(
        session, config, eligible(session, config), busy=training_now(session), number=number
    )
    return rounds.open_round(session, chosen, config, now)


def fill(session: Session, round_: Round, config: SessionConfig, now: dt.datetime) -> None:
    """Ask clients for the places that are free."""
    assert config.asynchronous is not None
    pool = eligible(session, config)
    training = training_now(session)
    gave_up = round_.assignments.filter(status__in=[AssignmentStatus.FAILED, AssignmentStatus.REJECTED])
    busy = training | set(gave_up.values_list("client_id", flat=True))
    most = config.asynchronous.concurrency
    places = len(pool.clients) if most is None else most - len(training)
    chosen = choose_more(session, config, pool, places, busy=busy)
    _ask(session, round_, config, now, chosen.clients, chosen.why)


def ask_again(
    session: Session, round_: Round, config: SessionConfig, now: dt.datetime, free: Collection[uuid.UUID]
) -> None:
    """The places of these clients have become free, and no others. Where everybody trains they are theirs again."""
    assert config.asynchronous is not None
    if config.asynchronous.concurrency is not None or config.selection.max_times is not None:
        return fill(session, round_, config, now)
    busy = set(_leases(session).filter(client_id__in=free).values_list("client_id", flat=True))
    clients = [one for one in eligible(session, config, among=free).clients if one.pk not in busy]
    _ask(session, round_, config, now, clients, dict.fromkeys(free, "it has answered and is free again"))


def _ask(
    session: Session,
    round_: Round,
    config: SessionConfig,
    now: dt.datetime,
    clients: list[PoolClient],
    why: Mapping[uuid.UUID, str],
) -> None:
    if clients:
        rounds.assign(
            round_,
            clients,
            model_id=session.current_model_id,
            kind=AssignmentKind.TRAIN,
            deadline=now + dt.timedelta(seconds=config.round_timeout_s),
            why=why,
        )


def close(session: Session, round_: Round, config: SessionConfig, now: dt.datetime) -> int:
    """training -> closing, from the newest model, and the next round opens unless it was the last. Answers how many
    shares close."""
    Round.objects.filter(pk=round_.pk).update(input_model_id=session.current_model_id)
    round_.input_model_id = session.current_model_id
    closing = rounds.close(round_, rounds.tally(round_), now)
    if open_next(session, config, now) is None:
        rounds.end_trains(session, AssignmentStatus.EXPIRED, f"round {round_.number}, the last, is closed")
    return closing


def settle(
    session: Session, round_: Round, config: SessionConfig, free: Collection[uuid.UUID], now: dt.datetime
) -> int:
    """The clients in `free` have had their answer: they are asked again, and a full buffer closes. Answers how many
    shares close with it."""
    accepted = rounds.accepted_in(round_).count()
    past = Round.objects.filter(session=session, status__in=PAST_TRAINING)
    if accepted >= round_.goal and not past.exists():
        return close(session, round_, config, now)  # whoever is free is asked by the next round
    ask_again(session, round_, config, now, free)
    return 0


def drop_stale(
    session: Session, round_: Round, config: SessionConfig, rows: Collection[Assignment], now: dt.datetime
) -> list[Assignment]:
    """Write on each of these live rows how stale its update is in `round_`, and end those that are too stale to count;
    answers the latter."""
    assert config.asynchronous is not None
    most = config.asynchronous.max_staleness
    made_in = {
        model_id: number or 0
        for model_id, number in Model.objects.filter(
            pk__in={row.model_id for row in rows}, session=session
        ).values_list("pk", "round_number")
    }  # a seed is of round 0
    dropped = []
    for row in rows:
        row.staleness = max(0, round_.number - 1 - made_in.get(row.model_id, 0))
        if row.staleness > most:
            row.error = f"dropped: its model is {row.staleness} rounds old, and at most {most} count"
            row.status = AssignmentStatus.EXPIRED
            move(
                Assignment.objects.filter(pk=row.pk),
                ASSIGNMENT_MOVES,
                AssignmentStatus.EXPIRED,
                ended_at=now,
                staleness=row.staleness,
                error=row.error,
            )
            dropped.append(row)
    return dropped
