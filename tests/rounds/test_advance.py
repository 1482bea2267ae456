"""advance(session) up to a round that trains: every row of its table, and when it is woken."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from clients_app.models import Client
from federation.sessions import assignments, due, engine
from federation.sessions.models import Assignment, CombinerShare, Session
from federation.sessions.services import continue_session, stop_session
from tests.rounds.rows import Rows, again, ago, assert_same, give_up, past_deadline, statuses, update

pytestmark = pytest.mark.django_db


# --- stop and continue ----------------------------------------------------------------------------------------


def test_stop_ends_everything_that_is_open_in_one_transaction(rows: Rows) -> None:
    """stop asked: Assignments cancelled, Shares abandoned, Round stopped, Session stopped, in one transaction."""
    lease = rows.lease()
    a, _b = rows.online(lease, "a", "b")
    session = rows.running(min_clients=2)
    rows.accept(lease, rows.task(session, a))
    stop_session(actor=rows.actor, session=session)
    assert engine.advance(session.pk) == 1
    session.refresh_from_db()
    assert (session.status, session.reason) == ("stopped", "Stopped on request.")
    assert rows.round(session).status == "stopped" and rows.share(session, lease).status == "abandoned"
    assert statuses(session) == ["accepted", "cancelled"]
    assert session.look_at is None and not session.stop_asked


def test_a_stopped_session_takes_no_update_any_more(rows: Rows) -> None:
    """What was cancelled is refused with the reason."""
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    session = rows.running()
    stop_session(actor=rows.actor, session=session)
    again(session)
    (verdict,) = rows.accept(lease, rows.task(session, client))
    assert not verdict.accepted and verdict.reason == "the session was stopped"


def test_a_stopped_session_goes_on_from_its_current_model(rows: Rows) -> None:
    """continue: back to running."""
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    session = rows.running(rounds=5)
    rows.accept(lease, rows.task(session, client), value=3)
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)
    stop_session(actor=rows.actor, session=session)
    again(session)
    continue_session(actor=rows.actor, session=session, rounds=1)
    again(session)
    assert (session.status, session.rounds_wanted) == ("running", 2)
    round_ = rows.round(session)
    assert (round_.number, round_.attempt, round_.input_model_id) == (2, 2, session.current_model_id)
    assert round_.input_model_id != session.seed_model_id
    rows.accept(lease, rows.task(session, client), value=5)
    rows.finish_share(lease)
    rows.reduce(session)
    assert again(session).status == "finished"
    assert_same(rows.arrays_of(session.current_model), update(5))
    assert [m.round_number for m in session.trail.order_by("id")] == [1, 2]


# --- no open round --------------------------------------------------------------------------------------------


def test_a_session_says_how_many_clients_it_waits_for_and_until_when(rows: Rows) -> None:
    """no open round, rounds left, too few eligible clients: writes what it waits for and until when."""
    rows.online(rows.lease(), "a")
    session = rows.running(min_clients=3, start_timeout_s=60)
    assert session.waiting_for == "2 more clients to come online (1 of 3 are)"
    assert session.waiting_until is not None and 50 < (session.waiting_until - timezone.now()).seconds <= 60
    assert not session.rounds.exists()
    rows.online(rows.lease("c2"), "b", "c")
    again(session)
    assert session.rounds.count() == 1 and session.waiting_for == "" and session.waiting_until is None


def test_past_its_start_deadline_a_session_fails_and_names_who_was_missing(rows: Rows) -> None:
    """past the start deadline the Session fails and says who was missing."""
    rows.online(rows.lease(), "a")
    Client.objects.create(project=rows.project, name="hospital-7")
    session = rows.running(min_clients=2, start_timeout_s=1)
    Session.objects.filter(pk=session.pk).update(waiting_until=ago(0.1))
    assert session.pk in due.due_sessions() or session.look_at is not None
    again(session)
    assert session.status == "failed"
    assert "1 more client to come online (1 of 2 are)" in session.reason and "hospital-7" in session.reason


def test_a_round_never_begins_with_fewer_clients_than_updates_it_needs(rows: Rows) -> None:
    """too few eligible clients: a round that could only fail is not begun."""
    rows.online(rows.lease(), "a", "b")
    session = rows.running(min_clients=1, min_updates=3)
    assert not session.rounds.exists() and session.waiting_for.startswith("1 more client ")


def test_a_client_that_comes_online_wakes_the_sessions_that_wait_for_one(
    rows: Rows, django_capture_on_commit_callbacks: object
) -> None:
    """Woken by hints: a client coming online while the session waits."""
    waiting = rows.running(min_clients=1)
    rows.online(rows.lease(), "a")
    busy = rows.running(min_clients=1)
    with django_capture_on_commit_callbacks() as hints:  # type: ignore[operator]
        assignments.wake_waiting_sessions([rows.project.pk])
    assert len(hints) == 1
    assert waiting.pk != busy.pk and busy.waiting_until is None


def test_a_round_asks_as_many_clients_as_were_requested(rows: Rows) -> None:
    """no open round, rounds left, enough: Round, Assignments in bulk."""
    rows.online(rows.lease(), *[f"site-{n}" for n in range(8)])
    session = rows.session(min_clients=2, requested_clients=5)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        engine.advance(session.pk)
    assert len(statuses(session)) == 5 and rows.round(session).goal == 5
    inserts = [q for q in queries if q["sql"].startswith('INSERT INTO "federation_sessions_assignment"')]
    assert len(inserts) == 1


# --- training -------------------------------------------------------------------------------------------------


def test_a_round_closes_with_the_last_answer_and_the_others_expire(rows: Rows) -> None:
    """training, rule met: Round and its Shares -> closing, the rest of its Assignments -> expired.
    The transaction that accepts the last update may itself close the round."""
    lease = rows.lease()
    a, b, c = rows.online(lease, "a", "b", "c")
    session = rows.running(min_clients=3, min_updates=2)
    give_up(rows, session, c)
    again(session)
    (one,) = rows.accept(lease, rows.task(session, a))
    assert not one.closes and rows.round(session).status == "training"  # b may still answer
    (two,) = rows.accept(lease, rows.task(session, b))
    assert two.closes and rows.round(session).status == "closing"
    assert rows.share(session, lease).status == "closing"


def test_a_round_whose_time_is_up_goes_on_with_the_updates_it_needs(rows: Rows) -> None:
    """The rule: `min_updates` or more accepted, and the deadline passed."""
    lease = rows.lease()
    a, b, _c = rows.online(lease, "a", "b", "c")
    session = rows.running(min_clients=3, min_updates=2)
    rows.accept(lease, rows.task(session, a), rows.task(session, b))
    again(session)
    assert rows.round(session).status == "training"
    past_deadline(rows, session)
    again(session)
    assert rows.round(session).status == "closing" and statuses(session)[2] == "expired"
    late = Assignment.objects.get(round__session=session, status="expired")
    assert "time is up" in late.error


def test_a_round_that_reached_its_goal_does_not_wait_for_a_reserve(rows: Rows) -> None:
    """The rule: `min_updates` or more accepted, and `goal` reached."""
    lease = rows.lease()
    a, b, c = rows.online(lease, "a", "b", "c")
    session = rows.running(min_clients=2, requested_clients=2, reserves=1)
    asked = {t.client_id for t in Assignment.objects.all()}
    chosen = [x for x in (a, b, c) if x.pk in asked]
    (spare,) = [x for x in (a, b, c) if x.pk not in asked]
    rows.offline(chosen[0])
    again(session)
    assert rows.task(session, spare).status == "assigned"
    rows.accept(lease, rows.task(session, chosen[1]), rows.task(session, spare))
    assert rows.round(session).status == "closing"
    assert rows.task(session, chosen[0]).status == "expired"


def test_a_round_that_cannot_be_saved_fails_at_once_and_names_who_was_missing(rows: Rows) -> None:
    """training, rule cannot be met any more: Round failed naming who was missing, Shares abandoned, Assignments
    expired; the same model is tried again."""
    lease = rows.lease()
    a, b, _c = rows.online(lease, "a", "b", "c")
    session = rows.running(min_clients=3, min_updates=3)
    rows.accept(lease, rows.task(session, a))
    give_up(rows, session, b, "the disk is full")
    first = rows.round(session)
    again(session)
    first.refresh_from_db()
    assert first.status == "failed"
    assert "1 of 3 updates" in first.reason and "b (the disk is full)" in first.reason
    assert CombinerShare.objects.get().status == "abandoned"
    second = rows.round(session)
    assert (second.number, second.attempt, second.input_model_id) == (1, 2, first.input_model_id)
    assert session.failed_in_row == 1 and session.status == "running"


def test_a_round_without_enough_updates_at_its_deadline_fails(rows: Rows) -> None:
    """deadline passed without `min_updates`: Round failed naming who was missing."""
    lease = rows.lease()
    a, _b = rows.online(lease, "a", "slow-site")
    session = rows.running(min_clients=2)
    rows.accept(lease, rows.task(session, a))
    first = rows.round(session)
    past_deadline(rows, session)
    again(session)
    first.refresh_from_db()
    assert first.status == "failed" and "time was up with 1 of 2" in first.reason
    assert "slow-site" in first.reason and "a (" not in first.reason


def test_after_max_failed_rounds_in_a_row_the_session_fails(rows: Rows) -> None:
    """up to `max_failed_rounds` in a row, then the Session fails."""
    (client,) = rows.online(rows.lease(), "a")
    session = rows.running(max_failed_rounds=2)
    for _ in range(2):
        give_up(rows, session, client, "out of memory")
        again(session)
    assert session.status == "failed"
    assert session.reason.startswith("2 rounds failed in a row; the last: ")
    assert "out of memory" in session.reason
    assert session.rounds.count() == 2


def test_a_round_that_succeeds_clears_the_count_of_failures(rows: Rows) -> None:
    """up to `max_failed_rounds` *in a row*."""
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    session = rows.running(rounds=2, max_failed_rounds=2)
    give_up(rows, session, client)
    again(session)
    rows.accept(lease, rows.task(session, client))
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)
    give_up(rows, session, client)
    again(session)
    assert (session.status, session.failed_in_row, rows.round(session).number) == ("running", 1, 2)


def test_a_session_that_fails_leaves_no_work_behind(rows: Rows) -> None:
    """A session always ends; nothing waits for ever: its validations are cancelled too."""
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    session = rows.running(rounds=3, validate=True, max_failed_rounds=1)
    rows.accept(lease, rows.task(session, client))
    rows.finish_share(lease)
    rows.reduce(session)
    again(session)
    give_up(rows, session, client)
    again(session)
    assert session.status == "failed"
    assert statuses(session, "validate") == ["cancelled"]


def test_reserves_take_the_place_of_clients_that_went_away_or_gave_up(rows: Rows) -> None:
    """training, a chosen client gone and reserves configured: one more eligible client is assigned."""
    lease = rows.lease()
    clients = rows.online(lease, *"abcde")
    session = rows.running(min_clients=2, requested_clients=2, reserves=2)
    asked = [c for c in clients if Assignment.objects.filter(client=c).exists()]
    assert len(asked) == 2
    again(session)
    assert len(statuses(session)) == 2  # nobody is gone: nobody is asked instead
    rows.offline(asked[0])
    again(session)
    assert len(statuses(session)) == 3
    give_up(rows, session, asked[1])
    again(session)
    assert len(statuses(session)) == 4 and rows.round(session).status == "training"
    assert len(rows.events(session, "round.reserve")) == 2
    extra = [
        a for a in Assignment.objects.filter(round__session=session).select_related("client")
        if a.client not in asked
    ]  # fmt: skip
    rows.accept(lease, *extra)
    assert rows.round(session).status == "closing"


def test_no_more_reserves_are_asked_than_were_configured(rows: Rows) -> None:
    """reserves configured: so many, and no more."""
    lease = rows.lease()
    clients = rows.online(lease, *"abcde")
    session = rows.running(min_clients=2, requested_clients=3, min_updates=2, reserves=1)
    rows.offline(*[c for c in clients if Assignment.objects.filter(client=c).exists()])
    for _ in range(3):
        again(session)
    assert len(statuses(session)) == 4
