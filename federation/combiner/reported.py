"""What clients say of themselves and of models, checked before it is believed; the same for every dialect."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Iterable
from typing import Any

from federation.combiner.connection import Identity
from federation.events.services import TelemetrySample
from foundation.errors import StudioError
from foundation.plain_json import plain

MAX_VALIDATION_BYTES = 1 << 20
MAX_ATTRIBUTES_BYTES = 16 * 1024
MAX_LOG_CHARS = 4000
MAX_SERIES = 50
MAX_NAME_CHARS = 60


def json_object(text: str, what: str, most_bytes: int) -> dict[str, Any]:
    """A JSON object of at most so many bytes, as every database takes it: rows of many clients are written together, so
    one that cannot be kept would hold up the others'. NaN and the infinities are no JSON: such a scalar is kept as
    null. Raises StudioError 400."""
    if len(text.encode()) > most_bytes:
        raise StudioError("too_long", f"{what} must be at most {most_bytes >> 10} KiB of JSON.")
    try:
        value = json.loads(text, parse_constant=lambda _name: None)
    except (ValueError, RecursionError):
        raise StudioError("not_json", f"{what} must be a JSON object.") from None
    if not isinstance(value, dict):
        raise StudioError("not_json", f"{what} must be a JSON object.")
    kept: dict[str, Any] = plain(value)
    return kept


def finite_series(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The first fifty named numbers that are finite."""
    found: dict[str, float] = {}
    for name, value in pairs:
        if len(found) == MAX_SERIES:
            break
        if name and math.isfinite(value):
            found[name[:MAX_NAME_CHARS]] = value
    return found


def telemetry_samples(who: Identity, pairs: Iterable[tuple[str, float]]) -> list[TelemetrySample]:
    now = dt.datetime.now(dt.UTC)
    return [
        TelemetrySample(who.project_id, who.client_id, now, name, value)
        for name, value in finite_series(pairs).items()
    ]
