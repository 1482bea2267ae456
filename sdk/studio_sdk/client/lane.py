"""Large models over plain HTTP, on the port that a combiner names: a fraction of what gRPC costs on both sides.

The requests are described in studio_v1.proto. What goes wrong here is raised as gRPC would, so that transfers wait,
resume and give up in one way; a lane that cannot be reached at all raises LaneClosed, and gRPC takes its place.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from .. import studio_v1_pb2 as pb
from . import elsewhere
from .plain_http import Cancelling, LaneError, blocks, breaking, broken, connected
from .tls import trusting

UNANSWERED = 2
LEAST_BYTES = 1 << 20  # a try that brought less from elsewhere is the last
TEMPORARY_REDIRECT = 307
MOST_ANSWER_BYTES = 1 << 20

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    416: grpc.StatusCode.OUT_OF_RANGE,
}


class LaneClosed(Exception):
    """No combiner answers there, or none whose certificate is trusted."""


class Lane:
    """Where one combiner takes and gives models; each transfer is a connection of its own."""

    def __init__(self, target: str, token: str, tls: bool, ca_pem: str | None) -> None:
        """`target`: host:port. Raises ssl.SSLError."""
        host, _, port = target.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._tls, self._ca_pem = trusting(ca_pem) if tls else None, ca_pem
        self.elsewhere = True  # a model may come from where the combiner says
        self._unanswered = 0  # transfers in a row that broke before an answer began

    def download(
        self, request: pb.DownloadRequest, size: int, cancelling: Cancelling
    ) -> Iterator[memoryview]:
        """The bytes of a model of `size` from `request.offset` on, each view valid until the next. Raises LaneClosed
        and ElsewhereClosed, before the first, and LaneError."""
        headers = self._headers | ({"Range": f"bytes={request.offset}-"} if request.offset else {})
        if self.elsewhere:
            headers |= {"Studio-Elsewhere": "1"}
        with closing(self._connect(cancelling)) as connection:
            with self._answering():
                path = f"/studio.v1/model/{request.assignment_id}/{request.model_id}"
                connection.request("GET", path, headers=headers)
                answer = self._answer(connection, "application/vnd.studio.model", elsewhere=self.elsewhere)
            with closing(answer):  # it has the socket now
                if answer.status != TEMPORARY_REDIRECT:
                    yield from blocks(answer)
                    return
        url, came = answer.headers.get("Location", ""), 0
        try:
            for block in elsewhere.download(
                url, request.offset, size - request.offset,
                only_tls=self._tls is not None, ca_pem=self._ca_pem, cancelling=cancelling,
            ):  # fmt: skip
                came += len(block)
                yield block
        except LaneError:
            if came < LEAST_BYTES:  # something on the way lets no model through
                self.elsewhere = False
            raise

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
                raise broken("the receipt did not arrive whole")
            return receipt

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Breaking here is not taken for the network's fault twice: a port that only accepts is nobody's."""
        try:
            with breaking():
                yield
        except LaneError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            self._unanswered += 1
            if self._unanswered >= UNANSWERED:
                raise LaneClosed(error.details()) from None
            raise

    def _answer(
        self, connection: http.client.HTTPConnection, kind: str, *, elsewhere: bool = False
    ) -> http.client.HTTPResponse:
        answer = connection.getresponse()
        wanted = (200, 206, TEMPORARY_REDIRECT) if elsewhere else (200, 206)
        if answer.status in wanted and answer.headers.get_content_type() == kind:
            self._unanswered = 0
            return answer
        try:
            details = str(json.loads(answer.read(MOST_ANSWER_BYTES))["detail"])
        except (ValueError, KeyError, TypeError):
            raise LaneClosed(f"it answered with status {answer.status}, and not as a combiner does") from None
        raise LaneError(_CODES.get(answer.status, grpc.StatusCode.UNAVAILABLE), details)

    def _connect(self, cancelling: Cancelling) -> http.client.HTTPConnection:
        try:
            return connected(self._host, self._port, self._tls, cancelling)
        except (OSError, ValueError, OverflowError) as error:
            raise LaneClosed(str(error)) from None
