"""The servers that clients stream to. They serve every project; a project reads them and changes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clients_app.models import Combiner
from clients_app.selectors import combiners_of, host_for
from federation.dialects.controller.asked import Lookup, as_uuid, by_id, by_text, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.noun import Noun, Shape

TLS_PORT = 443  # the only one on which FEDn's client speaks TLS


def split(address: str) -> tuple[str, int]:
    """`host:port` as its two parts, the port 0 where none is named; an IPv6 host keeps its brackets, for clients join
    the two again."""
    host, _, port = address.rpartition(":")
    return (host, int(port)) if host and port.isdigit() else (address, 0)


def fqdn_of(row: Combiner) -> str:
    """The name to reach it by TLS on port 443; empty when it has no such listener."""
    host, port = split(row.tls_address)
    return host if port == TLS_PORT else ""


def rows(caller: Caller) -> Any:
    return combiners_of(caller.project)


def shaped(caller: Caller, found: Sequence[Combiner]) -> list[Shape]:
    shapes: list[Shape] = []
    for row in found:
        host, port = split(row.address or row.tls_address)
        shapes.append(
            {
                "combiner_id": str(row.pk),
                "name": row.name,
                "address": host,
                "fqdn": fqdn_of(row),
                "ip": host,
                "parent": {},
                "port": port,
                "status": "online" if getattr(row, "alive", False) else "offline",
                "active_clients": getattr(row, "active_clients", 0),
                "public_hostname": host_for(caller.project, row) or host,
                "version": row.version,
                "committed_at": when(row.created_at),
                "updated_at": when(row.started_at or row.created_at),
            }
        )
    return shapes


def find(caller: Caller, name: str) -> Lookup | None:
    """By id or by name."""
    found = as_uuid(name)
    return {"pk": found} if found else {"name": name} if "\x00" not in name else None


COMBINERS = Noun(
    "combiners",
    rows,
    shaped,
    find,
    filters={"combiner_id": by_id("pk"), "name": by_text("name"), "version": by_text("version")},
    order={"name": "name", "combiner_id": "pk", "updated_at": "started_at"},
)
