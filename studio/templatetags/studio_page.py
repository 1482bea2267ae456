"""How pages write times, sizes, ids, states and form fields."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import Any

from django import template
from django.forms import BoundField, CheckboxInput
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from studio.version import VERSION

register = template.Library()

TONE_OF_STATE = {
    "ok": ("online", "finished", "accepted", "live", "valid", "up"),
    "run": (
        "running",
        "training",
        "closing",
        "reducing",
        "busy",
        "assigned",
        "delivered",
        "validating",
        "info",
    ),
    "warn": (
        "waiting",
        "stopping",
        "stopped",
        "expired",
        "lost",
        "warning",
        "cancelled",
        "silent",
        "draining",
        "expiring",
    ),
    "bad": ("failed", "rejected", "error", "revoked"),
}
_TONES = {state: tone for tone, states in TONE_OF_STATE.items() for state in states}
_COPY_ICON = mark_safe(
    '<svg viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.5" aria-hidden="true">'
    '<rect x="5.5" y="5.5" width="8" height="8" rx="1.5"/><path d="M3.5 10.5h-1v-8h8v1"/></svg>'
)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _time(value: dt.datetime, words: str, how: str) -> SafeString:
    exact = value.astimezone(dt.UTC)
    return format_html(
        '<time datetime="{}" title="{}" data-{}>{}</time>',
        exact.isoformat().replace("+00:00", "Z"), exact.strftime("%Y-%m-%d %H:%M:%S UTC"), how, words,
    )  # fmt: skip


@register.filter
def ago(value: dt.datetime | None) -> SafeString | str:
    """A relative time; the exact one is in the title."""
    if value is None:
        return "–"
    seconds = (timezone.now() - value).total_seconds()
    words = f"{_span(seconds)} ago" if seconds > 0 else f"in {_span(-seconds)}"
    return _time(value, "just now" if abs(seconds) < 5 else words, "relative")


@register.filter
def countdown(value: dt.datetime | None) -> SafeString | str:
    """How long until then; counts down in the browser."""
    if value is None:
        return "–"
    seconds = (value - timezone.now()).total_seconds()
    return _time(value, f"{_span(seconds)} left" if seconds > 0 else "now due", "countdown")


@register.filter
def clock(value: dt.datetime | None) -> SafeString | str:
    """The time of day, for lists in which order matters more than age."""
    if value is None:
        return "–"
    exact = value.astimezone(dt.UTC)
    today = exact.date() == timezone.now().date()
    return _time(value, exact.strftime("%H:%M:%S" if today else "%d %b %H:%M"), "exact")


@register.filter
def duration(seconds: float | str | None) -> str:
    """Seconds in words that fit their size: `0.42 s`, `12.3 s`, `3 min 4 s`."""
    if seconds is None or seconds == "":
        return "–"
    seconds = float(seconds)
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    large, small, size = ("min", "s", 60) if seconds < 3600 else ("h", "min", 3600)
    rest = int(seconds % size * 60 / size)
    return f"{int(seconds // size)} {large}" + (f" {rest} {small}" if rest else "")


@register.filter
def bytesize(value: int | float | None) -> str:
    """Bytes in decimal units, as disks and networks count."""
    if value is None:
        return "–"
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@register.filter
def figure(value: Any) -> str:
    """A number with four digits that matter; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", " ")  # narrow spaces
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.4g}"


@register.filter
def percent(share: float) -> str:
    """0.754 as `75 %`."""
    return f"{100 * share:.0f} %"


@register.filter
def state(value: str) -> SafeString:
    """A state: a word with a colour."""
    return format_html('<span class="state {}">{}</span>', _TONES.get(str(value), "idle"), value)


@register.filter
def pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)


@register.filter
def get(mapping: dict[str, Any] | None, key: str) -> Any:
    return (mapping or {}).get(key)


@register.filter
def shape(value: list[int]) -> str:
    return " × ".join(str(size) for size in value) or "scalar"


@register.simple_tag
def copy(value: Any, shown: int = 8, what: str = "id") -> SafeString:
    """A long id or digest: its telling end, and a button that copies all of it.

    Ids begin with the time, so neighbours share their first digits: of them the end is shown.
    """
    text = str(value)
    short = text[-shown:] if what == "id" else text[:shown]
    return format_html(
        '<span class="id"><code title="{}">{}</code>'
        '<button type="button" class="quiet copy" data-copy="{}" aria-label="Copy {} {}">{}</button></span>',
        text, short, text, what, short, _COPY_ICON,
    )  # fmt: skip


@register.inclusion_tag("partials/field.html")
def field(bound: BoundField, css: str = "") -> dict[str, Any]:
    """A form field with its label, hint and error, tied together for screen readers."""
    return {"field": bound, "css": css, "check": isinstance(bound.field.widget, CheckboxInput)}


@register.simple_tag
def studio_version() -> str:
    return VERSION
