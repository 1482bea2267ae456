"""Commands in process groups of their own, so that ending one ends everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ..errors import EnvironmentBuildError

TERM_GRACE_S = 3.0

_running: set[subprocess.Popen[bytes]] = set()
_lock = threading.Lock()


def start(
    command: Sequence[str] | str,
    *,
    env: Mapping[str, str],
    stdout: int | IO[bytes],
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a command (a string goes through the shell) as the leader of a new process group."""
    process = subprocess.Popen(
        command,
        shell=isinstance(command, str),  # an entry point is a shell command by convention
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    with _lock:
        _running.add(process)
    return process


def end(process: subprocess.Popen[bytes], grace_s: float = TERM_GRACE_S, *, asked: bool = False) -> None:
    """End the whole group: TERM (unless it was `asked` already), and KILL for what is left after `grace_s` seconds."""
    if not asked:
        send(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while group_lives(process) and time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
        time.sleep(0.01)
    send(process, signal.SIGKILL)
    process.wait()
    forget(process)


def send(process: subprocess.Popen[bytes], signal_number: int) -> None:
    """Signal the whole group, if anything of it is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal_number)


def group_lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether any process of the group exists; the leader itself is reaped first."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says this of a group of zombies
        return process.returncode is None
    return True


def forget(process: subprocess.Popen[bytes]) -> None:
    """The process has been waited for."""
    with _lock:
        _running.discard(process)


def end_all() -> None:
    """End every group that is still running; called when the client itself ends."""
    with _lock:
        left = list(_running)
    for process in left:
        send(process, signal.SIGTERM)
    deadline = time.monotonic() + TERM_GRACE_S
    for process in left:
        end(process, max(0.0, deadline - time.monotonic()))


def run_group(command: Sequence[str], env: Mapping[str, str], timeout_s: float) -> tuple[int, str]:
    """Run to the end and return (exit code, output). Raises EnvironmentBuildError after `timeout_s`."""
    process = start(command, env=env, stdout=subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise EnvironmentBuildError(
            f"{command[0]} did not finish within {timeout_s / 60:g} minutes."
        ) from None
    finally:
        if process.returncode is None:
            end(process)
        forget(process)
    return process.returncode, output.decode(errors="replace")
