"""How a published client joins a project, in the statuses it survives."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase

from clients_app.models import Client, Combiner
from clients_app.placement import best_combiner, pin_text
from clients_app.selectors import host_for
from clients_app.services import register_device
from federation.dialects.controller.asked import as_uuid, fields_of
from federation.dialects.controller.callers import Caller
from federation.dialects.controller.nouns.combiners import TLS_PORT, fqdn_of, split
from federation.dialects.controller.nouns.packages import DEFAULT_HELPER
from federation.dialects.controller.view import ControllerView, answer
from federation.dialects.controller.views.packages import package_for
from federation.models.selectors import helper_of
from foundation.errors import StudioError, invalid
from foundation.problems import headers_of

TRY_LATER = 203  # the one answer upon which FEDn's client comes back
_SURVIVED = (400, 401, 404)  # any other makes it end with a traceback


def _later(message: str) -> StudioError:
    return StudioError("try_later", message, TRY_LATER)


class Join(ControllerView):
    """POST clients/add: a device makes itself known and is told its combiner."""

    for_devices = True

    def post(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        given = fields_of(request)
        package = str(given.get("package") or "local")
        client_id = _client_id(given.get("client_id"))
        speaks = "scaleout" if caller.is_ticket or "client_version" in given else "fedn"
        client = register_device(
            token=caller.token,
            client_id=client_id,
            name=str(given.get("name") or client_id or "client"),
            dialect=speaks,
            version=str(given.get("client_version") or ""),
            project=caller.project,
        )
        if package == "remote" and package_for(caller) is None:  # it is known already, and waits
            raise _later("No compute package found. Set package in controller.")
        preferred = str(given.get("preferred_combiner") or given.get("combiner_preferred") or "")
        combiner = best_combiner(client, preferred)
        if combiner is None:
            raise _later(f"No combiner available{_that_fits(client)}.")
        helper = helper_of(caller.project) or DEFAULT_HELPER
        prefers_tls = speaks == "scaleout" and request.is_secure()
        return answer(_assigned(client, combiner, package, helper, prefers_tls))

    def refused(self, refusal: StudioError, error: Exception) -> HttpResponseBase:
        status = {403: 401, 413: 400, 405: 405}.get(refusal.status, refusal.status)
        if status not in (*_SURVIVED, 405):
            status = TRY_LATER
        said: dict[str, Any] = {"success": False, "message": refusal.message}
        headers = headers_of(refusal, error) if status == refusal.status else {}
        said |= {"status": "retry"} if status == TRY_LATER else {}
        return JsonResponse(said, status=status, headers=headers)


def _that_fits(client: Client) -> str:
    return f" with {pin_text(client.pin)}, to which this client is pinned" if client.pin else ""


def _client_id(given: Any) -> Any:
    if given in (None, ""):
        return None
    found = as_uuid(given)
    if found is None:
        raise invalid("client_id", f"client_id must be a UUID, such as {'a' * 8}-bbbb-4ccc-8ddd-{'e' * 12}.")
    return found


def _assigned(
    client: Client, combiner: Combiner, package: str, helper: str, prefers_tls: bool
) -> dict[str, Any]:
    """What both kinds of clients read. FEDn's takes `fqdn` (TLS, port 443) or else `host` and `port` (plain text);
    Scaleout's takes `public_hostname`, `port` and `grpc_secure`."""
    named, at_port = split(host_for(client.project, combiner))
    fqdn = fqdn_of(combiner)
    secure = bool(combiner.tls_address) and (bool(fqdn) or prefers_tls or not combiner.address)
    host, port = split(combiner.tls_address if secure else combiner.address)
    host, port = named or host, at_port or port
    fqdn = (named or fqdn) if at_port in (0, TLS_PORT) and fqdn else ""
    return {
        "status": "assigned",
        "client_id": str(client.pk),
        "host": host,
        "port": TLS_PORT if fqdn else port,
        "fqdn": fqdn,
        "ip": host,
        "package": package,
        "helper_type": helper,
        "public_hostname": host,
        "internal_hostname": host,
        "grpc_secure": secure,
    }


class ClientConfig(ControllerView):
    """GET clients/config: where clients of this project begin."""

    def get(self, request: HttpRequest, caller: Caller) -> HttpResponseBase:
        scheme = "https" if request.is_secure() else "http"
        shape: dict[str, Any] = {
            "network_id": caller.project.slug,
            "discover_host": f"{scheme}://{request.get_host()}/{caller.project.slug}-fedn-reducer",
            "discover_port": int(request.get_port()),
        }
        package = package_for(caller)
        if request.GET.get("checksum", "true").lower() == "true" and package is not None:
            shape["checksum"] = package.sha256
        return answer(shape)
