"""What a session may be asked for, over REST and by the clients of other dialects."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from rest_framework.test import APIClient

from federation.sessions.config import SessionConfig, parse_spec
from federation.sessions.models import Session
from foundation.errors import StudioError
from projects.models import Project, User
from tests.cast import ApiFor
from tests.rig import Rig

FEDOPT = {"serveropt": "adam", "learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.99, "tau": 1e-4}
SEED = str(uuid.uuid4())


def config_of(**values: Any) -> SessionConfig:
    return parse_spec({"seed_model": SEED, **values}).config


@pytest.fixture
def http(api: ApiFor, owner: User) -> APIClient:
    return api(owner)


@pytest.fixture
def body(project: Project, owner: User, tmp_path: Path) -> dict[str, Any]:
    """The least that makes a session."""
    seed = Rig(project, owner, tmp_path, lambda *_: None).model()
    return {"seed_model": str(seed.pk), "start": False}


def sessions(project: Project) -> str:
    return f"/api/v1/projects/{project.slug}/sessions/"


# --- what parse_spec takes ---


def test_nothing_said_is_plain_averaging() -> None:
    for values in (
        {},
        {"aggregator": None, "aggregator_kwargs": None},
        {"aggregator": "", "aggregator_kwargs": ""},
    ):
        config = config_of(**values)
        assert (config.aggregator, config.aggregator_kwargs, config.as_sent) == ("fedavg", {}, {})


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "null",
        "{}",
        {},
        {"serveropt": "adam"},
        '{"serveropt": "adam", "tau": 0.0001}',
        {"tau": None},
    ],
)
def test_arguments_come_as_object_as_json_or_not_at_all(given: Any) -> None:
    assert config_of(aggregator="fedopt", aggregator_kwargs=given).aggregator_kwargs == FEDOPT


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("{tau: 1}", "aggregator_kwargs is not valid JSON"),
        ("[" * 5000, "aggregator_kwargs is not valid JSON"),
        ("[1]", "aggregator_kwargs must be a JSON object of arguments."),
        (7, "aggregator_kwargs must be a JSON object of arguments."),
        ({"tau": "x" * 70_000}, "aggregator_kwargs must be at most 64 KiB"),
        ('{"beta1": NaN}', "beta1 must be a number from 0 to below 1, not nan."),
    ],
)
def test_arguments_that_are_no_object_are_refused(given: Any, sentence: str) -> None:
    with pytest.raises(StudioError, match=sentence) as refused:
        config_of(aggregator="fedopt", aggregator_kwargs=given)
    assert refused.value.status == 400 and refused.value.data["field"] == "aggregator_kwargs"


def test_what_a_foreign_client_sent_is_kept_as_it_came_up_to_64_kib() -> None:
    sent = {
        "aggregator": "fedavg",
        "round_timeout": 180,
        "server_functions": None,
        "deep": {"ü": [1, {"a": None}]},
    }
    assert config_of(as_sent=sent).as_sent == sent
    assert SessionConfig.from_json(json.loads(json.dumps(config_of(as_sent=sent).to_json()))).as_sent == sent
    with pytest.raises(StudioError, match="as_sent must be at most 64 KiB"):
        config_of(as_sent={"server_functions": "x" * 70_000})


def test_a_session_from_before_aggregators_averages() -> None:
    stored = config_of().to_json()
    for name in ("aggregator", "aggregator_kwargs", "as_sent"):
        del stored[name]
    assert SessionConfig.from_json(stored) == config_of()


# --- over REST ---


def test_a_fedopt_session_is_made_over_rest_and_says_all_its_arguments(
    http: APIClient, project: Project, body: dict[str, Any]
) -> None:
    asked = {**body, "aggregator": "fedopt", "aggregator_kwargs": {"serveropt": "yogi", "learning_rate": 1}}
    answer = http.post(sessions(project), asked, format="json")
    assert answer.status_code == 201
    config = http.get(f"{sessions(project)}{answer.json()['id']}/").json()["config"]
    assert config["aggregator"] == "fedopt"
    assert config["aggregator_kwargs"] == FEDOPT | {"serveropt": "yogi", "learning_rate": 1.0}


@pytest.mark.parametrize(
    ("asked", "field", "sentence"),
    [
        ({"aggregator": "krum"}, "aggregator", "no aggregator called “krum”; there are fedavg and fedopt."),
        ({"aggregator": "fedopt", "aggregator_kwargs": {"beta3": 1}}, "aggregator_kwargs", "called 'beta3'"),
        ({"aggregator_kwargs": {"tau": 1}}, "aggregator_kwargs", "fedavg has no argument called 'tau'"),
        ({"aggregator": "fedopt", "aggregator_kwargs": [1]}, "aggregator_kwargs", "dictionary"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_words_and_makes_no_session(
    http: APIClient, project: Project, body: dict[str, Any], asked: dict[str, Any], field: str, sentence: str
) -> None:
    answer = http.post(sessions(project), body | asked, format="json")
    assert answer.status_code == 400
    assert sentence in answer.content.decode() and field in answer.content.decode()
    assert not Session.objects.exists()


def test_what_a_foreign_client_sent_is_neither_taken_nor_shown_by_our_own_rest(
    http: APIClient, project: Project, body: dict[str, Any]
) -> None:
    made = http.post(sessions(project), body | {"as_sent": {"x": 1}}, format="json").json()
    row = Session.objects.get(pk=made["id"])
    assert row.config["as_sent"] == {}
    Session.objects.filter(pk=row.pk).update(config=row.config | {"as_sent": {"secret": "kept"}})
    for url in (sessions(project), f"{sessions(project)}{row.pk}/"):
        assert "kept" not in http.get(url).content.decode()


def test_the_page_of_a_session_from_before_aggregators_says_fedavg(
    client: Any, project: Project, owner: User, body: dict[str, Any], http: APIClient
) -> None:
    made = http.post(sessions(project), body, format="json").json()
    row = Session.objects.get(pk=made["id"])
    old = {name: value for name, value in row.config.items() if not name.startswith(("aggregator", "as_"))}
    Session.objects.filter(pk=row.pk).update(config=old)
    client.force_login(owner)
    text = client.get(reverse("session", args=[project.slug, row.pk])).content.decode()
    assert "<dt>Aggregator</dt><dd>fedavg</dd>" in text
