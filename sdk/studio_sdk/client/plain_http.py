"""Models over HTTP/1.1: connections that can be cut, and bodies in blocks. What goes wrong is raised as gRPC would."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import grpc

CONNECT_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 120.0
BLOCK_BYTES = 1 << 20

Cancelling = Callable[[Callable[[], None]], None]


class LaneError(grpc.RpcError):
    """A transfer that was refused or broke off."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        """As of a call of gRPC."""
        return self._code

    def details(self) -> str:
        """As of a call of gRPC."""
        return self._details


def connected(
    host: str, port: int, tls: ssl.SSLContext | None, cancelling: Cancelling
) -> http.client.HTTPConnection:
    """A connection that `cancelling` is told how to cut. Raises OSError; ValueError, OverflowError for what is no host
    or port at all."""
    if tls is None:
        connection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=tls)
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    sock = connection.sock
    sock.settimeout(IDLE_TIMEOUT_S)
    cancelling(partial(cut, sock))
    return connection


def cut(sock: socket.socket) -> None:
    """Whoever reads from it, or writes, fails."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS's own would let plain text out meanwhile


def blocks(answer: http.client.HTTPResponse) -> Iterator[memoryview]:
    """The body, each view valid until the next. Raises LaneError."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    left = answer.length or 0
    while left:
        with breaking():
            count = answer.readinto(buffer[: min(left, BLOCK_BYTES)])
        if not count:
            raise broken("it ended early")
        left -= count
        yield buffer[:count]


@contextmanager
def breaking() -> Iterator[None]:
    """What breaks here is tried again."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise broken(str(error) or type(error).__name__) from None


def broken(how: str) -> LaneError:
    """An error after which the transfer is resumed."""
    return LaneError(grpc.StatusCode.UNAVAILABLE, f"the connection broke ({how})")
