"""The data directory: made once, readable by its owner only, served by one `up` at a time."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from studio.supervisor.refusal import Refused

# an `up` that was killed leaves its guard, which keeps the lock until the last child is gone
GUARD_LEAVES_S = 10.0


class DataDir:
    """Paths below one data directory, and the lock on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.run = path / "run"
        self._lock_fd = -1

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
        """Take the directory for this process; returns the descriptor that holds the lock.

        Raises:
            Refused: another `up` serves it.
        """
        try:
            fd = os.open(self.run / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Refused(f"The data directory {self.path} cannot be written: {error.strerror}.") from error
        deadline = time.monotonic() + GUARD_LEAVES_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                if _runs(holder) or time.monotonic() > deadline:
                    os.close(fd)
                    raise Refused(
                        f"Studio already serves {self.path} (process {holder or 'unknown'}). Stop it first, or "
                        "name another data directory with --data."
                    ) from None
                time.sleep(0.05)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd
        return fd

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


def _runs(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
