"""What ended rounds leave in a combiner goes: their updates in the spool, and sums of shares that nobody closes.

Now and then, and soon after a round that brought much: what is written anew each round into memory that was never used
costs several times what it costs in memory that has just become free, on the page cache's side too.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from federation.combiner.accumulators import Accumulators
from federation.combiner.spool import Spool
from federation.combiner.threads import in_files, in_rows
from federation.sessions import assignments

SWEEP_EVERY_S = 30.0
SWEEP_AFTER_BYTES = 64 << 20  # of updates that lie there


class Sweeper:
    def __init__(
        self, spool: Spool, combiner_id: uuid.UUID, sums: Accumulators, closing: set[uuid.UUID]
    ) -> None:
        """`closing`: the shares that are being closed, as whoever closes them keeps it."""
        self.spool, self.combiner_id, self.sums = spool, combiner_id, sums
        self._closing = closing
        self._lying: dict[str, int] = {}  # bytes of each update that came, by its name in the spool
        self._worth_it = asyncio.Event()

    def came(self, name: str, size: int) -> None:
        """An update was accepted."""
        self._lying[name] = size

    def a_round_may_be_over(self) -> None:
        """Look now if it is worth it."""
        if sum(self._lying.values()) >= SWEEP_AFTER_BYTES:
            self._worth_it.set()

    async def sweep_forever(self) -> None:
        while True:
            await self._sweep()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_EVERY_S):
                    await self._worth_it.wait()
            self._worth_it.clear()

    async def _sweep(self) -> None:
        # looked at before the rows: what comes later is spared
        decided, sums = await in_files(self.spool.decided), self.sums.shares()
        unneeded = decided - await in_rows(assignments.spool_names_in_use, self.combiner_id)
        await in_files(self.spool.sweep, unneeded)
        for name in unneeded:
            self._lying.pop(name, None)
        living = await in_rows(assignments.unfinished_shares, self.combiner_id) if sums else set()
        self.sums.sweep(sums - living - self._closing)
