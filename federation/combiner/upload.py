"""One update on its way to the spool."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import deque

from federation.combiner.spool import Spool
from federation.sessions.assignments import WorkGrant
from foundation.errors import StudioError

Piece = bytes | memoryview
SYNC_EVERY_BYTES = 32 << 20


class Superseded(Exception):
    """A newer upload call for the same assignment took over."""


class Upload:
    """One writer of one update. Bytes are hashed and written in a thread, in order.

    A call that is cut ends at any moment. What came waits in `waiting`; whichever thread has the lock, to write or to
    close, takes all that waits: so nothing overtakes, whoever is first. Once a write or a sync failed, `torn`, nothing
    more goes to the file.
    """

    def __init__(self, spool: Spool, grant: WorkGrant, name: str, size: int, form: str = "") -> None:
        """`form` is how it is compressed, if it is; `size` counts what travels."""
        self.spool, self.grant, self.name, self.size, self.form = spool, grant, name, size, form
        self.sent_bytes = size
        self.offset = 0
        self.superseded = False
        self.finishing = False
        self.torn = False
        self._over = False
        self.waiting: deque[Piece] = deque()
        self.waiting_bytes = 0
        self.writing: asyncio.Future[None] | None = None
        self.syncing: asyncio.Future[None] | None = None
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._file: int | None = None
        self._synced = 0

    def take_over(self, older: Upload | None, offset: int) -> None:
        """Go on at `offset` (bytes) in the place of an older writer of the assignment, hashing again what is there.
        Raises StudioError `bad_offset` beyond it."""
        with self._lock:
            if older is not None:
                older.close()
            if self._over or self.superseded:
                raise Superseded
            self.spool.only_part(self.grant.assignment_id, self.name)
            there = self.spool.received_bytes(self.name)
            if not 0 <= offset <= there:
                raise StudioError(
                    "bad_offset", f"This upload can go on at most at byte {there}, not {offset}.", 409
                )
            self._open_at(offset)

    def open_whole(self) -> None:
        """A file that was made here."""
        with self._lock:
            self.size = self.spool.received_bytes(self.name)
            self._open_at(self.size)

    def _open_at(self, offset: int) -> None:
        self._file = os.open(self.spool.part(self.name), os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, offset)
        while self.offset < offset and (block := os.read(self._file, min(1 << 20, offset - self.offset))):
            self._hash.update(block)
            self.offset += len(block)

    def write(self) -> None:
        """Append all that waits. Raises StudioError `too_long` beyond the announced size."""
        with self._lock:
            if self._file is None or self.torn or self.superseded:
                raise Superseded
            self._append(self._file)

    def _append(self, file: int) -> None:
        pieces = [self.waiting.popleft() for _ in range(len(self.waiting))]
        size = sum(len(piece) for piece in pieces)
        if not size:
            return
        self.torn = True  # until all of it is there
        if self.offset + size > self.size:
            raise StudioError("too_long", f"More bytes arrived than the {self.size} that were announced.")
        left = size - os.writev(file, pieces)
        for piece in pieces:
            self._hash.update(piece)
        if left:  # a disk that is nearly full takes a part
            rest = memoryview(b"".join(pieces))[size - left :]
            while rest:
                rest = rest[os.write(file, rest) :]
        self.offset += size
        self.torn = False

    @property
    def much_unsynced(self) -> bool:
        return self.offset - self._synced >= SYNC_EVERY_BYTES and self.offset < self.size

    def sync_meanwhile(self) -> None:
        """Have the disk take what is written so far, while more arrives."""
        with self._lock:
            if self._file is None:
                return
            self._synced = self.offset
            file = os.dup(self._file)
        try:
            os.fdatasync(file)
        except OSError:
            with self._lock:  # a write that is under way would end with `torn` taken back
                self._lost()
            raise
        finally:
            os.close(file)

    def whole(self) -> str:
        """All of it, what waits too, is written; its SHA-256, as hex. Raises StudioError `incomplete`."""
        with self._lock:
            if self._file is None or self.torn:
                raise Superseded
            self._append(self._file)
            if self.offset != self.size:
                raise StudioError(
                    "incomplete", f"{self.offset} of {self.size} bytes arrived; resume the upload.", 409
                )
            return self._hash.hexdigest()

    def sync(self) -> None:
        """What was written is on the disk."""
        with self._lock:
            if self._file is None or self.torn:
                raise Superseded
            try:
                os.fsync(self._file)
            except OSError:
                self._lost()
                raise

    def _lost(self) -> None:
        """The kernel says only once that bytes did not come to the disk, and another sync would succeed: none of them
        is believed, all is sent again."""
        self.torn = True
        self.spool.discard_part(self.name)

    def close(self) -> None:
        """What waits is kept too: the next call goes on behind it."""
        with self._lock:
            self._over = True
            if self._file is None:
                return
            try:
                if not self.superseded and not self.torn:
                    self._append(self._file)
            except (OSError, StudioError):
                pass  # it is sent again
            finally:
                self.waiting.clear()
                os.close(self._file)
                self._file = None
