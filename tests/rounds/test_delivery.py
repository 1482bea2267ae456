"""Delivery: what a connected client is given, when, and what it is told when that ends."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from clients_app.models import Client, Combiner
from clients_app.services import delete_client
from federation.dialects.native import studio_v1_pb2 as proto
from federation.events.models import Event
from federation.events.services import record_telemetry
from federation.sessions import assignments
from federation.sessions.models import Assignment, Round
from federation.sessions.services import stop_session
from foundation.hints import wake_combiners
from projects.tokens.models import Token
from projects.tokens.services import revoke_token
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import Rows, ago, update
from tests.wire_client import ACCEPTED, REFUSED

pytestmark = pytest.mark.django_db(transaction=True)

Combiners = Callable[..., CombinerHere]


def row(task: Any) -> Assignment:
    return Assignment.objects.get(pk=task.assignment_id)


def test_work_is_pushed_within_moments_of_its_commit(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """The hub reads rows when woken: no polling on the hot path."""
    wire = rig.connect(combiner_here(), rig.client("a")[1])
    rig.wait_until(lambda: Client.objects.online().exists())
    rig.session(rounds=3)
    slowest = 0.0
    for _ in range(3):
        task = wire.next_task()
        slowest = max(slowest, time.time() - row(task).created_at.timestamp())
        assert wire.upload(task, update(1)).status == ACCEPTED
    assert slowest < 1.5  # the net would come after two seconds; a push takes milliseconds


def test_the_net_finds_work_that_no_hint_told_of(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """and every 2 s with one cheap query for all its clients as the net."""
    monkeypatch.setattr("foundation.hints._publish", lambda *_: None)
    wire = rig.connect(combiner_here(), rig.client("a")[1])
    session = rig.session(rounds=1)
    assert wire.upload(wire.next_task(timeout=8), update(1)).status == ACCEPTED
    rig.until_session(session, "finished")


def test_what_many_clients_owe_is_three_queries_and_one_when_they_owe_nothing(live_rows: Rows) -> None:
    """one cheap query for all its clients."""
    lease, elsewhere = live_rows.lease(), live_rows.lease("elsewhere")
    clients = live_rows.online(lease, *[f"site-{n}" for n in range(30)])
    live_rows.online(elsewhere, "other-site")
    with CaptureQueriesContext(connection) as queries:
        assert assignments.owed_on(lease) == []
    assert len(queries) == 1
    live_rows.running(min_clients=31)
    with CaptureQueriesContext(connection) as queries:
        assert len(assignments.owed([c.pk for c in clients])) == 30
    assert len(queries) == 3
    with CaptureQueriesContext(connection) as queries:
        assert {owed.client_id for owed in assignments.owed_on(lease)} == {c.pk for c in clients}
    assert len(queries) == 3


def test_what_the_hub_delivered_is_downloaded_and_sent_without_asking_the_rows_again(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    combiner = combiner_here()
    a = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(min_clients=1)
    task = a.next_task()
    asked: list[uuid.UUID] = []
    monkeypatch.setattr(assignments, "work_grant", lambda _client, pk: asked.append(pk))
    a.download(task)
    assert a.upload(task, update(1)).status == ACCEPTED
    assert asked == []
    rig.until_session(session, "finished")


def test_receipt_is_written_but_acceptance_does_not_depend_on_it(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """`delivered` is written when the client confirms receipt (batched; acceptance does not depend on it)."""
    combiner = combiner_here()
    a, b = (rig.connect(combiner, rig.client(name)[1]) for name in "ab")
    session = rig.session(min_clients=2)
    task_a = a.next_task()  # this confirms
    rig.wait_until(lambda: row(task_a).status == "delivered" and row(task_a).delivered_at)
    task_b = b.said("task")  # this does not
    assert row(task_b).status == "assigned"
    for wire, task in ((a, task_a), (b, task_b)):
        assert wire.upload(task, update(1)).status == ACCEPTED
    rig.until_session(session, "finished")


def test_a_client_that_comes_back_is_given_what_it_does_not_hold(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """A client that reconnects says which assignments it still holds; it is sent the others again; what has
    ended meanwhile is cancelled there."""
    combiner = combiner_here()
    token = rig.client("a")[1]
    wire = rig.connect(combiner, token)
    sessions = [rig.session(name=f"s{n}", round_timeout_s=60) for n in range(3)]
    tasks = {task.session_name: task for task in (wire.next_task() for _ in sessions)}
    wire.close()
    rig.wait_until(lambda: not Client.objects.online().exists())
    stop_session(actor=rig.actor, session=sessions[2])
    rig.until_session(sessions[2], "stopped")

    wire = rig.connect(
        combiner,
        token,
        holds=(tasks["s0"].assignment_id, tasks["s2"].assignment_id),
    )
    cancel = wire.said("cancel")
    assert cancel.assignment_id == tasks["s2"].assignment_id and "stopped" in cancel.reason
    assert wire.next_task().assignment_id == tasks["s1"].assignment_id
    combiner.core.hub.wake()
    with pytest.raises(AssertionError):
        wire.said("task", timeout=0.5)  # s0 is held, so it is not sent again


def test_a_stopped_session_tells_its_clients_on_the_stream(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """Stop: clients are told, and stop working; the round ends."""
    combiner = combiner_here()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    session = rig.session(min_clients=2)
    tasks = [wire.next_task() for wire in wires]
    assert wires[0].upload(tasks[0], update(1)).status == ACCEPTED
    stop_session(actor=rig.actor, session=session)
    cancel = wires[1].said("cancel")
    assert (cancel.assignment_id, cancel.reason) == (tasks[1].assignment_id, "the session was stopped")
    rig.until_session(session, "stopped")
    assert Round.objects.get().status == "stopped"
    assert wires[1].upload(tasks[1], update(2)).status == REFUSED
    with pytest.raises(AssertionError):
        wires[0].said("cancel", timeout=0.3)  # it had answered: nothing to cancel there


def test_a_second_stream_of_a_client_takes_the_place_of_the_first(rig: Rig, combiner_here: Combiners) -> None:
    """A connection is (combiner, epoch, connection id); the newer one counts."""
    combiner = combiner_here()
    client, token = rig.client("a")
    first = rig.connect(combiner, token)
    second = rig.connect(combiner, token)
    assert first.said("goodbye").code == "replaced"
    assert first.over.wait(5)
    assert Client.objects.online().filter(pk=client.pk).exists() and not second.over.is_set()


def test_revoking_a_token_closes_its_stream_within_five_seconds(rig: Rig, combiner_here: Combiners) -> None:
    """Revoking a token closes its streams."""
    combiner = combiner_here()
    client, token = rig.client("a")
    other = rig.connect(combiner, rig.client("b")[1])
    wire = rig.connect(combiner, token)
    revoke_token(actor=rig.actor, token=Token.objects.get(client=client))
    goodbye = wire.said("goodbye", timeout=5)
    assert goodbye.code == "token_revoked" and not goodbye.retry
    assert wire.over.wait(5) and not other.over.is_set()
    rig.wait_until(lambda: not Client.objects.online().filter(pk=client.pk).exists())
    with pytest.raises(AssertionError, match="UNAUTHENTICATED"):
        rig.connect(combiner, token)


def test_a_deleted_client_loses_its_stream_within_five_seconds(rig: Rig, combiner_here: Combiners) -> None:
    """Revoking a token closes its streams; a client's token goes with it."""
    combiner = combiner_here()
    client, token = rig.client("a")
    wire = rig.connect(combiner, token)
    delete_client(actor=rig.actor, client=client)
    assert not wire.said("goodbye", timeout=5).retry
    assert wire.over.wait(5)


