"""FedProx: clients are held back from drifting; the server averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .arguments import Number
from .folding import Folding


class FedProx(Folding):
    """FedProx (Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, Algorithm 2). Client i
    minimises

        F_i(w) + (mu / 2) |w - x_t|^2

    and the server takes the mean as FedAvg does: x_{t+1} = sum_i n_i x_i / sum_i n_i. Clients read mu as
    `proximal_mu` among their settings; one that ignores it trains as for FedAvg.
    """

    name = "fedprox"
    title = "FedProx (the mean, clients held near the model)"
    hint = "FedProx has clients that read proximal_mu stay near the model; for data or work that differ much."
    paper = "Li et al., MLSys 2020, Algorithm 2"
    plain_mean = True
    private = True
    arguments = (
        Number(
            "proximal_mu",
            "Proximal term (mu)",
            0.1,
            "0 is FedAvg; usual are 0.001 to 1.",
            at_least=0,
        ),
    )

    def client_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"proximal_mu": arguments["proximal_mu"]}
