"""How far an update lies from the model that it answers: found in the one pass that checks it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from federation.aggregation.blocks import BLOCK_ELEMENTS
from federation.aggregation.codecs import check_update, save_arrays
from foundation.errors import StudioError

CAP = 1 << 30


def model(rng: np.random.Generator, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Every kind of tensor: several float widths, longer than a block, empty, of no dimension, and no floats."""
    return {
        "wide": rng.normal(0, scale, (3, BLOCK_ELEMENTS // 2 + 7)).astype(np.float32),
        "half": rng.normal(0, scale, 33).astype(np.float16),
        "brain": rng.normal(0, scale, (5, 5)).astype(ml_dtypes.bfloat16),
        "double": rng.normal(0, scale, BLOCK_ELEMENTS + 1),
        "empty": np.zeros((0, 4), np.float32),
        "single": np.array(rng.normal(0, scale), np.float32),
        "steps": rng.integers(0, 1000, 9),
        "mask": rng.integers(0, 2, 6).astype(np.bool_),
    }


def distance(update: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> float:
    floats = [name for name in base if base[name].dtype.kind == "f" or base[name].dtype == ml_dtypes.bfloat16]
    squares = [np.square(update[n].astype(np.float64) - base[n].astype(np.float64)).sum() for n in floats]
    return float(np.sqrt(sum(squares)))


def found(folder: Path, update: Path, base: dict[str, np.ndarray]) -> float | None:
    layout = save_arrays(base, folder / "base")
    with (folder / "base").open("rb", buffering=0) as body:
        return check_update(update, layout, max_bytes=CAP, base=body).delta_norm


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_is_the_norm_of_the_difference_of_all_floats(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base, update = model(rng), model(rng, 10.0**seed)
    save_arrays(update, tmp_path / "update")
    assert found(tmp_path, tmp_path / "update", base) == pytest.approx(distance(update, base), rel=1e-12)


def test_the_order_of_tensors_in_the_updates_file_does_not_matter(tmp_path: Path) -> None:
    """A client's own safetensors writer lays them out as it likes."""
    rng = np.random.default_rng(9)
    base, update = model(rng), model(rng)
    backwards = {name: update[name] for name in reversed(update)}
    save_file(backwards, tmp_path / "update")
    assert found(tmp_path, tmp_path / "update", base) == pytest.approx(distance(update, base), rel=1e-12)


def test_an_update_that_changes_nothing_lies_at_no_distance(tmp_path: Path) -> None:
    base = model(np.random.default_rng(1))
    save_arrays(base, tmp_path / "update")
    assert found(tmp_path, tmp_path / "update", base) == 0.0


def test_without_a_model_to_compare_with_no_distance_is_told(tmp_path: Path) -> None:
    layout = save_arrays({"w": np.ones(3, np.float32)}, tmp_path / "update")
    assert check_update(tmp_path / "update", layout, max_bytes=CAP).delta_norm is None


def test_a_distance_beyond_any_number_is_refused_in_words(tmp_path: Path) -> None:
    save_arrays({"w": np.array([1.7e308])}, tmp_path / "update")
    with pytest.raises(StudioError, match="distance is infinite"):
        found(tmp_path, tmp_path / "update", {"w": np.array([-1.7e308])})
