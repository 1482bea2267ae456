"""Why a TLS connection was refused, in words. gRPC only says that the handshake failed."""

from __future__ import annotations

import socket
import ssl

PROBE_TIMEOUT_S = 5.0


def trusting(ca_pem: str | None, *, and_the_system: bool = False) -> ssl.SSLContext:
    """Trusts that authority only, or, without one, those of this system, or both. Raises ssl.SSLError."""
    # what stands around the certificates may be in any script; the ssl module wants ASCII
    named = ca_pem.encode("ascii", "ignore").decode() if ca_pem else None
    context = ssl.create_default_context(cadata=named)
    if and_the_system:
        context.load_default_certs()
    return context


def refusal(address: str, ca_pem: str | None) -> str | None:
    """The reason the combiner's certificate is not to be trusted; None when it is, or when nothing answers."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        context = trusting(ca_pem)
    except ssl.SSLError as error:
        return f"the certificate authority in the client config cannot be used ({error.reason or error})"
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return error.verify_message or "its certificate cannot be verified"
    except ssl.SSLError as error:
        # the port answers, but not with TLS
        return (
            f"it does not speak TLS there ({error.reason})"
            if error.reason == "WRONG_VERSION_NUMBER"
            else None
        )
    except (OSError, ValueError):
        return None
