"""What a session may be asked for, over REST and by the clients of other dialects."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from rest_framework.test import APIClient

from clients_app.models import Client
from federation.sessions.config import SessionConfig, parse_spec
from federation.sessions.config.words import GROUPS, settings, unworded
from federation.sessions.forms import StartForm
from federation.sessions.models import Session
from foundation.errors import StudioError
from projects.models import Project, User
from tests.cast import ApiFor
from tests.rig import Rig
from tests.session_samples import NEEDS, SAMPLES, asked, kept, unsampled

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
        ({"aggregator": "alchemy"}, "aggregator", "no aggregator called 'alchemy'; there are fedavg"),
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


def test_the_page_of_a_session_from_before_aggregators_says_that_it_averages(
    client: Any, project: Project, owner: User, body: dict[str, Any], http: APIClient
) -> None:
    made = http.post(sessions(project), body, format="json").json()
    row = Session.objects.get(pk=made["id"])
    old = {name: value for name, value in row.config.items() if not name.startswith(("aggregator", "as_"))}
    Session.objects.filter(pk=row.pk).update(config=old)
    client.force_login(owner)
    text = client.get(reverse("session", args=[project.slug, row.pk])).content.decode()
    assert re.search("<dt>Aggregator</dt><dd>FedAvg[^<]*</dd>", text)


# --- each setting, by each way ---


def test_every_setting_has_words_and_a_sample() -> None:
    """So that a new one without a place on the page, in REST and on the command line fails the tests below."""
    assert unworded() == []
    assert unsampled() == set()


@pytest.mark.parametrize("place", list(SAMPLES))
def test_a_setting_asked_for_over_rest_arrives(
    http: APIClient, project: Project, body: dict[str, Any], place: str
) -> None:
    answer = http.post(sessions(project), body | asked(place), format="json")
    assert answer.status_code == 201, answer.content
    row = Session.objects.get(pk=answer.json()["id"])
    assert kept(row.config, place) == SAMPLES[place]
    said: Any = answer.json()["config"]
    for name in place.split("."):
        said = said[name]
    assert said == SAMPLES[place]


@pytest.mark.parametrize("place", list(SAMPLES))
def test_a_setting_asked_for_on_the_page_arrives(
    client: Any, project: Project, owner: User, body: dict[str, Any], place: str
) -> None:
    client.force_login(owner)
    wanted = {**NEEDS.get(place, {}), place: SAMPLES[place]}
    answer = client.post(reverse("session-new", args=[project.slug, "start"]), form_values(body, wanted))
    assert answer.status_code == 302, answer.content.decode()
    assert kept(Session.objects.get().config, place) == SAMPLES[place]


def form_values(body: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """A filled-in form as a browser sends it: what was not touched has what the page showed."""
    form = StartForm(packages=[], models=[], find_clients=lambda words: {})
    values = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
    values |= {"seed_model": body["seed_model"], "package": ""}
    for place, value in wanted.items():
        match place:
            case "client_settings":
                values[place] = json.dumps(value)
            case "client_ids":
                values[place] = ", ".join(value)
            case "target":
                values |= {f"target_{name}": each for name, each in value.items()}
            case "aggregator_kwargs":
                values |= {f"fedopt_{name}": each for name, each in value.items()}
            case _:
                values[place.replace(".", "_")] = value
        if place.startswith("asynchronous."):
            values["mode"] = "asynchronous"
        if place.startswith("privacy."):
            values["private"] = True
    ticked = {name: "on" if value is True else value for name, value in values.items() if value is not False}
    return {name: value for name, value in ticked.items() if value is not None}


WRONG: list[tuple[str, Any, str]] = [
    ("selection.fraction", 2, "a number above 0 and at most 1, not 2"),
    ("selection.over_commitment", 0.5, "a number from 1 to 10, not 0.5"),
    ("selection.seed", -1, "a whole number from 0"),
    ("asynchronous.buffer_size", 0, "a whole number from 1 to 100000, not 0"),
    ("asynchronous.max_staleness", -1, "a whole number from 0 to 1000, not -1"),
    ("asynchronous.staleness_exponent", 11, "a number from 0 to 10, not 11"),
    ("privacy.clip_norm", 0, "a number above 0"),
    ("privacy.noise_multiplier", -1, "a number from 0"),
    ("privacy.delta", 1, "a number above 0 and at most 0.5, not 1"),
    ("privacy.max_epsilon", 0, "a number above 0"),
    ("grace_s", -1, "a number from 0 to 604800"),
]


NO_VALUE = {
    place: {"flag": "perhaps", "text": ["a list"]}.get(str(one.kind), "many")
    for place, one in settings().items()
    if one.kind is not None
}


@pytest.mark.parametrize("place", list(NO_VALUE))
def test_a_value_of_the_wrong_kind_is_refused_by_the_settings_name(
    http: APIClient, project: Project, body: dict[str, Any], place: str
) -> None:
    group, _, name = place.rpartition(".")
    wanted: dict[str, Any] = {name: NO_VALUE[place]}
    answer = http.post(sessions(project), body | ({group: wanted} if group else wanted), format="json")
    assert answer.status_code == 400, answer.content
    problem = answer.json()
    assert problem.get("field") == place or name in json.dumps(problem["errors"])
    assert not Session.objects.exists()


@pytest.mark.parametrize(("place", "value", "sentence"), WRONG)
def test_what_a_setting_cannot_be_is_said_with_its_place_over_rest(
    http: APIClient, project: Project, body: dict[str, Any], place: str, value: Any, sentence: str
) -> None:
    group, _, name = place.rpartition(".")
    wanted = {group: {name: value}} if group else {name: value}
    answer = http.post(sessions(project), body | wanted, format="json")
    assert answer.status_code == 400 and answer["Content-Type"] == "application/problem+json"
    assert answer.json()["field"] == place
    assert answer.json()["detail"].startswith(f"{name} must be {sentence}")
    assert not Session.objects.exists()


@pytest.mark.parametrize(("place", "value", "sentence"), WRONG)
def test_what_a_setting_cannot_be_is_said_at_its_field_and_what_was_entered_stays(
    client: Any, project: Project, owner: User, body: dict[str, Any], place: str, value: Any, sentence: str
) -> None:
    client.force_login(owner)
    values = form_values(body, {place: value}) | {"name": "Kept"}
    text = client.post(reverse("session-new", args=[project.slug, "start"]), values).content.decode()
    name = place.replace(".", "_")
    error = text.split(f'id="id_{name}_error"')[1].split("</div>")[0]
    assert f"“{settings()[place].title}” must be {sentence.split(',')[0]}" in error
    assert re.search(rf'name="{name}"[^>]*value="{value}"', text) and 'value="Kept"' in text
    folded = text.rsplit(f'name="{name}"', 1)[0]
    assert folded.rindex("<details") == folded.rindex('<details class="fold" open')
    assert not Session.objects.exists()


@pytest.mark.parametrize("group", ["selection", "asynchronous", "privacy"])
def test_a_setting_that_there_is_none_of_is_refused_not_dropped(
    http: APIClient, project: Project, body: dict[str, Any], group: str
) -> None:
    answer = http.post(sessions(project), body | {group: {"clip_nrom": 1}}, format="json")
    assert answer.status_code == 400
    assert f"{group} has no setting called 'clip_nrom'; it has " in answer.json()["detail"]


def test_every_field_of_the_form_is_on_the_page_once(
    client: Any, project: Project, owner: User, body: dict[str, Any]
) -> None:
    client.force_login(owner)
    text = client.get(reverse("session-new", args=[project.slug, "start"])).content.decode()
    form = StartForm(packages=[], models=[], find_clients=lambda words: {})
    shown = re.findall(r'<(?:input|select|textarea)[^>]*\bname="(\w+)"', text)
    assert sorted(name for name in shown if name in form.fields) == sorted(form.fields)


TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"aggregator": "krum"}, "Krum"),
    ({"asynchronous.buffer_size": 4, "privacy.expected_clients": 9}, "cannot promise privacy"),
    ({"asynchronous.buffer_size": 4, "deterministic": True}, "cannot be deterministic"),
    ({"asynchronous.buffer_size": 4, "min_clients": 5}, "must not be more than"),
    ({"selection.strategy": "guided"}, "Guided selection needs"),
    ({"selection.fraction": 0.5, "requested_clients": 3}, "not both"),
    ({"privacy.noise_multiplier": 2}, "Privacy divides the sum"),
    ({"privacy.expected_clients": 9, "aggregator": "trimmedmean"}, "Privacy needs an aggregator"),
    ({"goal": 3, "reserves": 1}, "exclude each other"),
]


@pytest.mark.parametrize(("wanted", "sentence"), TOGETHER)
def test_settings_that_do_not_go_together_are_refused_at_one_of_them(
    client: Any,
    http: APIClient,
    project: Project,
    owner: User,
    body: dict[str, Any],
    wanted: dict[str, Any],
    sentence: str,
) -> None:
    client.force_login(owner)
    answer = client.post(reverse("session-new", args=[project.slug, "start"]), form_values(body, wanted))
    assert answer.status_code == 422
    errors = re.findall(
        r'<div class="error" id="id_(\w+)_error">\s*<div>(.*?)</div>', answer.content.decode()
    )
    assert len(errors) == 1 and 'class="errors full"' not in answer.content.decode()
    assert sentence in errors[0][1]
    nested: dict[str, Any] = {}
    for place, value in wanted.items():
        group, _, name = place.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = value
    problem = http.post(sessions(project), body | nested, format="json").json()
    assert problem["status"] == 400 and problem["field"] in {*settings(), *GROUPS}
    assert not Session.objects.exists()


def test_what_was_not_chosen_is_not_checked(
    client: Any, project: Project, owner: User, body: dict[str, Any]
) -> None:
    """Without a script all fields are there; those of a mode that was not chosen have no meaning."""
    client.force_login(owner)
    values = form_values(body, {}) | {
        "asynchronous_buffer_size": "0", "privacy_clip_norm": "nonsense", "selection_exploration": "7",
        "fedopt_beta1": "3",
    }  # fmt: skip
    assert client.post(reverse("session-new", args=[project.slug, "start"]), values).status_code == 302
    config = Session.objects.get().config
    assert config["asynchronous"] is None and config["privacy"] is None


def test_a_refused_form_keeps_closed_what_nobody_touched(
    client: Any, project: Project, owner: User, body: dict[str, Any]
) -> None:
    client.force_login(owner)
    values = form_values(body, {"selection.fraction": 7})
    text = client.post(reverse("session-new", args=[project.slug, "start"]), values).content.decode()
    assert text.count('<details class="fold" open') == 1
    assert text.count('<details class="fold"') == 5


def test_clients_are_named_on_the_page_by_name_or_id_and_one_that_is_not_there_is_said(
    client: Any, project: Project, owner: User, body: dict[str, Any], other_project: Project
) -> None:
    client.force_login(owner)
    here = [Client.objects.create(project=project, name=name) for name in ("north", "south")]
    Client.objects.create(project=other_project, name="elsewhere")
    page = reverse("session-new", args=[project.slug, "start"])
    values = form_values(body, {})
    text = client.post(page, values | {"client_ids": "north, elsewhere"}).content.decode()
    assert "There is no client called “elsewhere” in this project." in text
    answer = client.post(page, values | {"client_ids": f"north\n{here[1].pk}"})
    assert answer.status_code == 302
    assert Session.objects.get().config["client_ids"] == sorted(str(one.pk) for one in here)


@pytest.mark.parametrize("held", ['{"lr": 1e999}', '{"note": "a\\ud800"}', '{"a": [{"\\udfff": 1}]}'])
def test_client_settings_that_no_database_keeps_are_refused_by_name(
    http: APIClient, project: Project, body: dict[str, Any], held: str
) -> None:
    """JSON's grammar allows them; Postgres does not, and no client would read them as they were meant."""
    sent = json.dumps(body)[:-1] + f', "client_settings": {held}}}'
    answer = http.post(sessions(project), sent, content_type="application/json")
    assert answer.status_code == 400 and answer.json()["field"] == "client_settings"
    assert not Session.objects.filter(project=project).exists()


@pytest.mark.parametrize("text", ['{"lr": NaN}', '{"lr": -Infinity}', '{"note": "a\\u0000"}'])
def test_client_settings_typed_as_text_are_checked_alike(text: str) -> None:
    with pytest.raises(StudioError) as refused:
        config_of(client_settings=text)
    assert refused.value.data["field"] == "client_settings"