def test_a_stream_that_opens_as_its_client_is_deleted_ends_at_once(
    rig: Rig, combiner_here: Combiners
) -> None:
    """A token is trusted for two seconds without a query; the row decides."""
    combiner = combiner_here()
    client, token = rig.client("a")
    rig.connect(combiner, token).close()
    delete_client(actor=rig.actor, client=client)
    wire = rig.connect(combiner, token)
    assert wire.said("goodbye", timeout=5).code == "client_gone"
    assert wire.over.wait(5)
    rig.wait_until(lambda: not combiner.core.hub.connections)


def test_the_streams_of_a_combiner_that_was_replaced_end_and_it_says_why(
    rig: Rig, combiner_here: Combiners
) -> None:
    """A connection under an older epoch is none: the stream must end."""
    combiner = combiner_here()
    token = rig.client("a")[1]
    Combiner.objects.update(epoch=99)
    wire = rig.connect(combiner, token)
    goodbye = wire.said("goodbye", timeout=5)
    assert goodbye.code == "client_gone" and goodbye.retry
    assert not Client.objects.online().exists()


def test_the_net_is_due_however_often_somebody_is_woken(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """A slow poll exists behind every push as a safety net, also on a busy combiner."""
    combiner = combiner_here()
    client, token = rig.client("a")
    busy = rig.client("b")[0]
    wire = rig.connect(combiner, token)
    Token.objects.filter(client=client).delete()

    def told() -> bool:
        combiner.loop.call_soon_threadsafe(combiner.core.hub.wake, [busy.pk])
        return wire.over.is_set()

    rig.wait_until(told, timeout=8, what="the end of the stream")


def test_validation_and_the_next_training_name_the_same_model(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """Validation of a new model and the next training go out together, so that the model is downloaded once."""
    wire = rig.connect(combiner_here(), rig.client("a")[1])
    session = rig.session(rounds=2, validate=True)
    assert wire.upload(wire.next_task(), update(1)).status == ACCEPTED
    train, validate = wire.next_task("train"), wire.next_task("validate")
    assert train.model_id == validate.model_id and train.model_sha256 == validate.model_sha256
    assert wire.validate(validate, accuracy=0.5).status == "accepted"
    assert wire.validate(validate, accuracy=0.9).status == "accepted"  # asked twice: counts once
    assert wire.upload(train, update(2)).status == ACCEPTED
    wire.validate(wire.next_task("validate"), accuracy=0.6)
    rig.until_session(session, "finished")
    means = session.metrics.filter(source="validation_mean").order_by("round_number")
    assert list(means.values_list("value", flat=True)) == [0.5, 0.6]


def test_a_client_that_reports_a_failure_is_written_down_and_told(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """A client's failure ends its assignment with the reason; each report can be repeated safely."""
    combiner = combiner_here()
    a, b = (rig.connect(combiner, rig.client(name)[1]) for name in "ab")
    session = rig.session(min_clients=2, min_updates=1)
    task = a.next_task()
    assert a.fail(task, "out of memory").status == "failed"
    assert a.fail(task, "out of memory").status == "failed"
    assert (row(task).status, row(task).error) == ("failed", "out of memory")
    assert Event.objects.filter(kind="assignment.failed").count() == 1
    assert b.upload(b.next_task(), update(1)).status == ACCEPTED
    rig.until_session(session, "finished")


def test_telemetry_and_seen_times_are_written_in_batches(
    rig: Rig, combiner_here: Combiners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Presence costs no row write per heartbeat: `last_seen` and telemetry are flushed in batches."""
    written: list[int] = []

    def count(samples: Any) -> int:
        written.append(len(samples))
        return record_telemetry(samples)

    monkeypatch.setattr("federation.combiner.hub.record_telemetry", count)
    wire = rig.connect(combiner_here(), rig.client("a")[1])
    for n in range(500):
        wire.say(telemetry=proto.Telemetry(values={"cpu": float(n)}))
    rig.wait_until(lambda: sum(written) == 500)
    assert len(written) < 20


def test_an_assignment_waits_for_its_client_until_the_deadline(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere
) -> None:
    """A client that went away keeps its assignment until the deadline."""
    combiner = combiner_here()
    client, token = rig.client("a")
    wire = rig.connect(combiner, token)
    session = rig.session(max_failed_rounds=1)
    task = wire.next_task()
    wire.close()
    rig.wait_until(lambda: not Client.objects.online().filter(pk=client.pk).exists())
    assert row(task).status in ("assigned", "delivered") and Round.objects.get().status == "training"
    Round.objects.update(deadline=ago(1))
    session.__class__.objects.update(look_at=None)
    rig.until_session(session, "failed")
    assert row(task).status == "expired" and "a (" in session.reason


def test_protocol_that_is_too_old_is_told_to_update(rig: Rig, combiner_here: Combiners) -> None:
    """A protocol version is exchanged first."""
    with pytest.raises(AssertionError, match="Update the client"):
        rig.connect(combiner_here(), rig.client("a")[1], protocol=0)


def test_a_task_that_is_answered_while_rows_are_read_is_not_given_again(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of the rows begun before an acceptance may show the task as owed after it."""
    reading, answered = threading.Event(), threading.Event()
    real = assignments.owed
    held = threading.Event()

    def slow(client_ids: Any) -> Any:
        rows = real(client_ids)
        if held.is_set() and rows:
            held.clear()
            reading.set()
            answered.wait(20)
        return rows

    monkeypatch.setattr("federation.sessions.assignments.owed", slow)
    client, token = rig.client("a")
    wire = rig.connect(combiner_here(), token)
    session = rig.session(rounds=2)
    first = wire.next_task()
    held.set()
    with transaction.atomic():
        wake_combiners([str(client.pk)])
    assert reading.wait(20)
    assert wire.upload(first, update(1)).status == ACCEPTED
    answered.set()
    second = wire.next_task()
    assert (first.round, second.round) == (1, 2)
    assert wire.upload(second, update(2)).status == ACCEPTED
    rig.until_session(session, "finished")
