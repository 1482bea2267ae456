"""FedAvg: the mean of the updates, weighted by their examples."""

from __future__ import annotations

from .folding import Folding


class FedAvg(Folding):
    """Federated averaging (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017, Algorithm 1), n_i the examples of client i:

        x_{t+1} = sum_i n_i x_i / sum_i n_i
    """

    name = "fedavg"
    title = "FedAvg (their mean)"
    hint = "FedAvg counts each update by its examples."
    paper = "McMahan et al., AISTATS 2017, Algorithm 1"
    plain_mean = True
    private = True
