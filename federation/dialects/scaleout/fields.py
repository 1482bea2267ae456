"""Fields of a request, checked one by one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from federation.dialects.controller.asked import as_uuid
from foundation.errors import invalid


def text(fields: Mapping[str, Any], name: str, *, most: int = 200) -> str:
    """Empty when it was not sent. Raises StudioError 400."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > most:
        raise invalid(name, f"{name} must be text of at most {most} characters.")
    return value


def whole(fields: Mapping[str, Any], name: str, *, low: int, high: int, default: int | None = None) -> int:
    """A whole number, as JSON has it or as the text of a form. Raises StudioError 400."""
    value = fields.get(name, default)
    digits = str(value).removesuffix(".0") if isinstance(value, (int, float, str)) else ""
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else -1
    if isinstance(value, bool) or not low <= number <= high:
        raise invalid(name, f"{name} must be a whole number from {low} to {high}.")
    return number


def optional_id(fields: Mapping[str, Any], name: str) -> uuid.UUID | None:
    """Raises StudioError 400 for what is no UUID."""
    value = fields.get(name)
    if value in (None, ""):
        return None
    found = as_uuid(value)
    if found is None:
        raise invalid(name, f"{name} must be a UUID.")
    return found
