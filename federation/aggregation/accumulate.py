"""Federated averaging (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, Algorithm 1):  w_{t+1} = sum_k (n_k / n) w_{t+1}^k,  n = sum_k n_k,  n_k the examples of
client k.

The sum runs as updates arrive, in float64, and is divided once at the end; so the memory is one sum, however
many clients there are. The mean of means weighted by their summed examples is the same number, which is what
lets several combiners share a round: each writes a partial in float64, `combine_partials` averages those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from foundation.errors import StudioError

from .blocks import BLOCK_ELEMENTS, Array, BlockReader, Float64s, Narrower
from .layout import DTYPES, FLOATS, Layout, shown
from .model_files import ModelFiles, stored_dtype, typed_blocks
from .safetensors_file import (
    Flat,
    ModelSink,
    Offsets,
    Run,
    StrPath,
    canonical_header,
    canonical_offsets,
    new_file,
    read_safetensors_header,
)

# Below this a second thread costs more than it saves.
THREADS_FROM_BYTES = 8 << 20


class WeightedSum:
    """The running sum of weight x update over all tensors of a layout, float64, shape (elements of the
    model,).

    Memory: 8 bytes per element (twice a float32 model) and a few blocks per thread. One caller at a time; with
    `threads` above 1 a large update is folded by so many threads, each its own stretch of elements, which gives the
    same bits. Integers beyond 2**53 lose their last digits, as all sums here are float64.
    """

    def __init__(self, layout: Layout, threads: int = 1) -> None:
        self.layout = layout
        self.weight = 0.0
        self.count = 0
        self._flat = Flat(layout)
        self._sums: Float64s = np.empty(self._flat.size, dtype=np.float64)
        self._lanes = [_Lane() for _ in range(max(threads, 1))]
        self._header = canonical_header(layout)
        self._file_bytes = len(self._header) + layout.nbytes
        self._runs = self._flat.runs(canonical_offsets(layout), len(self._header))
        self._torn = False

    def fold(self, path: StrPath, weight: float) -> None:
        """Add one update (a safetensors file of this layout, its numbers checked before) with its weight.

        Raises StudioError `bad_weight` unless 0 < weight < infinity, `layout_mismatch` or `invalid_model`
        with the sum untouched; should the file fail while it is read, the sum is torn and refuses everything
        from then on.
        """
        self._refuse_torn()
        check_weight(weight)
        runs = self._runs_of(path)
        with Path(path).open("rb", buffering=0):  # what cannot be opened leaves the sum as it was
            self._torn = True
            if len(self._lanes) == 1 or self._file_bytes < THREADS_FROM_BYTES:
                self._lanes[0].fold(path, weight, runs, self._sums, first=self.count == 0)
            else:
                shares = _shared_out(runs, len(self._lanes))
                with ThreadPoolExecutor(len(self._lanes), "fold") as pool:
                    folds = [
                        pool.submit(lane.fold, path, weight, share, self._sums, first=self.count == 0)
                        for lane, share in zip(self._lanes, shares, strict=True)
                    ]
                    for fold in folds:
                        fold.result()
            self._torn = False
        self.weight += weight
        self.count += 1

    def start_over(self) -> None:
        """Empty it for other updates of the same layout: its memory, which is dear to get, is used again."""
        self.weight, self.count, self._torn = 0.0, 0, False

    def write_mean(self, path: StrPath, *, partial: bool, fsync: bool = False) -> str:
        """Write sum / weight as a canonical file and return its sha256 (hex). The sum stays usable.

        `partial=False` casts to each tensor's own dtype with one rounding (integers to the nearest, ties to
        even, clipped; booleans true from 0.5 up); `partial=True` writes F64 for every tensor, so that
        combining loses nothing. Raises StudioError `no_updates` when nothing was folded, `sum_not_finite`
        naming the tensor.
        """
        self._refuse_torn()
        if self.count == 0:
            raise StudioError("no_updates", "No update was folded, so there is no mean to write.")
        layout = self.layout.as_float64() if partial else self.layout
        header = canonical_header(layout)
        runs = self._flat.runs(canonical_offsets(layout), len(header), "F64" if partial else None)
        mean, narrower = np.empty(BLOCK_ELEMENTS, dtype=np.float64), Narrower()
        with new_file(path, fsync=fsync) as file:
            sink = ModelSink(file)
            sink.write(header)
            for run in runs:
                for start in range(run.start, run.start + run.count, BLOCK_ELEMENTS):
                    sums = self._sums[start : min(start + BLOCK_ELEMENTS, run.start + run.count)]
                    block = np.divide(sums, self.weight, out=mean[: sums.size])
                    write_block(sink, narrower, block, run.dtype, self._flat, start)
            return sink.sha256

    def _runs_of(self, path: StrPath) -> list[Run]:
        with Path(path).open("rb") as file:
            if file.read(len(self._header)) == self._header and Path(path).stat().st_size == self._file_bytes:
                return self._runs  # the common case parses nothing
        offsets, data_start = _read_expecting(path, self.layout)
        return self._flat.runs(offsets, data_start)

    def _refuse_torn(self) -> None:
        if self._torn:
            raise StudioError(
                "sum_torn",
                "A file failed while it was being folded; the sum must be rebuilt from the start.",
                500,
            )


class _Lane:
    """The buffers of one thread that folds."""

    def __init__(self) -> None:
        self._scaled: Float64s = np.empty(BLOCK_ELEMENTS, dtype=np.float64)
        self._reader = BlockReader()

    def fold(self, path: StrPath, weight: float, runs: Sequence[Run], sums: Float64s, *, first: bool) -> None:
        """`first`: the sums hold nothing yet; what is there is overwritten."""
        with Path(path).open("rb", buffering=0) as file, np.errstate(over="ignore", invalid="ignore"):
            for run in runs:
                file.seek(run.begin)
                for at in range(0, run.count, BLOCK_ELEMENTS):
                    size = min(BLOCK_ELEMENTS, run.count - at)
                    scaled = self._scaled[:size]
                    np.copyto(scaled, self._reader.read(file, run.dtype, size))
                    np.multiply(scaled, weight, out=scaled)
                    block = sums[run.start + at : run.start + at + size]
                    # 0.0 + scaled, not scaled: the same bits as a sum that began with zeros, -0.0 too
                    np.add(0.0 if first else block, scaled, out=block)


def _shared_out(runs: Sequence[Run], lanes: int) -> list[list[Run]]:
    """The runs cut into so many lists of about as many elements, no element in two."""
    length = max(-(-sum(run.count for run in runs) // lanes), 1)
    shares: list[list[Run]] = [[] for _ in range(lanes)]
    passed = 0
    for run in runs:
        at = 0
        while at < run.count:
            lane = passed // length
            count = min(run.count - at, (lane + 1) * length - passed)
            begin = run.begin + at * DTYPES[run.dtype].itemsize
            shares[lane].append(Run(run.dtype, begin, run.start + at, count))
            at, passed = at + count, passed + count
    return shares


def fold_in_order(
    paths: Sequence[StrPath], weights: Sequence[float], layout: Layout, out: StrPath, *, fsync: bool = False
) -> str:
    """Write the weighted mean of updates, folded in this order, as a float64 partial; its sha256.

    The same bits as a `WeightedSum` that folded them one after the other, without its memory: a few blocks. An update
    of weight 0 is left out. Raises StudioError `no_updates` when that leaves none, else as `WeightedSum` does.
    """
    counted = [(path, weight) for path, weight in zip(paths, weights, strict=True) if weight != 0]
    if not counted:
        raise StudioError("no_updates", "No update was folded, so there is no mean to write.")
    total = 0.0
    for _, weight in counted:
        check_weight(weight)
        total += weight
    flat, narrower, wide = Flat(layout), Narrower(), layout.as_float64()
    sums, scaled = np.empty(BLOCK_ELEMENTS), np.empty(BLOCK_ELEMENTS)
    raw = np.empty(BLOCK_ELEMENTS * 8, dtype=np.uint8)
    header = canonical_header(wide)
    with ModelFiles([path for path, _ in counted], layout) as files, new_file(out, fsync=fsync) as file:
        sink = ModelSink(file)
        sink.write(header)
        # A partial keeps its tensors in layout order, a model the widest first.
        for run in flat.runs(canonical_offsets(wide), len(header), "F64"):
            for dtype, start, size in typed_blocks(layout, run.start, run.start + run.count, BLOCK_ELEMENTS):
                stored, block, part = stored_dtype(dtype), sums[:size], scaled[:size]
                block.fill(0.0)
                read = raw[: size * stored.itemsize].view(stored)
                with np.errstate(over="ignore", invalid="ignore"):
                    for index, (_, weight) in enumerate(counted):
                        files.read(index, start, read)
                        np.copyto(part, read)
                        np.multiply(part, weight, out=part)
                        np.add(block, part, out=block)
                    np.divide(block, total, out=block)
                write_block(sink, narrower, block, "F64", flat, start)
        return sink.sha256


def combine_partials(
    partials: Sequence[tuple[StrPath, float]], layout: Layout, out_path: StrPath, *, fsync: bool = False
) -> str:
    """Weighted mean of float64 partial files, block by block, as a canonical file of the model's dtypes; its
    sha256.

    `partials` are (path, summed weight); the result equals the flat weighted mean of all updates up to one
    rounding of float64 before the rounding to the model's dtype. Memory: a few blocks. Raises StudioError
    `no_updates`, `bad_weight`, `layout_mismatch`, `invalid_model`, `sum_not_finite`.
    """
    flat, narrower = Flat(layout), Narrower()
    with new_file(out_path, fsync=fsync) as file:
        sink = ModelSink(file)
        sink.write(canonical_header(layout))
        for dtype, start, block in mean_blocks(partials, layout):
            write_block(sink, narrower, block, dtype, flat, start)
        return sink.sha256


def mean_blocks(
    partials: Sequence[tuple[StrPath, float]], layout: Layout
) -> Iterator[tuple[str, int, Float64s]]:
    """(dtype in the model, first element, values) of the weighted mean of partials, every element once and in the
    order of the model's canonical file. The values are valid until the next block, and may be overwritten.

    Raises as `combine_partials` does.
    """
    if not partials:
        raise StudioError("no_updates", "There is no partial to combine.")
    for _, weight in partials:
        check_weight(weight)
    total = math.fsum(weight for _, weight in partials)
    check_weight(total)
    wide = layout.as_float64()
    places = [_read_expecting(path, wide) for path, _ in partials]
    reader, sums = BlockReader(), np.empty(BLOCK_ELEMENTS, dtype=np.float64)
    with ExitStack() as stack:
        files: list[tuple[IO[bytes], float]] = [
            (stack.enter_context(Path(path).open("rb", buffering=0)), weight / total)
            for path, weight in partials
        ]
        for dtype, start, count, begins in _stretches(Flat(layout), places):
            for at in range(0, count, BLOCK_ELEMENTS):
                block = sums[: min(BLOCK_ELEMENTS, count - at)]
                block.fill(0.0)
                with np.errstate(over="ignore", invalid="ignore"):
                    for (file, share), begin in zip(files, begins, strict=True):
                        file.seek(begin + at * 8)
                        part = reader.read(file, "F64", block.size)
                        np.multiply(part, share, out=part)
                        np.add(block, part, out=block)
                yield dtype, start + at, block


def check_weight(weight: float) -> None:
    """Raises StudioError `bad_weight` unless 0 < weight < infinity."""
    if not (math.isfinite(weight) and weight > 0):
        raise StudioError(
            "bad_weight", f"The weight of an update is {weight}; it must be above 0 and finite."
        )


def write_block(
    sink: ModelSink, narrower: Narrower, block: Float64s, dtype: str, flat: Flat, start: int
) -> None:
    """Write values (overwritten) of the model from element `start` on as `dtype`; raises `sum_not_finite`."""
    # Floats keep what is not finite when they are cast, and a narrow one may overflow; integers would hide it.
    if dtype not in FLOATS and not narrower.finite(block):
        raise _sum_not_finite(block, flat, start)
    narrow = narrower.cast(block, dtype)
    if dtype in FLOATS and not narrower.finite(narrow):
        raise _sum_not_finite(narrow, flat, start)
    sink.write(narrow.view(np.uint8).data)


def _sum_not_finite(block: Array, flat: Flat, start: int) -> StudioError:
    name = flat.name_at(start + int(np.argmin(np.isfinite(block))))
    return StudioError(
        "sum_not_finite",
        f"The mean of tensor {shown(name)} is not finite in its dtype; some update holds values too large.",
        tensor=name,
    )


def _read_expecting(path: StrPath, layout: Layout) -> tuple[Offsets, int]:
    found, data_start, offsets = read_safetensors_header(path, max_bytes=Path(path).stat().st_size)
    difference = layout.difference(found)
    if difference is not None:
        raise StudioError("layout_mismatch", f"The file does not fit the model. {difference}")
    return offsets, data_start


def _stretches(flat: Flat, places: list[tuple[Offsets, int]]) -> list[tuple[str, int, int, list[int]]]:
    """(dtype, first element, elements, position in each file): as long as all partials lie end to end too."""
    stretches: list[tuple[str, int, int, list[int]]] = []
    for spec, start in zip(flat.specs, flat.starts, strict=True):
        if not spec.count:
            continue
        begins = [data_start + offsets[spec.name][0] for offsets, data_start in places]
        if stretches:
            dtype, first, count, firsts = stretches[-1]
            if dtype == spec.dtype and all(a + count * 8 == b for a, b in zip(firsts, begins, strict=True)):
                stretches[-1] = (dtype, first, count + spec.count, firsts)
                continue
        stretches.append((spec.dtype, start, spec.count, begins))
    return stretches
