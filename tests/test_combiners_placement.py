"""A client gets the emptiest combiner, of its own region first, and only a fitting one where it is pinned."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from clients_app import placement, presence
from clients_app.models import Client, Combiner
from clients_app.services import drain_combiner, pin_client, undrain_combiner
from federation.events.models import Event
from foundation.errors import StudioError
from projects.actors import OPERATOR
from projects.models import AuditEvent, Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.services import create_token
from studio.celery import app as celery
from studio.management.commands.combiner import read_labels
from tests.cast import ApiFor, ClientToken, actor
from tests.controller_cast import Controller

pytestmark = pytest.mark.django_db


def started(name: str, **labels: str) -> presence.CombinerLease:
    return presence.start_combiner(
        name=name, spool_id="d", address=f"{name}:9000", tls_address="", labels=labels, version="1"
    )


def connect(client: Client, lease: presence.CombinerLease, dialect: str = "native") -> bool:
    return presence.connected(
        client_id=client.pk,
        combiner_id=lease.combiner_id,
        epoch=lease.epoch,
        connection_id=uuid.uuid4().hex,
        dialect=dialect,
        version="1",
    )


def site(project: Project, name: str = "", **fields: Any) -> Client:
    return Client.objects.create(project=project, name=name or f"site-{uuid.uuid4().hex[:8]}", **fields)


def offered(client: Client) -> list[str]:
    return [row.name for row in placement.combiners_for(client)]


# --- spreading -----------------------------------------------------------------------------------------------------
def test_three_hundred_that_ask_before_any_is_connected_are_spread_evenly(project: Project) -> None:
    for name in ("a", "b", "c"):
        started(name)
    clients = Client.objects.bulk_create(Client(project=project, name=f"s{n}") for n in range(300))
    given = Counter(offered(client)[0] for client in clients)
    assert sum(given.values()) == 300 and all(80 <= given[name] <= 120 for name in "abc"), given


def test_three_hundred_that_ask_and_connect_in_waves_are_spread_evenly(project: Project) -> None:
    leases = {name: started(name) for name in ("a", "b", "c")}
    for wave in range(10):
        names = [f"s{wave}-{n}" for n in range(30)]
        asked = [(client, offered(client)[0]) for client in (site(project, name) for name in names)]
        for client, name in asked:
            connect(client, leases[name])
    given = Counter(Client.objects.online().values_list("combiner__name", flat=True))
    assert all(80 <= given[name] <= 120 for name in leases), given


def test_without_redis_three_hundred_are_still_spread_by_chance(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of those on their way is a hint: away, nothing is counted."""
    monkeypatch.setattr(placement.cache, "get_many", lambda keys: {})
    for name in ("a", "b", "c"):
        started(name)
    client = site(project)
    given = Counter(offered(client)[0] for _ in range(300))
    assert all(given[name] >= 50 for name in "abc"), given


def test_clients_that_ask_within_a_second_are_not_counted_for_each_of_them(project: Project) -> None:
    for name in ("a", "b", "c"):
        started(name)
    clients = [site(project) for _ in range(10)]
    offered(clients[0])
    with CaptureQueriesContext(connection) as queries:
        given = Counter(offered(client)[0] for client in clients)
    assert len(queries) == len(clients) and not any("COUNT" in query["sql"] for query in queries)
    assert max(given.values()) <= 4, given


def test_a_combiner_that_joins_gets_the_next_clients_until_it_has_as_many(project: Project) -> None:
    full = started("full")
    for _ in range(12):
        connect(site(project), full)
    started("fresh")
    given = Counter(offered(site(project))[0] for _ in range(12))
    assert given == {"fresh": 12}


# --- pins ----------------------------------------------------------------------------------------------------------
def test_a_pinned_client_is_given_only_combiners_with_these_labels(project: Project) -> None:
    started("eu-1", region="eu", site="north")
    started("eu-2", region="eu")
    started("us", region="us")
    started("bare")
    assert set(offered(site(project, pin={"region": "eu"}))) == {"eu-1", "eu-2"}
    assert offered(site(project, pin={"region": "eu", "site": "north"})) == ["eu-1"]
    assert offered(site(project, pin={"name": "us"})) == ["us"]
    assert offered(site(project, pin={"region": "asia"})) == []


def test_without_a_pin_labels_that_contradict_only_come_last(project: Project) -> None:
    lease = started("eu", region="eu")
    for _ in range(3):
        connect(site(project), lease)
    started("us", region="us")
    assert offered(site(project, attributes={"region": "eu"})) == ["eu", "us"]
    assert offered(site(project, attributes={"region": "us"})) == ["us", "eu"]


