"""Intake: bytes become an accepted update, in the order that the design gives.

The row is looked at before a byte is read; the file is whole and checksummed before it is checked; it is checked and on
the disk before it is accepted; only an accepted one is folded; and only then is the client told.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from django.conf import settings

from federation.aggregation.codecs import UpdateCheck, check_num_examples
from federation.aggregation.compressed import FORMS, compressed_layout
from federation.aggregation.layout import Layout
from federation.combiner.accepting import Acceptance
from federation.combiner.checking import HEADER_SLACK_BYTES, Whole, checked, converted, decompressed, facts_of
from federation.combiner.connection import Identity
from federation.combiner.disk import SpoolDisk, begun
from federation.combiner.reported import json_object
from federation.combiner.spool import Spool
from federation.combiner.threads import in_files, in_rows, in_syncs
from federation.combiner.upload import Piece, Superseded, Upload
from federation.sessions import assignments, counting
from federation.sessions.assignments import ModelGrant, SpooledUpdate, Verdict, WorkGrant
from federation.sessions.choices import AssignmentKind, AssignmentStatus
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

MAX_METADATA_BYTES = 64 * 1024
MAX_MISMATCHES = 2
CHECKS_AT_ONCE = 2
GATHERED_BYTES = 12 << 20  # of all uploads together, before they are handed to the disk
LEAST_GATHERED_BYTES = 128 << 10
MOST_GATHERED_BYTES = 512 << 10
MOST_PIECES = 256


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
        open_model: Callable[[ModelGrant], Awaitable[int]],
        known: Callable[[uuid.UUID, uuid.UUID], WorkGrant | None],
    ) -> None:
        """`open_model` answers an open file of the model that a grant names; `known` the grant of a client's assignment
        that was live just now, without a query."""
        self.spool = spool
        self._disk = SpoolDisk(combiner_id)
        self.acceptance = Acceptance(
            spool, combiner_id, epoch, on_accepted, on_superseded, lambda: self.waiting
        )
        self._open_model = open_model
        self._known = known
        self._writers: dict[uuid.UUID, Upload] = {}
        self._finishing: dict[uuid.UUID, asyncio.Task[Receipt]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._mismatches: dict[uuid.UUID, int] = {}
        # each check holds some MiB of block buffers, however large the model
        self._checking = asyncio.Semaphore(CHECKS_AT_ONCE)

    def uploading(self) -> set[uuid.UUID]:
        """The clients whose updates are arriving just now."""
        return {upload.grant.client_id for upload in self._writers.values()}

    @property
    def waiting(self) -> int:
        """Updates that are whole and wait for their verdict."""
        return len(self._finishing)

    # --- before a byte is read --------------------------------------------------------------------------------
    async def look(
        self, who: Identity, assignment_id: uuid.UUID, *, now: bool = False
    ) -> WorkGrant | Receipt:
        """Accepted already, ended, or free to send. `now`: as the rows say it, where what the hub read a moment ago is
        too old to refuse by. Raises StudioError 404 for another's."""
        grant = None if now else self._known(who.client_id, assignment_id)
        if grant is None:
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
        writer = self._writers.get(assignment_id)
        if writer is not None:  # of a call that has just broken off, or begins
            with contextlib.suppress(StudioError, Superseded):
                await self.settle(writer)
        return min(await in_files(self.spool.received_bytes, name), size)

    async def begin(
        self,
        who: Identity,
        assignment_id: uuid.UUID,
        upload_id: str,
        size: int,
        offset: int,
        form: str = "",
    ) -> Upload | Receipt:
        """A new upload call; an older writer for the same assignment ends first, or, when all of it had come,
        has its answer first. `form`: how the update is compressed, see `federation.aggregation.compressed`."""
        while True:
            while (verdict := self._finishing.get(assignment_id)) is not None:
                await asyncio.wait({verdict})
            found = await self.look(who, assignment_id)
            if isinstance(found, Receipt):
                return found
            if assignment_id not in self._finishing:  # nor has one been completed while we looked
                break
        if form and form not in FORMS:
            known = ", ".join(FORMS)
            return await self.reject(
                who, found, f"the update comes in a form that is not known here; {known} are"
            )
        layout = Layout.from_json(found.layout)
        most = compressed_layout(layout, form).nbytes if form else layout.nbytes
        limit = min(settings.MAX_MODEL_BYTES, most + HEADER_SLACK_BYTES)
        if not 0 < size <= limit:
            how = f", compressed to {form}," if form else ""
            return await self.reject(
                who, found, f"the update has {size} bytes; a model of this session{how} has at most {limit}"
            )
        name = self.spool.name_of(assignment_id, upload_id, size)
        upload = Upload(self.spool, found, name, size, form)
        older = self._writers.get(assignment_id)
        self._writers[assignment_id] = upload
        try:
            if older is not None:
                older.superseded = True
            upload.writing = begun(self._disk.run(upload, upload.take_over, older, offset))
            await asyncio.shield(upload.writing)
        except BaseException:
            self.release(upload)
            raise
        return upload

    async def write(self, upload: Upload, data: Piece) -> None:
        """Gathered, and written while more arrives. What is wrong with the disk, or was too long, is said later."""
        if upload.superseded:
            raise Superseded
        upload.waiting.append(data)
        upload.waiting_bytes += len(data)
        enough = max(GATHERED_BYTES // len(self._writers), LEAST_GATHERED_BYTES)
        if upload.waiting_bytes >= min(enough, MOST_GATHERED_BYTES) or len(upload.waiting) >= MOST_PIECES:
            await self._disk.hand_over(upload)

    async def hand_over(self, upload: Upload, data: Piece) -> None:
        """As `write`, without gathering: what was handed over before is written when this returns, and its memory
        may be used again."""
        if upload.superseded:
            raise Superseded
        upload.waiting.append(data)
        await self._disk.hand_over(upload)

    async def settle(self, upload: Upload) -> None:
        """All that came is in the file. Raises what was wrong with it."""
        await self._disk.hand_over(upload)
        await self._disk.done(upload)

    def release(self, upload: Upload) -> None:
        """The call is over, for whatever reason. A part stays, to be resumed; what was whole goes on to its verdict."""
        if upload.finishing:
            return self._forget(upload)
        closing = asyncio.create_task(self._close(upload))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, upload: Upload) -> None:
        """Once no thread is at work on it, nor on closing an older one for it; the next writer waits for that."""
        await self._disk.rest(upload)
        await asyncio.get_running_loop().run_in_executor(None, upload.close)
        self._forget(upload)

    def _forget(self, upload: Upload) -> None:
        if self._writers.get(upload.grant.assignment_id) is upload:
            del self._writers[upload.grant.assignment_id]

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
                await self._disk.run(upload, converted, file, self.spool.part(name), expected, unwrap)
            upload.sent_bytes = await in_files(lambda: file.stat().st_size)
            await self._disk.run(upload, upload.open_whole)
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
        upload.finishing = True
        task = asyncio.create_task(self._finish_whole(who, upload, sha256, num_examples, metadata_json))
        self._finishing[upload.grant.assignment_id] = task
        task.add_done_callback(lambda done: self._finished(upload, done))
        return await asyncio.shield(task)

    def _finished(self, upload: Upload, task: asyncio.Task[Receipt]) -> None:
        del self._finishing[upload.grant.assignment_id]
        upload.close()
        if not task.cancelled():
            task.exception()  # whoever still waits has it; a call that was cut does not want it

    async def _finish_whole(
        self, who: Identity, upload: Upload, sha256: str, num_examples: float, metadata_json: str
    ) -> Receipt:
        await self._disk.done(upload)
        return await self._finish(who, upload, sha256, num_examples, metadata_json)

    async def _finish(
        self, who: Identity, upload: Upload, sha256: str | None, num_examples: float, metadata_json: str
    ) -> Receipt:
        """`sha256` None: the file was made here."""
        grant = upload.grant
        digest = await self._disk.run(upload, upload.whole)
        if sha256 is not None and digest != sha256.lower():
            return await self._mismatch(who, upload)
        self._mismatches.pop(grant.assignment_id, None)
        # the disk and the check take about as long; what is accepted has both behind it
        syncing = begun(self._disk.run(upload, upload.sync, pool=in_syncs))
        try:
            examples = check_num_examples(num_examples)
            metadata = json_object(metadata_json or "{}", "the metadata of an update", MAX_METADATA_BYTES)
            async with self._checking:
                whole, found = await self._checked(upload, digest)
            counting.check_countable(facts_of(grant, examples, metadata, found), grant.config)
        except StudioError as error:
            if error.status == 503:
                raise
            await in_files(self.spool.discard_part, upload.name)
            return await self.reject(who, grant, error.message)
        finally:
            await asyncio.wait({syncing})  # nobody closes the file, or forgets it, before
        syncing.result()
        kept = await self._disk.run(upload, self.spool.keep, whole.name)
        if whole.name != upload.name:
            await in_files(self.spool.discard_part, upload.name)
        update = SpooledUpdate(
            assignment_id=grant.assignment_id,
            client_id=who.client_id,
            round_id=grant.round_id,
            spool_name=kept,
            sha256=whole.sha256,
            size_bytes=whole.size_bytes,
            num_examples=examples,
            update_norm=found.norm,
            delta_norm=found.delta_norm,
            metadata=metadata,
            sent_bytes=upload.sent_bytes,
            encoding=upload.form,
        )
        verdict = await self.acceptance.ask(grant, update)
        if verdict.superseded:
            raise StudioError("try_again_later", verdict.reason, 503)
        if verdict.unkept:
            return await self.reject(who, grant, verdict.reason)
        if not verdict.accepted:
            await in_rows(
                assignments.report_late,
                client_id=who.client_id,
                assignment_id=grant.assignment_id,
                reason=verdict.reason,
            )
            return Receipt("refused", verdict.reason)
        return ACCEPTED

    async def _checked(self, upload: Upload, digest: str) -> tuple[Whole, UpdateCheck]:
        """One pass over the update, beside the model that it answers where their distance matters. A compressed one
        becomes a plain one first, beside what came, which stays until this one is kept."""
        layout = Layout.from_json(upload.grant.layout)
        whole = Whole(upload.name, digest, upload.size)
        try:
            if upload.form:
                whole = Whole(uuid.uuid4().hex, "", 0)
                model = await self._open_model(upload.grant)
                whole = await self._disk.run(
                    upload, decompressed, self.spool, upload, whole.name, layout, model
                )
            base = None
            if counting.needs_delta_norm(upload.grant.config):
                base = await self._open_model(upload.grant)
            path = self.spool.part(whole.name)
            return whole, await self._disk.run(upload, checked, path, layout, whole.size_bytes, base)
        except BaseException:
            if whole.name != upload.name:
                await in_files(self.spool.discard_part, whole.name)
            raise

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
