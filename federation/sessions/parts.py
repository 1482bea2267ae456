"""A large reduction, spread over workers by ranges of elements.

Whoever reduces the round writes a row for every range, tells other workers, and works on them itself until none is
left. A claim on a range is a lease: what nobody finished in time is taken over, so one worker is enough, and none
that dies is waited for longer than its lease. The ranges do not depend on how many workers there are; nor do the bytes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from django.conf import settings
from django.db.models import Q, QuerySet

from federation.aggregation.aggregators import Reduction
from federation.aggregation.aggregators.collecting import Collecting
from federation.aggregation.model_files import assemble, part_ranges
from federation.sessions.choices import RoundStatus
from federation.sessions.inputs import Inputs
from federation.sessions.models import ReductionPart, Round
from foundation import hints, storage
from foundation.clock import db_now

log = structlog.get_logger(__name__)

HELP_TASK = "federation.sessions.tasks.help_reduce"
MOST_HELPERS = 32  # asked for; each does ranges until none is left
MEASURE, COMBINE = "measure", "combine"
LEASE_S = 30.0  # and what the bytes take
SLOWEST_BYTES_PER_S = 20e6
FIRST_LOOK_S, LONGEST_LOOK_S = 0.02, 0.5  # between looks at ranges that others work on


class Superseded(Exception):
    """Another attempt reduces this round now."""


def is_large(inputs: Inputs) -> bool:
    """Whether the updates are so many bytes that other workers are asked to help."""
    return len(inputs.rows) * inputs.layout.nbytes > int(settings.REDUCTION_SPREAD_BYTES)


@dataclass(frozen=True)
class Attempt:
    """One worker's part in the attempt `owner` at reducing a round."""

    inputs: Inputs
    aggregator: Collecting
    owner: uuid.UUID
    worker: uuid.UUID
    folder: Path

    @property
    def top(self) -> str:
        return f"parts/{self.inputs.round.pk}/{self.owner}"

    @property
    def lease_s(self) -> float:
        clients = max(len(self.inputs.rows), 1)
        ranges = max(len(part_ranges(self.inputs.layout, clients)), 1)
        return LEASE_S + clients * self.inputs.layout.nbytes / ranges / SLOWEST_BYTES_PER_S

    # --- whoever reduces --------------------------------------------------------------------------------------
    def reduce(self, out: Path) -> str:
        """Write the model to `out`; its sha256. Raises Superseded, and as the aggregator's `reduce` does."""
        inputs, arguments = self.inputs, self.inputs.config.aggregator_kwargs
        self.aggregator.check_updates(len(inputs.facts), arguments)
        self._clear()
        try:
            measured: list[bytes] = []
            if self.aggregator.measures:
                measured = [inputs.fetched(key).read_bytes() for key in self._spread(MEASURE)]
            plan = self.aggregator.plan(measured, inputs.facts, arguments)
            self._put(f"{self.top}/plan.json", lambda path: path.write_text(json.dumps(plan)))
            return assemble(inputs.layout, [inputs.fetched(key) for key in self._spread(COMBINE)], out)
        finally:
            self._clear(mine_only=True)

    def _clear(self, *, mine_only: bool = False) -> None:
        """Ranges live as long as the attempt that wrote them; earlier attempts at this round are over."""
        rows = ReductionPart.objects.filter(round=self.inputs.round)
        (rows.filter(owner=self.owner) if mine_only else rows).delete()
        with contextlib.suppress(Exception):  # the sweeper finds them later
            storage.delete_under(self.top if mine_only else f"parts/{self.inputs.round.pk}")

    def _spread(self, phase: str) -> list[str]:
        """Have every range done, by whoever comes first; the keys of the results in the order of the ranges."""
        ranges = part_ranges(self.inputs.layout, len(self.inputs.rows))
        ReductionPart.objects.bulk_create(
            ReductionPart(round=self.inputs.round, owner=self.owner, phase=phase, begin=begin, end=end)
            for begin, end in ranges
        )
        for _ in ranges[1 : MOST_HELPERS + 1]:
            hints.enqueue(HELP_TASK, str(self.inputs.round.pk), str(self.owner), queue="reduce")
        wait = FIRST_LOOK_S
        while True:
            if self.work(phase):
                wait = FIRST_LOOK_S
            keys = list(self._parts(phase).order_by("begin").values_list("key", flat=True))
            if len(keys) != len(ranges):
                raise Superseded
            if all(keys):
                return keys
            # Bounded: a lease that runs out is taken over by `work`.
            time.sleep(wait)
            wait = min(wait * 2, LONGEST_LOOK_S)

    # --- everybody --------------------------------------------------------------------------------------------
    def work(self, phase: str) -> int:
        """Claim and do ranges until none is free; answers how many were done."""
        done = 0
        while (part := self._claim(phase)) is not None:
            self._do(part)
            done += 1
        return done

    def _parts(self, phase: str) -> QuerySet[ReductionPart]:
        return ReductionPart.objects.filter(owner=self.owner, phase=phase)

    def _claim(self, phase: str) -> ReductionPart | None:
        now = db_now()
        free = self._parts(phase).filter(Q(until=None) | Q(until__lt=now), key="")
        for part in free.order_by("begin"):
            until = now + dt.timedelta(seconds=self.lease_s)
            if free.filter(pk=part.pk).update(worker=self.worker, until=until):
                return part
        return None

    def _do(self, part: ReductionPart) -> None:
        """The result goes to storage, then its key into the row, if the claim still holds."""
        key = f"{self.top}/{uuid.uuid4()}"
        mine = ReductionPart.objects.filter(pk=part.pk, worker=self.worker, key="")
        try:
            with self.inputs.collected_range(part.begin, part.end) as paths:
                files = self._files(paths)
                if part.phase == MEASURE:
                    result = self.aggregator.measure(files, part.begin, part.end)
                    self._put(key, lambda path: path.write_bytes(result))
                else:
                    plan = json.loads(self.inputs.fetched(f"{self.top}/plan.json").read_text())
                    self._put(
                        key, lambda path: self.aggregator.combine(files, plan, part.begin, part.end, path)
                    )
        except BaseException:
            mine.update(worker=None, until=None)
            raise
        if not mine.update(key=key):
            with contextlib.suppress(Exception):  # the sweeper finds it later
                storage.delete(key)

    def _files(self, paths: Sequence[Path]) -> Reduction:
        return Reduction(
            layout=self.inputs.layout,
            model=self.inputs.model,
            model_id=str(self.inputs.round.input_model_id),
            updates=self.inputs.facts,
            collected=paths,
            out=self.folder / "model.safetensors",
            out_state=self.folder / "state.safetensors",
        )

    def _put(self, key: str, write: Callable[[Path], object]) -> None:
        path = self.folder / uuid.uuid4().hex
        try:
            write(path)
            storage.put(key, path)
        finally:
            path.unlink(missing_ok=True)


def help_reduce(round_id: uuid.UUID, owner: uuid.UUID) -> int:
    """A worker that was asked to help does what is left of an attempt; answers how many ranges it did."""
    round_ = (
        Round.objects.select_related("input_model", "session")
        .filter(pk=round_id, status=RoundStatus.REDUCING, reduce_owner=owner)
        .first()
    )
    if round_ is None:
        return 0
    with contextlib.ExitStack() as opened:
        inputs = Inputs(round_, opened)
        aggregator = inputs.aggregator
        if not isinstance(aggregator, Collecting):
            return 0
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="studio-reduce-")))
        attempt = Attempt(inputs, aggregator, owner, uuid.uuid4(), folder)
        try:
            return attempt.work(MEASURE) + attempt.work(COMBINE)
        except Exception as error:  # each backend of storage raises its own; whoever reduces meets it too
            log.warning("reduce.help_failed", round=str(round_id), error=str(error)[:200])
            return 0
