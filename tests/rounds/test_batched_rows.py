"""What many clients do together costs a few statements, however many they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from federation.events.models import Event
from federation.models.models import Metric
from federation.sessions import assignments
from federation.sessions.models import Assignment
from tests.rounds.rows import Rows, statuses

pytestmark = pytest.mark.django_db

BATCHES = 6  # SQLite takes a thousand values in a statement: a hundred rows are a few


def queries(work: Callable[[], object]) -> int:
    with CaptureQueriesContext(connection) as seen:
        work()
    return len(seen)


def named(count: int, prefix: str) -> list[str]:
    return [f"{prefix}{number:03}" for number in range(count)]


def test_accepting_a_hundred_updates_together_costs_no_more_statements_than_two(rows: Rows) -> None:
    lease = rows.lease()
    costs = {}
    for count in (2, 100):
        clients = rows.online(lease, *named(count, f"of{count}-"))
        session = rows.running(min_clients=count, client_ids=[str(client.pk) for client in clients])
        tasks = list(Assignment.objects.filter(round__session=session).order_by("id"))
        events, metrics = Event.objects.count(), Metric.objects.count()

        def accept(tasks: list[Assignment] = tasks) -> None:
            assert all(v.accepted and v.closes for v in rows.accept(lease, *tasks, value=2, examples=3))

        costs[count] = queries(accept)
        assert statuses(session) == ["accepted"] * count
        assert Event.objects.count() - events == count
        assert Metric.objects.count() - metrics == count
        assert {task.weight for task in Assignment.objects.filter(round__session=session)} == {3.0}
    assert costs[100] <= costs[2] + BATCHES


def test_a_combiner_reads_all_that_it_has_to_close_in_two_statements(rows: Rows) -> None:
    lease = rows.lease()
    for count in (1, 3):
        clients = rows.online(lease, *named(count, f"of{count}-"))
        session = rows.running(min_clients=count, client_ids=[str(client.pk) for client in clients])
        rows.accept(lease, *[rows.task(session, client) for client in clients])
    work: list[assignments.ShareWork] = []
    cost = queries(lambda: work.extend(assignments.closing_shares(lease.combiner_id)))
    assert [(len(one.accepted), one.is_model) for one in work] == [(1, True), (3, True)] and cost == 2


def test_a_batch_says_of_each_update_what_became_of_it(rows: Rows) -> None:
    """Fresh, a second copy, one that ended, somebody else's: together as one by one."""
    lease = rows.lease()
    a, b, c, d = rows.online(lease, "a", "b", "c", "d")
    session = rows.running(min_clients=4)
    tasks = [rows.task(session, client) for client in (a, b, c, d)]
    (first,) = rows.accept(lease, tasks[1], value=5, examples=2)
    assignments.end_with_reason(
        client_id=c.pk,
        assignment_id=tasks[2].pk,
        status="failed",
        reason="no data",  # type: ignore[arg-type]
    )
    foreign = Assignment.objects.get(pk=tasks[3].pk)
    foreign.client = a  # a client that names another's assignment
    fresh, copy, ended, stolen = rows.accept(lease, tasks[0], tasks[1], tasks[2], foreign)
    assert fresh.accepted and fresh.weight == 1.0
    assert copy.accepted and copy.spool_name == first.spool_name and copy.weight == 2.0
    assert not ended.accepted and ended.reason == "no data"
    assert not stolen.accepted and stolen.reason == "there is no such assignment of yours"
    assert statuses(session) == ["accepted", "accepted", "failed", "assigned"]
    assert Assignment.objects.get(pk=tasks[1].pk).spool_name == first.spool_name


def test_a_round_of_a_hundred_clients_opens_and_is_delivered_in_a_few_statements(rows: Rows) -> None:
    lease = rows.lease()
    opening, delivering, telling = {}, {}, {}
    for count in (2, 100):
        clients = rows.online(lease, *named(count, f"of{count}-"))
        ids = [str(client.pk) for client in clients]
        opening[count] = queries(lambda ids=ids: rows.running(min_clients=len(ids), client_ids=ids))
        tasks = list(Assignment.objects.filter(client__in=clients).values_list("pk", flat=True))
        assert len(tasks) == count
        delivering[count] = queries(lambda tasks=tasks: assignments.mark_delivered(tasks))
        telling[count] = queries(lambda tasks=tasks: assignments.note_progress(dict.fromkeys(tasks, 0.5)))
        assert set(Assignment.objects.filter(pk__in=tasks).values_list("status", "progress")) == {
            ("delivered", 0.5)
        }
    assert opening[100] <= opening[2] + BATCHES
    assert delivering[100] == delivering[2]
    assert telling[100] <= telling[2] + BATCHES


def test_word_of_progress_that_comes_late_changes_nothing(rows: Rows) -> None:
    lease = rows.lease()
    (a,) = rows.online(lease, "a")
    session = rows.running(min_clients=1)
    task = rows.task(session, a)
    rows.accept(lease, task)
    assignments.note_progress({task.pk: 0.4})
    assert Assignment.objects.get(pk=task.pk).progress == 1.0
