"""Two published Scaleout clients, enrolled, with a remote package: five rounds, metrics, validations."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.compat.environments import Environment
from tests.compat.runners import Device
from tests.compat.world import Site, World, assert_equal_layers, expected, share

pytestmark = [pytest.mark.once, pytest.mark.slow]

ROUNDS = 5
SHARES = {"north": (1.0, 10), "south": (3.0, 30)}


def post(site: Site, path: str, token: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{site.url}/{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


@pytest.fixture(scope="module")
def site(scaleout_environment: Environment, world: World) -> Site:
    return world.site("Scaleout")


@pytest.fixture(scope="module")
def clients(site: Site) -> dict[str, Device]:
    """The project's importer package, and two clients of it online by one enrolment ticket."""
    site.upload_package("importer")
    ticket = post(site, "api/v1/auth/enrollment-tokens", site.admin_token, name="lab", expires_in_hours=1)
    started = {
        name: site.world.devices.start_scaleout_client(
            name, url=site.url, token=ticket["token"], env=share(step, examples)
        )
        for name, (step, examples) in SHARES.items()
    }
    site.until_online(*started)
    return started


@pytest.fixture(scope="module")
def trained(site: Site, clients: dict[str, Device]) -> dict[str, Any]:
    package = next(iter(site.api.packages(site.slug)))
    return site.until_session(
        site.session(rounds=ROUNDS, min_clients=2, validate=True, package=package["id"]), timeout=90
    )


def test_they_show_as_scaleout_clients_under_their_own_ids(site: Site, clients: dict[str, Device]) -> None:
    rows = {row["name"]: row for row in site.api.clients(site.slug)}
    for name, device in clients.items():
        assert (rows[name]["id"], rows[name]["dialect"], rows[name]["version"]) == (
            device.client_id,
            "scaleout",
            "1.1.0",
        )


def test_five_rounds_give_the_weighted_mean(site: Site, trained: dict[str, Any]) -> None:
    assert trained["status"] == "finished", trained
    assert trained["rounds_done"] == ROUNDS
    assert_equal_layers(site.layers_of(trained["current_model"]), expected(ROUNDS, *SHARES.values()))
