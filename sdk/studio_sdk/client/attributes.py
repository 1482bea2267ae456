"""What a client says of itself, as a person types it: sessions choose their clients by it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import Exit, SdkError

Value = str | int | float | bool


def from_text(pairs: Iterable[str]) -> dict[str, Any]:
    """`region=eu`, `gpu=2`, `charging=true`, `tags=mobile,lab` (commas make a list). In double quotes a value is text,
    whatever it reads like. Raises SdkError for what is no pair."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.strip():
            raise SdkError(
                f"An attribute is given as NAME=VALUE, such as region=eu, not {pair!r}.", Exit.USAGE
            )
        found[name.strip()] = _value(text.strip())
    return found


def from_mapping(content: object) -> dict[str, Any]:
    """The `attributes` of a client.yaml. Raises SdkError unless they are names with texts, numbers, true, false or
    lists of these."""
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise SdkError("attributes must be a mapping, such as {region: eu, gpu: 1}.", Exit.USAGE)
    for name, value in content.items():
        entries = value if isinstance(value, list) else [value]
        if not all(_is_plain(entry) for entry in entries):
            raise SdkError(
                f"The attribute {name} must be a text, a number, true, false or a list of these.", Exit.USAGE
            )
    return {str(name): value for name, value in content.items()}


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _value(text: str) -> Value | list[Value]:
    if "," in text and not text.startswith('"'):
        return [_single(part.strip()) for part in text.split(",") if part.strip()]
    return _single(text)


def _single(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text[1:-1]
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    return text
