"""Reading single values of a request, each refused with a sentence that says what would be right."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from foundation.errors import StudioError, invalid
from foundation.plain_json import MAX_DEPTH, plain

MAX_SETTINGS_BYTES = 64 * 1024


def number(
    values: Mapping[str, Any],
    name: str,
    default: Any,
    low: float,
    high: float,
    *,
    whole: bool = False,
    above: bool = False,
) -> Any:
    """`values[name]` from `low` (with `above`: beyond it) to `high`; the default when it is missing or empty.
    Raises StudioError 400."""
    value = values.get(name, default)
    if value is None or value == "":
        return default
    kind = "a whole number" if whole else "a number"
    span = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    sentence = f"{name} must be {kind} {span}, not {value!r}."
    if isinstance(value, bool):
        raise invalid(name, sentence)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise invalid(name, sentence) from None
    too_low = found <= low if above else found < low
    if not math.isfinite(found) or too_low or found > high or (whole and found != int(found)):
        raise invalid(name, sentence)
    return int(found) if whole else found


def flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name, default)
    if isinstance(value, str):
        return value.lower() in ("true", "1", "on", "yes")
    return bool(value)


def choice(values: Mapping[str, Any], name: str, words: Mapping[str, str], default: str) -> str:
    """One of `{word: title}`. Raises StudioError 400."""
    value = values.get(name)
    if value in (None, ""):
        return default
    if not isinstance(value, str) or value not in words:
        raise invalid(name, f"{name} must be one of {', '.join(words)}, not {str(value)[:80]!r}.")
    return value


def json_object(values: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    """A JSON object of at most 64 KiB, given as one or as text; {} when it is missing. Raises StudioError 400."""
    value = values.get(name)
    if value in (None, ""):
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise invalid(name, f"{name} is not valid JSON: {str(error)[:200]}.") from None
        if value is None:
            return {}
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be a JSON object of {what}.")
    if len(json.dumps(value)) > MAX_SETTINGS_BYTES:
        raise invalid(name, f"{name} must be at most 64 KiB of JSON.")
    return value


def storable(found: dict[str, Any], name: str) -> dict[str, Any]:
    """A JSON object that is kept as it is. Raises StudioError 400 for what no database keeps: NaN, infinities (1e999 is
    read as one), NUL and half characters."""
    if plain(found) != found:
        raise invalid(
            name,
            f"{name} must hold finite numbers and whole characters, and nest at most {MAX_DEPTH} deep: no NaN, no "
            "infinity, no NUL.",
        )
    return found


def known_only(values: Mapping[str, Any], group: str, names: set[str]) -> None:
    """Raises StudioError 400 naming the first entry of a group of settings that there is none of."""
    for name in values:
        if name not in names:
            raise invalid(
                group, f"{group} has no setting called {str(name)[:80]!r}; it has {', '.join(sorted(names))}."
            )


@contextmanager
def within(group: str) -> Iterator[None]:
    """A refusal inside names its setting with the group before it: `selection.where`."""
    try:
        yield
    except StudioError as error:
        field = str(error.data.get("field", group))
        if field != group and not field.startswith(f"{group}."):
            error.data["field"] = f"{group}.{field}"
        raise


def row_id(values: Mapping[str, Any], name: str) -> uuid.UUID | None:
    value = values.get(name)
    if value in (None, ""):
        return None
    try:
        return uuid.UUID(str(value))
    except ValueError:
        raise invalid(name, f"{name} must be the id of one of this project's rows.") from None
