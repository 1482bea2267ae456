"""What privacy costs in accuracy: `python -m tests.bench.privacy [ROUNDS]` prints a table, and JSON in the last line.

The digits over 200 clients of seven images each, trained in this process with the server's own clip, noise and
accountant: each client takes part in a round with probability 1/2, the sum is divided by 100.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from federation.aggregation.privacy import GaussianNoise, clip_factor
from federation.sessions.accounting import Release, epsilon

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "digits" / "client"))  # as on a client

from examples.digits.client import data, model
from examples.digits.client.train import train

CLIENTS, RATE, DELTA, CLIP_NORM = 200, 0.5, 1e-3, 1.0
MULTIPLIERS = (0.0, 1.0, 2.0, 4.0, 8.0)


def trained(noise_multiplier: float, rounds: int) -> dict[str, Any]:
    """Figures of one session."""
    images, digits = data.digits()
    clients, test = data.split(CLIENTS)
    coins = np.random.default_rng(1)
    divisor = RATE * CLIENTS
    noise = GaussianNoise(noise_multiplier * CLIP_NORM / divisor)
    parameters, norms = model.seed(), []
    for _ in range(rounds):
        total = {name: np.zeros(array.shape) for name, array in parameters.items()}
        for rows in clients:
            if coins.random() >= RATE:
                continue
            update, _ = train(parameters, images[rows], digits[rows], {})
            change = {name: update[name].astype(np.float64) - parameters[name] for name in parameters}
            norms.append(math.sqrt(sum(float((each**2).sum()) for each in change.values())))
            for name, each in change.items():
                total[name] += clip_factor(norms[-1], CLIP_NORM) * each
        for name, summed in total.items():
            step = (summed / divisor).ravel()
            noise.add_to(step)
            parameters[name] = (parameters[name] + step.reshape(summed.shape)).astype(np.float32)
    spent = epsilon([Release(noise_multiplier, RATE, rounds)], DELTA)
    return {
        "noise_multiplier": noise_multiplier,
        "epsilon": round(spent, 2) if math.isfinite(spent) else None,
        "accuracy": round(model.measure(parameters, images[test], digits[test])["accuracy"], 3),
        "median_norm": round(float(np.median(norms)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rounds", type=int, nargs="?", default=30, help="how many to train (30)")
    rounds = parser.parse_args().rounds
    print(
        f"{CLIENTS} clients, {RATE:g} of them a round, {rounds} rounds, clip norm {CLIP_NORM:g}, delta {DELTA:g}"
    )
    found = []
    for multiplier in MULTIPLIERS:
        found.append(trained(multiplier, rounds))
        row = found[-1]
        print(
            f"noise {multiplier:g}: epsilon {row['epsilon'] or 'none'}, accuracy {row['accuracy']:.3f}",
            flush=True,
        )
    print(json.dumps({"rounds": rounds, "clients": CLIENTS, "rate": RATE, "delta": DELTA, "sessions": found}))


if __name__ == "__main__":
    main()
