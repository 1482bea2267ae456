"""Trimmed mean: without the highest and the lowest, number by number."""

from __future__ import annotations

import math

from ..collected import Combine
from ..order_statistics import MiddleMean
from .arguments import Number
from .collecting import Collecting, Plan


class TrimmedMean(Collecting):
    """Coordinate-wise trimmed mean (Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
    Rates", ICML 2018, Definition 2), for every number k of the model, T_k what is left of { x_i[k] } without the
    floor(beta n) largest and as many smallest:

        x_{t+1}[k] = (1 / |T_k|) sum of T_k

    Every update counts alike. With fewer than 1 / beta updates nothing is left out: it is then their plain mean, and
    holds against nobody.
    """

    name = "trimmedmean"
    title = "Trimmed mean"
    hint = "The trimmed mean leaves out the highest and lowest share beta of the updates, number by number."
    paper = "Yin et al., ICML 2018, Definition 2"
    arguments = (
        Number(
            "beta",
            "Share left out at each end (beta)",
            0.2,
            "At least the share of clients that may be hostile; below 1 / beta updates nothing is left out.",
            at_least=0,
            below=0.5,
        ),
    )

    def combiner(self, plan: Plan, count: int) -> Combine:
        cut = trimmed(plan["arguments"]["beta"], count)
        return MiddleMean(count, cut, count - cut).of


def trimmed(beta: float, count: int) -> int:
    """floor(beta count), as if beta were the decimal number that was typed: 0.29 of 100 are 29."""
    return min(math.floor(beta * count + 1e-9), (count - 1) // 2)
