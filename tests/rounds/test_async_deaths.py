"""What must be seen when something dies in an asynchronous session: one model a round, in order, each update once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from clients_app.models import Combiner
from clients_app.presence import CombinerLease
from federation.sessions import engine, reduction, tasks
from federation.sessions.choices import LIVE_ASSIGNMENT
from federation.sessions.models import Assignment, Round, Session
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import Rows, ago, assert_same, mean, update
from tests.rounds.test_deaths_worker import killed_at_statement
from tests.wire_client import ACCEPTED

pytestmark = pytest.mark.django_db(transaction=True)
MOST = 300  # statements that any of this takes


def live_leases(session: Session) -> list[str]:
    rows = Assignment.objects.filter(round__session=session, kind="train", status__in=LIVE_ASSIGNMENT)
    return sorted(rows.values_list("client__name", flat=True))


def lasting(rows: Rows) -> CombinerLease:
    """A combiner whose lease outlives the test, however slow the machine."""
    lease = rows.lease()
    Combiner.objects.filter(pk=lease.combiner_id).update(lease_until=ago(-3600))
    return lease


def states(session: Session) -> list[tuple[int, str]]:
    return list(Round.objects.filter(session=session).order_by("id").values_list("number", "status"))


def until_it_lives(attempt: Callable[[int], bool], least: int) -> None:
    """`attempt(n)` plays a story in which somebody dies before the n-th statement; False: nobody did."""
    for number in range(1, MOST):
        if not attempt(number):
            assert number > least, "somebody should have died in the middle"
            return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("closes", [False, True])
def test_a_combiner_killed_while_it_accepts_counts_the_update_once(live_rows: Rows, closes: bool) -> None:
    """Acceptance, the next assignment, the closing and the next round are one transaction."""
    lease = lasting(live_rows)
    clients = live_rows.online(lease, "a", "b")

    def attempt(number: int) -> bool:
        session = live_rows.running(rounds=3, asynchronous={"buffer_size": 2 if closes else 3})
        live_rows.accept(lease, live_rows.task(session, clients[0]))
        task = live_rows.task(session, clients[1])
        died = killed_at_statement(number, lambda: live_rows.accept(lease, task))
        if died:
            assert states(session) == [(1, "training")] and live_leases(session) == ["a", "b"]
        (verdict,) = live_rows.accept(lease, task)  # it was never told: it sends again
        assert verdict.accepted
        assert live_leases(session) == ["a", "b"]
        assert states(session) == ([(1, "closing"), (2, "training")] if closes else [(1, "training")])
        counted = Assignment.objects.filter(share__round__session=session, status="accepted")
        assert sorted(counted.values_list("client__name", flat=True)) == ["a", "b"]
        session.delete()
        return died

    until_it_lives(attempt, least=12)


def test_a_worker_killed_while_it_reduces_or_advances_makes_one_model_and_goes_on(live_rows: Rows) -> None:
    """worker, any point of reduce or advance: while it was away the next buffer filled; it closes afterwards."""
    lease = lasting(live_rows)
    a, b = live_rows.online(lease, "a", "b")

    def second_becomes_a_model(session: Session) -> None:
        live_rows.finish_share(lease)
        reduction.reduce_round(Round.objects.get(session=session, number=2).pk)
        engine.advance(session.pk)
        session.refresh_from_db()
        assert session.status == "finished"
        assert [m.round_number for m in session.trail.order_by("id")] == [1, 2]
        one, two = session.trail.order_by("id")
        assert_same(live_rows.arrays_of(one), update(2))
        # both answered the seed: what they changed in it is what the first model is changed by
        assert_same(live_rows.arrays_of(two), update(2 + 5))

    def attempt(number: int) -> bool:
        session = live_rows.running(rounds=2, asynchronous={"buffer_size": 2, "staleness_exponent": 0.0})
        for client in (a, b):
            live_rows.accept(lease, live_rows.task(session, client), value=2)
        live_rows.finish_share(lease)
        for client in (a, b):
            live_rows.accept(lease, live_rows.task(session, client), value=5)
        first = Round.objects.get(session=session, number=1)

        def worker() -> None:
            tasks.reduce_round(str(first.pk))

        died = killed_at_statement(number, worker)
        Round.objects.filter(pk=first.pk).update(reduce_until=ago(1), reduce_asked_at=ago(20))
        Session.objects.filter(pk=session.pk).update(look_at=ago(1))
        tasks.tick()
        worker()  # what the tick asked for
        engine.advance(session.pk)
        assert states(session) == [(1, "finished"), (2, "closing")]
        if number % 5 == 1:
            second_becomes_a_model(session)
        session.delete()
        return died

    until_it_lives(attempt, least=20)


def test_an_advance_killed_anywhere_expires_and_asks_once(live_rows: Rows) -> None:
    """worker, any point of advance: leases that ran out, places that are free."""
    lease = lasting(live_rows)
    live_rows.online(lease, "a", "b", "c")

    def attempt(number: int) -> bool:
        session = live_rows.running(rounds=3, asynchronous={"buffer_size": 2, "concurrency": 2})
        Assignment.objects.filter(round__session=session).update(deadline=ago(1))
        died = killed_at_statement(number, lambda: engine.advance(session.pk))
        engine.advance(session.pk)
        assert len(live_leases(session)) == 2
        assert Assignment.objects.filter(round__session=session, status="expired").count() == 2
        session.delete()
        return died

    until_it_lives(attempt, least=12)


def test_a_combiner_that_starts_again_counts_what_it_had_accepted_once(
    rig: Rig, combiner_here: Callable[..., CombinerHere], worker_here: WorkerHere, wait_until: Any
) -> None:
    """combiner, after acknowledgement: restart rebuilds the sum from accepted rows and spool, weights included."""
    combiner = combiner_here()
    tokens = [rig.client(name)[1] for name in ("a", "b")]
    wires = [rig.connect(combiner, token) for token in tokens]
    session = rig.session(rounds=1, asynchronous={"buffer_size": 3})
    first = wires[0].next_task()
    assert wires[0].upload(first, update(1), num_examples=1).status == ACCEPTED
    for wire in wires:
        wire.close()
    combiner.stop()
    again = combiner_here(folder=combiner.folder)
    wires = [rig.connect(again, token) for token in tokens]
    assert (
        wires[0].upload(first, update(9), num_examples=1).status == ACCEPTED
    )  # a second copy changes nothing
    for wire, value in zip(wires, (2, 6), strict=True):
        assert wire.upload(wire.next_task(), update(value), num_examples=2).status == ACCEPTED
    rig.until_session(session, "finished")
    wanted = mean([(update(1), 1), (update(2), 2), (update(6), 2)])
    assert_same(rig.arrays_of(session.current_model), wanted)
