"""Files whose bytes come before anybody says which assignment they answer: kept under (client, the client's own key).

Nothing here is acknowledged and nothing counts; a row decides later. They outlive a restart, because a client whose
upload was whole does not send it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path

from django.conf import settings

from federation.combiner.connection import Identity
from federation.combiner.threads import in_files, in_rows
from federation.sessions import assignments
from foundation.errors import StudioError

PER_CLIENT = 2
STALE_S = 600.0
SWEEP_EVERY_S = 30.0
# a client may send float64 for a model of half precision; the canonical file is checked against the layout later
WIDEST = 4
SLACK_BYTES = 1 << 20


class Staged:
    """One file being received, or received. The lock keeps it open while a thread writes: its call ends at any moment,
    and the number of a closed file is soon another's."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path  # where it will be once whole
        self.limit = limit
        self.size = 0
        self._draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._file = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    @property
    def arriving(self) -> bool:
        return self._file >= 0

    @property
    def sha256(self) -> str:
        """Of the bytes so far, as hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        if self.size + len(data) > self.limit:
            raise StudioError("too_long", f"An upload of this client has at most {self.limit} bytes.", 413)
        with self._lock:
            if self._file < 0:
                raise StudioError("superseded", "Newer uploads of this client took its place.", 503)
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            self._hash.update(data)
            self.size += len(data)

    def whole(self) -> None:
        with self._lock:
            if not self._close():
                raise StudioError("superseded", "Newer uploads of this client took its place.", 503)
            os.replace(self._draft, self.path)

    def drop(self) -> None:
        """The call ended before its end, or others took its place: nothing of it stays."""
        with self._lock:
            self._close()
            self._draft.unlink(missing_ok=True)

    def _close(self) -> bool:
        """False: it was closed before."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        return file >= 0


class Staging:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        for left_over in folder.glob("*.part"):
            left_over.unlink(missing_ok=True)
        self._beginning = threading.Lock()
        self._arriving: defaultdict[uuid.UUID, list[Staged]] = defaultdict(list)

    async def begin(self, who: Identity, key: str) -> Staged:
        """Room for an upload of this client. Of those that are here whole the oldest goes when it has two already, of
        those that arrive too, and the one under this key. Raises StudioError 409 `nothing_owed` when it trains nothing
        now, so that no stranger to a round fills the disk."""
        most = await in_rows(assignments.largest_owed_bytes, who.client_id)
        if not most:
            raise StudioError("nothing_owed", "This client has no open training assignment.", 409)
        limit = min(WIDEST * most, WIDEST * int(settings.MAX_MODEL_BYTES)) + SLACK_BYTES
        return await in_files(self._begin, who.client_id, key, limit)

    def _begin(self, client_id: uuid.UUID, key: str, limit: int) -> Staged:
        path = self._path(client_id, key)
        with self._beginning:
            for older in self._arriving[client_id]:
                if older.path == path:
                    older.drop()
            arriving = [one for one in self._arriving[client_id] if one.arriving]
            for older in arriving[: max(0, len(arriving) - PER_CLIENT + 1)]:
                older.drop()
            files = [f for f in self.folder.glob(f"{client_id.hex}-*.staged") if f != path]
            for old in sorted(files, key=_age, reverse=True)[: max(0, len(files) - PER_CLIENT + 1)]:
                old.unlink(missing_ok=True)
            staged = Staged(path, limit)
            self._arriving[client_id] = [*arriving[-(PER_CLIENT - 1) :], staged]
            return staged

    def _path(self, client_id: uuid.UUID, key: str) -> Path:
        return self.folder / f"{client_id.hex}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.staged"

    async def find(self, who: Identity, key: str) -> Path | None:
        """The whole file that this client sent under that key, if it is still there."""
        path = self._path(who.client_id, key)
        return path if await in_files(path.exists) else None

    async def discard(self, path: Path) -> None:
        await in_files(lambda: path.unlink(missing_ok=True))

    async def sweep_forever(self) -> None:
        """What nobody named within ten minutes goes."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            await in_files(self._sweep)

    def _sweep(self) -> None:
        for path in self.folder.iterdir():
            if _age(path) > STALE_S:
                path.unlink(missing_ok=True)
        with self._beginning:
            for client_id, staged in list(self._arriving.items()):
                if not any(one.arriving for one in staged):
                    del self._arriving[client_id]


def _age(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime
    return 0.0
