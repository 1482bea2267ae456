"""FedAvgM: the server keeps a momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..server_optimisers import Momentum
from .arguments import Choice, Number
from .folding import Folding


class FedAvgM(Folding):
    """FedAvg with server momentum (Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", 2019, section 3), D the mean change weighted by examples:

        v_t = momentum v_{t-1} + D,  x_{t+1} = x_t + learning_rate v_t
        with Nesterov:  x_{t+1} = x_t + learning_rate (D + momentum v_t)

    With momentum 0 and learning rate 1 it is FedAvg. In an asynchronous session the learning rate is FedBuff's.
    """

    name = "fedavgm"
    title = "FedAvgM (server momentum)"
    hint = "FedAvgM keeps the direction of earlier rounds; it helps where clients' data differ."
    family = "server optimiser"
    paper = "Hsu, Qi and Brown, 2019, section 3"
    private = True
    arguments = (
        Number(
            "learning_rate",
            "Server learning rate",
            1.0,
            "Share of the mean change that is taken; 1 is all of it.",
            above=0,
        ),
        Number(
            "momentum",
            "Server momentum",
            0.9,
            "Share of earlier rounds in a step, from 0 to below 1.",
            at_least=0,
            below=1,
        ),
        Choice(
            "kind",
            "Kind of momentum",
            "classical",
            {"classical": "Classical", "nesterov": "Nesterov"},
            "Nesterov looks one step ahead.",
        ),
    )

    def optimiser(self, arguments: Mapping[str, Any]) -> Momentum:
        return Momentum(
            arguments["learning_rate"], arguments["momentum"], nesterov=arguments["kind"] == "nesterov"
        )
