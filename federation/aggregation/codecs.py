"""Models at the edge and inside: `.npz`, `.safetensors` and raw floats in, canonical safetensors within, `.npz`
and raw floats out on request.

Nothing here holds a model in memory: files pass in blocks. Every function takes paths and raises
`foundation.errors.StudioError` with a sentence fit for the person who sent the file.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import ml_dtypes
import numpy as np

from foundation.errors import StudioError

from .blocks import BLOCK_ELEMENTS, Array, BlockReader, FiniteNorm, Narrower
from .layout import DTYPES, FLOATS, Layout, TensorSpec, invalid_model, not_finite, shown
from .npz_file import Member, layout_of, open_npz, read_npz_header, write_npy_header
from .raw_file import raw_to_canonical, to_raw
from .safetensors_file import (
    Flat,
    StrPath,
    canonical_header,
    canonical_offsets,
    new_file,
    read_safetensors_header,
    storage_order,
)

__all__ = [
    "UpdateCheck",
    "check_num_examples",
    "check_update",
    "detect_format",
    "load_arrays",
    "raw_to_canonical",
    "read_npz_header",
    "read_safetensors_header",
    "save_arrays",
    "to_canonical",
    "to_npz",
    "to_raw",
]

MIN_NUM_EXAMPLES, MAX_NUM_EXAMPLES = 1e-12, 1e12  # weighed by less, a mean would be lost in rounding
_ACCEPTED = "models are accepted as .npz or .safetensors"


@dataclass(frozen=True)
class UpdateCheck:
    """What the pass over an update found: the L2 norm over all its float tensors, and that of what they change in
    the model (None: it was not asked for)."""

    norm: float
    delta_norm: float | None = None


def detect_format(path: StrPath) -> Literal["npz", "safetensors"]:
    """Tell the format by the first bytes; raises StudioError `invalid_model` naming what is accepted."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        head = file.read(9)
        file.seek(max(size - 1, 0))
        last = file.read(1)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "npz"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if not head:
        raise invalid_model(f"The file is empty; {_ACCEPTED}.")
    # Protocols 2 and up start with 0x80 and their number; older ones are text and end with a full stop.
    if (head[0] == 0x80 and head[1:2] and head[1] <= 10) or (head[:1] in b"(]}cl" and last == b"."):
        raise invalid_model(
            f"The file is a pickle, which can run code when it is read, so it is never opened; {_ACCEPTED}."
        )
    if head[:6] == b"\x93NUMPY":
        raise invalid_model(f"The file is a single .npy array; {_ACCEPTED}.")
    raise invalid_model(f"The file is in no format known here; {_ACCEPTED}.")


def to_canonical(
    src_path: StrPath,
    dst_path: StrPath,
    *,
    max_bytes: int,
    require_finite: bool = True,
    expected: Layout | None = None,
    fsync: bool = False,
) -> Layout:
    """Rewrite an `.npz` or `.safetensors` file as canonical safetensors and return its layout.

    The same tensors make the same bytes, whatever the source's format, compression, byte order or memory
    order. `max_bytes` caps the tensors.

    `expected` is the layout of the model that the file answers. Float tensors then take the width the model
    holds (numpy's default is float64, and npz has no bfloat16); integers and booleans are never converted. An
    npz of as many arrays named 0, 1, ... n-1 gives the model's tensors in layout order, unless those are the
    model's own names.

    Raises StudioError `invalid_model`; `not_finite` for NaN or infinity, also when they come of narrowing,
    when `require_finite`. On any error `dst_path` is left as it was.
    """
    with ExitStack() as stack:
        source: _Source
        numbered = False
        if detect_format(src_path) == "npz":
            archive, members = stack.enter_context(open_npz(src_path, max_bytes=max_bytes))
            source = _NpzSource(archive, members)
            numbered = expected is not None and _by_position(source.layout, expected)
        else:
            layout, data_start, offsets = read_safetensors_header(src_path, max_bytes=max_bytes)
            source = _SafetensorsSource(
                layout,
                stack.enter_context(Path(src_path).open("rb", buffering=0)),
                {name: data_start + begin for name, (begin, _) in offsets.items()},
            )
        fitted = _fitted(source.layout, expected, numbered) if expected is not None else source.layout
        givens = {spec.name: given for spec, given in zip(fitted.tensors, source.layout.tensors, strict=True)}
        norm, narrower = FiniteNorm(), Narrower()
        with new_file(dst_path, fsync=fsync) as file:
            file.write(canonical_header(fitted))
            for spec in storage_order(fitted):
                given = givens[spec.name]
                for block in source.blocks(given):
                    _check_block(block, spec, norm, require_finite)
                    if spec.dtype != given.dtype:
                        block = narrower.cast(block.astype(np.float64), spec.dtype)
                        if require_finite and not narrower.finite(block):
                            raise not_finite(spec.name, f"a number too large for {spec.dtype}")
                    file.write(block.view(np.uint8).data)
    return fitted


