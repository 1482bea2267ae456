"""FEDn's own helpers read the files that Studio hands out, and Studio reads what they write."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from federation.aggregation.codecs import raw_to_canonical, save_arrays, to_canonical, to_npz, to_raw
from tests.compat.environments import Environment
from tests.compat.runners import run_in

pytestmark = pytest.mark.once

# What a compute package does with its model: load, change nothing, save.
THERE_AND_BACK = """
import json, sys
from fedn.utils.helpers.helpers import get_helper

folder = sys.argv[1]
shapes = {}
for name, ending in (("numpyhelper", "npz"), ("binaryhelper", "bin"), ("androidhelper", "raw")):
    helper = get_helper(name)
    model = helper.load(f"{folder}/out.{ending}")
    shapes[name] = [list(array.shape) for array in model]
    helper.save(model, f"{folder}/back.{ending}")
print(json.dumps(shapes))
"""


def test_a_model_goes_through_each_of_fedns_helpers_and_comes_back_the_same(
    fedn_environment: Environment, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    arrays = {
        "conv/kernel": rng.normal(size=(3, 2, 2)).astype(np.float32),
        "conv/bias": rng.normal(size=3).astype(ml_dtypes.bfloat16),
        "batches": np.array(7),
        "wide": rng.normal(size=(2, 0)),
    }
    layout = save_arrays(arrays, tmp_path / "model")
    to_npz(tmp_path / "model", tmp_path / "out.npz", positional=True)
    numbers = rng.normal(size=5)
    numbers.tofile(tmp_path / "seed.bin")
    raw_to_canonical(tmp_path / "seed.bin", tmp_path / "flat", dtype="F64", max_bytes=100)
    to_raw(tmp_path / "flat", tmp_path / "out.bin", dtype="F64")
    to_raw(tmp_path / "flat", tmp_path / "out.raw", dtype="F32")

    shapes = run_in("fedn", THERE_AND_BACK, str(tmp_path), home=tmp_path / "home")

    assert shapes == {
        "numpyhelper": [[3, 2, 2], [3], [], [2, 0]], "binaryhelper": [[5]], "androidhelper": [[], [], [], [], []],
    }  # fmt: skip
    found = to_canonical(tmp_path / "back.npz", tmp_path / "back", max_bytes=1000, expected=layout)
    assert found == layout
    assert (tmp_path / "back").read_bytes() == (tmp_path / "model").read_bytes()
    raw_to_canonical(tmp_path / "back.bin", tmp_path / "flat_back", dtype="F64", max_bytes=100)
    assert (tmp_path / "flat_back").read_bytes() == (tmp_path / "flat").read_bytes()
    assert (tmp_path / "back.raw").read_bytes() == numbers.astype(np.float32).tobytes()
