"""Medians, trimmed means and distances, block by block, are those of numpy on the whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.aggregation import distances, order_statistics
from federation.aggregation.aggregators import (
    aggregator_named,
)
from federation.aggregation.order_statistics import MiddleMean, NearMedianMean, median_places
from tests.aggregation_oracles import wide
from tests.aggregation_rounds import Rounds
from tests.random_models import draw_arrays, layouts
from tests.test_aggregation_collecting import LAYOUT, reduction

DTYPES = [np.float32, np.float64, np.int8, np.uint8, np.int64, np.uint16]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), rows=st.integers(1, 70), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**32))
def test_the_mean_of_any_places_of_the_sorted_is_that_of_numpy(data, rows, dtype, seed):
    low = data.draw(st.integers(0, rows - 1))
    high = data.draw(st.integers(low + 1, rows))
    rng = np.random.default_rng(seed)
    few = data.draw(st.booleans())  # values in common
    values = (rng.integers(-3, 4, (rows, 37)) if few else rng.standard_normal((rows, 37)) * 50).astype(dtype)
    wanted = np.sort(values, axis=0)[low:high].astype(np.float64).mean(axis=0)
    got = np.empty(37)
    MiddleMean(rows, low, high).of(values.copy(), got)
    np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-12)
    if high - low == 1:
        assert (got == wanted).all()


@pytest.mark.parametrize("rows", range(1, order_statistics.NETWORK_ROWS + 1))
def test_the_network_sorts_every_row_of_zeros_and_ones_it_is_given(rows):
    """A network that sorts zeros and ones sorts everything (Knuth, The Art of Computer Programming 3, 5.3.4)."""
    rng = np.random.default_rng(rows)
    every = 1 << min(rows, 13)
    values = (np.arange(every)[None, :] >> np.arange(rows)[:, None] % 13) & 1
    values = np.concatenate([values, rng.integers(0, 2, (rows, 4000))], axis=1).astype(np.float32)
    for low, high in {median_places(rows), (0, 1), (rows - 1, rows), (rows // 4, rows - rows // 4)}:
        got = np.empty(values.shape[1])
        MiddleMean(rows, low, high).of(values.copy(), got)
        assert (got == np.sort(values, axis=0)[low:high].mean(axis=0, dtype=np.float64)).all()


def test_whether_many_or_few_are_sorted_the_median_is_the_same_number(tmp_path, monkeypatch):
    updates = [draw_arrays(LAYOUT, seed) for seed in range(10)]
    files = reduction(tmp_path, draw_arrays(LAYOUT, 50), updates)
    by_network = {name: aggregator_named(name).reduce(files, aggregator_named(name).check({}))
                  for name in ("fedmedian", "trimmedmean")}  # fmt: skip
    monkeypatch.setattr(order_statistics, "NETWORK_ROWS", 0)
    for name, wanted in by_network.items():
        assert aggregator_named(name).reduce(files, aggregator_named(name).check({})) == wanted


def test_zero_is_zero_whichever_sign_it_came_with(tmp_path):
    for signs in ([0.0, -0.0, 0.0], [-0.0, -0.0, 0.0], [-0.0]):
        found = Rounds.of(tmp_path, "fedmedian", {"w": np.ones(1)}).play(
            [{"w": np.array([z])} for z in signs]
        )
        assert found["w"].tobytes() == bytes(8)


def test_medians_of_narrow_numbers_are_exact_and_of_counters_rounded_to_even(tmp_path):
    x = {
        "h": np.zeros(1, np.float16),
        "b": np.zeros(1, ml_dtypes.bfloat16),
        "n": np.zeros(1, np.int64),
        "flag": np.array([False]),
    }
    updates = [
        {
            "h": np.array([h], np.float16),
            "b": np.array([b], ml_dtypes.bfloat16),
            "n": np.array([n]),
            "flag": np.array([flag]),
        }
        for h, b, n, flag in (
            (65504, 3e38, 1, True),
            (6e-8, 1e-40, 2, True),
            (0.1, 0.1, 7, False),
            (1, 1, 3, False),
        )
    ]
    found = Rounds.of(tmp_path, "fedmedian", x).play(updates[:3])
    assert (found["h"], found["b"]) == (np.float16(0.1), ml_dtypes.bfloat16(0.1))
    assert found["n"] == 2 and found["flag"]
    even = Rounds.of(tmp_path, "fedmedian", x).play(updates)
    assert even["n"] == 2 and even["flag"]  # 2.5 rounds to even; half the clients say so
    assert even["h"] == np.float16((float(np.float16(0.1)) + 1) / 2)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.one_of(st.integers(1, 15), st.integers(30, 40)),
    seed=st.integers(0, 2**32),
    grid=st.booleans(),
    data=st.data(),
)
def test_of_values_as_near_to_the_median_the_smaller_counts(rows, seed, grid, data):
    count = data.draw(st.integers(1, rows))
    rng = np.random.default_rng(seed)
    values = rng.integers(-4, 5, (rows, 23)).astype(np.float64) if grid else rng.standard_normal((rows, 23))
    got = np.empty(23)
    NearMedianMean(rows, count).of(values.copy(), got)
    for column in range(23):
        middle = np.median(values[:, column])
        nearest = sorted(values[:, column], key=lambda value: (abs(value - middle), value))[:count]
        assert got[column] == pytest.approx(np.mean(nearest), rel=1e-13, abs=1e-13)


# --- distances ------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(
    layout=layouts(),
    seed=st.integers(0, 2**32),
    count=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1, 1e4]),
)
def test_distances_are_those_of_the_float_tensors_alone(layout, seed, count, scale):
    with tempfile.TemporaryDirectory() as folder:
        updates = [draw_arrays(layout, seed + place + 1, scale) for place in range(count)]
        files = reduction(Path(folder), draw_arrays(layout, seed, scale), updates)
        floats = [spec.name for spec in layout.tensors if spec.dtype in ("F16", "BF16", "F32", "F64")]
        flat = [np.concatenate([np.zeros(1), *(wide(u[name]).ravel() for name in floats)]) for u in updates]
        wanted = np.array([[((a - b) ** 2).sum() for b in flat] for a in flat])
        products = distances.gram(files.collected, files.model(), layout, 0, layout.count)
        got = distances.squared_distances(products)
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9 * max(float(wanted.max()), 1e-12))
        assert (got == got.T).all() and (np.diagonal(got) == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(3, 12),
    size=st.integers(2, 30),
    far=st.sampled_from([1, 1e6]),
)
def test_no_direction_leads_from_the_geometric_median_to_a_smaller_sum_of_distances(seed, count, size, far):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((count, size))
    points[0] *= far
    weights = rng.uniform(0.5, 2, count)
    c = distances.geometric_median(
        points @ points.T, list(weights), smoothing=1e-9, tolerance=1e-12, max_iterations=10_000
    )
    assert sum(c) == pytest.approx(1, rel=1e-12)
    v = np.array(c) @ points

    def cost(at: np.ndarray) -> float:
        return float(weights @ np.linalg.norm(points - at, axis=1))

    best = cost(v)
    for point in points:
        assert best <= cost(point) * (1 + 1e-6)
    for length in (1e-1, 1e-2):
        for direction in rng.standard_normal((20, size)):
            assert best <= cost(v + length * direction / np.linalg.norm(direction)) * (1 + 1e-6)


def test_a_geometric_median_on_top_of_an_update_is_that_update(tmp_path):
    updates = [{"w": np.array(at)} for at in ([0.0, 0], [1.0, 0], [-1.0, 0], [0.0, 1], [0.0, -1])]
    found = Rounds.of(tmp_path, "geometricmedian", {"w": np.array([5.0, 5.0])}, {"tolerance": 0}).play(
        updates
    )
    assert np.abs(found["w"]).max() < 1e-6
