"""Every address of the site, from the resolver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from django.urls import URLPattern, URLResolver, get_resolver

from tests.permissions.tables import TABLE


@dataclass(frozen=True)
class Route:
    name: str
    pattern: str
    params: tuple[str, ...]


def _routes(resolver: URLResolver, prefix: str = "", space: str = "") -> Iterator[Route]:
    for entry in resolver.url_patterns:
        here = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from _routes(entry, here, f"{space}{entry.namespace}:" if entry.namespace else space)
        elif isinstance(entry, URLPattern):
            params = tuple(re.findall(r"<(?:\w+:)?(\w+)>", here))
            yield Route(f"{space}{entry.name}", here, params)


ROUTES = list(_routes(get_resolver()))
# published clients' addresses, which have tables of their own
PUBLISHED = ("controller:", "controller-root:", "reducer:", "fedn:", "scaleout-", "command-line-login")
OURS = [
    route
    for route in ROUTES
    if not route.pattern.startswith("admin/") and not route.name.startswith(PUBLISHED)
]
ADMIN_SITE = [route for route in ROUTES if route.pattern.startswith("admin/")]
BY_NAME = {route.name: route for route in OURS}
CASES = [(route.name, method) for route in OURS for method in TABLE.get(route.name, {})]