def test_every_dialect_is_told_of_a_fitting_combiner_or_to_wait(
    api: ApiFor, project: Project, client_token: ClientToken, owner: User
) -> None:
    """The native directory, FEDn's assignment and Scaleout's."""
    client, token = client_token(project)
    pin_client(actor=actor(owner), client=client, pin={"region": "eu"})
    started("us", region="us")
    ask = Controller(token)
    for words in ({}, {"client_version": "1.1.0"}, {"preferred_combiner": "us"}):
        said = ask("POST", "clients/add", {"name": client.name, "package": "local", **words})
        assert said.status_code == 203, words
        assert said.json()["message"].startswith("No combiner available with region=eu"), words
    assert api(token).get("/api/v1/client/").json()["combiners"] == []
    started("eu", region="eu")
    for words in ({}, {"client_version": "1.1.0"}, {"preferred_combiner": "us"}):
        said = ask("POST", "clients/add", {"name": client.name, "package": "local", **words}).json()
        assert (said["status"], said["host"]) == ("assigned", "eu"), words
    assert [row["name"] for row in api(token).get("/api/v1/client/").json()["combiners"]] == ["eu"]


def test_a_pinned_client_that_knocks_elsewhere_is_sent_away_and_nothing_is_written(project: Project) -> None:
    us, eu = started("us", region="us"), started("eu", region="eu")
    client = site(project, pin={"region": "eu"})
    with pytest.raises(StudioError) as refused:
        connect(client, us)
    assert (refused.value.code, refused.value.status) == ("pinned_elsewhere", 503)
    assert "region=eu" in refused.value.message
    client.refresh_from_db()
    assert client.combiner_id is None and not Event.objects.filter(kind="client.connected").exists()
    assert connect(client, eu)


def test_the_pages_say_that_a_pinned_client_waits_for_a_combiner(
    api: ApiFor, project: Project, member: User
) -> None:
    client = site(project, "site-a", pin={"region": "eu"})
    started("us", region="us")
    wait = "waits for a combiner with region=eu: none takes clients"
    browser = Browser()
    browser.force_login(member, backend="django.contrib.auth.backends.ModelBackend")
    for url in (reverse("clients", args=[project.slug]), reverse("client", args=[project.slug, client.pk])):
        assert wait in browser.get(url).content.decode(), url
    row = api(member).get(f"/api/v1/projects/{project.slug}/clients/{client.pk}/").json()
    assert (row["doing"], row["pin"]) == (wait, {"region": "eu"})
    started("eu", region="eu")
    assert wait not in browser.get(reverse("client", args=[project.slug, client.pk])).content.decode()


def test_a_client_is_pinned_when_it_is_made_and_later_by_rest(
    api: ApiFor, project: Project, member: User
) -> None:
    http, clients = api(member), f"/api/v1/projects/{project.slug}/clients/"
    started("eu", region="eu")
    started("us", region="us")
    made = http.post(clients, {"name": "a", "pin": {"region": "eu"}}, format="json").json()
    assert made["pin"] == {"region": "eu"} and made["config"]["combiner"] == "eu:9000"
    one = f"{clients}{made['id']}/"
    assert http.patch(one, {"pin": {"region": "us"}}, format="json").json()["pin"] == {"region": "us"}
    assert http.patch(one, {"name": "b"}, format="json").json()["pin"] == {"region": "us"}
    assert http.patch(one, {"pin": {}}, format="json").json()["pin"] == {}
    assert Event.objects.filter(kind="client.pinned").count() == 2
    assert AuditEvent.objects.filter(verb="client.pin").count() == 2
    refused = http.patch(one, {"name": "c", "pin": {"region": 7}}, format="json")
    assert (refused.status_code, refused.json()["field"]) == (400, "pin")
    assert Client.objects.get().name == "b"


def test_a_client_is_pinned_on_its_page_and_in_the_dialog_that_makes_it(
    project: Project, member: User
) -> None:
    browser = Browser()
    browser.force_login(member, backend="django.contrib.auth.backends.ModelBackend")
    url = reverse("client-new", args=[project.slug])
    wrong = browser.post(url, {"name": "site-a", "pin": "region"})
    assert wrong.status_code == 422 and "“region” is no label" in wrong.content.decode()
    assert not Client.objects.exists()
    assert browser.post(url, {"name": "site-a", "pin": "region=eu, site=north"}).status_code == 200
    client = Client.objects.get()
    assert client.pin == {"region": "eu", "site": "north"}
    page = reverse("client", args=[project.slug, client.pk])
    assert "region=eu, site=north" in browser.get(page).content.decode()
    pin = reverse("client-pin", args=[project.slug, client.pk])
    assert "is pinned to combiners with region=us now" in browser.post(
        pin, {"pin": "region=us"}, follow=True
    ).content.decode().replace("&#x27;", "'")
    assert "A pin names labels" in browser.post(pin, {"pin": "a=,"}, follow=True).content.decode()
    browser.post(pin, {"pin": ""})
    client.refresh_from_db()
    assert client.pin == {}


