"""FEDn's clients on the wire: they train in ordinary sessions, and nothing that is refused kills them."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from clients_app.models import Client
from federation.combiner import core
from federation.dialects.fedn import fedn_pb2 as wire
from federation.dialects.fedn import servicer
from federation.events.models import Event
from federation.models.models import ProjectDefaults, Validation
from federation.sessions.models import Assignment
from projects.models import Project
from projects.tokens.models import Token
from projects.tokens.services import revoke_token
from tests.fedn_wire import FednWire, enrolment, npz, registered
from tests.rig import Rig
from tests.rounds.here import CombinerHere

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker")]

W, B = np.full((4, 3), 2.0, np.float32), np.full(3, -1.0, np.float32)
Make = Callable[..., FednWire]


@pytest.fixture
def fleet(rig: Rig) -> Token:
    return enrolment(rig)[0]


@pytest.fixture
def device(combiner: CombinerHere, fleet: Token) -> Iterator[Make]:
    made: list[FednWire] = []

    def make(name: str = "site", *, client: Client | None = None, address: str = "") -> FednWire:
        client = client or registered(fleet, name)
        made.append(FednWire(address or combiner.address, client.pk))
        return made[-1]

    yield make
    for wire_client in made:
        wire_client.close()


def events(project: Project, kind: str) -> list[str]:
    return list(Event.objects.filter(project=project, kind=kind).values_list("message", flat=True))


def test_two_clients_train_and_the_model_is_their_weighted_mean(rig: Rig, device: Make) -> None:
    one, two = device("one").open(), device("two").open()
    session = rig.session(min_clients=2, validate=True)
    task = one.next_task()
    assert task.sender.role == wire.COMBINER
    assert json.loads(task.data)["round_id"] == "1"
    _, arrays = one.receive(task.model_id)
    assert [a.shape for a in arrays] == [(4, 3), (3,)]
    assert one.update(task, one.upload(npz([W, B])), examples=3) == "accepted"
    # numpy makes float64 of everything that is not told otherwise: it is the model's dtype that counts
    assert two.train([np.full((4, 3), 6.0), np.full(3, 7.0)], examples=1) == "accepted"
    validation = one.next_task(wire.MODEL_VALIDATION)
    report = wire.ModelValidation(
        model_id=validation.model_id, data='{"accuracy": 0.5}', correlation_id=validation.correlation_id
    )
    assert one.call(one.combiner.SendModelValidation, report).response == "accepted"
    two.call(two.combiner.SendModelValidation, report)  # another's: nothing changes
    other = two.next_task(wire.MODEL_VALIDATION)
    report.correlation_id = other.correlation_id
    two.call(two.combiner.SendModelValidation, report)
    rig.until_session(session, "finished")
    final = rig.arrays_of(session.current_model)
    assert np.allclose(final["w"], 3.0) and np.allclose(final["b"], 1.0)
    assert final["w"].dtype == np.float32
    assert Validation.objects.filter(session=session).count() == 2
    assert set(Client.objects.values_list("dialect", flat=True)) == {"fedn"}


def test_a_second_copy_of_an_update_gets_the_same_answer_and_counts_once(rig: Rig, device: Make) -> None:
    client = device().open()
    session = rig.session()
    task = client.next_task()
    body = npz([W, B])
    first = client.upload(body)
    assert client.update(task, first) == "accepted"
    assert client.update(task, first) == "accepted"
    rig.until_session(session, "finished")
    assert client.update(task, client.upload(body)) in ("accepted",)
    assert Assignment.objects.filter(status="accepted").count() == 1


def test_what_does_not_fit_is_rejected_with_ok_and_an_event(rig: Rig, device: Make) -> None:
    client = device().open()
    session = rig.session(max_failed_rounds=1)
    said = client.train([np.zeros((5, 3), np.float32), B])
    assert said.startswith("rejected: ") and "shape" in said
    rig.until_session(session, "failed")
    assert any("shape" in text for text in events(rig.project, "assignment.rejected"))


@pytest.mark.parametrize("examples", [0, -1, "many", float("nan"), 1e13])
def test_a_senseless_number_of_examples_is_rejected(rig: Rig, device: Make, examples: Any) -> None:
    client = device().open()
    session = rig.session(max_failed_rounds=1)
    assert "num_examples" in client.train([W, B], examples=examples)
    rig.until_session(session, "failed")


def test_an_update_without_a_number_of_examples_counts_as_one(rig: Rig, device: Make) -> None:
    client = device().open()
    session = rig.session()
    assert client.train([W, B], examples=None) == "accepted"
    rig.until_session(session, "finished")
    assert Assignment.objects.get(status="accepted").num_examples == 1.0


def test_a_late_update_is_refused_with_ok_and_an_event(rig: Rig, device: Make) -> None:
    client = device().open()
    session = rig.session(round_timeout_s=1, max_failed_rounds=1)
    task = client.next_task()
    name = client.upload(npz([W, B]))
    rig.until_session(session, "failed")
    assert client.update(task, name).startswith("refused: ")
    assert len(events(rig.project, "update.refused")) == 1


def test_the_first_status_is_the_receipt(rig: Rig, device: Make, wait_until: Any) -> None:
    client = device().open()
    rig.session()
    task = client.next_task()
    said = {"correlationId": task.correlation_id, "modelId": task.model_id}
    status = wire.Status(
        sender=client.sender, status="Received request from combiner.", log_level=wire.AUDIT,
        type=wire.MODEL_UPDATE, data=json.dumps(said),
    )  # fmt: skip
    client.call(client.connector.SendStatus, status)
    wait_until(lambda: Assignment.objects.get().status == "delivered")
    event = Event.objects.get(kind="client.status")
    assert (event.data["log_level"], event.data["type"]) == ("AUDIT", "MODEL_UPDATE")


def test_a_combiner_that_restarts_takes_the_client_back_with_what_it_had_uploaded(
    rig: Rig, fleet: Token
) -> None:
    combiner = rig.combiner(port=0)
    client = FednWire(combiner.address, registered(fleet, "site").pk).open()
    session = rig.session()
    client.next_task()
    name = client.upload(npz([W, B]))
    combiner.kill()
    assert client.over.wait(20)
    client.close()
    again = rig.combiner(port=int(combiner.address.rpartition(":")[2]))
    back = FednWire(again.address, client.client_id).open()
    assert back.update(back.next_task(), name) == "accepted"
    rig.until_session(session, "finished")
    back.close()


def test_only_the_models_of_open_assignments_can_be_downloaded(rig: Rig, device: Make) -> None:
    mine, other = device("mine").open(), device("other")
    session = rig.session()
    task = mine.next_task()
    for model_id in (task.model_id, str(uuid.uuid4()), "nonsense", ""):
        parts, _ = other.receive(model_id)
        assert [part.status for part in parts] == [wire.FAILED]
    parts, _ = mine.receive(task.model_id)
    assert parts[-1].status == wire.OK
    mine.update(task, mine.upload(npz([W, B])))
    rig.until_session(session, "finished")
    parts, _ = mine.receive(task.model_id)
    assert parts[-1].status == wire.FAILED


def test_bytes_of_a_client_that_owes_nothing_go_nowhere(
    rig: Rig, combiner: CombinerHere, device: Make
) -> None:
    client = device()
    client.upload(npz([W, B]))
    assert list((rig.folder / "combiner-here" / "staged").iterdir()) == []


def test_a_client_keeps_at_most_two_uploads_that_nobody_named(
    rig: Rig, combiner: CombinerHere, device: Make
) -> None:
    client = device().open()
    rig.session()
    task = client.next_task()
    names = [client.upload(npz([W + i, B])) for i in range(4)]
    assert len(list((rig.folder / "combiner-here" / "staged").iterdir())) == 2
    assert client.update(task, names[3]) == "accepted"


def test_an_upload_that_is_too_large_is_taken_into_nothing(rig: Rig, device: Make) -> None:
    client = device().open()
    session = rig.session(max_failed_rounds=1)
    task = client.next_task()
    out = io.BytesIO()
    np.savez(out, **{"0": np.zeros(3_000_000, np.float32)})
    said = client.update(task, client.upload(out.getvalue()))
    assert said.startswith("rejected: ")
    assert any("at most" in text for text in events(rig.project, "update.refused"))
    rig.until_session(session, "failed")


def test_metrics_attributes_and_telemetry_are_kept(rig: Rig, device: Make, wait_until: Any) -> None:
    client = device().open()
    rig.session()
    task = client.next_task()
    metric = wire.ModelMetric(model_id=task.model_id, metrics=[wire.MetricElem(key="loss", value=0.5)])
    client.call(client.combiner.SendModelMetric, metric)
    assert [m.name for m in rig.project.metrics.all()] == ["loss"]
    for key, value in (("region", "eu"), ("gpu", "1"), ("region", "us")):
        said = wire.AttributeMessage(attributes=[wire.AttributeElem(key=key, value=value)])
        client.call(client.combiner.SendAttributeMessage, said)
    assert Client.objects.get().attributes == {"region": "us", "gpu": "1"}
    sample = wire.TelemetryMessage(telemetries=[wire.TelemetryElem(key="cpu_usage", value=12.5)])
    client.call(client.combiner.SendTelemetryMessage, sample)
    wait_until(lambda: rig.project.telemetry.filter(name="cpu_usage").exists())


def test_a_client_id_that_nobody_registered_is_unwelcome(
    rig: Rig, combiner: CombinerHere, device: Make
) -> None:
    page_made, _ = rig.client("made on the page")
    for client_id in (str(uuid.uuid4()), str(page_made.pk), "nonsense", ""):
        stranger = FednWire(combiner.address, client_id)
        with pytest.raises(grpc.RpcError) as refused:
            stranger.call(stranger.connector.SendHeartbeat, wire.Heartbeat())
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        stranger.close()


def test_revoking_the_token_of_a_registration_ends_all_its_streams(
    rig: Rig, fleet: Token, device: Make
) -> None:
    clients = [device(f"site {i}").open() for i in range(3)]
    for client in clients:
        client.call(client.connector.SendHeartbeat, wire.Heartbeat())
    revoke_token(actor=rig.actor, token=fleet)
    for client in clients:
        assert client.over.wait(10), "the stream stayed open"
        assert client.error is not None and client.error.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError):
            client.call(client.connector.SendHeartbeat, wire.Heartbeat())


def test_a_hundred_heartbeats_cost_no_query(
    combiner: CombinerHere, device: Make, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = device().open()
    wait_until(lambda: uuid.UUID(client.client_id) in combiner.core.hub.connections)
    looked: list[Any] = []
    asked = core.in_rows

    async def counted(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        looked.append(work)
        return await asked(work, *args, **more)

    for room in (core, servicer):
        monkeypatch.setattr(room, "in_rows", counted)
    for _ in range(100):
        client.call(client.connector.SendHeartbeat, wire.Heartbeat())
        client.call(
            client.combiner.SendTelemetryMessage,
            wire.TelemetryMessage(telemetries=[wire.TelemetryElem(key="cpu_usage", value=1.0)]),
        )
    assert [work for work in looked if work.__name__ != "renew_lease"] == []


def test_a_model_is_encoded_once_for_all_who_download_it(
    rig: Rig, combiner: CombinerHere, device: Make
) -> None:
    clients = [device(f"site {i}").open() for i in range(3)]
    rig.session(min_clients=3)
    bodies = []
    for client in clients:
        parts, _ = client.receive(client.next_task().model_id)
        bodies.append(b"".join(part.data for part in parts))
    assert len(set(bodies)) == 1
    kept = list((rig.folder / "combiner-here" / "models").iterdir())
    assert [path.suffix for path in kept] == [".npz"]
    with zipfile.ZipFile(
        kept[0]
    ) as archive:  # plain: compressing float weights costs fifty times what it saves
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize(("helper", "dtype"), [("binaryhelper", "<f8"), ("androidhelper", "<f4")])
def test_helpers_of_bare_floats_train_too(rig: Rig, device: Make, helper: str, dtype: str) -> None:
    ProjectDefaults.objects.create(project=rig.project, helper=helper)
    client = device().open()
    seed = rig.model({"0": np.arange(5, dtype=np.float32 if dtype == "<f4" else np.float64)})
    session = rig.session(seed=seed)
    task = client.next_task()
    parts = client.call(client.models.Download, wire.ModelRequest(id=task.model_id))
    got = np.frombuffer(b"".join(part.data for part in parts), dtype)
    assert np.array_equal(got, np.arange(5))
    assert client.update(task, client.upload((got + 1).tobytes())) == "accepted"
    rig.until_session(session, "finished")
    assert np.array_equal(rig.arrays_of(session.current_model)["0"], np.arange(1, 6))
