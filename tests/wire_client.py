"""A client of `studio.v1` that a test plays by hand: it does what it is told, when it is told, wrong things too."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from federation.aggregation.codecs import load_arrays, save_arrays
from federation.dialects.native import studio_v1_pb2 as wire
from federation.dialects.native.studio_v1_pb2_grpc import CombinerStub

CHUNK = 128 << 10


class WireClient:
    """One stream. `next_task()` waits for a task; `said(kind)` for any other word of the server."""

    def __init__(
        self,
        address: str,
        token: str,
        folder: Path,
        *,
        holds: tuple[str, ...] = (),
        protocol: int = 1,
        takes_models: bool = False,
    ) -> None:
        self.folder = folder
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.channel = grpc.insecure_channel(address)
        self.stub = CombinerStub(self.channel)
        self._out: queue.Queue[wire.ClientMessage | None] = queue.Queue()
        self.heard: queue.Queue[wire.ServerMessage] = queue.Queue()
        self._kept: list[wire.ServerMessage] = []
        self.error: grpc.RpcError | None = None
        self.over = threading.Event()
        hello = wire.Hello(protocol=protocol, client_version="test", holds=holds, can_validate=True)
        hello.takes_models = takes_models
        self.say(hello=hello)
        self._call = self.stub.Connect(iter(self._out.get, None), metadata=self.metadata)
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        try:
            for message in self._call:
                self.heard.put(message)
        except grpc.RpcError as error:
            self.error = error
        finally:
            self.over.set()

    # --- words ------------------------------------------------------------------------------------------------
    def say(self, **message: Any) -> None:
        self._out.put(wire.ClientMessage(**message))

    def said(self, kind: str, timeout: float = 20.0) -> Any:
        """The next word of this kind; others are kept."""
        for kept in self._kept:
            if kept.WhichOneof("message") == kind:
                self._kept.remove(kept)
                return getattr(kept, kind)
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self.heard.get(timeout=0.05)
            except queue.Empty:
                ended = self.over.is_set() and self.heard.empty()
                if not ended and time.monotonic() < deadline:
                    continue
                raise AssertionError(
                    f"the server did not say {kind!r}; it said {self._kept}; {self.error}"
                ) from None
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)
            self._kept.append(message)

    def next_task(self, kind: str = "train", timeout: float = 20.0) -> wire.Task:
        held = []
        try:
            while True:
                task = self.said("task", timeout)
                if task.kind == kind:
                    self.say(received=wire.Received(assignment_id=task.assignment_id))
                    return task
                held.append(wire.ServerMessage(task=task))
        finally:
            self._kept += held

    def validate(self, task: wire.Task, **metrics: float) -> Any:
        self.say(validation=wire.Validation(assignment_id=task.assignment_id, data_json=json.dumps(metrics)))
        return self.said("ack")

    def fail(self, task: wire.Task, reason: str = "the data is gone") -> Any:
        self.say(failure=wire.Failure(assignment_id=task.assignment_id, reason=reason, exit_code=3))
        return self.said("ack")

    # --- models -----------------------------------------------------------------------------------------------
    def download(self, task: wire.Task, offset: int = 0) -> bytes:
        request = wire.DownloadRequest(
            assignment_id=task.assignment_id, model_id=task.model_id, offset=offset
        )
        return b"".join(chunk.data for chunk in self.stub.Download(request, metadata=self.metadata))

    def arrays(self, task: wire.Task) -> dict[str, Any]:
        path = self.folder / f"{task.model_id}.safetensors"
        path.write_bytes(self.download(task))
        return load_arrays(path)

    def encode(self, arrays: dict[str, Any]) -> bytes:
        path = self.folder / f"{uuid.uuid4()}.safetensors"
        save_arrays(arrays, path)
        return path.read_bytes()

    def upload(
        self,
        task: wire.Task,
        arrays: dict[str, Any] | bytes,
        *,
        num_examples: float = 1.0,
        metadata: dict[str, Any] | str | None = None,
        upload_id: str = "",
        sha256: str = "",
        stop_after: int | None = None,
        form: str = "",
    ) -> wire.Receipt:
        """Send an update and answer the receipt. `stop_after` bytes the call ends without its tail. `form`: what the
        body is said to be compressed to."""
        body = arrays if isinstance(arrays, bytes) else self.encode(arrays)
        upload_id = upload_id or str(uuid.uuid4())
        status = self.stub.UploadStatus(
            wire.UploadStatusRequest(assignment_id=task.assignment_id, upload_id=upload_id, size=len(body)),
            metadata=self.metadata,
            timeout=20,
        )
        if status.receipt.status:
            return status.receipt
        self.resumed_at = status.offset

        def chunks() -> Iterator[wire.UploadChunk]:
            yield wire.UploadChunk(
                head=wire.UploadHead(
                    assignment_id=task.assignment_id,
                    upload_id=upload_id,
                    size=len(body),
                    offset=status.offset,
                    form=form,
                )
            )
            end = len(body) if stop_after is None else stop_after
            for start in range(status.offset, end, CHUNK):
                yield wire.UploadChunk(data=body[start : min(start + CHUNK, end)])
            if stop_after is None:
                yield wire.UploadChunk(
                    tail=wire.UploadTail(
                        sha256=sha256 or hashlib.sha256(body).hexdigest(),
                        num_examples=num_examples,
                        metadata_json=metadata
                        if isinstance(metadata, str)
                        else json.dumps(metadata or {"num_examples": num_examples}),
                    )
                )

        return self.stub.Upload(chunks(), metadata=self.metadata, timeout=30)

    def close(self) -> None:
        self._out.put(None)
        self._call.cancel()
        self.channel.close()
        self._reader.join(5)


ACCEPTED, REJECTED, REFUSED = wire.Receipt.ACCEPTED, wire.Receipt.REJECTED, wire.Receipt.REFUSED
