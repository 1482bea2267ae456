"""A round's model is the mean of its updates weighted by examples, however many combiners shared the work."""

from __future__ import annotations

import hashlib
import math
import tempfile
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.aggregation.accumulate import WeightedSum, combine_partials
from federation.aggregation.codecs import load_arrays, save_arrays
from federation.aggregation.layout import Layout, TensorSpec
from foundation.errors import StudioError
from tests.random_models import assert_is_rounded, draw_arrays, exact_mean, largest, layouts

WEIGHTS = st.lists(st.one_of(st.integers(1, 10**6), st.floats(1e-3, 1e12)), min_size=1, max_size=6)


def save_all(folder: Path, models: list[dict[str, np.ndarray]]) -> list[Path]:
    paths = [folder / f"{index}.safetensors" for index in range(len(models))]
    for model, path in zip(models, paths):
        save_arrays(model, path)
    return paths


def assert_is_mean(
    path: Path, layout: Layout, models: list[dict[str, np.ndarray]], weights: list[float]
) -> None:
    found = load_arrays(path)
    assert list(found) == [spec.name for spec in layout.tensors]
    for spec in layout.tensors:
        assert found[spec.name].dtype == models[0][spec.name].dtype
        assert found[spec.name].shape == spec.shape
        assert_is_rounded(
            found[spec.name], exact_mean(models, weights, spec.name), largest(models, spec.name)
        )


@settings(max_examples=60, deadline=None)
@given(
    layout=layouts(), weights=WEIGHTS, seed=st.integers(0, 2**32), scale=st.sampled_from([1e-3, 1.0, 300.0])
)
def test_the_mean_of_any_updates_is_correctly_rounded_in_every_dtype(layout, weights, seed, scale):
    models = [draw_arrays(layout, seed + index, scale) for index in range(len(weights))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = WeightedSum(layout)
        for path, weight in zip(save_all(folder, models), weights):
            total.fold(path, weight)
        assert total.count == len(weights)
        assert total.weight == pytest.approx(sum(weights))
        digest = total.write_mean(folder / "mean", partial=False)
        assert digest == hashlib.sha256((folder / "mean").read_bytes()).hexdigest()
        assert_is_mean(folder / "mean", layout, models, weights)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), layout=layouts(), weights=WEIGHTS, seed=st.integers(0, 2**32))
