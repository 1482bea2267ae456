"""What a model is made of: the names, dtypes and shapes of its tensors, in order."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from foundation.errors import StudioError

MAX_TENSORS = 100_000
MAX_NAME_CHARS = 512
MAX_DIMENSIONS = 32
# Beyond this numpy cannot count the bytes of an array, even of an empty one such as (0, 10**30).
_MAX_ADDRESSABLE_BYTES = 2**62

DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "BOOL": np.dtype("?"),
}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


def invalid_model(message: str, **data: Any) -> StudioError:
    """The refusal of a file that is no model we read."""
    return StudioError("invalid_model", message, **data)


def not_finite(name: str, what: str = "NaN or infinity") -> StudioError:
    """The refusal of numbers that no mean could be taken of."""
    return StudioError(
        "not_finite", f"Tensor {shown(name)} holds {what}; every number must be finite.", tensor=name
    )


def shown(name: str) -> str:
    """A tensor's name as a sentence may carry it: quoted, control characters escaped, cut at 80
    characters."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its name, its dtype by the safetensors name (`F32`, `BF16`, ...), its shape (`()` is a
    scalar).

    Raises StudioError `invalid_model` when no array could have this name, dtype and shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise invalid_model(
                f"Tensor {shown(self.name)} has dtype {shown(str(self.dtype))}; "
                f"a model may hold {', '.join(DTYPES)}."
            )
        if len(self.shape) > MAX_DIMENSIONS:
            raise invalid_model(
                f"Tensor {shown(self.name)} has {len(self.shape)} dimensions; "
                f"at most {MAX_DIMENSIONS} are allowed."
            )
        span = DTYPES[self.dtype].itemsize
        for length in self.shape:
            if type(length) is not int or length < 0:
                raise invalid_model(
                    f"Tensor {shown(self.name)} has a shape that is not a list of whole numbers from 0 up."
                )
            span *= max(length, 1)
            if span > _MAX_ADDRESSABLE_BYTES:
                raise invalid_model(f"Tensor {shown(self.name)} claims a shape that no memory can hold.")

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return self.count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in the order of its canonical file: by number when every name is one (`0`, `1`,
    ... `10`), else in the order in which the first file named them.

    Raises StudioError `invalid_model` on no tensors, too many, or a name given twice.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not self.tensors:
            raise invalid_model("The model holds no tensors; it needs at least one.")
        if len(self.tensors) > MAX_TENSORS:
            raise invalid_model(
                f"The model holds {len(self.tensors)} tensors; at most {MAX_TENSORS} are allowed."
            )
        if len(self.by_name) != len(self.tensors):
            seen: set[str] = set()
            for spec in self.tensors:
                if spec.name in seen:
                    raise invalid_model(f"The model names the tensor {shown(spec.name)} twice.")
                seen.add(spec.name)

    @classmethod
    def ordered(cls, specs: Sequence[TensorSpec]) -> Layout:
        """The layout of tensors that a file names in this order; numbers are put in numeric order."""
        if all(spec.name.isascii() and spec.name.isdecimal() for spec in specs):
            specs = sorted(specs, key=lambda spec: (int(spec.name), spec.name))
        return cls(tuple(specs))

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.tensors}

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors, without any header."""
        return sum(spec.nbytes for spec in self.tensors)

    @cached_property
    def count(self) -> int:
        """Elements of all tensors."""
        return sum(spec.count for spec in self.tensors)

    def to_json(self) -> list[dict[str, Any]]:
        """`[{"name", "dtype", "shape"}, ...]` in layout order."""
        return [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in self.tensors]

    @classmethod
    def from_json(cls, obj: Any) -> Layout:
        """The reverse of `to_json`; raises StudioError `invalid_model` on anything else."""
        if not isinstance(obj, list):
            raise invalid_model("A layout is a list of objects with name, dtype and shape.")
        specs = []
        for entry in obj:
            if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list):
                raise invalid_model("A layout is a list of objects with name, dtype and shape.")
            specs.append(TensorSpec(entry.get("name", ""), entry.get("dtype", ""), tuple(entry["shape"])))
        return cls(tuple(specs))

    def as_float64(self) -> Layout:
        """The same names and shapes with every dtype F64: the layout of a combiner's partial mean."""
        return Layout(tuple(TensorSpec(s.name, "F64", s.shape) for s in self.tensors))

    def difference(self, other: Layout) -> str | None:
        """What makes `other` not fit where this layout is expected: one sentence about the first tensor that
        is missing, mis-typed, mis-shaped or unexpected; None when both are equal up to order."""
        for spec in self.tensors:
            found = other.by_name.get(spec.name)
            if found is None:
                return f"Tensor {shown(spec.name)} ({spec.dtype} {_shape(spec)}) is missing."
            if found.dtype != spec.dtype:
                return f"Tensor {shown(spec.name)} has dtype {found.dtype}; it should be {spec.dtype}."
            if found.shape != spec.shape:
                return f"Tensor {shown(spec.name)} has shape {_shape(found)}; it should be {_shape(spec)}."
        for spec in other.tensors:
            if spec.name not in self.by_name:
                return (
                    f"Tensor {shown(spec.name)} is unexpected; "
                    f"the model has {len(self.tensors)} tensors and none of that name."
                )
        return None


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join(str(length) for length in spec.shape) + "]"


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise invalid_model("A tensor has no name; every tensor needs one.")
    if len(name) > MAX_NAME_CHARS:
        raise invalid_model(
            f"The tensor name {shown(name)} has {len(name)} characters; at most {MAX_NAME_CHARS} are allowed."
        )
    if name == "__metadata__":
        raise invalid_model('No tensor may be called "__metadata__"; safetensors keeps that name for itself.')
    if not name.isascii() and any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        raise invalid_model(f"The tensor name {shown(name)} holds a control character or half a character.")
    if name.isascii() and not name.isprintable():
        raise invalid_model(f"The tensor name {shown(name)} holds a control character.")
