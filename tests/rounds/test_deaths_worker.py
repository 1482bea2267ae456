"""What must be seen when the worker or beat dies, at any point of advance or reduce."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from clients_app.presence import CombinerLease
from federation.models.models import Model
from federation.sessions import due, engine, reduction
from federation.sessions.models import Round, Session
from federation.sessions.sweeping import sweep
from foundation import storage
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.rounds.rows import Rows, ago, assert_same, mean, update
from tests.wire_client import ACCEPTED


class Killed(BaseException):
    """As SIGKILL: nothing of the process runs on, and its open transaction is rolled back."""


def killed_at_statement(number: int, work: Callable[[], Any]) -> bool:
    """Run `work` and kill it before its `number`-th statement. False: it was through before."""
    seen = 0

    def execute(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal seen
        if sql.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK")):
            return run(sql, params, many, context)
        seen += 1
        if seen == number:
            raise Killed
        return run(sql, params, many, context)

    try:
        with connection.execute_wrapper(execute):
            work()
    except Killed:
        return True
    return False


def closed_by_two_combiners(rows: Rows) -> tuple[Session, list[CombinerLease]]:
    """A session whose round has both its shares finished, and is to be reduced."""
    leases = [rows.lease("c1"), rows.lease("c2")]
    clients = [rows.online(leases[0], "a")[0], rows.online(leases[1], "b")[0]]
    session = rows.running(min_clients=2, rounds=1)
    for lease, client, value in zip(leases, clients, (1.0, 4.0), strict=True):
        rows.accept(lease, rows.task(session, client), value=value, examples=value)
    for lease in leases:
        rows.finish_share(lease)
    return session, leases


@pytest.mark.django_db(transaction=True)
def test_advance_killed_before_any_of_its_statements_opens_one_round_when_it_runs_again(
    live_rows: Rows,
) -> None:
    """worker, any point of advance: the tick runs it again."""
    lease = live_rows.lease()
    live_rows.online(lease, "a", "b")
    for number in range(1, 200):
        session = live_rows.session(min_clients=2)
        died = killed_at_statement(number, lambda: engine.advance(session.pk))  # noqa: B023
        assert session.pk in due.due_sessions() or session.rounds.count() == 1
        engine.advance(session.pk)
        round_ = session.rounds.get()
        assert round_.assignments.count() == 2
        assert len(live_rows.events(session, "round.started")) == 1
        session.delete()
        if not died:
            assert number > 8, "it should have been killed in the middle"
            return
    raise AssertionError("advance never came to its end")


@pytest.mark.django_db(transaction=True)
def test_reduce_killed_before_any_of_its_statements_makes_one_model_when_it_runs_again(
    live_rows: Rows,
) -> None:
    """worker, any point of reduce: the tick runs it again; one model per round; no orphan after the sweep."""
    for number in range(1, 200):
        session, _leases = closed_by_two_combiners(live_rows)
        round_ = live_rows.round(session)
        died = killed_at_statement(number, lambda: reduction.reduce_round(round_.pk))  # noqa: B023
        Round.objects.filter(pk=round_.pk).update(
            reduce_until=ago(1), reduce_asked_at=ago(3), reducing_at=ago(3)
        )  # the claim ran out
        if Round.objects.get(pk=round_.pk).status == "reducing":
            assert session.pk in due.due_sessions()
        reduction.reduce_round(round_.pk)
        engine.advance(session.pk)
        session.refresh_from_db()
        assert session.status == "finished"
        assert_same(live_rows.arrays_of(session.trail.get()), mean([(update(1), 1), (update(4), 4)]))
        if not died:
            break
    assert number > 8
    sweep(timezone.now() + dt.timedelta(days=2))
    kept = {name.split("/")[-1] for name in stored("models") + stored("partials")}
    assert kept <= {key.split("/")[-1] for key in Model.objects.values_list("key", flat=True)}


def stored(top: str) -> list[str]:
    store = storage.artifacts()
    try:
        folders, _files = store.listdir(top)
    except FileNotFoundError:
        return []
    return [f"{top}/{folder}/{name}" for folder in folders for name in store.listdir(f"{top}/{folder}")[1]]


@pytest.mark.django_db(transaction=True)
def test_a_worker_killed_in_the_middle_of_a_session_costs_delay_and_nothing_else(
    rig: Rig, combiner_here: Callable[..., CombinerHere]
) -> None:
    """worker, any point of advance or reduce: the tick runs it again; one model per round."""
    combiner, worker, _beat = combiner_here(), rig.worker(), rig.beat()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    session = rig.session(rounds=3, min_clients=2)
    for number in (1, 2, 3):
        tasks = [wire.next_task(timeout=40) for wire in wires]
        assert [task.round for task in tasks] == [number, number]
        assert wires[0].upload(tasks[0], update(number), num_examples=1).status == ACCEPTED
        if number == 2:
            worker.kill()  # the round closes while nobody is there to reduce it
        assert wires[1].upload(tasks[1], update(number + 4), num_examples=3).status == ACCEPTED
        if number == 2:
            worker = rig.worker()
    rig.until_session(session, "finished")
    assert list(session.trail.order_by("id").values_list("round_number", flat=True)) == [1, 2, 3]
    assert_same(rig.arrays_of(session.current_model), mean([(update(3), 1), (update(7), 3)]))


@pytest.mark.django_db(transaction=True)
def test_two_beats_do_no_harm_and_none_does_little(
    rig: Rig, combiner_here: Callable[..., CombinerHere]
) -> None:
    """beat: any, or two of them: training unaffected while hints arrive; two do no harm."""
    combiner, _worker = combiner_here(), rig.worker()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    session = rig.session(rounds=2, min_clients=2)  # nobody ticks: hints alone
    for _ in range(2):
        for wire in wires:
            assert wire.upload(wire.next_task(timeout=40), update(1)).status == ACCEPTED
    rig.until_session(session, "finished")
    beats = [rig.beat(), rig.beat()]
    session = rig.session(rounds=2, min_clients=2)
    for _ in range(2):
        for wire in wires:
            assert wire.upload(wire.next_task(timeout=40), update(2)).status == ACCEPTED
    rig.until_session(session, "finished")
    assert session.trail.count() == 2 and session.rounds.count() == 2
    assert all(beat.process.poll() is None for beat in beats)
