"""One connection to one combiner: a channel, the task stream on it, and what is sent up that stream."""

from __future__ import annotations

import queue
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from .. import studio_v1_pb2 as pb
from ..studio_v1_pb2_grpc import CombinerStub
from . import frames
from .lane import Lane
from .telemetry import INTERVAL_S, Telemetry

PROTOCOL = 1
_SERVICE = pb.DESCRIPTOR.services_by_name["Combiner"].full_name
WELCOME_TIMEOUT_S = 15.0
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # gRPC waits a minute for an answer without it
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # two clients in one process must not share a TCP connection, nor each other's reconnect delays
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Address:
    """Where a combiner listens, and whether with TLS."""

    name: str
    target: str
    tls: bool


class NotWelcomed(Exception):
    """The combiner took the call but did not answer Hello in time."""


class Link:
    """Use `messages()` from one thread; `send` and `close` from any."""

    def __init__(self, address: Address, token: str, ca_pem: str | None) -> None:
        self.address = address
        self._token, self._ca_pem = token, ca_pem
        if address.tls:
            credentials = grpc.ssl_channel_credentials(ca_pem.encode() if ca_pem else None)
            self._channel = grpc.secure_channel(address.target, credentials, options=_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.target, options=_OPTIONS)
        self.stub: Any = CombinerStub(self._channel)
        # models travel as bytes that are made and read by hand
        self.upload: Any = self._channel.stream_unary(
            f"/{_SERVICE}/Upload",
            request_serializer=frames.upload_chunk,
            response_deserializer=pb.Receipt.FromString,
        )
        self.download: Any = self._channel.unary_stream(
            f"/{_SERVICE}/Download",
            request_serializer=pb.DownloadRequest.SerializeToString,
            response_deserializer=frames.download_chunk,
        )
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.upload_forms: frozenset[str] = frozenset()  # compressed updates that this combiner reads
        self.lane: Lane | None = None  # where large models go without gRPC
        self._outbox: queue.SimpleQueue[pb.ClientMessage | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._call: Any = None

    def send(self, message: pb.ClientMessage) -> None:
        """Put a message on the stream; lost when the stream is."""
        self._outbox.put(message)

    def messages(self, hello: pb.Hello, welcomed: Callable[[pb.Welcome], None]) -> Iterator[pb.ServerMessage]:
        """Open the stream, say Hello, call `welcomed`, then yield what comes. Raises grpc.RpcError, NotWelcomed."""
        self._outbox.put(pb.ClientMessage(hello=hello))
        self._call = self.stub.Connect(self._outgoing(), metadata=self.metadata)
        if self._closed.is_set():  # closed before there was a call to cancel
            self._call.cancel()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._call.cancel()

        timer = threading.Timer(WELCOME_TIMEOUT_S, give_up)
        timer.daemon = True
        timer.start()
        try:
            for message in self._call:
                if message.WhichOneof("message") == "welcome":
                    timer.cancel()
                    self.upload_forms = frozenset(message.welcome.upload_forms)
                    self.lane = self._lane(message.welcome.lane)
                    welcomed(message.welcome)
                else:
                    yield message
        except grpc.RpcError:
            if late.is_set():
                raise NotWelcomed from None
            raise
        finally:
            timer.cancel()
            self._outbox.put(None)

    def _lane(self, named: str) -> Lane | None:
        """What the combiner names: host:port, or :port of the host that it was reached by."""
        target = self.address.target.rpartition(":")[0] + named if named.startswith(":") else named
        if not _HOST_AND_PORT.fullmatch(target):
            return None
        try:
            return Lane(target, self._token, self.address.tls, self._ca_pem)
        except ssl.SSLError:  # an authority that gRPC can read, and Python cannot
            return None

    def _outgoing(self) -> Iterator[pb.ClientMessage]:
        telemetry = Telemetry()
        due = time.monotonic() + INTERVAL_S
        while True:
            try:
                message = self._outbox.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                due = time.monotonic() + INTERVAL_S
                message = pb.ClientMessage(telemetry=pb.Telemetry(values=telemetry.read()))
            if message is None:
                return
            yield message

    def say_bye(self, reason: str) -> None:
        """Tell the combiner that this client goes on purpose, and end the sending side."""
        self._outbox.put(pb.ClientMessage(bye=pb.Bye(reason=reason)))
        self._outbox.put(None)

    def close(self) -> None:
        """End the stream and every transfer on this channel."""
        self._closed.set()
        self._outbox.put(None)
        if self._call is not None:
            self._call.cancel()
        self._channel.close()
