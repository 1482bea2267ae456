"""What clients say of themselves: one value per key, the newest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from clients_app.models import Client
from clients_app.services import set_attribute
from federation.dialects.controller.asked import Page, as_uuid, fields_of, page_of, snake, when
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.nouns.clients import CLIENTS
from federation.dialects.controller.nouns.senders import client_node
from federation.dialects.controller.view import ControllerView, answer
from foundation.errors import StudioError, invalid

_MAX_CLIENTS = 1000


def _shape(row: Client, key: str, value: Any) -> dict[str, Any]:
    seen = when(row.last_seen_at or row.created_at)
    return {
        "attribute_id": f"{row.pk}:{key}",
        "key": key,
        "value": value if isinstance(value, str) else str(value),
        "timestamp": seen,
        "sender": client_node(row),
        "committed_at": seen,
        "updated_at": seen,
    }


def _all(caller: Caller, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every attribute that matches, newest client first."""
    narrow: dict[str, Any] = {}
    wanted: dict[str, set[str]] = {}
    for name, value in given.items():
        match snake(name):
            case "entity_id" | "node_id" | "client_id" | "sender.client_id":
                narrow["client_id"] = value
            case "sender.name":
                narrow["name"] = value
            case "sender.role":
                if value != "CLIENT":
                    return []
            case "key" | "value" | "attribute_id" as field:
                wanted[field] = set(str(value).split(","))
            case _:
                raise invalid(
                    "filter",
                    f"Attributes cannot be filtered by {name[:80]!r}, only by key, value and sender.",
                )
    rows = CLIENTS.matching(caller, narrow).exclude(attributes={}).order_by("-created_at", "-pk")
    shapes = [
        _shape(row, key, value)
        for row in rows
        if isinstance(row.attributes, dict)
        for key, value in row.attributes.items()
    ]
    return [shape for shape in shapes if all(shape[field] in values for field, values in wanted.items())]


def _listed(caller: Caller, given: Mapping[str, Any], page: Page) -> dict[str, Any]:
    found = _all(caller, given)
    if page.key in ("key", "value", "attribute_id"):
        found.sort(key=lambda shape: str(shape[page.key]), reverse=page.descending)
    elif not page.descending:
        found.reverse()
    return {"count": len(found), "result": found[page.skip : page.skip + page.limit]}


class Attributes(ControllerView):
    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(_listed(caller, request.GET.dict(), page_of(request)))

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        """Set one attribute of a client, as somebody who looks after it."""
        given = fields_of(request)
        sender = given.get("sender")
        client_id = sender.get("client_id") if isinstance(sender, Mapping) else None
        for word in ("sender.client_id", "entity_id", "node_id", "client_id"):  # Scaleout's words for it
            client_id = client_id or given.get(word)
        key, value = given.get("key"), given.get("value")
        if not client_id or not isinstance(key, str) or not key or value is None:
            raise invalid("sender", "An attribute needs a key, a value and a sender with a client_id.")
        client = CLIENTS.row(caller, str(client_id))
        row = set_attribute(actor=caller.actor, client=client, key=key, value=str(value))
        return answer(_shape(row, key, str(value)), 201)


class AttributesByBody(ControllerView):
    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(_listed(caller, fields_of(request), page_of(request)))


class AttributesCount(ControllerView):
    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(len(_all(caller, request.GET.dict())))

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        return answer(len(_all(caller, fields_of(request))))


class OneAttribute(ControllerView):
    def get(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        client_id, _, key = pk.partition(":")
        row = CLIENTS.row(caller, client_id) if as_uuid(client_id) else None
        if row is None or not isinstance(row.attributes, dict) or key not in row.attributes:
            raise StudioError("not_found", f"Entity with id: {pk[:200]} not found", 404)
        return answer(_shape(row, key, row.attributes[key]))


class CurrentAttributes(ControllerView):
    """POST attributes/current: by client what it says of itself now."""

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        given = fields_of(request)
        named = given.get("client_ids") or given.get("node_ids")
        if not isinstance(named, list) or not named:
            raise invalid("client_ids", "Missing required field: client_ids")
        names = [str(name) for name in named[:_MAX_CLIENTS]]
        rows = {str(row.pk): row for row in CLIENTS.matching(caller, {"client_id": names})}
        return answer({name: _said(rows.get(name), name) for name in names})


class ClientAttributes(ControllerView):
    def get(self, request: HttpRequest, caller: Caller, pk: str) -> HttpResponseBase:
        return answer(_said(CLIENTS.row(caller, pk), pk))


def _said(row: Client | None, name: str) -> Any:
    if row is None:
        return f"Entity with client_id: {name} not found"
    return (
        {key: str(value) for key, value in row.attributes.items()} if isinstance(row.attributes, dict) else {}
    )
