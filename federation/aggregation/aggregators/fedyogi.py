"""FedYogi: the server takes adaptive steps as Yogi does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..server_optimisers import Adaptive
from .arguments import Number
from .folding import Folding


class FedYogi(Folding):
    """FedYogi (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2), D the mean change weighted by
    examples, without bias correction:

        m_t = beta1 m_{t-1} + (1 - beta1) D,  m_0 = 0
        v_t = v_{t-1} - (1 - beta2) D^2 sign(v_{t-1} - D^2),  v_0 = tau^2
        x_{t+1} = x_t + learning_rate m_t / (sqrt(v_t) + tau)
    """

    name = "fedyogi"
    title = "FedYogi (adaptive steps)"
    hint = "FedYogi is FedAdam with a scale that grows slower, for changes that come seldom."
    family = "server optimiser"
    paper = "Reddi et al., ICLR 2021, Algorithm 2"
    private = True
    arguments = (
        Number(
            "learning_rate",
            "Server learning rate",
            1e-2,
            "About how far a number of the model may move in a round.",
            above=0,
        ),
        Number(
            "beta1",
            "Momentum (beta1)",
            0.9,
            "Share of earlier rounds in a step, from 0 to below 1.",
            at_least=0,
            below=1,
        ),
        Number(
            "beta2",
            "Memory of scale (beta2)",
            0.99,
            "Share of earlier rounds in the scale, from 0 to below 1.",
            at_least=0,
            below=1,
        ),
        Number(
            "tau",
            "Adaptivity (tau)",
            1e-3,
            "Smaller is more adaptive; usual are 0.0001 to 0.1.",
            above=0,
            below=1e12,
        ),
    )

    def optimiser(self, arguments: Mapping[str, Any]) -> Adaptive:
        return Adaptive("yogi", **arguments)
