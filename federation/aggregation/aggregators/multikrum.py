"""Multi-Krum: the mean of the updates that lie closest to most others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks import Float64s
from ..distances import best_by_krum
from .aggregator import UpdateFacts
from .arguments import WholeNumber
from .collecting import Weighing, alike
from .krum import BYZANTINE


class MultiKrum(Weighing):
    """Multi-Krum (Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS
    2017, section 4): of Krum's scores s(i), M the `keep` updates with the smallest:

        x_{t+1} = (1 / |M|) sum_{i in M} x_i

    keep = 0 takes n - f - 2 of them, the most for which a guarantee is known (Damaskinos et al., "AggregaThor", MLSys
    2019). Every update in M counts alike. Needs n >= 2 f + 3 updates, and n >= keep + f + 2.
    """

    name = "multikrum"
    title = "Multi-Krum (mean of the nearest updates)"
    hint = "Multi-Krum averages the updates that lie closest to most others, and leaves the rest out."
    paper = "Blanchard et al., NeurIPS 2017, section 4"
    arguments = (
        BYZANTINE,
        WholeNumber(
            "keep",
            "Updates to average (m)",
            0,
            "0: all but f + 2, the most that is safe.",
            at_least=0,
            below=100_000,
        ),
    )

    def least_updates(self, arguments: Mapping[str, Any]) -> int:
        hostile, keep = int(arguments["byzantine"]), int(arguments["keep"])
        return max(2 * hostile + 3, keep + hostile + 2 if keep else 0)

    def coefficients(
        self, products: Float64s, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]
    ) -> list[float]:
        keep = arguments["keep"] or len(updates) - arguments["byzantine"] - 2
        return alike(best_by_krum(products, arguments["byzantine"], keep), len(updates))
