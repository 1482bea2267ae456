"""Published FEDn clients in trouble: what goes wrong on a device stays its own, and the project is told."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.compat.environments import Environment
from tests.compat.runners import Device
from tests.compat.world import Site, World, assert_equal_layers, expected
from tests.services.stack import wait_for

pytestmark = [pytest.mark.once, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(fedn_environment: Environment, world: World) -> Site:
    made = world.site("Trouble")
    made.upload_package()
    return made


@pytest.fixture(scope="module")
def steady(site: Site) -> Device:
    """A client that does what it is told."""
    return site.fedn_client("steady", 2.0, 4)


def events(site: Site, kind: str) -> list[dict[str, Any]]:
    return [row for row in site.api.events(site.slug) if row["kind"] == kind]


def test_a_client_whose_training_fails_dies_and_the_round_ends_by_its_rule(
    site: Site, steady: Device
) -> None:
    failing = site.fedn_client("failing", COMPAT_FAIL="1")
    site.until_online("steady", "failing")
    ended = site.until_session(site.session(min_clients=2, min_updates=1, round_timeout_s=6))
    assert failing.ended() == 1  # as FEDn does after a train command that fails
    assert ended["status"] == "finished", ended
    assert_equal_layers(site.layers_of(ended["current_model"]), expected(1, (2.0, 4)))
    assert steady.alive


def test_a_late_update_is_refused_with_an_event_and_its_sender_lives(site: Site, steady: Device) -> None:
    gate = site.folder / "late-gate"
    late = site.fedn_client("late", 50.0, 50, COMPAT_GATE=str(gate))
    site.until_online("steady", "late")
    ended = site.until_session(site.session(min_clients=2, min_updates=1, round_timeout_s=4))
    assert ended["status"] == "finished", ended
    late.until_said("waiting at the gate")
    gate.touch()
    late.until_said("UPLOAD_MODEL")
    late.until_said("Sending model update to combiner")
    said = wait_for(lambda: events(site, "update.refused"), 15, "the refusal")
    assert ["late" in event["message"] for event in said] == [True], [event["message"] for event in said]
    assert_equal_layers(site.layers_of(ended["current_model"]), expected(1, (2.0, 4)))
    again = site.until_session(site.session(min_clients=2, min_updates=2))
    assert again["status"] == "finished", again
    assert_equal_layers(site.layers_of(again["current_model"]), expected(1, (2.0, 4), (50.0, 50)))
    late.stop()


def test_a_wrong_token_is_told_to_the_user(site: Site) -> None:
    client = site.world.devices.start_fedn_client("stranger", url=site.url, token="stu_wrong_wrong")
    assert client.ended() == 0
    assert client.said("Unauthorized")
    assert "Traceback" not in client.log


def test_an_id_of_another_project_is_refused_with_a_sentence(site: Site, steady: Device) -> None:
    elsewhere = site.world.site("Elsewhere")
    elsewhere.upload_package()
    client = site.world.devices.start_fedn_client(
        "thief", url=site.url, token=elsewhere.enrolment_token, client_id=steady.client_id
    )
    assert client.ended() == 0
    assert client.said("Connect to FEDn Api - .+")
    assert "Traceback" not in client.log
    assert not list(elsewhere.api.clients(elsewhere.slug))


def test_a_revoked_token_ends_the_client(site: Site, tmp_path: Path) -> None:
    made = site.api.create_token("short", kind="enrolment", project=site.slug)
    name = f"short-{uuid.uuid4().hex[:4]}"
    client = site.world.devices.start_fedn_client(name, url=site.url, token=made["token"])
    site.until_online(name)
    site.api.revoke_token(made["id"])
    assert client.ended() != 0
    assert client.said("UNAUTHENTICATED")
