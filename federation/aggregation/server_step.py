"""One step of the server, the same for everything that folds: partials become the next model.

    m = the weighted mean of all updates (from the combiners' partials)
    b = the mean, by the same weights, of the models that they answer: x itself in a synchronous round
    D = scale (m - b) [+ noise]
    x, state = optimiser(x, D, state)

What is averaged how is in the weights and the scale, so privacy, buffered asynchronous rounds, normalising and every
optimiser go together here. Integers and booleans (counters, masks) have no gradient: they take the mean m, and under
noise, which would tell what they are, they stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from foundation.errors import StudioError

from .accumulate import mean_blocks, write_block
from .blocks import BLOCK_ELEMENTS, BlockReader, Float64s, Narrower
from .layout import FLOATS, Layout, TensorSpec, invalid_model, shown
from .model_files import ModelFiles, stored_dtype, typed_blocks
from .safetensors_file import (
    Flat,
    ModelSink,
    StrPath,
    canonical_header,
    new_file,
    read_safetensors_header,
)
from .server_optimisers import ServerOptimiser


class Noise(Protocol):
    """What is added to the mean change before the optimiser sees it."""

    def add_to(self, block: Float64s, /) -> None: ...


def step_model(
    optimiser: ServerOptimiser,
    partials: Sequence[tuple[StrPath, float]],
    layout: Layout,
    *,
    model: StrPath,
    state: StrPath | None,
    out: StrPath,
    out_state: StrPath,
    scale: float = 1.0,
    bases: Sequence[tuple[StrPath, float]] | None = None,
    noise: Noise | None = None,
) -> str:
    """One step from `model` (a canonical file of `layout`) with float64 partials as `combine_partials` takes them:
    writes the next model, and the next state when the optimiser has one; returns the model's sha256.

    `state` is what an earlier step wrote, None before the first. `bases` are (model, summed weight of the updates that
    answer it); None: all answer `model`. Without partials nothing has changed: D = 0 (+ noise). Memory: a few blocks.
    Raises StudioError as `combine_partials` does, `invalid_model` and `layout_mismatch` for a model or state that is
    not of this layout, `sum_not_finite`.
    """
    flat, reader, narrower = Flat(layout), BlockReader(), Narrower()
    x, scratch = np.empty(BLOCK_ELEMENTS), np.empty(BLOCK_ELEMENTS)
    with ExitStack() as stack:
        given = stack.enter_context(Path(model).open("rb", buffering=0))
        _skip_header(given, layout)
        answered = stack.enter_context(_MeanBase(bases, layout)) if bases is not None and partials else None
        moments = _Moments(optimiser, flat.size, state, out_state, stack) if optimiser.moments else None
        sink = ModelSink(stack.enter_context(new_file(out)))
        sink.write(canonical_header(layout))
        for dtype, start, mean in mean_blocks(partials, layout) if partials else _no_means(layout):
            # Blocks come in the order of the canonical file, so the model is read straight through.
            old = reader.read(given, dtype, mean.size)
            if moments:
                moments.read(start, mean.size)
            if dtype not in FLOATS:
                if moments:
                    moments.write(start, flat, narrower)
                if noise is not None or not partials:
                    sink.write(old.view(np.uint8).data)
                else:
                    write_block(sink, narrower, mean, dtype, flat, start)
                continue
            values = x[: mean.size]
            np.copyto(values, old)
            with np.errstate(over="ignore", invalid="ignore"):
                if not partials:
                    change = mean
                elif answered is not None:
                    change = np.subtract(mean, answered.read(dtype, start, scratch[: mean.size]), out=mean)
                else:
                    change = np.subtract(mean, values, out=mean)
                if scale != 1.0:
                    np.multiply(change, scale, out=change)
                if noise is not None:
                    if not narrower.finite(change):  # before noise could hide it
                        raise _too_far(flat.name_at(start + int(np.argmin(np.isfinite(change)))))
                    noise.add_to(change)
                optimiser.step(values, change, moments.blocks if moments else (), scratch[: mean.size])
            if moments:
                moments.write(start, flat, narrower)
            write_block(sink, narrower, values, dtype, flat, start)
        return sink.sha256


def _no_means(layout: Layout) -> Iterator[tuple[str, int, Float64s]]:
    zeros = np.empty(BLOCK_ELEMENTS)
    for dtype, start, count in typed_blocks(layout, 0, layout.count, BLOCK_ELEMENTS):
        zeros[:count] = 0.0
        yield dtype, start, zeros[:count]


class _MeanBase:
    """The weighted mean of the models that updates answer, block by block."""

    def __init__(self, bases: Sequence[tuple[StrPath, float]], layout: Layout) -> None:
        total = sum(weight for _, weight in bases)
        self._files = ModelFiles([path for path, _ in bases], layout)
        self._shares = [weight / total for _, weight in bases]
        self._raw = np.empty(BLOCK_ELEMENTS * 8, dtype=np.uint8)
        self._wide = np.empty(BLOCK_ELEMENTS)

    def __enter__(self) -> _MeanBase:
        self._files.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.__exit__(None, None, None)

    def read(self, dtype: str, start: int, out: Float64s) -> Float64s:
        stored = stored_dtype(dtype)
        block = self._raw[: out.size * stored.itemsize].view(stored)
        wide = self._wide[: out.size]
        out.fill(0.0)
        for index, share in enumerate(self._shares):
            self._files.read(index, start, block)
            np.copyto(wide, block)
            np.multiply(wide, share, out=wide)
            np.add(out, wide, out=out)
        return out


def state_layout(elements: int, moments: Sequence[str] = ("first_moment", "second_moment")) -> Layout:
    """The moments of all elements of a model, in the order of its canonical file."""
    return Layout(tuple(TensorSpec(name, "F64", (elements,)) for name in moments))


class _Moments:
    """An optimiser's state: the blocks of the last one, changed in place and written to the next."""

    def __init__(
        self,
        optimiser: ServerOptimiser,
        elements: int,
        state: StrPath | None,
        out_state: StrPath,
        stack: ExitStack,
    ) -> None:
        layout = state_layout(elements, optimiser.moments)
        self._first = optimiser.at_first
        self._before: IO[bytes] | None = None
        if state is not None:
            self._begins = _moments_in(state, layout)
            self._before = stack.enter_context(_opened(state))
        header = canonical_header(layout)
        self._after = stack.enter_context(new_file(out_state))
        self._after.write(header)
        self._ends = [len(header) + 8 * elements * place for place in range(len(optimiser.moments))]
        self._readers = [BlockReader() for _ in optimiser.moments]
        self._buffers = [np.empty(BLOCK_ELEMENTS) for _ in optimiser.moments]
        self.blocks: list[Float64s] = []

    def read(self, start: int, count: int) -> None:
        if self._before is None:
            self.blocks = [buffer[:count] for buffer in self._buffers]
            for block, value in zip(self.blocks, self._first, strict=True):
                block.fill(value)
            return
        self.blocks = []
        for begin, reader in zip(self._begins, self._readers, strict=True):
            self._before.seek(begin + 8 * start)
            self.blocks.append(reader.read(self._before, "F64", count))

    def write(self, start: int, flat: Flat, narrower: Narrower) -> None:
        for end, block in zip(self._ends, self.blocks, strict=True):
            if not narrower.finite(block):
                raise _too_far(flat.name_at(start + int(np.argmin(np.isfinite(block)))))
            self._after.seek(end + 8 * start)
            self._after.write(block.view(np.uint8).data)


@contextmanager
def _opened(path: StrPath) -> Iterator[IO[bytes]]:
    with Path(path).open("rb", buffering=0) as file:
        yield file


def _moments_in(path: StrPath, wanted: Layout) -> list[int]:
    """Where each moment begins in a file of them."""
    found, data_start, offsets = read_safetensors_header(path, max_bytes=Path(path).stat().st_size)
    difference = wanted.difference(found)
    if difference is not None:
        raise StudioError("layout_mismatch", f"The optimiser's state does not fit the model. {difference}")
    return [data_start + offsets[spec.name][0] for spec in wanted.tensors]


def _skip_header(file: IO[bytes], layout: Layout) -> None:
    header = canonical_header(layout)
    if file.read(len(header)) != header:
        raise invalid_model("The model is no canonical file of its layout.")


def _too_far(name: str) -> StudioError:
    return StudioError(
        "sum_not_finite",
        f"The step of tensor {shown(name)} is not finite; some update lies too far from the model.",
        tensor=name,
    )
