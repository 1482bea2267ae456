"""Collecting: accepted updates are copied to storage as they came, for sessions whose worker reads them one by one.

A copy counts once its key is in the update's row. A combiner that dies before that copies again under another key;
what it left behind is nobody's, and goes with the round or with the sweeper.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from federation.combiner.spool import Spool
from federation.combiner.threads import in_files, in_rows
from federation.sessions import assignments
from foundation import storage

log = structlog.get_logger(__name__)

COPIES_AT_ONCE = 2
NOTED_AT_ONCE = 500


class SpoolLost(Exception):
    """An accepted update's file is not in the spool."""


@dataclass(frozen=True)
class Copy:
    """An accepted update that is to be in storage."""

    assignment_id: uuid.UUID
    round_id: uuid.UUID
    spool_name: str


class Collector:
    def __init__(self, spool: Spool, combiner_id: uuid.UUID, epoch: int) -> None:
        self.spool, self.combiner_id, self.epoch = spool, combiner_id, epoch
        self._slots = asyncio.Semaphore(COPIES_AT_ONCE)
        self._copying: dict[uuid.UUID, asyncio.Task[None]] = {}
        self._stored: list[tuple[uuid.UUID, str, asyncio.Future[bool]]] = []
        self._noting: asyncio.Task[None] | None = None

    async def collect(self, updates: Sequence[Copy]) -> None:
        """Copy them; those that are being copied already are waited for. Raises SpoolLost, and whatever storage
        raises: each backend its own."""
        tasks = [self._begun(update) for update in updates]
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            task.result()

    def _begun(self, update: Copy) -> asyncio.Task[None]:
        task = self._copying.get(update.assignment_id)
        if task is None:
            task = asyncio.create_task(self._copy(update))
            self._copying[update.assignment_id] = task
            task.add_done_callback(lambda done: self._ended(update.assignment_id, done))
        return task

    def _ended(self, assignment_id: uuid.UUID, task: asyncio.Task[None]) -> None:
        self._copying.pop(assignment_id, None)
        if not task.cancelled():
            task.exception()

    async def _copy(self, update: Copy) -> None:
        key = f"updates/{update.round_id}/{uuid.uuid4()}.safetensors"
        path = self.spool.update(update.spool_name)
        async with self._slots:
            if not await in_files(path.exists):
                raise SpoolLost("an accepted update is no longer in the combiner's spool")
            await in_files(storage.put, key, path)
        if not await self._note(update.assignment_id, key):
            with contextlib.suppress(Exception):  # the sweeper finds it later
                await in_files(storage.delete, key)

    async def _note(self, assignment_id: uuid.UUID, key: str) -> bool:
        """Write the key into the row, with others that were stored meanwhile. False: the row wants none."""
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._stored.append((assignment_id, key, taken))
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._note_all())
        return await taken

    async def _note_all(self) -> None:
        while self._stored:
            batch, self._stored = self._stored[:NOTED_AT_ONCE], self._stored[NOTED_AT_ONCE:]
            try:
                taken = await in_rows(
                    assignments.note_collected,
                    combiner_id=self.combiner_id,
                    epoch=self.epoch,
                    keys={assignment_id: key for assignment_id, key, _ in batch},
                )
            except Exception as error:
                for _, _, answer in batch:
                    answer.set_exception(error)
                continue
            for assignment_id, _, answer in batch:
                answer.set_result(assignment_id in taken)
