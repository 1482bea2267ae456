"""What FEDn's command line asks of a Studio: logging in, projects, and tokens for them."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client as Http

from foundation.throttles import LOGIN_FAILURES_OF_NAME
from projects.choices import Role
from projects.models import Membership, Project, User
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from tests.cast import PASSWORD, ClientToken
from tests.controller_cast import Controller, secret_of
from tests.pages_world import World


def log_in(username: str, password: str = PASSWORD) -> Any:
    sent = {"username": username, "password": password}
    return Http().post("/api/token/", sent, content_type="application/json")


def form(controller: Controller, path: str, **fields: str) -> Any:
    """As the command line sends these: URL-encoded."""
    body = "&".join(f"{key}={value}" for key, value in fields.items())
    return Http().post(
        path,
        body,
        content_type="application/x-www-form-urlencoded",
        headers={"Authorization": f"Bearer {controller.token}"},
    )


@pytest.fixture
def me(project: Project, owner: User) -> Controller:
    return Controller(log_in("olivia_owner").json()["access"])


def test_logging_in_gives_a_token_of_the_person_that_ends(project: Project, owner: User) -> None:
    for name in ("olivia_owner", owner.email):
        answer = log_in(name)
        assert answer.status_code == 200
        assert set(answer.json()) == {"access", "refresh"}
    row = Token.objects.filter(kind=TokenKind.USER).latest("created_at")
    assert (row.user, row.scopes, row.expires_at is not None) == (owner, ["read", "write", "admin"], True)


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"username": "olivia_owner"},
        {"username": 5, "password": []},
        {"username": "x" * 999, "password": "y"},
    ],
)
def test_half_a_login_is_refused(project: Project, sent: dict[str, Any]) -> None:
    answer = Http().post("/api/token/", sent, content_type="application/json")
    assert (answer.status_code, bool(answer.json()["message"])) == (400, True)


def test_guessing_a_password_is_throttled_as_on_the_page(project: Project) -> None:
    heard = [log_in("olivia_owner", "wrong").status_code for _ in range(LOGIN_FAILURES_OF_NAME.amount + 2)]
    assert heard == [401] * LOGIN_FAILURES_OF_NAME.amount + [429] * 2
    assert log_in("olivia_owner").status_code == 429, "and the right one is not told apart"
    assert not Token.objects.exists()


def test_my_projects_are_a_bare_list(
    project: Project, other_project: Project, me: Controller, owner: User
) -> None:
    Membership.objects.create(project=other_project, user=owner, role=Role.VIEWER)
    found = me.get("projects")
    assert [row["slug"] for row in found] == [other_project.slug, project.slug], (
        "newest first: it becomes the context"
    )
    assert [row["owner_username"] for row in found] == ["stan_stranger", "olivia_owner"]
    assert set(found[0]) >= {"slug", "name", "owner_username", "status", "created_at", "app_version"}
    assert me.get("projects/")["results"], "with a slash it is our own API"


def test_an_admin_token_opens_the_project_and_nothing_else(
    project: Project, other_project: Project, me: Controller
) -> None:
    pair = me.get("admin-token", x_project_slug=project.slug)
    row = Token.objects.get(kind=TokenKind.PROJECT)
    assert (row.project, row.scopes, row.expires_at is not None) == (
        project,
        ["read", "write", "admin"],
        True,
    )
    admin = Controller(pair["access"])
    assert admin.get(f"projects/{project.slug}")["slug"] == project.slug
    assert admin.get(f"/{project.slug}-fedn-reducer/api/v1/models/") == {"count": 0, "result": []}
    assert "error" in admin.get(f"projects/{other_project.slug}")
    assert admin("GET", f"/{other_project.slug}-fedn-reducer/api/v1/models/").status_code == 401


def test_who_is_no_admin_works_with_their_own_token(project: Project, member: User, viewer: User) -> None:
    for person, may in ((member, 200), (viewer, 403)):
        own = Controller(secret_of(person, TokenKind.USER))
        pair = own.get("admin-token", x_project_slug=project.slug)
        assert pair["access"] == own.token
        path = f"/{project.slug}-fedn-reducer/api/v1/helpers/active"
        assert own("PUT", path, {"helper": "numpyhelper"}).status_code == may
        assert own("GET", "client-token", x_project_slug=project.slug).status_code == 403
    assert not Token.objects.filter(kind__in=[TokenKind.PROJECT, TokenKind.ENROLMENT]).exists()


def test_a_client_token_registers_devices_and_lasts(furnished: World, me: Controller) -> None:
    pair = me.get("client-token", x_project_slug=furnished.project.slug)
    row = Token.objects.get(kind=TokenKind.ENROLMENT)
    assert (row.project, row.expires_at) == (furnished.project, None)
    joined = Controller(pair["access"], f"/{furnished.project.slug}-fedn-reducer")
    sent = {"name": "north_0", "client_id": "6b3a3a5e-0000-4000-8000-000000000001", "package": "remote"}
    assert joined("POST", "clients/add", sent).status_code == 200


def test_the_project_of_a_token_must_be_named_and_mine(
    project: Project, other_project: Project, me: Controller
) -> None:
    for path in ("admin-token", "client-token"):
        assert me("GET", path).status_code == 400
        assert me("GET", path, x_project_slug=other_project.slug).status_code == 404


def test_a_project_is_made_from_a_form(project: Project, me: Controller, owner: User) -> None:
    answer = form(me, "/api/v1/projects/create", name="First+hour", nr_of_combiners="1")
    assert answer.status_code == 201
    made = Project.objects.get(slug=answer.json()["slug"])
    assert (made.name, made.memberships.get().user) == ("First hour", owner)
    refused = form(me, "/api/v1/projects/create", name="")
    assert (refused.status_code, "name" in refused.json()["message"]) == (400, True)


def test_only_its_owner_removes_a_project(
    project: Project, me: Controller, admin: User, stranger: User
) -> None:
    path = f"projects/delete/{project.slug}"
    assert Controller(secret_of(admin, TokenKind.USER))("DELETE", path).status_code == 403
    assert Controller(secret_of(stranger, TokenKind.USER))("DELETE", path).status_code == 404
    assert me("DELETE", path).status_code == 200
    assert not Project.objects.exists()


def test_updating_and_adding_a_combiner_change_nothing(
    furnished: World, me: Controller, member: User
) -> None:
    slug = furnished.project.slug
    assert form(me, "/api/v1/projects/update", slug=slug).status_code == 200
    sent = {"project_slug": slug, "nr_of_combiners": "2"}
    said = me("POST", "projects/add_combiner", sent)
    assert (said.status_code, "all 1 combiners" in said.json()["message"]) == (200, True)
    other = Controller(secret_of(member, TokenKind.USER))
    assert form(other, "/api/v1/projects/update", slug=slug).status_code == 403
    assert other("POST", "projects/add_combiner", sent).status_code == 403


def test_devices_and_nobody_open_none_of_it(project: Project, owner: User, client_token: ClientToken) -> None:
    _client, secret = client_token(project)
    for token in ("", "nonsense", secret, secret_of(owner, TokenKind.ENROLMENT, project=project)):
        for path in ("projects", f"projects/{project.slug}", "admin-token", "client-token"):
            answer = Controller(token)("GET", path, x_project_slug=project.slug)
            assert (answer.status_code, bool(answer.json()["message"])) == (401, True), (token[:4], path)


def test_a_cookie_opens_none_of_it(project: Project, owner: User) -> None:
    """These addresses ask for no cross-site token, so that a cookie must not be enough."""
    http = Http()
    http.force_login(owner, backend="django.contrib.auth.backends.ModelBackend")
    for path in ("projects", "admin-token", "clients/", "sessions/"):
        assert http.get(f"/api/v1/{path}", headers={"X-Project-Slug": project.slug}).status_code in (401,), (
            path
        )
    assert http.delete(f"/api/v1/projects/delete/{project.slug}").status_code == 401
