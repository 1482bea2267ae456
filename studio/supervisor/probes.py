"""How `up` learns that a child answers: one bounded question each, from the outside, as its users would ask."""

from __future__ import annotations

import http.client
import socket
import ssl
from pathlib import Path

from celery import Celery


def web_is_ready(host: str, port: int, tls: bool, name: str) -> bool:
    """Whether `/readyz` says 200 within two seconds to a request for the host `name`."""
    connection: http.client.HTTPConnection
    if tls:
        # it is our own child on our own socket; whose name the certificate bears does not matter here
        context = ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection(host, port, timeout=2, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz", headers={"Host": name})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def accepts(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


class WorkerPing:
    """Asks one Celery worker, by name, through the broker."""

    def __init__(self, broker_url: str, key_prefix: str, name: str) -> None:
        self._app = Celery("studio-up", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            broker_transport_options={
                "global_keyprefix": key_prefix,
                "socket_timeout": 2,
                "socket_connect_timeout": 1,
                "max_retries": 1,
            },
            broker_connection_retry=False,
            broker_connection_timeout=1,
        )
        self._name = name

    def __call__(self) -> bool:
        """Whether it answered within half a second."""
        try:
            return bool(self._app.control.ping(destination=[self._name], timeout=0.5))
        except Exception:  # whatever the broker's client raises, the answer is "not yet"
            return False

    def close(self) -> None:
        """Drop the connections to the broker."""
        self._app.close()


def exists_any(folder: Path, pattern: str) -> bool:
    """Whether a file of that name is there (the schedule that beat writes once it runs)."""
    return any(folder.glob(pattern))
