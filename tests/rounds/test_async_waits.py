"""An asynchronous session waits for nothing for ever: buffers that do not fill, clients that give up, failed rounds."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from federation.sessions import assignments, due, engine, reduction
from federation.sessions.models import Assignment, Round
from federation.sessions.services import stop_session
from tests.rounds.rows import Rows, again, ago, assert_same, give_up, statuses, update
from tests.rounds.test_async import become_model, begin, open_rounds, send, training

pytestmark = pytest.mark.django_db


def test_a_buffer_that_does_not_fill_in_time_closes_with_what_it_has(rows: Rows) -> None:
    session, lease, (a, _b, _c) = begin(rows, asynchronous={"buffer_size": 50})
    send(rows, lease, session, a, value=3)
    Round.objects.filter(session=session).update(deadline=ago(1))
    assert session.pk in due.due_sessions()
    again(session)
    assert open_rounds(session) == [(1, "closing"), (2, "training")]
    assert_same(rows.arrays_of(become_model(rows, lease, session)), update(3))


def test_a_buffer_with_too_few_updates_fails_and_is_tried_again_without_a_lease_lost(rows: Rows) -> None:
    session, lease, (a, _b, _c) = begin(rows, asynchronous={"buffer_size": 50}, min_clients=2, min_updates=2)
    held = rows.task(session, a)
    Round.objects.filter(session=session).update(deadline=ago(1))
    again(session)
    failed = Round.objects.get(session=session, status="failed")
    assert failed.reason.startswith("time was up with 0 of 2 updates")
    newest = rows.round(session)
    assert (newest.number, newest.attempt, session.failed_in_row) == (1, 2, 1)
    assert rows.task(session, a).pk == held.pk and send(rows, lease, session, a).accepted
    assert Assignment.objects.get(pk=held.pk, share__round=newest)


def test_when_everybody_gives_up_rounds_fail_until_the_session_does(rows: Rows) -> None:
    session, _lease, clients = begin(rows, "ab", max_failed_rounds=2)
    for _ in range(2):
        for client in clients:
            give_up(rows, session, client, "no data")
        again(session)
    assert session.status == "failed"
    assert (
        "2 rounds failed in a row; the last: not enough clients are left with 0 of 1 updates"
        in session.reason
    )
    assert "a (no data)" in session.reason and training(session) == [] and open_rounds(session) == []


def test_with_nobody_online_a_session_waits_for_clients_and_an_update_ends_the_wait(rows: Rows) -> None:
    session, lease, (a,) = begin(rows, "a")
    rows.offline(a)
    Round.objects.filter(session=session).update(deadline=ago(1))
    again(session)
    assert session.waiting_for == "1 more client to come online (0 of 1 are)" and open_rounds(session) == []
    assert send(rows, lease, session, a).accepted  # its lease was alive
    session.refresh_from_db()
    assert session.waiting_for == "" and session.waiting_until is None
    assert open_rounds(session) == [(1, "training")]


def test_stop_ends_both_open_rounds_and_everything_live(rows: Rows) -> None:
    session, lease, (a, b, _c) = begin(rows)
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    stop_session(actor=rows.actor, session=session)
    assert again(session).status == "stopped"
    assert open_rounds(session) == [] and training(session) == []
    assert rows.finish_share(lease) == []
    verdict = send(rows, lease, session, a)
    assert not verdict.accepted and verdict.reason == "the session was stopped"


def test_a_round_that_lost_its_updates_gives_its_number_to_the_one_that_trains(rows: Rows) -> None:
    """A combiner's disk is lost while a round closes: rounds still commit in order, and none is left out."""
    session, lease, (a, b, c) = begin(rows)
    send(rows, lease, session, a)
    send(rows, lease, session, b)
    other = rows.lease("c2")
    rows.accept(other, rows.task(session, c), value=4)
    assignments.lose_disk(lease.combiner_id)
    again(session)
    assert Round.objects.get(session=session, status="failed").number == 1
    newest = rows.round(session)
    assert (newest.number, newest.attempt, newest.status) == (1, 2, "training")
    rows.accept(other, rows.task(session, a), value=4)
    assert rows.finish_share(other) == [True]
    reduction.reduce_round(newest.pk)
    assert (again(session).rounds_done, session.failed_in_row) == (1, 0)
    assert_same(rows.arrays_of(session.current_model), update(4))


def test_rounds_that_fail_before_and_after_they_closed_each_have_an_attempt_of_their_own(rows: Rows) -> None:
    session, lease, (a, b, _c) = begin(rows, min_clients=2)
    send(rows, lease, session, a)
    send(rows, lease, session, b)  # round 1 closes
    Round.objects.filter(session=session, number=2).update(deadline=ago(1))
    again(session)  # round 2 failed: its time was up
    other = rows.lease("c2")
    rows.accept(other, rows.task(session, a))  # and is tried again
    assignments.lose_disk(lease.combiner_id)
    again(session)  # round 1 failed: its updates are gone
    rows.accept(other, rows.task(session, b))  # what was round 2 is round 1 now, and closes
    found = Round.objects.filter(session=session).order_by("id").values_list("number", "attempt", "status")
    assert list(found) == [(1, 1, "failed"), (2, 1, "failed"), (1, 2, "closing"), (2, 2, "training")]


def test_updates_lost_in_training_are_asked_for_again_by_who_is_free(rows: Rows) -> None:
    session, lease, (a, _b, _c) = begin(rows)
    send(rows, lease, session, a)
    assignments.lose_disk(lease.combiner_id)
    again(session)
    assert training(session) == ["a", "b", "c"]
    assert sorted(statuses(session)) == ["assigned", "assigned", "assigned", "lost"]


def test_two_rounds_of_a_session_never_train_at_once(rows: Rows) -> None:
    session, _lease, _ = begin(rows)
    first = rows.round(session)
    with pytest.raises(IntegrityError), transaction.atomic():
        Round.objects.create(
            project=rows.project, session=session, number=2, goal=1, min_updates=1, buffered=True,
            input_model=session.current_model, deadline=first.deadline,
        )  # fmt: skip


def test_the_step_function_repeated_changes_nothing(rows: Rows) -> None:
    session, lease, (a, _b, _c) = begin(rows)
    send(rows, lease, session, a)
    before = list(Assignment.objects.values_list("pk", "status"))
    assert engine.advance(session.pk) == 0 and engine.advance(session.pk) == 0
    assert list(Assignment.objects.values_list("pk", "status")) == before
