"""Updates in fewer bits: what training changed in the model, rounded, with the rounding error kept for next time.

A float tensor that gets smaller by it travels as its change divided by a scale of its own, every other tensor as it
is; the scales are one vector of float64 (see docs/compression.md for the file). Rounding is to nearest, ties to even:
with the error fed back it needs no randomness to be right in the long run, its error is half as large as stochastic
rounding's at worst, and the same training makes the same bytes.

Error feedback (Seide et al., Interspeech 2014, section 2.1; Karimireddy et al., ICML 2019, algorithm 2): with c_t the
change of training t and e_t what is still owed, e_0 = 0,

    v_t = c_t + e_{t-1},    sent: C(v_t),    e_t = v_t - (what the server sees of C(v_t))

where the server sees the model plus the change, rounded to the model's dtype. So the sum of what it saw and of what
is owed is the sum of all changes, whatever was rounded on the way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import tensors
from .tensors import Array

FORMS = {"float16": "F16", "bfloat16": "BF16", "int8": "I8"}
SCALE_BYTES = 8
_FLOATS = {"F16", "BF16", "F32", "F64"}
_BLOCK = 64 * 1024  # elements; a block in float64 stays in a core's cache

Float64s = NDArray[np.float64]


class NotCompressible(Exception):
    """This update travels as it is; the server says what is wrong with it, if anything."""


@dataclass(frozen=True)
class Change:
    """Files: the model as it came, the update made of it, and what earlier roundings still owe, if anything."""

    model: Path
    update: Path
    owed: Path | None = None


def compress(change: Change, form: str, target: Path, owed: Path) -> str:
    """Write the compressed update to `target`, and to `owed` what is owed after it; the sha256 of `target`.

    `owed` holds float32 (float64 for float64 tensors) end to end, in the model's order; `change.owed` is such a file,
    and stays as it is: it counts until this update has been accepted. Memory: a few blocks.

    Raises NotCompressible when model and update differ in their tensors, a number is not finite, or nothing in the
    update would become smaller.
    """
    kinds = tensors.dtype_names(change.model)
    if tensors.dtype_names(change.update) != kinds:
        raise NotCompressible("its tensors are not the model's")
    given, made = tensors.read_file(change.model), tensors.read_file(change.update)
    if any(made[name].shape != given[name].shape for name in given):
        raise NotCompressible("its shapes are not the model's")
    parts = {
        name: _Part(kinds[name], given[name].reshape(-1), made[name].reshape(-1))
        for name in given
        if _is_narrowed(kinds[name], given[name], form)
    }
    if not parts:
        raise NotCompressible("nothing in it would become smaller")
    _find_owed(list(parts.values()), change.owed)
    scales = {name: _scale(part.largest(), form) for name, part in parts.items()}
    scales_name = "scales"
    while scales_name in given:
        scales_name = f"_{scales_name}"
    specs = [(name, FORMS[form] if name in parts else kinds[name], given[name].shape) for name in given]
    header, order = tensors.canonical_header([*specs, (scales_name, "F64", (len(scales),))])
    digest = hashlib.sha256(header)
    with target.open("wb") as out, owed.open("wb") as kept:
        out.write(header)

        def write(block: Array) -> None:
            data = block.reshape(-1).view(np.uint8).data
            out.write(data)
            digest.update(data)

        for i in order:
            if i == len(specs):
                write(np.array(list(scales.values()), "<f8"))
                continue
            name = specs[i][0]
            if name not in parts:
                write(made[name])
                continue
            for block, rest in parts[name].rounded(form, scales[name]):
                write(block)
                kept.write(rest.data)
    return digest.hexdigest()


def _is_narrowed(kind: str, array: Array, form: str) -> bool:
    """Whether a tensor travels as its change: it holds floats, and is smaller for it, its scale included."""
    narrow = array.size * tensors.DTYPES[FORMS[form]].itemsize + SCALE_BYTES
    return kind in _FLOATS and narrow < array.nbytes


def _scale(largest: float, form: str) -> float:
    """What changes are divided by; 0 when there are none, or none that float64 could tell from none."""
    if not math.isfinite(largest):
        raise NotCompressible("a number in it is not finite")
    if form == "int8":
        return largest / 127
    # a power of two, so that dividing by it is exact; the largest comes to lie between 2^14 and 2^15
    return math.ldexp(1.0, math.frexp(largest)[1] - 15) if largest else 0.0


class _Part:
    """One tensor that travels as its change; arrays are flat views of the files."""

    def __init__(self, kind: str, given: Array, made: Array) -> None:
        self.kind, self.given, self.made = kind, given, made
        self.owed: Array | None = None
        self.owed_dtype = np.dtype("<f8" if kind == "F64" else "<f4")

    def _changes(self) -> Iterator[tuple[Float64s, Float64s]]:
        """(the model's numbers, what should be added to them), block by block."""
        for at in range(0, self.given.size, _BLOCK):
            base = _wide(self.given[at : at + _BLOCK], self.kind)
            change = _wide(self.made[at : at + _BLOCK], self.kind)
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is told by `largest`
                change -= base
                if self.owed is not None:
                    change += self.owed[at : at + _BLOCK]
            yield base, change

    def largest(self) -> float:
        """Of the changes' absolute values; NaN or infinity when one of them is."""
        return float(np.max([np.abs(change).max() for _base, change in self._changes()]))

    def rounded(self, form: str, scale: float) -> Iterator[tuple[Array, Array]]:
        """(the numbers to send, what is owed after them), block by block."""
        for base, change in self._changes():
            sent, as_sent = _narrow(change / scale if scale else np.zeros_like(change), form)
            as_sent *= scale
            as_sent += base
            seen = _rounded_to(as_sent, self.kind)
            if not np.isfinite(seen).all():
                raise NotCompressible("a number in it is too large")
            seen -= base
            change -= seen
            yield sent, change.astype(self.owed_dtype)


def _find_owed(parts: list[_Part], path: Path | None) -> None:
    """Give each part its stretch of the file; a file of another size is of something else, and counts for nothing."""
    size = sum(part.given.size * part.owed_dtype.itemsize for part in parts)
    if path is None or not path.is_file() or path.stat().st_size != size:
        return
    raw = np.memmap(path, np.uint8, "r")
    at = 0
    for part in parts:
        part.owed = np.frombuffer(raw, part.owed_dtype, part.given.size, at)
        at += part.owed.nbytes


def _wide(block: Array, kind: str) -> Float64s:
    """As float64, in new memory. bfloat16 is the upper half of a float32, whatever numpy calls its type."""
    if kind == "BF16":
        block = (block.view("<u2").astype("<u4") << 16).view("<f4")
    return block.astype(np.float64)


def _narrow(values: Float64s, form: str) -> tuple[Array, Float64s]:
    """Rounded to nearest, ties to even: as they travel, and the same as float64."""
    if form == "int8":
        # a scale that float64 holds with few digits only may carry the largest beyond
        whole = np.clip(np.rint(values), -127, 127)
        return whole.astype(np.int8), whole
    if form == "float16":
        half = values.astype("<f2")
        return half, half.astype(np.float64)
    bits = _bfloat16(values)
    return bits, _wide(bits, "BF16")


def _rounded_to(values: Float64s, kind: str) -> Float64s:
    """What is left of the numbers in a tensor of this dtype."""
    with np.errstate(over="ignore"):
        if kind == "BF16":
            return _wide(_bfloat16(values), "BF16")
        return values.astype(tensors.DTYPES[kind]).astype(np.float64)


def _bfloat16(values: Float64s) -> Array:
    """The bits of the nearest bfloat16s, ties to even, as uint16; too large ones become infinite.

    By way of float32. Where that lands on a tie between two bfloat16s, it is moved one step back towards the number
    it came from: rounding twice would err there.
    """
    with np.errstate(over="ignore"):
        single = values.astype("<f4")
    bits = single.view("<u4")
    ties = np.flatnonzero((bits & 0xFFFF) == 0x8000)
    if ties.size:
        exact, rounded = np.abs(values[ties]), np.abs(single[ties]).astype(np.float64)
        bits[ties[rounded < exact]] += 1
        bits[ties[rounded > exact]] -= 1
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
