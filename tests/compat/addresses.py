"""Every HTTP address that the dialects serve, read from the URL configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

METHODS = ("get", "post", "put", "patch", "delete")
NOWHERE = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Address:
    """`dialect` is controller, fedn or scaleout; `path` has `<name>` where something is filled in."""

    dialect: str
    method: str
    path: str

    @property
    def name(self) -> str:
        return f"{self.method.upper()} {self.path}"

    def filled(self, slug: str) -> str:
        """The path with that project, and otherwise an id that nothing has."""
        values = {"slug": slug, "upload_id": "0" * 32}
        return re.sub(r"<(\w+)>", lambda found: values.get(found[1], NOWHERE), self.path)


def addresses() -> list[Address]:
    """All of them, but for the copies below a project's own prefix."""
    from django.urls import get_resolver

    found = set()
    for route, view in _routes(get_resolver().url_patterns, ""):
        parts = view.__module__.split(".")
        if parts[:2] == ["federation", "dialects"] and "-fedn-reducer" not in route:
            methods = [method for method in METHODS if hasattr(view, method)]
            found |= {Address(parts[2], method, _readable(route)) for method in methods}
    return sorted(found, key=lambda address: (address.dialect, address.path, METHODS.index(address.method)))


def _routes(patterns: list[Any], prefix: str) -> Iterator[tuple[str, type]]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if hasattr(pattern, "url_patterns"):
            yield from _routes(pattern.url_patterns, route)
        elif view := getattr(pattern.callback, "view_class", None) or getattr(pattern.callback, "cls", None):
            yield route, view


def _readable(route: str) -> str:
    named = re.sub(r"\(\?P<(\w+)>(?:[^()\[\]]|\[[^\]]*\])*\)", r"<\1>", route)
    return "/" + re.sub(r"[\^$]|/\?", "", named)
