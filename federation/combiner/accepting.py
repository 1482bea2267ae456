"""Acceptance: updates that are on disk and checked are put to the rows, as many together as are ready."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import structlog

from federation.combiner.spool import Spool
from federation.combiner.threads import in_files, in_rows
from federation.sessions import assignments
from federation.sessions.assignments import SpooledUpdate, Verdict, WorkGrant
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

TOGETHER = 200
LINGER_S = 0.004  # less than a transaction of its own would cost whoever comes a moment later


class Acceptance:
    def __init__(
        self,
        spool: Spool,
        combiner_id: uuid.UUID,
        epoch: int,
        on_accepted: Callable[[WorkGrant, SpooledUpdate, Verdict], None],
        on_superseded: Callable[[], None],
        whole: Callable[[], int],
    ) -> None:
        """`whole`: how many updates are whole and have no verdict yet, those that were put to us included."""
        self._whole = whole
        self.spool, self.combiner_id, self.epoch = spool, combiner_id, epoch
        self._on_accepted, self._on_superseded = on_accepted, on_superseded
        self._ready: asyncio.Queue[tuple[WorkGrant, SpooledUpdate, asyncio.Future[Verdict]]] = asyncio.Queue()

    async def ask(self, grant: WorkGrant, update: SpooledUpdate) -> Verdict:
        """Whether the update counts. Raises StudioError 503."""
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._ready.put_nowait((grant, update, answer))
        return await answer

    async def _batch(self) -> list[tuple[WorkGrant, SpooledUpdate, asyncio.Future[Verdict]]]:
        """What is ready, and what will be in a moment: clients of a round tend to answer together."""
        batch = [await self._ready.get()]
        until = asyncio.get_running_loop().time() + LINGER_S
        while len(batch) < TOGETHER:
            if self._ready.empty() and self._whole() <= len(batch):
                break
            try:
                async with asyncio.timeout_at(until):
                    batch.append(await self._ready.get())
            except TimeoutError:
                break
        return batch

    async def answer_forever(self) -> None:
        while True:
            batch = await self._batch()
            try:
                verdicts = await in_rows(
                    assignments.accept_updates,
                    combiner_id=self.combiner_id,
                    epoch=self.epoch,
                    updates=[update for _, update, _ in batch],
                )
            except Exception:
                log.exception("accept.failed")
                for _, update, answer in batch:
                    self.spool.pending.discard(update.spool_name)
                    if not answer.done():
                        answer.set_exception(
                            StudioError("try_again_later", "Acceptance failed; try again.", 503)
                        )
                        answer.exception()
                continue
            for grant, update, _ in batch:
                verdict = verdicts[update.assignment_id]
                if verdict.keeps(update):
                    self.spool.pending.discard(update.spool_name)
                    self._on_accepted(grant, update, verdict)
            for _, update, answer in batch:
                verdict = verdicts[update.assignment_id]
                if not verdict.keeps(update):  # late, or a second copy: only the file named in the row counts
                    await in_files(self.spool.discard_update, update.spool_name)
                if verdict.superseded:
                    self._on_superseded()
                if not answer.done():
                    answer.set_result(verdict)
