"""What goes into a reduction: the facts of the updates that count, and the files of a round."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from django.db.models import Count, Sum

from federation.aggregation.aggregators import Aggregator, UpdateFacts, aggregator_named
from federation.aggregation.layout import DTYPES, Layout, invalid_model
from federation.aggregation.safetensors_file import Flat, read_safetensors_header
from federation.models.models import Model
from federation.sessions.assignments.share_work import weight_of
from federation.sessions.choices import AssignmentStatus, ShareStatus
from federation.sessions.config import SessionConfig
from federation.sessions.models import Assignment, CombinerShare, Round
from foundation import storage


@dataclass
class Inputs:
    """The rows and files of a round that is being reduced. Files are fetched when asked for, once, into `stack`."""

    round: Round  # with its session and input model
    stack: contextlib.ExitStack
    _local: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def config(self) -> SessionConfig:
        return SessionConfig.from_json(self.round.session.config)

    @cached_property
    def aggregator(self) -> Aggregator:
        """Raises StudioError when there is none of that name any more."""
        return aggregator_named(self.config.aggregator)

    @cached_property
    def layout(self) -> Layout:
        return Layout.from_json(self.round.input_model.layout)

    @cached_property
    def shares(self) -> list[CombinerShare]:
        rows = CombinerShare.objects.filter(round=self.round, status=ShareStatus.FINISHED)
        return list(rows.order_by("id"))

    @cached_property
    def rows(self) -> list[Assignment]:
        """The updates that count, in an order that does not depend on when they came."""
        rows = Assignment.objects.filter(share__round=self.round, status=AssignmentStatus.ACCEPTED)
        return list(
            rows.only(
                "client_id",
                "model_id",
                "num_examples",
                "metadata",
                "delta_norm",
                "staleness",
                "weight",
                "update_key",
            ).order_by("client_id", "id")
        )

    def counted(self) -> tuple[int, float]:
        """How many updates count, and their examples."""
        rows = Assignment.objects.filter(share__round=self.round, status=AssignmentStatus.ACCEPTED)
        found = rows.aggregate(updates=Count("id"), examples=Sum("num_examples"))
        return found["updates"], found["examples"] or 0.0

    @cached_property
    def facts(self) -> list[UpdateFacts]:
        return [facts_of(row) for row in self.rows]

    def fetched(self, key: str) -> Path:
        if key not in self._local:
            self._local[key] = self.stack.enter_context(storage.local(key))
        return self._local[key]

    def model(self) -> Path:
        return self.fetched(self.round.input_model.key)

    def state(self) -> Path | None:
        key = self.round.session.aggregator_state
        return self.fetched(key) if key else None

    def bases(self) -> dict[str, Callable[[], Path]]:
        """The models that the updates answer, by id."""
        wanted = {row.model_id for row in self.rows}
        keys = Model.objects.filter(pk__in=wanted).values_list("pk", "key")
        return {str(pk): partial(self.fetched, key) for pk, key in keys}

    def collected(self) -> list[Path]:
        """The updates themselves, in the order of `facts`."""
        return [self.fetched(row.update_key) for row in self.rows]

    @contextlib.contextmanager
    def collected_range(self, begin: int, end: int) -> Iterator[list[Path]]:
        """The updates, of which only elements [begin, end) are sure to be there: of what is stored elsewhere no more
        is fetched."""
        if storage.is_local():
            yield self.collected()
            return
        with tempfile.TemporaryDirectory(prefix="studio-range-") as folder:
            paths = [Path(folder) / str(place) for place in range(len(self.rows))]
            for row, path in zip(self.rows, paths, strict=True):
                _fetch_range(row.update_key, self.layout, begin, end, path)
            yield paths

    def partials(self) -> list[tuple[Path, float]]:
        return [(self.fetched(share.partial_key), share.weight) for share in self.shares if share.partial_key]


def _fetch_range(key: str, layout: Layout, begin: int, end: int, target: Path) -> None:
    """A file as long as the one stored, with its header and elements [begin, end); the rest are holes."""
    with storage.open_at(key) as body:
        header = body.read(8)
        header += body.read(int.from_bytes(header, "little"))
    target.write_bytes(header)
    with target.open("r+b") as file:
        file.truncate(len(header) + layout.nbytes)
        _, data_start, offsets = read_safetensors_header(target, max_bytes=layout.nbytes)
        for run in Flat(layout).runs(offsets, data_start):
            first, last = max(begin, run.start), min(end, run.start + run.count)
            if first >= last:
                continue
            width = DTYPES[run.dtype].itemsize
            at = run.begin + (first - run.start) * width
            file.seek(at)
            left = (last - first) * width
            with storage.open_at(key, at) as body:
                while left and (chunk := body.read(min(left, storage.CHUNK_BYTES))):
                    file.write(chunk)
                    left -= len(chunk)
            if left:
                raise invalid_model("An update in storage is shorter than its header says.")


def facts_of(row: Assignment) -> UpdateFacts:
    return UpdateFacts(
        key=str(row.client_id),
        num_examples=row.num_examples or 0.0,
        metadata=row.metadata,
        base=str(row.model_id),
        delta_norm=row.delta_norm,
        staleness=row.staleness,
        weight=weight_of(row),
    )
