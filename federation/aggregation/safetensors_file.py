"""The canonical model file: safetensors without metadata, the same bytes for the same tensors.

The header names the tensors in layout order. Their data lies widest dtype first (stable), so that every
tensor starts at a multiple of its item size and other readers can map it, whatever the mixture of dtypes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .layout import DTYPES, MAX_TENSORS, Layout, TensorSpec, invalid_model, shown

StrPath = str | os.PathLike[str]
Offsets = dict[str, tuple[int, int]]

# What a `ModelSink` gathers before it hands it to its threads, and how many of those there are.
SINK_BYTES = 512 * 1024
SINK_BUFFERS = 3
MAX_HEADER_BYTES = 16 * 1024 * 1024


def read_safetensors_header(path: StrPath, *, max_bytes: int) -> tuple[Layout, int, Offsets]:
    """Read the header only: (layout, file position of the data, `{name: (begin, end)}` relative to that
    position).

    `max_bytes` caps the tensors' bytes. Raises StudioError `invalid_model` when the file could not be exactly
    what its header says: too long a header, bad JSON, unknown dtypes, sizes that do not follow from shapes,
    overlaps, holes, more or fewer bytes than named.
    """
    file_bytes = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length < 2 or length > file_bytes - 8:
            raise invalid_model("The file is not a whole safetensors file: its header ends beyond the file.")
        if length > MAX_HEADER_BYTES:
            raise invalid_model(
                f"The safetensors header has {length} bytes; at most {MAX_HEADER_BYTES} are allowed."
            )
        raw = file.read(length)
    if len(raw) != length:
        raise invalid_model("The safetensors header is cut short.")
    specs, offsets = _parse(raw)
    layout = Layout.ordered(specs)
    if layout.nbytes > max_bytes:
        raise invalid_model(
            f"The model claims {layout.nbytes} bytes of tensors; at most {max_bytes} are allowed."
        )
    _check_coverage(offsets, file_bytes - 8 - length)
    return layout, 8 + length, offsets


def _parse(raw: bytes) -> tuple[list[TensorSpec], Offsets]:
    # Each bracket becomes an object many times its size: bound them before the parser allocates.
    if raw.count(b"{") > 2 * MAX_TENSORS or raw.count(b"[") > 4 * MAX_TENSORS:
        raise invalid_model(f"The safetensors header names more than {MAX_TENSORS} tensors.")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise invalid_model("The safetensors header is not valid JSON.") from None
    if not isinstance(header, dict):
        raise invalid_model("The safetensors header is not a JSON object.")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise invalid_model(f"The model holds {len(header)} tensors; at most {MAX_TENSORS} are allowed.")
    specs: list[TensorSpec] = []
    offsets: Offsets = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise invalid_model(
                f"The header entry of tensor {shown(name)} needs dtype, shape and data_offsets only."
            )
        shape, span = entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list):
            raise invalid_model(
                f"Tensor {shown(name)} has a shape that is not a list of whole numbers from 0 up."
            )
        if (
            not isinstance(span, list)
            or len(span) != 2
            or any(type(at) is not int or not 0 <= at < 2**62 for at in span)
        ):
            raise invalid_model(
                f"Tensor {shown(name)} has data_offsets that are not two whole numbers from 0 up."
            )
        spec = TensorSpec(name, entry["dtype"], tuple(shape))
        if span[1] - span[0] != spec.nbytes:
            raise invalid_model(
                f"Tensor {shown(name)} has {span[1] - span[0]} bytes in the file; "
                f"its dtype and shape make {spec.nbytes}."
            )
        specs.append(spec)
        offsets[name] = (span[0], span[1])
    return specs, offsets


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise invalid_model(f"The safetensors header names {shown(name)} twice.")
        found[name] = value
    return found


def _check_coverage(offsets: Offsets, data_bytes: int) -> None:
    """Tensors must lie end to end and fill the file: a hole could carry anything, an overlap could lie about
    size."""
    at = 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda item: item[1]):
        if begin < at:
            raise invalid_model(f"Tensor {shown(name)} overlaps another tensor in the file.")
        if begin > at:
            raise invalid_model(
                f"There is a hole of {begin - at} bytes before tensor {shown(name)} in the file."
            )
        at = end
    if at > data_bytes:
        raise invalid_model(
            f"The header names {at} bytes of tensors but the file holds {data_bytes}: it is cut short."
        )
    if at < data_bytes:
        raise invalid_model(f"The file holds {data_bytes - at} bytes that no tensor names.")


def storage_order(layout: Layout) -> list[TensorSpec]:
    """The tensors as their data lies in the canonical file: widest dtype first, else layout order."""
    return sorted(layout.tensors, key=lambda spec: -DTYPES[spec.dtype].itemsize)


def canonical_offsets(layout: Layout) -> Offsets:
    offsets: Offsets = {}
    at = 0
    for spec in storage_order(layout):
        offsets[spec.name] = (at, at + spec.nbytes)
        at += spec.nbytes
    return offsets


def canonical_header(layout: Layout) -> bytes:
    """The header bytes, length prefix included, padded with spaces so that the data starts at a multiple of
    8."""
    offsets = canonical_offsets(layout)
    header = {
        spec.name: {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": list(offsets[spec.name])}
        for spec in layout.tensors
    }
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


@dataclass(frozen=True)
class Run:
    """Elements of one dtype that lie end to end both in a file and in a flat buffer."""

    dtype: str
    begin: int  # position in the file, bytes
    start: int  # position in the flat buffer, elements
    count: int


class Flat:
    """The tensors of a layout laid end to end, counted in elements, in the order of the canonical file."""

    def __init__(self, layout: Layout) -> None:
        self.specs = storage_order(layout)
        self.starts: list[int] = []
        self.size = 0
        for spec in self.specs:
            self.starts.append(self.size)
            self.size += spec.count

    def name_at(self, element: int) -> str:
        """Name of the tensor that holds this element."""
        return self.specs[self.place_of(element)].name

    def place_of(self, element: int) -> int:
        """Place among `specs` of the tensor that holds this element."""
        return bisect_right(self.starts, element) - 1

    def runs(
        self, offsets: Mapping[str, tuple[int, int]], data_start: int, dtype: str | None = None
    ) -> list[Run]:
        """The longest runs, in file order. `dtype` overrides the layout's (a partial holds F64 for
        everything).

        Many small tensors make few runs, so the cost of a pass follows bytes, not tensors.
        """
        parts = sorted(
            (offsets[spec.name][0] + data_start, start, dtype or spec.dtype, spec.count)
            for spec, start in zip(self.specs, self.starts, strict=True)
            if spec.count
        )
        runs: list[Run] = []
        for begin, start, kind, count in parts:
            last = runs[-1] if runs else None
            if (
                last is not None
                and last.dtype == kind
                and last.start + last.count == start
                and last.begin + last.count * DTYPES[kind].itemsize == begin
            ):
                runs[-1] = Run(kind, last.begin, last.start, last.count + count)
            else:
                runs.append(Run(kind, begin, start, count))
        return runs


class ModelSink:
    """Takes the bytes of a canonical file in order and keeps their sha256.

    Beyond the first half megabyte one thread hashes and another writes while the caller computes what comes next. What
    goes wrong there is raised by a later `write` or by `finish`, which must be called before the file is closed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._buffers = [bytearray(SINK_BYTES)]
        self._used = 0
        self._threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None
        self._busy: list[list[Future[Any]]] = [[] for _ in range(SINK_BUFFERS)]
        self._turn = 0

    def write(self, data: bytes | memoryview) -> None:
        source, at = memoryview(data), 0
        while at < len(source):
            size = min(len(source) - at, SINK_BYTES - self._used)
            self._buffers[self._turn][self._used : self._used + size] = source[at : at + size]
            at, self._used = at + size, self._used + size
            if self._used == SINK_BYTES:
                self._hand_over()

    def _hand_over(self) -> None:
        if self._threads is None:
            self._buffers += [bytearray(SINK_BYTES) for _ in range(SINK_BUFFERS - 1)]
            self._threads = (ThreadPoolExecutor(1, "model-hash"), ThreadPoolExecutor(1, "model-write"))
        hashing, writing = self._threads
        full = memoryview(self._buffers[self._turn])[: self._used]
        self._busy[self._turn] = [
            hashing.submit(self._hash.update, full),
            writing.submit(self._file.write, full),
        ]
        self._turn, self._used = (self._turn + 1) % SINK_BUFFERS, 0
        self._await(self._turn)

    def _await(self, turn: int) -> None:
        for job in self._busy[turn]:
            job.result()
        self._busy[turn] = []

    @property
    def sha256(self) -> str:
        """As `finish`."""
        return self.finish()

    def finish(self) -> str:
        """The sha256 (hex) of all that was written; the file has it by then."""
        for turn in range(SINK_BUFFERS):
            self._await((self._turn + turn) % SINK_BUFFERS)
        rest = memoryview(self._buffers[self._turn])[: self._used]
        self._file.write(rest)
        self._hash.update(rest)
        self._used = 0
        if self._threads is not None:
            for thread in self._threads:
                thread.shutdown()
            self._threads = None
        return self._hash.hexdigest()


@contextmanager
def new_file(path: StrPath, *, fsync: bool = False) -> Iterator[BinaryIO]:
    """A file that appears under `path` only when it is whole; after an error nothing is left behind.

    `fsync` makes file and directory entry survive a power cut.
    """
    target = Path(path)
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if fsync:
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
