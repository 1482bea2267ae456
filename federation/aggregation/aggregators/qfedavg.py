"""q-FedAvg: clients that the model serves badly count more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .aggregator import UpdateFacts, metadata_number
from .arguments import Number
from .folding import Folding, known_delta_norm

# Added to every loss, as the authors' code does: a loss of 0 has no (q-1)-th power below q = 1.
NO_LOSS = 1e-10


class QFedAvg(Folding):
    """q-FedAvg (Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, Algorithm 2). F_i is the loss
    of the received model on client i's data, L = 1 / learning_rate of the clients:

        Delta_i = F_i^q L (x_t - x_i),  h_i = q F_i^(q-1) |L (x_t - x_i)|^2 + L F_i^q
        x_{t+1} = x_t - sum_i Delta_i / sum_i h_i

    q = 0 is the mean of the updates, each counting alike: as in the paper, examples do not weigh.
    """

    name = "qfedavg"
    title = "q-FedAvg (fair to clients with high loss)"
    hint = "q-FedAvg needs each client's loss of the model it received; a higher q evens the clients' losses out."
    paper = "Li et al., ICLR 2020, Algorithm 2"
    clients_send = "loss"
    needs_delta_norm = True
    arguments = (
        Number("q", "Fairness (q)", 0.2, "0 counts all clients alike; usual are 0.1 to 5.", at_least=0, below=10),
        Number(
            "learning_rate",
            "Learning rate of the clients",
            0.1,
            "That of their own training; a smaller one lets high losses move the model less.",
            above=1e-12,
        ),
    )  # fmt: skip

    def check_metadata(self, metadata: Mapping[str, Any]) -> None:
        _loss(metadata)

    def fold_weight(self, update: UpdateFacts, arguments: Mapping[str, Any]) -> float:
        return float(_loss(update.metadata) ** arguments["q"])

    def scale(self, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]) -> float:
        q, lipschitz = arguments["q"], 1.0 / arguments["learning_rate"]
        if q == 0:
            return 1.0
        # h_i / L = F_i^q (1 + q L |x_i - x_t|^2 / F_i), and F_i^q is the weight.
        steps = 0.0
        for update in updates:
            norm = known_delta_norm(update)
            steps += update.weight * (1.0 + q * lipschitz * norm * norm / _loss(update.metadata))
        return float(sum(update.weight for update in updates) / steps)


def _loss(metadata: Mapping[str, Any]) -> float:
    what = "the mean loss of the model it was given on its own data"
    return metadata_number(metadata, "loss", what, at_least=0) + NO_LOSS
