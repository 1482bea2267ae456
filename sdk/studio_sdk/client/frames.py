"""The two messages that carry models, to and from bytes by hand: generated code copies what it carries twice more.

Both are plain protobuf (`UploadChunk.data`, `DownloadChunk`); anything out of the ordinary goes the way of all
messages.
"""

from __future__ import annotations

from typing import NamedTuple

from .. import studio_v1_pb2 as pb


class Piece(NamedTuple):
    """Bytes of a model from `offset` on."""

    offset: int
    data: memoryview | bytes


def upload_chunk(part: pb.UploadChunk | bytes) -> bytes:
    """An `UploadChunk`: of these bytes of the update, or the message given."""
    if not isinstance(part, bytes):
        return part.SerializeToString()
    return b"".join((b"\x12", _as_varint(len(part)), part))


def download_chunk(raw: bytes) -> Piece:
    """The data of a `DownloadChunk` as a view. Raises google.protobuf.message.DecodeError."""
    offset = at = 0
    if raw[:1] == b"\x08":  # offset; left out where it is 0
        offset, at = _varint(raw, 1)
    if raw[at : at + 1] == b"\x10":  # size: the task has told
        _, at = _varint(raw, at + 1)
    if raw[at : at + 1] == b"\x1a":
        size, at = _varint(raw, at + 1)
        end = at + size
        # behind it only a SHA-256 in hex, which the task has told too
        if at and (len(raw) == end or (raw[end : end + 2] == b"\x22\x40" and len(raw) == end + 66)):
            return Piece(offset, memoryview(raw)[at:end])
    message = pb.DownloadChunk.FromString(raw)
    return Piece(message.offset, message.data)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends: at 0 when it is none."""
    number = shift = 0
    for place in range(at, min(at + 10, len(raw))):
        byte = raw[place]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place + 1
        shift += 7
    return 0, 0


def _as_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
