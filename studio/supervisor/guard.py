"""The guard: a process that outlives a killed `up` just long enough to take its children along.

It reads `+pid` and `-pid` lines from a pipe whose only lasting writer is the supervisor. At the end of the pipe, which
the kernel reports however the supervisor died, every group still on the list gets SIGTERM, then SIGKILL.
It runs this file alone (standard library, no Django), on Linux and macOS.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TERM_GRACE_S = 1.0


class Guard:
    """The supervisor's side of the pipe."""

    def __init__(self, keep_open: tuple[int, ...] = ()) -> None:
        """`keep_open`: descriptors the guard holds as long as it lives (the data directory's lock)."""
        self._keep_open = keep_open
        self._process: subprocess.Popen[bytes] | None = None
        self._write_end = -1
        self._groups: set[int] = set()
        self.ensure()

    def ensure(self) -> bool:
        """Start the guard when it is not running; returns whether it had to be started."""
        if self._process is not None and self._process.poll() is None:
            return False
        if self._write_end >= 0:
            os.close(self._write_end)
        read_end, self._write_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).resolve())],
            stdin=read_end, stdout=subprocess.DEVNULL, start_new_session=True, pass_fds=self._keep_open, cwd="/",
        )  # fmt: skip
        os.close(read_end)
        for group in self._groups:
            self._tell(f"+{group}\n")
        return True

    def announcer(self) -> Callable[[], object]:
        """What a child runs between fork and exec: it registers itself, so no instant is left unguarded."""
        write_end = self._write_end
        return lambda: os.write(write_end, b"+%d\n" % os.getpid())

    def started(self, pid: int) -> None:
        """Remember a child for the case that the guard itself has to be started again."""
        self._groups.add(pid)

    def ended(self, pid: int) -> None:
        """The process group is gone; its number may be reused by a stranger."""
        self._groups.discard(pid)
        self._tell(f"-{pid}\n")

    def dismiss(self) -> None:
        """Close the pipe after every child is gone, and wait for the guard to leave."""
        if self._process is None:
            return
        os.close(self._write_end)
        self._write_end = -1
        try:
            self._process.wait(TERM_GRACE_S + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        try:
            os.write(self._write_end, line.encode())
        except BrokenPipeError:
            pass  # the guard died; `ensure` starts another and tells it everything


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # macOS answers so for a group of zombies, and for one that is no longer ours
    return True


def _signal(groups: set[int], number: int) -> None:
    for group in groups:
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):
            continue


def _watch() -> None:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        number = int(line[1:])
        if line[0] == "+":
            groups.add(number)
        else:
            groups.discard(number)
    _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + TERM_GRACE_S
    while time.monotonic() < deadline and any(_alive(group) for group in groups):
        time.sleep(0.05)
    _signal(groups, signal.SIGKILL)


if __name__ == "__main__":
    _watch()
