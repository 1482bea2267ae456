"""Large models over plain HTTP, on the port that a combiner names: a fraction of what gRPC costs on both sides.

The requests are described in studio_v1.proto. What goes wrong here is raised as gRPC would, so that transfers wait,
resume and give up in one way; a lane that cannot be reached at all raises LaneClosed, and gRPC takes its place.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from .. import studio_v1_pb2 as pb
from .tls import trusting

CONNECT_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 120.0
UNANSWERED = 2
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
    """No combiner answers there, or none whose certificate is trusted."""


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
        """`target`: host:port. Raises ssl.SSLError."""
        host, _, port = target.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._tls = trusting(ca_pem) if tls else None
        self._unanswered = 0  # transfers in a row that broke before an answer began

    def download(self, request: pb.DownloadRequest, cancelling: Cancelling) -> Iterator[memoryview]:
        """The model's bytes from `request.offset` on, each view valid until the next. Raises LaneClosed, before the
        first, and LaneError."""
        headers = self._headers | ({"Range": f"bytes={request.offset}-"} if request.offset else {})
        connection = self._connect(cancelling)
        with closing(connection):
            with self._answering():
                path = f"/studio.v1/model/{request.assignment_id}/{request.model_id}"
                connection.request("GET", path, headers=headers)
                answer = self._answer(connection, "application/vnd.studio.model")
            buffer = memoryview(bytearray(BLOCK_BYTES))
            left = answer.length or 0
            while left:
                with _breaking():
                    count = answer.readinto(buffer[: min(left, BLOCK_BYTES)])
                if not count:
                    raise _broken("it ended early")
                left -= count
                yield buffer[:count]

    def upload(self, start: pb.UploadStart, file: Path, cancelling: Cancelling) -> pb.Receipt:
        """Send the file from `start.head.offset` on. Raises LaneClosed, LaneError."""
        said = start.SerializeToString()
        size, offset = start.head.size, start.head.offset
        with file.open("rb") as source, closing(self._connect(cancelling)) as connection, self._answering():
            connection.putrequest("PUT", "/studio.v1/update", skip_accept_encoding=True)
            for name, value in self._headers.items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", str(4 + len(said) + size - offset))
            connection.endheaders(len(said).to_bytes(4) + said)
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered all the same
                if size > offset:  # in the kernel from file to socket, where there is no TLS between
                    connection.sock.sendfile(source, offset, size - offset)
            answer = self._answer(connection, "application/vnd.studio.receipt")
            announced = answer.length
            body = answer.read(MOST_ANSWER_BYTES)
            try:
                receipt = pb.Receipt.FromString(body)
            except DecodeError:
                raise LaneClosed("what it answered is no receipt") from None
            if len(body) != announced or not receipt.status:
                raise _broken("the receipt did not arrive whole")
            return receipt

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Breaking here is not taken for the network's fault twice: a port that only accepts is nobody's."""
        try:
            with _breaking():
                yield
        except LaneError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            self._unanswered += 1
            if self._unanswered >= UNANSWERED:
                raise LaneClosed(error.details()) from None
            raise

    def _answer(self, connection: http.client.HTTPConnection, kind: str) -> http.client.HTTPResponse:
        answer = connection.getresponse()
        if answer.status in (200, 206) and answer.headers.get_content_type() == kind:
            self._unanswered = 0
            return answer
        try:
            details = str(json.loads(answer.read(MOST_ANSWER_BYTES))["detail"])
        except (ValueError, KeyError, TypeError):
            raise LaneClosed(f"it answered with status {answer.status}, and not as a combiner does") from None
        raise LaneError(_CODES.get(answer.status, grpc.StatusCode.UNAVAILABLE), details)

    def _connect(self, cancelling: Cancelling) -> http.client.HTTPConnection:
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_TIMEOUT_S, context=self._tls
            )
        try:
            connection.connect()
        except (OSError, ValueError, OverflowError) as error:  # the last two: no host, or port, at all
            connection.close()
            raise LaneClosed(str(error)) from None
        sock = connection.sock
        sock.settimeout(IDLE_TIMEOUT_S)

        def cut() -> None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS's own would let plain text out meanwhile

        cancelling(cut)
        return connection


@contextmanager
def _breaking() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _broken(str(error) or type(error).__name__) from None


def _broken(how: str) -> LaneError:
    return LaneError(grpc.StatusCode.UNAVAILABLE, f"the connection broke ({how})")
