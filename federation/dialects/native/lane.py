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
import socket
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Any

import h11
import structlog
from google.protobuf.message import DecodeError

from federation.combiner.connection import Identity
from federation.combiner.core import CombinerCore
from federation.combiner.intake import MAX_METADATA_BYTES, Receipt
from federation.combiner.server import Listeners
from federation.combiner.upload import Superseded
from federation.combiner.upload import Upload as Incoming
from federation.dialects.native import studio_v1_pb2 as wire
from federation.dialects.native.servicer import parse_id, receipt
from foundation.errors import StudioError

log = structlog.get_logger(__name__)

MOST_CONNECTIONS = 512  # further ones are cut at once: their clients use gRPC
HEAD_BYTES = 16 << 10
SMALL_BYTES = 16 << 10
HEAD_S = 15.0  # for the request's head, and the beginning of an upload
IDLE_S = 120.0  # a transfer that stands still for so long ends; the client resumes it
SENT_AT_ONCE = 4 << 20
BUFFERS = 2  # one is written and hashed while the other fills
LARGEST_BUFFER = 512 << 10
LEAST_BUFFER = 64 << 10
BUFFERED_BYTES = 24 << 20  # of all uploads together, as far as the least buffers allow
MOST_START_BYTES = MAX_METADATA_BYTES + (16 << 10)
DRAINED_BYTES = 64 << 20  # read and dropped behind a refusal, so that the client gets to read it
DRAINED_S = 5.0

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
        """The port, picked where 0 was given. Raises StudioError `port_taken`."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self), host, port, ssl=tls, backlog=512
            )
        except (OSError, OverflowError) as error:
            raise StudioError(
                "port_taken",
                f"Port {port} of {host} cannot be listened on for the lane ({error}); is it taken?",
            ) from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    @property
    def buffer_bytes(self) -> int:
        """For a new upload, by how many there are."""
        uploads = 1 + sum(1 for connection in self.connections if connection.receiving)
        return max(LEAST_BUFFER, min(LARGEST_BUFFER, BUFFERED_BYTES // (BUFFERS * uploads)))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.cut()


class Connection(asyncio.BufferedProtocol):
    """One request. A few bytes at a time gather in `_early`; those of an update come into its buffers, and nothing is
    read while there is none free."""

    def __init__(self, lane: Lane) -> None:
        self.lane, self.core = lane, lane.core
        self.receiving = False  # an update: into buffers
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._early = bytearray()
        self._small = memoryview(bytearray(SMALL_BYTES))
        self._room: memoryview | None = None  # of the buffer that fills
        self._filled = 0
        self._wanted = 0  # bytes of the update that have no room yet
        self._free: deque[memoryview] = deque()
        self._full: deque[memoryview] = deque()
        self._news = asyncio.Event()
        self._gone = False
        self._unread = False  # something of the body was left in the socket
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None

    # --- the socket -------------------------------------------------------------------------------------------
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if len(self.lane.connections) >= MOST_CONNECTIONS:
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # not every platform has all of them
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
        self.lane.connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._news.set()

    def eof_received(self) -> bool:
        self._gone = True
        self._news.set()
        return self._transport.get_extra_info("sslcontext") is None  # half closed: the answer still goes out

    def cut(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._small if self._room is None else self._room[self._filled :]

    def buffer_updated(self, count: int) -> None:
        if self._room is None:
            self._early += self._small[:count]
            self._transport.pause_reading()
            self._news.set()
            return
        self._filled += count
        if self._filled == len(self._room):
            self._full.append(self._room)
            self._room = None
            self._make_room()
            self._news.set()

    def _make_room(self) -> None:
        """The next free buffer, for what is still to come; without one reading rests."""
        if self._room is not None:
            return
        if self._free and self._wanted:
            self._room, self._filled = self._free.popleft()[: self._wanted], 0
            self._wanted -= len(self._room)
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    async def _more(self) -> None:
        """Some more in `_early`. Raises StudioError `incomplete` when no more will come."""
        before = len(self._early)
        self._transport.resume_reading()
        while len(self._early) == before:
            await self._told()

    async def _buffer(self) -> memoryview:
        """A buffer that is full, or the last. Raises StudioError `incomplete` when no more will come."""
        while not self._full:
            if self._gone and self._room is not None and self._filled:
                left, self._room = self._room[: self._filled], None
                return left
            await self._told()
        return self._full.popleft()

    async def _told(self) -> None:
        if self._gone:
            raise StudioError("incomplete", "The upload ended before its end; resume it.", 409)
        self._news.clear()
        await self._news.wait()

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
            if self._unread:
                await self._drain()
        except (OSError, asyncio.CancelledError):
            self._transport.abort()
        except Exception:  # the client comes back, by gRPC if need be
            log.exception("lane.failed")
            self._transport.abort()
        finally:
            self.lane.connections.discard(self)
            self._transport.close()

    async def _request(self) -> h11.Request | None:
        """None: it connected, and went."""
        while True:
            if self._early:
                self._http.receive_data(bytes(self._early))
                self._early.clear()
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise StudioError(
                    "bad_request", f"This is no request that the lane reads: {error}."
                ) from None
            if isinstance(event, h11.Request):
                self._early += self._http.trailing_data[0]
                return event
            if event is not h11.NEED_DATA or self._gone:
                return None
            with contextlib.suppress(StudioError):
                await self._more()

    async def _answered(self, request: h11.Request) -> None:
        headers = dict(request.headers)
        who = await self._who(headers)
        target = request.target.decode("ascii", "replace")
        if request.method == b"GET" and (found := _MODEL.fullmatch(target)):
            await self._download(who, found[1], found[2], headers)
        elif request.method == b"PUT" and target == "/studio.v1/update":
            self._respond(receipt(await self._upload(who, headers)).SerializeToString())
        else:
            raise StudioError("not_found", "The lane has no such address.", 404)

    async def _who(self, headers: dict[bytes, bytes]) -> Identity:
        scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise StudioError("no_token", "Send the client's token as `Authorization: Bearer …`.", 401)
        peer = self._transport.get_extra_info("peername") or ("",)
        return await self.core.identify(secret.strip(), str(peer[0]))

    # --- models down ------------------------------------------------------------------------------------------
    async def _download(
        self, who: Identity, assignment: str, model: str, headers: dict[bytes, bytes]
    ) -> None:
        asked = _RANGE.fullmatch(headers.get(b"range", b"bytes=0-").decode("latin-1"))
        if asked is None:
            raise StudioError("bad_range", "A range is bytes=N-.", 416)
        file, grant = await self.core.grant_download(
            who, parse_id(assignment, "assignment_id"), parse_id(model, "model_id")
        )
        with open(file, "rb", buffering=0) as source:
            size, at = os.fstat(source.fileno()).st_size, int(asked[1])
            if at > size:
                raise StudioError("bad_offset", f"The model has {size} bytes.", 416)
            self._head(
                206 if at else 200,
                [("content-length", str(size - at)), ("studio-sha256", grant.model_sha256)],
            )
            loop = asyncio.get_running_loop()
            while at < size:
                async with asyncio.timeout(IDLE_S):
                    sent = await loop.sendfile(self._transport, source, at, min(SENT_AT_ONCE, size - at))
                if not sent:
                    break
                at += sent
                self.core.traffic.sent_bytes += sent

    # --- models up --------------------------------------------------------------------------------------------
    async def _upload(self, who: Identity, headers: dict[bytes, bytes]) -> Receipt:
        self._unread = True
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            raise StudioError("no_length", "An upload says its Content-Length.", 411)
        if self._http.they_are_waiting_for_100_continue:
            self._transport.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        async with asyncio.timeout(HEAD_S):
            start, size = await self._start(int(length))
        return await self._fill(who, start, int(length) - size)

    async def _start(self, body_bytes: int) -> tuple[wire.UploadStart, int]:
        """The message before the update, and how many bytes of the body it took; what came behind stays in `_early`."""
        while len(self._early) < min(4, body_bytes):
            await self._more()
        size = 4 + int.from_bytes(self._early[:4])
        if size > min(MOST_START_BYTES, body_bytes):  # also when the body has no four bytes
            raise StudioError("bad_start", "The body of an upload begins with its UploadStart.")
        while len(self._early) < size:
            await self._more()
        try:
            start = wire.UploadStart.FromString(bytes(self._early[4:size]))
        except DecodeError:
            raise StudioError("bad_start", "What an upload begins with is no UploadStart.") from None
        del self._early[:size]
        return start, size

    async def _fill(self, who: Identity, start: wire.UploadStart, rest: int) -> Receipt:
        head, tail, intake = start.head, start.tail, self.core.intake
        assignment_id = parse_id(head.assignment_id, "assignment_id")
        if head.offset + rest != head.size or len(self._early) > rest:
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
        try:
            await self._receive(upload, rest)
            self._unread = False
            answer = await intake.finish(who, upload, tail.sha256, tail.num_examples, tail.metadata_json)
        finally:
            intake.release(upload)
        self.core.hub.done(who.client_id, assignment_id)
        return answer

    async def _receive(self, upload: Incoming, rest: int) -> None:
        """The update's bytes, in two buffers by turns. A buffer is free again once the next one was handed over, for
        that waits until the one before is written."""
        intake, traffic = self.core.intake, self.core.traffic
        if self._early:
            traffic.received_bytes += len(self._early)
            rest -= len(self._early)
            await intake.hand_over(upload, bytes(self._early))
        if not rest:
            return
        self.receiving = True
        buffers = [memoryview(bytearray(min(self.lane.buffer_bytes, rest))) for _ in range(BUFFERS)]
        self._free.extend(buffers)
        self._wanted = rest
        self._make_room()
        written: memoryview | None = None
        try:
            while rest:
                async with asyncio.timeout(IDLE_S):
                    came = await self._buffer()
                rest -= len(came)
                traffic.received_bytes += len(came)
                await intake.hand_over(upload, came)
                if written is not None:
                    self._free.append(written)
                    self._make_room()
                written = next(buffer for buffer in buffers if buffer.obj is came.obj)
        except BaseException:
            with contextlib.suppress(StudioError, Superseded):
                await intake.settle(upload)  # what came is there for the next call to go on behind
            raise
        finally:
            self.receiving = False

    # --- answers ----------------------------------------------------------------------------------------------
    def _head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        response = h11.Response(status_code=status, headers=[*headers, ("connection", "close")])
        self._transport.write(self._http.send(response))

    def _respond(self, body: bytes, status: int = 200, kind: str = "application/x-protobuf") -> None:
        self._head(status, [("content-type", kind), ("content-length", str(len(body)))])
        self._transport.write(body)

    def _refuse(self, error: StudioError) -> None:
        if self._transport.is_closing() or self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._transport.abort()
            return
        self._unread = True  # perhaps
        self._respond(json.dumps(error.as_problem()).encode(), error.status, "application/problem+json")

    async def _drain(self) -> None:
        """Closing with bytes unread would reset the connection, and the answer with it."""
        self._room = None
        self._free.clear()
        dropped = 0
        with contextlib.suppress(TimeoutError, StudioError):
            async with asyncio.timeout(DRAINED_S):
                while dropped < DRAINED_BYTES:
                    dropped += len(self._early)
                    self._early.clear()
                    await self._more()
