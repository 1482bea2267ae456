"""What a gRPC call says of its caller, whatever dialect it speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

Context = Any  # grpc.aio.ServicerContext, whose type parameters differ per call

STATUS_OF_HTTP = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


@dataclass(frozen=True)
class Caller:
    """`secret`: the bearer token, empty without one; `address`: the IP address; `metadata`: its text entries."""

    secret: str
    address: str
    tls: bool
    metadata: dict[str, str]


def caller_of(context: Context) -> Caller:
    metadata = {
        key.lower(): value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    scheme, _, secret = metadata.get("authorization", "").partition(" ")
    return Caller(
        secret=secret.strip() if scheme.lower() == "bearer" else "",
        address=address_of(context.peer()),
        tls=b"ssl" in (context.auth_context() or {}).get("transport_security_type", ()),
        metadata=metadata,
    )


def address_of(peer: str) -> str:
    """The IP address in gRPC's name of a peer, such as `ipv4:10.0.0.7:51234` or `ipv6:%5B::1%5D:51234`."""
    _kind, _, rest = peer.partition(":")
    return rest.rpartition(":")[0] or peer
