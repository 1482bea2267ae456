"""FedOpt: the server takes an adaptive step towards the mean of the updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..server_optimisers import Adaptive
from .adaptive import beta1, beta2, learning_rate, tau
from .arguments import Choice
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
        learning_rate(1e-3),
        beta1(0.9),
        beta2("From 0 to below 1; not used by Adagrad."),
        tau(1e-4),
    )

    def optimiser(self, arguments: Mapping[str, Any]) -> Adaptive:
        return Adaptive(**arguments)
