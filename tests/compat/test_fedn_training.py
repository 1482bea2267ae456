"""Two published FEDn clients with a remote package, trained by the published APIClient: what every FEDn user does."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.compat.environments import Environment
from tests.compat.runners import Device
from tests.compat.world import Site, World, assert_equal_layers, expected, layers_in

pytestmark = [pytest.mark.once, pytest.mark.slow]

ROUNDS = 5
SHARES = {"north": (1.0, 10), "south": (3.0, 30)}

# everything an APIClient user does between an empty project and a session
SET_UP = """
result = {
    "package": client.set_active_package(given["package"], helper="numpyhelper", name="compat"),
    "model": client.set_active_model(given["seed"]),
}
"""

TRAIN = """
import time
started = client.start_session(name="first", rounds=given["rounds"], round_timeout=60, min_clients=2)
deadline = time.monotonic() + 60
while not client.session_is_finished(started["session_id"]) and time.monotonic() < deadline:
    time.sleep(0.2)
trail = client.get_model_trail()
session = client.get_session(started["session_id"])
model = trail[0] if client.get_active_model()["model_id"] == trail[0]["model_id"] else trail[-1]
for _ in range(200):  # validation of the last model is reported after the session's last round
    validations = client.get_validations(session_id=started["session_id"])
    if validations["count"] >= 2 * given["rounds"]:
        break
    time.sleep(0.05)
result = {
    "started": started,
    "session": session,
    "trail": trail,
    "trail_from_seed": client.get_model_trail(reverse=False),
    "active": client.get_active_model(),
    "validations": validations,
    "rounds": client.get_rounds(),
    "models": client.get_models_count(),
    "clients": client.get_clients(),
    "download": client.download_model(model["model_id"], given["target"]),
}
"""


@pytest.fixture(scope="module")
def site(fedn_environment: Environment, world: World) -> Site:
    return world.site("FEDn")


@pytest.fixture(scope="module")
def clients(site: Site) -> dict[str, Device]:
    """The project set up by APIClient, and two clients of it online."""
    said = site.api_client(SET_UP, package=str(site.archive()), seed=str(site.seed_file()))
    assert said["model"]["success"], said
    started = {name: site.fedn_client(name, step, examples) for name, (step, examples) in SHARES.items()}
    site.until_online(*started)
    return started


@pytest.fixture(scope="module")
def trained(site: Site, clients: dict[str, Device]) -> dict[str, Any]:
    """What APIClient said after five rounds."""
    target = site.folder / "final.npz"
    found: dict[str, Any] = site.api_client(TRAIN, rounds=ROUNDS, target=str(target), timeout=100)
    return found


def test_both_clients_fetched_the_package_and_started_it(site: Site, clients: dict[str, Device]) -> None:
    for client in clients.values():
        assert client.said("Compute package unpacked")
        assert client.said("the package has started")


def test_the_session_started_and_finished(trained: dict[str, Any]) -> None:
    assert trained["started"]["message"] == "Session started"
    assert trained["session"]["status"] == "Finished"
    assert len([r for r in trained["rounds"]["result"] if r["status"] == "Finished"]) == ROUNDS


def test_the_downloaded_model_is_what_numpy_computes(trained: dict[str, Any], site: Site) -> None:
    assert trained["download"]["success"]
    found = layers_in(site.folder / "final.npz")
    assert {layer.dtype for layer in found} == {np.dtype(np.float32)}
    assert_equal_layers(found, expected(ROUNDS, *SHARES.values()))


def test_the_model_trail_leads_from_the_last_model_to_the_seed(trained: dict[str, Any]) -> None:
    trail = trained["trail"]
    assert len(trail) == trained["models"] == ROUNDS + 1
    by_id = {model["model_id"]: model for model in trail}
    chain = [trained["active"]["model_id"]]
    while by_id[chain[-1]]["parent_model"]:
        chain.append(by_id[chain[-1]]["parent_model"])
    assert set(chain) == set(by_id)
    assert [m["model_id"] for m in trail] == [m["model_id"] for m in reversed(trained["trail_from_seed"])]


def test_validations_of_every_round_by_every_client_are_read_back(trained: dict[str, Any]) -> None:
    rows = trained["validations"]["result"]
    assert trained["validations"]["count"] == len(rows) == 2 * ROUNDS
    said = {(row["model_id"], row["sender"]["name"]): json.loads(row["data"]) for row in rows}
    newest = trained["active"]["model_id"]
    total = float(sum(layer.sum() for layer in expected(ROUNDS, *SHARES.values())))
    for name, (step, _examples) in SHARES.items():
        assert said[newest, name]["step"] == step
        assert said[newest, name]["total"] == pytest.approx(total, rel=1e-5)


def test_what_the_published_api_did_shows_on_our_own(trained: dict[str, Any], site: Site) -> None:
    [session] = list(site.api.sessions(site.slug))
    assert (session["name"], session["status"], session["rounds_done"]) == ("first", "finished", ROUNDS)
    assert session["current_model"] == trained["active"]["model_id"]
    assert {row["name"]: row["dialect"] for row in site.api.clients(site.slug)} == dict.fromkeys(
        SHARES, "fedn"
    )


def test_the_clients_still_live_after_the_session(
    clients: dict[str, Device], trained: dict[str, Any]
) -> None:
    assert all(client.alive for client in clients.values())
    assert not [line for client in clients.values() for line in client.said("Traceback")]
