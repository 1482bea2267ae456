"""The lane: large models over plain HTTP beside gRPC, with the same rules and the same answers."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from federation.dialects.native import lane as lanes
from federation.dialects.native import receiving
from federation.dialects.native import studio_v1_pb2 as wire
from federation.sessions.models import Assignment, Session
from tests.rig import Rig
from tests.rounds.here import CombinerHere, lane_over_tls
from tests.tls_files import certificate
from tests.wire_client import ACCEPTED, REFUSED, WireClient

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker")]

NUMBERS = 700_000  # 2.8 MB: several buffers, the last one not full


class OnLane:
    """A client whose models go over the lane."""

    def __init__(self, rig: Rig, combiner: CombinerHere, name: str = "") -> None:
        self.row, self.secret = rig.client(name)
        self.port = combiner.lane_port
        self.stream: WireClient = rig.connect(combiner, self.secret)

    def ask(
        self, method: str, path: str, body: Any = None, secret: str | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body. What breaks is raised."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            token = self.secret if secret is None else secret
            said = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request(method, path, body, {**said, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def get(self, task: wire.Task, **options: str) -> tuple[int, bytes]:
        return self.ask("GET", f"/studio.v1/model/{task.assignment_id}/{task.model_id}", **options)

    def put(self, task: wire.Task, body: bytes, **changes: Any) -> wire.Receipt:
        status, answer = self.ask("PUT", "/studio.v1/update", started(task, body, **changes))
        assert status == 200, answer
        return wire.Receipt.FromString(answer)


def started(
    task: wire.Task,
    body: bytes,
    *,
    upload_id: str = "",
    offset: int = 0,
    sha256: str = "",
    examples: float = 1,
) -> bytes:
    """A whole request body."""
    start = wire.UploadStart(
        head=wire.UploadHead(
            assignment_id=task.assignment_id,
            upload_id=upload_id or str(uuid.uuid4()),
            size=len(body),
            offset=offset,
        ),
        tail=wire.UploadTail(
            sha256=sha256 or hashlib.sha256(body).hexdigest(),
            num_examples=examples,
            metadata_json=json.dumps({"num_examples": examples}),
        ),
    ).SerializeToString()
    return len(start).to_bytes(4) + start + body[offset:]


def problem(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1])["code"]


@pytest.fixture
def session(rig: Rig) -> Session:
    """Starts once two clients are there."""
    seed = rig.model({"w": np.arange(NUMBERS, dtype=np.float32)})
    return rig.session(seed=seed, min_clients=2, round_timeout_s=60)


def numbers(client: OnLane, value: float) -> bytes:
    return client.stream.encode({"w": np.full(NUMBERS, value, np.float32)})


def test_models_go_down_and_up_and_are_averaged(rig: Rig, combiner: CombinerHere, session: Session) -> None:
    a, b = OnLane(rig, combiner), OnLane(rig, combiner)
    for client, value, examples in ((a, 1.0, 1), (b, 4.0, 3)):
        task = client.stream.next_task()
        status, model = client.get(task)
        assert status == 200 and hashlib.sha256(model).hexdigest() == task.model_sha256
        assert client.put(task, numbers(client, value), examples=examples).status == ACCEPTED
    rig.until_session(session, "finished")
    assert session.current_model is not None
    np.testing.assert_allclose(rig.arrays_of(session.current_model)["w"], np.full(NUMBERS, 3.25))


def test_a_download_goes_on_where_it_broke_off(rig: Rig, combiner: CombinerHere, session: Session) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    whole = a.get(task)[1]
    assert a.get(task, Range="bytes=1000001-") == (206, whole[1_000_001:])
    assert problem(a.get(task, Range=f"bytes={len(whole) + 1}-")) == (416, "bad_offset")
    assert problem(a.get(task, Range="bytes=5-6,9-")) == (416, "bad_range")


def test_an_upload_that_was_cut_goes_on_behind_what_came(
    rig: Rig, combiner: CombinerHere, session: Session, wait_until: Any
) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    body = numbers(a, 2.0)
    request = started(task, body, upload_id="one")
    with uploading(a, request) as cut:
        cut.sendall(request[:2_000_000])

    def came() -> bool:
        parts = (combiner.folder / "spool").glob("[!.]*.part")
        return any(part.stat().st_size > 1_990_000 for part in parts)

    wait_until(came, what="all that came before the cut is in the spool")
    offset = received(a, task, "one", body)
    assert 1_990_000 < offset < 2_000_000
    assert a.put(task, body, upload_id="one", offset=offset).status == ACCEPTED
    assert Assignment.objects.get(pk=task.assignment_id).sha256 == hashlib.sha256(body).hexdigest()


def test_a_second_copy_is_told_so_and_changes_nothing(
    rig: Rig, combiner: CombinerHere, session: Session
) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    assert a.put(task, numbers(a, 1.0)).status == ACCEPTED
    assert a.put(task, numbers(a, 9.0)).status == ACCEPTED  # 2.8 MB that nobody reads, and the answer arrives
    kept = Assignment.objects.get(pk=task.assignment_id)
    assert kept.sha256 == hashlib.sha256(numbers(a, 1.0)).hexdigest()


def test_what_arrived_wrong_is_not_accepted(rig: Rig, combiner: CombinerHere, session: Session) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    body = numbers(a, 1.0)
    request = started(task, body, sha256="0" * 64)
    assert problem(a.ask("PUT", "/studio.v1/update", request)) == (409, "checksum")
    assert a.put(task, body).status == ACCEPTED


def test_a_late_update_is_refused_with_the_reason(rig: Rig, combiner: CombinerHere, session: Session) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    Assignment.objects.filter(pk=task.assignment_id).update(status="expired")
    combiner.core.hub.done(a.row.pk, uuid.UUID(task.assignment_id))
    receipt = a.put(task, numbers(a, 1.0))
    assert receipt.status == REFUSED and receipt.reason


def hostile(task: wire.Task, body: bytes) -> Iterator[tuple[str, str, Any, int, str]]:
    """What is asked, and what is answered."""
    update, model = "/studio.v1/update", f"/studio.v1/model/{task.assignment_id}/{task.model_id}"
    other = started(wire.Task(assignment_id=str(uuid.uuid4())), body)
    yield "PUT", update, other, 404, "not_found"
    yield "PUT", update, started(wire.Task(assignment_id="../../etc"), body), 400, "bad_id"
    yield "PUT", update, started(task, body) + b"more", 400, "bad_length"
    yield "PUT", update, started(task, body)[:-5], 400, "bad_length"
    yield "PUT", update, b"", 400, "bad_start"
    yield "PUT", update, b"\xff\xff\xff\xff" + body, 400, "bad_start"
    yield "PUT", update, b"\0\0\0\3\xff\xff\xff" + body, 400, "bad_start"
    yield "PUT", update, iter([started(task, body)]), 411, "no_length"  # chunked
    yield "POST", update, started(task, body), 404, "not_found"
    yield "GET", update, None, 404, "not_found"
    yield "GET", model + "/../..", None, 404, "not_found"
    yield "GET", f"/studio.v1/model/{uuid.uuid4()}/{task.model_id}", None, 404, "not_found"
    yield "GET", f"/studio.v1/model/{task.assignment_id}/{uuid.uuid4()}", None, 404, "not_found"
    yield "GET", "/studio.v1/model/" + "-" * 36 + "/" + "-" * 36, None, 400, "bad_id"


def test_what_is_no_request_is_refused_with_a_sentence_and_changes_nothing(
    rig: Rig, combiner: CombinerHere, session: Session
) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    body = numbers(a, 1.0)
    for method, path, sent, status, code in hostile(task, body):
        assert problem(a.ask(method, path, sent)) == (status, code), (method, path)
    for secret in ("", "nonsense"):
        assert a.get(task, secret=secret)[0] == 401
    assert not list((combiner.folder / "spool").glob("[!.]*.part"))
    assert a.put(task, body).status == ACCEPTED


def test_noise_ends_its_own_connection_only(rig: Rig, combiner: CombinerHere, session: Session) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    good = started(task, numbers(a, 1.0))
    opening = f"PUT /studio.v1/update HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {a.secret}\r\n".encode()
    whole = opening + f"Content-Length: {len(good)}\r\n\r\n".encode() + good[:3000]
    seeded = random.Random(7)
    for number in range(60):
        noise = bytearray(whole if number % 2 else seeded.randbytes(2000))
        for _ in range(seeded.randrange(1, 12)):
            noise[seeded.randrange(len(noise))] = seeded.randrange(256)
        with socket.create_connection(("127.0.0.1", a.port), timeout=20) as one, contextlib.suppress(OSError):
            one.sendall(noise[: seeded.randrange(len(noise))] if number % 3 else noise)
            one.shutdown(socket.SHUT_WR)
            while one.recv(65536):
                pass
    endless = socket.create_connection(("127.0.0.1", a.port), timeout=20)
    with contextlib.closing(endless), contextlib.suppress(ConnectionError):
        endless.sendall(b"GET /" + b"a" * 40_000)
        assert endless.recv(100).startswith(b"HTTP/1.1 400")
    assert a.put(task, numbers(a, 1.0)).status == ACCEPTED


@contextlib.contextmanager
def uploading(client: OnLane, request: bytes) -> Iterator[socket.socket]:
    """A connection on which the head of an upload was sent."""
    head = f"PUT /studio.v1/update HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.secret}\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as sock:
        sock.sendall(f"{head}Content-Length: {len(request)}\r\n\r\n".encode())
        yield sock


def received(client: OnLane, task: wire.Task, upload_id: str, body: bytes) -> int:
    asked = wire.UploadStatusRequest(assignment_id=task.assignment_id, upload_id=upload_id, size=len(body))
    return int(client.stream.stub.UploadStatus(asked, metadata=client.stream.metadata, timeout=10).offset)


def test_an_upload_that_stands_still_ends_and_keeps_what_came(
    rig: Rig, combiner: CombinerHere, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    monkeypatch.setattr(receiving, "IDLE_S", 0.3)
    body = numbers(a, 1.0)
    request = started(task, body, upload_id="still")
    with uploading(a, request) as still:
        still.sendall(request[:100_000])
        assert still.recv(100).startswith(b"HTTP/1.1 408")
    assert received(a, task, "still", body) == 100_000 - (len(request) - len(body)), "less than a buffer"


def test_an_upload_that_is_slow_goes_on(
    rig: Rig, combiner: CombinerHere, session: Session, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    """It is not a buffer that must come in time, but something."""
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    monkeypatch.setattr(receiving, "IDLE_S", 1.5)
    request = started(task, numbers(a, 1.0))
    with uploading(a, request) as slow:
        (connection,) = wait_until(lambda: list(combiner.lane.connections), what="it is taken")
        began, pieces = time.monotonic(), 12
        for piece in range(pieces):
            came, next_at = connection._came, began + (piece + 1) * 2.5 * receiving.IDLE_S / pieces
            slow.sendall(request[piece * 1000 : (piece + 1) * 1000])
            wait_until(lambda came=came: connection._came > came, what="it was read")
            wait_until(lambda next_at=next_at: time.monotonic() >= next_at, what="a while to pass")
        slow.sendall(request[pieces * 1000 :])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_a_download_over_tls_leaves_nothing_behind(
    rig: Rig, combiner: CombinerHere, tmp_path: Path, wait_until: Any
) -> None:
    rig.session(seed=rig.model({"w": np.zeros(16_000_000, np.float32)}), min_clients=1)
    a = OnLane(rig, combiner)
    task = a.stream.next_task()
    cert, key = certificate(tmp_path, "localhost")
    with lane_over_tls(combiner, cert, key) as (lane, port):
        trusting = ssl.create_default_context(cafile=str(cert))
        for _ in range(5):
            with (
                socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
                trusting.wrap_socket(plain, server_hostname="localhost") as encrypted,
            ):
                path = f"/studio.v1/model/{task.assignment_id}/{task.model_id}"
                encrypted.sendall(
                    f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {a.secret}\r\n\r\n".encode()
                )
                assert encrypted.recv(1000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: not lane.connections, what="the combiner knows that they left")

        def left() -> list[Any]:
            return [
                one for one in psutil.Process().net_connections("tcp") if one.laddr.port == port and one.raddr
            ]

        wait_until(lambda: not left(), what="their sockets are closed")
        assert combiner.core.traffic.sent_bytes < 5 * 32_000_000, "not half of what they asked for"


def test_beyond_so_many_connections_further_ones_are_cut(
    rig: Rig, combiner: CombinerHere, session: Session, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    task = a.stream.next_task()
    monkeypatch.setattr(lanes, "MOST_CONNECTIONS", 2)
    with contextlib.ExitStack() as open_ones:
        for _ in range(2):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", a.port)))
        wait_until(lambda: len(combiner.lane.connections) == 2, what="both are there")
        with pytest.raises(OSError):
            a.get(task)
    wait_until(lambda: not combiner.lane.connections, what="both are gone")
    assert a.get(task)[0] == 200


def test_a_slow_disk_never_mixes_the_bytes_of_two_buffers(
    rig: Rig, combiner: CombinerHere, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffers are used again and again: an update with no two equal blocks arrives as it was sent."""
    a, _b = OnLane(rig, combiner), OnLane(rig, combiner)
    monkeypatch.setattr(lanes, "LARGEST_BUFFER", 64 << 10)
    written = os.writev

    def in_small_steps(file: int, pieces: list[Any]) -> int:
        return written(file, [pieces[0][: max(1, len(pieces[0]) // 3)]])

    monkeypatch.setattr(os, "writev", in_small_steps)
    body = a.stream.encode({"w": np.random.default_rng(3).standard_normal(NUMBERS).astype(np.float32)})
    assert a.put(a.stream.next_task(), body).status == ACCEPTED
    assert (spooled := list((combiner.folder / "spool").glob("*.update")))
    assert spooled[0].read_bytes() == body
