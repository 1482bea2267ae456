"""Reading a compute package without unpacking it: one pass over the tar stream, every rule checked on the way.

Nothing is written, no name of the archive forms a path, and memory stays at one block whatever the archive claims.
"""

from __future__ import annotations

import bz2
import gzip
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

from foundation.errors import StudioError

MAX_UNPACKED_BYTES = 1 << 30
MAX_RATIO = 100
_RATIO_FROM_BYTES = 16 << 20  # small archives of repeated text compress very well and harm nobody
MAX_MEMBERS = 20_000
MAX_NAME_CHARS = 500
MAX_PART_CHARS = 200
MAX_DEPTH = 40
# Long names and extended headers live between files; tarfile keeps them in memory, so they get this much.
_HEADER_ALLOWANCE_BYTES = 256 << 10
_BLOCK_BYTES = 64 << 10

Compression = Literal["gz", "bz2"]
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, OverflowError, RecursionError)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def refused(message: str) -> StudioError:
    return StudioError("invalid_package", message, 400, field="file")


def compression_of(path: Path) -> Compression:
    """Told by the first bytes, not by the name. Raises StudioError `invalid_package` naming what is accepted."""
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == b"\x1f\x8b":
        return "gz"
    if head[:3] == b"BZh":
        return "bz2"
    what = "a zip archive" if head[:2] == b"PK" else "empty" if not head else "no such archive"
    raise refused(f"A compute package is a .tgz, .tar.gz or .tar.bz2 archive; this file is {what}.")


class _Metered:
    """The unpacked stream, read by tarfile. Stops a bomb by its total, its ratio, and by headers without end."""

    def __init__(self, stream: BinaryIO, packed_bytes: int) -> None:
        self._stream = stream
        self._packed_bytes = max(packed_bytes, 1)
        self._total = 0
        self._allowed = 0

    def allow(self, payload_bytes: int) -> None:
        """From here to the next member: this payload, and headers."""
        self._allowed = self._total + payload_bytes + _HEADER_ALLOWANCE_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._total += len(data)
        if self._total > MAX_UNPACKED_BYTES:
            raise refused(
                f"The archive unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB, the most allowed."
            )
        if self._total > max(_RATIO_FROM_BYTES, MAX_RATIO * self._packed_bytes):
            raise refused(
                f"The archive unpacks to more than {MAX_RATIO} times its size, as archive bombs do; "
                "leave out large files of repeated bytes."
            )
        if self._total > self._allowed:
            raise refused("The archive has a header or a name of absurd length.")
        return data

    def drain(self) -> None:
        self.allow(MAX_UNPACKED_BYTES)
        try:
            while self.read(_BLOCK_BYTES):
                pass
        except _DAMAGED as error:
            raise refused("The archive is damaged or cut short; build it again.") from error


class Member:
    """A regular file of the archive, readable until the next one is asked for."""

    def __init__(self, name: str, size: int, body: BinaryIO) -> None:
        self.name = name
        self.size = size
        self._body = body

    def read(self, at_most: int) -> bytes:
        """The content; raises StudioError when it is larger than `at_most` bytes."""
        if self.size > at_most:
            raise refused(f"{self.name} has {self.size} bytes; at most {at_most} are allowed.")
        return self._body.read(self.size)


def files_of(path: Path) -> Iterator[Member]:
    """The regular files of the archive, in order, under normalised names (`a/b.py`).

    Raises StudioError `invalid_package` at the first thing that no compute package holds: an absolute or climbing
    path, a link, a device, a name twice, too many members or bytes, damage. A caller that needs the whole archive
    checked exhausts the iterator.
    """
    seen: set[str] = set()
    count = 0
    with _tar(path) as (archive, meter):
        while True:
            try:
                member = archive.next()
            except _DAMAGED as error:
                raise refused("The archive is damaged or cut short; build it again.") from error
            if member is None:
                break
            archive.members = []  # type: ignore[attr-defined]  # it would remember every header of the stream
            count += 1
            if count > MAX_MEMBERS:
                raise refused(f"The archive holds more than {MAX_MEMBERS} files and folders.")
            name = _checked_name(member)
            _check_kind(member, name)
            if name in seen and not member.isdir():
                raise refused(f"The archive names {shown(name)} twice.")
            seen.add(name)
            meter.allow(member.size if member.isreg() else 0)
            if member.isreg():
                body = archive.extractfile(member)
                assert body is not None
                yield from _readable(Member(name, member.size, cast(BinaryIO, body)))
        meter.drain()  # to the checksum at the end
    if not count:
        raise refused("The archive is empty.")


def _readable(member: Member) -> Iterator[Member]:
    try:
        yield member
        # what the caller left unread is read here, so that damage anywhere is found
        while member._body.read(_BLOCK_BYTES):
            pass
    except _DAMAGED as error:
        raise refused("The archive is damaged or cut short; build it again.") from error


@contextmanager
def _tar(path: Path) -> Iterator[tuple[tarfile.TarFile, _Metered]]:
    kind = compression_of(path)
    with path.open("rb") as packed:
        stream = gzip.GzipFile(fileobj=packed) if kind == "gz" else bz2.BZ2File(packed)
        with stream:
            meter = _Metered(cast(BinaryIO, stream), path.stat().st_size)
            meter.allow(0)
            try:
                source = cast(BinaryIO, meter)
                archive = tarfile.open(fileobj=source, mode="r|", bufsize=_BLOCK_BYTES)  # noqa: SIM115
            except _DAMAGED as error:
                raise refused("The file is no tar archive, or it is damaged; build it again.") from error
            with archive:
                yield archive, meter


def _checked_name(member: tarfile.TarInfo) -> str:
    """The member's path, relative and normalised; StudioError when a careless unpacking could leave its folder."""
    name = member.name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise refused(f"The archive holds a name that is not UTF-8: {shown(name)}.") from None
    if _CONTROL.search(name):
        raise refused(f"The archive holds a name with control characters: {shown(name)}.")
    # Windows clients read a backslash as a separator, and C: as another disk
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise refused(f"The archive holds an absolute path: {shown(name)}. Build it from inside the folder.")
    if ".." in parts:
        raise refused(f"The archive holds a path that leaves its folder by “..”: {shown(name)}.")
    if len(name) > MAX_NAME_CHARS or len(parts) > MAX_DEPTH or max(map(len, parts)) > MAX_PART_CHARS:
        raise refused(f"The archive holds a path that is too long or too deep: {shown(name)}.")
    return posixpath.normpath(name)


def _check_kind(member: tarfile.TarInfo, name: str) -> None:
    if member.issym() or member.islnk():
        raise refused(f"The archive holds a link: {shown(name)}. Put the file itself there.")
    if member.isdev():
        raise refused(
            f"The archive holds a device or a pipe: {shown(name)}. It may hold files and folders only."
        )
    if member.issparse() or not (member.isdir() or member.isreg()):
        raise refused(f"The archive holds something that is neither file nor folder: {shown(name)}.")
    if member.size < 0:
        raise refused("The archive is damaged: a file has a negative size.")


def shown(name: str) -> str:
    """As a sentence may carry it: escaped, cut at 80 characters."""
    return ascii(name if len(name) <= 80 else name[:77] + "...").strip("'\"")
