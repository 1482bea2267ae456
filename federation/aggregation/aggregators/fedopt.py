"""FedOpt: the server takes an adaptive step towards the mean of the updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..server_optimisers import ServerOptimiser, step_model
from .aggregator import Aggregator, Choice, Number, Reduction


class FedOpt(Aggregator):
    name = "fedopt"
    title = "FedOpt (adaptive steps)"
    hint = "FedOpt is steadier where clients' data differ; what it remembers lives as long as the session."
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
            "tau", "Adaptivity (tau)", 1e-4, "Smaller is more adaptive; usual are 0.0001 to 0.1.", above=0
        ),
    )

    def reduce(self, files: Reduction, arguments: Mapping[str, Any]) -> str:
        return step_model(
            ServerOptimiser(**arguments),
            files.partials,
            files.layout,
            model=files.model(),
            state=files.state,
            out=files.out,
            out_state=files.out_state,
        )
