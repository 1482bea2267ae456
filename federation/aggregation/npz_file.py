"""numpy's .npz, read with distrust: everything is known from the zip directory and the .npy headers before a
byte of an array is decoded, and nothing in it is ever unpickled."""

from __future__ import annotations

import ast
import errno
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from foundation.errors import StudioError

from .layout import DTYPES, MAX_NAME_CHARS, MAX_TENSORS, Layout, TensorSpec, invalid_model, shown
from .safetensors_file import StrPath

MAX_DIRECTORY_BYTES = 24 * 1024 * 1024
MAX_NPY_HEADER_BYTES = 10_000  # numpy's own limit
_PREAMBLE_BYTES = 12
_DAMAGED = "The npz file is damaged: its zip structure or a checksum is wrong."

_BY_DESCR = {dtype.str[1:]: name for name, dtype in DTYPES.items() if name not in ("BOOL", "BF16")} | {
    "b1": "BOOL"
}


@dataclass(frozen=True)
class Member:
    """One array of an npz: its spec, the zip entry, where its data begins, and how its bytes lie."""

    spec: TensorSpec
    info: zipfile.ZipInfo
    data_start: int
    fortran: bool
    big_endian: bool


def read_npz_header(path: StrPath, *, max_bytes: int) -> Layout:
    """The layout of an npz; names are its keys, numbers in numeric order, else in file order.

    `max_bytes` caps the decoded arrays. Raises StudioError `invalid_model` on anything but plain arrays of
    the dtypes in `layout.DTYPES`: pickles, object, text, complex or structured arrays, encryption, nested or
    absolute names, sizes that do not follow from shapes.
    """
    with open_npz(path, max_bytes=max_bytes) as (_, members):
        return layout_of(members)


def layout_of(members: list[Member]) -> Layout:
    return Layout.ordered([member.spec for member in members])


@contextmanager
def open_npz(path: StrPath, *, max_bytes: int) -> Iterator[tuple[zipfile.ZipFile, list[Member]]]:
    """The open zip and its checked members in file order; decoding errors inside the block become
    `invalid_model`."""
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, _members(archive, max_bytes)
    except StudioError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, UnicodeDecodeError):
        raise invalid_model(_DAMAGED) from None
    except OSError as error:
        if (
            error.errno != errno.EINVAL
        ):  # a lying offset seeks before the file's start; all else is the disk's
            raise
        raise invalid_model(_DAMAGED) from None


