"""Whose page may open a socket. Browsers send cookies along with any page's socket, so the page's origin decides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.http.request import validate_host

CLOSE_FOREIGN_ORIGIN = 4403
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[Any]]
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class OwnOriginOnly:
    """Lets sockets through whose page came from this very host and port, or from an origin that the settings trust.
    A socket that shows a token instead of cookies needs no origin: no other page can make it do so."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        headers = dict(scope["headers"])
        if b"authorization" in headers or is_own_origin(
            headers.get(b"origin", b"").decode("latin-1"),
            headers.get(b"host", b"").decode("latin-1"),
            secure=scope.get("scheme") == "wss",
        ):
            return await self.app(scope, receive, send)
        await receive()  # websocket.connect
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": CLOSE_FOREIGN_ORIGIN, "reason": "foreign origin"})


def is_own_origin(origin: str, host: str, *, secure: bool) -> bool:
    """Whether a page of `origin` (`scheme://host[:port]`) belongs to the server that was asked for as `host`."""
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    try:
        page, asked = urlsplit(origin), urlsplit(f"{'https' if secure else 'http'}://{host}")
        page_port, asked_port = _port(page), _port(asked)
    except ValueError:
        return False
    if page.scheme not in ("http", "https") or not page.hostname or page.hostname != asked.hostname:
        return False
    # behind a proxy that ends TLS the scheme may differ, and with it the default port
    same_port = page_port == asked_port or (page.port is None and asked.port is None)
    bare = f"[{asked.hostname}]" if ":" in page.hostname else page.hostname
    return same_port and validate_host(bare, settings.ALLOWED_HOSTS)


def _port(url: Any) -> int | None:
    port: int | None = url.port
    return port if port is not None else _DEFAULT_PORTS.get(url.scheme)
