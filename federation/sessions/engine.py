"""`advance`: the one step function of a session.

It may run twice, late, or in two workers at once: the row lock and the check of states make the second run a no-op.
One transaction a step, until no row of the table in the design applies.
"""

from __future__ import annotations

import datetime as dt
import uuid

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from clients_app.models import Client
from federation.events.services import publish
from federation.models.models import Metric
from federation.sessions import rounds
from federation.sessions.choices import (
    ASSIGNMENT_MOVES,
    LIVE_ASSIGNMENT,
    SESSION_MOVES,
    SHARE_MOVES,
    AssignmentKind,
    AssignmentStatus,
    RoundStatus,
    SessionStatus,
    ShareStatus,
)
from federation.sessions.config import SessionConfig
from federation.sessions.locks import lock_open_round, lock_session
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from federation.sessions.selection import choose, eligible_clients
from foundation import hints
from foundation.clock import db_now
from foundation.moves import move

SEEN_SILENT_S = 15.0  # longer than a combiner that lives needs to renew its lease after an outage
WAITING_LOOK_S = 2.0  # the net behind "a client came online" hints
MAX_STEPS = 1000


def advance(session_id: uuid.UUID) -> int:
    """Apply steps until none applies; answers how many did."""
    hints.looked_at(str(session_id))
    for steps in range(MAX_STEPS):
        with transaction.atomic():
            session = lock_session(session_id)
            if session is None or session.status != SessionStatus.RUNNING or not step(session):
                return steps
    return MAX_STEPS


def step(session: Session) -> bool:
    """One step of a locked, running session. False: nothing applies now."""
    config = SessionConfig.from_json(session.config)
    now = db_now()
    if session.stop_asked:
        rounds.stop_open_round(session, RoundStatus.STOPPED, "the session was stopped")
        end(session, SessionStatus.STOPPED, "Stopped on request.")
        return True
    if reason := target_met(session, config):
        rounds.stop_open_round(session, RoundStatus.STOPPED, "the target was met")
        end(session, SessionStatus.FINISHED, reason)
        return True
    expire_validations(session, now)
    round_ = lock_open_round(session)
    if round_ is None:
        if session.rounds_done >= session.rounds_wanted:
            return finish(session, now)
        if session.failed_in_row >= config.max_failed_rounds:
            last = Round.objects.filter(session=session, status=RoundStatus.FAILED).order_by("-id").first()
            why = last.reason if last else "no round succeeded"
            end(
                session,
                SessionStatus.FAILED,
                f"{session.failed_in_row} rounds failed in a row; the last: {why}",
            )
            return True
        return begin(session, config, now)
    if session.waiting_until is not None and now >= session.waiting_until:
        rounds.fail(session, round_, f"it waited in vain for {session.waiting_for}", config)
        return True
    match round_.status:
        case RoundStatus.TRAINING:
            return train(session, round_, config, now)
        case RoundStatus.CLOSING:
            return close(session, round_, config, now)
        case _:
            return reduce(session, round_, now)


def begin(session: Session, config: SessionConfig, now: dt.datetime) -> bool:
    """No open round, rounds left: open one, or say what is waited for, and until when."""
    clients = eligible_clients(session, config)
    needed = max(config.min_clients, config.needed_updates)
    if len(clients) >= needed:
        chosen = choose(clients, config, seed=f"{session.pk}:{session.rounds_done}:{session.failed_in_row}")
        round_ = rounds.open_round(session, chosen, config, now)
        session.waiting_for, session.waiting_until = "", None
        session.look_at = round_.deadline
        session.save(update_fields=["waiting_for", "waiting_until", "look_at"])
        return True
    until = session.waiting_until or now + dt.timedelta(seconds=config.start_timeout_s)
    missing = needed - len(clients)
    waiting = f"{missing} more client{'s' * (missing != 1)} to come online ({len(clients)} of {needed} are)"
    if now >= until:
        end(
            session,
            SessionStatus.FAILED,
            f"Too few clients came online in time: waited for {waiting}. {_absent(session)}",
        )
        return True
    if session.waiting_for != waiting:
        publish(
            project_id=session.project_id,
            kind="session.waiting",
            level="warning",
            message=f"{session.name} waits for {waiting}.",
            session_id=session.pk,
        )
    session.waiting_for, session.waiting_until = waiting, until
    session.look_at = min(until, now + dt.timedelta(seconds=WAITING_LOOK_S))
    session.save(update_fields=["waiting_for", "waiting_until", "look_at"])
    return False


def _absent(session: Session) -> str:
    online = Client.objects.filter(project_id=session.project_id).online().values("pk")
    names = list(
        Client.objects.filter(project_id=session.project_id)
        .exclude(pk__in=online)
        .order_by("name")
        .values_list("name", flat=True)[:10]
    )
    return f"Offline: {', '.join(names)}." if names else "The project has no other clients."


