"""Compressed updates through a real combiner: read, counted, resumed and refused like any other."""

from __future__ import annotations

import hashlib
import resource
import uuid
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from studio_sdk import compressed

from federation.aggregation.codecs import load_arrays, save_arrays
from federation.dialects.native import studio_v1_pb2 as proto
from federation.sessions.config.session import COMPRESSIONS
from federation.sessions.models import Assignment
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.wire_client import ACCEPTED, CHUNK, REFUSED, REJECTED, WireClient

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker")]

FORMS = sorted(set(COMPRESSIONS) - {"none"})
SEED: dict[str, Any] = {
    "w": np.linspace(-1, 1, 4000, dtype=np.float32).reshape(40, 100),
    "b": np.zeros(100, np.float32),
    "steps": np.array(7, np.int64),
}


def row(task: proto.Task) -> Assignment:
    return Assignment.objects.get(pk=task.assignment_id)


def moved(by: float) -> dict[str, np.ndarray]:
    return {"w": SEED["w"] + np.float32(by), "b": SEED["b"] - np.float32(by), "steps": np.array(9, np.int64)}


def compress(wire: WireClient, task: proto.Task, arrays: dict[str, Any], form: str) -> bytes:
    """As the SDK does, against the model that the task names."""
    folder = wire.folder / uuid.uuid4().hex
    folder.mkdir()
    (folder / "model").write_bytes(wire.download(task))
    save_arrays(arrays, folder / "update")
    change = compressed.Change(folder / "model", folder / "update")
    compressed.compress(change, form, folder / "sent", folder / "owed")
    return (folder / "sent").read_bytes()


def spooled(combiner: CombinerHere, suffix: str) -> list[Path]:
    return list((combiner.folder / "spool").glob(f"*.{suffix}"))


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_a_task_says_how_its_session_would_like_the_update(
    rig: Rig, combiner: CombinerHere, compression: str
) -> None:
    wire = rig.connect(combiner, rig.client("a")[1])
    rig.session(seed=rig.model(SEED), min_clients=1, compression=compression)
    task = wire.next_task()
    assert task.compression == ("" if compression == "none" else compression)


@pytest.mark.parametrize("form", FORMS)
def test_a_fleet_of_old_and_new_clients_makes_one_model(rig: Rig, combiner: CombinerHere, form: str) -> None:
    """An old client steps over the wish and sends its update as it is; both count, by their examples."""
    old = rig.connect(combiner, rig.client("old")[1])
    new = rig.connect(combiner, rig.client("new")[1])
    session = rig.session(seed=rig.model(SEED), min_clients=2, compression=form)
    task_old, task_new = old.next_task(), new.next_task()
    body = compress(new, task_new, moved(0.5), form)
    assert old.upload(task_old, moved(2.0), num_examples=1).status == ACCEPTED
    assert new.upload(task_new, body, num_examples=3, form=form).status == ACCEPTED
    rig.until_session(session, "finished")
    model = rig.arrays_of(session.current_model)
    np.testing.assert_allclose(model["w"], SEED["w"] + (2.0 + 3 * 0.5) / 4, rtol=0, atol=0.01)
    np.testing.assert_allclose(model["b"], SEED["b"] - (2.0 + 3 * 0.5) / 4, rtol=0, atol=0.01)
    assert model["steps"] == 9

    plain, small = row(task_old), row(task_new)
    assert (plain.encoding, plain.sent_bytes) == ("", plain.size_bytes)
    assert (small.encoding, small.sent_bytes) == (form, len(body))
    assert small.size_bytes == plain.size_bytes, "the spool holds plain updates"
    assert len(body) < (0.3 if form == "int8" else 0.55) * (plain.size_bytes or 0)


def test_the_spool_holds_the_plain_update_with_its_own_sha256_and_nothing_else(
    rig: Rig, combiner: CombinerHere
) -> None:
    wire, _other = (rig.connect(combiner, rig.client(name)[1]) for name in "ab")
    rig.session(seed=rig.model(SEED), min_clients=2)  # the other one keeps the round open
    task = wire.next_task()
    body = compress(wire, task, moved(1.0), "int8")
    assert wire.upload(task, body, form="int8").status == ACCEPTED
    (kept,) = spooled(combiner, "update")
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == row(task).sha256
    assert not spooled(combiner, "part")
    found = load_arrays(kept)
    np.testing.assert_allclose(found["w"], moved(1.0)["w"], atol=0.01)
    assert wire.upload(task, body, form="int8").status == ACCEPTED, "a second copy gets the same answer"
    assert len(spooled(combiner, "update")) == 1


def test_a_compressed_upload_goes_on_where_it_broke_off(rig: Rig, combiner: CombinerHere) -> None:
    seed = {"w": np.zeros((1000, 1000), np.float32)}
    wire = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(seed=rig.model(seed), min_clients=1, compression="int8")
    task = wire.next_task()
    update = {"w": np.linspace(0, 1, 1_000_000, dtype=np.float32).reshape(1000, 1000)}
    body = compress(wire, task, update, "int8")
    with pytest.raises(Exception, match="before its tail"):
        wire.upload(task, body, upload_id="same", form="int8", stop_after=4 * CHUNK)
    assert wire.upload(task, body, upload_id="same", form="int8").status == ACCEPTED
    assert wire.resumed_at == 4 * CHUNK
    rig.until_session(session, "finished")
    np.testing.assert_allclose(rig.arrays_of(session.current_model)["w"], update["w"], atol=0.005)


