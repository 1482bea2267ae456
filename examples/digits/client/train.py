"""train.py MODEL_IN MODEL_OUT: a few epochs of gradient descent with momentum on this client's images."""

from __future__ import annotations

import sys

import numpy as np
from studio_sdk import load_parameters, load_settings, log_metric, save_metadata, save_parameters

from data import local_split
from model import gradients, measure


def main(model_in: str, model_out: str) -> None:
    """Train and write the update and its metadata."""
    settings = load_settings(model_in)
    epochs = int(settings.get("epochs", 4))
    learning_rate = float(settings.get("learning_rate", 0.1))
    batch_size = int(settings.get("batch_size", 32))
    momentum = float(settings.get("momentum", 0.9))

    x, y, _, _ = local_split()
    parameters = {name: array.copy() for name, array in load_parameters(model_in).items()}
    speed = {name: np.zeros_like(array) for name, array in parameters.items()}
    rng = np.random.default_rng(int(settings.get("seed", 0)))
    for epoch in range(epochs):
        order = rng.permutation(len(y))
        for start in range(0, len(y), batch_size):
            rows = order[start : start + batch_size]
            for name, gradient in gradients(parameters, x[rows], y[rows]).items():
                speed[name] = momentum * speed[name] - learning_rate * gradient
                parameters[name] += speed[name]
        log_metric("training_loss", measure(parameters, x, y)["loss"], step=epoch)

    save_parameters(parameters, model_out)
    trained = measure(parameters, x, y)
    save_metadata(
        {
            "num_examples": len(y),
            "epochs": epochs,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "training_loss": trained["loss"],
            "training_accuracy": trained["accuracy"],
        },
        model_out,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
