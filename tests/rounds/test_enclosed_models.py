"""A small model comes inside the task: a client that can take it so need not ask for it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from studio_sdk import studio_v1_pb2 as pb
from studio_sdk.client.links import Links
from studio_sdk.client.store import Store
from studio_sdk.client.tasks import held_task
from studio_sdk.client.transfer import Transfers

from federation.dialects.native import enclosed
from federation.models.models import Model
from foundation import storage
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.rounds.proxy import Proxy
from tests.wire_client import ACCEPTED, WireClient

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_here")]

SMALL, LARGE = 200_000, 300_000  # elements of float32: below and above a mebibyte


def stored(model: Model) -> bytes:
    with storage.local(model.key) as path:
        return path.read_bytes()


def test_who_takes_it_so_gets_a_small_model_in_the_task_and_others_ask_for_it(
    rig: Rig, combiner: CombinerHere
) -> None:
    takes = rig.connect(combiner, rig.client("new")[1], takes_models=True)
    asks = rig.connect(combiner, rig.client("old")[1])
    seed = rig.model({"w": np.arange(SMALL, dtype=np.float32)})
    session = rig.session(min_clients=2, rounds=2, seed=seed)
    for _ in range(2):
        one, other = takes.next_task(), asks.next_task()
        assert not other.model
        model = asks.download(other)
        assert one.model == model == stored(Model.objects.get(pk=one.model_id))
        assert hashlib.sha256(one.model).hexdigest() == one.model_sha256
        assert takes.upload(one, one.model).status == asks.upload(other, model).status == ACCEPTED
    rig.until_session(session, "finished")
    counted = combiner.core.traffic.sent_bytes
    assert counted >= 4 * len(model), "what went inside tasks is counted too"


def test_a_large_model_is_asked_for(rig: Rig, combiner: CombinerHere) -> None:
    wire = rig.connect(combiner, rig.client("a")[1], takes_models=True)
    rig.session(min_clients=1, seed=rig.model({"w": np.zeros(LARGE, np.float32)}))
    task = wire.next_task()
    assert not task.model
    assert len(wire.download(task)) == task.model_size > enclosed.MOST_BYTES


def test_a_model_that_cannot_be_read_now_does_not_keep_the_task_back(
    rig: Rig, combiner: CombinerHere
) -> None:
    seed = rig.model({"w": np.zeros(SMALL, np.float32)})
    storage.delete(seed.key)
    wire = rig.connect(combiner, rig.client("a")[1], takes_models=True)
    rig.session(min_clients=1, seed=seed)
    task = wire.next_task()
    assert not task.model
    with pytest.raises(grpc.RpcError) as refused:
        wire.download(task)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_models_that_wait_for_clients_that_stand_still_are_counted_and_beyond_them_clients_ask(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message waits in the combiner for each client that takes nothing off its connection."""
    seed = rig.model({"w": np.zeros(SMALL, np.float32)})
    monkeypatch.setattr(enclosed, "WAITING_BYTES", 3 * seed.size_bytes)
    noted, begin = [], enclosed.Enclosed.begin

    def begun(self: enclosed.Enclosed, *said: Any) -> bool:
        noted.append(self)
        return begin(self, *said)

    monkeypatch.setattr(enclosed.Enclosed, "begin", begun)
    proxy = Proxy(combiner.address)
    try:
        for name in "abc":
            folder = rig.folder / name
            folder.mkdir()
            asleep = WireClient(proxy.address, rig.client(name)[1], folder, takes_models=True)
            rig.wires.append(asleep)
            asleep.said("welcome")
        proxy.hold()
        rig.session(min_clients=3, seed=seed)
        rig.wait_until(lambda: len(noted) == 3, what="three models to be on their way")
        row, token = rig.client("awake")
        awake = rig.connect(combiner, token, takes_models=True)
        rig.session(min_clients=1, client_ids=[str(row.pk)], seed=seed)
        task = awake.next_task()
        assert noted[0].waiting_bytes == 3 * seed.size_bytes and not task.model
        assert awake.download(task) == stored(seed)
        proxy.cut()
        rig.wait_until(lambda: not noted[0].waiting_bytes, what="what nobody waits for to count no more")
    finally:
        proxy.close()


def test_a_model_that_a_client_was_just_sent_is_not_sent_again_with_its_next_task(
    rig: Rig, combiner: CombinerHere
) -> None:
    """It validates the model that it trains on next."""
    wire = rig.connect(combiner, rig.client("a")[1], takes_models=True)
    rig.session(min_clients=1, rounds=2, validate=True, seed=rig.model({"w": np.zeros(SMALL, np.float32)}))
    first = wire.next_task()
    assert wire.upload(first, first.model).status == ACCEPTED
    tasks = [wire.next_task("validate"), wire.next_task()]
    assert len({task.model_id for task in tasks}) == 1 and tasks[0].model_id != first.model_id
    assert sorted(bool(task.model) for task in tasks) == [False, True]


def test_a_client_that_confirms_nothing_uses_up_no_more_than_its_share(
    rig: Rig, combiner: CombinerHere
) -> None:
    wire = rig.connect(combiner, rig.client("a")[1], takes_models=True)
    for number in range(4):
        rig.session(min_clients=1, seed=rig.model({"w": np.full(SMALL, number, np.float32)}))
    tasks = [wire.said("task") for _ in range(4)]
    assert sum(bool(task.model) for task in tasks) == enclosed.WAITING_EACH


def test_the_sdk_keeps_what_came_in_the_task_and_asks_only_when_it_is_damaged(tmp_path: Path) -> None:
    body = b"a model" * 100
    transfers, asked = Transfers(Links(), Store("one", tmp_path), lambda _text: None), []

    def fetch(_link: Any, task: pb.Task, part: Path, _cancel: Any) -> str:
        asked.append(task.model_id)
        part.write_bytes(body)
        return task.model_sha256

    transfers._fetch = fetch  # type: ignore[method-assign]
    transfers._link = lambda _cancel: None  # type: ignore[method-assign,assignment,return-value]
    for number, model in enumerate((body, b"", b"another" + body)):
        task = pb.Task(model_id=str(number), model_sha256=hashlib.sha256(body).hexdigest(), model=model)
        held = held_task(task)
        path = transfers.model(held.task, held.cancel, held.model)
        assert path.read_bytes() == body
        assert not held.task.model, "it would be kept in memory while it is trained"
        path.unlink()
    assert asked == ["1", "2"]
