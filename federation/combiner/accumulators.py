"""The sums of shares that are being folded, and the memory of the last."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field

from federation.aggregation.accumulate import WeightedSum
from federation.aggregation.layout import Layout

SPARED_S = 20.0


@dataclass
class Accumulator:
    """The head start of one share: a sum, and the assignments in it."""

    layout: Layout
    total: WeightedSum
    folded: set[uuid.UUID] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Accumulators:
    """Accumulators by share. The memory of the last one that was done with is kept for a while: the next round of a
    session has the same layout, and getting gigabytes from the system costs as much as folding an update."""

    def __init__(self) -> None:
        self._of: dict[uuid.UUID, Accumulator] = {}
        self._spare: WeightedSum | None = None
        self._spared_at = 0.0

    def get(self, share_id: uuid.UUID) -> Accumulator | None:
        return self._of.get(share_id)

    def begin(self, share_id: uuid.UUID, layout: Layout) -> Accumulator:
        """An empty one in the place of any other of this share."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.layout == layout:
            spare.start_over()
        else:
            spare = WeightedSum(layout)
        self._of[share_id] = Accumulator(layout, spare)
        return self._of[share_id]

    def drop(self, share_id: uuid.UUID) -> None:
        """One that may still be folded into is left to whoever does."""
        done = self._of.pop(share_id, None)
        if done is not None and not done.lock.locked():
            self._spare, self._spared_at = done.total, time.monotonic()

    def shares(self) -> set[uuid.UUID]:
        return set(self._of)

    def sweep(self, ended: set[uuid.UUID]) -> None:
        for share_id in ended & self.shares():
            if not self._of[share_id].lock.locked():
                self.drop(share_id)
        if time.monotonic() - self._spared_at > SPARED_S:
            self._spare = None
