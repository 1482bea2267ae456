"""Request bodies are limited before they are read: Django would spool any body to disk before it asks what it
is for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.conf import settings

from federation.dialects.controller.slashes import collapsed
from foundation.errors import StudioError

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[Any]]

_FORM_SLACK_BYTES = 1 << 20  # the other fields of a form, and its boundaries
_DRAIN_S = 10.0
_PACKAGES = re.compile(r"/api/v1/projects/[^/]+/packages/?|(/[^/]+-fedn-reducer)?/api/v1/packages/?")
_MODELS = re.compile(r"/api/v1/projects/[^/]+/models/?|(/[^/]+-fedn-reducer)?/api/v1/models/?")
_PAGES = re.compile(r"/projects/[^/]+/.+")


def limit_of(path: str) -> int:
    """The most bytes that a request to `path` may send."""
    path = collapsed(path)
    if _PACKAGES.fullmatch(path):
        return int(settings.MAX_PACKAGE_BYTES) + _FORM_SLACK_BYTES
    if _MODELS.fullmatch(path):
        return int(settings.MAX_MODEL_BYTES) + _FORM_SLACK_BYTES
    if _PAGES.fullmatch(path):
        return max(int(settings.MAX_MODEL_BYTES), int(settings.MAX_PACKAGE_BYTES)) + _FORM_SLACK_BYTES
    return int(settings.DATA_UPLOAD_MAX_MEMORY_SIZE) + _FORM_SLACK_BYTES


class _Exceeded(Exception):
    pass


class BodyLimit:
    """Refuses a body by its `Content-Length`, or, sent without one, as soon as it has grown too large: 413."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        most = limit_of(scope["path"])
        named = dict(scope["headers"]).get(b"content-length", b"0")
        if not named.isdigit() or int(named[:20]) > most:
            return await _refuse(most, receive, send)
        seen = 0
        started = False

        async def counted() -> Mapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _Exceeded
            return message

        async def noticed(message: Mapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            return await self.app(scope, counted, noticed)
        except _Exceeded:
            if started:
                raise
            return await _refuse(most, receive, send)


async def _refuse(most: int, receive: Receive, send: Send) -> None:
    refusal = StudioError(
        "too_large", f"The request is larger than the {most} bytes allowed here.", 413, max_bytes=most
    )
    body = json.dumps(refusal.as_problem()).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body[:-1], "more_body": True})
    # An honest client reads the answer only when it has sent everything: let it, for a while, into nothing.
    try:
        async with asyncio.timeout(_DRAIN_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": body[-1:]})
