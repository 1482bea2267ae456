"""No session and no project holds up another: at the tick, before the workers, and while thousands wait."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from clients_app.models import Client
from federation.sessions import assignments, due, engine, reduction, tasks, turns
from federation.sessions.locks import lock_session
from federation.sessions.models import Round, Session
from foundation import hints
from projects.models import Project, User
from tests.rounds.rows import Rows, again, ago

pytestmark = pytest.mark.django_db


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any) -> list[str]:
    """Rounds that workers were asked to reduce, in order. What runs on commit runs at once."""
    said: list[str] = []

    def enqueue(task: str, *args: Any, queue: str | None = None) -> None:
        if task == turns.REDUCE_TASK:
            assert queue == "reduce"
            said.append(args[0])

    monkeypatch.setattr(hints, "enqueue", enqueue)
    monkeypatch.setattr(transaction, "on_commit", lambda do, robust=False: do())
    return said


@pytest.fixture
def elsewhere(rows: Rows, other_project: Project, stranger: User) -> Rows:
    """The same, for another project."""
    return Rows(other_project, stranger, rows.folder, rows.wait_until)


def reducing(rows: Rows, count: int, since: dt.datetime | None = None) -> list[Round]:
    """So many sessions of the project, each with a round that is to be reduced and was not asked for yet."""
    seed = rows.model()
    found = []
    for number in range(count):
        session = Session.objects.create(
            project=rows.project, name=f"s{number}", config={}, seed_model=seed, current_model=seed,
            rounds_wanted=9, status="running", look_at=timezone.now() + dt.timedelta(hours=1),
        )  # fmt: skip
        found.append(
            Round.objects.create(
                project=rows.project, session=session, number=1, status="reducing", goal=1, min_updates=0,
                input_model=seed, deadline=timezone.now(), closing_at=ago(count - number),
                reducing_at=since or ago(count - number),
            )
        )  # fmt: skip
    return found


def waiting_sessions(rows: Rows, count: int) -> None:
    """Sessions that have waited for clients for a while, and last looked a minute ago."""
    seed, later = rows.model(), timezone.now() + dt.timedelta(hours=1)
    Session.objects.bulk_create(
        Session(
            project=rows.project, name=f"w{n}", config={}, seed_model=seed, current_model=seed, rounds_wanted=1,
            status="running", look_at=later, waiting_for="9 more clients to come online (0 of 9 are)",
            waiting_until=later, sought_at=ago(60),
        )
        for n in range(count)
    )  # fmt: skip


# --- waiting sessions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("came", [False, True])
def test_a_tick_costs_as_many_statements_with_200_waiting_sessions_as_with_5(
    rows: Rows, elsewhere: Rows, came: bool
) -> None:
    """However many wait, also while clients come online elsewhere."""
    costs = []
    if came:
        elsewhere.online(elsewhere.lease(), "a", "b")
    for count in (5, 195):
        waiting_sessions(rows, count)
        with CaptureQueriesContext(connection) as queries:
            tasks.tick()
        costs.append(len(queries))
    assert costs == [2, 2]


def test_a_session_that_waits_is_looked_at_after_as_long_as_it_has_waited(rows: Rows) -> None:
    session = rows.running(min_clients=1, start_timeout_s=10_000)
    pauses = []
    for waited in (0, 60, 3000):
        Session.objects.filter(pk=session.pk).update(
            waiting_until=timezone.now() + dt.timedelta(seconds=10_000 - waited)
        )
        again(session)
        assert session.look_at is not None
        pauses.append(round((session.look_at - timezone.now()).total_seconds()))
    assert pauses == [2, 60, 300]


def test_it_is_due_when_a_client_of_its_project_came_online_since(rows: Rows, elsewhere: Rows) -> None:
    """The net behind a hint that was lost."""
    session = rows.running(min_clients=2, start_timeout_s=10_000)
    Session.objects.update(look_at=timezone.now() + dt.timedelta(hours=1), sought_at=ago(20))
    elsewhere.online(elsewhere.lease(), "other")
    assert due.due_sessions() == []
    rows.online(rows.lease("c2"), "a")
    assert due.due_sessions() == [session.pk]
    tasks.tick()
    session.refresh_from_db()
    assert session.waiting_for == "1 more client to come online (1 of 2 are)"
    Client.objects.update(connected_at=ago(10))
    assert due.due_sessions() == []  # it has seen that one


def test_a_session_whose_round_trains_is_not_due_because_somebody_connects(rows: Rows) -> None:
    lease = rows.lease()
    rows.online(lease, "a")
    session = rows.running()
    assert session.sought_at is None
    rows.online(lease, "b")
    assert due.due_sessions() == []


def test_a_client_that_connects_wakes_a_few_and_the_tick_finds_the_others(
    rows: Rows, django_capture_on_commit_callbacks: Any
) -> None:
    waiting_sessions(rows, 50)
    rows.online(rows.lease(), "a")
    with CaptureQueriesContext(connection) as queries, django_capture_on_commit_callbacks() as hints_sent:
        assignments.wake_waiting_sessions([rows.project.pk])
    assert len(queries) == 1 and len(hints_sent) == 20
    assert len(due.due_sessions()) == 50


# --- the tick -------------------------------------------------------------------------------------------------


def test_projects_take_turns_at_the_tick(rows: Rows, elsewhere: Rows) -> None:
    """A project with a hundred due sessions is followed by another's first after its own first."""
    mine = [rows.session() for _ in range(4)]
    Session.objects.filter(pk__in=[s.pk for s in mine]).update(look_at=ago(100))
    theirs = [elsewhere.session() for _ in range(2)]
    Session.objects.filter(pk__in=[s.pk for s in theirs]).update(look_at=ago(1))
    found = due.due_sessions()
    assert set(found) == {s.pk for s in mine + theirs}
    assert [pk in {s.pk for s in theirs} for pk in found] == [False, True, False, True, False, False]
    assert due.due_sessions(limit=2) == found[:2]


