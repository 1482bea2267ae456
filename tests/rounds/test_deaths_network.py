"""Network cut and healed, either direction, or half-open; and the database behind a wire that is cut."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import numpy as np
import pytest
from django.conf import settings

from clients_app.models import Client
from federation.combiner import server
from federation.sessions.models import Assignment, Round
from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.proxy import Proxy
from tests.rounds.rows import assert_same, mean, update
from tests.wire_client import ACCEPTED, CHUNK

pytestmark = pytest.mark.django_db(transaction=True)

Combiners = Callable[..., CombinerHere]
Proxies = Callable[[str], Proxy]


def online() -> int:
    return int(Client.objects.online().count())


def test_a_cut_wire_is_as_a_reconnect(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, proxy: Proxies
) -> None:
    """network cut and healed: stream dropped; as reconnect. An upload goes on where it was cut."""
    wire_to = proxy(combiner_here().address)
    _, token = rig.client("a")
    wire = rig.connect(wire_to, token)
    arrays = {"w": np.arange(1_500_000, dtype=np.float32)}
    session = rig.session(seed=rig.model({"w": np.zeros(1_500_000, np.float32)}))
    task = wire.next_task()
    body = wire.encode(arrays)
    with pytest.raises(grpc.RpcError):
        wire.upload(task, body, upload_id="mine", stop_after=3 * CHUNK)
    wire_to.cut()
    assert wire.over.wait(10)
    rig.wait_until(lambda: online() == 0)
    assert Assignment.objects.get().status in ("assigned", "delivered")
    wire_to.heal()
    wire = rig.connect(wire_to, token, holds=(task.assignment_id,))
    assert wire.upload(task, body, upload_id="mine").status == ACCEPTED
    assert wire.resumed_at == 3 * CHUNK
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), arrays)


def test_an_answer_that_was_cut_off_is_given_again(
    rig: Rig, combiner_here: Combiners, worker_here: WorkerHere, proxy: Proxies
) -> None:
    """network, either direction: the update was accepted and the client never heard; it asks, and it counted
    once."""
    combiner = combiner_here()
    wire_to = proxy(combiner.address)
    _, token = rig.client("a")
    wire = rig.connect(wire_to, token)
    session = rig.session()
    task = wire.next_task()
    finish = combiner.core.intake.finish

    async def cut_then_finish(*args: Any) -> Any:
        wire_to.cut()
        return await finish(*args)

    combiner.core.intake.finish = cut_then_finish  # type: ignore[method-assign, assignment]
    with pytest.raises(grpc.RpcError):
        wire.upload(task, update(5), upload_id="mine")
    combiner.core.intake.finish = finish  # type: ignore[method-assign]
    rig.until_session(session, "finished")
    wire_to.heal()
    wire = rig.connect(wire_to, token, holds=(task.assignment_id,))
    assert wire.upload(task, update(5), upload_id="mine").status == ACCEPTED
    assert_same(rig.arrays_of(session.current_model), update(5))
    assert Round.objects.count() == 1


def test_a_half_open_stream_is_dropped_by_keepalive(
    rig: Rig,
    combiner_here: Combiners,
    worker_here: WorkerHere,
    proxy: Proxies,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """half-open: stream dropped by keepalive within 30 s; as reconnect."""
    options = dict(server.OPTIONS)
    patience = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    assert options["grpc.keepalive_time_ms"] + max(options[name] for name in patience[1:]) <= 30_000
    assert options["grpc.keepalive_permit_without_calls"]
    faster = {name: options[name] // 10 for name in patience}
    monkeypatch.setattr(server, "OPTIONS", list({**options, **faster}.items()))
    combiner = combiner_here()
    wire_to = proxy(combiner.address)
    token_a, token_b = rig.client("a")[1], rig.client("b")[1]
    a = rig.connect(wire_to, token_a)
    b = rig.connect(combiner, token_b)
    session = rig.session(min_clients=2)
    task_a, task_b = a.next_task(), b.next_task()
    wire_to.hold()
    rig.wait_until(lambda: online() == 1, timeout=10, what="the server to notice")
    assert not b.over.is_set()
    wire_to.heal()
    a = rig.connect(wire_to, token_a, holds=(task_a.assignment_id,))
    assert a.upload(task_a, update(1), num_examples=1).status == ACCEPTED
    assert b.upload(task_b, update(4), num_examples=3).status == ACCEPTED
    rig.until_session(session, "finished")
    assert_same(rig.arrays_of(session.current_model), mean([(update(1), 1), (update(4), 3)]))


@pytest.mark.postgres
def test_an_outage_of_the_database_keeps_streams_open_and_refuses_nothing(
    rig: Rig, proxy: Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """database any, restarted: processes retry with backoff, keep streams open, refuse nothing already
    acknowledged."""
    url = urlsplit(os.environ["DATABASE_URL"])
    wire_to = proxy(f"{url.hostname}:{url.port or 5432}")
    who = url.netloc.rsplit("@", 1)[0] if "@" in url.netloc else "postgres"
    monkeypatch.setenv(
        "DATABASE_URL", urlunsplit((url.scheme, f"{who}@{wire_to.address}", url.path, url.query, ""))
    )
    assert settings.DATABASES["default"]["HOST"] == url.hostname  # the test itself keeps its own way
    combiner, worker, _beat = rig.combiner(), rig.worker(), rig.beat()
    wires = [rig.connect(combiner, rig.client(name)[1]) for name in "ab"]
    session = rig.session(rounds=3, min_clients=2)
    tasks = [wire.next_task(timeout=40) for wire in wires]
    assert wires[0].upload(tasks[0], update(1), num_examples=1).status == ACCEPTED

    wire_to.cut()
    answer: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answer.append(wires[1].upload(tasks[1], update(4), num_examples=3).status)
    )
    waiting.start()
    rig.wait_until(lambda: "database.away" in combiner.log.read_text(), timeout=20)
    assert not answer  # it waits; it is not refused
    wire_to.heal()
    waiting.join(20)
    assert answer == [ACCEPTED]
    for _ in range(2):
        for wire in wires:
            assert wire.upload(wire.next_task(timeout=40), update(2)).status == ACCEPTED
    rig.until_session(session, "finished")
    first = session.trail.order_by("id")[0]
    assert_same(rig.arrays_of(first), mean([(update(1), 1), (update(4), 3)]))
    assert not any(wire.over.is_set() for wire in wires)
    assert combiner.process.poll() is None and worker.process.poll() is None
    for child in rig.children:  # while they still reach the database
        child.stop()
