"""Krum and Multi-Krum: the updates that lie closest to most others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks import Float64s
from ..distances import best_by_krum
from .aggregator import UpdateFacts
from .arguments import WholeNumber
from .collecting import Weighing, alike

BYZANTINE = WholeNumber(
    "byzantine",
    "Hostile clients (f)",
    1,
    "As many may send anything.",
    at_least=0,
    below=100_000,
)


class Krum(Weighing):
    """Krum (Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
    section 4). f clients may be hostile; N_i are the n - f - 2 updates nearest to x_i:

        s(i) = sum_{j in N_i} |x_i - x_j|^2,  x_{t+1} = x_i with the smallest s(i)

    Distances are over all float tensors. Of equal scores the first client's, by its id. Needs n >= 2 f + 3 updates.
    """

    name = "krum"
    title = "Krum (the update nearest to others)"
    hint = "Krum takes one client's update whole: the one that lies closest to most others."
    paper = "Blanchard et al., NeurIPS 2017, section 4"
    arguments = (BYZANTINE,)

    def least_updates(self, arguments: Mapping[str, Any]) -> int:
        return 2 * int(arguments["byzantine"]) + 3

    def coefficients(
        self, products: Float64s, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]
    ) -> list[float]:
        return alike(best_by_krum(products, arguments["byzantine"], 1), len(updates))