def _by_position(given: Layout, expected: Layout) -> bool:
    """Whether the names are only the places 0 ... n-1 of the model's tensors, as FEDn's helper writes them."""
    places = [str(place) for place in range(len(expected.tensors))]
    # Numbers stand in numeric order in a layout.
    return [spec.name for spec in given.tensors] == places and set(expected.by_name) != set(places)


def _fitted(given: Layout, expected: Layout, numbered: bool) -> Layout:
    """The layout to write: the given one, tensor by tensor, with the model's names and float widths."""
    names = [spec.name for spec in (expected if numbered else given).tensors]
    fitted = []
    for name, spec in zip(names, given.tensors, strict=True):
        wanted = expected.by_name.get(name)
        # A tensor of another shape is refused later: widening it would only make a large refusal larger.
        fits = wanted is not None and wanted.shape == spec.shape and {wanted.dtype, spec.dtype} <= FLOATS
        fitted.append(TensorSpec(name, wanted.dtype if wanted and fits else spec.dtype, spec.shape))
    return Layout(tuple(fitted))


def _check_block(block: Array, spec: TensorSpec, norm: FiniteNorm, require_finite: bool) -> None:
    if spec.dtype == "BOOL":
        if block.max() > 1:
            raise invalid_model(f"Tensor {shown(spec.name)} is BOOL but holds bytes other than 0 and 1.")
    elif require_finite and spec.dtype in FLOATS and not norm.add(block):
        raise not_finite(spec.name)


class _SafetensorsSource:
    def __init__(self, layout: Layout, file: IO[bytes], begins: dict[str, int]) -> None:
        self.layout = layout
        self._file = file
        self._begins = begins
        self._reader = BlockReader()

    def blocks(self, spec: TensorSpec) -> Iterator[Array]:
        self._file.seek(self._begins[spec.name])
        for at in range(0, spec.count, BLOCK_ELEMENTS):
            yield self._reader.read(self._file, spec.dtype, min(BLOCK_ELEMENTS, spec.count - at))


class _NpzSource:
    def __init__(self, archive: zipfile.ZipFile, members: list[Member]) -> None:
        self.layout = layout_of(members)
        self._archive = archive
        self._members = {member.spec.name: member for member in members}
        self._reader = BlockReader()

    def blocks(self, spec: TensorSpec) -> Iterator[Array]:
        member = self._members[spec.name]
        with self._archive.open(member.info) as stream:
            stream.read(member.data_start)
            plain = self._in_file_order(stream, member)
            if member.fortran:
                plain = _from_fortran(plain, spec)
            yield from plain
            # zipfile compares the checksum when it meets the end.
            if stream.read(1):
                raise invalid_model(f"The array {shown(spec.name)} is longer than its shape says.")

    def _in_file_order(self, stream: IO[bytes], member: Member) -> Iterator[Array]:
        for at in range(0, member.spec.count, BLOCK_ELEMENTS):
            block = self._reader.read(stream, member.spec.dtype, min(BLOCK_ELEMENTS, member.spec.count - at))
            if member.big_endian:
                block.byteswap(inplace=True)
            yield block


_Source = _SafetensorsSource | _NpzSource


