"""Many model files of one layout, read by ranges of elements.

Elements are counted through the whole model in the order of its canonical file, so the bytes of neighbouring ranges,
laid end to end behind the header, are the canonical file: that is what lets several workers make one model.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from foundation.errors import StudioError

from .blocks import Array
from .layout import DTYPES, Layout, invalid_model
from .safetensors_file import (
    Flat,
    ModelSink,
    Run,
    StrPath,
    canonical_header,
    canonical_offsets,
    new_file,
    read_safetensors_header,
)

# Beyond so many files each is opened for every read: a process may not have more than some thousand.
OPEN_FILES = 256
# Bytes of all clients' updates that one part of a spread reduction reads, about.
PART_BYTES = 1 << 30
MIN_PART_ELEMENTS = 1 << 20


class ModelFiles:
    """Files of one layout (safetensors, tensors in any order), open side by side.

    Raises StudioError `layout_mismatch` or `invalid_model` for one that is not of this layout.
    """

    def __init__(self, paths: Sequence[StrPath], layout: Layout) -> None:
        self._paths = [Path(path) for path in paths]
        flat, header = Flat(layout), canonical_header(layout)
        canonical = flat.runs(canonical_offsets(layout), len(header))
        size = len(header) + layout.nbytes
        self._runs = [_runs_of(path, layout, flat, header, size, canonical) for path in self._paths]
        self._starts = [[run.start for run in runs] for runs in self._runs]
        self._open: list[int] = []

    def __enter__(self) -> ModelFiles:
        try:
            for path in self._paths[:OPEN_FILES]:
                self._open.append(os.open(path, os.O_RDONLY))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            os.close(self._open.pop())

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int, start: int, out: Array) -> None:
        """Fill `out` (contiguous, of the dtype stored; booleans as uint8) with elements from `start` on.

        It reads rather than maps: a file that shrinks under a map kills the process. Raises `invalid_model`.
        """
        runs, target, width = self._runs[index], out.view(np.uint8).data, out.itemsize
        kept = index < len(self._open)
        handle = self._open[index] if kept else os.open(self._paths[index], os.O_RDONLY)
        try:
            at, end = start, start + out.size
            place = bisect_right(self._starts[index], start) - 1
            while at < end:
                run = runs[place]
                until = min(end, run.start + run.count)
                _fill(
                    handle,
                    run.begin + (at - run.start) * width,
                    target[(at - start) * width : (until - start) * width],
                )
                at, place = until, place + 1
        finally:
            if not kept:
                os.close(handle)


def _fill(handle: int, position: int, target: memoryview) -> None:
    at = 0
    while at < len(target):
        got = os.preadv(handle, [target[at:]], position + at)
        if not got:
            raise invalid_model("The file ends before its last tensor does: it is cut short.")
        at += got


def _runs_of(
    path: Path, layout: Layout, flat: Flat, header: bytes, size: int, canonical: list[Run]
) -> list[Run]:
    """Where the elements lie, by their place in the model."""
    found_bytes = path.stat().st_size
    with path.open("rb") as file:
        if found_bytes == size and file.read(len(header)) == header:
            return canonical  # the common case parses nothing
    found, data_start, offsets = read_safetensors_header(path, max_bytes=found_bytes)
    difference = layout.difference(found)
    if difference is not None:
        raise StudioError("layout_mismatch", f"The file does not fit the model. {difference}")
    return sorted(flat.runs(offsets, data_start), key=lambda run: run.start)


def typed_blocks(layout: Layout, begin: int, end: int, limit: int) -> Iterator[tuple[str, int, int]]:
    """(dtype, first element, elements) over a range in order; no block holds two dtypes or more than `limit`."""
    for run in Flat(layout).runs(canonical_offsets(layout), 0):
        first, last = max(begin, run.start), min(end, run.start + run.count)
        for start in range(first, last, limit):
            yield run.dtype, start, min(limit, last - start)


def part_ranges(layout: Layout, clients: int) -> list[tuple[int, int]]:
    """Ranges of elements [begin, end) that make up the model, each of about a gigabyte of updates to read.

    They depend on the model and the number of updates alone: with however many workers, the sums over ranges are the
    same to the last bit. A model without elements is one empty range.
    """
    per_element = max(layout.nbytes, 1) / max(layout.count, 1)
    length = max(int(PART_BYTES / (per_element * max(clients, 1))), MIN_PART_ELEMENTS)
    return [(at, min(at + length, layout.count)) for at in range(0, layout.count, length)] or [(0, 0)]


def assemble(layout: Layout, parts: Sequence[StrPath], out: StrPath, *, fsync: bool = False) -> str:
    """Write the canonical file of which `parts` (raw bytes, in the order of their ranges) are the data; its sha256.

    Raises StudioError `invalid_model` when they are not as many bytes as the layout's.
    """
    buffer = bytearray(1 << 20)
    total = 0
    with new_file(out, fsync=fsync) as file:
        sink = ModelSink(file)
        sink.write(canonical_header(layout))
        for part in parts:
            with Path(part).open("rb", buffering=0) as source:
                while got := source.readinto(buffer):
                    sink.write(memoryview(buffer)[:got])
                    total += got
        if total != layout.nbytes:
            raise invalid_model(f"The parts of the model have {total} bytes; it should be {layout.nbytes}.")
        return sink.sha256


def stored_dtype(dtype: str) -> np.dtype[np.generic]:
    """What elements are read as: booleans as bytes, as a bool other than 0 or 1 is undefined in numpy."""
    return np.dtype(np.uint8) if dtype == "BOOL" else DTYPES[dtype]
