"""Models drawn at random for the numerics' tests, and the exact answers to compare with."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from federation.aggregation.layout import DTYPES, FLOATS, Layout, TensorSpec

NAMES = ["conv.weight", "conv.bias", "bn.num_batches_tracked", "mask", "head/kernel:0", "größe", "z", "a"]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 4), (2, 3, 4), (70_001,)]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A few tensors of any dtypes: scalars, empty ones, and one longer than a block now and then."""
    count = draw(st.integers(1, 6))
    names = draw(st.permutations(NAMES)) if draw(st.booleans()) else [str(n) for n in (10, 2, 0, 1, 33, 4)]
    return Layout.ordered(
        [
            TensorSpec(name, draw(st.sampled_from(sorted(DTYPES))), draw(st.sampled_from(SHAPES)))
            for name in names[:count]
        ]
    )


def draw_arrays(layout: Layout, seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for spec in layout.tensors:
        dtype = DTYPES[spec.dtype]
        if spec.dtype == "BOOL":
            array: Any = rng.integers(0, 2, spec.shape).astype(np.bool_)
        elif spec.dtype in FLOATS:
            array = np.asarray(rng.standard_normal(spec.shape) * scale).astype(dtype)
        else:
            info = np.iinfo(dtype)
            low, high = max(int(info.min), -(2**50)), min(int(info.max), 2**50)
            array = rng.integers(low, high, spec.shape, endpoint=True).astype(dtype)
        arrays[spec.name] = np.asarray(array).reshape(spec.shape)
    return arrays


def exact_mean(models: list[dict[str, np.ndarray]], weights: list[float], name: str) -> np.ndarray:
    """The weighted mean in numpy's widest float, computed the plain way."""
    wide = [np.longdouble(weight) * model[name].astype(np.float64) for model, weight in zip(models, weights)]
    return sum(wide[1:], wide[0]) / np.longdouble(sum(np.longdouble(weight) for weight in weights))


def assert_is_rounded(got: np.ndarray, exact: np.ndarray, largest: float) -> None:
    """`got` must be the representable number nearest to `exact`, but for the rounding of a float64 sum."""
    slack = np.longdouble(1e-14) * max(largest, 1e-300)
    if got.dtype == np.bool_:
        wrong = (got != (exact >= 0.5)) & (np.abs(exact - 0.5) > 1e-12)
        assert not wrong.any()
        return
    if got.dtype.kind in "iu":
        info = np.iinfo(got.dtype)
        clipped = np.clip(exact, info.min, info.max)
        assert (np.abs(got.astype(np.longdouble) - clipped) <= 0.5 + slack).all()
        return
    error = np.abs(got.astype(np.longdouble) - exact)
    for neighbour in neighbours(got):
        assert (error <= np.abs(neighbour.astype(np.longdouble) - exact) + slack).all()
    if got.dtype == np.float32:
        assert (error <= 1e-6 * np.abs(exact) + slack + 1e-45).all()


def neighbours(array: np.ndarray) -> list[np.ndarray]:
    """The next representable numbers on both sides."""
    if array.dtype != ml_dtypes.bfloat16:
        return [np.nextafter(array, array.dtype.type(end)) for end in (-np.inf, np.inf)]
    # One step of bfloat16 is 2**16 steps of float32.
    bits = array.astype(np.float32).view(np.int32)
    steps = [bits + 0x10000, np.where(bits & 0x7FFFFFFF, bits - 0x10000, bits + 0x10000)]
    return [step.astype(np.int32).view(np.float32) for step in steps]


def largest(models: list[dict[str, np.ndarray]], name: str) -> float:
    return max((float(np.abs(m[name].astype(np.float64)).max(initial=0.0)) for m in models), default=0.0)
