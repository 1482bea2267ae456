"""Aggregators come to the models of Flower's published strategies (1.42), whose answers tests/compat/flower_answers.py
wrote down in its own environment.

Not compared: Flower's adaptive optimisers, which start the second moment from 0 where the paper says tau^2 (ours are
compared with FEDn's published ones), and Multi-Krum weighed by examples, which its paper does not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.aggregation_rounds import Rounds

ASKED = json.loads((Path(__file__).parent / "compat" / "flower_answers.json").read_text())


def named(model: list[Any]) -> dict[str, np.ndarray]:
    return {f"layer{place}": np.array(array, np.float64) for place, array in enumerate(model)}


@pytest.mark.parametrize(
    "asked", ASKED, ids=lambda one: f"{one['name']}-{len(one['rounds'][0]['updates'])}-{one['arguments']}"
)
def test_flowers_strategy_comes_to_the_same_model(tmp_path, asked):
    rounds = Rounds.of(tmp_path, asked["name"], named(asked["model"]), asked["arguments"])
    for one in asked["rounds"]:
        got = rounds.play(
            [named(update) for update in one["updates"]],
            examples=one["examples"],
            metadata=[{"loss": one.get("loss")}] * len(one["updates"]),
        )
        for name, wanted in named(one["answer"]).items():
            np.testing.assert_allclose(got[name], wanted, rtol=1e-12, atol=1e-13)


def test_flower_was_asked_about_every_kind_of_aggregator():
    assert {one["name"] for one in ASKED} == {
        "fedavg", "fedavgm", "qfedavg", "fedmedian", "trimmedmean", "krum", "multikrum", "bulyan",
    }  # fmt: skip
