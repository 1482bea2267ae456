"""Who may do what: every address x every kind of caller, enumerated from the resolver.

An address, or a method of one, that is not in the tables fails the first tests: say there who may use it. RPCs have
tables of their own, and so have the addresses of published clients.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from django.core.cache import cache

from projects.models import Invitation, Project, User
from tests.cast import ApiFor
from tests.permissions.routes import ADMIN_SITE, BY_NAME, CASES, OURS, Route
from tests.permissions.rules import CALLERS, LOGIN, METHODS, OK, verdict
from tests.permissions.tables import ANY_METHOD_IS_FINE, TABLE
from tests.permissions.world import World

pytestmark = pytest.mark.once  # who may do what is decided before the database is asked


def test_every_address_is_in_the_table_and_the_table_holds_no_other() -> None:
    assert {route.name for route in OURS} == set(TABLE)
    assert len(BY_NAME) == len(OURS), "two addresses share a name"


def test_every_cell_of_the_table_is_filled() -> None:
    for name, methods in TABLE.items():
        for method, rule in methods.items():
            assert set(rule) == set(CALLERS), f"{method} {name}"


REQUIRED = ("type", "title", "status", "detail", "code")
# What a right caller hears when there is nothing to do: a page of allauth for a key that is none.
SOFT = {"account_confirm_email": (404,)}

# A world is dear and every request leaves it as it was: some routes share one.
GROUPS = [OURS[start : start + 16] for start in range(0, len(OURS), 16)]


def ids(group: list[Route]) -> str:
    return f"{group[0].name} to {group[-1].name}"


@pytest.mark.parametrize("group", GROUPS, ids=ids)
def test_the_table(group: list[Route], world: World, settings: Any) -> None:
    settings.ACCOUNT_RATE_LIMITS = False
    wrong = []
    for name, method in [(route.name, method) for route in group for method in TABLE.get(route.name, {})]:
        cache.clear()  # nobody is throttled here
        for who, expected in TABLE[name][method].items():
            answer = world.ask(who, name, method)
            heard = OK if answer.status_code in SOFT.get(name, ()) else verdict(answer)
            if heard != expected:
                wrong.append(f"{method} {name} as {who}: {heard}, not {expected}")
            if name.startswith("api-") and answer.status_code >= 400:
                assert answer["Content-Type"] == "application/problem+json", f"{method} {name} as {who}"
                assert all(word in answer.json() for word in REQUIRED)  # type: ignore[attr-defined]
            if answer.status_code == 401:
                assert answer["WWW-Authenticate"], f"{method} {name} as {who}"
    assert not wrong, "\n".join(wrong)


def test_a_method_that_is_not_in_the_table_does_not_exist(world: World) -> None:
    wrong = []
    for name in TABLE:
        if name in ANY_METHOD_IS_FINE or name.startswith("account_"):  # allauth reads PUT as POST
            continue
        for method in set(METHODS) - set(TABLE[name]):
            answer = world.ask("owner", name, method)
            if answer.status_code != 405:
                wrong.append(f"{method} {name}: {answer.status_code}")
    assert not wrong, "\n".join(wrong)


def test_another_projects_rows_are_not_found_below_my_own_address(
    world: World, other_project: Project
) -> None:
    """The stranger owns `other_project`: all is allowed there, and nothing of `project` is reached from it."""
    wrong = []
    tried = 0
    for name, method in CASES:
        params = set(BY_NAME[name].params)
        if "slug" not in params or params <= {"slug", "tab"}:
            continue
        tried += 1
        answer = world.ask("stranger", name, method, slug=other_project.slug)
        if answer.status_code != 404:
            wrong.append(f"{method} {name} as stranger: {answer.status_code}")
        answer = world.ask("client of another project", name, method, slug=other_project.slug)
        if verdict(answer) not in (403, 404, LOGIN):
            wrong.append(f"{method} {name} as a client: {answer.status_code}")
    assert tried > 30
    assert not wrong, "\n".join(wrong)


def test_the_admin_site_lets_nobody_in_who_is_no_staff(world: World) -> None:
    tried = 0
    for route in ADMIN_SITE:
        known = {"object_id": "1", "app_label": "projects", "content_type_id": 1, "url": "x", "id": "1"}
        if not set(route.params) <= set(known):
            continue
        url = re.sub(r"<(?:\w+:)?(\w+)>", lambda found, known=known: str(known[found[1]]), route.pattern)  # type: ignore[misc]
        url = "/" + re.sub(r"\(\?P(\w+)\[?[^)]*\)", "projects", url).replace("^", "").replace("$", "")
        tried += 1
        for who in CALLERS:
            answer = world.callers[who].get(url)
            assert answer.status_code in (302, 403, 404), f"{who} {url}"
            if answer.status_code == 302:
                assert re.match(r"/admin/$|/(admin|accounts)/login/", answer["Location"]), f"{who} {url}"
    assert tried > 40


def test_nobody_is_told_whether_an_account_exists_by_logging_in(owner: User, api: ApiFor) -> None:
    assert EmailAddress.objects.count() == 0
    known = api().post("/api/v1/auth/token/", {"login": owner.email, "password": "wrong"})
    unknown = api().post("/api/v1/auth/token/", {"login": "nobody@example.org", "password": "wrong"})
    assert known.content == unknown.content


def test_an_invitation_row_shows_its_secret_to_nobody(world: World) -> None:
    digest = Invitation.objects.get().digest
    for name in ("api-invitations", "api-invitation", "project-members"):
        answer = world.ask("owner", name, "GET")
        assert digest not in answer.content.decode()  # type: ignore[attr-defined]
