"""A bucket that keeps the heads of the requests it gets, and answers them all in the same way, right or wrong."""

from __future__ import annotations

import contextlib
import socketserver
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class HostileBucket(socketserver.ThreadingTCPServer):
    """`heads`: what it was asked. `left`: a client went while the answer stood still."""

    daemon_threads = True

    def __init__(self, answer: bytes, *, for_ever: bool, tls: tuple[Path, Path] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answer, self.for_ever = answer, for_ever
        self.heads: list[bytes] = []
        self.left = False
        self.over = threading.Event()
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_address[1]}"


class _Answer(socketserver.BaseRequestHandler):
    server: Any

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (came := self.request.recv(4096)):
            head += came
        self.server.heads.append(head)
        with contextlib.suppress(OSError):
            self.request.sendall(self.server.answer)
            self.request.settimeout(0.05)
            while self.server.for_ever and not self.server.over.is_set():
                if b" 100 " in self.server.answer:
                    self.request.sendall(self.server.answer)
                with contextlib.suppress(TimeoutError):
                    if not self.request.recv(100):
                        break
        self.server.left = not self.server.over.is_set()


@contextlib.contextmanager
def answering(
    answer: bytes, *, for_ever: bool = False, tls: tuple[Path, Path] | None = None
) -> Iterator[HostileBucket]:
    """`for_ever`: the answer stands still, or, a 100, comes again and again."""
    with HostileBucket(answer, for_ever=for_ever, tls=tls) as bucket:
        threading.Thread(target=bucket.serve_forever, daemon=True).start()
        try:
            yield bucket
        finally:
            bucket.over.set()
            bucket.shutdown()
