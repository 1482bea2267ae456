"""Shares: accepted updates are folded as they arrive, and a closing share becomes a partial.

The set that counts is the accepted rows read after the share is closing; what is folded is only ever a head start on
them. After a restart, or whenever the two differ, the accumulator is built again from the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from federation.aggregation.accumulate import WeightedSum
from federation.aggregation.layout import Layout
from federation.combiner.spool import Spool
from federation.combiner.threads import in_files, in_rows
from federation.sessions import assignments
from federation.sessions.assignments import AcceptedUpdate, ShareWork, SpooledUpdate, Verdict, WorkGrant
from foundation import storage
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

NET_S = 2.0
SWEEP_EVERY_S = 30.0
LONGEST_WAIT_S = 10.0


@dataclass
class Accumulator:
    """The head start of one share: a sum, and the assignments in it."""

    layout: Layout
    total: WeightedSum
    folded: set[uuid.UUID] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    def empty(cls, layout: Layout) -> Accumulator:
        return cls(layout, WeightedSum(layout))


class SpoolLost(Exception):
    """An accepted update's file is not in the spool."""


class Shares:
    def __init__(self, spool: Spool, combiner_id: uuid.UUID, epoch: int) -> None:
        self.spool, self.combiner_id, self.epoch = spool, combiner_id, epoch
        self._sums: dict[uuid.UUID, Accumulator] = {}
        self._folds: set[asyncio.Task[None]] = set()
        self._closing: set[uuid.UUID] = set()
        self.look = asyncio.Event()

    # --- while training ---------------------------------------------------------------------------------------
    def accepted(self, grant: WorkGrant, update: SpooledUpdate, verdict: Verdict) -> None:
        """An update was accepted: fold it behind the client's back."""
        if verdict.share_id is not None:
            task = asyncio.create_task(self._fold_early(verdict.share_id, grant.layout, update))
            self._folds.add(task)
            task.add_done_callback(self._folds.discard)
        if verdict.closes:
            self.look.set()

    async def _fold_early(self, share_id: uuid.UUID, layout: list[object], update: SpooledUpdate) -> None:
        accumulator = self._sums.setdefault(share_id, Accumulator.empty(Layout.from_json(layout)))
        async with accumulator.lock:
            if self._sums.get(share_id) is not accumulator or update.assignment_id in accumulator.folded:
                return
            try:
                await in_files(
                    accumulator.total.fold, self.spool.update(update.spool_name), update.num_examples
                )
                accumulator.folded.add(update.assignment_id)
            except (
                OSError,
                StudioError,
            ) as error:  # closing tries again, from the rows, and says what is wrong
                log.warning("fold.put_off", share=str(share_id), error=str(error)[:200])
                self._sums.pop(share_id, None)

    # --- closing ----------------------------------------------------------------------------------------------
    async def close_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NET_S):
                    await self.look.wait()
            self.look.clear()
            for work in await in_rows(assignments.unfinished_shares, self.combiner_id, closing_only=True):
                if work.share_id not in self._closing:
                    self._closing.add(work.share_id)
                    task = asyncio.create_task(self._close(work))
                    self._folds.add(task)
                    task.add_done_callback(self._folds.discard)

    async def _close(self, work: ShareWork) -> None:
        try:
            accumulator = await self._complete(work)
            async with accumulator.lock:
                await self._write(work, accumulator)
        except SpoolLost as error:
            await in_rows(assignments.abandon_share, share_id=work.share_id, reason=str(error))
        except StudioError as error:
            await in_rows(
                assignments.fail_round, round_id=work.round_id, reason=f"{error.message} {self._names(work)}"
            )
        except Exception:  # such as a disk that fails; it is tried again at the next look
            log.exception("share.close_failed", share=str(work.share_id))
            await in_rows(
                assignments.share_waits,
                share_id=work.share_id,
                what="a combiner to write its partial (its disk failed; the accepted updates are kept)",
            )
        finally:
            self._sums.pop(work.share_id, None)
            self._closing.discard(work.share_id)

    @staticmethod
    def _names(work: ShareWork) -> str:
        return "Updates came from: " + ", ".join(update.client_name for update in work.accepted[:10]) + "."

    async def _complete(self, work: ShareWork) -> Accumulator:
        """The accumulator that holds exactly the accepted rows."""
        wanted = {update.assignment_id for update in work.accepted}
        accumulator = self._sums.get(work.share_id)
        if accumulator is not None:
            async with accumulator.lock:
                if not accumulator.folded <= wanted:
                    accumulator = None
        if accumulator is None:
            accumulator = Accumulator.empty(Layout.from_json(work.layout))
            self._sums[work.share_id] = accumulator
        async with accumulator.lock:
            for update in work.accepted:
                if update.assignment_id not in accumulator.folded:
                    await self._fold(accumulator, update)
        return accumulator

    async def _fold(self, accumulator: Accumulator, update: AcceptedUpdate) -> None:
        path = self.spool.update(update.spool_name)
        try:
            await in_files(accumulator.total.fold, path, update.num_examples)
        except FileNotFoundError:
            raise SpoolLost("an accepted update is no longer in the combiner's spool") from None
        accumulator.folded.add(update.assignment_id)

    async def _write(self, work: ShareWork, accumulator: Accumulator) -> None:
        """The partial goes to storage, then the share is finished. Refused writes are tried again."""
        if not accumulator.folded:
            raise StudioError("nothing_accepted", "The share holds no update.")
        attempt = uuid.uuid4()
        key = (
            f"models/{work.project_id}/{attempt}.safetensors"
            if work.is_model
            else f"partials/{work.round_id}/{attempt}.safetensors"
        )
        draft = self.spool.folder / f"{attempt}.partial"
        try:
            sha256 = await in_files(lambda: accumulator.total.write_mean(draft, partial=not work.is_model))
            stored = await self._store(work, key, draft)
        finally:
            draft.unlink(missing_ok=True)
        finished = stored and await in_rows(
            assignments.finish_share,
            share_id=work.share_id,
            combiner_id=self.combiner_id,
            epoch=self.epoch,
            partial_key=key,
            partial_sha256=sha256,
            weight=accumulator.total.weight,
            updates=accumulator.total.count,
            is_model=work.is_model,
        )
        if not finished:
            log.warning("share.given_up", share=str(work.share_id))
            if stored:
                with contextlib.suppress(Exception):  # the sweeper finds it later
                    await in_files(storage.delete, key)

    async def _store(self, work: ShareWork, key: str, draft: Path) -> bool:
        """Tried again, with backoff, as long as the round waits for it. False: it no longer does."""
        wait = 0.2
        while True:
            try:
                await in_files(storage.put, key, draft)
                return True
            except Exception as error:  # each backend raises its own; all mean: not stored
                log.warning("storage.refused", share=str(work.share_id), error=str(error)[:200])
                wanted = await in_rows(
                    assignments.share_waits,
                    share_id=work.share_id,
                    what="storage to take a combiner's partial (it refused; the updates are safe in the spool)",
                )
                if not wanted:
                    return False
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(wait * 2, LONGEST_WAIT_S)

    # --- housekeeping -----------------------------------------------------------------------------------------
    async def sweep_forever(self) -> None:
        """Spool files go when their round has ended."""
        while True:
            decided = await in_files(
                self.spool.decided
            )  # looked at before the rows: what comes later is spared
            needed = await in_rows(assignments.spool_names_in_use, self.combiner_id)
            await in_files(self.spool.sweep, decided - needed)
            open_shares = {
                w.share_id
                for w in await in_rows(assignments.unfinished_shares, self.combiner_id, closing_only=False)
            }
            for share_id in set(self._sums) - open_shares:
                if not self._sums[share_id].lock.locked():
                    self._sums.pop(share_id, None)
            await asyncio.sleep(SWEEP_EVERY_S)
