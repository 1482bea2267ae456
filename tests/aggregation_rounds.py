"""Rounds as files, for the tests of aggregators: what combiners make of updates, and what the worker makes of that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from federation.aggregation.accumulate import WeightedSum
from federation.aggregation.aggregators import Privacy, Reduction, UpdateFacts, aggregator_named, fold_weight
from federation.aggregation.codecs import load_arrays, save_arrays
from federation.aggregation.layout import FLOATS, Layout
from tests.aggregation_oracles import Arrays, Played, wide

THIS = "the round's model"


@dataclass
class Rounds:
    """Rounds of one aggregator in a folder, each from the model and state that the last one left."""

    folder: Path
    name: str
    arguments: dict[str, Any]
    layout: Layout
    model: Path
    state: Path | None = None
    privacy: Privacy | None = None
    staleness_exponent: float | None = None
    number: int = 0
    sha256: str = ""
    facts: list[UpdateFacts] = field(default_factory=list)

    @classmethod
    def of(
        cls, folder: Path, name: str, x: Arrays, given: Mapping[str, Any] | None = None, **more: Any
    ) -> Rounds:
        layout = save_arrays(x, folder / "model0")
        return cls(folder, name, aggregator_named(name).check(given or {}), layout, folder / "model0", **more)

    def play(
        self,
        updates: Sequence[Arrays],
        *,
        examples: Sequence[float] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        homes: Sequence[int] | None = None,
        bases: Sequence[tuple[str, Arrays, int]] | None = None,
    ) -> Arrays:
        """The next model. `homes`: the combiner of each update; `bases`: (id, model, staleness) each answers."""
        aggregator = aggregator_named(self.name)
        paths = []
        for place, update in enumerate(updates):
            paths.append(self.folder / f"update{place}")
            save_arrays(update, paths[-1])
        x = load_arrays(self.model)
        self.facts = []
        for place, update in enumerate(updates):
            base, origin, staleness = bases[place] if bases else (THIS, x, 0)
            changes = [
                wide(update[s.name]) - wide(origin[s.name]) for s in self.layout.tensors if s.dtype in FLOATS
            ]
            facts = UpdateFacts(
                key=f"{place:05}",
                num_examples=float(examples[place]) if examples else 1.0,
                metadata=metadata[place] if metadata else {},
                base=base,
                delta_norm=math.hypot(*(length(change) for change in changes)),
                staleness=staleness,
            )
            aggregator.check_metadata(facts.metadata)
            weight = fold_weight(
                aggregator, facts, self.arguments,
                privacy=self.privacy, staleness_exponent=self.staleness_exponent,
            )  # fmt: skip
            self.facts.append(UpdateFacts(**{**facts.__dict__, "weight": weight}))
        out, out_state = self.folder / f"model{self.number + 1}", self.folder / f"state{self.number + 1}"
        before = self.state
        files = Reduction(
            layout=self.layout,
            model=lambda: self.model,
            out=out,
            out_state=out_state,
            partials=() if aggregator.collects else self._partials(paths, homes),
            updates=self.facts,
            collected=paths if aggregator.collects else (),
            model_id=THIS,
            bases=self._bases(bases or ()),
            state=before,
            privacy=self.privacy,
            staleness_exponent=self.staleness_exponent,
        )
        self.sha256 = aggregator.reduce(files, self.arguments)
        self.number, self.model = self.number + 1, out
        self.state = out_state if out_state.exists() else None
        return load_arrays(out)

    def _partials(self, paths: Sequence[Path], homes: Sequence[int] | None) -> list[tuple[Path, float]]:
        sums: dict[int, WeightedSum] = {}
        for place, path in enumerate(paths):
            if self.facts[place].weight > 0:
                total = sums.setdefault(homes[place] if homes else 0, WeightedSum(self.layout))
                total.fold(path, self.facts[place].weight)
        partials = []
        for home, total in sums.items():
            total.write_mean(self.folder / f"partial{home}", partial=True)
            partials.append((self.folder / f"partial{home}", total.weight))
        return partials

    def _bases(self, bases: Sequence[tuple[str, Arrays, int]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for base, arrays, _ in bases:
            path = self.folder / f"base-{base}"
            save_arrays(arrays, path)
            found[base] = lambda path=path: path
        return found


def length(change: np.ndarray) -> float:
    top = float(np.abs(change).max(initial=0.0))  # squares of 1e200 are no float64
    return top * float(np.linalg.norm((change / top).ravel())) if top else 0.0


def assert_is_near(got: Arrays, wanted: Arrays, played: Played, slack: float = 1e-11) -> None:
    """`got` must be `wanted` rounded to each tensor's dtype, but for rounding in float64: `slack` of the largest number
    in play."""
    for spec in played.layout.tensors:
        exact, found = np.asarray(wanted[spec.name]).reshape(spec.shape), got[spec.name]
        assert found.shape == spec.shape and found.dtype == played.x[spec.name].dtype
        models = [played.x, *played.updates]
        top = max(float(np.abs(wide(model[spec.name])).max(initial=0.0)) for model in models)
        loose = slack * max(top, 1.0)
        if spec.dtype == "BOOL":
            assert not ((found != (exact >= 0.5)) & (np.abs(exact - 0.5) > 1e-9)).any(), spec
        elif spec.dtype not in FLOATS:
            info = np.iinfo(found.dtype)
            assert (np.abs(wide(found) - np.clip(exact, info.min, info.max)) <= 0.5 + loose).all(), spec
        else:
            part = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-24, "F64": 2.0**-53}[spec.dtype]
            tiny = {"F16": 2.0**-25, "BF16": 1e-40, "F32": 1e-45, "F64": 0.0}[spec.dtype]
            error = np.abs(wide(found) - exact)
            assert (error <= 1.001 * part * np.abs(exact) + tiny + loose).all(), (spec, error.max())