@pytest.mark.parametrize(
    "pin",
    [
        "region", "=eu", "region=", "a=1, a=2", "a b=1", {"region": 1}, {"region": ""}, {"region": "x" * 121},
        {"": "eu"}, {"region": "a,b"}, {"region": "a\nb"}, ["region"], 7, {f"k{n}": "v" for n in range(11)},
    ],
)  # fmt: skip
def test_what_is_no_pin_is_refused_with_an_example(project: Project, owner: User, pin: object) -> None:
    client = site(project, pin={"region": "eu"})
    with pytest.raises(StudioError) as refused:
        pin_client(actor=actor(owner), client=client, pin=pin)
    assert refused.value.data["field"] == "pin" and "region=eu" in refused.value.message
    client.refresh_from_db()
    assert client.pin == {"region": "eu"}


# --- draining ------------------------------------------------------------------------------------------------------
def test_a_drained_combiner_is_offered_to_nobody_and_takes_no_client_that_can_find_another(
    project: Project,
) -> None:
    one, _two = started("one"), started("two")
    drain_combiner("one", actor=OPERATOR)
    client = site(project)
    assert offered(client) == ["two"]
    best = placement.best_combiner(client, "one")
    assert best is not None and best.name == "two"
    with pytest.raises(StudioError) as refused:
        connect(client, one)
    assert (refused.value.code, refused.value.status) == ("combiner_draining", 503)
    assert connect(site(project), one, dialect="fedn")  # it knows no other; refused it would have none
    undrain_combiner("one", actor=OPERATOR)
    assert connect(client, one)
    assert set(AuditEvent.objects.values_list("verb", "actor")) == {
        ("combiner.drain", "operator"),
        ("combiner.undrain", "operator"),
    }


def test_draining_by_the_operator_outlives_a_restart_and_draining_to_stop_does_not() -> None:
    started("asked")
    drain_combiner("asked", actor=OPERATOR)
    started("asked")
    started("stopping")
    drain_combiner("stopping", actor=OPERATOR, stopping=True)
    assert not Combiner.objects.taking().exists()
    started("stopping")
    assert [row.name for row in Combiner.objects.taking()] == ["stopping"]
    with pytest.raises(StudioError) as refused:
        drain_combiner("nobody", actor=OPERATOR)
    assert refused.value.status == 404


def test_the_operator_drains_combiners_from_the_list(operator: User, owner: User) -> None:
    lease = started("one")
    url = reverse("admin:clients_app_combiner_changelist")
    rows = [str(lease.combiner_id)]
    http = Browser()
    http.force_login(operator, backend="django.contrib.auth.backends.ModelBackend")
    http.post(url, {"action": "drain", "_selected_action": rows})
    assert not Combiner.objects.taking().exists()
    http.post(url, {"action": "take_clients", "_selected_action": rows})
    assert Combiner.objects.taking().exists()
    http.force_login(owner, backend="django.contrib.auth.backends.ModelBackend")
    http.post(url, {"action": "drain", "_selected_action": rows})
    assert Combiner.objects.taking().exists()


def test_an_integrator_drains_a_combiner_over_rest_and_asks_until_it_may_be_stopped(
    api: ApiFor, operator: User, owner: User, project: Project
) -> None:
    lease = started("eu 1")
    client = site(project)
    connect(client, lease)
    connect(site(project), lease, dialect="fedn")
    operator_token = create_token(
        actor=actor(operator), kind=TokenKind.USER, name="rollout", scopes=("read", "write", "admin")
    )[1]
    http, path = api(operator_token), "/api/v1/site/combiners/eu%201/"
    assert http.get(path).json() == {
        "name": "eu 1", "draining": False, "drained": False, "clients": 1, "staying": 1, "shares": 0,
    }  # fmt: skip
    answer = http.post(f"{path}drain/")
    assert answer.status_code == 200
    assert (answer.json()["draining"], answer.json()["drained"]) == (True, False)
    assert http.post(f"{path}drain/").json() == answer.json(), "asked twice it is the same"
    assert not Combiner.objects.taking().exists()
    Client.objects.filter(pk=client.pk).update(combiner=None)
    assert http.get(path).json()["drained"] is True, "FEDn's client stays, and is not waited for"
    assert http.post(f"{path}resume/").json()["draining"] is False
    assert Combiner.objects.taking().exists()
    assert set(AuditEvent.objects.filter(verb__startswith="combiner").values_list("verb", "actor")) == {
        ("combiner.drain", f"user:{operator.pk}"),
        ("combiner.undrain", f"user:{operator.pk}"),
    }
    assert http.post("/api/v1/site/combiners/nobody/drain/").status_code == 404


