"""Numbers moved in cache-sized blocks through buffers that are reused: no pass over a model allocates per
model."""

from __future__ import annotations

import math
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .layout import DTYPES, FLOATS, invalid_model

Array = npt.NDArray[Any]
Float64s = npt.NDArray[np.float64]

# 256 KiB of float32; with its float64 twin and one block of sums it stays in a core's L2 cache.
BLOCK_ELEMENTS = 64 * 1024


class BlockReader:
    """Reads runs of elements into one reused buffer.

    It reads rather than maps: a file that shrinks under a map kills the process, under a read it raises.
    """

    def __init__(self) -> None:
        raw = np.empty(BLOCK_ELEMENTS * 8, dtype=np.uint8)
        self._bytes = raw.data
        # Booleans are seen as bytes: a bool other than 0 or 1 is undefined in numpy.
        self._typed: dict[str, Array] = {
            name: raw[: BLOCK_ELEMENTS * dtype.itemsize].view(np.uint8 if name == "BOOL" else dtype)
            for name, dtype in DTYPES.items()
        }

    def read(self, file: IO[bytes], dtype: str, count: int) -> Array:
        """The next `count` (at most BLOCK_ELEMENTS) elements from the file's position; valid until the next
        call.

        Raises StudioError `invalid_model` when the file ends first.
        """
        fill(file, self._bytes[: count * DTYPES[dtype].itemsize])
        return self._typed[dtype][:count]


def fill(file: IO[bytes], target: memoryview) -> None:
    """Read exactly `len(target)` bytes; raises StudioError `invalid_model` when the file ends first."""
    at = 0
    while at < len(target):
        got = file.readinto(target[at:])  # type: ignore[attr-defined]
        if not got:
            raise invalid_model("The file ends before its last tensor does: it is cut short.")
        at += got


class FiniteNorm:
    """L2 norm of float blocks as they pass; tells a block that is not finite."""

    def __init__(self) -> None:
        self.norm = 0.0
        self._wide = np.empty(BLOCK_ELEMENTS, dtype=np.float64)

    def add(self, block: Array) -> bool:
        """Add a block of any float dtype, shape (n,), n <= BLOCK_ELEMENTS. False (nothing added): NaN or
        infinite.

        A sum of squares in float64 is finite only when every element is, so one pass does both jobs; what is
        too large or too small to be squared is scaled by its largest element first.
        """
        wide = self._wide[: block.size]
        np.copyto(wide, block)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = float(np.dot(wide, wide))
        if math.isfinite(squares) and squares > 1e-290:
            self.norm = math.hypot(self.norm, math.sqrt(squares))
            return True
        np.abs(wide, out=wide)
        largest = float(wide.max(initial=0.0))
        if not math.isfinite(largest):
            return False
        if largest > 0.0:
            np.divide(wide, largest, out=wide)
            self.norm = math.hypot(self.norm, largest * math.sqrt(float(np.dot(wide, wide))))
        return True


class Narrower:
    """Casts blocks of float64 back to a model's dtypes with one correct rounding."""

    def __init__(self) -> None:
        raw = np.empty(BLOCK_ELEMENTS * 8, dtype=np.uint8)
        self._typed: dict[str, Array] = {
            name: raw[: BLOCK_ELEMENTS * dtype.itemsize].view(dtype) for name, dtype in DTYPES.items()
        }
        self._single = np.empty(BLOCK_ELEMENTS, dtype=np.float32)
        self._finite = np.empty(BLOCK_ELEMENTS, dtype=np.bool_)

    def finite(self, block: Array) -> bool:
        return bool(np.isfinite(block, out=self._finite[: block.size]).all())

    def cast(self, values: Float64s, dtype: str) -> Array:
        """`values` (finite, shape (n,), overwritten) as `dtype`; valid until the next call.

        Floats round to nearest, ties to even, and overflow to infinity (the caller looks). Integers round
        likewise and are clipped to their range; a boolean is true from 0.5 up.
        """
        out = self._typed[dtype][: values.size]
        if dtype == "BOOL":
            np.greater_equal(values, 0.5, out=out)
        elif dtype == "BF16":
            out[...] = self._single_before_bfloat16(values)
        elif dtype in FLOATS:
            with np.errstate(over="ignore", under="ignore"):
                np.copyto(out, values, casting="same_kind")
        else:
            np.rint(values, out=values)
            info = np.iinfo(out.dtype)
            # 2**63 - 1 and 2**64 - 1 are no float64: clip to the largest that is, then mend what lay above.
            top = float(info.max) if out.dtype.itemsize < 8 else math.nextafter(float(info.max), 0.0)
            above = values > top
            np.clip(values, float(info.min), top, out=values)
            np.copyto(out, values, casting="unsafe")
            out[above] = info.max
        return out

    def _single_before_bfloat16(self, values: Float64s) -> Array:
        """Float32 that rounds to bfloat16 as `values` would: ml_dtypes goes through float32, and rounding
        twice errs where the first rounding lands on a tie. Such elements are moved one step back towards
        their value."""
        single = self._single[: values.size]
        with np.errstate(over="ignore", under="ignore"):
            np.copyto(single, values, casting="same_kind")
        bits = single.view(np.uint32)
        ties = np.flatnonzero((bits & 0xFFFF) == 0x8000)
        if ties.size:
            exact, rounded = np.abs(values[ties]), np.abs(single[ties]).astype(np.float64)
            bits[ties[rounded < exact]] += 1
            bits[ties[rounded > exact]] -= 1
        return single
