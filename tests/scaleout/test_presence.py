"""Scaleout's clients on the wire: records, idle polls, tokens that end, and who is online."""

from __future__ import annotations

import datetime as dt
import json
import queue
import uuid
from typing import Any

import grpc
import pytest

from clients_app.models import Client
from federation.dialects.scaleout import scaleout_pb2 as wire
from federation.events.models import Event, Telemetry
from projects.tokens import tickets
from projects.tokens.models import Token
from projects.tokens.services import revoke_token
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.scaleout_wire import (
    B,
    Make,
    ScaleoutWire,
    W,
    container,
    refusal,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker")]


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


def test_a_revoked_token_ends_a_stream_of_records_that_is_open(rig: Rig, device: Make) -> None:
    one = device("one")
    records: queue.Queue[wire.TelemetryRecord | None] = queue.Queue()
    acks = one.call(one.combiner.StreamTelemetryRecord, iter(records.get, None))

    def told() -> list[str]:
        records.put(wire.TelemetryRecord(telemetry_id="t", key="cpu", payload='{"value": 1}'))
        return list(next(acks).record_ids)

    assert told() == ["t"]
    for row in Token.objects.filter(client_id=one.client_id):
        revoke_token(actor=rig.actor, token=row)

    def refused() -> bool:
        try:
            return not told()
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAUTHENTICATED
            return True

    rig.wait_until(refused)
    records.put(None)


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
