"""Two published Scaleout clients, enrolled, with a remote package: five rounds, metrics, a command, an abort."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.compat.environments import Environment
from tests.compat.runners import Device
from tests.compat.world import Site, World, assert_equal_layers, expected
from tests.services.stack import wait_for

pytestmark = [pytest.mark.once, pytest.mark.slow]

ROUNDS = 5
SHARES = {"north": (1.0, 10), "south": (3.0, 30)}


@pytest.fixture(scope="module")
def site(scaleout_environment: Environment, world: World) -> Site:
    return world.site("Scaleout")


@pytest.fixture(scope="module")
def gate(site: Site) -> Any:
    """While this file is missing, the clients wait before they train."""
    path = site.folder / "gate"
    path.touch()
    return path


@pytest.fixture(scope="module")
def clients(site: Site, gate: Any) -> dict[str, Device]:
    """The project's importer package, and two clients of it online by one enrolment ticket."""
    site.upload_package("importer")
    started = {
        name: site.scaleout_client(name, step, examples, COMPAT_GATE=str(gate))
        for name, (step, examples) in SHARES.items()
    }
    site.until_online(*started)
    return started


@pytest.fixture(scope="module")
def package(site: Site, clients: dict[str, Device]) -> str:
    return str(next(iter(site.api.packages(site.slug)))["id"])


@pytest.fixture(scope="module")
def trained(site: Site, package: str) -> dict[str, Any]:
    return site.until_session(
        site.session(rounds=ROUNDS, min_clients=2, validate=True, package=package), timeout=90
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


def test_every_round_was_validated_by_both(site: Site, trained: dict[str, Any]) -> None:
    found = list(site.api.validations(site.slug, session=trained["id"]))
    assert len(found) == 2 * ROUNDS
    assert {row["data"]["step"] for row in found} == {1.0, 3.0}


def test_metrics_attributes_and_telemetry_arrive(site: Site, trained: dict[str, Any]) -> None:
    logged = [row for row in site.api.metrics(site.slug) if row["source"] == "logged"]
    assert {(row["name"], row["value"]) for row in logged} == {("training_step", 1.0), ("training_step", 3.0)}
    assert len(logged) == 2 * ROUNDS
    told = {row["name"]: row["attributes"] for row in site.api.clients(site.slug)}
    assert (told["north"]["step"], told["south"]["step"]) == ("1.0", "3.0")


def test_a_custom_command_is_answered_by_each_client(site: Site, trained: dict[str, Any]) -> None:
    made = site.post("control/run_command", site.admin_token, command_type="Custom_echo", parameters={"a": 1})
    assert made["success"], made
    children = wait_for(lambda: _ended(site, made["correlation_id"]), 20, "both answers")
    assert [row["status"] for row in children] == ["COMPLETED"] * 2
    assert {row["response"] for row in children} == {'{"echo": {"a": 1}}'}


def test_a_command_that_the_package_does_not_know_fails_with_its_reason(
    site: Site, trained: dict[str, Any]
) -> None:
    made = site.post("control/run_command", site.admin_token, command_type="Custom_dance")
    children = wait_for(lambda: _ended(site, made["correlation_id"]), 20, "both answers")
    assert [row["status"] for row in children] == ["FAILED"] * 2
    assert "Unknown task type: Custom_dance" in children[0]["message"]


def _ended(site: Site, command: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{site.url}/api/v1/commands/?parent_correlation_id={command}",
        headers={"Authorization": f"Bearer {site.admin_token}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found = json.loads(answer.read())["result"]
    return found if len(found) == 2 and all(row["done"] for row in found) else []


def test_stopping_a_session_ends_the_training_on_the_clients(
    site: Site, clients: dict[str, Device], package: str, trained: dict[str, Any], gate: Any
) -> None:
    gate.unlink()
    before = {name: len(device.said("waiting at the gate")) for name, device in clients.items()}
    session = site.session(min_clients=2, package=package)
    for name, device in clients.items():
        device.until_said("waiting at the gate", before[name] + 1)
    site.api.stop_session(site.slug, session)
    assert site.until_session(session)["status"] == "stopped"
    for device in clients.values():
        device.until_said("interrupt message")
        device.until_said("Task interrupted")
    gate.touch()
    again = site.until_session(site.session(min_clients=2, package=package))
    assert again["status"] == "finished", "they train on"


def test_a_client_that_is_stopped_says_so(site: Site, clients: dict[str, Device], trained: Any) -> None:
    clients["south"].process.terminate()
    clients["south"].until_said("Disconnecting client from combiner")

    def offline() -> bool:
        return not next(row for row in site.api.clients(site.slug) if row["name"] == "south")["online"]

    wait_for(offline, 10, "south to be offline")
