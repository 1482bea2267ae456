"""Tokens through REST: made, shown once, listed, rotated, revoked."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.utils import timezone

from foundation.hints import COMBINER_CHANNEL
from projects.models import AuditEvent, Project, User
from projects.tokens.models import Token
from tests.cast import ApiFor, ClientToken, TokenFor

TOKENS = "/api/v1/tokens/"
pytestmark = pytest.mark.django_db


def test_a_token_is_shown_once_and_works_at_once(owner: User, api: ApiFor) -> None:
    expires = timezone.now() + dt.timedelta(days=30)
    made = api(owner).post(TOKENS, {"name": "ci", "scopes": ["read"], "expires_at": expires})
    assert made.status_code == 201
    secret = made.json()["token"]
    assert api(secret).get("/api/v1/me/").json() == {
        "user": {"username": owner.username, "email": owner.email},
        "token": {"kind": "user", "name": "ci", "expires_at": made.json()["expires_at"]},
        "project": None,
        "client": None,
    }
    for url in (TOKENS, f"{TOKENS}{made.json()['id']}/"):
        later = api(owner).get(url)
        assert secret not in later.content.decode()
        assert secret.split("_", 2)[2] not in later.content.decode()
        assert Token.objects.get().digest not in later.content.decode()


def test_a_revoked_token_is_refused_from_the_next_request_on_and_its_row_stays(
    owner: User, api: ApiFor
) -> None:
    made = api(owner).post(TOKENS, {"name": "ci"}).json()
    assert api(made["token"]).get("/api/v1/projects/").status_code == 200
    for _twice in range(2):
        assert api(owner).delete(f"{TOKENS}{made['id']}/").status_code == 204
    refused = api(made["token"]).get("/api/v1/projects/")
    assert (refused.status_code, refused.json()["code"]) == (401, "token_revoked")
    assert api(owner).get(f"{TOKENS}{made['id']}/").json()["revoked_at"]
    assert AuditEvent.objects.filter(verb="token.revoke").count() == 1


def test_rotating_replaces_the_secret(owner: User, api: ApiFor) -> None:
    made = api(owner).post(TOKENS, {"name": "ci", "scopes": ["read"]}).json()
    fresh = api(owner).post(f"{TOKENS}{made['id']}/rotate/")
    assert fresh.status_code == 201
    assert fresh.json()["name"] == "ci" and fresh.json()["scopes"] == ["read"]
    assert api(made["token"]).get("/api/v1/me/").status_code == 401
    assert api(fresh.json()["token"]).get("/api/v1/me/").status_code == 200
    assert api(owner).post(f"{TOKENS}{made['id']}/rotate/").status_code == 409


def test_a_token_can_rotate_itself_unless_it_may_only_read(
    owner: User, api: ApiFor, user_token: TokenFor
) -> None:
    strong = user_token(owner)
    (row,) = api(strong).get(TOKENS).json()["results"]
    assert api(strong).post(f"{TOKENS}{row['id']}/rotate/").status_code == 201
    weak = user_token(owner, ("read",))
    row = api(weak).get(TOKENS).json()["results"][0]
    assert api(weak).post(f"{TOKENS}{row['id']}/rotate/").status_code == 403


def test_a_project_token_works_in_its_project_only(
    owner: User, project: Project, other_project: Project, api: ApiFor
) -> None:
    body = {"name": "ci", "kind": "project", "project": project.slug, "scopes": ["write"]}
    made = api(owner).post(TOKENS, body).json()
    http = api(made["token"])
    me = http.get("/api/v1/me/").json()
    assert (me["user"], me["project"], me["token"]["kind"]) == (None, project.slug, "project")
    assert [row["slug"] for row in http.get("/api/v1/projects/").json()["results"]] == [project.slug]
    assert http.get(f"/api/v1/projects/{other_project.slug}/").status_code == 404
    assert http.patch(f"/api/v1/projects/{project.slug}/", {"name": "x"}).status_code == 403
    assert http.post("/api/v1/projects/", {"name": "x"}).status_code == 403


def test_a_client_token_says_who_it_is(project: Project, client_token: ClientToken, api: ApiFor) -> None:
    client, secret = client_token(project)
    me = api(secret).get("/api/v1/me/").json()
    assert (me["project"], me["client"], me["token"]["kind"]) == (project.slug, str(client.pk), "client")


def test_client_tokens_are_not_made_by_hand(owner: User, project: Project, api: ApiFor) -> None:
    refused = api(owner).post(TOKENS, {"name": "x", "kind": "client", "project": project.slug})
    assert refused.status_code == 400 and "kind" in refused.json()["errors"]


def test_i_see_my_tokens_and_those_of_projects_that_i_administer(
    owner: User, admin: User, member: User, project: Project, client_token: ClientToken, api: ApiFor
) -> None:
    api(owner).post(TOKENS, {"name": "mine"})
    api(owner).post(TOKENS, {"name": "shared", "kind": "project", "project": project.slug})
    client_token(project, "site-a")

    def names(user: User, **filters: str) -> set[str]:
        return {row["name"] for row in api(user).get(TOKENS, filters).json()["results"]}

    assert names(owner) == {"mine", "shared", "site-a"}
    assert names(owner, kind="project") == {"shared"}
    assert names(admin) == {"shared", "site-a"}
    assert names(member) == set()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "kind": "project"}, "project"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused_by_field(
    body: dict[str, Any], field: str, owner: User, api: ApiFor
) -> None:
    refused = api(owner).post(TOKENS, body)
    assert refused.status_code == 400
    assert field in refused.json().get("errors", {}) or refused.json().get("field") == field
    assert not Token.objects.exists()


@pytest.fixture
def heard(redis_url: str) -> Iterator[Any]:
    """What combiners hear."""
    channel = redis.Redis.from_url(redis_url).pubsub(ignore_subscribe_messages=True)
    channel.subscribe(COMBINER_CHANNEL)
    channel.get_message(timeout=1)
    yield channel
    channel.close()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["revoke", "rotate"])
def test_revoking_a_clients_token_wakes_the_combiners(
    how: str, owner: User, project: Project, client_token: ClientToken, api: ApiFor, heard: Any
) -> None:
    client, _secret = client_token(project)
    url = f"{TOKENS}{Token.objects.get().pk}/"
    answer = api(owner).delete(url) if how == "revoke" else api(owner).post(f"{url}rotate/")
    assert answer.status_code < 300
    message = heard.get_message(timeout=5)
    assert message is not None and json.loads(message["data"]) == {
        "clients": [str(client.pk)],
        "revoked": True,  # their streams close at once
    }


def test_listing_many_tokens_costs_the_same_as_few(
    owner: User, project: Project, client_token: ClientToken, api: ApiFor, django_assert_max_num_queries: Any
) -> None:
    for number in range(30):
        client_token(project, f"site-{number}")
    http = api(owner)
    with django_assert_max_num_queries(3):
        assert len(http.get(TOKENS).json()["results"]) == 30


def test_a_token_in_the_wrong_place_or_shape_is_no_log_in(
    owner: User, api: ApiFor, user_token: TokenFor
) -> None:
    secret = user_token(owner)
    http = api()
    assert http.get(f"/api/v1/me/?token={secret}").status_code == 401
    for header in (
        secret,
        f"Basic {secret}",
        "Bearer",
        "Bearer  ",
        f"Bearer {secret} {secret}",
        "Bearer \xff",
    ):
        assert http.get("/api/v1/me/", HTTP_AUTHORIZATION=header).status_code == 401
    assert http.get("/api/v1/me/", HTTP_AUTHORIZATION=f"bearer {secret}").status_code == 200
