"""The socket of the lane: what comes, and no more of it than whoever reads has room for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable
from typing import Any, TypeVar

from foundation.errors import StudioError

T = TypeVar("T")

SMALL_BYTES = 16 << 10
BUFFERS = 2  # one is written and hashed while the other fills
IDLE_S = 120.0  # a transfer that stands still for so long ends; the client resumes it


class Receiving(asyncio.BufferedProtocol):
    """Bytes gather in `early`, a few at a time and only when asked for; those of an update come into two buffers by
    turns; or they are dropped as they come, so that a peer's end is seen."""

    def __init__(self) -> None:
        self.early = bytearray()
        self.over = asyncio.Event()  # nothing more will come
        self.closed = asyncio.Event()
        self.lost = False  # nothing more can go out
        self.transport: Any = None
        self._small = memoryview(bytearray(SMALL_BYTES))
        self._dropping = False
        self._room: memoryview | None = None  # of the buffer that fills
        self._filled = 0
        self._wanted = 0  # bytes of the update that have no room yet
        self._free: deque[memoryview] = deque()
        self._full: deque[memoryview] = deque()
        self._came = 0
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @property
    def gone(self) -> bool:
        return self.over.is_set()

    @property
    def encrypted(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    # --- what asyncio says ------------------------------------------------------------------------------------
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # not every platform has all of them
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(lost=True)
        self.closed.set()

    def eof_received(self) -> bool:
        """Half closed: the answer still goes out, unless TLS is between, which then ends both ways."""
        self._ended(lost=self.encrypted)
        return not self.lost

    def _ended(self, *, lost: bool) -> None:
        self.lost = self.lost or lost
        self.over.set()
        self._news.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._small if self._room is None else self._room[self._filled :]

    def buffer_updated(self, count: int) -> None:
        self._came += count
        if self._dropping:
            return
        if self._room is None:
            self.early += self._small[:count]
            self.transport.pause_reading()
            self._news.set()
            return
        self._filled += count
        if self._filled == len(self._room):
            self._full.append(self._room)
            self._room = None
            self._next_room()
            self._news.set()

    def _next_room(self) -> None:
        """The next free buffer, for what is still to come; without one reading rests."""
        if self._room is not None:
            return
        if self._free and self._wanted:
            self._room, self._filled = self._free.popleft()[: self._wanted], 0
            self._wanted -= len(self._room)
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    # --- for whoever reads ------------------------------------------------------------------------------------
    async def more(self) -> None:
        """Some more in `early`. Raises StudioError `incomplete` when no more will come."""
        before = len(self.early)
        self.transport.resume_reading()
        while len(self.early) == before:
            await self._told()

    def make_room(self, size: int, buffer_bytes: int) -> None:
        """From now on the next `size` bytes come into buffers."""
        self._free.extend(memoryview(bytearray(min(buffer_bytes, size))) for _ in range(BUFFERS))
        self._wanted = size
        self._next_room()

    async def buffer(self) -> memoryview:
        """A buffer that is full, or the last. Raises StudioError `incomplete` when no more will come, TimeoutError when
        nothing came for so long."""
        while not self._full:
            if self.gone and (left := self.part()):
                return left
            before = self._came
            try:
                await self.in_time(self._told())
            except TimeoutError:
                if self._came == before:
                    raise
        return self._full.popleft()

    def part(self) -> memoryview:
        """What came of the buffer that fills now; nothing more comes into it."""
        room, self._room = self._room, None
        return memoryview(b"") if room is None else room[: self._filled]

    def free(self, buffer: memoryview) -> None:
        """What `buffer` gave may be filled again."""
        self._free.append(memoryview(buffer.obj))
        self._next_room()

    def drop(self) -> None:
        """From now on what comes is for nobody."""
        self._room, self._dropping = None, True
        self.early.clear()
        self.transport.resume_reading()

    async def written(self) -> None:
        """There is room for what is to go out. Raises TimeoutError."""
        await self.in_time(self._writable.wait())

    @staticmethod
    async def in_time(work: Awaitable[T]) -> T:
        """Raises TimeoutError when it stands still."""
        async with asyncio.timeout(IDLE_S):
            return await work

    async def _told(self) -> None:
        if self.gone:
            raise StudioError("incomplete", "The upload ended before its end; resume it.", 409)
        self._news.clear()
        await self._news.wait()


async def within(seconds: float, event: asyncio.Event) -> None:
    """Until it is set, or that time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
