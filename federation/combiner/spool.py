"""The spool: updates on disk before they are acknowledged.

`<server-made id>.part` while bytes arrive, `<another>.update` once whole. No string of a client's ever forms a
path: the id of a part is a digest of (assignment, upload id, size), that of an update a new UUID, so that a second copy
never takes the place of a first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import uuid
from pathlib import Path

from foundation.errors import StudioError

STALE_PART_S = 24 * 3600.0


class Spool:
    """A locked directory. `spool_id` names this disk: another one means that the old one is lost."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StudioError(
                "spool_in_use",
                f"Another combiner is using the spool folder {folder}; give this one its own.",
                409,
            ) from None
        self.spool_id = self._read_id()
        self._part_of: dict[uuid.UUID, str] = {}
        self.pending: set[str] = set()  # whole updates whose acceptance is not decided yet
        for left_over in (*folder.glob("*.partial"), *folder.glob(".*.part")):  # sums, whole and half written
            left_over.unlink(missing_ok=True)

    def _read_id(self) -> str:
        path = self.folder / "id"
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.write_text(uuid.uuid4().hex)
            os.replace(draft, path)
        return path.read_text().strip()

    def close(self) -> None:
        os.close(self._lock)

    @staticmethod
    def name_of(assignment_id: uuid.UUID, upload_id: str, size: int) -> str:
        return hashlib.sha256(f"{assignment_id}\0{size}\0{upload_id}".encode()).hexdigest()[:40]

    def part(self, name: str) -> Path:
        return self.folder / f"{name}.part"

    def update(self, name: str) -> Path:
        return self.folder / f"{name}.update"

    def received_bytes(self, name: str) -> int:
        try:
            return self.part(name).stat().st_size
        except FileNotFoundError:
            return 0

    def keep(self, name: str) -> str:
        """part -> update, durably; answers the update's name. The file's own bytes were synced before. It is
        `pending` until the caller says otherwise."""
        kept = uuid.uuid4().hex
        self.pending.add(kept)
        try:
            os.replace(self.part(name), self.update(kept))
            self.sync_folder()
        except OSError:
            self.pending.discard(kept)
            raise
        return kept

    def sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def only_part(self, assignment_id: uuid.UUID, name: str) -> None:
        """An assignment has one part: what its client sent under another upload id or size goes."""
        earlier = self._part_of.get(assignment_id, name)
        self._part_of[assignment_id] = name
        if earlier != name:
            self.discard_part(earlier)

    def discard_part(self, name: str) -> None:
        self.part(name).unlink(missing_ok=True)

    def discard_update(self, name: str) -> None:
        self.update(name).unlink(missing_ok=True)
        self.pending.discard(name)

    def decided(self) -> set[str]:
        """Names of updates whose acceptance has been decided: rows that are read later tell all that count."""
        there = {path.stem for path in self.folder.glob("*.update")}
        return there - set(self.pending)  # in this order: what is kept between the two is not among the first

    def sweep(self, unneeded: set[str]) -> None:
        """Remove these updates, and parts that nobody went on with for a day."""
        for name in unneeded:
            self.update(name).unlink(missing_ok=True)
        stale = time.time() - STALE_PART_S
        for path in self.folder.glob("*.part"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < stale:
                    path.unlink()
        for assignment_id, name in list(self._part_of.items()):
            if not self.part(name).exists():
                self._part_of.pop(assignment_id, None)
