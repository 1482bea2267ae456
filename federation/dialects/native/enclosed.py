"""Small models inside the tasks that name them: a call less for each client, which of a short round is much."""

from __future__ import annotations

import os
import uuid
from collections import defaultdict
from dataclasses import dataclass, field

from federation.combiner.connection import Connection
from federation.combiner.downloads import Downloads
from federation.combiner.encoded import Encoding
from federation.dialects.native import frames, reports
from federation.sessions.assignments import Owed
from foundation.errors import StudioError

MOST_BYTES = 1 << 20  # of a model
WAITING_BYTES = 32 << 20  # of models that clients have not said to have: beyond it they download
WAITING_EACH = 2  # tasks of one client


@dataclass
class _Sent:
    """What one client was sent so: the bytes of each task that it has not confirmed, and the newest model."""

    waiting: dict[str, int] = field(default_factory=dict)
    model_id: uuid.UUID | None = None


class Enclosed:
    """What was sent so counts until its client says that it came: gRPC takes a message of this size off our hands at
    once, and keeps it for who stands still."""

    def __init__(self, downloads: Downloads) -> None:
        self._downloads = downloads
        self._sent: defaultdict[Connection, _Sent] = defaultdict(_Sent)
        self.waiting_bytes = 0

    def begin(self, connection: Connection, task: Owed) -> bool:
        """Whether its model is to go inside it now; then it counts. What the client was just sent it keeps."""
        sent, size = self._sent[connection], task.model_size_bytes
        if sent.model_id == task.model_id or len(sent.waiting) == WAITING_EACH:
            return False
        if size > min(MOST_BYTES, WAITING_BYTES - self.waiting_bytes):
            return False
        sent.model_id = task.model_id
        sent.waiting[str(task.assignment_id)] = size
        self.waiting_bytes += size
        return True

    def arrived(self, connection: Connection, assignment_id: str) -> None:
        """Its client has the task; may be said again, and of others."""
        if connection in self._sent:
            self.waiting_bytes -= self._sent[connection].waiting.pop(assignment_id, 0)

    def forget(self, connection: Connection) -> None:
        """The stream is over."""
        self.waiting_bytes -= sum(self._sent.pop(connection, _Sent()).waiting.values())

    async def message(self, task: Owed) -> bytes | None:
        """A `ServerMessage` of the task with its model. None: it cannot be read now, so the client asks for it."""
        try:
            file = await self._downloads.open(task.grant)
        except StudioError:
            return None
        try:
            plain = Encoding(f"plain {task.model_id}", lambda _at, data: data)
            pieces = [piece async for piece in self._downloads.encoded.messages(file, plain)]
        finally:
            os.close(file)
        if sum(len(piece) for piece in pieces) != task.model_size_bytes:
            return None
        return frames.task_with_model(reports.task(task), pieces)