def _from_fortran(blocks: Iterator[Array], spec: TensorSpec) -> Iterator[Array]:
    """Turn a column-major stream into row-major blocks. The one case that holds a whole tensor."""
    whole = np.empty(spec.shape, dtype=np.uint8 if spec.dtype == "BOOL" else DTYPES[spec.dtype])
    columns = whole.T.flat
    at = 0
    for block in blocks:
        columns[at : at + block.size] = block
        at += block.size
    rows = whole.reshape(-1)
    for at in range(0, rows.size, BLOCK_ELEMENTS):
        yield rows[at : at + BLOCK_ELEMENTS]


def to_npz(
    src_safetensors_path: StrPath, dst_path: StrPath, *, compressed: bool = False, positional: bool = False
) -> None:
    """Write a safetensors model as `.npz`, the same bytes each time: keys are the tensor names in layout order,
    or with `positional` their places "0", "1", ... as FEDn's clients read them.

    bfloat16 becomes float32 (exactly: npz has no bfloat16; `to_canonical(expected=...)` turns it back).
    Compression saves a few percent of float weights and is some fifty times slower.
    Raises StudioError `invalid_model` for a name (as key) with a slash, which npz could not give back.
    """
    layout, data_start, offsets = read_safetensors_header(
        src_safetensors_path, max_bytes=Path(src_safetensors_path).stat().st_size
    )
    keys = [str(place) if positional else spec.name for place, spec in enumerate(layout.tensors)]
    for key, spec in zip(keys, layout.tensors, strict=True):
        if "/" in key or "\\" in key:
            raise invalid_model(
                f"Tensor {shown(spec.name)} has a slash in its name, which npz cannot carry; "
                "take .safetensors instead."
            )
    reader = BlockReader()
    with (
        Path(src_safetensors_path).open("rb", buffering=0) as source,
        new_file(dst_path) as file,
        zipfile.ZipFile(file, "w", allowZip64=True) as archive,
    ):
        for key, spec in zip(keys, layout.tensors, strict=True):
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
            entry.external_attr = 0o600 << 16
            dtype = DTYPES["F32" if spec.dtype == "BF16" else spec.dtype]
            source.seek(data_start + offsets[spec.name][0])
            with archive.open(entry, "w", force_zip64=True) as stream:
                write_npy_header(stream, spec, dtype)
                for at in range(0, spec.count, BLOCK_ELEMENTS):
                    block = reader.read(source, spec.dtype, min(BLOCK_ELEMENTS, spec.count - at))
                    if spec.dtype == "BF16":
                        block = block.astype(np.float32)
                    stream.write(block.view(np.uint8).data)


def load_arrays(path: StrPath) -> dict[str, Array]:
    """The tensors of a safetensors file as read-only views over a memory map, in layout order.

    dtypes as in the file, `ml_dtypes.bfloat16` for BF16. For files of ours that nobody rewrites: a file cut
    short while it is mapped ends the process.
    """
    layout, data_start, offsets = read_safetensors_header(path, max_bytes=Path(path).stat().st_size)
    with Path(path).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, Array] = {}
    for spec in layout.tensors:
        flat = (
            np.frombuffer(mapped, DTYPES[spec.dtype], spec.count, data_start + offsets[spec.name][0])
            if spec.count
            else np.empty(0, DTYPES[spec.dtype])
        )
        flat.flags.writeable = False
        arrays[spec.name] = flat.reshape(spec.shape)
    return arrays


def save_arrays(arrays: Mapping[str, Any], path: StrPath, *, fsync: bool = False) -> Layout:
    """Write arrays (anything `np.asarray` takes) as a canonical safetensors file and return its layout.

    Raises StudioError `invalid_model` for names or dtypes that a model cannot have.
    """
    given = {name: np.asarray(array) for name, array in arrays.items()}
    layout = Layout.ordered(
        [TensorSpec(name, _dtype_name(name, array), array.shape) for name, array in given.items()]
    )
    with new_file(path, fsync=fsync) as file:
        file.write(canonical_header(layout))
        for spec in storage_order(layout):
            rows = np.ascontiguousarray(given[spec.name], dtype=DTYPES[spec.dtype]).reshape(-1)
            file.write(rows.view(np.uint8).data)
    return layout