def test_any_split_of_clients_over_combiners_gives_the_flat_average(data, layout, weights, seed):
    models = [draw_arrays(layout, seed + index) for index in range(len(weights))]
    homes = data.draw(st.lists(st.integers(0, 2), min_size=len(weights), max_size=len(weights)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sums: dict[int, WeightedSum] = {}
        for path, weight, home in zip(save_all(folder, models), weights, homes):
            sums.setdefault(home, WeightedSum(layout)).fold(path, weight)
        partials = []
        for home, total in sums.items():
            total.write_mean(folder / f"partial{home}", partial=True)
            partials.append((folder / f"partial{home}", total.weight))
        digest = combine_partials(partials, layout, folder / "mean")
        assert digest == hashlib.sha256((folder / "mean").read_bytes()).hexdigest()
        assert_is_mean(folder / "mean", layout, models, weights)


@settings(max_examples=25, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32), weight=st.integers(1, 1000))
def test_one_combiner_alone_gives_the_same_bytes_with_and_without_combining(layout, seed, weight):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = WeightedSum(layout)
        for path in save_all(folder, [draw_arrays(layout, seed), draw_arrays(layout, seed + 1)]):
            total.fold(path, weight)
        flat = total.write_mean(folder / "flat", partial=False)
        total.write_mean(folder / "partial", partial=True)
        assert combine_partials([(folder / "partial", total.weight)], layout, folder / "combined") == flat


def test_the_average_of_identical_updates_is_that_update_bit_for_bit(tmp_path):
    model = {
        "f32": np.linspace(-3, 3, 1001, dtype=np.float32),
        "f16": np.array([65504, -65504, 6e-8], dtype=np.float16),
        "bf16": np.array([3.38e38, -1.5, 1e-40], dtype=ml_dtypes.bfloat16),
        "i64": np.array([-(2**53), 2**53, 17]),
        "u8": np.array([0, 255], dtype=np.uint8),
        "flag": np.array([True, False]),
        "top": np.array([np.finfo(np.float32).max], dtype=np.float32),
    }
    total = WeightedSum(save_arrays(model, tmp_path / "update"))
    for _ in range(8):
        total.fold(tmp_path / "update", 32)
    total.write_mean(tmp_path / "mean", partial=False)
    assert (tmp_path / "mean").read_bytes() == (tmp_path / "update").read_bytes()


def mean_of(tmp_path: Path, *updates: tuple[np.ndarray, float]) -> np.ndarray:
    total = None
    for index, (array, weight) in enumerate(updates):
        layout = save_arrays({"x": array}, tmp_path / str(index))
        total = total or WeightedSum(layout)
        total.fold(tmp_path / str(index), weight)
    assert total is not None
    total.write_mean(tmp_path / "mean", partial=False)
    return np.array(load_arrays(tmp_path / "mean")["x"])


def test_counters_are_rounded_to_the_nearest_and_ties_go_to_even(tmp_path):
    found = mean_of(tmp_path, (np.array([1, 2, 10, -3]), 1), (np.array([2, 3, 11, -4]), 1))
    assert found.tolist() == [2, 2, 10, -4]


def test_integers_at_the_end_of_their_range_stay_there(tmp_path):
    for dtype in (np.int64, np.uint64, np.int8):
        info = np.iinfo(dtype)
        ends = np.array([info.min, info.max], dtype=dtype)
        assert mean_of(tmp_path, (ends, 3), (ends, 1e9)).tolist() == ends.tolist()


def test_a_flag_is_true_when_half_the_examples_say_so(tmp_path):
    yes_no, no_no = np.array([True, False]), np.array([False, False])
    assert mean_of(tmp_path, (yes_no, 5), (no_no, 5)).tolist() == [True, False]
    assert mean_of(tmp_path, (yes_no, 4), (no_no, 5)).tolist() == [False, False]


def test_bfloat16_is_rounded_once_where_rounding_through_float32_would_err(tmp_path):
    low, high = np.float64(1.0), np.float64(1.0 + 2**-7)
    # Just above and just below the tie between two neighbours, by less than float32 can tell.
    for nudge, expected in ((2.0**-30, high), (-(2.0**-30), low)):
        share = 0.5 + nudge
        found = mean_of(
            tmp_path,
            (np.array([low], ml_dtypes.bfloat16), 1 - share),
            (np.array([high], ml_dtypes.bfloat16), share),
        )
        assert found.astype(np.float64).tolist() == [expected]


def test_an_update_whose_tensors_come_in_another_order_is_folded_by_name(tmp_path):
    layout = save_arrays({"a": np.float32([1, 2]), "b": np.float32([3, 4])}, tmp_path / "model")
    save_arrays({"b": np.float32([30, 40]), "a": np.float32([10, 20])}, tmp_path / "update")
    total = WeightedSum(layout)
    total.fold(tmp_path / "update", 1)
    total.write_mean(tmp_path / "mean", partial=False)
    found = load_arrays(tmp_path / "mean")
    assert {name: array.tolist() for name, array in found.items()} == {"a": [10, 20], "b": [30, 40]}


def test_a_sum_beyond_float64_is_refused_and_names_the_tensor(tmp_path):
    layout = save_arrays({"fine": np.ones(3), "big": np.full(3, 1e300)}, tmp_path / "update")
    total = WeightedSum(layout)
    total.fold(tmp_path / "update", 1e12)
    with pytest.raises(StudioError) as refused:
        total.write_mean(tmp_path / "mean", partial=False)
    assert refused.value.code == "sum_not_finite"
    assert "'big'" in refused.value.message
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_partial_too_large_for_the_models_dtype_is_refused_instead_of_becoming_infinite(tmp_path, dtype):
    save_arrays({"x": np.array([1.0, 1e39])}, tmp_path / "partial")
    layout = Layout((TensorSpec("x", dtype, (2,)),))
    with pytest.raises(StudioError) as refused:
        combine_partials([(tmp_path / "partial", 1.0)], layout, tmp_path / "mean")
    assert refused.value.code == "sum_not_finite"
    assert list(tmp_path.iterdir()) == [tmp_path / "partial"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_partial_with_nan_is_refused_even_where_a_counter_would_hide_it(tmp_path, value):
    save_arrays({"steps": np.array([value])}, tmp_path / "partial")
    layout = Layout((TensorSpec("steps", "I64", (1,)),))
    with pytest.raises(StudioError) as refused:
        combine_partials([(tmp_path / "partial", 1.0)], layout, tmp_path / "mean")
    assert refused.value.code == "sum_not_finite"


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_weight_that_is_no_positive_number_changes_nothing(tmp_path, weight):
    layout = save_arrays({"x": np.ones(3)}, tmp_path / "update")
    total = WeightedSum(layout)
    with pytest.raises(StudioError):
        total.fold(tmp_path / "update", weight)
    with pytest.raises(StudioError, match="No update"):
        total.write_mean(tmp_path / "mean", partial=True)
    with pytest.raises(StudioError):
        combine_partials([(tmp_path / "update", weight)], layout, tmp_path / "mean")


def test_an_update_of_another_model_is_refused_and_leaves_the_sum_as_it_was(tmp_path):
    layout = save_arrays({"x": np.ones(3)}, tmp_path / "good")
    save_arrays({"x": np.ones(4)}, tmp_path / "other")
    total = WeightedSum(layout)
    total.fold(tmp_path / "good", 1)
    with pytest.raises(StudioError, match=r"shape \[4\]; it should be \[3\]"):
        total.fold(tmp_path / "other", 1)
    total.write_mean(tmp_path / "mean", partial=False)
    assert load_arrays(tmp_path / "mean")["x"].tolist() == [1, 1, 1]


def test_a_file_that_fails_halfway_through_its_fold_makes_the_sum_refuse_to_be_used(tmp_path, monkeypatch):
    layout = save_arrays({"x": np.ones(200_000, np.float32)}, tmp_path / "update")
    total = WeightedSum(layout)
    total.fold(tmp_path / "update", 1)
    known = total._runs_of

    def cut_after_the_header_was_read(path):
        runs = known(path)
        with path.open("r+b") as file:
            file.truncate(500_000)
        return runs

    monkeypatch.setattr(total, "_runs_of", cut_after_the_header_was_read)
    with pytest.raises(StudioError, match="cut short"):
        total.fold(tmp_path / "update", 1)
    with pytest.raises(StudioError, match="rebuilt") as refused:
        total.write_mean(tmp_path / "mean", partial=False)
    assert refused.value.code == "sum_torn"


def test_folding_a_64_mb_model_allocates_one_sum_and_a_few_blocks(tmp_path):
    layout = save_arrays(
        {f"layer{i}": np.full(2_000_000, i, np.float32) for i in range(8)}, tmp_path / "update"
    )
    tracemalloc.start()
    try:
        total = WeightedSum(layout)
        before = tracemalloc.get_traced_memory()[0]
        assert before < 2 * layout.nbytes + 4_000_000
        tracemalloc.reset_peak()
        for _ in range(3):
            total.fold(tmp_path / "update", 10)
        total.write_mean(tmp_path / "mean", partial=False)
        assert tracemalloc.get_traced_memory()[1] - before < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_sum_that_starts_over_has_the_bits_of_a_new_one(tmp_path: Path) -> None:
    """-0.0 too: a sum that began with zeros has 0.0 there."""
    layout = save_arrays({"w": np.array([1.5, -0.0, 3.0], np.float32)}, tmp_path / "a")
    save_arrays({"w": np.array([-7.0, -0.0, 1e30], np.float32)}, tmp_path / "b")
    used, new = WeightedSum(layout), WeightedSum(layout)
    used.fold(tmp_path / "b", 2.0)
    used.start_over()
    for total in (used, new):
        total.fold(tmp_path / "a", 3.0)
        total.fold(tmp_path / "a", 0.5)
    assert (used.weight, used.count) == (new.weight, new.count) == (3.5, 2)
    digests = {total.write_mean(tmp_path / "out", partial=True) for total in (used, new)}
    assert len(digests) == 1
    np.testing.assert_array_equal(np.signbit(load_arrays(tmp_path / "out")["w"]), [False, False, False])