def train(session: Session, round_: Round, config: SessionConfig, now: dt.datetime) -> bool:
    if give_up_lost_disks(round_, config, now):
        return True
    counts = rounds.tally(round_)
    if rounds.rule_met(round_, counts, now):
        rounds.close(round_, counts, now)
        return True
    timed_out = now >= round_.deadline
    if not timed_out and assign_reserve(session, round_, config):
        return True
    if timed_out or counts.accepted + counts.live < round_.min_updates:
        why = "time was up" if timed_out else "not enough clients are left"
        rounds.fail(
            session,
            round_,
            f"{why} with {counts.accepted} of {round_.min_updates} updates. {who_was_missing(round_)}",
            config,
        )
        return True
    look(
        session,
        round_.deadline if not config.reserves else min(round_.deadline, now + dt.timedelta(seconds=2)),
    )
    return False


def assign_reserve(session: Session, round_: Round, config: SessionConfig) -> bool:
    """A chosen client is gone, or gave up, and reserves are configured: one more eligible client is assigned."""
    if not config.reserves:
        return False
    trains = Assignment.objects.filter(round=round_, kind=AssignmentKind.TRAIN)
    asked = set(trains.values_list("client_id", flat=True))
    used = len(asked) - round_.goal
    eligible = eligible_clients(session, config)
    online = {client.pk for client in eligible}
    done = set(trains.filter(status=AssignmentStatus.ACCEPTED).values_list("client_id", flat=True))
    busy = set(trains.filter(status__in=LIVE_ASSIGNMENT).values_list("client_id", flat=True)) & online
    gone = len(asked - done - busy)
    spare = [client for client in eligible if client.pk not in asked]
    if used >= min(config.reserves, gone) or not spare:
        return False
    rounds.assign(
        round_,
        spare[:1],
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


def silent_shares(round_: Round, status: str, now: dt.datetime, patience_s: float) -> list[CombinerShare]:
    """Shares whose combiner's lease is out, and was seen to be out for a while.

    That it is out alone says nothing: after an outage of the database every lease is. Whoever lives renews it
    within `SEEN_SILENT_S`.
    """
    rows = list(
        CombinerShare.objects.select_for_update(of=("self",), no_key=True)
        .filter(round=round_, status=status)
        .filter(Q(combiner__lease_until__lt=now) | Q(combiner__lease_until=None))
        .select_related("combiner")
        .order_by("id")
    )
    silent = []
    for share in rows:
        renewed = share.combiner.lease_until
        if share.silent_since is None or (renewed is not None and share.silent_since < renewed):
            share.silent_since = now
            share.save(update_fields=["silent_since"])
        if now - share.silent_since >= dt.timedelta(seconds=min(patience_s, SEEN_SILENT_S)):
            silent.append(share)
    return silent


def give_up_lost_disks(round_: Round, config: SessionConfig, now: dt.datetime) -> bool:
    """A combiner whose lease has been out for `lost_after_s` took its disk along: what it accepted is lost."""
    cutoff = now - dt.timedelta(seconds=config.lost_after_s)
    gone = [
        share
        for share in silent_shares(round_, ShareStatus.OPEN, now, config.lost_after_s)
        if share.combiner.lease_until is None or share.combiner.lease_until <= cutoff
    ]
    for share in gone:
        lose_share(
            share, round_, f"combiner {share.combiner.name} has been away for {config.lost_after_s:g} s"
        )
    return bool(gone)


def lose_share(share: CombinerShare, round_: Round, reason: str) -> None:
    """Share -> abandoned, its accepted assignments -> lost; in training they are assigned again. Round is locked."""
    if not move(
        CombinerShare.objects.filter(pk=share.pk),
        SHARE_MOVES,
        ShareStatus.ABANDONED,
        ended_at=db_now(),
        reason=reason[:300],
    ):
        return
    accepted = Assignment.objects.filter(share=share, status=AssignmentStatus.ACCEPTED)
    clients = list(Client.objects.filter(assignments__in=accepted).order_by("id"))
    move(accepted, ASSIGNMENT_MOVES, AssignmentStatus.LOST, error=reason[:1000])
    publish(
        project_id=share.project_id,
        kind="round.updates_lost",
        level="error",
        message=f"{len(clients)} accepted update{'s' * (len(clients) != 1)} of round {round_.number} lost: {reason}.",
        session_id=round_.session_id,
        round_number=round_.number,
        combiner_id=share.combiner_id,
    )
    if round_.status == RoundStatus.TRAINING and clients:
        rounds.assign(
            round_,
            clients,
            model_id=round_.input_model_id,
            kind=AssignmentKind.TRAIN,
            deadline=round_.deadline,
        )


def close(session: Session, round_: Round, config: SessionConfig, now: dt.datetime) -> bool:
    """Every share ended: reduce, or fail. A share whose combiner is silent too long is abandoned."""
    patience = (round_.closing_at or now) + dt.timedelta(seconds=config.closing_timeout_s)
    for share in silent_shares(round_, ShareStatus.CLOSING, now, config.closing_timeout_s):
        if now >= patience:
            lose_share(share, round_, f"combiner {share.combiner.name} did not finish its share")
    if not rounds.shares_done(round_):
        look(session, max(patience, now + dt.timedelta(seconds=2)))
        return False
    accepted = rounds.tally(round_).accepted
    if accepted >= round_.min_updates:
        rounds.start_reducing(round_, now)
    else:
        rounds.fail(
            session,
            round_,
            f"{accepted} of {round_.min_updates} needed updates were left. {who_was_missing(round_)}",
            config,
        )
    return True


def reduce(session: Session, round_: Round, now: dt.datetime) -> bool:
    """A claim that ran out is enqueued again."""
    if round_.reduce_until is None:
        # The first task may only be on its way: give it two seconds.
        if round_.reducing_at and now - round_.reducing_at >= dt.timedelta(seconds=2):
            rounds.enqueue_reduce(round_.pk)
    elif round_.reduce_until < now:
        rounds.enqueue_reduce(round_.pk)
    look(session, max(round_.reduce_until or now, now) + dt.timedelta(seconds=2))
    return False


def finish(session: Session, now: dt.datetime) -> bool:
    """Last round done: finished when its validations ended or timed out."""
    pending = (
        Assignment.objects.filter(
            round__session=session, kind=AssignmentKind.VALIDATE, status__in=LIVE_ASSIGNMENT
        )
        .order_by("deadline")
        .first()
    )
    if pending is None:
        end(session, SessionStatus.FINISHED, f"All {session.rounds_done} rounds are done.")
        return True
    waiting = "the last validations"
    if session.waiting_for != waiting:
        session.waiting_for, session.waiting_until = waiting, pending.deadline
        session.save(update_fields=["waiting_for", "waiting_until"])
    look(session, pending.deadline)
    return False


def expire_validations(session: Session, now: dt.datetime) -> None:
    rows = Assignment.objects.filter(
        round__session=session, kind=AssignmentKind.VALIDATE, status__in=LIVE_ASSIGNMENT, deadline__lte=now
    )
    overdue = list(rows.order_by("id").values_list("pk", "client_id"))
    if overdue:
        move(
            Assignment.objects.filter(pk__in=[pk for pk, _ in overdue]),
            ASSIGNMENT_MOVES,
            AssignmentStatus.EXPIRED,
            ended_at=now,
            error="no validation came in time",
        )
        hints.wake_combiners([str(client) for _, client in overdue])


def target_met(session: Session, config: SessionConfig) -> str:
    """The sentence that says so, once every validation of a model has ended and its mean reaches the target."""
    if config.target is None:
        return ""
    still = Assignment.objects.filter(
        round__session=session, kind=AssignmentKind.VALIDATE, status__in=LIVE_ASSIGNMENT
    ).values("model_id")
    means = Metric.objects.filter(
        session=session,
        source=Metric.Source.VALIDATION_MEAN,
        name=config.target.metric,
        round_number__gte=config.target_from_round,
    ).exclude(model_id__in=still)
    for mean in means.order_by("round_number"):
        if config.target.met_by(mean.value):
            return f"Target met in round {mean.round_number}: {mean.name} {mean.value:.4g}."
    return ""


def look(session: Session, at: dt.datetime) -> None:
    if session.look_at != at:
        session.look_at = at
        session.save(update_fields=["look_at"])


LEVEL_OF_END = {
    SessionStatus.FINISHED: "info",
    SessionStatus.STOPPED: "warning",
    SessionStatus.FAILED: "error",
}


def end(session: Session, status: SessionStatus, reason: str) -> None:
    """running -> finished, failed or stopped, with the reason that a page shows."""
    if not move(
        Session.objects.filter(pk=session.pk),
        SESSION_MOVES,
        status,
        reason=reason[:500],
        ended_at=db_now(),
        waiting_for="",
        waiting_until=None,
        stop_asked=False,
        look_at=None,
    ):
        return
    rounds.cancel_live(session, f"the session {status}")
    publish(
        project_id=session.project_id,
        kind=f"session.{status}",
        level=LEVEL_OF_END[status],
        message=f"{session.name} {status}: {reason}",
        session_id=session.pk,
    )


def due_sessions(limit: int = 500) -> list[uuid.UUID]:
    """One query: running sessions whose moment has come, whose round is between training and its model, or whose
    round holds updates at a combiner that is silent."""
    stuck = Now() - dt.timedelta(seconds=2)
    moving = Round.objects.filter(session=OuterRef("pk")).filter(
        Q(status=RoundStatus.CLOSING, closing_at__lt=stuck)
        | Q(status=RoundStatus.REDUCING, reducing_at__lt=stuck)
    )
    silent = CombinerShare.objects.filter(
        round__session=OuterRef("pk"),
        round__status=RoundStatus.TRAINING,
        status=ShareStatus.OPEN,
        combiner__lease_until__lt=Now(),
    )
    rows = (
        Session.objects.filter(status=SessionStatus.RUNNING)
        .filter(Q(look_at=None) | Q(look_at__lte=Now()) | Exists(moving) | Exists(silent))
        .order_by("look_at", "pk")
        .values_list("pk", flat=True)
    )
    return list(rows[:limit])
