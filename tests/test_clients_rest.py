"""Clients over REST: registering, configs and their tokens, the list, and what a client asks about itself."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from clients_app import presence, services
from clients_app.models import Client
from federation.events.models import Event
from federation.models.models import Model
from federation.sessions.models import Assignment, Round, Session
from foundation.errors import StudioError
from projects.choices import Role
from projects.models import Membership, Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token
from projects.tokens.verify import verify
from tests.cast import ApiFor, ClientToken, actor

pytestmark = pytest.mark.django_db
CLIENTS = "/api/v1/projects/digits-1/clients/"


def start_combiner(name: str = "combiner-1", **labels: str) -> presence.CombinerLease:
    return presence.start_combiner(
        name=name, spool_id="d", address=f"{name}:9000", tls_address="", labels=labels, version="1.2"
    )


def connect(client: Client, lease: presence.CombinerLease) -> None:
    assert presence.connected(
        client_id=client.pk,
        combiner_id=lease.combiner_id,
        epoch=lease.epoch,
        connection_id=uuid.uuid4().hex,
        dialect="native",
        version="0.1",
    )


def owe(client: Client, session: str = "Digits run", number: int = 3) -> Assignment:
    seed = Model.objects.create(
        project=client.project, kind="seed", name="s", key="k", sha256="0", size_bytes=1, layout=[]
    )
    row = Session.objects.create(
        project=client.project,
        name=session,
        config={},
        seed_model=seed,
        current_model=seed,
        rounds_wanted=5,
        status="running",
    )
    round_ = Round.objects.create(
        project=client.project,
        session=row,
        number=number,
        goal=1,
        min_updates=1,
        input_model=seed,
        deadline=timezone.now(),
    )
    return Assignment.objects.create(
        project=client.project, round=round_, client=client, model=seed, kind="train", deadline=timezone.now()
    )


def test_registering_a_client_makes_a_config_with_a_token_of_its_own(
    api: ApiFor, member: User, project: Project
) -> None:
    start_combiner()
    answer = api(member).post(CLIENTS, {"name": "site-a"})
    assert answer.status_code == 201
    made = answer.json()
    assert (made["name"], made["online"], made["doing"], made["since"]) == ("site-a", False, "", None)
    assert yaml.safe_load(made["config_yaml"]) == made["config"]
    config = made["config"]
    assert config["api_url"] == "http://testserver"
    assert config["combiner"] == "combiner-1:9000"
    assert "combiner_tls" not in config
    token = verify(config["token"])
    assert (token.kind, str(token.client_id)) == (TokenKind.CLIENT, config["client_id"])
    assert Event.objects.get().kind == "client.registered"


def test_without_a_living_combiner_the_config_names_none(api: ApiFor, member: User, project: Project) -> None:
    assert "combiner" not in api(member).post(CLIENTS, {"name": "site-a"}).json()["config"]


def test_the_public_address_goes_into_the_config(
    api: ApiFor, member: User, project: Project, settings: object
) -> None:
    settings.PUBLIC_URL = "https://studio.example.org/"  # type: ignore[attr-defined]
    made = api(member).post(CLIENTS, {"name": "site-a"}).json()
    assert made["config"]["api_url"] == "https://studio.example.org"


def test_two_clients_of_one_name_are_refused_in_a_project_but_not_in_two(
    api: ApiFor, member: User, project: Project, stranger: User, other_project: Project
) -> None:
    assert api(member).post(CLIENTS, {"name": "site-a"}).status_code == 201
    again = api(member).post(CLIENTS, {"name": "site-a"})
    assert (again.status_code, again.json()["code"]) == (409, "name_taken")
    elsewhere = api(stranger).post("/api/v1/projects/elsewhere-1/clients/", {"name": "site-a"})
    assert elsewhere.status_code == 201


@pytest.mark.parametrize("name", ["", "   ", "x" * 121, "a\u202eb", "tab\u0007"])
def test_a_name_that_nobody_can_read_is_refused(
    name: str, api: ApiFor, member: User, project: Project
) -> None:
    assert api(member).post(CLIENTS, {"name": name}).status_code == 400
    assert not Client.objects.exists()


def test_a_repeated_request_registers_once_and_shows_the_same_token(
    api: ApiFor, member: User, project: Project
) -> None:
    first, second = (
        api(member).post(CLIENTS, {"name": "site-a"}, HTTP_IDEMPOTENCY_KEY="once") for _ in range(2)
    )
    assert first.json() == second.json()
    assert Client.objects.count() == 1


def test_a_new_config_revokes_the_old_token(api: ApiFor, member: User, project: Project) -> None:
    made = api(member).post(CLIENTS, {"name": "site-a"}).json()
    fresh = api(member).post(f"{CLIENTS}{made['id']}/config/")
    assert fresh.status_code == 201
    assert fresh.json()["config"]["client_id"] == made["id"]
    assert api(made["config"]["token"]).get("/api/v1/client/").status_code == 401
    assert api(fresh.json()["config"]["token"]).get("/api/v1/client/").status_code == 200
    assert Token.objects.filter(client_id=made["id"], revoked_at=None).count() == 1


def test_the_list_says_who_is_online_since_when_on_which_combiner_doing_what(
    api: ApiFor, viewer: User, project: Project
) -> None:
    lease = start_combiner()
    idle, busy, away, new = (Client.objects.create(project=project, name=n) for n in ("a", "b", "c", "d"))
    for client in (idle, busy):
        connect(client, lease)
    owe(busy)
    Client.objects.filter(pk=away.pk).update(last_seen_at=timezone.now())
    rows = {row["name"]: row for row in api(viewer).get(CLIENTS).json()["results"]}
    told = {name: (row["online"], row["combiner"], row["doing"]) for name, row in rows.items()}
    assert told == {
        "a": (True, "combiner-1", "idle"),
        "b": (True, "combiner-1", "training round 3 of Digits run"),
        "c": (False, None, ""),
        "d": (False, None, ""),
    }
    idle.refresh_from_db()
    assert idle.connected_at is not None
    assert rows["a"]["since"] == idle.connected_at.isoformat().replace("+00:00", "Z")
    assert rows["c"]["since"] is not None
    assert rows["d"]["since"] is None
    assert new.name in {
        row["name"] for row in api(viewer).get(CLIENTS, {"online": "false"}).json()["results"]
    }
    online = api(viewer).get(CLIENTS, {"online": "true"}).json()["results"]
    assert {row["name"] for row in online} == {"a", "b"}


def test_a_client_that_left_while_it_owed_work_is_away_from_it(
    api: ApiFor, viewer: User, project: Project
) -> None:
    client = Client.objects.create(project=project, name="a")
    owe(client)
    row = api(viewer).get(f"{CLIENTS}{client.pk}/").json()
    assert row["doing"] == "away from training round 3 of Digits run"


def test_the_list_costs_the_same_queries_for_two_clients_and_for_forty(
    api: ApiFor, viewer: User, project: Project
) -> None:
    lease = start_combiner()
    http = api(viewer)

    def cost(names: range) -> int:
        for number in names:
            client = Client.objects.create(project=project, name=f"site-{number}")
            connect(client, lease)
            owe(client, session=f"S{number}")
        with CaptureQueriesContext(connection) as queries:
            assert http.get(CLIENTS).status_code == 200
        return len(queries)

    assert cost(range(2)) == cost(range(2, 40))


def test_the_list_pages_newest_first(api: ApiFor, viewer: User, project: Project) -> None:
    for number in range(5):
        Client.objects.create(project=project, name=f"site-{number}")
    first = api(viewer).get(CLIENTS, {"limit": 3}).json()
    assert [row["name"] for row in first["results"]] == ["site-4", "site-3", "site-2"]
    second = api(viewer).get(first["next"]).json()
    assert [row["name"] for row in second["results"]] == ["site-1", "site-0"]


def test_renaming_keeps_the_token_and_refuses_a_taken_name(
    api: ApiFor, member: User, project: Project
) -> None:
    made = api(member).post(CLIENTS, {"name": "site-a"}).json()
    Client.objects.create(project=project, name="site-b")
    renamed = api(member).patch(f"{CLIENTS}{made['id']}/", {"name": "site-c"})
    assert renamed.json()["name"] == "site-c"
    assert api(made["config"]["token"]).get("/api/v1/client/").json()["name"] == "site-c"
    assert api(member).patch(f"{CLIENTS}{made['id']}/", {"name": "site-b"}).status_code == 409


def test_a_deleted_client_is_gone_with_its_token_though_it_owed_work(
    api: ApiFor, member: User, project: Project
) -> None:
    made = api(member).post(CLIENTS, {"name": "site-a"}).json()
    owe(Client.objects.get())
    assert api(member).delete(f"{CLIENTS}{made['id']}/").status_code == 204
    assert not Client.objects.exists()
    assert not Assignment.objects.exists()
    assert api(made["config"]["token"]).get("/api/v1/client/").status_code == 401
    assert Event.objects.order_by("-id")[0].message == "Client site-a was deleted."


def test_a_viewer_only_looks_and_a_stranger_sees_nothing(
    api: ApiFor, viewer: User, stranger: User, project: Project
) -> None:
    client = Client.objects.create(project=project, name="site-a")
    one = f"{CLIENTS}{client.pk}/"
    for user, refused in ((viewer, 403), (stranger, 404)):
        http = api(user)
        assert http.post(CLIENTS, {"name": "x"}).status_code == refused
        assert http.patch(one, {"name": "x"}).status_code == refused
        assert http.post(f"{one}config/").status_code == refused
        assert http.delete(one).status_code == refused
    assert api(viewer).get(one).status_code == 200
    assert api(stranger).get(one).status_code == 404
    assert api(stranger).get(CLIENTS).status_code == 404
    assert api().get(CLIENTS).status_code == 401
    assert Client.objects.get().name == "site-a"


def test_a_client_learns_who_it_is_and_the_emptiest_combiner_first(
    api: ApiFor, project: Project, client_token: ClientToken
) -> None:
    client, token = client_token(project)
    full = start_combiner("a-full")
    start_combiner("b-empty")
    dead = start_combiner("c-dead")
    presence.end_lease(combiner_id=dead.combiner_id, epoch=dead.epoch)
    connect(Client.objects.create(project=project, name="other"), full)
    with CaptureQueriesContext(connection) as queries:
        answer = api(token).get("/api/v1/client/")
    assert len([q for q in queries if "clients_app_combiner" in q["sql"] and "COUNT" in q["sql"]]) == 1
    told = answer.json()
    assert (told["client_id"], told["name"], told["project"]) == (str(client.pk), "site-a", "digits-1")
    assert told["combiners"] == [
        {"name": "b-empty", "address": "b-empty:9000", "tls_address": ""},
        {"name": "a-full", "address": "a-full:9000", "tls_address": ""},
    ]
    assert told["server_version"]


def test_a_client_in_a_region_is_sent_to_a_combiner_of_its_region_first(
    api: ApiFor, project: Project, client_token: ClientToken
) -> None:
    client, token = client_token(project)
    presence.set_attributes(client_id=client.pk, attributes={"region": "eu"})
    start_combiner("a-us", region="us")
    connect(Client.objects.create(project=project, name="other"), start_combiner("b-eu", region="eu"))
    names = [row["name"] for row in api(token).get("/api/v1/client/").json()["combiners"]]
    assert names == ["b-eu", "a-us"]


def test_only_a_client_token_may_ask_who_it_is_and_it_opens_nothing_else(
    api: ApiFor, member: User, project: Project, client_token: ClientToken
) -> None:
    assert api(member).get("/api/v1/client/").status_code == 403
    assert api().get("/api/v1/client/").status_code == 401
    _client, token = client_token(project)
    assert api(token).get(CLIENTS).status_code == 403
    assert api(token).post("/api/v1/client/enrol/", {"name": "x"}).status_code == 403


def test_a_device_enrols_itself_by_an_enrolment_token(api: ApiFor, owner: User, project: Project) -> None:
    _row, secret = create_token(
        actor=actor(owner), kind=TokenKind.ENROLMENT, name="hospitals", project=project
    )
    answer = api(secret).post("/api/v1/client/enrol/", {"name": "site-x"})
    assert answer.status_code == 201
    assert Client.objects.get().project == project
    assert api(answer.json()["config"]["token"]).get("/api/v1/client/").json()["name"] == "site-x"
    assert api(secret).get(CLIENTS).status_code == 403
    assert api(owner).post("/api/v1/client/enrol/", {"name": "site-y"}).status_code == 403


def test_combiners_are_listed_with_this_projects_active_clients_only(
    api: ApiFor, viewer: User, project: Project, other_project: Project
) -> None:
    lease = start_combiner("one", region="eu")
    for number in range(2):
        connect(Client.objects.create(project=project, name=f"site-{number}"), lease)
    connect(Client.objects.create(project=other_project, name="theirs"), lease)
    old = start_combiner("two")
    presence.end_lease(combiner_id=old.combiner_id, epoch=old.epoch)
    rows = api(viewer).get("/api/v1/projects/digits-1/combiners/").json()["results"]
    assert [(row["name"], row["alive"], row["active_clients"]) for row in rows] == [
        ("one", True, 2),
        ("two", False, 0),
    ]
    assert rows[0]["labels"] == {"region": "eu"}
    assert rows[0]["state"] == "up" and rows[1]["state"] == "stopped"
    assert presence.renew_lease(
        combiner_id=lease.combiner_id, epoch=lease.epoch, load={"clients": 3, "cpu_percent": 12.5}
    )
    rows = api(viewer).get("/api/v1/projects/digits-1/combiners/").json()["results"]
    assert rows[0]["load"] == {"cpu_percent": 12.5}  # how many clients others have there is not told


def test_a_member_who_was_removed_sees_no_clients_any_more(
    api: ApiFor, member: User, project: Project
) -> None:
    http = api(member)
    assert http.get(CLIENTS).status_code == 200
    Membership.objects.filter(user=member, role=Role.MEMBER).delete()
    assert http.get(CLIENTS).status_code == 404


@pytest.mark.django_db(transaction=True)
def test_of_two_that_register_one_name_at_once_one_is_refused(member: User, project: Project) -> None:
    gate = threading.Barrier(2)

    def register(_: int) -> str:
        gate.wait()
        try:
            services.register_client(actor=actor(member), project=project, name="site-a")
            return "made"
        except StudioError as refused:
            return refused.code
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(register, range(2))) == ["made", "name_taken"]
    assert Client.objects.count() == Token.objects.count() == 1
