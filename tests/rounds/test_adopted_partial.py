"""A plain average of one combiner is the model as it is: whoever finishes that share commits the round."""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models import F
from django.utils import timezone

from clients_app.models import Client, Combiner
from clients_app.presence import CombinerLease
from federation.combiner import shares
from federation.models.models import Model
from federation.sessions import assignments, engine
from federation.sessions.assignments import shares as share_rows
from federation.sessions.choices import AssignmentStatus
from federation.sessions.models import CombinerShare, Session
from federation.sessions.selectors import rounds_of
from federation.sessions.services import stop_session
from federation.sessions.sweeping import sweep
from foundation import hints, ids, storage
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.rounds.rows import Rows, again, assert_same, update
from tests.rounds.test_deaths_worker import killed_at_statement
from tests.wire_client import ACCEPTED

pytestmark = pytest.mark.django_db


def trained(rows: Rows, *, rounds: int = 2, **settings: object) -> tuple[Session, CombinerLease]:
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    session = rows.running(rounds=rounds, **settings)
    rows.accept(lease, rows.task(session, client), value=3)
    return session, lease


def test_it_is_committed_without_a_reduction(rows: Rows) -> None:
    session, lease = trained(rows)
    assert rows.finish_share(lease) == [True]
    session.refresh_from_db()
    assert (session.rounds_done, session.trail.count()) == (1, 1)
    first = session.rounds.get(number=1)
    assert first.status == "finished" and first.timings["reducing_s"] == 0.0
    assert_same(rows.arrays_of(session.current_model), update(3))
    assert session.current_model.key == CombinerShare.objects.get().partial_key
    assert session.current_model.metadata == {"updates": 1, "num_examples": 1.0}


