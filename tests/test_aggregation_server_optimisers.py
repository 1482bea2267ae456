"""A server optimiser takes the step of the paper, whatever the model's tensors and however many combiners shared
the round, and remembers what it needs for the next."""

from __future__ import annotations

import hashlib
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.aggregation.accumulate import WeightedSum, combine_partials
from federation.aggregation.aggregators import AGGREGATORS, Reduction, aggregator_named
from federation.aggregation.codecs import load_arrays, read_safetensors_header, save_arrays
from federation.aggregation.layout import FLOATS, Layout
from federation.aggregation.server_optimisers import Adaptive
from federation.aggregation.server_step import state_layout, step_model
from foundation.errors import StudioError
from tests.random_models import assert_is_rounded, draw_arrays, exact_mean, largest, layouts

Arrays = dict[str, np.ndarray]
OPTIMISERS = ["adam", "yogi", "adagrad"]


class Paper:
    """Algorithm 2 of Reddi et al. on whole float64 arrays, in the paper's letters."""

    def __init__(self, opt: str, eta: float, beta_1: float, beta_2: float, tau: float) -> None:
        self.opt, self.eta, self.beta_1, self.beta_2, self.tau = opt, eta, beta_1, beta_2, tau
        self.m: Arrays = {}
        self.v: Arrays = {}

    def next(self, name: str, x: np.ndarray, updates: list[np.ndarray], p: list[float]) -> np.ndarray:
        delta = sum(weight * (update - x) for weight, update in zip(p, updates, strict=True)) / sum(p)
        m = self.m.get(name, np.zeros_like(x)) * self.beta_1 + (1 - self.beta_1) * delta
        v = self.v.get(name, np.full_like(x, self.tau**2))
        if self.opt == "adagrad":
            v = v + delta**2
        elif self.opt == "yogi":
            v = v - (1 - self.beta_2) * delta**2 * np.sign(v - delta**2)
        else:
            v = self.beta_2 * v + (1 - self.beta_2) * delta**2
        self.m[name], self.v[name] = m, v
        return x + self.eta * m / (np.sqrt(v) + self.tau)


