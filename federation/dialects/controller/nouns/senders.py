"""Who said it."""

from __future__ import annotations

from clients_app.models import Client
from federation.dialects.controller.asked import Filter, always, by_id, by_text
from federation.dialects.controller.noun import Shape


def node(name: str, role: str, client_id: object = "") -> Shape:
    return {"name": name, "role": role, "client_id": str(client_id or "")}


def client_node(client: Client | None, name: str = "") -> Shape:
    return node(client.name if client else name, "CLIENT", client.pk if client else "")


SENT_BY_CLIENTS: dict[str, Filter] = {
    "sender.name": by_text("client__name"),
    "sender.role": always("CLIENT"),
    "sender.client_id": by_id("client_id"),
}
