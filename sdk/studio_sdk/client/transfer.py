"""Models down, updates up: in chunks, resumed where they broke off, checked by sha256."""

from __future__ import annotations

import hashlib
import mmap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import RawIOBase
from pathlib import Path

import grpc

from .. import studio_v1_pb2 as pb
from ..errors import TaskCancelled, TaskFailed
from ..plain_json import dumps
from ..project.entry_point import CancelSwitch
from .backoff import Backoff
from .elsewhere import ElsewhereClosed
from .lane import Lane, LaneClosed
from .link import Link
from .links import Links
from .store import Store, Update

CHUNK_BYTES = 256 * 1024  # as fast as 1 MiB, and a quarter of the memory on both sides
SMALL_BYTES = 1 << 20  # the most that a message may hold: a small update is one
WRONG_SHA256_TRIES = 3
# Nothing changes when these are tried again.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}
Say = Callable[[str], None]


class Transfers:
    """Download and upload over whatever link there is; both wait out a lost connection."""

    def __init__(self, links: Links, store: Store, say: Say) -> None:
        self._links = links
        self._store = store
        self._say = say

    # ---- down

    def model(self, task: pb.Task, cancel: CancelSwitch, enclosed: bytes = b"") -> Path:
        """The task's model on disk: from the cache, or what came inside the task, or downloaded. Raises TaskCancelled,
        TaskFailed."""
        target = self._store.model(task.model_sha256 or task.model_id)
        if target.is_file():
            return target
        part = target.with_suffix(".part")
        if enclosed and hashlib.sha256(enclosed).hexdigest() == task.model_sha256:
            part.write_bytes(enclosed)
            part.replace(target)
            self._store.prune_models(target)
            return target
        backoff = Backoff()
        wrong = 0
        while True:
            link = self._link(cancel)
            try:
                digest = self._fetch(link, task, part, cancel)
            except grpc.RpcError as error:
                self._after(error, "the download", backoff, cancel)
                continue
            if not task.model_sha256 or digest == task.model_sha256:
                part.replace(target)
                self._store.prune_models(target)
                return target
            part.unlink(missing_ok=True)
            wrong += 1
            self._say(f"the downloaded model has sha256 {digest}, not {task.model_sha256}: dropped")
            if link.lane is not None:
                link.lane.elsewhere = False
            if wrong == WRONG_SHA256_TRIES:
                raise TaskFailed(f"The model arrived {wrong} times with another sha256 than announced.")

    def _fetch(self, link: Link, task: pb.Task, part: Path, cancel: CancelSwitch) -> str:
        """One try, from where the last one stopped; the sha256 of the whole file."""
        digest = hashlib.sha256()
        offset = 0
        if part.exists():
            with part.open("rb") as file:
                while block := file.read(CHUNK_BYTES):
                    digest.update(block)
                    offset += len(block)
            if task.model_size and offset >= task.model_size:
                return digest.hexdigest()
        request = pb.DownloadRequest(assignment_id=task.assignment_id, model_id=task.model_id, offset=offset)
        while link.lane is not None and task.model_size - offset > SMALL_BYTES:
            try:
                with part.open("ab", buffering=0) as file:
                    for data in link.lane.download(request, task.model_size, cancel.cut_by):
                        _write_all(file, data)
                        digest.update(data)
                return digest.hexdigest()
            except LaneClosed as closed:  # before the first byte
                self._without_lane(link, closed, cancel)
            except ElsewhereClosed as closed:  # so too
                self._not_elsewhere(link.lane, str(closed), cancel)
        call = link.download(request, metadata=link.metadata)
        cancel.cut_by(call.cancel)
        with part.open("ab", buffering=0) as file:
            for piece in call:
                if piece.data:
                    if piece.offset != offset:
                        call.cancel()
                        file.truncate(0)
                        raise TaskFailed(f"The model came with a gap: {piece.offset} after {offset} bytes.")
                    _write_all(file, piece.data)
                    digest.update(piece.data)
                    offset += len(piece.data)
        return digest.hexdigest()

    # ---- up

    def upload(
        self, update: Update, cancel: CancelSwitch, compressed: Update | None = None
    ) -> tuple[pb.Receipt, Update]:
        """Send an update until its receipt is here, whatever it says: (receipt, what was sent). Raises TaskCancelled.

        `compressed` is the same update in fewer bytes; it goes to a combiner that reads its form. The first try is
        sent at once; after a broken one the combiner is asked how much it has.
        """
        backoff = Backoff()
        sent: Update | None = None
        while True:
            link = self._link(cancel)
            fits = compressed is not None and compressed.form in link.upload_forms
            chosen = compressed if compressed is not None and fits else update
            try:
                offset = 0
                if sent is not None:
                    status = self._status(link, chosen)
                    if status.receipt.status:
                        return status.receipt, sent
                    offset = min(status.offset, chosen.size_bytes)
                    if offset:
                        self._say(f"upload goes on at {offset / 1e6:.1f} MB")
                if sent != chosen and compressed is not None:
                    self._store.note_sent(chosen)
                sent = chosen
                return self._send(link, chosen, self._store.file_of(chosen), offset, cancel), chosen
            except grpc.RpcError as error:
                if error.code() in _FINAL and not cancel.is_set():
                    refused = pb.Receipt.REFUSED
                    return pb.Receipt(status=refused, reason=error.details() or "no reason given"), chosen
                if error.code() == grpc.StatusCode.DATA_LOSS:
                    # what is there is not what was sent: another upload id starts from nothing
                    update = replace(update, upload_id=str(uuid.uuid4()))
                    if compressed is not None:
                        compressed = replace(compressed, upload_id=str(uuid.uuid4()))
                self._after(error, "the upload", backoff, cancel)

    def receipt(self, update: Update, cancel: CancelSwitch) -> pb.Receipt | None:
        """What became of an update that was sent before; None: it may still be sent, or nobody can say.

        Raises TaskCancelled.
        """
        backoff = Backoff()
        while True:
            try:
                receipt = self._status(self._link(cancel), update).receipt
                return receipt if receipt.status else None
            except grpc.RpcError as error:
                if error.code() in _FINAL and not cancel.is_set():
                    return None
                self._after(error, "asking after an earlier update", backoff, cancel)

    @staticmethod
    def _status(link: Link, update: Update) -> pb.UploadStatusReply:
        request = pb.UploadStatusRequest(
            assignment_id=update.assignment_id, upload_id=update.upload_id, size=update.size_bytes
        )
        reply: pb.UploadStatusReply = link.stub.UploadStatus(request, metadata=link.metadata, timeout=30)
        return reply

    def _send(self, link: Link, update: Update, path: Path, offset: int, cancel: CancelSwitch) -> pb.Receipt:
        if link.lane is not None and update.size_bytes - offset > SMALL_BYTES:
            try:
                receipt = link.lane.upload(_start(update, offset), path, cancel.cut_by)
                if cancel.is_set():
                    raise TaskCancelled
                return receipt
            except LaneClosed as closed:
                self._without_lane(link, closed, cancel)
        call = link.upload.future(_chunks(update, path, offset), metadata=link.metadata)
        cancel.cut_by(call.cancel)
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise TaskCancelled from None

    # ---- both

    def _without_lane(self, link: Link, closed: LaneClosed, cancel: CancelSwitch) -> None:
        if cancel.is_set():
            raise TaskCancelled
        link.lane = None
        self._say(f"this combiner's port for large models does not answer ({closed}): they go the slower way")

    def _not_elsewhere(self, lane: Lane, why: str, cancel: CancelSwitch) -> None:
        if cancel.is_set():
            raise TaskCancelled
        lane.elsewhere = False
        self._say(f"the bucket that this combiner names gives no model ({why}): they come from the combiner")

    def _link(self, cancel: CancelSwitch) -> Link:
        link = self._links.wait(cancel)
        if link is None:
            raise TaskCancelled
        return link

    def _after(self, error: grpc.RpcError, what: str, backoff: Backoff, cancel: CancelSwitch) -> None:
        """After a failed try: cancelled, hopeless, or wait a little."""
        if cancel.is_set():
            raise TaskCancelled
        code, details = error.code(), error.details()
        if code in _FINAL:
            raise TaskFailed(details or f"{what} was refused ({code.name})")
        pause = backoff.next_s()
        self._say(f"{what} broke off ({details or code.name}); trying again")
        if cancel.wait(pause):
            raise TaskCancelled


def _write_all(file: RawIOBase, data: memoryview | bytes) -> None:
    written = file.write(data) or 0
    while written < len(data):  # a disk that is nearly full takes a part, then raises
        written += file.write(memoryview(data)[written:]) or 0


def _chunks(update: Update, path: Path, offset: int) -> Iterator[pb.UploadChunk | bytes]:
    start = _start(update, offset)
    yield pb.UploadChunk(head=start.head)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        step = CHUNK_BYTES if update.size_bytes > SMALL_BYTES else SMALL_BYTES
        for at in range(offset, update.size_bytes, step):
            yield mapped[at : at + step]
    yield pb.UploadChunk(tail=start.tail)


def _start(update: Update, offset: int) -> pb.UploadStart:
    return pb.UploadStart(
        head=pb.UploadHead(
            assignment_id=update.assignment_id,
            upload_id=update.upload_id,
            size=update.size_bytes,
            offset=offset,
            form=update.form,
        ),
        tail=pb.UploadTail(
            sha256=update.sha256,
            num_examples=float(update.metadata.get("num_examples", 0)),
            metadata_json=dumps(update.metadata),
        ),
    )
