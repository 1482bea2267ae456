"""Scaleout's clients on the wire: what they are asked to do outside any round."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from federation.models.models import Validation
from federation.sessions.choices import CommandKind
from federation.sessions.commands import CommandSpec, start_command, stop_command
from federation.sessions.models import Command, Order
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.scaleout_wire import (
    Make,
    ScaleoutWire,
    refusal,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker")]


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
