"""The gRPC shell: two listeners (TLS and plain), every dialect on both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from federation.combiner.core import CombinerCore
from foundation.errors import StudioError

Dialect = Callable[[CombinerCore, grpc.aio.Server], None]

WAITING_CALLS = 50_000

OPTIONS = [
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 4 << 20),
    # A stream that is cut is noticed within 30 s; clients may ping as often as every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # gRPC waits a minute for an answer without it
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
    # Thousands of clients ask for a new model in the same second: gRPC would cancel calls that wait to be begun with,
    # some of them from a thousand on, all from three thousand on or after half a minute.
    ("grpc.server.max_pending_requests", WAITING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", WAITING_CALLS),
    ("grpc.server_max_unrequested_time_in_server", 300),  # seconds
    # Memory per transfer stays bounded: windows are not widened for a fast peer.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.experimental.tcp_max_read_chunk_size", 128 << 10),
    ("grpc.http2.lookahead_bytes", 128 << 10),
]


@dataclass(frozen=True)
class Listeners:
    """Where to listen. A port of 0 picks a free one; an empty host: not at all. `lane_port`: where models travel
    without gRPC, on the host of the TLS listener if there is one, else of the plain one; None: nowhere."""

    host: str = ""
    port: int = 0
    tls_host: str = ""
    tls_port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    lane_port: int | None = None

    @property
    def tls(self) -> bool:
        return bool(self.tls_host and self.tls_cert and self.tls_key)

    @property
    def main_host(self) -> str:
        return self.tls_host if self.tls else self.host


def build_server(core: CombinerCore, dialects: Iterable[Dialect]) -> grpc.aio.Server:
    server = grpc.aio.server(options=OPTIONS)
    for register in dialects:
        register(core, server)
    answers = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs know no aio
    health_pb2_grpc.add_HealthServicer_to_server(answers, server)
    server.studio_health = answers  # type: ignore[attr-defined]  # kept alive beside the server
    return server


def listen(server: grpc.aio.Server, listeners: Listeners) -> tuple[str, str]:
    """Bind both listeners; answers (plain, tls) as host:port, empty where there is none. Raises StudioError."""
    plain = tls = ""
    if listeners.host:
        plain = _bind(listeners.host, lambda at: server.add_insecure_port(at), listeners.port)
    if listeners.tls_host and listeners.tls_cert and listeners.tls_key:
        try:
            pair = (listeners.tls_key.read_bytes(), listeners.tls_cert.read_bytes())
        except OSError as error:
            raise StudioError("tls_files", f"The TLS certificate or key cannot be read: {error}.") from None
        credentials = grpc.ssl_server_credentials([pair])
        tls = _bind(
            listeners.tls_host, lambda at: server.add_secure_port(at, credentials), listeners.tls_port
        )
    return plain, tls


def _bind(host: str, add: Callable[[str], int], port: int) -> str:
    try:
        bound = add(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise StudioError("port_taken", f"Port {port} of {host} cannot be listened on; is it taken?")
    return f"{host}:{bound}"