def partials_of(folder: Path, layout: Layout, updates: list[Arrays], weights: list[float], homes: list[int]):
    """What combiners would send that shared these updates so."""
    sums: dict[int, WeightedSum] = {}
    for number, (update, weight, home) in enumerate(zip(updates, weights, homes, strict=True)):
        path = folder / f"update{number}"
        save_arrays(update, path)
        sums.setdefault(home, WeightedSum(layout)).fold(path, weight)
    partials = []
    for home, total in sums.items():
        total.write_mean(folder / f"partial{home}", partial=True)
        partials.append((folder / f"partial{home}", total.weight))
    return partials


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    layout=layouts(),
    opt=st.sampled_from(OPTIMISERS),
    eta=st.sampled_from([1e-3, 0.1, 1.0]),
    beta_1=st.sampled_from([0.0, 0.9]),
    beta_2=st.sampled_from([0.0, 0.5, 0.99]),
    tau=st.sampled_from([1e-4, 1e-2]),
    seed=st.integers(0, 2**32),
)
def test_every_round_is_the_step_of_the_paper(data, layout, opt, eta, beta_1, beta_2, tau, seed):
    paper = Paper(opt, eta, beta_1, beta_2, tau)
    optimiser = Adaptive(opt, eta, beta_1, beta_2, tau)
    weights = data.draw(st.lists(st.floats(0.5, 1e6), min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_arrays(draw_arrays(layout, seed), folder / "model0")
        for round_ in range(3):
            old = {key: array.copy() for key, array in load_arrays(folder / f"model{round_}").items()}
            updates = [draw_arrays(layout, seed + 10 * round_ + n + 1) for n in range(len(weights))]
            homes = data.draw(st.lists(st.integers(0, 2), min_size=len(weights), max_size=len(weights)))
            digest = step_model(
                optimiser,
                partials_of(folder, layout, updates, weights, homes),
                layout,
                model=folder / f"model{round_}",
                state=folder / f"state{round_}" if round_ else None,
                out=folder / f"model{round_ + 1}",
                out_state=folder / f"state{round_ + 1}",
            )
            written = (folder / f"model{round_ + 1}").read_bytes()
            assert digest == hashlib.sha256(written).hexdigest()
            new = load_arrays(folder / f"model{round_ + 1}")
            assert list(new) == list(old)
            for spec in layout.tensors:
                assert new[spec.name].dtype == old[spec.name].dtype and new[spec.name].shape == spec.shape
                if spec.dtype in FLOATS:
                    wide = [update[spec.name].astype(np.float64) for update in updates]
                    x = old[spec.name].astype(np.float64)
                    wanted = paper.next(spec.name, x, wide, weights)
                    # Where v is nearly 0, rounding in g is divided by tau: hence the slack.
                    slack = 1e-11 * max(1.0, eta / tau)
                    got = new[spec.name].astype(np.float64)
                    ulp = np.abs(got) * {"F16": 2e-3, "BF16": 1e-2, "F32": 1e-7, "F64": 0.0}[spec.dtype]
                    assert (np.abs(got - wanted) <= slack + ulp + 1e-7 * (spec.dtype == "F16")).all()
                else:
                    assert_is_rounded(
                        new[spec.name], exact_mean(updates, weights, spec.name), largest(updates, spec.name)
                    )


@pytest.mark.parametrize("opt", OPTIMISERS)
def test_a_tensor_goes_the_way_that_its_updates_went(tmp_path, opt):
    layout = save_arrays({"w": np.zeros(3)}, tmp_path / "model")
    partials = partials_of(tmp_path, layout, [{"w": np.array([1.0, -1.0, 0.0])}], [1.0], [0])
    step(tmp_path, Adaptive(opt), partials, layout)
    up, down, still = load_arrays(tmp_path / "out")["w"]
    assert up > 0 > down and up == -down and still == 0


def step(folder: Path, optimiser: Adaptive, partials, layout: Layout, state: Path | None = None) -> str:
    return step_model(
        optimiser,
        partials,
        layout,
        model=folder / "model",
        state=state,
        out=folder / "out",
        out_state=folder / "out_state",
    )


def test_two_combiners_come_to_the_bits_of_one_but_for_the_last(tmp_path):
    layout = save_arrays({"w": np.zeros(70_001), "steps": np.arange(4)}, tmp_path / "model")
    updates = [draw_arrays(layout, seed) for seed in range(4)]
    weights = [1.0, 3.0, 10.0, 2.5]
    found = []
    for homes in ([0, 0, 0, 0], [0, 1, 0, 1]):
        step(tmp_path, Adaptive(), partials_of(tmp_path, layout, updates, weights, homes), layout)
        found.append({name: array.copy() for name, array in load_arrays(tmp_path / "out").items()})
    np.testing.assert_allclose(found[0]["w"], found[1]["w"], rtol=1e-12, atol=1e-14)
    assert (found[0]["steps"] == found[1]["steps"]).all()


def test_the_state_is_both_moments_of_all_elements_in_two_flat_tensors(tmp_path):
    layout = save_arrays({"b": np.zeros(2, np.float32), "w": np.zeros((2, 2))}, tmp_path / "model")
    update = {"b": np.full(2, 2.0, np.float32), "w": np.full((2, 2), 4.0)}
    step(tmp_path, Adaptive("adagrad"), partials_of(tmp_path, layout, [update], [1.0], [0]), layout)
    state = load_arrays(tmp_path / "out_state")
    assert read_safetensors_header(tmp_path / "out_state", max_bytes=96)[0] == state_layout(6)
    np.testing.assert_allclose(state["first_moment"], [0.4, 0.4, 0.4, 0.4, 0.2, 0.2])
    np.testing.assert_allclose(state["second_moment"], [16 + 1e-8] * 4 + [4 + 1e-8] * 2)


@pytest.mark.parametrize(
    "tensors", [{"first_moment": 2, "second_moment": 3}, {"first_moment": 3}, {"m": 3, "v": 3}]
)
def test_a_state_of_another_model_is_refused_and_nothing_is_written(tmp_path, tensors):
    layout = save_arrays({"w": np.zeros(3)}, tmp_path / "model")
    partials = partials_of(tmp_path, layout, [{"w": np.ones(3)}], [1.0], [0])
    save_arrays({name: np.zeros(size) for name, size in tensors.items()}, tmp_path / "state")
    with pytest.raises(StudioError, match="state does not fit the model") as refused:
        step(tmp_path, Adaptive(), partials, layout, tmp_path / "state")
    assert refused.value.code == "layout_mismatch"
    assert not (tmp_path / "out").exists() and not (tmp_path / "out_state").exists()


def test_a_step_too_far_for_the_numbers_is_refused_by_name(tmp_path):
    layout = save_arrays({"a": np.zeros(2), "far": np.full(2, -1e200)}, tmp_path / "model")
    update = {"a": np.ones(2), "far": np.full(2, 1e200)}
    with pytest.raises(StudioError, match="step of tensor 'far' is not finite") as refused:
        step(tmp_path, Adaptive(), partials_of(tmp_path, layout, [update], [1.0], [0]), layout)
    assert refused.value.code == "sum_not_finite"
    assert not (tmp_path / "out").exists() and not (tmp_path / "out_state").exists()


def test_a_step_on_a_64_mb_model_takes_a_few_blocks_of_memory(tmp_path):
    layout = save_arrays({str(n): np.full(2_000_000, n, np.float32) for n in range(8)}, tmp_path / "model")
    save_arrays({name: array.astype(np.float64) + 1 for name, array in load_arrays(tmp_path / "model").items()},
                tmp_path / "partial")  # fmt: skip
    partials = [(tmp_path / "partial", 3.0)]
    step(tmp_path, Adaptive(), partials, layout)
    (tmp_path / "out_state").rename(tmp_path / "state")
    tracemalloc.start()
    try:
        step(tmp_path, Adaptive(), partials, layout, tmp_path / "state")
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_fedavg_reads_neither_model_nor_state_and_leaves_none(tmp_path):
    layout = save_arrays({"w": np.zeros(3)}, tmp_path / "model")
    partials = partials_of(tmp_path, layout, [{"w": np.ones(3)}, {"w": np.zeros(3)}], [1.0, 3.0], [0, 1])

    def unwanted() -> Path:
        raise AssertionError("the model was fetched for nothing")

    files = Reduction(layout, unwanted, tmp_path / "out", tmp_path / "out_state", partials)
    digest = aggregator_named("fedavg").reduce(files, {})
    assert digest == combine_partials(partials, layout, tmp_path / "flat")
    assert not (tmp_path / "out_state").exists()


def test_arguments_that_are_not_given_are_fedns_own():
    assert aggregator_named("fedopt").check({}) == {
        "serveropt": "adam", "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "tau": 1e-4,
    }  # fmt: skip
    given = {"serveropt": "yogi", "learning_rate": 1, "beta1": 0, "beta2": None, "tau": 0.5}
    assert aggregator_named("fedopt").check(given) == {
        "serveropt": "yogi", "learning_rate": 1.0, "beta1": 0.0, "beta2": 0.99, "tau": 0.5,
    }  # fmt: skip
    assert aggregator_named("fedavg").check({}) == {}


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("fedavg", {"tau": 1}, "fedavg has no argument called 'tau'; it takes none."),
        ("fedopt", {"beta3": 1}, "fedopt has no argument called 'beta3'; it takes serveropt, learning_rate,"),
        ("fedopt", {"serveropt": "sgd"}, "serveropt must be one of adam, yogi, adagrad, not 'sgd'."),
        ("fedopt", {"serveropt": 1}, "serveropt must be one of adam, yogi, adagrad, not 1."),
        ("fedopt", {"learning_rate": "0.1"}, "learning_rate must be a number above 0, not '0.1'."),
        ("fedopt", {"learning_rate": 0}, "learning_rate must be a number above 0, not 0."),
        ("fedopt", {"learning_rate": True}, "learning_rate must be a number above 0, not True."),
        ("fedopt", {"learning_rate": float("nan")}, "learning_rate must be a number above 0, not nan."),
        ("fedopt", {"learning_rate": 10**400}, "learning_rate must be a number above 0, not 1000"),
        ("fedopt", {"beta1": 1}, "beta1 must be a number from 0 to below 1, not 1."),
        ("fedopt", {"beta2": -0.1}, "beta2 must be a number from 0 to below 1, not -0.1."),
        ("fedopt", {"tau": [1]}, r"tau must be a number above 0 to below 1e\+12, not \[1\]."),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_what_would_be_right(name, given, sentence):
    with pytest.raises(StudioError, match=sentence) as refused:
        aggregator_named(name).check(given)
    assert refused.value.data == {"field": "aggregator_kwargs"}


@pytest.mark.parametrize("name", ["splitlearningagg", "", None, 3, ["fedavg"], "../fedavg"])
def test_an_unknown_aggregator_is_refused_with_those_there_are(name):
    with pytest.raises(StudioError, match=r"no aggregator called .*; there are fedavg, .* and bulyan\."):
        aggregator_named(name)


def test_each_aggregator_bears_its_name_and_its_defaults_pass_its_own_check():
    for name, aggregator in AGGREGATORS.items():
        assert aggregator.name == name and aggregator.title and aggregator.hint
        assert aggregator.check(aggregator.check({})) == aggregator.check({})
