"""Scaleout's clients on the wire: they poll, train and validate in ordinary sessions."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
import pytest

from clients_app.models import Client
from federation.dialects.scaleout import scaleout_pb2 as wire
from federation.events.models import Event
from federation.models.models import Metric, Validation
from federation.sessions.services import stop_session
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.scaleout_wire import (
    B,
    Make,
    ScaleoutWire,
    W,
    assignment,
    container,
    npz,
    refusal,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker")]


def test_two_clients_train_and_the_model_is_their_weighted_mean(rig: Rig, device: Make) -> None:
    one, two = device("one"), device("two")
    assert json.loads(one.announce().parameters)["success"] is True
    assert one.poll() == two.poll() == []
    session = rig.session(min_clients=2, validate=True, client_settings={"epochs": 2})
    task = one.next_task()
    assert json.loads(task.data) == {"client_settings": {"epochs": 2}}
    assert (task.round_id, task.session_id) == ("1", str(session.pk))
    metadata, arrays = one.receive(task.model_id)
    assert metadata["model_id"] == task.model_id
    assert [a.shape for a in arrays] == [(4, 3), (3,)]
    assert one.update(task, one.upload(container([W, B])), examples=3) == "accepted"
    assert one.done(task) == []
    # numpy makes float64 of everything that is not told otherwise: it is the model's dtype that counts
    assert two.train([np.full((4, 3), 6.0), np.full(3, 7.0)], examples=1) == "accepted"
    for client in (one, two):
        task = client.next_task("Scaleout_Validation")
        assert client.validate(task, '{"accuracy": 0.5, "loss": NaN}') == "accepted"
        client.done(task)
    rig.until_session(session, "finished")
    assert session.current_model is not None
    layers = list(rig.arrays_of(session.current_model).values())
    np.testing.assert_allclose(layers[0], np.full((4, 3), 3.0))
    np.testing.assert_allclose(layers[1], np.full(3, 1.0))
    assert Validation.objects.filter(model=session.current_model).count() == 2


def test_its_dialect_and_version_are_known(device: Make) -> None:
    one = device("one")
    one.announce()
    one.poll()
    row = Client.objects.online().get(pk=one.client_id)
    assert (row.dialect, row.version) == ("scaleout", "1.1.0")
    one.announce("Connect")
    one.announce("Disconnect")
    assert not Client.objects.online().filter(pk=one.client_id).exists()


def test_a_task_whose_answer_was_lost_comes_again_and_one_that_is_done_never(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    session = rig.session(min_clients=1)
    task = one.next_task()
    one.held.clear()
    assert [again.correlation_id for again in one.poll()] == [task.correlation_id]
    assert one.poll() == [], "it is named now"
    assert one.done(task) == [] and one.poll() == [], "completed ends nothing; the update does"
    assert one.update(task, one.upload(container([W, B]))) == "accepted"
    rig.until_session(session, "finished")


def test_a_report_is_the_receipt(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    rig.session(min_clients=1)
    task = one.next_task()
    assert assignment(task).status == "assigned"
    one.poll()
    rig.wait_until(lambda: assignment(task).status == "delivered")


def test_a_failed_training_ends_with_its_reason_and_twice_is_as_good_as_once(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    rig.session(min_clients=1, max_failed_rounds=1)
    task = one.next_task()
    for _ in range(2):
        one.done(task, "FAILED", error="no data here")
    row = assignment(task)
    assert (row.status, row.error) == ("failed", "no data here")
    assert Event.objects.filter(kind="assignment.failed").count() == 1


def test_stopping_a_session_interrupts_the_training_until_the_client_has_said_so(
    rig: Rig, device: Make
) -> None:
    one = device("one")
    one.poll()
    session = rig.session(min_clients=1)
    task = one.next_task()
    one.poll()
    stop_session(actor=rig.actor, session=session)

    def told() -> list[tuple[str, str]]:
        return [(each.correlation_id, each.status) for each in one.poll()]

    interrupted = [(task.correlation_id, "INTERRUPTED")]
    rig.wait_until(lambda: told() == interrupted)
    assert told() == interrupted, "an answer may be lost: it is told as long as it works on it"
    assert one.done(task, "INTERRUPTED", msg="Aborted by server") == []
    assert one.poll() == []
    assert assignment(task).status == "cancelled"


def test_an_abort_of_a_task_that_never_arrived_is_not_sent(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    session = rig.session(min_clients=1)
    one.next_task()
    one.held.clear()  # the answer with the task was lost
    stop_session(actor=rig.actor, session=session)
    rig.until_session(session, "stopped")
    rig.wait_until(lambda: one.poll([]) == [])
    assert one.poll([]) == []


def test_a_process_that_begins_anew_is_given_again_what_the_client_owes(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    rig.session(min_clients=1)
    task = one.next_task()
    one.poll()
    one.held.clear()
    one.announce("VersionCheck")
    assert one.next_task().correlation_id == task.correlation_id


def test_a_combiner_that_restarted_goes_on_with_what_the_client_holds(
    rig: Rig, device: Make, combiner: CombinerHere
) -> None:
    one = device("one")
    one.poll()
    session = rig.session(min_clients=1)
    task = one.next_task()
    one.poll()
    combiner.stop()
    again = CombinerHere(combiner.folder)
    try:
        back = ScaleoutWire(again.address, one.client_id, dict(one.metadata)["authorization"][7:])
        back.held = one.held
        assert back.poll() == [], "it is not asked to begin anew"
        metric = wire.ModelMetric(model_id=task.model_id, session_id=task.session_id, round_id=task.round_id)
        metric.metrics.add(key="loss", value=0.5)
        back.call(back.combiner.SendModelMetric, metric)
        assert Metric.objects.filter(source="logged", name="loss").exists()
        assert back.update(task, back.upload(container([W, B]))) == "accepted"
        rig.until_session(session, "finished")
        back.close()
    finally:
        again.stop()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "cut short"),
        (b"PK\x03\x04 no zip", "cut short"),
        (container([W]), "tensor"),
        (container([W, B], pickle=b"\x80\x04")[:-1], "cut short"),
        (container([np.full((4, 3), np.nan), B]), "finite"),
    ],
    ids=["empty", "no zip", "a layer too few", "cut", "not finite"],
)
def test_an_update_that_is_wrong_is_rejected_with_its_reason(
    body: bytes, says: str, rig: Rig, device: Make
) -> None:
    one = device("one")
    one.poll()
    rig.session(min_clients=1)
    task = one.next_task()
    update = one.upload(body)
    assert refusal(lambda: one.update(task, update)) == grpc.StatusCode.INVALID_ARGUMENT
    row = assignment(task)
    assert row.status == "rejected" and says in row.error.lower()


def test_a_bare_npz_is_an_update_too(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    session = rig.session(min_clients=1)
    task = one.next_task()
    assert one.update(task, one.upload(npz([W, B]))) == "accepted"
    rig.until_session(session, "finished")


@pytest.mark.parametrize("examples", [None, 0, -1, "many", True, 1e300])
def test_an_update_without_a_usable_number_of_examples_is_rejected(
    examples: Any, rig: Rig, device: Make
) -> None:
    one = device("one")
    one.poll()
    rig.session(min_clients=1)
    task = one.next_task()
    update = one.upload(container([W, B]))
    assert refusal(lambda: one.update(task, update, examples=examples)) == grpc.StatusCode.INVALID_ARGUMENT


def test_bytes_with_another_checksum_and_uploads_of_who_owes_nothing_are_refused(
    rig: Rig, device: Make
) -> None:
    one = device("one")
    one.poll()
    assert refusal(lambda: one.upload(container([W, B]))) == grpc.StatusCode.NOT_FOUND
    rig.session(min_clients=1)
    task = one.next_task()
    assert refusal(lambda: one.upload(b"x", checksum="0" * 64)) == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(lambda: one.update(task, "never-sent")) == grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: one.update(task, "")) == grpc.StatusCode.NOT_FOUND


def test_a_second_copy_is_accepted_again_and_counts_once_and_a_late_one_is_refused(
    rig: Rig, device: Make
) -> None:
    one, two = device("one"), device("two")
    one.poll(), two.poll()
    session = rig.session(min_clients=2, min_updates=1, goal=None)
    task, other = one.next_task(), two.next_task()
    body = container([W, B])
    assert one.update(task, one.upload(body)) == "accepted"
    assert one.update(task, "whatever") == "accepted"
    stop_session(actor=rig.actor, session=session)
    rig.until_session(session, "stopped")
    assert refusal(lambda: two.update(other, "late")) == grpc.StatusCode.OUT_OF_RANGE
    assert Event.objects.filter(kind="update.refused").exists()


def test_what_a_combiner_has_not_heard_yet_decides_nothing_about_an_update_without_its_file(
    rig: Rig, device: Make, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = device("one")
    one.poll()
    session = rig.session(min_clients=1)
    task = one.next_task()
    known = combiner.core.hub.grant(assignment(task).client_id, assignment(task).pk)
    assert known is not None and known.live
    monkeypatch.setattr(combiner.core.intake, "_known", lambda *_: known)
    stop_session(actor=rig.actor, session=session)
    rig.until_session(session, "stopped")
    assert refusal(lambda: one.update(task, "gone")) == grpc.StatusCode.OUT_OF_RANGE
