"""validate.py MODEL_IN RESULT_JSON: how good the model is on images of this client that it never trained on."""

from __future__ import annotations

import sys

from studio_sdk import load_parameters, save_metrics

from data import local_split
from model import measure


def main(model_in: str, result_json: str) -> None:
    """Measure and write every number; each becomes a curve on the Models page."""
    x_train, y_train, x_test, y_test = local_split()
    parameters = load_parameters(model_in)
    here = measure(parameters, x_test, y_test)
    trained_on = measure(parameters, x_train, y_train)
    save_metrics(
        {
            "loss": here["loss"],
            "accuracy": here["accuracy"],
            "training_loss": trained_on["loss"],
            "training_accuracy": trained_on["accuracy"],
            "num_examples": len(y_test),
        },
        result_json,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
