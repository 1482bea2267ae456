"""FedNova: clients that took more steps do not pull harder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .aggregator import UpdateFacts, metadata_number
from .arguments import Number
from .folding import Folding


class FedNova(Folding):
    """Normalised averaging (Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization", NeurIPS 2020, equation 6 and section 4). Client i took tau_i steps of SGD; p_i = n_i / sum_j n_j:

        x_{t+1} = x_t + (sum_i p_i |a_i|) sum_i p_i (x_i - x_t) / |a_i|

    |a_i| = tau_i, or with local momentum rho (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho): the L1 norm of what
    its gradients were multiplied by. Where all clients take as many steps it is FedAvg.
    """

    name = "fednova"
    title = "FedNova (changes per step)"
    hint = (
        "FedNova needs num_steps from every client: updates count by examples, however many steps each took."
    )
    paper = "Wang et al., NeurIPS 2020, section 4"
    clients_send = "num_steps"
    arguments = (
        Number(
            "local_momentum",
            "Momentum of the clients' SGD (rho)",
            0.0,
            "From 0 to below 0.9999; what the clients' own training uses.",
            at_least=0,
            below=0.9999,
        ),
    )

    def check_metadata(self, metadata: Mapping[str, Any]) -> None:
        _steps(metadata)

    def fold_weight(self, update: UpdateFacts, arguments: Mapping[str, Any]) -> float:
        return update.num_examples / _norm(update, arguments)

    def scale(self, updates: Sequence[UpdateFacts], arguments: Mapping[str, Any]) -> float:
        # n_i is weight times |a_i|.
        norms = [_norm(update, arguments) for update in updates]
        examples = [update.weight * norm for update, norm in zip(updates, norms, strict=True)]
        total = sum(examples)
        effective = sum(n * norm for n, norm in zip(examples, norms, strict=True)) / total
        return effective * sum(update.weight for update in updates) / total


def _steps(metadata: Mapping[str, Any]) -> float:
    return metadata_number(metadata, "num_steps", "how many optimiser steps it trained", at_least=1)


def _norm(update: UpdateFacts, arguments: Mapping[str, Any]) -> float:
    steps, rho = _steps(update.metadata), arguments["local_momentum"]
    return float((steps - rho * (1.0 - rho**steps) / (1.0 - rho)) / (1.0 - rho))
