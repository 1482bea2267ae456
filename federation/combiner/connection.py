"""A connected client as the combiner sees it, whatever it speaks."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field

from federation.sessions.assignments import Owed
from federation.sessions.commands import Ordered


@dataclass(frozen=True)
class Identity:
    """Who a call came from: proven by its token."""

    client_id: uuid.UUID
    project_id: uuid.UUID
    token_id: uuid.UUID
    name: str


@dataclass(frozen=True)
class Cancel:
    """Stop working on an assignment, or an order: it has ended."""

    assignment_id: uuid.UUID
    reason: str


@dataclass(frozen=True)
class Farewell:
    """The stream ends. `retry`: come back later."""

    code: str
    reason: str
    retry: bool


Delivery = Owed | Ordered | Cancel | Farewell


@dataclass(eq=False)
class Connection:
    """The outgoing side of one client's stream. `given`: assignments it was sent or said it holds; `owed`: those of
    them that the rows showed as live when last looked at; `answered`: ended ones that a read of the rows begun before
    their end may still show as owed."""

    identity: Identity
    dialect: str
    version: str
    connection_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    given: set[uuid.UUID] = field(default_factory=set)
    owed: dict[uuid.UUID, Owed] = field(default_factory=dict)
    answered: set[uuid.UUID] = field(default_factory=set)
    outbox: asyncio.Queue[Delivery] = field(default_factory=asyncio.Queue)
    can_validate: bool = True
    silence_s: float | None = None  # a client that polls is gone when not heard from for so long
    heard_at: float = field(default_factory=time.monotonic)
    takes: frozenset[str] = frozenset()  # kinds of command

    @property
    def silent(self) -> bool:
        return self.silence_s is not None and time.monotonic() - self.heard_at > self.silence_s

    def knows(self, task: Owed | Ordered) -> bool:
        return isinstance(task, Owed) or task.kind in self.takes

    def forget(self, assignment_id: uuid.UUID) -> None:
        """It has ended, or the client has its answer."""
        self.given.discard(assignment_id)
        self.owed.pop(assignment_id, None)

    def send(self, delivery: Delivery) -> None:
        self.outbox.put_nowait(delivery)
