"""advance(session) at the end of a session, and the tick that wakes it."""

from __future__ import annotations

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from clients_app.models import Client
from clients_app.presence import CombinerLease
from federation.models.models import Metric
from federation.sessions import assignments, engine, tasks
from federation.sessions.models import Assignment, Session
from federation.sessions.services import start_session
from tests.rounds.rows import Rows, again, ago, assert_same, give_up, mean, statuses, update

pytestmark = pytest.mark.django_db


# --- the end --------------------------------------------------------------------------------------------------


def finished_round(rows: Rows, session: Session, lease: CombinerLease, client: Client) -> None:
    rows.accept(lease, rows.task(session, client))
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)


def validated(rows: Rows, session: Session, client: Client, **values: float) -> None:
    task = rows.task(session, client, "validate")
    assert assignments.accept_validation(
        client_id=client.pk, assignment_id=task.pk, data=values, weight=1
    ).accepted


def test_a_met_target_finishes_the_session_and_stops_the_open_round(rows: Rows) -> None:
    """target met: open Round stopped, Session finished with the reason."""
    lease = rows.lease()
    (a,) = rows.online(lease, "a")
    session = rows.running(rounds=9, validate=True, target={"metric": "accuracy", "value": 0.9})
    finished_round(rows, session, lease, a)
    validated(rows, session, a, accuracy=0.5)
    assert again(session).status == "running"
    finished_round(rows, session, lease, a)
    validated(rows, session, a, accuracy=0.93)
    again(session)
    assert session.status == "finished" and session.reason == "Target met in round 2: accuracy 0.93."
    assert rows.round(session).status == "stopped" and rows.round(session).number == 3
    assert "assigned" not in statuses(session)


def test_a_loss_target_is_met_from_above(rows: Rows) -> None:
    """target met, where smaller is better."""
    lease = rows.lease()
    (a,) = rows.online(lease, "a")
    session = rows.running(
        rounds=9, validate=True, target={"metric": "loss", "value": 0.1, "direction": "min"}
    )
    finished_round(rows, session, lease, a)
    validated(rows, session, a, loss=0.05)
    assert again(session).status == "finished"


def test_a_target_is_not_met_by_the_first_client_alone(rows: Rows) -> None:
    """target met: judged by the mean over the clients, once all have answered."""
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = rows.running(
        rounds=1, min_clients=2, validate=True, target={"metric": "accuracy", "value": 0.9}
    )
    rows.accept(lease, rows.task(session, a), rows.task(session, b))
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)
    validated(rows, session, a, accuracy=0.99)
    assert again(session).status == "running"
    validated(rows, session, b, accuracy=0.51)
    again(session)
    assert session.status == "finished" and session.reason == "The round is done."
    assert Metric.objects.get(source="validation_mean", name="accuracy").value == pytest.approx(0.75)


def test_the_last_validations_are_waited_for_until_their_deadline(rows: Rows) -> None:
    """last round done and its validations ended or timed out: Session finished."""
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    session = rows.running(rounds=1, min_clients=2, validate=True)
    rows.accept(lease, rows.task(session, a), rows.task(session, b))
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)
    validated(rows, session, a, accuracy=1)
    again(session)
    assert session.status == "running" and session.waiting_for == "the last validations"
    assert session.waiting_until is not None
    Assignment.objects.filter(kind="validate", status="assigned").update(deadline=ago(1))
    again(session)
    assert session.status == "finished"
    assert statuses(session, "validate") == ["accepted", "expired"]


# --- the tick -------------------------------------------------------------------------------------------------


def test_a_thousand_waiting_sessions_cost_the_tick_no_query_more_than_none(rows: Rows) -> None:
    """the tick queries who came online and which sessions are due; a thousand waiting sessions cost no more."""
    seed = rows.model()
    later = timezone.now() + dt.timedelta(hours=1)
    Session.objects.bulk_create(
        Session(
            project=rows.project, name=f"s{n}", config={}, seed_model=seed, current_model=seed,
            rounds_wanted=1, status="running", look_at=later, waiting_for="1 more client to come online",
            waiting_until=later,
        )
        for n in range(1000)
    )  # fmt: skip
    with CaptureQueriesContext(connection) as queries:
        tasks.tick()
    assert len(queries) == 2


def test_one_session_that_cannot_be_advanced_does_not_hold_up_the_others(rows: Rows) -> None:
    """The tick looks at every session that is due."""
    rows.online(rows.lease(), "a")
    broken = rows.session()
    Session.objects.filter(pk=broken.pk).update(config={"min_clients": "many"}, look_at=ago(100))
    fine = rows.session()
    tasks.tick()
    assert fine.rounds.count() == 1 and not broken.rounds.exists()


def test_starting_twice_or_late_changes_nothing(rows: Rows) -> None:
    """a page's start or stop: one that runs changes nothing."""
    rows.online(rows.lease(), "a")
    session = rows.running()
    start_session(actor=rows.actor, session=session)
    assert engine.advance(session.pk) == 0 and session.rounds.count() == 1


def test_each_step_is_a_transaction_of_its_own_until_nothing_applies(rows: Rows) -> None:
    """loops, one transaction per step, until no row applies."""
    lease = rows.lease()
    (a,) = rows.online(lease, "a")
    session = rows.running(rounds=2, max_failed_rounds=5)
    give_up(rows, session, a)
    assert engine.advance(session.pk) == 2  # it failed, and is tried again
    assert engine.advance(session.pk) == 0


def test_what_a_client_of_one_session_sends_never_reaches_another(rows: Rows) -> None:
    """It never leaks into another round: several sessions of several clients at once."""
    lease = rows.lease()
    a, b = rows.online(lease, "a", "b")
    one, two = rows.running(min_clients=2), rows.running(min_clients=2)
    rows.accept(lease, rows.task(one, a), value=1, examples=1)
    rows.accept(lease, rows.task(two, a), value=10, examples=1)
    rows.accept(lease, rows.task(two, b), value=30, examples=3)
    rows.accept(lease, rows.task(one, b), value=3, examples=3)
    assert rows.finish_share(lease) == [True, True]
    for session, first in ((one, 1), (two, 10)):
        rows.reduce(session)
        again(session)
        assert_same(rows.arrays_of(session.current_model), mean([(update(first), 1), (update(first * 3), 3)]))
