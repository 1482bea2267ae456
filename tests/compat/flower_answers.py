"""Asks Flower's published strategies what they make of a few small rounds, and writes questions and answers down.

Run by the Python of an environment with flwr==1.42.0: `python tests/compat/flower_answers.py >
tests/compat/flower_answers.json`. It imports nothing of ours; tests/test_aggregation_flower.py reads what it wrote.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAvgM, QFedAvg
from flwr.server.strategy.aggregate import (
    aggregate,
    aggregate_bulyan,
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)

SHAPES = [(2, 2), (2,), (1,)]
Model = list[np.ndarray]


def drawn(rng: np.random.Generator) -> Model:
    return [rng.standard_normal(shape) for shape in SHAPES]


def listed(model: Any) -> list[Any]:
    return [np.asarray(array, dtype=np.float64).tolist() for array in model]


def fitted(update: Model, examples: int) -> FitRes:
    return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(update), examples, {})


def main() -> None:
    rng, asked = np.random.default_rng(2026), []

    def ask(name: str, arguments: dict[str, Any], model: Model, rounds: list[dict[str, Any]]) -> None:
        asked.append({"name": name, "arguments": arguments, "model": listed(model), "rounds": rounds})

    def one_round(count: int, answer: Any, alike: bool = True, **more: Any) -> dict[str, Any]:
        updates = [drawn(rng) for _ in range(count)]
        examples = [1 if alike else int(n) for n in rng.integers(1, 500, count)]
        found = answer([(list(update), n) for update, n in zip(updates, examples, strict=True)])
        return {
            "updates": [listed(update) for update in updates],
            "examples": examples,
            "answer": listed(found),
            **more,
        }

    for count in (1, 2, 7):
        ask("fedavg", {}, drawn(rng), [one_round(count, aggregate, alike=False)])
    for count in (1, 2, 7, 8, 40):
        ask("fedmedian", {}, drawn(rng), [one_round(count, aggregate_median)])
    for count, beta in ((5, 0.2), (10, 0.3), (7, 0.0), (40, 0.1)):
        cut = one_round(count, lambda results, beta=beta: aggregate_trimmed_avg(results, beta))
        ask("trimmedmean", {"beta": beta}, drawn(rng), [cut])
    for count, f in ((3, 0), (5, 1), (9, 2), (20, 4)):
        best = one_round(count, lambda results, f=f: aggregate_krum(results, f, 0))
        ask("krum", {"byzantine": f}, drawn(rng), [best])
        keep = count - f - 2
        several = one_round(count, lambda results, f=f, keep=keep: aggregate_krum(results, f, keep))
        ask("multikrum", {"byzantine": f, "keep": keep}, drawn(rng), [several])
    for count, f in ((7, 1), (12, 2), (16, 3)):
        near = one_round(count, lambda results, f=f: aggregate_bulyan(results, f, aggregate_krum, to_keep=0))
        ask("bulyan", {"byzantine": f}, drawn(rng), [near])
    for q in (0.2, 1.0, 3.0):
        model, loss = drawn(rng), float(rng.uniform(0.1, 3))
        fair = QFedAvg(
            q_param=q, qffl_learning_rate=0.1, initial_parameters=ndarrays_to_parameters(model),
            evaluate_fn=lambda _round, _weights, _config, loss=loss: (loss, {}),
        )  # fmt: skip
        fair.pre_weights = model

        def by_strategy(results: list[tuple[Model, int]], fair: QFedAvg = fair) -> Model:
            fits = [(None, fitted(update, n)) for update, n in results]
            parameters, _ = fair.aggregate_fit(2, fits, [])  # type: ignore[arg-type]  # no proxies: it reads none
            assert parameters is not None
            return parameters_to_ndarrays(parameters)

        ask(
            "qfedavg",
            {"q": q, "learning_rate": fair.learning_rate},
            model,
            [one_round(4, by_strategy, loss=loss)],
        )
    for rate, momentum in ((1.0, 0.9), (0.5, 0.3)):
        model = drawn(rng)
        server = FedAvgM(
            server_learning_rate=rate,
            server_momentum=momentum,
            initial_parameters=ndarrays_to_parameters(model),
        )
        rounds = []
        for number in range(1, 4):

            def stepped(
                results: list[tuple[Model, int]], number: int = number, server: FedAvgM = server
            ) -> Model:
                fits = [(None, fitted(update, n)) for update, n in results]
                parameters, _ = server.aggregate_fit(number, fits, [])  # type: ignore[arg-type]  # no proxies: it reads none
                assert parameters is not None
                return parameters_to_ndarrays(parameters)

            rounds.append(one_round(3, stepped, alike=False))
        ask("fedavgm", {"learning_rate": rate, "momentum": momentum}, model, rounds)
    json.dump(asked, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
