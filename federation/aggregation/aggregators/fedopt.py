"""FedOpt: the server takes an adaptive step towards the mean of the updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..server_optimisers import Adaptive
from .arguments import Choice, Number
from .folding import Folding


class FedOpt(Folding):
    """Adaptive server optimisers under one name, with FEDn's own defaults (Reddi et al., "Adaptive Federated
    Optimization", ICLR 2021, Algorithm 2; without bias correction), D the mean change weighted by examples:

        m_t = beta1 m_{t-1} + (1 - beta1) D
        v_t = beta2 v_{t-1} + (1 - beta2) D^2     (adam; see FedYogi and FedAdagrad),  v_0 = tau^2
        x_{t+1} = x_t + learning_rate m_t / (sqrt(v_t) + tau)
    """

    name = "fedopt"
    title = "FedOpt (adaptive steps)"
    hint = "FedOpt is steadier where clients' data differ; what it remembers lives as long as the session."
    family = "server optimiser"
    paper = "Reddi et al., ICLR 2021, Algorithm 2"
    private = True
    arguments = (
        Choice(
            "serveropt",
            "Server optimiser",
            "adam",
            {"adam": "Adam", "yogi": "Yogi", "adagrad": "Adagrad"},
            "Yogi forgets slower than Adam, Adagrad never.",
        ),
        Number(
            "learning_rate",
            "Server learning rate",
            1e-3,
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
            "From 0 to below 1; not used by Adagrad.",
            at_least=0,
            below=1,
        ),
        Number(
            "tau",
            "Adaptivity (tau)",
            1e-4,
            "Smaller is more adaptive; usual are 0.0001 to 0.1.",
            above=0,
            below=1e12,
        ),
    )

    def optimiser(self, arguments: Mapping[str, Any]) -> Adaptive:
        return Adaptive(**arguments)
