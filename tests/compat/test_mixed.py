"""One session with one native, one FEDn and one Scaleout client, each with the package form that it understands."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.compat.environments import Environment
from tests.compat.runners import Device
from tests.compat.world import Site, World, assert_equal_layers, expected
from tests.services.stack import wait_for

pytestmark = [pytest.mark.once, pytest.mark.slow]

ROUNDS = 3
SHARES = {"native": (1.0, 10), "fedn": (2.0, 20), "scaleout": (6.0, 30)}


@pytest.fixture(scope="module")
def site(fedn_environment: Environment, scaleout_environment: Environment, world: World) -> Site:
    return world.site("Mixed")


@pytest.fixture(scope="module")
def clients(site: Site) -> dict[str, Device]:
    """Both forms of the package uploaded, and three clients online."""
    site.upload_package("importer")
    start = {"native": site.native_client, "fedn": site.fedn_client, "scaleout": site.scaleout_client}
    site.upload_package("command")
    started = {dialect: start[dialect](f"{dialect}-1", *SHARES[dialect]) for dialect in SHARES}
    site.until_online(*(device.name for device in started.values()))
    return started


@pytest.fixture(scope="module")
def trained(site: Site, clients: dict[str, Device]) -> dict[str, Any]:
    package = next(row["id"] for row in site.api.packages(site.slug) if row["name"] == "compat command")
    session = site.session(rounds=ROUNDS, min_clients=3, min_updates=3, validate=True, package=package)
    return site.until_session(session)


def test_the_final_model_is_the_weighted_mean_of_all_three(site: Site, trained: dict[str, Any]) -> None:
    assert trained["status"] == "finished", trained
    assert_equal_layers(site.layers_of(trained["current_model"]), expected(ROUNDS, *SHARES.values()))


def test_each_took_part_in_every_round(site: Site, trained: dict[str, Any]) -> None:
    accepted = Counter(
        (row["client_name"], row["kind"])
        for row in site.api.assignments(site.slug, trained["id"])
        if row["status"] == "accepted"
    )
    assert accepted == {
        (f"{dialect}-1", kind): ROUNDS for dialect in SHARES for kind in ("train", "validate")
    }


def test_each_says_what_it_is(site: Site, clients: dict[str, Device]) -> None:
    dialects = {row["name"]: row["dialect"] for row in site.api.clients(site.slug)}
    assert dialects == {device.name: dialect for dialect, device in clients.items()}


def test_each_ran_the_form_it_understands(
    site: Site, clients: dict[str, Device], trained: dict[str, Any]
) -> None:
    for device in clients.values():
        device.until_said("the package has started", timeout=1)
    assert list(clients["scaleout"].home.rglob("scaleout.yaml"))
    for dialect in ("native", "fedn"):
        assert list(clients[dialect].home.rglob("fedn.yaml"))
        assert not list(clients[dialect].home.rglob("scaleout.yaml"))


def test_every_validation_is_of_the_same_model(site: Site, trained: dict[str, Any]) -> None:
    def complete() -> list[dict[str, Any]]:
        rows = list(site.api.model_validations(site.slug, trained["current_model"]))
        return rows if len(rows) == 3 else []

    said = wait_for(complete, 20, "three validations of the last model")
    total = float(sum(layer.sum() for layer in expected(ROUNDS, *SHARES.values())))
    assert [row["data"]["total"] for row in said] == pytest.approx([total] * 3, rel=1e-5)
    assert {row["data"]["step"] for row in said} == {step for step, _ in SHARES.values()}
