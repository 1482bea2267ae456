"""The hub: who is connected, and what they owe.

It reads rows when woken, and every two seconds with one cheap query for all its clients as the net.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
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
from federation.sessions.assignments import Owed, WorkGrant
from federation.sessions.choices import LIVE_ASSIGNMENT
from federation.sessions.commands import Ordered
from foundation.errors import StudioError
from foundation.hints import COMBINER_CHANNEL, PROCESS
from projects.tokens.selectors import dead_tokens

log = structlog.get_logger(__name__)

NET_S = 2.0  # the poll behind every push
FLUSH_S = 0.25  # how long receipts and progress are gathered
SEEN_S = 15.0  # how often presence is written
TELEMETRY_MAX = 10_000
TOKENS_A_LOOK = 1000


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
        self._revoked: set[uuid.UUID] = set()  # clients a token of whom was
        self._to_check: list[Connection] = []
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
        client ends. Raises StudioError 503 for one that is to go to another combiner."""
        connection = Connection(
            identity, dialect, version, given=set(holds), silence_s=silence_s, takes=frozenset(takes)
        )
        older = self.connections.get(identity.client_id)
        if older is not None:
            older.send(Farewell("replaced", "this client connected again elsewhere", retry=False))
        self.connections[identity.client_id] = connection
        try:
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
        except StudioError:
            if self.connections.get(identity.client_id) is connection:
                del self.connections[identity.client_id]
            raise
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
            connection.forget(assignment_id)
            connection.answered.add(assignment_id)
        self._progress.pop(assignment_id, None)
        self._received.discard(assignment_id)

    def grant(self, client_id: uuid.UUID, assignment_id: uuid.UUID) -> WorkGrant | None:
        """What the client may do with an assignment that it was given and that was live when the rows were last read,
        at most two seconds ago; None: the rows must say. Acceptance asks them in any case."""
        connection = self.connections.get(client_id)
        task = connection.owed.get(assignment_id) if connection is not None else None
        return task.grant if task is not None else None

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
            woken, self._woken_for = self._woken_for or set(), set()
            revoked, self._revoked = self._revoked, set()
            self._woken.clear()
            await self.deliver(None if everybody else woken & set(self.connections))
            if revoked:
                await self._drop_dead_tokens(
                    [self.connections[pk] for pk in revoked if pk in self.connections]
                )
            if everybody:
                await self._detach_silent()
                await self._drop_dead_tokens(self._next_to_check())
                self._on_wake()

    async def deliver(self, client_ids: set[uuid.UUID] | None = None) -> None:
        """Push what these clients (None: all of this combiner) owe and have not been given; cancel what has ended
        meanwhile. A client that owes nothing costs nothing."""
        if (client_ids is not None and not client_ids) or not self.connections:
            return
        looked_at = [
            connection
            for connection in self._of(client_ids)
            if connection.given or connection.answered or connection.takes
        ]
        before = {c.identity.client_id: set(c.given) for c in looked_at if c.given}
        answered = {c.identity.client_id: set(c.answered) for c in looked_at if c.answered}
        takers = {c.identity.client_id for c in looked_at if c.takes}
        rows = await in_rows(_owed, self.lease, client_ids, takers)
        still: dict[uuid.UUID, set[uuid.UUID]] = defaultdict(set)
        for row in rows:
            still[row.client_id].add(row.assignment_id)
            connection = self.connections.get(row.client_id)
            if connection is None or row.assignment_id in connection.answered:
                continue
            if row.assignment_id not in connection.given:
                if not connection.knows(row):
                    continue
                connection.given.add(row.assignment_id)
                connection.send(row)
            if isinstance(row, Owed):
                connection.owed[row.assignment_id] = row
        for client_id, earlier in answered.items():
            if client_id in self.connections:
                self.connections[client_id].answered -= earlier - still[client_id]
        ended = {a: pk for pk, given in before.items() for a in given - still[pk]}
        reasons = await in_rows(_reasons_of_end, list(ended)) if ended else {}
        for assignment_id, client_id in ended.items():
            connection = self.connections.get(client_id)
            if connection is None or assignment_id not in connection.given:
                continue
            status, reason = reasons.get(assignment_id, ("cancelled", "this assignment no longer exists"))
            if status in LIVE_ASSIGNMENT:  # it came meanwhile, or the client is connected elsewhere
                continue
            connection.forget(assignment_id)
            if status not in ("accepted", "completed"):
                connection.send(Cancel(assignment_id, reason or status))

    def _of(self, client_ids: set[uuid.UUID] | None) -> list[Connection]:
        if client_ids is None:
            return list(self.connections.values())
        return [self.connections[pk] for pk in client_ids if pk in self.connections]

    def _next_to_check(self) -> list[Connection]:
        """Those whose tokens are looked at now: everybody, or of thousands some at a time. What is revoked is hinted
        at besides."""
        if len(self.connections) <= TOKENS_A_LOOK:
            return list(self.connections.values())
        self._to_check = self._to_check or list(self.connections.values())
        some, self._to_check = self._to_check[:TOKENS_A_LOOK], self._to_check[TOKENS_A_LOOK:]
        return some

    async def _drop_dead_tokens(self, connections: Collection[Connection]) -> None:
        """Revoking a token closes its streams."""
        held = {connection.identity.token_id for connection in connections}
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
                    await in_rows(
                        presence.touch_clients,
                        combiner_id=self.lease.combiner_id,
                        epoch=self.lease.epoch,
                    )
            await asyncio.sleep(FLUSH_S)

    async def flush(self) -> None:
        received, self._received = self._received, set()
        progress, self._progress = self._progress, {}
        telemetry, self._telemetry = self._telemetry, []
        if received:
            await in_rows(_mark_received, received)
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
            said = json.loads(data)
            clients = [uuid.UUID(pk) for pk in said["clients"]]
        except (ValueError, KeyError, TypeError):
            return
        if not clients:
            if said.get("from") != PROCESS:  # a round that was closed here is known here
                self._on_wake()
            return
        if said.get("revoked"):
            self._revoked.update(clients)
        self.wake(clients)


def _owed(
    lease: CombinerLease, client_ids: set[uuid.UUID] | None, takers: set[uuid.UUID]
) -> list[Owed | Ordered]:
    """`takers`: those whose dialect has words for commands; the others are not asked for."""
    rows = assignments.owed_on(lease) if client_ids is None else assignments.owed(client_ids)
    return [*rows, *(commands.ordered(takers) if takers else [])]


def _reasons_of_end(ids: list[uuid.UUID]) -> dict[uuid.UUID, tuple[str, str]]:
    found = assignments.reasons_of_end(ids)
    others = [pk for pk in ids if pk not in found]
    return found | commands.reasons_of_end(others) if others else found


def _mark_received(ids: set[uuid.UUID]) -> None:
    if assignments.mark_delivered(ids) < len(ids):  # the others may be orders
        commands.note_started(ids)
