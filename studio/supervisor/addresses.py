"""Hosts and ports: what may be served in plain text, what is free, and what to tell people to open."""

from __future__ import annotations

import ipaddress
import socket

from studio.supervisor.refusal import Refused

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104  (compared with, not bound)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, option: str) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    The supervisor keeps it open, so that a web process that is started again serves the same port and nobody who
    connects in between is refused.

    Raises:
        Refused: the name does not resolve, or the port is taken.
    """
    sock = _bind(host, port, option)
    sock.listen(512)
    sock.set_inheritable(True)
    return sock


def pick_port(host: str, port: int, option: str) -> int:
    """`port` when it is free on `host`, or for 0 some free port.

    Raises:
        Refused: the name does not resolve, or the port is taken.
    """
    with _bind(host, port, option) as probe:
        return int(probe.getsockname()[1])


def _bind(host: str, port: int, option: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise Refused(f"Cannot listen on {host}:{port}: {error}. Check --host and {option}.") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, OverflowError) as error:
        sock.close()
        raise Refused(
            f"Port {port} on {host} cannot be used ({error}): another program may hold it. "
            f"Choose another with {option}, or 0 for a free one."
        ) from error
    return sock


def reachable_name(host: str) -> str:
    """The name under which others reach a server bound to `host`."""
    return socket.gethostname() if host in WILDCARDS else host


def join(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def names_of(host: str) -> list[str]:
    """Host names that requests to a server bound to `host` may carry."""
    names = ["localhost", "127.0.0.1", "[::1]"]
    if host not in WILDCARDS:
        return [*names, host]
    names += [socket.gethostname(), socket.getfqdn()]
    try:
        names += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)]
    except OSError:
        pass  # a machine that cannot resolve its own name is still served by address
    return sorted(set(names), key=names.index)
