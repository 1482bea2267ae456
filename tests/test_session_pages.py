"""The page of a session, of one of its rounds, and what REST says of them: by mode, and with a thousand clients."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from clients_app.models import Client
from federation.sessions.config import AsyncSettings, PrivacySettings, SelectionSettings, SessionConfig
from federation.sessions.models import Assignment, CombinerShare, Round, Session
from projects.models import Project, User
from tests.cast import ApiFor
from tests.pages_world import World, furnish
from tests.rounds.rows import Rows

pytestmark = pytest.mark.django_db
Look = Callable[..., str]


@pytest.fixture
def world(project: Project, owner: User, tmp_path: Any) -> World:
    return furnish(project, owner, tmp_path)


@pytest.fixture
def rows(project: Project, owner: User, tmp_path: Any, wait_until: Any) -> Rows:
    return Rows(project, owner, tmp_path, wait_until)


@pytest.fixture
def look(owner: User) -> Look:
    """`look(name, *arguments, **query)`: the text of a page as its owner sees it."""
    browser = Browser()
    browser.force_login(owner, backend="django.contrib.auth.backends.ModelBackend")

    def see(name: str, *arguments: Any, **query: Any) -> str:
        answer = browser.get(reverse(name, args=arguments), query)
        assert answer.status_code == 200
        return answer.content.decode()

    return see


def set_config(world: World, **settings: Any) -> None:
    config = replace(SessionConfig(), **settings)
    Session.objects.filter(pk=world.session.pk).update(config=config.to_json())


def asked(world: World, round_: Round, number: int, **fields: Any) -> list[Assignment]:
    """So many more clients with an accepted update in this round."""
    share, _ = CombinerShare.objects.get_or_create(
        round=round_, project=world.project, combiner=world.client.combiner
    )
    first = Client.objects.filter(project=world.project).count()
    clients = Client.objects.bulk_create(
        Client(project=world.project, name=f"site-{first + n:04d}") for n in range(number)
    )
    values = {"status": "accepted", "size_bytes": 4000, "num_examples": 10, "weight": 10.0, "share": share}
    return Assignment.objects.bulk_create(
        Assignment(
            project=world.project, round=round_, client=client, model=world.seed, kind="train",
            deadline=timezone.now(), **(values | fields),
        )
        for client in clients
    )  # fmt: skip


def finished_rounds(world: World, epsilons: list[float | None]) -> None:
    for number, epsilon in enumerate(epsilons, start=3):
        Round.objects.create(
            project=world.project, session=world.session, number=number, status="finished", goal=1, min_updates=1,
            input_model=world.seed, deadline=timezone.now(), ended_at=timezone.now(), epsilon=epsilon,
        )  # fmt: skip


# --- what was asked ---


def test_a_plain_session_says_little(world: World, look: Look) -> None:
    text = look("session", world.project.slug, world.session.pk)
    assert '<p class="lead">FedAvg</p>' in text
    for word in ("Choice of clients", "Differential privacy", "Buffered asynchronous", "Epsilon", "Stalest"):
        assert word not in text


def test_a_session_says_what_of_it_is_special(world: World, look: Look) -> None:
    set_config(
        world,
        selection=SelectionSettings(strategy="guided", where="region=eu", over_commitment=1.5),
        grace_s=20.0,
        compression="int8",
        aggregator="fedadam",
    )
    text = look("session", world.project.slug, world.session.pk)
    assert '<p class="lead">FedAdam, guided, int8</p>' in text
    assert "Only clients where: region=eu" in text and "Over-commitment: 1.5" in text
    assert re.search(r"<dt>Grace \(s\)</dt><dd><div>20</div>", text)
    assert "FedAdam, guided, int8" in look("sessions", world.project.slug)


def test_an_aggregator_that_the_server_no_longer_has_is_shown_by_its_name(world: World, look: Look) -> None:
    set_config(world, aggregator="alchemy")
    assert "<dt>Aggregator</dt><dd>alchemy" in look("session", world.project.slug, world.session.pk)
    assert "alchemy" in look("sessions", world.project.slug)


# --- privacy ---


def test_a_private_session_says_what_is_spent_and_what_is_left(world: World, look: Look) -> None:
    set_config(world, privacy=PrivacySettings(max_epsilon=8.0))
    Round.objects.filter(session=world.session, number=1).update(epsilon=1.25)
    finished_rounds(world, [2.5])
    text = look("session", world.project.slug, world.session.pk)
    assert "<strong>Epsilon 2.5000 is spent</strong>, 5.5000 of 8 is left." in text
    assert "whether any one client took part" in text
    assert '"epsilon": [["spent", [[1, 1.25], [3, 2.5]]], ["budget", [[1, 8.0], [3, 8.0]]]]' in text


def test_a_private_session_without_noise_promises_nothing(world: World, look: Look) -> None:
    set_config(world, privacy=PrivacySettings(noise_multiplier=0.0))
    finished_rounds(world, [None])
    assert "Epsilon has no bound" in look("session", world.project.slug, world.session.pk)


# --- who was chosen ---


def test_a_round_says_who_was_chosen_why_and_what_came_of_it(world: World, look: Look) -> None:
    world.round.plan = {"selection": {"strategy": "guided", "eligible": 9, "chosen": 3, "seed": 42}}
    world.round.save()
    asked(world, world.round, 1, why="explored: never tried before", sent_bytes=1000, encoding="int8")
    asked(world, world.round, 1, status="failed", error="out of memory", share=None)
    text = look("session-round", world.project.slug, world.session.pk, world.round.pk)
    assert "guided: 3 of 9 that fit" in text and "seed 42" in text
    assert "explored: never tried before" in text and "out of memory" in text
    assert "1.0 kB of 4.0 kB" in text and "75 % saved" in text
    assert "c1: 0 updates" in text and '<td class="tight">c1</td>' in text


def test_the_updates_of_an_asynchronous_round_are_those_it_took(world: World, look: Look) -> None:
    """One may have been asked by the round before; how stale it was is said."""
    set_config(world, asynchronous=AsyncSettings(buffer_size=4))
    Round.objects.filter(session=world.session).update(buffered=True, goal=4)
    first, second = Round.objects.filter(session=world.session).order_by("number")
    late = asked(world, first, 1, staleness=0)[0]
    share = CombinerShare.objects.create(
        round=second, project=world.project, combiner_id=world.client.combiner_id, updates=1
    )
    Assignment.objects.filter(pk=late.pk).update(share=share, staleness=1)
    text = look("session", world.project.slug, world.session.pk)
    assert "1 of 4 updates are in its buffer." in text and '<th scope="col" class="num" title=' in text
    text = look("session-round", world.project.slug, world.session.pk, second.pk)
    assert late.client.name in text and "1 round</dd>" in text
    assert '<td class="tight">this round</td>' in text
    text = look("session-round", world.project.slug, world.session.pk, first.pk)
    assert '<td class="tight">a later round</td>' in text, "or one would count it twice"
    assert "of those asked in it" in text


def test_a_thousand_clients_come_in_pages_and_are_found_by_name_and_state(world: World, look: Look) -> None:
    asked(world, world.round, 990)
    asked(world, world.round, 10, status="failed")
    place = ("session-round", world.project.slug, world.session.pk, world.round.pk)
    first = look(*place)
    assert len(re.findall(r'id="assignment-', first)) == 50
    older = re.search(r'rel="next" href="\?before=([^"&]+)"', first)
    assert older is not None
    assert not set(re.findall(r"site-\d+", first)) & set(
        re.findall(r"site-\d+", look(*place, before=older.group(1)))
    )
    assert set(re.findall(r"site-\d+", look(*place, q="site-0777"))) == {"site-0777"}
    assert len(re.findall(r'id="assignment-', look(*place, status="failed"))) == 10
    assert "No client fits this filter" in look(*place, q="nobody")


def test_a_round_of_another_session_is_not_there(world: World, owner: User, client: Browser) -> None:
    other = Session.objects.create(
        project=world.project, name="other", config={}, seed_model=world.seed, current_model=world.seed,
        rounds_wanted=1,
    )  # fmt: skip
    client.force_login(owner, backend="django.contrib.auth.backends.ModelBackend")
    assert (
        client.get(reverse("session-round", args=[world.project.slug, other.pk, world.round.pk])).status_code
        == 404
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"requested_clients": 1}, ["random: 1 of 2 that fit", "drawn at random, 1 of 2"]),
        ({"client_ids": True}, ["random: 2 of 2 that fit", "listed"]),
        (
            {"selection": {"strategy": "guided"}, "requested_clients": 1},
            ["guided: 1 of 2 that fit", "guided: exploring, never tried"],
        ),
        (
            {"privacy": {"expected_clients": 10, "clip_norm": 0.5}},
            ["<dt>Clip norm</dt><dd>0.5000, noise 1 times that, divided by 10"],
        ),
        ({"asynchronous": {"buffer_size": 2}}, ["<dt>Updates</dt><dd>0 of 2"]),
    ],
)
def test_a_round_that_the_engine_opened_is_told_in_its_words(
    rows: Rows, look: Look, settings: dict[str, Any], words: list[str]
) -> None:
    clients = rows.online(rows.lease("c1"), "a", "b")
    if "client_ids" in settings:
        settings = {"client_ids": [str(client.pk) for client in clients]}
    session = rows.running(**settings)
    text = look("session-round", rows.project.slug, session.pk, rows.round(session).pk)
    for word in words:
        assert word in text


# --- what it costs ---


@pytest.mark.parametrize("page", ["session", "session-round"])
def test_more_rounds_and_clients_cost_no_more_queries(
    page: str, world: World, look: Look, django_assert_num_queries: Any
) -> None:
    set_config(world, privacy=PrivacySettings(), compression="int8")
    arguments = [world.project.slug, world.session.pk] + [world.round.pk] * (page == "session-round")
    asked(world, world.round, 1)
    look(page, *arguments)
    with CaptureQueriesContext(connection) as few:
        look(page, *arguments)
    asked(world, world.round, 120)
    asked(world, Round.objects.get(session=world.session, number=2), 120)
    finished_rounds(world, [1.0] * 20)
    with django_assert_num_queries(len(few)):
        look(page, *arguments)


@pytest.mark.parametrize("what", ["rounds", "assignments"])
def test_rest_costs_no_more_queries_either(
    what: str, world: World, owner: User, api: ApiFor, django_assert_num_queries: Any
) -> None:
    http = api(owner)
    url = f"/api/v1/projects/{world.project.slug}/sessions/{world.session.pk}/{what}/"
    asked(world, world.round, 1)
    with CaptureQueriesContext(connection) as few:
        assert http.get(url).status_code == 200
    asked(world, world.round, 60)
    finished_rounds(world, [1.0] * 20)
    with django_assert_num_queries(len(few)):
        assert http.get(url).status_code == 200


# --- over REST ---


def test_rest_tells_a_rounds_plan_and_epsilon_and_why_each_client_was_chosen(
    world: World, owner: User, api: ApiFor
) -> None:
    http, base = api(owner), f"/api/v1/projects/{world.project.slug}/sessions/{world.session.pk}"
    plan = {"selection": {"strategy": "guided", "chosen": 1}, "privacy": {"clip_norm": 0.5}}
    Round.objects.filter(pk=world.round.pk).update(plan=plan, epsilon=1.5)
    row = asked(
        world,
        world.round,
        1,
        why="drawn at random",
        staleness=2,
        delta_norm=0.5,
        sent_bytes=1000,
        encoding="int8",
    )[0]
    round_ = next(one for one in http.get(f"{base}/rounds/").json()["results"] if one["number"] == 1)
    assert round_["plan"] == plan and round_["epsilon"] == 1.5
    assert (round_["updates"], round_["stalest"]) == (1, 2)
    assert (round_["size_bytes"], round_["sent_bytes"]) == (4000, 1000)
    found = http.get(
        f"{base}/assignments/", {"round": str(world.round.pk), "client__name__icontains": row.client.name}
    )
    (said,) = found.json()["results"]
    assert (said["why"], said["weight"], said["staleness"], said["delta_norm"]) == (
        "drawn at random",
        10.0,
        2,
        0.5,
    )
    assert (said["sent_bytes"], said["encoding"], said["combiner"]) == (1000, "int8", "c1")


def test_rest_tells_all_settings_of_a_session_from_before_there_were_some(
    world: World, owner: User, api: ApiFor
) -> None:
    Session.objects.filter(pk=world.session.pk).update(config={"min_clients": 3})
    url = f"/api/v1/projects/{world.project.slug}/sessions/{world.session.pk}/"
    config = api(owner).get(url).json()["config"]
    assert config["min_clients"] == 3 and config["selection"]["strategy"] == "random"
    assert config["privacy"] is None and "as_sent" not in config


def test_the_schema_describes_every_setting_that_an_answer_holds(
    world: World, owner: User, api: ApiFor
) -> None:
    from drf_spectacular.generators import SchemaGenerator

    parts = SchemaGenerator().get_schema(request=None, public=True)["components"]["schemas"]
    url = f"/api/v1/projects/{world.project.slug}/sessions/{world.session.pk}/"
    config = api(owner).get(url).json()["config"]
    described = parts["SettingsOut"]["properties"]
    assert set(described) == set(config)
    groups = {
        "selection": "SelectionSettings",
        "asynchronous": "AsynchronousSettings",
        "privacy": "PrivacySettings",
    }
    for name in groups.values():
        for setting, about in parts[name]["properties"].items():
            assert about["description"] and (about.get("type") or about.get("oneOf") or about.get("allOf")), (
                setting
            )
    assert set(parts["SelectionSettings"]["properties"]) == set(config["selection"])


def test_a_round_with_enough_updates_says_how_long_the_others_are_waited_for(
    world: World, look: Look
) -> None:
    until = timezone.now() + dt.timedelta(seconds=45)
    plan = {"grace_until": until.isoformat()}
    Round.objects.filter(session=world.session, number=2).update(plan=plan)
    text = look("session", world.project.slug, world.session.pk)
    assert "Round 2 is training." in text
    assert re.search(r"waits for the others: <time[^>]*data-countdown>4\d s left", text)


def test_a_session_whose_updates_travel_small_says_what_that_saved(world: World, look: Look) -> None:
    set_config(world, compression="int8")
    asked(world, world.round, 3, sent_bytes=1000, encoding="int8")
    text = look("session", world.project.slug, world.session.pk)
    assert "<dt>Updates travelled</dt><dd>3.0 kB of 12.0 kB" in text and "75 % saved" in text
