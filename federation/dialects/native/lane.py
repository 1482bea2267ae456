"""The lane: models up and down as plain bytes over HTTP/1.1, on a port of its own beside gRPC's.

The same two calls as `Upload` and `Download`, with the same rules behind them. gRPC copies what it carries several
times and takes most of a core for each GB; here a model goes from the file to the socket in the kernel, and an update
from the socket into the buffer that is written and hashed. A client that cannot reach the lane uses gRPC. The requests
are described in studio_v1.proto. One request a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
from collections.abc import Sequence
from io import FileIO
from typing import Any

import h11
import structlog
from google.protobuf.message import DecodeError

from federation.combiner.connection import Identity
from federation.combiner.core import CombinerCore
from federation.combiner.intake import MAX_METADATA_BYTES, Receipt
from federation.combiner.server import Listeners
from federation.combiner.threads import in_files, in_rows
from federation.combiner.upload import Piece, Superseded
from federation.combiner.upload import Upload as Incoming
from federation.dialects.native import studio_v1_pb2 as wire
from federation.dialects.native.receiving import BUFFERS, Receiving, within
from federation.dialects.native.servicer import parse_id, receipt
from federation.sessions.assignments import ModelGrant
from foundation import storage
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

MOST_CONNECTIONS = 512  # further ones are cut at once, and their clients use gRPC
HEAD_BYTES = 16 << 10
HEAD_S = 15.0  # for TLS to begin, for the request's head, and for the beginning of an upload
SENT_AT_ONCE = 4 << 20
ENCRYPTED_AT_ONCE = 256 << 10
LARGEST_BUFFER = 512 << 10
LEAST_BUFFER = 64 << 10
BUFFERED_BYTES = 24 << 20  # of all uploads together, as far as the least buffers allow
MOST_START_BYTES = MAX_METADATA_BYTES + (16 << 10)
REFUSED_S = 5.0  # what comes behind a refusal is read for so long, so that the client gets to read it
CLOSED_S = 30.0  # for the last bytes to go out

ELSEWHERE = b"studio-elsewhere"  # the client can follow to a bucket
MODEL, RECEIPT = "application/vnd.studio.model", "application/vnd.studio.receipt"

_MODEL = re.compile(r"/studio\.v1/model/([0-9a-fA-F-]{32,36})/([0-9a-fA-F-]{32,36})")
_RANGE = re.compile(r"bytes=(\d{1,15})-")


def tls_context(listeners: Listeners) -> ssl.SSLContext:
    """Of the TLS listener's certificate. Raises StudioError `tls_files`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert listeners.tls_cert is not None
    try:
        context.load_cert_chain(listeners.tls_cert, listeners.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise StudioError("tls_files", f"The TLS certificate or key cannot be read: {error}.") from None
    return context


class Lane:
    """The listener, and the connections on it."""

    def __init__(self, core: CombinerCore) -> None:
        self.core = core
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Take a port, picked where 0 was given, and answer it; nobody is served before `serve`. Raises StudioError
        `port_taken`."""
        waits: dict[str, Any] = (
            {"ssl_handshake_timeout": HEAD_S, "ssl_shutdown_timeout": CLOSED_S} if tls else {}
        )
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self), host, port, ssl=tls, backlog=512, start_serving=False, **waits
            )
        except (OSError, OverflowError) as error:
            raise StudioError(
                "port_taken",
                f"Port {port} of {host} cannot be listened on for the lane ({error}); is it taken?",
            ) from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def serve(self) -> None:
        """Once the combiner has begun."""
        if self._server is not None:
            await self._server.start_serving()

    @property
    def buffer_bytes(self) -> int:
        """For a new upload, by how many there are."""
        uploads = 1 + sum(1 for connection in self.connections if connection.uploads)
        return max(LEAST_BUFFER, min(LARGEST_BUFFER, BUFFERED_BYTES // (BUFFERS * uploads)))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.cut()


class Connection(Receiving):
    """One request."""

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self.lane, self.core = lane, lane.core
        self.uploads = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._unread = False  # something of the body was left in the socket
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.lane.connections) >= MOST_CONNECTIONS:
            transport.abort()
            return
        self.lane.connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lane.connections.discard(self)

    def cut(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.transport.abort()

    # --- one request ------------------------------------------------------------------------------------------
    async def _serve(self) -> None:
        try:
            try:
                async with asyncio.timeout(HEAD_S):
                    request = await self._request()
                if request is not None:
                    await self._answered(request)
            except StudioError as error:
                self._refuse(error)
            except Superseded:
                self._refuse(StudioError("superseded", "A newer upload of the same update took over.", 409))
            except TimeoutError:
                self._refuse(StudioError("idle", "Nothing arrived for too long; resume the transfer.", 408))
            if self._unread:  # closing now would reset the connection, and the answer with it
                self.drop()
                await within(REFUSED_S, self.over)
        except (OSError, asyncio.CancelledError):
            self.transport.abort()
        except Exception:  # the client comes back
            log.exception("lane.failed")
            self.transport.abort()
        self.transport.close()
        await within(CLOSED_S, self.closed)
        self.transport.abort()  # TLS may have missed that the client left

    async def _request(self) -> h11.Request | None:
        """None: it connected, and went."""
        while True:
            if self.early:
                self._http.receive_data(bytes(self.early))
                self.early.clear()
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise StudioError(
                    "bad_request", f"This is no request that the lane reads: {error}."
                ) from None
            if isinstance(event, h11.Request):
                self.early += self._http.trailing_data[0]
                return event
            if event is not h11.NEED_DATA or self.gone:
                return None
            with contextlib.suppress(StudioError):
                await self.more()

    async def _answered(self, request: h11.Request) -> None:
        headers = dict(request.headers)
        who = await self._who(headers)
        target = request.target.decode("ascii", "replace")
        if request.method == b"GET" and (found := _MODEL.fullmatch(target)):
            await self._download(who, found[1], found[2], headers)
        elif request.method == b"PUT" and target == "/studio.v1/update":
            body = receipt(await self._upload(who, headers)).SerializeToString()
            self._head(200, RECEIPT, len(body))
            self.transport.write(body)
        else:
            raise StudioError("not_found", "The lane has no such address.", 404)

    async def _who(self, headers: dict[bytes, bytes]) -> Identity:
        scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise StudioError("no_token", "Send the client's token as `Authorization: Bearer …`.", 401)
        peer = self.transport.get_extra_info("peername") or ("",)
        return await self.core.identify(secret.strip(), str(peer[0]))

    # --- models down ------------------------------------------------------------------------------------------
    async def _download(
        self, who: Identity, assignment: str, model: str, headers: dict[bytes, bytes]
    ) -> None:
        asked = _RANGE.fullmatch(headers.get(b"range", b"bytes=0-").decode("latin-1"))
        if asked is None:
            raise StudioError("bad_range", "A range is bytes=N-.", 416)
        grant = await self.core.named_model(
            who, parse_id(assignment, "assignment_id"), parse_id(model, "model_id")
        )
        if ELSEWHERE in headers and storage.signs() and (url := await self._signed(grant)):
            return self._head(307, MODEL, 0, [("location", url)])
        file = await self.core.downloads.open(grant)
        with open(file, "rb", buffering=0) as source:
            size, at = os.fstat(source.fileno()).st_size, int(asked[1])
            if at > size:
                raise StudioError("bad_offset", f"The model has {size} bytes.", 416)
            self._head(206 if at else 200, MODEL, size - at)
            self.drop()  # nothing more is expected, but that it leaves
            send = self._send_encrypted if self.encrypted else self._send
            while at < size and not (self.lost or self.transport.is_closing()):
                sent = await send(source, at, size - at)
                if not sent:
                    break
                at += sent
                self.core.traffic.sent_bytes += sent

    async def _signed(self, grant: ModelGrant) -> str:
        """Empty: that does not work now, and the model goes from here."""
        try:
            return await in_rows(storage.signed_url, grant.model_key)
        except Exception as error:  # such as credentials that nobody gives
            log.warning("lane.cannot_sign", error=str(error)[:200])
            return ""

    async def _send(self, source: FileIO, at: int, most: int) -> int:
        """In the kernel, from file to socket."""
        loop = asyncio.get_running_loop()
        return await self.in_time(loop.sendfile(self.transport, source, at, min(SENT_AT_ONCE, most)))

    async def _send_encrypted(self, source: FileIO, at: int, most: int) -> int:
        """asyncio's own would not see that the client left, and go on to the end of the file."""
        data = await in_files(os.pread, source.fileno(), min(ENCRYPTED_AT_ONCE, most), at)
        self.transport.write(data)
        await self.written()
        return len(data)

    # --- models up --------------------------------------------------------------------------------------------
    async def _upload(self, who: Identity, headers: dict[bytes, bytes]) -> Receipt:
        self._unread = True
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            raise StudioError("no_length", "An upload says its Content-Length.", 411)
        async with asyncio.timeout(HEAD_S):
            start, size = await self._start(int(length))
        return await self._fill(who, start, int(length) - size)

    async def _start(self, body_bytes: int) -> tuple[wire.UploadStart, int]:
        """The message before the update, and how many bytes of the body it took; what came behind stays in `_early`."""
        while len(self.early) < min(4, body_bytes):
            await self.more()
        size = 4 + int.from_bytes(self.early[:4])
        if size > min(MOST_START_BYTES, body_bytes):  # also when the body has no four bytes
            raise StudioError("bad_start", "The body of an upload begins with its UploadStart.")
        while len(self.early) < size:
            await self.more()
        try:
            start = wire.UploadStart.FromString(bytes(self.early[4:size]))
        except DecodeError:
            raise StudioError("bad_start", "What an upload begins with is no UploadStart.") from None
        del self.early[:size]
        return start, size

    async def _fill(self, who: Identity, start: wire.UploadStart, rest: int) -> Receipt:
        head, tail, intake = start.head, start.tail, self.core.intake
        assignment_id = parse_id(head.assignment_id, "assignment_id")
        if head.offset + rest != head.size or len(self.early) > rest:
            raise StudioError(
                "bad_length",
                f"{rest} bytes follow, not {head.size - head.offset} from the offset to the size.",
            )
        upload = await intake.begin(
            who, assignment_id, head.upload_id[:200], head.size, head.offset, head.form[:20]
        )
        if isinstance(upload, Receipt):
            self.core.hub.done(who.client_id, assignment_id)
            return upload
        self.uploads = True
        try:
            await self._receive(upload, rest)
            self._unread = False
            answer = await intake.finish(who, upload, tail.sha256, tail.num_examples, tail.metadata_json)
        finally:
            intake.release(upload)
        self.core.hub.done(who.client_id, assignment_id)
        return answer

    async def _receive(self, upload: Incoming, rest: int) -> None:
        """The update's bytes. A buffer is free again once the next one was handed over, for that waits until the one
        before is written."""
        try:
            if self.early:
                rest -= len(self.early)
                await self._hand_over(upload, bytes(self.early))
                self.early.clear()
            self.make_room(rest, self.lane.buffer_bytes)
            before: memoryview | None = None
            while rest:
                came = await self.buffer()
                rest -= len(came)
                await self._hand_over(upload, came)
                if before is not None:
                    self.free(before)
                before = came
        except BaseException:
            with contextlib.suppress(StudioError, Superseded):  # the next call goes on behind what came
                if left := self.part():
                    await self._hand_over(upload, left)
                await self.core.intake.settle(upload)
            raise

    async def _hand_over(self, upload: Incoming, data: Piece) -> None:
        self.core.traffic.received_bytes += len(data)
        await self.core.intake.hand_over(upload, data)

    # --- answers ----------------------------------------------------------------------------------------------
    def _head(self, status: int, kind: str, length: int, more: Sequence[tuple[str, str]] = ()) -> None:
        headers = [("content-type", kind), ("content-length", str(length)), ("connection", "close"), *more]
        self.transport.write(self._http.send(h11.Response(status_code=status, headers=headers)))

    def _refuse(self, error: StudioError) -> None:
        if self.transport.is_closing() or self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        self._unread = True  # perhaps
        body = json.dumps(error.as_problem()).encode()
        self._head(error.status, "application/problem+json", len(body))
        self.transport.write(body)
