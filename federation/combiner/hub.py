"""The hub: who is connected, and what they owe.

It reads rows when woken, and every two seconds with one cheap query for all its clients as the net.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import redis.asyncio
import structlog
from django.conf import settings

from clients_app import presence
from clients_app.presence import CombinerLease
from federation.combiner.connection import Cancel, Connection, Farewell, Identity
from federation.combiner.threads import in_rows
from federation.events.services import TelemetrySample, record_telemetry
from federation.sessions import assignments, commands
from federation.sessions.assignments import Owed
from federation.sessions.commands import Ordered
from foundation.hints import COMBINER_CHANNEL
from projects.tokens.selectors import dead_tokens

log = structlog.get_logger(__name__)

NET_S = 2.0  # the poll behind every push
FLUSH_S = 0.25  # how long receipts and progress are gathered
SEEN_S = 15.0  # how often presence is written
TELEMETRY_MAX = 10_000


class Hub:
    def __init__(
        self,
        lease: CombinerLease,
        on_wake: Callable[[], None],
        on_dead_tokens: Callable[[set[uuid.UUID]], None],
    ) -> None:
        self.lease = lease
        self._on_wake = on_wake  # shares may have begun to close
        self._on_dead_tokens = on_dead_tokens  # nobody is to trust them any more
        self.connections: dict[uuid.UUID, Connection] = {}
        self._woken: asyncio.Event = asyncio.Event()
        self._woken_for: set[uuid.UUID] | None = set()  # None: everybody
        self._received: set[uuid.UUID] = set()
        self._progress: dict[uuid.UUID, float] = {}
        self._telemetry: list[TelemetrySample] = []
        self._wants_flush = asyncio.Event()

    # --- connections ------------------------------------------------------------------------------------------
    async def attach(
        self,
        identity: Identity,
        *,
        dialect: str,
        version: str,
        holds: Iterable[uuid.UUID] = (),
        attributes: dict[str, Any] | None = None,
        silence_s: float | None = None,
        takes: Iterable[str] = (),
    ) -> Connection:
        """A client's stream opened, or, with `silence_s`, its first poll came: it is detached when `heard` of no more
        for so long. `takes`: the kinds of command that its dialect has words for. An older connection of the same
        client ends."""
        connection = Connection(
            identity, dialect, version, given=set(holds), silence_s=silence_s, takes=frozenset(takes)
        )
        older = self.connections.get(identity.client_id)
        if older is not None:
            older.send(Farewell("replaced", "this client connected again elsewhere", retry=False))
        self.connections[identity.client_id] = connection
        known = await in_rows(
            presence.connected,
            client_id=identity.client_id,
            combiner_id=self.lease.combiner_id,
            epoch=self.lease.epoch,
            connection_id=connection.connection_id,
            dialect=dialect,
            version=version,
            attributes=attributes,
        )
        if not known:
            connection.send(
                Farewell("client_gone", "this client was removed, or the combiner is being replaced", True)
            )
            return connection
        log.info("client.connected", client=str(identity.client_id), dialect=dialect, version=version)
        await in_rows(assignments.wake_waiting_sessions, [identity.project_id])
        self.wake([identity.client_id])
        return connection

    def heard(self, client_id: uuid.UUID) -> Connection | None:
        """The connection of a client that polls, alive for another while; None: it has to attach. No row is touched."""
        connection = self.connections.get(client_id)
        if connection is not None:
            connection.heard_at = time.monotonic()
        return connection

    async def _detach_silent(self) -> None:
        for connection in [c for c in self.connections.values() if c.silent]:
            await self.detach(connection)

    async def detach(self, connection: Connection) -> None:
        """The stream ended. A newer one of the same client is left alone."""
        client_id = connection.identity.client_id
        if self.connections.get(client_id) is connection:
            del self.connections[client_id]
        await in_rows(
            presence.disconnected,
            client_id=client_id,
            combiner_id=self.lease.combiner_id,
            epoch=self.lease.epoch,
            connection_id=connection.connection_id,
        )
        log.info("client.disconnected", client=str(client_id))

    def done(self, client_id: uuid.UUID, assignment_id: uuid.UUID) -> None:
        """The client has its answer for this assignment: nothing to cancel."""
        connection = self.connections.get(client_id)
        if connection is not None:
            connection.given.discard(assignment_id)
            connection.answered.add(assignment_id)
        self._progress.pop(assignment_id, None)
        self._received.discard(assignment_id)

    # --- reports ----------------------------------------------------------------------------------------------
    def received(self, assignment_id: uuid.UUID) -> None:
        self._received.add(assignment_id)
        self._wants_flush.set()

    def progress(self, assignment_id: uuid.UUID, fraction: float) -> None:
        self._progress[assignment_id] = fraction
        self._wants_flush.set()

    def telemetry(self, samples: Iterable[TelemetrySample]) -> None:
        self._telemetry += samples
        del self._telemetry[:-TELEMETRY_MAX]

    # --- delivery ---------------------------------------------------------------------------------------------
    def wake(self, client_ids: Iterable[uuid.UUID] | None = None) -> None:
        if client_ids is None:
            self._woken_for = None
        elif self._woken_for is not None:
            self._woken_for.update(client_ids)
        self._woken.set()

    async def deliver_forever(self) -> None:
        clock = asyncio.get_running_loop().time
        next_net = clock() + NET_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_net):
                    await self._woken.wait()
            # the net is due in time, however often somebody is woken
            everybody = clock() >= next_net or self._woken_for is None
            if everybody:
                next_net = clock() + NET_S
            wanted = set(self.connections) if everybody else self._woken_for or set()
            self._woken.clear()
            self._woken_for = set()
            await self.deliver(wanted & set(self.connections))
            if everybody:
                await self._detach_silent()
                await self._drop_dead_tokens()
                self._on_wake()

    async def deliver(self, client_ids: set[uuid.UUID]) -> None:
        """Push what these clients owe and have not been given; cancel what has ended meanwhile."""
        if not client_ids:
            return
        before = {pk: set(self.connections[pk].given) for pk in client_ids if pk in self.connections}
        answered = {pk: set(self.connections[pk].answered) for pk in before}
        rows = await in_rows(_owed, client_ids)
        still: dict[uuid.UUID, set[uuid.UUID]] = {pk: set() for pk in before}
        for row in rows:
            still.setdefault(row.client_id, set()).add(row.assignment_id)
            connection = self.connections.get(row.client_id)
            if connection is None or row.assignment_id in connection.answered:
                continue
            if row.assignment_id not in connection.given and connection.knows(row):
                connection.given.add(row.assignment_id)
                connection.send(row)
        for client_id, earlier in answered.items():
            if client_id in self.connections:
                self.connections[client_id].answered -= earlier - still[client_id]
        ended = {a: pk for pk, given in before.items() for a in given - still[pk]}
        reasons = await in_rows(_reasons_of_end, list(ended)) if ended else {}
        for assignment_id, client_id in ended.items():
            connection = self.connections.get(client_id)
            if connection is None or assignment_id not in connection.given:
                continue
            connection.given.discard(assignment_id)
            status, reason = reasons.get(assignment_id, ("cancelled", "this assignment no longer exists"))
            if status not in ("accepted", "completed"):
                connection.send(Cancel(assignment_id, reason or status))

    async def _drop_dead_tokens(self) -> None:
        """Revoking a token closes its streams."""
        held = {connection.identity.token_id for connection in self.connections.values()}
        if not held:
            return
        dead = await in_rows(dead_tokens, held)
        if not dead:
            return
        self._on_dead_tokens(dead)
        for connection in list(self.connections.values()):  # several clients may share an enrolment token
            if connection.identity.token_id in dead:
                connection.send(
                    Farewell("token_revoked", "the token of this client was revoked or expired", retry=False)
                )
                if connection.silence_s is not None:  # its next poll is refused: nobody reads the farewell
                    await self.detach(connection)

    def farewell(self, code: str, reason: str) -> None:
        for connection in self.connections.values():
            connection.send(Farewell(code, reason, retry=True))

    # --- batches and hints ------------------------------------------------------------------------------------
    async def flush_forever(self) -> None:
        """Receipts and progress in one write each; presence and telemetry now and then."""
        last_seen = asyncio.get_running_loop().time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NET_S):
                    await self._wants_flush.wait()
            self._wants_flush.clear()
            await self.flush()
            now = asyncio.get_running_loop().time()
            if now - last_seen >= SEEN_S:
                last_seen = now
                if self.connections:
                    await in_rows(presence.touch_clients, list(self.connections))
            await asyncio.sleep(FLUSH_S)

    async def flush(self) -> None:
        received, self._received = self._received, set()
        progress, self._progress = self._progress, {}
        telemetry, self._telemetry = self._telemetry, []
        if received:
            await in_rows(assignments.mark_delivered, received)
            await in_rows(commands.note_started, received)
        if progress:
            await in_rows(assignments.note_progress, progress)
        if telemetry:
            await in_rows(record_telemetry, telemetry)

    async def listen_forever(self) -> None:
        """Wake-ups from Redis. While it is away the net does the work, later."""
        while True:
            try:
                async with (
                    redis.asyncio.Redis.from_url(
                        settings.REDIS_URL, socket_connect_timeout=1, health_check_interval=10
                    ) as client,
                    client.pubsub() as channel,
                ):
                    await channel.subscribe(COMBINER_CHANNEL)
                    self.wake()
                    async for message in channel.listen():
                        if message["type"] == "message":
                            self._heard(message["data"])
            except (redis.RedisError, OSError) as error:
                log.warning("hints.away", error=type(error).__name__)
            await asyncio.sleep(1.0)

    def _heard(self, data: bytes) -> None:
        try:
            clients = [uuid.UUID(pk) for pk in json.loads(data)["clients"]]
        except (ValueError, KeyError, TypeError):
            return
        self._on_wake()
        if clients:
            self.wake(clients)


def _owed(client_ids: set[uuid.UUID]) -> list[Owed | Ordered]:
    return [*assignments.owed(client_ids), *commands.ordered(client_ids)]


def _reasons_of_end(ids: list[uuid.UUID]) -> dict[uuid.UUID, tuple[str, str]]:
    return assignments.reasons_of_end(ids) | commands.reasons_of_end(ids)
