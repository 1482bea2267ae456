"""Sessions that published clients make: ordinary ones, in the words and statuses that those clients know."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.utils import timezone

from clients_app.models import Client
from federation.aggregation.aggregators import AGGREGATORS
from federation.sessions.config import SessionConfig, parse_spec
from federation.sessions.models import Round, Session
from federation.sessions.services import create_session, start_session
from foundation.errors import StudioError
from projects.actors import Actor
from projects.models import User
from tests.controller_cast import AsPerson, Controller
from tests.pages_world import World

CONFIG: dict[str, Any] = {  # as APIClient.start_session sends it
    "aggregator": "fedavg",
    "aggregator_kwargs": None,
    "round_timeout": 180,
    "buffer_size": -1,
    "delete_models_storage": True,
    "clients_required": 1,
    "requested_clients": 8,
    "validate": True,
    "helper_type": "numpyhelper",
    "server_functions": None,
}
REFUSED = "Number of available clients is lower than the required minimum of 3"


@pytest.fixture
def idle(furnished: World) -> World:
    """Nothing runs."""
    Session.objects.filter(pk=furnished.session.pk).update(status="finished")
    return furnished


def made(controller: Controller, world: World, **config: Any) -> Session:
    sent = {"name": "Ours", "seed_model_id": str(world.seed.pk),
            "session_config": {**CONFIG, "model_id": str(world.seed.pk), **config}}  # fmt: skip
    answer = controller("POST", "sessions/", sent)
    assert answer.status_code == 201, answer.content
    return Session.objects.get(pk=answer.json()["session_id"])


def start(controller: Controller, session: Session, **more: Any) -> Any:
    return controller(
        "POST", "sessions/start", {"session_id": str(session.pk), "rounds": 3, "round_timeout": 60, **more}
    )


def test_a_session_keeps_what_was_sent_and_says_it_again(idle: World, controller: Controller) -> None:
    session = made(
        controller, idle, aggregator="fedopt", aggregator_kwargs={"serveropt": "yogi"}, buffer_size=2
    )
    said = controller.get(f"sessions/{session.pk}")
    assert (said["name"], said["status"], said["seed_model_id"]) == ("Ours", "Created", str(idle.seed.pk))
    config = said["session_config"]
    assert {key: config[key] for key in ("aggregator", "buffer_size", "clients_required", "requested_clients")} == {
        "aggregator": "fedopt", "buffer_size": 2, "clients_required": 1, "requested_clients": 8,
    }  # fmt: skip
    assert json.loads(config["aggregator_kwargs"]) == {"serveropt": "yogi"}
    inside = SessionConfig.from_json(session.config)
    assert (inside.aggregator, inside.aggregator_kwargs["serveropt"]) == ("fedopt", "yogi")
    assert (inside.min_clients, inside.requested_clients, inside.round_timeout_s) == (1, 8, 180.0)
    assert session.package == idle.package


def test_starting_it_takes_rounds_and_timeout_and_says_the_exact_words(
    idle: World, controller: Controller
) -> None:
    session = made(controller, idle)
    answer = start(controller, session)
    assert (answer.status_code, answer.json()) == (200, {"message": "Session started"})
    session.refresh_from_db()
    assert (session.status, session.rounds_wanted, session.config["round_timeout_s"]) == ("running", 3, 60)
    assert controller.get(f"sessions/{session.pk}")["status"] == "Started"
    assert (
        controller.get("sessions?name=Ours")["count"]
        == controller.get("sessions/?status=Started")["count"]
        == 1
    )


def test_a_session_without_a_seed_starts_from_the_active_model(idle: World, controller: Controller) -> None:
    answer = controller("POST", "sessions/", {"name": None, "session_config": {**CONFIG, "model_id": None}})
    assert answer.json()["seed_model_id"] == str(idle.model.pk), "the newest, for none was made active"


def test_more_clients_needed_than_asked_for_asks_for_so_many(idle: World, controller: Controller) -> None:
    session = made(controller, idle, clients_required=12)
    assert session.config["requested_clients"] == 12


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({}, "Session ID is required"),
        ({"session_id": ""}, "Session ID is required"),
        ({"session_id": "x"}, "Session with specified ID does not exist"),
        ({"session_id": "00000000-0000-0000-0000-000000000000"}, "Session with specified ID does not exist"),
    ],
)
def test_a_start_without_a_session_is_refused_in_the_known_words(
    idle: World, controller: Controller, sent: dict[str, Any], words: str
) -> None:
    answer = controller("POST", "sessions/start", sent)
    assert (answer.status_code, answer.json()["message"]) == (400, words)


def test_one_session_of_a_project_runs_at_a_time(furnished: World, controller: Controller) -> None:
    answer = start(controller, made(controller, furnished))
    assert (answer.status_code, answer.json()["message"]) == (400, "A session is already running!")


def test_too_few_clients_is_said_and_nothing_starts(idle: World, controller: Controller) -> None:
    session = made(controller, idle, clients_required=3)
    answer = start(controller, session)
    assert (answer.status_code, answer.json()["message"]) == (400, REFUSED)
    session.refresh_from_db()
    assert (session.status, session.rounds_wanted) == ("created", 5)


def test_a_finished_session_goes_on_for_more_rounds(idle: World, controller: Controller) -> None:
    assert start(controller, idle.session, rounds=2, round_timeout=30).status_code == 200
    idle.session.refresh_from_db()
    assert (idle.session.status, idle.session.rounds_done, idle.session.rounds_wanted) == ("running", 1, 3)
    assert idle.session.config["round_timeout_s"] == 30


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_terminated_asks_it_to_stop(furnished: World, controller: Controller, method: str) -> None:
    path = f"sessions/{furnished.session.pk}"
    sent: dict[str, Any] = {"status": "Terminated"}
    if method == "PUT":
        sent = controller.get(path) | sent
    answer = controller(method, path, sent)
    assert (answer.status_code, answer.json()["status"]) == (200, "Terminated")
    furnished.session.refresh_from_db()
    assert furnished.session.stop_asked


@pytest.mark.parametrize(
    "sent", [{"status": "Finished"}, {"name": "Other"}, {"status": "Terminated", "x": 1}]
)
def test_nothing_else_of_a_session_changes(
    furnished: World, controller: Controller, sent: dict[str, Any]
) -> None:
    answer = controller("PATCH", f"sessions/{furnished.session.pk}", sent)
    assert (answer.status_code, "Terminated" in answer.json()["message"]) == (400, True)
    furnished.session.refresh_from_db()
    assert not furnished.session.stop_asked


def test_a_stopped_and_a_failed_session_are_terminated(furnished: World, controller: Controller) -> None:
    for status in ("stopped", "failed"):
        Session.objects.update(status=status, reason="Nobody came.")
        said = controller.get(f"sessions/{furnished.session.pk}")
        assert (said["status"], said["reason"]) == ("Terminated", "Nobody came.")
    assert controller.get("sessions/?status=Terminated")["count"] == 1


def test_server_functions_are_kept_and_not_run(idle: World, controller: Controller) -> None:
    session = made(controller, idle, server_functions="class ServerFunctions: ...")
    said = controller.get(f"sessions/{session.pk}")
    assert said["session_config"]["server_functions"] == "class ServerFunctions: ..."
    answer = start(controller, session)
    assert (answer.status_code, "Server functions" in answer.json()["message"]) == (400, True)
    session.refresh_from_db()
    assert session.status == "created"


def test_the_page_does_not_start_what_cannot_be_run_here_either(
    idle: World, controller: Controller, owner: User
) -> None:
    session = made(controller, idle, server_functions="class ServerFunctions: ...")
    with pytest.raises(StudioError) as refused:
        start_session(actor=Actor.of_user(owner), session=session)
    assert refused.value.code == "not_offered"
    session.refresh_from_db()
    assert session.status == "created"


def test_split_learning_is_kept_and_not_run(idle: World, controller: Controller) -> None:
    session = made(controller, idle, aggregator="splitlearningagg", helper_type="splitlearninghelper")
    sent = {"session_id": str(session.pk), "rounds": 1, "round_timeout": 1}
    for path in ("sessions/start_splitlearning_session", "sessions/start"):
        answer = controller("POST", path, sent)
        assert (answer.status_code, "Split learning" in answer.json()["message"]) == (400, True)
    assert controller.get(f"sessions/{session.pk}")["session_config"]["aggregator"] == "splitlearningagg"


@pytest.mark.parametrize(
    "config",
    [
        None, [], "x", {**CONFIG, "aggregator": "no-such"}, {**CONFIG, "round_timeout": "soon"},
        {**CONFIG, "clients_required": -1}, {**CONFIG, "requested_clients": 1.5}, {**CONFIG, "buffer_size": "many"},
        {**CONFIG, "model_id": "x"}, {**CONFIG, "aggregator": "fedopt", "aggregator_kwargs": {"serveropt": "sgd"}},
        {**CONFIG, "aggregator_kwargs": "{"}, {**CONFIG, "rounds": 10**9},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_with_a_sentence(
    idle: World, controller: Controller, config: Any
) -> None:
    before = Session.objects.count()
    answer = controller("POST", "sessions/", {"session_config": config})
    assert answer.status_code == 400
    assert len(answer.json()["message"]) > 10
    assert Session.objects.count() == before


@pytest.mark.parametrize("rounds", ["x", 1.5, True, 0, -1, 10**9, [1]])
def test_rounds_that_make_no_sense_change_nothing(idle: World, controller: Controller, rounds: Any) -> None:
    session = made(controller, idle)
    assert start(controller, session, rounds=rounds).status_code == 400
    session.refresh_from_db()
    assert (session.status, session.config["round_timeout_s"]) == ("created", 180)


def test_clients_are_chosen_by_their_ids(idle: World, controller: Controller) -> None:
    away = Client.objects.create(project=idle.project, name="away")
    session = made(controller, idle)
    refused = start(controller, session, client_ids=str(away.pk))
    assert (refused.status_code, "required minimum of 1" in refused.json()["message"]) == (400, True)
    assert start(controller, session, client_ids=f"{idle.client.pk},{away.pk}").status_code == 200
    session.refresh_from_db()
    assert set(session.config["client_ids"]) == {str(idle.client.pk), str(away.pk)}


def test_a_buffer_ends_a_round_after_so_many_updates(idle: World, controller: Controller) -> None:
    config = made(controller, idle, buffer_size=2, clients_required=5).config
    assert (config["goal"], config["min_updates"], config["min_clients"]) == (2, 2, 5)
    assert made(controller, idle, buffer_size=-1).config["goal"] is None


def test_a_viewer_reads_and_starts_nothing(
    idle: World, controller: Controller, as_person: AsPerson, viewer: User, member: User
) -> None:
    session = made(controller, idle)
    reads, runs = as_person(viewer), as_person(member)
    assert reads.get(f"sessions/{session.pk}")["session_id"] == str(session.pk)
    assert start(reads, session).status_code == 403
    assert reads("PATCH", f"sessions/{session.pk}", {"status": "Terminated"}).status_code == 403
    assert reads("POST", "sessions/", {"session_config": CONFIG}).status_code == 403
    assert start(runs, session).status_code == 200


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_a_session_that_its_clients_could_not_ask_for_is_shown_to_them_all_the_same(
    idle: World, controller: Controller, owner: User, name: str
) -> None:
    """Made on the page with what FEDn has no word for; its client reads the words that it knows."""
    spec = parse_spec(
        {
            "name": name,
            "seed_model": str(idle.seed.pk),
            "aggregator": name,
            "min_clients": 10,
            "compression": "int8",
        }
    )
    session = create_session(actor=Actor(user=owner), project=idle.project, spec=spec)
    config = controller.get(f"sessions/{session.pk}")["session_config"]
    assert config["aggregator"] == name
    assert json.loads(config["aggregator_kwargs"] or "{}") == spec.config.aggregator_kwargs
    assert name in [row["name"] for row in controller.get("sessions/")["result"]]


@pytest.mark.parametrize(
    "settings",
    [
        {"asynchronous": {"buffer_size": 4}},
        {"privacy": {"expected_clients": 50}},
        {"selection": {"strategy": "guided", "fraction": 0.5, "where": "region=eu"}, "grace_s": 5},
    ],
)
def test_a_session_in_a_mode_that_they_do_not_know_has_rounds_that_they_can_read(
    idle: World, controller: Controller, owner: User, settings: dict[str, Any]
) -> None:
    spec = parse_spec({"name": "Mode", "seed_model": str(idle.seed.pk), **settings})
    session = create_session(actor=Actor(user=owner), project=idle.project, spec=spec)
    Round.objects.create(
        project=idle.project, session=session, number=1, goal=4, min_updates=1, input_model=idle.seed,
        deadline=timezone.now(), buffered="asynchronous" in settings, epsilon=1.5,
        plan={"selection": {"strategy": "guided", "chosen": 4}, "privacy": {"clip_norm": 1.0}},
    )  # fmt: skip
    assert controller.get(f"sessions/{session.pk}")["session_config"]["aggregator"] == "fedavg"
    assert controller.get("rounds/")["result"]
