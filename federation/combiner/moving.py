"""Clients that are to go elsewhere: those pinned to other combiners, all of a combiner that is drained, and a few at a
time when another has far fewer. They are bidden farewell and ask for a combiner again; what they work on goes on.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable

import structlog

from clients_app import placement
from federation.combiner.connection import Connection, Farewell
from federation.combiner.hub import Hub
from federation.combiner.threads import in_rows

log = structlog.get_logger(__name__)

LOOK_S = 1.0  # how often a batch goes while drained
STAND_S = 3.0  # how often the rows are asked
BATCH = 10  # clients a look while drained; more where there are thousands
BATCH_PART = 50  # the whole in so many looks
REBALANCED = 5  # idle clients each time the rows are asked
_MOVED = "combiner_draining", "this combiner is being drained; connect again"


class Moving:
    """`uploading()`: the clients whose bytes arrive just now; they stay until that is done."""

    def __init__(self, hub: Hub, uploading: Callable[[], set[uuid.UUID]]) -> None:
        self._hub, self._uploading = hub, uploading
        self.draining = False
        self._sent: set[Connection] = set()  # bidden farewell, not gone yet

    async def move_forever(self) -> None:
        clock = asyncio.get_running_loop().time
        next_stand = clock()
        while True:
            if clock() >= next_stand:
                next_stand = clock() + STAND_S
                await self.stand()
            self._sent &= set(self._hub.connections.values())
            if self.draining:
                self._drain_some()
            await asyncio.sleep(LOOK_S)

    async def stand(self) -> None:
        """Ask the rows where this combiner and its clients stand, and act on it."""
        standing = await in_rows(placement.standing_of, self._hub.lease.combiner_id)
        self.draining = standing.draining
        here = self._hub.connections
        self._bid(
            (here[pk] for pk in standing.misplaced if pk in here),
            "pinned_elsewhere",
            "this client is pinned to other combiners; connect again",
        )
        if not self.draining:
            await self._even_out()

    def _drain_some(self) -> None:
        busy = self._uploading()
        staying = [c for c in self._movable() if c.identity.client_id not in busy]
        idle_first = sorted(staying, key=lambda connection: bool(connection.given))
        self._bid(idle_first[: max(BATCH, len(staying) // BATCH_PART)], *_MOVED)

    async def _even_out(self) -> None:
        idle = [connection for connection in self._movable() if not connection.given]
        if len(idle) <= placement.UNEVEN_SLACK:
            return
        some = {c.identity.client_id: c for c in random.sample(idle, REBALANCED)}
        better = await in_rows(placement.surplus_of, self._hub.lease.combiner_id, list(some))
        self._bid(
            (some[pk] for pk in better),
            "rebalanced",
            "another combiner has room; connect again",
        )

    def _movable(self) -> list[Connection]:
        """Those whose dialect asks for a combiner again; the others would come back here, and be without one there."""
        return [
            connection
            for connection in self._hub.connections.values()
            if connection.dialect in placement.MOVABLE_DIALECTS and connection not in self._sent
        ]

    def _bid(self, connections: Iterable[Connection], code: str, reason: str) -> None:
        moved = 0
        for connection in connections:
            if connection not in self._sent:
                connection.send(Farewell(code, reason, retry=True))
                self._sent.add(connection)
                moved += 1
        if moved:
            log.info("clients.moved", code=code, count=moved)
