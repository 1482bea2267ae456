"""The data directory: made once, readable by its owner only, served by one `up` at a time."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from studio.supervisor.refusal import Refused

# an `up` that was killed leaves its guard, which keeps `children.lock` until the last child is gone
GUARD_LEAVES_S = 10.0


class DataDir:
    """Paths below one data directory, and the lock on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.run = path / "run"
        self._held: tuple[int, ...] = ()

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            Refused: the directory cannot be made or written.
        """
        try:
            for folder in (self.path, self.logs, self.run, self.path / "static"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
        except OSError as error:
            raise Refused(
                f"The data directory {self.path} cannot be used: {error.strerror}. Name another with --data."
            ) from error

    def lock(self) -> int:
        """Take the directory for this process; returns the descriptor that its guard is to keep open.

        Two locks, because a process id is no proof of life (a killed `up` may stay a zombie until its parent looks):
        the kernel frees `up.lock` the moment an `up` dies, `children.lock` only when its guard has cleared the place.

        Raises:
            Refused: another `up` serves it.
        """
        own = self._open("up.lock")
        if not _locked(own):
            holder = os.pread(own, 32, 0).decode(errors="replace").strip()
            os.close(own)
            raise Refused(
                f"Studio already serves {self.path} (process {holder or 'unknown'}). Stop it first, or "
                "name another data directory with --data."
            )
        os.ftruncate(own, 0)
        os.pwrite(own, f"{os.getpid()}\n".encode(), 0)
        children = self._open("children.lock")
        deadline = time.monotonic() + GUARD_LEAVES_S
        while not _locked(children):
            if time.monotonic() > deadline:
                os.close(children)
                os.close(own)
                raise Refused(
                    f"Processes of a Studio that was killed still use {self.path}. Stop them first, or name another "
                    "data directory with --data."
                )
            time.sleep(0.05)
        self._held = (own, children)
        return children

    def _open(self, name: str) -> int:
        try:
            return os.open(self.run / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Refused(f"The data directory {self.path} cannot be written: {error.strerror}.") from error

    def write_private(self, name: str, text: str) -> Path:
        """A file under run/ that only its owner can read, replaced in one step."""
        path = self.run / name
        draft = path.with_name(f".{name}.draft")
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(text)
        draft.replace(path)
        return path

    def forget(self, *names: str) -> None:
        """Remove files under run/ that describe a Studio that no longer runs."""
        for name in names:
            (self.run / name).unlink(missing_ok=True)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
