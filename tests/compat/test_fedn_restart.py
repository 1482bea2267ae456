"""A combiner killed in the middle of a round, with published FEDn clients attached, and started again by `up`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.compat.environments import Environment
from tests.compat.runners import Device
from tests.compat.world import Site, World, assert_equal_layers, expected
from tests.services.stack import wait_for

pytestmark = [pytest.mark.once, pytest.mark.slow]

SHARES = {"quick": (1.0, 10), "held-back": (4.0, 20)}
# a FEDn client tries again ten seconds after it lost the combiner, then after twenty
BACK_WITHIN_S = 75.0


@pytest.fixture(scope="module")
def site(fedn_environment: Environment, world: World) -> Site:
    return world.site("Restart")


@pytest.fixture(scope="module")
def clients(site: Site) -> dict[str, Device]:
    """Two clients online; `held-back` trains when the gate opens."""
    site.upload_package()
    gates = {"quick": {}, "held-back": {"COMPAT_GATE": str(site.folder / "gate")}}
    started = {name: site.fedn_client(name, *SHARES[name], **gates[name]) for name in SHARES}
    site.until_online(*started)
    return started


@pytest.fixture(scope="module")
def finished(site: Site, clients: dict[str, Device]) -> dict[str, Any]:
    """A session of two rounds whose combiner died in the first: one update accepted, the other in training."""
    session = site.session(rounds=2, min_clients=2, min_updates=2, round_timeout_s=90)

    def one_accepted() -> bool:
        return [row["status"] for row in site.api.assignments(site.slug, session)].count("accepted") == 1

    wait_for(one_accepted, 30, "the first update")
    clients["held-back"].until_said("waiting at the gate")
    killed = site.world.stack.kill("combiner-1")

    def back() -> bool:
        try:
            return site.world.stack.pid_of("combiner-1") != killed
        except LookupError:
            return False

    wait_for(back, 30, "the combiner to be started again")
    Path(site.folder / "gate").touch()
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
    for client in clients.values():
        assert client.alive
        assert len(client.said("Connecting to API endpoint")) == 1
        assert len(client.said("Listening to task stream")) >= 2
    assert all(row["online"] for row in site.api.clients(site.slug))


def test_the_client_in_training_was_not_asked_to_train_the_round_again(
    finished: dict[str, Any], clients: dict[str, Device]
) -> None:
    assert len(clients["held-back"].said("Running train callback")) == 2
