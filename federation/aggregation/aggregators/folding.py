"""Aggregators that fold: each is a weight per update, a scale and a server optimiser. See `server_step`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundation.errors import StudioError

from ..accumulate import combine_partials
from ..privacy import GaussianNoise, clip_factor
from ..server_optimisers import Plain, ServerOptimiser
from ..server_step import step_model
from .aggregator import Aggregator, Privacy, Reduction, UpdateFacts


class Folding(Aggregator):
    """FedAvg, unless it says otherwise."""

    def optimiser(self, arguments: Mapping[str, Any]) -> ServerOptimiser:
        """What makes the next model of the mean change."""
        return Plain()

    def scale(self, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]) -> float:
        """What the difference of the means is multiplied by; `updates` carry their weights, as if all were fresh."""
        return 1.0

    def reduce(self, files: Reduction, arguments: Mapping[str, Any]) -> str:
        if not files.partials and not files.updates and files.privacy is None:
            raise StudioError("no_updates", "There is no partial to combine.")
        bases = _other_bases(files)
        fresh, discount = _as_if_fresh(files)
        if self.plain_mean and files.partials and files.privacy is None and bases is None:
            return combine_partials(files.partials, files.layout, files.out)
        noise = None
        if files.privacy is not None:
            scale = sum(weight for _, weight in files.partials) / files.privacy.divisor
            noise = GaussianNoise(
                files.privacy.noise_multiplier * files.privacy.clip_norm / files.privacy.divisor
            )
        else:
            scale = discount * self._finite_scale(fresh, arguments) if files.partials else 1.0
        return step_model(
            self.optimiser(arguments),
            files.partials,
            files.layout,
            model=files.model(),
            state=files.state,
            out=files.out,
            out_state=files.out_state,
            scale=scale,
            bases=bases,
            noise=noise,
        )

    def _finite_scale(self, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]) -> float:
        try:
            scale = self.scale(updates, arguments)
        except (ZeroDivisionError, OverflowError):
            scale = math.nan
        if not math.isfinite(scale):
            raise StudioError(
                "sum_not_finite", "What the clients sent with their updates makes no finite step."
            )
        return scale


def _as_if_fresh(files: Reduction) -> tuple[Sequence[UpdateFacts], float]:
    """The updates with the weights that they would have without staleness, and what the mean change is multiplied by
    for it: staleness shrinks each change, but not what their sum is divided by (FedBuff, Algorithm 1: by K), so a
    buffer of stale updates takes a shorter step. Who answers the newest model is fresh, whatever was thought when its
    update came: the round before this one may have failed since."""
    exponent = files.staleness_exponent
    if exponent is None:
        return files.updates, 1.0
    fresh = [
        replace(update, weight=update.weight / staleness_discount(update.staleness, exponent))
        if update.base != files.model_id
        else update
        for update in files.updates
    ]
    whole = math.fsum(update.weight for update in fresh)
    return fresh, math.fsum(update.weight for update in files.updates) / whole if whole else 1.0


def staleness_discount(staleness: int, exponent: float) -> float:
    """(1 + staleness)^-exponent (FedBuff, section 5)."""
    return float((1.0 + max(staleness, 0)) ** -exponent)


def _other_bases(files: Reduction) -> list[tuple[Path, float]] | None:
    """The models that updates answer with their summed weights; None when it is the round's own for all of them."""
    weights: dict[str, float] = {}
    for update in files.updates:
        if update.weight > 0:
            weights[update.base] = weights.get(update.base, 0.0) + update.weight
    if set(weights) <= {files.model_id}:
        return None
    if not set(weights) <= {files.model_id, *files.bases}:
        raise StudioError("no_base", "A model that some update answers is no longer there.", 500)
    return [
        ((files.model if base == files.model_id else files.bases[base])(), weight)
        for base, weight in sorted(weights.items())
    ]


def known_delta_norm(update: UpdateFacts) -> float:
    """Raises StudioError `no_delta_norm` when it is not known, or is no number from 0 up."""
    if update.delta_norm is None or not update.delta_norm >= 0:
        raise StudioError("no_delta_norm", "How far the update lies from its model is not known.", 500)
    return update.delta_norm


def fold_weight(
    aggregator: Aggregator,
    update: UpdateFacts,
    arguments: Mapping[str, Any],
    *,
    privacy: Privacy | None,
    staleness_exponent: float | None,
) -> float:
    """What one update counts in the sum of its combiner, at least 0 and finite; 0: counted, not folded.

    The aggregator's own weight; under privacy min(1, C / |x_i - base_i|) for every aggregator alike, whatever the
    client says of itself. In a buffered asynchronous round (`staleness_exponent` is not None) that times
    `staleness_discount` (FedBuff: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS
    2022, Algorithm 1 and section 5). Raises StudioError.
    """
    if privacy is not None:
        weight = clip_factor(known_delta_norm(update), privacy.clip_norm)
    else:
        weight = aggregator.fold_weight(update, arguments)
    if staleness_exponent is not None:
        weight *= staleness_discount(update.staleness, staleness_exponent)
    if not (math.isfinite(weight) and weight >= 0):
        raise StudioError("bad_weight", f"The weight of an update is {weight}; it must be finite.")
    return weight
