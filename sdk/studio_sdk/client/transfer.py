"""Models down, updates up: in chunks, resumed where they broke off, checked by sha256."""

from __future__ import annotations

import hashlib
import mmap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc

from .. import studio_v1_pb2 as pb
from ..errors import TaskCancelled, TaskFailed
from ..plain_json import dumps
from ..project.entry_point import CancelSwitch
from .backoff import Backoff
from .link import Link
from .links import Links
from .store import Store, Update

CHUNK_BYTES = 128 * 1024  # as fast as 1 MiB, and an eighth of the memory on both sides
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

    def model(self, task: pb.Task, cancel: CancelSwitch) -> Path:
        """The task's model on disk, from the cache or downloaded. Raises TaskCancelled, TaskFailed."""
        target = self._store.model(task.model_sha256 or task.model_id)
        if target.is_file():
            return target
        part = target.with_suffix(".part")
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
        call = link.stub.Download(request, metadata=link.metadata)
        cancel.call(call.cancel)
        with part.open("ab") as file:
            for chunk in call:
                if chunk.data:
                    if chunk.offset != offset:
                        call.cancel()
                        file.truncate(0)
                        raise TaskFailed(f"The model came with a gap: {chunk.offset} after {offset} bytes.")
                    file.write(chunk.data)
                    digest.update(chunk.data)
                    offset += len(chunk.data)
        return digest.hexdigest()

    # ---- up

    def upload(self, update: Update, cancel: CancelSwitch) -> pb.Receipt:
        """Send an update until its receipt is here, whatever it says. Raises TaskCancelled.

        The first try is sent at once; after a broken one the combiner is asked how much it has.
        """
        path = self._store.update_file(update.assignment_id)
        backoff = Backoff()
        asked = False
        while True:
            link = self._link(cancel)
            try:
                offset = 0
                if asked:
                    request = pb.UploadStatusRequest(
                        assignment_id=update.assignment_id, upload_id=update.upload_id, size=update.size_bytes
                    )
                    status = link.stub.UploadStatus(request, metadata=link.metadata, timeout=30)
                    if status.HasField("receipt") and status.receipt.status:
                        return status.receipt
                    offset = min(status.offset, update.size_bytes)
                    if offset:
                        self._say(f"upload goes on at {offset / 1e6:.1f} MB")
                asked = True
                return self._send(link, update, path, offset, cancel)
            except grpc.RpcError as error:
                if error.code() in _FINAL and not cancel.is_set():
                    return pb.Receipt(status=pb.Receipt.REFUSED, reason=error.details() or "no reason given")
                if error.code() == grpc.StatusCode.DATA_LOSS:
                    # what is there is not what was sent: another upload id starts from nothing
                    update = replace(update, upload_id=str(uuid.uuid4()))
                self._after(error, "the upload", backoff, cancel)

    def _send(self, link: Link, update: Update, path: Path, offset: int, cancel: CancelSwitch) -> pb.Receipt:
        call = link.stub.Upload.future(_chunks(update, path, offset), metadata=link.metadata)
        cancel.call(call.cancel)
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise TaskCancelled from None

    # ---- both

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


def _chunks(update: Update, path: Path, offset: int) -> Iterator[pb.UploadChunk]:
    yield pb.UploadChunk(
        head=pb.UploadHead(
            assignment_id=update.assignment_id,
            upload_id=update.upload_id,
            size=update.size_bytes,
            offset=offset,
        )
    )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for at in range(offset, update.size_bytes, CHUNK_BYTES):
            yield pb.UploadChunk(data=mapped[at : at + CHUNK_BYTES])
    yield pb.UploadChunk(
        tail=pb.UploadTail(
            sha256=update.sha256,
            num_examples=float(update.metadata.get("num_examples", 0)),
            metadata_json=dumps(update.metadata),
        )
    )
