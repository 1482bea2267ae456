"""The bytes of an update, in the order in which they were sent: whatever is cut, however busy or full the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import random
import resource
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from federation.combiner import threads
from federation.combiner.spool import Spool
from federation.combiner.upload import Superseded, Upload
from federation.dialects.native import studio_v1_pb2 as proto
from tests.rig import Rig
from tests.rounds.here import CombinerHere
from tests.rounds.test_intake import row, spooled, tail
from tests.wire_client import ACCEPTED, WireClient

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("worker_here")]

ELEMENTS = 700_000
HANDED_OVER, WAITING = 512 << 10, 200 << 10  # what one writer hands to the disk at once, and less than that


class Sending:
    """One upload call, whose chunks go when the test says so."""

    def __init__(
        self, wire: WireClient, task: Any, body: bytes, upload_id: str = "one", offset: int = 0
    ) -> None:
        self._out: queue.Queue[proto.UploadChunk | None] = queue.Queue()
        self.body, self.at, self.over = body, offset, False
        head = proto.UploadHead(
            assignment_id=task.assignment_id, upload_id=upload_id, size=len(body), offset=offset
        )
        self._out.put(proto.UploadChunk(head=head))
        self.call = wire.stub.Upload.future(iter(self._out.get, None), metadata=wire.metadata)

    def send(self, count: int, size: int = 64 << 10) -> None:
        end = min(self.at + count, len(self.body))
        while self.at < end:
            piece = self.body[self.at : min(self.at + size, end)]
            self._out.put(proto.UploadChunk(data=piece))
            self.at += len(piece)

    def finish(self) -> None:
        self._out.put(tail(self.body))
        self._out.put(None)

    def cut(self) -> None:
        self.over = True
        self.call.cancel()
        self._out.put(None)


@contextlib.contextmanager
def busy_files() -> Iterator[Callable[[], None]]:
    """All threads that write files are at other work, until the test lets them."""
    free = threading.Event()
    at_work = threading.Barrier(threads.FILE_THREADS + 1)

    def work() -> None:
        at_work.wait(20)
        free.wait(60)

    for _ in range(threads.FILE_THREADS):
        threads._files.submit(work)
    at_work.wait(20)
    try:
        yield free.set
    finally:
        free.set()


@pytest.fixture
def body() -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).normal(size=ELEMENTS).astype(np.float32)


def begun(rig: Rig, combiner: CombinerHere, elements: int = ELEMENTS) -> tuple[WireClient, proto.Task]:
    wire = rig.connect(combiner, rig.client("a")[1])
    rig.session(min_clients=1, seed=rig.model({"w": np.zeros(elements, np.float32)}))
    return wire, wire.next_task()


def writer(combiner: CombinerHere, task: proto.Task) -> Upload | None:
    return combiner.core.intake._writers.get(uuid.UUID(task.assignment_id))


def until_open(rig: Rig, combiner: CombinerHere, task: proto.Task) -> Upload:
    def opened() -> bool:
        upload = writer(combiner, task)
        return upload is not None and upload._file is not None

    rig.wait_until(opened, what="the upload to be open")
    upload = writer(combiner, task)
    assert upload is not None
    return upload


def offset_of(wire: WireClient, task: proto.Task, size: int, upload_id: str = "one") -> int:
    request = proto.UploadStatusRequest(assignment_id=task.assignment_id, upload_id=upload_id, size=size)
    return int(wire.stub.UploadStatus(request, metadata=wire.metadata, timeout=20).offset)


def assert_a_prefix(combiner: CombinerHere, body: bytes, offset: int) -> None:
    if not offset and not spooled(combiner, "part"):  # the call was cut before the server began with it
        return
    (part,) = spooled(combiner, "part")
    there = part.read_bytes()
    assert len(there) >= offset, f"{offset} bytes were told, {len(there)} are there"
    assert there[:offset] == body[:offset], "what is on the disk is not what was sent"


def taken(upload: Upload) -> int:
    """Bytes that came and are not in the file yet, those in the hands of a thread left out."""
    return sum(len(piece) for piece in list(upload.waiting))


def all_came(upload: Upload) -> bool:
    """Of what was sent the first is the busy disk's now (opening the file was a work of its own, and is done), and the
    rest waits behind it."""
    handed_over = upload.writing is not None and not upload.writing.done()
    return handed_over and taken(upload) == HANDED_OVER + WAITING


def test_a_call_cut_while_the_disk_is_busy_leaves_the_beginning_of_what_was_sent(
    rig: Rig, combiner: CombinerHere, body: Any
) -> None:
    wire, task = begun(rig, combiner)
    whole = wire.encode({"w": body})
    sending = Sending(wire, task, whole)
    upload = until_open(rig, combiner, task)
    with busy_files() as let_go:
        sending.send(HANDED_OVER + WAITING)
        rig.wait_until(lambda: all_came(upload), what="pieces handed to the disk, and others behind them")
        sending.cut()
        rig.wait_until(
            lambda: combiner.core.intake._closing or writer(combiner, task) is None,
            what="the call to be over",
        )
        let_go()
    offset = offset_of(wire, task, len(whole))
    assert_a_prefix(combiner, whole, offset)
    assert wire.upload(task, whole, upload_id="one").status == ACCEPTED


def test_a_disk_that_was_full_for_a_moment_leaves_the_beginning_of_what_was_sent(
    rig: Rig, combiner: CombinerHere, body: Any
) -> None:
    wire, task = begun(rig, combiner)
    whole = wire.encode({"w": body})
    sending = Sending(wire, task, whole)
    upload = until_open(rig, combiner, task)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (part,) = spooled(combiner, "part")
    with busy_files() as let_go:
        sending.send(HANDED_OVER + WAITING)
        rig.wait_until(lambda: all_came(upload), what="pieces handed to the disk, and others behind them")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (HANDED_OVER // 2, hard))
            let_go()
            rig.wait_until(lambda: upload.writing is not None and upload.writing.done(), what="a full disk")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert part.stat().st_size == HANDED_OVER // 2
    sending.cut()
    rig.wait_until(lambda: writer(combiner, task) is None, what="the call to be over")
    offset = offset_of(wire, task, len(whole))
    assert_a_prefix(combiner, whole, offset)
    assert wire.upload(task, whole, upload_id="one").status == ACCEPTED


def test_a_question_that_is_cut_breaks_off_no_upload(rig: Rig, combiner: CombinerHere, body: Any) -> None:
    """Whoever asks how far an upload is waits for what a thread still writes; the upload goes on when he is gone."""
    wire, task = begun(rig, combiner)
    whole = wire.encode({"w": body})
    sending = Sending(wire, task, whole)
    upload = until_open(rig, combiner, task)
    settle, asked, gone = combiner.core.intake.settle, threading.Event(), threading.Event()

    async def watched(of: Upload) -> None:
        asked.set()
        try:
            await settle(of)
        finally:
            gone.set()

    with busy_files() as let_go:
        sending.send(WAITING)
        rig.wait_until(lambda: taken(upload) >= WAITING, what="pieces that wait")
        combiner.core.intake.settle = watched  # type: ignore[method-assign]
        request = proto.UploadStatusRequest(
            assignment_id=task.assignment_id, upload_id="one", size=len(whole)
        )
        question = wire.stub.UploadStatus.future(request, metadata=wire.metadata)
        assert asked.wait(20)
        rig.wait_until(
            lambda: upload.writing is not None and not upload.writing.done(), what="its pieces to go"
        )
        question.cancel()
        assert gone.wait(20)
        combiner.core.intake.settle = settle  # type: ignore[method-assign]
        let_go()
    sending.send(len(whole))
    sending.finish()
    assert sending.call.result(30).status == ACCEPTED


@pytest.mark.parametrize("seed", range(5))
def test_calls_cut_anywhere_and_begun_again_at_once_add_up_to_what_was_sent(
    rig: Rig, combiner: CombinerHere, body: Any, seed: int
) -> None:
    """Each offset that is told is on the disk, and the hash is that of all pieces."""
    dice = random.Random(seed)
    wire, task = begun(rig, combiner)
    whole = wire.encode({"w": body})
    offset, calls = 0, []
    while offset < len(whole) and len(calls) < 40:
        before_it = writer(combiner, task)
        sending = Sending(wire, task, whole, offset=offset)
        if (
            calls and not calls[-1].over
        ):  # it may still write: what is told meanwhile goes when this one begins
            rig.wait_until(lambda: until_open(rig, combiner, task) is not before_it, what="its end")  # noqa: B023
        calls.append(sending)
        sending.send(dice.randrange(1, 300_000), dice.choice([1 << 10, 7_001, 128 << 10]))
        if dice.random() < 0.3:  # some come to the server, others are cut on the way
            before = offset
            rig.wait_until(lambda: offset_of(wire, task, len(whole)) > before, what="bytes")  # noqa: B023
        if dice.random() < 0.7:
            sending.cut()  # else a newer call takes over while this one still sends
        told = offset_of(wire, task, len(whole))
        assert_a_prefix(combiner, whole, told)
        offset = told
    calls[-1].cut()
    rig.wait_until(lambda: writer(combiner, task) is None, what="the last call to be over")
    last = Sending(wire, task, whole, offset=offset_of(wire, task, len(whole)))
    last.send(len(whole))
    last.finish()
    assert last.call.result(30).status == ACCEPTED
    for sending in calls:
        sending.cut()
    (kept,) = spooled(combiner, "update")
    assert kept.read_bytes() == whole and row(task).spool_name == kept.stem


def test_bytes_that_the_disk_lost_once_are_sent_again(
    rig: Rig, combiner: CombinerHere, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that fails is said only once; the next one succeeds although the bytes never came to the disk."""
    wire, task = begun(rig, combiner)
    whole = wire.encode({"w": body})
    fsync, failed = os.fsync, []

    def failing_once(file: int) -> None:
        if not failed and Path(os.readlink(f"/proc/self/fd/{file}")).suffix == ".part":
            failed.append(file)
            raise OSError(errno.EIO, "the disk failed")
        fsync(file)

    monkeypatch.setattr(os, "fsync", failing_once)
    with pytest.raises(grpc.RpcError) as refused:
        wire.upload(task, whole, upload_id="one")
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE and failed
    assert offset_of(wire, task, len(whole)) == 0
    assert wire.upload(task, whole, upload_id="one").status == ACCEPTED


