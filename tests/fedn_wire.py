"""A FEDn client that a test plays by hand, message by message, as the published one was seen to speak."""

from __future__ import annotations

import io
import json
import queue
import threading
import uuid
from typing import Any

import grpc
import numpy as np

from clients_app.models import Client
from clients_app.services import register_device
from federation.dialects.fedn import fedn_pb2 as wire
from federation.dialects.fedn import fedn_pb2_grpc as rpc
from projects.models import Project
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token
from tests.rig import Rig

CHUNK = 1 << 20


def enrolment(rig: Rig, project: Project | None = None, name: str = "fleet") -> tuple[Token, str]:
    project = project or rig.project
    actor = (
        rig.actor if project == rig.project else rig.actor.of_user(project.memberships.get(role="owner").user)
    )
    return create_token(actor=actor, kind=TokenKind.ENROLMENT, name=name, project=project)


def registered(token: Token, name: str, client_id: uuid.UUID | None = None) -> Client:
    """What `clients/add` does."""
    return register_device(
        token=token, client_id=client_id or uuid.uuid4(), name=name, dialect="fedn", version=""
    )


def npz(arrays: list[Any]) -> bytes:
    """As FEDn's numpyhelper writes a model."""
    out = io.BytesIO()
    np.savez_compressed(out, **{str(i): array for i, array in enumerate(arrays)})
    return out.getvalue()


class FednWire:
    """One client process: a channel, and a TaskStream once `open` is called."""

    def __init__(
        self,
        address: str,
        client_id: uuid.UUID | str,
        *,
        token: str = "",
        channel: grpc.Channel | None = None,
    ) -> None:
        self.client_id = str(client_id)
        self.metadata: tuple[tuple[str, str], ...] = (("client", self.client_id), ("grpc-server", address))
        if token:
            self.metadata += (("authorization", f"Bearer {token}"),)
        self.channel = channel or grpc.insecure_channel(address)
        self.combiner = rpc.CombinerStub(self.channel)
        self.connector = rpc.ConnectorStub(self.channel)
        self.models = rpc.ModelServiceStub(self.channel)
        self.sender = wire.Client(role=wire.CLIENT, name="by hand", client_id=self.client_id)
        self.tasks: queue.Queue[wire.TaskRequest] = queue.Queue()
        self.error: grpc.RpcError | None = None
        self.over = threading.Event()

    def call(self, method: Any, request: Any) -> Any:
        return method(request, metadata=self.metadata, timeout=20)

    def open(self) -> FednWire:
        stream = self.combiner.TaskStream(
            wire.ClientAvailableMessage(sender=self.sender), metadata=self.metadata
        )

        def listen() -> None:
            try:
                for task in stream:
                    self.tasks.put(task)
            except grpc.RpcError as error:
                self.error = error
            finally:
                self.over.set()

        threading.Thread(target=listen, daemon=True).start()
        return self

    def next_task(self, type_: int = wire.MODEL_UPDATE, timeout: float = 20.0) -> wire.TaskRequest:
        while True:
            try:
                task = self.tasks.get(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"no task came; the stream said {self.error}") from None
            if task.type == type_:
                return task

    def receive(self, model_id: str) -> tuple[list[wire.ModelResponse], list[Any]]:
        """The chunks, and the arrays in them."""
        parts = list(self.call(self.models.Download, wire.ModelRequest(id=model_id, sender=self.sender)))
        body = b"".join(part.data for part in parts)
        if parts[-1].status != wire.OK:
            return parts, []
        with np.load(io.BytesIO(body)) as archive:
            return parts, [archive[str(i)] for i in range(len(archive.files))]

    def upload(self, body: bytes, name: str = "") -> str:
        name = name or str(uuid.uuid4())

        def parts() -> Any:
            for at in range(0, len(body), CHUNK):
                yield wire.ModelRequest(data=body[at : at + CHUNK], id=name, status=wire.IN_PROGRESS)
            yield wire.ModelRequest(id=name, status=wire.OK)

        answer = self.call(self.models.Upload, parts())
        assert answer.status == wire.OK
        return name

    def update(self, task: wire.TaskRequest, update_id: str, *, examples: Any = 1) -> str:
        """SendModelUpdate; answers what the server said."""
        metadata = {} if examples is None else {"num_examples": examples}
        meta = {"training_metadata": metadata, "config": task.data, "exec_training": 0.1}
        said = self.call(
            self.combiner.SendModelUpdate,
            wire.ModelUpdate(
                sender=self.sender, model_id=task.model_id, model_update_id=update_id, meta=json.dumps(meta)
            ),
        )
        return str(said.response)

    def train(self, arrays: list[Any], *, examples: Any = 1, timeout: float = 20.0) -> str:
        task = self.next_task(timeout=timeout)
        return self.update(task, self.upload(npz(arrays)), examples=examples)

    def close(self) -> None:
        self.channel.close()
