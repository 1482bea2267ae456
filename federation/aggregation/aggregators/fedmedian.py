"""FedMedian: the middle of the updates, number by number."""

from __future__ import annotations

from ..collected import Combine
from ..order_statistics import MiddleMean, median_places
from .collecting import Collecting, Plan


class FedMedian(Collecting):
    """Coordinate-wise median (Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, Definition 1), for every number k of the model:

        x_{t+1}[k] = median { x_i[k] : i = 1 ... n }

    Of an even number of updates it is the mean of both middle values. Every update counts alike: what a client says of
    its examples is not believed. It holds against fewer than half of the clients; one update alone is the model.
    """

    name = "fedmedian"
    title = "FedMedian (coordinate median)"
    hint = (
        "FedMedian takes the middle of all updates number by number; it holds while most clients are honest."
    )
    paper = "Yin et al., ICML 2018, Definition 1"

    def combiner(self, plan: Plan, count: int) -> Combine:
        return MiddleMean(count, *median_places(count)).of