def _check_directory(path: StrPath) -> None:
    """Bound the zip directory before zipfile turns it into objects ten times its size."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        back = min(size, 22 + 20 + 56)
        file.seek(size - back)
        tail = file.read(back)
        end = tail[-22:]
        if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
            raise invalid_model(
                "The npz file does not end with a plain zip directory: "
                "it is cut short or something was appended."
            )
        entries, directory_bytes = struct.unpack("<HL", end[10:16])
        directory_end = size - 22
        if tail[-42:-38] == b"PK\x06\x07":
            record = tail[-98:-42]
            if len(record) != 56 or record[:4] != b"PK\x06\x06":
                raise invalid_model("The npz file is damaged: its zip64 directory is not where it should be.")
            entries, directory_bytes = struct.unpack("<QQ", record[32:48])
            directory_end = size - 98
        if entries > MAX_TENSORS:
            raise invalid_model(f"The npz file names {entries} arrays; at most {MAX_TENSORS} are allowed.")
        if directory_bytes > MAX_DIRECTORY_BYTES or directory_bytes > directory_end:
            raise invalid_model(
                f"The npz file claims a directory of {directory_bytes} bytes; "
                f"at most {MAX_DIRECTORY_BYTES}, inside the file, are allowed."
            )
        file.seek(directory_end - directory_bytes)
        if file.read(directory_bytes).count(b"PK\x01\x02") > MAX_TENSORS:
            raise invalid_model(f"The npz file names more than {MAX_TENSORS} arrays.")


def _members(archive: zipfile.ZipFile, max_bytes: int) -> list[Member]:
    infos = archive.infolist()
    seen: set[str] = set()
    declared = 0
    for info in infos:
        _check_entry(info)
        if info.filename in seen:
            raise invalid_model(f"The npz file names the array {shown(info.filename[:-4])} twice.")
        seen.add(info.filename)
        declared += info.file_size
    if declared > max_bytes + len(infos) * (MAX_NPY_HEADER_BYTES + _PREAMBLE_BYTES):
        raise invalid_model(f"The npz file unpacks to {declared} bytes; at most {max_bytes} are allowed.")
    members = [_member(archive, info) for info in infos]
    total = sum(member.spec.nbytes for member in members)
    if total > max_bytes:
        raise invalid_model(f"The model claims {total} bytes of arrays; at most {max_bytes} are allowed.")
    return members


def _check_entry(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    if name.endswith((".pkl", ".pickle")):
        raise invalid_model(
            f"The file holds a pickle ({shown(name)}), which can run code when it is read; "
            "save plain arrays as .npz or .safetensors instead."
        )
    if re.search(r"[/\\\x00]", name) or name.startswith("..") or re.match(r"[A-Za-z]:", name):
        raise invalid_model(f"The npz file names {shown(name)}, which is a path; array names must be plain.")
    if not name.endswith(".npy"):
        raise invalid_model(f"The npz file holds {shown(name)}, which is no .npy array.")
    if len(name) - len(".npy") > MAX_NAME_CHARS:
        raise invalid_model(f"The array name {shown(name)} is longer than {MAX_NAME_CHARS} characters.")
    if info.flag_bits & 0x1:
        raise invalid_model(f"The array {shown(name[:-4])} is encrypted; save it without a password.")
    # bzip2 and LZMA unpack without a bound per step; numpy writes neither.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise invalid_model(f"The array {shown(name[:-4])} is compressed by a method other than deflate.")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        fields, data_start = _npy_header(stream, name)
    descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if type(fortran) is not bool or not isinstance(shape, tuple):
        raise invalid_model(f"The array {shown(name)} has a damaged .npy header.")
    spec = TensorSpec(name, _dtype(name, descr), shape)
    if info.file_size - data_start != spec.nbytes:
        raise invalid_model(
            f"The array {shown(name)} claims {spec.nbytes} bytes by its shape and dtype "
            f"but holds {info.file_size - data_start}."
        )
    return Member(spec, info, data_start, fortran and len(shape) > 1, str(descr)[0] == ">")


def _npy_header(stream: IO[bytes], name: str) -> tuple[dict[str, object], int]:
    """The header's fields and its length in bytes. Parsed here because numpy reads a header as long as it
    claims to be before it looks at the length."""
    magic = stream.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY":
        hint = " (it looks like a pickle)" if magic[:1] == b"\x80" else ""
        raise invalid_model(f"The npz entry {shown(name)} is no .npy array{hint}.")
    if magic[6] not in (1, 2):
        raise invalid_model(f"The array {shown(name)} has .npy version {magic[6]}; plain arrays need 1 or 2.")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > MAX_NPY_HEADER_BYTES:
        raise invalid_model(
            f"The array {shown(name)} has a .npy header of {length} bytes; "
            f"at most {MAX_NPY_HEADER_BYTES} are allowed."
        )
    raw = stream.read(length)
    try:
        fields = ast.literal_eval(raw.decode("latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        fields = None
    if (
        len(raw) != length
        or not isinstance(fields, dict)
        or set(fields) != {"descr", "fortran_order", "shape"}
    ):
        raise invalid_model(f"The array {shown(name)} has a damaged .npy header.")
    return fields, 8 + width + length


def _dtype(name: str, descr: object) -> str:
    if not isinstance(descr, str):
        raise invalid_model(
            f"The array {shown(name)} is structured (it has named fields); save one array per field."
        )
    if descr[:1] in "<>|=" and descr[1:] in _BY_DESCR:
        return _BY_DESCR[descr[1:]]
    kind = descr[1:2]
    if kind == "O":
        raise invalid_model(
            f"The array {shown(name)} holds Python objects, that is a pickle, "
            "which can run code when it is read; save numbers only."
        )
    if kind == "V":
        raise invalid_model(
            f"The array {shown(name)} has no dtype numpy knows (perhaps bfloat16); "
            "save it as float32 or use .safetensors."
        )
    what = {"c": "complex numbers", "S": "text", "U": "text", "M": "dates", "m": "durations"}.get(kind)
    raise invalid_model(
        f"The array {shown(name)} holds {what or 'dtype ' + shown(descr)}; "
        "use floats of 2, 4 or 8 bytes, integers or booleans."
    )


def write_npy_header(stream: IO[bytes], spec: TensorSpec, dtype: np.dtype[np.generic]) -> None:
    """A version 1.0 .npy header for a C-ordered array."""
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": spec.shape}
    np.lib.format.write_array_header_1_0(stream, fields)
