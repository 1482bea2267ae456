"""Global models as the messages that carry them: each chunk is read and encoded once, and the same bytes go to every
client.

Encoding a chunk anew for each client was the dearest part of a download. Clients of a round ask for the same model at
about the same time, so a window over what was encoded lately serves most of them, whatever the size of the model.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from federation.combiner.threads import in_files

SENT_BYTES = 256 << 10  # of the model in one message: larger ones are no faster, and cost memory per transfer
BLOCK_BYTES = 1 << 20  # read and encoded in one go
KEPT_BYTES = 32 << 20


def send_encoded(
    server: grpc.aio.Server,
    service: str,
    method: str,
    stream: Callable[..., Any],
    request: Callable[[bytes], Any],
) -> None:
    """Serve a server-streaming method that yields messages, or bytes that are messages already. Called after the
    generated registration, whose handler would encode each chunk for each client, it takes its place."""
    handler = grpc.unary_stream_rpc_method_handler(stream, request, as_bytes)
    # grpc-stubs does not know the method, which generated code calls too
    server.add_registered_method_handlers(service, {method: handler})  # type: ignore[attr-defined]


def as_bytes(message: Any) -> bytes:
    """A message, or what is one already, as it travels."""
    return message if isinstance(message, bytes) else message.SerializeToString()


@dataclass(frozen=True)
class Encoding:
    """How one file becomes messages: `encode(offset, data)` gives one. `name` is shared by all who would get the same
    bytes, and by nobody else."""

    name: str
    encode: Callable[[int, bytes], bytes]


class EncodedOnce:
    """A window of at most `KEPT_BYTES` over encoded blocks, newest last. Beside it each reader holds the one message it
    was given: who stands still, or fell behind the window, costs no more."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[str, int], asyncio.Future[list[bytes]]] = OrderedDict()

    async def messages(self, file: int, encoding: Encoding, offset: int = 0) -> AsyncIterator[bytes]:
        """The open file from byte `offset` to its end. A file that ends early gives fewer."""
        while message := await self._message(file, encoding, offset):
            yield message
            offset += SENT_BYTES - offset % SENT_BYTES  # a resumed download begins anywhere

    async def _message(self, file: int, encoding: Encoding, offset: int) -> bytes | None:
        into = offset % BLOCK_BYTES
        key = (encoding.name, offset - into)
        block = self._blocks.get(key)
        if block is not None and block.done() and (block.cancelled() or block.exception() is not None):
            block = None
        if into % SENT_BYTES or (into and block is None):  # only this reader is here
            messages = await asyncio.shield(_read(file, encoding, offset, SENT_BYTES - into % SENT_BYTES))
            return messages[0] if messages else None
        if block is None:
            block = _read(file, encoding, offset, BLOCK_BYTES)
            self._blocks[key] = block
            while len(self._blocks) > KEPT_BYTES // BLOCK_BYTES:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(key)
        messages = await asyncio.shield(block)
        place = into // SENT_BYTES
        return messages[place] if place < len(messages) else None


def _read(file: int, encoding: Encoding, offset: int, size: int) -> asyncio.Future[list[bytes]]:
    """Begun, and to be shielded: it has a file of its own to close, for whoever asked may be gone before it is read."""
    return asyncio.ensure_future(in_files(_encoded_and_closed, os.dup(file), encoding, offset, size))


def _encoded(file: int, encoding: Encoding, offset: int, size: int) -> list[bytes]:
    data = os.pread(file, size, offset)
    return [
        encoding.encode(offset + at, data[at : at + SENT_BYTES]) for at in range(0, len(data), SENT_BYTES)
    ]


def _encoded_and_closed(file: int, encoding: Encoding, offset: int, size: int) -> list[bytes]:
    try:
        return _encoded(file, encoding, offset, size)
    finally:
        os.close(file)