def _dtype_name(name: str, array: Array) -> str:
    if array.dtype == ml_dtypes.bfloat16:
        return "BF16"
    little = array.dtype.newbyteorder("<")
    for known, dtype in DTYPES.items():
        if little == dtype:
            return known
    raise invalid_model(
        f"Tensor {shown(name)} has dtype {array.dtype}; a model may hold {', '.join(DTYPES)}."
    )


def check_update(
    path: StrPath, expected: Layout, *, max_bytes: int, base: IO[bytes] | None = None
) -> UpdateCheck:
    """Compare a safetensors update with the model's layout, then pass once over its floats.

    Returns the L2 norm over all float tensors, and of their difference to `base`, the open canonical file of the
    model that the update answers. Memory: a few blocks, whatever the model's size.
    Raises StudioError `invalid_model`, `layout_mismatch` (one sentence on the first tensor that differs),
    `not_finite` naming the tensor.
    """
    layout, data_start, offsets = read_safetensors_header(path, max_bytes=max_bytes)
    difference = expected.difference(layout)
    if difference is not None:
        raise StudioError("layout_mismatch", f"The update does not fit the model. {difference}")
    norm, reader, flat = FiniteNorm(), BlockReader(), Flat(layout)
    change = _Change(base, expected) if base is not None else None
    with Path(path).open("rb", buffering=0) as file:
        for run in flat.runs(offsets, data_start):
            if run.dtype not in FLOATS and run.dtype != "BOOL":
                continue
            file.seek(run.begin)
            for at in range(0, run.count, BLOCK_ELEMENTS):
                block = reader.read(file, run.dtype, min(BLOCK_ELEMENTS, run.count - at))
                if run.dtype == "BOOL":
                    if block.max() > 1:
                        name = flat.name_at(run.start + at + int(np.argmax(block > 1)))
                        raise invalid_model(
                            f"Tensor {shown(name)} is BOOL but holds bytes other than 0 and 1."
                        )
                    continue
                if not norm.add(block):
                    raise not_finite(flat.name_at(run.start + at + int(np.argmin(np.isfinite(block)))))
                if change is not None:
                    change.add(block, run.dtype, flat, run.start + at)
    if norm.norm == float("inf"):
        raise StudioError("not_finite", "The update's numbers are so large that their norm is infinite.")
    return UpdateCheck(norm.norm, change.norm if change is not None else None)


class _Change:
    """How far an update lies from a model, block by block, whatever order its file keeps the tensors in."""

    def __init__(self, base: IO[bytes], layout: Layout) -> None:
        header = canonical_header(layout)
        base.seek(0)
        if base.read(len(header)) != header:
            raise StudioError(
                "model_damaged", "The model that the update answers is not as it was stored.", 500
            )
        self._base, self._reader, self._norm = base, BlockReader(), FiniteNorm()
        self._begins = {name: len(header) + begin for name, (begin, _) in canonical_offsets(layout).items()}
        self._difference = np.empty(BLOCK_ELEMENTS, dtype=np.float64)

    def add(self, block: Array, dtype: str, flat: Flat, start: int) -> None:
        """The update's elements from `start` on in its own order."""
        at = 0
        while at < block.size:  # a stretch within one tensor
            place = flat.place_of(start + at)
            size = min(block.size - at, flat.specs[place].count - (start + at - flat.starts[place]))
            skipped = (start + at - flat.starts[place]) * DTYPES[dtype].itemsize
            self._base.seek(self._begins[flat.specs[place].name] + skipped)
            difference = self._difference[:size]
            np.copyto(difference, block[at : at + size])
            with np.errstate(over="ignore"):
                np.subtract(difference, self._reader.read(self._base, dtype, size), out=difference)
            if not self._norm.add(difference):
                raise StudioError(
                    "not_finite", "The update lies so far from its model that the distance is infinite."
                )
            at += size

    @property
    def norm(self) -> float:
        return self._norm.norm


def check_num_examples(value: Any) -> float:
    """The weight of an update: a number from 1e-12 to 1e12, as float; else StudioError `bad_num_examples`."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        if MIN_NUM_EXAMPLES <= number <= MAX_NUM_EXAMPLES:
            return number
    raise StudioError(
        "bad_num_examples",
        f"num_examples is {shown(str(value)[:60])}; it must be a number above 0, from 1e-12 to 1e12.",
    )
