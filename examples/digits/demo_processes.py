"""The processes of the demo: started here, watched here, and all stopped here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0


class DemoFailed(Exception):
    """A sentence that says what went wrong and what to do."""


class Processes:
    """Each child leads a process group of its own; `stop` ends the last started first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = {**os.environ, **environ}
        for name in ("STUDIO_URL", "STUDIO_TOKEN", "STUDIO_PROJECT"):
            # the demo acts on its own Studio, whatever the person's shell points to
            if name not in environ:
                self.environ.pop(name, None)
        self._running: list[subprocess.Popen[Any]] = []

    def start(self, command: Sequence[str], log: Path, *, cwd: Path = ROOT) -> subprocess.Popen[Any]:
        """Start a child whose output goes to `log`."""
        with log.open("ab") as file:
            child = subprocess.Popen(
                command, cwd=cwd, env=self.environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self._running.append(child)
        return child

    def start_studio(self, data: Path, log: Path) -> dict[str, Any]:
        """Start `manage.py up` and return the addresses it announces."""
        command = [
            sys.executable,
            str(ROOT / "manage.py"),
            "up",
            "--json",
            "--port",
            "0",
            "--combiner-port",
            "0",
        ]
        with log.open("wb") as errors:
            child = subprocess.Popen(
                [*command, "--data", str(data)], cwd=ROOT, env=self.environ, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, start_new_session=True, text=True,
            )  # fmt: skip
        self._running.append(child)
        late = threading.Timer(START_TIMEOUT_S, child.terminate)
        late.daemon = True
        late.start()
        assert child.stdout is not None
        line = child.stdout.readline()
        late.cancel()
        try:
            announced = json.loads(line)
        except ValueError:
            said = log.read_text(errors="replace").strip() or line.strip() or "it said nothing"
            raise DemoFailed(f"Studio did not start: {last_lines(said)}") from None
        # whatever else it prints must not fill the pipe
        threading.Thread(target=child.stdout.read, daemon=True).start()
        return dict(announced)

    def studio(self, *arguments: str, cwd: Path = ROOT) -> Any:
        """Run the `studio` command with --json and return what it printed."""
        return json.loads(self.run("studio", *arguments, "--json", cwd=cwd).splitlines()[-1])

    def run(self, *command: str, cwd: Path = ROOT) -> str:
        """Run a command of this environment to its end; its output."""
        program = Path(sys.executable).with_name(command[0])
        child = subprocess.Popen(
            [str(program), *command[1:]], cwd=cwd, env=self.environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._running.append(child)
        output, errors = child.communicate()
        self._running.remove(child)
        if child.returncode:
            shown = " ".join(command[:3])
            raise DemoFailed(
                f"`{shown}` ended with exit code {child.returncode}: {last_lines(errors or output)}"
            )
        return output

    def check(self, child: subprocess.Popen[Any], name: str, log: Path) -> None:
        """Raise DemoFailed when a child that should run has ended."""
        if child.poll() is not None:
            said = last_lines(log.read_text(errors="replace"))
            raise DemoFailed(f"{name} ended by itself with exit code {child.returncode}: {said}")

    def stop(self) -> None:
        """Stop everything: clients first, Studio last; whoever does not listen is killed."""
        while self._running:
            child = self._running.pop()
            _signal(child, signal.SIGTERM, group=False)
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                _signal(child, signal.SIGKILL, group=True)
                child.wait()


def _signal(child: subprocess.Popen[Any], number: int, *, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(child.pid, number)
        elif child.poll() is None:
            child.send_signal(number)


def last_lines(text: str, count: int = 4) -> str:
    """The end of an output as one line."""
    return " ".join(line.strip() for line in text.strip().splitlines()[-count:])[-1200:] or "it said nothing."
