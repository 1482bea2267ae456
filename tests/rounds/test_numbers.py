"""Numbers: dtypes kept, averages in float64, rounding back, and shapes that are legal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.rig import Rig
from tests.rounds.here import CombinerHere, WorkerHere
from tests.rounds.rows import mean
from tests.wire_client import ACCEPTED

pytestmark = pytest.mark.django_db(transaction=True)

DTYPES = {
    "half": np.float16,
    "brain": ml_dtypes.bfloat16,
    "single": np.float32,
    "double": np.float64,
}


def model(rng: np.random.Generator) -> dict[str, Any]:
    """Every kind of tensor that a model may hold."""
    arrays: dict[str, Any] = {name: rng.normal(size=(5, 7)).astype(dtype) for name, dtype in DTYPES.items()}
    return arrays | {
        "counter": rng.integers(0, 1000, size=(3,), dtype=np.int64),
        "small": rng.integers(-100, 100, size=(4,), dtype=np.int8),
        "mask": rng.random(6) > 0.5,
        "scalar": np.asarray(rng.normal(), np.float32),
        "batches": np.asarray(rng.integers(0, 50), np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


@pytest.mark.parametrize("combiners", [1, 2])
def test_every_dtype_comes_back_as_it_was_averaged_in_float64(
    rig: Rig,
    combiner_here: Callable[..., CombinerHere],
    worker_here: WorkerHere,
    combiners: int,
) -> None:
    """float layouts keep their dtype and are averaged in float64 (float16 and bfloat16 too); integers and
    booleans are averaged in float64 and rounded back; 0-d and empty tensors are legal. Two combiners serve one
    session, and the result equals the flat mean."""
    rng = np.random.default_rng(7)
    here = [combiner_here(f"c{n}") for n in range(combiners)]
    wires = [rig.connect(here[n % combiners], rig.client(f"site-{n}")[1]) for n in range(4)]
    session = rig.session(seed=rig.model(model(rng)), min_clients=4)
    sent = [(model(rng), float(weight)) for weight in (1, 3.5, 1200, 17)]
    for wire, (arrays, weight) in zip(wires, sent, strict=True):
        assert wire.upload(wire.next_task(), arrays, num_examples=weight).status == ACCEPTED
    rig.until_session(session, "finished")
    found, flat = rig.arrays_of(session.current_model), mean(sent)
    assert session.rounds.get().shares.count() == combiners
    for name, array in sent[0][0].items():
        assert found[name].dtype == np.asarray(array).dtype and found[name].shape == np.asarray(array).shape
        if array.dtype == bool:
            assert (found[name] == (flat[name] >= 0.5)).all()
        elif array.dtype.kind in "iu":
            assert (found[name] == np.rint(flat[name]).astype(array.dtype)).all()
        elif name == "double":
            np.testing.assert_allclose(found[name], flat[name], rtol=1e-14)
        else:  # one rounding to the tensor's own dtype
            assert (found[name] == flat[name].astype(array.dtype)).all(), name
