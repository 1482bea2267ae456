"""Aggregators that collect: they compare the updates themselves, in the worker, by ranges of elements.

Some measure first (`measures`): a pass over all updates gives a small matrix, from which `plan` says what to take. Then
every range is combined by itself. Both passes can be shared out among workers; `reduce` does all of it in turn, to the
same bytes. They take synchronous rounds only: updates are compared that answer the same model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from foundation.errors import StudioError

from ..blocks import Float64s
from ..collected import Combine, WeightedCombination, combine_range
from ..distances import gram
from ..model_files import part_ranges
from ..safetensors_file import ModelSink, canonical_header, new_file
from .aggregator import Aggregator, Reduction, UpdateFacts

Plan = dict[str, Any]


class Collecting(Aggregator):
    """One that has no opinion of distances combines number by number: see `combiner`."""

    family = "robust"
    collects = True
    # Its plan needs the distances between updates: `measure` every range first.
    measures: ClassVar[bool] = False

    def fold_weight(self, update: UpdateFacts, arguments: Mapping[str, Any]) -> float:
        """Nothing is folded; it is told as what the update counts: every client alike."""
        return 1.0

    def measure(self, files: Reduction, begin: int, end: int) -> bytes:
        """What elements [begin, end) add to the matrix of products of all changes: float64, n x n, little-endian."""
        return gram(files.collected, files.model(), files.layout, begin, end).astype("<f8").tobytes()

    def plan(
        self, measured: Sequence[bytes], updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]
    ) -> Plan:
        """What `combine` must know, JSON-able; `measured` in the order of the ranges, empty unless it `measures`.

        Raises StudioError `too_few_updates`, `sum_not_finite`.
        """
        self.check_updates(len(updates), arguments)
        if not self.measures:
            return self.decide(np.empty((0, 0)), updates, arguments)
        count = len(updates)
        products = np.zeros((count, count))
        with np.errstate(over="ignore", invalid="ignore"):
            for part in measured:
                products += np.frombuffer(part, "<f8").reshape(count, count)
        return self.decide(products, updates, arguments)

    def decide(
        self, products: Float64s, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]
    ) -> Plan:
        """The plan, from the Gram matrix of all changes (see `distances`)."""
        return {"arguments": dict(arguments)}

    @abstractmethod
    def combiner(self, plan: Plan, count: int) -> Combine:
        """What turns a block of `count` updates into the model's: those whose places `plan["reads"]` lists, or all."""

    def combine(self, files: Reduction, plan: Plan, begin: int, end: int, out: Path) -> None:
        """Write elements [begin, end) of the model to `out`, raw. Raises StudioError `sum_not_finite`."""
        with new_file(out) as file:
            sink = ModelSink(file)
            self._combine(files, plan, begin, end, sink)
            sink.finish()

    def reduce(self, files: Reduction, arguments: Mapping[str, Any]) -> str:
        if len(files.collected) != len(files.updates):
            raise StudioError("no_updates", "The updates of the round are not all there.", 500)
        self.check_updates(len(files.updates), arguments)
        ranges = part_ranges(files.layout, len(files.collected))
        measured = [self.measure(files, begin, end) for begin, end in ranges] if self.measures else []
        plan = self.plan(measured, files.updates, arguments)
        with new_file(files.out) as file:
            sink = ModelSink(file)
            sink.write(canonical_header(files.layout))
            for begin, end in ranges:
                self._combine(files, plan, begin, end, sink)
            return sink.sha256

    def _combine(self, files: Reduction, plan: Plan, begin: int, end: int, sink: ModelSink) -> None:
        paths = [files.collected[place] for place in plan.get("reads", range(len(files.collected)))]
        combine_range(paths, files.layout, begin, end, sink, self.combiner(plan, len(paths)))


class Weighing(Collecting):
    """Measures, and takes a combination of whole updates."""

    measures = True

    def decide(
        self, products: Float64s, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]
    ) -> Plan:
        coefficients = self.coefficients(products, updates, arguments)
        reads = [place for place, c in enumerate(coefficients) if c != 0]
        return {"reads": reads, "coefficients": [coefficients[place] for place in reads]}

    @abstractmethod
    def coefficients(
        self, products: Float64s, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]
    ) -> list[float]:
        """What every update is multiplied by; they sum to 1."""

    def combiner(self, plan: Plan, count: int) -> Combine:
        return WeightedCombination(plan["coefficients"])


def alike(chosen: Sequence[int], count: int) -> list[float]:
    """Coefficients of the plain mean of the chosen ones among `count`."""
    return [1.0 / len(chosen) if place in set(chosen) else 0.0 for place in range(count)]
