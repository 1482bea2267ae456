"""The network: 64 pixels, 64 hidden units, 10 digits. Only numpy."""

from __future__ import annotations

import sys

import numpy as np
from studio_sdk import save_parameters

PIXELS, HIDDEN, DIGITS = 64, 64, 10
Parameters = dict[str, np.ndarray]


def seed(number: int = 7) -> Parameters:
    """Random first weights, float32; the same number gives the same weights."""
    rng = np.random.default_rng(number)
    return {
        "hidden.weight": rng.normal(0, np.sqrt(2 / PIXELS), (PIXELS, HIDDEN)).astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": rng.normal(0, np.sqrt(1 / HIDDEN), (HIDDEN, DIGITS)).astype(np.float32),
        "output.bias": np.zeros(DIGITS, np.float32),
    }


def forward(parameters: Parameters, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hidden activations, class probabilities) of images `x`, shape (n, 64), values 0 to 1."""
    hidden = np.maximum(x @ parameters["hidden.weight"] + parameters["hidden.bias"], 0)
    scores = hidden @ parameters["output.weight"] + parameters["output.bias"]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def gradients(parameters: Parameters, x: np.ndarray, y: np.ndarray) -> Parameters:
    """Gradients of the mean cross-entropy."""
    hidden, probabilities = forward(parameters, x)
    error = probabilities.copy()
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    back = (error @ parameters["output.weight"].T) * (hidden > 0)
    return {
        "hidden.weight": x.T @ back,
        "hidden.bias": back.sum(axis=0),
        "output.weight": hidden.T @ error,
        "output.bias": error.sum(axis=0),
    }


def losses(parameters: Parameters, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cross-entropy of each image, shape (n,)."""
    return _losses(forward(parameters, x)[1], y)


def measure(parameters: Parameters, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy and accuracy."""
    _, probabilities = forward(parameters, x)
    return {
        "loss": float(_losses(probabilities, y).mean()),
        "accuracy": float((probabilities.argmax(axis=1) == y).mean()),
    }


def _losses(probabilities: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -np.log(np.clip(probabilities[np.arange(len(y)), y], 1e-12, None))


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "../seed.npz"
    save_parameters(seed(), target)
    print(f"wrote the seed model {target}")
