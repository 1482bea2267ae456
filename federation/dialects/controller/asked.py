"""What a request asks of a list: filters from the address or the body, page and order from headers."""

from __future__ import annotations

import datetime as dt
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.http.multipartparser import MultiPartParserError

from foundation.errors import StudioError, invalid

MAX_ROWS = 10_000  # what “no limit” comes to
_MAX_VALUES = 1000
_HUMP = re.compile(r"(?<=[a-z0-9])([A-Z])")

Lookup = dict[str, Any]
# From the values of one filter to what a queryset is filtered by so that rows have one of them (a lookup, or a
# condition that a selector made); None: no row can.
Filter = Callable[[list[str]], Any]


def by_text(column: str) -> Filter:
    return lambda values: {f"{column}__in": [value for value in values if "\x00" not in value]}


def by_id(column: str) -> Filter:
    def lookup(values: list[str]) -> Lookup | None:
        ids = [found for value in values if (found := as_uuid(value)) is not None]
        return {f"{column}__in": ids} if ids else None

    return lookup


def by_number(column: str) -> Filter:
    def lookup(values: list[str]) -> Lookup | None:
        numbers = [number for value in values if (number := as_number(value)) is not None]
        return {f"{column}__in": numbers} if numbers else None

    return lookup


def by_word(column: str, words: Mapping[str, list[Any]]) -> Filter:
    """A column whose values have other names outside."""

    def lookup(values: list[str]) -> Lookup | None:
        inside = [state for value in values for state in words.get(value.lower(), [])]
        return {f"{column}__in": inside} if inside else None

    return lookup


def always(text: str) -> Filter:
    """A field that is the same in every row."""
    return lambda values: {} if text in values else None


def as_uuid(text: object) -> uuid.UUID | None:
    """FEDn's command line hangs a slash behind some ids."""
    try:
        return uuid.UUID(str(text).rstrip("/"))
    except ValueError:
        return None


def as_number(text: object) -> int | None:
    digits = str(text)
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None


def truth(value: object) -> bool:
    """A boolean of JSON, or the text of one in a form."""
    return value.strip().lower() in ("true", "1", "on", "yes") if isinstance(value, str) else bool(value)


def snake(name: str) -> str:
    """`sessionId` and `session_id` are the same field."""
    return _HUMP.sub(lambda found: f"_{found[1].lower()}", name)


def when(moment: dt.datetime | None) -> str | None:
    """As these servers write time: RFC 1123."""
    return None if moment is None else format_datetime(moment.astimezone(dt.UTC), usegmt=True)


@dataclass(frozen=True)
class Page:
    limit: int
    skip: int
    key: str
    descending: bool


def page_of(request: HttpRequest) -> Page:
    """From X-Limit, X-Skip, X-Sort-Key and X-Sort-Order; what is no number counts as not sent."""
    headers = request.headers
    limit, skip = as_number(headers.get("X-Limit")), as_number(headers.get("X-Skip"))
    key = snake(headers.get("X-Sort-Key") or "committed_at")
    descending = (headers.get("X-Sort-Order") or "desc").lower() != "asc"
    return Page(min(limit or MAX_ROWS, MAX_ROWS), skip or 0, key, descending)


def fields_of(request: HttpRequest) -> dict[str, Any]:
    """The body as fields: a form, or one JSON object. Raises StudioError 400 or 413."""
    kind = (request.content_type or "").lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        try:
            return {key: _text(value) for key, value in request.POST.items()}
        except MultiPartParserError as error:
            raise StudioError("malformed", f"The form cannot be read: {error}", 400) from None
    body = request.body[: settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1]
    if not body.strip():
        return {}
    if b"\\u0000" in body or b"\x00" in body:
        raise StudioError("malformed", "Text must not hold the character U+0000.", 400)
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise StudioError("malformed", "The request body is not valid JSON.", 400) from None
    if not isinstance(given, dict):
        raise StudioError("malformed", "The request body must be one JSON object.", 400)
    return given


def _text(value: object) -> str:
    text = str(value)
    if "\x00" in text:
        raise StudioError("malformed", "Text must not hold the character U+0000.", 400)
    return text


def narrowed(rows: Any, given: Mapping[str, Any], filters: Mapping[str, Filter], what: str) -> Any:
    """The rows that match every field given; a comma between values means any of them."""
    for name, value in given.items():
        lookup = filters.get(snake(name))
        if lookup is None:
            known = ", ".join(sorted(filters))
            raise invalid(
                "filter", f"{what.capitalize()} cannot be filtered by {name[:80]!r}, only by: {known}."
            )
        values = _values(value)
        found = lookup(values) if values else None
        if found is None:
            return rows.none()
        rows = rows.filter(**found) if isinstance(found, dict) else rows.filter(found)
    return rows


def _values(value: Any) -> list[str]:
    if isinstance(value, Mapping):  # as a query to FEDn's own database would be written
        value = value.get("$in", [])
    many = value if isinstance(value, list) else str(value).split(",")
    return [str(each) for each in many[:_MAX_VALUES] if each is not None]
