"""Published clients join addresses by hand: `//api/v1/packages/download` is asked for every day."""

from __future__ import annotations

import re
from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

_MANY = re.compile("/{2,}")
_OURS = re.compile(r"/api/|/[^/]+-fedn-reducer(/|$)")


def collapsed(path: str) -> str:
    """`path` with single slashes, if it is an API's; others stay as they are."""
    if "//" not in path:
        return path
    single = _MANY.sub("/", path)
    return single if _OURS.match(single) else path


class SingleSlashes:
    """Middleware: several slashes in an API's address mean one."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request.path_info = collapsed(request.path_info)
        return self.get_response(request)
