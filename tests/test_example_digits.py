"""The digits example's train.py, run as a client runs it: what it tells the aggregators, and what FedProx changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studio_sdk import load_parameters, save_parameters

from examples.digits.client import data as digits_data
from examples.digits.client import model as digits_model

CLIENT = Path(digits_model.__file__).parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's folder: its images, and the seed model."""
    folder = tmp_path_factory.mktemp("site")
    clients, _test = digits_data.split(12)
    digits_data.write(folder / "digits.npz", clients[0])
    save_parameters(digits_model.seed(), folder / "seed.npz")
    return folder


def trained(site: Path, name: str, **settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(update, metadata) of `python train.py` with these client settings."""
    (site / "seed.npz-metadata").write_text(json.dumps(settings))
    update = site / f"{name}.npz"
    subprocess.run(
        [sys.executable, "train.py", str(site / "seed.npz"), str(update)],
        cwd=CLIENT, env={**os.environ, "STUDIO_DATA_PATH": str(site / "digits.npz")}, check=True, timeout=60,
    )  # fmt: skip
    return load_parameters(update), json.loads((site / f"{name}.npz-metadata").read_text())


def moved(update: dict[str, np.ndarray]) -> float:
    """L2 distance from the seed model."""
    seed = digits_model.seed()
    return float(np.sqrt(sum(np.square(update[name] - seed[name]).sum() for name in seed)))


def test_the_metadata_holds_what_every_aggregator_and_guided_selection_ask_for(site: Path) -> None:
    _update, metadata = trained(site, "asked", epochs=3, batch_size=10)
    x, y = digits_data.load(site / "digits.npz")
    train = np.arange(len(y)) % digits_data.LOCAL_TEST_SHARE != 0
    probabilities = digits_model.forward(digits_model.seed(), x[train])[1]
    own = -np.log(probabilities[np.arange(train.sum()), y[train]])
    assert metadata["num_examples"] == train.sum()
    assert metadata["num_steps"] == 3 * -(-train.sum() // 10)
    assert metadata["loss"] == pytest.approx(own.mean(), rel=1e-5), "of the model as it was received"
    assert metadata["loss_squared_mean"] == pytest.approx((own**2).mean(), rel=1e-5)


def test_proximal_mu_holds_the_update_near_the_received_model(site: Path) -> None:
    free, told = trained(site, "free")
    absent, _ = trained(site, "zero", proximal_mu=0)
    held, _ = trained(site, "held", proximal_mu=1.0)
    assert all(np.array_equal(free[name], absent[name]) for name in free)
    assert 0 < moved(held) < 0.7 * moved(free)
    assert told["training_loss"] < told["loss"]


def test_the_proximal_term_is_the_gradient_of_half_mu_times_the_squared_distance(site: Path) -> None:
    # one batch, no momentum: the first step starts at the received model, only the second feels the term
    settings = {"epochs": 2, "batch_size": 10_000, "momentum": 0.0, "learning_rate": 0.1}
    one, _ = trained(site, "one", **{**settings, "epochs": 1})
    free, _ = trained(site, "two-free", **settings)
    held, _ = trained(site, "two-held", **settings, proximal_mu=0.5)
    seed = digits_model.seed()
    for name in seed:
        expected = free[name] - 0.1 * 0.5 * (one[name] - seed[name])
        np.testing.assert_allclose(held[name], expected, rtol=1e-4, atol=1e-6)
