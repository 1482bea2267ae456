"""Shares: accepted updates are folded as they arrive, and a closing share becomes a partial.

The set that counts is the accepted rows read after the share is closing; what is folded is only ever a head start on
them. After a restart, or whenever the two differ, the accumulator is built again from the spool.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from federation.aggregation.layout import Layout
from federation.combiner.accumulators import Accumulator, Accumulators
from federation.combiner.collecting import Collector, Copy, SpoolLost
from federation.combiner.spool import Spool
from federation.combiner.sweeper import Sweeper
from federation.combiner.threads import in_files, in_rows
from federation.sessions import assignments, counting
from federation.sessions.assignments import AcceptedUpdate, ShareWork, SpooledUpdate, Verdict, WorkGrant
from foundation import storage
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

NET_S = 2.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0  # between tries to store
EARLY_TRIES = 8  # while the round trains: about half a minute


class Shares:
    def __init__(self, spool: Spool, combiner_id: uuid.UUID, epoch: int) -> None:
        self.spool, self.combiner_id, self.epoch = spool, combiner_id, epoch
        self._sums = Accumulators()
        self._folds: set[asyncio.Task[None]] = set()
        self._closing: set[uuid.UUID] = set()
        self._begun: set[uuid.UUID] = (
            set()
        )  # to close since the rows were last asked for, or before and not ended
        self.collector = Collector(spool, combiner_id, epoch)
        self.look = asyncio.Event()
        self.sweeper = Sweeper(spool, combiner_id, self._sums, self._closing)

    # --- while training ---------------------------------------------------------------------------------------
    def accepted(self, grant: WorkGrant, update: SpooledUpdate, verdict: Verdict) -> None:
        """An update was accepted: fold it, or copy it to storage, behind the client's back."""
        self.sweeper.came(update.spool_name, update.size_bytes)
        if verdict.share_id is not None and verdict.round_id is not None:
            if counting.collects(grant.config):
                copy = Copy(update.assignment_id, verdict.round_id, update.spool_name)
                self._behind(self._collect_early(verdict.share_id, copy))
            elif verdict.weight:
                self._behind(self._fold_early(verdict.share_id, grant.layout, update, verdict.weight))
        if verdict.closing is not None:
            self._begin_to_close(verdict.closing.work(grant))
        elif verdict.closes:
            self.look.set()

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._folds.add(task)
        task.add_done_callback(self._folds.discard)

    async def _fold_early(
        self, share_id: uuid.UUID, layout: list[object], update: SpooledUpdate, weight: float
    ) -> None:
        accumulator = self._sums.get(share_id) or self._sums.begin(share_id, Layout.from_json(layout))
        async with accumulator.lock:
            if self._sums.get(share_id) is not accumulator or update.assignment_id in accumulator.folded:
                return
            try:
                await in_files(accumulator.total.fold, self.spool.update(update.spool_name), weight)
                accumulator.folded.add(update.assignment_id)
            except Exception as error:  # a torn sum is none; closing tries again, and says what is wrong
                log.warning("fold.put_off", share=str(share_id), error=str(error)[:200])
                self._sums.drop(share_id)

    async def _collect_early(self, share_id: uuid.UUID, copy: Copy) -> None:
        wait = FIRST_WAIT_S
        for _ in range(EARLY_TRIES):
            if share_id in self._closing:  # that goes on, from the rows, and says what it waits for
                return
            try:
                return await self.collector.collect([copy])
            except SpoolLost:
                return
            except Exception as error:  # each backend raises its own; all mean: not stored
                log.warning("collect.put_off", share=str(share_id), error=str(error)[:200])
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, LONGEST_WAIT_S)

    # --- closing ----------------------------------------------------------------------------------------------
    async def close_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NET_S):
                    await self.look.wait()
            self.look.clear()
            self._begun = set(self._closing)  # what ends while the rows are read is in them all the same
            for work in await in_rows(assignments.closing_shares, self.combiner_id):
                self._begin_to_close(work)
            self.sweeper.a_round_may_be_over()  # such as one that workers have reduced

    def _begin_to_close(self, work: ShareWork) -> None:
        """Unless that was begun, and the rows may be older than its end."""
        if work.share_id not in self._begun | self._closing:
            self._begun.add(work.share_id)
            self._closing.add(work.share_id)
            self._behind(self._close(work))

    async def _close(self, work: ShareWork) -> None:
        try:
            if not work.accepted:
                raise StudioError("nothing_accepted", "The share holds no update.")
            if work.collects:
                await self._collect(work)
            elif not any(update.weight for update in work.accepted):
                await self._finish(work)
            else:
                accumulator = await self._complete(work)
                async with accumulator.lock:
                    await self._write(work, accumulator)
        except SpoolLost as error:
            await in_rows(assignments.abandon_share, share_id=work.share_id, reason=str(error))
        except StudioError as error:
            names = await in_rows(assignments.names_in_share, work.share_id)
            reason = f"{error.message} Updates came from: {', '.join(names)}."
            await in_rows(assignments.fail_round, round_id=work.round_id, reason=reason)
        except Exception:  # such as a disk that fails; it is tried again at the next look
            log.exception("share.close_failed", share=str(work.share_id))
            await in_rows(
                assignments.share_waits,
                share_id=work.share_id,
                what="a combiner to write its partial (its disk failed; the accepted updates are kept)",
            )
        finally:
            self._sums.drop(work.share_id)
            self._closing.discard(work.share_id)

    async def _complete(self, work: ShareWork) -> Accumulator:
        """The accumulator that holds exactly the accepted rows."""
        wanted = {update.assignment_id for update in work.accepted if update.weight}
        accumulator = self._sums.get(work.share_id)
        if accumulator is not None:
            async with accumulator.lock:
                if not accumulator.folded <= wanted:
                    accumulator = None
        if accumulator is None:
            accumulator = self._sums.begin(work.share_id, Layout.from_json(work.layout))
        async with accumulator.lock:
            for update in work.accepted:
                if update.assignment_id in wanted - accumulator.folded:
                    await self._fold(accumulator, update)
        return accumulator

    async def _fold(self, accumulator: Accumulator, update: AcceptedUpdate) -> None:
        path = self.spool.update(update.spool_name)
        try:
            await in_files(accumulator.total.fold, path, update.weight)
        except FileNotFoundError:
            raise SpoolLost("an accepted update is no longer in the combiner's spool") from None
        accumulator.folded.add(update.assignment_id)

    async def _write(self, work: ShareWork, accumulator: Accumulator) -> None:
        """The partial goes to storage, then the share is finished. Refused writes are tried again."""
        attempt = uuid.uuid4()
        key = (
            f"models/{work.project_id}/{attempt}.safetensors"
            if work.is_model
            else f"partials/{work.round_id}/{attempt}.safetensors"
        )
        draft = self.spool.folder / f"{attempt}.partial"
        if work.is_model:  # the round's own model takes the place of the one that it answers, in memory too
            await in_files(storage.cool, work.input_key)
        try:
            sha256 = await in_files(lambda: accumulator.total.write_mean(draft, partial=not work.is_model))
            stored = await self._until_stored(
                work, lambda: in_files(storage.put, key, draft), "a combiner's partial"
            )
        finally:
            draft.unlink(missing_ok=True)
        finished = stored and await self._finish(
            work,
            partial_key=key,
            partial_sha256=sha256,
            weight=accumulator.total.weight,
            is_model=work.is_model,
        )
        if stored and not finished:
            with contextlib.suppress(Exception):  # the sweeper finds it later
                await in_files(storage.delete, key)

    async def _collect(self, work: ShareWork) -> None:
        """Every accepted update is in storage, then the share is finished."""
        copies = [
            Copy(update.assignment_id, work.round_id, update.spool_name)
            for update in work.accepted
            if not update.update_key
        ]
        if await self._until_stored(work, lambda: self.collector.collect(copies), "accepted updates"):
            weight = math.fsum(update.weight for update in work.accepted)
            await self._finish(work, weight=weight, collected=True)

    async def _finish(self, work: ShareWork, *, weight: float = 0.0, **partial: Any) -> bool:
        """False: the share was given up meanwhile, or is not whole yet; the next look tells."""
        finished = await in_rows(
            assignments.finish_share,
            share_id=work.share_id,
            round_id=work.round_id,
            session_id=work.session_id,
            combiner_id=self.combiner_id,
            epoch=self.epoch,
            weight=weight,
            updates=len(work.accepted),
            **partial,
        )
        if not finished:
            log.warning("share.given_up", share=str(work.share_id))
        else:
            self.sweeper.a_round_may_be_over()
        return finished

    async def _until_stored(self, work: ShareWork, put: Callable[[], Awaitable[None]], what: str) -> bool:
        """Tried again, with backoff, as long as the round waits for it. False: it no longer does."""
        wait = FIRST_WAIT_S
        while True:
            try:
                await put()
                return True
            except SpoolLost:
                raise
            except Exception as error:  # each backend raises its own; all mean: not stored
                log.warning("storage.refused", share=str(work.share_id), error=str(error)[:200])
                wanted = await in_rows(
                    assignments.share_waits,
                    share_id=work.share_id,
                    what=f"storage to take {what} (it refused; the updates are safe in the spool)",
                )
                if not wanted:
                    return False
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(wait * 2, LONGEST_WAIT_S)
