"""Geometric median: the point with the smallest sum of distances to the updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks import Float64s
from ..distances import geometric_median
from .aggregator import UpdateFacts
from .arguments import Choice, Number, WholeNumber
from .collecting import Weighing


class GeometricMedian(Weighing):
    """RFA, the geometric median by the smoothed Weiszfeld algorithm (Pillutla, Kakade and Harchaoui, "Robust
    Aggregation for Federated Learning", IEEE Transactions on Signal Processing 2022, Algorithm 2):

        x_{t+1} = argmin_v sum_i w_i |v - x_i|_2
        v <- sum_i c_i x_i / sum_i c_i,  c_i = w_i / max(smoothing, |v - x_i|)

    w_i is the same for all, or n_i, what clients say of their examples, as in the paper. It begins with w_i over the
    median distance of x_i to all updates, so that none sent from far away can hold it up. Distances are over all float
    tensors. It holds against less than half of the weight; one update alone is the model.
    """

    name = "geometricmedian"
    title = "Geometric median (RFA)"
    hint = "The geometric median takes the point nearest to all updates at once; far ones hardly pull it."
    paper = "Pillutla et al., IEEE TSP 2022, Algorithm 2"
    arguments = (
        Choice(
            "weights",
            "Weights",
            "alike",
            {"alike": "Every client alike", "examples": "By examples"},
            "By examples only where clients are believed.",
        ),
        Number("smoothing", "Smoothing (nu)", 1e-6, "Distances below it count as it.", above=0),
        Number(
            "tolerance",
            "Tolerance",
            1e-8,
            "It ends when a step is shorter than this share of the median distance.",
            at_least=0,
            below=1,
        ),
        WholeNumber("max_iterations", "Steps at most", 1000, "", at_least=1, below=100_001),
    )

    def fold_weight(self, update: UpdateFacts, arguments: Mapping[str, Any]) -> float:
        return update.num_examples if arguments["weights"] == "examples" else 1.0

    def coefficients(
        self, products: Float64s, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]
    ) -> list[float]:
        return geometric_median(
            products,
            [self.fold_weight(update, arguments) for update in updates],
            smoothing=arguments["smoothing"],
            tolerance=arguments["tolerance"],
            max_iterations=arguments["max_iterations"],
        )
