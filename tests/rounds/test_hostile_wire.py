"""What a client of `studio.v1` may say or leave unread, and the combiner stays as it was."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import Any

import grpc
import numpy as np
import pytest

from federation.combiner.connection import Identity
from federation.dialects.native import studio_v1_pb2 as proto
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.rounds.test_intake import row, spooled, tail
from tests.wire_client import ACCEPTED, WireClient

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_here")]

NEWER_FIELD = b"\x7a\x03new"  # field 15, that no protocol of ours has


def uploading(wire: WireClient, messages: list[bytes]) -> Any:
    """An upload call of messages that are bytes already."""
    call = wire.channel.stream_unary(
        "/studio.v1.Combiner/Upload", response_deserializer=proto.Receipt.FromString
    )
    return call(iter(messages), metadata=wire.metadata, timeout=20)


@pytest.mark.parametrize("shape", ["before", "after", "plain"])
def test_a_chunk_beyond_a_mebibyte_is_refused_however_it_is_written(
    rig: Rig, combiner: CombinerHere, shape: str
) -> None:
    wire = rig.connect(combiner, rig.client("a")[1])
    rig.session(min_clients=1, seed=rig.model({"w": np.zeros(700_000, np.float32)}))
    task = wire.next_task()
    body = wire.encode({"w": np.ones(700_000, np.float32)})

    def messages(chunk: int) -> list[bytes]:
        head = proto.UploadHead(assignment_id=task.assignment_id, upload_id=str(chunk), size=len(body))
        parts = [
            proto.UploadChunk(data=body[at : at + chunk]).SerializeToString()
            for at in range(0, len(body), chunk)
        ]
        before, after = {"before": (NEWER_FIELD, b""), "after": (b"", NEWER_FIELD), "plain": (b"", b"")}[
            shape
        ]
        return [
            proto.UploadChunk(head=head).SerializeToString(),
            *(before + part + after for part in parts),
            tail(body).SerializeToString(),
        ]

    with pytest.raises(grpc.RpcError) as refused:
        uploading(wire, messages((1 << 20) + 1))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 1 MiB" in str(refused.value.details())
    assert row(task).status in ("assigned", "delivered")
    counted = combiner.core.traffic.received_bytes
    assert uploading(wire, messages(1 << 20)).status == ACCEPTED
    assert combiner.core.traffic.received_bytes - counted == len(body)


def test_a_client_that_cuts_its_uploads_under_ever_new_ids_keeps_one_part_on_the_disk(
    rig: Rig, combiner: CombinerHere
) -> None:
    wire = rig.connect(combiner, rig.client("a")[1])
    rig.session(min_clients=1, seed=rig.model({"w": np.zeros(700_000, np.float32)}))
    task = wire.next_task()
    body = wire.encode({"w": np.ones(700_000, np.float32)})
    for _ in range(5):
        with pytest.raises(grpc.RpcError):
            wire.upload(task, body, upload_id=str(uuid.uuid4()), stop_after=2 << 20)
    assert len(spooled(combiner, "part")) == 1
    assert wire.upload(task, body).status == ACCEPTED
    assert not spooled(combiner, "part")


def test_a_client_that_reads_no_answer_is_not_asked_for_more_reports(
    rig: Rig, combiner: CombinerHere
) -> None:
    """What waits to be read by one client stays a few hundred answers, whatever it sends."""
    wire = rig.connect(combiner, rig.client("a")[1])
    reports, most = 60_000, 0
    stream = wire.channel.stream_stream(
        "/studio.v1.Combiner/Connect",
        request_serializer=proto.ClientMessage.SerializeToString,
        response_deserializer=proto.ServerMessage.FromString,
    )
    hello = proto.ClientMessage(hello=proto.Hello(protocol=1, client_version="test"))
    wrong = proto.ClientMessage(received=proto.Received(assignment_id="x" * 40))
    sent = iter(range(reports))
    call = stream(iter([hello, *(wrong for _ in sent)]), metadata=wire.metadata, timeout=60)
    assert next(call).WhichOneof("message") == "welcome"
    (client_id,) = combiner.core.hub.connections
    outbox = combiner.core.hub.connections[client_id].outbox
    sizes: list[int] = []

    def still() -> bool:
        sizes.append(outbox.qsize())
        return len(sizes) > 20 and len(set(sizes[-10:])) == 1 and sizes[-1] > 0

    rig.wait_until(still, timeout=40, what="the server to read no more, or all")
    most = max(sizes)
    call.cancel()
    assert most < 1_000, f"{most} answers wait to be read"


def test_a_thousand_callers_at_once_are_not_each_compared_with_all_others(
    rig: Rig, combiner: CombinerHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is believed of tokens is gone through now and then, not for each that is new."""
    core, looks, callers = combiner.core, [], 1000
    still_good = core._still_good

    def counted(*args: Any) -> bool:
        looks.append(1)
        return still_good(*args)

    monkeypatch.setattr(core, "_still_good", counted)

    async def all_call() -> None:
        for number in range(callers):
            await core._believed((str(number), None), Identity, uuid.uuid4(), uuid.uuid4(), uuid.uuid4(), "a")

    asyncio.run_coroutine_threadsafe(all_call(), combiner.loop).result(30)
    assert len(looks) < 20 * callers


def test_calls_that_come_all_at_once_wait_for_their_turn(combiner: CombinerHere) -> None:
    """gRPC drops what a busy server has not begun with: from the thousandth call on some, from the three thousandth
    all, with CANCELLED. Thousands of clients ask for a new model in the same second."""
    calls, free = 4000, threading.Event()

    async def all_at_once() -> set[grpc.StatusCode]:
        async with grpc.aio.insecure_channel(combiner.address) as channel:
            ask = channel.unary_unary("/grpc.health.v1.Health/Check")
            answers = [asyncio.ensure_future(ask(b"", timeout=60).code()) for _ in range(calls)]
            await asyncio.wait(
                answers, timeout=2.0, return_when=asyncio.FIRST_COMPLETED
            )  # who ends now was dropped
            free.set()
            return set(await asyncio.gather(*answers))

    combiner.loop.call_soon_threadsafe(free.wait, 30)
    assert asyncio.run(all_at_once()) == {grpc.StatusCode.OK}