def test_only_staff_with_the_right_and_a_token_for_all_may_drain_over_rest(
    api: ApiFor, operator: User, owner: User, project: Project
) -> None:
    """A stranger is not even told whether there is a combiner of that name."""
    started("one")

    def token(user: User, *scopes: str, **more: Any) -> str:
        return create_token(
            actor=actor(user), name="t", **{"kind": TokenKind.USER, "scopes": scopes, **more}
        )[1]

    everything = ("read", "write", "admin")
    helper = User.objects.create_user("staff_without_the_right", "s@example.org", "x", is_staff=True)
    former = User.objects.create_superuser("former", "f@example.org", "x")
    User.objects.filter(pk=former.pk).update(is_staff=False)
    for who in (
        token(owner, *everything), token(helper, *everything), token(former, *everything),
        token(operator, "read"), token(operator, "read", "write"),
    ):  # fmt: skip
        for name in ("one", "nobody"):
            answer = api(who).post(f"/api/v1/site/combiners/{name}/drain/")
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert Combiner.objects.taking().exists()


# --- evening out ---------------------------------------------------------------------------------------------------
def test_idle_clients_are_given_away_only_to_a_combiner_with_less_than_half_as_many(project: Project) -> None:
    full = started("full")
    clients = [site(project) for _ in range(placement.UNEVEN_SLACK + 1)]
    for client in clients:
        connect(client, full)
    ids = [client.pk for client in clients]
    assert placement.surplus_of(full.combiner_id, ids) == set()
    fresh = started("fresh")
    assert placement.surplus_of(full.combiner_id, ids) == set(ids)
    connect(site(project), fresh)
    assert placement.surplus_of(full.combiner_id, ids) == set()


def test_evening_out_moves_nobody_against_a_pin_or_out_of_its_region(project: Project) -> None:
    full = started("full", region="eu")
    eu = [site(project, attributes={"region": "eu"}) for _ in range(placement.UNEVEN_SLACK + 1)]
    pinned, free = site(project, pin={"name": "full"}), site(project)
    for client in (*eu, pinned, free):
        connect(client, full)
    started("fresh", region="us")
    ids = [client.pk for client in (*eu, pinned, free)]
    assert placement.surplus_of(full.combiner_id, ids) == {free.pk}


# --- what is told --------------------------------------------------------------------------------------------------
def told(project: Project) -> list[tuple[str, str]]:
    rows = Event.objects.filter(project=project, kind__startswith="combiner.").order_by("id")
    return list(rows.values_list("kind", "message"))


def test_projects_with_clients_there_are_told_of_draining_leaving_and_falling_silent(
    project: Project, other_project: Project
) -> None:
    lease = started("c1")
    connect(site(project), lease)
    drain_combiner("c1", actor=OPERATOR)
    undrain_combiner("c1", actor=OPERATOR)
    assert presence.note_silent_combiners() == 0
    Combiner.objects.update(lease_until=Combiner.objects.get().created_at)
    assert presence.note_silent_combiners() == 1
    assert presence.note_silent_combiners() == 0  # told once
    lease = started("c1")
    presence.end_lease(combiner_id=lease.combiner_id, epoch=lease.epoch)
    assert presence.note_silent_combiners() == 0
    assert [kind for kind, _ in told(project)] == [
        "combiner.draining", "combiner.taking", "combiner.silent", "combiner.joined", "combiner.left",
    ]  # fmt: skip
    assert told(other_project) == []


def test_labels_are_given_when_a_combiner_starts_and_a_wrong_one_is_refused() -> None:
    assert read_labels(["region=eu", "site=north"]) == {"region": "eu", "site": "north"}
    for wrong in ("region", "region=", "a=1,b=2", "name=other", "a b=c"):
        with pytest.raises(StudioError, match="A label is KEY=VALUE"):
            read_labels([wrong])


def test_every_task_that_beat_sends_is_one_that_workers_know() -> None:
    celery.loader.import_default_modules()
    assert {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()} <= set(celery.tasks)
