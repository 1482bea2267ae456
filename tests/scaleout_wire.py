"""A Scaleout client that a test plays by hand, call by call, as the published one was seen to speak."""

from __future__ import annotations

import hashlib
import io
import json
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import numpy as np
import pytest

from clients_app.models import Client
from clients_app.services import register_device
from federation.dialects.scaleout import scaleout_pb2 as wire
from federation.dialects.scaleout import scaleout_pb2_grpc as rpc
from federation.sessions.models import Assignment
from projects.models import Project
from projects.tokens.choices import TokenKind
from projects.tokens.exchange import Exchanged, ticket_for_device
from projects.tokens.models import Token
from projects.tokens.services import create_token
from tests.rig import Rig

CHUNK = 32 << 10
W, B = np.full((4, 3), 2.0, np.float32), np.full(3, -1.0, np.float32)


def enrolment(rig: Rig, project: Project | None = None) -> Token:
    project = project or rig.project
    actor = rig.actor.of_user(project.memberships.get(role="owner").user)
    return create_token(actor=actor, kind=TokenKind.ENROLMENT, name="fleet", project=project)[0]


def enrolled(token: Token, name: str, client_id: uuid.UUID | None = None) -> tuple[Client, Exchanged]:
    """What `clients/enroll` does."""
    client = register_device(
        token=token, client_id=client_id or uuid.uuid4(), name=name, dialect="scaleout", version="1.1.0"
    )
    return client, ticket_for_device(token=token, client=client)


def npz(arrays: list[Any]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **{str(i): array for i, array in enumerate(arrays)})
    return out.getvalue()


def container(arrays: list[Any], model_id: str = "", **more: bytes) -> bytes:
    """As the published client packs an update."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", json.dumps({"model_id": model_id, "_version": 2}))
        archive.writestr("training_model.bin", npz(arrays))
        for name, body in more.items():
            archive.writestr(name, body)
    return out.getvalue()


class ScaleoutWire:
    """One client process: a channel, and the tasks that it holds, which it names in every poll."""

    def __init__(
        self,
        address: str,
        client_id: uuid.UUID | str,
        token: str,
        *,
        channel: grpc.Channel | None = None,
    ) -> None:
        self.client_id = str(client_id)
        self.metadata: tuple[tuple[str, str], ...] = (
            ("client", self.client_id),
            ("client-id", self.client_id),
            ("name", "by hand"),
            ("authorization", f"Bearer {token}"),
        )
        self.channel = channel or grpc.insecure_channel(address)
        self.combiner = rpc.CombinerClientStub(self.channel)
        self.models = rpc.ModelServiceStub(self.channel)
        self.held: dict[str, wire.TaskRequest] = {}

    def call(self, method: Any, request: Any, *more: tuple[str, str]) -> Any:
        return method(request, metadata=(*self.metadata, *more), timeout=20)

    def announce(self, what: str = "VersionCheck") -> Any:
        said = json.dumps({"client-version": "1.1.0"}) if what == "VersionCheck" else ""
        request = wire.ClientAnnounceRequest(client_id=self.client_id, type=what, parameters=said)
        return self.call(self.combiner.Announce, request)

    def poll(
        self, reports: Iterable[wire.ActivityReport] | None = None, **more: Any
    ) -> list[wire.TaskRequest]:
        """Name what it holds (unless told otherwise), and take what is new."""
        if reports is None:
            reports = [wire.ActivityReport(correlation_id=key, status="RUNNING") for key in self.held]
        request = wire.ClientReport(client_id=self.client_id, reports=reports, poll_interval_ms=5000, **more)
        tasks = list(self.call(self.combiner.PollAndReportAsync, request).tasks)
        for task in tasks:
            if not task.status:
                self.held[task.correlation_id] = task
        return tasks

    def next_task(
        self, type_: str = "Scaleout_ModelUpdate", timeout: float = 20.0, *, poll: Any = None
    ) -> wire.TaskRequest:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for task in (poll or self.poll)():
                if task.type == type_ and not task.status:
                    return task
            time.sleep(0.05)
        raise AssertionError(f"no {type_} came")

    def done(
        self, task: wire.TaskRequest, status: str = "COMPLETED", **response: Any
    ) -> list[wire.TaskRequest]:
        """The last report of a task."""
        self.held.pop(task.correlation_id, None)
        report = wire.ActivityReport(
            correlation_id=task.correlation_id, status=status, done=True, response=json.dumps(response)
        )
        return self.poll([report])

    def receive(self, model_id: str) -> tuple[dict[str, Any], list[Any]]:
        """The container's metadata and the arrays, its checksum compared."""
        stream = self.models.Download(
            wire.ModelRequest(model_id=model_id), metadata=self.metadata, timeout=20
        )
        body = b"".join(chunk.data for chunk in stream)
        assert dict(stream.trailing_metadata())["checksum"] == hashlib.sha256(body).hexdigest()
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            metadata = json.loads(archive.read("metadata.json"))
            with np.load(io.BytesIO(archive.read("training_model.bin"))) as arrays:
                return metadata, [arrays[str(i)] for i in range(len(arrays.files))]

    def upload(self, body: bytes, name: str = "", checksum: str = "") -> str:
        name = name or str(uuid.uuid4())
        chunks = (wire.FileChunk(data=body[at : at + CHUNK]) for at in range(0, len(body), CHUNK))
        said = ("checksum", checksum or hashlib.sha256(body).hexdigest())
        answer = self.call(self.models.Upload, chunks, ("model-id", name), said)
        assert answer.status == wire.OK
        return name

    def update(self, task: wire.TaskRequest, update_id: str, *, examples: Any = 1) -> str:
        metadata = {} if examples is None else {"num_examples": examples}
        said = self.call(
            self.combiner.SendModelUpdate,
            wire.ModelUpdate(
                client_id=self.client_id,
                model_id=task.model_id,
                model_update_id=update_id,
                correlation_id=task.correlation_id,
                round_id=task.round_id,
                session_id=task.session_id,
                meta=json.dumps({"training_metadata": metadata, "processing_time": 0.1, "config": task.data}),
            ),
        )
        return str(said.response)

    def train(self, arrays: list[Any], *, examples: Any = 1) -> str:
        """The next training, from the task to the answer to its update, and the report that it is done."""
        task = self.next_task()
        name = str(uuid.uuid4())
        said = self.update(task, self.upload(container(arrays, name), name), examples=examples)
        self.done(task)
        return said

    def validate(self, task: wire.TaskRequest, data: str) -> str:
        said = self.call(
            self.combiner.SendModelValidation,
            wire.ModelValidation(
                client_id=self.client_id,
                model_id=task.model_id,
                data=data,
                correlation_id=task.correlation_id,
                session_id=task.session_id,
            ),
        )
        return str(said.response)

    def close(self) -> None:
        self.channel.close()


Make = Callable[..., ScaleoutWire]


def refusal(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code()


def assignment(task: wire.TaskRequest) -> Assignment:
    return Assignment.objects.get(pk=task.correlation_id)
