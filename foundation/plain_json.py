"""JSON that any database takes: what a client sent may hold NaN, NUL characters or no JSON at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

MAX_DEPTH = 64


def plain(value: Any, *, depth: int = MAX_DEPTH) -> Any:
    """`value` in JSON's own types: numbers that are not finite become the strings "NaN", "Infinity" and
    "-Infinity", NUL characters go, other objects become their text. Nesting beyond `depth` becomes "…"."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        if depth <= 0:
            return "…"
        return {plain_text(str(key)): plain(inner, depth=depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner, depth=depth - 1) for inner in value] if depth > 0 else "…"
    return plain_text(str(value))


def plain_text(text: str) -> str:
    """Without NUL characters and lone surrogates, which Postgres refuses."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def scalars(data: Any, prefix: str = "", *, depth: int = MAX_DEPTH) -> Iterator[tuple[str, float]]:
    """Every finite number in nested objects as ("outer.inner", value), in order. Truth values, lists and
    texts are no scalars."""
    if not isinstance(data, Mapping) or depth <= 0:
        return
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from scalars(value, f"{name}.", depth=depth - 1)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:  # an integer beyond any float
                continue
            if math.isfinite(number):
                yield plain_text(name), number