def test_the_sha256_is_that_of_the_bytes_that_travel(rig: Rig, combiner: CombinerHere) -> None:
    wire = rig.connect(combiner, rig.client("a")[1])
    rig.session(seed=rig.model(SEED), min_clients=1)
    task = wire.next_task()
    body = compress(wire, task, moved(1.0), "int8")
    wrong = hashlib.sha256(wire.encode(moved(1.0))).hexdigest()
    with pytest.raises(Exception, match="SHA-256"):
        wire.upload(task, body, form="int8", sha256=wrong)
    assert wire.upload(task, body, form="int8", sha256=wrong).status == REJECTED
    assert not spooled(combiner, "part") and not spooled(combiner, "update")


@pytest.mark.parametrize(
    ("form", "body", "said"),
    [
        ("int4", "int8", "a form that is not known here; float16, bfloat16, int8 are"),
        ("int8", "plain", "compressed to int8, has at most"),
        ("float16", "int8", "has dtype I8; it should be F16"),
        ("", "int8", "has dtype I8; it should be F32"),
    ],
)
def test_a_form_that_is_not_what_it_says_is_rejected_with_the_reason(
    rig: Rig, combiner: CombinerHere, form: str, body: str, said: str
) -> None:
    seed = {"w": np.zeros((1000, 1000), np.float32)}
    update = {"w": np.ones((1000, 1000), np.float32)}
    wire = rig.connect(combiner, rig.client("a")[1])
    rig.session(seed=rig.model(seed), min_clients=1)
    task = wire.next_task()
    sent = wire.encode(update) if body == "plain" else compress(wire, task, update, body)
    receipt = wire.upload(task, sent, form=form)
    assert receipt.status == REJECTED and said in receipt.reason, receipt.reason
    assert row(task).status == "rejected"
    assert not spooled(combiner, "part") and not spooled(combiner, "update")


def test_a_change_that_is_not_finite_is_rejected_by_the_tensors_name(
    rig: Rig, combiner: CombinerHere
) -> None:
    wire = rig.connect(combiner, rig.client("a")[1])
    rig.session(seed=rig.model(SEED), min_clients=1)
    task = wire.next_task()
    body = bytearray(compress(wire, task, moved(1.0), "float16"))
    body[-2:] = np.array([np.inf], "<f2").tobytes()
    receipt = wire.upload(task, bytes(body), form="float16")
    assert receipt.status == REJECTED and "'b' holds NaN or infinity" in receipt.reason
    assert not spooled(combiner, "part") and not spooled(combiner, "update")


def test_a_late_compressed_update_is_refused_and_leaves_nothing(rig: Rig, combiner: CombinerHere) -> None:
    a, b = (rig.connect(combiner, rig.client(name)[1]) for name in "ab")
    session = rig.session(seed=rig.model(SEED), min_clients=2, min_updates=1, goal=1, compression="int8")
    task_a, task_b = a.next_task(), b.next_task()
    body = compress(b, task_b, moved(1.0), "int8")
    assert a.upload(task_a, moved(2.0)).status == ACCEPTED
    rig.until_session(session, "finished")
    assert b.upload(task_b, body, form="int8").status == REFUSED
    np.testing.assert_allclose(rig.arrays_of(session.current_model)["w"], moved(2.0)["w"])


def test_the_distance_from_the_model_is_that_of_what_was_read(rig: Rig, combiner: CombinerHere) -> None:
    """Privacy, clipping and robust aggregators see the plain update."""
    wire = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(
        seed=rig.model(SEED), min_clients=1, compression="int8", aggregator="normclip",
        aggregator_kwargs={"max_norm": 1.0},
    )  # fmt: skip
    task = wire.next_task()
    body = compress(wire, task, moved(1.0), "int8")
    assert wire.upload(task, body, form="int8").status == ACCEPTED
    rig.until_session(session, "finished")
    assert row(task).delta_norm == pytest.approx(np.sqrt(4100), rel=0.01)
    change = rig.arrays_of(session.current_model)["w"] - SEED["w"]
    assert np.sqrt(4000 / 4100) == pytest.approx(np.sqrt((change**2).sum()), rel=0.01)


def test_a_disk_too_full_for_the_plain_update_keeps_what_came_for_another_try(rig: Rig) -> None:
    """What travelled fits, what it stands for does not: try again later, and then nothing travels twice."""
    seed = {"w": np.zeros(8 << 20, np.float32)}
    combiner = rig.combiner()
    wire = rig.connect(combiner, rig.client("a")[1])
    session = rig.session(seed=rig.model(seed), min_clients=1, compression="int8")
    task = wire.next_task()
    body = compress(wire, task, {"w": np.ones(8 << 20, np.float32)}, "int8")
    limit, free = 16 << 20, resource.RLIM_INFINITY
    resource.prlimit(combiner.process.pid, resource.RLIMIT_FSIZE, (limit, free))
    with pytest.raises(grpc.RpcError) as refused:
        wire.upload(task, body, upload_id="mine", form="int8")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "disk is full; try again later" in str(refused.value.details())
    assert row(task).status in ("assigned", "delivered")
    spool = rig.folder / "combiner-c1" / "spool"
    assert [path.stat().st_size for path in spool.glob("*.part")] == [len(body)]

    resource.prlimit(combiner.process.pid, resource.RLIMIT_FSIZE, (free, free))
    assert wire.upload(task, body, upload_id="mine", form="int8").status == ACCEPTED
    assert wire.resumed_at == len(body)
    rig.until_session(session, "finished")
    assert float(rig.arrays_of(session.current_model)["w"].min()) == 1.0
