"""The messages that carry models, to and from bytes by hand: generated code copies what it carries twice more.

Both are plain protobuf; anything that is not exactly a chunk of data goes the way of all messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from federation.dialects.native import studio_v1_pb2 as wire

_DATA_UP = 0x12  # UploadChunk.data: field 2, length-delimited


def upload_chunk(raw: bytes) -> memoryview | wire.UploadChunk:
    """The data of an `UploadChunk` as a view of its bytes, or the message when it carries something else.

    Raises google.protobuf.message.DecodeError.
    """
    if len(raw) > 1 and raw[0] == _DATA_UP:
        size, at = _varint(raw, 1)
        if at + size == len(raw):
            return memoryview(raw)[at:]
    return wire.UploadChunk.FromString(raw)


def download_chunk(offset: int, size: int, data: bytes, sha256: bytes) -> bytes:
    """A `DownloadChunk`; `sha256` in ASCII."""
    # what is zero is left out, as in any proto3 message
    return b"".join(
        (
            b"\x08" + _as_varint(offset) if offset else b"",
            b"\x10" + _as_varint(size) if size else b"",
            b"\x1a" + _as_varint(len(data)) if data else b"",
            data,
            b"\x22" + _as_varint(len(sha256)) if sha256 else b"",
            sha256,
        )
    )


def task_with_model(task: wire.Task, model: Sequence[bytes]) -> bytes:
    """A `ServerMessage` of a task, with the pieces of its model inside."""
    said, size = task.SerializeToString(), sum(len(piece) for piece in model)
    head = said + b"\x72" + _as_varint(size)  # Task.model: field 14, length-delimited
    return b"".join((b"\x12", _as_varint(len(head) + size), head, *model))  # ServerMessage.task: field 2


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A length, and where it ends; (-1, 0) when it is none that a message could have."""
    number = shift = 0
    for place in range(at, min(at + 5, len(raw))):
        byte = raw[place]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place + 1
        shift += 7
    return -1, 0


def _as_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
