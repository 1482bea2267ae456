"""Scaleout's model container: a ZIP that holds `metadata.json` and the weights as `training_model.bin`, an npz.

One that arrives is read with distrust: everything is known from its directory, which is small, before anything is
unpacked, and the one member that counts is unpacked up to a limit.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from federation.aggregation.codecs import to_npz
from federation.combiner.downloads import Form
from federation.sessions.assignments import ModelGrant
from foundation.errors import StudioError

WEIGHTS = "training_model.bin"
METADATA = "metadata.json"
VERSION = 2
MAX_MEMBERS = 64
MAX_DIRECTORY_BYTES = 64 << 10
BLOCK_BYTES = 1 << 20
_END = struct.Struct("<4s4H2LH")


def _write(source: Path, target: Path, grant: ModelGrant) -> None:
    """The model as these clients load it; the same bytes each time."""
    weights = target.with_name(f"{target.name}.npz")
    metadata = {"_version": VERSION, "model_id": str(grant.model_id), "helper_type": "numpyhelper"}
    try:
        to_npz(source, weights, positional=True)
        with zipfile.ZipFile(target, "w", allowZip64=True) as archive:
            archive.writestr(zipfile.ZipInfo(METADATA), json.dumps(metadata))
            entry = zipfile.ZipInfo(WEIGHTS)
            entry.file_size = weights.stat().st_size
            with weights.open("rb") as body, archive.open(entry, "w") as out:
                shutil.copyfileobj(body, out, BLOCK_BYTES)
    finally:
        weights.unlink(missing_ok=True)


CONTAINER = Form("scaleout", _write)


def unwrapping(most_bytes: int) -> Callable[[Path, Path], None]:
    """`unwrap(source, target)`: the weights of a container, or a bare npz as it is; at most `most_bytes`. Raises
    StudioError `invalid_model`."""

    def unwrap(source: Path, target: Path) -> None:
        _check_end(source)
        try:
            with zipfile.ZipFile(source) as archive:
                weights = _weights(archive, most_bytes)
                if weights is None:
                    os.link(source, target)
                else:
                    _unpack(archive, weights, target, most_bytes)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            struct.error,
            ValueError,
            OverflowError,
        ):
            raise _invalid("it is damaged") from None
        except OSError as error:
            if (
                error.errno != errno.EINVAL
            ):  # a lying offset seeks before the file's start; all else is the disk's
                raise
            raise _invalid("it is damaged") from None

    return unwrap


def _check_end(path: Path) -> None:
    """Bound the directory before zipfile makes objects of it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END.size))
        tail = file.read(_END.size)
    if len(tail) < _END.size or tail[:4] != b"PK\x05\x06":
        raise _invalid("it is cut short, or no ZIP at all")
    _, _, _, _, entries, directory_bytes, _, comment = _END.unpack(tail)
    # a directory of zip64's size (all ones) is beyond the limits too; a bare npz of many tensors is checked later
    if comment or (directory_bytes > MAX_DIRECTORY_BYTES and not _is_npz(path)):
        raise _invalid(f"its directory of {entries} files and {directory_bytes} bytes is too large")


def _is_npz(path: Path) -> bool:
    """Whether the first entry is an array; the npz reader bounds the directory of those itself."""
    with path.open("rb") as file:
        head = file.read(30)
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            return False
        return file.read(min(int.from_bytes(head[26:28], "little"), 1000)).endswith(b".npy")


def _weights(archive: zipfile.ZipFile, most_bytes: int) -> zipfile.ZipInfo | None:
    infos = archive.infolist()
    found = [info for info in infos if info.orig_filename == WEIGHTS]
    if not found:
        if infos and all(info.orig_filename.endswith(".npy") for info in infos):
            return None
        raise _invalid(f"it holds no {WEIGHTS}")
    if len(infos) > MAX_MEMBERS:
        raise _invalid(f"it holds {len(infos)} files; at most {MAX_MEMBERS} are allowed")
    if len(found) > 1:
        raise _invalid(f"it holds {WEIGHTS} twice")
    weights = found[0]
    if weights.flag_bits & 0x1 or weights.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _invalid(f"its {WEIGHTS} is encrypted, or compressed by a method other than deflate")
    if weights.file_size > most_bytes:
        raise _invalid(f"its {WEIGHTS} has {weights.file_size} bytes; at most {most_bytes} are allowed")
    return weights


def _unpack(archive: zipfile.ZipFile, weights: zipfile.ZipInfo, target: Path, most_bytes: int) -> None:
    left = most_bytes
    with archive.open(weights) as body, target.open("wb") as out:
        while block := body.read(BLOCK_BYTES):
            left -= len(block)
            if left < 0:  # what the directory claims was checked; this is what came
                raise _invalid(f"its {WEIGHTS} unpacks to more than {most_bytes} bytes")
            out.write(block)


def _invalid(what: str) -> StudioError:
    return StudioError("invalid_model", f"The model container cannot be read: {what}.")
