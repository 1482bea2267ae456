"""FedAdagrad: the server takes adaptive steps as Adagrad does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..server_optimisers import Adaptive
from .adaptive import beta1, learning_rate, tau
from .folding import Folding


class FedAdagrad(Folding):
    """FedAdagrad (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2), D the mean change weighted
    by examples, without bias correction:

        m_t = beta1 m_{t-1} + (1 - beta1) D,  m_0 = 0
        v_t = v_{t-1} + D^2,  v_0 = tau^2
        x_{t+1} = x_t + learning_rate m_t / (sqrt(v_t) + tau)
    """

    name = "fedadagrad"
    title = "FedAdagrad (adaptive steps)"
    hint = "FedAdagrad's steps grow ever smaller, number by number; for sparse changes."
    family = "server optimiser"
    paper = "Reddi et al., ICLR 2021, Algorithm 2"
    private = True
    arguments = (learning_rate(1e-2), beta1(0.0), tau(1e-3))

    def optimiser(self, arguments: Mapping[str, Any]) -> Adaptive:
        return Adaptive("adagrad", **arguments)
