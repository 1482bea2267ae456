"""A combiner killed in the middle of a round, with published clients attached, and started again by `up`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.compat.environments import Environment
from tests.compat.runners import Device
from tests.compat.world import Site, World, assert_equal_layers, expected
from tests.services.stack import wait_for

pytestmark = [pytest.mark.once, pytest.mark.slow]

SHARES = {
    "fedn-quick": (1.0, 10),
    "fedn-held-back": (4.0, 20),
    "scaleout-quick": (2.0, 30),
    "scaleout-held-back": (7.0, 40),
}
# a FEDn client tries again ten seconds after it lost the combiner, then after twenty
BACK_WITHIN_S = 75.0


@pytest.fixture(scope="module")
def site(fedn_environment: Environment, scaleout_environment: Environment, world: World) -> Site:
    return world.site("Restart")


@pytest.fixture(scope="module")
def clients(site: Site) -> dict[str, Device]:
    """Four clients online; those held back train when the gate opens."""
    site.upload_package("importer")
    site.upload_package("command")
    start = {"fedn": site.fedn_client, "scaleout": site.scaleout_client}
    gates = {name: {"COMPAT_GATE": str(site.folder / "gate")} for name in SHARES if "held" in name}
    started = {
        name: start[name.partition("-")[0]](name, *SHARES[name], **gates.get(name, {})) for name in SHARES
    }
    site.until_online(*started)
    return started


@pytest.fixture(scope="module")
def finished(site: Site, clients: dict[str, Device]) -> dict[str, Any]:
    """A session of two rounds whose combiner died in the first: two updates accepted, two in training."""
    session = site.session(rounds=2, min_clients=4, min_updates=4, round_timeout_s=90)

    def two_accepted() -> bool:
        states = [row["status"] for row in site.api.assignments(site.slug, session)]
        return states.count("accepted") == 2

    wait_for(two_accepted, 30, "the first two updates")
    for name in ("fedn-held-back", "scaleout-held-back"):
        clients[name].until_said("waiting at the gate")
    killed = site.world.stack.kill("combiner-1")

    def back() -> bool:
        try:
            return site.world.stack.pid_of("combiner-1") != killed
        except LookupError:
            return False

    wait_for(back, 30, "the combiner to be started again")
    (site.folder / "gate").touch()
    return site.until_session(session, BACK_WITHIN_S)


def test_the_round_finishes_and_every_update_counts_once(finished: dict[str, Any], site: Site) -> None:
    assert finished["status"] == "finished", finished
    assert_equal_layers(site.layers_of(finished["current_model"]), expected(2, *SHARES.values()))
    rounds = list(site.api.rounds(site.slug, finished["id"]))
    assert {(row["number"], row["attempt"], row["status"]) for row in rounds} == {
        (1, 1, "finished"),
        (2, 1, "finished"),
    }


def test_the_clients_came_back_without_registering_again(
    finished: dict[str, Any], clients: dict[str, Device], site: Site
) -> None:
    for name, client in clients.items():
        assert client.alive
        assert len(client.said("api/v1/clients/add" if "fedn" in name else "Client assigned")) == 1
    for name in ("fedn-quick", "fedn-held-back"):
        assert len(clients[name].said("Listening to task stream")) >= 2
    assert all(row["online"] for row in site.api.clients(site.slug))


def test_nobody_was_asked_to_train_the_round_again(
    finished: dict[str, Any], clients: dict[str, Device]
) -> None:
    assert {name: len(client.said("Running train callback")) for name, client in clients.items()} == (
        dict.fromkeys(SHARES, 2)
    )
