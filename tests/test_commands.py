"""Commands: what clients are asked to do outside any round ends once, and whoever cannot do it is not asked."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.utils import timezone

from clients_app.models import Client
from federation.dialects.fedn import fedn_pb2 as wire
from federation.dialects.scaleout.polling import task_of
from federation.events.models import Event
from federation.models.models import Metric, Validation
from federation.sessions import commands
from federation.sessions.choices import CommandKind, OrderStatus
from federation.sessions.commands import CommandSpec, start_command, stop_command
from federation.sessions.models import Command, Order
from foundation.errors import StudioError
from projects.actors import Actor
from projects.models import Project, User
from tests.fedn_wire import FednWire, enrolment, registered
from tests.rig import Rig
from tests.rounds.here import CombinerHere

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def fedn(rig: Rig, combiner: CombinerHere) -> Iterator[FednWire]:
    client = FednWire(combiner.address, registered(enrolment(rig)[0], "site").pk).open()
    rig.wait_until(lambda: Client.objects.online().exists())
    yield client
    client.close()


def start(rig: Rig, kind: str, **more: Any) -> Command:
    return start_command(actor=rig.actor, project=rig.project, spec=CommandSpec(kind=kind, **more))


def test_a_client_predicts_with_a_model_and_its_answer_is_kept_once(rig: Rig, fedn: FednWire) -> None:
    model = rig.model()
    command = start(rig, CommandKind.PREDICT, model_id=model.pk)
    task = fedn.next_task(wire.MODEL_PREDICTION)
    assert task.session_id == str(command.pk)
    parts, arrays = fedn.receive(task.model_id)
    assert parts[-1].status == wire.OK and len(arrays) == 2
    said = wire.ModelPrediction(
        data='{"label": 7}', correlation_id=task.correlation_id, prediction_id=task.session_id
    )
    assert fedn.call(fedn.combiner.SendModelPrediction, said).response == "accepted"
    said.data = '{"label": 8}'
    assert fedn.call(fedn.combiner.SendModelPrediction, said).response.startswith("refused")
    order = Order.objects.get()
    assert (order.status, order.response) == ("completed", {"label": 7})
    assert fedn.receive(task.model_id)[0][-1].status == wire.FAILED  # the task is over


def test_a_prediction_that_is_no_json_fails_the_order_and_not_the_client(rig: Rig, fedn: FednWire) -> None:
    start(rig, CommandKind.PREDICT, model_id=rig.model().pk)
    task = fedn.next_task(wire.MODEL_PREDICTION)
    said = wire.ModelPrediction(data="seven", correlation_id=task.correlation_id)
    fedn.call(fedn.combiner.SendModelPrediction, said)
    order = Order.objects.get()
    assert order.status == "failed" and "JSON" in order.reason


def test_a_model_is_measured_outside_any_session(rig: Rig, fedn: FednWire) -> None:
    model = rig.model()
    start(rig, CommandKind.VALIDATE, model_id=model.pk)
    task = fedn.next_task(wire.MODEL_VALIDATION)
    report = wire.ModelValidation(data=json.dumps({"accuracy": 0.5}), correlation_id=task.correlation_id)
    for _ in range(2):
        assert fedn.call(fedn.combiner.SendModelValidation, report).response == "accepted"
    assert Validation.objects.get().model == model
    assert Metric.objects.filter(model=model, name="accuracy", source="validation").count() == 1


def test_another_clients_word_ends_no_order(rig: Rig, combiner: CombinerHere, fedn: FednWire) -> None:
    start(rig, CommandKind.PREDICT, model_id=rig.model().pk)
    task = fedn.next_task(wire.MODEL_PREDICTION)
    other = FednWire(combiner.address, registered(enrolment(rig, name="two")[0], "other").pk)
    said = wire.ModelPrediction(data="{}", correlation_id=task.correlation_id)
    assert other.call(other.combiner.SendModelPrediction, said).response.startswith("refused")
    assert Order.objects.get().status == "pending"
    other.close()


def test_clients_that_cannot_are_not_asked(rig: Rig, combiner: CombinerHere, fedn: FednWire) -> None:
    """A native client has no words for commands, a FEDn client none for custom ones."""
    native, token = rig.client("native")
    rig.connect(combiner, token)
    rig.wait_until(lambda: Client.objects.online().count() == 2)
    command = start(rig, CommandKind.PREDICT, model_id=rig.model().pk)
    assert [order.client.name for order in command.orders.all()] == ["site"]
    with pytest.raises(StudioError) as none:
        start(rig, CommandKind.CUSTOM, name="ping")
    assert none.value.code == "no_clients"
    with pytest.raises(StudioError) as named:
        start(rig, CommandKind.PREDICT, model_id=rig.model().pk, client_ids=[native.pk])
    assert str(native.pk) in named.value.message
    assert Command.objects.count() == 1


@pytest.fixture
def edge(project: Project, rig: Rig, combiner: CombinerHere) -> Client:
    """A client of a dialect that knows custom commands, online as far as the rows say."""
    return Client.objects.create(
        project=project, name="edge", dialect="scaleout", connection_id="c", connection_epoch=1,
        combiner_id=combiner.core.lease.combiner_id,
    )  # fmt: skip


def test_a_command_can_be_stopped_and_its_late_answer_changes_nothing(rig: Rig, edge: Client) -> None:
    command = start(rig, CommandKind.CUSTOM, name="ping", parameters={"x": 1})
    order = command.orders.get()
    commands.note_started([order.pk])
    assert stop_command(actor=rig.actor, command=command, skip=True) == 0  # it has begun
    assert stop_command(actor=rig.actor, command=command) == 1
    assert not commands.end_order(
        client_id=edge.pk, order_id=order.pk, status=OrderStatus.COMPLETED, response={}
    )
    order.refresh_from_db()
    assert order.status == "interrupted"
    assert commands.ordered([edge.pk]) == []


def test_clients_that_can_be_told_so_start_again_with_a_new_package(rig: Rig, edge: Client) -> None:
    command = commands.restart_clients(actor=rig.actor, project=rig.project, abort_ongoing=True)
    assert command is not None and command.parameters == {"abort_ongoing_tasks": True}
    (order,) = commands.ordered([edge.pk])
    assert task_of(order).type == "Scaleout_RestartClient"
    Client.objects.filter(pk=edge.pk).update(connection_id="")
    assert commands.restart_clients(actor=rig.actor, project=rig.project, abort_ongoing=True) is None


def test_a_command_past_its_time_ends(rig: Rig, edge: Client) -> None:
    command = start(rig, CommandKind.CUSTOM, name="ping")
    Command.objects.update(deadline=timezone.now() - dt.timedelta(seconds=1))
    assert commands.ordered([edge.pk]) == []
    assert commands.time_out() == 1
    assert command.orders.get().status == "timeout"
    assert commands.time_out() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "custom", "name": ""},
        {"kind": "custom", "name": "no spaces"},
        {"kind": "custom", "name": "../../x"},
        {"kind": "custom", "name": "ping", "timeout_s": 0},
        {"kind": "custom", "name": "ping", "timeout_s": float("inf")},
        {"kind": "custom", "name": "ping", "parameters": {"x": "y" * 70_000}},
        {"kind": "predict"},
        {"kind": "predict", "model_id": uuid.UUID(int=5)},
    ],
)
def test_a_senseless_command_is_refused_and_changes_nothing(
    rig: Rig, edge: Client, wrong: dict[str, Any]
) -> None:
    with pytest.raises(StudioError):
        start(rig, **wrong)
    assert not Command.objects.exists() and not Event.objects.filter(kind="command.started").exists()


def test_who_may_not_run_may_not_order(rig: Rig, edge: Client, viewer: User, stranger: User) -> None:
    spec = CommandSpec(kind=CommandKind.CUSTOM, name="ping")
    for person, status in ((viewer, 403), (stranger, 404)):
        with pytest.raises(StudioError) as refused:
            start_command(actor=Actor.of_user(person), project=rig.project, spec=spec)
        assert refused.value.status == status
