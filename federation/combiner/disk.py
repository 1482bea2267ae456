"""The disk under the spool, as uploads use it: in threads, each upload's bytes in order, what is wrong with it said."""

from __future__ import annotations

import asyncio
import errno
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from federation.combiner.threads import in_files, in_rows, in_syncs
from federation.combiner.upload import Superseded, Upload
from federation.sessions import assignments
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

TELL_EVERY_S = 60.0


class SpoolDisk:
    def __init__(self, combiner_id: uuid.UUID) -> None:
        self.combiner_id = combiner_id
        self._told_at = -math.inf
        self._telling: set[asyncio.Task[None]] = set()

    async def run(
        self,
        upload: Upload,
        work: Callable[..., Any],
        *args: Any,
        pool: Callable[..., Awaitable[Any]] = in_files,
    ) -> Any:
        """Work of an upload's in a thread. Raises StudioError `try_again_later` when the disk refuses."""
        try:
            return await pool(work, *args)
        except OSError as error:
            log.error("spool.refused", error=str(error))
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            reason = "its disk is full" if full else "its disk failed"
            self._tell(upload.grant.project_id, reason)
            raise StudioError(
                "try_again_later", f"This combiner cannot take it: {reason}; try again later.", 503
            ) from error

    async def hand_over(self, upload: Upload) -> None:
        """What waits goes to the disk, behind what it has; a thread works while more arrives. Raises what was wrong
        with what was handed over before."""
        while upload.writing is not None and not upload.writing.done():
            await asyncio.wait({upload.writing})
        if upload.writing is not None:
            upload.writing.result()
        if upload.waiting:
            upload.waiting_bytes = 0
            upload.writing = begun(self._write(upload))

    async def _write(self, upload: Upload) -> None:
        try:
            await self.run(upload, upload.write)
        except Superseded:
            if upload.syncing is not None:
                await asyncio.shield(upload.syncing)  # when that failed, it is why nothing may be written
            raise
        if upload.much_unsynced and (upload.syncing is None or upload.syncing.done()):
            # beside what is written next, which need not wait for it
            upload.syncing = begun(self.run(upload, upload.sync_meanwhile, pool=in_syncs))

    async def done(self, upload: Upload) -> None:
        """No thread is at work for it any more. Raises what was wrong."""
        if upload.writing is not None:  # shielded: whoever waits may be cut, and another call go on with it
            await asyncio.shield(upload.writing)
        if upload.syncing is not None:  # looked at now: the last write may have begun it
            await asyncio.shield(upload.syncing)

    async def rest(self, upload: Upload) -> None:
        """As `done`, whatever was wrong."""
        if upload.writing is not None:
            await asyncio.wait({upload.writing})
        if upload.syncing is not None:
            await asyncio.wait({upload.syncing})

    def _tell(self, project_id: uuid.UUID, reason: str) -> None:
        """An event for the operator, once a minute."""
        now = time.monotonic()
        if now - self._told_at < TELL_EVERY_S:
            return
        self._told_at = now
        telling = asyncio.create_task(
            in_rows(
                assignments.note_full_disk, combiner_id=self.combiner_id, project_id=project_id, reason=reason
            )
        )
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)


def begun(work: Awaitable[Any]) -> asyncio.Future[Any]:
    """Under way. Whoever writes next, or finishes, is told of its error; a call that was cut does not want it."""
    future = asyncio.ensure_future(work)
    future.add_done_callback(_retrieved)
    return future


def _retrieved(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