def test_the_next_round_opens_in_the_transaction_that_made_the_model_and_no_worker_is_asked(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    session, lease = trained(rows)
    monkeypatch.setattr(hints, "wake_session", asked.append)
    rows.finish_share(lease)
    following = rows.round(session)
    assert (following.number, following.status) == (2, "training") and not asked
    assert following.input_model == Session.objects.get().current_model
    assert rows.task(session, Client.objects.get()).round == following
    assert engine.advance(session.pk) == 0  # a worker that looks all the same finds nothing to do


def test_the_last_model_ends_the_session_at_once(rows: Rows) -> None:
    session, lease = trained(rows, rounds=1)
    rows.finish_share(lease)
    session.refresh_from_db()
    assert (session.status, session.reason) == ("finished", "The round is done.")


def test_a_stop_that_was_asked_for_meanwhile_is_the_step_that_follows(rows: Rows) -> None:
    session, lease = trained(rows)
    stop_session(actor=rows.actor, session=session)
    rows.finish_share(lease)
    session.refresh_from_db()
    assert (session.status, session.rounds.count()) == ("stopped", 1)


def test_a_model_is_kept_and_a_worker_asked_when_the_step_that_follows_goes_wrong(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    session, lease = trained(rows)
    monkeypatch.setattr(hints, "wake_session", asked.append)

    def breaks(*_args: object) -> None:
        Session.objects.update(name="half a step")
        raise ZeroDivisionError

    monkeypatch.setattr(engine, "begin", breaks)
    rows.finish_share(lease)
    session.refresh_from_db()
    assert session.rounds_done == 1 and session.name == "training" and asked == [str(session.pk)]


def test_choosing_among_many_clients_is_left_to_a_worker(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    session, lease = trained(rows)
    monkeypatch.setattr(share_rows, "FEW_ONLINE", 0)
    monkeypatch.setattr(hints, "wake_session", asked.append)
    rows.finish_share(lease)
    assert rows.round(session).number == 1 and asked == [str(session.pk)]
    assert engine.advance(session.pk) == 1


def test_a_second_combiner_makes_it_a_reduction(rows: Rows) -> None:
    leases = [rows.lease("c1"), rows.lease("c2")]
    clients = [rows.online(lease, name)[0] for lease, name in zip(leases, "ab", strict=True)]
    session = rows.running(min_clients=2)
    for lease, client in zip(leases, clients, strict=True):
        rows.accept(lease, rows.task(session, client))
    assert [rows.finish_share(lease) for lease in leases] == [[True], [True]]
    assert rows.round(session).status == "reducing"


def test_a_session_that_was_stopped_meanwhile_gets_no_model(rows: Rows) -> None:
    session, lease = trained(rows)
    stop_session(actor=rows.actor, session=session)
    engine.advance(session.pk)
    assert rows.finish_share(lease) in ([], [False])
    session.refresh_from_db()
    assert session.status == "stopped" and session.trail.count() == 0


def test_whose_answer_was_lost_is_told_again_that_it_is_finished(rows: Rows) -> None:
    """The combiner asks again after a broken connection: it must not take the model for its own leftover."""
    session, lease = trained(rows)
    assert rows.finish_share(lease) == [True]
    share = CombinerShare.objects.get()

    def finish(key: str) -> bool:
        return assignments.finish_share(
            share_id=share.pk, round_id=share.round_id, session_id=session.pk, combiner_id=lease.combiner_id,
            epoch=lease.epoch, partial_key=key,
            partial_sha256=share.partial_sha256, weight=1.0, updates=1, is_model=True,
        )  # fmt: skip

    assert finish(share.partial_key)
    assert not finish("models/another/attempt.safetensors")
    session.refresh_from_db()
    assert session.trail.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_combiner_killed_anywhere_in_it_commits_once_and_leaves_no_orphan(live_rows: Rows) -> None:
    for number in range(1, 200):
        session, lease = trained(live_rows)
        died = killed_at_statement(number, partial(live_rows.finish_share, lease))
        session.refresh_from_db()
        assert session.trail.count() == session.rounds_done <= 1  # all of it or nothing
        live_rows.finish_share(lease)
        engine.advance(session.pk)
        session.refresh_from_db()
        assert session.rounds_done == session.trail.count() == 1
        assert_same(live_rows.arrays_of(session.current_model), update(3))
        Session.objects.filter(pk=session.pk).update(status="stopped")
        if not died:
            break
    assert number > 10
    sweep(timezone.now() + dt.timedelta(days=2))
    for key in Model.objects.values_list("key", flat=True):
        assert Path(storage.artifacts().path(key)).exists()


@pytest.mark.django_db(transaction=True)
def test_a_combiner_whose_answer_was_lost_never_deletes_the_model_though_a_newer_one_runs(
    rig: Rig, combiner_here: Callable[..., CombinerHere], monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    """The connection breaks with the answer; when the combiner asks again, another runs under its name."""
    combiner, answers, finish = combiner_here(), [], assignments.finish_share

    def answer_lost(**said: Any) -> bool:
        answers.append(finish(**said))
        if len(answers) == 1:
            Combiner.objects.update(epoch=F("epoch") + 1)
            raise OperationalError("the connection broke with the answer")
        return answers[-1]

    monkeypatch.setattr(shares.assignments, "finish_share", answer_lost)
    wire = rig.connect(combiner, rig.client("a")[1])
    session = again(rig.session(rounds=1))
    assert wire.upload(wire.next_task(), update(3)).status == ACCEPTED
    wait_until(lambda: len(answers) == 2 and not combiner.core.shares._closing, what="the second answer")
    assert answers == [True, True]
    session.refresh_from_db()
    assert_same(rig.arrays_of(session.current_model), update(3))


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_client_that_is_deleted_while_it_is_chosen_costs_the_model_nothing(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database looks at keys when the transaction ends: then the model would go with the next round."""
    asked: list[str] = []
    session, lease = trained(rows)
    choose = engine.choose_for_round

    def too_late(*args: Any, **options: Any) -> Any:
        chosen = choose(*args, **options)
        deleting = threading.Thread(target=deleted, args=[chosen.clients[0].pk])
        deleting.start()
        deleting.join(10)
        return chosen

    def deleted(pk: uuid.UUID) -> None:
        try:
            Client.objects.filter(pk=pk).delete()
        finally:
            connection.close()

    monkeypatch.setattr(engine, "choose_for_round", too_late)
    monkeypatch.setattr(hints, "wake_session", asked.append)
    assert rows.finish_share(lease) == [True]
    session.refresh_from_db()
    assert session.rounds_done == 1 and session.rounds.count() == 1 and not Client.objects.exists()
    assert asked == [str(session.pk)]


def test_rounds_are_listed_in_their_order_whatever_the_clocks_of_the_hosts_that_open_them(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, lease = trained(rows)
    here = time.time_ns
    monkeypatch.setattr(ids.time, "time_ns", lambda: here() - 3600 * 10**9)
    rows.finish_share(lease)
    assert [round_.number for round_ in rounds_of(session)] == [2, 1]


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_a_round_of_a_combiner_whose_clock_is_wrong_is_tried_again_as_any_other(
    rows: Rows, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    session, lease = trained(rows, max_failed_rounds=5)
    client = Client.objects.get()
    here = time.time_ns
    with monkeypatch.context() as combiner:
        combiner.setattr(ids.time, "time_ns", lambda: here() + ahead_s * 10**9)
        rows.finish_share(lease)
    for attempt in (1, 2, 3):
        newest = session.rounds.get(number=2, attempt=attempt)
        assert newest.status == "training"
        (task,) = newest.assignments.all()
        assignments.end_with_reason(
            client_id=client.pk, assignment_id=task.pk, status=AssignmentStatus.FAILED, reason="no data"
        )
        engine.advance(session.pk)


@pytest.mark.django_db(transaction=True)
def test_a_database_that_goes_away_in_the_step_that_follows_is_no_success(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, lease = trained(rows)

    def breaks(*_args: object) -> None:
        raise OperationalError("the connection is gone")

    monkeypatch.setattr(engine, "begin", breaks)
    monkeypatch.setattr(connection, "savepoint_rollback", breaks)
    with pytest.raises(OperationalError):
        rows.finish_share(lease)
    session.refresh_from_db()
    assert session.rounds_done == 0
