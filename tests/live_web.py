"""The web process alone, as a process of its own on this test's database and Redis, and sockets into it."""

from __future__ import annotations

import json
import os
import socket as sockets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.test import Client as Browser
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from projects.models import User
from studio.supervisor.guard import Guard
from tests.services.environment import free_port


class Web:
    """A uvicorn serving studio.asgi; may be killed and started again on the same port."""

    def __init__(self, **environment: str) -> None:
        self.environment = environment
        self.guard: Guard | None = None
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "studio.asgi:application", "--port", str(self.port)]
        command += ["--log-level", "warning", "--lifespan", "off"]
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", **self.environment}
        self.guard = Guard()  # a test run that is killed takes it along
        self.process = subprocess.Popen(
            command, env=environment, start_new_session=True, preexec_fn=self.guard.announcer()
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"{self.origin}/healthz", timeout=1):
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError("the web process did not come up") from None
                time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.guard is not None:
                self.guard.ended(self.process.pid)
                self.guard.dismiss()
            self.process = None


def cookie_of(user: User) -> str:
    """A fresh log-in's session cookie, as a header value."""
    browser = Browser()
    browser.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return f"sessionid={browser.cookies['sessionid'].value}"


class Socket:
    """What a page hears."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def events(
        self, enough: Callable[[list[dict[str, Any]]], bool], timeout: float = 10.0
    ) -> list[dict[str, Any]]:
        """Events until `enough(them)`."""
        heard: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout
        while not enough(heard):
            left = deadline - time.monotonic()
            assert left > 0, f"heard only {[event['kind'] for event in heard]}"
            try:
                heard.append(json.loads(self.connection.recv(timeout=left)))
            except TimeoutError:
                continue
        return heard

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        try:
            self.connection.recv(timeout=seconds)
        except TimeoutError:
            return True
        return False

    def closed_with(self, timeout: float = 10.0) -> int:
        """The code of the close that the server sends; what comes before is let pass."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                self.connection.recv(timeout=max(deadline - time.monotonic(), 0.001))
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006


@contextmanager
def socket(
    web: Web,
    slug: str,
    *,
    after: int | str = 0,
    cookie: str = "",
    token: str = "",
    origin: str | None = "own",
    query: str = "",
    receive_buffer_bytes: int = 1 << 17,
) -> Iterator[Socket]:
    """A socket as a page opens it (`cookie`), or as a script does (`token`, without an origin)."""
    headers = {}
    if cookie:
        headers["Cookie"] = cookie
    if token:
        headers["Authorization"] = f"Bearer {token}"
    own = web.origin if origin == "own" else origin
    address = f"ws://127.0.0.1:{web.port}/ws/projects/{slug}/events/?after={after}{query}"
    wire = sockets.socket(sockets.AF_INET, sockets.SOCK_STREAM)
    wire.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, receive_buffer_bytes)
    wire.connect(("127.0.0.1", web.port))
    with connect(
        address,
        sock=wire,
        origin=None if token and origin == "own" else own,  # type: ignore[arg-type]
        additional_headers=headers,
        open_timeout=10,
        close_timeout=2,
    ) as connection:
        yield Socket(connection)
