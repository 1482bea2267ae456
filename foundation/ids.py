"""Row ids that sort by time, so that a list pages by key alone."""

from __future__ import annotations

import os
import time
import uuid


def uuid7() -> uuid.UUID:
    """A version 7 UUID (RFC 9562, 6.2 method 3): Unix milliseconds, 12 bits of their fraction, then random bits.

    Made one after the other by one host, they sort in that order.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    value = (milliseconds & ((1 << 48) - 1)) << 80 | fraction << 64 | int.from_bytes(os.urandom(8), "big")
    value |= 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return uuid.UUID(int=value)
