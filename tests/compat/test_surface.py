"""Every RPC of the published descriptors and every address of the dialects, asked once: served, or refused in words."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.compat.addresses import Address, addresses
from tests.compat.environments import Environment
from tests.compat.outcomes import Outcomes
from tests.compat.wheels import enumerated
from tests.compat.world import Site, World

pytestmark = [pytest.mark.once, pytest.mark.slow]

ANSWERS_WITHIN_S = 5.0
BETWEEN_SERVERS = (
    "FEDn's own servers speak it among each other; Studio stands for all of them, and no client calls it"
)
# what no client of today calls, and why it is not served
UNSERVED = {
    "/fedn.Control/": BETWEEN_SERVERS,
    "/fedn.Reducer/": BETWEEN_SERVERS,
    "/fedn.FunctionService/": BETWEEN_SERVERS,
    "/fedn.Connector/AllianceStatusStream": BETWEEN_SERVERS,
    "/fedn.Connector/ListActiveClients": BETWEEN_SERVERS,
    "/fedn.Connector/ReassignClient": BETWEEN_SERVERS,
    "/fedn.Connector/ReconnectClient": BETWEEN_SERVERS,
    "/fedn.Combiner/SendBackwardCompletion": "split learning is not offered",
}


@pytest.fixture(scope="module")
def site(world: World) -> Site:
    return world.site("Surface")


@pytest.fixture(scope="module")
def wheels(
    fedn_environment: Environment, scaleout_environment: Environment, world: World
) -> dict[str, dict[str, Any]]:
    return {name: enumerated(name, world.folder / name) for name in ("fedn", "scaleout")}


def ended(
    channel: grpc.Channel, path: str, rpc: dict[str, Any], metadata: list[tuple[str, str]]
) -> grpc.RpcError | None:
    """How a call with an empty message ends; nothing when it is answered."""
    kind = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[rpc["client_streams"], rpc["server_streams"]]
    request: Any = iter([b""]) if rpc["client_streams"] else b""
    try:
        answer = kind(path)(request, metadata=metadata, timeout=ANSWERS_WITHIN_S)
        if rpc["server_streams"]:
            list(answer)
    except grpc.RpcError as error:
        return error
    return None


def test_every_rpc_that_a_client_calls_is_served(
    site: Site, wheels: dict[str, dict[str, Any]], outcomes: Outcomes
) -> None:
    client_id = str(uuid.uuid4())
    fedn = [("client", client_id)]
    site.post("clients/add", site.enrolment_token, name="prober", client_id=client_id, package="local")
    enrolled = site.post("clients/enroll", site.scaleout_ticket, name="poller", client_id=str(uuid.uuid4()))
    scaleout = [
        ("client", enrolled["client_id"]),
        ("client-id", enrolled["client_id"]),
        ("authorization", f"Bearer {enrolled['access_token']}"),
    ]
    calls = [
        (name, path, rpc, fedn if name == "fedn" else scaleout)
        for name in wheels
        for path, rpc in wheels[name]["rpcs"].items()
    ]
    with grpc.insecure_channel(site.world.stack.combiner) as channel, ThreadPoolExecutor(len(calls)) as pool:
        ends = list(pool.map(lambda call: ended(channel, *call[1:]), calls))
    for (name, path, _rpc, _metadata), error in zip(calls, ends):
        code = error.code() if error else grpc.StatusCode.OK  # type: ignore[attr-defined]
        assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (path, error)
        why = next((UNSERVED[start] for start in UNSERVED if path.startswith(start)), None)
        assert (code == grpc.StatusCode.UNIMPLEMENTED) == (why is not None), (path, code)
        if why:
            outcomes.refused(name, "rpcs", path, f"{code.name}: {why}.")
        else:
            outcomes.works(name, "rpcs", path)


def asked(site: Site, address: Address) -> tuple[int, Any]:
    """Status and answer of one call with the project's token, an id that nothing has and no content."""
    token = site.user_token if address.dialect == "fedn" else site.admin_token
    request = urllib.request.Request(
        # nothing is deleted here: a project that does not exist is
        f"{site.url}{address.filled('nothing' if address.method == 'delete' else site.slug)}",
        None if address.method == "get" else b"{}",
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "X-Project-Slug": site.slug},
        method=address.method.upper(),
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWERS_WITHIN_S) as answer:
            return int(answer.status), _content(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, _content(error.read())


def _content(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def test_every_address_answers_in_the_shape_that_clients_read(site: Site, outcomes: Outcomes) -> None:
    assert len(addresses()) > 80
    for address in addresses():
        status, answer = asked(site, address)
        assert status not in (403, 405, 429), address.name  # FEDn's client dies of them
        assert status < 500, (address.name, answer)
        if status >= 400:
            assert {"message", "detail", "error"} & set(answer), (address.name, answer)
        outcomes.answered(address.dialect, "addresses", address.name, answer)
