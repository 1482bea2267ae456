"""A folder as a compute package and back: the same content always makes the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pathspec

from ..errors import PackageError
from .project_file import find_in_package, find_project_file, read_project_file

IGNORE_FILE = ".ignore"
_ALWAYS_LEFT_OUT = {".git", "__pycache__"}
MAX_UNPACKED_BYTES = 4 * 1024**3
MAX_MEMBERS = 100_000


@dataclass(frozen=True)
class Package:
    """A package file, its sha256 (hex), its size, and the names it holds."""

    path: Path
    sha256: str
    size_bytes: int
    names: tuple[str, ...]


def package_files(folder: Path) -> list[Path]:
    """The files that belong into the package of `folder`, sorted by name.

    Left out: what `.ignore` names (gitignore's rules), `.git`, `__pycache__`, virtual environments, and
    links, which no server accepts.
    """
    rules = folder / IGNORE_FILE
    lines = rules.read_text(encoding="utf-8").splitlines() if rules.is_file() else []
    spec = pathspec.GitIgnoreSpec.from_lines(lines)
    return sorted(_walk(folder, folder, spec), key=lambda path: path.relative_to(folder).as_posix())


def _walk(top: Path, folder: Path, spec: pathspec.GitIgnoreSpec) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda found: found.name):
        path = Path(entry.path)
        name = path.relative_to(top).as_posix()
        if entry.is_symlink() or entry.name in _ALWAYS_LEFT_OUT:
            continue
        if entry.is_dir():
            # a folder that is ignored is not entered, as git does: nothing in it can be taken back
            if not (path / "pyvenv.cfg").exists() and not spec.match_file(name + "/"):
                yield from _walk(top, path, spec)
        elif entry.is_file() and not spec.match_file(name):
            yield path


def create_package(folder: Path, output: Path) -> Package:
    """Write the `.tgz` of a project folder. Same names, contents and run bits: same sha256.

    Raises ProjectFileError without a valid project file, PackageError when nothing can be written.
    """
    read_project_file(find_project_file(folder))
    target = output.resolve()
    files = [path for path in package_files(folder) if path.resolve() != target]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=output.parent, prefix=".package-", delete=False) as file:
            part = Path(file.name)
            # neither a file name nor a time goes into gzip's header
            with (
                gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
            ):
                for path in files:
                    _add(archive, path, path.relative_to(folder).as_posix())
        part.chmod(0o644)
        part.replace(output)
    except OSError as error:
        raise PackageError(f"The package cannot be written to {output}: {error.strerror}.") from None
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return Package(output, sha256_of(output), output.stat().st_size, names)


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        entry.size = status.st_size
        entry.mode = 0o755 if status.st_mode & 0o100 else 0o644
        archive.addfile(entry, file)


def sha256_of(path: Path) -> str:
    """The file's sha256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive_path: Path, target: Path) -> None:
    """Unpack a package into the new folder `target`, which appears only when it is whole.

    Raises PackageError, and leaves nothing, on absolute paths, `..`, links, devices, a bomb or a broken
    archive.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpack-"))
    try:
        try:
            with tarfile.open(archive_path, mode="r:*") as archive:
                _extract(archive, part)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise PackageError(f"The package cannot be unpacked: {error}.") from None
        find_in_package(part)
        part.rename(target)
    except OSError:
        if not target.is_dir():  # else another client was faster with the same content
            raise
        shutil.rmtree(part, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    total = 0
    for number, member in enumerate(archive, start=1):
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise PackageError(f"The package holds {member.name!r}, which leads out of its folder.")
        if not (member.isfile() or member.isdir()):
            raise PackageError(
                f"The package holds {member.name!r}, a link or device; only files and folders may be."
            )
        total += member.size
        if total > MAX_UNPACKED_BYTES or number > MAX_MEMBERS:
            raise PackageError("The package unpacks to more than 4 GiB or 100,000 files.")
        target = folder / path
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(member)
        assert source is not None
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1024 * 1024)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
