"""Safetensors, read without copying and written canonically: the same arrays make the same bytes.

The header names the tensors in order; their data lies widest dtype first, so that each starts at a multiple
of its item size. Only numpy is needed. bfloat16 arrays use `ml_dtypes` when it is installed, else they
appear as uint16.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import ml_dtypes

    _BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
except ImportError:  # the bits are kept, arithmetic on them is the caller's business
    _BFLOAT16 = np.dtype("<u2")

Array = NDArray[Any]
Arrays = dict[str, Array]

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": _BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
MAX_HEADER_BYTES = 16 * 1024 * 1024


class TensorFileError(ValueError):
    """The file is no safetensors file, or the arrays cannot be written as one."""


def read_header(raw: memoryview | bytes) -> tuple[dict[str, Any], int]:
    """The header's entries by tensor name, and where the data begins (bytes)."""
    if len(raw) < 8:
        raise TensorFileError("The file is shorter than a safetensors header.")
    length = int.from_bytes(raw[:8], "little")
    if length > MAX_HEADER_BYTES or 8 + length > len(raw):
        raise TensorFileError("The file is not a whole safetensors file: its header ends beyond the file.")
    try:
        header = json.loads(bytes(raw[8 : 8 + length]))
    except ValueError:
        raise TensorFileError("The safetensors header is not valid JSON.") from None
    if not isinstance(header, dict):
        raise TensorFileError("The safetensors header is not a JSON object.")
    header.pop("__metadata__", None)
    return header, 8 + length


def read_buffer(raw: memoryview | bytes | mmap.mmap) -> Arrays:
    """Views into the buffer, by name, in the header's order. They are read-only when the buffer is."""
    view = memoryview(raw)
    header, start = read_header(view)
    arrays: Arrays = {}
    for name, entry in header.items():
        try:
            dtype = DTYPES[entry["dtype"]]
            shape = tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            count = int(np.prod(shape, dtype=np.int64)) if shape else 1
            if end - begin != count * dtype.itemsize or start + end > len(view):
                raise ValueError
            flat: Array = (
                np.frombuffer(view, dtype=dtype, count=count, offset=start + begin)
                if count
                else (np.empty(0, dtype=dtype))
            )
            arrays[name] = flat.reshape(shape)
        except (KeyError, TypeError, ValueError):
            raise TensorFileError(
                f"The safetensors entry of tensor {name!r} does not fit the file."
            ) from None
    return arrays


def read_file(path: str | Path) -> Arrays:
    """Read-only arrays mapped from the file; nothing is copied. Copy one (`array.copy()`) before changing
    it."""
    with Path(path).open("rb") as file:
        if file.seek(0, 2) < 10:
            raise TensorFileError(f"{path} is not a safetensors file: it is shorter than a header.")
        return read_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def dtype_names(path: str | Path) -> dict[str, str]:
    """Each tensor's dtype by its safetensors name, in the file's order."""
    return {name: kind for name, kind, _shape in read_specs(path)}


def read_specs(path: str | Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, safetensors dtype, shape) of each tensor, in the file's order."""
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise TensorFileError(f"{path} is not a safetensors file.")
        raw = length.to_bytes(8, "little") + file.read(length)
    try:
        return [
            (name, str(entry["dtype"]), tuple(entry["shape"])) for name, entry in read_header(raw)[0].items()
        ]
    except (KeyError, TypeError):
        raise TensorFileError(f"{path} has a header entry that is none of a tensor.") from None


def serialise(
    arrays: Mapping[str, Any], like: Mapping[str, str] | None = None
) -> tuple[bytes, list[memoryview]]:
    """The canonical file in parts: header, then each tensor's bytes in file order (not copied where
    contiguous).

    `like` gives the order of the names and tells a bfloat16 tensor from an uint16 one; see `dtype_names`.
    """
    named = dict(arrays)
    if like is not None and set(like) == set(named):
        named = {name: named[name] for name in like}
    entries: list[tuple[str, str, Array]] = []
    for name, value in named.items():
        array = np.asarray(value)
        kind = _dtype_name(name, array, (like or {}).get(name))
        if array.dtype.byteorder == ">" or not array.flags.c_contiguous:
            array = np.array(array, dtype=array.dtype.newbyteorder("<"), order="C")
        entries.append((name, kind, array))
    specs = [(name, kind, array.shape) for name, kind, array in entries]
    header, order = canonical_header(specs)
    parts = [memoryview(entries[i][2].reshape(-1).view(np.uint8).data) for i in order if entries[i][2].nbytes]
    return header, parts


def canonical_header(specs: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, list[int]]:
    """The canonical file's first bytes, for tensors of (name, safetensors dtype, shape) in the model's order; and
    the places of the tensors in `specs` in the order in which their data follows."""
    order = sorted(range(len(specs)), key=lambda i: -DTYPES[specs[i][1]].itemsize)
    spans: dict[int, tuple[int, int]] = {}
    at = 0
    for i in order:
        _name, kind, shape = specs[i]
        spans[i] = (at, at + math.prod(shape) * DTYPES[kind].itemsize)
        at = spans[i][1]
    header = {
        name: {"dtype": kind, "shape": list(shape), "data_offsets": list(spans[i])}
        for i, (name, kind, shape) in enumerate(specs)
    }
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw, order


def _dtype_name(name: str, array: Array, wanted: str | None) -> str:
    if array.dtype.name == "bfloat16" or (wanted == "BF16" and array.dtype == np.dtype("<u2")):
        return "BF16"
    kind = _NAMES.get(array.dtype.newbyteorder("<"))
    if kind is None:
        raise TensorFileError(
            f"Array {name!r} has dtype {array.dtype}; a model may hold {', '.join(DTYPES)} arrays."
        )
    return kind


def write_file(path: str | Path, arrays: Mapping[str, Any], like: Mapping[str, str] | None = None) -> str:
    """Write the canonical file and return its sha256 (hex)."""
    header, parts = serialise(arrays, like)
    digest = hashlib.sha256(header)
    with Path(path).open("wb") as file:
        file.write(header)
        for part in parts:
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def numbered_first(names: Iterable[str]) -> list[str]:
    """Names in a model's order: by number when every name is one (`0`, `1`, ... `10`), else as they come."""
    found = list(names)
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else found
