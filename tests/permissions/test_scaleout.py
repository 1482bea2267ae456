"""Who may use Scaleout's own addresses: every one of them, enumerated from the dialect's lists, for every caller."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from django.core.cache import cache
from django.db import transaction
from django.utils import timezone
from rest_framework.test import APIClient

from clients_app.models import Combiner
from federation.dialects.scaleout import login_urls, urls
from federation.sessions.models import Command
from projects.models import Project, User
from projects.tokens import tickets
from projects.tokens.choices import TokenKind
from projects.tokens.models import Token
from projects.tokens.services import create_token, revoke_token
from tests.cast import ApiFor, ClientToken, actor

pytestmark = pytest.mark.once  # who may do what is decided before the database is asked

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
CALLERS = (
    "owner's cookie",
    "nobody",
    "owner's token",
    "owner's read token",
    "member's token",
    "viewer's token",
    "stranger's token",
    "owner's ticket for another project",
    "project token",
    "project access ticket",
    "project token of another project",
    "client",
    "client of another project",
    "enrolment token",
    "expired token",
    "revoked token",
)
THROUGH = 0  # done, or refused for what it says rather than for who says it
Rule = dict[str, int]


def rule() -> Rule:
    said = dict.fromkeys(CALLERS, 401)
    said |= dict.fromkeys(("owner's token", "project token", "project access ticket"), THROUGH)
    return said | {"stranger's token": 404, "owner's ticket for another project": 404}


VIEW: Rule = rule() | {"owner's read token": THROUGH, "viewer's token": THROUGH, "member's token": THROUGH}
RUN: Rule = rule() | {"owner's read token": 403, "viewer's token": 403, "member's token": THROUGH}
ADMIN: Rule = RUN | {"member's token": 403}
OWN_UPLOAD: Rule = VIEW  # what one has not begun is not found
ENROL: Rule = dict.fromkeys(CALLERS, 401) | {"enrolment token": THROUGH}
BY_BODY: Rule = dict.fromkeys(CALLERS, 401)  # the ticket in the body counts, and this test sends none
PUBLIC: Rule = dict.fromkeys(CALLERS, THROUGH)
PAGE: Rule = dict.fromkeys(CALLERS, 302) | {"owner's cookie": 404}  # this log-in is unknown to who may ask

TABLE: dict[str, dict[str, Rule]] = {
    "scaleout-enrol": {"POST": ENROL},
    "scaleout-token": {"POST": BY_BODY},
    "scaleout-refresh": {"POST": BY_BODY},
    "scaleout-login-init": {"POST": PUBLIC},
    "scaleout-login-status": {"GET": PUBLIC},
    "command-line-login": {"GET": PAGE, "POST": PAGE},
    "scaleout-enrolment-tokens": {"POST": ADMIN},
    "scaleout-upload": {"POST": RUN},
    "scaleout-upload-chunk": {"POST": OWN_UPLOAD},
    "scaleout-upload-complete": {"POST": OWN_UPLOAD},
    "scaleout-upload-abort": {"POST": OWN_UPLOAD},
    "scaleout-run-command": {"POST": RUN},
    "scaleout-inference": {"POST": RUN},
    "scaleout-stop": {"POST": RUN},
    "scaleout-continue": {"POST": RUN},
    "scaleout-stage": {"POST": RUN},
    "scaleout-validation": {"POST": RUN},
    "scaleout-commands": {"GET": VIEW},
    "scaleout-commands-roots": {"GET": VIEW},
    "scaleout-commands-count": {"GET": VIEW, "POST": VIEW},
    "scaleout-command": {"GET": VIEW},
    "scaleout-command-stop": {"POST": RUN},
    "scaleout-command-skip": {"POST": RUN},
    "scaleout-statuses": {"GET": VIEW, "POST": RUN},
    "scaleout-combiner": {"GET": VIEW, "PATCH": ADMIN},
}  # fmt: skip

ROUTES = {
    **{str(entry.name): f"/api/v1/{entry.pattern}" for entry in urls.urlpatterns},
    **{str(entry.name): f"/{entry.pattern}" for entry in login_urls.urlpatterns},
}


def test_every_address_is_in_the_table_and_the_table_holds_no_other() -> None:
    assert set(ROUTES) == set(TABLE)


@pytest.fixture
def callers(
    project: Project,
    other_project: Project,
    owner: User,
    member: User,
    viewer: User,
    stranger: User,
    api: ApiFor,
    client_token: ClientToken,
) -> dict[str, APIClient]:
    def token(user: User, kind: str = TokenKind.USER, **more: Any) -> tuple[Token, str]:
        more = {"scopes": ("admin",), **more}
        return create_token(actor=actor(user), kind=kind, name="a token", **more)

    expired, expired_secret = token(owner)
    Token.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    revoked, revoked_secret = token(owner)
    revoke_token(actor=actor(owner), token=revoked)
    narrowed = tickets.lasting_ticket(*token(owner), project_id=other_project.pk)
    of_project, project_secret = token(owner, TokenKind.PROJECT, project=project)
    secrets = {
        "owner's token": token(owner)[1],
        "owner's read token": token(owner, scopes=("read",))[1],
        "member's token": token(member)[1],
        "viewer's token": token(viewer)[1],
        "stranger's token": token(stranger)[1],
        "owner's ticket for another project": narrowed,
        "project token": project_secret,
        "project access ticket": tickets.access_ticket(of_project)[0],
        "project token of another project": token(stranger, TokenKind.PROJECT, project=other_project)[1],
        "client": client_token(project, "own")[1],
        "client of another project": client_token(other_project, "foreign")[1],
        "enrolment token": token(owner, TokenKind.ENROLMENT, project=project)[1],
        "expired token": expired_secret,
        "revoked token": revoked_secret,
    }
    made = {"owner's cookie": api(owner), "nobody": api(), **{who: api(s) for who, s in secrets.items()}}
    assert set(made) == set(CALLERS)
    return made


@pytest.fixture
def url_of(project: Project) -> Any:
    command = Command.objects.create(
        project=project, kind="custom", name="echo", deadline=timezone.now() + dt.timedelta(hours=1)
    )

    combiner = Combiner.objects.create(name="c1", lease_until=timezone.now() + dt.timedelta(hours=1))

    def url(name: str) -> str:
        pattern = ROUTES[name].replace("^", "").replace("/?$", "").replace("<str:request_id>", "unknown")
        pattern = re.sub(r"\(\?!.*?\)(?=\()", "", pattern)
        pattern = re.sub(r"\(\?P<upload_id>[^)]*\)", "0" * 32, pattern)
        row = combiner if name == "scaleout-combiner" else command
        return re.sub(r"\(\?P<pk>[^)]*\)", str(row.pk), pattern)

    return url


@pytest.mark.django_db
def test_the_table(callers: dict[str, APIClient], url_of: Any, project: Project) -> None:
    wrong = []
    for name, methods in TABLE.items():
        for method, said in methods.items():
            for who, expected in said.items():
                cache.clear()  # nobody is throttled here
                with transaction.atomic():
                    answer = getattr(callers[who], method.lower())(
                        url_of(name), {}, format="json", headers={"X-Project-Slug": project.slug}
                    )
                    transaction.set_rollback(True)
                heard = THROUGH if answer.status_code in (200, 201, 400, 404, 409) else answer.status_code
                if expected == 404:
                    heard = answer.status_code
                if heard != expected:
                    wrong.append(f"{method} {name} as {who}: {answer.status_code}, not {expected}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.django_db
def test_a_method_that_is_not_in_the_table_does_not_exist(
    callers: dict[str, APIClient], url_of: Any, project: Project
) -> None:
    wrong = []
    for name, methods in TABLE.items():
        for method in set(METHODS) - set(methods):
            who = "owner's cookie" if name == "command-line-login" else "project token"
            answer = getattr(callers[who], method.lower())(url_of(name), {}, format="json")
            if answer.status_code != 405:
                wrong.append(f"{method} {name}: {answer.status_code}")
    assert not wrong, "\n".join(wrong)
