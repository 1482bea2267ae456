"""A model that is to be had elsewhere: the combiner's lane answers with a signed URL of the bucket that holds it.

The token is not sent there, and what comes is believed by its sha256 only.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

from .plain_http import Cancelling, blocks, connected, cut
from .tls import trusting

HEAD_TIMEOUT_S = 15.0


class ElsewhereClosed(Exception):
    """It cannot be had there; the combiner has it too."""


def download(
    url: str, offset: int, size: int, *, only_tls: bool, ca_pem: str | None, cancelling: Cancelling
) -> Iterator[memoryview]:
    """The `size` bytes of the object from `offset` on, each view valid until the next. Raises ElsewhereClosed, before
    the first, and LaneError."""
    try:
        parts = urlsplit(url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
    except ValueError:
        raise ElsewhereClosed("its address cannot be read") from None
    if not host or parts.scheme not in ("http", "https"):
        raise ElsewhereClosed("its address is none of HTTP")
    if only_tls and not secure:
        raise ElsewhereClosed("it is not encrypted, and this client's connection is")
    try:
        # a bucket of the same people may have a certificate of either
        tls = trusting(ca_pem, and_the_system=True) if secure else None
        connection = connected(host, port, tls, cancelling)
    except (OSError, ValueError, OverflowError, http.client.HTTPException) as error:
        raise ElsewhereClosed(str(error)) from None
    with closing(connection):
        try:
            ranged = {"Range": f"bytes={offset}-"} if offset else {}
            with _in_time(connection.sock):
                connection.request("GET", f"{parts.path or '/'}?{parts.query}", headers=ranged)
                answer = connection.getresponse()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ElsewhereClosed(str(error) or type(error).__name__) from None
        if answer.status != (206 if offset else 200):
            raise ElsewhereClosed(f"it answered with status {answer.status}")
        if answer.length != size:
            raise ElsewhereClosed(f"it has {answer.length} bytes for us, not {size}")
        yield from blocks(answer)


@contextmanager
def _in_time(sock: socket.socket) -> Iterator[None]:
    """Cut when it has not answered by then, however it passes the time."""
    timer = threading.Timer(HEAD_TIMEOUT_S, cut, [sock])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
