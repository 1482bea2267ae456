"""train.py MODEL_IN MODEL_OUT: a few epochs of gradient descent with momentum on this client's images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from studio_sdk import load_parameters, load_settings, log_metric, save_metadata, save_parameters

from data import local_split
from model import Parameters, gradients, losses, measure


def train(
    received: Parameters,
    x: np.ndarray,
    y: np.ndarray,
    settings: Mapping[str, Any],
    after_epoch: Callable[[int, Parameters], None] = lambda _epoch, _parameters: None,
) -> tuple[Parameters, dict[str, Any]]:
    """(the update, its metadata) of images `x`, digits `y` and the session's client settings."""
    epochs = int(settings.get("epochs", 4))
    learning_rate = float(settings.get("learning_rate", 0.1))
    batch_size = int(settings.get("batch_size", 32))
    momentum = float(settings.get("momentum", 0.9))
    # FedProx sends this one: how strongly the update is held near the model that everybody received
    proximal_mu = float(settings.get("proximal_mu", 0.0))

    before = losses(received, x, y)
    parameters = {name: array.copy() for name, array in received.items()}
    speed = {name: np.zeros_like(array) for name, array in parameters.items()}
    rng = np.random.default_rng(int(settings.get("seed", 0)))
    steps = 0
    for epoch in range(epochs):
        order = rng.permutation(len(y))
        for start in range(0, len(y), batch_size):
            rows = order[start : start + batch_size]
            for name, gradient in gradients(parameters, x[rows], y[rows]).items():
                gradient += proximal_mu * (parameters[name] - received[name])
                speed[name] = momentum * speed[name] - learning_rate * gradient
                parameters[name] += speed[name]
            steps += 1
        after_epoch(epoch, parameters)

    trained = measure(parameters, x, y)
    return parameters, {
        "num_examples": len(y),
        # FedNova weighs by the steps taken; q-FedAvg by the loss of the model as it came; guided selection prefers
        # clients whose images it still gets wrong, and measures that by the squares
        "num_steps": steps,
        "loss": float(before.mean()),
        "loss_squared_mean": float(np.square(before).mean()),
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "training_loss": trained["loss"],
        "training_accuracy": trained["accuracy"],
    }


def main(model_in: str, model_out: str) -> None:
    """Train and write the update and its metadata."""
    x, y, _, _ = local_split()

    def log_loss(epoch: int, parameters: Parameters) -> None:
        log_metric("training_loss", measure(parameters, x, y)["loss"], step=epoch)

    update, metadata = train(load_parameters(model_in), x, y, load_settings(model_in), log_loss)
    save_parameters(update, model_out)
    save_metadata(metadata, model_out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
