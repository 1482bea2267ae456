"""Intake: bytes become an accepted update, in the order that the design gives.

The row is looked at before a byte is read; the file is whole, synced and checksummed before it is checked; it is
checked before it is accepted; only an accepted one is folded; and only then is the client told.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings

from federation.aggregation.codecs import check_num_examples, check_update, to_canonical
from federation.aggregation.layout import Layout
from federation.combiner.connection import Identity
from federation.combiner.spool import Spool
from federation.combiner.staging import WIDEST
from federation.combiner.threads import in_files, in_rows
from federation.combiner.upload import Superseded, Upload
from federation.sessions import assignments
from federation.sessions.assignments import SpooledUpdate, Verdict, WorkGrant
from federation.sessions.choices import AssignmentKind, AssignmentStatus
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

MAX_METADATA_BYTES = 64 * 1024
HEADER_SLACK_BYTES = 1 << 20  # what a file may hold beyond its tensors
MAX_MISMATCHES = 2
CHECKS_AT_ONCE = 2
TELL_EVERY_S = 60.0


@dataclass(frozen=True)
class Receipt:
    """The answer to an upload. `accepted` is a promise: the update survives any one process dying."""

    status: str  # accepted | rejected (it is wrong) | refused (it is not wanted any more)
    reason: str = ""


ACCEPTED = Receipt("accepted")


class Intake:
    def __init__(
        self,
        spool: Spool,
        combiner_id: uuid.UUID,
        epoch: int,
        on_accepted: Callable[[WorkGrant, SpooledUpdate, Verdict], None],
        on_superseded: Callable[[], None],
    ) -> None:
        self.spool, self.combiner_id, self.epoch = spool, combiner_id, epoch
        self._on_accepted = on_accepted
        self._on_superseded = on_superseded
        self._writers: dict[uuid.UUID, Upload] = {}
        self._finishing: dict[uuid.UUID, asyncio.Task[Receipt]] = {}
        self._told_disk_at = -math.inf
        self._telling: set[asyncio.Task[None]] = set()
        self._mismatches: dict[uuid.UUID, int] = {}
        # each check holds some MiB of block buffers, however large the model
        self._checking = asyncio.Semaphore(CHECKS_AT_ONCE)
        self._ready: asyncio.Queue[tuple[WorkGrant, SpooledUpdate, asyncio.Future[Verdict]]] = asyncio.Queue()

    # --- before a byte is read --------------------------------------------------------------------------------
    async def look(self, who: Identity, assignment_id: uuid.UUID) -> WorkGrant | Receipt:
        """The row first: accepted already, ended, or free to send. Raises StudioError 404 for another's."""
        grant = await in_rows(assignments.work_grant, who.client_id, assignment_id)
        if grant is None:
            raise StudioError("not_found", "There is no such assignment of this client.", 404)
        if grant.kind != AssignmentKind.TRAIN:
            raise StudioError("not_training", "Only a training assignment takes a model.")
        if grant.status == AssignmentStatus.ACCEPTED:
            return ACCEPTED
        if grant.status == AssignmentStatus.REJECTED:
            return Receipt("rejected", grant.reason)
        if not grant.live:
            await in_rows(
                assignments.report_late,
                client_id=who.client_id,
                assignment_id=assignment_id,
                reason=grant.reason,
            )
            return Receipt("refused", grant.reason)
        return grant

    async def resume_offset(
        self, who: Identity, assignment_id: uuid.UUID, upload_id: str, size: int
    ) -> int | Receipt:
        found = await self.look(who, assignment_id)
        if isinstance(found, Receipt):
            return found
        name = self.spool.name_of(assignment_id, upload_id, size)
        return min(await in_files(self.spool.received_bytes, name), size)

    async def begin(
        self, who: Identity, assignment_id: uuid.UUID, upload_id: str, size: int, offset: int
    ) -> Upload | Receipt:
        """A new upload call; an older writer for the same assignment ends first, or, when all of it had come,
        has its answer first."""
        while True:
            while (verdict := self._finishing.get(assignment_id)) is not None:
                await asyncio.wait({verdict})
            found = await self.look(who, assignment_id)
            if isinstance(found, Receipt):
                return found
            if assignment_id not in self._finishing:  # nor has one been completed while we looked
                break
        limit = min(settings.MAX_MODEL_BYTES, Layout.from_json(found.layout).nbytes + HEADER_SLACK_BYTES)
        if not 0 < size <= limit:
            return await self.reject(
                who, found, f"the update has {size} bytes; a model of this session has at most {limit}"
            )
        name = self.spool.name_of(assignment_id, upload_id, size)
        upload = Upload(self.spool, found, name, size)
        older = self._writers.get(assignment_id)
        self._writers[assignment_id] = upload
        try:
            if older is not None:
                older.superseded = True
                await in_files(older.close)
                if older.name != name:
                    await in_files(self.spool.discard_part, older.name)
            there = await in_files(self.spool.received_bytes, name)
            if not 0 <= offset <= there:
                raise StudioError(
                    "bad_offset", f"This upload can go on at most at byte {there}, not {offset}.", 409
                )
            await self._disk(upload, upload.open_at, offset)
        except BaseException:
            self.release(upload)
            raise
        return upload

    async def write(self, upload: Upload, data: bytes) -> None:
        if upload.superseded:
            raise Superseded
        await self._disk(upload, upload.write, data)

    def release(self, upload: Upload) -> None:
        """The call is over, for whatever reason. A part stays, to be resumed; what was whole goes on to its verdict."""
        if upload.finishing:
            return self._forget(upload)
        # a thread may still be at work on it; closing waits for that one, and the next writer for closing
        closing = asyncio.get_running_loop().run_in_executor(None, upload.close)
        closing.add_done_callback(lambda _: self._forget(upload))

    def _forget(self, upload: Upload) -> None:
        if self._writers.get(upload.grant.assignment_id) is upload:
            del self._writers[upload.grant.assignment_id]

    async def _disk(self, upload: Upload, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return await in_files(work, *args)
        except OSError as error:
            log.error("spool.refused", error=str(error))
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            reason = "its disk is full" if full else "its disk failed"
            self._tell(upload.grant.project_id, reason)
            raise StudioError(
                "try_again_later", f"This combiner cannot take it: {reason}; try again later.", 503
            ) from error

    def _tell(self, project_id: uuid.UUID, reason: str) -> None:
        """An event for the operator, once a minute."""
        now = time.monotonic()
        if now - self._told_disk_at < TELL_EVERY_S:
            return
        self._told_disk_at = now
        telling = asyncio.create_task(
            in_rows(
                assignments.note_full_disk, combiner_id=self.combiner_id, project_id=project_id, reason=reason
            )
        )
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    # --- a file that came before its assignment was named ------------------------------------------------------
    async def adopt(
        self,
        who: Identity,
        assignment_id: uuid.UUID,
        file: Path,
        *,
        num_examples: float,
        metadata_json: str,
        unwrap: Callable[[Path, Path], None] | None = None,
    ) -> Receipt:
        """Make a staged file (`.npz` or `.safetensors`, inside whatever `unwrap(src, dst)` takes off) the update of
        an assignment: converted off the loop to what the spool holds, then as any other. The file stays the
        caller's."""
        while True:
            while (verdict := self._finishing.get(assignment_id)) is not None:
                await asyncio.wait({verdict})
            found = await self.look(who, assignment_id)
            if isinstance(found, Receipt):
                return found
            if assignment_id not in self._finishing:
                break
        task = asyncio.create_task(self._adopt(who, found, file, num_examples, metadata_json, unwrap))
        self._finishing[assignment_id] = task
        task.add_done_callback(lambda done: self._adopted(assignment_id, done))
        return await asyncio.shield(task)

    def _adopted(self, assignment_id: uuid.UUID, task: asyncio.Task[Receipt]) -> None:
        del self._finishing[assignment_id]
        if not task.cancelled():
            task.exception()

    async def _adopt(
        self,
        who: Identity,
        grant: WorkGrant,
        file: Path,
        num_examples: float,
        metadata_json: str,
        unwrap: Callable[[Path, Path], None] | None,
    ) -> Receipt:
        name = uuid.uuid4().hex
        upload = Upload(self.spool, grant, name, 0)
        expected = Layout.from_json(grant.layout)
        try:
            async with self._checking:
                await self._disk(upload, _convert, file, self.spool.part(name), expected, unwrap)
            upload.size = await in_files(self.spool.received_bytes, name)
            await self._disk(upload, upload.open_at, upload.size)
            return await self._finish(who, upload, None, num_examples, metadata_json)
        except StudioError as error:
            if error.status == 503:
                raise
            return await self.reject(who, grant, error.message)
        finally:
            upload.close()
            await in_files(self.spool.discard_part, name)

    # --- once whole -------------------------------------------------------------------------------------------
    async def finish(
        self, who: Identity, upload: Upload, sha256: str, num_examples: float, metadata_json: str
    ) -> Receipt:
        """Complete, checked, accepted: in that order. Answers what the client may be told. A call that is cut from
        here on changes nothing: the update has its verdict, and the next call is told."""
        if upload.superseded:
            raise Superseded
        if upload.offset != upload.size:
            raise StudioError(
                "incomplete", f"{upload.offset} of {upload.size} bytes arrived; resume the upload.", 409
            )
        upload.finishing = True
        task = asyncio.create_task(self._finish(who, upload, sha256, num_examples, metadata_json))
        self._finishing[upload.grant.assignment_id] = task
        task.add_done_callback(lambda done: self._finished(upload, done))
        return await asyncio.shield(task)

    def _finished(self, upload: Upload, task: asyncio.Task[Receipt]) -> None:
        del self._finishing[upload.grant.assignment_id]
        upload.close()
        if not task.cancelled():
            task.exception()  # whoever still waits has it; a call that was cut does not want it

    async def _finish(
        self, who: Identity, upload: Upload, sha256: str | None, num_examples: float, metadata_json: str
    ) -> Receipt:
        """`sha256` None: the file was made here."""
        grant = upload.grant
        digest = await self._disk(upload, upload.sync)
        if sha256 is not None and digest != sha256.lower():
            return await self._mismatch(who, upload)
        self._mismatches.pop(grant.assignment_id, None)
        try:
            examples = check_num_examples(num_examples)
            metadata = parse_metadata(metadata_json)
            expected = Layout.from_json(grant.layout)
            async with self._checking:
                norm = await self._disk(upload, _check, self.spool.part(upload.name), expected, upload.size)
        except StudioError as error:
            if error.status == 503:
                raise
            await in_files(self.spool.discard_part, upload.name)
            return await self.reject(who, grant, error.message)
        kept = await self._disk(upload, self.spool.keep, upload.name)
        update = SpooledUpdate(
            assignment_id=grant.assignment_id,
            client_id=who.client_id,
            round_id=grant.round_id,
            spool_name=kept,
            sha256=digest,
            size_bytes=upload.size,
            num_examples=examples,
            update_norm=norm,
            metadata=metadata,
        )
        verdict = await self._accept(grant, update)
        if verdict.superseded:
            raise StudioError("try_again_later", verdict.reason, 503)
        if not verdict.accepted:
            await in_rows(
                assignments.report_late,
                client_id=who.client_id,
                assignment_id=grant.assignment_id,
                reason=verdict.reason,
            )
            return Receipt("refused", verdict.reason)
        return ACCEPTED

    async def _mismatch(self, who: Identity, upload: Upload) -> Receipt:
        await in_files(self.spool.discard_part, upload.name)
        key = upload.grant.assignment_id
        self._mismatches[key] = self._mismatches.get(key, 0) + 1
        sentence = "the bytes that arrived do not have the SHA-256 that was named"
        if self._mismatches[key] < MAX_MISMATCHES:
            raise StudioError("checksum", f"{sentence}; send them again.", 409)
        del self._mismatches[key]
        return await self.reject(who, upload.grant, f"{sentence}, twice")

    async def reject(self, who: Identity, grant: WorkGrant, reason: str) -> Receipt:
        await in_rows(
            assignments.end_with_reason,
            client_id=who.client_id,
            assignment_id=grant.assignment_id,
            status=AssignmentStatus.REJECTED,
            reason=reason,
        )
        return Receipt("rejected", reason)

    # --- acceptance, batched over updates that are ready together ---------------------------------------------
    async def _accept(self, grant: WorkGrant, update: SpooledUpdate) -> Verdict:
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._ready.put_nowait((grant, update, answer))
        return await answer

    async def accept_forever(self) -> None:
        while True:
            batch = [await self._ready.get()]
            while not self._ready.empty() and len(batch) < 200:
                batch.append(self._ready.get_nowait())
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
            for grant, update, answer in batch:
                verdict = verdicts[update.assignment_id]
                if verdict.accepted and verdict.spool_name == update.spool_name:
                    self.spool.pending.discard(update.spool_name)
                    self._on_accepted(grant, update, verdict)
                else:  # late, or a second copy: only the file named in the row counts
                    await in_files(self.spool.discard_update, update.spool_name)
                if verdict.superseded:
                    self._on_superseded()
                if not answer.done():
                    answer.set_result(verdict)


def _check(path: Any, expected: Layout, size: int) -> float:
    return float(check_update(path, expected, max_bytes=size).norm)


def _convert(
    source: Path, target: Path, expected: Layout, unwrap: Callable[[Path, Path], None] | None
) -> None:
    inner = target.with_suffix(".inner.part")
    try:
        if unwrap is not None:
            unwrap(source, inner)
            source = inner
        to_canonical(
            source, target, max_bytes=WIDEST * expected.nbytes + HEADER_SLACK_BYTES, expected=expected
        )
    finally:
        inner.unlink(missing_ok=True)


def parse_metadata(text: str) -> dict[str, Any]:
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise StudioError("metadata_too_long", "the metadata of an update must be at most 64 KiB of JSON")
    try:
        metadata = json.loads(text or "{}", parse_constant=lambda _name: None)
    except (ValueError, RecursionError):
        raise StudioError("metadata_not_json", "the metadata of an update must be a JSON object") from None
    if not isinstance(metadata, dict):
        raise StudioError("metadata_not_json", "the metadata of an update must be a JSON object")
    return metadata