def test_a_loss_is_known_whatever_is_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync runs beside the next write: that the write succeeds does not make good what the disk lost."""
    upload = Upload(Spool(tmp_path / "spool"), SimpleNamespace(assignment_id=uuid.uuid4()), "one", 200)
    upload.take_over(None, 0)
    upload.waiting.append(b"a" * 100)
    upload.write()
    syncing, writing, lost = threading.Event(), threading.Event(), threading.Event()
    writev, discard = os.writev, upload.spool.discard_part

    def failing(_file: int) -> None:
        syncing.set()
        assert writing.wait(20)
        raise OSError(errno.EIO, "the disk failed")

    def slow(file: int, pieces: list[Any]) -> int:
        writing.set()
        lost.wait(1)  # in vain, when a loss waits for the write
        return writev(file, pieces)

    def discarded(name: str) -> None:
        discard(name)
        lost.set()

    monkeypatch.setattr(os, "fdatasync", failing)
    monkeypatch.setattr(os, "writev", slow)
    monkeypatch.setattr(upload.spool, "discard_part", discarded)
    upload.waiting.append(b"b" * 100)
    with ThreadPoolExecutor(2) as pool:
        sync = pool.submit(upload.sync_meanwhile)
        assert syncing.wait(20)
        write = pool.submit(upload.write)
        assert isinstance(sync.exception(20), OSError) and write.exception(20) is None
    with pytest.raises(Superseded):
        upload.whole()
    upload.close()
