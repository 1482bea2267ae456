"""One update on its way to the spool."""

from __future__ import annotations

import hashlib
import os
import threading

from federation.combiner.spool import Spool
from federation.sessions.assignments import WorkGrant
from foundation.errors import StudioError


class Superseded(Exception):
    """A newer upload call for the same assignment took over."""


class Upload:
    """One writer of one update. Bytes are hashed and written in a thread, in order.

    The lock keeps the file open while a thread works on it: a call that is cut ends at any moment.
    """

    def __init__(self, spool: Spool, grant: WorkGrant, name: str, size: int) -> None:
        self.spool, self.grant, self.name, self.size = spool, grant, name, size
        self.offset = 0
        self.superseded = False
        self.finishing = False
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._file: int | None = None

    def open_at(self, offset: int) -> None:
        """Continue the part file at `offset` (bytes), hashing again what is there."""
        with self._lock:
            if self.superseded:
                raise Superseded
            self._file = os.open(self.spool.part(self.name), os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._file, offset)
            while self.offset < offset and (block := os.read(self._file, min(1 << 20, offset - self.offset))):
                self._hash.update(block)
                self.offset += len(block)

    def write(self, data: bytes) -> None:
        with self._lock:
            if self._file is None:
                raise Superseded
            if self.offset + len(data) > self.size:
                raise StudioError("too_long", f"More bytes arrived than the {self.size} that were announced.")
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            self._hash.update(data)
            self.offset += len(data)

    def sync(self) -> str:
        with self._lock:
            if self._file is None:
                raise Superseded
            os.fsync(self._file)
            return self._hash.hexdigest()

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
