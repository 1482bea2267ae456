"""Rows and their moves: conditional updates, constraints, and locks in one order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from federation.sessions import assignments, choices, engine, lost, rounds
from federation.sessions.config import SessionConfig
from federation.sessions.locks import lock_round, lock_session
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from foundation.moves import IllegalMove, move
from tests.rounds.rows import Rows

MACHINES = [
    (choices.SessionStatus, choices.SESSION_MOVES),
    (choices.RoundStatus, choices.ROUND_MOVES),
    (choices.ShareStatus, choices.SHARE_MOVES),
    (choices.AssignmentStatus, choices.ASSIGNMENT_MOVES),
]


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run with a database connection of its own; the list gets the result."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(work())
        finally:
            connection.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def test_every_state_of_every_row_has_its_moves_and_no_other() -> None:
    """Session created -> running -> finished | failed | stopped (continue: back to running), and so on."""
    for states, moves in MACHINES:
        assert set(moves) == set(states.values)
        assert set().union(*moves.values()) <= set(states.values)
    assert {s for s in choices.SESSION_MOVES if "running" in choices.SESSION_MOVES[s]} == {
        "created",
        "finished",
        "failed",
        "stopped",
    }
    for over in ("finished", "failed", "stopped"):
        assert not choices.ROUND_MOVES[over]
    assert choices.ASSIGNMENT_MOVES["accepted"] == {"lost"}
    for over in ("rejected", "failed", "expired", "cancelled", "lost"):
        assert not choices.ASSIGNMENT_MOVES[over]
    assert not choices.SHARE_MOVES["abandoned"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("source", "target"), list(product(choices.AssignmentStatus.values, choices.AssignmentStatus.values))
)
def test_an_assignment_moves_only_where_it_may(rows: Rows, source: str, target: str) -> None:
    """Every move is one conditional update; zero rows changed means somebody else was faster."""
    lease = rows.lease()
    (client,) = rows.online(lease, "a")
    session = rows.running()
    task = rows.task(session, client)
    Assignment.objects.filter(pk=task.pk).update(status=source)
    legal = target in choices.ASSIGNMENT_MOVES[source]
    reachable = any(target in targets for targets in choices.ASSIGNMENT_MOVES.values())
    if not reachable:
        with pytest.raises(IllegalMove):
            move(Assignment.objects.filter(pk=task.pk), choices.ASSIGNMENT_MOVES, target)
        return
    assert move(Assignment.objects.filter(pk=task.pk), choices.ASSIGNMENT_MOVES, target) == int(legal)
    task.refresh_from_db()
    assert task.status == (target if legal else source)


@pytest.mark.django_db
def test_a_session_has_one_open_round(rows: Rows) -> None:
    """Constraints in the database: one open Round per Session."""
    rows.online(rows.lease(), "a")
    session = rows.running()
    round_ = rows.round(session)
    with pytest.raises(IntegrityError, match=r"round_one_open|session_id"), transaction.atomic():
        Round.objects.create(
            project=session.project, session=session, number=2, goal=1, min_updates=1,
            input_model=session.seed_model, deadline=round_.deadline,
        )  # fmt: skip


@pytest.mark.django_db
def test_a_failed_round_raises_its_attempt(rows: Rows) -> None:
    """unique (session, round number, attempt), a failed round raises `attempt`."""
    (client,) = rows.online(rows.lease(), "a")
    session = rows.running()
    assignments.end_with_reason(
        client_id=client.pk,
        assignment_id=rows.task(session, client).pk,
        status=choices.AssignmentStatus.FAILED,
        reason="no data",
    )
    engine.advance(session.pk)
    assert list(session.rounds.order_by("id").values_list("number", "attempt")) == [(1, 1), (1, 2)]
    last = rows.round(session)
    with pytest.raises(IntegrityError), transaction.atomic():
        Round.objects.create(
            project=session.project, session=session, number=1, attempt=2, goal=1, min_updates=1,
            input_model=session.seed_model, deadline=last.deadline, status="failed",
        )  # fmt: skip


@pytest.mark.django_db
def test_a_client_has_one_live_assignment_of_a_kind_in_a_round(rows: Rows) -> None:
    """one live Assignment per (round, client, kind)."""
    (client,) = rows.online(rows.lease(), "a")
    session = rows.running()
    round_ = rows.round(session)

    def again(kind: str) -> None:
        rounds.assign(round_, [client], model_id=round_.input_model_id, kind=kind, deadline=round_.deadline)

    with pytest.raises(IntegrityError), transaction.atomic():
        again("train")
    again("validate")
    Assignment.objects.filter(kind="train").update(status="failed")
    again("train")


@pytest.mark.django_db
def test_the_combiner_that_accepts_makes_the_share(rows: Rows) -> None:
    """Its Share is empty until acceptance: the combiner that accepts creates the Share; so a client that was
    moved to another combiner just works."""
    one, two = rows.lease("c1"), rows.lease("c2")
    (client,) = rows.online(one, "a")
    session = rows.running()
    task = rows.task(session, client)
    assert task.share_id is None and not CombinerShare.objects.exists()
    rows.online(two, "a")
    (verdict,) = rows.accept(two, task)
    assert verdict.accepted
    task.refresh_from_db()
    assert task.share is not None and task.share.combiner_id == two.combiner_id
    assert CombinerShare.objects.count() == 1


@pytest.mark.django_db
def test_a_late_update_leaves_no_empty_share_behind(rows: Rows) -> None:
    """A share belongs to a combiner that accepted something."""
    one, two = rows.lease("c1"), rows.lease("c2")
    a, b = rows.online(one, "a", "b")
    session = rows.running(min_clients=2, min_updates=1)
    assignments.end_with_reason(
        client_id=a.pk,
        assignment_id=rows.task(session, a).pk,
        status=choices.AssignmentStatus.FAILED,
        reason="no data",
    )
    (verdict,) = rows.accept(two, rows.task(session, a))
    assert not verdict.accepted and "no data" in verdict.reason
    assert not CombinerShare.objects.exists()
    rows.accept(one, rows.task(session, b))
    assert rows.finish_share(one) == [True] and rows.finish_share(two) == []
    assert rows.reduce(session).status == "finished"


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_an_acceptance_never_waits_for_a_session_that_is_being_looked_at(live_rows: Rows) -> None:
    """Locks are always taken in the order Session, Round, Share, Assignment: an acceptance holds the round and
    writes rows that point at the session, whose lock `advance` holds while it waits for that round."""
    lease = live_rows.lease()
    (client, _other) = live_rows.online(lease, "a", "b")
    session = live_rows.running(min_clients=2)
    task = live_rows.task(session, client)
    with transaction.atomic():
        lock_session(session.pk)
        thread, verdicts = in_thread(lambda: live_rows.accept(lease, task))
        thread.join(4)
        assert verdicts and verdicts[0][0].accepted, "it waited for the session's lock"


@pytest.mark.django_db(transaction=True)
def test_two_advances_at_once_open_one_round(live_rows: Rows) -> None:
    """`advance` may run twice, late, or in two workers at once: the row lock and the check of states make the
    second run a no-op."""
    live_rows.online(live_rows.lease(), "a", "b", "c")
    for _ in range(5):
        session = live_rows.session(min_clients=3)
        gate = threading.Barrier(4)

        def look(session: Session = session, gate: threading.Barrier = gate) -> int:
            gate.wait(10)
            return engine.advance(session.pk)

        threads = [in_thread(look) for _ in range(4)]
        for thread, _ in threads:
            thread.join(20)
        assert sum(result[0] for _, result in threads) == 1
        assert session.rounds.count() == 1
        assert Assignment.objects.filter(round__session=session).count() == 3


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_an_update_is_not_accepted_into_a_share_that_is_being_abandoned(live_rows: Rows) -> None:
    """lock the Share, then Assignment: a conditional update with a sub-select on the share was seen to succeed
    under READ COMMITTED after the share had been abandoned."""
    lease = live_rows.lease()
    a, b = live_rows.online(lease, "a", "b")
    session = live_rows.running(min_clients=2)
    live_rows.accept(lease, live_rows.task(session, a))
    share = live_rows.share(session, lease)
    task = live_rows.task(session, b)
    with transaction.atomic():
        lock_session(session.pk)
        round_ = lock_round(live_rows.round(session).pk)
        assert round_ is not None
        lost.lose_share(share, round_, "its combiner is away")
        thread, verdicts = in_thread(lambda: live_rows.accept(lease, task))
        thread.join(0.5)
        assert thread.is_alive(), "it did not wait for the round"
    thread.join(10)
    task.refresh_from_db()
    assert verdicts[0][0].accepted and task.share_id != share.pk
    assert not Assignment.objects.filter(share=share, status="accepted").exists()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_acceptance_and_the_end_of_a_round_at_once_never_lose_an_answered_update(live_rows: Rows) -> None:
    """accept vs abandon, many times over: what was answered `accepted` is in a share that counts or is `lost`
    with an event; what was refused is not accepted."""
    lease = live_rows.lease()
    (client, other) = live_rows.online(lease, "a", "b")
    for number in range(10):
        session = live_rows.running(min_clients=2)
        round_ = live_rows.round(session)
        live_rows.accept(lease, live_rows.task(session, other))
        task = live_rows.task(session, client)
        gate = threading.Barrier(2)

        def accept(task: Assignment = task, gate: threading.Barrier = gate) -> Any:
            gate.wait(10)
            return live_rows.accept(lease, task)[0]

        def fail(session: Session = session, round_: Round = round_, gate: threading.Barrier = gate) -> None:
            gate.wait(10)
            with transaction.atomic():
                locked, now = lock_session(session.pk), lock_round(round_.pk)
                assert locked is not None and now is not None
                if now.status == "training":
                    rounds.fail(locked, now, "a test said so", SessionConfig.from_json(session.config))

        threads = [in_thread(accept), in_thread(fail)] if number % 2 else [in_thread(fail), in_thread(accept)]
        for thread, _ in threads:
            thread.join(20)
        (verdict,) = [result[0] for _, result in threads if result and result[0] is not None]
        round_.refresh_from_db()
        task.refresh_from_db()
        assert (round_.status, task.status) in {("closing", "accepted"), ("failed", "expired")}
        assert verdict.accepted == (task.status == "accepted")
