"""Storage that refuses: a file stands where it wants a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation import storage


@contextmanager
def storage_refuses(key: str) -> Iterator[None]:
    """Everything below `key`, until the block ends; what was there is there again then."""
    folder = Path(storage.artifacts().path(key))
    block(folder)
    try:
        yield
    finally:
        unblock(folder)


def block(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(_aside(folder))
    folder.touch()


def unblock(folder: Path) -> None:
    """Whoever waits to store may make the folder anew as soon as nothing is in the way: what was there joins it."""
    folder.unlink()
    aside = _aside(folder)
    if not aside.exists():
        return
    folder.mkdir(exist_ok=True)
    for path in [path for path in aside.rglob("*") if path.is_file()]:
        target = folder / path.relative_to(aside)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.rmtree(aside)


def _aside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.aside")
