"""Norm clipping: no update moves the model further than its share of a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..privacy import clip_factor
from .aggregator import UpdateFacts
from .arguments import Number
from .folding import Folding, known_delta_norm


class NormClip(Folding):
    """Norm bounding (Sun et al., "Can You Really Backdoor Federated Learning?", 2019, section 3), n_i the examples:

        x_{t+1} = x_t + sum_i n_i f_i (x_i - x_t) / sum_i n_i,  f_i = min(1, max_norm / |x_i - x_t|_2)

    An attacker may still send as many examples as it likes; without noise this is no differential privacy.
    """

    name = "normclip"
    title = "Norm clipping (bounded changes)"
    hint = "Norm clipping scales every change down to an L2 norm of at most max_norm; then they are averaged."
    family = "robust"
    paper = "Sun et al., 2019, section 3"
    needs_delta_norm = True
    arguments = (
        Number(
            "max_norm", "Largest L2 norm of a change", 1.0, "Longer changes keep their direction.", above=0
        ),
    )

    def fold_weight(self, update: UpdateFacts, arguments: Mapping[str, Any]) -> float:
        return update.num_examples * clip_factor(known_delta_norm(update), arguments["max_norm"])

    def scale(self, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]) -> float:
        # n_i is weight / f_i.
        clipped = sum(update.weight for update in updates)
        factors = [clip_factor(known_delta_norm(update), arguments["max_norm"]) for update in updates]
        whole = sum(update.weight / f for update, f in zip(updates, factors, strict=True) if f > 0)
        return clipped / whole if whole else 1.0
