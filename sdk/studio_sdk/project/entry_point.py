"""Running an entry point: a shell command in the project's folder, watched until it ends, is stopped or runs
late."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..names import METRICS_FD
from . import process_group
from .environment import activated
from .project_file import ProjectFile

TAIL_LINES = 40
TAIL_CHARS = 8000
_LINE_CHARS = 2000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class EntryPointCancelled(Exception):
    """The entry point was stopped because its result is no longer wanted."""


class EntryPointLate(Exception):
    """The entry point was still running at its deadline and was stopped."""

    def __init__(self, tail: str) -> None:
        super().__init__("deadline")
        self.tail = tail


@dataclass(frozen=True)
class Listeners:
    """Who hears what an entry point says while it runs."""

    line: Callable[[str], None] = lambda line: None
    metrics: Callable[[dict[str, float], int], None] = lambda values, step: None


@dataclass(frozen=True)
class Ended:
    """How an entry point ended: its exit code and the tail of its output."""

    exit_code: int
    tail: str


class CancelSwitch:
    """Set from any thread to stop what is running; waking whoever waits for it."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._lock = threading.Lock()
        self._actions: list[Callable[[], None]] = []
        self._cut: Callable[[], None] | None = None

    def set(self) -> None:
        """Ask for the stop. Later calls change nothing."""
        with self._lock:
            if self._set.is_set():
                return
            self._set.set()
            actions, self._actions = self._actions, []
            if self._cut is not None:
                actions.append(self._cut)
        for action in actions:
            action()

    def is_set(self) -> bool:
        """Whether the stop was asked for."""
        return self._set.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the stop."""
        return self._set.wait(timeout)

    def call(self, action: Callable[[], None]) -> None:
        """Call `action` when the stop is asked for; at once when it already was."""
        with self._lock:
            if not self._set.is_set():
                if action not in self._actions:
                    self._actions.append(action)
                return
        action()

    def cut_by(self, action: Callable[[], None]) -> None:
        """As `call`, in the place of the one before: of transfers only one is under way, and a task may need many
        tries."""
        with self._lock:
            if not self._set.is_set():
                self._cut = action
                return
        action()


@dataclass
class _Output:
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    def text(self) -> str:
        return "\n".join(self.tail)[-TAIL_CHARS:]


def run_entry_point(
    project: ProjectFile,
    name: str,
    arguments: Sequence[str],
    *,
    environment: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    listeners: Listeners | None = None,
    cancel: CancelSwitch | None = None,
    deadline: float | None = None,
) -> Ended:
    """Run `<command> <arguments>` in the project's folder. `deadline` is on `time.monotonic`'s clock.

    Raises EntryPointCancelled or EntryPointLate after the whole process group has ended; ProjectFileError
    when the project has no such entry point.
    """
    heard = listeners or Listeners()
    cancel = cancel or CancelSwitch()
    command = " ".join([project.command(name), *(shlex.quote(argument) for argument in arguments)])
    reading, writing = os.pipe()
    env = activated(environment, {**os.environ, **(extra_env or {})})
    env[METRICS_FD] = str(writing)
    env.setdefault("PYTHONUNBUFFERED", "1")
    try:
        process = process_group.start(
            command, env=env, stdout=subprocess.PIPE, cwd=project.folder, pass_fds=[writing]
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    output = _Output()
    readers = [
        threading.Thread(target=_read_lines, args=(process, output, heard), daemon=True),
        threading.Thread(target=_read_metrics, args=(reading, heard), daemon=True),
    ]
    for reader in readers:
        reader.start()
    ended = threading.Event()
    killer = threading.Thread(target=_end_when_asked, args=(process, cancel, ended), daemon=True)
    cancel.call(killer.start)
    try:
        process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        late = False
    except subprocess.TimeoutExpired:
        late = True
    finally:
        # what a command left in the background goes with it, except a start-up's services
        if name != "startup" or process.returncode is None:
            asked = cancel.is_set()
            grace_s = process_group.TERM_GRACE_S if asked or process.returncode is None else 0.0
            process_group.end(process, grace_s, asked=asked)
        process_group.forget(process)
        ended.set()
    for reader in readers:
        reader.join(1.0)
    if cancel.is_set():
        raise EntryPointCancelled
    if late:
        raise EntryPointLate(output.text())
    return Ended(process.returncode, output.text())


def _end_when_asked(process: subprocess.Popen[bytes], cancel: CancelSwitch, ended: threading.Event) -> None:
    """TERM to the group; KILL when it has not ended in time. The waiting thread does the reaping."""
    process_group.send(process, signal.SIGTERM)
    if not ended.wait(process_group.TERM_GRACE_S):
        process_group.send(process, signal.SIGKILL)


def _read_lines(process: subprocess.Popen[bytes], output: _Output, heard: Listeners) -> None:
    assert process.stdout is not None
    with suppress(ValueError, OSError), process.stdout:
        # a line without an end must not fill the memory
        while raw := process.stdout.readline(64 * 1024):
            line = _CONTROL.sub("", raw.decode(errors="replace").rstrip())[:_LINE_CHARS]
            if line:
                output.tail.append(line)
                heard.line(line)


def _read_metrics(descriptor: int, heard: Listeners) -> None:
    with suppress(OSError), os.fdopen(descriptor, "rb") as pipe:
        while raw := pipe.readline(64 * 1024):
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                entry: dict[str, Any] = json.loads(raw)
                values = {str(name): float(value) for name, value in entry["values"].items()}
                heard.metrics(values, int(entry.get("step", 0)))
