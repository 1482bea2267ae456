"""A whole Studio for tests: `manage.py up` as a child, on free ports, with a data directory of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg

from tests.services.environment import run_dir, wants_postgres, with_database

ROOT = Path(__file__).resolve().parent.parent.parent
STARTS_WITHIN_S = 90.0
T = TypeVar("T")


def stack_environment(data: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of an operator's shell: nothing of this test process's servers and folders leaks in."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STUDIO_", "DJANGO_", "PYTEST_"))
        and name not in ("DATABASE_URL", "REDIS_URL")
    }
    env.pop("STORAGE_URL", None)
    env["STUDIO_DATA"] = str(data)
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env.update(extra or {})
    return env


def wait_for(cond: Callable[[], T], timeout: float, what: str) -> T:
    """The first true value of `cond()`; fails at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = cond()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(0.02)


@dataclass
class Stack:
    """A running `up`. `said` is its JSON line; `env` makes other `manage.py` commands act on the same data."""

    data: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes]
    errors: Path
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def web(self) -> str:
        """Address of the pages and the API, without a slash at the end."""
        return str(self.said["web"])

    @property
    def combiner(self) -> str:
        """`host:port` of the first combiner."""
        return str(self.said["combiner"])

    def manage(self, *arguments: str, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
        """Run a management command on this stack's data; returns its standard output."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            env={**self.env, "REDIS_URL": self.redis_url, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def redis_url(self) -> str:
        """Address of its private Redis, with the password."""
        return (self.data / "run" / "redis_url").read_text().strip()

    def pid_of(self, name: str) -> int:
        """Process id of the child `web`, `worker`, `beat`, `redis`, `combiner-1`…

        Raises:
            LookupError: it does not run now.
        """
        marks = {
            "web": "studio.asgi:application",
            "worker": "--concurrency",
            "beat": "--schedule",
            "redis": "valkey-server",
        }
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                line = " ".join(child.cmdline())
                if child.status() != psutil.STATUS_ZOMBIE and (marks.get(name) or f"--name {name}") in line:
                    return int(child.pid)
        raise LookupError(f"{name} does not run")

    def kill(self, name: str) -> int:
        """`kill -9` one child; returns the process id it had."""
        pid = self.pid_of(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def reports(self) -> str:
        """What `up` wrote on standard error so far."""
        return self.errors.read_text(errors="replace")

    def log(self, name: str) -> str:
        """A child's log."""
        path = self.data / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self, timeout: float = 25.0) -> int:
        """SIGTERM and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"up did not stop within {timeout:g} s: {self.reports()}") from None
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the web process."""
        try:
            with urllib.request.urlopen(f"{self.web}{path}", timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def launch(
    data: Path, *arguments: str, env: Mapping[str, str] | None = None, ports: Sequence[str] | None = None
) -> Stack:
    """Start `manage.py up --json` on free ports, without waiting for its JSON line."""
    data.parent.mkdir(parents=True, exist_ok=True)
    errors = data.parent / f"{data.name}-up-stderr.log"
    environment = stack_environment(data, env)
    ports = ["--port", "0", "--combiner-port", "0"] if ports is None else ports
    with errors.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "up", "--json", *ports, "--data", str(data), *arguments],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
    return Stack(data=data, env=environment, process=process, errors=errors)


def await_line(stack: Stack, timeout: float = STARTS_WITHIN_S) -> Stack:
    """Wait for the JSON line of a launched `up`; fails with what it said on standard error instead."""
    assert stack.process.stdout is not None
    deadline = time.monotonic() + timeout
    got = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stack.process.stdout, selectors.EVENT_READ)
        while not got.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                stack.process.kill()
                raise AssertionError(f"up said nothing within {timeout:g} s: {stack.reports()}")
            more = os.read(stack.process.stdout.fileno(), 65536)
            if not more:
                raise AssertionError(f"up ended with {stack.process.wait()}: {stack.reports()}")
            got += more
    stack.said = json.loads(got)
    return stack


@contextlib.contextmanager
def fresh_database(name: str) -> Iterator[dict[str, str]]:
    """The environment that gives a stack an empty database of its own on the server this run tests with."""
    if not wants_postgres():
        yield {}
        return
    from tests.services.postgres import server_url

    server = server_url()
    name = re.sub(r"\W", "_", name)[:60].lower()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield {"DATABASE_URL": with_database(server, name)}
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def lay_migrated_database(data: Path) -> None:
    """The SQLite file of a Studio that has just been migrated: made once in a run of tests, for migrating costs more
    than all else that a first start does. (The first start itself is tested by the demo and by `launch`.)"""
    template = run_dir() / "migrated" / "studio.sqlite3"
    template.parent.mkdir(exist_ok=True)
    with (template.parent / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            making = template.parent / "making"
            subprocess.run(
                [sys.executable, str(ROOT / "manage.py"), "migrate", "--noinput"],
                env=stack_environment(making), cwd=ROOT, check=True, capture_output=True,
            )  # fmt: skip
            (making / template.name).rename(template)
    data.mkdir(parents=True, mode=0o700)
    shutil.copy(template, data)


@contextlib.contextmanager
def running(data: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """A Studio that answers, and that is gone with all its processes afterwards."""
    with fresh_database(f"studio_stack_{os.getpid()}_{data.parent.name}") as database:
        settings = {**database, **(env or {})}
        if "DATABASE_URL" not in settings and not data.exists():
            lay_migrated_database(data)
        stack = launch(data, *arguments, env=settings)
        try:
            yield await_line(stack)
        finally:
            stack.stop()
