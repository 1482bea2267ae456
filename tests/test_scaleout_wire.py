"""Scaleout's clients on the wire: they poll, train and validate in ordinary sessions."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from clients_app.models import Client
from federation.dialects.scaleout import scaleout_pb2 as wire
from federation.events.models import Event, Telemetry
from federation.models.models import Metric, Validation
from federation.sessions.choices import CommandKind
from federation.sessions.commands import CommandSpec, start_command, stop_command
from federation.sessions.models import Assignment, Command, Order
from federation.sessions.services import stop_session
from projects.tokens import tickets
from projects.tokens.models import Token
from projects.tokens.services import revoke_token
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.scaleout_wire import ScaleoutWire, container, enrolled, enrolment, npz

pytestmark = [pytest.mark.django_db(transaction=True)]

W, B = np.full((4, 3), 2.0, np.float32), np.full(3, -1.0, np.float32)
Make = Callable[..., ScaleoutWire]


@pytest.fixture
def combiner(rig: Rig) -> Iterator[CombinerHere]:
    here = CombinerHere(rig.folder / "combiner-here")
    yield here
    here.stop()


@pytest.fixture(autouse=True)
def worker(rig: Rig) -> Iterator[None]:
    here = WorkerHere()
    yield
    here.stop()


@pytest.fixture
def fleet(rig: Rig) -> Token:
    return enrolment(rig)


@pytest.fixture
def device(combiner: CombinerHere, fleet: Token) -> Iterator[Make]:
    made: list[ScaleoutWire] = []

    def make(name: str = "site", *, address: str = "") -> ScaleoutWire:
        client, tickets = enrolled(fleet, name)
        made.append(ScaleoutWire(address or combiner.address, client.pk, tickets.access))
        return made[-1]

    yield make
    for wire_client in made:
        wire_client.close()


def refusal(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code()


def assignment(task: wire.TaskRequest) -> Assignment:
    return Assignment.objects.get(pk=task.correlation_id)


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


def test_records_are_acknowledged_one_by_one_and_kept(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    records = [
        wire.TelemetryRecord(
            telemetry_id=f"t{n}", key="cpu_usage", payload=json.dumps({"value": n, "core": 1})
        )
        for n in range(300)
    ]
    records.append(wire.TelemetryRecord(telemetry_id="odd", key="x", payload="no json"))
    acks = one.call(one.combiner.StreamTelemetryRecord, iter(records))
    assert [key for ack in acks for key in ack.record_ids] == [record.telemetry_id for record in records]
    rig.wait_until(lambda: Telemetry.objects.filter(name="cpu_usage").count() == 300)
    assert Telemetry.objects.filter(name="cpu_usage.core").exists()
    attributes = [
        wire.AttributeRecord(attribute_id="a1", key="region", payload='{"value": "north"}'),
        wire.AttributeRecord(attribute_id="a2", key="beds", payload='{"value": 12}'),
    ]
    assert len(list(one.call(one.combiner.StreamAttributeRecord, iter(attributes)))) == 2
    assert Client.objects.get(pk=one.client_id).attributes == {"region": "north", "beds": 12}
    result = wire.InferenceResult(inference_result_id="i1", key="label", payload='{"label": 3}')
    assert [list(a.record_ids) for a in one.call(one.combiner.StreamInferenceResult, iter([result]))] == [
        ["i1"]
    ]
    assert Event.objects.get(kind="inference.result").data["payload"] == {"label": 3}


def test_a_hundred_idle_polls_and_heartbeats_cost_no_query(
    combiner: CombinerHere, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from federation.combiner import core as core_room
    from federation.dialects.scaleout import reports, servicer

    one = device("one")
    one.announce()
    one.poll()
    asked: list[str] = []

    def noticed(work: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(getattr(work, "__name__", "?"))
        raise AssertionError("a poll asked for rows")

    with monkeypatch.context() as watched:
        for room in (core_room, servicer, reports):
            watched.setattr(room, "in_rows", noticed)
        for _ in range(100):
            assert one.poll() == []
            one.call(one.combiner.SendHeartbeat, wire.Heartbeat(client_id=one.client_id))
    assert asked == []


def test_a_revoked_token_ends_the_polling(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    for row in Token.objects.filter(client_id=one.client_id):
        revoke_token(actor=rig.actor, token=row)

    def refused() -> bool:
        try:
            one.poll()
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            return True
        return False

    rig.wait_until(refused)


def test_an_access_ticket_that_runs_out_ends_the_polling_until_a_fresh_one_comes(
    rig: Rig, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "ACCESS_LIFE", dt.timedelta(seconds=2))
    one = device("one")
    one.poll()

    def refused() -> bool:
        try:
            return bool(one.poll())
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED

    rig.wait_until(refused)
    monkeypatch.undo()
    fresh, _ = tickets.access_ticket(Token.objects.get(client_id=one.client_id))
    back = ScaleoutWire("", one.client_id, fresh, channel=one.channel)
    assert back.poll() == []


def test_a_client_that_is_silent_is_offline_and_back_with_its_next_poll(
    rig: Rig, device: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from federation.dialects.scaleout import servicer

    monkeypatch.setattr(servicer, "SILENCE_S", (0.1, 0.1))
    one = device("one")
    one.poll()
    online = Client.objects.online().filter(pk=one.client_id)
    rig.wait_until(lambda: not online.exists())
    one.poll()
    assert online.exists()


def test_a_stream_of_tasks_works_too(rig: Rig, device: Make) -> None:
    one = device("one")
    stream = one.combiner.TaskStream(wire.ClientAvailableMessage(), metadata=one.metadata, timeout=20)
    rig.wait_until(lambda: Client.objects.online().filter(pk=one.client_id).exists())
    session = rig.session(min_clients=1)
    task = next(iter(stream))
    assert one.update(task, one.upload(container([W, B]))) == "accepted"
    rig.until_session(session, "finished")
    stream.cancel()


def test_a_model_that_no_task_of_the_client_names_is_not_given(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    model = rig.model()
    for wrong in (str(model.pk), str(uuid.uuid4())):
        assert refusal(lambda name=wrong: one.receive(name)) == grpc.StatusCode.NOT_FOUND  # type: ignore[misc]
    assert refusal(lambda: one.receive("no id")) == grpc.StatusCode.INVALID_ARGUMENT


# --- commands ---------------------------------------------------------------------------------------------------
def order(rig: Rig, kind: str, **more: Any) -> Command:
    return start_command(actor=rig.actor, project=rig.project, spec=CommandSpec(kind=kind, **more))


def of(command: Command) -> Order:
    return command.orders.get()


def test_a_custom_command_is_given_and_its_answer_kept_once(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    command = order(rig, CommandKind.CUSTOM, name="echo", parameters={"a": 1})
    task = one.next_task("Custom_echo")
    assert json.loads(task.data) == {"parameters": {"a": 1}}
    one.poll()
    rig.wait_until(lambda: of(command).status == "running")
    for answer in ({"echo": 1}, {"echo": 2}):
        one.done(task, echo=answer["echo"])
    row = of(command)
    assert (row.status, row.response) == ("completed", {"echo": 1})
    assert one.poll() == []


@pytest.mark.parametrize(("status", "kept"), [("FAILED", "failed"), ("INTERRUPTED", "interrupted")])
def test_a_command_that_did_not_work_out_keeps_the_reason(
    status: str, kept: str, rig: Rig, device: Make
) -> None:
    one = device("one")
    one.poll()
    command = order(rig, CommandKind.CUSTOM, name="echo")
    one.done(one.next_task("Custom_echo"), status, error="no such thing")
    assert (of(command).status, of(command).reason) == (kept, "no such thing")


def test_a_model_is_staged_and_predicted_with_outside_any_round(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    model = rig.model()
    for kind, type_ in (
        (CommandKind.STAGE, "Scaleout_StageModel"),
        (CommandKind.PREDICT, "Scaleout_Inference"),
    ):
        command = order(rig, kind, model_id=model.pk)
        task = one.next_task(type_)
        assert one.receive(task.model_id)[0]["model_id"] == str(model.pk)
        one.done(task, label=3)
        assert (of(command).status, of(command).response) == ("completed", {"label": 3})
    assert refusal(lambda: one.receive(str(model.pk))) == grpc.StatusCode.NOT_FOUND


def test_a_model_is_validated_outside_any_round(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    model = rig.model()
    command = order(rig, CommandKind.VALIDATE, model_id=model.pk)
    task = one.next_task("Scaleout_Validation")
    one.done(task)
    assert of(command).status in ("pending", "running"), "completed ends nothing; the validation does"
    for _ in range(2):
        assert one.validate(task, '{"accuracy": 0.5}') == "accepted"
    assert of(command).status == "completed"
    assert Validation.objects.get(model=model).data == {"accuracy": 0.5}


def test_stopping_a_command_interrupts_the_client(rig: Rig, device: Make) -> None:
    one = device("one")
    one.poll()
    command = order(rig, CommandKind.CUSTOM, name="echo")
    task = one.next_task("Custom_echo")
    one.poll()
    stop_command(actor=rig.actor, command=command)
    rig.wait_until(lambda: [each.status for each in one.poll()] == ["INTERRUPTED"])
    one.done(task, "INTERRUPTED", msg="Aborted by server")
    assert of(command).status == "interrupted"
    assert one.poll() == []


def test_a_command_goes_on_after_the_combiner_restarted(
    rig: Rig, device: Make, combiner: CombinerHere
) -> None:
    one = device("one")
    one.poll()
    command = order(rig, CommandKind.CUSTOM, name="echo")
    task = one.next_task("Custom_echo")
    one.poll()
    combiner.stop()
    again = CombinerHere(combiner.folder)
    try:
        back = ScaleoutWire(again.address, one.client_id, dict(one.metadata)["authorization"][7:])
        assert back.done(task, echo=1) == []
        assert of(command).response == {"echo": 1}
        back.close()
    finally:
        again.stop()
