"""Large models over plain HTTP, on the port that a combiner names: a fraction of what gRPC costs on both sides.

The requests are described in studio_v1.proto. What goes wrong here is raised as gRPC would, so that transfers wait,
resume and give up in one way; a lane that cannot be reached at all raises LaneClosed, and gRPC takes its place.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from .. import studio_v1_pb2 as pb

CONNECT_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 120.0
MOST_ANSWER_BYTES = 1 << 20
BLOCK_BYTES = 1 << 20

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    416: grpc.StatusCode.OUT_OF_RANGE,
}
Cancelling = Callable[[Callable[[], None]], None]


class LaneClosed(Exception):
    """Nobody answers there, or nobody whose certificate is trusted."""


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


class Lane:
    """Where one combiner takes and gives models; each transfer is a connection of its own."""

    def __init__(self, target: str, token: str, tls: bool, ca_pem: str | None) -> None:
        """`target`: host:port."""
        host, _, port = target.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.create_default_context(cadata=ca_pem) if ca_pem else ssl.create_default_context()

    def download(
        self, request: pb.DownloadRequest, take: Callable[[memoryview], None], cancelling: Cancelling
    ) -> None:
        """Call `take` with a view of the model's bytes from `request.offset` on, valid during the call. Raises
        LaneClosed, LaneError."""
        headers = self._headers | ({"Range": f"bytes={request.offset}-"} if request.offset else {})
        connection = self._connect(cancelling)
        try:
            connection.request(
                "GET", f"/studio.v1/model/{request.assignment_id}/{request.model_id}", headers=headers
            )
            answer = _answer(connection)
            buffer = memoryview(bytearray(BLOCK_BYTES))
            left = answer.length or 0
            while left:
                count = answer.readinto(buffer[: min(left, BLOCK_BYTES)])
                if not count:
                    raise LaneError(grpc.StatusCode.UNAVAILABLE, "the model broke off")
                left -= count
                take(buffer[:count])
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error) from None
        finally:
            connection.close()

    def upload(self, start: pb.UploadStart, file: Path, cancelling: Cancelling) -> pb.Receipt:
        """Send the file from `start.head.offset` on. Raises LaneClosed, LaneError."""
        said = start.SerializeToString()
        size, offset = start.head.size, start.head.offset
        connection = self._connect(cancelling)
        try:
            connection.putrequest("PUT", "/studio.v1/update", skip_accept_encoding=True)
            for name, value in self._headers.items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", str(4 + len(said) + size - offset))
            connection.endheaders(len(said).to_bytes(4) + said)
            with suppress(BrokenPipeError, ConnectionResetError), file.open("rb") as source:
                if size > offset:
                    # in the kernel from file to socket, where there is no TLS between
                    connection.sock.sendfile(source, offset, size - offset)
            answer = _answer(connection)
            return pb.Receipt.FromString(answer.read(MOST_ANSWER_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error) from None
        finally:
            connection.close()

    def _connect(self, cancelling: Cancelling) -> http.client.HTTPConnection:
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_TIMEOUT_S, context=self._tls
            )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise LaneClosed(str(error)) from None
        sock: Any = connection.sock
        sock.settimeout(IDLE_TIMEOUT_S)

        def cut() -> None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        cancelling(cut)
        return connection


def _answer(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    answer = connection.getresponse()
    if answer.status in (200, 206):
        return answer
    body = answer.read(MOST_ANSWER_BYTES)
    try:
        details = str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        raise LaneClosed(f"it answered with status {answer.status}, and not as a combiner does") from None
    raise LaneError(_CODES.get(answer.status, grpc.StatusCode.UNAVAILABLE), details)


def _broken(error: Exception) -> LaneError:
    return LaneError(grpc.StatusCode.UNAVAILABLE, f"the connection broke ({error or type(error).__name__})")
