"""Running the published packages as their users do: commands that end, and devices that stay.

Everything is hermetic: homes, token caches and temporary files lie in a folder of the test's, and no process
outlives the test run, even one that is killed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.supervisor.guard import Guard
from tests.compat.environments import environment
from tests.services.stack import wait_for

COMMAND_WITHIN_S = 60.0
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def hermetic(name: str, home: Path, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a user who lives in `home` and whose `python` is that of `fedn` or `scaleout`."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    (home / ".fedn").mkdir(exist_ok=True)  # what `fedn studio login` expects to find
    made = {key: os.environ[key] for key in _KEPT if key in os.environ}
    bin_folder = environment(name).bin if name in ("fedn", "scaleout") else Path(sys.executable).parent
    made["PATH"] = f"{bin_folder}{os.pathsep}{made.get('PATH', os.defpath)}"
    for key in ("HOME", "FEDN_HOME_DIR", "SCALEOUT_HOME_DIR", "STUDIO_CACHE_DIR"):
        made[key] = str(home)
    made.update(TMPDIR=str(home / "tmp"), NO_PROXY="*", PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1")
    return {**made, **(env or {})}


# --- commands that end ----------------------------------------------------------------------------------------


def fedn(
    *arguments: str,
    home: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = COMMAND_WITHIN_S,
) -> subprocess.CompletedProcess[str]:
    """`fedn <arguments>` as the user whose home that is."""
    return _command("fedn", [str(environment("fedn").bin / "fedn"), *arguments], home, cwd, env, timeout)


def scaleout(
    *arguments: str,
    home: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = COMMAND_WITHIN_S,
) -> subprocess.CompletedProcess[str]:
    """`scaleout <arguments>` as the user whose home that is."""
    command = [str(environment("scaleout").bin / "scaleout"), *arguments]
    return _command("scaleout", command, home, cwd, env, timeout)


def run_in(
    name: str,
    script: str | Path,
    *arguments: str,
    home: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = COMMAND_WITHIN_S,
) -> Any:
    """Run a Python script (a path, or its text) in the environment `fedn` or `scaleout`.

    Returns:
        The last line it printed, read as JSON.
    """
    if isinstance(script, str):
        text, script = script, home / f"script-{uuid.uuid4().hex[:8]}.py"
        home.mkdir(parents=True, exist_ok=True)
        script.write_text(text)
    command = [str(environment(name).python), str(script), *arguments]
    done = _command(name, command, home, cwd, env, timeout)
    assert done.returncode == 0, f"{script.name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    lines = done.stdout.strip().splitlines()
    assert lines, f"{script.name} printed nothing:\n{done.stderr}"
    return json.loads(lines[-1])


def _command(
    name: str, command: list[str], home: Path, cwd: Path | None, env: Mapping[str, str] | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    guard = Guard()
    process = subprocess.Popen(
        command, cwd=cwd or home, env=hermetic(name, home, env), stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
        start_new_session=True, preexec_fn=guard.announcer(),
    )  # fmt: skip
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _end_group(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        raise AssertionError(
            f"{' '.join(command[:6])} ran longer than {timeout:g} s:\n{out}\n{errors}"
        ) from None
    finally:
        guard.ended(process.pid)
        guard.dismiss()
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _end_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


# --- devices that stay ----------------------------------------------------------------------------------------


@dataclass
class Device:
    """A client process next to its data, in a folder of its own. `client_id` is the id it registers under."""

    name: str
    client_id: str
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """Everything it wrote so far."""
        return (self.home / "log.txt").read_text(errors="replace")

    def said(self, pattern: str) -> list[str]:
        """Its lines in which the pattern is found."""
        return [line for line in self.log.splitlines() if re.search(pattern, line)]

    def until_said(self, pattern: str, times: int = 1, timeout: float = 30.0) -> list[str]:
        """Its lines with the pattern, once there are so many; fails with its log when it ends before that."""

        def heard() -> list[str]:
            lines = self.said(pattern)
            if len(lines) < times and self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log[-4000:]}")
            return lines if len(lines) >= times else []

        try:
            return wait_for(heard, timeout, f"{pattern!r} from {self.name}")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.log[-4000:]}") from None

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ended(self, timeout: float = 20.0) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s:\n{self.log[-4000:]}") from None

    def kill(self) -> None:
        """`kill -9` it and what it started."""
        _end_group(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self, timeout: float = 10.0) -> int:
        """Ctrl-C, as at a terminal; killed when it does not listen."""
        if self.alive:
            _end_group(self.process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        self.kill()
        return int(self.process.returncode)


@dataclass
class Devices:
    """The devices that a test started; all end with it."""

    folder: Path
    started: list[Device] = field(default_factory=list)
    _guard: Guard = field(default_factory=Guard)

    def start_fedn_client(
        self,
        name: str,
        *arguments: str,
        url: str = "",
        token: str = "",
        client_id: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Device:
        """`fedn client start`. `url` without a slash at the end; without it everything is in `arguments`."""
        client_id = client_id or str(uuid.uuid4())
        where = ["--api-url", url, "--token", token, "--name", name, "--client-id", client_id] if url else []
        command = [str(environment("fedn").bin / "fedn"), "client", "start", *where, *arguments]
        return self.start(name, "fedn", command, client_id, env)

    def start_scaleout_client(
        self,
        name: str,
        *arguments: str,
        url: str = "",
        token: str = "",
        client_id: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Device:
        """`scaleout client start --remote-package`, polling each second."""
        client_id = client_id or str(uuid.uuid4())
        where = ["--api-url", url, "--token", token, "--name", name, "--client-id", client_id] if url else []
        command = [
            str(environment("scaleout").bin / "scaleout"),
            "client",
            "start",
            "--remote-package",
            *where,
        ]
        poll = {"SCALEOUT_CLIENT_TASK_POLLING_INTERVAL": "1", **(env or {})}
        return self.start(name, "scaleout", [*command, *arguments], client_id, poll)

    def start_native_client(
        self, name: str, config: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> Device:
        """Our own `studio client start` with that config file."""
        command = [
            sys.executable,
            "-m",
            "studio_sdk.cli.main",
            "client",
            "start",
            "-in",
            str(config),
            *arguments,
        ]
        return self.start(name, "native", command, "", env)

    def start(
        self, name: str, kind: str, command: list[str], client_id: str, env: Mapping[str, str] | None
    ) -> Device:
        """Any client's command line, in a folder and a process group of its own."""
        home = self.folder / f"{kind}-{name}-{uuid.uuid4().hex[:6]}"
        home.mkdir(parents=True)
        with (home / "log.txt").open("wb") as out:
            process = subprocess.Popen(
                command, cwd=home, env=hermetic(kind, home, env), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=self._guard.announcer(),
            )  # fmt: skip
        device = Device(name, client_id, home, process)
        self.started.append(device)
        return device

    def close(self) -> None:
        """End them all."""
        for device in self.started:
            device.kill()
            self._guard.ended(device.process.pid)
        self._guard.dismiss()