def test_a_tick_that_runs_out_of_time_leaves_the_others_to_other_tasks(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long look at one session does not hold up the others: they are handed out, and coalesce."""
    sessions = [rows.session() for _ in range(3)]
    looked: list[uuid.UUID] = []
    woken: list[str] = []
    monkeypatch.setattr(tasks, "TICK_S", -1.0)
    monkeypatch.setattr(hints, "wake_session", woken.append)
    monkeypatch.setattr(engine, "advance", lambda pk, patient: looked.append(pk))
    tasks.tick()
    assert looked == [] and sorted(woken) == sorted(str(s.pk) for s in sessions)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_tick_does_not_wait_for_a_session_that_somebody_holds(live_rows: Rows) -> None:
    live_rows.online(live_rows.lease(), "a")
    held, free = live_rows.session(), live_rows.session()
    locked, over = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                lock_session(held.pk)
                locked.set()
                over.wait(20)
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(10)
    tasks.tick()
    still_held = not over.is_set()
    over.set()
    holder.join(20)
    assert still_held and free.rounds.count() == 1 and not held.rounds.exists()


# --- before the workers ---------------------------------------------------------------------------------------


def test_a_project_with_many_rounds_to_reduce_leaves_room_for_another(
    rows: Rows, elsewhere: Rows, asked: list[str], settings: Any
) -> None:
    """Of its rounds a few are with the workers at a time, so another project's round waits behind those at most."""
    settings.REDUCTIONS_PER_PROJECT = 3
    many = reducing(rows, 20)
    for round_ in many:
        engine.advance(round_.session_id)
    assert asked == [str(round_.pk) for round_ in many[:3]]
    (theirs,) = reducing(elsewhere, 1)
    engine.advance(theirs.session_id)
    assert asked[3:] == [str(theirs.pk)]


def test_a_reduction_that_ends_hands_its_turn_to_the_round_that_has_waited_longest(
    rows: Rows, asked: list[str], settings: Any
) -> None:
    settings.REDUCTIONS_PER_PROJECT = 1
    first, second, third = reducing(rows, 3)
    for round_ in (first, third, second):
        engine.advance(round_.session_id)
    assert asked == [str(first.pk)]
    reduction.reduce_round(first.pk)  # it has no update, and fails
    assert Round.objects.get(pk=first.pk).status == "failed"
    assert asked == [str(first.pk), str(second.pk)]
    reduction.reduce_round(second.pk)
    assert asked == [str(first.pk), str(second.pk), str(third.pk)]


def test_a_model_that_is_made_hands_its_turn_on(rows: Rows, asked: list[str], settings: Any) -> None:
    settings.REDUCTIONS_PER_PROJECT = 1
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    sessions = [rows.running(rounds=1, aggregator="fedavgm") for _ in range(2)]
    for session in sessions:
        rows.accept(lease, rows.task(session, client))
    assert rows.finish_share(lease) == [True, True]
    first, second = (rows.round(session) for session in sessions)
    assert asked == [str(first.pk)] and second.status == "reducing"
    rows.reduce(sessions[0])
    assert asked == [str(first.pk), str(second.pk)]
    rows.reduce(sessions[1])
    assert [again(session).status for session in sessions] == ["finished", "finished"]


def test_a_turn_that_was_lost_with_a_worker_is_found_by_the_tick(
    rows: Rows, asked: list[str], settings: Any
) -> None:
    """Rows are the truth: nobody handed the turn on."""
    settings.REDUCTIONS_PER_PROJECT = 1
    (waiting,) = reducing(rows, 1)
    Session.objects.update(look_at=ago(1))
    tasks.tick()
    assert asked == [str(waiting.pk)]
    session = Session.objects.get(pk=waiting.session_id)
    assert session.look_at is not None and session.look_at > timezone.now()


def test_workers_that_do_not_answer_are_asked_again_less_and_less_often(rows: Rows, asked: list[str]) -> None:
    """A task that only waits its turn in the queue is not sent every two seconds."""
    (round_,) = reducing(rows, 1)
    rows_of = Round.objects.filter(pk=round_.pk)
    for waited, since, sent in ((0, 1, 0), (0, 3, 1), (20, 10, 0), (20, 21, 1), (500, 29, 0), (500, 31, 1)):
        rows_of.update(reducing_at=ago(since + waited), reduce_asked_at=ago(since))
        asked.clear()
        engine.advance(round_.session_id)
        assert len(asked) == sent, (waited, since)


def test_storage_that_refuses_one_session_gives_its_turn_to_the_next(
    rows: Rows, asked: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REDUCTIONS_PER_PROJECT = 1
    first, second = reducing(rows, 2)
    engine.advance(first.session_id)
    monkeypatch.setattr(reduction, "_reduce", lambda *_: 1 / 0)
    reduction.reduce_round(first.pk)
    assert Round.objects.get(pk=first.pk).reduce_asked_at is None
    assert asked == [str(first.pk), str(second.pk)]


def test_long_reductions_leave_a_worker_threads_for_everything_else(
    rows: Rows, elsewhere: Rows, asked: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that comes while a process is at as many as it may be goes back, and has the next place."""
    settings.REDUCTIONS_PER_WORKER = 1
    long, other = *reducing(rows, 1), *reducing(elsewhere, 1)
    Round.objects.update(reduce_asked_at=ago(0))
    at_work: list[uuid.UUID] = []

    def reduce(round_id: uuid.UUID) -> None:
        at_work.append(round_id)
        if round_id == long.pk:  # while it is at this one, the worker is given the other
            tasks.reduce_round(str(other.pk))
            assert Round.objects.get(pk=other.pk).reduce_asked_at is None and asked == []
            Round.objects.filter(pk=long.pk).update(status="finished")

    monkeypatch.setattr(reduction, "reduce_round", reduce)
    tasks.reduce_round(str(long.pk))
    assert at_work == [long.pk] and asked == [str(other.pk)]
    tasks.reduce_round(asked[0])
    assert at_work == [long.pk, other.pk]
