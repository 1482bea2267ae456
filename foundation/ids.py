"""Row ids that sort by time, so that a list pages by key alone."""

from __future__ import annotations

import datetime as dt
import os
import time
import uuid

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def uuid7() -> uuid.UUID:
    """A version 7 UUID (RFC 9562, 6.2 method 3): Unix milliseconds, 12 bits of their fraction, then random bits.

    Made one after the other by one host, they sort in that order.
    """
    return _uuid7(time.time_ns())


def uuid7_at(moment: dt.datetime) -> uuid.UUID:
    """As `uuid7`, of this moment (aware) instead of this host's clock: what several hosts make sorts by the database's
    time."""
    return _uuid7((moment - _EPOCH) // dt.timedelta(microseconds=1) * 1000)


def _uuid7(nanoseconds: int) -> uuid.UUID:
    milliseconds, rest_ns = divmod(nanoseconds, 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    value = (milliseconds & ((1 << 48) - 1)) << 80 | fraction << 64 | int.from_bytes(os.urandom(8), "big")
    value |= 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return uuid.UUID(int=value)
