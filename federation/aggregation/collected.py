"""The updates of a round combined by ranges of elements, one block of all of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .accumulate import write_block
from .blocks import Array, Float64s, Narrower
from .layout import Layout
from .model_files import ModelFiles, stored_dtype, typed_blocks
from .safetensors_file import Flat, ModelSink, StrPath

Combine = Callable[[Array, Float64s], None]

# What is read of all updates at a time: enough of each that a read is worth its call, not more than caches keep.
READ_BYTES = 4 << 20
MIN_READ, MAX_READ = 4096, 64 * 1024
# What is combined at a time: what a core's L2 cache holds.
CACHE_BYTES = 1 << 20
MIN_BLOCK, MAX_BLOCK = 1024, 16 * 1024


def combine_range(
    paths: Sequence[StrPath], layout: Layout, begin: int, end: int, sink: ModelSink, combine: Combine
) -> None:
    """Write elements [begin, end) of the combined model to `sink`, raw, in the model's dtypes.

    `combine(values, mean)` gets a block of all updates, shape (n, size), in the model's dtype (16-bit floats as
    float32, booleans as bytes), which it may overwrite, and fills `mean`, float64 (size,). Memory: n x one block.
    Raises StudioError `sum_not_finite`, `layout_mismatch`, `invalid_model`.
    """
    flat, narrower = Flat(layout), Narrower()
    clients = len(paths)
    limit = min(max(READ_BYTES // (4 * max(clients, 1)), MIN_READ), MAX_READ)
    length = min(max(CACHE_BYTES // (4 * max(clients, 1)), MIN_BLOCK), MAX_BLOCK)
    raw = np.empty(clients * limit * 8, dtype=np.uint8)
    half, mean = np.empty(limit * 2, dtype=np.uint8), np.empty(length)
    with ModelFiles(paths, layout) as files:
        for dtype, start, size in typed_blocks(layout, begin, end, limit):
            stored = stored_dtype(dtype)
            narrow = dtype in ("F16", "BF16")
            width = 4 if narrow else stored.itemsize
            values = raw[: clients * size * width].view(np.float32 if narrow else stored)
            values = values.reshape(clients, size)
            for index in range(clients):
                if narrow:
                    read = half[: size * 2].view(stored)
                    files.read(index, start, read)
                    values[index] = read
                else:
                    files.read(index, start, values[index])
            for at in range(0, size, length):
                block = mean[: min(length, size - at)]
                with np.errstate(over="ignore", invalid="ignore"):
                    combine(values[:, at : at + block.size], block)
                write_block(sink, narrower, block, dtype, flat, start + at)


class WeightedCombination:
    """sum_i c_i x_i: updates with a coefficient of 0 are not even looked at."""

    def __init__(self, coefficients: Sequence[float]) -> None:
        self._terms = [(index, c) for index, c in enumerate(coefficients) if c != 0]
        self._scaled = np.empty(MAX_BLOCK)

    def __call__(self, values: Array, mean: Float64s) -> None:
        mean.fill(0.0)
        scaled = self._scaled[: mean.size]
        for index, c in self._terms:
            np.copyto(scaled, values[index])
            np.multiply(scaled, c, out=scaled)
            np.add(mean, scaled, out=mean)
