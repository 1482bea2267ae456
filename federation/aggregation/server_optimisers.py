"""Server optimisers (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2): FedAdam, FedYogi and
FedAdagrad.

The mean of the updates' differences to the model they were given is a pseudo-gradient g (its examples' weight in it),
and the server takes one step of an adaptive method with it, element by element:

    m_t = beta1 m_{t-1} + (1 - beta1) g,  m_0 = 0
    v_t = v_{t-1} + g^2                                          adagrad,  v_0 = tau^2
        = v_{t-1} - (1 - beta2) g^2 sign(v_{t-1} - g^2)          yogi
        = beta2 v_{t-1} + (1 - beta2) g^2                        adam
    x_{t+1} = x_t + learning_rate m_t / (sqrt(v_t) + tau)

There is no bias correction, as in the paper. Everything is computed in float64. Integers and booleans (counters,
masks) have no gradient: they take the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from foundation.errors import StudioError

from .accumulate import mean_blocks, write_block
from .blocks import BlockReader, Float64s, Narrower
from .layout import FLOATS, Layout, TensorSpec, invalid_model, shown
from .safetensors_file import (
    Flat,
    ModelSink,
    StrPath,
    canonical_header,
    new_file,
    read_safetensors_header,
)

SecondMoment = Callable[[Float64s, Float64s, float], Float64s]


def _adam(v: Float64s, squares: Float64s, beta2: float) -> Float64s:
    return beta2 * v + (1.0 - beta2) * squares


def _yogi(v: Float64s, squares: Float64s, beta2: float) -> Float64s:
    return v - (1.0 - beta2) * squares * np.sign(v - squares)


def _adagrad(v: Float64s, squares: Float64s, beta2: float) -> Float64s:
    return v + squares


SECOND_MOMENTS: dict[str, SecondMoment] = {"adam": _adam, "yogi": _yogi, "adagrad": _adagrad}


@dataclass(frozen=True)
class ServerOptimiser:
    """One of `SECOND_MOMENTS` and its numbers: learning_rate and tau above 0, the betas from 0 to below 1."""

    serveropt: str = "adam"
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-4

    def at_first(self, count: int) -> tuple[Float64s, Float64s]:
        """m and v before the first step."""
        return np.zeros(count), np.full(count, self.tau**2)

    def step(
        self, old: Float64s, mean: Float64s, m: Float64s, v: Float64s
    ) -> tuple[Float64s, Float64s, Float64s]:
        """(new values, m, v) of elements of shape (n,) whose updates have this mean."""
        gradient = mean - old
        m = self.beta1 * m + (1.0 - self.beta1) * gradient
        v = SECOND_MOMENTS[self.serveropt](v, gradient * gradient, self.beta2)
        return old + self.learning_rate * (m / (np.sqrt(v) + self.tau)), m, v


def step_model(
    optimiser: ServerOptimiser,
    partials: Sequence[tuple[StrPath, float]],
    layout: Layout,
    *,
    model: StrPath,
    state: StrPath | None,
    out: StrPath,
    out_state: StrPath,
) -> str:
    """One step from `model` (a canonical file of `layout`) with float64 partials as `combine_partials` takes them:
    writes the next model and the next state, and returns the model's sha256.

    `state` is what an earlier step wrote, None before the first. Memory: a few blocks. Raises StudioError as
    `combine_partials` does, `invalid_model` and `layout_mismatch` for a model or state that is not of this layout.
    """
    flat, reader, narrower = Flat(layout), BlockReader(), Narrower()
    with ExitStack() as stack:
        given = stack.enter_context(Path(model).open("rb", buffering=0))
        _skip_header(given, layout)
        before = None
        if state is not None:
            begins = _moments_in(state, flat.size)
            before = _Moments(stack.enter_context(Path(state).open("rb", buffering=0)), begins)
        after = _Moments.empty(stack.enter_context(new_file(out_state)), flat.size)
        sink = ModelSink(stack.enter_context(new_file(out)))
        sink.write(canonical_header(layout))
        for dtype, start, mean in mean_blocks(partials, layout):
            # Blocks come in the order of the canonical file, so the model is read straight through.
            old = reader.read(given, dtype, mean.size)
            m, v = before.read(start, mean.size) if before else optimiser.at_first(mean.size)
            if dtype in FLOATS:
                with np.errstate(over="ignore", invalid="ignore"):
                    mean, m, v = optimiser.step(old.astype(np.float64), mean, m, v)
                for moment in (m, v):
                    if not narrower.finite(moment):
                        raise _too_far(flat.name_at(start + int(np.argmin(np.isfinite(moment)))))
            after.write(start, m, v)
            write_block(sink, narrower, mean, dtype, flat, start)
        return sink.sha256


def state_layout(elements: int) -> Layout:
    """The moments of all elements of a model, in the order of its canonical file."""
    return Layout(tuple(TensorSpec(f"{which}_moment", "F64", (elements,)) for which in ("first", "second")))


def _moments_in(path: StrPath, elements: int) -> tuple[int, int]:
    """Where both moments begin in a file of them."""
    wanted = state_layout(elements)
    found, data_start, offsets = read_safetensors_header(path, max_bytes=Path(path).stat().st_size)
    difference = wanted.difference(found)
    if difference is not None:
        raise StudioError("layout_mismatch", f"The optimiser's state does not fit the model. {difference}")
    first, second = (data_start + offsets[spec.name][0] for spec in wanted.tensors)
    return first, second


class _Moments:
    """Both moments in an open file, by element."""

    def __init__(self, file: IO[bytes], begins: tuple[int, int]) -> None:
        self._file, self._begins = file, begins
        self._readers = (BlockReader(), BlockReader())

    @classmethod
    def empty(cls, file: IO[bytes], elements: int) -> _Moments:
        header = canonical_header(state_layout(elements))
        file.write(header)
        return cls(file, (len(header), len(header) + 8 * elements))

    def read(self, start: int, count: int) -> tuple[Float64s, Float64s]:
        found = []
        for begin, reader in zip(self._begins, self._readers, strict=True):
            self._file.seek(begin + 8 * start)
            found.append(reader.read(self._file, "F64", count))
        return found[0], found[1]

    def write(self, start: int, *moments: Float64s) -> None:
        for begin, moment in zip(self._begins, moments, strict=True):
            self._file.seek(begin + 8 * start)
            self._file.write(moment.view(np.uint8).data)


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
