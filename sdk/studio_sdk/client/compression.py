"""Updates in fewer bytes, for sessions that ask for it, and what their rounding still owes.

The debt of a session (and form, and tensor layout: anything else starts a new one) is what the server has not seen of
the changes of accepted updates. Each compressed update says what will be owed *once it is accepted*; so

- accepted: that takes the place of what was owed;
- refused, cancelled or expired: the round went on without this update, as it would have without compression. What
  it changed must not leak into a later round, and what was owed before is owed still: the old debt stays;
- rejected: something in what was sent was wrong, so nothing kept may make the next one wrong too: no debt at all;
- accepted as it is, by a combiner that knows no forms: the server has seen this change whole, and nothing of what was
  owed before, which is owed still;
- accepted, after it had been sent in both ways (the client was moved to such a combiner meanwhile): which of them
  counts is not known. No debt at all: at worst one rounding is lost, and nothing counts twice;
- receipt lost with the process, at whatever point: the combiner is asked before the debt is used again. Settling is one
  rename, and may be repeated; no moment to be killed in applies a debt twice or loses it;
- accepted, but the round failed afterwards, or the combiner lost its disk: the client cannot know. The debt is then
  that of a change which did not count; it is one rounding, and no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .. import studio_v1_pb2 as pb
from .. import tensors
from ..compressed import FORMS, Change, NotCompressible, compress
from .store import Store, Update
from .tasks import HeldTask
from .transfer import Transfers


class Compression:
    """Belongs to the worker's thread."""

    def __init__(self, store: Store, transfers: Transfers, say: Callable[[str], None]) -> None:
        self._store = store
        self._transfers = transfers
        self._say = say

    def update(self, held: HeldTask, plain: Update) -> Update | None:
        """The task's update as its session would like it, made once; None: it goes as it is."""
        task = held.task
        kept = self._store.kept_compressed(task.assignment_id)
        if kept is not None:
            return kept
        model = self._store.model(task.model_sha256 or task.model_id)
        # a form of a newer server is unknown here; the model may have gone in a restart
        if task.compression not in FORMS or not model.is_file():
            return None
        target = self._store.compressed_file(task.assignment_id)
        owed = self._store.new_debt_file(task.assignment_id)
        try:
            debt = debt_name(task.session_id, task.compression, tensors.read_specs(model))
            self._ask_after(debt, held)
            change = Change(model, self._store.update_file(task.assignment_id), self._store.debt_file(debt))
            sha256 = self._compress(held, change, target, owed)
            return self._store.keep_update(task.assignment_id, sha256, plain.metadata, task.compression, debt)
        except (NotCompressible, tensors.TensorFileError, OSError) as error:
            target.unlink(missing_ok=True)
            owed.unlink(missing_ok=True)
            self._say(f"{held.title}: the update goes as it is, not as {task.compression}: {error}")
            return None

    def _compress(self, held: HeldTask, change: Change, target: Path, owed: Path) -> str:
        """Its sha256. A debt with which no update could be compressed any more is forgotten."""
        form = held.task.compression
        try:
            return compress(change, form, target, owed)
        except NotCompressible as error:
            if change.owed is None or not change.owed.is_file():
                raise
            sha256 = compress(replace(change, owed=None), form, target, owed)
            change.owed.unlink(missing_ok=True)
            self._say(f"{held.title}: what earlier roundings owed is forgotten: with it, {error}")
            return sha256

    def _ask_after(self, debt: str, held: HeldTask) -> None:
        """Updates with this debt whose receipt was lost: what became of them decides what is owed."""
        for earlier in self._store.unsettled(debt):
            receipt = self._transfers.receipt(earlier, held.cancel)
            if receipt is not None:
                plain = self._store.kept_update(earlier.assignment_id)
                as_it_is = plain is not None and self._store.was_sent(plain)
                sent = (
                    plain if plain is not None and as_it_is and not self._store.was_sent(earlier) else earlier
                )
                self.settle(sent, receipt)
                self._store.drop_update(earlier.assignment_id)

    def settle(self, sent: Update, receipt: pb.Receipt) -> None:
        """The answer to an update is here; `sent` is what was sent last."""
        compressed = sent if sent.form else self._store.kept_compressed(sent.assignment_id)
        if compressed is None:
            return
        plain = self._store.kept_update(sent.assignment_id)
        both = plain is not None and self._store.was_sent(plain) and self._store.was_sent(compressed)
        if receipt.status == pb.Receipt.ACCEPTED and both:
            self._store.forgive(compressed)
        elif receipt.status == pb.Receipt.ACCEPTED and sent.form:
            self._store.settle(sent)
        elif receipt.status == pb.Receipt.REJECTED and sent.form:
            self._store.forgive(sent)


def debt_name(session_id: str, form: str, specs: list[tuple[str, str, tuple[int, ...]]]) -> str:
    """Under which name a debt is kept: whatever differs in these starts a new one. `specs`: see `read_specs`."""
    layout = hashlib.sha256(repr(specs).encode()).hexdigest()
    return f"{session_id} {form} {layout}"
