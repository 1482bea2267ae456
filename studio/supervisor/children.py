"""One supervised process: started in a group of its own, started again when it dies, stopped with all it began."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from studio.supervisor.guard import Guard

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 10.0
# who ran this long was fine; the next death starts the delays over
SETTLED_S = 30.0
LOG_TURNS_OVER_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ChildSpec:
    """What to run. `ready` is asked until it first says yes; `first_line` gets what the child prints first."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[], bool]
    first_line: Callable[[str], None] | None = None
    pass_fds: tuple[int, ...] = ()
    before_start: Callable[[], None] = lambda: None


@dataclass
class Child:
    """A `ChildSpec` at work."""

    spec: ChildSpec
    log: Path
    guard: Guard
    process: subprocess.Popen[bytes] | None = None
    delay_s: float = FIRST_DELAY_S
    deaths: int = 0
    started_at: float = 0.0
    start_again_at: float = 0.0
    answered: bool = False
    _line: bytearray = field(default_factory=bytearray)

    def start(self) -> None:
        """Run it; its output goes to the log."""
        self.spec.before_start()
        if self.log.exists() and self.log.stat().st_size > LOG_TURNS_OVER_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        self.answered = False
        self._line.clear()
        with self._open_log() as out:
            self.process = subprocess.Popen(
                list(self.spec.argv),
                env=dict(self.spec.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.spec.first_line else out,
                stderr=out,
                start_new_session=True,
                pass_fds=self.spec.pass_fds,
                preexec_fn=self.guard.announcer(),
            )
        if self.process.stdout is not None:
            os.set_blocking(self.process.stdout.fileno(), False)
        self.guard.started(self.process.pid)
        self.started_at = time.monotonic()

    def read_output(self) -> None:
        """Hand over the first line of standard output; whatever follows it joins the log."""
        stream = self.process.stdout if self.process else None
        if stream is None or stream.closed:
            return
        chunk = stream.read(65536)
        if chunk is None:
            return
        if not chunk:
            stream.close()  # the end of a stream stays readable; the loop must not spin on it
            return
        if self.spec.first_line is not None and b"\n" not in self._line:
            self._line += chunk
            if b"\n" in self._line:
                line, _, rest = bytes(self._line).partition(b"\n")
                self.spec.first_line(line.decode(errors="replace"))
                chunk = rest
            else:
                return
        if chunk:
            with self._open_log() as out:
                out.write(chunk)

    def died(self) -> str | None:
        """How it ended since the last look, in words; `None` while it runs or waits to be started again."""
        if self.process is None or self.process.poll() is None:
            return None
        self.read_output()
        code = self.process.returncode
        self._clear_group(signal.SIGKILL)  # whatever it had started must not serve on beside its successor
        self.guard.ended(self.process.pid)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None
        lived = time.monotonic() - self.started_at
        if lived > SETTLED_S:
            self.delay_s = FIRST_DELAY_S
            self.deaths = 0
        self.deaths += 1
        self.start_again_at = time.monotonic() + self.delay_s
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def slow_down(self) -> None:
        """The next death waits longer before the next start."""
        self.delay_s = min(self.delay_s * 2, LONGEST_DELAY_S)

    def is_due(self) -> bool:
        """Whether it is down and its delay is over."""
        return self.process is None and time.monotonic() >= self.start_again_at

    def signal(self, number: int) -> None:
        """Signal the process and everything in its group."""
        if self.process is not None and self.process.poll() is None:
            self._clear_group(number)

    def runs(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def last_lines(self, count: int = 5) -> str:
        """The end of its log, for the sentence that says why `up` gave up."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 4096))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "\n".join(f"  {line}" for line in lines[-count:])

    def _clear_group(self, number: int) -> None:
        assert self.process is not None
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left in the group

    def _open_log(self) -> IO[bytes]:
        return open(os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab")
